//! What a run needs to go on: trained values, moments, the best values so far, and where it stands.

use super::{Epoch, Options};
use crate::error::{Error, Result};
use crate::io::safetensors::{Reader, Values, write};
use crate::model::Sam;
use crate::model::weights::to_vec;
use crate::tune::course::Turn;
use crate::tune::optimizer::Optimizer;
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Trained values by official name: those chosen, or all of a weight trained as a whole.
pub type Trained = BTreeMap<String, Vec<f32>>;

/// The state of a run between two steps. A pretraining is one long epoch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// Steps taken in the current epoch.
    pub step_in_epoch: usize,
    /// Sum of the losses of the current epoch.
    pub loss_sum: f64,
    /// Finished epochs.
    pub epoch: usize,
    /// Those of them that were validated: all, unless steps are counted.
    pub history: Vec<Epoch>,
    /// Seconds of work so far.
    pub seconds: f64,
    /// The epoch with the best validation mDice (the first of equals) and its values.
    pub best: Option<(usize, Trained)>,
    /// Of trained values, those that train on from half-way, 1, and those that stay, 0; `None` before, and where all do.
    pub kept: Option<Trained>,
    values: Trained,
    moments: BTreeMap<String, Vec<Vec<f32>>>,
    optimizer_steps: u32,
}

/// What an optimizer's moments are called, in their order.
const MOMENTS: [&str; 2] = ["first", "second"];

/// The part of the state that is not tensors.
#[derive(Serialize, Deserialize)]
struct Notes {
    step_in_epoch: usize,
    loss_sum: f64,
    /// Left out in states from before steps were counted, where every epoch stands in the history.
    #[serde(default)]
    epoch: usize,
    history: Vec<Epoch>,
    seconds: f64,
    best: Option<usize>,
    /// Of any optimizer.
    adam_steps: u32,
}

impl State {
    /// The best validation mDice so far.
    pub fn best_mdice(&self) -> Option<f64> {
        let (best, _) = self.best.as_ref()?;
        self.history.iter().find(|row| row.epoch == *best).map(|row| row.validation.mdice)
    }

    /// Whether patience, time or the steps have run out.
    pub(super) fn finished(&self, options: &Options) -> bool {
        let best = self.best.as_ref().map(|(epoch, _)| *epoch).unwrap_or(0);
        let waited = self.step_in_epoch == 0 && self.history.len().saturating_sub(best) >= options.patience;
        let late = options.minutes.is_some_and(|m| self.step_in_epoch == 0 && self.seconds >= 60.0 * m);
        let counted = options.steps.is_some_and(|n| self.history.last().is_some_and(|row| row.step >= n));
        waited || late || counted
    }

    /// Whether an epoch that ends with this step is validated: with counted steps, the last one, and those that lie a
    /// tenth of the training behind the one before.
    pub(super) fn is_due(&self, step: usize, options: &Options) -> bool {
        let before = self.history.last().map(|row| row.step).unwrap_or(0);
        options.steps.is_none_or(|n| step >= n || step - before >= (n / 10).max(1))
    }

    /// Puts the state's values and moments into the network and the optimizer.
    pub(super) fn attach(&self, sam: &mut Sam, optimizer: &mut Optimizer, device: &Device) {
        put(sam, &self.values, device);
        optimizer.restore(self.optimizer_steps, self.moments.clone(), device);
    }

    /// Half-way: what trains on, and values to begin again with. What was best before them was another network's.
    pub(super) fn turn(&mut self, sam: &mut Sam, turn: Turn, device: &Device) {
        self.kept = Some(turn.kept);
        if let Some(values) = turn.rewound {
            put(sam, &values, device);
            self.best = None;
        }
    }

    /// Takes values and moments out.
    pub(super) fn detach(&mut self, sam: &Sam, optimizer: &Optimizer) {
        self.values = take(sam);
        self.moments = optimizer.to_host();
        self.optimizer_steps = optimizer.steps;
    }

    /// Closes an epoch; the answer says whether it is the best.
    pub(super) fn end_epoch(&mut self, row: Epoch) -> bool {
        let better = self.best_mdice().is_none_or(|best| row.validation.mdice > best);
        if better {
            self.best = Some((row.epoch, self.values.clone()));
        }
        self.history.push(row);
        self.end_epoch_unseen();
        better
    }

