//! Multi-head attention in one operation: scores, relative positions, softmax and the weighted sum, head by head and a
//! block of queries at a time, so that scores never exist for the whole picture. Backward computes them again.
//!
//! Scores of query q and key k are q · k / √d, in the image encoder plus q · R_h\[y_q - y_k\] + q · R_w\[x_q - x_k\]
//! (decomposed relative positions: Li et al., MViTv2, arXiv 2112.01526, equation 4).

use super::{Matrix, Scratch, Threads, exp_negative, floats, lanes, on_cpu, product, tensor, widest};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Int, Tensor, TensorData, activation};
use rayon::prelude::*;

/// Attention of a picture's positions to each other, and to what stands behind them: keys and values without a position,
/// whose queries are passed over.
///
/// # Shapes
/// `qkv`: `[batch, h · w or more, 3 · width]`; `rel_h`: `[2h - 1, width / heads]`, `rel_w`: `[2w - 1, width / heads]` →
/// `[batch, h · w, width]`.
pub fn self_attention(
    qkv: Tensor<3>,
    rel_h: Tensor<2>,
    rel_w: Tensor<2>,
    heads: usize,
    [h, w]: [usize; 2],
) -> Tensor<3> {
    if !on_cpu(&qkv) {
        return plain_self(qkv, rel_h, rel_w, heads, [h, w]);
    }
    let [qkv, rel_h, rel_w] = [qkv.into_dispatch(), rel_h.into_dispatch(), rel_w.into_dispatch()];
    Tensor::from_dispatch(<Dispatch as Attention>::fused_self(qkv, rel_h, rel_w, heads, h, w))
}

/// Attention of `q`, `[batch, n, width]`, to `k` and `v`, `[batch, m, width]` → `[batch, n, width]`.
pub fn cross_attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize) -> Tensor<3> {
    if !on_cpu(&q) {
        return plain_cross(q, k, v, heads);
    }
    let [q, k, v] = [q.into_dispatch(), k.into_dispatch(), v.into_dispatch()];
    Tensor::from_dispatch(<Dispatch as Attention>::fused_cross(q, k, v, heads))
}

pub(super) fn plain_self(
    qkv: Tensor<3>,
    rel_h: Tensor<2>,
    rel_w: Tensor<2>,
    heads: usize,
    [h, w]: [usize; 2],
) -> Tensor<3> {
    let ([b, m, c], n) = (qkv.dims(), h * w);
    let (width, c) = (c / 3 / heads, c / 3);
    let qkv = qkv.reshape([b, m, 3, heads, width]).permute([2, 0, 3, 1, 4]).reshape([3, b * heads, m, width]);
    let part = |i: usize| qkv.clone().narrow(0, i, 1).reshape([b * heads, m, width]);
    let (q, k, v) = (part(0).narrow(1, 0, n), part(1), part(2));

    let scores = (q.clone() * (width as f64).powf(-0.5)).matmul(k.transpose());
    let (scores, others) = (scores.clone().narrow(2, 0, n), (m > n).then(|| scores.narrow(2, n, m - n)));
    let q = q.reshape([b * heads, h, w, width]);
    let along_h = q.clone().matmul(relative(rel_h, h).transpose().unsqueeze::<4>());
    let along_w = q.permute([0, 2, 1, 3]).matmul(relative(rel_w, w).transpose().unsqueeze::<4>());
    let along_w = along_w.permute([0, 2, 1, 3]);
    let scores = scores.reshape([b * heads, h, w, h, w])
        + along_h.reshape([b * heads, h, w, h, 1])
        + along_w.reshape([b * heads, h, w, 1, w]);
    let scores = std::iter::once(scores.reshape([b * heads, n, n])).chain(others).collect();

    let y = activation::softmax(Tensor::cat(scores, 2), 2).matmul(v);
    y.reshape([b, heads, n, width]).permute([0, 2, 1, 3]).reshape([b, n, c])
}

