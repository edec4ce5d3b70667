//! What the program answers to mistakes, and the shapes of its JSON.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use common::{discs, fails, ok, segft, small_checkpoint};
use serde_json::Value;

#[test]
fn mistakes_are_named_and_have_their_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::create_dir(at.join("empty")).unwrap();
    std::fs::write(at.join("broken.png"), b"not a picture").unwrap();
    std::fs::write(at.join("broken.nii.gz"), b"not gzip").unwrap();
    std::fs::write(at.join("broken.pth"), b"not a pickle").unwrap();
    std::fs::write(at.join("bad.toml"), "epocs = 3\n").unwrap();
    small_checkpoint(&at.join("small.safetensors"));
    std::fs::write(at.join("two.toml"), "epochs = \"two\"\n").unwrap();
    let weight = segft::model::HostTensor { shape: vec![2], data: vec![0.0; 2] };
    let tensors = std::collections::BTreeMap::from([("encoder.weight".to_string(), weight)]);
    segft::model::pth::write(&at.join("unet.pth"), &tensors).unwrap();
    discs(&at.join("discs"), "a", 8, 0);
    for (arguments, code, words) in [
        (&["predict", "missing.png"][..], 2, &["missing.png", "no such file"][..]),
        (&["predict", "discs/images/a000.png"], 2, &["no completed run", "segft train", "--box"]),
        (&["predict", "discs/images/a000.png", "--run", "none"], 2, &["needs a prompt"]),
        (&["predict", "broken.png", "--box", "1,1,5,5"], 3, &["broken.png"]),
        (&["predict", "discs/images/a000.png", "--box", "1,1,500,5"], 2, &["48 × 40"]),
        (&["train", "--dataset", "phantm"], 2, &["phantm", "`phantom`"]),
        (&["train", "--dataset", "empty"], 3, &["found nothing", "images/"]),
        (&["train", "--epoch", "3"], 2, &["--epochs"]),
        (&["train", "--set", "epocs=3"], 2, &["epocs", "`epochs`"]),
        (&["train", "--config", "bad.toml"], 2, &["bad.toml", "`epochs`"]),
        (&["train", "--method", "gsp"], 2, &["`gps`"]),
        (&["train", "--dataset", "discs", "--model", "broken.pth"], 3, &["broken.pth", "not a checkpoint"]),
        (&["train", "--dataset", "discs", "--model", "sam_vit_b"], 3, &["segft fetch sam_vit_b"]),
        (&["train", "--dataset", "discs", "--model", "tyni"], 2, &["`tiny`"]),
        (&["train", "--dataset", "discs", "--out", "discs"], 2, &["--force"]),
        (&["train", "--dataset", "discs", "--out", "discs", "--force"], 2, &["not a run"]),
        (&["train", "--dataset", "discs", "--image-size", "100"], 2, &["multiple", "96"]),
        (&["train", "--dataset", "discs", "--window", "abdomn"], 2, &["abdomen"]),
        (&["train", "--resume"], 2, &["no unfinished run"]),
        (&["score"], 2, &["no completed run"]),
        (&["score", "--pred", "discs/masks"], 2, &["--ref"]),
        (&["score", "--pred", "discs/masks", "--ref", "discs/masks", "--protocol", "plane"], 2, &["plain"]),
        (&["info", "missing"], 2, &["missing"]),
        (&["info", "broken.nii.gz"], 3, &["broken.nii.gz"]),
        (&["export", "nowhere", "--to", "x.pth"], 2, &["nowhere"]),
        (&["frobnicate"], 2, &["frobnicate"]),
        (&["predict", "discs/images/a000.png", "--box", "1,1,5,5", "--out", "x.jpg"], 2, &["x.jpg", ".png"]),
        (&["predict", "discs/images/a000.png", "--box", "1,1,5,5", "--out", "x.nii.gz"], 2, &["x.nii.gz", ".png"]),
        (&["predict", "discs/images/a000.png", "--box", "1,1,5,5", "--out", "x.txt"], 2, &["x.txt", ".png"]),
        (&["predict", "broken.nii.gz", "--box", "1,1,1,5,5,5", "--out", "y.png"], 2, &["y.png", ".nii.gz"]),
        (&["predict", "discs/images", "--box", "1,1,5,5", "--out", "y.png"], 2, &["y.png", "folder"]),
        (&["predict", "discs/images/a000.png", "--box", "1,1,5,5", "--threshold", "1.5"], 2, &["between 0 and 1"]),
        (&["predict", "discs/images/a000.png", "--box", "1,1,5,5", "--threshold", "nan"], 2, &["between 0 and 1"]),
        (&["train", "--resume", "discs", "--epochs", "3"], 2, &["--epochs", "--resume"]),
        (&["train", "--resume", "discs", "--no-biases"], 2, &["--no-biases"]),
        (&["train", "--resume", "discs", "--set", "k=3"], 2, &["--set"]),
        (&["train", "--dataset", "discs", "--data", "missing"], 2, &["--data missing"]),
        (&["train", "--dataset", "discs", "--labels", "7"], 3, &["--labels 7", "found 1"]),
        (&["train", "--config", "two.toml"], 2, &["`epochs`", "two.toml", "`two`"]),
        (&["train", "--resize", "sqare"], 2, &["--resize", "`square`"]),
        (&["train", "--epochs", "-1"], 2, &["--epochs", "not negative"]),
        (&["train", "--lr", "-1"], 2, &["--lr must be above 0"]),
        (&["train", "--dataset", "discs", "--model", "unet.pth"], 3, &["not a SAM", "`encoder.weight`"]),
        (&["train", "--dataset", "discs", "--selection", "small.safetensors"], 3, &["not a selection"]),
        (&["select", "--dataset", "discs", "--method", "full"], 2, &["selects nothing"]),
        (&["data", "make", "phantom", "--out", "none", "--count", "0"], 2, &["--count"]),
        (&["info", "discs", "--json=bad.toml"], 2, &["bad.toml", "--force"]),
        (&["score", "--pred", "discs/masks", "--ref", "discs/masks", "--csv", "bad.toml"], 2, &["another name"]),
        (&["predict", "discs/images/a000.png", "--run", "small.safetensors"], 2, &["a run is a folder"]),
    ] {
        let (got, error) = fails(at, arguments);
        assert_eq!(got, code, "{arguments:?}: {error}");
        for word in words {
            assert!(error.contains(word), "{arguments:?} does not say `{word}`: {error}");
        }
    }
    let left: Vec<_> = std::fs::read_dir(at).unwrap().flatten().map(|e| e.file_name()).collect();
    let made = |f: &str| f.contains("_seg") || ["runs", "none", "x.txt", "selection.safetensors"].contains(&f);
    assert!(!left.iter().any(|f| made(&f.to_string_lossy())), "{left:?}");
    assert_eq!(std::fs::read_to_string(at.join("bad.toml")).unwrap(), "epocs = 3\n");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_missing_gpu_is_said_at_once() {
    let folder = tempfile::tempdir().unwrap();
    discs(folder.path(), "a", 8, 0);
    let (code, error) = fails(folder.path(), &["train", "--dataset", ".", "--device", "cuda"]);
    assert_eq!((code, error.contains("--features cuda")), (5, true), "{error}");
}

