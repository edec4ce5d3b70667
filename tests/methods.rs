//! Choosing entries by score, group and budget, and the methods made of it, on the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use burn::tensor::{Device, Tensor};
use common::{QUICK, discs, fails, ok, small_checkpoint};
use segft::error::Result;
use segft::image::{Grid, Labels, Picture};
use segft::method::{self, Change, GradientTable, Group, OtherScores, Plan, Rule, Score, Settings, Sum, Tuning};
use segft::model::weights::to_vec;
use segft::model::{Kind, Part, Sam, WeightSpec, checkpoint};
use segft::predict::{Preprocessing, prompt_free_logits};
use segft::train::contrast::{self, Contrast};
use segft::train::{Epoch, Options, State, Surroundings, Trained, Validation, batch, loss, schedule};
use segft::tune::course::{Course, Turn};
use segft::tune::optimizer::{self, Algorithm, Optimizer};
use segft::tune::patch::{self, Delta, Direction, Patch};
use segft::tune::scaling::{LrScaling, Scaling};
use segft::tune::{attach, gradients, proof};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Entries of the small SAM for k = 1: two blocks of (3·52 + 52 + 4·52 + 52), 52 of the patch embedding, 2 · 48 of the
/// neck.
const ONE_EACH: usize = 2 * 468 + 52 + 96;

/// A folder with the small SAM, a training set and a test set.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    small_checkpoint(&folder.path().join("small.safetensors"));
    discs(&folder.path().join("discs"), "a", 8, 0);
    discs(&folder.path().join("held-out"), "b", 2, 3);
    folder
}

/// `segft select` with these flags: what `segft info` says of the file, and the file.
fn select(folder: &Path, out: &str, more: &[&str]) -> (Value, Vec<u8>) {
    let mut arguments = vec!["select", "--dataset", "discs", "--json", "--out", out, "--force"];
    arguments.extend(QUICK);
    arguments.extend(more);
    (serde_json::from_str(&ok(folder, &arguments)).unwrap(), std::fs::read(folder.join(out)).unwrap())
}

fn train(folder: &Path, out: &str, more: &[&str]) -> Value {
    let mut arguments = vec!["train", "--dataset", "discs", "--test", "held-out", "--json", "--out", out];
    arguments.extend(QUICK);
    arguments.extend(more);
    serde_json::from_str(&ok(folder, &arguments)).unwrap()
}

/// Lines of a run's config.toml that hold these keys.
fn configured(folder: &Path, run: &str, keys: &[&str]) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join(run).join("config.toml")).unwrap();
    let wanted = |line: &&str| keys.iter().any(|key| line.split(" = ").next() == Some(key));
    text.lines().filter(wanted).map(String::from).collect()
}

#[test]
fn every_score_in_every_group_is_chosen_at_the_same_count() {
    let folder = workplace();
    let at = folder.path();
    let mut seen = Vec::new();
    for score in [
        "gradient",
        "abs-gradient",
        "fisher",
        "snr",
        "second-order",
        "second-order-fd",
        "gradient-weight",
        "activation-weight",
        "largest",
        "smallest",
        "random",
    ] {
        for group in ["neuron", "tensor", "global"] {
            let (facts, bytes) = select(at, "s.safetensors", &["--score", score, "--group", group]);
            assert_eq!(facts["n_values"], ONE_EACH, "{score} {group}");
            assert_eq!((facts["score"].as_str(), facts["group"].as_str()), (Some(score), Some(group)));
            let looked_at = if ["largest", "smallest", "random"].contains(&score) { 0 } else { 6 };
            assert_eq!(facts["n_cases"], looked_at, "{score}");
            seen.push(bytes);
        }
    }
    // No two of them choose the same.
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), all);
    let (facts, bytes) = select(at, "s.safetensors", &["--score", "random"]);
    assert_eq!((facts["seed"].as_u64(), facts["k"].as_u64()), (Some(5), Some(1)));
    assert!(bytes == select(at, "t.safetensors", &["--score", "random", "--threads", "1"]).1);
    assert!(bytes != select(at, "t.safetensors", &["--score", "random", "--seed", "6"]).1);
    for (flags, count) in [(["--budget", "100"], 100), (["--ratio", "1"], 4 * 52 * 52 * 6)] {
        let facts = select(at, "s.safetensors", &flags).0;
        assert!(facts["n_values"].as_u64().unwrap() >= count && facts["k"].is_null(), "{facts}");
    }
}

#[test]
fn a_run_and_its_selection_tell_how_entries_were_chosen() {
    let folder = workplace();
    let at = folder.path();
    let metrics = train(at, "one", &["--score", "fisher", "--group", "global", "--budget", "77", "--no-decoder"]);
    assert_eq!(
        (metrics["selected_encoder_weights"].as_u64(), &metrics["frozen_weights_unchanged"]),
        (Some(77), &Value::Bool(true))
    );
    let keys = ["k", "ratio", "budget", "score", "group"];
    assert_eq!(configured(at, "one", &keys), ["budget = 77", "score = \"fisher\"", "group = \"global\""]);
    let made = "one/selection.safetensors";
    let facts: Value = serde_json::from_str(&ok(at, &["info", made, "--json"])).unwrap();
    assert_eq!(
        (facts["budget"].as_u64(), facts["score"].as_str(), facts["group"].as_str()),
        (Some(77), Some("fisher"), Some("global"))
    );
    // Taken up again by a training that says nothing of it; one that says otherwise is refused.
    train(at, "again", &["--selection", made, "--no-decoder"]);
    assert_eq!(configured(at, "again", &keys), ["budget = 77", "score = \"fisher\"", "group = \"global\""]);
    for file in ["selection.safetensors", "patch.safetensors"] {
        assert!(
            std::fs::read(at.join("one").join(file)).unwrap() == std::fs::read(at.join("again").join(file)).unwrap(),
            "{file}"
        );
    }
    let mut arguments = vec!["train", "--dataset", "discs", "--selection", made, "--score", "snr"];
    arguments.extend(QUICK);
    let (code, error) = fails(at, &arguments);
    assert!(code == 2 && error.contains("--score snr") && error.contains("--score fisher"), "{error}");
    assert_eq!(configured(at, "one", &["lr"]), configured(at, "again", &["lr"]));
}

