//! Gradient-based parameter selection (GPS; Zhang et al., CVPR 2024, arXiv 2312.10136).
//!
//! In every output neuron of the image encoder, the k weights with the largest |Σ ∂L/∂w| over the training cases train,
//! from their values in the base: rows of linear layers, rows of convolutions seen as `[out, in · kh · kw]`. Norms and
//! position tables stay; biases train. k beyond the fan-in is the whole row.
//!
//! For SAM ViT-B and k = 1 84,224 weights and 83,712 biases, 167,936 values, 0.187 % of the encoder; for `tiny` 22,200.
//! Nothing is added to the network, so the result is an ordinary checkpoint: mergeable, no cost at inference. The choice
//! costs one pass forward and backward over the training cases and one buffer of the encoder's size.
//!
//! With `--score` and `--group` it is the general form of choosing entries that other methods are special cases of.

use super::{Group, OtherScores, Rule, Score, Tuning};

pub(super) struct Gps;

impl Tuning for Gps {
    fn rule(&self) -> Option<Rule> {
        Some(Rule { score: Score::Gradient, group: Group::Neuron, other_scores: OtherScores::Taken })
    }

    /// Tuned on a part of the training pictures.
    fn lr(&self) -> f64 {
        1e-3
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{Change, Settings, selectable};

    #[test]
    fn rules_go_by_kind() {
        let mut specs = crate::model::SamConfig::tiny().specs();
        specs.extend(crate::model::SamConfig::named("vit_t").map(|c| c.specs()).unwrap_or_default());
        let spec = |name: &str| specs.iter().find(|s| s.name == name).unwrap();
        assert!(selectable(spec("image_encoder.neck.2.weight")));
        assert!(selectable(spec("image_encoder.patch_embed.proj.weight")));
        assert!(selectable(spec("image_encoder.stem.1.blocks.0.conv1.weight")));
        for frozen in ["image_encoder.neck.1.weight", "image_encoder.pos_embed", "image_encoder.blocks.0.norm1.bias"] {
            assert!(!selectable(spec(frozen)), "{frozen}");
            assert_eq!(Gps.encoder(spec(frozen), &Settings::default()), Change::Frozen, "{frozen}");
        }
        assert_eq!(Gps.encoder(spec("image_encoder.blocks.0.attn.qkv.bias"), &Settings::default()), Change::Dense);
    }
}
