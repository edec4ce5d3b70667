//! The network against stored numbers of the official PyTorch implementation, stage by stage.
//!
//! `SEGFT_PARITY_DIR` names another folder of the same form (manifest.json, checkpoint.pth, checkpoint.safetensors,
//! expected.safetensors) to check any other shape; the default is the small SAM in tests/parity. Tolerances and settings are
//! read from the manifest, and a tensor that nothing was compared with fails the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use burn::tensor::{Device, Tensor, TensorData};
use segft::image::{Fit, Picture, Resize};
use segft::io::safetensors::{Reader, values};
use segft::method::{self, Budget, Change, Chosen, GradientTable, Settings, Sum};
use segft::model::kernel::adam::{BETA1, BETA2};
use segft::model::sam::{
    Activations, Decoded, Embedding, Masks, PointLabel, Prompt, image_encoder, logits_fullsize, prompt_encoder,
};
use segft::model::weights::to_vec;
use segft::model::{HostTensor, Sam, SamConfig, checkpoint, resize};
use segft::predict::prompt_free_logits;
use segft::train::loss::{Loss, loss};
use segft::tune::{attach, gradients, optimizer::Optimizer};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    std::env::var_os("SEGFT_PARITY_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/parity"))
}

/// What the network is given; every other tensor is what it must answer.
const GIVEN: [&str; 9] = [
    "encoder.input",
    "prompt.points.coords",
    "prompt.points.labels",
    "prompt.box",
    "prompt.mask",
    "pipeline.image_rgb_hwc_u8",
    "pipeline.box_resized",
    "gps.images",
    "gps.masks",
];

/// The fixture, and which of its tensors something was compared with.
struct Expected {
    reader: Reader,
    manifest: Value,
    compared: BTreeSet<String>,
}

impl Expected {
    fn open() -> Expected {
        let manifest = serde_json::from_slice(&std::fs::read(folder().join("manifest.json")).unwrap()).unwrap();
        let reader = Reader::open(&folder().join("expected.safetensors")).unwrap();
        Expected { reader, manifest, compared: BTreeSet::new() }
    }

    /// The number behind each `marker` in a rule of the manifest: of "max abs <= 2e-5; keys: <= 1e-3", behind "<=", two.
    fn numbers<const N: usize>(&self, pointer: &str, marker: &str) -> [f64; N] {
        let rule =
            self.manifest.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no rule {pointer}"));
        let number = |text: &str| {
            let text = text.trim_start();
            let end = text.find(|c: char| !c.is_ascii_digit() && !"+-.e".contains(c)).unwrap_or(text.len());
            text[..end].parse().unwrap_or_else(|_| panic!("no number behind `{marker}` in `{rule}`"))
        };
        let found: Vec<f64> = rule.split(marker).skip(1).map(number).collect();
        found.try_into().unwrap_or_else(|found| panic!("{N} numbers wanted in `{rule}`, found {found:?}"))
    }

    fn config(&self, key: &str) -> usize {
        self.manifest["config"][key].as_u64().unwrap_or_else(|| panic!("no number config.{key}")) as usize
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        self.reader.entries().into_keys().filter_map(|name| name.strip_prefix(prefix).map(String::from)).collect()
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        self.reader.entries().get(name).unwrap_or_else(|| panic!("no expected tensor `{name}`")).1.clone()
    }

    fn tensor<const D: usize>(&mut self, name: &str) -> Tensor<D> {
        let shape: [usize; D] = self.shape(name).try_into().unwrap();
        Tensor::from_data(TensorData::new(self.reader.floats(name).unwrap(), shape), &Device::flex())
    }

    /// Values that something is compared with.
    fn want(&mut self, name: &str) -> Vec<f32> {
        self.compared.insert(name.to_string());
        self.reader.floats(name).unwrap()
    }

