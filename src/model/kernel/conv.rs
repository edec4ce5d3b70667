//! The 3 × 3 convolution with padding 1 and stride 1 or 2, on pictures whose channels come last.
//!
//! As a matrix product over gathered neighbours, a few rows of a picture at a time, so that what is gathered stays in
//! the cache. Weights are in PyTorch's order `[out, in, 3, 3]`; a kernel sorts them once per call into neighbours first,
//! channels last, the order in which a picture is gathered by copying runs.

use super::inputs::see_neighbours;
use super::linear::leaf;
use super::{Matrix, Scratch, Threads, floats, indices, on_cpu, product, tensor};
use crate::model::weights::Weight;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Kernel positions.
const TAPS: usize = 9;

/// `[batch, h, w, in]` → `[batch, ⌈h / stride⌉, ⌈w / stride⌉, out]`, without bias.
pub fn conv3(x: Tensor<4>, weight: &Weight, stride: usize) -> Tensor<4> {
    see_neighbours(|| neighbours(x.clone(), stride), weight);
    if !on_cpu(&x) {
        return plain(x, weight, stride);
    }
    let (leaf, chosen, sparse) = leaf(&x, weight);
    Tensor::from_dispatch(<Dispatch as Conv>::fused_conv(
        x.into_dispatch(),
        weight.value.clone().into_dispatch(),
        leaf.into_dispatch(),
        chosen.into_dispatch(),
        stride,
        sparse,
    ))
}

/// Gathered neighbours and a linear layer over them: chosen entries work on any device.
fn plain(x: Tensor<4>, weight: &Weight, stride: usize) -> Tensor<4> {
    let gathered = Tensor::cat(neighbours(x, stride).map(|at| at.unsqueeze_dim::<5>(4)).collect(), 4);
    let [b, h, w, c, _] = gathered.dims();
    super::linear::plain(gathered.reshape([b, h, w, c * TAPS]), weight, None)
}

/// What stands at each kernel position of every output, zeros outside of the picture: nine times `[batch, h, w, in]` →
/// `[batch, ⌈h / stride⌉, ⌈w / stride⌉, in]`, one after another.
fn neighbours(x: Tensor<4>, stride: usize) -> impl ExactSizeIterator<Item = Tensor<4>> {
    let [b, h, w, c] = x.dims();
    let device = x.device();
    let rows = Tensor::zeros([b, 1, w, c], &device);
    let x = Tensor::cat(vec![rows.clone(), x, rows], 1);
    let cols = Tensor::zeros([b, h + 2, 1, c], &device);
    let x = Tensor::cat(vec![cols.clone(), x, cols], 2);
    let step = stride as i32;
    (0..TAPS as i32).map(move |i| {
        let [y, x0] = [i / 3, i % 3];
        let rows = burn::tensor::Slice::new(y as isize, Some((y + h as i32) as isize), step as isize);
        let cols = burn::tensor::Slice::new(x0 as isize, Some((x0 + w as i32) as isize), step as isize);
        x.clone().slice([(0..b).into(), rows, cols, (0..c).into()])
    })
}

/// The convolution as one operation.
#[backend_extension(Flex, Autodiff)]
pub trait Conv: Backend {
    /// As [`conv3`]; `weight` is flat. `leaf` is the weight itself, or, when `sparse`, its values at the flat indices
    /// `chosen`.
    fn fused_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        leaf: FloatTensor<Self>,
        chosen: IntTensor<Self>,
        stride: usize,
        sparse: bool,
    ) -> FloatTensor<Self>;
}

/// Sizes of one convolution.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    h: usize,
    w: usize,
    from: usize,
    to: usize,
    stride: usize,
}

