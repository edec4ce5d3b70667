//! VPT (Jia et al., ECCV 2022, arXiv 2203.12119), the deep form: prompt tokens in every block.
//!
//! Block i attends to its n tokens P_i `[n, d]` beside those of the picture; behind the block they are thrown away and the
//! next one has its own. What a prompt asks is therefore never used: prompts are keys and values alone, made by the
//! block's own norm and `attn.qkv`, which keeps the grid and its relative positions whole; to prompts no position is
//! added. Where attention goes by windows, every window has the same prompts. n is `--rank`, 50 by default. P_i trains,
//! evenly within ±√(6 / (3 p² + d)) at the start (p is the patch's side): away from the base. Nothing else of the image
//! encoder trains. Without the paper's dropout.
//!
//! For SAM ViT-B n d a block: 460,800 values for n = 50, 0.514 % of the encoder; for `tiny` 57,600. Not mergeable: a
//! fine-tune is base and patch, at inference with n keys more in every attention, a quarter more in a window of 14 × 14.
//! No pass over the training cases before. The paper finds prompts weak on encoders pretrained by masking, as SAM's are.

use super::{Added, Change, Settings, Tuning};
use crate::model::sam::Addition;
use crate::model::{Kind, WeightSpec};

pub(super) struct Vpt;

/// Prompts a block where none are asked for.
const PROMPTS: usize = 50;

/// `count` prompts for every block.
pub(super) fn tokens(specs: &[WeightSpec], count: usize, seed: u64) -> Vec<Added> {
    let blocks = specs.iter().filter_map(|s| s.name.strip_suffix(".attn.qkv.weight"));
    let all = blocks.filter_map(|block| Addition::Prompts.weights(block, specs, count)).flatten();
    // The fan of the patch embedding: a patch's colours and the width.
    let conv = specs.iter().find(|s| s.kind == Kind::Conv && s.name.contains("patch_embed"));
    let inputs = conv.map_or(3 * 16 * 16, |conv| conv.matrix().1);
    let bound = |spec: &WeightSpec| (6.0 / (inputs + spec.matrix().1) as f32).sqrt();
    all.map(|spec| Added::uniform(spec.clone(), bound(&spec), seed)).collect()
}

impl Tuning for Vpt {
    fn added(&self, specs: &[WeightSpec], settings: &Settings) -> Vec<Added> {
        tokens(specs, settings.rank.unwrap_or(PROMPTS), settings.seed)
    }

    fn rank(&self) -> Option<usize> {
        Some(PROMPTS)
    }

    fn encoder(&self, _: &WeightSpec, _: &Settings) -> Change {
        Change::Frozen
    }

    /// The paper's is for SGD; not tuned here.
    fn lr(&self) -> f64 {
        2e-3
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::tests::{added_values, trained_in_encoder};
    use crate::model::SamConfig;

    #[test]
    fn so_many_prompts_in_every_block() {
        let specs = SamConfig::named("sam_vit_b").unwrap().specs();
        assert_eq!(added_values(&Vpt, &specs, None), 12 * 50 * 768);
        assert_eq!(added_values(&Vpt, &specs, Some(7)), 12 * 7 * 768);
        assert!(trained_in_encoder(&Vpt, &specs).is_empty());
        let added = Vpt.added(&specs, &Settings::default());
        let bound = (6f32 / (3.0 * 256.0 + 768.0)).sqrt();
        let largest = added[0].start.iter().fold(0f32, |most, v| most.max(v.abs()));
        assert!(largest <= bound && largest > 0.99 * bound);
        assert!(added[0].start != added[1].start);
    }
}
