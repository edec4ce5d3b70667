//! Layouts, splits and the leak rules, on folders made here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use common::{discs, fails, ok};
use segft::data::{Request, Splits, check, data_hash, prepare};
use segft::error::Error;
use segft::image::{Grid, Labels, Volume};
use segft::io::nifti::{Template, write_labels, write_volume};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

fn request(dataset: &Path) -> Request {
    Request { dataset: dataset.display().to_string(), ..Request::default() }
}

fn ids(cases: &[segft::data::Case]) -> BTreeSet<String> {
    cases.iter().map(|c| c.id.clone()).collect()
}

fn refused(request: &Request) -> Error {
    prepare(request).map(|_| ()).unwrap_err()
}

#[test]
fn a_plain_folder_is_divided_70_15_15_by_seed() {
    let folder = tempfile::tempdir().unwrap();
    discs(folder.path(), "a", 40, 0);
    let splits = prepare(&request(folder.path())).unwrap();
    assert_eq!((splits.train.len(), splits.validation.len(), splits.test.len()), (28, 6, 6));
    assert_eq!(splits.dataset.layout, "images/ + masks/");
    let again = prepare(&request(folder.path())).unwrap();
    assert_eq!(ids(&splits.test), ids(&again.test));
    assert_eq!(data_hash(&splits).unwrap(), data_hash(&again).unwrap());
    let other = prepare(&Request { seed: 1, ..request(folder.path()) }).unwrap();
    assert_ne!(ids(&splits.test), ids(&other.test));
    let all: BTreeSet<String> =
        [&splits.train, &splits.validation, &splits.test].into_iter().flat_map(|s| ids(s)).collect();
    assert_eq!(all.len(), 40, "every case on one side");
}

#[test]
fn a_test_set_leaves_80_20_and_sizes_are_nested() {
    let folder = tempfile::tempdir().unwrap();
    let (train, test) = (folder.path().join("train"), folder.path().join("test"));
    discs(&train, "a", 30, 0);
    discs(&test, "b", 5, 9);
    let with = |size| prepare(&Request { test: Some(test.clone()), size, ..request(&train) }).unwrap();
    let all = with(None);
    assert_eq!((all.train.len(), all.validation.len(), all.test.len()), (24, 6, 5));
    let used = |s: &Splits| -> BTreeSet<String> { ids(&s.train).union(&ids(&s.validation)).cloned().collect() };
    let (ten, twenty) = (with(Some(10)), with(Some(20)));
    assert_eq!((used(&ten).len(), used(&twenty).len()), (10, 20));
    assert!(used(&ten).is_subset(&used(&twenty)));
    assert_eq!(ids(&ten.test), ids(&all.test));
    // The folder that holds both says how to name them.
    let error = refused(&request(folder.path()));
    assert!(error.hint.unwrap().contains("--test"), "{}", error.message);
}

#[test]
fn what_stands_on_two_sides_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (train, test) = (folder.path().join("train"), folder.path().join("test"));
    discs(&train, "a", 8, 0);
    discs(&test, "b", 3, 9);
    // The same picture under another name, and as another file format.
    let copied = test.join("images/b000.png");
    std::fs::copy(train.join("images/a003.png"), &copied).unwrap();
    let leaking = Request { test: Some(test.clone()), ..request(&train) };
    let error = refused(&leaking);
    assert_eq!(error.kind.exit_code(), 3);
    assert!(error.message.contains("a003") && error.message.contains("b000"), "{}", error.message);
    let allowed = prepare(&Request { allow_leak: true, ..leaking }).unwrap();
    assert!(allowed.warnings.iter().any(|w| w.contains("b000")), "{:?}", allowed.warnings);
    let picture = segft::io::picture::read_picture(&copied).unwrap();
    let mut other = Vec::new();
    let rgb = image::RgbImage::from_raw(picture.width as u32, picture.height as u32, picture.rgb).unwrap();
    rgb.write_to(&mut std::io::Cursor::new(&mut other), image::ImageFormat::Bmp).unwrap();
    std::fs::remove_file(&copied).unwrap();
    std::fs::write(test.join("images/b000.bmp"), other).unwrap();
    assert!(refused(&Request { test: Some(test), ..request(&train) }).message.contains("b000.bmp"));
}

