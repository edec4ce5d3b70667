//! The proof that training moved nothing else: from the tensors' bytes, before and after.

use super::patch::{Delta, Direction};
use crate::model::{HostTensor, Weights};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// SHA-256 of every weight's bytes.
pub type Fingerprints = BTreeMap<String, [u8; 32]>;

/// What the comparison found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Values that had to stay.
    pub frozen_values: usize,
    /// Values that were trained.
    pub trained_values: usize,
    /// Weights in which a value moved that had to stay.
    pub moved: Vec<String>,
}

/// Fingerprints of weights before training.
pub fn fingerprints(tensors: &BTreeMap<String, HostTensor>) -> Fingerprints {
    tensors.iter().map(|(name, tensor)| (name.clone(), fingerprint(&tensor.data))).collect()
}

/// Compares weights with their fingerprints: trained values are put back to what they were, then every byte of the
/// weight must be as before. A weight trained as a whole has nothing to compare, nor has one that was added.
pub fn compare(before: &Fingerprints, weights: &Weights, deltas: &BTreeMap<String, Delta>) -> Proof {
    let mut proof = Proof { frozen_values: 0, trained_values: 0, moved: Vec::new() };
    for (name, weight) in weights.iter() {
        let delta = deltas.get(name);
        let trained = delta.map(Delta::len).unwrap_or(0);
        proof.trained_values += trained;
        proof.frozen_values += weight.spec.len() - trained;
        if matches!(delta, Some(Delta::Dense { .. } | Delta::Added { .. })) {
            continue;
        }
        let mut values = weight.to_host().data;
        if let Some(delta) = delta {
            delta.turn(&mut values, Direction::Revert);
        }
        if before.get(name) != Some(&fingerprint(&values)) {
            proof.moved.push(name.clone());
        }
    }
    proof
}

fn fingerprint(values: &[f32]) -> [u8; 32] {
    Sha256::digest(bytemuck::cast_slice(values)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{self, Settings};
    use crate::model::{SamConfig, checkpoint};
    use crate::tune::{attach, patch};
    use burn::tensor::{Device, Tensor, TensorData};

    #[test]
    fn one_flipped_bit_is_found() {
        let base = checkpoint::random("test", SamConfig { depth: 1, global: vec![0], ..SamConfig::tiny() }, 1);
        let before = fingerprints(&base.tensors);
        let mut sam = base.into_sam(&Device::flex());
        let name = "image_encoder.blocks.0.mlp.lin1.weight";
        let chosen = method::Chosen::from([(name.to_string(), vec![3, 200])]);
        let specs = sam.config.specs();
        let plan = method::plan(method::find("gps").unwrap(), &specs, Some(&chosen), &Settings::default());
        let old = patch::capture(&sam.weights, &plan);
        attach(&mut sam, &plan, &Device::flex());
        let weight = sam.weights.get_mut(name).unwrap();
        weight.set_chosen(Tensor::from_data(TensorData::new(vec![7f32, 8.0], [2]), &Device::flex()));
        let deltas = |sam: &crate::model::Sam| patch::changes(&old, &sam.weights, &plan);

        let clean = compare(&before, &sam.weights, &deltas(&sam));
        assert!(clean.moved.is_empty(), "{:?}", clean.moved);
        // Beside chosen entries, and in weights of which nothing trains.
        for name in [
            name,
            "image_encoder.pos_embed",
            "image_encoder.blocks.0.norm1.weight",
            "image_encoder.blocks.0.attn.rel_pos_h",
            "image_encoder.neck.3.bias",
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
            "mask_decoder.iou_prediction_head.layers.0.weight",
        ] {
            let mut flipped = sam.clone();
            let weight = flipped.weights.get_mut(name).unwrap();
            let mut values = weight.to_host().data;
            values[4] = f32::from_bits(values[4].to_bits() ^ 1);
            let n = values.len();
            weight.value = Tensor::from_data(TensorData::new(values, [n]), &Device::flex());
            assert_eq!(compare(&before, &flipped.weights, &deltas(&flipped)).moved, [name]);
        }
    }
}
