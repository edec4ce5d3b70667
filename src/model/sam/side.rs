//! A side network over the image encoder (LAST: Tang et al., arXiv 2402.04009).

use super::image_encoder::{EPSILON, in_windows};
use crate::model::kernel::attention::cross_attention;
use crate::model::kernel::linear::by_matrix;
use crate::model::kernel::norm::norm;
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
        let [_, h, w, c] = stream.dims();
        let device = stream.device().without_autodiff();
        let normed = norm(stream, Tensor::ones([c], &device), Tensor::zeros([c], &device), EPSILON);
        let attend = |x: Tensor<4>| {
            let [n, h, w, _] = x.dims();
            let x = x.reshape([n, h * w, c]);
            let [q, k, v] = [&q, &k, &v].map(|matrix| by_matrix(x.clone(), matrix.clone()));
            by_matrix(cross_attention(q, k, v, 1), up.clone()).reshape([n, h, w, c])
        };
        let more = in_windows(normed, window, [h, w], attend);
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