#[cfg(feature = "cuda")]
#[test]
fn without_a_gpu_cuda_is_refused_and_auto_takes_the_cpu() {
    if segft::device::gpus() > 0 {
        println!("skipped: there is a GPU here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    small_checkpoint(&at.join("small.safetensors"));
    discs(at, "a", 8, 0);
    let (code, error) = fails(at, &["train", "--dataset", ".", "--device", "cuda"]);
    assert_eq!((code, error.contains("libcuda")), (5, true), "{error}");
    let predict = ["predict", "images/a000.png", "--model", "small.safetensors", "--box", "1,1,20,20"];
    let output = segft(at, &[&predict[..], &["--device", "auto"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("device       cpu"), "{said}");
}

#[test]
fn errors_are_json_too() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["info", "missing.nii", "--json"][..], &["info", "--jsn", "--json"]] {
        let output = segft(folder.path(), arguments);
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((error["error"]["kind"].as_str(), output.status.code()), (Some("usage"), Some(2)), "{error}");
    }
}

#[test]
fn usage_errors_are_whole_in_json_and_in_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let output = segft(at, &["export", "--json"]);
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains("--to <FILE>"), "{error}");
    let output = segft(at, &["train", "--epoch", "3", "--json=error.json"]);
    assert!(output.stdout.is_empty() && output.status.code() == Some(2));
    let error: Value = serde_json::from_slice(&std::fs::read(at.join("error.json")).unwrap()).unwrap();
    assert!(error["error"]["hint"].as_str().unwrap().contains("--epochs"), "{error}");
}

