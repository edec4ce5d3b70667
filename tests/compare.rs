//! `segft compare` on the real binary: cells are made once, holes are shown and filled, the test set decides nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use common::{command, discs, fails, ok, small_checkpoint, small_config};
use segft::model::checkpoint;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

/// A folder with the small SAM, a training set and a test set.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    small_checkpoint(&folder.path().join("small.safetensors"));
    discs(&folder.path().join("discs"), "a", 12, 0);
    discs(&folder.path().join("held-out"), "b", 4, 3);
    folder
}

/// Two methods, one size, two seeds, two trials each, three steps a training.
const SMALL: [&str; 18] = [
    "--dataset",
    "discs",
    "--model",
    "small.safetensors",
    "--methods",
    "gps,decoder",
    "--seeds",
    "2",
    "--sizes",
    "10",
    "--steps",
    "3",
    "--lrs",
    "1,3",
    "--seed",
    "5",
    "--threads",
    "2",
];

/// The small comparison; what `more` says replaces what it says.
fn arguments<'a>(test: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let kept = SMALL.chunks(2).filter(|pair| !more.contains(&pair[0])).flatten().copied();
    let mut all = vec!["compare", "--test", test, "--out", out];
    all.extend(kept);
    all.extend(more);
    all
}

/// Every file below a folder: when it was written, and what it holds.
fn files(folder: &Path) -> BTreeMap<String, (SystemTime, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(inner, file)| (format!("{name}/{inner}"), file)));
        } else {
            found.insert(name, (path.metadata().unwrap().modified().unwrap(), std::fs::read(&path).unwrap()));
        }
    }
    found
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

const CELLS: [&str; 4] = ["gps-10-5", "gps-10-6", "decoder-10-5", "decoder-10-6"];
const TRIALS: [&str; 4] = ["gps-10-1", "gps-10-3", "decoder-10-1", "decoder-10-3"];

