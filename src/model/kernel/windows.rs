//! Attention inside windows of a picture, in one operation.
//!
//! Windows at the lower and right edge reach over it. SAM pads the normed picture with zeros there, so that every key and
//! value outside is what `qkv` makes of zeros: one row, given once. Queries outside ask for what is cut off again. So
//! nothing but the picture's own positions goes through `qkv` and `proj`, and a window's head gathers its rows where they lie:
//! at 512 pixels and windows of 14, 1,024 positions instead of 1,764.

use super::attention::{Head, HeadGradient, Positions, plain_self, table_gradient};
use super::{Matrix, Scratch, floats, on_cpu, tensor};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Attention of the positions of each window of `side` × `side` to each other.
///
/// # Shapes
/// `qkv`: `[batch, h · w, 3 · width]`; `behind`: `[1 or more, 3 · width]`, of which the first row stands wherever a window
/// reaches over the edge, and the others behind the positions of every window: keys and values without a position, whose
/// queries are passed over; `rel_h`, `rel_w`: `[2 · side - 1, width / heads]` → `[batch, h · w, width]`.
pub fn window_attention(
    qkv: Tensor<3>,
    behind: Tensor<2>,
    [rel_h, rel_w]: [Tensor<2>; 2],
    heads: usize,
    [h, w]: [usize; 2],
    side: usize,
) -> Tensor<3> {
    if !on_cpu(&qkv) {
        return plain(qkv, behind, [rel_h, rel_w], heads, [h, w], side);
    }
    let [rel_h, rel_w] = [rel_h, rel_w].map(Tensor::into_dispatch);
    let [qkv, behind] = [qkv.into_dispatch(), behind.into_dispatch()];
    Tensor::from_dispatch(<Dispatch as WindowAttention>::fused_windows(qkv, behind, rel_h, rel_w, heads, h, w, side))
}

fn plain(
    qkv: Tensor<3>,
    behind: Tensor<2>,
    [rel_h, rel_w]: [Tensor<2>; 2],
    heads: usize,
    [h, w]: [usize; 2],
    side: usize,
) -> Tensor<3> {
    let ([b, _, c], others) = (qkv.dims(), behind.dims()[0] - 1);
    let outside = behind.clone().narrow(0, 0, 1).reshape([c]);
    let windows = partition(qkv.reshape([b, h, w, c]), side, outside);
    let n = windows.dims()[0];
    let mut all = vec![windows.reshape([n, side * side, c])];
    if others > 0 {
        all.push(behind.narrow(0, 1, others).unsqueeze::<3>().expand([n, others, c]));
    }
    let y = plain_self(Tensor::cat(all, 1), rel_h, rel_w, heads, [side, side]);
    unpartition(y.reshape([n, side, side, c / 3]), [b, h, w]).reshape([b, h * w, c / 3])
}

/// Windows of `side` × `side`, with `outside`, `[c]`, below and to the right of the picture: `[batch, h, w, c]` →
/// `[batch · windows, side, side, c]`.
pub fn partition(x: Tensor<4>, side: usize, outside: Tensor<1>) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    let (rows, cols) = (h.div_ceil(side), w.div_ceil(side));
    let more = |h: usize, w: usize| outside.clone().reshape([1, 1, 1, c]).expand([b, h, w, c]);
    let x = if cols * side == w { x } else { Tensor::cat(vec![x, more(h, cols * side - w)], 2) };
    let x = if rows * side == h { x } else { Tensor::cat(vec![x, more(rows * side - h, cols * side)], 1) };
    let x = x.reshape([b, rows, side, cols, side, c]).permute([0, 1, 3, 2, 4, 5]);
    x.reshape([b * rows * cols, side, side, c])
}

/// The way back from [`partition`], what is outside cut off.
pub fn unpartition(x: Tensor<4>, [b, h, w]: [usize; 3]) -> Tensor<4> {
    let [_, side, _, c] = x.dims();
    let (rows, cols) = (h.div_ceil(side), w.div_ceil(side));
    let x = x.reshape([b, rows, cols, side, side, c]).permute([0, 1, 3, 2, 4, 5]);
    x.reshape([b, rows * side, cols * side, c]).slice([0..b, 0..h, 0..w])
}

/// Attention inside windows as one operation.
#[backend_extension(Flex, Autodiff)]
pub trait WindowAttention: Backend {
    /// As [`window_attention`].
    #[allow(clippy::too_many_arguments, reason = "an operation takes tensors and numbers one by one")]
    fn fused_windows(
        qkv: FloatTensor<Self>,
        behind: FloatTensor<Self>,
        rel_h: FloatTensor<Self>,
        rel_w: FloatTensor<Self>,
        heads: usize,
        h: usize,
        w: usize,
        side: usize,
    ) -> FloatTensor<Self>;
}

