//! What a method asks of the loop while entries train: a term in their gradient, and fewer of them half-way.

use super::alignment::{self, Alignment};
use crate::method::{Change, Entries, Plan, Tuning};
use crate::model::weights::to_vec;
use crate::model::{Kind, Sam};
use burn::tensor::Tensor;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// Values by weight, one for each of its chosen entries.
pub type Terms = BTreeMap<String, Vec<f32>>;

/// A method at work on what its plan has attached.
pub struct Course<'a> {
    method: &'a dyn Tuning,
    plan: &'a Plan,
    /// Values before training, as [`super::patch::capture`] gives them.
    start: &'a Terms,
    seed: u64,
}

impl<'a> Course<'a> {
    /// A method, its plan, the values that the plan changes as they were, and the seed of what is drawn.
    pub fn new(method: &'a dyn Tuning, plan: &'a Plan, start: &'a Terms, seed: u64) -> Course<'a> {
        Course { method, plan, start, seed }
    }

    /// What is added to the gradient of chosen entries at a step, drawn from the seed and the step alone.
    pub fn penalty(&self, sam: &Sam, step: usize) -> Option<(String, Vec<f32>)> {
        let penalty = self.method.penalty().filter(|penalty| step.is_multiple_of(penalty.every))?;
        let matrix = |name: &&String| sam.weights.get(name).is_some_and(|w| w.spec.kind == Kind::Linear);
        let names: Vec<&String> = self.chosen().map(|(name, _)| name).filter(matrix).collect();
        if names.is_empty() {
            return None;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        // A stream of its own, as those of selection, order and augmentation are.
        rng.set_stream((5 << 61) + step as u64);
        let name = names[rng.random_range(0..names.len())];
        Some((name.clone(), (penalty.gradient)(&self.entries(sam, name)?)))
    }

    /// Which chosen entries train on from half-way, 1, and which stay, 0; `None` when the method asks for no change.
    pub fn half_way(&self, sam: &Sam) -> Option<Terms> {
        let decide = self.method.half_way()?;
        let chosen = self.chosen().filter_map(|(name, _)| Some((name, self.entries(sam, name)?)));
        let (names, entries): (Vec<&String>, Vec<Entries<'_>>) = chosen.unzip();
        Some(names.into_iter().cloned().zip(decide(&entries)).collect())
    }

    /// How what trains lies to its inputs from these pictures.
    pub fn alignment(&self, sam: &Sam, pixels: Tensor<4>) -> Vec<Alignment> {
        alignment::measure(sam, self.start, pixels)
    }

    fn chosen(&self) -> impl Iterator<Item = (&String, &Vec<u32>)> {
        self.plan.iter().filter_map(|(name, change)| match change {
            Change::Chosen(indices) | Change::Bypass(indices) => Some((name, indices)),
            Change::Frozen | Change::Dense | Change::Added(_) => None,
        })
    }

    fn entries<'b>(&'b self, sam: &'b Sam, name: &str) -> Option<Entries<'b>> {
        let (weight, start) = (sam.weights.get(name)?, self.start.get(name)?);
        let chosen = weight.chosen.as_ref()?;
        let now = to_vec(weight.value.clone().select(0, chosen.flat.clone()));
        Some(Entries { spec: &weight.spec, indices: &chosen.indices, start, now })
    }
}