    fn check<const D: usize>(&mut self, name: &str, got: Tensor<D>) {
        assert_eq!(got.dims().to_vec(), self.shape(name), "shape of {name}");
        let want = self.want(name);
        let largest = want.iter().fold(0f64, |m, v| m.max(f64::from(v.abs())));
        self.near(name, &want, &to_vec(got), |_| largest);
    }

    /// Losses, each a tensor of its own.
    fn check_each(&mut self, name: &str, got: &[f32]) {
        let want = self.want(name);
        self.near(name, &want, got, |want| f64::from(want.abs()));
    }

    fn near(&self, name: &str, want: &[f32], got: &[f32], size: impl Fn(f32) -> f64) {
        let [bound] = self.numbers("/tolerance/forward", "<=");
        assert_eq!(want.len(), got.len(), "length of {name}");
        for (i, (want, got)) in want.iter().zip(got).enumerate() {
            assert!(f64::from((want - got).abs()) <= bound * size(*want), "{name}[{i}]: {got} against {want}");
        }
    }
}

fn sam(file: &str, expected: &Expected) -> Sam {
    let mut checkpoint = checkpoint::read(&folder().join(file)).unwrap();
    // The decoder's heads leave no trace in the shapes.
    checkpoint.config.decoder_heads = expected.config("decoder_heads");
    let want = SamConfig {
        image_size: expected.config("image_size"),
        patch: expected.config("patch"),
        embed: expected.config("embed"),
        depth: expected.config("depth"),
        heads: expected.config("heads"),
        window: expected.config("window"),
        global: serde_json::from_value(expected.manifest["config"]["global"].clone()).unwrap(),
        out_chans: expected.config("out_chans"),
        decoder_mlp: expected.config("decoder_mlp"),
        decoder_heads: expected.config("decoder_heads"),
        iou_hidden: expected.config("iou_hidden"),
        stem: None,
    };
    assert_eq!(checkpoint.config, want, "the configuration is read off the shapes");
    assert_eq!(Some(checkpoint.counts().0 as u64), expected.manifest["total_parameters"].as_u64());
    // What no file of weights can change.
    assert_eq!(expected.manifest["layer_norm_eps"].as_f64(), Some(1e-6), "the norms' epsilon is another");
    checkpoint.into_sam(&Device::flex())
}

#[test]
fn parity_of_both_containers() {
    let of = |file| checkpoint::read(&folder().join(file)).unwrap().tensors;
    assert_eq!(of("checkpoint.pth"), of("checkpoint.safetensors"));
    let expected = Expected::open();
    for (file, hash) in expected.manifest["sha256"].as_object().unwrap() {
        assert_eq!(Some(checkpoint::file_sha256(&folder().join(file)).unwrap().as_str()), hash.as_str(), "{file}");
    }
}

/// The stages in the network's order: the first that fails is where to look.
#[test]
fn parity_with_every_stored_tensor() {
    let mut expected = Expected::open();
    for file in ["checkpoint.pth", "checkpoint.safetensors"] {
        encoder(&sam(file, &expected), &mut expected);
    }
    let sam = sam("checkpoint.safetensors", &expected);
    prompts_and_masks(&sam, &mut expected);
    whole_predictor(&sam, &mut expected);
    losses(&sam, &mut expected);
    let chosen = gradients_and_selection(&sam, &mut expected);
    masked_adam(sam, &chosen, &mut expected);
    let all: BTreeSet<String> = expected.reader.entries().into_keys().collect();
    let given = GIVEN.map(String::from).into();
    assert!(all.is_superset(&given), "{:?} are not there", given.difference(&all));
    let left: Vec<&String> =
        all.iter().filter(|name| !given.contains(*name) && !expected.compared.contains(*name)).collect();
    assert!(left.is_empty(), "nothing was compared with {left:?}");
}

fn encoder(sam: &Sam, expected: &mut Expected) {
    let stages = image_encoder::encode_stages(&sam.config, &sam.weights, expected.tensor("encoder.input"));
    expected.check("encoder.patch_embed", stages.patch_embed);
    assert_eq!(stages.blocks.len(), sam.config.depth);
    for (i, block) in stages.blocks.into_iter().enumerate() {
        expected.check(&format!("encoder.block.{i}"), block);
    }
    expected.check("encoder.output", stages.output.coarse);
}