/// Sizes that the tensors do not tell.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    heads: usize,
    h: usize,
    w: usize,
    side: usize,
}

/// The heads of all windows of all pictures.
struct Windows<'a> {
    heads: usize,
    h: usize,
    w: usize,
    side: usize,
    batch: usize,
    /// Width of a head.
    d: usize,
    /// Keys of a window.
    m: usize,
    qkv: &'a [f32],
    behind: &'a [f32],
    along_h: &'a [f32],
    along_w: &'a [f32],
}

/// A head of a window: where it begins, and how many rows and columns of it lie inside.
#[derive(Clone, Copy)]
struct Window {
    picture: usize,
    head: usize,
    y: usize,
    x: usize,
    rows: usize,
    cols: usize,
}

impl Window {
    /// Whether the window's position lies in the picture.
    fn holds(&self, y: usize, x: usize) -> bool {
        y < self.rows && x < self.cols
    }
}

/// Queries, keys and values stand in a row in this order.
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;

impl<'a> Windows<'a> {
    fn new([qkv, behind, rel_h, rel_w]: &'a [FlexTensor; 4], Sizes { heads, h, w, side }: Sizes) -> Windows<'a> {
        let (qkv, behind) = (floats(qkv), floats(behind));
        let (along_h, along_w) = (floats(rel_h), floats(rel_w));
        let d = along_h.len() / (2 * side - 1);
        let row = 3 * heads * d;
        let (batch, m) = (qkv.len() / (h * w * row), side * side + behind.len() / row - 1);
        Windows { heads, h, w, side, batch, d, m, qkv, behind, along_h, along_w }
    }

    /// Windows from above to below, and from left to right.
    fn grid(&self) -> [usize; 2] {
        [self.h.div_ceil(self.side), self.w.div_ceil(self.side)]
    }

    fn width(&self) -> usize {
        self.heads * self.d
    }

    fn count(&self) -> usize {
        let [rows, cols] = self.grid();
        self.batch * rows * cols * self.heads
    }

    fn window(&self, at: usize) -> Window {
        let ([down, across], side) = (self.grid(), self.side);
        let (head, at) = (at % self.heads, at / self.heads);
        let (y, x) = (at / across % down * side, at % across * side);
        Window { picture: at / (down * across), head, y, x, rows: side.min(self.h - y), cols: side.min(self.w - x) }
    }

    /// A window's row of `values`, `[batch, h, w, row]`, `d` wide from `offset` on.
    fn placed<'b>(&self, values: &'b [f32], row: usize, offset: usize, at: &Window, y: usize, x: usize) -> &'b [f32] {
        let position = (at.picture * self.h + at.y + y) * self.w + at.x + x;
        &values[position * row + offset + at.head * self.d..][..self.d]
    }

    /// What one row per position of the window that lies inside holds: `[rows · cols, d]`.
    fn inside(&self, values: &[f32], row: usize, offset: usize, at: &Window) -> Scratch {
        let mut all = Scratch::of(at.rows * at.cols * self.d);
        for (i, to) in all.chunks_exact_mut(self.d).enumerate() {
            to.copy_from_slice(self.placed(values, row, offset, at, i / at.cols, i % at.cols));
        }
        all
    }

    /// Keys or values of a window: `[m, d]`.
    fn keys(&self, part: usize, at: &Window) -> Scratch {
        let (width, side) = (self.width(), self.side);
        let mut all = Scratch::of(self.m * self.d);
        for (i, to) in all.chunks_exact_mut(self.d).enumerate() {
            to.copy_from_slice(match self.behind_row(i, at) {
                None => self.placed(self.qkv, 3 * width, part * width, at, i / side, i % side),
                Some(row) => &self.behind[(3 * row + part) * width + at.head * self.d..][..self.d],
            });
        }
        all
    }

    /// Which row of `behind` is key `i` of a window; `None` where it is a position of the picture.
    fn behind_row(&self, i: usize, at: &Window) -> Option<usize> {
        let placed = self.side * self.side;
        match i.checked_sub(placed) {
            Some(other) => Some(1 + other),
            None => (!at.holds(i / self.side, i % self.side)).then_some(0),
        }
    }

    /// What `work` makes of every head of every window.
    fn each<T: Send>(&self, work: impl Fn(&Head<'_>, &Window) -> T + Sync) -> Vec<T> {
        let (width, side, d) = (self.width(), self.side, self.d);
        let one = |at: usize| {
            let at = self.window(at);
            let (q, k, v) = (self.inside(self.qkv, 3 * width, 0, &at), self.keys(K, &at), self.keys(V, &at));
            let [q, k, v] = [&q, &k, &v].map(|rows| Matrix::new(rows, d));
            let positions = Positions { h: side, w: side, cols: at.cols, along_h: self.along_h, along_w: self.along_w };
            work(&Head { n: at.rows * at.cols, m: self.m, d, q, k, v, positions: Some(positions) }, &at)
        };
        (0..self.count()).into_par_iter().map(one).collect()
    }

    /// Writes what every head of every window has for the positions of the picture to where those stand in `out`,
    /// `[batch, h, w, row]`, from `offset` on. Queries lie `cols` a row of the window, keys and values `side`.
    fn join(&self, heads: &[Vec<f32>], part: usize, row: usize, offset: usize, out: &mut [f32]) {
        let ([down, across], side, d) = (self.grid(), self.side, self.d);
        out.par_chunks_mut(self.w * row).enumerate().for_each(|(line, out)| {
            let (picture, y) = (line / self.h, line % self.h);
            for (x, out) in out.chunks_exact_mut(row).enumerate() {
                let first = ((picture * down + y / side) * across + x / side) * self.heads;
                let stride = if part == Q { side.min(self.w - x / side * side) } else { side };
                let at = (y % side * stride + x % side) * d;
                let out = out[offset..][..self.width()].chunks_exact_mut(d);
                out.zip(&heads[first..]).for_each(|(out, head)| out.copy_from_slice(&head[at..][..d]));
            }
        });
    }

    /// `[batch, h · w, width]`
    fn forward(&self) -> Vec<f32> {
        let heads = self.each(|head, _| head.forward());
        let mut out = vec![0f32; self.batch * self.h * self.w * self.width()];
        self.join(&heads, Q, self.width(), 0, &mut out);
        out
    }

    fn backward(&self, dy: &[f32]) -> Vec<HeadGradient> {
        let width = self.width();
        self.each(|head, at| head.backward(Matrix::new(&self.inside(dy, width, 0, at), self.d)))
    }

    /// The gradient of what stands behind the positions, summed over heads of windows in their order.
    fn behind_gradient(&self, heads: &[HeadGradient]) -> Vec<f32> {
        let width = self.width();
        let mut sum = vec![0f32; self.behind.len()];
        for (n, gradient) in heads.iter().enumerate() {
            let at = self.window(n);
            for i in 0..self.m {
                let Some(row) = self.behind_row(i, &at) else { continue };
                for (part, values) in [(K, &gradient.k), (V, &gradient.v)] {
                    let to = &mut sum[(3 * row + part) * width + at.head * self.d..][..self.d];
                    to.iter_mut().zip(&values[i * self.d..]).for_each(|(s, v)| *s += v);
                }
            }
        }
        sum
    }
}

