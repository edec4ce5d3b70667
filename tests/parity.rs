//! The network against stored numbers of the official PyTorch implementation, stage by stage.
//!
//! `SEGFT_PARITY_DIR` names another folder of the same form (manifest.json, checkpoint.pth, checkpoint.safetensors,
//! expected.safetensors) to check any other shape; the default is the small SAM in tests/parity.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use burn::tensor::{Device, Tensor, TensorData};
use segft::image::{Fit, Picture, Resize};
use segft::io::safetensors::{Reader, values};
use segft::method::{self, Settings, Sum};
use segft::model::sam::{
    Decoded, Embedding, Masks, PointLabel, Prompt, image_encoder, logits_fullsize, prompt_encoder,
};
use segft::model::weights::to_vec;
use segft::model::{Sam, SamConfig, checkpoint};
use segft::predict::prompt_free_logits;
use segft::train::loss::{Loss, loss};
use segft::tune::{attach, gradients, optimizer::Optimizer};
use std::path::PathBuf;

fn folder() -> PathBuf {
    std::env::var_os("SEGFT_PARITY_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/parity"))
}

struct Expected(Reader, f64);

impl Expected {
    fn open() -> Expected {
        let manifest: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder().join("manifest.json")).unwrap()).unwrap();
        // "max abs error <= 2e-4 of the tensor max abs": the number is read, so that a stricter fixture is obeyed.
        let rule = manifest["tolerance"]["forward"].as_str().unwrap();
        let bound = rule.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
        Expected(Reader::open(&folder().join("expected.safetensors")).unwrap(), bound)
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        self.0.entries().get(name).unwrap_or_else(|| panic!("no expected tensor `{name}`")).1.clone()
    }

    fn tensor<const D: usize>(&mut self, name: &str) -> Tensor<D> {
        let shape: [usize; D] = self.shape(name).try_into().unwrap();
        Tensor::from_data(TensorData::new(self.0.floats(name).unwrap(), shape), &Device::flex())
    }

    fn check<const D: usize>(&mut self, name: &str, got: Tensor<D>) {
        assert_eq!(got.dims().to_vec(), self.shape(name), "shape of {name}");
        let (want, got) = (self.0.floats(name).unwrap(), to_vec(got));
        let largest = want.iter().fold(0f64, |m, v| m.max(f64::from(v.abs())));
        let error = want.iter().zip(&got).fold(0f64, |m, (a, b)| m.max(f64::from((a - b).abs())));
        assert!(error <= self.1 * largest, "{name}: error {error:.2e} of {largest:.2e}");
    }
}

fn sam(file: &str) -> Sam {
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder().join("manifest.json")).unwrap()).unwrap();
    let mut checkpoint = checkpoint::read(&folder().join(file)).unwrap();
    // The decoder's heads leave no trace in the shapes.
    checkpoint.config.decoder_heads = manifest["config"]["decoder_heads"].as_u64().unwrap() as usize;
    let config = &manifest["config"];
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    let want = SamConfig {
        image_size: number("image_size"),
        patch: number("patch"),
        embed: number("embed"),
        depth: number("depth"),
        heads: number("heads"),
        window: number("window"),
        global: config["global"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect(),
        out_chans: number("out_chans"),
        decoder_mlp: number("decoder_mlp"),
        decoder_heads: number("decoder_heads"),
        iou_hidden: number("iou_hidden"),
        stem: None,
    };
    assert_eq!(checkpoint.config, want, "the configuration is read off the shapes");
    checkpoint.into_sam(&Device::flex())
}

#[test]
fn parity_of_both_containers() {
    let of = |file| checkpoint::read(&folder().join(file)).unwrap().tensors;
    assert_eq!(of("checkpoint.pth"), of("checkpoint.safetensors"));
}

#[test]
fn parity_of_the_image_encoder() {
    for file in ["checkpoint.pth", "checkpoint.safetensors"] {
        let (sam, mut expected) = (sam(file), Expected::open());
        let stages = image_encoder::encode_stages(&sam.config, &sam.weights, expected.tensor("encoder.input"));
        expected.check("encoder.patch_embed", stages.patch_embed);
        assert_eq!(stages.blocks.len(), sam.config.depth);
        for (i, block) in stages.blocks.into_iter().enumerate() {
            expected.check(&format!("encoder.block.{i}"), block);
        }
        expected.check("encoder.output", stages.output.coarse);
    }
}

