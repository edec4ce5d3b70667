//! LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): what is added to a matrix has a low rank.
//!
//! y = W x + B A x + b with W and b as in the base, A `[r, in]`, B `[out, r]`. `lora` adds a pair to the query's and a
//! pair to the value's rows of every `attn.qkv`, as SAMed does with SAM (Zhang & Liu, arXiv 2304.13785); `lora-all` adds
//! one to every linear layer of the blocks: `attn.qkv` as one matrix, `attn.proj`, `mlp.lin1`, `mlp.lin2`. r is `--rank`,
//! 4 by default. A and B train; A starts as PyTorch's linear layers do (Kaiming's uniform with a = √5, that is evenly
//! within ±1/√in), B at zero: the fine-tune starts as the base, to the bit. There is no factor α/r: with B from zero it
//! is a matter of the learning rate, and SAMed has none. Biases of the encoder stay.
//!
//! For SAM ViT-B (width d = 768, 12 blocks) `lora` trains 4 d r a block, 147,456 values for r = 4, 0.164 % of the
//! encoder; `lora-all` 16 d r a block, 589,824; for `tiny` 18,432 and 73,728. Mergeable: W + B A, to rounding. Merged
//! there is no cost at inference; beside its base, r (in + out) multiplications a token and layer. No pass over the
//! training cases before.

use super::{Added, Change, Settings, Tuning};
use crate::model::sam::Addition;
use crate::model::{Kind, WeightSpec};

pub(super) struct Lora;
pub(super) struct LoraAll;

/// The rank where none is asked for: SAMed's.
const RANK: usize = 4;

/// A pair for every owner.
fn pairs(owners: impl Iterator<Item = String>, specs: &[WeightSpec], settings: &Settings) -> Vec<Added> {
    let rank = settings.rank.unwrap_or(RANK);
    let pairs = owners.filter_map(|owner| Addition::LowRank.weights(&owner, specs, rank));
    pairs.flat_map(|pair| pair.into_iter().enumerate().map(|(i, spec)| start(i, spec, settings.seed))).collect()
}

fn start(place: usize, spec: WeightSpec, seed: u64) -> Added {
    match place {
        0 => {
            let bound = 1.0 / (spec.matrix().1 as f32).sqrt();
            Added::uniform(spec, bound, seed)
        }
        _ => Added::constant(spec, 0.0),
    }
}

/// Linear layers of the encoder's blocks.
fn layers(specs: &[WeightSpec]) -> impl Iterator<Item = &str> {
    let blocks = specs.iter().filter(|s| s.kind == Kind::Linear && s.name.starts_with("image_encoder.blocks."));
    blocks.filter_map(|s| s.name.strip_suffix(".weight"))
}

impl Tuning for Lora {
    fn added(&self, specs: &[WeightSpec], settings: &Settings) -> Vec<Added> {
        let qkv = layers(specs).filter(|layer| layer.ends_with(".qkv"));
        pairs(qkv.flat_map(|layer| ["q", "v"].map(|third| format!("{layer}.{third}"))), specs, settings)
    }

    fn rank(&self) -> Option<usize> {
        Some(RANK)
    }

    fn encoder(&self, _: &WeightSpec, _: &Settings) -> Change {
        Change::Frozen
    }

    /// Of the order of SAMed's 5e-3, which follows a warm-up; not tuned here.
    fn lr(&self) -> f64 {
        2e-3
    }
}

impl Tuning for LoraAll {
    fn added(&self, specs: &[WeightSpec], settings: &Settings) -> Vec<Added> {
        pairs(layers(specs).map(String::from), specs, settings)
    }

    fn rank(&self) -> Option<usize> {
        Some(RANK)
    }

    fn encoder(&self, _: &WeightSpec, _: &Settings) -> Change {
        Change::Frozen
    }

    /// As [`Lora`]'s.
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
    fn counts_are_those_of_the_formula() {
        let specs = SamConfig::named("sam_vit_b").unwrap().specs();
        assert_eq!(added_values(&Lora, &specs, None), 147_456);
        assert_eq!(added_values(&Lora, &specs, Some(1)), 12 * 4 * 768);
        // qkv 1 + 3 widths, proj 1 + 1, lin1 1 + 4, lin2 4 + 1.
        assert_eq!(added_values(&LoraAll, &specs, None), 12 * 16 * 768 * 4);
        assert!(trained_in_encoder(&Lora, &specs).is_empty());
    }

    #[test]
    fn a_is_drawn_and_b_is_zero() {
        let specs = SamConfig::tiny().specs();
        let added = Lora.added(&specs, &Settings::default());
        assert_eq!(added.len(), 6 * 2 * 2);
        for Added { spec, start } in &added {
            match spec.name.rsplit('.').next().unwrap() {
                "lora_a" => {
                    let bound = 1.0 / 192f32.sqrt();
                    assert!(start.iter().all(|v| v.abs() <= bound) && start.iter().any(|v| v.abs() > 0.8 * bound));
                }
                _ => assert!(spec.shape == [192, 4] && start.iter().all(|v| *v == 0.0)),
            }
        }
        assert!(added[0].start != added[2].start, "each weight has its own draw");
    }
}
