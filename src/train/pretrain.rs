//! Promptable pretraining, as SAM's (Kirillov et al., arXiv 2304.02643, section 3 and appendix A), in small: every step
//! asks for all objects without a prompt and for one object with a prompt, and half of the time once more with the first
//! answer and a corrective point.
//!
//! A point is ambiguous: three masks answer it and the best one is trained. The IoU head learns how good each mask is.
//! What a step sees is drawn from the seed and the step's number alone, so a resumed pretraining needs no saved
//! generator.

use super::batch::{Augment, Sample, generator};
use super::schedule;
use super::state::State;
use crate::error::{Error, Result};
use crate::image::{Fit, Resize};
use crate::model::Sam;
use crate::model::sam::{Decoded, Embedding, Masks, PointLabel, Prompt};
use crate::model::weights::to_vec;
use crate::phantom::world;
use crate::tune::optimizer::Optimizer;
use burn::tensor::{Device, Tensor, TensorData, activation};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

/// Pictures with one object each, and how often one is drawn.
#[derive(Debug)]
pub struct Pool {
    /// Part of the pictures that come from here, 0..1.
    pub share: f64,
    /// Decoded once; varied whenever they are drawn.
    pub samples: Vec<Sample>,
}

/// A stretch of the pretraining with its own data and schedule.
#[derive(Debug)]
pub struct Stage {
    /// Steps.
    pub steps: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Side of the square in pixels: smaller squares teach the same for less.
    pub size: usize,
    /// Where pictures come from; the generated world gives the rest.
    pub pools: Vec<Pool>,
}

/// How to pretrain.
#[derive(Debug)]
pub struct Options {
    /// One after the other; moments are kept, the learning rate starts anew.
    pub stages: Vec<Stage>,
    /// Pictures a step.
    pub batch: usize,
    /// Of everything random.
    pub seed: u64,
    /// Steps between two saved states.
    pub save_every: usize,
}

/// Means over the steps since the last report.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Means {
    /// Loss of all parts.
    pub loss: f64,
    /// IoU of the masks without a prompt.
    pub free: f64,
    /// IoU of the masks with a box.
    pub boxed: f64,
    /// IoU of the best of three masks for one point.
    pub pointed: f64,
}

/// What the loop asks of its surroundings.
pub trait Surroundings {
    /// Steps were taken: (steps, of, means since the last call).
    fn stepped(&mut self, step: usize, total: usize, means: &Means);

    /// Saves the state, atomically.
    ///
    /// # Errors
    /// A job error when it cannot be written.
    fn save(&mut self, state: &State) -> Result<()>;

    /// A stage is over.
    ///
    /// # Errors
    /// A job error when the weights cannot be written.
    fn stage(&mut self, number: usize, sam: &Sam) -> Result<()>;

    /// Whether the user asked to stop.
    fn stopped(&self) -> bool;
}

/// Steps between two reports.
const REPORT: usize = 50;
/// Batches made ahead by the thread that draws pictures.
const AHEAD: usize = 2;
/// Part of the steps whose prompt is one point; the others have a box.
const POINTS: f32 = 0.55;
/// Part of the steps that ask a second time.
const SECOND: f32 = 0.5;
/// A box misses its object's sides by at most this part of them.
const JITTER: f32 = 0.1;