#[test]
fn no_input_is_replaced_and_raw_folders_name_their_cases() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    small_checkpoint(&at.join("small.safetensors"));
    discs(&at.join("discs"), "a", 2, 0);
    std::fs::copy(at.join("discs/images/a000.png"), at.join("a.png")).unwrap();
    std::fs::copy(at.join("discs/images/a001.png"), at.join("a_seg.png")).unwrap();
    let prompted = ["--model", "small.safetensors", "--force", "--box"];
    // `segft predict *.png` a second time: the mask of one input has the name of another.
    let (code, error) = fails(at, &[&["predict", "a.png", "a_seg.png"], &prompted[..], &["1,1,5,5"]].concat());
    assert!(code == 2 && error.contains("would replace the input `a_seg.png`"), "{error}");

    let grid = segft::image::Grid { shape: [20, 20, 3], ..segft::image::Grid::picture(1, 1) };
    let volume = segft::image::Volume { voxels: (0..1200).map(|n| (n % 97) as f32).collect(), grid };
    std::fs::create_dir(at.join("imagesTs")).unwrap();
    for name in ["la_001_0000", "la_001_0001", "la_002_0000"] {
        segft::io::nifti::write_volume(&at.join(format!("imagesTs/{name}.nii.gz")), &volume).unwrap();
    }
    let at_mm = [&["predict", "imagesTs", "--out", "masks"], &prompted[..], &["mm:2,2,0,9,9,2"]].concat();
    ok(at, &at_mm);
    let mut masks: Vec<_> = std::fs::read_dir(at.join("masks")).unwrap().map(|e| e.unwrap().file_name()).collect();
    masks.sort();
    assert_eq!(masks, ["la_001.nii.gz", "la_002.nii.gz"]);
    // Far outside, in millimetres.
    let (code, error) = fails(at, &[&["predict", "imagesTs"], &prompted[..], &["mm:2,2,0,9,9,999"]].concat());
    assert!(code != 0 && error.contains("--box mm:2,2,0,9,9,999"), "{error}");

    std::fs::create_dir(at.join("series")).unwrap();
    std::fs::write(at.join("series/IM0001.dcm"), b"").unwrap();
    for input in ["series", "series/IM0001.dcm"] {
        let (code, error) = fails(at, &["predict", input, "--box", "1,1,1,2,2,2"]);
        assert!(code >= 2 && error.contains("dcm2niix -z y -o nifti series"), "{error}");
    }
}

#[test]
fn a_result_and_its_failure_are_one_object() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    small_checkpoint(&at.join("small.safetensors"));
    discs(&at.join("discs"), "a", 2, 0);
    std::fs::write(at.join("discs/images/broken.png"), b"no").unwrap();
    let predict = ["predict", "discs/images", "--model", "small.safetensors", "--box", "1,1,5,5", "--json"];
    let output = segft(at, &predict);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((value["cases"].as_array().unwrap().len(), output.status.code()), (2, Some(1)));
    assert_eq!(value["error"]["kind"], "job");
    let failed = value["failed"].as_array().unwrap();
    assert!(failed.len() == 1 && failed[0]["input"].as_str().unwrap().ends_with("broken.png"), "{failed:?}");
    assert!(failed[0]["message"].as_str().unwrap().contains("broken.png"), "{failed:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("device       cpu"), "auto says what it took");
    // A leak; into a file, which the error must not replace.
    for side in ["train", "test"] {
        discs(&at.join("sides").join(side), "a", 2, 0);
    }
    let output = segft(at, &["data", "check", "sides", "--json=facts.json"]);
    let value: Value = serde_json::from_slice(&std::fs::read(at.join("facts.json")).unwrap()).unwrap();
    assert_eq!((value["n_cases"].as_u64(), output.status.code()), (Some(4), Some(3)));
    assert_eq!(value["error"]["kind"], "data");
}

