//! Prompt tokens of the image encoder (VPT: Jia et al., arXiv 2203.12119; E²VPT: Han et al., arXiv 2307.13770).
//!
//! In VPT's deep form a block's prompts are thrown away behind it and the next block has its own: what they ask is never
//! used, so they are keys and values alone, the same for every picture and window, and the grid of positions stays whole.

use super::image_encoder::EPSILON;
use super::layers::{linear, norm};
use crate::model::weights::Scope;
use burn::tensor::Tensor;

/// Rows behind those of the positions, `[n, 3 d]`: queries that are passed over, keys and values.
pub(super) fn prompts(block: &Scope<'_>) -> Option<Tensor<2>> {
    let attention = block.at("attn");
    let tokens = block.find("prompts").map(|tokens| {
        let normed = norm(tokens.shaped::<2>(), &block.at("norm1"), EPSILON);
        linear(normed, &attention.at("qkv"))
    });
    let keys = attention.find("prompts_kv").map(|rows| {
        let rows = rows.shaped::<2>();
        Tensor::cat(vec![rows.zeros_like(), rows.clone(), rows], 1)
    });
    let all: Vec<Tensor<2>> = tokens.into_iter().chain(keys).collect();
    if all.is_empty() { None } else { Some(Tensor::cat(all, 0)) }
}
