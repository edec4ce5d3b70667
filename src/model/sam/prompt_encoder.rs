//! SAM's prompt encoder: points, boxes, an earlier mask, or nothing.

use super::config::SamConfig;
use super::image_encoder::EPSILON;
use super::layers::{norm, squares};
use crate::model::kernel::gelu::gelu;
use crate::model::kernel::linear::linear;
use crate::model::weights::{Scope, Weights};
use burn::tensor::{Tensor, TensorData};

/// What a user points at, in pixels of the network's square.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompt {
    /// (x, y, inside): inside is what is wanted, outside what is not.
    pub points: Vec<(f32, f32, PointLabel)>,
    /// Corners x0, y0, x1, y1.
    pub bounds: Option<[f32; 4]>,
}

/// Whether a point marks the object or the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointLabel {
    /// The background.
    Outside,
    /// The object.
    Inside,
}

/// Prompts as the decoder takes them.
#[derive(Debug, Clone)]
pub struct PromptEmbedding {
    /// Points and corners, `[batch, n, out_chans]`; `None` without any.
    pub sparse: Option<Tensor<3>>,
    /// The earlier mask, or the learned "no mask", `[batch, out_chans, s, s]`.
    pub dense: Tensor<4>,
}

/// Encodes one prompt per picture; all of a batch have the same number of points.
///
/// # Shapes
/// `masks`: `[batch, 1, 4s, 4s]` logits of an earlier prediction. `size` is the side of the network's square in pixels.
pub fn encode(
    config: &SamConfig,
    weights: &Weights,
    prompts: &[Prompt],
    masks: Option<Tensor<4>>,
    size: usize,
) -> PromptEmbedding {
    let scope = weights.scope("prompt_encoder");
    let (batch, s) = (prompts.len(), size / config.patch);
    let dense = match masks {
        Some(masks) => downscale(masks, &scope.at("mask_downscaling")),
        None => scope.at("no_mask_embed").get("weight").value.clone().reshape([1, config.out_chans, 1, 1]).expand([
            batch,
            config.out_chans,
            s,
            s,
        ]),
    };
    PromptEmbedding { sparse: sparse(&scope, prompts, size), dense }
}

/// The positions of the embedding's cells, `[1, out_chans, s, s]`.
pub fn dense_positions(config: &SamConfig, weights: &Weights, side: usize) -> Tensor<4> {
    let centres: Vec<[f32; 2]> = (0..side * side)
        .map(|i| [((i % side) as f32 + 0.5) / side as f32, ((i / side) as f32 + 0.5) / side as f32])
        .collect();
    let scope = weights.scope("prompt_encoder");
    positions(&scope, &centres).reshape([1, side, side, config.out_chans]).permute([0, 3, 1, 2])
}

/// Random Fourier features of points in the unit square, `[n, out_chans]`.
fn positions(scope: &Scope<'_>, points: &[[f32; 2]]) -> Tensor<2> {
    let matrix: Tensor<2> = scope.at("pe_layer").get("positional_encoding_gaussian_matrix").shaped();
    let flat: Vec<f32> = points.iter().flatten().map(|v| 2.0 * v - 1.0).collect();
    let device = matrix.device().without_autodiff();
    let coords = Tensor::<2>::from_data(TensorData::new(flat, [points.len(), 2]), &device);
    let angles = coords.matmul(matrix) * (2.0 * std::f64::consts::PI);
    Tensor::cat(vec![angles.clone().sin(), angles.cos()], 1)
}

/// `[batch, n, out_chans]`: points, then the corners of the box; without a box one "not a point" closes the list.
fn sparse(scope: &Scope<'_>, prompts: &[Prompt], size: usize) -> Option<Tensor<3>> {
    let first = prompts.first()?;
    if first.points.is_empty() && first.bounds.is_none() {
        return None;
    }
    let learned = |name: &str| scope.at(name).get("weight").value.clone().unsqueeze::<2>();
    let mut rows = Vec::new();
    for prompt in prompts {
        let place = |x: f32, y: f32| positions(scope, &[[(x + 0.5) / size as f32, (y + 0.5) / size as f32]]);
        for (x, y, label) in &prompt.points {
            let kind = match label {
                PointLabel::Outside => "point_embeddings.0",
                PointLabel::Inside => "point_embeddings.1",
            };
            rows.push(place(*x, *y) + learned(kind));
        }
        match prompt.bounds {
            Some([x0, y0, x1, y1]) => {
                rows.push(place(x0, y0) + learned("point_embeddings.2"));
                rows.push(place(x1, y1) + learned("point_embeddings.3"));
            }
            None => rows.push(learned("not_a_point_embed")),
        }
    }
    let per_picture = rows.len() / prompts.len();
    let all = Tensor::cat(rows, 0);
    let width = all.dims()[1];
    Some(all.reshape([prompts.len(), per_picture, width]))
}

/// `[batch, 1, 4s, 4s]` → `[batch, out_chans, s, s]`.
fn downscale(masks: Tensor<4>, scope: &Scope<'_>) -> Tensor<4> {
    let halve = |x: Tensor<4>, at: usize| {
        let conv = scope.at(at);
        let y = linear(squares(x, 2), &conv);
        gelu(norm(y, &scope.at(at + 1), EPSILON))
    };
    let x = halve(masks, 0).permute([0, 3, 1, 2]);
    let x = halve(x, 3);
    let x = linear(x, &scope.at(6));
    x.permute([0, 3, 1, 2])
}
