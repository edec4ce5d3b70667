//! Learning rates and epsilons that follow a layer's width (Everett et al., Scaling Exponents Across Parameterizations and
//! Optimizers, arXiv 2407.05872).
//!
//! A layer of width n multiplies by n⁻ᵃ · w, where w starts as a normal of deviation n⁻ᵇ; its learning rate is
//! lr · (n / base)⁻ᶜ. The largest stable c lets an update move what the layer gives by the same amount at every width. The
//! update meets n inputs: their terms add up to n^α, where α is 1 when the update is aligned with the inputs and ½ when
//! it is not. The stability of a layer therefore asks n⁻ᵃ · (size of an update's entry) · n^α = 1.
//!
//! A pretrained SAM is of the standard parameterization, and a program that trains it may choose c alone. For Adam that is
//! no loss: n⁻ᵃ · n⁻ᶜ, by which the weight that the network sees moves, is the same in all four parameterizations.
//!
//! Where only some inputs of a neuron train, an update meets their number k instead of n: n^α becomes k^α, and the base of
//! k is 1. So it is with the inputs of an added layer that come from a bottleneck, as those of B in LoRA's B A: k is the
//! rank.

use crate::error::{Error, Result, nearest};
use crate::model::sam::Addition;
use crate::model::sam::config::MASK_TOKENS;
use crate::model::{Kind, Part, Sam, Weight, WeightSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a weight's size and its multiplier follow the width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parameterization {
    /// As networks are usually made, SAM too: weights shrink, nothing is multiplied.
    Standard,
    /// Jacot et al., arXiv 1806.07572.
    Ntk,
    /// Maximal update: Yang & Hu, arXiv 2011.14522.
    MuP,
    /// Mei et al., arXiv 1804.06561.
    MeanField,
}

/// Optimizers, by the size of an update's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// That of the gradient.
    Sgd,
    /// One.
    Adam,
    /// That of the weight's entries: Adafactor with its parameter scale.
    Adafactor,
}

/// What a layer does with the width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// From inputs of fixed number to the width: the first convolution, and everything that is added or multiplied entry
    /// by entry (biases, norms, position tables, tokens).
    Embedding,
    /// From the width to the width.
    Hidden,
    /// From the width to outputs of fixed number.
    Readout,
}

/// How the update of a layer lies to its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alignment {
    /// Terms add up: α = 1. Safe.
    Full,
    /// Terms add up as random ones do: α = ½.
    None,
}

impl Alignment {
    /// α.
    pub fn alpha(self) -> f64 {
        match self {
            Alignment::Full => 1.0,
            Alignment::None => 0.5,
        }
    }
}

/// Exponents of one parameterization, for embedding, hidden and readout layers.
#[derive(Debug)]
pub struct Exponents {
    /// Which.
    pub of: Parameterization,
    /// a, of the multiplier.
    pub a: [f64; 3],
    /// b, of the start.
    pub b: [f64; 3],
    /// The largest stable c for SGD, Adam and Adafactor, under full and under no alignment.
    pub c: [[[f64; 3]; 2]; 3],
}

/// Table 1 of the paper. Where Adafactor's stability would allow a negative c (readout under no alignment, muP and mean
/// field), 0 stands: a step larger than the weight's own size feeds on itself.
pub const TABLE: [Exponents; 4] = [
    Exponents {
        of: Parameterization::Standard,
        a: [0.0, 0.0, 0.0],
        b: [0.0, 0.5, 0.5],
        c: [
            [[-0.5, 0.5, 1.0], [-0.5, 0.0, 0.5]],
            [[0.0, 1.0, 1.0], [0.0, 0.5, 0.5]],
            [[0.0, 0.5, 0.5], [0.0, 0.0, 0.0]],
        ],
    },
    Exponents {
        of: Parameterization::Ntk,
        a: [0.0, 0.5, 0.5],
        b: [0.0, 0.0, 0.0],
        c: [
            [[-0.5, -0.5, 0.0], [-0.5, -1.0, -0.5]],
            [[0.0, 0.5, 0.5], [0.0, 0.0, 0.0]],
            [[0.0, 0.5, 0.5], [0.0, 0.0, 0.0]],
        ],
    },
    Exponents {
        of: Parameterization::MuP,
        a: [-0.5, 0.0, 0.5],
        b: [0.5, 0.5, 0.5],
        c: [
            [[0.0, 0.0, 0.0], [0.0, -0.5, -0.5]],
            [[0.5, 1.0, 0.5], [0.5, 0.5, 0.0]],
            [[0.0, 0.5, 0.0], [0.0, 0.0, 0.0]],
        ],
    },
    Exponents {
        of: Parameterization::MeanField,
        a: [0.0, 0.5, 1.0],
        b: [0.0, 0.0, 0.0],
        c: [
            [[-1.0, -1.0, -1.0], [-1.0, -1.5, -1.5]],
            [[0.0, 0.5, 0.0], [0.0, 0.0, -0.5]],
            [[0.0, 0.5, 0.0], [0.0, 0.0, 0.0]],
        ],
    },
];

