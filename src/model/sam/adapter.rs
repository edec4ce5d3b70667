//! What adapters add to the image encoder: a bottleneck behind an MLP (Houlsby et al., arXiv 1902.00751), and SAM-Adapter's
//! prompts in front of every block (Chen et al., arXiv 2304.09148).

use super::layers::{linear, linear_onto, squares};
use crate::model::kernel::gelu::gelu;
use crate::model::weights::Scope;
use burn::tensor::{Tensor, TensorData};

/// `onto`, the output y of a block's MLP for its `hidden` values, and what its adapter makes of y, if it has one.
pub(super) fn mlp_onto(hidden: Tensor<4>, mlp: &Scope<'_>, onto: Tensor<4>) -> Tensor<4> {
    if mlp.find("adapter.down.weight").is_none() {
        return linear_onto(hidden, &mlp.at("lin2"), onto);
    }
    let (y, adapter) = (linear(hidden, &mlp.at("lin2")), mlp.at("adapter"));
    onto + y.clone() + linear(gelu(linear(y, &adapter.at("down"))), &adapter.at("up"))
}

/// What SAM-Adapter's generator adds to the inputs of blocks.
pub(super) struct Generator<'a> {
    scope: Scope<'a>,
    /// `[batch, s, s, e]`, of the picture and its patches.
    features: Tensor<4>,
}

impl<'a> Generator<'a> {
    /// The features of normalised pixels and of their patches, positions not yet added; `None` without a generator.
    pub(super) fn new(
        encoder: &Scope<'a>,
        pixels: &Tensor<4>,
        patches: &Tensor<4>,
        patch: usize,
    ) -> Option<Generator<'a>> {
        encoder.find("prompt_generator.high.weight")?;
        let scope = encoder.at("prompt_generator");
        let high = linear(squares(high_frequencies(pixels.clone()), patch), &scope.at("high"));
        let features = high + linear(patches.clone(), &scope.at("patches"));
        Some(Generator { scope, features })
    }

    /// A block's input with what is added to it.
    pub(super) fn prompted(&self, x: Tensor<4>, block: usize) -> Tensor<4> {
        if self.scope.find(&format!("{block}.tune.weight")).is_none() {
            return x;
        }
        let tuned = gelu(linear(self.features.clone(), &self.scope.at(block).at("tune")));
        x + linear(tuned, &self.scope.at("up"))
    }
}

/// What is left of pictures without the square of a quarter of their frequencies, the lowest: |Re F⁻¹(F(x) outside)|.
/// `[batch, channels, n, n]` → the same.
///
/// As published, the square reaches from -n/4 to n/4 - 1: not symmetric, so that the part inside is complex. Without a
/// transform it is P x Pᵀ with P = C + iS, of which the real part is C x Cᵀ - S x Sᵀ.
fn high_frequencies(x: Tensor<4>) -> Tensor<4> {
    let n = x.dims()[2];
    let line = (n / 4) as i64;
    // Entries depend on the distance of two pixels alone: 1/n Σ_f e^{2πi f t / n}.
    let wave = |part: fn(f64) -> f64| {
        let at = |t: usize| {
            let angle = |f: i64| std::f64::consts::TAU * ((f * t as i64).rem_euclid(n as i64)) as f64 / n as f64;
            (-line..line).map(|f| part(angle(f))).sum::<f64>() / n as f64
        };
        let row: Vec<f32> = (0..n).map(|t| at(t) as f32).collect();
        let values: Vec<f32> = (0..n * n).map(|i| row[(n + i / n - i % n) % n]).collect();
        Tensor::<2>::from_data(TensorData::new(values, [n, n]), &x.device().without_autodiff())
    };
    let both =
        |side: Tensor<2>| side.clone().unsqueeze::<4>().matmul(x.clone()).matmul(side.transpose().unsqueeze::<4>());
    (x.clone() - both(wave(f64::cos)) + both(wave(f64::sin))).abs()
}

#[cfg(test)]
mod tests {
    use super::super::added::GENERATOR;
    use super::super::image_encoder::{Block, EPSILON, block, encode_stages};
    use super::super::{Addition, SamConfig};
    use super::*;
    use crate::model::weights::to_vec;
    use crate::model::{Weights, checkpoint};
    use burn::tensor::{Device, activation, module};