#[test]
fn misfits_name_the_flags() {
    let folder = workplace();
    let at = folder.path();
    for (arguments, words) in [
        (&["--k", "2", "--ratio", "0.1"][..], &["--k", "--ratio"][..]),
        (&["--k", "2", "--budget", "9"], &["--k", "--budget"]),
        (&["--set", "ratio=0.1", "--budget", "9"], &["--ratio", "--budget"]),
        (&["--ratio", "0"], &["--ratio"]),
        (&["--ratio", "1.5"], &["--ratio"]),
        (&["--k", "0"], &["--k"]),
        (&["--budget", "0"], &["--budget"]),
        (&["--budget", "99999999"], &["--budget 99999999"]),
        (&["--ratio", "1e-9"], &["none"]),
        (&["--score", "fischer"], &["--score", "`fisher`"]),
        (&["--group", "globl"], &["--group", "`global`"]),
        (&["--method", "full", "--k", "2"], &["--k", "--method full"]),
        (&["--method", "lora", "--k", "2"], &["--k", "--method lora"]),
        (&["--method", "lora", "--rank", "0"], &["--rank"]),
        (&["--method", "ssf", "--rank", "2"], &["--rank", "--method ssf"]),
        (&["--method", "decoder", "--score", "fisher"], &["--score", "--method decoder"]),
        (&["--method", "decoder", "--selection", "x.safetensors"], &["--selection", "--method decoder"]),
        (&["--method", "bitfit", "--no-biases"], &["--no-biases", "--method bitfit", "would be another"]),
        (&["--method", "neuroada", "--set", "biases=false"], &["--no-biases", "--method neuroada", "leave it out"]),
    ] {
        let mut all = vec!["train", "--dataset", "discs", "--model", "small.safetensors", "--out", "none"];
        all.extend(arguments);
        let (code, error) = fails(at, &all);
        assert_eq!(code, 2, "{arguments:?}: {error}");
        assert!(words.iter().all(|word| error.contains(word)), "{arguments:?}: {error}");
    }
    // Methods that choose nothing may stand beside those that do.
    let beside = ["compare", "--dataset", "discs", "--methods", "full,gps", "--budget", "9", "--report"];
    ok(at, &[&beside[..], &["--model", "small.safetensors"]].concat());
    // Without biases: those that train none anyway may stand beside, those that must train them not.
    let without = |methods| {
        [
            "compare",
            "--dataset",
            "discs",
            "--model",
            "small.safetensors",
            "--no-biases",
            "--report",
            "--methods",
            methods,
        ]
    };
    ok(at, &without("gps,neuroada,decoder"));
    let (code, error) = fails(at, &without("gps,full"));
    assert!(code == 2 && error.contains("--no-biases") && error.contains("--method full"), "{error}");
}

#[test]
fn every_method_trains_what_it_says_and_keeps_the_rest() {
    let folder = workplace();
    let at = folder.path();
    let help = ok(at, &["train", "--help"]);
    // Biases of two blocks (three, one, four and one width) and of the patch embedding; two norms a block and two of
    // the neck.
    let (biases, norms) = (2 * 9 * 52 + 52, 2 * 2 * 52 + 2 * 48);
    let outside = train(at, "outside", &["--method", "decoder"])["trained_parameters"].as_u64().unwrap();
    for (name, ..) in method::methods() {
        assert!(help.contains(name), "--help does not name {name}");
        let metrics = train(at, name, &["--method", name]);
        let count = |key: &str| metrics[key].as_u64().unwrap() as usize;
        let (selected, trained) = (count("selected_encoder_weights"), count("trained_encoder_parameters"));
        let want = match *name {
            "full" => (0, count("encoder_parameters")),
            "decoder" => (0, 0),
            "bitfit" => (0, biases + norms),
            "norm" => (0, 2 * norms),
            "neuroada" | "sara" | "sara-one-stage" => (ONE_EACH, ONE_EACH),
            // Two blocks of width 52: 4 widths of rank 4, 16 widths of rank 4; 22 widths, 2 of the patch embedding and 4
            // of the neck's.
            "lora" => (0, 2 * 4 * 52 * 4),
            "lora-all" => (0, 2 * 16 * 52 * 4),
            "ssf" => (0, 2 * 22 * 52 + 2 * 52 + 4 * 48),
            "adapter" => (0, 2 * (2 * 52 * 32 + 32 + 52)),
            // One wide: of patches of 8 pixels, of 52 channels, up to them; a number and a bias a block.
            "sam-adapter" => (0, 3 * 64 + 1 + 52 + 1 + 2 * 52 + 2 * 2),
            "vpt" => (0, 2 * 50 * 52),
            "e2vpt" => (0, 2 * 15 * 52),
            "last" => (0, 2 * 4 * 16 * 52),
            _ => (ONE_EACH, ONE_EACH + biases),
        };
        assert_eq!((selected, trained), want, "{name}");
        assert_eq!(count("trained_parameters"), trained + outside as usize, "{name}");
        assert_eq!(metrics["frozen_weights_unchanged"], true, "{name}");
        assert_eq!(at.join(name).join("selection.safetensors").is_file(), selected > 0, "{name}");
    }
    let patch = |run: &str| std::fs::read(at.join(run).join("patch.safetensors")).unwrap();
    assert!(patch("gps") != patch("random"));
    // A method named after its score is not to be had with another.
    for name in ["magnitude", "random", "fisher", "second-order", "sara", "sara-one-stage"] {
        let (code, error) = fails(at, &["train", "--method", name, "--score", "gradient"]);
        assert!(code == 2 && error.contains("--score gradient") && error.contains(name), "{error}");
    }
    let mut again = vec!["train", "--method", "neuroada", "--score", "smallest", "--out", "smallest"];
    again.extend(["--dataset", "discs", "--test", "held-out"]);
    ok(at, &[&again[..], &QUICK].concat());
    assert!(patch("neuroada") != patch("smallest"));
}

