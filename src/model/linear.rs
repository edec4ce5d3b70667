//! The linear layer, dense or with chosen entries.
//!
//! A layer whose weight has chosen entries uses a custom autodiff step: forward is the ordinary product with the weight
//! (which already holds the trained values); backward gives the input gradient and, of the weight gradient, only the
//! chosen entries dW[r, c] = Σ_t dY[t, r] · X[t, c]. The dense dW is never formed.
//!
//! Patch embedding, neck and transposed convolutions are linear layers over rearranged pixels, so this one file serves
//! every trained matrix of the network.

use super::weights::{Scope, Weight};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Shape, Tensor, TensorData};
use rayon::prelude::*;

/// `x · Wᵀ + b` over the last dimension: `[…, fan_in]` → `[…, out]`, weight and bias found under `scope`.
pub fn linear<const D: usize>(x: Tensor<D>, scope: &Scope<'_>) -> Tensor<D> {
    project(x, scope.get("weight")) + scope.get("bias").value.clone().unsqueeze()
}

/// `x · Wᵀ` over the last dimension: `[…, fan_in]` → `[…, out]`.
pub fn project<const D: usize>(x: Tensor<D>, weight: &Weight) -> Tensor<D> {
    let (out, fan_in) = weight.spec.matrix();
    let mut shape = x.dims();
    let rows: usize = shape[..D - 1].iter().product();
    let x = x.reshape([rows, fan_in]);
    let y = match &weight.chosen {
        None => x.matmul(weight.matrix().transpose()),
        Some(chosen) => Tensor::from_dispatch(<Dispatch as ChosenEntries>::chosen_linear(
            x.into_dispatch(),
            weight.matrix().into_dispatch(),
            chosen.values.clone().into_dispatch(),
            chosen.rows.clone().into_dispatch(),
            chosen.cols.clone().into_dispatch(),
        )),
    };
    shape[D - 1] = out;
    y.reshape(shape)
}

/// The two operations that burn does not have.
#[cfg_attr(feature = "cuda", backend_extension(Flex, Cube, Autodiff))]
#[cfg_attr(not(feature = "cuda"), backend_extension(Flex, Autodiff))]
pub trait ChosenEntries: Backend {
    /// `x · Wᵀ`, `[tokens, fan_in]` × `[out, fan_in]` → `[tokens, out]`; `values` stand in `weight` at (rows, cols)
    /// already and are named only so that their gradient is recorded.
    fn chosen_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        values: FloatTensor<Self>,
        rows: IntTensor<Self>,
        cols: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let _ = (values, rows, cols);
        Self::float_matmul(x, Self::float_swap_dims(weight, 0, 1))
    }

    /// `Σ_t dy[t, rows[m]] · x[t, cols[m]]` for every chosen entry m.
    fn chosen_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        rows: IntTensor<Self>,
        cols: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let product = Self::float_mul(Self::float_select(dy, 1, rows), Self::float_select(x, 1, cols));
        let sum = Self::float_sum_dim(product, 0);
        let n = burn::backend::TensorMetadata::shape(&sum).num_elements();
        Self::float_reshape(sum, Shape::new([n]))
    }
}

#[cfg(feature = "cuda")]
impl ChosenEntries for burn::backend::Cube {}

impl ChosenEntries for Flex {
    fn chosen_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        rows: IntTensor<Self>,
        cols: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let (fan_in, out) = (x.layout().shape()[1], dy.layout().shape()[1]);
        let (x, dy) = (x.to_contiguous(), dy.to_contiguous());
        let (xs, dys) = (floats(&x), floats(&dy));
        let (rows, cols) = (indices(&rows), indices(&cols));
        let mut sums = vec![0f32; rows.len()];
        // Threads share the entries, not the tokens: every sum is taken in the same order whatever their number.
        sums.par_chunks_mut(256).enumerate().for_each(|(chunk, sums)| {
            let at = chunk * 256;
            let (rows, cols) = (&rows[at..at + sums.len()], &cols[at..at + sums.len()]);
            for (x, dy) in xs.chunks_exact(fan_in).zip(dys.chunks_exact(out)) {
                for ((sum, r), c) in sums.iter_mut().zip(rows).zip(cols) {
                    *sum += dy[*r as usize] * x[*c as usize];
                }
            }
        });
        let n = sums.len();
        FlexTensor::from_data(TensorData::new(sums, [n]))
    }
}

fn floats(tensor: &FlexTensor) -> &[f32] {
    #[expect(clippy::expect_used, reason = "every float tensor of the program is f32, made contiguous by the caller")]
    tensor.as_slice::<f32>().expect("contiguous f32")
}

fn indices(tensor: &FlexTensor) -> Vec<u32> {
    match tensor.dtype() {
        DType::I64 => tensor.storage::<i64>().iter().map(|i| *i as u32).collect(),
        _ => tensor.storage::<i32>().iter().map(|i| *i as u32).collect(),
    }
}

