//! From a plan to a trainable network and back to a file: attaching, gradients, optimizer, selection and patch files.

mod adafactor;
pub mod alignment;
pub mod course;
pub mod gradients;
pub mod optimizer;
pub mod patch;
pub mod proof;
pub mod scaling;
pub mod selection;
pub mod stability;

use crate::method::{Change, Plan};
use crate::model::Sam;
use burn::tensor::Device;

/// Makes exactly what the plan names trainable, and adds what it adds: the only place that does.
pub fn attach(sam: &mut Sam, plan: &Plan, device: &Device) {
    for change in plan.values() {
        if let Change::Added(added) = change {
            sam.weights.insert(added.spec.clone(), added.start.clone(), device);
        }
    }
    for (name, weight) in sam.weights.iter_mut() {
        match plan.get(name) {
            Some(Change::Dense | Change::Added(_)) => weight.train_all(),
            Some(Change::Chosen(indices)) if !indices.is_empty() => weight.train_chosen(indices, device),
            Some(Change::Bypass(indices)) if !indices.is_empty() => weight.train_bypass(indices, device),
            _ => {}
        }
    }
}