/// A patient is known by the column, whatever the pictures are called.
#[test]
fn a_group_named_like_a_picture_is_a_group() {
    let folder = tempfile::tempdir().unwrap();
    discs(folder.path(), "a", 6, 0);
    let table = |rows: [&str; 6]| {
        let lines = rows.iter().enumerate().map(|(i, row)| format!("images/a{i:03}.png,masks/a{i:03}.png,{row}\n"));
        let file = folder.path().join("list.csv");
        std::fs::write(&file, format!("image,mask,group,split\n{}", lines.collect::<String>())).unwrap();
        file
    };
    let file = table(["a000,train", "b,train", "c,val", "a000,test", "e,test", "f,test"]);
    let error = refused(&request(&file));
    assert!(error.message.contains("one group `a000`") && error.message.contains("a003"), "{error}");
    // A picture that nothing is known of is not of the group that has its name.
    prepare(&request(&table([",train", "b,train", "c,val", "a000,test", "e,test", "f,test"]))).unwrap();
    let header = std::fs::read_to_string(&file).unwrap().replace("group", "gruop");
    std::fs::write(&file, header).unwrap();
    let error = refused(&request(&file));
    assert!(
        error.message.contains("`gruop`") && error.hint.unwrap().contains("did you mean `group`?"),
        "{}",
        error.message
    );
    prepare(&request(&table([",train", "b,train", "c,val", "d,test", "e,test", "f,test"]))).unwrap();
}

#[test]
fn equal_pictures_and_groups_stay_together() {
    let folder = tempfile::tempdir().unwrap();
    discs(folder.path(), "a", 20, 0);
    std::fs::copy(folder.path().join("images/a000.png"), folder.path().join("images/a019.png")).unwrap();
    let mut table = String::from("image,mask,group\n");
    (0..20).for_each(|i| table += &format!("images/a{i:03}.png,masks/a{i:03}.png,p{}\n", i / 3));
    std::fs::write(folder.path().join("cases.csv"), table).unwrap();
    for seed in 0..20 {
        let splits = prepare(&Request { seed, ..request(folder.path()) }).unwrap();
        for side in [&splits.train, &splits.validation, &splits.test] {
            let groups: BTreeSet<_> = side.iter().map(|c| c.unit()).collect();
            let whole = splits.dataset.cases.iter().filter(|c| groups.contains(&c.unit())).count();
            assert_eq!(whole, side.len(), "seed {seed}: a group was cut");
            assert_eq!(ids(side).contains("a000"), ids(side).contains("a019"), "seed {seed}: equal pictures parted");
        }
    }
}

#[test]
fn a_csv_gives_sides_and_its_errors_name_the_line() {
    let folder = tempfile::tempdir().unwrap();
    discs(folder.path(), "a", 6, 0);
    let file = folder.path().join("list.csv");
    let mut table = String::from("image,mask,group,split\n");
    for (i, side) in ["train", "train", "train", "val", "test", "test"].iter().enumerate() {
        table += &format!("images/a{i:03}.png,masks/a{i:03}.png,,{side}\n");
    }
    std::fs::write(&file, &table).unwrap();
    let splits = prepare(&request(&file)).unwrap();
    assert_eq!((splits.train.len(), splits.validation.len(), splits.test.len()), (3, 1, 2));
    std::fs::write(&file, table.replace("masks/a004", "masks/zzz")).unwrap();
    let error = refused(&request(&file));
    assert!(error.message.contains("line 6") && error.message.contains("zzz"), "{}", error.message);
    std::fs::write(&file, table.replace(",val", ",vall")).unwrap();
    assert!(refused(&request(&file)).message.contains("line 5"));
}