/// Pretrains every weight, from `state` on.
///
/// # Errors
/// A job error when the loss is not a number; [`crate::error::Kind::Interrupted`] after the state was saved when the
/// user asked to stop; what the surroundings answer.
pub fn run(
    sam: &mut Sam,
    options: &Options,
    mut state: State,
    around: &mut dyn Surroundings,
    device: &Device,
) -> Result<()> {
    for (_, weight) in sam.weights.iter_mut().filter(|(_, w)| w.spec.kind != crate::model::Kind::Buffer) {
        weight.train_all();
    }
    let mut adam = Optimizer::adam(1e-8);
    state.attach(sam, &mut adam, device);
    let total: usize = options.stages.iter().map(|s| s.steps).sum();
    let (start, before, first) = (Instant::now(), state.seconds, state.step_in_epoch);
    let stride = mask_stride(sam);
    std::thread::scope(|scope| {
        let (to, batches) = sync_channel(AHEAD);
        scope.spawn(move || {
            for step in first..total {
                // The other end is gone when the training ended early.
                if to.send(Drawn::new(options, step, stride)).is_err() {
                    return;
                }
            }
        });
        let mut tally = Tally::default();
        for (step, drawn) in (first..total).zip(batches.iter()) {
            let (number, within) = stage_of(&options.stages, step);
            let stage = &options.stages[number];
            let lr = schedule::learning_rate(stage.lr, within as f64 / stage.steps as f64);
            let loss = drawn.loss(sam, &mut tally, device);
            let value = f64::from(to_vec(loss.clone())[0]);
            if !value.is_finite() {
                return Err(
                    Error::job(format!("the loss is {value} at step {}", step + 1)).hint("lower the stage's lr")
                );
            }
            let mut gradients = loss.backward();
            adam.step(&mut sam.weights, &mut gradients, lr);
            tally.add_loss(value);
            state.step_in_epoch = step + 1;
            state.seconds = before + start.elapsed().as_secs_f64();
            if (step + 1) % REPORT == 0 || step + 1 == total {
                around.stepped(step + 1, total, &std::mem::take(&mut tally).means());
            }
            let (stop, over) = (around.stopped(), within + 1 == stage.steps);
            if over {
                around.stage(number, sam)?;
            }
            if stop || over || (step + 1) % options.save_every == 0 {
                state.detach(sam, &adam);
                around.save(&state)?;
            }
            if stop {
                return Err(Error::new(crate::error::Kind::Interrupted, "stopped, the state is saved")
                    .hint("go on with `segft pretrain --resume`"));
            }
        }
        Ok(())
    })
}

/// The stage of a step, and the step's number within it.
fn stage_of(stages: &[Stage], mut step: usize) -> (usize, usize) {
    for (number, stage) in stages.iter().enumerate() {
        if step < stage.steps {
            return (number, step);
        }
        step -= stage.steps;
    }
    (stages.len() - 1, step)
}

/// A picture and its numbered objects at the network's size.
struct Example {
    /// Normalised and padded.
    pixels: Vec<f32>,
    objects: Vec<u8>,
    count: u8,
}

/// Tries until a picture has an object: one turned out of sight is drawn again.
const TRIES: u64 = 8;

impl Example {
    fn draw(stage: &Stage, seed: u64, number: u64) -> Example {
        let size = stage.size;
        let mut rng = generator(seed, (1 << 62) + number);
        let mut ticket = rng.random::<f64>();
        for pool in &stage.pools {
            if ticket < pool.share && !pool.samples.is_empty() {
                let sample = &pool.samples[rng.random_range(0..pool.samples.len())];
                for attempt in 0..TRIES {
                    let (rgb, objects) = sample.varied(Augment::Strong, seed, attempt, number);
                    if attempt + 1 == TRIES || objects.iter().any(|o| *o != 0) {
                        return Example { pixels: sample.fit.normalised(&rgb), objects, count: 1 };
                    }
                }
            }
            ticket -= pool.share;
        }
        let mut scenes = (0..TRIES).map(|attempt| world::scene(seed, number + (attempt << 40), size));
        let scene = scenes.find(|scene| scene.count > 0).unwrap_or_else(|| world::scene(seed, number, size));
        let fit = Fit::new(size, size, size, Resize::Square);
        Example { pixels: fit.normalised(&scene.picture.rgb), objects: scene.objects, count: scene.count }
    }

