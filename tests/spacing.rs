//! Volumes at a common physical scale: what a slice looks like to the network depends on millimetres, not on pixels.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use common::{QUICK, fails, ok, small_checkpoint, small_config};
use segft::image::{Axis, Grid, Labels, Picture, SliceFrame, Volume, Window, mirrored};
use segft::io::nifti::{Template, write_labels, write_values};
use segft::job::base;
use segft::model::checkpoint;
use segft::model::sam::PointLabel;
use segft::predict::{Predictor, Preprocessing, Prompts, Views};
use serde_json::Value;
use std::path::Path;

/// The same body with twice as many voxels along a file axis, each half as long.
fn stretched(volume: &Volume, axis: usize) -> Volume {
    let mut grid = volume.grid.clone();
    grid.shape[axis] *= 2;
    grid.spacing_mm[axis] /= 2.0;
    for row in 0..3 {
        grid.affine[row][axis] /= 2.0;
        // The first voxel's centre lies a quarter of the old voxel before that voxel's centre.
        grid.affine[row][3] -= grid.affine[row][axis] / 2.0;
    }
    let [ni, nj, _] = volume.grid.shape;
    let mut voxels = Vec::with_capacity(grid.len());
    for n in 0..grid.len() {
        let mut at = [n % grid.shape[0], n / grid.shape[0] % grid.shape[1], n / (grid.shape[0] * grid.shape[1])];
        at[axis] /= 2;
        voxels.push(volume.voxels[at[0] + ni * (at[1] + nj * at[2])]);
    }
    Volume { grid, voxels }
}

/// Dice of two masks of a body, the second on the grid that [`stretched`] made of the first's.
fn dice(a: &[f32], b: &[f32], grid: &Grid, axis: usize) -> f64 {
    let [ni, nj, _] = grid.shape;
    let (mut both, mut either) = (0, 0);
    for (n, p) in b.iter().enumerate() {
        let mut at = [n % ni, n / ni % nj, n / (ni * nj)];
        at[axis] /= 2;
        let (wide, high) = if axis == 0 { (ni / 2, nj) } else { (ni, if axis == 1 { nj / 2 } else { nj }) };
        let (x, y) = (a[at[0] + wide * (at[1] + high * at[2])] >= 0.5, *p >= 0.5);
        both += usize::from(x && y);
        either += usize::from(x) + usize::from(y);
    }
    2.0 * both as f64 / either as f64
}

#[test]
fn the_same_body_stored_at_two_spacings_gives_the_same_mask_in_millimetres() {
    let (volume, _) = segft::phantom::volume::generate(7, 0);
    let frame = SliceFrame::new(&volume.grid, Axis::Axial);
    let axis = (0..3).find(|axis| *axis != frame.file_axis()).unwrap();
    let fine = stretched(&volume, axis);
    let device = segft::device::choose("cpu").unwrap().device;
    let sam = base::load("tiny").unwrap().into_sam(&device);
    let of = |spacing_mm| {
        let preprocessing = Preprocessing { axis: Axis::Axial, spacing_mm, ..Preprocessing::new(128) };
        let predictor = Predictor::new(&sam, &preprocessing, &device);
        let predict = |volume: &Volume| {
            // Every fourth slice says enough.
            predictor.volume(volume, |slice| (slice % 4 == 0).then(Prompts::default), |_, _| ()).unwrap()
        };
        let (coarse, fine_mask) = (predict(&volume), predict(&fine));
        assert!(coarse.iter().filter(|p| **p >= 0.5).count() > 100, "something to compare");
        dice(&coarse, &fine_mask, &fine.grid, axis)
    };
    let (scaled, pixels) = (of(Some(4.0)), of(None));
    assert!(scaled > 0.95, "{scaled}");
    // Stretched to twice its width, it is another picture.
    assert!(pixels < scaled - 0.05, "{pixels} against {scaled}");
}

/// What four views agree on does not depend on which of them was the picture.
#[test]
fn the_mean_of_mirrored_views_turns_with_the_picture() {
    let device = segft::device::choose("cpu").unwrap().device;
    let sam = checkpoint::random("small", small_config(), 3).into_sam(&device);
    let rgb = (0..3 * 50 * 40).map(|n| (n * 37 % 251) as u8).collect();
    let picture = Picture { width: 50, height: 40, rgb };
    let prompts = Prompts { points: vec![], bounds: Some([5.0, 8.0, 30.0, 20.0]) };
    let turned = Prompts { points: vec![], bounds: Some([19.0, 8.0, 44.0, 20.0]) };
    let of = |views| {
        let predictor = Predictor::new(&sam, &Preprocessing::new(72), &device).with_views(views);
        let across =
            mirrored(&predictor.picture(&picture.mirrored([true, false]), &turned).unwrap(), 50, [true, false]);
        let plain = predictor.picture(&picture, &prompts).unwrap();
        plain.iter().zip(&across).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max)
    };
    let (one, four) = (of(Views::One), of(Views::Mirrored));
    assert!(four < 1e-4 && one > 10.0 * four, "{one} with one view, {four} with four");
}