#[test]
fn split_files_and_folds() {
    let folder = tempfile::tempdir().unwrap();
    discs(folder.path(), "a", 10, 0);
    let file = folder.path().join("split.json");
    std::fs::write(&file, r#"{"train":["a000","a001","a002"],"val":["a003"],"test":["a004","a005"]}"#).unwrap();
    let splits = prepare(&Request { split: Some(file.clone()), ..request(folder.path()) }).unwrap();
    assert_eq!((splits.train.len(), splits.validation.len(), splits.test.len()), (3, 1, 2));
    std::fs::write(&file, r#"{"train":["a000"],"val":["a003"],"test":["b004"]}"#).unwrap();
    let error = refused(&Request { split: Some(file), ..request(folder.path()) });
    assert!(error.message.contains("b004") && error.hint.is_some());
    let mut tested = Vec::new();
    for fold in 0..5 {
        let splits = prepare(&Request { fold: Some((5, fold)), ..request(folder.path()) }).unwrap();
        tested.extend(ids(&splits.test));
    }
    tested.sort();
    tested.dedup();
    assert_eq!(tested.len(), 10, "every case is tested once");
    // A size counts training and validation together, in folds too.
    let sides = prepare(&Request { fold: Some((5, 1)), size: Some(4), ..request(folder.path()) }).unwrap();
    assert_eq!((sides.train.len(), sides.validation.len(), sides.test.len()), (3, 1, 2));
    // Two folds leave none to train with; with a test set of its own they do.
    let error = refused(&Request { fold: Some((2, 1)), ..request(folder.path()) });
    assert!(error.kind.exit_code() == 2 && error.hint.unwrap().contains("3 ≤ N"));
    let other = tempfile::tempdir().unwrap();
    discs(other.path(), "t", 3, 40);
    let test = Some(other.path().to_path_buf());
    let sides = prepare(&Request { fold: Some((2, 1)), test, ..request(folder.path()) }).unwrap();
    assert_eq!((sides.train.len(), sides.validation.len(), sides.test.len()), (5, 5, 3));
}

#[test]
fn broken_folders_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    assert!(refused(&request(at)).message.contains("found nothing"));
    discs(at, "a", 4, 0);
    std::fs::rename(at.join("masks/a002.png"), at.join("masks/a02.png")).unwrap();
    let error = refused(&request(at));
    assert!(error.message.contains("a002") && error.hint.unwrap().contains("a02"));
    std::fs::rename(at.join("masks/a02.png"), at.join("masks/a002.png")).unwrap();
    let small = segft::image::Labels { grid: segft::image::Grid::picture(5, 5), voxels: vec![1; 25] };
    segft::io::picture::write_mask(&at.join("masks/a001.png"), &small).unwrap();
    assert!(refused(&request(at)).message.contains("48 × 40 pixels, its mask 5 × 5"));
    let error = refused(&Request { dataset: "phantm".into(), ..Request::default() });
    assert_eq!((error.kind.exit_code(), error.hint.unwrap().contains("`phantom`")), (2, true));
}

#[test]
fn polyp_without_data_and_network_says_all_ways_out() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let wish = Request { dataset: "polyp".into(), cache: cache.clone(), offline: true, ..Request::default() };
    let error = refused(&wish);
    let text = format!("{} {}", error.message, error.hint.unwrap());
    assert_eq!(error.kind.exit_code(), 3);
    for part in ["kvasir-seg.zip", "cache/polyp", "segft fetch polyp --from", "--dataset phantom"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let elsewhere = folder.path().join("kvasir");
    discs(&elsewhere.join("Kvasir-SEG"), "k", 12, 0);
    assert_eq!(prepare(&Request { data: Some(elsewhere), ..wish.clone() }).unwrap().dataset.cases.len(), 12);
    discs(&cache.join("polyp"), "k", 9, 0);
    assert_eq!(prepare(&wish).unwrap().dataset.cases.len(), 9);
}

#[test]
fn leaks_between_the_sides_of_a_table_are_found() {
    let folder = tempfile::tempdir().unwrap();
    discs(folder.path(), "a", 6, 0);
    let images = folder.path().join("images");
    std::fs::copy(images.join("a001.png"), images.join("a005.png")).unwrap();
    let mut table = String::from("image,mask,group,split\n");
    for (i, side) in ["train", "train", "train", "val", "test", "test"].iter().enumerate() {
        let group = if i == 2 || i == 3 { "one" } else { "" };
        table += &format!("images/a{i:03}.png,masks/a{i:03}.png,{group},{side}\n");
    }
    let file = folder.path().join("list.csv");
    std::fs::write(&file, table).unwrap();
    let facts = check(&file).unwrap().facts;
    let leaks: Vec<&str> = facts["leaks"].as_array().unwrap().iter().filter_map(|l| l.as_str()).collect();
    assert_eq!(leaks.len(), 2, "{leaks:?}");
    assert!(leaks.iter().any(|l| l.contains("a005") && l.contains("train and test")), "{leaks:?}");
    assert!(leaks.iter().any(|l| l.contains("group `one`") && l.contains("train and validation")), "{leaks:?}");
    assert_eq!(facts["sides"].as_array().unwrap().len(), 3);
}

#[test]
fn a_check_tells_everything_that_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    discs(&at.join("set"), "a", 8, 0);
    let file = |name: &str| at.join("set").join(name);
    std::fs::write(file("images/a001.png"), b"no picture").unwrap();
    std::fs::remove_file(file("masks/a002.png")).unwrap();
    std::fs::remove_file(file("images/a003.png")).unwrap();
    let larger = Labels { grid: Grid::picture(50, 40), voxels: vec![1; 50 * 40] };
    segft::io::picture::write_mask(&file("masks/a004.png"), &larger).unwrap();
    // Its header is whole, its pixels are not.
    let cut = std::fs::read(file("images/a005.png")).unwrap();
    std::fs::write(file("images/a005.png"), &cut[..cut.len() / 2]).unwrap();
    std::fs::copy(file("images/a006.png"), file("images/a007.png")).unwrap();
    let (code, text) = fails(at, &["data", "check", "set"]);
    assert!(code == 3 && text.contains("5 problems with single files"), "{text}");
    // Neither file of the sixth can be read: both are told.
    std::fs::write(file("masks/a005.png"), b"no mask").unwrap();
    let facts = check(&at.join("set")).unwrap().facts;
    let problems: Vec<String> =
        facts["problems"].as_array().unwrap().iter().map(|p| format!("{} {}", p["path"], p["message"])).collect();
    assert_eq!(problems.len(), 6, "{problems:?}");
    assert!(facts["problems"].to_string().contains("the nearest name there is `a003`"), "each says what to do");
    for (name, words) in [
        ("images/a001.png", ""),
        ("images/a002.png", "no mask"),
        ("masks/a003.png", "no picture"),
        ("masks/a004.png", "50 × 40"),
        ("images/a005.png", ""),
        ("masks/a005.png", ""),
    ] {
        assert!(problems.iter().any(|p| p.contains(name) && p.contains(words)), "{name}: {problems:?}");
    }
    assert_eq!((facts["n_cases"].as_u64(), facts["duplicates"].as_array().unwrap().len()), (Some(6), 1));
    // `info` and a training stop at the first.
    assert_eq!(fails(at, &["info", "set"]).0, 3);
    assert_eq!(refused(&request(&at.join("set"))).kind.exit_code(), 3);
}

