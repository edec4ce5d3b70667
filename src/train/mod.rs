//! The training loop, and the state that makes a stopped run end in the same bytes as one never stopped.

pub mod batch;
pub mod contrast;
pub mod loss;
pub mod pretrain;
pub mod schedule;
pub mod state;

use crate::error::{Error, Kind, Result};
use crate::model::Sam;
use crate::model::sam::{Cache, Embedding};
use crate::model::weights::to_vec;
use crate::predict::{logits_of, prompt_free_logits};
use crate::tune::course::Turn;
pub use crate::tune::optimizer::Algorithm;
use crate::tune::optimizer::{self, Optimizer};
pub use crate::tune::scaling::{BASE_WIDTH, EPSILON, Epsilon, LrScaling};
use batch::{Augment, Drawn, Sample, generator};
use burn::tensor::{Device, Tensor};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
pub use state::{State, Trained};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

/// How to train.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Passes over the samples, at most.
    pub epochs: usize,
    /// Samples a step.
    pub batch: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// What makes steps of gradients.
    pub optimizer: optimizer::Settings,
    /// Seed of order and augmentation.
    pub seed: u64,
    /// Whether pictures are varied.
    pub augment: Augment,
    /// Epochs without a better validation mDice after which training stops.
    pub patience: usize,
    /// Trains for this time instead: the schedule follows the clock, and the last epoch may be cut short.
    pub minutes: Option<f64>,
    /// Trains exactly this many steps instead: the last epoch may be cut short, and short epochs are not all validated.
    pub steps: Option<usize>,
    /// Steps between two saved states within an epoch.
    pub save_every: usize,
}

/// What validation found after an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Mean Dice over cases; 0 where undefined in every case.
    pub mdice: f64,
    /// Mean IoU over cases.
    pub miou: f64,
}

/// One line of history.csv.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Counted from 1.
    pub epoch: usize,
    /// Steps taken since the start.
    pub step: usize,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Mean loss of the epoch's steps.
    pub loss: f64,
    /// Validation.
    pub validation: Validation,
    /// Seconds since the start, stops not counted.
    pub seconds: f64,
}

/// What the loop asks of its surroundings.
pub trait Surroundings {
    /// Scores the validation cases with the network as it is.
    ///
    /// # Errors
    /// An unreadable case.
    fn validate(&mut self, sam: &Sam) -> Result<Validation>;

    /// Saves the state, atomically.
    ///
    /// # Errors
    /// A job error when it cannot be written.
    fn save(&mut self, state: &State) -> Result<()>;

    /// What a method adds to the gradient of one weight's chosen entries at a step; `kept` are those that train on.
    fn penalty(&mut self, sam: &Sam, step: usize, kept: Option<&Trained>) -> Option<(String, Vec<f32>)> {
        let _ = (sam, step, kept);
        None
    }

    /// Asked when half of the training is over, until it answers: what changes. The answer starts the optimizer anew.
    /// `losses` computes those of the samples, one by one, as they are and as the network is: a pass that the user may stop, and
    /// there is then no answer.
    fn half_way(&mut self, sam: &Sam, losses: &mut dyn Iterator<Item = Tensor<1>>) -> Option<Turn> {
        let _ = (sam, losses);
        None
    }

    /// Whether the user asked to stop.
    fn stopped(&self) -> bool;

    /// A step was taken: (steps, of, mean loss of the epoch so far).
    fn stepped(&mut self, step: usize, total: usize, loss: f64);

    /// An epoch is over; `best` says whether it is the best so far, `waited` for how many seconds since the last
    /// call no batch was ready.
    fn epoch(&mut self, row: &Epoch, best: bool, waited: f64);

    /// Where embeddings are kept, for an encoder whose blocks do not train.
    fn embeddings(&self) -> Option<Arc<Cache>> {
        None
    }
}

/// Batches made ahead by the thread that varies pictures.
const AHEAD: usize = 2;