impl Exponents {
    /// Those of a parameterization.
    pub fn of(parameterization: Parameterization) -> &'static Exponents {
        // In the order of the variants.
        &TABLE[parameterization as usize]
    }

    /// The largest stable c.
    pub fn rate(&self, family: Family, layer: Layer, alignment: Alignment) -> f64 {
        self.c[family as usize][alignment as usize][layer as usize]
    }

    /// e where a gradient's entries are of size n⁻ᵉ: behind the readout's size n^-(a + b), and behind the layer's own
    /// multiplier.
    pub fn gradient(&self, layer: Layer) -> f64 {
        let (own, readout) = (self.a[layer as usize], Layer::Readout as usize);
        let behind = self.a[readout] + self.b[readout];
        if layer == Layer::Readout { own } else { own + behind }
    }
}

impl Layer {
    /// What a weight is, by its kind and shape.
    pub fn of(spec: &WeightSpec) -> Layer {
        /// Channels of a picture: convolutions of no more see pixels.
        const PIXELS: usize = 3;
        match spec.kind {
            Kind::Bias | Kind::Norm | Kind::Position | Kind::Embedding | Kind::Buffer => Layer::Embedding,
            Kind::Conv if spec.shape.get(1).is_some_and(|channels| *channels <= PIXELS) => Layer::Embedding,
            // A fixed number of pixels, as in the first convolution.
            Kind::Linear if pixels(spec) => Layer::Embedding,
            // The head that says how good each mask is; a mask itself is the product of two hidden layers.
            Kind::Linear if spec.part == Part::MaskDecoder && spec.matrix().0 <= MASK_TOKENS => Layer::Readout,
            Kind::Linear | Kind::Conv | Kind::ConvTranspose => Layer::Hidden,
        }
    }
}

/// Whether it is the added layer that sees the picture's pixels.
fn pixels(spec: &WeightSpec) -> bool {
    matches!(Addition::of(&spec.name), Some((Addition::Generator, _))) && spec.name.ends_with("high.weight")
}

/// The number of inputs of an added layer that leads out of a bottleneck.
fn bottleneck(spec: &WeightSpec) -> Option<usize> {
    let (out, fan_in) = spec.matrix();
    (spec.kind == Kind::Linear && fan_in < out && Addition::of(&spec.name).is_some()).then_some(fan_in)
}

/// The width n of a weight: the number of inputs that each output adds up; of an embedding, and behind a bottleneck, the
/// width it leads to.
pub fn width(spec: &WeightSpec) -> usize {
    let side = |axis: usize| spec.shape.get(axis).copied().unwrap_or(1);
    match (Layer::of(spec), spec.kind) {
        _ if bottleneck(spec).is_some() => side(0),
        (Layer::Embedding, Kind::Conv | Kind::Bias | Kind::Norm | Kind::Linear) => side(0),
        (Layer::Embedding, _) => spec.shape.last().copied().unwrap_or(1),
        // Kernel and stride are the same: each output sees each input once.
        (_, Kind::ConvTranspose) => side(0),
        _ => spec.matrix().1,
    }
}

