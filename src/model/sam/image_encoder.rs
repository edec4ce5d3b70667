//! SAM's image encoder: a ViT with windowed and global attention and decomposed relative positions (ViTDet).
//!
//! Other input sizes than the checkpoint's are served by interpolating the position tables when they are used; the
//! tables themselves stay as they were loaded.

use super::adapter::{Generator, mlp_onto};
use super::added::SIDE;
use super::config::{SamConfig, Stem};
use super::layers::{linear, linear_onto, norm, of_zeros, squares};
use super::prompts::prompts;
use super::recompute::recomputed;
use super::side::Side;
use crate::model::kernel::attention::self_attention;
use crate::model::kernel::conv::conv3;
use crate::model::kernel::gelu::gelu;
use crate::model::kernel::linear::project;
use crate::model::kernel::windows::window_attention;
use crate::model::resize;
use crate::model::weights::{Scope, Weights};
use burn::tensor::Tensor;

/// Epsilon of the encoder's norms.
pub(super) const EPSILON: f64 = 1e-6;

/// What a step keeps of the inside of the encoder's blocks for its backward pass. Gradients are the same to the bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// All that backward reads.
    Kept,
    /// Each block's input alone: backward runs the blocks again, one at a time. Less memory, one more forward pass.
    Recomputed,
}

/// What the decoder needs of a picture.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// `[batch, out_chans, s, s]`.
    pub coarse: Tensor<4>,
    /// With a stem, its features at strides 4 and 8, channels last.
    pub fine: Option<[Tensor<4>; 2]>,
}

impl Embedding {
    /// Embeddings of pictures as that of their batch.
    pub fn cat(parts: Vec<Embedding>) -> Embedding {
        let coarse = parts.iter().map(|part| part.coarse.clone()).collect();
        let fine: Vec<[Tensor<4>; 2]> = parts.into_iter().filter_map(|part| part.fine).collect();
        let level = |i: usize| Tensor::cat(fine.iter().map(|levels| levels[i].clone()).collect(), 0);
        let fine = if fine.is_empty() { None } else { Some([level(0), level(1)]) };
        Embedding { coarse: Tensor::cat(coarse, 0), fine }
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        [&self.coarse].into_iter().chain(self.fine.iter().flatten()).map(bytes).sum()
    }
}

/// What the encoder computes on its way, for tests against stored numbers.
#[derive(Debug, Clone)]
pub struct Stages {
    /// `[batch, s, s, embed]`, before positions are added.
    pub patch_embed: Tensor<4>,
    /// After each block, `[batch, s, s, embed]`.
    pub blocks: Vec<Tensor<4>>,
    /// What the decoder is given.
    pub output: Embedding,
}

/// What the encoder computes of pictures whatever trains, where nothing does that its blocks depend on.
#[derive(Debug, Clone)]
pub enum Still {
    /// The embedding itself.
    Embedding(Embedding),
    /// Where there is a side network, all that it is given.
    Blocks(Blocks),
}

/// What blocks hand on, `[batch, s, s, embed]` each.
#[derive(Debug, Clone)]
pub struct Blocks {
    /// The input of every block.
    inputs: Vec<Tensor<4>>,
    /// The last one's output.
    output: Tensor<4>,
    /// As [`Embedding::fine`].
    fine: Option<[Tensor<4>; 2]>,
}

impl Still {
    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Still::Embedding(embedding) => embedding.bytes(),
            Still::Blocks(Blocks { inputs, output, fine }) => {
                inputs.iter().chain([output]).chain(fine.iter().flatten()).map(bytes).sum()
            }
        }
    }
}

/// Bytes of a tensor's values.
fn bytes(x: &Tensor<4>) -> usize {
    size_of::<f32>() * x.dims().iter().product::<usize>()
}

/// Encodes normalised pictures.
///
/// # Shapes
/// `[batch, 3, size, size]` → an embedding of side `size / patch`; `size` is any multiple of the patch.
pub fn encode(config: &SamConfig, weights: &Weights, pixels: Tensor<4>, activations: Activations) -> Embedding {
    stages(config, weights, pixels, activations, |_| ()).output
}

/// As [`encode`], keeping every stage.
pub fn encode_stages(config: &SamConfig, weights: &Weights, pixels: Tensor<4>) -> Stages {
    let mut blocks = Vec::new();
    let stages = stages(config, weights, pixels, Activations::Kept, |x| blocks.push(x.clone()));
    Stages { blocks, ..stages }
}