/// Trains what is attached, from `state` on, and leaves the best validated values in the network.
///
/// # Errors
/// [`Kind::Diverged`] when the loss is not a number; [`Kind::Interrupted`] after the state was saved when the user
/// asked to stop; what the surroundings answer.
pub fn run(
    sam: &mut Sam,
    samples: &[Sample],
    options: &Options,
    mut state: State,
    around: &mut dyn Surroundings,
    device: &Device,
) -> Result<State> {
    let per_epoch = samples.len().div_ceil(options.batch);
    let total = options.steps.unwrap_or(per_epoch.saturating_mul(options.epochs));
    let done = |step: usize, seconds: f64| match options.minutes {
        Some(minutes) => seconds / (60.0 * minutes),
        None => step as f64 / total as f64,
    };
    let rate = |step: usize, seconds: f64| schedule::learning_rate(options.lr, done(step, seconds));
    let start = Instant::now();
    let before = state.seconds;
    let mut optimizer = Optimizer::new(options.optimizer, &sam.weights);
    state.attach(sam, &mut optimizer, device);
    // Pictures that are varied are never seen twice.
    let embeddings = around.embeddings().filter(|_| options.augment == Augment::Off);

    std::thread::scope(|scope| {
        let (to, batches) = sync_channel(AHEAD);
        let upcoming = upcoming(samples.len(), options, state.epoch, state.step_in_epoch);
        scope.spawn(move || {
            for (epoch, chosen) in upcoming {
                let drawn = batch::draw(samples, &chosen, options.augment, options.seed, epoch as u64);
                // The other end is gone when the training ended early.
                if to.send(drawn).is_err() {
                    return;
                }
            }
        });
        let mut waited = 0.0;
        while state.epoch < options.epochs && !state.finished(options) {
            let epoch = state.epoch;
            let first = epoch * per_epoch;
            // Of a run that was stopped after the epoch's last step, that step's rate is all that is left to know.
            let mut lr = rate((first + state.step_in_epoch).saturating_sub(1), state.seconds);
            for at in state.step_in_epoch..per_epoch.min(total - first) {
                let step = first + at;
                lr = rate(step, state.seconds);
                if state.kept.is_none() && done(step, state.seconds) >= 0.5 {
                    let turn = {
                        let draw = |i| batch::draw(samples, &[i], Augment::Off, options.seed, 0);
                        let mut losses = (0..samples.len()).map(|i| step_loss(sam, draw(i), None, device));
                        around.half_way(sam, &mut losses)
                    };
                    match turn {
                        Some(turn) => {
                            // Its moments are of entries that stay now: with them, these would glide on.
                            optimizer.restart();
                            state.turn(sam, turn, device);
                        }
                        // Before the next step: whoever goes on is asked again.
                        None if around.stopped() => return Err(stopped(state, sam, &optimizer, around)),
                        None => {}
                    }
                }
                let asked = Instant::now();
                let Ok(drawn) = batches.recv() else {
                    return Err(Error::job("the thread that makes batches has ended"));
                };
                waited += asked.elapsed().as_secs_f64();
                let loss = step_loss(sam, drawn, embeddings.as_deref(), device);
                let value = f64::from(to_vec(loss.clone())[0]);
                if !value.is_finite() {
                    let message = format!("the loss is {value} at step {} of epoch {}", at + 1, epoch + 1);
                    return Err(Error::new(Kind::Diverged, message)
                        .hint("lower --lr, or look for broken pictures with `segft data check`"));
                }
                let mut gradients = loss.backward();
                let penalty = around.penalty(sam, step, state.kept.as_ref());
                let tensor = |v: &Vec<f32>| Tensor::<1>::from_floats(v.as_slice(), device);
                let kept = |name: &str| state.kept.as_ref().and_then(|kept| kept.get(name)).map(tensor);
                let adjust = |name: &str, gradient: Tensor<1>| {
                    let gradient = match penalty.as_ref().filter(|(of, _)| of == name) {
                        Some((_, term)) => gradient + tensor(term),
                        None => gradient,
                    };
                    match kept(name) {
                        Some(kept) => gradient * kept,
                        None => gradient,
                    }
                };
                optimizer.step_with(&mut sam.weights, &mut gradients, lr, adjust, kept);
                state.loss_sum += value;
                state.step_in_epoch = at + 1;
                state.seconds = before + start.elapsed().as_secs_f64();
                around.stepped(step + 1, total, state.loss_sum / (at + 1) as f64);
                if around.stopped() {
                    return Err(stopped(state, sam, &optimizer, around));
                }
                if (step + 1).is_multiple_of(options.save_every) {
                    state.detach(sam, &optimizer);
                    around.save(&state)?;
                }
                if options.minutes.is_some_and(|m| state.seconds >= 60.0 * m) {
                    break;
                }
            }
            let step = first + state.step_in_epoch;
            if !state.is_due(step, options) {
                state.end_epoch_unseen();
                continue;
            }
            let validation = around.validate(sam)?;
            state.seconds = before + start.elapsed().as_secs_f64();
            let loss = state.loss_sum / state.step_in_epoch.max(1) as f64;
            let row = Epoch { epoch: epoch + 1, step, lr, loss, validation, seconds: state.seconds };
            state.detach(sam, &optimizer);
            let best = state.end_epoch(row.clone());
            around.epoch(&row, best, std::mem::take(&mut waited));
            around.save(&state)?;
        }
        state.put_best(sam, device);
        Ok(state)
    })
}

