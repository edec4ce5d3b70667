//! What an encoder that does not train makes of pictures, computed once: the same pixels get what they got before. That is
//! their embedding, or, with a side network (LAST, arXiv 2402.04009), all that its blocks hand on: (depth + 1) · s² · embed
//! numbers a picture. The side network and the neck run each time, and gradients go that far.
//!
//! Found by the pixels' SHA-256, so that nobody has to number pictures: training, validation and the choice of the
//! threshold share one cache.

use super::image_encoder::{Still, encode_rest, encode_still};
use super::{Embedding, Sam};
use burn::tensor::{Device, Tensor, TensorData};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Mutex;

/// Embeddings, or what they are made of, by pixels, up to a limit. Networks that differ in their side networks and decoders
/// alone may share one: the blocks then run once a picture for all of them.
#[derive(Debug)]
pub struct Cache {
    limit: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    table: HashMap<[u8; 32], Still>,
    counts: Counts,
}

/// What a cache did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passes of the encoder's blocks.
    pub computed: usize,
    /// Passes that were saved.
    pub found: usize,
    /// Bytes of what is kept.
    pub bytes: usize,
}

impl Cache {
    /// Keeps at most `limit` bytes; what comes when it is full is computed each time.
    pub fn new(limit: usize) -> Cache {
        Cache { limit, kept: Mutex::default() }
    }

    /// The embedding of one normalised, padded, square picture, `[3, size, size]`. The encoder, but for a side network,
    /// must not have changed since the last call.
    pub fn embed(&self, sam: &Sam, pixels: &[f32], device: &Device) -> Embedding {
        encode_rest(&sam.config, &sam.weights, self.still(sam, pixels, device))
    }

    fn still(&self, sam: &Sam, pixels: &[f32], device: &Device) -> Still {
        let key: [u8; 32] = Sha256::digest(bytemuck::cast_slice::<f32, u8>(pixels)).into();
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(still) = kept.table.get(&key).cloned() {
            kept.counts.found += 1;
            return still;
        }
        let size = (pixels.len() / 3).isqrt();
        let data = TensorData::new(pixels.to_vec(), [1, 3, size, size]);
        let still = encode_still(&sam.config, &sam.weights.frozen(), Tensor::from_data(data, device));
        kept.counts.computed += 1;
        if kept.counts.bytes + still.bytes() <= self.limit {
            kept.counts.bytes += still.bytes();
            kept.table.insert(key, still.clone());
        }
        still
    }

    /// What it did so far.
    pub fn counts(&self) -> Counts {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).counts
    }
}
