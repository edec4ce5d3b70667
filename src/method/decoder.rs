//! The decoder alone: the image encoder stays as it is.

use super::{Change, Settings, Tuning};
use crate::model::WeightSpec;

pub(super) struct Decoder;

impl Tuning for Decoder {
    fn encoder(&self, _: &WeightSpec, _: &Settings) -> Change {
        Change::Frozen
    }

    fn lr(&self) -> f64 {
        1e-3
    }
}
