//! The small layers that encoder and decoder share.

use crate::model::kernel::linear::linear;
use crate::model::kernel::norm;
use crate::model::weights::{Scope, Weight};
use burn::tensor::{Tensor, activation};

/// Layer norm over the last dimension.
pub(super) fn norm<const D: usize>(x: Tensor<D>, scope: &Scope<'_>, epsilon: f64) -> Tensor<D> {
    norm::norm(x, scope.get("weight").value.clone(), scope.get("bias").value.clone(), epsilon)
}

/// Three linear layers with ReLU between: hypernetworks and IoU head. `[…, in]` → `[…, out]`.
pub(super) fn mlp3<const D: usize>(x: Tensor<D>, scope: &Scope<'_>) -> Tensor<D> {
    let layers = scope.at("layers");
    let x = activation::relu(linear(x, &layers.at(0)));
    let x = activation::relu(linear(x, &layers.at(1)));
    linear(x, &layers.at(2))
}

/// Pixels gathered into non-overlapping squares, the input of a convolution whose stride is its kernel:
/// `[batch, channels, h, w]` → `[batch, h / side, w / side, channels * side * side]`, in the order of its weight.
pub(super) fn squares(x: Tensor<4>, side: usize) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    let (rows, cols) = (h / side, w / side);
    x.reshape([b, c, rows, side, cols, side]).permute([0, 2, 4, 1, 3, 5]).reshape([b, rows, cols, c * side * side])
}

/// Transposed convolution with kernel and stride 2, bias included: `[batch, h, w, in]` → `[batch, 2h, 2w, out]`.
pub(super) fn double(x: Tensor<4>, scope: &Scope<'_>) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    let weight: &Weight = scope.get("weight");
    let out = weight.spec.shape[1];
    let y = x.reshape([b * h * w, c]).matmul(weight.value.clone().reshape([c, out * 4]));
    let y = y.reshape([b, h, w, out, 2, 2]).permute([0, 1, 4, 2, 5, 3]).reshape([b, 2 * h, 2 * w, out]);
    y + scope.get("bias").value.clone().unsqueeze()
}
