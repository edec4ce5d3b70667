//! `select`: which weights matter, from the gradients of the training cases.

use crate::config::Config;
use crate::data::{self, Splits};
use crate::error::{Error, Result};
use crate::job::{base, forecast};
use crate::method::{self, Rule, Score, SelectionLoss};
use crate::model::checkpoint::Checkpoint;
use crate::model::sam::Activations;
use crate::model::{Sam, SamConfig};
use crate::predict::{Preprocessing, prompt_free_logits};
use crate::progress::Progress;
use crate::train::batch::{self, Augment, Sample};
use crate::train::contrast::Contrast;
use crate::train::loss::loss;
use crate::tune::gradients;
use crate::tune::selection::Selection;
use burn::tensor::Device;
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;

/// The data request that a configuration makes.
pub fn request(config: &Config) -> data::Request {
    data::Request {
        dataset: config.dataset.clone(),
        data: config.data.clone(),
        val: config.val.clone(),
        test: config.test.clone(),
        split: config.split.clone(),
        fold: config.folds.zip(config.fold),
        size: config.sizes,
        seed: config.split_seed.unwrap_or(config.seed),
        cache: base::cache(),
        offline: config.offline,
        allow_leak: config.allow_leak,
    }
}

/// Finds and divides the data; says before it starts what will be downloaded.
///
/// # Errors
/// As [`data::prepare`].
pub fn prepare(config: &Config, progress: &Progress) -> Result<Splits> {
    let request = request(config);
    if let Some(what) = data::named::download_of(&request) {
        progress.line(what);
    }
    data::prepare(&request)
}

/// Training cases must hold something to learn. Some of several `--labels` that do not occur are warned of.
///
/// # Errors
/// A data error naming the labels that are there, or saying that every mask is empty.
pub fn check_foreground(
    samples: &[Sample],
    splits: &Splits,
    preprocessing: &Preprocessing,
    progress: &Progress,
) -> Result<()> {
    let wanted = &preprocessing.labels;
    if wanted.len() < 2 && samples.iter().any(Sample::has_foreground) {
        return Ok(());
    }
    let seen: Vec<BTreeSet<u16>> = splits
        .train
        .par_iter()
        .map(|case| Ok(batch::read_labels(case, splits.dataset.form)?.voxels.into_iter().collect()))
        .collect::<Result<_>>()?;
    let found: BTreeSet<u16> = seen.into_iter().flatten().filter(|v| *v != 0).collect();
    let list = |labels: &mut dyn Iterator<Item = &u16>| labels.map(u16::to_string).collect::<Vec<_>>().join(", ");
    let root = &splits.dataset.root;
    if found.is_empty() {
        return Err(Error::data(format!("the masks of all {} training cases are empty", splits.train.len()))
            .at(root)
            .hint("look at them with `segft data check`; masks are 0 where nothing is"));
    }
    let absent: Vec<&u16> = wanted.iter().filter(|label| !found.contains(label)).collect();
    if !wanted.is_empty() && absent.len() == wanted.len() {
        return Err(Error::data(format!(
            "--labels {}: no training case holds such a label; found {}",
            list(&mut wanted.iter()),
            list(&mut found.iter())
        ))
        .at(root)
        .hint("name labels that are there"));
    }
    if !absent.is_empty() {
        progress.warn(format!(
            "--labels {} in no training case; found {}",
            list(&mut absent.into_iter()),
            list(&mut found.iter())
        ));
    }
    Ok(())
}

/// A contrastive selection sets pictures against each other.
///
/// # Errors
/// A data error when there is one alone.
pub fn check_contrast(config: &Config, samples: &[Sample], splits: &Splits) -> Result<()> {
    let wanted = config.selection_loss == Some(SelectionLoss::Contrastive) && config.selection.is_none();
    if wanted && samples.len() < 2 {
        return Err(Error::data("--selection-loss contrastive compares training pictures, and there is one alone")
            .at(&splits.dataset.root)
            .hint("give it more pictures, or leave the flag out"));
    }
    Ok(())
}

/// How cases are brought into this network.
///
/// # Errors
/// A usage error when the size is no whole number of patches.
pub fn preprocessing(config: &Config, sam: &SamConfig) -> Result<Preprocessing> {
    let preprocessing = config.preprocessing(sam.image_size);
    let size = preprocessing.image_size;
    if size == 0 || !size.is_multiple_of(sam.patch) || size > 4096 {
        let near = (size.min(4096) / sam.patch).max(1) * sam.patch;
        return Err(Error::usage(format!(
            "--image-size {size} is not a multiple of the patch of {} pixels",
            sam.patch
        ))
        .hint(format!("use {near}; at most 4096")));
    }
    Ok(preprocessing)
}

