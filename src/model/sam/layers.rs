//! The small layers that encoder and decoder share.

use super::added::{low_rank, scale_shift};
use crate::model::kernel::linear::{self, by_matrix, project};
use crate::model::kernel::norm;
use crate::model::weights::{Scope, Weight};
use burn::tensor::{Tensor, activation};

/// Layer norm over the last dimension, with what a method may have added: γ ⊙ y + β is a norm with another scale and
/// shift.
pub(super) fn norm<const D: usize>(x: Tensor<D>, scope: &Scope<'_>, epsilon: f64) -> Tensor<D> {
    let (weight, bias) = (scope.get("weight").value.clone(), scope.get("bias").value.clone());
    match scale_shift(scope) {
        None => norm::norm(x, weight, bias, epsilon),
        Some([scale, shift]) => norm::norm(x, scale.clone() * weight, scale * bias + shift, epsilon),
    }
}

/// Linear layer over the last dimension, with what a method may have added: γ ⊙ (W x + B A x + b) + β.
pub(super) fn linear<const D: usize>(x: Tensor<D>, scope: &Scope<'_>) -> Tensor<D> {
    let low_rank = low_rank(scope).map(|[a, b]| by_matrix(by_matrix(x.clone(), a), b));
    let with_low_rank = |y: Tensor<D>| match low_rank {
        None => y,
        Some(more) => y + more,
    };
    match scale_shift(scope) {
        None => with_low_rank(linear::linear(x, scope)),
        Some([scale, _]) => {
            with_low_rank(project(x, scope.get("weight"))) * scale.unsqueeze() + of_zeros(scope).unsqueeze()
        }
    }
}

/// `onto` and what [`linear`] makes of `x`: a residual connection.
pub(super) fn linear_onto<const D: usize>(x: Tensor<D>, scope: &Scope<'_>, onto: Tensor<D>) -> Tensor<D> {
    match low_rank(scope).is_none() && scale_shift(scope).is_none() {
        true => linear::linear_onto(x, scope, onto),
        false => onto + linear(x, scope),
    }
}

/// What [`linear`] makes of zeros: γ ⊙ b + β.
pub(super) fn of_zeros(scope: &Scope<'_>) -> Tensor<1> {
    let bias = scope.get("bias").value.clone();
    match scale_shift(scope) {
        None => bias,
        Some([scale, shift]) => scale * bias + shift,
    }
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