#[test]
fn what_is_pointed_at_is_looked_for_around_the_point() {
    let device = segft::device::choose("cpu").unwrap().device;
    let sam = checkpoint::random("small", small_config(), 3).into_sam(&device);
    // 144 × 144 pixels at the network's scale, in a square of 72; one slice.
    let grid = Grid { shape: [48, 48, 1], spacing_mm: [3.0; 3], ..Grid::picture(48, 48) };
    let volume = Volume { voxels: (0..48 * 48).map(|n| (n % 17) as f32).collect(), grid };
    let preprocessing = Preprocessing { spacing_mm: Some(1.0), ..Preprocessing::new(72) };
    let predictor = Predictor::new(&sam, &preprocessing, &device);
    let frame = SliceFrame::new(&volume.grid, Axis::Auto);
    let seen = |prompts: Prompts| {
        let p = predictor.volume(&volume, |_| Some(prompts.clone()), |_, _| ()).unwrap();
        assert!(p.iter().all(|p| (0.0..=1.0).contains(p)));
        (0..48 * 48).filter(|n| p[frame.index(0, n % 48, n / 48)] > 1e-6).map(|n| (n % 48, n / 48)).collect::<Vec<_>>()
    };
    // (12, 24) is (36, 72) at the scale: the square of 72 around it reaches from (0, 36) to (72, 108), pixels 0 to 23 and
    // 12 to 35; beyond, a pixel that is interpolated from its last row may be seen.
    let around = seen(Prompts { points: vec![(12.0, 24.0, PointLabel::Inside)], bounds: None });
    assert!(around.contains(&(12, 24)));
    assert!(around.iter().all(|(x, y)| *x <= 24 && (11..=36).contains(y)), "{around:?}");
    // Without a prompt, and with points too far apart for one square, everything is seen.
    assert_eq!(seen(Prompts::default()).len(), 48 * 48);
    let corners = vec![(1.0, 1.0, PointLabel::Inside), (46.0, 46.0, PointLabel::Inside)];
    assert_eq!(seen(Prompts { points: corners, bounds: None }).len(), 48 * 48);
}

/// A volume is shown slice by slice from below, the body's right at the left and its front at the top.
#[test]
fn a_volume_is_its_slices() {
    type Place = fn(usize, usize, usize) -> usize;
    type Axes = [(usize, f64); 3];
    let device = segft::device::choose("cpu").unwrap().device;
    let sam = checkpoint::random("small", small_config(), 3).into_sam(&device);
    // Grey levels are the voxels themselves.
    let preprocessing =
        Preprocessing { axis: Axis::Axial, window: Window::Range(0.0, 255.0), ..Preprocessing::new(72) };
    assert_eq!(preprocessing.spacing_mm, None);
    let predictor = Predictor::new(&sam, &preprocessing, &device);
    let grey = |slice: usize, x: usize, y: usize| ((slice + 1) * (31 * x + 17 * y + 5) % 256) as u8;
    let picture = |slice| {
        let rgb = (0..12 * 10).flat_map(|n| [grey(slice, n % 12, n / 12); 3]).collect();
        Picture { width: 12, height: 10, rgb }
    };
    // Shape; which file axis runs to the right, front and top, or from there; where a pixel of a slice lies.
    let stored: [([usize; 3], Axes, Place); 2] = [
        ([12, 10, 4], [(0, 1.0), (1, 1.0), (2, 1.0)], |slice, x, y| (11 - x) + 12 * ((9 - y) + 10 * slice)),
        ([4, 10, 12], [(2, -1.0), (1, 1.0), (0, -1.0)], |slice, x, y| (3 - slice) + 4 * ((9 - y) + 10 * x)),
    ];
    for boxed in [false, true] {
        // A box tells which slice is meant by its number.
        let prompts = |slice: usize| match boxed {
            true => Prompts { points: vec![], bounds: Some([1.0, 2.0, 4.0 + 2.0 * slice as f32, 8.0]) },
            false => Prompts::default(),
        };
        let planes: Vec<Vec<f32>> =
            (0..4).map(|slice| predictor.picture(&picture(slice), &prompts(slice)).unwrap()).collect();
        assert!((0..4).all(|a| (0..a).all(|b| planes[a] != planes[b])), "slices that could be swapped");
        for (shape, axes, place) in stored {
            let mut grid = Grid { shape, ..Grid::picture(1, 1) };
            for (world, (axis, way)) in axes.into_iter().enumerate() {
                grid.affine[world] = [0.0; 4];
                grid.affine[world][axis] = way;
            }
            let (mut voxels, mut expected) = (vec![f32::NAN; 480], vec![f32::NAN; 480]);
            for (slice, plane) in planes.iter().enumerate() {
                for (n, p) in plane.iter().enumerate() {
                    let (x, y) = (n % 12, n / 12);
                    voxels[place(slice, x, y)] = f32::from(grey(slice, x, y));
                    expected[place(slice, x, y)] = *p;
                }
            }
            let volume = Volume { grid, voxels };
            let found = predictor.volume(&volume, |slice| Some(prompts(slice)), |_, _| ()).unwrap();
            let wrong = (0..480).filter(|n| found[*n] != expected[*n]).count();
            assert_eq!((found.len(), wrong), (480, 0), "{shape:?}, with a box: {boxed}");
        }
    }
}

