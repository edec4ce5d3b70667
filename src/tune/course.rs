//! What a method asks of the loop while entries train: a term in their gradient, and fewer of them half-way.

use super::alignment::{self, Alignment};
use crate::method::{Change, Entries, HalfWay, Plan, Prune, Slope, Tuning};
use crate::model::weights::to_vec;
use crate::model::{Kind, Sam, WeightSpec};
use burn::tensor::Tensor;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// Values by weight, one for each of its chosen entries.
pub type Terms = BTreeMap<String, Vec<f32>>;

/// What changes half-way.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Of the trained values of these weights, those that train on, 1, and those that stay, 0.
    pub kept: Terms,
    /// Trained values with which training begins again; `None` when it goes on.
    pub rewound: Option<Terms>,
}

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

    /// What is added to the gradient of chosen entries at a step, drawn from the seed and the step alone. After a turn the
    /// term is of the entries that are kept, and 0 for the others.
    pub fn penalty(&self, sam: &Sam, step: usize, kept: Option<&Terms>) -> Option<(String, Vec<f32>)> {
        let penalty = self.method.penalty().filter(|penalty| step.is_multiple_of(penalty.every))?;
        let kept = |name: &str| kept.and_then(|kept| kept.get(name));
        let matrix = |name: &&String| {
            let trains = kept(name).is_none_or(|kept| kept.iter().any(|k| *k > 0.0));
            trains && sam.weights.get(name).is_some_and(|w| w.spec.kind == Kind::Linear)
        };
        let names: Vec<&String> = self.chosen().map(|(name, _)| name).filter(matrix).collect();
        if names.is_empty() {
            return None;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        // A stream of its own, as those of selection, order and augmentation are.
        rng.set_stream((5 << 61) + step as u64);
        let name = names[rng.random_range(0..names.len())];
        let entries = self.entries(sam, name)?;
        let Some(kept) = kept(name) else { return Some((name.clone(), (penalty.gradient)(&entries))) };
        let on: Vec<usize> = (0..kept.len()).filter(|i| kept[*i] > 0.0).collect();
        let indices: Vec<u32> = on.iter().map(|i| entries.indices[*i]).collect();
        let start: Vec<f32> = on.iter().map(|i| entries.start[*i]).collect();
        let now = on.iter().map(|i| entries.now[*i]).collect();
        let slope = (penalty.gradient)(&Entries { indices: &indices, start: &start, now, ..entries });
        let mut term = vec![0.0; kept.len()];
        on.into_iter().zip(slope).for_each(|(i, slope)| term[i] = slope);
        Some((name.clone(), term))
    }

    /// What changes half-way; `None` when the method asks for no change. `losses` are those of the training cases, one by
    /// one, as `sam` is; they are taken only where gradients are needed.
    pub fn half_way(&self, sam: &Sam, losses: &mut dyn Iterator<Item = Tensor<1>>) -> Option<Turn> {
        match self.method.half_way()? {
            HalfWay::Keep(keep) => {
                let chosen = self.chosen().filter_map(|(name, _)| Some((name, self.entries(sam, name)?)));
                let (names, entries): (Vec<&String>, Vec<Entries<'_>>) = chosen.unzip();
                let kept = names.into_iter().cloned().zip(keep(&entries)).collect();
                Some(Turn { kept, rewound: None })
            }
            HalfWay::Prune(prune) => Some(self.prune(sam, prune, losses)),
        }
    }

    fn prune(&self, sam: &Sam, prune: Prune, losses: &mut dyn Iterator<Item = Tensor<1>>) -> Turn {
        let added = || {
            self.plan.iter().filter_map(|(name, change)| match change {
                Change::Added(added) => Some((added, sam.weights.get(name)?)),
                _ => None,
            })
        };
        let (mut sums, mut cases) = (Vec::<f64>::new(), 0);
        for loss in losses {
            let mut gradients = loss.backward();
            let slopes = added().map(|(added, weight)| {
                let gradient = weight.value.grad_remove(&mut gradients).map(to_vec);
                let gradient = gradient.unwrap_or_else(|| vec![0.0; added.spec.len()]);
                Slope { spec: &added.spec, now: to_vec(weight.value.clone()), gradient }
            });
            let slopes = (prune.slopes)(&slopes.collect::<Vec<_>>());
            sums.resize(slopes.len(), 0.0);
            sums.iter_mut().zip(slopes).for_each(|(sum, slope)| *sum += f64::from(slope.abs()));
            cases += 1;
        }
        let importance: Vec<f32> = sums.iter().map(|sum| (sum / f64::from(cases.max(1))) as f32).collect();
        let specs: Vec<&WeightSpec> = added().map(|(added, _)| &added.spec).collect();
        let kept: Terms = specs.iter().map(|spec| spec.name.clone()).zip((prune.keep)(&specs, &importance)).collect();
        let begun = added().map(|(added, _)| (added.spec.name.clone(), added.start.clone()));
        let mut rewound: Terms = self.start.clone().into_iter().chain(begun).collect();
        for (name, kept) in &kept {
            if let Some(values) = rewound.get_mut(name) {
                values.iter_mut().zip(kept).for_each(|(value, kept)| *value *= kept);
            }
        }
        Turn { kept, rewound: Some(rewound) }
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
