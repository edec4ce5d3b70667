//! SAM's image encoder: a ViT with windowed and global attention and decomposed relative positions (ViTDet).
//!
//! Other input sizes than the checkpoint's are served by interpolating the position tables when they are used; the
//! tables themselves stay as they were loaded.

use super::config::SamConfig;
use super::layers::{norm, squares};
use crate::model::gelu::gelu;
use crate::model::linear::{linear, project};
use crate::model::resize;
use crate::model::weights::{Scope, Weights};
use burn::tensor::{Int, Tensor, TensorData, activation};

/// Epsilon of the encoder's norms.
pub(super) const EPSILON: f64 = 1e-6;

/// What the encoder computes on its way, for tests against stored numbers.
#[derive(Debug, Clone)]
pub struct Stages {
    /// `[batch, s, s, embed]`, before positions are added.
    pub patch_embed: Tensor<4>,
    /// After each block, `[batch, s, s, embed]`.
    pub blocks: Vec<Tensor<4>>,
    /// `[batch, out_chans, s, s]`.
    pub output: Tensor<4>,
}

/// Encodes normalised pictures.
///
/// # Shapes
/// `[batch, 3, size, size]` → `[batch, out_chans, size / patch, size / patch]`; `size` is any multiple of the patch.
pub fn encode(config: &SamConfig, weights: &Weights, pixels: Tensor<4>) -> Tensor<4> {
    stages(config, weights, pixels, |_| ()).output
}

/// As [`encode`], keeping every stage.
pub fn encode_stages(config: &SamConfig, weights: &Weights, pixels: Tensor<4>) -> Stages {
    let mut blocks = Vec::new();
    let stages = stages(config, weights, pixels, |x| blocks.push(x.clone()));
    Stages { blocks, ..stages }
}

fn stages(config: &SamConfig, weights: &Weights, pixels: Tensor<4>, mut after_block: impl FnMut(&Tensor<4>)) -> Stages {
    let scope = weights.scope("image_encoder");
    let patch_embed = {
        let proj = scope.at("patch_embed").at("proj");
        project(squares(pixels, config.patch), proj.get("weight")) + proj.get("bias").value.clone().unsqueeze()
    };
    let side = patch_embed.dims()[1];
    let mut x = patch_embed.clone() + positions(&scope, side);
    for i in 0..config.depth {
        let window = if config.global.contains(&i) { 0 } else { config.window };
        x = block(x, &scope.at("blocks").at(i), config.heads, window);
        after_block(&x);
    }
    let neck = scope.at("neck");
    let x = project(x, neck.at(0).get("weight"));
    let x = norm(x, &neck.at(1), EPSILON);
    let x = project(neighbours(x), neck.at(2).get("weight"));
    let x = norm(x, &neck.at(3), EPSILON);
    Stages { patch_embed, blocks: Vec::new(), output: x.permute([0, 3, 1, 2]) }
}

/// Absolute positions for a grid of `side`: the table itself, or its bilinear interpolation.
fn positions(scope: &Scope<'_>, side: usize) -> Tensor<4> {
    let table: Tensor<4> = scope.get("pos_embed").shaped();
    if table.dims()[1] == side {
        return table;
    }
    resize::bilinear(table.permute([0, 3, 1, 2]), side, side).permute([0, 2, 3, 1])
}

/// Attention (windowed unless `window` is 0) and MLP, each on top of its input. `[batch, h, w, c]` → the same.
fn block(x: Tensor<4>, scope: &Scope<'_>, heads: usize, window: usize) -> Tensor<4> {
    let [_, h, w, _] = x.dims();
    let y = norm(x.clone(), &scope.at("norm1"), EPSILON);
    let y = if window == 0 {
        attention(y, &scope.at("attn"), heads)
    } else {
        let (windows, padded) = partition(y, window);
        unpartition(attention(windows, &scope.at("attn"), heads), window, padded, [h, w])
    };
    let x = x + y;
    let y = norm(x.clone(), &scope.at("norm2"), EPSILON);
    let y = gelu(linear(y, &scope.at("mlp").at("lin1")));
    x + linear(y, &scope.at("mlp").at("lin2"))
}

