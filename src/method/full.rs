//! Full fine-tuning: every weight of the image encoder trains, norms and position tables too, as MedSAM trains SAM (Ma et
//! al., arXiv 2304.12306). The reference that sparse methods are measured against.
//!
//! θ ← θ - η ∂L/∂θ for all θ of the encoder, from their values in the base. For SAM ViT-B 89,670,912 values, for `tiny`
//! 3,692,712, each with a gradient and the optimizer's moments. Mergeable, no cost at inference; no pass over the
//! training cases before.

use super::{Change, Settings, Tuning};
use crate::model::WeightSpec;

pub(super) struct Full;

impl Tuning for Full {
    fn encoder(&self, _: &WeightSpec, _: &Settings) -> Change {
        Change::Dense
    }

    /// Tuned on a part of the training pictures.
    fn lr(&self) -> f64 {
        1e-4
    }
}
