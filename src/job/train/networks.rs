//! Several networks over one backbone (LAST, arXiv 2402.04009): each has a side network and a decoder of its own, the
//! encoder's blocks are the same.
//!
//! One is trained after the other, with the same batches, and all are given what the blocks handed on the first time
//! (`model/sam/cache.rs`): as far as that is kept, the blocks see each picture once, however many networks there are. What
//! does not fit is computed again for each. Only the best network so far waits while the next trains.

use super::around::write_history;
use super::{Job, Validated, saved};
use crate::error::Result;
use crate::method::{self, Plan, Settings, Tuning};
use crate::model::Sam;
use crate::train::batch::Sample;
use crate::train::{Options, State};
use crate::tune::attach;
use crate::tune::course::Terms;
use serde_json::{Value, json};

/// What all networks of a run are trained with.
pub(super) struct Training<'a> {
    pub(super) method: &'a dyn Tuning,
    pub(super) samples: &'a [Sample],
    pub(super) validation: &'a Validated<'a>,
    /// Values of the base, as [`crate::tune::patch::capture`] gives them.
    pub(super) old: &'a Terms,
    pub(super) options: &'a Options,
}

/// A network that trains or was trained.
pub(super) struct Candidate {
    /// What it started from.
    pub(super) settings: Settings,
    pub(super) plan: Plan,
    pub(super) sam: Sam,
    pub(super) state: State,
    /// How many seconds its training was to take, once that is known.
    pub(super) forecast: Option<f64>,
}

impl Candidate {
    /// With its plan attached.
    pub(super) fn new(settings: Settings, plan: Plan, sam: Sam, state: State) -> Candidate {
        Candidate { settings, plan, sam, state, forecast: None }
    }

    /// Its best validation mDice.
    fn mdice(&self) -> f64 {
        self.state.best_mdice().unwrap_or(0.0)
    }

    /// What run.json says of it.
    fn told(&self) -> Value {
        json!({
            "seed": self.settings.seed,
            "epochs": self.state.epoch,
            "best_epoch": self.state.best.as_ref().map(|(epoch, _)| epoch),
            "validation_mDice": self.state.best_mdice(),
            "seconds": self.state.seconds,
        })
    }
}

impl Job<'_> {
    /// Trains the others, from seeds that follow the first one's, and keeps the best on validation, the first of equals;
    /// `fresh` is the network with nothing attached. With it comes what run.json says of each.
    ///
    /// # Errors
    /// As a training's.
    pub(super) fn best_of(
        &self,
        first: Candidate,
        fresh: &Sam,
        training: &Training<'_>,
    ) -> Result<(Candidate, Vec<Value>)> {
        let (n, device) = (self.config.networks, &self.device.device);
        let (mut kept, mut told) = (0, vec![first.told()]);
        let mut best = first;
        for network in 1..n {
            let seed = self.config.seed.wrapping_add(network as u64);
            let settings = Settings { seed, ..self.config.settings() };
            let plan = method::plan(training.method, &fresh.config.specs(), None, &settings);
            let mut sam = Sam { activations: best.sam.activations, ..fresh.clone() };
            attach(&mut sam, &plan, device);
            sam.weights.compute_in(self.config.dtype);
            let one = Candidate::new(settings, plan, sam, saved(&self.run, network)?);
            let one = self.train(one, training, network)?;
            told.push(one.told());
            if one.mdice() > best.mdice() {
                (kept, best) = (network, one);
            }
        }
        told.iter_mut().enumerate().for_each(|(network, told)| told["kept"] = json!(network == kept));
        // The last one's stands there.
        write_history(&self.run, &best.state.history)?;
        self.progress.line(format!("network      {} of {n} is kept: validation mDice {:.4}", kept + 1, best.mdice()));
        Ok((best, told))
    }
}
