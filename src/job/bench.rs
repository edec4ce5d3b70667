//! `bench`: seconds and memory of one kind of work on a random picture, so that it can be compared with another
//! program's. A size without weights (`vit_b`) is drawn at random; a model (`tiny`) is timed as it is used, for what its
//! numbers are costs time too: attention that is sure of itself multiplies numbers near 0.

use super::{base, forecast};
use crate::config::Recompute;
use crate::device::peak_rss_mib;
use crate::error::{Error, Result, nearest};
use crate::method::{self, Budget, Change, Plan, Settings};
use crate::model::checkpoint::{self, Checkpoint};
use crate::model::sam::{Activations, Masks, Prompt};
use crate::model::weights::to_vec;
use crate::model::{Sam, SamConfig};
use crate::predict::{Precision, prompt_free_logits};
use crate::progress::Progress;
use crate::train::batch::generator;
use crate::train::loss::loss;
use crate::tune::optimizer::Optimizer;
use crate::tune::{attach, gradients};
use burn::tensor::{Device, Tensor, TensorData};
use rand::RngExt;
use serde_json::{Value, json};
use std::time::Instant;

/// What is timed.
#[derive(Debug, Clone)]
pub struct Request {
    /// A named size, drawn at random, or a model as `--model` of `train`.
    pub model: String,
    /// Side of the square; the model's own by default.
    pub image: Option<usize>,
    /// `encode`, `predict`, `chain` (forward and the gradients of inputs alone, which every training of the encoder
    /// needs), or a method's name for one training step.
    pub mode: String,
    /// Pictures at once.
    pub batch: usize,
    /// Entries per neuron, where the mode is a method that chooses entries.
    pub k: usize,
    /// Timed repetitions.
    pub steps: usize,
    /// Repetitions before those.
    pub warmup: usize,
    /// Whether a training step keeps the inside of the encoder's blocks or runs them again.
    pub recompute: Recompute,
    /// In what the encoder's linear layers multiply.
    pub dtype: Precision,
    /// As `--device` of `train`.
    pub device: String,
}

/// Sizes that are timed without weights.
const SIZES: [&str; 4] = ["vit_t", "vit_b", "vit_l", "vit_h"];
/// Modes that are no method.
const MODES: [&str; 3] = ["encode", "predict", "chain"];
/// Where `chain` ends: only the patch embedding, or the convolutions of a stem, come before it.
const CHAIN_END: &str = "image_encoder.pos_embed";
/// Learning rate of the timed steps: the time does not depend on it.
const LR: f64 = 2e-4;

