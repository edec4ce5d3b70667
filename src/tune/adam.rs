//! Adam (Kingma & Ba, arXiv 1412.6980, algorithm 1) over the trained values alone.
//!
//! State is kept per trained tensor: for a sparse selection it is as small as the selection, and a frozen weight cannot
//! move because it is never touched. Our own because the state must be saved by weight name and resumed bit for bit.

use crate::model::Weights;
use crate::model::kernel::adam::{self, BETA1, BETA2};
use burn::tensor::{Gradients, Tensor, TensorData};
use std::collections::BTreeMap;

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
        self.step_with(weights, gradients, lr, |_, gradient| gradient);
    }

    /// The same, with each gradient as `adjust` changes it.
    pub fn step_with(
        &mut self,
        weights: &mut Weights,
        gradients: &mut Gradients,
        lr: f64,
        adjust: impl Fn(&str, Tensor<1>) -> Tensor<1>,
    ) {
        self.steps += 1;
        let bias1 = 1.0 - BETA1.powi(self.steps as i32);
        let bias2 = 1.0 - BETA2.powi(self.steps as i32);
        for (name, weight) in weights.iter_mut() {
            let leaf = match &weight.chosen {
                Some(chosen) => &chosen.values,
                None => &weight.value,
            };
            let Some(gradient) = leaf.grad_remove(gradients) else { continue };
            let gradient = adjust(name, gradient);
            let zeros = || Tensor::zeros([gradient.dims()[0]], &gradient.device());
            let moments = self.moments.remove(name).unwrap_or_else(|| (zeros(), zeros()));
            let values = leaf.clone().without_autodiff();
            let moved = adam::step(values, gradient, moments, [lr / bias1, bias2.sqrt(), self.epsilon]);
            self.moments.insert(name.clone(), (moved.1, moved.2));
            if weight.chosen.is_some() {
                weight.set_chosen(moved.0);
            } else {
                weight.value = moved.0.autodiff().require_grad();
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