fn prompts_and_masks(sam: &Sam, expected: &mut Expected) {
    let s = sam.config.grid();
    expected.check("prompt.dense_pe", prompt_encoder::dense_positions(&sam.config, &sam.weights, s));
    let output: Tensor<4> = expected.tensor("encoder.output");
    let [_, c, h, w] = output.dims();
    let embedding = Embedding { coarse: output.slice([0..1, 0..c, 0..h, 0..w]), fine: None };

    let coords = expected.reader.floats("prompt.points.coords").unwrap();
    let labels = values(&expected.reader.bytes("prompt.points.labels").unwrap(), i64::from_le_bytes);
    let points: Vec<_> = coords
        .chunks(2)
        .zip(labels)
        .map(|(p, l)| (p[0], p[1], if l == 1 { PointLabel::Inside } else { PointLabel::Outside }))
        .collect();
    let bounds: [f32; 4] = expected.reader.floats("prompt.box").unwrap().try_into().unwrap();
    let mask: Tensor<4> = expected.tensor("prompt.mask");

    for (name, has_points, has_box, has_mask) in [
        ("none", false, false, false),
        ("points", true, false, false),
        ("box", false, true, false),
        ("points_box", true, true, false),
        ("mask", false, false, true),
        ("all", true, true, true),
    ] {
        let prompt =
            Prompt { points: if has_points { points.clone() } else { vec![] }, bounds: has_box.then_some(bounds) };
        let earlier = has_mask.then(|| mask.clone());
        let size = sam.config.image_size;
        let encoded =
            prompt_encoder::encode(&sam.config, &sam.weights, std::slice::from_ref(&prompt), earlier.clone(), size);
        let sparse = format!("decode.{name}.sparse");
        match encoded.sparse {
            Some(tokens) => expected.check(&sparse, tokens),
            None => assert!(expected.want(&sparse).is_empty(), "{sparse}"),
        }
        expected.check(&format!("decode.{name}.dense"), encoded.dense);
        for (kind, masks) in [("single", Masks::Single), ("multi", Masks::Multi)] {
            let Decoded { low_res, iou } =
                sam.decode(embedding.clone(), std::slice::from_ref(&prompt), earlier.clone(), masks);
            expected.check(&format!("decode.{name}.{kind}.low_res"), low_res);
            expected.check(&format!("decode.{name}.{kind}.iou"), iou);
        }
    }
}

fn whole_predictor(sam: &Sam, expected: &mut Expected) {
    let size = sam.config.image_size;
    let shape = expected.shape("pipeline.image_rgb_hwc_u8");
    let rgb = expected.reader.bytes("pipeline.image_rgb_hwc_u8").unwrap();
    let picture = Picture { width: shape[1], height: shape[0], rgb };
    let fit = Fit::new(picture.width, picture.height, size, Resize::LongestSide);

    let resized = fit.resized(&picture).unwrap();
    let name = "pipeline.resized_hwc_u8";
    assert_eq!(expected.shape(name), vec![fit.inner[1], fit.inner[0], 3]);
    let want = expected.reader.bytes(name).unwrap();
    let off = resized.iter().zip(&want).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    let [most] = expected.numbers("/tolerance/resized", "at most");
    assert!(f64::from(off) <= most, "the resized picture is off by {off} grey levels");
    expected.compared.insert(name.into());

    let pixels = Tensor::<4>::from_data(TensorData::new(fit.normalised(&want), [1, 3, size, size]), &Device::flex());
    expected.check("pipeline.preprocessed", pixels.clone());
    let embedding = sam.embed(pixels);
    expected.check("pipeline.embedding", embedding.coarse.clone());
    let bounds: [f32; 4] = expected.reader.floats("pipeline.box_resized").unwrap().try_into().unwrap();
    let prompt = Prompt { points: vec![], bounds: Some(bounds) };
    let decoded = sam.decode(embedding, &[prompt], None, Masks::Multi);
    expected.check("pipeline.iou", decoded.iou);
    expected.check("pipeline.logits_fullsize", logits_fullsize(decoded.low_res, &fit));
}

