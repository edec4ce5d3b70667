//! The arithmetic of one Adam step (Kingma & Ba, arXiv 1412.6980, algorithm 1), in one pass over the values.

use super::{on_cpu, widest};
use crate::model::weights::to_vec;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use std::f64::consts::PI;

/// Decay of the first moment.
pub const BETA1: f64 = 0.9;
/// Decay of the second moment.
pub const BETA2: f64 = 0.999;

/// What a step divides by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Denominator {
    /// √v̂ and this.
    Epsilon(f64),
    /// None: the step is 4/π · atan2(m̂, √v̂) (Everett et al., arXiv 2407.05872), 1 where both are the same.
    Atan2,
}

/// Moved values and new moments: m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g², values ← values - lr · m̂ / (√v̂ + epsilon),
/// where m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ), and `biases` are 1 - β₁ᵗ and 1 - β₂ᵗ.
pub fn step(
    values: Tensor<1>,
    gradient: Tensor<1>,
    moments: (Tensor<1>, Tensor<1>),
    lr: f64,
    [bias1, bias2]: [f64; 2],
    denominator: Denominator,
) -> (Tensor<1>, Tensor<1>, Tensor<1>) {
    let (rate, last) = match denominator {
        Denominator::Epsilon(epsilon) => (lr / bias1, epsilon),
        Denominator::Atan2 => (lr * 4.0 / PI, bias1),
    };
    let factors = [rate, bias2.sqrt(), last];
    if !on_cpu(&values) {
        return plain(values, gradient, moments, factors, denominator);
    }
    let device = values.device();
    let (mut values, gradient) = (to_vec(values), to_vec(gradient));
    let (mut first, mut second) = (to_vec(moments.0), to_vec(moments.1));
    let factors = factors.map(|f| f as f32);
    values
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(first.par_chunks_mut(CHUNK))
        .zip(second.par_chunks_mut(CHUNK))
        .for_each(|(((values, gradient), first), second)| match denominator {
            Denominator::Epsilon(_) => run(values, gradient, first, second, factors),
            Denominator::Atan2 => run_atan2(values, gradient, first, second, factors),
        });
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

widest! {
    fn run_atan2(values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32], factors: [f32; 3]) {
        let [rate, root, bias] = factors;
        let (keep1, keep2) = (BETA1 as f32, BETA2 as f32);
        let (new1, new2) = ((1.0 - BETA1) as f32, (1.0 - BETA2) as f32);
        for (((value, g), m), v) in values.iter_mut().zip(gradient).zip(first).zip(second) {
            *m = *m * keep1 + g * new1;
            *v = *v * keep2 + g * g * new2;
            *value -= (*m / bias).atan2(v.sqrt() / root) * rate;
        }
    }
}

fn plain(
    values: Tensor<1>,
    gradient: Tensor<1>,
    (first, second): (Tensor<1>, Tensor<1>),
    [rate, root, last]: [f64; 3],
    denominator: Denominator,
) -> (Tensor<1>, Tensor<1>, Tensor<1>) {
    let squared = gradient.clone() * gradient.clone();
    let first = first * BETA1 + gradient * (1.0 - BETA1);
    let second = second * BETA2 + squared * (1.0 - BETA2);
    let size = second.clone().sqrt() / root;
    let way = match denominator {
        Denominator::Epsilon(_) => first.clone() / (size + last),
        Denominator::Atan2 => (first.clone() / last).atan2(size),
    };
    (values - way * rate, first, second)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::{close, wave};
    use super::*;

    #[test]
    pub(in super::super) fn equals_the_plain_operations() {
        for denominator in [Denominator::Epsilon(1e-8), Denominator::Atan2] {
            let (values, gradient) = (wave([40_000], 0.37), wave([40_000], 0.11));
            let moments = (wave([40_000], 0.3), wave([40_000], 0.2) * wave([40_000], 0.2));
            let a = step(values.clone(), gradient.clone(), moments.clone(), 5e-4, [0.5, 0.49], denominator);
            let (rate, last) = match denominator {
                Denominator::Epsilon(epsilon) => (1e-3, epsilon),
                Denominator::Atan2 => (5e-4 * 4.0 / PI, 0.5),
            };
            let b = plain(values, gradient, moments, [rate, 0.7, last], denominator);
            [(a.0, b.0), (a.1, b.1), (a.2, b.2)].into_iter().for_each(|(a, b)| close(a, b, 1e-6));
        }
    }
}