#[test]
fn a_check_goes_on_where_no_case_is_whole_and_after_a_bad_row() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for side in ["train", "test"] {
        discs(&at.join("sides").join(side), &side[..1], 3, u8::from(side == "test"));
    }
    for n in 0..3 {
        let mask = |name: &str| at.join(format!("sides/test/masks/{name}{n:03}.png"));
        std::fs::rename(mask("t"), mask("x")).unwrap();
    }
    std::fs::write(at.join("sides/train/masks/t001.png"), b"no mask").unwrap();
    let facts = check(&at.join("sides")).unwrap().facts;
    assert_eq!(facts["problems"].as_array().unwrap().len(), 7, "three pictures, three masks, one mask: {facts}");
    let table = "image,mask,split\ntrain/images/t000.png,train/masks/t000.png,tran\nno.png,no.png,train\n\
                 train/images/t002.png,train/masks/t002.png,train\n";
    std::fs::write(at.join("sides/list.csv"), table).unwrap();
    let facts = check(&at.join("sides/list.csv")).unwrap().facts;
    let problems = facts["problems"].to_string();
    assert!(
        ["`tran`", "line 3, column `image`", "line 3, column `mask`"].iter().all(|w| problems.contains(w)),
        "{problems}"
    );
    assert_eq!(facts["n_cases"], 1);
}

#[test]
fn a_check_tells_voxels_that_are_no_numbers_and_masks_without_foreground() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for name in ["images", "labels"] {
        std::fs::create_dir(at.join(name)).unwrap();
    }
    let grid = Grid { shape: [4, 5, 6], ..Grid::picture(4, 5) };
    let mut voxels = vec![1.0f32; 120];
    write_volume(&at.join("images/a.nii.gz"), &Volume { grid: grid.clone(), voxels: voxels.clone() }).unwrap();
    (voxels[7], voxels[8], voxels[9]) = (f32::NAN, f32::INFINITY, 2.0);
    write_volume(&at.join("images/b.nii.gz"), &Volume { grid: grid.clone(), voxels }).unwrap();
    for name in ["a", "b"] {
        let labels = Labels { grid: grid.clone(), voxels: vec![0; 120] };
        write_labels(&at.join(format!("labels/{name}.nii.gz")), &labels, &Template::of_grid(&grid)).unwrap();
    }
    let found = check(at).unwrap();
    assert_eq!(found.facts["nonfinite_voxels"], json!({"b": 2}));
    assert_eq!(found.facts["empty_masks"], json!(["a", "b"]));
    assert!(found.problems.is_empty() && !found.has_foreground, "{:?}", found.problems);
    let (code, error) = fails(at, &["data", "check", "."]);
    assert!(code == 3 && error.contains("no mask with foreground"), "{error}");
    ok(at, &["info", "."]);
}