#[test]
fn lists_are_objects_and_the_manual_names_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let object = |arguments: &[&str]| -> Value { serde_json::from_str(&ok(at, arguments)).unwrap() };
    assert_eq!(object(&["fetch", "--list", "--json"])["names"].as_array().unwrap().len(), 5);
    assert_eq!(object(&["data", "list", "--json"])["sets"].as_array().unwrap().len(), 3);
    let doctor = object(&["doctor", "--json"]);
    assert_eq!((&doctor["weights"]["sam_vit_b"], &doctor["sets"]["polyp"]), (&"not here".into(), &"not here".into()));
    let page = ok(at, &["man"]);
    for part in [".TH segft", "SEGFT TRAIN", "SEGFT DATA SPLIT", "epochs", "SEGFT DOCTOR"] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn the_environment_is_read_and_misspelt_variables_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    discs(&at.join("discs"), "a", 2, 0);
    for (name, value, arguments, words) in [
        ("SEGFT_EPOCS", "3", &["doctor"][..], &["SEGFT_EPOCS", "`SEGFT_EPOCHS`"][..]),
        ("SEGFT_EPOCHS", "x", &["train"], &["`epochs` in SEGFT_EPOCHS is `x`, expected a whole number"]),
        ("SEGFT_LR", "x", &["train"], &["is `x`, expected a number"]),
        ("SEGFT_RECOMPUTE", "7", &["train"], &["is `7`, expected one of `auto`, `on`, `off`"]),
        ("SEGFT_THRESHOLD", "7", &["predict", "discs/images", "--box", "1,1,5,5"], &["between 0 and 1"]),
        ("SEGFT_THREADS", "0", &["score"], &["--threads"]),
        ("SEGFT_DEVICE", "gpu", &["bench"], &["`gpu`"]),
    ] {
        let output = common::command(at, arguments).env(name, value).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}: {error}");
        for word in words {
            assert!(error.contains(word), "{name} does not say `{word}`: {error}");
        }
    }
    let colours = |arguments: &[&str]| fails(at, arguments).1.contains('\u{1b}');
    assert!(colours(&["info", "missing", "--color", "always"]) && colours(&["--color=always", "frobnicate"]));
    assert!(!colours(&["info", "missing"]) && !colours(&["frobnicate", "--color", "never"]));
    let output = segft(at, &["doctor", "-v"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("burn 0.22.1"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_under_stdout_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["doctor"][..], &["doctor", "--json"], &["--help"], &["man"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = common::command(folder.path(), arguments).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    }
}

#[test]
fn only_generated_sets_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let make = ["data", "make", "phantom", "--count", "2", "--out", "set", "--force"];
    ok(at, &make);
    ok(at, &make);
    std::fs::write(at.join("set/notes.txt"), "mine").unwrap();
    let (code, error) = fails(at, &make);
    assert!(code == 2 && error.contains("not a generated set"), "{error}");
    assert!(at.join("set/notes.txt").is_file());
    // A temporary name says nothing to anybody.
    let (code, error) = fails(at, &["data", "check", "set", "--json=nowhere/x.json"]);
    assert!(code == 2 && error.contains("nowhere: there is no such folder") && !error.contains(".segft-"), "{error}");
}

#[test]
fn empty_masks_are_refused_before_a_run_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    small_checkpoint(&at.join("small.safetensors"));
    discs(&at.join("discs"), "a", 8, 0);
    for i in 0..8 {
        let mask = segft::image::Labels { grid: segft::image::Grid::picture(48, 40), voxels: vec![0; 48 * 40] };
        segft::io::picture::write_mask(&at.join(format!("discs/masks/a{i:03}.png")), &mask).unwrap();
    }
    let (code, error) = fails(at, &["train", "--dataset", "discs", "--model", "small.safetensors"]);
    assert!(code == 3 && error.contains("are empty") && !at.join("runs").exists(), "{error}");
}

#[test]
fn budgets_that_do_not_fit_are_refused_before_a_run_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    small_checkpoint(&at.join("small.safetensors"));
    discs(&at.join("discs"), "a", 8, 0);
    for (budget, words) in [
        (&["--budget", "1000000000"][..], "weights to choose from"),
        (&["--ratio", "1e-12"], "leaves none"),
        (&["--method", "lora", "--rank", "18446744073709551615"], "at most"),
    ] {
        let (code, error) =
            fails(at, &[&["train", "--dataset", "discs", "--model", "small.safetensors"], budget].concat());
        assert!(code == 2 && error.contains(words) && !at.join("runs").exists(), "{error}");
    }
}

