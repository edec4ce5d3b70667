//! Properties of a training that state the product, on the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use burn::tensor::{Tensor, TensorData};
use common::{QUICK, command, discs, fails, ok, small_checkpoint};
use segft::image::{Grid, Labels, Picture, Resize};
use segft::io::picture;
use segft::io::safetensors::{Reader, Values, write};
use segft::method::{self, Change, Chosen, Plan, Settings};
use segft::model::kernel::Precision;
use segft::model::kernel::inputs::squares;
use segft::model::sam::{Cache, Counts};
use segft::model::weights::to_vec;
use segft::model::{Sam, SamConfig, checkpoint};
use segft::predict::prompt_free_logits;
use segft::train::batch::Augment;
use segft::train::loss::loss;
use segft::train::{Epoch, Options, State, Surroundings, Validation, batch};
use segft::tune::optimizer::Optimizer;
use segft::tune::patch::{Delta, Patch};
use segft::tune::{attach, gradients};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A folder with the small SAM, a training set and a test set.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    small_checkpoint(&folder.path().join("small.safetensors"));
    discs(&folder.path().join("discs"), "a", 15, 0);
    discs(&folder.path().join("held-out"), "b", 4, 3);
    folder
}

fn train(folder: &Path, out: &str, more: &[&str]) -> Value {
    let mut arguments = vec!["train", "--dataset", "discs", "--test", "held-out", "--json", "--out", out];
    arguments.extend(QUICK);
    arguments.extend(more);
    serde_json::from_str(&ok(folder, &arguments)).unwrap()
}