/// Logits and loss of one of the fixture's GPS pictures.
fn gps_loss(sam: &Sam, expected: &mut Expected, i: usize) -> (Tensor<4>, Loss) {
    let picture = |name: &str, expected: &mut Expected| {
        let all: Tensor<4> = expected.tensor(name);
        let [_, c, h, w] = all.dims();
        all.slice([i..i + 1, 0..c, 0..h, 0..w])
    };
    let target = picture("gps.masks", expected);
    let logits = prompt_free_logits(sam, picture("gps.images", expected));
    let valid = target.ones_like();
    (logits.clone(), loss(logits, target, valid))
}

fn losses(sam: &Sam, expected: &mut Expected) {
    let [mut bce, mut soft_iou, mut total] = [vec![], vec![], vec![]];
    for i in 0..expected.shape("gps.images")[0] {
        let (logits, loss) = gps_loss(sam, expected, i);
        expected.check(&format!("gps.logits.{i}"), logits);
        total.extend(to_vec(loss.total()));
        bce.extend(to_vec(loss.bce));
        soft_iou.extend(to_vec(loss.soft_iou));
    }
    for (name, got) in [("gps.bce", bce), ("gps.soft_iou", soft_iou), ("gps.loss", total)] {
        expected.check_each(name, &got);
    }
}

/// GPS as the manifest describes it.
fn gps(expected: &Expected) -> Settings {
    let k = expected.config("top_k");
    assert_eq!(expected.manifest["gps"]["top_k"], k);
    Settings { budget: Budget::PerNeuron(k), ..Settings::default() }
}

fn gradients_and_selection(sam: &Sam, expected: &mut Expected) -> Chosen {
    let settings = gps(expected);
    let pictures = expected.shape("gps.images")[0];
    let mut loss = |sam: &Sam, i| Ok(gps_loss(sam, expected, i).1.total());
    let (_, mut sums) = gradients::accumulate(sam, &[Sum::Signed], (0..pictures).map(Ok), &mut loss).unwrap();
    let method = method::find("gps").unwrap();
    let chosen = gradients::choose(method, sam, &settings, 0, (0..pictures).map(Ok), loss).unwrap().unwrap();
    let table = sums.remove(&Sum::Signed).unwrap();

    let [bound] = expected.numbers("/tolerance/grad", "<=");
    for weight in expected.names("gps.grad.") {
        let got = table.get(&weight).unwrap_or_else(|| panic!("no gradient of {weight}"));
        let want = expected.want(&format!("gps.grad.{weight}"));
        assert_eq!(want.len(), got.len(), "{weight}");
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
        let error = norm(&mut want.iter().zip(got).map(|(a, b)| f64::from(a - b)));
        let size = norm(&mut want.iter().map(|a| f64::from(*a)));
        assert!(error <= bound * size, "gradient of {weight}: relative error {:.1e}", error / size);
    }
    let [near] = expected.numbers("/tolerance/selected", "less than");
    for weight in expected.names("gps.selected.") {
        expected.compared.insert(format!("gps.selected.{weight}"));
        let bytes = expected.reader.bytes(&format!("gps.selected.{weight}")).unwrap();
        let want = values(&bytes, |b| i64::from_le_bytes(b) as u32);
        let fan_in = sam.weights.get(&weight).unwrap().spec.matrix().1;
        same_but_near_ties(&chosen[&weight], &want, &table, &weight, fan_in, near);
    }
    assert_eq!(expected.names("gps.selected."), chosen.keys().cloned().collect::<Vec<_>>());
    chosen
}

