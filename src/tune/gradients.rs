//! The selection pass: gradients summed, with their signs, over one deterministic pass of the training cases.

use crate::error::Result;
use crate::method::GradientTable;
use crate::model::weights::to_vec;
use crate::model::{Kind, Part, Sam};
use burn::tensor::Tensor;
use std::collections::BTreeMap;

/// Sums d loss / d weight over samples, one at a time and in order, for every matrix of the image encoder.
///
/// `samples` yields one sample at a time; `loss` computes a scalar from the network and a sample. The network is not
/// changed.
///
/// # Errors
/// What a sample's loading or `loss` answers.
pub fn accumulate<S>(
    sam: &Sam,
    samples: impl Iterator<Item = Result<S>>,
    mut loss: impl FnMut(&Sam, S) -> Result<Tensor<1>>,
) -> Result<GradientTable> {
    let mut tracked = sam.frozen();
    for (_, weight) in tracked.weights.iter_mut() {
        if weight.spec.part == Part::ImageEncoder && matches!(weight.spec.kind, Kind::Linear | Kind::Conv) {
            weight.train_all();
        }
    }
    let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for sample in samples {
        let mut gradients = loss(&tracked, sample?)?.backward();
        for (name, weight) in tracked.weights.iter() {
            let Some(gradient) = weight.value.grad_remove(&mut gradients) else { continue };
            let gradient = to_vec(gradient);
            match sums.get_mut(name) {
                Some(sum) => sum.iter_mut().zip(&gradient).for_each(|(s, g)| *s += g),
                None => {
                    sums.insert(name.clone(), gradient);
                }
            }
        }
    }
    Ok(sums)
}