/// Which alignment learning rates are scaled for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrScaling {
    /// One learning rate for all.
    #[default]
    None,
    /// None: the upper bound.
    NoAlign,
    /// Full: safe.
    Full,
}

impl LrScaling {
    fn alignment(self) -> Option<Alignment> {
        match self {
            LrScaling::None => None,
            LrScaling::NoAlign => Some(Alignment::None),
            LrScaling::Full => Some(Alignment::Full),
        }
    }
}

/// What is added to Adam's denominator.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "serde_json::Value", into = "serde_json::Value")]
pub enum Epsilon {
    /// The same everywhere.
    Same(f64),
    /// [`EPSILON`] at the base width, and in other widths as much more or less as gradients are expected to be.
    PerLayer,
}

/// Adam's usual epsilon.
pub const EPSILON: f64 = 1e-8;

/// The word for [`Epsilon::PerLayer`].
const PER_LAYER: &str = "per-layer";

impl From<Epsilon> for serde_json::Value {
    fn from(epsilon: Epsilon) -> Self {
        match epsilon {
            Epsilon::Same(value) => value.into(),
            Epsilon::PerLayer => PER_LAYER.into(),
        }
    }
}

impl TryFrom<serde_json::Value> for Epsilon {
    type Error = Error;

    fn try_from(value: serde_json::Value) -> Result<Epsilon> {
        let number = value.as_f64().or_else(|| value.as_str()?.parse().ok());
        match (number, value.as_str()) {
            // Not 0 as the f32 it is used as: a gradient that is 0 would be divided by it.
            (Some(epsilon), _) if epsilon as f32 > 0.0 && epsilon.is_finite() => Ok(Epsilon::Same(epsilon)),
            (None, Some(PER_LAYER)) => Ok(Epsilon::PerLayer),
            (None, Some(word)) if nearest(word, [PER_LAYER]).is_some() => {
                Err(Error::usage(format!("did you mean `{PER_LAYER}`?")))
            }
            _ => Err(Error::usage(format!("expected a number above 0, or `{PER_LAYER}`"))
                .hint("without any: --optimizer adam-atan2")),
        }
    }
}

/// How learning rate and epsilon follow the width.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scaling {
    /// Learning rates.
    pub rates: LrScaling,
    /// The width at which a layer's learning rate is the one that was asked for.
    pub base: usize,
    /// Epsilons.
    pub epsilon: Epsilon,
}

/// The width of `tiny`, with which the methods' own learning rates were tuned.
pub const BASE_WIDTH: usize = 192;

impl Default for Scaling {
    fn default() -> Self {
        Scaling { rates: LrScaling::None, base: BASE_WIDTH, epsilon: Epsilon::Same(EPSILON) }
    }
}

/// What a weight's learning rate is multiplied by.
#[derive(Debug, Clone, PartialEq)]
pub enum Factor {
    /// The same for all of its trained values.
    Same(f64),
    /// One for each of its chosen entries: neurons with many of them learn at a lower rate.
    Each(Vec<f32>),
}

impl Scaling {
    /// The factor of a trained weight.
    pub fn factor(&self, weight: &Weight, family: Family) -> Factor {
        let Some(alignment) = self.rates.alignment() else { return Factor::Same(1.0) };
        let (spec, alpha) = (&weight.spec, alignment.alpha());
        let layer = Layer::of(spec);
        let c = Exponents::of(Parameterization::Standard).rate(family, layer, alignment);
        let relative = width(spec) as f64 / self.base as f64;
        // c without n^α. Of an embedding it has no such part: the number of its inputs is fixed.
        let rest = relative.powf(-(c - if layer == Layer::Embedding { 0.0 } else { alpha }));
        let Some(chosen) = &weight.chosen else {
            let rank = bottleneck(spec).map(|rank| rest * (rank as f64).powf(-alpha));
            return Factor::Same(rank.unwrap_or_else(|| relative.powf(-c)));
        };
        let fan_in = spec.matrix().1.max(1) as u32;
        let rows = per_row(&chosen.indices, fan_in);
        let of = |index: &u32| rest * (rows[&(index / fan_in)] as f64).powf(-alpha);
        match chosen.indices.first() {
            Some(first) if rows.values().all(|n| *n == rows[&(first / fan_in)]) => Factor::Same(of(first)),
            _ => Factor::Each(chosen.indices.iter().map(|index| of(index) as f32).collect()),
        }
    }