/// The head of a method's file names its paper, whether it merges and what it costs, and counts what its plan trains of
/// ViT-B and of `tiny`, with one entry a neuron: in the encoder, or, where nothing of that trains, in the decoder.
#[test]
fn every_methods_file_says_what_it_trains() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/method");
    for (name, _, method) in method::methods() {
        // A variant stands in the file of the method that it varies.
        let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
        let files = ends.map(|end| folder.join(format!("{}.rs", name[..end].replace('-', "_"))));
        let text = files.rev().find_map(|file| std::fs::read_to_string(file).ok()).unwrap();
        let head: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim).collect();
        let head = head.join(" ");
        for word in ["arXiv", "ergeable", "inference", "training cases", "`tiny`"] {
            assert!(head.contains(word), "{name} does not say `{word}`");
        }
        for size in ["sam_vit_b", "tiny"] {
            let specs = segft::model::SamConfig::named(size).unwrap().specs();
            let counts = method::counts(&specs, &method::plan(*method, &specs, None, &Settings::default()));
            let neurons = specs.iter().filter(|spec| method::selectable(spec)).map(|spec| spec.matrix().0);
            let chosen = if method.rule().is_some() { neurons.sum() } else { 0 };
            let n = if counts.encoder + chosen > 0 { counts.encoder + chosen } else { counts.trained };
            assert!(head.contains(&grouped(n)), "{name} trains {} of {size}", grouped(n));
        }
    }
}

/// A number as people write it: `89,670,912`.
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let parts: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|part| std::str::from_utf8(part).unwrap()).collect();
    parts.join(",")
}

#[test]
fn a_contrastive_selection_asks_nothing_of_the_decoder_and_is_recorded() {
    let folder = workplace();
    let at = folder.path();
    let mut other = checkpoint::random("small", common::small_config(), 3);
    for (name, tensor) in &mut other.tensors {
        if !name.starts_with("image_encoder") {
            tensor.data.iter_mut().for_each(|v| *v = 0.5 - *v);
        }
    }
    checkpoint::write_safetensors(&at.join("other.safetensors"), &other.tensors).unwrap();
    let contrastive = ["--selection-loss", "contrastive"];
    let overlap = |loss: &str| {
        for (model, out) in [("small.safetensors", "a.safetensors"), ("other.safetensors", "b.safetensors")] {
            select(at, out, &["--selection-loss", loss, "--model", model]);
        }
        let diff = ok(at, &["select", "--diff", "a.safetensors", "b.safetensors", "--json"]);
        serde_json::from_str::<Value>(&diff).unwrap()["jaccard"].as_f64().unwrap()
    };
    assert_eq!(overlap("contrastive"), 1.0);
    assert!(overlap("task") < 1.0);
    let (facts, bytes) = select(at, "s.safetensors", &contrastive);
    assert_eq!((facts["selection_loss"].as_str(), facts["n_cases"].as_u64()), (Some("contrastive"), Some(6)));
    assert!(bytes == select(at, "t.safetensors", &[&contrastive[..], &["--threads", "1"]].concat()).1);
    assert!(bytes != select(at, "t.safetensors", &[]).1);
    for score in ["largest", "activation-weight"] {
        let without = select(at, "t.safetensors", &["--score", score]).0;
        assert!(without["selection_loss"].is_null(), "{without}");
    }

    // A training takes the very same, a plan and a comparison take the flag, and what reads no gradients refuses it.
    train(at, "run", &contrastive);
    assert_eq!(configured(at, "run", &["selection_loss"]), ["selection_loss = \"contrastive\""]);
    assert!(bytes == std::fs::read(at.join("run/selection.safetensors")).unwrap());
    train(at, "again", &["--selection", "s.safetensors"]);
    assert_eq!(configured(at, "again", &["selection_loss"]), ["selection_loss = \"contrastive\""]);
    let with = |command: &'static str, more: &[&'static str]| {
        let mut all = vec![command, "--dataset", "discs", "--model", "small.safetensors", "--selection-loss"];
        all.extend(more);
        all
    };
    ok(at, &with("plan", &["contrastive"]));
    ok(at, &with("compare", &["contrastive", "--methods", "gps,full,magnitude,gps:selection_loss=task", "--report"]));
    for (more, words) in [
        (&["task", "--selection", "s.safetensors"][..], &["--selection-loss task", "--selection-loss contrastive"][..]),
        (&["contrastive", "--method", "magnitude"], &["--selection-loss", "`largest`"]),
        (&["contrastive", "--score", "activation-weight"], &["--selection-loss", "`activation-weight`"]),
        (&["contrastive", "--method", "full"], &["--selection-loss", "--method full"]),
        (&["contrstive"], &["--selection-loss", "`contrastive`"]),
    ] {
        let (code, error) = fails(at, &with("train", more));
        assert_eq!(code, 2, "{more:?}: {error}");
        assert!(words.iter().all(|word| error.contains(word)), "{more:?}: {error}");
    }
    // One picture has no other to be set against.
    discs(&at.join("one"), "a", 1, 0);
    discs(&at.join("val"), "c", 1, 7);
    let one = ["select", "--dataset", "one", "--val", "val", "--test", "held-out"];
    let (code, error) = fails(at, &[&one[..], &contrastive, &["--model", "small.safetensors"]].concat());
    assert!(code == 3 && error.contains("--selection-loss contrastive"), "{error}");
}