/// Volumes of 24 × 20 × 4 voxels of `mm` with a bright ball, and their masks; a table's rows for `side`.
fn balls(folder: &Path, prefix: &str, count: usize, mm: f64, side: &str) -> String {
    bodies(folder, prefix, count, mm, side, |_| 4.0)
}

/// The same with what is bright as wide as `radius` says of each slice, in pixels.
fn bodies(folder: &Path, prefix: &str, count: usize, mm: f64, side: &str, radius: fn(usize) -> f32) -> String {
    let (mut rows, apart) = (String::new(), usize::from(prefix.as_bytes()[0]));
    for i in 0..count {
        let mut grid = Grid { shape: [24, 20, 4], spacing_mm: [mm, mm, 5.0], ..Grid::picture(1, 1) };
        (0..3).for_each(|n| grid.affine[n][n] = grid.spacing_mm[n]);
        let (cx, cy) = (7.0 + (i * 5 % 9) as f32, 7.0 + (i * 3 % 6) as f32);
        let inside = |n: usize| ((n % 24) as f32 - cx).hypot((n / 24 % 20) as f32 - cy) < radius(n / (24 * 20));
        let voxels =
            (0..24 * 20 * 4).map(|n| if inside(n) { 200.0 } else { (n * 31 % 23 + i + apart) as f32 }).collect();
        let labels = (0..24 * 20 * 4).map(|n| u16::from(inside(n))).collect();
        let template = Template::of_grid(&grid);
        let (image, mask) = (format!("{prefix}{i}.nii.gz"), format!("{prefix}{i}-mask.nii.gz"));
        let volume = Volume { grid: grid.clone(), voxels };
        write_values(&folder.join(&image), &volume.voxels, &template).unwrap();
        write_labels(&folder.join(&mask), &Labels { grid, voxels: labels }, &template).unwrap();
        rows += &format!("{image},{mask},{side}\n");
    }
    rows
}

fn table(folder: &Path, name: &str, rows: &[String]) {
    std::fs::write(folder.join(name), format!("image,mask,split\n{}", rows.concat())).unwrap();
}

fn json(folder: &Path, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join(file)).unwrap()).unwrap()
}

fn train(at: &Path, set: &str, out: &str, more: &[&str]) {
    let mut arguments = vec!["train", "--dataset", set, "--out", out];
    arguments.extend(QUICK);
    arguments.extend(more);
    ok(at, &arguments);
}