/// Relative position vectors `[query, key, width]` of a side.
fn relative(table: Tensor<2>, side: usize) -> Tensor<3> {
    let width = table.dims()[1];
    let offsets: Vec<i32> = (0..side * side).map(|i| (i / side + side - 1 - i % side) as i32).collect();
    let device = table.device().without_autodiff();
    let offsets = Tensor::<1, Int>::from_data(TensorData::new(offsets, [side * side]), &device);
    table.select(0, offsets).reshape([side, side, width])
}

fn plain_cross(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize) -> Tensor<3> {
    let split = |x: Tensor<3>| {
        let [b, n, c] = x.dims();
        x.reshape([b, n, heads, c / heads]).permute([0, 2, 1, 3])
    };
    let (q, k, v) = (split(q), split(k), split(v));
    let [b, _, n, width] = q.dims();
    let scores = q.matmul(k.transpose()) / (width as f64).sqrt();
    activation::softmax(scores, 3).matmul(v).permute([0, 2, 1, 3]).reshape([b, n, heads * width])
}

/// Attention as one operation.
#[backend_extension(Flex, Autodiff)]
pub trait Attention: Backend {
    /// As [`self_attention`].
    fn fused_self(
        qkv: FloatTensor<Self>,
        rel_h: FloatTensor<Self>,
        rel_w: FloatTensor<Self>,
        heads: usize,
        h: usize,
        w: usize,
    ) -> FloatTensor<Self>;

    /// As [`cross_attention`].
    fn fused_cross(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>, heads: usize)
    -> FloatTensor<Self>;
}

/// One head of one picture: `n` queries, `m` keys and values, all `d` wide.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) n: usize,
    pub(super) m: usize,
    pub(super) d: usize,
    pub(super) q: Matrix<'a>,
    pub(super) k: Matrix<'a>,
    pub(super) v: Matrix<'a>,
    pub(super) positions: Option<Positions<'a>>,
}

/// Tables of relative positions, `[2h - 1, d]` and `[2w - 1, d]`, of `h` · `w` keys. Queries stand `cols` a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Positions<'a> {
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) cols: usize,
    pub(super) along_h: &'a [f32],
    pub(super) along_w: &'a [f32],
}

/// Gradients of one head: contiguous `[n, d]`, `[m, d]`, `[m, d]`, and of its position tables.
#[derive(Debug, Default)]
pub(super) struct HeadGradient {
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    pub(super) along_h: Vec<f32>,
    pub(super) along_w: Vec<f32>,
}

impl HeadGradient {
    /// That of queries, keys or values.
    pub(super) fn take(&mut self, part: usize) -> Vec<f32> {
        std::mem::take([&mut self.q, &mut self.k, &mut self.v][part])
    }
}

/// The gradient of a table of positions: the heads' in their order.
pub(super) fn table_gradient(heads: &[HeadGradient], table: fn(&HeadGradient) -> &[f32], len: usize) -> Vec<f32> {
    heads.iter().fold(vec![0f32; len], |mut sum, head| {
        sum.iter_mut().zip(table(head)).for_each(|(s, p)| *s += p);
        sum
    })
}

impl<'a> Matrix<'a> {
    /// The matrix from row `first` on.
    fn below(self, first: usize) -> Matrix<'a> {
        Matrix { data: &self.data[first * self.rows..], ..self }
    }
}

