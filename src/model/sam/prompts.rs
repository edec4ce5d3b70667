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
    use crate::model::weights::to_vec;
    use burn::tensor::{Device, TensorData, activation, module};

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    /// A block as the papers have it, in plain operations: VPT's prompts in front of the tokens, through all of attention,
    /// and thrown away; E²VPT's behind its keys and values. Over a grid of 2 × 3, attended to as a whole and in windows of
    /// 2, where each window has all of the prompts. Tables of positions are zero, for a plain ViT has none.
    #[test]
    fn prompts_are_tokens_that_are_thrown_away_and_keys_and_values() {
        let device = Device::flex();
        let config = SamConfig { depth: 1, global: vec![0], ..SamConfig::tiny() };
        let (c, heads, specs) = (config.embed, config.heads, config.specs());
        let mut base = checkpoint::random("small", config, 4);
        for (name, tensor) in &mut base.tensors {
            if name.contains("rel_pos") {
                tensor.data.fill(0.0);
            } else if name.ends_with("qkv.bias") {
                tensor.data = wave(3 * c, 0.9);
            }
        }
        let mut sam = base.into_sam(&device);
        let plain = sam.weights.clone();
        let (tokens, keys) = (wave(3 * c, 0.7), wave(2 * c, 0.45));
        let owner = "image_encoder.blocks.0";
        for (family, owner, values) in
            [(Addition::Prompts, owner, &tokens), (Addition::KeyPrompts, format!("{owner}.attn").as_str(), &keys)]
        {
            for spec in family.weights(owner, &specs, values.len() / c).unwrap() {
                sam.weights.insert(spec, values.clone(), &device);
            }
        }
        let scope = sam.weights.scope(owner);
        let grid = Tensor::<4>::from_data(TensorData::new(wave(6 * c, 0.31), [1, 2, 3, c]), &device);

        let value = |name: &str| scope.get(name).value.clone();
        let normed = |x: Tensor<2>, name: &str| {
            module::layer_norm(x, value(&format!("{name}.weight")), Some(value(&format!("{name}.bias"))), EPSILON)
        };
        let dense = |x: Tensor<2>, name: &str| {
            let matrix = scope.get(&format!("{name}.weight")).matrix();
            x.matmul(matrix.transpose()) + value(&format!("{name}.bias")).unsqueeze()
        };
        let rows =
            |values: &[f32]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [values.len() / c, c]), &device);
        let attend = |q: Tensor<2>, k: Tensor<2>, v: Tensor<2>| {
            let d = c / heads;
            let head = |i: usize| {
                let [q, k, v] = [&q, &k, &v].map(|x| x.clone().narrow(1, i * d, d));
                activation::softmax(q.matmul(k.transpose()) / (d as f64).sqrt(), 1).matmul(v)
            };
            Tensor::cat((0..heads).map(head).collect(), 1)
        };
        let x: Tensor<2> = grid.clone().reshape([6, c]);
        let prompts = normed(rows(&tokens), "norm1");
        // The last row pads the right one of the windows: zero behind the norm, but with the bias of `qkv`.
        let padded = Tensor::cat(vec![normed(x.clone(), "norm1"), Tensor::zeros([1, c], &device)], 0);
        let whole: [&[usize]; 1] = [&[0, 1, 2, 3, 4, 5]];
        let halves: [&[usize]; 2] = [&[0, 1, 3, 4], &[2, 6, 5, 6]];
        for (window, groups) in [(0, &whole[..]), (2, &halves[..])] {
            let mut found = vec![padded.clone().narrow(0, 6, 1); 7];
            for group in groups {
                let picked = group.iter().map(|i| padded.clone().narrow(0, *i, 1));
                let qkv = dense(Tensor::cat(std::iter::once(prompts.clone()).chain(picked).collect(), 0), "attn.qkv");
                let part = |i: usize| qkv.clone().narrow(1, i * c, c);
                let with_keys = |x: Tensor<2>| Tensor::cat(vec![x, rows(&keys)], 0);
                let y = attend(part(0), with_keys(part(1)), with_keys(part(2)));
                for (at, i) in group.iter().enumerate() {
                    found[*i] = y.clone().narrow(0, 3 + at, 1);
                }
            }
            found.truncate(6);
            let z = x.clone() + dense(Tensor::cat(found, 0), "attn.proj");
            let mlp = dense(activation::gelu(dense(normed(z.clone(), "norm2"), "mlp.lin1")), "mlp.lin2");
            let want = to_vec(z + mlp);
            let got = to_vec(block(grid.clone(), &scope, Block { heads, window }));
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5), "window {window}");
            let without = to_vec(block(grid.clone(), &plain.scope(owner), Block { heads, window }));
            assert!(without.iter().zip(&want).any(|(a, b)| (a - b).abs() > 1e-3), "window {window}");
        }
    }
}
