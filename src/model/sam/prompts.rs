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

#[cfg(test)]
mod tests {
    use super::super::image_encoder::{Block, block};
    use super::super::{Addition, SamConfig};
    use super::*;
    use crate::model::checkpoint;
    use crate::model::kernel::attention::cross_attention;
    use crate::model::kernel::gelu::gelu;
    use crate::model::kernel::norm;
    use crate::model::weights::to_vec;
    use burn::tensor::{Device, TensorData};

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    /// The block as VPT has it: prompts in front of the tokens, through all of attention, and thrown away. Tables of
    /// positions are zero, for a plain ViT has none.
    #[test]
    fn prompts_are_tokens_that_are_thrown_away() {
        let device = Device::flex();
        let config = SamConfig { depth: 1, global: vec![0], ..SamConfig::tiny() };
        let (c, heads, specs) = (config.embed, config.heads, config.specs());
        let mut base = checkpoint::random("small", config, 4);
        for (_, table) in base.tensors.iter_mut().filter(|(name, _)| name.contains("rel_pos")) {
            table.data.fill(0.0);
        }
        let mut sam = base.into_sam(&device);
        let plain = sam.weights.clone();
        let prompts = wave(3 * c, 0.7);
        for spec in Addition::Prompts.weights("image_encoder.blocks.0", &specs, 3).unwrap() {
            sam.weights.insert(spec, prompts.clone(), &device);
        }
        let scope = sam.weights.scope("image_encoder.blocks.0");
        let x = Tensor::<4>::from_data(TensorData::new(wave(6 * c, 0.31), [1, 2, 3, c]), &device);
        let got = block(x.clone(), &scope, Block { heads, window: 0 });
        let unprompted = block(x.clone(), &plain.scope("image_encoder.blocks.0"), Block { heads, window: 0 });

        let (x, prompts) = (x.reshape([1, 6, c]), Tensor::from_data(TensorData::new(prompts, [1, 3, c]), &device));
        let normed = |x: Tensor<3>, name: &str| {
            let scope = scope.at(name);
            norm::norm(x, scope.get("weight").value.clone(), scope.get("bias").value.clone(), EPSILON)
        };
        let all = normed(Tensor::cat(vec![prompts, x.clone()], 1), "norm1");
        let qkv = linear(all, &scope.at("attn").at("qkv"));
        let part = |i: usize| qkv.clone().narrow(2, i * c, c);
        let y = linear(cross_attention(part(0), part(1), part(2), heads), &scope.at("attn").at("proj"));
        let x = x + y.narrow(1, 3, 6);
        let mlp = scope.at("mlp");
        let want = x.clone() + linear(gelu(linear(normed(x, "norm2"), &mlp.at("lin1"))), &mlp.at("lin2"));
        let (got, want) = (to_vec(got), to_vec(want));
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5));
        assert!(to_vec(unprompted).iter().zip(&want).any(|(a, b)| (a - b).abs() > 1e-3));
    }
}
