//! The decoder alone: the image encoder stays as it is. Mergeable, no cost at inference.

use super::{Change, Settings, Tuning};
use crate::model::WeightSpec;

pub(super) struct Decoder;

impl Tuning for Decoder {
    fn encoder(&self, _: &WeightSpec, _: &Settings) -> Change {
        Change::Frozen
    }

    /// Tuned on a part of the training pictures.
    fn lr(&self) -> f64 {
        1e-3
    }
}
