//! GPS's head-free selection loss (arXiv 2312.10136), which asks nothing of the decoder: what a network with an untrained
//! head would be selected by.
//!
//! The paper's, for classification: two augmented views of every picture of a batch; features z before the head, scaled
//! to length one, no projection; and over all views i the supervised contrastive loss (Khosla et al., arXiv 2004.11362)
//!
//! L = mean_i -1/|P(i)| Σ_{p ∈ P(i)} ( zᵢ·z_p / T - log Σ_{a ≠ i} exp(zᵢ·z_a / T) ), T = 0.07, P(i) the others of i's class.
//! Gradients are summed over the batches of one pass.
//!
//! Ours, because a picture to be segmented has no class: the classes are foreground and background. Each picture gives
//! two features, the means of the encoder's embedding (what the decoder would be given) over the foreground's and over
//! the background's pixels, a pixel having the embedding of its patch. Pictures are taken as they are, one view each:
//! two features of each of [`BATCH`] pictures are as many as the paper's two views of a batch of 32. A picture without
//! foreground gives one feature; a feature that is alone in its class only stands among the others' a.
//!
//! The gradient of a whole batch is taken a picture at a time: features are first computed without a graph, and d L / d
//! feature from them all; then each picture runs again, and its features, weighted by those, are differentiated. By the
//! chain rule the sum over the batch is the exact gradient; it costs a second forward pass and no memory.

use super::batch::{Augment, Sample, batch};
use crate::model::Sam;
use crate::model::weights::to_vec;
use burn::tensor::{Device, Tensor, TensorData};
use std::ops::Range;

/// T.
const TEMPERATURE: f64 = 0.07;

/// Most pictures that are set against each other.
pub const BATCH: usize = 32;

/// Keeps the length of a zero feature, and a sum over no others, above 0; far below what both are otherwise.
const TINY: f64 = 1e-24;

/// The part of a picture that a feature is the mean of: its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    /// What is to be found.
    Foreground,
    /// The rest of the picture, without padding.
    Background,
}

/// The loss of features of these classes: `[n, width]` → `[1]`; 0 where no two are of one class.
pub fn loss(features: Tensor<2>, regions: &[Region]) -> Tensor<1> {
    let n = regions.len();
    let device = features.device().without_autodiff();
    let alike = |i: usize, j: usize| i != j && regions[i] == regions[j];
    let positives: Vec<usize> = (0..n).map(|i| (0..n).filter(|j| alike(i, *j)).count()).collect();
    let anchors = positives.iter().filter(|p| **p > 0).count();
    let matrix = |value: &dyn Fn(usize, usize) -> f32| {
        let values: Vec<f32> = (0..n * n).map(|at| value(at / n, at % n)).collect();
        Tensor::<2>::from_data(TensorData::new(values, [n, n]), &device)
    };
    let others = matrix(&|i, j| if i == j { 0.0 } else { 1.0 });
    let weights = matrix(&|i, j| if alike(i, j) { 1.0 / (anchors * positives[i]) as f32 } else { 0.0 });
    let length = ((features.clone() * features.clone()).sum_dim(1) + TINY).sqrt();
    let z = features / length;
    // Moved by the most that z·z can be: no exponential overflows, and the difference below is the same.
    let similar = (z.clone().matmul(z.transpose()) - 1.0) / TEMPERATURE;
    let all = ((similar.clone().exp() * others).sum_dim(1) + TINY).log();
    (weights * (similar - all)).sum().neg()
}

/// Means of a picture's embedding over its regions, those that have a pixel.
///
/// # Shapes
/// `[1, width, s, s]`, target and validity `[1, 1, size, size]` → `[1 or 2, width]`.
pub fn features(embedding: Tensor<4>, target: Tensor<4>, valid: Tensor<4>) -> (Tensor<2>, Vec<Region>) {
    let [_, width, side, _] = embedding.dims();
    let patch = target.dims()[2] / side;
    let pixels =
        |region: Tensor<4>| region.reshape([side, patch, side, patch]).sum_dim(3).sum_dim(1).reshape([1, side * side]);
    let inside = target.clone() * valid.clone();
    let found = [(Region::Foreground, pixels(inside.clone())), (Region::Background, pixels(valid - inside))];
    let found = found.into_iter().filter(|(_, pixels)| to_vec(pixels.clone()).iter().any(|n| *n > 0.0));
    let (regions, shares): (Vec<Region>, Vec<Tensor<2>>) =
        found.map(|(region, pixels)| (region, pixels.clone() / pixels.sum_dim(1))).unzip();
    (Tensor::cat(shares, 0).matmul(embedding.reshape([width, side * side]).transpose()), regions)
}