#[test]
fn a_place_for_a_set_that_has_its_own_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    discs(folder.path(), "a", 6, 0);
    let error = refused(&Request { data: Some("missing".into()), ..request(folder.path()) });
    assert!(error.kind.exit_code() == 2 && error.message.contains("--data missing"), "{error}");
}

/// Volumes `a` and `b` with labels, as `dataset.json` describes them; the second volume is not compressed. Beside the
/// first lies what macOS leaves in archives.
fn described(folder: &Path, channel: &str, description: &Value) {
    for side in ["imagesTr", "labelsTr"] {
        std::fs::create_dir_all(folder.join(side)).unwrap();
    }
    let grid = Grid { shape: [5, 4, 3], ..Grid::picture(1, 1) };
    for (n, (id, ending)) in [("a", "nii.gz"), ("b", "nii")].into_iter().enumerate() {
        let voxels = (0..60).map(|i| ((7 * i + n) % 13) as f32).collect();
        let volume = Volume { grid: grid.clone(), voxels };
        write_volume(&folder.join(format!("imagesTr/{id}{channel}.{ending}")), &volume).unwrap();
        let labels = Labels { grid: grid.clone(), voxels: (0..60).map(|i| i % 3).collect() };
        write_labels(&folder.join(format!("labelsTr/{id}.nii.gz")), &labels, &Template::of_grid(&grid)).unwrap();
    }
    for left in [format!("imagesTr/._a{channel}.nii.gz"), "labelsTr/._a.nii.gz".to_string()] {
        std::fs::write(folder.join(left), "Mac OS X").unwrap();
    }
    std::fs::write(folder.join("dataset.json"), description.to_string()).unwrap();
}

#[test]
fn decathlon_and_raw_folders_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let pair =
        |id: &str| json!({ "image": format!("./imagesTr/{id}.nii.gz"), "label": format!("./labelsTr/{id}.nii.gz") });
    let decathlon = json!({
        "name": "Liver",
        "tensorImageSize": "3D",
        "modality": { "0": "CT" },
        "labels": { "0": "background", "1": "liver", "2": "cancer" },
        "numTraining": 2,
        "numTest": 1,
        "training": [pair("a"), pair("b")],
        "test": ["./imagesTs/c.nii.gz"],
    });
    let raw = json!({
        "channel_names": { "0": "CT" },
        "labels": { "background": 0, "liver": 1, "cancer": 2 },
        "numTraining": 2,
        "file_ending": ".nii.gz",
    });
    for (name, layout, channel, description, missing) in [
        ("msd", "Medical Segmentation Decathlon", "", decathlon, "`./imagesTr/b.nii.gz`"),
        ("raw", "nnU-Net raw", "_0000", raw, "`b_0000`"),
    ] {
        let set = at.join(name);
        described(&set, channel, &description);
        let told: Value = serde_json::from_str(&ok(at, &["info", name, "--json"])).unwrap();
        assert_eq!((told["layout"].as_str(), told["n_cases"].as_u64()), (Some(layout), Some(2)));
        assert_eq!(told["classes"], json!({ "1": "liver", "2": "cancer" }), "{name}");
        let cases = segft::data::open(&request(&set)).unwrap().cases;
        assert_eq!(cases.iter().map(|case| case.id.as_str()).collect::<Vec<_>>(), ["a", "b"], "{name}");
        // Described as .nii.gz, and found as it lies there.
        let second = set.join(format!("imagesTr/b{channel}.nii"));
        assert_eq!((&cases[1].image, &cases[1].mask), (&second, &set.join("labelsTr/b.nii.gz")));
        std::fs::remove_file(second).unwrap();
        let (code, error) = fails(at, &["info", name]);
        assert!(code == 3 && error.contains(missing), "{name}: {code}, {error}");
    }
}

#[test]
fn real_layouts_are_read() {
    let Some(shared) = common::shared() else { return };
    for (name, cases) in [("kvasir/val", 130), ("hippocampus/val", 34)] {
        let facts = check(&shared.join("data").join(name)).unwrap().facts;
        assert_eq!((facts["n_cases"].as_u64(), facts["leaks"].as_array().unwrap().len()), (Some(cases), 0), "{name}");
    }
}