impl WindowAttention for Flex {
    fn fused_windows(
        qkv: FlexTensor,
        behind: FlexTensor,
        rel_h: FlexTensor,
        rel_w: FlexTensor,
        heads: usize,
        h: usize,
        w: usize,
        side: usize,
    ) -> FlexTensor {
        let parts = [qkv, behind, rel_h, rel_w].map(|part| part.to_contiguous());
        let windows = Windows::new(&parts, Sizes { heads, h, w, side });
        tensor(windows.forward(), [windows.batch, h * w, windows.width()])
    }
}

impl<C: CheckpointStrategy> WindowAttention for Autodiff<Flex, C> {
    fn fused_windows(
        qkv: FloatTensor<Self>,
        behind: FloatTensor<Self>,
        rel_h: FloatTensor<Self>,
        rel_w: FloatTensor<Self>,
        heads: usize,
        h: usize,
        w: usize,
        side: usize,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct FusedWindows;
        impl Backward<Flex, 4> for FusedWindows {
            type State = ([FlexTensor; 4], Sizes);

            fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
                let [qkv_node, behind_node, h_node, w_node] = ops.parents;
                let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
                let (parts, sizes) = ops.state;
                let parts = parts.map(|part| part.to_contiguous());
                let windows = Windows::new(&parts, sizes);
                let (width, d) = (windows.width(), windows.d);
                let mut heads = windows.backward(floats(&dy));
                let tables: [fn(&HeadGradient) -> &[f32]; 2] = [|g| &g.along_h, |g| &g.along_w];
                for (node, table) in [h_node, w_node].into_iter().zip(tables) {
                    let Some(node) = node else { continue };
                    let rows = 2 * sizes.side - 1;
                    grads.register::<Flex>(node.id, tensor(table_gradient(&heads, table, rows * d), [rows, d]));
                }
                if let Some(node) = behind_node {
                    let rows = windows.behind.len() / (3 * width);
                    grads.register::<Flex>(node.id, tensor(windows.behind_gradient(&heads), [rows, 3 * width]));
                }
                if let Some(node) = qkv_node {
                    let mut dqkv = vec![0f32; windows.qkv.len()];
                    for part in [Q, K, V] {
                        let values: Vec<Vec<f32>> = heads.iter_mut().map(|head| head.take(part)).collect();
                        windows.join(&values, part, 3 * width, part * width, &mut dqkv);
                    }
                    grads.register::<Flex>(node.id, tensor(dqkv, [windows.batch, sizes.h * sizes.w, 3 * width]));
                }
            }
        }
        let (nodes, sizes) = ([qkv.node(), behind.node(), rel_h.node(), rel_w.node()], Sizes { heads, h, w, side });
        match FusedWindows.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let parts = [qkv, behind, rel_h, rel_w].map(|part| part.into_primitive());
                let [qkv, behind, rel_h, rel_w] = parts.clone();
                prep.finish((parts, sizes), Flex::fused_windows(qkv, behind, rel_h, rel_w, heads, h, w, side))
            }
            OpsKind::UnTracked(prep) => {
                let [qkv, behind, rel_h, rel_w] = [qkv, behind, rel_h, rel_w].map(|part| part.into_primitive());
                prep.finish(Flex::fused_windows(qkv, behind, rel_h, rel_w, heads, h, w, side))
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::{close, leaf, wave};
    use super::*;
    use crate::model::weights::to_vec;
    use burn::tensor::Device;

    fn flat<const D: usize>(x: Tensor<D>) -> Tensor<1> {
        x.flatten(0, D - 1)
    }

    #[test]
    pub(in super::super) fn equals_the_plain_operations_forward_and_backward() {
        // 2 pictures, 2 heads of 6, windows of 3 that reach over one edge, over both, over none; with and without others.
        for ([h, w], others) in [([5, 7], 0), ([5, 7], 2), ([6, 4], 1), ([3, 6], 0), ([2, 2], 0)] {
            let run = |f: &dyn Fn(Tensor<3>, Tensor<2>, [Tensor<2>; 2], usize, [usize; 2], usize) -> Tensor<3>| {
                let (qkv, behind) = (leaf([2, h * w, 36], 0.37), leaf([1 + others, 36], 0.9));
                let tables = [leaf([5, 6], 1.3), leaf([5, 6], 0.7)];
                let y = f(qkv.clone(), behind.clone(), tables.clone(), 2, [h, w], 3);
                assert_eq!(y.dims(), [2, h * w, 12]);
                let grads = (y.clone() * wave([2, h * w, 12], 0.11)).sum().backward();
                let [along_h, along_w] = tables.map(|table| flat(table.grad(&grads).unwrap()));
                // Where no window reaches over the edge, the plain operations do not look at what stands there.
                let behind = behind.grad(&grads).unwrap_or_else(|| Tensor::zeros([1 + others, 36], &Device::flex()));
                let (qkv, behind) = (flat(qkv.grad(&grads).unwrap()), flat(behind));
                [flat(y), qkv, behind, along_h, along_w]
            };
            run(&window_attention).into_iter().zip(run(&plain)).for_each(|(a, b)| close(a, b, 1e-5));
        }
    }

    #[test]
    fn windows_go_apart_and_come_together() {
        let x = wave([2, 5, 7, 3], 0.37);
        let outside = wave([3], 0.9);
        let windows = partition(x.clone(), 3, outside.clone());
        assert_eq!(windows.dims(), [2 * 2 * 3, 3, 3, 3]);
        // The last window of a picture holds one position of it: rows 3 and 4, column 6.
        let corner = to_vec(windows.clone().slice([5..6, 0..3, 0..3, 0..3]));
        let (first, outside) = (to_vec(x.clone().slice([0..1, 3..4, 6..7, 0..3])), to_vec(outside));
        assert_eq!((&corner[..3], &corner[3..6], &corner[18..21]), (&first[..], &outside[..], &outside[..]));
        assert_eq!(to_vec(unpartition(windows, [2, 5, 7])), to_vec(x));
    }
}