    /// One object; large ones are picked more often, by the root of their areas.
    fn pick(&self, rng: &mut ChaCha8Rng) -> Vec<bool> {
        let mut areas = [0u32; 256];
        self.objects.iter().for_each(|o| areas[usize::from(*o)] += 1);
        let roots = areas[1..=usize::from(self.count)].iter().map(|a| f64::from(*a).sqrt());
        let mut ticket = rng.random::<f64>() * roots.clone().sum::<f64>();
        let picked = roots.map(|root| {
            ticket -= root;
            ticket < 0.0
        });
        let wanted = 1 + picked.collect::<Vec<_>>().iter().position(|p| *p).unwrap_or(0) as u8;
        self.objects.iter().map(|o| *o == wanted).collect()
    }
}

/// What one step sees, in main memory.
struct Drawn {
    size: usize,
    /// Pixels of the picture along a side of a mask's pixel.
    stride: usize,
    pixels: Vec<f32>,
    /// All objects, and the one prompted for, as the part of each mask pixel they cover.
    all: Vec<f32>,
    one: Vec<f32>,
    prompts: Vec<Prompt>,
    second: bool,
    rng: ChaCha8Rng,
}

impl Drawn {
    fn new(options: &Options, step: usize, stride: usize) -> Drawn {
        let stage = &options.stages[stage_of(&options.stages, step).0];
        let size = stage.size;
        let mut rng = generator(options.seed, (1 << 61) + step as u64);
        let examples: Vec<Example> = (0..options.batch)
            .into_par_iter()
            .map(|i| Example::draw(stage, options.seed, (step * options.batch + i) as u64))
            .collect();
        let pointed = rng.random::<f32>() < POINTS;
        let second = rng.random::<f32>() < SECOND;
        let mut drawn =
            Drawn { size, stride, pixels: vec![], all: vec![], one: vec![], prompts: vec![], second, rng: rng.clone() };
        for example in &examples {
            let one = example.pick(&mut rng);
            drawn.pixels.extend(&example.pixels);
            drawn.all.extend(covered(&example.objects.iter().map(|o| *o != 0).collect::<Vec<_>>(), size, stride));
            drawn.one.extend(covered(&one, size, stride));
            drawn.prompts.push(if pointed { point(&one, size, &mut rng) } else { bounds(&one, size, &mut rng) });
        }
        drawn.rng = rng;
        drawn
    }

    fn loss(mut self, sam: &Sam, tally: &mut Tally, device: &Device) -> Tensor<1> {
        let (batch, side) = (self.prompts.len(), self.size / self.stride);
        let tensor = |data: Vec<f32>, channels: usize, side: usize| {
            Tensor::<4>::from_data(TensorData::new(data, [batch, channels, side, side]), device)
        };
        let embedding = sam.embed(tensor(std::mem::take(&mut self.pixels), 3, self.size));
        let (all, one) = (Goal::new(self.all, side, device), Goal::new(self.one, side, device));

        let free = sam.decode(embedding.clone(), &vec![Prompt::default(); batch], None, Masks::Single);
        let (mut loss, iou, _) = all.judge(&free);
        tally.free.extend(iou);

        let pointed = self.prompts[0].bounds.is_none();
        let masks = if pointed { Masks::Multi } else { Masks::Single };
        let first = sam.decode(embedding.clone(), &self.prompts, None, masks);
        let (first_loss, iou, logits) = one.judge(&first);
        loss = loss + first_loss;
        if pointed {
            tally.pointed.extend(iou)
        } else {
            tally.boxed.extend(iou)
        }
        if self.second {
            loss = loss + second(sam, embedding, self.prompts, &one, logits, &mut self.rng, device);
        }
        loss
    }
}

