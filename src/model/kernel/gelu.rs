//! GELU, x · Φ(x), with a kernel of our own on the CPU: the backend evaluates `erf` one scalar call at a time.
//!
//! Φ comes from the rational approximation of erf in Abramowitz & Stegun, 7.1.26 (error below 1.5e-7, that is, f32
//! rounding); forward and backward share its exponential. Elements are independent, so any number of threads gives the
//! same bytes. Other devices take the backend's own operation.

use super::{exp_negative, floats, tensor, widest};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// GELU of every element.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as Gelu>::smooth(x.into_dispatch()))
}

/// GELU as one operation with its own backward step.
#[cfg_attr(feature = "cuda", backend_extension(Flex, Cube, Autodiff))]
#[cfg_attr(not(feature = "cuda"), backend_extension(Flex, Autodiff))]
pub trait Gelu: Backend {
    /// x · Φ(x).
    fn smooth(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::gelu(x)
    }

    /// dy · (Φ(x) + x · φ(x)).
    fn smooth_gradient(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::gelu_backward(x, dy)
    }
}

#[cfg(feature = "cuda")]
impl Gelu for burn::backend::Cube {}

impl Gelu for Flex {
    fn smooth(x: FloatTensor<Self>) -> FloatTensor<Self> {
        map(x, None, |x, out, _| run(x, out, None))
    }

    fn smooth_gradient(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        map(x, Some(dy), run)
    }
}

impl<B: Gelu, C: CheckpointStrategy> Gelu for Autodiff<B, C> {
    fn smooth(x: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Smooth;
        impl<B: Gelu> Backward<B, 1> for Smooth {
            type State = FloatTensor<B>;

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let [parent] = ops.parents;
                let dy = grads.consume::<B>(&ops.node);
                if let Some(node) = parent {
                    grads.register::<B>(node.id, B::smooth_gradient(ops.state, dy));
                }
            }
        }
        match Smooth.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let x = x.into_primitive();
                prep.finish(x.clone(), B::smooth(x))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::smooth(x.into_primitive())),
        }
    }
}

/// Elements a thread takes at once.
const CHUNK: usize = 1 << 14;

/// Applies `f` (x, out, dy) to chunks in parallel; a gradient writes over dy's copy.
fn map(x: FlexTensor, dy: Option<FlexTensor>, f: impl Fn(&[f32], &mut [f32], Option<&[f32]>) + Sync) -> FlexTensor {
    let shape = x.shape();
    let x = x.to_contiguous();
    let dy = dy.map(|dy| dy.to_contiguous());
    let (xs, dys) = (floats(&x), dy.as_ref().map(floats));
    let mut out = vec![0f32; xs.len()];
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(n, out)| {
        let range = n * CHUNK..n * CHUNK + out.len();
        f(&xs[range.clone()], out, dys.map(|dys| &dys[range]));
    });
    tensor(out, shape)
}

widest! {
    /// GELU, or with `dy` its gradient.
    fn run(x: &[f32], out: &mut [f32], dy: Option<&[f32]>) {
        match dy {
            None => out.iter_mut().zip(x).for_each(|(out, x)| {
                let (cdf, _) = normal(*x);
                *out = x * cdf;
            }),
            Some(dy) => out.iter_mut().zip(x).zip(dy).for_each(|((out, x), dy)| {
                let (cdf, pdf) = normal(*x);
                *out = dy * (cdf + x * pdf);
            }),
        }
    }
}

/// Φ(x) and φ(x) of the standard normal distribution, without a branch.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let e = exp_negative(z * z);
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let series = ((((1.061_405_4 * t - 1.453_152_1) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let tail = 0.5 * series * e;
    (if x < 0.0 { tail } else { 1.0 - tail }, 0.398_942_3 * e)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::weights::to_vec;
    use burn::tensor::{Device, TensorData, activation};

    fn values() -> Tensor<1> {
        let values: Vec<f32> = (-3000..3000).map(|i| i as f32 * 0.005).chain([0.0, -40.0, 40.0, 1e-6]).collect();
        let n = values.len();
        Tensor::from_data(TensorData::new(values, [n]), &Device::flex())
    }

    #[test]
    pub(in super::super) fn equals_the_plain_operation_forward_and_backward() {
        let close = |a: Vec<f32>, b: Vec<f32>| {
            for (i, (a, b)) in a.iter().zip(&b).enumerate() {
                assert!((a - b).abs() <= 1e-6 + 1e-6 * b.abs(), "{i}: {a} against {b}");
            }
        };
        close(to_vec(gelu(values())), to_vec(activation::gelu(values())));
        let gradient = |f: &dyn Fn(Tensor<1>) -> Tensor<1>| {
            let x = values().autodiff().require_grad();
            let weights = values() * 0.3 + 1.0;
            let gradients = (f(x.clone()) * weights).sum().backward();
            to_vec(x.grad(&gradients).unwrap())
        };
        close(gradient(&gelu), gradient(&activation::gelu));
    }
}