impl<B: ChosenEntries, C: CheckpointStrategy> ChosenEntries for Autodiff<B, C> {
    fn chosen_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        values: FloatTensor<Self>,
        rows: IntTensor<Self>,
        cols: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct ChosenLinear;
        #[derive(Debug, Clone)]
        struct State<B: Backend> {
            x: FloatTensor<B>,
            weight: FloatTensor<B>,
            rows: IntTensor<B>,
            cols: IntTensor<B>,
        }
        impl<B: ChosenEntries> Backward<B, 2> for ChosenLinear {
            type State = State<B>;

            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let [x, values] = ops.parents;
                let dy = grads.consume::<B>(&ops.node);
                let state = ops.state;
                if let Some(node) = values {
                    let gradient = B::chosen_gradient(state.x, dy.clone(), state.rows, state.cols);
                    grads.register::<B>(node.id, gradient);
                }
                if let Some(node) = x {
                    grads.register::<B>(node.id, B::float_matmul(dy, state.weight));
                }
            }
        }
        match ChosenLinear.prepare::<C>([x.node(), values.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = State::<B> {
                    x: x.primitive().clone(),
                    weight: weight.primitive().clone(),
                    rows: rows.clone(),
                    cols: cols.clone(),
                };
                prep.finish(
                    state,
                    B::chosen_linear(x.into_primitive(), weight.into_primitive(), values.into_primitive(), rows, cols),
                )
            }
            OpsKind::UnTracked(prep) => prep.finish(B::chosen_linear(
                x.into_primitive(),
                weight.into_primitive(),
                values.into_primitive(),
                rows,
                cols,
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights::{HostTensor, Kind, Part, WeightSpec, Weights, to_vec};
    use burn::tensor::Device;
    use std::collections::BTreeMap;

    /// 300 tokens, 7 inputs, 5 outputs: more tokens than one block of any kernel.
    fn layer() -> (Tensor<2>, Weights) {
        let wave = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
        let x = Tensor::<2>::from_data(TensorData::new(wave(300 * 7, 0.37), [300, 7]), &Device::flex());
        let spec = WeightSpec {
            name: "w.weight".into(),
            kind: Kind::Linear,
            part: Part::ImageEncoder,
            shape: vec![5, 7],
            prompt_free: true,
        };
        let host = HostTensor { shape: vec![5, 7], data: wave(35, 1.1) };
        (x, Weights::new(vec![spec], BTreeMap::from([("w.weight".into(), host)]), &Device::flex()))
    }

    /// Gradients of Σ y² by x and by the trained values.
    fn gradients(x: &Tensor<2>, weight: &Weight) -> (Vec<f32>, Vec<f32>) {
        let x = x.clone().autodiff().require_grad();
        let y = project(x.clone(), weight);
        let grads = (y.clone() * y).sum().backward();
        let leaf = weight.chosen.as_ref().map(|c| &c.values).unwrap_or(&weight.value);
        (to_vec(x.grad(&grads).unwrap()), to_vec(leaf.grad(&grads).unwrap()))
    }

    #[test]
    fn chosen_entries_have_the_dense_gradient() {
        let (x, weights) = layer();
        let (mut dense, mut sparse) =
            (weights.get("w.weight").unwrap().clone(), weights.get("w.weight").unwrap().clone());
        let chosen = [0u32, 8, 20, 21, 34];
        dense.train_all();
        sparse.train_chosen(&chosen, &Device::flex());
        let ((dx, dw), (sx, sw)) = (gradients(&x, &dense), gradients(&x, &sparse));
        let near = |a: f32, b: f32| (a - b).abs() <= 1e-4 * (1.0 + b.abs());
        assert!(dx.iter().zip(&sx).all(|(a, b)| near(*b, *a)));
        assert!(chosen.iter().zip(&sw).all(|(i, b)| near(*b, dw[*i as usize])), "{sw:?} {dw:?}");
    }

    #[test]
    fn chosen_entries_have_the_finite_difference() {
        let (x, weights) = layer();
        let mut weight = weights.get("w.weight").unwrap().clone();
        weight.train_chosen(&[8, 20], &Device::flex());
        let gradient = gradients(&x, &weight).1;
        let loss = |at: usize, by: f32| {
            let mut moved = weight.clone();
            let mut values = to_vec(moved.chosen.as_ref().unwrap().values.clone());
            values[at] += by;
            moved.set_chosen(Tensor::from_data(TensorData::new(values, [2]), &Device::flex()));
            let y = project(x.clone(), &moved).without_autodiff();
            to_vec((y.clone() * y).sum())[0]
        };
        for (at, exact) in gradient.iter().enumerate() {
            // The loss is quadratic in each value: central differences are exact but for rounding.
            let difference = (loss(at, 0.05) - loss(at, -0.05)) / 0.1;
            assert!((difference - exact).abs() <= 2e-2 * exact.abs().max(1.0), "{difference} against {exact}");
        }
    }
}
