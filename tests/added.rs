//! Methods that add weights to the network: where they start, what they compute, and what becomes of them in files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use burn::tensor::{Device, Tensor, TensorData};
use common::{QUICK, discs, fails, ok, small_checkpoint, small_config};
use segft::error::Result;
use segft::method::{self, Added, Change, Plan, Settings, Train, Tuning};
use segft::model::checkpoint::{self, Checkpoint};
use segft::model::sam::{Activations, Addition, Cache, Embedding, image_encoder};
use segft::model::weights::to_vec;
use segft::model::{Sam, WeightSpec};
use segft::predict::prompt_free_logits;
use segft::train::{Epoch, Options, State, Surroundings, Validation, batch, loss};
use segft::tune::course::{Course, Turn};
use segft::tune::patch::{self, About, Delta, Difference, Direction, Patch};
use segft::tune::{attach, gradients, optimizer::Optimizer, proof};
use std::collections::BTreeMap;
use std::path::Path;

/// Methods that add something.
const ADDING: [&str; 8] = ["lora", "lora-all", "ssf", "adapter", "sam-adapter", "vpt", "e2vpt", "last"];
/// Those of them whose weights do not fold into official ones.
const UNMERGEABLE: [&str; 5] = ["adapter", "sam-adapter", "vpt", "e2vpt", "last"];
/// Those of them that start as the base.
const FROM_ZERO: [&str; 4] = ["lora", "lora-all", "adapter", "last"];

fn base() -> Checkpoint {
    checkpoint::random("small", small_config(), 3)
}