#[test]
fn stability_compares_selections_from_halves_of_the_training_cases() {
    let folder = workplace();
    let at = folder.path();
    let base = ["select", "--dataset", "discs", "--test", "held-out", "--stability"];
    let stability = |more: &[&str]| {
        let all = [&base[..], &["3", "--json"], &QUICK, more].concat();
        serde_json::from_str::<Value>(&ok(at, &all)).unwrap()
    };
    let found = stability(&[]);
    // Of eight cases six train; three halves of three.
    let counts = ["n_cases", "halves", "cases_per_half"].map(|key| found[key].as_u64());
    assert_eq!(counts, [Some(6), Some(3), Some(3)], "{found}");
    let rows = found["agreements"].as_array().unwrap();
    let kinds: Vec<&str> = rows.iter().map(|row| row["layers"].as_str().unwrap()).collect();
    assert_eq!(kinds.last(), Some(&"all"));
    for kind in ["attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2", "patch_embed", "neck"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap();
    let all = rows.last().unwrap();
    assert_eq!(number(all, "n_values"), ONE_EACH as f64);
    assert!(number(all, "overlap") > number(all, "overlap_by_chance") && number(all, "overlap") < 1.0, "{all}");
    // One entry a neuron: by chance one in the fan-in.
    let qkv = &rows[kinds.iter().position(|kind| *kind == "attn.qkv").unwrap()];
    assert!((number(qkv, "overlap_by_chance") - 1.0 / 52.0).abs() < 1e-9, "{qkv}");
    assert_eq!(found, stability(&["--threads", "1"]));
    assert_ne!(found, stability(&["--seed", "6"]));
    assert!(ok(at, &[&base[..], &["2"], &QUICK].concat()).contains("attn.qkv"));
    // Validation and test cases are not looked at, and nothing is written.
    discs(&at.join("held-out"), "b", 2, 9);
    assert_eq!(found, stability(&[]));
    assert!(!at.join("selection.safetensors").exists());
    for (more, words) in [
        (&["1"][..], &["--stability 1"][..]),
        (&["2", "--score", "largest"], &["--stability", "`largest`"]),
        (&["2", "--method", "full"], &["`full`"]),
        (&["2", "--out", "x"], &["--stability", "--out"]),
    ] {
        let (code, error) = fails(at, &[&base[..], more, &QUICK].concat());
        assert!(code == 2 && words.iter().all(|word| error.contains(word)), "{more:?}: {error}");
    }
}

#[test]
fn the_contrastive_gradient_of_a_batch_is_the_sum_of_its_pictures_parts() {
    let (device, sam) = (Device::flex(), small_sam());
    let preprocessing = Preprocessing::new(72);
    let samples: Vec<batch::Sample> = (0..4)
        .map(|i| {
            // The last has no foreground.
            let inside = |at: usize| i < 3 && (at % 30).abs_diff(8 + 4 * i) < 6 && (at / 30).abs_diff(12) < 5 + i;
            let rgb = (0..3 * 30 * 24).map(|at| if inside(at / 3) { 200 } else { (at * (i + 7) % 90) as u8 }).collect();
            let voxels = (0..30 * 24).map(|at| u16::from(inside(at))).collect();
            let picture = Picture { width: 30, height: 24, rgb };
            batch::sample(&picture, &Labels { grid: Grid::picture(30, 24), voxels }, &preprocessing).unwrap()
        })
        .collect();
    let of_all = |sam: &Sam, ()| {
        let one = |i: usize| {
            let batch = batch::batch(&samples, &[i], batch::Augment::Off, 0, 0, &device);
            contrast::features(sam.embed(batch.pixels).coarse, batch.target, batch.valid)
        };
        let (features, regions): (Vec<_>, Vec<_>) = (0..4).map(one).unzip();
        assert_eq!(regions.concat().len(), 7);
        Ok(contrast::loss(Tensor::cat(features, 0), &regions.concat()))
    };
    let sum = |(_, mut sums): (usize, BTreeMap<Sum, GradientTable>)| sums.remove(&Sum::Signed).unwrap();
    let whole = sum(gradients::accumulate(&sam, &[Sum::Signed], std::iter::once(Ok(())), of_all).unwrap());
    let mut contrast = Contrast::new(&samples, &device);
    let part = |sam: &Sam, i| Ok(contrast.part(sam, i));
    let parts = sum(gradients::accumulate(&sam, &[Sum::Signed], (0..4).map(Ok), part).unwrap());
    assert_eq!(whole.len(), sam.config.specs().iter().filter(|s| method::selectable(s)).count());
    for (name, whole) in &whole {
        let largest = whole.iter().fold(0f32, |most, g| most.max(g.abs()));
        assert!(largest > 0.0, "{name}");
        for (a, b) in whole.iter().zip(&parts[name]) {
            assert!((a - b).abs() <= 1e-3 * largest, "{name}: {a} against {b}");
        }
    }
}

/// As NeuroAda, but the chosen values train as they are: what it must equal.
struct Sparse;

impl Tuning for Sparse {
    fn rule(&self) -> Option<Rule> {
        method::find("neuroada").unwrap().rule()
    }

    fn encoder(&self, _: &WeightSpec, _: &Settings) -> Change {
        Change::Frozen
    }

    fn lr(&self) -> f64 {
        1e-3
    }
}

fn small_sam() -> Sam {
    checkpoint::random("small", common::small_config(), 3).into_sam(&Device::flex())
}

fn planned(method: &dyn Tuning, sam: &Sam, settings: &Settings) -> Plan {
    let none = std::iter::empty::<Result<()>>();
    let chosen =
        gradients::choose(method, sam, settings, 0, none, |_, ()| Ok(Tensor::zeros([1], &Device::flex()))).unwrap();
    method::plan(method, &sam.config.specs(), chosen.as_ref(), settings)
}

#[test]
fn neuroada_starts_at_zero_and_is_the_sparse_form_when_merged() {
    let device = Device::flex();
    let pixels = Tensor::<4>::ones([1, 3, 72, 72], &device);
    let target = Tensor::<4>::ones([1, 1, 72, 72], &device);
    let logits = |sam: &Sam| to_vec(prompt_free_logits(sam, pixels.clone()).without_autodiff());
    let untouched = logits(&small_sam());
    let trained = |method: &dyn Tuning| {
        let mut sam = small_sam();
        let plan = planned(method, &sam, &Settings::default());
        let old = patch::capture(&sam.weights, &plan);
        attach(&mut sam, &plan, &device);
        let starts: Vec<f32> =
            sam.weights.iter().filter_map(|(_, w)| w.chosen.as_ref()).flat_map(|c| to_vec(c.values.clone())).collect();
        assert!(logits(&sam) == untouched, "attached, it computes what the base does, to the bit");
        let mut adam = Optimizer::adam(1e-8);
        for _ in 0..5 {
            let loss = loss::loss(prompt_free_logits(&sam, pixels.clone()), target.clone(), target.clone()).total();
            adam.step(&mut sam.weights, &mut loss.backward(), 1e-3);
        }
        (patch::changes(&old, &sam.weights, &plan), logits(&sam), starts)
    };
    let (bypass, live, starts) = trained(method::find("neuroada").unwrap());
    assert_eq!(starts.len(), ONE_EACH);
    assert!(starts.iter().all(|delta| *delta == 0.0));
    // Merged into the base, the network is the one that was trained.
    let mut base = checkpoint::random("small", common::small_config(), 3);
    for (name, delta) in &bypass {
        delta.turn(&mut base.tensors.get_mut(name).unwrap().data, Direction::Apply);
    }
    let merged = logits(&base.into_sam(&device));
    assert!(merged != untouched);
    assert!(merged.iter().zip(&live).all(|(a, b)| (a - b).abs() <= 1e-5), "merged and unmerged differ");
    // And it is the network that training the values themselves leads to.
    let (sparse, direct, starts) = trained(&Sparse);
    assert!(starts.iter().any(|value| *value != 0.0));
    assert!(direct.iter().zip(&live).all(|(a, b)| (a - b).abs() <= 1e-4), "sparse and bypass differ");
    assert_eq!(sparse.keys().collect::<Vec<_>>(), bypass.keys().collect::<Vec<_>>());
}

/// The six training cases of `workplace`.
fn samples(folder: &Path) -> Vec<batch::Sample> {
    let request =
        segft::data::Request { dataset: folder.join("discs").display().to_string(), ..segft::data::Request::default() };
    let splits = segft::data::prepare(&request).unwrap();
    batch::load(&splits.train, splits.dataset.form, &segft::predict::Preprocessing::new(72)).unwrap()
}

/// So many steps of two cases: three an epoch.
fn options(steps: usize) -> Options {
    Options {
        epochs: usize::MAX,
        batch: 2,
        lr: 2e-3,
        optimizer: segft::tune::optimizer::Settings::default(),
        seed: 5,
        augment: batch::Augment::Off,
        patience: usize::MAX,
        minutes: None,
        steps: Some(steps),
        save_every: 1,
    }
}

/// A method of one's own: smallest weights of every tensor, position tables as a whole.
struct Toy;

impl Tuning for Toy {
    fn rule(&self) -> Option<Rule> {
        Some(Rule { score: Score::Smallest, group: Group::Tensor, other_scores: OtherScores::Taken })
    }

    fn encoder(&self, spec: &WeightSpec, _: &Settings) -> Change {
        if spec.kind == Kind::Position { Change::Dense } else { Change::Frozen }
    }

    fn lr(&self) -> f64 {
        1e-3
    }
}

/// Surroundings that neither save nor stop.
struct Alone;

impl Surroundings for Alone {
    fn validate(&mut self, _: &Sam) -> Result<Validation> {
        Ok(Validation { mdice: 0.5, miou: 0.5 })
    }
    fn save(&mut self, _: &State) -> Result<()> {
        Ok(())
    }
    fn stopped(&self) -> bool {
        false
    }
    fn stepped(&mut self, _: usize, _: usize, _: f64) {}
    fn epoch(&mut self, _: &Epoch, _: bool, _: f64) {}
}

/// The seam: what another method needs is one file with one implementation, and nothing else changes.
#[test]
fn a_method_of_ones_own_runs_through_plan_attach_train_and_patch() {
    let folder = workplace();
    let samples = samples(folder.path());
    let options = Options { lr: Toy.lr(), ..options(3) };
    let device = Device::flex();
    let base = checkpoint::random("small", common::small_config(), 3);
    let before = proof::fingerprints(&base.tensors);
    let mut sam = base.into_sam(&device);
    let plan = planned(&Toy, &sam, &Settings::default());
    let old = patch::capture(&sam.weights, &plan);
    attach(&mut sam, &plan, &device);
    segft::train::run(&mut sam, &samples, &options, State::default(), &mut Alone, &device).unwrap();
    let deltas = patch::changes(&old, &sam.weights, &plan);
    let proof = proof::compare(&before, &sam.weights, &deltas);
    assert!(proof.moved.is_empty(), "{:?}", proof.moved);
    let specs = sam.config.specs();
    assert_eq!(proof.trained_values, method::counts(&specs, &plan).trained);
    let positions: Vec<_> = specs.iter().filter(|s| s.part == Part::ImageEncoder && s.kind == Kind::Position).collect();
    assert!(!positions.is_empty());
    for spec in positions {
        let moved = sam.weights.get(&spec.name).unwrap().to_host().data;
        assert!(moved != old[&spec.name], "{} did not train", spec.name);
    }
}

/// A course that is watched, saved at every step, and may be stopped.
struct Watched<'a> {
    course: Course<'a>,
    state: PathBuf,
    stop_at: usize,
    step: usize,
    /// What trains on, and the values of all chosen entries at that time.
    half: Option<(Trained, Trained)>,
}

