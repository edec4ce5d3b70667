//! Optimizers over the trained values alone.
//!
//! State is kept per trained tensor: for a sparse selection it is as small as the selection, and a frozen weight cannot
//! move because it is never touched. Our own because the state must be saved by weight name and resumed bit for bit.

use super::adafactor;
use super::scaling::{Epsilon, Factor, Family, Scaling};
use crate::model::kernel::adam::{self, BETA1, BETA2, Denominator};
use crate::model::weights::to_vec;
use crate::model::{Kind, Part, Weight, Weights};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a step is made from gradients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Kingma & Ba, arXiv 1412.6980, algorithm 1.
    #[default]
    Adam,
    /// Adam and decay beside the gradient (Loshchilov & Hutter, arXiv 1711.05101), of matrices alone. Chosen entries decay
    /// to what they were before training, matrices trained as a whole to zero.
    #[serde(rename = "adamw")]
    AdamW,
    /// Adam without an epsilon (Everett et al., arXiv 2407.05872): values ← values - lr · 4/π · atan2(m̂, √v̂). A step is lr
    /// where m̂ = √v̂ and at most 2 lr; the scale of the loss does not matter.
    AdamAtan2,
    /// Gradient descent with momentum: m ← 0.9 m + g, values ← values - lr · m.
    Sgd,
    /// Shazeer & Stern, arXiv 1804.04235; learning rates are relative to the size of each weight.
    Adafactor,
}

impl Algorithm {
    /// Its row in the table of exponents.
    pub fn family(self) -> Family {
        match self {
            Algorithm::Adam | Algorithm::AdamW | Algorithm::AdamAtan2 => Family::Adam,
            Algorithm::Sgd => Family::Sgd,
            Algorithm::Adafactor => Family::Adafactor,
        }
    }
}

/// Momentum of gradient descent.
const MOMENTUM: f64 = 0.9;

/// How to step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Settings {
    /// From gradients to a step.
    pub algorithm: Algorithm,
    /// By how much of itself a matrix decays at a learning rate of 1: for [`Algorithm::AdamW`].
    pub decay: f64,
    /// The learning rate of what trains beside the image encoder (the mask decoder and the "no mask" embedding), as a part of
    /// the encoder's; 1 by default.
    pub decoder: Option<f64>,
    /// Rates and epsilons by width.
    pub scaling: Scaling,
}

/// What one weight's steps need and keep.
#[derive(Debug, Clone)]
struct Own {
    factor: f64,
    /// Beside it, of each chosen entry: where they differ.
    factors: Option<Tensor<1>>,
    epsilon: f64,
    /// What chosen entries decay to.
    anchor: Option<Tensor<1>>,
}

/// An optimizer at work: moments by weight name, and the number of steps taken.
#[derive(Debug, Clone)]
pub struct Optimizer {
    settings: Settings,
    /// Steps taken.
    pub steps: u32,
    /// Moments of each trained tensor, flat: Adam's first and second; the momentum; of Adafactor the second, in rows and
    /// columns for a matrix.
    pub moments: BTreeMap<String, Vec<Tensor<1>>>,
    own: BTreeMap<String, Own>,
}

impl Optimizer {
    /// No step taken. The weights are attached and hold what they hold before training.
    pub fn new(settings: Settings, weights: &Weights) -> Optimizer {
        let trained = weights.iter().filter(|(_, weight)| weight.trained() > 0);
        let own = trained.map(|(name, weight)| (name.clone(), Own::of(weight, &settings))).collect();
        Optimizer { settings, steps: 0, moments: BTreeMap::new(), own }
    }

    /// Adam with the same epsilon and learning rate for all.
    pub fn adam(epsilon: f64) -> Optimizer {
        let scaling = Scaling { epsilon: Epsilon::Same(epsilon), ..Scaling::default() };
        let settings = Settings { scaling, ..Settings::default() };
        Optimizer { settings, steps: 0, moments: BTreeMap::new(), own: BTreeMap::new() }
    }

    /// Forgets its steps and moments.
    pub fn restart(&mut self) {
        (self.steps, self.moments) = (0, BTreeMap::new());
    }

    /// One step: trained values move against their gradients. A trained tensor the loss does not reach stays.
    pub fn step(&mut self, weights: &mut Weights, gradients: &mut Gradients, lr: f64) {
        self.step_with(weights, gradients, lr, |_, gradient| gradient, |_| None);
    }