/// Asks again, with the first answer as a mask and a point where it is wrong.
fn second(
    sam: &Sam,
    embedding: Embedding,
    mut prompts: Vec<Prompt>,
    goal: &Goal,
    logits: Vec<f32>,
    rng: &mut ChaCha8Rng,
    device: &Device,
) -> Tensor<1> {
    let (batch, side, stride) = (prompts.len(), goal.side, mask_stride(sam));
    for (n, prompt) in prompts.iter_mut().enumerate() {
        let at = n * side * side..(n + 1) * side * side;
        let (logits, goal) = (&logits[at.clone()], &goal.host[at]);
        let wrong: Vec<usize> = (0..side * side).filter(|i| (logits[*i] > 0.0) != (goal[*i] > 0.5)).collect();
        let place =
            if wrong.is_empty() { rng.random_range(0..side * side) } else { wrong[rng.random_range(0..wrong.len())] };
        let label = if goal[place] > 0.5 { PointLabel::Inside } else { PointLabel::Outside };
        let middle = |n: usize| (n as f32 + 0.5) * stride as f32 - 0.5;
        prompt.points.push((middle(place % side), middle(place / side), label));
    }
    let earlier = Tensor::<4>::from_data(TensorData::new(logits, [batch, 1, side, side]), device);
    let decoded = sam.decode(embedding, &prompts, Some(earlier), Masks::Single);
    goal.judge(&decoded).0
}

/// Pixels of the picture along a side of a mask's pixel: masks have four of those along a patch.
fn mask_stride(sam: &Sam) -> usize {
    sam.config.patch / 4
}

/// The part of each mask pixel that is covered; a mask pixel is `stride` pixels of the picture wide.
fn covered(mask: &[bool], size: usize, stride: usize) -> Vec<f32> {
    let side = size / stride;
    let mut sums = vec![0f32; side * side];
    for (row, y) in mask.chunks_exact(size).zip(0..side * stride) {
        let sums = &mut sums[y / stride * side..][..side];
        for (sum, pixels) in sums.iter_mut().zip(row.chunks_exact(stride)) {
            *sum += pixels.iter().filter(|p| **p).count() as f32;
        }
    }
    sums.iter_mut().for_each(|s| *s /= (stride * stride) as f32);
    sums
}

/// One point somewhere inside.
fn point(mask: &[bool], size: usize, rng: &mut ChaCha8Rng) -> Prompt {
    let inside: Vec<usize> = (0..mask.len()).filter(|i| mask[*i]).collect();
    let at = if inside.is_empty() { 0 } else { inside[rng.random_range(0..inside.len())] };
    let label = if inside.is_empty() { PointLabel::Outside } else { PointLabel::Inside };
    Prompt { points: vec![((at % size) as f32, (at / size) as f32, label)], bounds: None }
}

/// The box around it, drawn by an unsteady hand.
fn bounds(mask: &[bool], size: usize, rng: &mut ChaCha8Rng) -> Prompt {
    let (mut low, mut high) = ([size as f32; 2], [0f32; 2]);
    for at in (0..mask.len()).filter(|i| mask[*i]) {
        let place = [(at % size) as f32, (at / size) as f32];
        for axis in 0..2 {
            low[axis] = low[axis].min(place[axis]);
            high[axis] = high[axis].max(place[axis]);
        }
    }
    let last = size as f32 - 1.0;
    let mut moved = |at: f32, axis: usize| {
        let reach = JITTER * (high[axis] - low[axis]).max(0.0);
        (at + reach * (2.0 * rng.random::<f32>() - 1.0)).clamp(0.0, last)
    };
    let [x0, y0, x1, y1] = [moved(low[0], 0), moved(low[1], 1), moved(high[0], 0), moved(high[1], 1)];
    Prompt { points: vec![], bounds: Some([x0, y0, x1, y1]) }
}

/// Masks that are wanted, at the size of the network's masks.
struct Goal {
    side: usize,
    host: Vec<f32>,
    tensor: Tensor<4>,
}

impl Goal {
    fn new(host: Vec<f32>, side: usize, device: &Device) -> Goal {
        let batch = host.len() / (side * side);
        let tensor = Tensor::from_data(TensorData::new(host.clone(), [batch, 1, side, side]), device);
        Goal { side, host, tensor }
    }

