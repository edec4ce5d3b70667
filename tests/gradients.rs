//! The slope of the loss along each weight's gradient is that gradient's squared length: the whole network at once,
//! so that no fused kernel hides behind its own test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use burn::tensor::{Device, Tensor, TensorData};
use segft::model::sam::{Activations, Masks, PointLabel, Prompt, Stem};
use segft::model::weights::to_vec;
use segft::model::{Kind, Sam, SamConfig, Weight, checkpoint};

fn loss(sam: &Sam, device: &Device) -> Tensor<1> {
    let size = sam.config.image_size;
    let pixels: Vec<f32> = (0..2 * 3 * size * size).map(|i| (i as f32 * 0.377).sin()).collect();
    let pixels = Tensor::<4>::from_data(TensorData::new(pixels, [2, 3, size, size]), device);
    let embedding = sam.embed(pixels);
    let free = sam.decode(embedding.clone(), &[Prompt::default(), Prompt::default()], None, Masks::Single);
    let point = |x| Prompt { points: vec![(x, 9.0, PointLabel::Inside)], bounds: None };
    let [_, _, h, w] = free.low_res.dims();
    let earlier: Vec<f32> = (0..2 * h * w).map(|i| 4.0 * (i as f32 * 0.21).sin()).collect();
    let earlier = Tensor::from_data(TensorData::new(earlier, [2, 1, h, w]), device);
    let asked = sam.decode(embedding, &[point(5.0), point(20.0)], Some(earlier), Masks::Multi);
    let wave = |x: Tensor<4>| {
        let shape = x.dims();
        let n = shape.iter().product::<usize>();
        let wave: Vec<f32> = (0..n).map(|i| (i as f32 * 0.05).cos()).collect();
        (x.clone() * x * Tensor::from_data(TensorData::new(wave, shape), device)).mean()
    };
    wave(free.low_res) + wave(asked.low_res) + (asked.iou.clone() * asked.iou).mean()
}

fn check(config: SamConfig) {
    let device = Device::flex();
    let mut sam = checkpoint::random("check", config, 2).into_sam(&device);
    for (_, weight) in sam.weights.iter_mut().filter(|(_, w)| w.spec.kind != Kind::Buffer) {
        weight.train_all();
    }
    let mut gradients = loss(&sam, &device).backward();
    let all: Vec<(String, Option<Vec<f32>>)> = sam
        .weights
        .iter()
        .filter(|(_, w)| w.spec.kind != Kind::Buffer)
        .map(|(name, w)| (name.clone(), w.value.grad_remove(&mut gradients).map(to_vec)))
        .collect();
    let frozen = sam.frozen();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (name, gradient) in all {
        let Some(gradient) = gradient else { continue };
        let square: f64 = gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum();
        // Smaller ones drown in the rounding of the loss.
        if square < 1e-4 {
            continue;
        }
        // A step that changes the loss by a thousandth: well above the rounding of f32, well below curvature.
        let step = 1e-3 / square;
        let at = |sign: f64| {
            let mut sam = frozen.clone();
            let weight = sam.weights.get_mut(&name).unwrap();
            let values = to_vec(weight.value.clone());
            let moved: Vec<f32> = values
                .iter()
                .zip(&gradient)
                .map(|(v, g)| (f64::from(*v) + sign * step * f64::from(*g)) as f32)
                .collect();
            let n = moved.len();
            weight.value = Tensor::from_data(TensorData::new(moved, [n]), &device);
            f64::from(to_vec(loss(&sam, &device))[0])
        };
        let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
        checked += 1;
        if (slope - square).abs() > 0.08 * square {
            wrong.push(format!("{name}: slope {slope:.4e}, gradient squared {square:.4e}"));
        }
    }
    assert!(checked > 100, "{checked}");
    assert!(wrong.is_empty(), "{} of {checked}:\n{}", wrong.len(), wrong.join("\n"));
}

/// Gradients of all that trains, by name.
fn gradients(sam: &Sam, device: &Device) -> Vec<(String, Option<Vec<f32>>)> {
    let mut gradients = loss(sam, device).backward();
    sam.weights.iter().map(|(name, w)| (name.clone(), w.leaf().grad_remove(&mut gradients).map(to_vec))).collect()
}

/// Blocks that are run again give the same loss and the same gradients, to the bit: with everything trained, with
/// chosen entries and biases as GPS trains them, and where training begins behind the first block.
#[test]
fn blocks_that_are_run_again_have_the_same_gradients() {
    let device = Device::flex();
    let config = SamConfig { image_size: 64, depth: 3, ..common::small_config() };
    let mut base = checkpoint::random("check", config, 2).into_sam(&device);
    // Larger than the tables of positions were made for: they are interpolated.
    base.config.image_size = 72;
    let biases = |name: &str| name.ends_with(".bias") && !name.contains("norm");
    let everything: &dyn Fn(&mut Weight) = &|w| w.train_all();
    let as_gps: &dyn Fn(&mut Weight) = &|w| match w.spec.kind {
        Kind::Linear | Kind::Conv => w.train_chosen(&[0, 5, 15], &Device::flex()),
        _ if biases(&w.spec.name) => w.train_all(),
        _ => {}
    };
    let the_end: &dyn Fn(&mut Weight) = &|w| {
        if w.spec.name.contains("blocks.2.mlp") {
            w.train_all();
        }
    };
    for train in [everything, as_gps, the_end] {
        let mut sam = base.clone();
        sam.weights.iter_mut().map(|(_, w)| w).filter(|w| w.spec.kind != Kind::Buffer).for_each(train);
        let kept = (to_vec(loss(&sam, &device)), gradients(&sam, &device));
        sam.activations = Activations::Recomputed;
        let again = (to_vec(loss(&sam, &device)), gradients(&sam, &device));
        let some = kept.1.iter().filter(|(name, g)| name.contains("blocks.2.mlp") && g.is_some()).count();
        assert_eq!(some, 4);
        assert!(kept == again);
    }
}

#[test]
fn gradients_of_a_network_with_windows() {
    check(common::small_config());
}

#[test]
fn gradients_of_a_network_with_a_stem() {
    let stem = Stem { widths: [8, 12, 16], blocks: [1, 1, 2] };
    let config = SamConfig {
        image_size: 64,
        patch: 16,
        stem: Some(stem),
        window: 0,
        global: vec![0, 1],
        ..common::small_config()
    };
    check(config);
}
