//! Adapters (Houlsby et al., ICML 2019, arXiv 1902.00751): a small bottleneck behind every MLP.
//!
//! y ↦ y + U GELU(D y + a) + c with y the output of a block's MLP before it joins the residual stream (the place of
//! Pfeiffer et al., EACL 2021), D `[b, d]`, U `[d, b]`; b is `--rank`, 32 by default. All of these train; D starts evenly
//! within ±1/√d, a, U and c at zero: the fine-tune starts as the base, to the bit. Nothing else of the image encoder
//! trains.
//!
//! For SAM ViT-B 2 d b + b + d a block: 599,424 values for b = 32, 0.668 % of the encoder; for `tiny` 75,072. Not
//! mergeable: the bottleneck is not linear, so a fine-tune is base and patch, and costs 2 d b multiplications more a token
//! and block at inference. No pass over the training cases before.

use super::{Added, Change, Settings, Tuning};
use crate::model::WeightSpec;
use crate::model::sam::Addition;

pub(super) struct Adapter;

/// Width of the bottleneck where none is asked for.
const WIDTH: usize = 32;

impl Tuning for Adapter {
    fn added(&self, specs: &[WeightSpec], settings: &Settings) -> Vec<Added> {
        let owners = specs.iter().filter_map(|s| s.name.strip_suffix(".lin1.weight"));
        let width = settings.rank.unwrap_or(WIDTH);
        let all = owners.filter_map(|owner| Addition::Adapter.weights(owner, specs, width)).flatten();
        let start = |spec: WeightSpec| match spec.name.ends_with("down.weight") {
            true => {
                let bound = 1.0 / (spec.matrix().1 as f32).sqrt();
                Added::uniform(spec, bound, settings.seed)
            }
            false => Added::constant(spec, 0.0),
        };
        all.map(start).collect()
    }

    fn rank(&self) -> Option<usize> {
        Some(WIDTH)
    }

    fn encoder(&self, _: &WeightSpec, _: &Settings) -> Change {
        Change::Frozen
    }

    /// As is usual for adapters of SAM; not tuned here.
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
        assert_eq!(added_values(&Adapter, &specs, None), 12 * (2 * 768 * 32 + 32 + 768));
        assert_eq!(added_values(&Adapter, &specs, Some(96)), 12 * (2 * 768 * 96 + 96 + 768));
        assert!(trained_in_encoder(&Adapter, &specs).is_empty());
    }

    #[test]
    fn only_the_way_down_is_drawn() {
        for Added { spec, start } in Adapter.added(&SamConfig::tiny().specs(), &Settings::default()) {
            let drawn = start.iter().any(|v| *v != 0.0);
            assert_eq!(drawn, spec.name.ends_with("adapter.down.weight"), "{}", spec.name);
        }
    }
}