#[test]
fn weights_are_described_and_strictly_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    small_checkpoint(&at.join("small.safetensors"));
    let info: Value = serde_json::from_str(&ok(at, &["info", "small.safetensors", "--json"])).unwrap();
    assert_eq!((info["kind"].as_str(), info["format"].as_str()), (Some("checkpoint"), Some("safetensors")));
    assert_eq!(info["n_tensors"].as_u64().unwrap() as usize, common::small_config().specs().len());
    assert_eq!(info["sha256"].as_str().unwrap().len(), 64);

    discs(&at.join("discs"), "a", 8, 0);
    let mut tensors = segft::model::checkpoint::read(&at.join("small.safetensors")).unwrap().tensors;
    let lost = tensors.remove("mask_decoder.iou_token.weight").unwrap();
    tensors.insert("mask_decoder.iou_tokens.weight".into(), lost);
    segft::model::checkpoint::write_safetensors(&at.join("renamed.safetensors"), &tensors).unwrap();
    let (code, error) = fails(at, &["train", "--dataset", "discs", "--model", "renamed.safetensors"]);
    assert_eq!(code, 3);
    for part in ["missing `mask_decoder.iou_token.weight`", "unexpected `mask_decoder.iou_tokens.weight`", "nearest"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    // A tensor of another shape, in either container.
    let mut tensors = segft::model::checkpoint::read(&at.join("small.safetensors")).unwrap().tensors;
    let token = tensors.get_mut("mask_decoder.iou_token.weight").unwrap();
    (token.shape, token.data) = (vec![1, 47], vec![0.0; 47]);
    segft::model::checkpoint::write_safetensors(&at.join("shaped.safetensors"), &tensors).unwrap();
    segft::model::pth::write(&at.join("shaped.pth"), &tensors).unwrap();
    for file in ["shaped.safetensors", "shaped.pth"] {
        let (code, error) = fails(at, &["train", "--dataset", "discs", "--model", file]);
        let said = "`mask_decoder.iou_token.weight` has shape [1, 47], expected [1, 48]";
        assert!(code == 3 && error.contains(file) && error.contains(said), "{error}");
    }
    // A header that claims more than the file holds.
    let bytes = std::fs::read(at.join("small.safetensors")).unwrap();
    std::fs::write(at.join("cut.safetensors"), &bytes[..bytes.len() - 100]).unwrap();
    assert_eq!(fails(at, &["info", "cut.safetensors"]).0, 3);
}

/// A network of SAM's shape, 8.5 M weights: three steps and a prediction, within a bound on memory that training all of
/// it exceeds.
#[test]
fn a_larger_network_trains_within_its_memory() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let config = segft::model::SamConfig {
        embed: 384,
        depth: 4,
        heads: 4,
        window: 8,
        global: vec![2],
        out_chans: 128,
        stem: None,
        ..segft::model::SamConfig::tiny()
    };
    let checkpoint = segft::model::checkpoint::random("wide", config, 1);
    let weights_mib = 4.0 * checkpoint.counts().0 as f64 / f64::from(1 << 20);
    segft::model::pth::write(&at.join("wide.pth"), &checkpoint.tensors).unwrap();
    discs(&at.join("discs"), "a", 4, 0);
    discs(&at.join("held-out"), "b", 1, 9);
    let train = |method: &str| -> Value {
        let data = ["train", "--dataset", "discs", "--test", "held-out", "--model", "wide.pth", "--image-size", "128"];
        let how = ["--batch", "1", "--epochs", "1", "--threads", "2", "--json", "--method", method, "--out", method];
        serde_json::from_str(&ok(at, &[&data[..], &how].concat())).unwrap()
    };
    let metrics = train("gps");
    assert_eq!(metrics["steps"], 3);
    assert_eq!(metrics["selected_encoder_weights"], 4 * 9 * 384 + 384 + 2 * 128);
    let [peak, full] = [&metrics, &train("full")].map(|m| m["peak_rss_mib"].as_f64().unwrap());
    // The weights, the summed gradients of the encoder, what is trained outside of it, and everything else. Training all
    // takes gradients, two moments, and what is saved of them beside the weights.
    let bound = 4.0 * weights_mib + 50.0;
    assert!(peak < bound && bound < full, "{peak} and {full} MiB with {weights_mib:.0} MiB of weights");
    ok(at, &["predict", "held-out/images/b000.png", "--run", "gps"]);
    assert!(at.join("b000_seg.png").is_file());
}