/// Runs only the selection and writes it.
///
/// # Errors
/// What data, weights and gradients answer.
pub fn run(config: &Config, to: &Path, progress: &Progress) -> Result<Selection> {
    let config = &config.clone().settled()?;
    rule(config)?;
    let device = super::device(&config.device, progress)?;
    let splits = prepare(config, progress)?;
    splits.warnings.iter().for_each(|w| progress.warn(w));
    let checkpoint = base::load(&config.model)?;
    if let Some(warning) = base::warning(&checkpoint) {
        progress.warn(warning);
    }
    let preprocessing = preprocessing(config, &checkpoint.config)?;
    let samples = batch::load(&splits.train, splits.dataset.form, &preprocessing)?;
    check_foreground(&samples, &splits, &preprocessing, progress)?;
    check_contrast(config, &samples, &splits)?;
    let about = about(&checkpoint);
    let mut sam = checkpoint.into_sam(&device.device);
    let need = forecast::selection(&sam.config, preprocessing.image_size, sums(config), Activations::Kept);
    sam.activations = forecast::activations(config.recompute, need, &device);
    let selection = select(&sam, &about, &samples, &splits, config, progress, &device.device)?;
    selection.save(to)?;
    Ok(selection)
}

/// How the configured method chooses entries.
///
/// # Errors
/// A usage error when it chooses none.
fn rule(config: &Config) -> Result<Rule> {
    method::rule(method::find(&config.method)?, &config.settings()).ok_or_else(|| {
        Error::usage(format!("method `{}` selects nothing", config.method))
            .hint("`segft select` is for methods that choose weights, as gps")
    })
}

/// How many buffers of the size of the encoder's matrices the configured method chooses entries from: sums of gradients.
pub fn sums(config: &Config) -> usize {
    rule(config).map_or(0, |rule| gradients::buffers(rule.score.needs()))
}

/// Ids of the cases that a selection looks at: those of the training, or none.
pub fn cases(config: &Config, splits: &Splits) -> Vec<String> {
    if sums(config) > 0 { splits.train.iter().map(|c| c.id.clone()).collect() } else { Vec::new() }
}

/// The selection of a method that chooses entries: where gradients are needed, by one
/// deterministic pass over the training samples, one at a time, in order, not augmented. `base` is the base's name and
/// SHA-256.
///
/// # Errors
/// As [`gradients::choose`].
pub fn select(
    sam: &Sam,
    base: &(String, String),
    samples: &[Sample],
    splits: &Splits,
    config: &Config,
    progress: &Progress,
    device: &Device,
) -> Result<Selection> {
    let (method, settings, rule) = (method::find(&config.method)?, config.settings(), rule(config)?);
    if !rule.score.needs().is_empty() {
        progress.start("selecting", samples.len() * gradients::passes(rule.score.needs()));
    }
    let mut done = 0;
    let of = config.selection_loss.unwrap_or(SelectionLoss::Task);
    let mut contrast = Contrast::new(samples, device);
    let chosen = gradients::choose(method, sam, &settings, config.seed, (0..samples.len()).map(Ok), |sam, i| {
        let loss = match of {
            SelectionLoss::Task => {
                let batch = batch::batch(samples, &[i], Augment::Off, 0, 0, device);
                loss(prompt_free_logits(sam, batch.pixels), batch.target, batch.valid).total()
            }
            SelectionLoss::Contrastive => contrast.part(sam, i),
        };
        done += 1;
        progress.at(done, "");
        Ok(loss)
    });
    progress.end();
    Ok(Selection {
        chosen: chosen?.unwrap_or_default(),
        method: config.method.clone(),
        budget: settings.budget,
        score: rule.score,
        group: rule.group,
        loss: (!rule.score.needs().is_empty()).then_some(of),
        seed: (rule.score == Score::Random).then_some(config.seed),
        base_name: base.0.clone(),
        base_sha256: base.1.clone(),
        cases: cases(config, splits),
    })
}

/// The base's name and hash, as a selection records them.
pub fn about(checkpoint: &Checkpoint) -> (String, String) {
    (checkpoint.name.clone(), checkpoint.sha256.clone())
}