#[test]
fn parity_of_prompts_and_masks() {
    let (sam, mut expected) = (sam("checkpoint.pth"), Expected::open());
    let s = sam.config.grid();
    expected.check("prompt.dense_pe", prompt_encoder::dense_positions(&sam.config, &sam.weights, s));
    let output: Tensor<4> = expected.tensor("encoder.output");
    let [_, c, h, w] = output.dims();
    let embedding = Embedding { coarse: output.slice([0..1, 0..c, 0..h, 0..w]), fine: None };

    let coords = expected.0.floats("prompt.points.coords").unwrap();
    let labels = values(&expected.0.bytes("prompt.points.labels").unwrap(), i64::from_le_bytes);
    let points: Vec<_> = coords
        .chunks(2)
        .zip(labels)
        .map(|(p, l)| (p[0], p[1], if l == 1 { PointLabel::Inside } else { PointLabel::Outside }))
        .collect();
    let bounds: [f32; 4] = expected.0.floats("prompt.box").unwrap().try_into().unwrap();
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
        match encoded.sparse {
            Some(sparse) => expected.check(&format!("decode.{name}.sparse"), sparse),
            None => assert_eq!(expected.shape(&format!("decode.{name}.sparse"))[1], 0),
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

#[test]
fn parity_of_the_whole_predictor() {
    let (sam, mut expected) = (sam("checkpoint.safetensors"), Expected::open());
    let size = sam.config.image_size;
    let shape = expected.shape("pipeline.image_rgb_hwc_u8");
    let picture =
        Picture { width: shape[1], height: shape[0], rgb: expected.0.bytes("pipeline.image_rgb_hwc_u8").unwrap() };
    let fit = Fit::new(picture.width, picture.height, size, Resize::LongestSide);

    let resized = fit.resized(&picture).unwrap();
    assert_eq!(expected.shape("pipeline.resized_hwc_u8"), vec![fit.inner[1], fit.inner[0], 3]);
    let want = expected.0.bytes("pipeline.resized_hwc_u8").unwrap();
    let off = resized.iter().zip(&want).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(off <= 1, "resized picture is off by {off} grey levels");

    let pixels = Tensor::<4>::from_data(TensorData::new(fit.normalised(&want), [1, 3, size, size]), &Device::flex());
    expected.check("pipeline.preprocessed", pixels.clone());
    let embedding = sam.embed(pixels);
    expected.check("pipeline.embedding", embedding.coarse.clone());
    let bounds: [f32; 4] = expected.0.floats("pipeline.box_resized").unwrap().try_into().unwrap();
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

#[test]
fn parity_of_the_loss() {
    let (sam, mut expected) = (sam("checkpoint.pth"), Expected::open());
    let pictures = expected.shape("gps.images")[0];
    let stored = |name: &str, expected: &mut Expected| expected.0.floats(name).unwrap();
    for i in 0..pictures {
        let (logits, loss) = gps_loss(&sam, &mut expected, i);
        expected.check(&format!("gps.logits.{i}"), logits);
        for (name, got) in [("gps.bce", &loss.bce), ("gps.soft_iou", &loss.soft_iou), ("gps.loss", &loss.total())] {
            let (want, got) = (stored(name, &mut expected)[i], to_vec(got.clone())[0]);
            assert!((want - got).abs() <= 2e-4 * want.abs(), "{name}[{i}]: {got} against {want}");
        }
    }
}

/// The selection of the fixture's pictures, and the summed gradients it was made from.
fn select(sam: &Sam) -> (method::Chosen, method::GradientTable) {
    let mut expected = Expected::open();
    let pictures = expected.shape("gps.images")[0];
    let mut loss = |sam: &Sam, i| Ok(gps_loss(sam, &mut expected, i).1.total());
    let (_, mut sums) = gradients::accumulate(sam, &[Sum::Signed], (0..pictures).map(Ok), &mut loss).unwrap();
    let gps = method::find("gps").unwrap();
    let chosen = gradients::choose(gps, sam, &Settings::default(), 0, (0..pictures).map(Ok), loss).unwrap();
    (chosen.unwrap(), sums.remove(&Sum::Signed).unwrap())
}

#[test]
fn parity_of_gradients_and_selection() {
    let (sam, mut expected) = (sam("checkpoint.pth"), Expected::open());
    let (chosen, table) = select(&sam);
    let names: Vec<String> = expected.0.entries().into_keys().collect();
    let (mut gradients, mut selections) = (0, 0);
    for name in &names {
        if let Some(weight) = name.strip_prefix("gps.grad.") {
            // Gradients are kept for the matrices of the encoder, from which entries are chosen.
            let Some(got) = table.get(weight) else { continue };
            let want = expected.0.floats(name).unwrap();
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
            let error = norm(&mut want.iter().zip(got).map(|(a, b)| f64::from(a - b)));
            let size = norm(&mut want.iter().map(|a| f64::from(*a)));
            assert!(error <= 1e-3 * size, "{name}: relative error {:.1e}", error / size);
            gradients += 1;
        }
        if let Some(weight) = name.strip_prefix("gps.selected.") {
            let want = values(&expected.0.bytes(name).unwrap(), |b| i64::from_le_bytes(b) as u32);
            let got = &chosen[weight];
            let fan_in = sam.weights.get(weight).unwrap().spec.matrix().1;
            assert_eq!(got.len(), want.len(), "{weight}");
            for (a, b) in got.iter().zip(&want).filter(|(a, b)| a != b) {
                // The rule for near-ties: the same neuron, scores within 1e-4 of each other.
                let score = |i: &u32| table[weight][*i as usize].abs();
                assert_eq!(*a as usize / fan_in, *b as usize / fan_in, "{weight}: another neuron");
                assert!((score(a) - score(b)).abs() <= 1e-4 * score(b), "{weight}: chose {a} instead of {b}");
            }
            selections += 1;
        }
    }
    assert!(selections > 0 && selections == chosen.len() && gradients == selections, "{selections} selections");
}

#[test]
fn parity_of_five_masked_adam_steps() {
    let (mut sam, mut expected) = (sam("checkpoint.safetensors"), Expected::open());
    let before = sam.clone();
    let (chosen, _) = select(&sam);
    let (specs, settings) = (sam.config.specs(), Settings::default());
    let plan = method::plan(method::find("gps").unwrap(), &specs, Some(&chosen), &settings);
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder().join("manifest.json")).unwrap()).unwrap();
    let counts = method::counts(&specs, &plan);
    assert_eq!(counts.trained as u64, manifest["trainable_parameters"].as_u64().unwrap());
    assert_eq!(counts.selected_encoder_weights as u64, manifest["selected_encoder_weights"].as_u64().unwrap());

    attach(&mut sam, &plan, &Device::flex());
    let pictures = expected.shape("gps.images")[0];
    let losses = expected.0.floats("gps.train.losses").unwrap();
    let mut adam = Optimizer::adam(1e-8);
    for (step, want) in losses.iter().enumerate() {
        let loss = gps_loss(&sam, &mut expected, step % pictures).1.total();
        let got = to_vec(loss.clone())[0];
        assert!((got - want).abs() <= 2e-4 * want.abs(), "loss before step {step}: {got} against {want}");
        adam.step(&mut sam.weights, &mut loss.backward(), 2e-4);
    }
    let width = sam.config.embed;
    let mut compared = 0;
    for (name, weight) in sam.weights.iter() {
        let got = weight.to_host().data;
        if matches!(plan[name], method::Change::Frozen) {
            let old = before.weights.get(name).unwrap().to_host().data;
            assert!(old.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits()), "{name} moved");
        }
        if !expected.0.entries().contains_key(&format!("gps.after5.{name}")) {
            continue;
        }
        let want = expected.0.floats(&format!("gps.after5.{name}")).unwrap();
        for (i, (a, b)) in want.iter().zip(&got).enumerate() {
            // The keys' biases have true gradient 0, and Adam amplifies what rounding leaves of it.
            let keys = name.ends_with("attn.qkv.bias") && (width..2 * width).contains(&i);
            let bound = if keys { 1e-3 } else { 2e-5 };
            assert!((a - b).abs() <= bound, "{name}[{i}]: {b} against {a}");
        }
        compared += 1;
    }
    assert!(compared > 0);
}