impl Sizes {
    fn of(x: &FlexTensor, weights: usize, stride: usize) -> Sizes {
        let shape = x.layout().shape();
        Sizes { batch: shape[0], h: shape[1], w: shape[2], from: shape[3], to: weights / (shape[3] * TAPS), stride }
    }
    fn out(&self) -> [usize; 2] {
        [self.h.div_ceil(self.stride), self.w.div_ceil(self.stride)]
    }
    /// Output rows that are gathered at once: about a megabyte.
    fn rows(&self) -> usize {
        ((1 << 18) / (self.out()[1] * self.from * TAPS)).clamp(1, self.out()[0])
    }
    /// Output positions of a picture that are gathered at once.
    fn piece(&self) -> usize {
        self.rows() * self.out()[1]
    }
    /// Calls `f` with (column of the gathered matrix, source position) for each neighbour of an output position; there is
    /// no source outside of the picture.
    #[inline(always)]
    fn taps(&self, y: usize, x: usize, mut f: impl FnMut(usize, Option<usize>)) {
        for tap in 0..TAPS {
            let (sy, sx) = (y * self.stride + tap / 3, x * self.stride + tap % 3);
            let inside = sy > 0 && sx > 0 && sy <= self.h && sx <= self.w;
            f(tap * self.from, inside.then(|| ((sy - 1) * self.w + sx - 1) * self.from));
        }
    }
    /// The neighbours of output positions `first..first + n` of one picture, `[n, 9 · in]`.
    fn gather(&self, picture: &[f32], first: usize, n: usize) -> Scratch {
        let width = self.out()[1];
        let mut gathered = Scratch::of(n * TAPS * self.from);
        for (at, row) in gathered.chunks_exact_mut(TAPS * self.from).enumerate() {
            let (y, x) = ((first + at) / width, (first + at) % width);
            self.taps(y, x, |column, source| {
                let row = &mut row[column..column + self.from];
                match source {
                    Some(source) => row.copy_from_slice(&picture[source..source + self.from]),
                    None => row.fill(0.0),
                }
            });
        }
        gathered
    }
}

/// `[out, in, 9]` → `[out, 9, in]`.
fn sorted(weight: &[f32], sizes: &Sizes) -> Scratch {
    let width = sizes.from * TAPS;
    let mut out = Scratch::of(weight.len());
    for (out, weight) in out.chunks_exact_mut(width).zip(weight.chunks_exact(width)) {
        for (channel, taps) in weight.chunks_exact(TAPS).enumerate() {
            for (tap, value) in taps.iter().enumerate() {
                out[tap * sizes.from + channel] = *value;
            }
        }
    }
    out
}

/// `[out, 9, in]` → `[out, in, 9]`.
fn official(weight: &[f32], sizes: &Sizes) -> Vec<f32> {
    let width = sizes.from * TAPS;
    let mut out = vec![0f32; weight.len()];
    for (out, weight) in out.chunks_exact_mut(width).zip(weight.chunks_exact(width)) {
        for (i, value) in out.iter_mut().enumerate() {
            *value = weight[i % TAPS * sizes.from + i / TAPS];
        }
    }
    out
}

impl Conv for Flex {
    fn fused_conv(
        x: FlexTensor,
        weight: FlexTensor,
        _: FlexTensor,
        _: FlexTensor,
        stride: usize,
        _: bool,
    ) -> FlexTensor {
        let x = x.to_contiguous();
        let sizes = Sizes::of(&x, floats(&weight).len(), stride);
        let (x, panel) = (floats(&x), sorted(floats(&weight), &sizes));
        let weight: &[f32] = &panel;
        let ([h, w], k) = (sizes.out(), sizes.from * TAPS);
        let mut y = vec![0f32; sizes.batch * h * w * sizes.to];
        let picture = sizes.h * sizes.w * sizes.from;
        y.par_chunks_mut(h * w * sizes.to).zip(x.par_chunks(picture)).for_each(|(y, x)| {
            y.par_chunks_mut(sizes.piece() * sizes.to).enumerate().for_each(|(piece, y)| {
                let n = y.len() / sizes.to;
                let gathered = sizes.gather(x, piece * sizes.piece(), n);
                let weight = Matrix::new(weight, k).t();
                product([n, k, sizes.to], Matrix::new(&gathered, k), weight, y, false, Threads::One);
            });
        });
        tensor(y, [sizes.batch, h, w, sizes.to])
    }
}

/// dL/dx of one picture.
fn input_gradient(dy: &[f32], weight: &[f32], sizes: &Sizes, dx: &mut [f32]) {
    let (k, width) = (sizes.from * TAPS, sizes.out()[1]);
    let mut panel = Scratch::of(sizes.piece() * k);
    for (piece, dy) in dy.chunks(sizes.piece() * sizes.to).enumerate() {
        let n = dy.len() / sizes.to;
        let gathered = &mut panel[..n * k];
        product([n, sizes.to, k], Matrix::new(dy, sizes.to), Matrix::new(weight, k), gathered, false, Threads::One);
        for (at, row) in gathered.chunks_exact(k).enumerate() {
            let at = piece * sizes.piece() + at;
            sizes.taps(at / width, at % width, |column, source| {
                let Some(source) = source else { return };
                let to = &mut dx[source..source + sizes.from];
                to.iter_mut().zip(&row[column..column + sizes.from]).for_each(|(d, g)| *d += g);
            });
        }
    }
}