impl Head<'_> {
    /// Queries whose scores are held at once: about a megabyte, by shape alone.
    fn block(&self) -> usize {
        ((1 << 18) / self.m.max(1)).clamp(1, self.n.max(1))
    }

    /// Softmax of the scores of `rows` queries from `first` on, into `p`, `[rows, m]`.
    fn weights(&self, first: usize, rows: usize, p: &mut [f32]) {
        let Head { m, d, .. } = *self;
        let q = self.q.below(first);
        product([rows, d, m], q, self.k.t(), p, false, Threads::One);
        let scale = (d as f32).powf(-0.5);
        match self.positions {
            None => softmax(p, m, scale),
            Some(Positions { h, w, cols, along_h, along_w }) => {
                let (mut by_h, mut by_w) = (vec![0f32; rows * (2 * h - 1)], vec![0f32; rows * (2 * w - 1)]);
                product([rows, d, 2 * h - 1], q, Matrix::new(along_h, d).t(), &mut by_h, false, Threads::One);
                product([rows, d, 2 * w - 1], q, Matrix::new(along_w, d).t(), &mut by_w, false, Threads::One);
                add_positions(p, m, first, cols, [h, w], scale, &by_h, &by_w);
                softmax(p, m, 1.0);
            }
        }
    }

    /// The head's output, `[n, d]`.
    pub(super) fn forward(&self) -> Vec<f32> {
        let Head { n, m, d, .. } = *self;
        let mut out = vec![0f32; n * d];
        let mut p = Scratch::of(self.block() * m);
        for (block, out) in out.chunks_mut(self.block() * d).enumerate() {
            let rows = out.len() / d;
            let p = &mut p[..rows * m];
            self.weights(block * self.block(), rows, p);
            product([rows, m, d], Matrix::new(p, m), self.v, out, false, Threads::One);
        }
        out
    }

    pub(super) fn backward(&self, dy: Matrix<'_>) -> HeadGradient {
        let Head { n, m, d, .. } = *self;
        let scale = (d as f32).powf(-0.5);
        let mut g =
            HeadGradient { q: vec![0.0; n * d], k: vec![0.0; m * d], v: vec![0.0; m * d], ..Default::default() };
        let (mut p, mut ds) = (Scratch::of(self.block() * m), Scratch::of(self.block() * m));
        for (block, dq) in g.q.chunks_mut(self.block() * d).enumerate() {
            let (first, rows) = (block * self.block(), dq.len() / d);
            let (p, ds) = (&mut p[..rows * m], &mut ds[..rows * m]);
            let (q, dy) = (self.q.below(first), dy.below(first));
            self.weights(first, rows, p);
            product([m, rows, d], Matrix::new(p, m).t(), dy, &mut g.v, true, Threads::One);
            product([rows, d, m], dy, self.v.t(), ds, false, Threads::One);
            softmax_gradient(p, ds, m);
            product([rows, m, d], Matrix::new(ds, m), self.k, dq, false, Threads::One);
            dq.iter_mut().for_each(|v| *v *= scale);
            product([m, rows, d], Matrix::new(ds, m).t(), q, &mut g.k, true, Threads::One);
            if let Some(Positions { h, w, cols, along_h, along_w }) = self.positions {
                let (wide, tall) = (2 * w - 1, 2 * h - 1);
                let (mut by_h, mut by_w) = (vec![0f32; rows * tall], vec![0f32; rows * wide]);
                sum_positions(ds, m, first, cols, [h, w], &mut by_h, &mut by_w);
                product([rows, tall, d], Matrix::new(&by_h, tall), Matrix::new(along_h, d), dq, true, Threads::One);
                product([rows, wide, d], Matrix::new(&by_w, wide), Matrix::new(along_w, d), dq, true, Threads::One);
                g.along_h.resize(tall * d, 0.0);
                g.along_w.resize(wide * d, 0.0);
                product([tall, rows, d], Matrix::new(&by_h, tall).t(), q, &mut g.along_h, true, Threads::One);
                product([wide, rows, d], Matrix::new(&by_w, wide).t(), q, &mut g.along_w, true, Threads::One);
            }
        }
        g.k.iter_mut().for_each(|v| *v *= scale);
        g
    }
}

widest! {
    /// Softmax of `scale · s` along rows of `m`, in place.
    fn softmax(s: &mut [f32], m: usize, scale: f32) {
        for row in s.chunks_exact_mut(m) {
            let mut highest = [f32::MIN; super::LANES];
            for part in row.chunks(super::LANES) {
                highest.iter_mut().zip(part).for_each(|(h, v)| *h = h.max(*v));
            }
            let highest = highest.iter().fold(f32::MIN, |h, v| h.max(*v));
            row.iter_mut().for_each(|v| *v = exp_negative((highest - *v) * scale));
            let factor = 1.0 / lanes([row], |[v]| v);
            row.iter_mut().for_each(|v| *v *= factor);
        }
    }
}