/// Values of all chosen entries.
fn chosen_values(sam: &Sam) -> Trained {
    let chosen = sam.weights.iter().filter_map(|(name, w)| Some((name, w, w.chosen.as_ref()?)));
    chosen.map(|(name, w, c)| (name.clone(), to_vec(w.value.clone().select(0, c.flat.clone())))).collect()
}

impl Surroundings for Watched<'_> {
    /// Always better than before, so that the last values are the best.
    fn validate(&mut self, _: &Sam) -> Result<Validation> {
        Ok(Validation { mdice: self.step as f64, miou: 0.0 })
    }
    fn save(&mut self, state: &State) -> Result<()> {
        state.save(&self.state)
    }
    fn penalty(&mut self, sam: &Sam, step: usize, kept: Option<&Trained>) -> Option<(String, Vec<f32>)> {
        self.course.penalty(sam, step, kept)
    }
    fn half_way(&mut self, sam: &Sam, losses: &mut dyn Iterator<Item = Tensor<1>>) -> Option<Turn> {
        let turn = self.course.half_way(sam, losses)?;
        self.half = Some((turn.kept.clone(), chosen_values(sam)));
        Some(turn)
    }
    fn stopped(&self) -> bool {
        self.step == self.stop_at
    }
    fn stepped(&mut self, step: usize, _: usize, _: f64) {
        self.step = step;
    }
    fn epoch(&mut self, _: &Epoch, _: bool, _: f64) {}
}