    /// The same, with each gradient as `adjust` changes it; `kept` names chosen entries that stay, with 0 among 1.
    pub fn step_with(
        &mut self,
        weights: &mut Weights,
        gradients: &mut Gradients,
        lr: f64,
        adjust: impl Fn(&str, Tensor<1>) -> Tensor<1>,
        kept: impl Fn(&str) -> Option<Tensor<1>>,
    ) {
        self.steps += 1;
        for (name, weight) in weights.iter_mut() {
            let Some(gradient) = weight.leaf().grad_remove(gradients) else { continue };
            let gradient = adjust(name, gradient);
            let moments = self.moments.remove(name).unwrap_or_default();
            let own = self.own.entry(name.clone()).or_insert_with(|| Own::of(weight, &self.settings));
            let rate = lr * own.factor;
            let start = weight.leaf().clone().without_autodiff();
            let values = match self.settings.algorithm {
                Algorithm::AdamW => own.decayed(weight, start.clone(), rate * self.settings.decay),
                _ => start.clone(),
            };
            let (mut moved, moments) =
                stepped(&self.settings, own, weight, values, gradient, moments, rate, self.steps);
            // Where rates differ, and where decay would move what stays, only so much of the step is taken.
            let kept = kept(name).filter(|_| self.settings.algorithm == Algorithm::AdamW);
            for part in own.factors.clone().into_iter().chain(kept) {
                moved = start.clone() + (moved - start.clone()) * part;
            }
            self.moments.insert(name.clone(), moments);
            if weight.chosen.is_some() {
                weight.set_chosen(moved);
            } else {
                weight.value = moved.autodiff().require_grad();
            }
        }
    }

    /// Moments in main memory.
    pub fn to_host(&self) -> BTreeMap<String, Vec<Vec<f32>>> {
        let host = |moments: &Vec<Tensor<1>>| moments.iter().map(|t| to_vec(t.clone())).collect();
        self.moments.iter().map(|(name, moments)| (name.clone(), host(moments))).collect()
    }

    /// Puts saved moments back.
    pub fn restore(&mut self, steps: u32, moments: BTreeMap<String, Vec<Vec<f32>>>, device: &Device) {
        self.steps = steps;
        let back = |moments: Vec<Vec<f32>>| moments.into_iter().map(|v| tensor(v, device)).collect();
        self.moments = moments.into_iter().map(|(name, moments)| (name, back(moments))).collect();
    }
}

impl Own {
    fn of(weight: &Weight, settings: &Settings) -> Own {
        let part = settings.decoder.filter(|_| weight.spec.part != Part::ImageEncoder).unwrap_or(1.0);
        let (factor, factors) = match settings.scaling.factor(weight, settings.algorithm.family()) {
            Factor::Same(factor) => (factor, None),
            Factor::Each(factors) => (1.0, Some(tensor(factors, &weight.value.device().without_autodiff()))),
        };
        // A bypass holds what is added: it decays to zero as it is.
        let chosen = weight.chosen.as_ref().filter(|chosen| chosen.base.is_none());
        let anchor = chosen
            .filter(|_| settings.algorithm == Algorithm::AdamW)
            .map(|chosen| chosen.values.clone().without_autodiff());
        Own { factor: factor * part, factors, epsilon: settings.scaling.epsilon(&weight.spec), anchor }
    }

    /// Values with this part of them, or of their way from the anchor, taken away.
    fn decayed(&self, weight: &Weight, values: Tensor<1>, part: f64) -> Tensor<1> {
        match &self.anchor {
            _ if !matches!(weight.spec.kind, Kind::Linear | Kind::Conv | Kind::ConvTranspose) => values,
            Some(anchor) => values.clone() - (values - anchor.clone()) * part,
            None => values * (1.0 - part),
        }
    }
}

