//! SSF (Lian et al., NeurIPS 2022, arXiv 2210.08823): features are scaled and shifted.
//!
//! y ↦ γ ⊙ y + β, channel by channel, at the paper's places in every block: after both norms, after `attn.qkv`,
//! `attn.proj`, `mlp.lin1` (before its activation) and `mlp.lin2`; after the patch embedding (a stem's last norm); and,
//! for the last norm of a plain ViT, after both norms of the neck. γ and β train, from N(1, 0.02²) and N(0, 0.02²), which
//! moves the start a little away from the base. Nothing else of the image encoder trains. Weight decay, where it is asked
//! for, is of matrices alone: it would pull γ to zero instead of one.
//!
//! For SAM ViT-B 22 d a block, 2 d of the patch embedding, 1,024 of the neck: 205,312 values, 0.229 % of the encoder; for
//! `tiny` 26,496. Mergeable: diag(γ) W and γ ⊙ b + β, norms alike, to rounding. Merged there is no cost at inference. No
//! pass over the training cases before.

use super::{Added, Change, Settings, Tuning};
use crate::model::sam::Addition;
use crate::model::{Kind, Part, WeightSpec};

pub(super) struct Ssf;

/// Standard deviation of what γ and β start from.
const DEVIATION: f32 = 0.02;

/// Whether a layer's or norm's output is scaled and shifted.
fn is_place(spec: &WeightSpec, stem: Option<&str>) -> bool {
    let below = |prefix: &str| spec.name.starts_with(prefix);
    match spec.kind {
        Kind::Linear => true,
        Kind::Conv => below("image_encoder.patch_embed."),
        Kind::Norm => below("image_encoder.blocks.") || below("image_encoder.neck.") || stem.is_some_and(below),
        _ => false,
    }
}

impl Tuning for Ssf {
    fn added(&self, specs: &[WeightSpec], settings: &Settings) -> Vec<Added> {
        let encoder = || specs.iter().filter(|s| s.part == Part::ImageEncoder);
        // The last norm of a stem is the one before the first block.
        let before = encoder().take_while(|s| !s.name.starts_with("image_encoder.blocks."));
        let stem = before.filter(|s| s.kind == Kind::Norm).last().and_then(|s| s.name.strip_suffix("bias"));
        let owners = encoder().filter(|s| is_place(s, stem)).filter_map(|s| s.name.strip_suffix(".weight"));
        let weights = owners.filter_map(|owner| Addition::ScaleShift.weights(owner, specs, 0));
        let mean = |place| if place == 0 { 1.0 } else { 0.0 };
        let draw = |(place, spec)| Added::normal(spec, mean(place), DEVIATION, settings.seed);
        weights.flat_map(|pair| pair.into_iter().enumerate().map(draw)).collect()
    }

    fn encoder(&self, _: &WeightSpec, _: &Settings) -> Change {
        Change::Frozen
    }

    /// Near the middle of the paper's grid (2e-4 to 5e-2); not tuned here.
    fn lr(&self) -> f64 {
        3e-3
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::tests::{added_values, trained_in_encoder};
    use crate::model::SamConfig;

    #[test]
    fn seven_places_of_the_paper() {
        let specs = SamConfig::named("sam_vit_b").unwrap().specs();
        assert_eq!(added_values(&Ssf, &specs, None), 12 * 22 * 768 + 2 * 768 + 4 * 256);
        let added = Ssf.added(&specs, &Settings::default());
        let owners = added.iter().filter_map(|a| a.spec.name.strip_suffix(".ssf_scale"));
        let first: Vec<&str> = owners.filter(|o| !o.contains("blocks.") || o.contains("blocks.0.")).collect();
        let block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.lin1", "mlp.lin2"];
        let mut want = vec!["image_encoder.patch_embed.proj".to_string()];
        want.extend(block.map(|place| format!("image_encoder.blocks.0.{place}")));
        want.extend(["image_encoder.neck.1".into(), "image_encoder.neck.3".into()]);
        assert_eq!(first, want);
        assert!(trained_in_encoder(&Ssf, &specs).is_empty());
        // Of a stem the last norm alone.
        let tiny = added_values(&Ssf, &SamConfig::tiny().specs(), None);
        assert_eq!(tiny, 6 * 22 * 192 + 2 * 192 + 4 * 192);
    }

    #[test]
    fn scales_start_near_one_and_shifts_near_zero() {
        for Added { spec, start } in Ssf.added(&SamConfig::tiny().specs(), &Settings::default()) {
            let mean = start.iter().sum::<f32>() / start.len() as f32;
            let want = if spec.name.ends_with("ssf_scale") { 1.0 } else { 0.0 };
            assert!((mean - want).abs() < 0.01 && start.iter().any(|v| (v - want).abs() > 0.01), "{}", spec.name);
        }
    }
}
