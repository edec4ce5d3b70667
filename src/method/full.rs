//! Full fine-tuning: every weight of the image encoder trains. The reference that sparse methods are measured against.

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
