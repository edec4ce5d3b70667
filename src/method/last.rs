//! LAST (Tang et al., AAAI 2025, arXiv 2402.04009): a side network of low-rank attention over a frozen backbone.
//!
//! Beside block i stands LSA_i(s) = U softmax(q kᵀ / √r) v with q = Q s, k = K s, v = V s of the normalised s, where Q, K, V
//! are `[r, d]` and U is `[d, r]`. With z_i the input of block i and d_0 = 0,
//! d_{i+1} = d_i + LSA_i(z_0 + … + z_i + d_i), and the neck is given the backbone's output plus the last d. The side never
//! enters the backbone, so no gradient does: the blocks run once, forwards, and nothing inside them is kept. Where pictures are
//! not varied, what the blocks hand on is kept from step to step (`sam/cache.rs`), and they run once a picture, for all of
//! `--networks`, too: the paper's many side networks over one pass of the backbone. r is `--rank`,
//! 16 by default; Q, K, V start evenly within ±1/√d, U at zero: the fine-tune starts as the base, to the bit.
//!
//! No code is published. From the paper: the frozen backbone, low-rank attention, no MLP, side stream fed by every block's
//! features, and the correction for the features that the stream has summed up. Reconstructed here: one head, a norm
//! without weights before it, the block's own windows, and d in place of the corrected stream u_i - Σ z, which is the same
//! but for rounding.
//!
//! For SAM ViT-B 4 d r a block: 589,824 values for r = 16, 0.658 % of the encoder; for `tiny` 73,728. Not mergeable: a
//! fine-tune is base and patch, and at inference costs 4 d r multiplications a token and block and the attention of one
//! head r wide. No pass over the training cases before.

use super::{Added, Change, Settings, Tuning};
use crate::model::WeightSpec;
use crate::model::sam::Addition;
use crate::model::sam::added::SIDE;

pub(super) struct Last;

/// The rank where none is asked for.
const RANK: usize = 16;

impl Tuning for Last {
    fn added(&self, specs: &[WeightSpec], settings: &Settings) -> Vec<Added> {
        let blocks = specs.iter().filter(|s| s.name.ends_with(".attn.qkv.weight")).count();
        let rank = settings.rank.unwrap_or(RANK);
        let all = (0..blocks).filter_map(|i| Addition::Side.weights(&format!("{SIDE}.{i}"), specs, rank)).flatten();
        let start = |spec: WeightSpec| match spec.name.ends_with(".up") {
            true => Added::constant(spec, 0.0),
            false => {
                let bound = 1.0 / (spec.matrix().1 as f32).sqrt();
                Added::uniform(spec, bound, settings.seed)
            }
        };
        all.map(start).collect()
    }

    fn rank(&self) -> Option<usize> {
        Some(RANK)
    }

    fn shares_blocks(&self) -> bool {
        true
    }

    fn encoder(&self, _: &WeightSpec, _: &Settings) -> Change {
        Change::Frozen
    }

    /// Not tuned here.
    fn lr(&self) -> f64 {
        1e-3
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::tests::{added_values, trained_in_encoder};
    use crate::model::SamConfig;

    #[test]
    fn counts_are_those_of_the_formula() {
        let specs = SamConfig::named("sam_vit_b").unwrap().specs();
        assert_eq!(added_values(&Last, &specs, None), 12 * 4 * 768 * 16);
        assert_eq!(added_values(&Last, &specs, Some(8)), 12 * 4 * 768 * 8);
        assert!(trained_in_encoder(&Last, &specs).is_empty());
        for Added { spec, start } in Last.added(&specs, &Settings::default()) {
            assert_eq!(start.iter().all(|v| *v == 0.0), spec.name.ends_with(".up"), "{}", spec.name);
        }
    }
}