/// dL/dW of one picture, `[out, 9, in]`.
fn weight_gradient(x: &[f32], dy: &[f32], sizes: &Sizes) -> Vec<f32> {
    let k = sizes.from * TAPS;
    let mut dw = vec![0f32; sizes.to * k];
    for (piece, dy) in dy.chunks(sizes.piece() * sizes.to).enumerate() {
        let n = dy.len() / sizes.to;
        let gathered = sizes.gather(x, piece * sizes.piece(), n);
        let dy = Matrix::new(dy, sizes.to).t();
        product([sizes.to, n, k], dy, Matrix::new(&gathered, k), &mut dw, piece > 0, Threads::One);
    }
    dw
}

/// dL/dW of one picture at flat indices in the official order.
fn chosen_gradient(x: &[f32], dy: &[f32], sizes: &Sizes, chosen: &[u32]) -> Vec<f32> {
    let [h, w] = sizes.out();
    let mut sums = vec![0f32; chosen.len()];
    let at: Vec<[usize; 4]> = chosen
        .iter()
        .map(|i| {
            let (row, column) = (*i as usize / (sizes.from * TAPS), *i as usize % (sizes.from * TAPS));
            [row, column / TAPS, column % TAPS / 3, column % 3]
        })
        .collect();
    for oy in 0..h {
        for ox in 0..w {
            let dy = &dy[(oy * w + ox) * sizes.to..][..sizes.to];
            for (sum, [row, channel, ky, kx]) in sums.iter_mut().zip(&at) {
                let (sy, sx) = (oy * sizes.stride + ky, ox * sizes.stride + kx);
                if sy > 0 && sx > 0 && sy <= sizes.h && sx <= sizes.w {
                    *sum += dy[*row] * x[((sy - 1) * sizes.w + sx - 1) * sizes.from + channel];
                }
            }
        }
    }
    sums
}