#[test]
fn a_table_is_filled_once_and_its_holes_again() {
    let folder = workplace();
    let at = folder.path();
    let text = ok(at, &arguments("held-out", "out", &["--csv", "rows.csv"]));
    let out = at.join("out");
    let before = files(&out);
    let mut names: Vec<String> = CELLS.iter().map(|c| format!("cells/{c}.json")).collect();
    names.extend(TRIALS.iter().map(|t| format!("trials/{t}.json")));
    names.sort();
    assert_eq!(before.keys().cloned().collect::<Vec<_>>(), names, "small files only, no runs");
    assert!(!at.join("runs").exists(), "no run to predict with");

    // What a cell tells.
    for name in CELLS {
        let cell = json(&out.join(format!("cells/{name}.json")));
        assert_eq!((cell["trials"].as_u64(), cell["steps"].as_u64()), (Some(2), Some(3)), "{name}");
        let cases: Vec<&String> = cell["cases"].as_object().unwrap().keys().collect();
        assert_eq!(cases, ["b000", "b001", "b002", "b003"]);
        let asked = name.ends_with("-5");
        assert_eq!((cell["converged"].is_boolean(), cell["validation_mDice_doubled"].is_number()), (asked, asked));
        let mean = cell["cases"].as_object().unwrap().values().map(|d| d.as_f64().unwrap()).sum::<f64>() / 4.0;
        assert!((cell["mDice"].as_f64().unwrap() - mean).abs() < 1e-9);
    }
    // The rate is that of the best trial, and all trials have one seed.
    for method in ["gps", "decoder"] {
        let trials = ["1", "3"].map(|lr| json(&out.join(format!("trials/{method}-10-{lr}.json"))));
        assert!(trials.iter().all(|t| t["seed"] == 5 && t.get("mDice").is_none()));
        let score = |t: &Value| t["validation_mDice"].as_f64().unwrap();
        let best = if score(&trials[1]) > score(&trials[0]) { &trials[1] } else { &trials[0] };
        assert_eq!(json(&out.join(format!("cells/{method}-10-6.json")))["lr"], best["lr"], "{method}");
    }
    assert_eq!(text.lines().filter(|l| l.starts_with("| gps | 10 |") || l.starts_with("| decoder | 10 |")).count(), 2);
    assert!(!text.contains("missing") && text.contains("Trained on 10 cases, "), "{text}");
    let csv = std::fs::read_to_string(at.join("rows.csv")).unwrap();
    assert!(csv.starts_with("method,size,seeds") && csv.contains("\ngps,10,2,2,"), "{csv}");

    // Again: nothing is trained, the same is said.
    assert_eq!(ok(at, &arguments("held-out", "out", &[])), text);
    assert_eq!(files(&out), before);

    // A hole is shown by --report, which trains nothing, and filled with the same numbers by the next call.
    let hole = out.join("cells/decoder-10-6.json");
    std::fs::remove_file(&hole).unwrap();
    let report = ok(at, &arguments("held-out", "out", &["--report"]));
    assert!(report.contains("**1 of 4 cells are missing** (decoder-10-6)"), "{report}");
    assert!(report.contains("(1 of 2 seeds)"), "{report}");
    assert!(!hole.exists());
    ok(at, &arguments("held-out", "out", &[]));
    let timeless = |mut cell: Value| {
        for key in ["seconds_per_step", "peak_rss_mib"] {
            cell.as_object_mut().unwrap().remove(key);
        }
        cell
    };
    let old: Value = serde_json::from_slice(&before["cells/decoder-10-6.json"].1).unwrap();
    assert_eq!(timeless(json(&hole)), timeless(old));
    let after = files(&out);
    assert!(before.iter().filter(|(name, _)| *name != "cells/decoder-10-6.json").all(|(n, file)| after[n] == *file));

    // Other settings are never mixed in, and the file is named.
    for more in [&["--steps", "4"][..], &["--batch", "2"], &["--lrs", "1"]] {
        let (code, error) = fails(at, &arguments("held-out", "out", more));
        assert_eq!((code, error.contains("-10-"), error.contains("--force")), (2, true, true), "{error}");
    }
    assert_eq!(files(&out), after);
    let table: Value = serde_json::from_str(&ok(at, &arguments("held-out", "out", &["--report", "--json"]))).unwrap();
    assert_eq!((table["n_cells"].as_u64(), table["trials"].as_u64()), (Some(4), Some(2)));
    assert_eq!(table["rows"].as_array().unwrap().len(), 2);

    // Cells are no answer to another question.
    for other in [["--steps", "77"], ["--k", "3"], ["--lrs", "1,5"]] {
        let asked = arguments("held-out", "out", &["--report"]);
        let place = asked.iter().position(|word| *word == other[0]);
        let mut asked = asked;
        match place {
            Some(place) => asked[place + 1] = other[1],
            None => asked.extend(other),
        }
        let (code, error) = fails(at, &asked);
        assert_eq!((code, error.contains("made with other settings")), (2, true), "{other:?}: {error}");
    }

    // A count of trials that is not everyone's is refused.
    let mut cell = json(&hole);
    cell["trials"] = 3.into();
    std::fs::write(&hole, cell.to_string()).unwrap();
    let (code, error) = fails(at, &arguments("held-out", "out", &["--report"]));
    assert_eq!((code, error.contains("number of trials")), (3, true), "{error}");
}

#[test]
fn only_what_does_not_merge_costs_time_at_inference() {
    let folder = workplace();
    let at = folder.path();
    ok(at, &arguments("held-out", "out", &["--methods", "gps,lora,adapter,vpt", "--seeds", "1", "--lrs", "1"]));
    let extra =
        |method: &str| json(&at.join(format!("out/cells/{method}-10-5.json")))["extra_inference"].as_f64().unwrap();
    assert_eq!((extra("gps"), extra("lora")), (0.0, 0.0));
    // Two measured times are not the same to the last bit.
    for method in ["adapter", "vpt"] {
        let extra = extra(method);
        assert!(extra != 0.0 && extra > -0.9, "{method}: {extra}");
    }
}