fn wave(shape: [usize; 4], step: f32) -> Tensor<4> {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n).map(|i| (i as f32 * step).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// Of two pictures that fill the small SAM's square.
fn logits(sam: &Sam) -> Vec<f32> {
    to_vec(prompt_free_logits(sam, wave([2, 3, 72, 72], 0.377)).without_autodiff())
}

fn loss(sam: &Sam) -> Tensor<1> {
    let target = wave([2, 1, 72, 72], 0.05).greater_elem(0.5).float();
    loss::loss(prompt_free_logits(sam, wave([2, 3, 72, 72], 0.377)), target.clone(), target.ones_like()).total()
}

fn settings() -> Settings {
    Settings { decoder: Train::No, seed: 5, ..Settings::default() }
}

fn plan(method: &dyn Tuning) -> Plan {
    let (sam, settings) = (base().into_sam(&Device::flex()), settings());
    let specs = sam.config.specs();
    let one = (0..1).map(Ok);
    let chosen = gradients::choose(method, &sam, &settings, settings.seed, one, |sam, _: usize| Ok(loss(sam))).unwrap();
    let plan = |decoder| method::plan(method, &specs, chosen.as_ref(), &Settings { decoder, ..settings.clone() });
    let encoder = plan(Train::No);
    // Of a method that leaves the encoder as it is, the decoder.
    if method::counts(&specs, &encoder).trained > 0 { encoder } else { plan(Train::Yes) }
}

fn attached(plan: &Plan) -> Sam {
    let mut sam = base().into_sam(&Device::flex());
    attach(&mut sam, plan, &Device::flex());
    sam
}

/// So many steps of Adam; the losses before each of them.
fn train(sam: &mut Sam, steps: usize, lr: f64) -> Vec<f32> {
    let mut adam = Optimizer::adam(1e-8);
    let mut losses = Vec::new();
    for _ in 0..steps {
        let loss = loss(sam);
        losses.push(to_vec(loss.clone())[0]);
        adam.step(&mut sam.weights, &mut loss.backward(), lr);
    }
    losses
}

fn patched(sam: &Sam, plan: &Plan, old: &BTreeMap<String, Vec<f32>>) -> Patch {
    let about = About {
        method: "toy".into(),
        base_name: "small".into(),
        base_model: "small".into(),
        base_sha256: base().sha256,
        form: segft::data::Form::Pictures,
        preprocessing: segft::predict::Preprocessing::new(72),
        threshold: 0.5,
        settings: settings(),
    };
    Patch { about, deltas: patch::changes(old, &sam.weights, plan) }
}

#[test]
fn the_start_is_the_base_and_training_leaves_it() {
    let untouched = logits(&base().into_sam(&Device::flex()));
    for name in ADDING {
        let plan = plan(method::find(name).unwrap());
        let mut sam = attached(&plan);
        let same = logits(&sam) == untouched;
        assert_eq!(same, FROM_ZERO.contains(&name), "{name}");
        let losses = train(&mut sam, 12, method::find(name).unwrap().lr());
        assert!(losses[11] < losses[0] - 1e-3, "{name}: {losses:?}");
        // Every added weight has moved, and nothing else.
        for (weight, change) in &plan {
            let now = sam.weights.get(weight).unwrap().to_host().data;
            match change {
                Change::Added(added) => assert!(now != added.start, "{name}: {weight} did not train"),
                _ => assert!(now == base().tensors[weight].data, "{name}: {weight} moved"),
            }
        }
        let proof = proof::compare(
            &proof::fingerprints(&base().tensors),
            &sam.weights,
            &patched(&sam, &plan, &BTreeMap::new()).deltas,
        );
        let counts = method::counts(&base().config.specs(), &plan);
        assert_eq!((proof.trained_values, proof.moved.len()), (counts.added, 0), "{name}");
        assert_eq!(proof.frozen_values, base().tensors.values().map(|t| t.data.len()).sum::<usize>());
    }
}

/// A method of one's own that adds two things at the same layers, and trains a norm beside: nothing but this is needed
/// for plan, attach, training and patch.
struct Both;

impl Tuning for Both {
    fn added(&self, specs: &[WeightSpec], settings: &Settings) -> Vec<Added> {
        let layers = ["blocks.0.attn.qkv", "blocks.1.attn.qkv.k", "blocks.1.attn.qkv.v", "blocks.1.mlp.lin2"];
        let low_rank = layers.iter().filter_map(|l| Addition::LowRank.weights(&format!("image_encoder.{l}"), specs, 3));
        let layers = ["blocks.0.attn.qkv", "blocks.1.attn.qkv", "blocks.0.norm1", "neck.3", "patch_embed.proj"];
        let scales =
            layers.iter().filter_map(|l| Addition::ScaleShift.weights(&format!("image_encoder.{l}"), specs, 0));
        let all: Vec<WeightSpec> = low_rank.chain(scales).flatten().collect();
        assert_eq!(all.len(), 18);
        let mean = |spec: &WeightSpec| if spec.name.ends_with("ssf_scale") { 1.0 } else { 0.0 };
        all.into_iter().map(|spec| Added::normal(spec.clone(), mean(&spec), 0.1, settings.seed)).collect()
    }

    fn encoder(&self, spec: &WeightSpec, _: &Settings) -> Change {
        if spec.name.contains("norm2") { Change::Dense } else { Change::Frozen }
    }

    fn lr(&self) -> f64 {
        1e-3
    }
}

#[test]
fn merged_and_unmerged_predict_the_same_and_a_patch_comes_off_to_the_bit() {
    let untouched = logits(&base().into_sam(&Device::flex()));
    let methods = method::methods().iter().map(|(name, _, method)| (*name, *method));
    for (name, method) in methods.chain([("both", &Both as &dyn Tuning)]) {
        let plan = plan(method);
        let old = patch::capture(&base().into_sam(&Device::flex()).weights, &plan);
        let mut sam = attached(&plan);
        train(&mut sam, 5, 3e-3);
        let live = logits(&sam);
        let file = tempfile::NamedTempFile::new().unwrap();
        patched(&sam, &plan, &old).save(file.path()).unwrap();
        let patch = Patch::load(file.path()).unwrap();
        assert_eq!(patch, patched(&sam, &plan, &old));

        let mut tuned = base();
        patch.turn(&mut tuned, Direction::Apply).unwrap();
        let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(apart(&live, &untouched) > 1e-3, "{name} has not trained");
        let both = logits(&tuned.clone().into_sam(&Device::flex()));
        assert!(both == live, "{name}: base and patch are the fine-tune, to the bit");
        let merged = tuned.clone().merged();
        assert_eq!(merged.is_err(), UNMERGEABLE.contains(&name), "{name}");
        if let Ok(merged) = merged {
            assert_eq!(merged.tensors.keys().collect::<Vec<_>>(), base().tensors.keys().collect::<Vec<_>>());
            let off = apart(&logits(&merged.into_sam(&Device::flex())), &live);
            assert!(off <= 1e-5, "{name}: {off}");
        }
        patch.turn(&mut tuned, Direction::Revert).unwrap();
        assert!(tuned.added.is_empty() && tuned.tensors == base().tensors, "{name}");
        assert!(patch.turn(&mut tuned, Direction::Revert).is_err(), "{name}");
    }
}

/// What is folded by hand: one value a row and column, so that every product can be done in the head.
#[test]
fn low_rank_is_folded_before_the_scale() {
    let specs = base().config.specs();
    let mut tuned = base();
    let mut add = |family: Addition, owner: &str, values: [f32; 2]| {
        for (spec, value) in family.weights(owner, &specs, 2).unwrap().into_iter().zip(values) {
            let data = vec![value; spec.len()];
            tuned.added.insert(spec.name, segft::model::HostTensor { shape: spec.shape, data });
        }
    };
    let qkv = "image_encoder.blocks.0.attn.qkv";
    add(Addition::LowRank, &format!("{qkv}.v"), [0.5, 0.25]);
    add(Addition::ScaleShift, qkv, [2.0, 1.0]);
    let merged = tuned.merged().unwrap();
    let (before, after) = (base().tensors, merged.tensors);
    let (w, v) = (&before[&format!("{qkv}.weight")].data, &after[&format!("{qkv}.weight")].data);
    for (i, (w, v)) in w.iter().zip(v).enumerate() {
        // Two ranks of 0.5 · 0.25 in the last third of the rows; all of it twice.
        let more = if i >= 2 * 52 * 52 { 0.25 } else { 0.0 };
        assert!((v - 2.0 * (w + more)).abs() < 1e-6, "{i}");
    }
    assert!(after[&format!("{qkv}.bias")].data.iter().all(|b| *b == 1.0), "2 · 0 + 1");
}

#[test]
fn what_the_network_would_not_look_for_is_refused() {
    let specs = base().config.specs();
    let check = |names: &[(&str, [usize; 2])]| {
        let added = names.iter().map(|(name, shape)| (format!("image_encoder.blocks.{name}"), shape.to_vec()));
        segft::model::sam::added::check(&specs, &added.collect()).map_err(|e| e.message)
    };
    let shape = |name: &'static str, shape: [usize; 2]| (name, shape);
    let a = shape("0.attn.qkv.q.lora_a", [4, 52]);
    assert!(check(&[a, shape("0.attn.qkv.q.lora_b", [52, 4])]).is_ok() && check(&[]).is_ok());
    let twice = |[a, b]: [&'static str; 2]| vec![shape(a, [4, 52]), shape(b, [52, 4])];
    for (names, word) in [
        (vec![a], "lora_b"),
        (vec![a, shape("0.attn.qkv.q.lora_b", [52, 3])], "expected [52, 4]"),
        (twice(["0.attn.qkv.x.lora_a", "0.attn.qkv.x.lora_b"]), "qkv.x"),
        (twice(["9.attn.qkv.q.lora_a", "9.attn.qkv.q.lora_b"]), "blocks.9"),
        (twice(["0.norm1.lora_a", "0.norm1.lora_b"]), "norm1"),
        (vec![shape("0.attn.qkv.q.lora_a", [0, 52]), shape("0.attn.qkv.q.lora_b", [52, 0])], "[0, 52]"),
        (vec![shape("0.attn.qkv.weight", [156, 52])], "qkv.weight"),
    ] {
        let error = check(&names).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
}

/// The same slopes of the loss where blocks are run again, to the bit, and those that small steps show.
#[test]
fn gradients_of_what_is_added() {
    let methods = ADDING.map(|name| (name, method::find(name).unwrap()));
    for (name, method) in methods.into_iter().chain([("both", &Both as &dyn Tuning)]) {
        let plan = plan(method);
        let mut sam = attached(&plan);
        // Away from zero, where half of the gradients vanish.
        train(&mut sam, 3, 1e-2);
        let mut slopes = |activations| {
            sam.activations = activations;
            let mut gradients = loss(&sam).backward();
            let trained = sam.weights.iter().filter(|(_, w)| w.trained() > 0);
            let slopes = trained.map(|(name, w)| (name.clone(), to_vec(w.value.grad_remove(&mut gradients).unwrap())));
            slopes.collect::<BTreeMap<_, _>>()
        };
        let (kept, again) = (slopes(Activations::Kept), slopes(Activations::Recomputed));
        assert!(kept == again);
        let frozen = sam.frozen();
        let mut checked = 0;
        for (weight, slope) in kept {
            let square: f64 = slope.iter().map(|g| f64::from(*g) * f64::from(*g)).sum();
            // Smaller ones drown in the rounding of the loss, or need a step that goes round a bend.
            if square < 1e-5 {
                continue;
            }
            let step = 1e-4 / square;
            let at = |sign: f64| {
                let mut sam = frozen.clone();
                let moving = sam.weights.get_mut(&weight).unwrap();
                let moved = to_vec(moving.value.clone()).into_iter().zip(&slope);
                let moved: Vec<f32> = moved.map(|(v, g)| (f64::from(v) + sign * step * f64::from(*g)) as f32).collect();
                moving.value = Tensor::from_floats(moved.as_slice(), &Device::flex());
                f64::from(to_vec(loss(&sam))[0])
            };
            let seen = (at(1.0) - at(-1.0)) / (2.0 * step);
            assert!((seen - square).abs() <= 0.1 * square, "{name}, {weight}: {seen:.3e} against {square:.3e}");
            checked += 1;
        }
        assert!(checked > 0, "{name}");
    }
}

fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    small_checkpoint(&folder.path().join("small.safetensors"));
    discs(&folder.path().join("discs"), "a", 8, 0);
    discs(&folder.path().join("held-out"), "b", 2, 3);
    folder
}

fn run(folder: &Path, out: &str, more: &[&str]) {
    let all = ["train", "--dataset", "discs", "--test", "held-out", "--out", out];
    ok(folder, &[&all[..], &QUICK, more].concat());
}

#[test]
fn runs_export_and_patches_go_there_and_back() {
    let folder = workplace();
    let at = folder.path();
    let bytes = |name: &str| std::fs::read(at.join(name)).unwrap();
    for (method, more) in [("lora", &["--rank", "2"][..]), ("ssf", &["--no-decoder"])] {
        run(at, method, &[&["--method", method], more].concat());
        let patch = format!("{method}/patch.safetensors");
        let facts: serde_json::Value = serde_json::from_str(&ok(at, &["info", &patch, "--json"])).unwrap();
        assert_eq!(facts["method"], method);
        // Rank 2 in two blocks 52 wide; a scale and a shift behind every layer and norm.
        let added = if method == "lora" { 2 * 4 * 52 * 2 } else { 2 * 22 * 52 + 2 * 52 + 4 * 48 };
        assert_eq!(facts["n_added"], added);
        // Exported and applied are one file; taken off, the base comes back byte for byte.
        ok(at, &["export", method, "--to", "a.safetensors", "--force"]);
        ok(at, &["patch", "apply", "small.safetensors", &patch, "--to", "b.safetensors", "--force"]);
        assert!(
            bytes("a.safetensors") == bytes("b.safetensors") && bytes("a.safetensors") != bytes("small.safetensors")
        );
        ok(at, &["patch", "revert", "b.safetensors", &patch, "--to", "c.safetensors", "--force"]);
        assert!(bytes("c.safetensors") == bytes("small.safetensors"));
        // The ending says which container is meant, in any case; another one is refused before anything is read.
        ok(at, &["export", method, "--to", "a.PTH", "--force"]);
        let facts: serde_json::Value = serde_json::from_str(&ok(at, &["info", "a.PTH", "--json"])).unwrap();
        assert_eq!(facts["format"], "pth");
        let (code, error) = fails(at, &["export", method, "--to", "a.bin"]);
        assert!(code == 2 && error.contains("a.bin") && error.contains(".safetensors or .pth"), "{error}");
        let (code, error) = fails(at, &["patch", "revert", "small.safetensors", &patch, "--to", "d.safetensors"]);
        assert!(code == 3 && error.contains("does not hold"), "{error}");
        // What the run predicts is what was tested.
        ok(at, &["predict", "held-out/images", "--run", method, "--out", &format!("{method}-again")]);
        for case in ["b000.png", "b001.png"] {
            assert!(
                bytes(&format!("{method}/predictions/{case}")) == bytes(&format!("{method}-again/{case}")),
                "{case}"
            );
        }
    }
    let facts = ok(at, &["patch", "diff", "lora/patch.safetensors", "ssf/patch.safetensors"]);
    assert!(facts.contains("lora_a") && facts.contains("ssf_scale"), "{facts}");
    // The same seed gives the same bytes, another one another start.
    run(at, "again", &["--method", "lora", "--rank", "2", "--threads", "1"]);
    assert!(bytes("again/patch.safetensors") == bytes("lora/patch.safetensors"));
    let config = String::from_utf8(bytes("lora/config.toml")).unwrap();
    assert!(config.contains("rank = 2"), "{config}");
}

/// A second patch over the first: each belongs to what it was made over, and comes off to the bit in the order of a stack.
#[test]
fn patches_stack_and_come_off_in_turn() {
    let folder = workplace();
    let at = folder.path();
    let bytes = |name: &str| std::fs::read(at.join(name)).unwrap();
    let refused = |command: &str, checkpoint: &str, patch: &str| {
        let (code, error) = fails(at, &["patch", command, checkpoint, patch, "--to", "none.safetensors"]);
        assert!(code == 3 && !at.join("none.safetensors").exists(), "{error}");
        error
    };
    run(at, "first", &["--method", "gps"]);
    let lower = "first/patch.safetensors";
    ok(at, &["patch", "apply", "small.safetensors", lower, "--to", "a.safetensors"]);
    for method in ["gps", "lora"] {
        run(at, method, &["--method", method, "--model", "a.safetensors", "--seed", "6"]);
        let upper = format!("{method}/patch.safetensors");
        ok(at, &["patch", "apply", "a.safetensors", &upper, "--to", "ab.safetensors", "--force"]);
        assert!(
            bytes("ab.safetensors") != bytes("a.safetensors") && bytes("a.safetensors") != bytes("small.safetensors")
        );
        ok(at, &["export", method, "--to", "exported.safetensors", "--force"]);
        assert!(bytes("exported.safetensors") == bytes("ab.safetensors"), "{method}");

        // What both change, the second takes up where the first has left it.
        let [a, b] = [lower, &upper].map(|file| Patch::load(&at.join(file)).unwrap());
        let mut taken_up = 0;
        for (name, delta) in &a.deltas {
            if let (Delta::Dense { new, .. }, Some(Delta::Dense { old, .. })) = (delta, b.deltas.get(name)) {
                assert!(new == old, "{method}: {name}");
                taken_up += 1;
            }
        }
        let total = Difference::of(&a, &b).total();
        assert!(taken_up > 0 && total.both > 0 && total.only_b > 0 && total.largest > Some(0.0), "{total:?}");

        // Not without the first, which does not come off below the second.
        let error = refused("apply", "small.safetensors", &upper);
        for file in ["a.safetensors", "small.safetensors"] {
            let hash = checkpoint::file_sha256(&at.join(file)).unwrap();
            assert!(error.contains(&hash[..12]), "{file} is {hash}: {error}");
        }
        assert!(refused("revert", "ab.safetensors", lower).contains("does not hold"));

        ok(at, &["patch", "revert", "ab.safetensors", &upper, "--to", "b.safetensors", "--force"]);
        assert!(bytes("b.safetensors") == bytes("a.safetensors"), "{method}");
        ok(at, &["patch", "revert", "b.safetensors", lower, "--to", "c.safetensors", "--force"]);
        assert!(bytes("c.safetensors") == bytes("small.safetensors"), "{method}");
    }
}

#[test]
fn what_does_not_fold_stays_a_patch() {
    let folder = workplace();
    let at = folder.path();
    let bytes = |name: &str| std::fs::read(at.join(name)).unwrap();
    for method in UNMERGEABLE {
        run(at, method, &["--method", method]);
        let patch = format!("{method}/patch.safetensors");
        for command in [
            &["export", method, "--to", "a.safetensors"][..],
            &["patch", "apply", "small.safetensors", &patch, "--to", "a.safetensors"],
        ] {
            let (code, error) = fails(at, command);
            assert!(code == 2 && error.contains("no place") && error.contains("export --patch"), "{error}");
        }
        ok(at, &["export", method, "--patch", "--to", "p.safetensors", "--force"]);
        assert!(bytes("p.safetensors") == bytes(&patch));
        ok(at, &["predict", "held-out/images", "--run", method, "--out", &format!("{method}-again")]);
        assert!(bytes(&format!("{method}/predictions/b000.png")) == bytes(&format!("{method}-again/b000.png")));
    }
    assert!(!at.join("a.safetensors").exists());
}

/// The backbone of a side network is no part of the graph; that of LoRA is, from its first block on.
#[test]
fn no_gradient_enters_the_backbone_of_a_side_network() {
    for (name, tracked) in [("last", false), ("lora", true)] {
        let sam = attached(&plan(method::find(name).unwrap()));
        let stages = image_encoder::encode_stages(&sam.config, &sam.weights, wave([1, 3, 72, 72], 0.377));
        assert!(stages.blocks.iter().all(|block| block.is_tracked() == tracked), "{name}");
        assert!(stages.output.coarse.is_tracked(), "{name}");
    }
}

/// Taken up behind the blocks, a side network computes what it does beside them, gradients included, to the bit.
#[test]
fn a_side_network_over_kept_outputs_is_the_one_beside_the_blocks() {
    let mut sam = attached(&plan(method::find("last").unwrap()));
    train(&mut sam, 3, 1e-2);
    let pixels = wave([1, 3, 72, 72], 0.377);
    let computed = |embedding: Embedding| {
        let y = embedding.coarse;
        let mut gradients = (y.clone() * wave(y.dims(), 0.11)).sum().backward();
        let side = sam.weights.iter().filter(|(_, weight)| weight.trained() > 0);
        let gradients: Vec<_> = side.map(|(_, w)| to_vec(w.value.grad_remove(&mut gradients).unwrap())).collect();
        (to_vec(y), gradients)
    };
    let beside = computed(sam.embed(pixels.clone()));
    assert!(beside.1.len() == 2 * 4 && beside.1.iter().all(|gradient| gradient.iter().any(|g| *g != 0.0)));
    let (cache, pixels) = (Cache::new(usize::MAX), to_vec(pixels));
    for _ in 0..2 {
        assert!(computed(cache.embed(&sam, &pixels, &Device::flex())) == beside);
    }
    assert_eq!((cache.counts().computed, cache.counts().found), (1, 1));
}

/// A training of E²VPT that is watched, saved at every step, and may be stopped.
struct Watched<'a> {
    course: Course<'a>,
    state: std::path::PathBuf,
    stop_at: usize,
    step: usize,
    turn: Option<Turn>,
}

impl Surroundings for Watched<'_> {
    /// Ever worse: what is left in the end must still not be from before the pruning.
    fn validate(&mut self, _: &Sam) -> Result<Validation> {
        Ok(Validation { mdice: 1.0 / (1.0 + self.step as f64), miou: 0.0 })
    }
    fn save(&mut self, state: &State) -> Result<()> {
        state.save(&self.state)
    }
    fn half_way(&mut self, sam: &Sam, losses: &mut dyn Iterator<Item = Tensor<1>>) -> Option<Turn> {
        self.turn = Some(self.course.half_way(sam, losses)?);
        self.turn.clone()
    }
    fn stopped(&self) -> bool {
        self.step == self.stop_at
    }
    fn stepped(&mut self, step: usize, _: usize, _: f64) {
        self.step = step;
    }
    fn epoch(&mut self, _: &Epoch, _: bool, _: f64) {}
}