/// As [`encode`], up to where a side network begins, if there is one; [`encode_rest`] does the rest.
pub fn encode_still(config: &SamConfig, weights: &Weights, pixels: Tensor<4>) -> Still {
    if !has_side(weights) {
        return Still::Embedding(encode(config, weights, pixels, Activations::Kept));
    }
    let mut inputs = Vec::new();
    let Trunk { output, fine, .. } =
        trunk(config, weights, pixels, Activations::Kept, |_, x| inputs.push(x.clone()), |_| ());
    Still::Blocks(Blocks { inputs, output, fine })
}

/// What is left to do: the same embedding, to the bit, that [`encode`] gives.
pub fn encode_rest(config: &SamConfig, weights: &Weights, still: Still) -> Embedding {
    match still {
        Still::Embedding(embedding) => embedding,
        Still::Blocks(Blocks { inputs, output, fine }) => {
            let side = inputs.iter().enumerate().fold(None, |side, (i, x)| side_step(config, weights, side, i, x));
            Embedding { coarse: neck(weights, side, output), fine }
        }
    }
}

/// Whether there is a side network.
pub(super) fn has_side(weights: &Weights) -> bool {
    weights.scope(SIDE).iter().next().is_some()
}

fn stages(
    config: &SamConfig,
    weights: &Weights,
    pixels: Tensor<4>,
    activations: Activations,
    after_block: impl FnMut(&Tensor<4>),
) -> Stages {
    let mut side: Option<Side> = None;
    let beside = |i: usize, x: &Tensor<4>| side = side_step(config, weights, side.take(), i, x);
    let Trunk { patch_embed, output, fine } = trunk(config, weights, pixels, activations, beside, after_block);
    let output = Embedding { coarse: neck(weights, side, output), fine };
    Stages { patch_embed, blocks: Vec::new(), output }
}

/// What comes before the neck.
struct Trunk {
    /// As in [`Stages`].
    patch_embed: Tensor<4>,
    /// Of the last block.
    output: Tensor<4>,
    /// As [`Embedding::fine`].
    fine: Option<[Tensor<4>; 2]>,
}

/// Patches and blocks; `before` is shown the number and the input of each block, `after` its output.
fn trunk(
    config: &SamConfig,
    weights: &Weights,
    pixels: Tensor<4>,
    activations: Activations,
    mut before: impl FnMut(usize, &Tensor<4>),
    mut after: impl FnMut(&Tensor<4>),
) -> Trunk {
    let scope = weights.scope("image_encoder");
    let (patch_embed, fine) = match &config.stem {
        Some(stem) => {
            let (patches, fine) = stem_features(stem, &scope.at("stem"), pixels.clone());
            (patches, Some(fine))
        }
        None => {
            let proj = scope.at("patch_embed").at("proj");
            (linear(squares(pixels.clone(), config.patch), &proj), None)
        }
    };
    let generator = Generator::new(&scope, &pixels, &patch_embed, config.patch);
    drop(pixels);
    let side = patch_embed.dims()[1];
    let mut x = patch_embed.clone() + positions(&scope, side);
    for i in 0..config.depth {
        if let Some(generator) = &generator {
            x = generator.prompted(x, i);
        }
        before(i, &x);
        let (scope, sizes) = (scope.at("blocks").at(i), Block { heads: config.heads, window: window(config, i) });
        x = match activations {
            Activations::Kept => block(x, &scope, sizes),
            Activations::Recomputed => recomputed(x, &scope, sizes),
        };
        after(&x);
    }
    Trunk { patch_embed, output: x, fine }
}

/// Side of a block's windows; 0 for global attention.
fn window(config: &SamConfig, block: usize) -> usize {
    if config.global.contains(&block) { 0 } else { config.window }
}

/// The side network beside one more block, over its input.
fn side_step(config: &SamConfig, weights: &Weights, before: Option<Side>, block: usize, x: &Tensor<4>) -> Option<Side> {
    Side::step(before, x, &weights.scope(SIDE).at(block), window(config, block))
}

/// What the decoder is given: `[batch, s, s, embed]` of the blocks, with what was found beside them → `[batch, out_chans,
/// s, s]`.
fn neck(weights: &Weights, side: Option<Side>, x: Tensor<4>) -> Tensor<4> {
    let neck = weights.scope("image_encoder").at("neck");
    let x = match side {
        Some(side) => side.joined(x),
        None => x,
    };
    let x = project(x, neck.at(0).get("weight"));
    let x = norm(x, &neck.at(1), EPSILON);
    let x = conv3(x, neck.at(2).get("weight"), 1);
    let x = norm(x, &neck.at(3), EPSILON);
    x.permute([0, 3, 1, 2])
}