impl<C: CheckpointStrategy> Conv for Autodiff<Flex, C> {
    fn fused_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        leaf: FloatTensor<Self>,
        chosen: IntTensor<Self>,
        stride: usize,
        sparse: bool,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct FusedConv;
        #[derive(Debug, Clone)]
        struct State {
            x: Option<FlexTensor>,
            weight: FlexTensor,
            chosen: FlexTensor,
            sizes: Sizes,
            sparse: bool,
        }
        impl Backward<Flex, 2> for FusedConv {
            type State = State;

            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let [x_node, leaf_node] = ops.parents;
                let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
                let (state, sizes) = (&ops.state, ops.state.sizes);
                let [h, w] = sizes.out();
                let (dy, picture) = (floats(&dy), sizes.h * sizes.w * sizes.from);
                let per_picture = h * w * sizes.to;
                if let (Some(node), Some(x)) = (leaf_node, &state.x) {
                    let x = x.to_contiguous();
                    let chosen = indices(&state.chosen);
                    let pairs = floats(&x).par_chunks(picture).zip(dy.par_chunks(per_picture));
                    let parts: Vec<Vec<f32>> = pairs
                        .map(|(x, dy)| match state.sparse {
                            true => chosen_gradient(x, dy, &sizes, &chosen),
                            false => weight_gradient(x, dy, &sizes),
                        })
                        .collect();
                    let sum = parts.into_iter().reduce(|mut sum, part| {
                        sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
                        sum
                    });
                    let sum = sum.unwrap_or_default();
                    let sum = if state.sparse { sum } else { official(&sum, &sizes) };
                    let n = sum.len();
                    grads.register::<Flex>(node.id, tensor(sum, [n]));
                }
                if let Some(node) = x_node {
                    let panel = sorted(floats(&state.weight), &sizes);
                    let weight: &[f32] = &panel;
                    let mut dx = vec![0f32; sizes.batch * picture];
                    dx.par_chunks_mut(picture)
                        .zip(dy.par_chunks(per_picture))
                        .for_each(|(dx, dy)| input_gradient(dy, weight, &sizes, dx));
                    grads.register::<Flex>(node.id, tensor(dx, [sizes.batch, sizes.h, sizes.w, sizes.from]));
                }
            }
        }
        let (nodes, wants_weight) = ([x.node(), leaf.node()], leaf.is_tracked());
        match FusedConv.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (x, weight) = (x.into_primitive(), weight.into_primitive());
                let state = State {
                    x: wants_weight.then(|| x.clone()),
                    weight: weight.clone(),
                    chosen: chosen.clone(),
                    sizes: Sizes::of(&x, floats(&weight).len(), stride),
                    sparse,
                };
                prep.finish(state, Flex::fused_conv(x, weight, leaf.into_primitive(), chosen, stride, sparse))
            }
            OpsKind::UnTracked(prep) => {
                let (x, weight) = (x.into_primitive(), weight.into_primitive());
                prep.finish(Flex::fused_conv(x, weight, leaf.into_primitive(), chosen, stride, sparse))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{close, leaf, wave, weight};
    use super::*;
    use crate::model::weights::{Kind, to_vec};
    use burn::tensor::{Device, TensorData};

    #[test]
    fn chosen_entries_have_the_dense_gradient_and_the_finite_difference() {
        let chosen = [0u32, 5, 31, 60, 61, 134];
        for stride in [1, 2] {
            let mut dense = weight("w", Kind::Conv, &[5, 3, 3, 3]);
            let mut sparse = dense.clone();
            dense.train_all();
            sparse.train_chosen(&chosen, &Device::flex());
            let x = wave([2, 7, 6, 3], 0.37);
            let gradient = |weight: &Weight| {
                let y = conv3(x.clone().autodiff(), weight, stride);
                let leaf = weight.chosen.as_ref().map(|c| &c.values).unwrap_or(&weight.value);
                to_vec(leaf.grad(&(y.clone() * y).sum().backward()).unwrap())
            };
            let (all, some) = (gradient(&dense), gradient(&sparse));
            let loss = |at: usize, by: f32| {
                let mut moved = sparse.clone();
                let mut values = to_vec(moved.chosen.as_ref().unwrap().values.clone());
                values[at] += by;
                moved.set_chosen(Tensor::from_data(TensorData::new(values, [chosen.len()]), &Device::flex()));
                let y = conv3(x.clone(), &moved, stride);
                to_vec((y.clone() * y).sum())[0]
            };
            for (n, (entry, exact)) in chosen.iter().zip(&some).enumerate() {
                let (dense, scale) = (all[*entry as usize], exact.abs().max(1.0));
                assert!((dense - exact).abs() <= 1e-4 * scale, "{entry}: {exact}, dense {dense}");
                // The loss is quadratic in each value: central differences are exact but for rounding.
                let difference = (loss(n, 0.1) - loss(n, -0.1)) / 0.2;
                assert!((difference - exact).abs() <= 2e-2 * scale, "{entry}: {exact}, difference {difference}");
            }
        }
    }

    #[test]
    fn equals_gathered_neighbours_forward_and_backward() {
        for stride in [1, 2] {
            let mut dense = weight("w", Kind::Conv, &[5, 3, 3, 3]);
            let mut sparse = dense.clone();
            dense.train_all();
            sparse.train_chosen(&[0, 5, 31, 60, 61, 134], &Device::flex());
            for weight in [dense, sparse] {
                let run = |f: &dyn Fn(Tensor<4>, &Weight, usize) -> Tensor<4>| {
                    let x = leaf([2, 7, 6, 3], 0.37);
                    let y = f(x.clone(), &weight, stride);
                    let grads = (y.clone() * wave(y.dims(), 0.11)).sum().backward();
                    let values = weight.chosen.as_ref().map(|c| &c.values).unwrap_or(&weight.value);
                    (y.flatten::<1>(0, 3), x.grad(&grads).unwrap().flatten::<1>(0, 3), values.grad(&grads).unwrap())
                };
                let (a, b) = (run(&conv3), run(&plain));
                close(a.0, b.0, 1e-5);
                close(a.1, b.1, 1e-5);
                close(a.2, b.2, 1e-4);
            }
        }
    }
}
