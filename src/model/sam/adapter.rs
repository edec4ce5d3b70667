//! What adapters add to the image encoder: a bottleneck behind an MLP (Houlsby et al., arXiv 1902.00751), and SAM-Adapter's
//! prompts in front of every block (Chen et al., arXiv 2304.09148).

use super::layers::{linear, squares};
use crate::model::kernel::gelu::gelu;
use crate::model::weights::Scope;
use burn::tensor::{Tensor, TensorData};

/// The output y of a block's MLP, and what its adapter makes of it.
pub(super) fn adapted(y: Tensor<4>, mlp: &Scope<'_>) -> Tensor<4> {
    if mlp.find("adapter.down.weight").is_none() {
        return y;
    }
    let adapter = mlp.at("adapter");
    y.clone() + linear(gelu(linear(y, &adapter.at("down"))), &adapter.at("up"))
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
    use super::*;
    use crate::model::weights::to_vec;
    use burn::tensor::Device;

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