widest! {
    /// ds = p · (dp - Σ p · dp), where `ds` comes in as dp.
    fn softmax_gradient(p: &[f32], ds: &mut [f32], m: usize) {
        for (p, ds) in p.chunks_exact(m).zip(ds.chunks_exact_mut(m)) {
            let dot = lanes([p, ds], |[p, ds]| p * ds);
            ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds - dot));
        }
    }
}

widest! {
    /// Scores of queries from `first` on, `cols` a row: scaled, and what their positions add. Of `m` keys the first, h × w,
    /// have a position.
    fn add_positions(s: &mut [f32], m: usize, first: usize, cols: usize, size: [usize; 2], scale: f32, by_h: &[f32], by_w: &[f32]) {
        let [h, w] = size;
        let mut along = vec![0f32; w];
        let rows = s.chunks_exact_mut(m).zip(by_h.chunks_exact(2 * h - 1)).zip(by_w.chunks_exact(2 * w - 1));
        for (query, ((s, by_h), by_w)) in rows.enumerate() {
            let (y, x) = ((first + query) / cols, (first + query) % cols);
            // Offsets fall as keys rise.
            along.iter_mut().zip(by_w[x..x + w].iter().rev()).for_each(|(a, b)| *a = *b);
            let (placed, others) = s.split_at_mut(h * w);
            for (s, up) in placed.chunks_exact_mut(w).zip(by_h[y..y + h].iter().rev()) {
                s.iter_mut().zip(&along).for_each(|(s, a)| *s = *s * scale + up + a);
            }
            others.iter_mut().for_each(|s| *s *= scale);
        }
    }
}

widest! {
    /// The gradient of what positions add, summed over the keys that share an offset.
    fn sum_positions(ds: &[f32], m: usize, first: usize, cols: usize, size: [usize; 2], by_h: &mut [f32], by_w: &mut [f32]) {
        let [h, w] = size;
        let mut along = vec![0f32; w];
        let rows = ds.chunks_exact(m).zip(by_h.chunks_exact_mut(2 * h - 1)).zip(by_w.chunks_exact_mut(2 * w - 1));
        for (query, ((ds, by_h), by_w)) in rows.enumerate() {
            let (y, x) = ((first + query) / cols, (first + query) % cols);
            along.fill(0.0);
            for (ds, up) in ds[..h * w].chunks_exact(w).zip(by_h[y..y + h].iter_mut().rev()) {
                *up = lanes([ds], |[d]| d);
                along.iter_mut().zip(ds).for_each(|(a, d)| *a += d);
            }
            by_w[x..x + w].iter_mut().rev().zip(&along).for_each(|(to, a)| *to = *a);
        }
    }
}

