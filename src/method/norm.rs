//! Norms alone (Frankle et al., ICLR 2021, arXiv 2003.00152, for batch norms; here layer norms, as "LN-Tuning" of Zhao
//! et al., arXiv 2305.14852).
//!
//! In γ x̂ + β, every γ and β of the image encoder trains, from its value in the base; all else stays. For SAM ViT-B
//! 37,888 values, 0.042 % of the encoder; for `tiny` 6,576. Mergeable, no cost at inference; no pass over the training
//! cases before.

use super::{Change, Settings, Tuning};
use crate::model::{Kind, WeightSpec};

pub(super) struct Norm;

impl Tuning for Norm {
    fn encoder(&self, spec: &WeightSpec, _: &Settings) -> Change {
        if spec.kind == Kind::Norm { Change::Dense } else { Change::Frozen }
    }

    /// Not tuned.
    fn lr(&self) -> f64 {
        1e-3
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::tests::trained_in_encoder;
    use crate::model::SamConfig;

    #[test]
    fn scales_and_shifts_train_the_necks_too() {
        let specs = SamConfig::named("sam_vit_b").unwrap().specs();
        let trained = trained_in_encoder(&Norm, &specs);
        assert!(trained.iter().any(|s| s.name == "image_encoder.neck.1.weight"));
        // Two norms a block, two of the neck, each a scale and a shift.
        assert_eq!(trained.iter().map(|s| s.len()).sum::<usize>(), 12 * 4 * 768 + 4 * 256);
    }
}