/// The rule for near-ties: what one side has and the other has not lies in the same neurons, with scores so near.
fn same_but_near_ties(got: &[u32], want: &[u32], table: &GradientTable, weight: &str, fan_in: usize, near: f64) {
    let score = |i: &u32| f64::from(table[weight][*i as usize].abs());
    let only = |these: &[u32], others: &[u32]| {
        let mut only: Vec<(usize, f64)> =
            these.iter().filter(|i| !others.contains(i)).map(|i| (*i as usize / fan_in, score(i))).collect();
        only.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        only
    };
    let (more, missing) = (only(got, want), only(want, got));
    assert_eq!(more.len(), missing.len(), "{weight}: another number of entries");
    for (a, b) in more.iter().zip(&missing) {
        assert_eq!(a.0, b.0, "{weight}: entries of other neurons");
        assert!((a.1 - b.1).abs() < near * a.1.max(b.1), "{weight}: a score of {} instead of {}", a.1, b.1);
    }
}

fn masked_adam(mut sam: Sam, chosen: &Chosen, expected: &mut Expected) {
    let before = sam.clone();
    let specs = sam.config.specs();
    let plan = method::plan(method::find("gps").unwrap(), &specs, Some(chosen), &gps(expected));
    let number = |key: &str| expected.manifest[key].as_u64().unwrap() as usize;
    let counts = method::counts(&specs, &plan);
    assert_eq!(counts.trained, number("trainable_parameters"));
    assert_eq!(counts.selected_encoder_weights, number("selected_encoder_weights"));
    let trained: BTreeMap<&str, usize> = specs
        .iter()
        .filter_map(|spec| match &plan[&spec.name] {
            Change::Chosen(indices) => Some((spec.name.as_str(), indices.len())),
            Change::Dense => Some((spec.name.as_str(), spec.len())),
            _ => None,
        })
        .collect();
    let counted = expected.manifest["counts"].as_object().unwrap();
    assert_eq!(trained, counted.iter().map(|(name, n)| (name.as_str(), n.as_u64().unwrap() as usize)).collect());

    let rule = expected.manifest["gps"]["optimizer"].as_str().unwrap();
    assert!(rule.contains(&format!("betas ({BETA1},{BETA2})")), "{rule}");
    let steps = expected.shape("gps.train.losses")[0];
    assert!(rule.contains(&format!(" {steps} steps")), "{rule}");
    let [lr] = expected.numbers("/gps/optimizer", "lr ");
    let [epsilon] = expected.numbers("/gps/optimizer", "eps ");
    attach(&mut sam, &plan, &Device::flex());
    let pictures = expected.shape("gps.images")[0];
    let mut adam = Optimizer::adam(epsilon);
    let mut losses = Vec::new();
    for step in 0..steps {
        let loss = gps_loss(&sam, expected, step % pictures).1.total();
        losses.extend(to_vec(loss.clone()));
        adam.step(&mut sam.weights, &mut loss.backward(), lr);
    }
    expected.check_each("gps.train.losses", &losses);

    let [bound, of_keys] = expected.numbers("/tolerance/after5", "<=");
    let width = sam.config.embed;
    for name in expected.names("gps.after5.") {
        let want = expected.want(&format!("gps.after5.{name}"));
        let got = sam.weights.get(&name).unwrap().to_host().data;
        assert_eq!(want.len(), got.len(), "{name}");
        for (i, (a, b)) in want.iter().zip(&got).enumerate() {
            // The keys' biases have true gradient 0, and Adam amplifies what rounding leaves of it.
            let keys = name.ends_with("attn.qkv.bias") && (width..2 * width).contains(&i);
            let bound = if keys { of_keys } else { bound };
            assert!(f64::from((a - b).abs()) <= bound, "{name}[{i}] after {steps} steps: {b} against {a}");
        }
    }
    for (name, weight) in sam.weights.iter().filter(|(name, _)| plan[*name] == Change::Frozen) {
        let (old, new) = (before.weights.get(name).unwrap().to_host().data, weight.to_host().data);
        assert!(old.iter().zip(&new).all(|(a, b)| a.to_bits() == b.to_bits()), "{name} moved");
    }
}