/// Saves where a training stands when the user asked to stop, and says so; or why it could not.
fn stopped(mut state: State, sam: &Sam, optimizer: &Optimizer, around: &mut dyn Surroundings) -> Error {
    state.detach(sam, optimizer);
    match around.save(&state) {
        Ok(()) => Error::new(Kind::Interrupted, "stopped, the state is saved"),
        Err(error) => error,
    }
}

/// Takes the first step of a training twice, and tells the seconds of each: the first time, threads start and embeddings
/// are computed. What is attached moves.
pub fn probe(
    sam: &mut Sam,
    samples: &[Sample],
    options: &Options,
    embeddings: Option<&Cache>,
    device: &Device,
) -> [f64; 2] {
    let mut optimizer = Optimizer::new(options.optimizer, &sam.weights);
    let embeddings = embeddings.filter(|_| options.augment == Augment::Off);
    let chosen = order(samples.len(), options.seed, 0);
    [(); 2].map(|()| {
        let start = Instant::now();
        let chosen = &chosen[..options.batch.min(samples.len())];
        let drawn = batch::draw(samples, chosen, options.augment, options.seed, 0);
        let mut gradients = step_loss(sam, drawn, embeddings, device).backward();
        optimizer.step(&mut sam.weights, &mut gradients, options.lr);
        start.elapsed().as_secs_f64()
    })
}

/// The loss of one batch; where the encoder's blocks are frozen pictures are embedded one by one, and each passes through
/// them once.
fn step_loss(sam: &Sam, drawn: Drawn, embeddings: Option<&Cache>, device: &Device) -> Tensor<1> {
    let size = drawn.size;
    let embedding = embeddings.map(|cache| {
        let pictures = drawn.pixels.chunks_exact(3 * size * size);
        Embedding::cat(pictures.map(|pixels| cache.embed(sam, pixels, device)).collect())
    });
    let batch = drawn.on(device);
    let logits = match embedding {
        Some(embedding) => logits_of(sam, embedding, size),
        None => prompt_free_logits(sam, batch.pixels),
    };
    loss::loss(logits, batch.target, batch.valid).total()
}

/// The samples of every step from one on, and its epoch.
fn upcoming(samples: usize, options: &Options, epoch: usize, step: usize) -> impl Iterator<Item = (usize, Vec<usize>)> {
    let (size, seed) = (options.batch, options.seed);
    let per_epoch = samples.div_ceil(size);
    let total = options.steps.unwrap_or(per_epoch.saturating_mul(options.epochs));
    (epoch..options.epochs).take_while(move |e| e * per_epoch < total).flat_map(move |e| {
        let skipped = if e == epoch { step } else { 0 };
        let order = order(samples, seed, e);
        let steps: Vec<Vec<usize>> = order.chunks(size).take(total - e * per_epoch).map(<[usize]>::to_vec).collect();
        steps.into_iter().skip(skipped).map(move |chosen| (e, chosen))
    })
}

/// The order of an epoch's samples: drawn from the seed and the epoch alone.
fn order(samples: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..samples).collect();
    order.shuffle(&mut generator(seed, (1 << 63) + epoch as u64));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_ahead_is_what_the_steps_ask_for() {
        let options = |steps| Options {
            epochs: 3,
            batch: 4,
            lr: 1e-3,
            optimizer: optimizer::Settings::default(),
            seed: 2,
            augment: Augment::Off,
            patience: 9,
            minutes: None,
            steps,
            save_every: 9,
        };
        // 10 samples in batches of 4: three steps an epoch, the last of two samples.
        let all: Vec<_> = upcoming(10, &options(None), 0, 0).collect();
        assert_eq!(
            all.iter().map(|(epoch, chosen)| (*epoch, chosen.len())).collect::<Vec<_>>()[2..4],
            [(0, 2), (1, 4)]
        );
        assert_eq!(all.len(), 9);
        assert_eq!(all[3..6].iter().flat_map(|(_, chosen)| chosen.clone()).collect::<Vec<_>>(), order(10, 2, 1));
        // Resumed after the first step of the second epoch; cut short by counted steps.
        assert_eq!(upcoming(10, &options(None), 1, 1).collect::<Vec<_>>(), all[4..]);
        assert_eq!(
            upcoming(10, &Options { epochs: usize::MAX, ..options(Some(5)) }, 0, 0).collect::<Vec<_>>(),
            all[..5]
        );
    }

    #[test]
    fn every_sample_once_an_epoch_in_a_new_order() {
        let (first, second) = (order(50, 1, 0), order(50, 1, 1));
        assert_ne!(first, second);
        assert_eq!(first, order(50, 1, 0));
        let mut sorted = first;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }
}