    /// The epsilon of a weight.
    pub fn epsilon(&self, spec: &WeightSpec) -> f64 {
        match self.epsilon {
            Epsilon::Same(epsilon) => epsilon,
            Epsilon::PerLayer => {
                let exponent = Exponents::of(Parameterization::Standard).gradient(Layer::of(spec));
                EPSILON * (width(spec) as f64 / self.base as f64).powf(-exponent)
            }
        }
    }

    /// One line for each kind of layer that trains and each of its factors: what `-v` shows.
    pub fn lines(&self, sam: &Sam, family: Family) -> Vec<String> {
        let mut kinds: BTreeMap<(Layer, bool, usize, String), usize> = BTreeMap::new();
        for (_, weight) in sam.weights.iter().filter(|(_, weight)| weight.trained() > 0) {
            let factor = match self.factor(weight, family) {
                Factor::Same(factor) => format!("{factor:.4}"),
                Factor::Each(factors) => {
                    let (low, high) =
                        factors.iter().fold((f32::MAX, 0f32), |(low, high), f| (low.min(*f), high.max(*f)));
                    format!("{low:.4} to {high:.4}")
                }
            };
            let text = format!("lr × {factor}, epsilon {:.2e}", self.epsilon(&weight.spec));
            let text = match bottleneck(&weight.spec) {
                Some(rank) => format!("behind a bottleneck of {rank}: {text}"),
                None => text,
            };
            let kind = (Layer::of(&weight.spec), weight.chosen.is_some(), width(&weight.spec), text);
            *kinds.entry(kind).or_default() += 1;
        }
        let line = |((layer, chosen, width, text), n): ((Layer, bool, usize, String), usize)| {
            let layer = format!("{layer:?}").to_lowercase();
            let part = if chosen { ", selected entries" } else { "" };
            format!("{:12} {layer}, width {width}{part}: {text} ({n} weights)", "rates")
        };
        kinds.into_iter().map(line).collect()
    }
}