/// A training of the chosen entries of a plan, in a folder with training cases.
struct Watch<'a> {
    folder: &'a Path,
    samples: Vec<batch::Sample>,
    options: Options,
    plan: Plan,
    start: Trained,
}

impl Watch<'_> {
    /// The fifth part of the small SAM that SaRA takes.
    fn sara(folder: &Path, options: Options) -> Watch<'_> {
        let settings = Settings { budget: method::Budget::Ratio(0.2), ..Settings::default() };
        let fresh = small_sam();
        let plan = planned(method::find("sara").unwrap(), &fresh, &settings);
        let start = patch::capture(&fresh.weights, &plan);
        Watch { folder, samples: samples(folder), options, plan, start }
    }

    /// What became of it in the course of a method, the entries' values at the end, and what was found half-way.
    fn run(&self, method: &str, state: State, stop_at: usize) -> (Result<State>, Trained, Option<(Trained, Trained)>) {
        let device = Device::flex();
        let mut sam = small_sam();
        attach(&mut sam, &self.plan, &device);
        let course = Course::new(method::find(method).unwrap(), &self.plan, &self.start, self.options.seed);
        let state_file = self.folder.join("state.safetensors");
        let step = 3 * state.epoch + state.step_in_epoch;
        let mut around = Watched { course, state: state_file, stop_at, step, half: None };
        let result = segft::train::run(&mut sam, &self.samples, &self.options, state, &mut around, &device);
        (result, chosen_values(&sam), around.half)
    }
}

/// One step of gradient descent with and without a penalty: they end apart by the rate times its gradient, in the matrix
/// that was drawn and in no other.
#[test]
fn a_penalty_is_added_to_the_gradient() {
    let folder = workplace();
    let optimizer = optimizer::Settings { algorithm: Algorithm::Sgd, ..optimizer::Settings::default() };
    let watch = Watch::sara(folder.path(), Options { lr: 1.0, optimizer, ..options(1) });
    let [with, without] = ["sara", "gps"].map(|method| {
        let (result, end, _) = watch.run(method, State::default(), usize::MAX);
        result.unwrap();
        end
    });
    let mut sam = small_sam();
    attach(&mut sam, &watch.plan, &Device::flex());
    let course = Course::new(method::find("sara").unwrap(), &watch.plan, &watch.start, watch.options.seed);
    let (drawn, term) = course.penalty(&sam, 0, None).unwrap();
    let rate = schedule::learning_rate(1.0, 0.0) as f32;
    assert!(term.iter().any(|t| (rate * t).abs() > 1e-6), "it is more than rounding");
    for (name, without) in &without {
        if *name != drawn {
            assert!(with[name] == *without, "{name}");
            continue;
        }
        for ((with, without), term) in with[name].iter().zip(without).zip(&term) {
            assert!((with - without + rate * term).abs() <= 1e-8, "{with} {without} {term}");
        }
    }
}

/// On the real binary: SaRA's first stage is the sparse training of the smallest weights, but for the penalty.
#[test]
fn a_run_trains_with_the_penalty() {
    let folder = workplace();
    let at = folder.path();
    let rest = ["--no-decoder", "--lr", "1e-3"];
    train(at, "with", &[&["--method", "sara-one-stage"], &rest[..]].concat());
    let sparse = ["--method", "gps", "--score", "smallest", "--group", "global", "--no-biases"];
    train(at, "without", &[&sparse[..], &rest].concat());
    let [with, without] = ["with", "without"].map(|run| Patch::load(&at.join(run).join("patch.safetensors")).unwrap());
    assert_eq!(with.deltas.keys().collect::<Vec<_>>(), without.deltas.keys().collect::<Vec<_>>());
    let parts = |delta: &Delta| match delta {
        Delta::Sparse { indices, old, new } => (indices.clone(), old.clone(), new.clone()),
        other => panic!("{other:?}"),
    };
    let mut apart = 0;
    for (name, with) in &with.deltas {
        let ((places, start, with), (others, from, without)) = (parts(with), parts(&without.deltas[name]));
        assert!(places == others && start == from, "{name}");
        apart += usize::from(with != without);
    }
    assert!(apart > 0);
}