/// Multi-head attention with decomposed relative positions. `[batch, h, w, c]` → the same.
fn attention(x: Tensor<4>, scope: &Scope<'_>, heads: usize) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    let (width, n) = (c / heads, h * w);
    let qkv = linear(x.reshape([b, n, c]), &scope.at("qkv"));
    let qkv = qkv.reshape([b, n, 3, heads, width]).permute([2, 0, 3, 1, 4]).reshape([3, b * heads, n, width]);
    let part = |i: usize| qkv.clone().narrow(0, i, 1).reshape([b * heads, n, width]);
    let (q, k, v) = (part(0), part(1), part(2));

    let scores = (q.clone() * (width as f64).powf(-0.5)).matmul(k.transpose());
    let q = q.reshape([b * heads, h, w, width]);
    let along_h = q.clone().matmul(relative(scope, "rel_pos_h", h).transpose().unsqueeze::<4>());
    let along_w = q.permute([0, 2, 1, 3]).matmul(relative(scope, "rel_pos_w", w).transpose().unsqueeze::<4>());
    let along_w = along_w.permute([0, 2, 1, 3]);
    let scores = scores.reshape([b * heads, h, w, h, w])
        + along_h.reshape([b * heads, h, w, h, 1])
        + along_w.reshape([b * heads, h, w, 1, w]);

    let y = activation::softmax(scores.reshape([b * heads, n, n]), 2).matmul(v);
    let y = y.reshape([b, heads, n, width]).permute([0, 2, 1, 3]).reshape([b, n, c]);
    linear(y, &scope.at("proj")).reshape([b, h, w, c])
}

/// Relative position vectors `[query, key, width]` for a side of `side`, the table interpolated linearly if it was
/// made for another side.
fn relative(scope: &Scope<'_>, name: &str, side: usize) -> Tensor<3> {
    let table: Tensor<2> = scope.get(name).shaped();
    let device = table.device().without_autodiff();
    let [from, width] = table.dims();
    let rows = 2 * side - 1;
    let table = if from == rows { table } else { resize::matrix(from, rows, &device).matmul(table) };
    let offsets: Vec<i32> = (0..side * side).map(|i| (i / side + side - 1 - i % side) as i32).collect();
    let offsets = Tensor::<1, Int>::from_data(TensorData::new(offsets, [side * side]), &device);
    table.select(0, offsets).reshape([side, side, width])
}

/// Windows of `side` × `side`, the picture zero-padded to a multiple (after the norm, before the biases of `qkv`,
/// as the checkpoints were trained): `[batch, h, w, c]` → `[batch * windows, side, side, c]` and the padded size.
fn partition(x: Tensor<4>, side: usize) -> (Tensor<4>, [usize; 2]) {
    let [b, h, w, c] = x.dims();
    let padded = [h.div_ceil(side) * side, w.div_ceil(side) * side];
    let x = pad(x, padded);
    let (rows, cols) = (padded[0] / side, padded[1] / side);
    let x = x.reshape([b, rows, side, cols, side, c]).permute([0, 1, 3, 2, 4, 5]);
    (x.reshape([b * rows * cols, side, side, c]), padded)
}

/// The way back from [`partition`], the padding cut off.
fn unpartition(x: Tensor<4>, side: usize, padded: [usize; 2], size: [usize; 2]) -> Tensor<4> {
    let [n, _, _, c] = x.dims();
    let (rows, cols) = (padded[0] / side, padded[1] / side);
    let b = n / (rows * cols);
    let x = x.reshape([b, rows, cols, side, side, c]).permute([0, 1, 3, 2, 4, 5]).reshape([b, padded[0], padded[1], c]);
    if padded == size { x } else { x.slice([0..b, 0..size[0], 0..size[1]]) }
}

/// Zeros below and to the right, up to `size`.
fn pad(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    if [h, w] == size {
        return x;
    }
    let device = x.device();
    let x = if w == size[1] { x } else { Tensor::cat(vec![x, Tensor::zeros([b, h, size[1] - w, c], &device)], 2) };
    if h == size[0] { x } else { Tensor::cat(vec![x, Tensor::zeros([b, size[0] - h, size[1], c], &device)], 1) }
}

/// Every position with its eight neighbours, zeros outside: the input of a 3 × 3 convolution in the order of its
/// weight. `[batch, h, w, c]` → `[batch, h, w, c * 9]`.
fn neighbours(x: Tensor<4>) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    let device = x.device();
    let rows = Tensor::zeros([b, 1, w, c], &device);
    let x = Tensor::cat(vec![rows.clone(), x, rows], 1);
    let cols = Tensor::zeros([b, h + 2, 1, c], &device);
    let x = Tensor::cat(vec![cols.clone(), x, cols], 2);
    let shifted = (0..9).map(|i| x.clone().slice([0..b, i / 3..i / 3 + h, i % 3..i % 3 + w]).unsqueeze_dim::<5>(4));
    Tensor::cat(shifted.collect(), 4).reshape([b, h, w, c * 9])
}