/// Number of entries in each row that has any.
fn per_row(indices: &[u32], fan_in: u32) -> BTreeMap<u32, usize> {
    let mut rows = BTreeMap::new();
    for index in indices {
        *rows.entry(index / fan_in).or_default() += 1;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{SamConfig, checkpoint};
    use burn::tensor::Device;

    const ALL: [Parameterization; 4] =
        [Parameterization::Standard, Parameterization::Ntk, Parameterization::MuP, Parameterization::MeanField];
    const FAMILIES: [Family; 3] = [Family::Sgd, Family::Adam, Family::Adafactor];
    const LAYERS: [Layer; 3] = [Layer::Embedding, Layer::Hidden, Layer::Readout];
    const BOTH: [Alignment; 2] = [Alignment::Full, Alignment::None];

    /// Numbers of mean 0 and variance 1, from a seed: the sum of twelve uniform ones, less 6.
    struct Draw(u64);

    impl Draw {
        fn next(&mut self) -> f64 {
            let mut uniform = || {
                self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (self.0 >> 11) as f64 / (1u64 << 53) as f64
            };
            (0..12).map(|_| uniform()).sum::<f64>() - 6.0
        }

        fn many(&mut self, n: usize, deviation: f64) -> Vec<f64> {
            (0..n).map(|_| deviation * self.next()).collect()
        }
    }

    fn size(values: &[f64]) -> f64 {
        (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt()
    }

    /// What the first step of a linear network of this width changes in the output of each layer: of 4 inputs, a hidden
    /// layer, one output. `inputs` are those that the step was made from (aligned with it) or others of the same size.
    fn moved(exponents: &Exponents, family: Family, alignment: Alignment, n: usize, seed: u64) -> [f64; 3] {
        let width = n as f64;
        let mut draw = Draw(seed);
        let multiplier = exponents.a.map(|a| width.powf(-a));
        let start = exponents.b.map(|b| width.powf(-b));
        let x = [1.0, -1.0, 0.5, 2.0];
        let embedding = draw.many(4 * n, start[0]);
        let z1: Vec<f64> =
            embedding.chunks(4).map(|row| multiplier[0] * row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()).collect();
        let hidden = draw.many(n * n, start[1]);
        let product = |row: &[f64], z: &[f64]| row.iter().zip(z).map(|(w, z)| w * z).sum::<f64>();
        let z2: Vec<f64> = hidden.chunks(n).map(|row| multiplier[1] * product(row, &z1)).collect();
        let readout = draw.many(n, start[2]);
        // The output's derivative is 1: backwards through the weights.
        let d2: Vec<f64> = readout.iter().map(|w| multiplier[2] * w).collect();
        let mut d1 = vec![0.0; n];
        for (row, d) in hidden.chunks(n).zip(&d2) {
            d1.iter_mut().zip(row).for_each(|(sum, w)| *sum += multiplier[1] * w * d);
        }
        let outer = |d: &[f64], z: &[f64], m: f64| -> Vec<f64> {
            d.iter().flat_map(|d| z.iter().map(move |z| m * d * z)).collect()
        };
        let gradients =
            [outer(&d1, &x, multiplier[0]), outer(&d2, &z1, multiplier[1]), outer(&[1.0], &z2, multiplier[2])];
        let weights = [embedding, hidden, readout];
        let mut result = [0.0; 3];
        for (i, layer) in LAYERS.into_iter().enumerate() {
            let rate = width.powf(-exponents.rate(family, layer, alignment));
            let own = size(&weights[i]);
            let update: Vec<f64> = match family {
                Family::Sgd => gradients[i].iter().map(|g| rate * g).collect(),
                // At the first step m̂ / √v̂ is the sign, and Adafactor's rows and columns give it, too: rank 1.
                Family::Adam => gradients[i].iter().map(|g| rate * g.signum()).collect(),
                Family::Adafactor => gradients[i].iter().map(|g| rate * own * g.signum()).collect(),
            };
            let inputs: Vec<Vec<f64>> = match (layer, alignment) {
                (Layer::Embedding, _) => vec![x.to_vec()],
                (Layer::Hidden, Alignment::Full) => vec![z1.clone()],
                (Layer::Readout, Alignment::Full) => vec![z2.clone()],
                (_, Alignment::None) => (0..60).map(|_| draw.many(n, 1.0)).collect(),
            };
            let fan_in = inputs[0].len();
            let changes: Vec<f64> = inputs
                .iter()
                .flat_map(|z| update.chunks(fan_in).map(|row| multiplier[i] * product(row, z)).collect::<Vec<_>>())
                .collect();
            result[i] = size(&changes);
        }
        result
    }

    /// The second source of the table: with its exponents, what a step changes is the same at widths 64 and 512, as means
    /// of logarithms over four networks.
    #[test]
    fn with_every_cell_a_step_changes_as_much_at_every_width() {
        for (parameterization, family) in ALL.into_iter().flat_map(|p| FAMILIES.map(|f| (p, f))) {
            for alignment in BOTH {
                let exponents = Exponents::of(parameterization);
                let steps = [64, 512].map(|n| [1, 2, 3, 4].map(|seed| moved(exponents, family, alignment, n, seed)));
                for (i, layer) in LAYERS.into_iter().enumerate() {
                    let [small, large] = steps.map(|steps| steps.map(|moved| moved[i].ln()).iter().sum::<f64>() / 4.0);
                    let slope = (large - small) / 8f64.ln();
                    // The two cells in which stability would allow more: there a step's part shrinks.
                    let held = family == Family::Adafactor
                        && (layer, alignment) == (Layer::Readout, Alignment::None)
                        && matches!(parameterization, Parameterization::MuP | Parameterization::MeanField);
                    let want = if held { -0.5 } else { 0.0 };
                    assert!(
                        (slope - want).abs() < 0.15,
                        "{parameterization:?} {family:?} {layer:?} {alignment:?}: n^{slope:.2}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_cell_is_what_stability_asks_for() {
        for (parameterization, exponents) in ALL.into_iter().zip(&TABLE) {
            assert_eq!(exponents.of, parameterization);
            for (family, layer) in FAMILIES.into_iter().flat_map(|f| LAYERS.map(|l| (f, l))) {
                for alignment in BOTH {
                    let (a, b) = (exponents.a[layer as usize], exponents.b[layer as usize]);
                    // The size of an update's entry before the rate, as a power of 1 / n.
                    let entry = match family {
                        Family::Sgd => exponents.gradient(layer),
                        Family::Adam => 0.0,
                        Family::Adafactor => b,
                    };
                    let inputs = if layer == Layer::Embedding { 0.0 } else { alignment.alpha() };
                    let stable = inputs - a - entry;
                    let want = if family == Family::Adafactor { stable.max(0.0) } else { stable };
                    let got = exponents.rate(family, layer, alignment);
                    assert_eq!(got, want, "{parameterization:?} {family:?} {layer:?} {alignment:?}");
                }
            }
        }
    }

    /// Why `--lr-scaling` does not ask for a parameterization: what the network sees of Adam's step is the same in all.
    #[test]
    fn adams_steps_are_the_same_in_every_parameterization() {
        for (layer, alignment) in LAYERS.into_iter().flat_map(|l| BOTH.map(|a| (l, a))) {
            let seen = |of| {
                let exponents = Exponents::of(of);
                exponents.a[layer as usize] + exponents.rate(Family::Adam, layer, alignment)
            };
            assert!(ALL.into_iter().all(|of| seen(of) == seen(Parameterization::Standard)), "{layer:?} {alignment:?}");
        }
    }

    #[test]
    fn layers_of_a_sam() {
        for config in ["tiny", "vit_b"].map(|name| SamConfig::named(name).unwrap()) {
            let specs = config.specs();
            let named = |part: &str| {
                let spec = specs.iter().find(|s| s.name.ends_with(part)).unwrap();
                (Layer::of(spec), width(spec))
            };
            let (c, o) = (config.embed, config.out_chans);
            assert_eq!(named("blocks.0.attn.qkv.weight"), (Layer::Hidden, c));
            assert_eq!(named("blocks.0.attn.qkv.bias"), (Layer::Embedding, 3 * c));
            assert_eq!(named("blocks.0.mlp.lin2.weight"), (Layer::Hidden, 4 * c));
            assert_eq!(named("blocks.0.norm1.weight"), (Layer::Embedding, c));
            assert_eq!(named("image_encoder.pos_embed"), (Layer::Embedding, c));
            assert_eq!(named("neck.2.weight"), (Layer::Hidden, 9 * o));
            // The transposed convolution is stored the other way round.
            assert_eq!(named("output_upscaling.3.weight"), (Layer::Hidden, o / 4));
            assert_eq!(named("iou_prediction_head.layers.2.weight"), (Layer::Readout, config.iou_hidden));
            let (pixels, to) = match &config.stem {
                Some(stem) => ("stem.0.conv.weight", stem.widths[0]),
                None => ("patch_embed.proj.weight", c),
            };
            assert_eq!(named(pixels), (Layer::Embedding, to));
        }
    }

    fn scaling(rates: LrScaling) -> Scaling {
        Scaling { rates, ..Scaling::default() }
    }

    #[test]
    fn factors_follow_the_fan_in_and_the_number_of_chosen_entries() {
        let device = Device::flex();
        let mut sam = checkpoint::random("tiny", SamConfig::tiny(), 1).into_sam(&device);
        let block = "image_encoder.blocks.0";
        let lin2 = format!("{block}.mlp.lin2.weight");
        let factor =
            |sam: &Sam, name: &str, rates, family| scaling(rates).factor(sam.weights.get(name).unwrap(), family);
        // 768 inputs, four times the base: ¼ with c = 1, ½ with c = ½.
        assert_eq!(factor(&sam, &lin2, LrScaling::Full, Family::Adam), Factor::Same(0.25));
        assert_eq!(factor(&sam, &lin2, LrScaling::NoAlign, Family::Adam), Factor::Same(0.5));
        assert_eq!(factor(&sam, &lin2, LrScaling::None, Family::Adam), Factor::Same(1.0));
        assert_eq!(factor(&sam, &lin2, LrScaling::Full, Family::Adafactor), Factor::Same(0.5));
        // A bias of four times the base: c is 0 for Adam, -½ for SGD.
        let bias = format!("{block}.mlp.lin1.bias");
        assert_eq!(factor(&sam, &bias, LrScaling::Full, Family::Adam), Factor::Same(1.0));
        assert_eq!(factor(&sam, &bias, LrScaling::Full, Family::Sgd), Factor::Same(2.0));
        // Four entries in each of two rows; rows have 768.
        sam.weights.get_mut(&lin2).unwrap().train_chosen(&[0, 1, 2, 3, 768, 769, 770, 771], &device);
        assert_eq!(factor(&sam, &lin2, LrScaling::Full, Family::Adam), Factor::Same(0.25));
        assert_eq!(factor(&sam, &lin2, LrScaling::NoAlign, Family::Adam), Factor::Same(0.5));
        // Adafactor: a step is relative to weights that are half as large at four times the width.
        assert_eq!(factor(&sam, &lin2, LrScaling::Full, Family::Adafactor), Factor::Same(2.0 * 0.25));
        // Four in one row, one in another.
        sam.weights.get_mut(&lin2).unwrap().train_chosen(&[0, 1, 2, 3, 768], &device);
        let each = Factor::Each(vec![0.25, 0.25, 0.25, 0.25, 1.0]);
        assert_eq!(factor(&sam, &lin2, LrScaling::Full, Family::Adam), each);
        assert_eq!(factor(&sam, &lin2, LrScaling::None, Family::Adam), Factor::Same(1.0));
    }

    #[test]
    fn behind_a_bottleneck_its_rank_counts() {
        let device = Device::flex();
        let mut sam = checkpoint::random("tiny", SamConfig::tiny(), 1).into_sam(&device);
        let pair = Addition::LowRank.weights("image_encoder.blocks.0.mlp.lin2", &sam.config.specs(), 4).unwrap();
        let [a, b] = [&pair[0], &pair[1]];
        for spec in &pair {
            sam.weights.insert(spec.clone(), vec![0.0; spec.len()], &device);
        }
        // A leads from 768 into 4, B from 4 to 192.
        let of = |spec: &WeightSpec| (Layer::of(spec), width(spec));
        assert_eq!((of(a), of(b)), ((Layer::Hidden, 768), (Layer::Hidden, 192)));
        let factor =
            |spec: &WeightSpec, rates| scaling(rates).factor(sam.weights.get(&spec.name).unwrap(), Family::Adam);
        assert_eq!([a, b].map(|spec| factor(spec, LrScaling::Full)), [0.25, 0.25].map(Factor::Same));
        assert_eq!([a, b].map(|spec| factor(spec, LrScaling::NoAlign)), [0.5, 0.5].map(Factor::Same));
    }

    #[test]
    fn epsilon_shrinks_as_gradients_do() {
        let per_layer = Scaling { epsilon: Epsilon::PerLayer, ..Scaling::default() };
        let of = |config: SamConfig, part: &str| {
            per_layer.epsilon(config.specs().iter().find(|s| s.name.ends_with(part)).unwrap())
        };
        let tiny = SamConfig::tiny();
        assert_eq!(of(tiny.clone(), "attn.qkv.weight"), 1e-8);
        // Four times the width, gradients of half the size: behind a readout of n^-½.
        let wide = SamConfig { embed: 768, iou_hidden: 768, ..tiny };
        assert_eq!(of(wide.clone(), "attn.qkv.weight"), 5e-9);
        // Nothing lies behind the readout.
        assert_eq!(of(wide.clone(), "iou_prediction_head.layers.2.weight"), 1e-8);
        let same = Scaling { epsilon: Epsilon::Same(1e-12), ..Scaling::default() };
        assert!(wide.specs().iter().all(|spec| same.epsilon(spec) == 1e-12));
    }
}