/// Up to half-way to the bit; then the one-stage form goes on with all of its entries.
#[test]
fn saras_one_stage_form_differs_from_half_way_on() {
    let folder = workplace();
    let watch = Watch::sara(folder.path(), options(9));
    let run = |method: &str, stop_at: usize| {
        let (result, end, half) = watch.run(method, State::default(), stop_at);
        assert_eq!(result.is_ok(), stop_at == usize::MAX);
        (end, half.map(|(kept, _)| kept))
    };
    assert!(run("sara", 5) == run("sara-one-stage", 5));
    let ((two, kept), (one, none)) = (run("sara", usize::MAX), run("sara-one-stage", usize::MAX));
    let at_half = run("sara", 5).0;
    assert!(none.is_none());
    let mut left = 0;
    for (name, kept) in kept.unwrap() {
        for (i, kept) in kept.iter().enumerate().filter(|(_, kept)| **kept == 0.0) {
            assert_eq!(two[&name][i], at_half[&name][i], "{name} {i}: {kept}");
            left += usize::from(one[&name][i] != at_half[&name][i]);
        }
    }
    assert!(left > 0, "what sara leaves trains on");
}

/// Nine steps of a method whose penalty is drawn at steps 0 and 8; half-way is before the sixth.
#[test]
fn sara_trains_fewer_from_half_way_and_survives_a_stop_anywhere() {
    let folder = workplace();
    let watch = Watch::sara(folder.path(), options(9));
    let (plan, start) = (&watch.plan, &watch.start);
    let (sara, device) = (method::find("sara").unwrap(), Device::flex());
    let run = |state: State, stop_at: usize| watch.run("sara", state, stop_at);
    let (result, end, half) = run(State::default(), usize::MAX);
    result.unwrap();
    let (kept, at_half) = half.unwrap();
    assert_eq!(kept.keys().collect::<Vec<_>>(), end.keys().collect::<Vec<_>>());
    let band = end.keys().flat_map(|name| &start[name]).fold(0f32, |band, w| band.max(w.abs()));
    let (mut on, mut still) = (0, 0);
    for (name, kept) in &kept {
        for (i, kept) in kept.iter().enumerate() {
            let (then, now) = (at_half[name][i], end[name][i]);
            assert_eq!(*kept == 1.0, then.abs() <= band, "{name} {i}");
            if *kept == 1.0 {
                on += usize::from(now != then);
            } else {
                assert_eq!(now.to_bits(), then.to_bits(), "{name} {i} moved after half-way");
                still += usize::from(then != start[name][i]);
            }
        }
    }
    assert!(on > 0 && still > 0, "{on} train on, {still} stay where they got to");
    for stop_at in 1..=9 {
        let (result, ..) = run(State::default(), stop_at);
        assert_eq!(result.unwrap_err().kind.exit_code(), 130);
        let state = State::load(&folder.path().join("state.safetensors")).unwrap();
        assert_eq!(state.kept.is_some(), stop_at > 5, "{stop_at}");
        let (result, resumed, _) = run(state, usize::MAX);
        result.unwrap();
        assert!(resumed == end, "stopped after step {stop_at}");
    }
    // The term is drawn from seed and step, and only where it is due.
    let mut sam = small_sam();
    attach(&mut sam, plan, &device);
    let penalty = |seed, step| Course::new(sara, plan, start, seed).penalty(&sam, step, None);
    assert!(penalty(5, 8).is_some() && penalty(5, 8) == penalty(5, 8) && penalty(5, 9).is_none());
    assert!((1..20).any(|i| penalty(5, 8 * i).unwrap().0 != penalty(5, 0).unwrap().0));
    // After the turn it is the term of the entries that train on, alone.
    let course = Course::new(sara, plan, start, 5);
    let (name, whole) = penalty(5, 8).unwrap();
    let half: Trained =
        start.iter().map(|(name, v)| (name.clone(), (0..v.len()).map(|i| (i % 2) as f32).collect())).collect();
    let (of, term) = course.penalty(&sam, 8, Some(&half)).unwrap();
    assert!(of == name && term.len() == whole.len() && term != whole);
    assert!(term.iter().step_by(2).all(|t| *t == 0.0) && term.iter().any(|t| *t != 0.0));
    let none = half.keys().map(|name| (name.clone(), vec![0.0; half[name].len()])).collect();
    assert!(course.penalty(&sam, 8, Some(&none)).is_none());
    let gps = method::find("gps").unwrap();
    assert!(Course::new(gps, plan, start, 5).penalty(&sam, 8, None).is_none());
    assert!(Course::new(gps, plan, start, 5).half_way(&sam, &mut std::iter::empty()).is_none());
}

