//! Embeddings of an encoder that does not train, computed once: the same pixels get the embedding they got before.
//!
//! Found by the pixels' SHA-256, so that nobody has to number pictures: training, validation and the choice of the
//! threshold share one cache.

use super::{Embedding, Sam};
use burn::tensor::{Device, Tensor, TensorData};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Mutex;

/// Embeddings by pixels, up to a limit.
#[derive(Debug)]
pub struct Cache {
    limit: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    table: HashMap<[u8; 32], Embedding>,
    counts: Counts,
}

/// What a cache did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passes of the encoder.
    pub computed: usize,
    /// Passes that were saved.
    pub found: usize,
    /// Bytes of the embeddings that are kept.
    pub bytes: usize,
}

impl Cache {
    /// Keeps at most `limit` bytes; what comes when it is full is computed each time.
    pub fn new(limit: usize) -> Cache {
        Cache { limit, kept: Mutex::default() }
    }

    /// The embedding of one normalised, padded, square picture, `[3, size, size]`. The encoder must not have changed
    /// since the last call.
    pub fn embed(&self, sam: &Sam, pixels: &[f32], device: &Device) -> Embedding {
        let key: [u8; 32] = Sha256::digest(bytemuck::cast_slice::<f32, u8>(pixels)).into();
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(embedding) = kept.table.get(&key).cloned() {
            kept.counts.found += 1;
            return embedding;
        }
        let size = (pixels.len() / 3).isqrt();
        let data = TensorData::new(pixels.to_vec(), [1, 3, size, size]);
        let embedding = sam.frozen().embed(Tensor::from_data(data, device));
        kept.counts.computed += 1;
        if kept.counts.bytes + embedding.bytes() <= self.limit {
            kept.counts.bytes += embedding.bytes();
            kept.table.insert(key, embedding.clone());
        }
        embedding
    }

    /// What it did so far.
    pub fn counts(&self) -> Counts {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).counts
    }
}