/// The gradient of the loss over samples, batch after batch, a picture at a time.
#[derive(Debug)]
pub struct Contrast<'a> {
    samples: &'a [Sample],
    device: &'a Device,
    /// The batch at hand, and d L / d features of its pictures.
    at_hand: Range<usize>,
    pulls: Vec<Tensor<2>>,
}

impl<'a> Contrast<'a> {
    /// Of these samples, on this device.
    pub fn new(samples: &'a [Sample], device: &'a Device) -> Contrast<'a> {
        Contrast { samples, device, at_hand: 0..0, pulls: Vec::new() }
    }

    /// A scalar whose gradient in the weights is that part of the gradient of the batch's loss that goes through the
    /// `i`-th sample. A batch is taken up, with the network as it is then, when its first sample is asked for.
    pub fn part(&mut self, sam: &Sam, i: usize) -> Tensor<1> {
        let batch = batch_of(i, self.samples.len());
        if i == batch.start || self.at_hand != batch {
            self.pulls = self.pulls(&sam.frozen(), batch.clone());
            self.at_hand = batch;
        }
        (self.features(sam, i).0 * self.pulls[i - self.at_hand.start].clone()).sum()
    }

    fn features(&self, sam: &Sam, i: usize) -> (Tensor<2>, Vec<Region>) {
        let batch = batch(self.samples, &[i], Augment::Off, 0, 0, self.device);
        features(sam.embed(batch.pixels).coarse, batch.target, batch.valid)
    }

    /// d L / d features of each picture of a batch.
    fn pulls(&self, sam: &Sam, batch: Range<usize>) -> Vec<Tensor<2>> {
        let (features, regions): (Vec<_>, Vec<_>) = batch.map(|i| self.features(sam, i)).unzip();
        let counts: Vec<usize> = regions.iter().map(Vec::len).collect();
        let all = Tensor::cat(features, 0).autodiff().require_grad();
        let gradient = all.grad(&loss(all.clone(), &regions.concat()).backward());
        let gradient = gradient.unwrap_or_else(|| all.without_autodiff().zeros_like());
        let mut from = 0;
        let next = |count: usize| {
            from += count;
            gradient.clone().narrow(0, from - count, count)
        };
        counts.into_iter().map(next).collect()
    }
}