/// The three tensors that attention is taken of, as heads of pictures.
#[derive(Debug, Clone, Copy)]
struct Heads<'a> {
    batch: usize,
    heads: usize,
    d: usize,
    n: usize,
    m: usize,
    /// Rows of a picture that hold queries; those from `n` on are passed over.
    queries: usize,
    /// Values, offset of the first head, values a row: of q, k and v.
    parts: [(&'a [f32], usize, usize); 3],
    positions: Option<Positions<'a>>,
}

impl<'a> Heads<'a> {
    fn joint(qkv: &'a [f32], m: usize, width: usize, heads: usize, positions: Positions<'a>) -> Heads<'a> {
        let parts = [0, width, 2 * width].map(|offset| (qkv, offset, 3 * width));
        let (batch, n) = (qkv.len() / (m * 3 * width), positions.h * positions.w);
        Heads { batch, heads, d: width / heads, n, m, queries: m, parts, positions: Some(positions) }
    }

    fn apart(parts: [&'a [f32]; 3], batch: usize, width: usize, heads: usize) -> Heads<'a> {
        let rows = |x: &[f32]| x.len() / (batch * width);
        let (n, m) = (rows(parts[0]), rows(parts[1]));
        let parts = parts.map(|part| (part, 0, width));
        Heads { batch, heads, d: width / heads, n, m, queries: n, parts, positions: None }
    }

    /// Head `at % heads` of picture `at / heads`.
    fn get(&self, at: usize) -> Head<'a> {
        let (picture, head) = (at / self.heads, at % self.heads);
        let part = |i: usize, rows: usize| {
            let (data, offset, row) = self.parts[i];
            let start = picture * rows * row + offset + head * self.d;
            Matrix { data: &data[start..], rows: row, cols: 1 }
        };
        let (q, k, v) = (part(0, self.queries), part(1, self.m), part(2, self.m));
        Head { n: self.n, m: self.m, d: self.d, q, k, v, positions: self.positions }
    }

    /// `[batch, n, heads · d]`
    fn forward(&self) -> Vec<f32> {
        let heads: Vec<Vec<f32>> =
            (0..self.batch * self.heads).into_par_iter().map(|at| self.get(at).forward()).collect();
        let width = self.heads * self.d;
        let mut out = vec![0f32; self.batch * self.n * width];
        self.join(&heads, self.n, width, 0, &mut out);
        out
    }

    fn backward(&self, dy: &[f32]) -> Vec<HeadGradient> {
        let width = self.heads * self.d;
        let one = |at: usize| {
            let start = at / self.heads * self.n * width + at % self.heads * self.d;
            self.get(at).backward(Matrix::new(&dy[start..], width))
        };
        (0..self.batch * self.heads).into_par_iter().map(one).collect()
    }

    /// Writes `[rows or fewer, d]` of every head into pictures of `rows` rows of `row` values, from `offset` on.
    fn join(&self, heads: &[Vec<f32>], rows: usize, row: usize, offset: usize, out: &mut [f32]) {
        let d = self.d;
        out.par_chunks_mut(row).enumerate().for_each(|(at, out)| {
            let (picture, at) = (at / rows, at % rows);
            let heads = &heads[picture * self.heads..][..self.heads];
            for (out, head) in out[offset..].chunks_exact_mut(d).zip(heads) {
                // Of those that have none, nothing is written.
                if let Some(values) = head.get(at * d..(at + 1) * d) {
                    out.copy_from_slice(values);
                }
            }
        });
    }
}

impl Attention for Flex {
    fn fused_self(
        qkv: FlexTensor,
        rel_h: FlexTensor,
        rel_w: FlexTensor,
        heads: usize,
        h: usize,
        w: usize,
    ) -> FlexTensor {
        let (qkv, rel_h, rel_w) = (qkv.to_contiguous(), rel_h.to_contiguous(), rel_w.to_contiguous());
        let shape = qkv.layout().shape();
        let (batch, m, width) = (shape[0], shape[1], shape[2] / 3);
        let positions = Positions { h, w, cols: w, along_h: floats(&rel_h), along_w: floats(&rel_w) };
        let out = Heads::joint(floats(&qkv), m, width, heads, positions).forward();
        tensor(out, [batch, h * w, width])
    }

    fn fused_cross(q: FlexTensor, k: FlexTensor, v: FlexTensor, heads: usize) -> FlexTensor {
        let (q, k, v) = (q.to_contiguous(), k.to_contiguous(), v.to_contiguous());
        let shape = q.layout().shape();
        let (batch, n, width) = (shape[0], shape[1], shape[2]);
        let out = Heads::apart([&q, &k, &v].map(floats), batch, width, heads).forward();
        tensor(out, [batch, n, width])
    }
}

impl<C: CheckpointStrategy> Attention for Autodiff<Flex, C> {
    fn fused_self(
        qkv: FloatTensor<Self>,
        rel_h: FloatTensor<Self>,
        rel_w: FloatTensor<Self>,
        heads: usize,
        h: usize,
        w: usize,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct FusedSelf;
        impl Backward<Flex, 3> for FusedSelf {
            type State = ([FlexTensor; 3], usize, [usize; 2]);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let [qkv_node, h_node, w_node] = ops.parents;
                let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
                let ([qkv, rel_h, rel_w], heads, [h, w]) = ops.state;
                let (qkv, rel_h, rel_w) = (qkv.to_contiguous(), rel_h.to_contiguous(), rel_w.to_contiguous());
                let shape = qkv.layout().shape();
                let (batch, m, width) = (shape[0], shape[1], shape[2] / 3);
                let positions = Positions { h, w, cols: w, along_h: floats(&rel_h), along_w: floats(&rel_w) };
                let all = Heads::joint(floats(&qkv), m, width, heads, positions);
                let mut parts = all.backward(floats(&dy));
                let tables: [fn(&HeadGradient) -> &[f32]; 2] = [|g| &g.along_h, |g| &g.along_w];
                for ((node, table), side) in [h_node, w_node].into_iter().zip(tables).zip([h, w]) {
                    let Some(node) = node else { continue };
                    let rows = 2 * side - 1;
                    let sum = table_gradient(&parts, table, rows * all.d);
                    grads.register::<Flex>(node.id, tensor(sum, [rows, all.d]));
                }
                if let Some(node) = qkv_node {
                    let mut dqkv = vec![0f32; batch * m * 3 * width];
                    for i in 0..3 {
                        let values: Vec<Vec<f32>> = parts.iter_mut().map(|part| part.take(i)).collect();
                        all.join(&values, m, 3 * width, i * width, &mut dqkv);
                    }
                    grads.register::<Flex>(node.id, tensor(dqkv, [batch, m, 3 * width]));
                }
            }
        }
        match FusedSelf.prepare::<C>([qkv.node(), rel_h.node(), rel_w.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let parts = [qkv.into_primitive(), rel_h.into_primitive(), rel_w.into_primitive()];
                let [qkv, rel_h, rel_w] = parts.clone();
                prep.finish((parts, heads, [h, w]), Flex::fused_self(qkv, rel_h, rel_w, heads, h, w))
            }
            OpsKind::UnTracked(prep) => {
                let (qkv, rel_h, rel_w) = (qkv.into_primitive(), rel_h.into_primitive(), rel_w.into_primitive());
                prep.finish(Flex::fused_self(qkv, rel_h, rel_w, heads, h, w))
            }
        }
    }

    fn fused_cross(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct FusedCross;
        impl Backward<Flex, 3> for FusedCross {
            type State = ([FlexTensor; 3], usize);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
                let ([q, k, v], heads) = ops.state;
                let (q, k, v) = (q.to_contiguous(), k.to_contiguous(), v.to_contiguous());
                let (batch, width) = (q.layout().shape()[0], q.layout().shape()[2]);
                let all = Heads::apart([&q, &k, &v].map(floats), batch, width, heads);
                let mut parts = all.backward(floats(&dy));
                for (i, (node, rows)) in ops.parents.into_iter().zip([all.n, all.m, all.m]).enumerate() {
                    let Some(node) = node else { continue };
                    let values: Vec<Vec<f32>> = parts.iter_mut().map(|part| part.take(i)).collect();
                    let mut gradient = vec![0f32; batch * rows * width];
                    all.join(&values, rows, width, 0, &mut gradient);
                    grads.register::<Flex>(node.id, tensor(gradient, [batch, rows, width]));
                }
            }
        }
        match FusedCross.prepare::<C>([q.node(), k.node(), v.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let parts = [q.into_primitive(), k.into_primitive(), v.into_primitive()];
                let [q, k, v] = parts.clone();
                prep.finish((parts, heads), Flex::fused_cross(q, k, v, heads))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(Flex::fused_cross(q.into_primitive(), k.into_primitive(), v.into_primitive(), heads))
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
    pub(in super::super) fn self_attention_equals_the_plain_operations_forward_and_backward() {
        let run = |f: &dyn Fn(Tensor<3>, Tensor<2>, Tensor<2>, usize, [usize; 2]) -> Tensor<3>| {
            // 5 × 4 positions, 2 heads of 6: sizes that nothing divides.
            let (qkv, h, w) = (leaf([3, 20, 36], 0.37), leaf([9, 6], 1.3), leaf([7, 6], 0.7));
            let y = f(qkv.clone(), h.clone(), w.clone(), 2, [5, 4]);
            let grads = (y.clone() * wave([3, 20, 12], 0.11)).sum().backward();
            [flat(y), flat(qkv.grad(&grads).unwrap()), flat(h.grad(&grads).unwrap()), flat(w.grad(&grads).unwrap())]
        };
        run(&self_attention).into_iter().zip(run(&plain_self)).for_each(|(a, b)| close(a, b, 1e-5));
    }

    #[test]
    fn keys_behind_the_positions_are_attended_to_and_ask_nothing() {
        // 5 × 4 positions and 3 others.
        let (h, w) = (leaf([9, 6], 1.3), leaf([7, 6], 0.7));
        let run = |f: &dyn Fn(Tensor<3>, Tensor<2>, Tensor<2>, usize, [usize; 2]) -> Tensor<3>| {
            let qkv = leaf([2, 23, 36], 0.37);
            let y = f(qkv.clone(), h.clone(), w.clone(), 2, [5, 4]);
            let grads = (y.clone() * wave([2, 20, 12], 0.11)).sum().backward();
            [flat(y), flat(qkv.grad(&grads).unwrap()), flat(h.grad(&grads).unwrap()), flat(w.grad(&grads).unwrap())]
        };
        let kernel = run(&self_attention);
        let asked = kernel[1].clone().reshape([2, 23, 36]).slice([0..2, 20..23, 0..12]);
        assert_eq!(to_vec(asked.abs().max()), [0.0]);
        kernel.into_iter().zip(run(&plain_self)).for_each(|(a, b)| close(a, b, 1e-5));
        // Where positions add nothing it is the attention of 20 queries to 23 keys.
        let none = |side| Tensor::<2>::zeros([2 * side - 1, 6], &Device::flex());
        let qkv = wave([2, 23, 36], 0.37);
        let part = |i: usize, n: usize| qkv.clone().slice([0..2, 0..n, 12 * i..12 * (i + 1)]);
        let across = cross_attention(part(0, 20), part(1, 23), part(2, 23), 2);
        close(flat(self_attention(qkv.clone(), none(5), none(4), 2, [5, 4])), flat(across), 1e-6);
    }

    #[test]
    fn many_queries_are_taken_in_blocks() {
        // 30 × 30 positions: three blocks of queries and a rest.
        let (qkv, h, w) = (leaf([1, 900, 12], 0.37), wave([59, 4], 1.3), wave([59, 4], 0.7));
        let run = |f: &dyn Fn(Tensor<3>, Tensor<2>, Tensor<2>, usize, [usize; 2]) -> Tensor<3>| {
            let y = f(qkv.clone(), h.clone(), w.clone(), 1, [30, 30]);
            let grads = (y.clone() * wave([1, 900, 4], 0.11)).sum().backward();
            [flat(y), flat(qkv.grad(&grads).unwrap())]
        };
        run(&self_attention).into_iter().zip(run(&plain_self)).for_each(|(a, b)| close(a, b, 2e-5));
    }

    #[test]
    pub(in super::super) fn cross_attention_equals_the_plain_operations_forward_and_backward() {
        let run = |f: &dyn Fn(Tensor<3>, Tensor<3>, Tensor<3>, usize) -> Tensor<3>| {
            let (q, k, v) = (leaf([2, 7, 12], 0.37), leaf([2, 20, 12], 1.3), leaf([2, 20, 12], 0.7));
            let y = f(q.clone(), k.clone(), v.clone(), 3);
            let grads = (y.clone() * wave([2, 7, 12], 0.11)).sum().backward();
            [flat(y), flat(q.grad(&grads).unwrap()), flat(k.grad(&grads).unwrap()), flat(v.grad(&grads).unwrap())]
        };
        run(&cross_attention).into_iter().zip(run(&plain_cross)).for_each(|(a, b)| close(a, b, 1e-5));
    }
}