#[test]
fn a_volume_comes_back_on_its_own_grid() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    small_checkpoint(&at.join("small.safetensors"));
    ok(at, &["data", "make", "phantom-volume", "--out", "volumes", "--count", "6"]);
    let arguments = [
        "train",
        "--dataset",
        "volumes",
        "--model",
        "small.safetensors",
        "--epochs",
        "1",
        "--labels",
        "1",
        "--json",
        "--out",
        "run",
    ];
    let metrics: Value = serde_json::from_str(&ok(at, &arguments)).unwrap();
    assert_eq!(metrics["n_cases"], 1);
    let volume = std::fs::read_dir(at.join("volumes/images")).unwrap().flatten().next().unwrap().path();
    ok(at, &["predict", volume.to_str().unwrap(), "--run", "run", "--out", "mask.nii.gz", "--prob"]);
    let describe = |path: &str| -> Value { serde_json::from_str(&ok(at, &["info", path, "--json"])).unwrap() };
    let (input, mask) = (describe(volume.to_str().unwrap()), describe("mask.nii.gz"));
    for key in ["shape", "spacing_mm", "affine", "orientation"] {
        assert_eq!(input[key], mask[key], "{key}");
    }
    assert_eq!(mask["dtype"], "uint8");
    assert_eq!(describe("mask_prob.nii.gz")["dtype"], "float32");
    // Nothing is replaced, and nothing is written over an input.
    let (code, error) = fails(at, &["predict", volume.to_str().unwrap(), "--run", "run", "--out", "mask.nii.gz"]);
    assert!(code == 2 && error.contains("--force"), "{error}");
    let input = volume.to_str().unwrap();
    assert_eq!(fails(at, &["predict", input, "--run", "run", "--out", input, "--force"]).0, 2);
    // One broken input does not take the others with it.
    std::fs::create_dir(at.join("mixed")).unwrap();
    std::fs::copy(&volume, at.join("mixed/good.nii.gz")).unwrap();
    std::fs::write(at.join("mixed/bad.nii.gz"), b"no").unwrap();
    let (code, error) = fails(at, &["predict", "mixed", "--run", "run"]);
    assert!(code == 1 && error.contains("bad.nii.gz") && at.join("mixed_seg/good.nii.gz").is_file(), "{error}");
}

/// Killed while it writes: what has its name is whole, the rest has a temporary one.
#[cfg(unix)]
#[test]
fn a_killed_prediction_leaves_whole_files_alone() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    small_checkpoint(&at.join("small.safetensors"));
    // Large enough for its probabilities to be written for a while.
    let grid = segft::image::Grid { shape: [480, 480, 6], ..segft::image::Grid::picture(1, 1) };
    let volume = segft::image::Volume { voxels: (0..grid.len()).map(|n| (n % 97) as f32).collect(), grid };
    segft::io::nifti::write_volume(&at.join("scan.nii.gz"), &volume).unwrap();
    let predict = ["predict", "scan.nii.gz", "--model", "small.safetensors", "--box", "9,9,0,400,400,5", "--prob"];
    let predict = [&predict[..], &["--out", "masks/"]].concat();
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(at.join("masks")).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    };
    let (mask, map) = ("scan.nii.gz", "scan_prob.nii.gz");
    let is_temporary = |name: &String| name.starts_with(".segft-");
    let mut child = common::command(at, &predict).stderr(std::process::Stdio::null()).spawn().unwrap();
    while !(names().iter().any(|n| n == mask) && names().iter().any(is_temporary)) {
        assert!(child.try_wait().unwrap().is_none(), "it has ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let left: Vec<String> = names().into_iter().filter(|name| !is_temporary(name)).collect();
    assert_eq!(left, [mask], "killed too late to mean anything");
    let of = |name: &str| std::fs::read(at.join("masks").join(name)).unwrap();
    let whole = of(mask);
    assert_eq!(
        segft::io::nifti::read_labels(&at.join("masks").join(mask)).unwrap().grid.difference(&volume.grid),
        None
    );
    ok(at, &[&predict[..], &["--force"]].concat());
    assert!(whole == of(mask));
    let (probabilities, _) = segft::io::nifti::read_volume(&at.join("masks").join(map), 0).unwrap();
    assert_eq!(probabilities.grid.difference(&volume.grid), None);
}

#[test]
fn a_hostile_pickle_is_not_executed() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    discs(&at.join("discs"), "a", 8, 0);
    // os.system("touch executed"), as a pickle in protocol 0 and inside a zip as torch.save would lay it out.
    let pickle = b"cos\nsystem\n(S'touch executed'\ntR.";
    std::fs::write(at.join("plain.pth"), pickle).unwrap();
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("archive/data.pkl", zip::write::SimpleFileOptions::default()).unwrap();
    std::io::Write::write_all(&mut zip, pickle).unwrap();
    std::fs::write(at.join("zipped.pth"), zip.finish().unwrap().into_inner()).unwrap();
    for file in ["plain.pth", "zipped.pth"] {
        assert_eq!(fails(at, &["train", "--dataset", "discs", "--model", file]).0, 3, "{file}");
        let _ = segft(at, &["info", file]);
        assert!(!at.join("executed").exists(), "{file} was executed");
    }
}

