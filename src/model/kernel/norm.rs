//! Layer norm over the last dimension (Ba et al., arXiv 1607.06450), backward in one pass over rows.

use super::{floats, lanes, on_cpu, tensor, widest};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Tensor, module};
use rayon::prelude::*;

/// (x - mean) / sqrt(variance + epsilon) · scale + shift over the last dimension; `scale` and `shift` are `[width]`.
pub fn norm<const D: usize>(x: Tensor<D>, scale: Tensor<1>, shift: Tensor<1>, epsilon: f64) -> Tensor<D> {
    if !on_cpu(&x) {
        return plain(x, scale, shift, epsilon);
    }
    let [x, scale, shift] = [x.into_dispatch(), scale.into_dispatch(), shift.into_dispatch()];
    Tensor::from_dispatch(<Dispatch as Norm>::fused_norm(x, scale, shift, epsilon as f32))
}

fn plain<const D: usize>(x: Tensor<D>, scale: Tensor<1>, shift: Tensor<1>, epsilon: f64) -> Tensor<D> {
    module::layer_norm(x, scale, Some(shift), epsilon)
}

/// Layer norm as one operation.
#[backend_extension(Flex, Autodiff)]
pub trait Norm: Backend {
    /// As [`norm`].
    fn fused_norm(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;
}

/// Rows a thread takes at once; also the pieces in which the gradients of scale and shift are summed.
const ROWS: usize = 64;

impl Norm for Flex {
    fn fused_norm(x: FlexTensor, scale: FlexTensor, shift: FlexTensor, epsilon: f32) -> FlexTensor {
        let (shape, x) = (x.shape(), x.to_contiguous());
        let (x, scale, shift) = (floats(&x), floats(&scale), floats(&shift));
        let width = scale.len();
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(ROWS * width)
            .zip(x.par_chunks(ROWS * width))
            .for_each(|(out, x)| forward(x, scale, shift, epsilon, out));
        tensor(out, shape)
    }
}

widest! {
    fn forward(x: &[f32], scale: &[f32], shift: &[f32], epsilon: f32, out: &mut [f32]) {
        for (x, out) in x.chunks_exact(scale.len()).zip(out.chunks_exact_mut(scale.len())) {
            let (mean, factor) = moments(x, epsilon);
            for (((out, x), scale), shift) in out.iter_mut().zip(x).zip(scale).zip(shift) {
                *out = (x - mean) * factor * scale + shift;
            }
        }
    }
}

/// Mean, and 1 / sqrt(variance + epsilon).
#[inline(always)]
fn moments(x: &[f32], epsilon: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = lanes([x], |[x]| x) / n;
    let variance = lanes([x], |[x]| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

widest! {
    /// dx, and dy · x̂ and dy added to the sums for scale and shift.
    fn backward(x: &[f32], scale: &[f32], dy: &[f32], epsilon: f32, dx: &mut [f32], ds: &mut [f32], dt: &mut [f32]) {
        let n = scale.len();
        for ((x, dy), dx) in x.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
            let (mean, factor) = moments(x, epsilon);
            let g = lanes([dy, scale], |[dy, scale]| dy * scale) / n as f32;
            let gx = lanes([dy, scale, x], |[dy, scale, x]| dy * scale * (x - mean)) * factor / n as f32;
            for i in 0..n {
                let hat = (x[i] - mean) * factor;
                dx[i] = factor * (dy[i] * scale[i] - g - hat * gx);
                ds[i] += dy[i] * hat;
                dt[i] += dy[i];
            }
        }
    }
}

impl<C: CheckpointStrategy> Norm for Autodiff<Flex, C> {
    fn fused_norm(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct FusedNorm;
        impl Backward<Flex, 3> for FusedNorm {
            type State = (FlexTensor, FlexTensor, f32);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let [x_node, scale_node, shift_node] = ops.parents;
                let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
                let (x, scale, epsilon) = ops.state;
                let (shape, x) = (x.shape(), x.to_contiguous());
                let (x, scale, dy) = (floats(&x), floats(&scale), floats(&dy));
                let width = scale.len();
                let mut dx = vec![0f32; x.len()];
                let mut sums = vec![0f32; 2 * width * x.len().div_ceil(ROWS * width)];
                dx.par_chunks_mut(ROWS * width)
                    .zip(x.par_chunks(ROWS * width))
                    .zip(dy.par_chunks(ROWS * width))
                    .zip(sums.par_chunks_mut(2 * width))
                    .for_each(|(((dx, x), dy), sums)| {
                        let (ds, dt) = sums.split_at_mut(width);
                        backward(x, scale, dy, epsilon, dx, ds, dt);
                    });
                let mut total = vec![0f32; 2 * width];
                for part in sums.chunks(2 * width) {
                    total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
                }
                let shift = total.split_off(width);
                if let Some(node) = x_node {
                    grads.register::<Flex>(node.id, tensor(dx, shape));
                }
                for (node, sum) in [(scale_node, total), (shift_node, shift)] {
                    if let Some(node) = node {
                        grads.register::<Flex>(node.id, tensor(sum, [width]));
                    }
                }
            }
        }
        match FusedNorm.prepare::<C>([x.node(), scale.node(), shift.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (x, scale) = (x.into_primitive(), scale.into_primitive());
                let state = (x.clone(), scale.clone(), epsilon);
                prep.finish(state, Flex::fused_norm(x, scale, shift.into_primitive(), epsilon))
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::fused_norm(
                x.into_primitive(),
                scale.into_primitive(),
                shift.into_primitive(),
                epsilon,
            )),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::{close, leaf, wave};
    use super::*;

    #[test]
    pub(in super::super) fn equals_the_plain_operation_forward_and_backward() {
        // 150 rows: more than two pieces; 19 wide: no multiple of the lanes.
        let run = |f: &dyn Fn(Tensor<3>, Tensor<1>, Tensor<1>, f64) -> Tensor<3>| {
            let (x, scale, shift) = (leaf([3, 50, 19], 0.37), leaf([19], 1.3), leaf([19], 0.7));
            let y = f(x.clone(), scale.clone(), shift.clone(), 1e-6);
            let grads = (y.clone() * wave([3, 50, 19], 0.11)).sum().backward();
            let grad =
                [x.grad(&grads).unwrap().flatten(0, 2), scale.grad(&grads).unwrap(), shift.grad(&grads).unwrap()];
            (y.flatten::<1>(0, 2), grad)
        };
        let ((y, grad), (expected, expected_grad)) = (run(&norm), run(&plain));
        close(y, expected, 1e-5);
        grad.into_iter().zip(expected_grad).for_each(|(a, b)| close(a, b, 1e-4));
    }
}
