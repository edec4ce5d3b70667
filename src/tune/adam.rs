//! Adam (Kingma & Ba, arXiv 1412.6980, algorithm 1) over the trained values alone.
//!
//! State is kept per trained tensor: for a sparse selection it is as small as the selection, and a frozen weight cannot
//! move because it is never touched. Our own because the state must be saved by weight name and resumed bit for bit.

use crate::model::Weights;
use burn::tensor::{Gradients, Tensor, TensorData};
use std::collections::BTreeMap;

/// Decay of the first moment.
const BETA1: f64 = 0.9;
/// Decay of the second moment.
const BETA2: f64 = 0.999;

/// First and second moments by weight name, and the number of steps taken.
#[derive(Debug, Clone)]
pub struct Adam {
    /// Added to the denominator.
    pub epsilon: f64,
    /// Steps taken.
    pub steps: u32,
    /// First and second moments of each trained tensor, flat.
    pub moments: BTreeMap<String, (Tensor<1>, Tensor<1>)>,
}

impl Adam {
    /// No step taken.
    pub fn new(epsilon: f64) -> Adam {
        Adam { epsilon, steps: 0, moments: BTreeMap::new() }
    }

    /// One step: trained values move against their gradients. A trained tensor the loss does not reach stays.
    pub fn step(&mut self, weights: &mut Weights, gradients: &mut Gradients, lr: f64) {
        self.steps += 1;
        let bias1 = 1.0 - BETA1.powi(self.steps as i32);
        let bias2 = 1.0 - BETA2.powi(self.steps as i32);
        for (name, weight) in weights.iter_mut() {
            let leaf = match &weight.chosen {
                Some(chosen) => &chosen.values,
                None => &weight.value,
            };
            let Some(gradient) = leaf.grad_remove(gradients) else { continue };
            let values = leaf.clone().without_autodiff();
            let (first, second) = match self.moments.remove(name) {
                Some((m, v)) => {
                    let squared = gradient.clone() * gradient.clone();
                    (m * BETA1 + gradient * (1.0 - BETA1), v * BETA2 + squared * (1.0 - BETA2))
                }
                None => {
                    let squared = gradient.clone() * gradient.clone();
                    (gradient * (1.0 - BETA1), squared * (1.0 - BETA2))
                }
            };
            let denominator = second.clone().sqrt() / bias2.sqrt() + self.epsilon;
            let values = values - first.clone() / denominator * (lr / bias1);
            self.moments.insert(name.clone(), (first, second));
            if weight.chosen.is_some() {
                weight.set_chosen(values);
            } else {
                weight.value = values.autodiff().require_grad();
            }
        }
    }

    /// Moments in main memory: name → (first, second).
    pub fn to_host(&self) -> BTreeMap<String, (Vec<f32>, Vec<f32>)> {
        let host = |t: &Tensor<1>| crate::model::weights::to_vec(t.clone());
        self.moments.iter().map(|(name, (m, v))| (name.clone(), (host(m), host(v)))).collect()
    }

    /// Puts saved moments back.
    pub fn restore(
        &mut self,
        steps: u32,
        moments: BTreeMap<String, (Vec<f32>, Vec<f32>)>,
        device: &burn::tensor::Device,
    ) {
        let tensor = |v: Vec<f32>| {
            let n = v.len();
            Tensor::<1>::from_data(TensorData::new(v, [n]), device)
        };
        self.steps = steps;
        self.moments = moments.into_iter().map(|(name, (m, v))| (name, (tensor(m), tensor(v)))).collect();
    }
}