#[test]
fn the_test_set_decides_neither_trials_nor_rates() {
    let folder = workplace();
    let at = folder.path();
    discs(&at.join("other"), "t", 5, 40);
    let one_seed = ["--seeds", "1"];
    ok(at, &arguments("held-out", "a", &one_seed));
    ok(at, &arguments("other", "b", &one_seed));
    for trial in TRIALS {
        let [a, b] = ["a", "b"].map(|out| std::fs::read(at.join(format!("{out}/trials/{trial}.json"))).unwrap());
        assert!(a == b, "{trial}");
    }
    for method in ["gps", "decoder"] {
        let [a, b] = ["a", "b"].map(|out| json(&at.join(format!("{out}/cells/{method}-10-5.json"))));
        assert_eq!(a["lr"], b["lr"]);
        assert_eq!(a["validation_mDice_doubled"], b["validation_mDice_doubled"]);
        assert_ne!((&a["data_hash"], &a["cases"]), (&b["data_hash"], &b["cases"]));
    }
    // With another test set the trials stay, and the cells are refused.
    let (code, error) = fails(at, &arguments("other", "a", &one_seed));
    assert_eq!((code, error.contains("cells/gps-10-5.json"), error.contains("data_hash")), (2, true, true), "{error}");
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_made() {
    let folder = workplace();
    let at = folder.path();
    for (more, words) in [
        (&["--methods", "gps,ful"][..], "`full`"),
        (&["--methods", "gps,gps"], "twice"),
        (&["--methods", "gps:seed=3"], "`seed`"),
        (&["--methods", "full:k=3"], "--k"),
        (&["--sizes", "ten"], "no size"),
        (&["--sizes", "500"], "500"),
        (&["--seeds", "0"], "--seeds"),
        (&["--lrs", "0"], "above 0"),
        (&["--steps", "0"], "--steps"),
        (&["--set", "minutes=1"], "--minutes"),
        (&["--set", "lr=0.1"], "`lr`"),
        (&["--image-size", "100"], "multiple"),
    ] {
        let (code, error) = fails(at, &arguments("held-out", "out", more));
        assert_eq!((code, error.contains(words)), (2, true), "{more:?}: {error}");
    }
    assert!(!at.join("out").exists());
}

#[test]
fn a_row_may_have_a_base_of_its_own_and_one_size_may_tune_for_all() {
    let folder = workplace();
    let at = folder.path();
    let other = checkpoint::random("other", small_config(), 4);
    checkpoint::write_safetensors(&at.join("other.safetensors"), &other.tensors).unwrap();
    let rows = "gps,gps@other.safetensors";
    let more = ["--methods", rows, "--sizes", "6,10", "--trials-at", "6", "--seeds", "1"];
    let text = ok(at, &arguments("held-out", "out", &more));
    assert!(text.contains("with 6 cases for all sizes"), "{text}");
    let names = |folder: &str| files(&at.join("out").join(folder)).into_keys().collect::<Vec<_>>();
    let own = "gps@other.safetensors";
    assert_eq!(
        names("trials"),
        ["gps-6-1.json", "gps-6-3.json", &format!("{own}-6-1.json"), &format!("{own}-6-3.json")]
    );
    let cells = ["gps-10-5", "gps-6-5", &format!("{own}-10-5"), &format!("{own}-6-5")];
    assert_eq!(names("cells"), cells.map(|c| format!("{c}.json")));
    let [base, own] = ["gps", own].map(|row| json(&at.join(format!("out/cells/{row}-10-5.json"))));
    assert_ne!((&base["base_sha256"], &base["cases"]), (&own["base_sha256"], &own["cases"]));

    // The same training by itself selects anew and ends at the same scores.
    let lr = own["lr"].to_string();
    let alone =
        "train --dataset discs --test held-out --model other.safetensors --sizes 10 --steps 3 --threads 2 --seed 5";
    let mut alone: Vec<&str> = alone.split(' ').collect();
    alone.extend(["--lr", &lr, "--out", "alone"]);
    ok(at, &alone);
    assert_eq!(json(&at.join("alone/metrics.json"))["mDice"], own["mDice"]);
}

#[test]
fn a_row_may_have_settings_of_its_own_and_the_table_a_plot() {
    let folder = workplace();
    let at = folder.path();
    let more = ["--methods", "gps,gps:k=3", "--seeds", "1", "--lrs", "1"];
    ok(at, &arguments("held-out", "out", &[&more[..], &["--plot", "scores.svg"]].concat()));
    let [one, three] = ["gps", "gps_k=3"].map(|row| json(&at.join(format!("out/cells/{row}-10-5.json"))));
    assert_eq!((&one["method"], &three["method"]), (&"gps".into(), &"gps:k=3".into()));
    // The same biases and decoder train; of the entries, up to three times as many.
    let entries = |cell: &Value| cell["trained_encoder_parameters"].as_u64().unwrap();
    assert!(entries(&three) > entries(&one), "{one} {three}");
    assert!(three["patch_bytes"].as_u64() > one["patch_bytes"].as_u64());
    assert_eq!(one["encoder_parameters"], three["encoder_parameters"]);
    let plot = std::fs::read_to_string(at.join("scores.svg")).unwrap();
    assert!(plot.starts_with("<svg") && plot.contains("gps, 10 cases") && !plot.contains("k=3"), "{plot}");

    // The same training by itself.
    let alone = format!(
        "train --dataset discs --test held-out --model small.safetensors --sizes 10 --steps 3 --threads 2 --seed 5 --k 3 --lr {} --out alone",
        three["lr"]
    );
    ok(at, &alone.split(' ').collect::<Vec<_>>());
    assert_eq!(json(&at.join("alone/metrics.json"))["mDice"], three["mDice"]);
    let patch = std::fs::metadata(at.join("alone/patch.safetensors")).unwrap().len();
    assert_eq!(Some(patch), three["patch_bytes"].as_u64());
}

#[cfg(unix)]
#[test]
fn an_interrupted_comparison_goes_on() {
    let folder = workplace();
    let at = folder.path();
    let long = ["--methods", "decoder", "--lrs", "1", "--seeds", "1", "--steps", "80"];
    ok(at, &arguments("held-out", "whole", &long));
    let mut child = command(at, &arguments("held-out", "cut", &long)).spawn().unwrap();
    // Within the first cell: its trial is written, its training has begun.
    let begun = at.join("cut/runs/decoder-10-5/history.csv");
    let start = std::time::Instant::now();
    while !begun.exists() && start.elapsed().as_secs() < 120 {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(at.join("cut/trials/decoder-10-1.json").exists());
    assert!(!at.join("cut/cells/decoder-10-5.json").exists(), "interrupted too late to mean anything");
    ok(at, &arguments("held-out", "cut", &long));
    let [whole, cut] = ["whole", "cut"].map(|out| json(&at.join(format!("{out}/cells/decoder-10-5.json"))));
    for key in ["cases", "validation_mDice", "validation_mDice_doubled", "lr"] {
        assert_eq!(whole[key], cut[key], "{key}");
    }
    assert!(!at.join("cut/runs").exists());
}

#[test]
fn a_learning_rate_may_be_tried_with_several_seeds() {
    let folder = workplace();
    let at = folder.path();
    let more = ["--methods", "gps", "--seeds", "1", "--trial-seeds", "2"];
    ok(at, &arguments("held-out", "out", &["--methods", "gps", "--seeds", "1"]));
    let one = files(&at.join("out/trials"));
    // Trials with one seed are the first of two; the cell's settings are others.
    let (code, error) = fails(at, &arguments("held-out", "out", &more));
    assert!(code == 2 && error.contains("`trial_seeds`"), "{error}");
    let text = ok(at, &[&arguments("held-out", "out", &more)[..], &["--force"]].concat());
    assert!(text.contains("chosen by 4 trials (2 rates, the mean of 2 seeds each)"), "{text}");
    let two = files(&at.join("out/trials"));
    let names: Vec<&str> = two.keys().map(String::as_str).collect();
    assert_eq!(names, ["gps-10-1-6.json", "gps-10-1.json", "gps-10-3-6.json", "gps-10-3.json"]);
    assert!(one.iter().all(|(name, file)| two[name] == *file), "what is there is not made again");
    let score = |name: &str| json(&at.join("out/trials").join(name))["validation_mDice"].as_f64().unwrap();
    let mean = |lr: &str| (score(&format!("gps-10-{lr}.json")) + score(&format!("gps-10-{lr}-6.json"))) / 2.0;
    let best = if mean("3") > mean("1") { 3.0 } else { 1.0 };
    let cell = json(&at.join("out/cells/gps-10-5.json"));
    assert_eq!((cell["lr_multiple"].as_f64(), cell["trials"].as_u64()), (Some(best), Some(4)));
}

#[test]
fn cases_that_a_size_leaves_out_say_whether_twice_the_steps_help() {
    let folder = workplace();
    let at = folder.path();
    let more = ["--methods", "decoder", "--sizes", "7,all", "--lrs", "1", "--doubled-seeds", "2"];
    let text = ok(at, &arguments("held-out", "out", &more));
    assert!(text.contains("moves the mean over 2 seeds of the mDice of 4 cases of the training set that the size leaves out, of validation where"), "{text}");
    for seed in [5, 6] {
        let [seven, all] = ["7", "all"].map(|size| json(&at.join(format!("out/cells/decoder-{size}-{seed}.json"))));
        assert!(all.get("left_out").is_none() && all["converged"].is_boolean(), "{all}");
        let left_out = &seven["left_out"];
        assert_eq!(left_out["cases"], 4, "12 cases less 7, as many as there are test cases at most");
        let moved = left_out["mDice_doubled"].as_f64().unwrap() - left_out["mDice"].as_f64().unwrap();
        assert_eq!(seven["converged"], moved.abs() < 0.01, "{seven}");
    }

    // The same training by itself, and what it does with the first four of the others.
    let cell = json(&at.join("out/cells/decoder-7-6.json"));
    let alone = format!(
        "train --dataset discs --test held-out --model small.safetensors --method decoder --sizes 7 --steps 3 --threads 2 \
         --seed 6 --split-seed 5 --lr {} --out alone",
        cell["lr"]
    );
    ok(at, &alone.split(' ').collect::<Vec<_>>());
    let splits = &json(&at.join("alone/run.json"))["splits"];
    let seen: Vec<&str> = ["train", "validation"]
        .iter()
        .flat_map(|side| splits[side].as_array().unwrap())
        .map(|id| id.as_str().unwrap())
        .collect();
    assert_eq!(seen.len(), 7);
    let others = (0..12).map(|i| format!("a{i:03}")).filter(|id| !seen.contains(&id.as_str())).take(4);
    for folder in ["pictures", "masks"] {
        std::fs::create_dir(at.join(folder)).unwrap();
    }
    for id in others {
        std::fs::copy(at.join(format!("discs/images/{id}.png")), at.join(format!("pictures/{id}.png"))).unwrap();
        std::fs::copy(at.join(format!("discs/masks/{id}.png")), at.join(format!("masks/{id}.png"))).unwrap();
    }
    ok(at, &["predict", "pictures", "--run", "alone", "--out", "predicted"]);
    let score: Value =
        serde_json::from_str(&ok(at, &["score", "--pred", "predicted", "--ref", "masks", "--json"])).unwrap();
    let [wanted, found] = [&score["mDice"], &cell["left_out"]["mDice"]].map(|mdice| mdice.as_f64().unwrap());
    assert!((wanted - found).abs() < 1e-9, "{wanted} {found}");

    // Another number of seeds is another comparison, and more than there are is none.
    let other = [&arguments("held-out", "out", &more)[..], &["--report"]].concat();
    let asked = |n: &'static str| {
        let mut words = other.clone();
        let place = words.iter().position(|word| *word == "--doubled-seeds").unwrap();
        words[place + 1] = n;
        fails(at, &words)
    };
    let (code, error) = asked("1");
    assert!(code == 2 && error.contains("`doubled_seeds`"), "{error}");
    let (code, error) = asked("3");
    assert!(code == 2 && error.contains("--doubled-seeds 3"), "{error}");
}
