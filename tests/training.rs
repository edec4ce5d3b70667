//! Properties of a training that state the product, on the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use common::{QUICK, command, discs, fails, ok, small_checkpoint};
use segft::method::{self, Plan, Settings};
use segft::model::kernel::inputs::squares;
use segft::model::sam::{Cache, Counts};
use segft::model::{SamConfig, checkpoint};
use segft::train::batch::Augment;
use segft::train::{Options, State, batch};
use serde_json::Value;
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
    around: &mut Stopper,
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
    assert_eq!(validated.fold(0.0, f64::max), mdice(kept[0]));
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

#[test]
fn validation_and_test_do_not_reach_the_selection() {
    let folder = workplace();
    let at = folder.path();
    discs(&at.join("val-a"), "v", 3, 7);
    discs(&at.join("val-b"), "v", 3, 40);
    discs(&at.join("other-test"), "t", 3, 60);
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
    let (code, error) = fails(at, &["train", "--resume", "cut"]);
    assert_eq!((code, error.contains("complete")), (2, true), "{error}");
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
fn without_decoder_and_biases_only_the_selection_trains() {
    let folder = workplace();
    let metrics = train(folder.path(), "bare", &["--no-decoder", "--no-biases"]);
    assert_eq!(metrics["trained_parameters"], metrics["selected_encoder_weights"]);
}