/// The batch of the `i`-th of `n` samples: as few as there can be, of even sizes, so that none is left with one picture.
fn batch_of(i: usize, n: usize) -> Range<usize> {
    let batches = n.div_ceil(BATCH).max(1);
    let start = |batch: usize| batch * n / batches;
    let batch = (0..batches).find(|batch| i < start(batch + 1)).unwrap_or(batches - 1);
    start(batch)..start(batch + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: Region = Region::Foreground;
    const B: Region = Region::Background;

    fn rows<const N: usize, const W: usize>(values: [[f32; W]; N]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.concat(), [N, W]), &Device::flex())
    }

    fn value(features: Tensor<2>, regions: &[Region]) -> f32 {
        to_vec(loss(features, regions))[0]
    }

    #[test]
    fn by_hand() {
        let near = |a: f32, b: f32| assert!((a - b).abs() < 1e-4, "{a} against {b}");
        // At right angles, whatever the lengths: every z·z is 0, and of n - 1 others one is right: ln(n - 1).
        let corners = rows([[5.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 1.0]]);
        near(value(corners.clone(), &[F, F, B, B]), 3f32.ln());
        // The last is alone in its class: it stands among the others only. Three anchors with two positives each.
        near(value(corners, &[F, F, F, B]), 3f32.ln());
        // Foreground twice the same, z·z = 1; background at an angle whose cosine c has exp((c - 1) / T) = ½: by hand
        // -ln(1 / (1 + ½)), for both; with a second background beside the first also for those -ln(1 / (1 + ½ + ½)).
        let c = 1.0 - 0.07 * 2f32.ln();
        let away = [2.0 * c, 2.0 * (1.0 - c * c).sqrt()];
        near(value(rows([[1.0, 0.0], [3.0, 0.0], away]), &[F, F, B]), 1.5f32.ln());
        near(value(rows([[1.0, 0.0], [3.0, 0.0], away, away]), &[F, F, B, B]), 2f32.ln());
        // No two of a class.
        assert_eq!(value(rows([[1.0, 0.0], [0.0, 1.0]]), &[F, B]), 0.0);
        assert_eq!(value(rows([[1.0, 0.0]]), &[B]), 0.0);
    }

    /// The loss as its formula says, in f64.
    fn formula(features: &[Vec<f64>], regions: &[Region]) -> f64 {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let similar = |i: usize, j: usize| {
            let (a, b) = (&features[i], &features[j]);
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt() / 0.07
        };
        let n = features.len();
        let mut terms = Vec::new();
        for i in 0..n {
            let others: Vec<usize> = (0..n).filter(|a| *a != i).collect();
            let all = others.iter().map(|a| similar(i, *a).exp()).sum::<f64>().ln();
            let positives: Vec<f64> =
                others.iter().filter(|p| regions[**p] == regions[i]).map(|p| similar(i, *p) - all).collect();
            if !positives.is_empty() {
                terms.push(-positives.iter().sum::<f64>() / positives.len() as f64);
            }
        }
        terms.iter().sum::<f64>() / terms.len() as f64
    }

    #[test]
    fn the_gradient_is_that_of_differences() {
        let regions = [F, B, F, B, B, F, F];
        let features: Vec<Vec<f64>> =
            (0..7).map(|i| (0..3).map(|j| ((i * 3 + j) as f64 * 1.7).sin() + 0.3 * j as f64).collect()).collect();
        let flat: Vec<f32> = features.iter().flatten().map(|v| *v as f32).collect();
        let leaf = Tensor::<2>::from_data(TensorData::new(flat, [7, 3]), &Device::flex()).autodiff().require_grad();
        let loss = loss(leaf.clone(), &regions);
        let gradient = to_vec(leaf.grad(&loss.backward()).unwrap());
        assert!((f64::from(to_vec(loss)[0]) - formula(&features, &regions)).abs() < 1e-4);
        for (at, got) in gradient.iter().enumerate() {
            let moved = |by: f64| {
                let mut moved = features.clone();
                moved[at / 3][at % 3] += by;
                formula(&moved, &regions)
            };
            let want = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((f64::from(*got) - want).abs() < 1e-3 * (1.0 + want.abs()), "{at}: {got} against {want}");
        }
    }

    #[test]
    fn features_are_means_over_the_pixels_of_a_region() {
        let device = Device::flex();
        let map = |values: Vec<f32>, shape| Tensor::<4>::from_data(TensorData::new(values, shape), &device);
        // Two channels of 2 × 2 patches of 2 × 2 pixels; the right patches are padding but for their left column.
        let embedding = map(vec![1.0, 2.0, 3.0, 4.0, /* channel 1 */ 10.0, 20.0, 30.0, 40.0], [1, 2, 2, 2]);
        let valid = map([1.0, 1.0, 1.0, 0.0].repeat(4), [1, 1, 4, 4]);
        // Foreground: the first patch whole, one valid pixel of the second, and one in the padding.
        let target = map([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0], [0.0; 4], [0.0; 4]].concat(), [1, 1, 4, 4]);
        let (means, regions) = features(embedding.clone(), target, valid.clone());
        assert_eq!(regions, [F, B]);
        // (4 · 1 + 2) / 5; of the rest (1 · 2 + 4 · 3 + 2 · 4) / 7.
        let want = [1.2, 12.0, 22.0 / 7.0, 220.0 / 7.0];
        assert!(to_vec(means).iter().zip(want).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-5));
        let (means, regions) = features(embedding, valid.zeros_like(), valid);
        assert_eq!((means.dims(), regions), ([1, 2], vec![B]));
    }

    #[test]
    fn batches_are_even() {
        assert_eq!(batch_of(0, 1), 0..1);
        assert_eq!((batch_of(31, 32), batch_of(0, 33), batch_of(32, 33)), (0..32, 0..16, 16..33));
        let all: Vec<Range<usize>> = (0..100).map(|i| batch_of(i, 100)).collect();
        assert!(all.iter().enumerate().all(|(i, batch)| batch.contains(&i) && batch.len() == 25));
    }
}