/// Tables of positions of another size than the picture's, against `torch.nn.functional.interpolate`: made by
/// tests/reference/positions.py. The network that interpolates gives what one with PyTorch's tables gives.
#[test]
fn parity_of_interpolated_positions() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/positions.json");
    let reference: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let table = |value: &Value| {
        let floats = |key: &str| serde_json::from_value::<Vec<f32>>(value[key].clone()).unwrap();
        ["pos_embed", "rel_pos_h", "rel_pos_w"].map(floats)
    };
    let (patch, embed, heads, grid) = (8, 8, 2, 4);
    let base = SamConfig {
        image_size: patch * grid,
        patch,
        embed,
        depth: 2,
        heads,
        window: 3,
        global: vec![1],
        out_chans: 16,
        decoder_mlp: 8,
        decoder_heads: 2,
        iou_hidden: 8,
        stem: None,
    };
    // A network with these tables: the windows' own stay as they are.
    let network = |config: &SamConfig, tables: &[Vec<f32>; 3]| {
        let mut checkpoint = checkpoint::random("positions", base.clone(), 5);
        checkpoint.config = config.clone();
        let names = ["pos_embed", "blocks.1.attn.rel_pos_h", "blocks.1.attn.rel_pos_w"];
        for (name, data) in names.into_iter().zip(tables) {
            let name = format!("image_encoder.{name}");
            let shape = config.specs().into_iter().find(|spec| spec.name == name).unwrap().shape;
            assert_eq!(shape.iter().product::<usize>(), data.len(), "{name}");
            checkpoint.tensors.insert(name, HostTensor { shape, data: data.clone() });
        }
        checkpoint.into_sam(&Device::flex())
    };
    let near = |a: &[f32], b: &[f32], bound: f32, what: &str| {
        assert_eq!(a.len(), b.len(), "{what}");
        // Each by itself: what is no number is near to nothing.
        let apart: Vec<f32> = a.iter().zip(b).map(|(a, b)| (a - b).abs()).collect();
        let most = apart.iter().copied().max_by(f32::total_cmp);
        assert!(apart.iter().all(|apart| *apart <= bound), "{what}: {most:?}");
    };
    let own = table(&reference["from"]);
    for to in reference["to"].as_array().unwrap() {
        let side = to["grid"].as_u64().unwrap() as usize;
        let want = table(to);
        let tensor =
            |values: &[f32], shape| Tensor::<4>::from_data(TensorData::new(values.to_vec(), shape), &Device::flex());
        let absolute = tensor(&own[0], [1, grid, grid, embed]).permute([0, 3, 1, 2]);
        let absolute = to_vec(resize::bilinear(absolute, side, side).permute([0, 2, 3, 1]));
        near(&absolute, &want[0], 1e-6, "absolute positions");
        for (own, want) in own.iter().zip(&want).skip(1) {
            let matrix = resize::matrix(2 * grid - 1, 2 * side - 1, &Device::flex());
            let table = Tensor::from_data(TensorData::new(own.clone(), [2 * grid - 1, embed / heads]), &Device::flex());
            near(&to_vec(matrix.matmul(table)), want, 1e-6, "relative positions");
        }

        let size = patch * side;
        let pixels = (0..3 * size * size).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>();
        let embedded = |sam: Sam| {
            let embedding = image_encoder::encode(
                &sam.config,
                &sam.weights,
                tensor(&pixels, [1, 3, size, size]),
                Activations::Kept,
            );
            to_vec(embedding.coarse)
        };
        let made_for = embedded(network(&SamConfig { image_size: size, ..base.clone() }, &want));
        near(&embedded(network(&base, &own)), &made_for, 1e-5, "what the encoder says");
    }
}
