//! `plan`: what the training of a configuration would take: memory from shapes, time from one step of each kind.
//!
//! Nothing is written. The selection is that of one picture: how much is selected does not depend on which.

use super::forecast::{self, Memory, Pace};
use super::train::{Ready, Validated, embedded, embeddings_limit, options};
use super::{base, select};
use crate::config::Config;
use crate::device::available_memory;
use crate::error::Result;
use crate::method;
use crate::model::checkpoint;
use crate::model::sam::{Activations, Cache};
use crate::progress::{Progress, Voice};
use crate::train;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// Forecasts it.
///
/// # Errors
/// What a training answers before its first step.
pub fn run(config: Config, progress: &Progress) -> Result<Value> {
    let device = super::device(&config.device, progress)?;
    super::check_dtype(&device, config.dtype)?;
    let splits = select::prepare(&config, progress)?;
    let base = base::load(&config.model)?;
    let (config, ready) = Ready::read(config, &splits, &base, progress)?;
    let method = method::find(&config.method)?;
    let about = select::about(&base);
    let specs = base.config.specs();
    let (parameters, _) = checkpoint::counts(&specs);
    let mut memory = Memory { data: ready.bytes(), weights: 4 * parameters as u64, ..Memory::default() };
    let Ready { preprocessing, samples, validation, given } = ready;
    let (size, spacing_mm) = (preprocessing.image_size, preprocessing.spacing_mm);
    let mut sam = base.into_sam(&device.device);

    let sums = select::sums(&config);
    let need = forecast::selection(&sam.config, size, sums, Activations::Kept);
    sam.activations = forecast::activations(config.recompute, need, &device);
    let start = Instant::now();
    // A choice from the weights alone takes no pass over the pictures.
    let pictures = if select::passes(&config) > 0 { samples.len() } else { 0 };
    let (selection, selecting) = match (method.rule().is_some(), given) {
        (false, _) => (None, 0.0),
        (true, Some(given)) => (Some(given), 0.0),
        (true, None) => {
            memory.selection =
                if sums == 0 { 0 } else { forecast::selection(&sam.config, size, sums, sam.activations) };
            let (one, silent) = (&samples[..1], Progress::new(Voice::Quiet));
            let selection = select::select(&sam, &about, one, &splits, &config, &silent, &device.device)?;
            (Some(selection), start.elapsed().as_secs_f64())
        }
    };
    let plan = method::plan(method, &specs, selection.as_ref().map(|s| &s.chosen), &config.settings());
    let counts = method::counts(&specs, &plan);
    crate::tune::attach(&mut sam, &plan, &device.device);
    sam.weights.compute_in(config.dtype);

    let options = options(&config, method);
    let need = forecast::training(&sam, size, options.batch, Activations::Kept);
    sam.activations = forecast::activations(config.recompute, need, &device);
    memory.training =
        forecast::training(&sam, size, options.batch, sam.activations) + forecast::waiting(&sam, config.networks);
    let embeddings = sam.blocks_are_frozen().then(|| Arc::new(Cache::new(embeddings_limit(&device) as usize)));
    if embeddings.is_some() {
        let pictures = embedded(&samples, &validation, &options, &preprocessing) as u64;
        memory.embeddings = embeddings_limit(&device).min(pictures * forecast::embedding(&sam, size));
    }
    let [first, later] = train::probe(&mut sam, &samples, &options, embeddings.as_deref(), &device.device);
    let cases = Validated { cases: &validation, preprocessing: &preprocessing, embeddings };
    let validating = cases.seconds(&sam, &device)?;

    let pace = Pace { step: later, validation: validating };
    let per_epoch = samples.len().div_ceil(options.batch);
    let steps = options.steps.unwrap_or(per_epoch.saturating_mul(options.epochs));
    let training = pace.rest(&options, samples.len(), 0) * config.networks as f64
        // The first epoch computes the embeddings that the others find.
        + if cases.embeddings.is_some() { (first - later).max(0.0) * per_epoch.min(steps) as f64 } else { 0.0 };
    let selecting = selecting * pictures as f64;
    let testing = validating * splits.test.len() as f64 / validation.len().max(1) as f64;
    let threshold = if config.threshold.is_none() { validating } else { 0.0 };
    let mib = |bytes: u64| bytes >> 20;
    let shown = |seconds: f64| (100.0 * seconds).round() / 100.0;
    Ok(json!({
        "kind": "plan",
        "model": config.model,
        "method": config.method,
        "dataset": splits.dataset.name,
        "device": device.name,
        "image_size": size,
        "spacing_mm": spacing_mm,
        "batch": options.batch,
        "samples": samples.len(),
        "steps": if options.minutes.is_some() { None } else { Some(steps) },
        "trained_parameters": counts.trained,
        "recompute": sam.activations == Activations::Recomputed,
        "peak_rss_mib": memory.peak_mib(),
        "memory_mib": {
            "data": mib(memory.data), "weights": mib(memory.weights), "selection": mib(memory.selection),
            "training": mib(memory.training), "embeddings": mib(memory.embeddings),
        },
        "available_mib": available_memory().map(mib),
        "seconds": shown(selecting + training + threshold + testing),
        "seconds_of": {
            "selection": shown(selecting), "training": shown(training), "threshold": shown(threshold),
            "test": shown(testing),
        },
        "seconds_per_step": shown(later),
    }))
}
