//! The arithmetic of one Adam step (Kingma & Ba, arXiv 1412.6980, algorithm 1), in one pass over the values.

use super::{on_cpu, widest};
use crate::model::weights::to_vec;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

/// Decay of the first moment.
pub const BETA1: f64 = 0.9;
/// Decay of the second moment.
pub const BETA2: f64 = 0.999;

/// Moved values and new moments: m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g², values ← values - rate · m / (√v / root
/// + epsilon), where `rate` is the learning rate over 1 - β₁ᵗ and `root` is √(1 - β₂ᵗ).
pub fn step(
    values: Tensor<1>,
    gradient: Tensor<1>,
    (first, second): (Tensor<1>, Tensor<1>),
    [rate, root, epsilon]: [f64; 3],
) -> (Tensor<1>, Tensor<1>, Tensor<1>) {
    if !on_cpu(&values) {
        return plain(values, gradient, (first, second), [rate, root, epsilon]);
    }
    let device = values.device();
    let (mut values, gradient) = (to_vec(values), to_vec(gradient));
    let (mut first, mut second) = (to_vec(first), to_vec(second));
    let factors = [rate, root, epsilon].map(|f| f as f32);
    values
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(first.par_chunks_mut(CHUNK))
        .zip(second.par_chunks_mut(CHUNK))
        .for_each(|(((values, gradient), first), second)| run(values, gradient, first, second, factors));
    let tensor = |data: Vec<f32>| {
        let n = data.len();
        Tensor::from_data(TensorData::new(data, [n]), &device)
    };
    (tensor(values), tensor(first), tensor(second))
}

/// Values a thread takes at once.
const CHUNK: usize = 1 << 14;

widest! {
    fn run(values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32], factors: [f32; 3]) {
        let [rate, root, epsilon] = factors;
        let (keep1, keep2) = (BETA1 as f32, BETA2 as f32);
        let (new1, new2) = ((1.0 - BETA1) as f32, (1.0 - BETA2) as f32);
        for (((value, g), m), v) in values.iter_mut().zip(gradient).zip(first).zip(second) {
            *m = *m * keep1 + g * new1;
            *v = *v * keep2 + g * g * new2;
            *value -= *m / (v.sqrt() / root + epsilon) * rate;
        }
    }
}

fn plain(
    values: Tensor<1>,
    gradient: Tensor<1>,
    (first, second): (Tensor<1>, Tensor<1>),
    [rate, root, epsilon]: [f64; 3],
) -> (Tensor<1>, Tensor<1>, Tensor<1>) {
    let squared = gradient.clone() * gradient.clone();
    let first = first * BETA1 + gradient * (1.0 - BETA1);
    let second = second * BETA2 + squared * (1.0 - BETA2);
    let values = values - first.clone() / (second.clone().sqrt() / root + epsilon) * rate;
    (values, first, second)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{close, wave};
    use super::*;

    #[test]
    fn equals_the_plain_operations() {
        type Step = fn(Tensor<1>, Tensor<1>, (Tensor<1>, Tensor<1>), [f64; 3]) -> (Tensor<1>, Tensor<1>, Tensor<1>);
        let of = |f: Step| {
            let wave = |step| wave([40_000], step);
            let (values, m, v) = f(wave(0.37), wave(0.11), (wave(0.3), wave(0.2) * wave(0.2)), [1e-3, 0.7, 1e-8]);
            [values, m, v]
        };
        of(step).into_iter().zip(of(plain)).for_each(|(a, b)| close(a, b, 1e-6));
    }
}