    /// Loss of the best mask for each picture plus the IoU head's error, the best masks' IoU, and their logits.
    fn judge(&self, decoded: &Decoded) -> (Tensor<1>, Vec<f64>, Vec<f32>) {
        let [batch, masks, h, w] = decoded.low_res.dims();
        let area = h * w;
        let device = decoded.low_res.device().without_autodiff();
        let losses = mask_loss(decoded.low_res.clone(), self.tensor.clone());
        let (values, logits) = (to_vec(losses.clone()), to_vec(decoded.low_res.clone()));
        let mut chosen = vec![0f32; batch * masks];
        let (mut ious, mut best_ious, mut best_logits) = (vec![0f32; batch * masks], Vec::new(), Vec::new());
        for picture in 0..batch {
            let goal = &self.host[picture * area..(picture + 1) * area];
            let mut best = 0;
            for mask in 0..masks {
                let at = picture * masks + mask;
                ious[at] = iou(&logits[at * area..(at + 1) * area], goal);
                if values[at] < values[picture * masks + best] {
                    best = mask;
                }
            }
            let at = picture * masks + best;
            chosen[at] = 1.0;
            best_ious.push(f64::from(ious[at]));
            best_logits.extend_from_slice(&logits[at * area..(at + 1) * area]);
        }
        let tensor = |data: Vec<f32>| Tensor::<2>::from_data(TensorData::new(data, [batch, masks]), &device);
        let best = (losses * tensor(chosen)).sum() / batch as f64;
        let error = decoded.iou.clone() - tensor(ious);
        (best + (error.clone() * error).mean(), best_ious, best_logits)
    }
}

/// Cross-entropy plus soft IoU of each mask against its picture's goal: `[batch, masks, h, w]`, `[batch, 1, h, w]` →
/// `[batch, masks]`.
///
/// The object's pixels weigh √(rest / object) times as much as the rest: small objects are the rule here, and with equal
/// weights a network from random weights first learns, for long, that nothing is there.
fn mask_loss(logits: Tensor<4>, goal: Tensor<4>) -> Tensor<2> {
    let [batch, masks, h, w] = logits.dims();
    let area = (h * w) as f64;
    let goal = goal.expand([batch, masks, h, w]);
    let sum = |t: Tensor<4>| t.reshape([batch, masks, h * w]).sum_dim(2).reshape([batch, masks]);
    let inside = sum(goal.clone()).clamp(1.0, area - 1.0);
    let weight = (inside.clone().neg() + area).div(inside).sqrt().reshape([batch, masks, 1, 1]);
    let weights = goal.clone() * (weight - 1.0).expand([batch, masks, h, w]) + 1.0;
    let softplus = (logits.clone().abs().neg().exp() + 1.0).log();
    let pixel = activation::relu(logits.clone()) - logits.clone() * goal.clone() + softplus;
    let entropy = sum(pixel * weights.clone()) / sum(weights);
    let p = activation::sigmoid(logits);
    let both = sum(p.clone() * goal.clone());
    let either = sum(p + goal) - both.clone();
    entropy + (both / (either + 1e-3)).neg() + 1.0
}

/// IoU of logits above 0 and a goal above ½; 1 where both are empty.
fn iou(logits: &[f32], goal: &[f32]) -> f32 {
    let (mut both, mut either) = (0usize, 0usize);
    for (l, g) in logits.iter().zip(goal) {
        let (l, g) = (*l > 0.0, *g > 0.5);
        both += usize::from(l && g);
        either += usize::from(l || g);
    }
    if either == 0 { 1.0 } else { both as f32 / either as f32 }
}

#[derive(Default)]
struct Tally {
    losses: Vec<f64>,
    free: Vec<f64>,
    boxed: Vec<f64>,
    pointed: Vec<f64>,
}

impl Tally {
    fn add_loss(&mut self, loss: f64) {
        self.losses.push(loss);
    }