/// Patches, and the features at strides 4 and 8. `[batch, 3, h, w]` → `[batch, h / 16, w / 16, embed]`, ….
fn stem_features(stem: &Stem, scope: &Scope<'_>, pixels: Tensor<4>) -> (Tensor<4>, [Tensor<4>; 2]) {
    let stage = |x: Tensor<4>, i: usize| {
        let scope = scope.at(i);
        let mut x = norm(conv3(x, scope.at("conv").get("weight"), 2), &scope.at("norm"), EPSILON);
        // The last stage's output is the residual stream of the transformer: it has no activation.
        if i < stem.widths.len() {
            x = gelu(x);
        }
        for block in 0..stem.blocks.get(i).copied().unwrap_or(0) {
            let scope = scope.at("blocks").at(block);
            let y = gelu(norm(conv3(x.clone(), scope.at("conv1").get("weight"), 1), &scope.at("norm"), EPSILON));
            let conv = scope.at("conv2");
            x = x + conv3(y, conv.get("weight"), 1) + conv.get("bias").value.clone().unsqueeze();
        }
        x
    };
    let half = stage(pixels.permute([0, 2, 3, 1]), 0);
    let quarter = stage(half, 1);
    let eighth = stage(quarter.clone(), 2);
    (stage(eighth.clone(), 3), [quarter, eighth])
}

/// Absolute positions for a grid of `side`: the table itself, or its bilinear interpolation.
fn positions(scope: &Scope<'_>, side: usize) -> Tensor<4> {
    let table: Tensor<4> = scope.get("pos_embed").shaped();
    if table.dims()[1] == side {
        return table;
    }
    resize::bilinear(table.permute([0, 3, 1, 2]), side, side).permute([0, 2, 3, 1])
}

/// What a block's weights do not tell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) heads: usize,
    /// Side of a window; 0 for global attention.
    pub(super) window: usize,
}

/// Attention and MLP, each on top of its input. `[batch, h, w, c]` → the same.
pub(super) fn block(x: Tensor<4>, scope: &Scope<'_>, sizes: Block) -> Tensor<4> {
    let y = norm(x.clone(), &scope.at("norm1"), EPSILON);
    let x = attention_onto(y, &scope.at("attn"), prompts(scope), sizes, x);
    let (y, mlp) = (norm(x.clone(), &scope.at("norm2"), EPSILON), scope.at("mlp"));
    mlp_onto(gelu(linear(y, &mlp.at("lin1"))), &mlp, x)
}

/// `onto` and multi-head attention with decomposed relative positions; prompts stand behind the positions of every picture or
/// window. The picture is zero-padded to whole windows after the norm and before the bias of `qkv`, as the checkpoints were
/// trained. `[batch, h, w, c]` → the same.
fn attention_onto(
    x: Tensor<4>,
    scope: &Scope<'_>,
    prompts: Option<Tensor<2>>,
    Block { heads, window }: Block,
    onto: Tensor<4>,
) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    let qkv = linear(x.reshape([b, h * w, c]), &scope.at("qkv"));
    let tables = |h, w| [relative(scope, "rel_pos_h", h), relative(scope, "rel_pos_w", w)];
    let y = if window == 0 {
        let [rel_h, rel_w] = tables(h, w);
        let qkv = match prompts {
            None => qkv,
            Some(rows) => {
                let n = rows.dims()[0];
                Tensor::cat(vec![qkv, rows.reshape([1, n, 3 * c]).expand([b, n, 3 * c])], 1)
            }
        };
        self_attention(qkv, rel_h, rel_w, heads, [h, w])
    } else {
        let outside = of_zeros(&scope.at("qkv")).reshape([1, 3 * c]);
        let behind = Tensor::cat(std::iter::once(outside).chain(prompts).collect(), 0);
        window_attention(qkv, behind, tables(window, window), heads, [h, w], window)
    };
    linear_onto(y.reshape([b, h, w, c]), &scope.at("proj"), onto)
}

/// Relative positions `[2 · side - 1, width]` for a side, the table interpolated linearly if it was made for another.
fn relative(scope: &Scope<'_>, name: &str, side: usize) -> Tensor<2> {
    let table: Tensor<2> = scope.get(name).shaped();
    let (from, rows) = (table.dims()[0], 2 * side - 1);
    if from == rows {
        return table;
    }
    resize::matrix(from, rows, &table.device().without_autodiff()).matmul(table)
}