#[test]
fn the_scale_comes_from_the_training_cases_and_goes_with_the_patch() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    small_checkpoint(&at.join("small.safetensors"));
    let learned = balls(at, "a", 4, 2.0, "train");
    // The same voxels as the others, of 2 mm and of 6 mm: half as many squares more fit beside each other.
    table(at, "small.csv", &[learned.clone(), balls(at, "b", 2, 1.5, "val"), balls(at, "c", 2, 1.0, "test")]);
    table(at, "large.csv", &[learned, balls(at, "d", 2, 5.0, "val"), balls(at, "e", 2, 6.0, "test")]);
    train(at, "small.csv", "small", &[]);
    train(at, "large.csv", "large", &[]);
    // 24 pixels of 2 mm in a square of 72 pixels.
    let expected = f64::from(48f32 / 72.0);
    for run in ["small", "large"] {
        let spacing = json(at, &format!("{run}/run.json"))["spacing_mm"].as_f64().unwrap();
        assert!((spacing - expected).abs() < 1e-6, "{run}: {spacing}");
    }
    let bytes = |file: &str| std::fs::read(at.join(file)).unwrap();
    assert!(bytes("small/selection.safetensors") == bytes("large/selection.safetensors"));
    let log = String::from_utf8(bytes("large/log.txt")).unwrap();
    assert!(log.contains("spacing      0.6667 mm a pixel"), "{log}");
    let info: Value = serde_json::from_str(&ok(at, &["info", "large/patch.safetensors", "--json"])).unwrap();
    assert!((info["spacing_mm"].as_f64().unwrap() - expected).abs() < 1e-6, "{info}");
    assert!(ok(at, &["info", "large"]).contains("spacing_mm"));
    // 24 × 20 pixels of 6 mm are 216 × 180: four by four squares. The test of the run is what `predict` says.
    let output = common::segft(at, &["predict", "e0.nii.gz", "--run", "large", "--out", "again.nii.gz"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("16 overlapping squares"), "{said}");
    assert!(bytes("again.nii.gz") == bytes("large/predictions/e0.nii.gz"));
    // A header that says metres does not take all memory.
    balls(at, "metres", 1, 2000.0, "test");
    let (code, error) = fails(at, &["predict", "metres0.nii.gz", "--run", "large", "--out", "m.nii.gz"]);
    assert!(code == 3 && error.contains("48000.0 × 40000.0 mm"), "{error}");

    train(at, "large.csv", "off", &["--spacing", "off"]);
    assert_eq!(json(at, "off/run.json")["spacing_mm"], Value::Null);
    // Training slices of 160 × 133 pixels are seen in parts, the same whatever the threads.
    train(at, "large.csv", "parts", &["--spacing", "0.3"]);
    train(at, "large.csv", "parts-1", &["--spacing", "0.3", "--threads", "1"]);
    for file in ["selection.safetensors", "patch.safetensors"] {
        assert!(bytes(&format!("parts/{file}")) == bytes(&format!("parts-1/{file}")), "{file}");
    }
    let (code, error) = fails(at, &["train", "--dataset", "large.csv", "--spacing", "-1"]);
    assert!(code == 2 && error.contains("--spacing"), "{error}");
}

/// The mean over cases, of whole volumes; and no threshold that is tried would have been better.
#[test]
fn predict_and_score_find_what_validation_found() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    small_checkpoint(&at.join("small.safetensors"));
    // Wider from slice to slice: each has another Dice than its case.
    let cones = |prefix, count, side| bodies(at, prefix, count, 2.0, side, |slice| 2.5 + slice as f32);
    table(at, "set.csv", &[cones("a", 4, "train"), cones("b", 3, "val"), cones("c", 1, "test")]);
    let mut arguments = vec!["train", "--dataset", "set.csv", "--out", "run", "--model", "small.safetensors"];
    arguments.extend(["--method", "full", "--lr", "1e-3", "--epochs", "6", "--seed", "5", "--threads", "2"]);
    ok(at, &arguments);
    let record = json(at, "run/run.json");
    let ids: Vec<&str> = record["splits"]["validation"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(ids, ["b0", "b1", "b2"]);
    std::fs::create_dir(at.join("refs")).unwrap();
    for id in &ids {
        std::fs::copy(at.join(format!("{id}-mask.nii.gz")), at.join(format!("refs/{id}.nii.gz"))).unwrap();
    }
    let inputs: Vec<String> = ids.iter().map(|id| format!("{id}.nii.gz")).collect();
    let scored = |threshold: f32| {
        let (number, out) = (threshold.to_string(), format!("at{:.0}", 100.0 * threshold));
        let mut arguments = vec!["predict", "--run", "run", "--threshold", number.as_str(), "--out", out.as_str()];
        arguments.extend(inputs.iter().map(String::as_str));
        ok(at, &arguments);
        let report = ok(at, &["score", "--pred", &out, "--ref", "refs", "--no-surfaces", "--json"]);
        serde_json::from_str::<Value>(&report).unwrap()["mDice"].as_f64().unwrap()
    };
    let tried: Vec<(f32, f64)> = (3..=17).map(|i| i as f32 * 0.05).map(|t| (t, scored(t))).collect();
    let of = |threshold: f64| {
        let same = |(t, _): &&(f32, f64)| (f64::from(*t) - threshold).abs() < 1e-6;
        tried.iter().find(same).map(|(_, mdice)| *mdice).unwrap()
    };
    let metrics = json(at, "run/metrics.json");
    let (half, validation) = (of(0.5), metrics["validation_mDice"].as_f64().unwrap());
    assert!((half - validation).abs() < 1e-6, "{half} by score, {validation} in the run");
    let chosen = metrics["threshold"].as_f64().unwrap();
    let best = of(chosen);
    assert!(tried.iter().all(|(_, mdice)| *mdice <= best + 1e-9), "{chosen} of {tried:?}");
    assert!(tried.iter().any(|(_, mdice)| *mdice < best - 0.1), "something to choose from: {tried:?}");
}