    fn means(self) -> Means {
        let mean = |v: Vec<f64>| v.iter().sum::<f64>() / v.len().max(1) as f64;
        Means { loss: mean(self.losses), free: mean(self.free), boxed: mean(self.boxed), pointed: mean(self.pointed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_follow_each_other() {
        let stage = |steps| Stage { steps, lr: 1.0, size: 64, pools: vec![] };
        let stages = [stage(3), stage(2)];
        assert_eq!([0, 2, 3, 4].map(|step| stage_of(&stages, step)), [(0, 0), (0, 2), (1, 0), (1, 1)]);
    }

    #[test]
    fn a_step_depends_on_seed_and_number_alone() {
        let options = Options {
            stages: vec![Stage { steps: 9, lr: 1.0, size: 64, pools: vec![] }],
            batch: 2,
            seed: 4,
            save_every: 9,
        };
        let (a, b, c) = (Drawn::new(&options, 3, 4), Drawn::new(&options, 3, 4), Drawn::new(&options, 4, 4));
        assert_eq!((&a.pixels, &a.one, &a.prompts), (&b.pixels, &b.one, &b.prompts));
        assert_ne!(a.pixels, c.pixels);
        assert!(a.one.iter().zip(&a.all).all(|(one, all)| one <= all), "the one is among all");
    }

    #[test]
    fn prompts_point_at_the_object() {
        // A bar of 20 × 4 pixels at (8, 40).
        let mask: Vec<bool> =
            (0..64 * 64).map(|i| (8..28).contains(&(i % 64)) && (40..44).contains(&(i / 64))).collect();
        let mut rng = generator(1, 1);
        for _ in 0..20 {
            let (x, y, label) = point(&mask, 64, &mut rng).points[0];
            assert!(mask[y as usize * 64 + x as usize] && label == PointLabel::Inside);
            let [x0, y0, x1, y1] = bounds(&mask, 64, &mut rng).bounds.unwrap();
            assert!((x0 - 8.0).abs() <= 2.0 && (x1 - 27.0).abs() <= 2.0, "{x0} {x1}");
            assert!((y0 - 40.0).abs() <= 0.4 && (y1 - 43.0).abs() <= 0.4, "{y0} {y1}");
        }
        let parts = covered(&mask, 64, 4);
        assert_eq!((parts.iter().sum::<f32>(), parts[10 * 16 + 2], parts[0]), (5.0, 1.0, 0.0));
    }

    #[test]
    fn the_best_of_three_masks_is_trained() {
        // One pixel wanted of four; the second mask has it right.
        let device = Device::flex();
        let goal = Goal::new(vec![1.0, 0.0, 0.0, 0.0], 2, &device);
        let logits = vec![-3.0, 3.0, -3.0, -3.0, 3.0, -3.0, -3.0, -3.0, 3.0, 3.0, 3.0, 3.0];
        let low_res = Tensor::<4>::from_data(TensorData::new(logits, [1, 3, 2, 2]), &device).autodiff().require_grad();
        let iou = Tensor::<2>::from_data(TensorData::new(vec![0.0f32, 1.0, 0.25], [1, 3]), &device).autodiff();
        let decoded = Decoded { low_res: low_res.clone(), iou };
        let (loss, ious, best) = goal.judge(&decoded);
        assert_eq!((ious, best), (vec![1.0], vec![3.0, -3.0, -3.0, -3.0]));
        // The IoU head is right, so the loss is the best mask's: ln(1 + e^-3) + 1 - p / (1 + 3q), q = 1 - p.
        let (p, q) = (1.0 / (1.0 + (-3f32).exp()), 1.0 / (1.0 + 3f32.exp()));
        let want = (1.0 + (-3f32).exp()).ln() + 1.0 - p / (1.0 + 3.0 * q + 1e-3);
        assert!((to_vec(loss.clone())[0] - want).abs() < 1e-5);
        let gradient = to_vec(low_res.grad(&loss.backward()).unwrap());
        assert!(gradient[..4].iter().chain(&gradient[8..]).all(|g| *g == 0.0));
        assert!(gradient[4..8].iter().all(|g| *g != 0.0));
    }
}
