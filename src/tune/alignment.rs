//! How a layer's weights and their change lie to its inputs, as measured (Everett et al., arXiv 2407.05872, section 3):
//!
//!   ln(RMS(W z) / (RMS(W) · RMS(z))) / ln(n)
//!
//! over inputs z of n values is 1 where the n terms of every output add up, and ½ where they add up as random ones do. Of a
//! change of k entries a neuron, n is k (and more than 1 is seen where their inputs are larger than others). Learning rates are safe under the larger of the change's α, `--lr-scaling full`
//! assumes 1 and `noalign` ½.

use super::adafactor::size;
use super::course::Terms;
use super::scaling::Layer;
use crate::model::kernel::inputs::inputs;
use crate::model::weights::to_vec;
use crate::model::{Sam, Weight};
use crate::predict::prompt_free_logits;
use burn::tensor::{Tensor, TensorData};
use std::collections::BTreeSet;

/// Inputs of a layer that are looked at, at most.
const ROWS: usize = 128;

/// What one layer came to; `None` where nothing can be said: one input alone, or nothing changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Alignment {
    /// Name of the weight.
    pub weight: String,
    /// What it is.
    pub layer: Layer,
    /// Inputs of a neuron.
    pub fan_in: usize,
    /// Of the weight as it is.
    pub weights: Option<f64>,
    /// Inputs that a neuron's change meets: all, or the mean number of chosen entries.
    pub changed: f64,
    /// Of what training changed.
    pub change: Option<f64>,
}

/// Measures every linear layer that trains and that these pictures, `[batch, 3, size, size]`, pass through; `start` are
/// the values before training, as [`super::patch::capture`] gives them.
pub fn measure(sam: &Sam, start: &Terms, pixels: Tensor<4>) -> Vec<Alignment> {
    let frozen = sam.frozen();
    let (_, inputs) = inputs(ROWS, || prompt_free_logits(&frozen, pixels));
    let trained = |name: &String| sam.weights.get(name).filter(|weight| weight.trained() > 0);
    inputs.iter().filter_map(|(name, z)| Some(layer(trained(name)?, start.get(name)?, z))).collect()
}

fn layer(weight: &Weight, start: &[f32], z: &Tensor<2>) -> Alignment {
    let (rows, fan_in) = weight.spec.matrix();
    let now = to_vec(weight.value.clone());
    let mut change = vec![0.0; now.len()];
    let (mut changed, mut touched) = (fan_in as f64, rows);
    match &weight.chosen {
        Some(chosen) => {
            chosen.indices.iter().zip(start).for_each(|(i, old)| change[*i as usize] = now[*i as usize] - old);
            touched = chosen.indices.iter().map(|i| *i as usize / fan_in).collect::<BTreeSet<_>>().len().max(1);
            changed = chosen.indices.len() as f64 / touched as f64;
        }
        None => change.iter_mut().zip(now.iter().zip(start)).for_each(|(c, (now, old))| *c = now - old),
    }
    // Outputs that no chosen entry reaches do not count, nor do weights that are not chosen.
    let parts = [(touched as f64 / rows as f64), changed / fan_in as f64];
    Alignment {
        weight: weight.spec.name.clone(),
        layer: Layer::of(&weight.spec),
        fan_in,
        weights: alignment(now, rows, z, fan_in as f64, [1.0; 2]),
        changed,
        change: alignment(change, rows, z, changed, parts),
    }
}

/// The measure of a matrix that is zero but for this part of its rows, and this part of each of them.
fn alignment(matrix: Vec<f32>, rows: usize, z: &Tensor<2>, n: f64, [part, of_row]: [f64; 2]) -> Option<f64> {
    let fan_in = matrix.len() / rows;
    let own = size(&matrix) / (part * of_row).sqrt();
    let matrix = Tensor::<2>::from_data(TensorData::new(matrix, [rows, fan_in]), &z.device());
    let product = size(&to_vec(z.clone().matmul(matrix.transpose()))) / part.sqrt();
    let ratio = product / (own * size(&to_vec(z.clone())));
    (n > 1.0 && ratio.is_finite() && ratio > 0.0).then(|| ratio.ln() / n.ln())
}

/// Head of the table that [`line`] fills.
pub const HEAD: &str = "epoch,step,weight,layer,fan_in,alignment,changed_fan_in,change_alignment\n";