fn bytes(folder: &Path, file: &str) -> Vec<u8> {
    std::fs::read(folder.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// history.csv without its column of seconds.
fn history(folder: &Path, run: &str) -> Vec<String> {
    let text = String::from_utf8(bytes(folder, &format!("{run}/history.csv"))).unwrap();
    text.lines().map(|line| line.rsplit_once(',').unwrap().0.to_string()).collect()
}

fn assert_same_run(folder: &Path, a: &str, b: &str) {
    for file in ["selection.safetensors", "patch.safetensors", "per_case.csv"] {
        let (x, y) = (bytes(folder, &format!("{a}/{file}")), bytes(folder, &format!("{b}/{file}")));
        // The table names the predictions' folder, which is the run's own.
        let y = if file == "per_case.csv" {
            String::from_utf8(y).unwrap().replace(&format!("{b}/"), &format!("{a}/")).into_bytes()
        } else {
            y
        };
        assert!(x == y, "{file} of {a} and {b} differ");
    }
    assert_eq!(history(folder, a), history(folder, b));
}

#[test]
fn a_run_is_whole_and_counts_what_it_says() {
    let folder = workplace();
    let at = folder.path();
    let metrics = train(at, "one", &[]);
    for file in ["config.toml", "selection.safetensors", "patch.safetensors", "history.csv", "metrics.json"] {
        assert!(at.join("one").join(file).is_file(), "{file}");
    }
    assert_eq!(std::fs::read_to_string(at.join("runs/latest")).unwrap().trim(), "one");
    assert_eq!(metrics["n_cases"], 4);
    assert_eq!(metrics["frozen_weights_unchanged"], true);
    // One per output neuron: two blocks of (3·52 + 52 + 4·52 + 52), 52 of the patch embedding, 2 · 48 of the neck.
    assert_eq!(metrics["selected_encoder_weights"], 2 * 468 + 52 + 96);
    assert_eq!(metrics["trained_encoder_biases"], 2 * 468 + 52);
    let record: Value = serde_json::from_slice(&bytes(at, "one/run.json")).unwrap();
    let ids = |side: &str| record["splits"][side].as_array().unwrap().len();
    assert_eq!((ids("train"), ids("validation"), ids("test")), (12, 3, 4));
    // What the method decided stands in the configuration.
    let config = String::from_utf8(bytes(at, "one/config.toml")).unwrap();
    assert!(config.lines().any(|line| line.starts_with("lr = ")), "{config}");
    // A run folder stands for its selection.
    let overlap: Value =
        serde_json::from_str(&ok(at, &["select", "--diff", "one", "one/selection.safetensors", "--json"])).unwrap();
    assert_eq!(overlap["jaccard"], 1.0, "{overlap}");
    // A patch against itself: every value in both, none apart.
    let patch = "one/patch.safetensors";
    let same: Value = serde_json::from_str(&ok(at, &["patch", "diff", patch, patch, "--json"])).unwrap();
    assert_eq!(
        (same["only_a"].as_u64(), same["only_b"].as_u64(), same["largest"].as_f64()),
        (Some(0), Some(0), Some(0.0))
    );
    assert_eq!(same["both"], metrics["trained_parameters"]);
    let (code, error) = fails(at, &["predict", "held-out/images", "--run", patch]);
    assert!(code == 2 && error.contains("name the folder: one"), "{error}");

    // The test score at the end of training is what predict and score find.
    ok(at, &["predict", "held-out/images", "--run", "one", "--out", "again"]);
    let scored: Value =
        serde_json::from_str(&ok(at, &["score", "--pred", "again", "--ref", "held-out/masks", "--json"])).unwrap();
    for key in ["mDice", "mIoU"] {
        let (a, b) = (metrics[key].as_f64().unwrap(), scored[key].as_f64().unwrap());
        assert!((a - b).abs() < 1e-6, "{key}: {a} and {b}");
    }
    let arguments = ["score", "--pred", "again", "--ref", "held-out/masks", "--no-surfaces", "--json"];
    let quick: Value = serde_json::from_str(&ok(at, &arguments)).unwrap();
    let distance = |report: &Value| report["metric_per_case"][0]["metrics"]["1"].get("HD95_mm").cloned();
    assert!(distance(&scored).is_some() && distance(&quick).is_none_or(|d| d.is_null()));
    assert_eq!((&quick["mDice"], &quick["mIoU"]), (&scored["mDice"], &scored["mIoU"]));
    let rescored: Value = serde_json::from_str(&ok(at, &["score", "one", "--json"])).unwrap();
    assert_eq!(rescored["mDice"], metrics["mDice"]);

    // Base and patch, and the merged export, predict the same; the patch comes off again, bit for bit.
    for to in ["merged.safetensors", "merged.pth"] {
        ok(at, &["export", "one", "--to", to]);
        ok(at, &["patch", "revert", to, "one/patch.safetensors", "--to", &format!("{to}.base.safetensors")]);
        assert!(bytes(at, &format!("{to}.base.safetensors")) == bytes(at, "small.safetensors"), "{to}");
    }
    ok(at, &["patch", "apply", "small.safetensors", "one/patch.safetensors", "--to", "applied.safetensors"]);
    assert!(bytes(at, "applied.safetensors") == bytes(at, "merged.safetensors"));
    // A patch that changes no value, and one that names none, leave the base as it is.
    let mut idle = Patch::load(&at.join("one/patch.safetensors")).unwrap();
    for delta in idle.deltas.values_mut() {
        match delta {
            Delta::Sparse { old, new, .. } | Delta::Dense { old, new } => new.clone_from(old),
            Delta::Added { .. } => panic!("GPS adds nothing"),
        }
    }
    for n in ["same", "none"] {
        idle.save(&at.join(format!("{n}.safetensors"))).unwrap();
        let to = format!("{n}-applied.safetensors");
        ok(at, &["patch", "apply", "small.safetensors", &format!("{n}.safetensors"), "--to", &to]);
        assert!(bytes(at, &to) == bytes(at, "small.safetensors"), "{n}");
        idle.deltas.clear();
    }
    // Values that are no numbers are not taken for a fine-tune.
    let mut broken = Patch::load(&at.join("one/patch.safetensors")).unwrap();
    if let Some(Delta::Sparse { new, .. } | Delta::Dense { new, .. }) = broken.deltas.values_mut().next() {
        new[0] = f32::INFINITY;
    }
    broken.save(&at.join("broken.safetensors")).unwrap();
    let to = ["patch", "apply", "small.safetensors", "broken.safetensors", "--to", "never.safetensors"];
    let (code, error) = fails(at, &to);
    assert!(code == 3 && error.contains("1 of ") && !at.join("never.safetensors").exists(), "{error}");
    let wrong = ["patch", "apply", "merged.safetensors", "one/patch.safetensors", "--to", "wrong.pth"];
    let (code, error) = fails(at, &wrong);
    assert!(code == 3 && error.contains("made for: `small.safetensors`") && !error.contains("--model"), "{error}");
    let half = bytes(at, "one/patch.safetensors");
    std::fs::write(at.join("half.safetensors"), &half[..half.len() / 2]).unwrap();
    let (code, error) = fails(at, &["info", "half.safetensors"]);
    assert!(code == 3 && error.contains("cut short") && !error.contains("fetch"), "{error}");
    let prompt = ["--box", "5,5,30,30", "--prob"];
    for (model, out) in [("merged.safetensors", "m1"), ("merged.pth", "m2")] {
        let arguments = ["predict", "held-out/images", "--model", model, "--out", out];
        ok(at, &[&arguments[..], &prompt[..]].concat());
    }
    ok(
        at,
        &[&["predict", "held-out/images", "--run", "one", "--threshold", "0.5", "--out", "m3"][..], &prompt[..]]
            .concat(),
    );
    for out in ["m2", "m3"] {
        for case in ["b000", "b003_prob"] {
            assert!(bytes(at, &format!("m1/{case}.png")) == bytes(at, &format!("{out}/{case}.png")), "{out} {case}");
        }
    }
    // A volume is not what it was trained on, and it says so.
    let grid = Grid { shape: [20, 20, 3], ..Grid::picture(1, 1) };
    let volume = segft::image::Volume { voxels: (0..1200).map(|n| (n % 97) as f32).collect(), grid };
    segft::io::nifti::write_volume(&at.join("scan.nii.gz"), &volume).unwrap();
    let output = common::segft(at, &["predict", "scan.nii.gz", "--run", "one", "--out", "mask.nii.gz"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("trained on pictures"), "{said}");
    // Where the base has another name now, it is asked for by its hash.
    let sha256 = checkpoint::file_sha256(&at.join("small.safetensors")).unwrap();
    std::fs::rename(at.join("small.safetensors"), at.join("renamed.safetensors")).unwrap();
    let moved = ["predict", "held-out/images", "--run", "one", "--out", "moved"];
    let (code, error) = fails(at, &moved);
    assert!(code == 2 && error.contains(&sha256[..8]) && error.contains("--model"), "{error}");
    let output = common::segft(at, &[&moved[..], &["--model", "renamed.safetensors"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("trained on"), "{said}");
    assert!(bytes(at, "moved/b000.png") == bytes(at, "again/b000.png"));
    std::fs::rename(at.join("renamed.safetensors"), at.join("small.safetensors")).unwrap();

    std::fs::remove_file(at.join("one/patch.safetensors")).unwrap();
    for arguments in [&["score", "one"][..], &["export", "one", "--to", "x.pth"], &["predict", "held-out/images"]] {
        let (code, error) = fails(at, arguments);
        assert!(code == 2 && error.contains("patch is gone"), "{arguments:?}: {error}");
    }
}

#[test]
fn same_seed_same_bytes_whatever_the_threads() {
    let folder = workplace();
    train(folder.path(), "two", &[]);
    train(folder.path(), "one", &["--threads", "1"]);
    assert_same_run(folder.path(), "two", "one");
    train(folder.path(), "other", &["--seed", "6"]);
    assert_ne!(bytes(folder.path(), "two/patch.safetensors"), bytes(folder.path(), "other/patch.safetensors"));

    // Without `--run` the newest completed one answers, which is not the newest folder.
    let at = folder.path();
    let stopped = at.join("stopped");
    std::fs::create_dir(&stopped).unwrap();
    for file in ["config.toml", "patch.safetensors", "run.json"] {
        std::fs::copy(at.join("two").join(file), stopped.join(file)).unwrap();
    }
    let predict = ["predict", "held-out/images", "--prob", "--out"];
    let output = common::segft(at, &[&predict[..], &["newest"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("run other (gps on small)"), "{said}");
    for run in ["two", "other"] {
        ok(at, &[&predict[..], &[&format!("by-{run}"), "--run", run]].concat());
        let same = bytes(at, "newest/b000_prob.png") == bytes(at, &format!("by-{run}/b000_prob.png"));
        assert_eq!(same, run == "other", "{run}");
    }
}

/// On a processor with products of bf16; on any other it is refused, not imitated.
#[test]
fn bf16_is_for_steps_alone_and_the_same_bytes_whatever_the_threads() {
    let folder = workplace();
    let at = folder.path();
    let (code, error) = fails(at, &["train", "--dataset", "discs", "--dtype", "f16"]);
    assert!(code == 2 && error.contains("bf16"), "{error}");
    if !Precision::Bf16.available() {
        for command in [&["train", "--dataset", "discs"][..], &["plan", "--dataset", "discs"], &["bench"]] {
            let (code, error) = fails(at, &[command, &["--dtype", "bf16"]].concat());
            assert!(code == 5 && error.contains("products of bf16") && error.contains("--dtype f32"), "{error}");
        }
        println!("skipped: no products of bf16 (AMX, AVX512-BF16) here");
        return;
    }
    train(at, "whole", &[]);
    let metrics = train(at, "two", &["--dtype", "bf16"]);
    assert_eq!(metrics["frozen_weights_unchanged"], true);
    train(at, "one", &["--dtype", "bf16", "--threads", "1"]);
    assert_same_run(at, "two", "one");
    let same = |file: &str| bytes(at, &format!("whole/{file}")) == bytes(at, &format!("two/{file}"));
    assert!(same("selection.safetensors") && !same("patch.safetensors"));

    // Its test was in f32, as `predict` is.
    let predict = ["predict", "held-out/images", "--run", "two", "--prob", "--out"];
    ok(at, &[&predict[..], &["f32"]].concat());
    assert_eq!(bytes(at, "f32/b000.png"), bytes(at, "two/predictions/b000.png"));
    ok(at, &[&predict[..], &["bf16", "--dtype", "bf16"]].concat());
    let maps = ["f32", "bf16"].map(|out| image::open(at.join(out).join("b000_prob.png")).unwrap().into_luma16());
    let apart = maps[0].iter().zip(maps[1].iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(apart > 0 && f64::from(apart) < 0.05 * 65535.0, "{apart}");
}

#[test]
fn a_given_time_is_used() {
    let folder = workplace();
    // Where runs/latest cannot be written, the run is whole all the same.
    std::fs::write(folder.path().join("runs"), "not a folder").unwrap();
    let metrics = train(folder.path(), "timed", &["--minutes", "0.02"]);
    assert!(metrics["seconds"].as_f64().unwrap() >= 1.2, "{metrics}");
    assert!(metrics["epochs"].as_u64().unwrap() >= 2, "{metrics}");
}

/// Steps in history.csv.
fn validated_at(folder: &Path, run: &str) -> Vec<usize> {
    history(folder, run).iter().skip(1).map(|row| row.split(',').nth(1).unwrap().parse().unwrap()).collect()
}

#[test]
fn steps_are_counted_exactly() {
    let folder = workplace();
    let at = folder.path();
    // 12 cases in batches of 4: 3 steps an epoch.
    let metrics = train(at, "few", &["--steps", "7"]);
    assert_eq!((metrics["steps"].as_u64(), metrics["epochs"].as_u64()), (Some(7), Some(3)), "{metrics}");
    assert_eq!(validated_at(at, "few"), [3, 6, 7]);
    assert_eq!(train(at, "two", &["--steps", "2"])["steps"], 2);
    // A tenth of 45 is 4: only every second epoch is validated, and the last one is.
    train(at, "more", &["--steps", "45"]);
    assert_eq!(validated_at(at, "more"), [6, 12, 18, 24, 30, 36, 42, 45]);
    train(at, "again", &["--steps", "45", "--threads", "1"]);
    assert_same_run(at, "more", "again");
    // As many steps as epochs make are those epochs.
    train(at, "epochs", &["--epochs", "2"]);
    train(at, "steps", &["--steps", "6"]);
    assert_same_run(at, "epochs", "steps");
    for more in [&["--steps", "3", "--minutes", "1"][..], &["--set", "steps=3", "--minutes", "1"], &["--steps", "0"]] {
        let (code, error) = fails(at, &[&["train", "--dataset", "discs"][..], more].concat());
        assert_eq!((code, error.contains("--steps")), (2, true), "{error}");
    }
}

/// Stops after a given step, as a signal would.
struct Stopper {
    folder: std::path::PathBuf,
    step: usize,
    stop_at: usize,
    embeddings: Option<Arc<Cache>>,
}

impl segft::train::Surroundings for Stopper {
    fn validate(&mut self, _: &segft::model::Sam) -> segft::error::Result<segft::train::Validation> {
        Ok(segft::train::Validation { mdice: 1.0 / (1 + self.step) as f64, miou: 0.0 })
    }
    fn save(&mut self, state: &segft::train::State) -> segft::error::Result<()> {
        state.save(&self.folder.join("state.safetensors"))
    }
    fn stopped(&self) -> bool {
        self.step == self.stop_at
    }
    fn stepped(&mut self, step: usize, _: usize, _: f64) {
        self.step = step;
    }
    fn epoch(&mut self, _: &segft::train::Epoch, _: bool, _: f64) {}
    fn embeddings(&self) -> Option<Arc<Cache>> {
        self.embeddings.clone()
    }
}

/// Eight steps of the decoder with five pictures in batches of two, in this process.
fn train_decoder(at: &Path, augment: Augment, state: State, around: &mut Stopper) -> segft::error::Result<State> {
    train_planned(at, &planned("decoder", 0), 1e-3, augment, state, around)
}

/// What a method that chooses no entries does with the small SAM; what it adds is drawn from a seed.
fn planned(method: &str, seed: u64) -> Plan {
    let settings = Settings { seed, ..Settings::default() };
    method::plan(method::find(method).unwrap(), &common::small_config().specs(), None, &settings)
}

/// Five pictures.
fn samples(at: &Path) -> Vec<batch::Sample> {
    let request =
        segft::data::Request { dataset: at.join("discs").display().to_string(), ..segft::data::Request::default() };
    let splits = segft::data::prepare(&request).unwrap();
    batch::load(&splits.train[..5], splits.dataset.form, &segft::predict::Preprocessing::new(72)).unwrap()
}

/// Eight steps of a plan with five pictures in batches of two, in this process.
fn train_planned(
    at: &Path,
    plan: &Plan,
    lr: f64,
    augment: Augment,
    state: State,
    around: &mut dyn Surroundings,
) -> segft::error::Result<State> {
    let device = segft::device::choose("cpu").unwrap().device;
    let options = Options {
        epochs: usize::MAX,
        batch: 2,
        lr,
        optimizer: segft::tune::optimizer::Settings::default(),
        seed: 5,
        augment,
        patience: usize::MAX,
        minutes: None,
        steps: Some(8),
        save_every: 1,
    };
    let base = checkpoint::read(&at.join("small.safetensors")).unwrap();
    let mut sam = base.into_sam(&device);
    segft::tune::attach(&mut sam, plan, &device);
    segft::train::run(&mut sam, &samples(at), &options, state, around, &device)
}

/// Is stopped in the pass that a method takes half-way, or not.
struct HalfWay {
    folder: std::path::PathBuf,
    stop: bool,
    stopped: bool,
    /// Losses taken in each pass.
    passes: Vec<usize>,
    steps: usize,
}

impl Surroundings for HalfWay {
    fn validate(&mut self, _: &Sam) -> segft::error::Result<Validation> {
        Ok(Validation { mdice: 0.5, miou: 0.0 })
    }
    fn save(&mut self, state: &State) -> segft::error::Result<()> {
        state.save(&self.folder.join("half-way.safetensors"))
    }
    fn half_way(
        &mut self,
        sam: &Sam,
        losses: &mut dyn Iterator<Item = Tensor<1>>,
    ) -> Option<segft::tune::course::Turn> {
        let taken = losses.take(if self.stop { 2 } else { usize::MAX }).count();
        self.passes.push(taken);
        self.stopped = self.stop;
        let name = "mask_decoder.iou_token.weight";
        let start = sam.weights.get(name)?.to_host().data;
        let kept = [(name.to_string(), vec![0.0; start.len()])].into();
        (!self.stopped).then_some(segft::tune::course::Turn { kept, rewound: None })
    }
    fn stopped(&self) -> bool {
        self.stopped
    }
    fn stepped(&mut self, step: usize, _: usize, _: f64) {
        self.steps = step;
    }
    fn epoch(&mut self, _: &Epoch, _: bool, _: f64) {}
}

#[test]
fn a_pass_half_way_can_be_stopped_and_is_taken_again() {
    let folder = workplace();
    let at = folder.path();
    let plan = planned("decoder", 0);
    let around = |stop| HalfWay { folder: at.to_path_buf(), stop, stopped: false, passes: Vec::new(), steps: 0 };
    let go = |state, around: &mut HalfWay| train_planned(at, &plan, 1e-3, Augment::Mild, state, around);
    let bytes_of = |state: &State| {
        state.save(&at.join("kept.safetensors")).unwrap();
        bytes(at, "kept.safetensors")
    };
    let mut whole = around(false);
    let wanted = go(State::default(), &mut whole).unwrap();
    // Five pictures in one pass, before the fifth of eight steps.
    assert_eq!((whole.passes, whole.steps), (vec![5], 8));

    let mut first = around(true);
    let error = go(State::default(), &mut first).unwrap_err();
    assert_eq!((error.kind.exit_code(), first.passes, first.steps), (130, vec![2], 4));
    let mut second = around(false);
    let found = go(State::load(&at.join("half-way.safetensors")).unwrap(), &mut second).unwrap();
    assert_eq!((second.passes, second.steps), (vec![5], 8));
    let untimed = |mut state: State| {
        state.seconds = 0.0;
        state.history.iter_mut().for_each(|row| row.seconds = 0.0);
        bytes_of(&state)
    };
    assert!(untimed(found) == untimed(wanted));
}

/// Validates as a script says; what the network holds at each validation is kept.
struct Scripted {
    mdice: Vec<f64>,
    seen: Vec<Vec<Vec<f32>>>,
}

/// All values of all weights.
fn held(sam: &Sam) -> Vec<Vec<f32>> {
    sam.weights.iter().map(|(_, weight)| weight.to_host().data).collect()
}

impl Surroundings for Scripted {
    fn validate(&mut self, sam: &Sam) -> segft::error::Result<Validation> {
        let mdice = self.mdice[self.seen.len()];
        self.seen.push(held(sam));
        Ok(Validation { mdice, miou: 0.0 })
    }
    fn save(&mut self, _: &State) -> segft::error::Result<()> {
        Ok(())
    }
    fn stopped(&self) -> bool {
        false
    }
    fn stepped(&mut self, _: usize, _: usize, _: f64) {}
    fn epoch(&mut self, _: &Epoch, _: bool, _: f64) {}
}

#[test]
fn patience_ends_a_training_and_the_best_epoch_is_kept() {
    let folder = workplace();
    let at = folder.path();
    let device = segft::device::choose("cpu").unwrap().device;
    // Chosen entries, biases and the decoder: what is kept of each kind.
    let chosen = Chosen::from([("image_encoder.blocks.1.mlp.lin1.weight".to_string(), vec![0, 60, 130])]);
    let specs = common::small_config().specs();
    let plan = method::plan(method::find("gps").unwrap(), &specs, Some(&chosen), &Settings::default());
    let samples = samples(at);
    // As good as the best is not better. The second script is longer than its patience allows.
    for (script, patience, epochs, best) in
        [(&[0.1, 0.3, 0.3, 0.2][..], 2, 4, 2), (&[0.3, 0.2, 0.4, 0.1, 0.0, 0.39, 0.9], 3, 6, 3)]
    {
        let mut sam = checkpoint::read(&at.join("small.safetensors")).unwrap().into_sam(&device);
        attach(&mut sam, &plan, &device);
        let options = Options {
            epochs: 9,
            batch: 2,
            lr: 1e-3,
            optimizer: segft::tune::optimizer::Settings::default(),
            seed: 5,
            augment: Augment::Off,
            patience,
            minutes: None,
            steps: None,
            save_every: 9,
        };
        let mut around = Scripted { mdice: script.to_vec(), seen: Vec::new() };
        let state =
            segft::train::run(&mut sam, &samples[..2], &options, State::default(), &mut around, &device).unwrap();
        assert_eq!((state.epoch, around.seen.len()), (epochs, epochs));
        assert_eq!(
            (state.best.as_ref().map(|(epoch, _)| *epoch), state.best_mdice()),
            (Some(best), Some(script[best - 1]))
        );
        let kept = held(&sam);
        for (epoch, seen) in (1..).zip(&around.seen) {
            assert_eq!(kept == *seen, epoch == best, "{script:?}: epoch {epoch}");
        }
    }
    // And in the program: at such a rate nothing becomes better.
    let metrics = train(at, "still", &["--epochs", "9", "--patience", "2", "--lr", "1e-12"]);
    assert_eq!((metrics["epochs"].as_u64(), metrics["best_epoch"].as_u64()), (Some(3), Some(1)), "{metrics}");
}

/// A weight that must stay comes back with one bit flipped, by the only way into a running program: the state that it
/// goes on from.
#[test]
fn a_flipped_bit_fails_the_run() {
    let folder = workplace();
    let at = folder.path();
    assert_eq!(train(at, "run", &["--method", "decoder"])["frozen_weights_unchanged"], true);
    std::fs::remove_file(at.join("run/metrics.json")).unwrap();
    let name = "image_encoder.pos_embed";
    let mut flipped = checkpoint::read(&at.join("small.safetensors")).unwrap().tensors[name].data.clone();
    flipped[7] = f32::from_bits(flipped[7].to_bits() ^ 1);
    let path = at.join("run/checkpoint/state.safetensors");
    let mut reader = Reader::open(&path).unwrap();
    let mut state: BTreeMap<String, Vec<f32>> =
        reader.entries().into_keys().map(|name| (name.clone(), reader.floats(&name).unwrap())).collect();
    state.insert(format!("best/{name}"), flipped);
    let tensors = state.iter().map(|(name, v)| (name.clone(), (vec![v.len()], Values::F32(v)))).collect();
    write(&path, &reader.notes(), &tensors).unwrap();
    let (code, error) = fails(at, &["train", "--resume", "run"]);
    assert!(code == 1 && error.contains("must not") && error.contains(name), "{error}");
    let metrics: Value = serde_json::from_slice(&bytes(at, "run/metrics.json")).unwrap();
    assert_eq!(metrics["frozen_weights_unchanged"], false);
}

/// Training the chosen entries alone is training everything with every other gradient set to zero.
#[test]
fn sparse_steps_are_masked_dense_ones() {
    let folder = workplace();
    let at = folder.path();
    let device = segft::device::choose("cpu").unwrap().device;
    let samples = samples(at);
    let of = |sam: &Sam, chosen: &[usize]| {
        let batch = batch::draw(&samples, chosen, Augment::Off, 0, 0).on(&device);
        loss(prompt_free_logits(sam, batch.pixels), batch.target, batch.valid).total()
    };
    let base = checkpoint::read(&at.join("small.safetensors")).unwrap().into_sam(&device);
    let (gps, settings) = (method::find("gps").unwrap(), Settings::default());
    let chosen = gradients::choose(gps, &base, &settings, 0, (0..5).map(Ok), |sam, i| Ok(of(sam, &[i]))).unwrap();
    let sparse = method::plan(gps, &base.config.specs(), chosen.as_ref(), &settings);
    let mut dense = sparse.clone();
    let mut masks = BTreeMap::new();
    for (name, indices) in chosen.unwrap() {
        let mut mask = vec![0f32; base.weights.get(&name).unwrap().spec.len()];
        indices.iter().for_each(|i| mask[*i as usize] = 1.0);
        let n = mask.len();
        dense.insert(name.clone(), Change::Dense);
        masks.insert(name, Tensor::<1>::from_data(TensorData::new(mask, [n]), &device));
    }
    let unmasked = BTreeMap::new();
    let trained = |plan: &Plan, masks: &BTreeMap<String, Tensor<1>>| {
        let mut sam = base.clone();
        attach(&mut sam, plan, &device);
        let mut adam = Optimizer::adam(1e-8);
        for step in 0..4 {
            let loss = of(&sam, &[step, step + 1]);
            let mask = |name: &str, gradient: Tensor<1>| match masks.get(name) {
                Some(mask) => gradient * mask.clone(),
                None => gradient,
            };
            adam.step_with(&mut sam.weights, &mut loss.backward(), 1e-3, mask, |_| None);
        }
        sam
    };
    let apart = |a: &Sam, b: &Sam| {
        // The keys' biases have true gradient 0, and Adam amplifies what rounding leaves of it.
        let keys = a.config.embed..2 * a.config.embed;
        let is_key = |name: &str, i: usize| {
            name.ends_with("k_proj.bias") || name.ends_with("attn.qkv.bias") && keys.contains(&i)
        };
        let mut most = 0f32;
        for ((name, x), (_, y)) in a.weights.iter().zip(b.weights.iter()) {
            let pairs = to_vec(x.value.clone()).into_iter().zip(to_vec(y.value.clone())).enumerate();
            let others = pairs.filter(|(i, _)| !is_key(name, *i));
            // What is no number counts as the most.
            most = others.map(|(_, (x, y))| (x - y).abs()).chain([most]).max_by(f32::total_cmp).unwrap();
        }
        most
    };
    let few = trained(&sparse, &unmasked);
    let masked = apart(&few, &trained(&dense, &masks));
    assert!(masked <= 1e-6, "{masked}");
    assert!(apart(&few, &trained(&dense, &unmasked)) > 1e-3, "without the masks it is another training");
}

/// Rows without their seconds.
fn rows(state: &State) -> Vec<(usize, usize, f64, f64)> {
    state.history.iter().map(|row| (row.epoch, row.step, row.lr, row.loss)).collect()
}

/// Stopped after every single step and resumed: the same rows, rates included, and the same steps.
#[test]
fn counted_steps_survive_a_stop_anywhere() {
    let folder = workplace();
    let at = folder.path();
    let train = |state: State, stop_at: usize| {
        let mut around = Stopper { folder: at.to_path_buf(), step: 0, stop_at, embeddings: None };
        train_decoder(at, Augment::Mild, state, &mut around)
    };
    let whole = train(State::default(), usize::MAX).unwrap();
    // 3 steps an epoch, the third cut short.
    assert_eq!(rows(&whole).iter().map(|row| row.1).collect::<Vec<_>>(), [3, 6, 8]);
    for stop_at in 1..=8 {
        let error = train(State::default(), stop_at).unwrap_err();
        assert_eq!(error.kind.exit_code(), 130, "{error}");
        let state = State::load(&at.join("state.safetensors")).unwrap();
        let resumed = train(state, usize::MAX).unwrap();
        assert_eq!(rows(&resumed), rows(&whole), "stopped after step {stop_at}");
    }
}

/// Where no weight of the encoder trains and pictures are not varied, each is embedded once. What the cache does not
/// hold is computed to the same bytes.
#[test]
fn a_frozen_encoder_embeds_each_picture_once() {
    let folder = workplace();
    let at = folder.path();
    let train = |limit: usize, stop_at: usize, augment: Augment| {
        let cache = Arc::new(Cache::new(limit));
        let embeddings = Some(cache.clone());
        let mut around = Stopper { folder: at.to_path_buf(), step: 0, stop_at, embeddings };
        let state = train_decoder(at, augment, State::default(), &mut around);
        (state, cache.counts())
    };
    let (whole, all) = train(usize::MAX, usize::MAX, Augment::Off);
    let whole = whole.unwrap();
    // Two epochs of five pictures and two batches of two: fourteen asked for. 48 × 9 × 9 numbers each.
    assert_eq!(all, Counts { computed: 5, found: 9, bytes: 5 * 4 * 48 * 81 });
    // Room for two of them.
    let (less, two) = train(2 * 4 * 48 * 81, usize::MAX, Augment::Off);
    assert!(two.computed > 5 && two.bytes == 2 * 4 * 48 * 81, "{two:?}");
    let (none, each) = train(0, usize::MAX, Augment::Off);
    assert_eq!(each, Counts { computed: 14, found: 0, bytes: 0 });
    for other in [less, none] {
        let other = other.unwrap();
        assert_eq!((rows(&other), &other.best), (rows(&whole), &whole.best));
    }
    // Pictures that are varied are not the same twice.
    assert_eq!(train(usize::MAX, usize::MAX, Augment::Mild).1, Counts::default());
    // Stopped and resumed with an empty cache.
    train(usize::MAX, 4, Augment::Off).0.unwrap_err();
    let state = State::load(&at.join("state.safetensors")).unwrap();
    let embeddings = Some(Arc::new(Cache::new(usize::MAX)));
    let mut around = Stopper { folder: at.to_path_buf(), step: 4, stop_at: usize::MAX, embeddings };
    let resumed = train_decoder(at, Augment::Off, state, &mut around).unwrap();
    assert_eq!((rows(&resumed), &resumed.best), (rows(&whole), &whole.best));
}

/// Side networks of other starts and rates over the same backbone: it runs once a picture for all of them, and each becomes
/// what it becomes alone.
#[test]
fn side_networks_share_one_pass_of_the_backbone_a_picture() {
    let folder = workplace();
    let at = folder.path();
    let train = |cache: &Arc<Cache>, (seed, lr): (u64, f64)| {
        let embeddings = Some(cache.clone());
        let mut around = Stopper { folder: at.to_path_buf(), step: 0, stop_at: usize::MAX, embeddings };
        train_planned(at, &planned("last", seed), lr, Augment::Off, State::default(), &mut around).unwrap()
    };
    let networks = [(1, 1e-3), (2, 1e-3), (2, 3e-3)];
    let cache = Arc::new(Cache::new(usize::MAX));
    let (together, seen) = squares(|| networks.map(|network| train(&cache, network)));
    // Two epochs of five pictures and two batches of two, for each. Of two blocks their inputs and the output.
    let kept = 5 * 4 * 3 * 81 * 52;
    assert_eq!(cache.counts(), Counts { computed: 5, found: 3 * 14 - 5, bytes: kept });
    // Counted where it happens, too: what backbone layers were given in all is what five pictures give them once.
    let device = segft::device::choose("cpu").unwrap().device;
    let (samples, sam) = (samples(at), checkpoint::random("small", common::small_config(), 3).into_sam(&device));
    let ((), once) = squares(|| {
        (0..5).for_each(|i| drop(sam.embed(batch::draw(&samples, &[i], Augment::Off, 0, 0).on(&device).pixels)));
    });
    let SamConfig { depth, .. } = common::small_config();
    let backbone = once.iter().filter(|(name, _)| name.contains(".blocks.") || name.contains(".patch_embed."));
    assert_eq!(backbone.clone().count(), 4 * depth + 1);
    for (name, once) in backbone {
        for (seen, once) in seen[name].iter().zip(once) {
            assert!((seen - once).abs() <= 1e-4 * once, "{name}: {seen} against {once}");
        }
    }
    // The neck comes behind the side network: it runs each time.
    let neck = "image_encoder.neck.0.weight";
    assert!(seen[neck].iter().sum::<f32>() > 5.0 * once[neck].iter().sum::<f32>());
    for (network, together) in networks.into_iter().zip(&together) {
        for limit in [0, kept / 2] {
            let alone = train(&Arc::new(Cache::new(limit)), network);
            assert_eq!((rows(&alone), &alone.best), (rows(together), &together.best), "{network:?}");
        }
    }
    assert!(together[0].best != together[1].best && together[1].best != together[2].best);
    // Varied pictures are new ones: nothing is kept.
    let cache = Arc::new(Cache::new(usize::MAX));
    let mut around =
        Stopper { folder: at.to_path_buf(), step: 0, stop_at: usize::MAX, embeddings: Some(cache.clone()) };
    train_planned(at, &planned("last", 1), 1e-3, Augment::Mild, State::default(), &mut around).unwrap();
    assert_eq!(cache.counts(), Counts::default());
}

/// Of several side networks over one backbone the best on validation is kept; each is saved and resumed by itself.
#[test]
fn several_side_networks_are_trained_and_the_best_is_kept() {
    let folder = workplace();
    let at = folder.path();
    let three = ["--method", "last", "--augment", "none", "--networks", "3"];
    let metrics = train(at, "three", &three);
    let networks = |run: &str| {
        let record: Value = serde_json::from_slice(&bytes(at, &format!("{run}/run.json"))).unwrap();
        record["networks"].as_array().cloned().unwrap_or_default()
    };
    let mdice = |network: &Value| network["validation_mDice"].as_f64().unwrap();
    let all = networks("three");
    assert_eq!(all.iter().map(|network| network["seed"].as_u64().unwrap()).collect::<Vec<_>>(), [5, 6, 7]);
    let kept: Vec<&Value> = all.iter().filter(|network| network["kept"] == true).collect();
    assert_eq!(kept.len(), 1);
    assert!(all.iter().all(|network| mdice(network) <= mdice(kept[0])), "{all:?}");
    assert_eq!(metrics["validation_mDice"].as_f64(), Some(mdice(kept[0])));
    // Its rows are the run's.
    let rows = history(at, "three");
    let validated = rows.iter().skip(1).map(|row| row.split(',').nth(4).unwrap().parse::<f64>().unwrap());
    assert_eq!(validated.max_by(f64::total_cmp), Some(mdice(kept[0])));
    // 12 training and 3 validation cases, once for all three.
    let log = String::from_utf8(bytes(at, "three/log.txt")).unwrap();
    assert!(log.contains(" 15 computed") && log.contains("network      3 of 3, from seed 7"), "{log}");
    // The first is the network that trains without others.
    let alone = train(at, "one", &three[..4]);
    assert_eq!(alone["validation_mDice"].as_f64(), Some(mdice(&all[0])));
    assert!(networks("one").is_empty());
    // As if stopped before the third began.
    let patch = bytes(at, "three/patch.safetensors");
    for file in ["metrics.json", "patch.safetensors", "checkpoint/state-2.safetensors"] {
        std::fs::remove_file(at.join("three").join(file)).unwrap();
    }
    ok(at, &["train", "--resume", "three"]);
    assert!(patch == bytes(at, "three/patch.safetensors") && rows == history(at, "three"));
    assert_eq!(networks("three").iter().map(mdice).collect::<Vec<_>>(), all.iter().map(mdice).collect::<Vec<_>>());
    // A plan knows of them.
    let arguments = [&["plan", "--dataset", "discs", "--test", "held-out", "--json"], &QUICK[..], &three].concat();
    let plan: Value = serde_json::from_str(&ok(at, &arguments)).unwrap();
    assert_eq!(plan["peak_rss_mib"], metrics["forecast"]["peak_rss_mib"]);
    for (more, word) in [
        (&["--networks", "2"][..], "--method gps"),
        (&["--networks", "0"], "at least 1"),
        (&["--networks", "2", "--method", "last"], "--augment mild"),
        (&["--minutes", "1", "--networks", "2", "--method", "last", "--augment", "none"], "--minutes"),
        (&["--log-alignment", "--networks", "2", "--method", "last", "--augment", "none"], "--log-alignment"),
    ] {
        let (code, error) = fails(at, &[&["train", "--dataset", "discs"][..], more].concat());
        assert!(code == 2 && error.contains("--networks") && error.contains(word), "{error}");
    }
}

#[test]
fn validation_cases_are_embedded_once_too() {
    let folder = workplace();
    let at = folder.path();
    let method = ["--method", "decoder", "--seed", "5"];
    train(at, "still", &[&method[..], &["--augment", "none"]].concat());
    train(at, "varied", &method);
    let said = |run: &str| {
        let log = String::from_utf8(bytes(at, &format!("{run}/log.txt"))).unwrap();
        log.lines().find(|line| line.contains(" computed (")).unwrap_or_else(|| panic!("{log}")).to_string()
    };
    // 12 training and 3 validation cases; two epochs, two validations and the choice of the threshold ask for 33, the
    // forecast of the time for two more.
    assert!(said("still").contains(" 15 computed") && said("still").contains("20 times"), "{}", said("still"));
    assert!(said("varied").contains(" 3 computed") && said("varied").contains("8 times"), "{}", said("varied"));
    // A side network is given the same outputs of the blocks each time.
    train(at, "side", &["--method", "last", "--seed", "5", "--augment", "none"]);
    assert!(said("side").contains(" 15 computed") && said("side").contains("20 times"), "{}", said("side"));
    // The encoder of GPS trains: nothing to keep.
    train(at, "gps", &["--augment", "none"]);
    let log = String::from_utf8(bytes(at, "gps/log.txt")).unwrap();
    assert!(!log.contains("embeddings"), "{log}");
}

/// Another picture and another mask in place of each of these cases: a bar instead of a disc.
fn bars(folder: &Path, cases: impl IntoIterator<Item = String>, variant: usize) {
    for (n, case) in cases.into_iter().enumerate() {
        let (w, h) = (48, 40);
        let inside = |i: usize| (n + variant..n + variant + 9).contains(&(i % w));
        let rgb = (0..w * h).flat_map(|i| [if inside(i) { 30 } else { 200 }, (i % 7) as u8, n as u8]).collect();
        let mask = (0..w * h).map(|i| u16::from(inside(i))).collect();
        let path = |kind: &str| folder.join(format!("{kind}/{case}.png"));
        picture::write_picture(&path("images"), &Picture { width: w, height: h, rgb }).unwrap();
        picture::write_mask(&path("masks"), &Labels { grid: Grid::picture(w, h), voxels: mask }).unwrap();
    }
}

/// Sides that the set gives itself, by a table or by its seed.
#[test]
fn cases_that_judge_do_not_reach_the_selection_on_whatever_side_they_stand() {
    let folder = workplace();
    let at = folder.path();
    let side = |i: usize| match i {
        0..3 => "test",
        3..6 => "val",
        _ => "train",
    };
    let row = |i: usize| format!("discs/images/a{i:03}.png,discs/masks/a{i:03}.png,{}\n", side(i));
    let table = format!("image,mask,split\n{}", (0..15).map(row).collect::<String>());
    std::fs::write(at.join("set.csv"), table).unwrap();
    for (set, variant) in [("set.csv", 0), ("discs", 20)] {
        let train = |out: &str| {
            ok(at, &[&["train", "--dataset", set, "--steps", "1", "--out", out], &QUICK[..]].concat());
            bytes(at, &format!("{out}/selection.safetensors"))
        };
        let [before, after] = ["before", "after"].map(|when| format!("{when}-{variant}"));
        let selection = train(&before);
        let record: Value = serde_json::from_slice(&bytes(at, &format!("{before}/run.json"))).unwrap();
        let ids = |side: &str| serde_json::from_value::<Vec<String>>(record["splits"][side].clone()).unwrap();
        let judging = [ids("validation"), ids("test")].concat();
        assert!(judging.len() >= 4 && ids("train").len() >= 9, "{record}");
        bars(&at.join("discs"), judging, variant);
        assert!(selection == train(&after), "{set}");
        let changed: Value = serde_json::from_slice(&bytes(at, &format!("{after}/run.json"))).unwrap();
        assert_eq!(record["splits"], changed["splits"], "{set}");
        assert_ne!(record["dataset"]["hash"], changed["dataset"]["hash"], "{set}");
    }
    // A training case does reach it.
    let select = |out: &str| {
        ok(at, &[&["select", "--dataset", "set.csv", "--out", out], &QUICK[..]].concat());
        bytes(at, out)
    };
    let before = select("before.safetensors");
    bars(&at.join("discs"), ["a006".to_string()], 30);
    assert!(before != select("after.safetensors"));
}

#[test]
fn validation_and_test_do_not_reach_the_selection() {
    let folder = workplace();
    let at = folder.path();
    discs(&at.join("val-a"), "v", 3, 7);
    discs(&at.join("val-b"), "v", 3, 40);
    discs(&at.join("other-test"), "t", 3, 60);
    bars(&at.join("val-b"), (0..3).map(|i| format!("v{i:03}")), 0);
    bars(&at.join("other-test"), (0..3).map(|i| format!("t{i:03}")), 20);
    train(at, "a", &["--val", "val-a"]);
    let mut arguments = vec!["train", "--dataset", "discs", "--test", "other-test", "--val", "val-b", "--out", "b"];
    arguments.extend(QUICK);
    ok(at, &arguments);
    assert!(bytes(at, "a/selection.safetensors") == bytes(at, "b/selection.safetensors"));
    // `select` writes the same file, and `train --selection` takes it.
    let mut arguments =
        vec!["select", "--dataset", "discs", "--val", "val-b", "--test", "other-test", "--out", "s.safetensors"];
    arguments.extend(QUICK);
    ok(at, &arguments);
    assert!(bytes(at, "a/selection.safetensors") == bytes(at, "s.safetensors"));
    train(at, "c", &["--val", "val-a", "--selection", "s.safetensors"]);
    assert_same_run(at, "a", "c");
    // The configuration tells the k of the file, not the default.
    let mut arguments = vec!["select", "--dataset", "discs", "--k", "2", "--out", "two.safetensors"];
    arguments.extend(QUICK);
    ok(at, &arguments);
    // Every neuron has more than two inputs.
    let n_values = |file: &str| {
        let facts: Value = serde_json::from_str(&ok(at, &["info", file, "--json"])).unwrap();
        facts["n_values"].as_u64().unwrap()
    };
    assert_eq!(n_values("two.safetensors"), 2 * n_values("s.safetensors"));
    train(at, "d", &["--selection", "two.safetensors"]);
    let config = String::from_utf8(bytes(at, "d/config.toml")).unwrap();
    assert!(config.lines().any(|line| line == "k = 2"), "{config}");
}

#[test]
fn a_selection_that_has_seen_what_judges_is_refused() {
    let folder = workplace();
    let at = folder.path();
    // Another seed divides the cases otherwise.
    ok(
        at,
        &[
            &["select", "--dataset", "discs", "--test", "held-out", "--out", "s.safetensors"],
            &QUICK[..],
            &["--seed", "1"],
        ]
        .concat(),
    );
    let train = ["train", "--dataset", "discs", "--test", "held-out", "--out", "a", "--selection", "s.safetensors"];
    let (code, error) = fails(at, &[&train[..], &QUICK].concat());
    assert!(code == 3 && error.contains("leak") && error.contains("s.safetensors"), "{error}");
    assert!(!at.join("a").exists());
    ok(at, &[&train[..], &QUICK, &["--allow-leak"]].concat());
    // What is on record is what the selection saw.
    let record: serde_json::Value = serde_json::from_slice(&bytes(at, "a/run.json")).unwrap();
    let seen = segft::tune::selection::Selection::load(&at.join("s.safetensors")).unwrap().cases;
    assert_eq!(record["selection_cases"], serde_json::json!(seen));
    assert_ne!(record["selection_cases"], record["splits"]["train"]);
}

#[test]
fn killed_and_resumed_ends_in_the_same_bytes() {
    let folder = workplace();
    let at = folder.path();
    let long = ["--epochs", "6", "--patience", "6"];
    train(at, "whole", &long);
    let mut arguments = vec!["train", "--dataset", "discs", "--test", "held-out", "--out", "cut"];
    arguments.extend(QUICK);
    arguments.extend(long);

    // Killed as soon as a state is saved, then again after resuming, then left alone.
    let state = at.join("cut/checkpoint/state.safetensors");
    let mut child = command(at, &arguments).spawn().unwrap();
    let wait = |since: Option<std::time::SystemTime>| {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(120) {
            let now = state.metadata().and_then(|m| m.modified()).ok();
            if now.is_some() && now != since {
                return now;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("no state was saved")
    };
    let first = wait(None);
    child.kill().unwrap();
    child.wait().unwrap();
    let mut child = command(at, &["train", "--resume", "cut"]).spawn().unwrap();
    wait(first);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!at.join("cut/metrics.json").exists(), "killed too late to mean anything");
    ok(at, &["train", "--resume", "cut", "--threads", "1"]);
    assert_same_run(at, "whole", "cut");
    assert_eq!(std::fs::read_to_string(at.join("runs/latest")).unwrap().trim(), "cut");
    let latest = at.join("runs/latest");
    for (run, named) in [("cut", "cut"), ("whole", "cut")] {
        let (code, error) = fails(at, &["train", "--resume", run]);
        assert_eq!((code, error.contains("complete")), (2, true), "{error}");
        assert_eq!(std::fs::read_to_string(&latest).unwrap().trim(), named, "an older run is not the newest");
    }
    // Killed between its last file and this one.
    std::fs::write(&latest, "whole\n").unwrap();
    fails(at, &["train", "--resume", "cut"]);
    assert_eq!(std::fs::read_to_string(&latest).unwrap().trim(), "cut");
}

/// Ends the program by a signal as soon as `now` says so; the answer is its exit code.
#[cfg(unix)]
fn ended(at: &Path, arguments: &[&str], signal: &str, now: impl Fn() -> bool) -> Option<i32> {
    let mut child = command(at, arguments).stderr(std::process::Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !now() {
        assert!(child.try_wait().unwrap().is_none(), "{arguments:?} has ended by itself");
        assert!(start.elapsed() < Duration::from_secs(120), "{arguments:?} does not come so far");
        std::thread::sleep(Duration::from_millis(1));
    }
    kill(&child, signal);
    child.wait().unwrap().code()
}

#[cfg(unix)]
fn kill(child: &std::process::Child, signal: &str) {
    std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
}

#[cfg(unix)]
#[test]
fn ended_in_any_part_and_resumed_ends_in_the_same_bytes() {
    let folder = workplace();
    let at = folder.path();
    // Long enough parts to be met: a score of five passes, and many cases to be tested.
    discs(&at.join("held-out"), "b", 24, 3);
    let more = ["--epochs", "3", "--score", "second-order-fd"];
    train(at, "whole", &more);
    for (run, signal, code, reached, not_yet) in [
        ("selecting", "-KILL", None, "run.json", "selection.safetensors"),
        ("training", "-TERM", Some(130), "history.csv", "patch.safetensors"),
        ("testing", "-KILL", None, "predictions/b000.png", "metrics.json"),
    ] {
        let mut arguments = vec!["train", "--dataset", "discs", "--test", "held-out", "--out", run];
        arguments.extend(QUICK);
        arguments.extend(more);
        assert_eq!(ended(at, &arguments, signal, || at.join(run).join(reached).is_file()), code, "{run}");
        assert!(!at.join(run).join(not_yet).exists(), "{run}: ended too late to mean anything");
        ok(at, &["train", "--resume", run]);
        assert_same_run(at, "whole", run);
        for case in 0..24 {
            let [whole, own] = ["whole", run].map(|run| bytes(at, &format!("{run}/predictions/b{case:03}.png")));
            assert!(whole == own, "{run}: b{case:03}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_second_interrupt_ends_at_once() {
    let folder = workplace();
    let at = folder.path();
    // One step, of all pictures at four times their size, takes seconds. A method that selects nothing begins with it.
    let mut arguments = vec!["train", "--dataset", "discs", "--test", "held-out", "--out", "cut"];
    arguments.extend(QUICK);
    arguments.extend(["--method", "bitfit", "--image-size", "288", "--batch", "12"]);
    let mut child = command(at, &arguments).stderr(std::process::Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !at.join("cut/run.json").exists() && start.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(1));
    }
    kill(&child, "-INT");
    std::thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none(), "the first one waits for the end of the step");
    kill(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!at.join("cut/checkpoint").exists(), "the step was ended, and saved");
}

#[cfg(unix)]
#[test]
fn an_interrupt_saves_and_says_130() {
    let folder = workplace();
    let at = folder.path();
    let mut arguments = vec!["train", "--dataset", "discs", "--test", "held-out", "--out", "cut"];
    arguments.extend(QUICK);
    arguments.extend(["--epochs", "400", "--patience", "400"]);
    let mut child = command(at, &arguments).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while !at.join("cut/history.csv").exists() && start.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = child.id().to_string();
    std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(at.join("cut/checkpoint/state.safetensors").is_file());
    // Half a metrics.json is no completed run.
    std::fs::write(at.join("cut/metrics.json"), "{").unwrap();
    let (code, error) = fails(at, &["score", "cut"]);
    assert!(code == 2 && error.contains("not complete"), "{error}");
    let (code, error) = fails(at, &["predict", "held-out/images", "--run", "cut"]);
    assert_eq!(code, 2, "a run without patch is no run to predict with: {error}");
}

/// While it selects, reads or tests, a signal is answered as in the loop.
#[cfg(unix)]
#[test]
fn an_interrupt_before_the_first_step_says_130_too() {
    let folder = workplace();
    let at = folder.path();
    let arguments = [
        &["train", "--dataset", "discs", "--test", "held-out", "--out", "cut"],
        &QUICK[..],
        &["--score", "second-order-fd"],
    ]
    .concat();
    let mut child = command(at, &arguments).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while !at.join("cut/run.json").exists() && start.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!at.join("cut/metrics.json").exists());
    ok(at, &["train", "--resume", "cut"]);
    // A command that has nothing to save ends at once, with the same code.
    let mut child = command(at, &["bench", "--model", "vit_t", "--steps", "100000"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// `segft train 2>&1 | head -1`: who listened has gone.
#[cfg(unix)]
#[test]
fn a_closed_stderr_stops_no_training() {
    let folder = workplace();
    let at = folder.path();
    let arguments =
        [&["train", "--dataset", "discs", "--test", "held-out", "--out", "a", "--json=a.json"], &QUICK[..]].concat();
    let mut child = command(at, &arguments).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(at.join("a/metrics.json").is_file() && at.join("a.json").is_file());
}

#[test]
fn a_locked_run_is_not_written_twice() {
    let folder = workplace();
    let at = folder.path();
    train(at, "one", &[]);
    std::fs::remove_file(at.join("one/metrics.json")).unwrap();
    let lock = std::fs::File::create(at.join("one/.lock")).unwrap();
    lock.lock().unwrap();
    let (code, error) = fails(at, &["train", "--resume", "one"]);
    assert_eq!((code, error.contains("another segft")), (1, true), "{error}");
}

#[test]
fn a_plan_tells_what_the_training_will_be_and_writes_nothing() {
    let folder = workplace();
    let at = folder.path();
    for more in [&[][..], &["--method", "decoder", "--augment", "none", "--steps", "7"]] {
        let arguments = [&["plan", "--dataset", "discs", "--test", "held-out", "--json"], &QUICK[..], more].concat();
        let there = || std::fs::read_dir(at).unwrap().count();
        let before = there();
        let plan: Value = serde_json::from_str(&ok(at, &arguments)).unwrap();
        assert_eq!(there(), before, "a plan writes nothing");
        let out = if more.is_empty() { "gps" } else { "decoder" };
        let metrics = train(at, out, more);
        for key in ["steps", "trained_parameters"] {
            assert_eq!(plan[key], metrics[key], "{key}");
        }
        assert_eq!(plan["peak_rss_mib"], metrics["forecast"]["peak_rss_mib"]);
        let seconds = |key: &str| plan["seconds_of"][key].as_f64().unwrap();
        let parts = seconds("selection") + seconds("training") + seconds("threshold") + seconds("test");
        assert!((plan["seconds"].as_f64().unwrap() - parts).abs() < 0.05, "{plan}");
        assert_eq!(seconds("selection") > 0.0, out == "gps");
        assert!(metrics["forecast"]["seconds"].as_f64().unwrap() > 0.0, "{metrics}");
    }
}

#[test]
fn a_square_resize_goes_with_the_patch() {
    let folder = workplace();
    let at = folder.path();
    let metrics = train(at, "square", &["--resize", "square"]);
    let patch = Patch::load(&at.join("square/patch.safetensors")).unwrap();
    assert_eq!(patch.about.preprocessing.resize, Resize::Square);
    ok(at, &["predict", "held-out/images", "--run", "square", "--out", "again"]);
    for case in ["b000", "b001", "b002", "b003"] {
        assert!(
            bytes(at, &format!("again/{case}.png")) == bytes(at, &format!("square/predictions/{case}.png")),
            "{case}"
        );
    }
    let scored: Value =
        serde_json::from_str(&ok(at, &["score", "--pred", "again", "--ref", "held-out/masks", "--json"])).unwrap();
    for key in ["mDice", "mIoU"] {
        assert!((metrics[key].as_f64().unwrap() - scored[key].as_f64().unwrap()).abs() < 1e-6, "{key}");
    }
    // The picture is not square: the other way, the same weights see something else.
    let mut other = patch.clone();
    other.about.preprocessing.resize = Resize::LongestSide;
    other.save(&at.join("square/patch.safetensors")).unwrap();
    ok(at, &["predict", "held-out/images", "--run", "square", "--prob", "--out", "longest"]);
    patch.save(&at.join("square/patch.safetensors")).unwrap();
    ok(at, &["predict", "held-out/images", "--run", "square", "--prob", "--out", "square-again"]);
    assert!(bytes(at, "longest/b000_prob.png") != bytes(at, "square-again/b000_prob.png"));
}

/// What is drawn on a terminal, which `script` stands in for.
#[cfg(target_os = "linux")]
#[test]
fn a_bar_tells_loss_mdice_and_time_left() {
    let folder = workplace();
    let at = folder.path();
    if !std::process::Command::new("script").arg("--version").output().is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: no `script` (util-linux) to stand in for a terminal");
        return;
    }
    let train = format!(
        "stty cols 100; exec {} train --dataset discs --test held-out --out run {} --epochs 4",
        env!("CARGO_BIN_EXE_segft"),
        QUICK.join(" ")
    );
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &train, "/dev/null"]).current_dir(at).env("SEGFT_CACHE", at.join("cache"));
    let output = script.stdin(std::process::Stdio::null()).output().unwrap();
    let drawn = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{drawn}");
    // A drawn bar: `training  ━━━ 7/12 loss 1.234 mDice 0.567 3s`, between codes that move the cursor.
    let is_number = |text: &str| text.parse::<f64>().is_ok();
    let whole = drawn.split(['\r', '\n', '\u{1b}']).any(|bar| {
        let words: Vec<&str> = bar.split_whitespace().collect();
        let after = |word: &str| words.iter().position(|w| *w == word).and_then(|at| words.get(at + 1));
        let left = words.last().and_then(|word| word.strip_suffix('s')).is_some_and(is_number);
        bar.contains("/12 ") && left && ["loss", "mDice"].iter().all(|w| after(w).is_some_and(|n| is_number(n)))
    });
    assert!(whole, "{drawn}");
}

#[test]
fn a_run_is_replayed_to_the_same_bytes() {
    let folder = workplace();
    let at = folder.path();
    train(at, "one", &[]);
    // A given selection is repeated from the run, wherever it came from.
    std::fs::copy(at.join("one/selection.safetensors"), at.join("given.safetensors")).unwrap();
    train(at, "given", &["--selection", "given.safetensors"]);
    std::fs::remove_file(at.join("given.safetensors")).unwrap();
    for (run, files) in [("one", 4), ("given", 3)] {
        let answer: Value = serde_json::from_str(&ok(at, &["replay", run, "--threads", "1", "--json"])).unwrap();
        assert_eq!((&answer["same"], &answer["mDice"]), (&Value::from(true), &answer["mDice_replayed"]), "{answer}");
        assert_eq!(answer["files"].as_object().unwrap().len(), files, "{answer}");
        assert!(!at.join(run).join("replay").exists(), "nothing new is kept");
    }
    assert_eq!(
        std::fs::read_to_string(at.join("runs/latest")).unwrap().trim(),
        "given",
        "a replay is not the newest run"
    );

    // One value of the patch is another: said, and the replay is kept.
    let mut patch = Patch::load(&at.join("one/patch.safetensors")).unwrap();
    if let Some(Delta::Sparse { new, .. } | Delta::Dense { new, .. }) = patch.deltas.values_mut().next() {
        new[0] += 1.0;
    }
    let whole = bytes(at, "one/patch.safetensors");
    patch.save(&at.join("one/patch.safetensors")).unwrap();
    let (code, error) = fails(at, &["replay", "one"]);
    assert!(code == 1 && error.contains("not the same: patch.safetensors"), "{error}");
    assert!(at.join("one/replay/patch.safetensors").is_file());
    // It is asked again, not remembered.
    std::fs::write(at.join("one/patch.safetensors"), whole).unwrap();
    std::fs::write(at.join("one/replay/history.csv"), "old").unwrap();
    ok(at, &["replay", "one"]);

    // What cannot be repeated is refused.
    let config = std::fs::read_to_string(at.join("given/config.toml")).unwrap();
    std::fs::write(at.join("given/config.toml"), format!("minutes = 1.0\n{config}")).unwrap();
    let (code, error) = fails(at, &["replay", "given"]);
    assert!(code == 2 && error.contains("--minutes"), "{error}");
    std::fs::remove_file(at.join("discs/images/a000.png")).unwrap();
    std::fs::remove_file(at.join("discs/masks/a000.png")).unwrap();
    let (code, error) = fails(at, &["replay", "one"]);
    assert!(code == 3 && error.contains("the cases are not those"), "{error}");
    std::fs::remove_file(at.join("one/metrics.json")).unwrap();
    let (code, error) = fails(at, &["replay", "one"]);
    assert!(code == 2 && error.contains("--resume"), "{error}");
}

#[test]
fn a_run_is_reported_as_one_page_that_needs_nothing_else() {
    let folder = workplace();
    let at = folder.path();
    let metrics = train(at, "one", &[]);
    let page = String::from_utf8(bytes(at, "one/report.html")).unwrap();
    assert_eq!(page.matches("data:image/jpeg;base64,").count(), 4, "a picture a test case");
    assert_eq!(page.matches("<svg").count(), 2, "loss and validation");
    assert!(page.contains(&format!("{:.3}", metrics["mDice"].as_f64().unwrap())));
    for outside in ["http:", "https:", "<script", "<link", "src=\"/", "url("] {
        // The namespace of SVG is a name, nothing that is loaded.
        assert!(!page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "").contains(outside), "{outside}");
    }
    for case in metrics["metric_per_case"].as_array().unwrap() {
        assert!(page.contains(case["case"].as_str().unwrap()));
        assert!(at.join(case["image_file"].as_str().unwrap()).is_file());
    }
    // The same run gives the same page, and that is nothing to replace.
    assert_eq!(ok(at, &["report"]).trim(), "one/report.html");
    assert_eq!(bytes(at, "one/report.html"), page.as_bytes());
    // A page without pictures does not take the place of one that has them.
    std::fs::rename(at.join("held-out/images"), at.join("held-out/away")).unwrap();
    let (code, error) = fails(at, &["report", "one"]);
    assert!(code == 2 && error.contains("already exists"), "{error}");
    let answer: Value = serde_json::from_str(&ok(at, &["report", "one", "--out", "bare.html", "--json"])).unwrap();
    assert_eq!((&answer["cases"], &answer["pictures"]), (&4.into(), &0.into()));
    let bare = String::from_utf8(bytes(at, "bare.html")).unwrap();
    assert!(bare.contains("4 pictures cannot be shown") && bare.contains("no such file"), "{bare}");
    // Nor does one of a run whose files are others by now; and a run that is complete is not touched by --resume.
    std::fs::rename(at.join("held-out/away"), at.join("held-out/images")).unwrap();
    let prediction = at.join(metrics["metric_per_case"][0]["prediction_file"].as_str().unwrap());
    let (width, height) = picture::picture_size(&prediction).unwrap();
    let grid = Grid::picture(width, height);
    picture::write_mask(&prediction, &Labels { voxels: vec![1; grid.len()], grid }).unwrap();
    let (code, error) = fails(at, &["report", "one", "--out", "one/metrics.json", "--force"]);
    assert!(code == 2 && error.contains(".html"), "{error}");
    let answer: Value =
        serde_json::from_str(&ok(at, &["report", "one", "--out", "other.html", "--threads", "1", "--json"])).unwrap();
    assert!(
        answer["pictures"] == 3 && answer["missing"][0].as_str().unwrap().contains("when it was scored"),
        "{answer}"
    );
    std::fs::remove_file(at.join("runs/latest")).unwrap();
    assert_eq!(fails(at, &["train", "--resume", "one"]).0, 2);
    assert!(at.join("runs/latest").is_file() && bytes(at, "one/report.html") == page.as_bytes());
    // What is not whole has nothing to report.
    std::fs::remove_file(at.join("one/metrics.json")).unwrap();
    let (code, error) = fails(at, &["report", "one"]);
    assert!(code == 2 && error.contains("not complete"), "{error}");
}

#[test]
fn without_decoder_and_biases_only_the_selection_trains() {
    let folder = workplace();
    let metrics = train(folder.path(), "bare", &["--no-decoder", "--no-biases"]);
    assert_eq!(metrics["trained_parameters"], metrics["selected_encoder_weights"]);
}

#[test]
fn a_loss_that_is_no_number_ends_with_1() {
    let folder = workplace();
    let at = folder.path();
    let mut tensors = checkpoint::read(&at.join("small.safetensors")).unwrap().tensors;
    tensors.get_mut("image_encoder.pos_embed").unwrap().data[7] = f32::NAN;
    checkpoint::write_safetensors(&at.join("nan.safetensors"), &tensors).unwrap();
    tensors.get_mut("image_encoder.pos_embed").unwrap().data[7] = 0.0;
    // Numbers whose sums are none.
    tensors.get_mut("image_encoder.patch_embed.proj.weight").unwrap().data.fill(f32::MAX);
    checkpoint::write_safetensors(&at.join("large.safetensors"), &tensors).unwrap();
    let train = ["train", "--dataset", "discs", "--test", "held-out", "--out", "run", "--method", "decoder"];
    let (code, error) = fails(at, &[&train[..], &QUICK, &["--model", "nan.safetensors"]].concat());
    assert!(code == 3 && error.contains("`image_encoder.pos_embed`: 1 of ") && !at.join("run").exists(), "{error}");
    let (code, error) = fails(at, &[&train[..], &QUICK, &["--model", "large.safetensors"]].concat());
    assert_eq!(code, 1, "{error}");
    for words in ["the loss is NaN", "step 1 of epoch 1", "lower --lr"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    for file in ["metrics.json", "patch.safetensors"] {
        assert!(!at.join("run").join(file).exists(), "{file}");
    }
}

/// A limit on the size of files stands in for the full disk: what is small can be written, what is large cannot.
#[cfg(unix)]
#[test]
fn a_full_disk_ends_with_1_and_resumes() {
    let folder = workplace();
    let at = folder.path();
    train(at, "whole", &[]);
    // 128 blocks are 64 KiB in some shells and 128 KiB in others.
    let size = |file: &str| bytes(at, &format!("whole/{file}")).len();
    assert!(size("selection.safetensors") < 64 << 10 && size("run.json") < 64 << 10);
    assert!(size("patch.safetensors") > 128 << 10 && size("checkpoint/state.safetensors") > 128 << 10);
    let fails_for_want_of_room = |arguments: &[&str], file: &str| {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 128; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_segft")]);
        shell.args(arguments).current_dir(at).env("SEGFT_CACHE", at.join("cache"));
        let output = shell.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(&format!("{file}: cannot write")), "{error}");
        for file in [file, "full/metrics.json"] {
            assert!(!at.join(file).exists(), "{file} is there");
        }
        for folder in ["full", "full/checkpoint"] {
            for entry in std::fs::read_dir(at.join(folder)).unwrap() {
                let name = entry.unwrap().file_name();
                assert!(!name.to_string_lossy().starts_with(".segft-"), "{folder}: {name:?} is left");
            }
        }
    };
    let train = ["train", "--dataset", "discs", "--test", "held-out", "--out", "full"];
    fails_for_want_of_room(&[&train[..], &QUICK].concat(), "full/checkpoint/state.safetensors");
    assert!(at.join("full/config.toml").is_file() && at.join("full/selection.safetensors").is_file());
    ok(at, &["train", "--resume", "full"]);
    assert_same_run(at, "whole", "full");
    // As if the disk had been full only after the last step.
    for file in ["full/metrics.json", "full/patch.safetensors"] {
        std::fs::remove_file(at.join(file)).unwrap();
    }
    fails_for_want_of_room(&["train", "--resume", "full"], "full/patch.safetensors");
    ok(at, &["train", "--resume", "full"]);
    assert_same_run(at, "whole", "full");
}

#[test]
fn without_names_the_newest_is_meant() {
    let folder = workplace();
    let at = folder.path();
    for seed in ["5", "6"] {
        let data = ["train", "--dataset", "discs", "--test", "held-out"];
        ok(at, &[&data[..], &QUICK, &["--seed", seed]].concat());
    }
    let metrics = || -> Value { serde_json::from_slice(&bytes(at, "runs/discs-gps-2/metrics.json")).unwrap() };
    let before = metrics();
    let scored: Value = serde_json::from_str(&ok(at, &["score", "--csv", "rows.csv", "--json"])).unwrap();
    assert_eq!(scored["mDice"], before["mDice"]);
    let cases = scored["metric_per_case"].as_array().unwrap();
    let of_two = |case: &Value| case["prediction_file"].as_str().unwrap().starts_with("runs/discs-gps-2/");
    assert!(cases.len() == 4 && cases.iter().all(of_two), "{scored}");
    let rows = String::from_utf8(bytes(at, "rows.csv")).unwrap();
    let foreground = rows.lines().filter(|row| row.split(',').nth(1) == Some("1"));
    let named: Vec<&str> = foreground.filter_map(|row| row.split(',').next()).collect();
    assert_eq!(named, ["b000", "b001", "b002", "b003"], "{rows}");

    // Of two that are not complete, the one started last goes on.
    let patch = bytes(at, "runs/discs-gps-2/patch.safetensors");
    for run in ["runs/discs-gps-1", "runs/discs-gps-2"] {
        std::fs::remove_file(at.join(run).join("metrics.json")).unwrap();
    }
    ok(at, &["train", "--resume"]);
    assert!(!at.join("runs/discs-gps-1/metrics.json").exists(), "the older one was taken");
    assert_eq!(metrics()["mDice"], before["mDice"]);
    assert!(patch == bytes(at, "runs/discs-gps-2/patch.safetensors"));
}