#[test]
fn bench_says_what_a_mode_takes() {
    let folder = tempfile::tempdir().unwrap();
    small_checkpoint(&folder.path().join("small.safetensors"));
    let trained = |mode: &str| {
        let bench =
            ["bench", "--model", "small.safetensors", "--steps", "2", "--warmup", "0", "--device", "cpu", "--json"];
        let answer: Value =
            serde_json::from_str(&ok(folder.path(), &[&bench[..], &["--mode", mode]].concat())).unwrap();
        for key in ["model", "image", "mode", "batch", "device", "dtype", "threads", "parameters", "peak_rss_mib"] {
            assert!(!answer[key].is_null(), "{mode}: {key}");
        }
        assert_eq!((&answer["mode"], answer["seconds"].as_array().unwrap().len()), (&Value::from(mode), 2));
        assert!(answer["seconds_median"].as_f64().unwrap() > 0.0, "{mode}");
        answer["trained"].as_u64().unwrap()
    };
    let [none, look, positions, decoder, gps, full] =
        ["encode", "predict", "chain", "decoder", "gps", "full"].map(trained);
    // 9 × 9 positions of 52 values are what the chain of gradients ends at.
    assert_eq!((none, look, positions), (0, 0, 9 * 9 * 52));
    assert!(decoder < gps && gps < full, "{decoder} {gps} {full}");
    let (code, error) = fails(folder.path(), &["bench", "--mode", "chains"]);
    assert!(code == 2 && error.contains("`chain`"), "{error}");
}