/// Nine steps, three an epoch; half-way is before the sixth.
#[test]
fn e2vpt_prunes_half_way_and_begins_again_from_its_first_bytes() {
    let folder = workplace();
    let request = segft::data::Request {
        dataset: folder.path().join("discs").display().to_string(),
        ..segft::data::Request::default()
    };
    let splits = segft::data::prepare(&request).unwrap();
    let samples = batch::load(&splits.train, splits.dataset.form, &segft::predict::Preprocessing::new(72)).unwrap();
    let options = Options {
        epochs: usize::MAX,
        batch: 2,
        lr: 2e-3,
        optimizer: segft::tune::optimizer::Settings::default(),
        seed: 5,
        augment: batch::Augment::Off,
        patience: usize::MAX,
        minutes: None,
        steps: Some(9),
        save_every: 1,
    };
    let device = Device::flex();
    let method = method::find("e2vpt").unwrap();
    let plan = method::plan(method, &base().config.specs(), None, &Settings { seed: 5, ..Settings::default() });
    let start = patch::capture(&base().into_sam(&device).weights, &plan);
    let run = |state: State, stop_at: usize| {
        let mut sam = attached(&plan);
        let step = 3 * state.epoch + state.step_in_epoch;
        let file = folder.path().join("state.safetensors");
        let course = Course::new(method, &plan, &start, options.seed);
        let mut around = Watched { course, state: file, stop_at, step, turn: None };
        let result = segft::train::run(&mut sam, &samples, &options, state, &mut around, &device);
        let trained = sam.weights.iter().filter(|(_, w)| w.trained() > 0);
        let end: BTreeMap<String, Vec<f32>> =
            trained.map(|(name, w)| (name.clone(), to_vec(w.value.clone()))).collect();
        (result, end, around.turn)
    };
    let (result, end, turn) = run(State::default(), usize::MAX);
    result.unwrap();
    let turn = turn.unwrap();
    let rewound = turn.rewound.unwrap();
    assert_eq!(rewound.keys().collect::<Vec<_>>(), end.keys().collect::<Vec<_>>());
    for (name, values) in &rewound {
        match &plan[name] {
            // Half of ten tokens, of each half of its pieces: pieces of 52 are three or four wide.
            Change::Added(added) => {
                let kept = &turn.kept[name];
                let begun = added.start.iter().zip(kept).map(|(v, kept)| v * kept);
                assert!(begun.eq(values.iter().copied()), "{name}");
                if name.ends_with(".prompts") {
                    let tokens: Vec<usize> =
                        kept.chunks(52).map(|row| row.iter().filter(|k| **k == 1.0).count()).collect();
                    assert_eq!(tokens.iter().filter(|n| **n > 0).count(), 5, "{tokens:?}");
                    assert!(tokens.iter().all(|n| *n == 0 || (24..=28).contains(n)), "{tokens:?}");
                    let other = &turn.kept["image_encoder.blocks.0.prompts"];
                    assert!(kept == other, "the masks are shared by the blocks");
                }
                for ((end, begun), kept) in end[name].iter().zip(values).zip(kept) {
                    assert!(if *kept == 1.0 { end != begun } else { *end == 0.0 }, "{name}");
                }
            }
            _ => assert!(*values == start[name], "{name}"),
        }
    }
    for stop_at in [4, 5, 6, 8] {
        let (result, ..) = run(State::default(), stop_at);
        assert_eq!(result.unwrap_err().kind.exit_code(), 130);
        let state = State::load(&folder.path().join("state.safetensors")).unwrap();
        assert_eq!(state.kept.is_some(), stop_at > 5, "{stop_at}");
        let (result, resumed, _) = run(state, usize::MAX);
        result.unwrap();
        assert!(resumed == end, "stopped after step {stop_at}");
    }
}