    /// Closes an epoch that is not validated.
    pub(super) fn end_epoch_unseen(&mut self) {
        self.epoch += 1;
        (self.step_in_epoch, self.loss_sum) = (0, 0.0);
    }

    /// Puts the best values into the network.
    pub(super) fn put_best(&self, sam: &mut Sam, device: &Device) {
        if let Some((_, values)) = &self.best {
            put(sam, values, device);
        }
    }

    /// Writes the state.
    ///
    /// # Errors
    /// A job error when it cannot be written; the last state is then untouched.
    pub fn save(&self, path: &Path) -> Result<()> {
        let notes = Notes {
            step_in_epoch: self.step_in_epoch,
            loss_sum: self.loss_sum,
            epoch: self.epoch,
            history: self.history.clone(),
            seconds: self.seconds,
            best: self.best.as_ref().map(|(epoch, _)| *epoch),
            adam_steps: self.optimizer_steps,
        };
        let notes = serde_json::to_string(&notes).map_err(|e| Error::job(format!("state: {e}")))?;
        let notes = BTreeMap::from([("kind".into(), "state".into()), ("state".into(), notes)]);
        let mut tensors = BTreeMap::new();
        let moments =
            self.moments.iter().flat_map(|(name, own)| MOMENTS.iter().zip(own).map(move |(p, v)| (*p, name, v)));
        let values = self.values.iter().map(|(name, v)| ("value", name, v));
        let best = self.best.iter().flat_map(|(_, best)| best).map(|(name, v)| ("best", name, v));
        let kept = self.kept.iter().flatten().map(|(name, v)| ("kept", name, v));
        for (part, name, v) in values.chain(best).chain(kept).chain(moments) {
            tensors.insert(format!("{part}/{name}"), (vec![v.len()], Values::F32(v)));
        }
        write(path, &notes, &tensors)
    }

    /// Reads a state.
    ///
    /// # Errors
    /// A weights error when the file is damaged.
    pub fn load(path: &Path) -> Result<State> {
        let mut reader = Reader::open(path)?;
        let notes = reader.notes().remove("state").unwrap_or_default();
        let notes: Notes =
            serde_json::from_str(&notes).map_err(|e| Error::weights(format!("run state: {e}")).at(path))?;
        let mut parts: BTreeMap<&str, Trained> = BTreeMap::new();
        for full in reader.entries().into_keys().collect::<Vec<_>>() {
            if let Some((part, name)) = full.split_once('/') {
                let part = ["value", "best", "kept"].into_iter().chain(MOMENTS).find(|p| *p == part);
                let part = part.ok_or_else(|| Error::weights(format!("run state: unknown part `{full}`")).at(path))?;
                parts.entry(part).or_default().insert(name.to_string(), reader.floats(&full)?);
            }
        }
        let kept = parts.remove("kept");
        let mut part = |name| parts.remove(name).unwrap_or_default();
        let mut moments: BTreeMap<String, Vec<Vec<f32>>> = BTreeMap::new();
        for (name, values) in MOMENTS.into_iter().flat_map(&mut part) {
            moments.entry(name).or_default().push(values);
        }
        Ok(State {
            moments,
            step_in_epoch: notes.step_in_epoch,
            loss_sum: notes.loss_sum,
            epoch: notes.epoch.max(notes.history.len()),
            history: notes.history,
            seconds: notes.seconds,
            best: notes.best.map(|epoch| (epoch, part("best"))),
            kept,
            values: part("value"),
            optimizer_steps: notes.adam_steps,
        })
    }
}

/// Trained values of the network.
fn take(sam: &Sam) -> Trained {
    let trained = sam.weights.iter().filter(|(_, w)| w.trained() > 0);
    let values = trained.map(|(name, w)| match &w.chosen {
        Some(chosen) => (name.clone(), to_vec(chosen.values.clone())),
        None => (name.clone(), to_vec(w.value.clone())),
    });
    values.collect()
}

/// Puts trained values back.
fn put(sam: &mut Sam, values: &Trained, device: &Device) {
    for (name, data) in values {
        let Some(weight) = sam.weights.get_mut(name) else { continue };
        let tensor = Tensor::<1>::from_data(TensorData::new(data.clone(), [data.len()]), device);
        if weight.chosen.is_some() {
            weight.set_chosen(tensor);
        } else {
            weight.value = tensor.autodiff().require_grad();
        }
    }
}