impl Alignment {
    /// One line of alignment.csv.
    pub fn line(&self, epoch: usize, step: usize) -> String {
        let number = |n: Option<f64>| n.map(|n| format!("{n:.6}")).unwrap_or_default();
        let Alignment { weight, layer, fan_in, weights, changed, change } = self;
        let layer = format!("{layer:?}").to_lowercase();
        let (weights, change) = (number(*weights), number(*change));
        format!("{epoch},{step},{weight},{layer},{fan_in},{weights},{changed},{change}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{SamConfig, checkpoint};
    use burn::tensor::Device;

    fn tensor(values: Vec<f32>, width: usize) -> Tensor<2> {
        let rows = values.len() / width;
        Tensor::from_data(TensorData::new(values, [rows, width]), &Device::flex())
    }

    /// 1 or -1, from a mixed number.
    fn sign(i: usize) -> f32 {
        let mut bits = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        bits = (bits ^ (bits >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        if (bits >> 40) & 1 == 1 { 1.0 } else { -1.0 }
    }

    #[test]
    fn one_where_terms_add_up_and_a_half_where_they_are_random() {
        let n = 256;
        let of = |matrix, z, n, parts| alignment(matrix, 64, &z, n, parts).unwrap();
        let ones = tensor(vec![2.0; 4 * n], n);
        assert!((of(vec![-0.1; 64 * n], ones, 256.0, [1.0; 2]) - 1.0).abs() < 1e-6);
        let signs = |n: usize, from: usize| (0..n).map(|i| sign(from + i)).collect::<Vec<f32>>();
        let random = of(signs(64 * n, 0), tensor(signs(32 * n, 99_999), n), 256.0, [1.0; 2]);
        assert!((random - 0.5).abs() < 0.02, "{random}");
        // Two entries in each of four rows of 64, inputs all the same: sums of two.
        let mut few = vec![0.0; 64 * n];
        (0..4).for_each(|row| few[row * n + 3..row * n + 5].fill(0.7));
        let few = of(few, tensor(vec![1.0; n], n), 2.0, [4.0 / 64.0, 2.0 / 256.0]);
        assert!((few - 1.0).abs() < 1e-6, "{few}");
        // One entry has nothing to add up with.
        assert_eq!(alignment(vec![1.0; 64], 64, &tensor(vec![1.0], 1), 1.0, [1.0; 2]), None);
    }

    #[test]
    fn layers_that_train_are_measured_on_what_passes_through_them() {
        let config = SamConfig { depth: 1, global: vec![0], ..SamConfig::tiny() };
        let mut sam = checkpoint::random("small", config, 1).into_sam(&Device::flex());
        let block = "image_encoder.blocks.0";
        let (qkv, lin1) = (format!("{block}.attn.qkv.weight"), format!("{block}.mlp.lin1.weight"));
        let before = to_vec(sam.weights.get(&qkv).unwrap().value.clone());
        let mut start = Terms::from([(qkv.clone(), before.clone())]);
        let dense = sam.weights.get_mut(&qkv).unwrap();
        dense.train_all();
        let at = [0u32, 1, 192, 193];
        let chosen = sam.weights.get_mut(&lin1).unwrap();
        start.insert(lin1.clone(), at.map(|i| to_vec(chosen.value.clone())[i as usize]).to_vec());
        chosen.train_chosen(&at, &Device::flex());
        let pixels = Tensor::<4>::ones([1, 3, 64, 64], &Device::flex());
        let rows = measure(&sam, &start, pixels.clone());
        // Random weights and no change.
        assert_eq!(rows.iter().map(|row| &row.weight).collect::<Vec<_>>(), [&qkv, &lin1]);
        assert!(rows.iter().all(|row| row.change.is_none()));
        assert!(rows.iter().all(|row| (row.weights.unwrap() - 0.5).abs() < 0.1), "{rows:?}");
        // The chosen entries move: two of each of two neurons.
        let moved: Vec<f32> = start[&lin1].iter().map(|v| v + 0.5).collect();
        let moved = Tensor::<1>::from_floats(moved.as_slice(), &Device::flex());
        sam.weights.get_mut(&lin1).unwrap().set_chosen(moved);
        let rows = measure(&sam, &start, pixels);
        assert_eq!((rows[1].changed, rows[1].fan_in), (2.0, 192));
        assert!(rows[1].change.is_some() && rows[0].change.is_none());
        assert!(rows[1].line(1, 3).starts_with(&format!("1,3,{lin1},hidden,192,0.")));
    }
}
