//! A side network over the image encoder (LAST: Tang et al., arXiv 2402.04009).

use super::image_encoder::EPSILON;
use crate::model::kernel::attention::cross_attention;
use crate::model::kernel::linear::by_matrix;
use crate::model::kernel::norm::norm;
use crate::model::kernel::windows::{partition, unpartition};
use crate::model::weights::Scope;
use burn::tensor::Tensor;

/// LAST's side network: attention of a low rank over the inputs of the blocks, which it never changes.
///
/// d ↦ d + LSA_i(z_0 + … + z_i + d) from zero, where z_i is block i's input: the residual stream of the paper, with what
/// the backbone put into it already taken off.
pub(super) struct Side {
    /// z_0 + … + z_i.
    inputs: Tensor<4>,
    /// Σ LSA; `None` before the first.
    found: Option<Tensor<4>>,
}

impl Side {
    /// One layer, found under `scope`, over the input of its block; without a layer, what was before.
    pub(super) fn step(before: Option<Side>, input: &Tensor<4>, scope: &Scope<'_>, window: usize) -> Option<Side> {
        let part = |name: &str| scope.find(name).map(|w| w.shaped::<2>());
        let layer = [part("query"), part("key"), part("value"), part("up")];
        let [Some(q), Some(k), Some(v), Some(up)] = layer else { return before };
        let (inputs, found) = match before {
            None => (input.clone(), None),
            Some(Side { inputs, found }) => (inputs + input.clone(), found),
        };
        let stream = match &found {
            None => inputs.clone(),
            Some(found) => inputs.clone() + found.clone(),
        };
        let [b, h, w, c] = stream.dims();
        let device = stream.device().without_autodiff();
        let normed = norm(stream, Tensor::ones([c], &device), Tensor::zeros([c], &device), EPSILON);
        let attend = |x: Tensor<4>| {
            let [n, h, w, _] = x.dims();
            let x = x.reshape([n, h * w, c]);
            let [q, k, v] = [&q, &k, &v].map(|matrix| by_matrix(x.clone(), matrix.clone()));
            by_matrix(cross_attention(q, k, v, 1), up.clone()).reshape([n, h, w, c])
        };
        let more = match window {
            0 => attend(normed),
            side => unpartition(attend(partition(normed, side, Tensor::zeros([c], &device))), [b, h, w]),
        };
        let found = match found {
            None => more,
            Some(found) => found + more,
        };
        Some(Side { inputs, found: Some(found) })
    }

    /// The backbone's output with what the side network found.
    pub(super) fn joined(self, output: Tensor<4>) -> Tensor<4> {
        match self.found {
            None => output,
            Some(found) => output + found,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::added::{SIDE, spec};
    use super::*;
    use crate::model::weights::{Weights, to_vec};
    use burn::tensor::{Device, TensorData, activation};

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    /// Two blocks over a grid of 2 × 3 in plain operations: the first attends to all of it, the second in windows of 2, of
    /// which the right one is padded with what is zero behind the norm.
    #[test]
    fn two_blocks_by_hand() {
        let (device, c, r) = (Device::flex(), 6, 2);
        let rows = |values: Vec<f32>| {
            let n = values.len();
            Tensor::<2>::from_data(TensorData::new(values, [n / c, c]), &device)
        };
        let mut weights = Weights::default();
        let mut layer = |i: usize| {
            let parts = [("query", [r, c], 0.7), ("key", [r, c], 1.1), ("value", [r, c], 0.6), ("up", [c, r], 0.9)];
            parts.map(|(part, shape, step)| {
                let values = wave(r * c, step + 0.2 * i as f32);
                weights.insert(spec(&format!("{SIDE}.{i}.{part}"), shape.to_vec()), values.clone(), &device);
                Tensor::<2>::from_data(TensorData::new(values, shape), &device)
            })
        };
        let layers = [layer(0), layer(1)];
        let [z0, z1, output] = [0.37, 0.53, 0.91].map(|step| rows(wave(6 * c, step)));

        let normed = |x: Tensor<2>| {
            let centred = x.clone() - x.mean_dim(1);
            centred.clone() / ((centred.clone() * centred).mean_dim(1) + EPSILON).sqrt()
        };
        // U softmax(q kᵀ / √r) v.
        let lsa = |s: Tensor<2>, [q, k, v, up]: &[Tensor<2>; 4]| {
            let [q, k, v] = [q, k, v].map(|matrix| s.clone().matmul(matrix.clone().transpose()));
            let scores = q.matmul(k.transpose()) / (r as f64).sqrt();
            activation::softmax(scores, 1).matmul(v).matmul(up.clone().transpose())
        };
        let d1 = lsa(normed(z0.clone()), &layers[0]);
        let s = Tensor::cat(vec![normed(z0.clone() + z1.clone() + d1.clone()), Tensor::zeros([1, c], &device)], 0);
        let window = |places: [usize; 4]| {
            let all = places.map(|i| s.clone().narrow(0, i, 1)).to_vec();
            lsa(Tensor::cat(all, 0), &layers[1])
        };
        let (left, right) = (window([0, 1, 3, 4]), window([2, 6, 5, 6]));
        let more = [(&left, 0), (&left, 1), (&right, 0), (&left, 2), (&left, 3), (&right, 2)];
        let more = Tensor::cat(more.map(|(window, i)| window.clone().narrow(0, i, 1)).to_vec(), 0);
        let want = to_vec(output.clone() + d1.clone() + more.clone());
        assert!([d1, more].into_iter().all(|term| to_vec(term).iter().any(|v| v.abs() > 1e-2)), "both terms count");

        let grid = |x: Tensor<2>| x.reshape([1, 2, 3, c]);
        let side = Side::step(None, &grid(z0), &weights.scope(SIDE).at(0), 0);
        let side = Side::step(side, &grid(z1), &weights.scope(SIDE).at(1), 2).unwrap();
        let got = to_vec(side.joined(grid(output)));
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5), "{got:?} against {want:?}");
    }
}