    /// Values below a tenth, so that sums of many stay near one.
    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| 0.1 * (i as f32 * step).sin()).collect()
    }

    /// Adds a family's weights at an owner, each with values of its own.
    fn add(weights: &mut Weights, family: Addition, owner: &str, config: &SamConfig, size: usize) {
        for spec in family.weights(owner, &config.specs(), size).unwrap() {
            let step = 0.3 + 0.01 * (spec.name.bytes().map(usize::from).sum::<usize>() % 100) as f32;
            let values = wave(spec.len(), step);
            weights.insert(spec, values, &Device::flex());
        }
    }

    /// W x + b of rows x.
    fn dense(x: Tensor<2>, scope: &Scope<'_>, name: &str) -> Tensor<2> {
        let (weight, bias) = (scope.get(&format!("{name}.weight")), scope.get(&format!("{name}.bias")));
        x.matmul(weight.matrix().transpose()) + bias.value.clone().unsqueeze()
    }

    fn near<const D: usize>(a: Tensor<D>, b: Tensor<2>) -> bool {
        to_vec(a).iter().zip(&to_vec(b)).all(|(a, b)| (a - b).abs() < 1e-5)
    }

    /// A block whose attention gives nothing: the MLP's output m, and U GELU(D m + a) + c.
    #[test]
    fn an_adapter_stands_behind_the_mlp() {
        let device = Device::flex();
        let config = SamConfig { depth: 1, global: vec![0], ..SamConfig::tiny() };
        let (c, heads) = (config.embed, config.heads);
        let mut base = checkpoint::random("small", config.clone(), 4);
        base.tensors.get_mut("image_encoder.blocks.0.attn.proj.weight").unwrap().data.fill(0.0);
        let mut sam = base.into_sam(&device);
        let plain = sam.weights.clone();
        let owner = "image_encoder.blocks.0";
        add(&mut sam.weights, Addition::Adapter, &format!("{owner}.mlp"), &config, 5);
        let scope = sam.weights.scope(owner);
        let x = Tensor::<2>::from_data(TensorData::new(wave(6 * c, 0.31), [6, c]), &device) * 10.0;
        let [scale, shift] = ["weight", "bias"].map(|name| scope.at("norm2").get(name).value.clone());
        let normed = module::layer_norm(x.clone(), scale, Some(shift), EPSILON);
        let m = dense(activation::gelu(dense(normed, &scope, "mlp.lin1")), &scope, "mlp.lin2");
        let more = dense(activation::gelu(dense(m.clone(), &scope, "mlp.adapter.down")), &scope, "mlp.adapter.up");
        assert!(to_vec(more.clone()).iter().any(|v| v.abs() > 1e-2));
        let of = |weights: &Weights| {
            block(x.clone().reshape([1, 2, 3, c]), &weights.scope(owner), Block { heads, window: 0 })
        };
        assert!(near(of(&plain), x.clone() + m.clone()));
        assert!(near(of(&sam.weights), x.clone() + m + more));
    }

    /// |Re F⁻¹| of a picture's transform without the square of the lowest frequencies, sum by sum.
    fn filtered(picture: &[f32], n: usize) -> Vec<f32> {
        let turn = |f: usize, t: usize| (std::f64::consts::TAU * (f * t) as f64 / n as f64).sin_cos();
        // Along both sides: Σ e^{∓i…} z, of z as (real, imaginary).
        let transform = |z: &[(f64, f64)], sign: f64| -> Vec<(f64, f64)> {
            let term = |at: usize, to: usize| {
                let (sine, cosine) = turn(to / n, at / n);
                let (sine_x, cosine_x) = turn(to % n, at % n);
                let (re, im) = (cosine * cosine_x - sine * sine_x, sign * (sine * cosine_x + cosine * sine_x));
                (z[at].0 * re - z[at].1 * im, z[at].0 * im + z[at].1 * re)
            };
            let sum = |to| (0..n * n).map(|at| term(at, to)).fold((0.0, 0.0), |s, t| (s.0 + t.0, s.1 + t.1));
            (0..n * n).map(sum).collect()
        };
        let mut spectrum = transform(&picture.iter().map(|v| (f64::from(*v), 0.0)).collect::<Vec<_>>(), -1.0);
        let low = |f: usize| f < n / 4 || f >= n - n / 4;
        (0..n * n).filter(|i| low(i / n) && low(i % n)).for_each(|i| spectrum[i] = (0.0, 0.0));
        transform(&spectrum, 1.0).iter().map(|(re, _)| (re / (n * n) as f64).abs() as f32).collect()
    }

    /// P_i = U GELU(W_i (H + E) + a_i) + c on the input of each of two blocks; positions are zero.
    #[test]
    fn a_generator_adds_to_the_input_of_every_block() {
        let device = Device::flex();
        let (n, patch, c, e) = (16, 4, 16, 3);
        let config = SamConfig {
            image_size: n,
            patch,
            embed: c,
            heads: 2,
            depth: 2,
            global: vec![0, 1],
            out_chans: 16,
            stem: None,
            ..SamConfig::tiny()
        };
        let mut base = checkpoint::random("small", config.clone(), 4);
        base.tensors.get_mut("image_encoder.pos_embed").unwrap().data.fill(0.0);
        let mut sam = base.into_sam(&device);
        let plain = sam.weights.clone();
        add(&mut sam.weights, Addition::Generator, GENERATOR, &config, e);
        (0..2).for_each(|i| add(&mut sam.weights, Addition::Generated, &format!("{GENERATOR}.{i}"), &config, e));
        let picture: Vec<f32> = wave(3 * n * n, 0.377).iter().map(|v| 10.0 * v).collect();
        let pixels = Tensor::<4>::from_data(TensorData::new(picture.clone(), [1, 3, n, n]), &device);

        let high: Vec<f32> = picture.chunks(n * n).flat_map(|channel| filtered(channel, n)).collect();
        // A convolution whose stride is its kernel: rows of what lies below it.
        let (side, below) = (n / patch, patch * patch);
        let under = |at: usize| {
            let (token, channel, y, x) = (at / (3 * below), at / below % 3, at / patch % patch, at % patch);
            high[(channel * n + token / side * patch + y) * n + token % side * patch + x]
        };
        let under: Vec<f32> = (0..side * side * 3 * below).map(under).collect();
        let under = Tensor::<2>::from_data(TensorData::new(under, [side * side, 3 * below]), &device);
        let patches = encode_stages(&config, &plain, pixels.clone()).patch_embed.reshape([side * side, c]);
        let scope = sam.weights.scope(GENERATOR);
        let features = dense(under, &scope, "high") + dense(patches.clone(), &scope, "patches");
        let prompt = |i: usize| {
            let tuned = activation::gelu(dense(features.clone(), &scope, &format!("{i}.tune")));
            dense(tuned, &scope, "up")
        };
        let run = |x: Tensor<2>, i: usize| {
            let scope = plain.scope("image_encoder.blocks").at(i);
            let sizes = Block { heads: config.heads, window: 0 };
            block(x.reshape([1, side, side, c]), &scope, sizes).reshape([side * side, c])
        };
        let first = run(patches + prompt(0), 0);
        let second = run(first.clone() + prompt(1), 1);
        let got = encode_stages(&config, &sam.weights, pixels).blocks;
        assert!(got.len() == 2 && near(got[0].clone(), first) && near(got[1].clone(), second));
        assert!(to_vec(prompt(0) - prompt(1)).iter().any(|v| v.abs() > 1e-4), "each has its own");
    }

    #[test]
    fn low_frequencies_are_taken_out_of_a_picture() {
        let n = 16;
        let picture = |value: &dyn Fn(f64, f64) -> f64| {
            let values: Vec<f32> = (0..n * n).map(|i| value((i / n) as f64, (i % n) as f64) as f32).collect();
            Tensor::<4>::from_data(TensorData::new(values, [1, 1, n, n]), &Device::flex())
        };
        let wave = |f: f64, t: f64| (std::f64::consts::TAU * f * t / n as f64).cos();
        let high = |value: &dyn Fn(f64, f64) -> f64| to_vec(high_frequencies(picture(value)));
        let want = |value: &dyn Fn(f64, f64) -> f64| to_vec(picture(value));
        let near = |a: Vec<f32>, b: Vec<f32>| a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5);
        // The square reaches from -4 to 3: a constant and a wave of 3 lie inside, one of 5 along an axis does not.
        assert!(near(high(&|_, _| 1.0), vec![0.0; n * n]));
        assert!(near(high(&|y, x| wave(3.0, x) * wave(2.0, y)), vec![0.0; n * n]));
        assert!(near(high(&|y, x| 2.0 + wave(3.0, x) + wave(5.0, y)), want(&|y, _| wave(5.0, y).abs())));
        // Of a wave of 4 only the half at -4 is inside: half of it is left.
        assert!(near(high(&|_, x| wave(4.0, x)), want(&|_, x| 0.5 * wave(4.0, x).abs())));
    }
}
