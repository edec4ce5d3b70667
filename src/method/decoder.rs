//! The decoder alone: the image encoder stays as it is (a baseline of arXiv 2404.09957).
//!
//! Of D(E(x)) with the image encoder E, only D trains, from its values in the base. What a single mask without a prompt
//! depends on is D for every other method, too: the mask decoder but its IoU head, and the "no mask" embedding. For SAM
//! ViT-B 3,925,984 values, for `tiny` 1,429,168; of the encoder none. Mergeable, no cost at inference; no pass over the
//! training cases before, and where pictures are not varied, one through the encoder in all.

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