/// Times it.
///
/// # Errors
/// A usage error for an unknown model, size or mode; a weights error of the model's; a device error.
pub fn run(request: &Request, progress: &Progress) -> Result<Value> {
    let chosen = super::device(&request.device, progress)?;
    super::check_dtype(&chosen, request.dtype)?;
    let device = &chosen.device;
    let base = match SIZES.contains(&request.model.as_str()).then(|| SamConfig::named(&request.model)).flatten() {
        Some(config) => checkpoint::random(&request.model, config, 0),
        None => base::load(&request.model)?,
    };
    let size = request.image.unwrap_or(base.config.image_size);
    if size == 0 || !size.is_multiple_of(base.config.patch) {
        return Err(Error::usage(format!(
            "--image {size} is not a multiple of the patch of {} pixels",
            base.config.patch
        )));
    }
    if request.batch == 0 || request.steps == 0 {
        return Err(Error::usage("--batch and --steps must be at least 1"));
    }
    let (parameters, _) = base.counts();
    let (weights, sha256) = (base.origin.clone(), base.sha256.clone());
    let mut sam = base.into_sam(device);
    let picture = Picture::random(request.batch, size, device);
    sam.activations = forecast::activations(request.recompute, 0, &chosen);
    let mut trained = 0;
    let mut times = Vec::new();
    let mut adam = Optimizer::adam(1e-8);
    match request.mode.as_str() {
        "encode" | "predict" => sam = sam.frozen(),
        mode => {
            let plan = plan(mode, &sam, &picture, request.k)?;
            attach(&mut sam, &plan, device);
            trained = sam.weights.iter().map(|(_, w)| w.trained()).sum();
        }
    }
    sam.weights.compute_in(request.dtype);
    for step in 0..request.warmup + request.steps {
        let start = Instant::now();
        match request.mode.as_str() {
            "encode" => drop(to_vec(sam.embed(picture.pixels.clone()).coarse)),
            "predict" => {
                let prompts = vec![Prompt::default(); request.batch];
                let embedding = sam.embed(picture.pixels.clone());
                drop(to_vec(sam.decode(embedding, &prompts, None, Masks::Single).low_res));
            }
            _ => {
                let mut gradients = picture.loss(&sam).backward();
                adam.step(&mut sam.weights, &mut gradients, LR);
                device.sync().map_err(|e| Error::device(format!("the device failed: {e:?}")))?;
            }
        }
        if step >= request.warmup {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(json!({
        "model": request.model, "image": size, "mode": request.mode, "batch": request.batch, "device": chosen.name,
        "dtype": request.dtype, "threads": rayon::current_num_threads(), "seconds_median": median(&times), "seconds": times,
        "trained": trained, "parameters": parameters, "weights": weights, "base_sha256": sha256,
        "recompute": sam.activations == Activations::Recomputed, "peak_rss_mib": peak_rss_mib(),
    }))
}

/// What a fine-tuned network takes more than its base to encode a picture of `size` pixels, as a part of the base's time: the
/// median of pairs that are timed in turn. 0 where what was added folds into the base's weights.
pub(super) fn extra_time(base: Checkpoint, tuned: Checkpoint, size: usize, device: &Device) -> f64 {
    const PAIRS: usize = 7;
    if tuned.clone().merged().is_ok() {
        return 0.0;
    }
    let picture = Picture::random(1, size, device);
    let networks = [base, tuned].map(|weights| weights.into_sam(device).frozen());
    let seconds = |sam: &Sam| {
        let start = Instant::now();
        drop(to_vec(sam.embed(picture.pixels.clone()).coarse));
        start.elapsed().as_secs_f64()
    };
    let pair = || networks.each_ref().map(seconds);
    pair();
    let ratios: Vec<f64> = std::iter::repeat_with(pair).take(PAIRS).map(|[base, tuned]| tuned / base).collect();
    median(&ratios) - 1.0
}

struct Picture {
    pixels: Tensor<4>,
    target: Tensor<4>,
    valid: Tensor<4>,
}

impl Picture {
    fn random(batch: usize, size: usize, device: &Device) -> Picture {
        let mut rng = generator(0, 0);
        let mut values = |channels: usize| -> Vec<f32> {
            (0..batch * channels * size * size).map(|_| rng.random::<f32>()).collect()
        };
        let tensor = |data: Vec<f32>, channels: usize| {
            Tensor::<4>::from_data(TensorData::new(data, [batch, channels, size, size]), device)
        };
        let pixels = tensor(values(3).into_iter().map(|v| 3.4 * v - 1.7).collect(), 3);
        let target = tensor(values(1).into_iter().map(|v| f32::from(u8::from(v > 0.7))).collect(), 1);
        Picture { pixels, target, valid: tensor(vec![1.0; batch * size * size], 1) }
    }

    fn loss(&self, sam: &Sam) -> Tensor<1> {
        let logits = prompt_free_logits(sam, self.pixels.clone());
        loss(logits, self.target.clone(), self.valid.clone()).total()
    }
}

fn plan(mode: &str, sam: &Sam, picture: &Picture, k: usize) -> Result<Plan> {
    if mode == "chain" {
        let change = |name: &str| if name == CHAIN_END { Change::Dense } else { Change::Frozen };
        return Ok(sam.config.specs().into_iter().map(|s| (s.name.clone(), change(&s.name))).collect());
    }
    let method = method::find(mode).map_err(|e| {
        let known = MODES.into_iter().chain(method::methods().iter().map(|(name, ..)| *name));
        let near =
            nearest(mode, known).map(|n| format!("did you mean `{n}`?")).unwrap_or_else(|| e.hint.unwrap_or_default());
        Error::usage(format!("unknown mode `{mode}`")).hint(near)
    })?;
    let settings = Settings { budget: Budget::PerNeuron(k), ..Settings::default() };
    let pictures = std::iter::once(Ok(picture));
    let chosen = gradients::choose(method, sam, &settings, 0, pictures, |sam, picture| Ok(picture.loss(sam)))?;
    Ok(method::plan(method, &sam.config.specs(), chosen.as_ref(), &settings))
}

fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    (low + high) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(&[4.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