/// Entries with rows of their own learning rates, biases and the decoder, with every optimizer: stopped in the middle of an
/// epoch, the state ends as if it had not been, moments included.
#[test]
fn every_optimizer_survives_a_stop() {
    let folder = workplace();
    let samples = samples(folder.path());
    let magnitude = method::find("magnitude").unwrap();
    let settings = Settings { group: Some(Group::Global), ..Settings::default() };
    let device = Device::flex();
    let fresh = small_sam();
    let plan = planned(magnitude, &fresh, &settings);
    let start = patch::capture(&fresh.weights, &plan);
    for algorithm in [Algorithm::Adam, Algorithm::AdamW, Algorithm::AdamAtan2, Algorithm::Sgd, Algorithm::Adafactor] {
        let scaling = Scaling { rates: LrScaling::Full, base: 52, ..Scaling::default() };
        let options =
            Options { optimizer: optimizer::Settings { algorithm, decay: 0.1, scaling, decoder: None }, ..options(6) };
        let state_file = folder.path().join("state.safetensors");
        let run = |state: State, stop_at: usize| {
            let mut sam = small_sam();
            attach(&mut sam, &plan, &device);
            let course = Course::new(magnitude, &plan, &start, options.seed);
            let step = 3 * state.epoch + state.step_in_epoch;
            let mut around = Watched { course, state: state_file.clone(), stop_at, step, half: None };
            let result = segft::train::run(&mut sam, &samples, &options, state, &mut around, &device);
            (result, chosen_values(&sam))
        };
        let saved = || {
            let mut state = State::load(&state_file).unwrap();
            state.seconds = 0.0;
            state.history.iter_mut().for_each(|row| row.seconds = 0.0);
            state
        };
        let (result, end) = run(State::default(), usize::MAX);
        result.unwrap();
        let whole = saved();
        assert!(end.iter().any(|(name, values)| *values != start[name]), "it moves");
        assert_eq!(run(State::default(), 4).0.unwrap_err().kind.exit_code(), 130);
        let (result, resumed) = run(saved(), usize::MAX);
        result.unwrap();
        assert!(resumed == end && saved() == whole, "{algorithm:?}");
    }
}

/// `--log-alignment` on the real binary: a table with every layer that trains, the same after a stop; without it, none.
#[test]
fn alignment_is_logged_where_it_is_asked_for() {
    let folder = workplace();
    let at = folder.path();
    train(at, "silent", &["--method", "full"]);
    assert!(!at.join("silent/alignment.csv").exists());
    let more = ["--method", "full", "--log-alignment", "--lr-scaling", "full", "--lr-base-width", "52"];
    train(at, "told", &more);
    let text = std::fs::read_to_string(at.join("told/alignment.csv")).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next().unwrap(), "epoch,step,weight,layer,fan_in,alignment,changed_fan_in,change_alignment");
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    let epochs = std::fs::read_to_string(at.join("told/history.csv")).unwrap().lines().count() - 1;
    let lin2 = rows.iter().filter(|row| row[2] == "image_encoder.blocks.1.mlp.lin2.weight");
    assert_eq!(lin2.clone().count(), epochs);
    for row in lin2 {
        assert_eq!((row[3], row[4], row[6]), ("hidden", "208", "208"));
        let [weights, change]: [f64; 2] = [row[5], row[7]].map(|n| n.parse().unwrap());
        assert!((0.3..1.0).contains(&weights) && (0.3..=1.0).contains(&change), "{row:?}");
    }
    // The same training without the log.
    train(at, "quiet", &more.iter().copied().filter(|flag| *flag != "--log-alignment").collect::<Vec<_>>());
    let patch = |run: &str| std::fs::read(at.join(run).join("patch.safetensors")).unwrap();
    assert!(patch("told") == patch("quiet") && patch("told") != patch("silent"));
}

#[test]
fn rates_are_shown_by_kind_of_layer() {
    let folder = workplace();
    let at = folder.path();
    let mut arguments = vec!["train", "--dataset", "discs", "--test", "held-out", "--out", "run", "-v"];
    arguments.extend(QUICK);
    arguments.extend(["--k", "4", "--lr-scaling", "noalign", "--lr-base-width", "192", "--adam-eps", "per-layer"]);
    ok(at, &arguments);
    let log = std::fs::read_to_string(at.join("run/log.txt")).unwrap();
    // The decoder is 48 wide, a quarter of the base: double the rate, and double the epsilon, by n^-½ both.
    assert!(log.contains("hidden, width 48: lr × 2.0000, epsilon 2.00e-8"), "{log}");
    // Four entries a neuron: half of it.
    assert!(log.contains("hidden, width 208, selected entries: lr × 0.5000, epsilon 9.61e-9"), "{log}");
    let config = std::fs::read_to_string(at.join("run/config.toml")).unwrap();
    for line in ["optimizer = \"adam\"", "lr_scaling = \"noalign\"", "lr_base_width = 192", "adam_eps = \"per-layer\""]
    {
        assert!(config.contains(line), "{config}");
    }
    let (code, error) = fails(at, &["train", "--optimizer", "sgd", "--adam-eps", "1e-12"]);
    assert!(code == 2 && error.contains("--adam-eps"), "{code} {error}");
}

/// Names that sound like norms, positions or matrices decide nothing.
#[test]
fn what_can_be_chosen_from_is_told_by_its_kind() {
    let spec = |name: &str, kind| WeightSpec {
        name: format!("image_encoder.{name}"),
        kind,
        part: Part::ImageEncoder,
        shape: vec![2, 2],
        prompt_free: true,
    };
    let specs = [
        spec("norm_pos_bias_token.weight", Kind::Linear),
        spec("rel_pos_norm.weight", Kind::Conv),
        spec("lin1.weight", Kind::Norm),
        spec("lin2.weight", Kind::Bias),
        spec("qkv.weight", Kind::Position),
        spec("proj.weight", Kind::Embedding),
        spec("conv.weight", Kind::Buffer),
    ];
    assert_eq!(specs.each_ref().map(method::selectable), [true, true, false, false, false, false, false]);
    let weight = |spec: &WeightSpec| vec![1f32; spec.len()];
    let evidence = method::Evidence { cases: 0, sums: BTreeMap::new(), weight: &weight, seed: 0 };
    let magnitude = method::find("magnitude").unwrap();
    let chosen = method::choose(magnitude, &specs, &evidence, &Settings::default()).unwrap().unwrap();
    let names: Vec<String> = chosen.into_keys().collect();
    assert_eq!(names, ["image_encoder.norm_pos_bias_token.weight", "image_encoder.rel_pos_norm.weight"]);
    // The same kinds outside of the encoder are not chosen from.
    let outside = WeightSpec { part: Part::MaskDecoder, ..spec("lin1.weight", Kind::Linear) };
    assert!(!method::selectable(&outside));
}