/// Moved values and new moments.
#[expect(clippy::too_many_arguments, reason = "the parts of one step")]
fn stepped(
    settings: &Settings,
    own: &Own,
    weight: &Weight,
    values: Tensor<1>,
    gradient: Tensor<1>,
    mut moments: Vec<Tensor<1>>,
    rate: f64,
    t: u32,
) -> (Tensor<1>, Vec<Tensor<1>>) {
    let device = gradient.device();
    let n = gradient.dims()[0];
    let zeros = || Tensor::zeros([n], &device);
    match settings.algorithm {
        Algorithm::Adam | Algorithm::AdamW | Algorithm::AdamAtan2 => {
            let (bias1, bias2) = (1.0 - BETA1.powi(t as i32), 1.0 - BETA2.powi(t as i32));
            let denominator = match settings.algorithm {
                Algorithm::AdamAtan2 => Denominator::Atan2,
                _ => Denominator::Epsilon(own.epsilon),
            };
            let (second, first) = (moments.pop().unwrap_or_else(zeros), moments.pop().unwrap_or_else(zeros));
            let moved = adam::step(values, gradient, (first, second), rate, [bias1, bias2], denominator);
            (moved.0, vec![moved.1, moved.2])
        }
        Algorithm::Sgd => {
            let momentum = moments.pop().unwrap_or_else(zeros) * MOMENTUM + gradient;
            (values - momentum.clone() * rate, vec![momentum])
        }
        Algorithm::Adafactor => {
            let (rows, columns) = weight.spec.matrix();
            let is_matrix = weight.chosen.is_none() && rows > 1 && columns > 1;
            let mut host: Vec<Vec<f32>> = moments.into_iter().map(to_vec).collect();
            if host.is_empty() {
                host = adafactor::start(n, is_matrix.then_some(rows));
            }
            // What a bypass goes around is a part of the weight.
            let base = weight.chosen.as_ref().and_then(|chosen| chosen.base.clone());
            let whole = base.map_or_else(|| values.clone(), |base| base + values.clone());
            let update = adafactor::update(&to_vec(gradient), &mut host, adafactor::size(&to_vec(whole)), t);
            let moved = values - tensor(update, &device) * rate;
            (moved, host.into_iter().map(|moments| tensor(moments, &device)).collect())
        }
    }
}

