//! The two-way transformer of the mask decoder: tokens look at the picture, and the picture at the tokens.

use super::config::DECODER_LAYERS;
use super::layers::norm;
use crate::model::kernel::attention::cross_attention;
use crate::model::kernel::linear::linear;
use crate::model::weights::Scope;
use burn::tensor::{Tensor, activation};

/// Epsilon of the transformer's norms (PyTorch's default, unlike the encoder's).
const EPSILON: f64 = 1e-5;

/// Runs the layers and the final attention.
///
/// # Shapes
/// `image`, `positions`: `[batch, s * s, width]`; `tokens`: `[batch, n, width]` → tokens and image of the same shapes.
pub(super) fn two_way(
    image: Tensor<3>,
    positions: Tensor<3>,
    tokens: Tensor<3>,
    scope: &Scope<'_>,
    heads: usize,
) -> (Tensor<3>, Tensor<3>) {
    let (mut queries, mut keys) = (tokens.clone(), image);
    for i in 0..DECODER_LAYERS {
        let layer = scope.at("layers").at(i);
        // The first layer has no positions to add: its queries are the tokens themselves.
        if i == 0 {
            queries = attend(queries.clone(), queries.clone(), queries, &layer.at("self_attn"), heads);
        } else {
            let q = queries.clone() + tokens.clone();
            queries = queries.clone() + attend(q.clone(), q, queries, &layer.at("self_attn"), heads);
        }
        queries = norm(queries, &layer.at("norm1"), EPSILON);

        let (q, k) = (queries.clone() + tokens.clone(), keys.clone() + positions.clone());
        queries = queries + attend(q, k, keys.clone(), &layer.at("cross_attn_token_to_image"), heads);
        queries = norm(queries, &layer.at("norm2"), EPSILON);

        let hidden = activation::relu(linear(queries.clone(), &layer.at("mlp").at("lin1")));
        queries = queries + linear(hidden, &layer.at("mlp").at("lin2"));
        queries = norm(queries, &layer.at("norm3"), EPSILON);

        let (q, k) = (keys.clone() + positions.clone(), queries.clone() + tokens.clone());
        keys = keys + attend(q, k, queries.clone(), &layer.at("cross_attn_image_to_token"), heads);
        keys = norm(keys, &layer.at("norm4"), EPSILON);
    }
    let (q, k) = (queries.clone() + tokens, keys.clone() + positions);
    queries = queries + attend(q, k, keys.clone(), &scope.at("final_attn_token_to_image"), heads);
    (norm(queries, &scope.at("norm_final_attn"), EPSILON), keys)
}

/// Multi-head attention whose inner width may be smaller. `[batch, n, width]`, `[batch, m, width]` → `[batch, n, width]`.
fn attend(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, scope: &Scope<'_>, heads: usize) -> Tensor<3> {
    let (q, k, v) = (linear(q, &scope.at("q_proj")), linear(k, &scope.at("k_proj")), linear(v, &scope.at("v_proj")));
    linear(cross_attention(q, k, v, heads), &scope.at("out_proj"))
}