#[test]
fn a_folder_is_predicted_without_earlier_results() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    small_checkpoint(&at.join("small.safetensors"));
    discs(&at.join("set"), "a", 2, 0);
    std::fs::copy(at.join("set/masks/a000.png"), at.join("set/images/a000_seg.png")).unwrap();
    std::fs::copy(at.join("set/masks/a000.png"), at.join("set/images/a000_prob.png")).unwrap();
    // A picture that is only called like a result stays a picture.
    std::fs::copy(at.join("set/images/a001.png"), at.join("set/images/b_seg.png")).unwrap();
    std::fs::write(at.join("set/images/notes.txt"), "two pictures").unwrap();
    let base = ["predict", "set/images", "--run", "none", "--model", "small.safetensors", "--point", "20,20"];
    let output = segft(at, &[&base[..], &["--prob", "--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("2 results of earlier predictions"), "{said}");
    assert!(said.contains("1 files of other kinds are passed over, the first is `notes.txt`"), "{said}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = answer.to_string();
    for name in ["a000.png", "a001.png", "b_seg.png", "a000_prob.png", "a001_prob.png", "b_seg_prob.png"] {
        assert!(at.join("images_seg").join(name).is_file() && text.contains(name), "{name}: {text}");
    }
    assert!(!at.join("images_seg/a000_seg.png").exists());
}

#[test]
fn an_ignored_label_is_not_foreground() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    ok(at, &["data", "make", "phantom-volume", "--out", "set", "--count", "6"]);
    // The same as nnU-Net has it, with the spleen unlabelled.
    for (from, to, ending) in [("images", "imagesTr", "_0000"), ("labels", "labelsTr", "")] {
        std::fs::create_dir_all(at.join("raw").join(to)).unwrap();
        for file in std::fs::read_dir(at.join("set").join(from)).unwrap().flatten() {
            let name = file.file_name().into_string().unwrap().replace(".nii.gz", &format!("{ending}.nii.gz"));
            std::fs::rename(file.path(), at.join("raw").join(to).join(name)).unwrap();
        }
    }
    let labels = serde_json::json!({"background": 0, "liver": 1, "kidney": 2, "ignore": 3});
    let json =
        serde_json::json!({"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 6, "file_ending": ".nii.gz"});
    std::fs::write(at.join("raw/dataset.json"), json.to_string()).unwrap();
    let select = ["select", "--dataset", "raw", "--model", "tiny-random", "--image-size", "64"];
    let (code, error) = fails(at, &select);
    assert!(code == 3 && error.contains("`ignore`") && error.contains("--labels 1,2"), "{code} {error}");
    ok(at, &[&select[..], &["--labels", "1,2"]].concat());
}

/// What a file of weights says of itself is checked before it is believed: no memory is taken for it.
#[test]
fn claims_of_weights_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    discs(&at.join("discs"), "a", 1, 0);
    let tensor = |name: &str, shape: &str, from: usize, to: usize| {
        format!(r#""{name}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{from},{to}]}}"#)
    };
    let two = |from, to| format!("{{{},{}}}", tensor("a", "2", 0, 8), tensor("b", "2", from, to));
    // Name, length of the header as claimed beyond what it is, header, bytes behind it.
    for (name, beyond, header, held) in [
        ("right", 0, two(8, 16), 16),
        ("long", 1000, two(8, 16), 16),
        ("huge", 200 << 20, two(8, 16), 16),
        ("overlap", 0, two(4, 12), 12),
        ("gap", 0, two(12, 20), 20),
        ("short", 0, two(8, 16), 12),
        ("overflow", 0, format!("{{{}}}", tensor("a", "4294967296,4294967296", 0, 0)), 0),
    ] {
        let claimed = header.len() as u64 + beyond;
        let bytes = [&claimed.to_le_bytes()[..], header.as_bytes(), &vec![0; held][..]].concat();
        std::fs::write(at.join(format!("{name}.safetensors")), bytes).unwrap();
    }
    // So large that its header would fit, were there no limit to one.
    let huge = std::fs::File::options().write(true).open(at.join("huge.safetensors")).unwrap();
    huge.set_len(201 << 20).unwrap();

    // A pickle that claims 2^31 numbers, over a storage of one.
    let seven = segft::model::HostTensor { shape: vec![7], data: vec![0.0; 7] };
    let tensors = std::collections::BTreeMap::from([("a".to_string(), seven)]);
    segft::model::pth::write(&at.join("right.pth"), &tensors).unwrap();
    let mut archive = zip::ZipArchive::new(std::fs::File::open(at.join("right.pth")).unwrap()).unwrap();
    let mut pickle = Vec::new();
    std::io::Read::read_to_end(&mut archive.by_name("archive/data.pkl").unwrap(), &mut pickle).unwrap();
    let long = |n: u64| [&[0x8au8, 8][..], &n.to_le_bytes()[..]].concat();
    let seven = long(7);
    let places: Vec<usize> = (0..pickle.len()).filter(|place| pickle[*place..].starts_with(&seven)).collect();
    assert_eq!(places.len(), 2, "the length of the storage, and the shape");
    for place in places {
        pickle[place..place + 10].copy_from_slice(&long(1 << 31));
    }
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("data.pkl", &pickle[..]), ("byteorder", b"little"), ("data/0", &[0; 4]), ("version", b"3\n")]
    {
        zip.start_file(format!("archive/{name}"), stored).unwrap();
        std::io::Write::write_all(&mut zip, bytes).unwrap();
    }
    std::fs::write(at.join("claims.pth"), zip.finish().unwrap().into_inner()).unwrap();

    // Of another network, and whole.
    for file in ["right.safetensors", "right.pth"] {
        ok(at, &["info", file]);
    }
    for name in ["long", "huge", "overlap", "gap", "short", "overflow", "claims"] {
        let file = format!("{name}.{}", if name == "claims" { "pth" } else { "safetensors" });
        let file = file.as_str();
        let predict = ["predict", "discs/images/a000.png", "--box", "1,1,5,5", "--model", file];
        for arguments in [&["info", file][..], &predict] {
            let (code, error) = fails(at, arguments);
            assert!(code == 3 && error.contains(file), "{arguments:?}: {code} {error}");
            assert!(!error.contains("not a SAM"), "{arguments:?}: it was believed: {error}");
        }
    }
}

/// Code blocks of the README: the two commands of its beginning, flags that there are, and the first command in small.
#[test]
fn what_the_readme_says_runs() {
    fn code(line: &str) -> Option<&str> {
        Some(line.strip_prefix("    ")?.split("  #").next()?.trim())
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let readme = include_str!("../README.md");
    let first: Vec<&str> = readme.lines().take(20).filter_map(code).collect();
    for line in ["cargo run --release -- train --dataset phantom", "cargo test"] {
        assert!(first.contains(&line), "`{line}` is not among {first:?}");
    }
    let mut commands = 0;
    for line in readme.lines().filter_map(code) {
        let words = line.strip_prefix("segft ").or_else(|| line.strip_prefix("cargo run --release -- "));
        let Some(words) = words else { continue };
        // What is left out stands for flags.
        let words = words.split_whitespace().filter(|word| !word.contains('…'));
        ok(at, &words.chain(["--help"]).collect::<Vec<_>>());
        commands += 1;
    }
    assert!(commands >= 6, "{commands} commands");
    // `--dataset phantom` with `tiny`, which is compiled in: fewer pictures, smaller, one step.
    ok(at, &["data", "make", "phantom", "--out", "few", "--count", "12"]);
    let said =
        ok(at, &["train", "--dataset", "few", "--steps", "1", "--batch", "1", "--image-size", "64", "--threads", "2"]);
    for words in ["mDice", "mIoU", "run folder: runs/few-gps-1"] {
        assert!(said.contains(words), "`{words}`: {said}");
    }
}
