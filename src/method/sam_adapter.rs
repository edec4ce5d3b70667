//! SAM-Adapter (Chen et al., ICCV workshops 2023, arXiv 2304.09148): every block is told of the picture's fine structure.
//!
//! P_i = U GELU(W_i (H + E) + a_i) + c is added to the input of block i. H is a patch embedding, e wide, of what is left of
//! the picture without the lowest quarter of its frequencies; E a linear map, e wide, of SAM's own patch embedding before
//! positions; W_i `[e, e]` is the block's own, U `[d, e]` is shared. e is d/32 (24 for ViT-B). All of
//! these train; matrices start from N(0, 0.02²), biases at zero: a little away from the base. Nothing else of the image
//! encoder trains.
//!
//! For SAM ViT-B 63,312 values, 0.071 % of the encoder; for `tiny` 7,368. Not mergeable: a fine-tune is base and patch,
//! and at inference costs the filter (four products with a matrix of the picture's side, where the paper has a Fourier
//! transform) and 2 d e + e² multiplications a token and block. No pass over the training cases before.

use super::{Added, Change, Settings, Tuning};
use crate::model::sam::Addition;
use crate::model::sam::added::GENERATOR;
use crate::model::{Kind, WeightSpec};

pub(super) struct SamAdapter;

/// Width of the encoder for one of the generator.
const PART: usize = 32;
/// Standard deviation of what matrices start from.
const DEVIATION: f32 = 0.02;

impl Tuning for SamAdapter {
    fn added(&self, specs: &[WeightSpec], settings: &Settings) -> Vec<Added> {
        let blocks: Vec<&WeightSpec> = specs.iter().filter(|s| s.name.ends_with(".attn.qkv.weight")).collect();
        let width = blocks.first().map_or(0, |qkv| qkv.matrix().1);
        let size = (width / PART).max(1);
        let shared = Addition::Generator.weights(GENERATOR, specs, size);
        let own =
            (0..blocks.len()).filter_map(|i| Addition::Generated.weights(&format!("{GENERATOR}.{i}"), specs, size));
        let start = |spec: WeightSpec| match spec.kind {
            Kind::Bias => Added::constant(spec, 0.0),
            _ => Added::normal(spec, 0.0, DEVIATION, settings.seed),
        };
        shared.into_iter().chain(own).flatten().map(start).collect()
    }

    fn encoder(&self, _: &WeightSpec, _: &Settings) -> Change {
        Change::Frozen
    }

    /// The paper's for SAM, at batch 2; not tuned here.
    fn lr(&self) -> f64 {
        2e-4
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
        let of = |d: usize, e: usize| 3 * 256 * e + e + d * e + e + e * d + d;
        assert_eq!(added_values(&SamAdapter, &specs, None), of(768, 24) + 12 * (24 * 24 + 24));
        assert_eq!(added_values(&SamAdapter, &specs, None), 63_312);
        assert!(trained_in_encoder(&SamAdapter, &specs).is_empty());
        let tiny = added_values(&SamAdapter, &SamConfig::tiny().specs(), None);
        assert_eq!(tiny, of(192, 6) + 6 * (6 * 6 + 6));
    }
}
