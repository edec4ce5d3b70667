//! BitFit (Ben Zaken et al., ACL 2022, arXiv 2106.10199): biases alone.
//!
//! In y = W x + b and in a norm's γ x̂ + β, every b and β of the image encoder trains, from its value in the base; W and
//! γ stay. For SAM ViT-B 102,656 values, 0.114 % of the encoder, 11 widths in every block; for `tiny` 13,896. Mergeable,
//! no cost at inference; no pass over the training cases before.

use super::{Change, Settings, Tuning};
use crate::model::{Kind, WeightSpec};

pub(super) struct BitFit;

impl Tuning for BitFit {
    fn encoder(&self, spec: &WeightSpec, _: &Settings) -> Change {
        // A norm's scale and shift are of one kind; the official names tell them apart.
        match spec.kind {
            Kind::Bias => Change::Dense,
            Kind::Norm if spec.name.ends_with(".bias") => Change::Dense,
            _ => Change::Frozen,
        }
    }

    /// Ten times that of full fine-tuning, as in the paper; not tuned here.
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
    fn biases_of_layers_and_norms_train_and_no_scale() {
        let specs = SamConfig::named("sam_vit_b").unwrap().specs();
        let trained = trained_in_encoder(&BitFit, &specs);
        assert!(trained.iter().all(|s| s.name.ends_with(".bias")));
        // Of every block 3 + 1 + 4 + 1 widths of layers and 2 of norms; the patch embedding's; two norms of the neck.
        assert_eq!(trained.iter().map(|s| s.len()).sum::<usize>(), 12 * 11 * 768 + 768 + 2 * 256);
    }
}