fn tensor(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Sam, SamConfig, checkpoint};
    use crate::tune::scaling::LrScaling;

    const LIN1: &str = "image_encoder.blocks.0.mlp.lin1.weight";
    const LIN2: &str = "image_encoder.blocks.0.mlp.lin2.weight";
    const BIAS: &str = "image_encoder.blocks.0.mlp.lin2.bias";

    /// A matrix trained as a whole, entries of another (two in the first row, one in the second), a bias.
    fn network() -> Sam {
        let config = SamConfig { depth: 1, global: vec![0], ..SamConfig::tiny() };
        let mut sam = checkpoint::random("small", config, 1).into_sam(&Device::flex());
        sam.weights.get_mut(LIN1).unwrap().train_all();
        sam.weights.get_mut(LIN2).unwrap().train_chosen(&[0, 5, 768], &Device::flex());
        sam.weights.get_mut(BIAS).unwrap().train_all();
        sam
    }

    /// Steps on gradients drawn from the step's number, times `factor`.
    fn steps(optimizer: &mut Optimizer, sam: &mut Sam, numbers: std::ops::Range<u32>, factor: f32) {
        for step in numbers {
            let wave = |n: usize| {
                let values = (0..n).map(|i| factor * ((i as f32 + 1.0) * (0.7 + step as f32)).sin()).collect();
                tensor(values, &Device::flex())
            };
            let trained = sam.weights.iter().filter(|(_, weight)| weight.trained() > 0);
            let losses = trained.map(|(_, weight)| (weight.leaf().clone() * wave(weight.trained())).sum());
            let loss = losses.reduce(|a, b| a + b).unwrap();
            optimizer.step(&mut sam.weights, &mut loss.backward(), 1e-3);
        }
    }

    fn values(sam: &Sam) -> Vec<f32> {
        sam.weights.iter().flat_map(|(_, weight)| to_vec(weight.value.clone())).collect()
    }

    fn settings(algorithm: Algorithm) -> Settings {
        Settings { algorithm, decay: 0.01, ..Settings::default() }
    }

    const ALGORITHMS: [Algorithm; 5] =
        [Algorithm::Adam, Algorithm::AdamW, Algorithm::AdamAtan2, Algorithm::Sgd, Algorithm::Adafactor];

    /// After three steps on gradients times this factor.
    fn trained(algorithm: Algorithm, factor: f32) -> Vec<f32> {
        let mut sam = network();
        let mut optimizer = Optimizer::new(settings(algorithm), &sam.weights);
        steps(&mut optimizer, &mut sam, 0..3, factor);
        values(&sam)
    }

    /// The largest difference, in learning rates.
    fn apart(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / 1e-3
    }

    #[test]
    fn the_scale_of_gradients_does_not_matter_to_adam_atan2() {
        let plain = trained(Algorithm::AdamAtan2, 1.0);
        assert!(apart(&plain, &values(&network())) > 0.5, "it moves");
        for factor in [1e-6, 1e6] {
            let scaled = trained(Algorithm::AdamAtan2, factor);
            assert!(apart(&plain, &scaled) < 1e-3, "{factor}: {}", apart(&plain, &scaled));
        }
        // A power of two rounds nothing: to the bit.
        for factor in [2f32.powi(-20), 2f32.powi(20)] {
            assert!(trained(Algorithm::AdamAtan2, factor) == plain, "{factor}");
        }
        // Where gradients are of epsilon's size, it does to Adam.
        assert!(apart(&trained(Algorithm::Adam, 1.0), &trained(Algorithm::Adam, 1e-8)) > 0.1);
    }

    #[test]
    fn adam_atan2_steps_by_hand() {
        let mut sam = network();
        let before = values(&sam);
        let mut optimizer = Optimizer::new(settings(Algorithm::AdamAtan2), &sam.weights);
        steps(&mut optimizer, &mut sam, 0..1, 1.0);
        // At the first step m̂ = g and √v̂ = |g|: 4/π · atan2(±1, 1) = ±1.
        let moves: Vec<f32> =
            values(&sam).iter().zip(&before).map(|(a, b)| (a - b) / 1e-3).filter(|m| *m != 0.0).collect();
        assert_eq!(moves.len(), 768 * 192 + 3 + 192);
        assert!(moves.iter().all(|m| (m.abs() - 1.0).abs() < 1e-3));
    }

    #[test]
    fn the_decoder_learns_at_its_own_rate() {
        const HEAD: &str = "mask_decoder.transformer.layers.0.mlp.lin1.bias";
        for algorithm in ALGORITHMS {
            // How far the decoder's and the encoder's bias move in a first step.
            let moves = |decoder: Option<f64>| {
                let mut sam = network();
                sam.weights.get_mut(HEAD).unwrap().train_all();
                let held = |sam: &Sam, name: &str| to_vec(sam.weights.get(name).unwrap().value.clone());
                let before = [HEAD, BIAS].map(|name| held(&sam, name));
                let mut optimizer = Optimizer::new(Settings { decoder, ..settings(algorithm) }, &sam.weights);
                steps(&mut optimizer, &mut sam, 0..1, 1.0);
                [(HEAD, &before[0]), (BIAS, &before[1])].map(|(name, before)| {
                    let after = held(&sam, name);
                    after.iter().zip(before).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>()
                })
            };
            let ([head, bias], [slower, same]) = (moves(None), moves(Some(0.25)));
            assert!(bias > 0.0 && bias == same, "{algorithm:?}: the encoder's rate is as it was");
            assert!((slower / head - 0.25).abs() < 1e-3, "{algorithm:?}: {slower} of {head}");
        }
    }

    #[test]
    fn sgd_steps_by_hand() {
        let mut sam = network();
        let mut optimizer = Optimizer::new(settings(Algorithm::Sgd), &sam.weights);
        let before = to_vec(sam.weights.get(BIAS).unwrap().value.clone());
        steps(&mut optimizer, &mut sam, 0..2, 1.0);
        let after = to_vec(sam.weights.get(BIAS).unwrap().value.clone());
        for (i, (before, after)) in before.iter().zip(after).enumerate() {
            let gradient = |step: f32| ((i as f32 + 1.0) * (0.7 + step)).sin();
            // m = g₀, then 0.9 g₀ + g₁.
            let want = before - 1e-3 * (1.9 * gradient(0.0) + gradient(1.0));
            assert!((after - want).abs() < 1e-7, "{i}: {after} {want}");
        }
    }

    #[test]
    fn adamw_decays_matrices_alone_and_chosen_entries_to_the_base() {
        let start = network();
        let adam = trained(Algorithm::Adam, 1.0);
        let adamw = trained(Algorithm::AdamW, 1.0);
        let parts = |all: &[f32]| -> BTreeMap<String, Vec<f32>> {
            let mut at = 0;
            let part = |(name, weight): (&String, &Weight)| {
                at += weight.spec.len();
                (name.clone(), all[at - weight.spec.len()..at].to_vec())
            };
            start.weights.iter().map(part).collect()
        };
        let (adam, adamw, start) = (parts(&adam), parts(&adamw), parts(&values(&start)));
        assert_eq!(adam[BIAS], adamw[BIAS]);
        // Three steps of a learning rate of 1e-3 and a decay of 1 %: 3e-5 of a value of a matrix is gone.
        for i in [0, 7, 100] {
            let gone = (adam[LIN1][i] - adamw[LIN1][i]) / start[LIN1][i];
            assert!((gone - 3e-5).abs() < 1e-5, "{gone}");
        }
        // Entries that have moved by a thousandth lose 3e-8 at most: nothing like 3e-5 of themselves.
        for i in [0, 5, 768] {
            assert!((adam[LIN2][i] - adamw[LIN2][i]).abs() < 1e-7);
        }
        assert_eq!(adam[LIN2][1], start[LIN2][1]);
    }

    #[test]
    fn what_stays_does_not_decay_either() {
        let mut sam = network();
        let settings = Settings { decay: 1.0, ..settings(Algorithm::AdamW) };
        let mut optimizer = Optimizer::new(settings, &sam.weights);
        steps(&mut optimizer, &mut sam, 0..1, 1.0);
        let before = values(&sam);
        let kept = |name: &str| (name == LIN2).then(|| tensor(vec![0.0, 1.0, 1.0], &Device::flex()));
        optimizer.restart();
        let leaf = sam.weights.get(LIN2).unwrap().leaf().clone();
        let adjust = |name: &str, gradient: Tensor<1>| match kept(name) {
            Some(kept) => gradient * kept,
            None => gradient,
        };
        optimizer.step_with(&mut sam.weights, &mut leaf.sum().backward(), 1e-2, adjust, kept);
        let moved: Vec<bool> = values(&sam).iter().zip(&before).map(|(a, b)| a != b).collect();
        assert_eq!(moved.iter().filter(|m| **m).count(), 2);
    }

    #[test]
    fn rows_with_more_entries_learn_at_a_lower_rate() {
        for algorithm in ALGORITHMS {
            let moves = |rates| {
                let mut sam = network();
                let before = to_vec(sam.weights.get(LIN2).unwrap().leaf().clone());
                let scaling = Scaling { rates, ..Scaling::default() };
                let mut optimizer = Optimizer::new(Settings { scaling, ..settings(algorithm) }, &sam.weights);
                steps(&mut optimizer, &mut sam, 0..1, 1.0);
                let after = to_vec(sam.weights.get(LIN2).unwrap().leaf().clone());
                after.iter().zip(before).map(|(a, b)| a - b).collect::<Vec<f32>>()
            };
            let (same, scaled) = (moves(LrScaling::None), moves(LrScaling::Full));
            // Two entries in the first row, one in the second; beside it, what the width of 768 does: √4 for both.
            let width = if algorithm.family() == Family::Adam { 1.0 } else { 2.0 };
            for (i, wanted) in [0.5, 0.5, 1.0].into_iter().enumerate() {
                let ratio = scaled[i] / same[i];
                assert!((ratio - width * wanted).abs() < 2e-3, "{algorithm:?} {i}: {ratio}");
            }
        }
    }

    #[test]
    fn no_state_is_larger_than_what_trains_and_all_of_it_comes_back() {
        for algorithm in ALGORITHMS {
            let mut sam = network();
            let settings =
                Settings { scaling: Scaling { rates: LrScaling::Full, ..Scaling::default() }, ..settings(algorithm) };
            let mut optimizer = Optimizer::new(settings, &sam.weights);
            steps(&mut optimizer, &mut sam, 0..4, 1.0);
            let state = optimizer.to_host();
            let sizes = |name: &str| state[name].iter().map(Vec::len).collect::<Vec<_>>();
            let (matrix, entries) = match algorithm {
                Algorithm::Sgd => (vec![768 * 192], vec![3]),
                Algorithm::Adafactor => (vec![768, 192], vec![3]),
                _ => (vec![768 * 192; 2], vec![3; 2]),
            };
            assert_eq!((sizes(LIN1), sizes(LIN2)), (matrix, entries), "{algorithm:?}");
            // Two steps, out and back, two steps.
            let mut again = network();
            let mut first = Optimizer::new(settings, &again.weights);
            steps(&mut first, &mut again, 0..2, 1.0);
            let mut second = Optimizer::new(settings, &network().weights);
            second.restore(first.steps, first.to_host(), &Device::flex());
            steps(&mut second, &mut again, 2..4, 1.0);
            assert!(values(&again) == values(&sam), "{algorithm:?}");
            assert!(second.to_host() == state, "{algorithm:?}");
        }
    }
}
