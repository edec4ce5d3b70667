//! `select`: which weights matter, from the training cases' gradients or inputs.

use crate::config::Config;
use crate::data::{self, Dataset, Form, Splits};
use crate::device;
use crate::error::{Error, Result};
use crate::image::{Resize, SliceFrame, Spacing};
use crate::io::nifti;
use crate::job::{base, forecast};
use crate::method::{self, Group, Rule, Score, SelectionLoss};
use crate::model::checkpoint::Checkpoint;
use crate::model::sam::Activations;
use crate::model::{Sam, SamConfig};
use crate::predict::{Preprocessing, prompt_free_logits};
use crate::progress::Progress;
use crate::signal;
use crate::train::batch::{self, Augment, Sample};
use crate::train::contrast::Contrast;
use crate::train::loss::loss;
use crate::tune::gradients;
use crate::tune::selection::Selection;
use crate::tune::stability::{Agreement, agreements};
use burn::tensor::Device;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde::Serialize;
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
        progress.start("fetching", 1);
        let fetched = data::named::download(&request, &|done, of| progress.of(done as usize, of.unwrap_or(0) as usize));
        progress.end();
        fetched?;
    }
    let splits = data::prepare(&request)?;
    check_ignored(&splits.dataset, &config.labels)?;
    Ok(splits)
}

/// nnU-Net's label `ignore` means "nobody has looked here", which is neither foreground nor background.
fn check_ignored(dataset: &Dataset, labels: &[u16]) -> Result<()> {
    let ignored = dataset.classes.iter().find(|(_, name)| *name == "ignore").map(|(label, _)| *label);
    match ignored {
        Some(label) if labels.is_empty() || labels.contains(&label) => {
            let others: Vec<String> = dataset.classes.keys().filter(|l| **l != label).map(u16::to_string).collect();
            Err(Error::data(format!("label {label} is `ignore`, and would be taken for foreground"))
                .at(&dataset.root)
                .hint(format!("name what is foreground, as --labels {}: the rest is background", others.join(","))))
        }
        _ => Ok(()),
    }
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

/// The configuration with what is left to the method filled in; pictures have no scale.
///
/// # Errors
/// As [`Config::settled`].
pub fn settled(config: Config, form: Form) -> Result<Config> {
    let config = config.settled()?;
    Ok(match form {
        Form::Pictures => Config { spacing: Spacing::Off, ..config },
        Form::Volumes => config,
    })
}

/// As [`preprocessing`], at the scale that the configuration asks for: `auto` looks at the training cases alone.
///
/// # Errors
/// As [`preprocessing`]; a data error for a header that cannot be read.
pub fn preprocessing_at_scale(config: &Config, sam: &SamConfig, splits: &Splits) -> Result<Preprocessing> {
    let mut preprocessing = preprocessing(config, sam)?;
    preprocessing.spacing_mm = match (splits.dataset.form, config.spacing, config.resize) {
        (Form::Pictures, ..) | (_, Spacing::Off, _) | (_, Spacing::Auto, Resize::Square) => None,
        (Form::Volumes, Spacing::Mm(mm), _) => Some(mm),
        (Form::Volumes, Spacing::Auto, Resize::LongestSide) => {
            let mut longest = 0f64;
            for case in &splits.train {
                let frame = SliceFrame::new(&nifti::read_header(&case.image)?.grid, config.axis);
                let [x, y] = frame.pixel_spacing_mm();
                longest = longest.max(x * frame.width() as f64).max(y * frame.height() as f64);
            }
            Some((longest / preprocessing.image_size as f64) as f32)
        }
    };
    match preprocessing.spacing_mm {
        Some(mm) if !(mm > 0.0 && mm.is_finite()) => {
            Err(Error::data("the training volumes' spacing gives no scale for the network's square")
                .at(&splits.dataset.root)
                .hint("look at their spacing with `segft info`, or give --spacing MM or off"))
        }
        _ => Ok(preprocessing),
    }
}

/// Says at which scale volumes are shown.
pub fn tell_spacing(preprocessing: &Preprocessing, config: &Config, form: Form, progress: &Progress) {
    match (form, preprocessing.spacing_mm, config.spacing) {
        (Form::Pictures, ..) => {}
        (_, Some(mm), Spacing::Auto) => {
            progress.line(format!("spacing      {mm:.4} mm a pixel of the network's square: every training slice fits"))
        }
        (_, Some(mm), _) => progress.line(format!("spacing      {mm:.4} mm a pixel of the network's square, as given")),
        (_, None, _) => {
            progress.line("spacing      off: every slice fills the network's square, whatever its millimetres")
        }
    }
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

/// How cases are brought into this network, but for the scale of volumes.
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

/// What a selection alone is made with.
struct Ready {
    config: Config,
    device: device::Chosen,
    splits: Splits,
    sam: Sam,
    about: (String, String),
    preprocessing: Preprocessing,
}

impl Ready {
    fn new(config: &Config, progress: &Progress) -> Result<Ready> {
        let config = config.clone().settled()?;
        rule(&config)?;
        let device = super::device(&config.device, progress)?;
        let splits = prepare(&config, progress)?;
        splits.warnings.iter().for_each(|w| progress.warn(w));
        let checkpoint = base::load(&config.model)?;
        if let Some(warning) = base::warning(&checkpoint) {
            progress.warn(warning);
        }
        let preprocessing = preprocessing_at_scale(&config, &checkpoint.config, &splits)?;
        tell_spacing(&preprocessing, &config, splits.dataset.form, progress);
        let about = about(&checkpoint);
        let mut sam = checkpoint.into_sam(&device.device);
        let need = forecast::selection(&sam.config, preprocessing.image_size, sums(&config), Activations::Kept);
        sam.activations = forecast::activations(config.recompute, need, &device);
        Ok(Ready { config, device, splits, sam, about, preprocessing })
    }

    /// The selection from these training cases' samples.
    fn select(&self, samples: &[Sample], splits: &Splits, progress: &Progress) -> Result<Selection> {
        check_foreground(samples, splits, &self.preprocessing, progress)?;
        check_contrast(&self.config, samples, splits)?;
        select(&self.sam, &self.about, samples, splits, &self.config, progress, &self.device.device)
    }
}

/// Runs only the selection and writes it.
///
/// # Errors
/// What data, weights and gradients answer.
pub fn run(config: &Config, to: &Path, progress: &Progress) -> Result<Selection> {
    let ready = Ready::new(config, progress)?;
    let samples = batch::load(&ready.splits.train, ready.splits.dataset.form, &ready.preprocessing)?;
    let selection = ready.select(&samples, &ready.splits, progress)?;
    selection.save(to)?;
    Ok(selection)
}

/// How far selections from different halves of the training cases agree.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stability {
    /// Method, score, group and loss of the selections.
    pub method: String,
    /// See above.
    pub score: Score,
    /// See above.
    pub group: Group,
    /// See above.
    pub selection_loss: Option<SelectionLoss>,
    /// Training cases.
    pub n_cases: usize,
    /// Halves, and cases of each.
    pub halves: usize,
    /// See above.
    pub cases_per_half: usize,
    /// Cases that two halves share, mean over the pairs.
    pub shared_cases: f64,
    /// By kind of layer, and of all, last.
    pub agreements: Vec<Agreement>,
}

/// Selects from `halves` halves of the training cases, each drawn from the seed by itself, and compares the selections
/// in pairs. Nothing is written.
///
/// # Errors
/// A usage error for fewer than two halves and for a score that reads no cases; a data error for a single training
/// case; else as [`run`].
pub fn stability(config: &Config, halves: usize, progress: &Progress) -> Result<Stability> {
    if halves < 2 {
        return Err(Error::usage(format!("--stability {halves}: two halves at least are compared")));
    }
    let score = rule(config)?.score;
    if score.needs().is_empty() {
        return Err(Error::usage(format!("--stability: score `{score}` reads no cases"))
            .hint("the selection is the same whichever there are"));
    }
    let ready = Ready::new(config, progress)?;
    let (cases, form) = (&ready.splits.train, ready.splits.dataset.form);
    if cases.len() < 2 {
        return Err(
            Error::data("--stability halves the training cases, and there is one alone").at(&ready.splits.dataset.root)
        );
    }
    let load = |case: &data::Case| batch::load(std::slice::from_ref(case), form, &ready.preprocessing);
    let samples: Vec<Vec<Sample>> = cases.par_iter().map(load).collect::<Result<_>>()?;
    let drawn: Vec<Vec<usize>> = (0..halves).map(|half| half_of(cases.len(), ready.config.seed, half)).collect();
    let mut selections = Vec::new();
    for (number, half) in drawn.iter().enumerate() {
        progress.line(format!("half {} of {halves}: {} of {} cases", number + 1, half.len(), cases.len()));
        let splits = Splits { train: half.iter().map(|i| cases[*i].clone()).collect(), ..ready.splits.clone() };
        let samples: Vec<Sample> = half.iter().flat_map(|i| samples[*i].iter().cloned()).collect();
        selections.push(ready.select(&samples, &splits, progress)?);
    }
    let pairs = drawn.iter().enumerate().flat_map(|(i, a)| drawn[i + 1..].iter().map(move |b| (a, b)));
    let shared = pairs.map(|(a, b)| a.iter().filter(|case| b.contains(case)).count()).sum::<usize>();
    let first = &selections[0];
    Ok(Stability {
        method: first.method.clone(),
        score,
        group: first.group,
        selection_loss: first.loss,
        n_cases: cases.len(),
        halves,
        cases_per_half: drawn[0].len(),
        shared_cases: shared as f64 / (halves * (halves - 1) / 2) as f64,
        agreements: agreements(&selections, &ready.sam.config.specs()),
    })
}

/// A half of `n` cases, in order; of an odd number the smaller.
fn half_of(n: usize, seed: u64, half: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    // A stream of its own, apart from those of order, augmentation, scores and pretraining.
    order.shuffle(&mut batch::generator(seed, (11 << 60) + half as u64));
    order.truncate(n / 2);
    order.sort_unstable();
    order
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

/// Passes over the training cases that the configured method chooses entries from: of a score of the weights alone, and of a
/// method that chooses none, no pass.
pub fn passes(config: &Config) -> usize {
    rule(config).map_or(0, |rule| gradients::passes(rule.score.needs()))
}

/// Ids of the cases that a selection looks at: those of the training, or none.
pub fn cases(config: &Config, splits: &Splits) -> Vec<String> {
    if passes(config) > 0 { splits.train.iter().map(|c| c.id.clone()).collect() } else { Vec::new() }
}

/// The selection of a method that chooses entries: where gradients or inputs are needed, by
/// deterministic passes over the training samples, one at a time, in order, not augmented. `base` is the base's name and
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
    let passes = passes(config);
    if passes > 0 {
        progress.start("selecting", samples.len() * passes);
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
        signal::check()?;
        Ok(loss)
    });
    progress.end();
    Ok(Selection {
        chosen: chosen?.unwrap_or_default(),
        method: config.method.clone(),
        budget: settings.budget,
        score: rule.score,
        group: rule.group,
        loss: rule.score.reads_gradients().then_some(of),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_drawn_each_for_itself() {
        let halves: Vec<Vec<usize>> = (0..200).map(|half| half_of(9, 1, half)).collect();
        assert_eq!(halves[0], half_of(9, 1, 0));
        assert_ne!(halves[0], half_of(9, 2, 0));
        assert!(halves.iter().all(|half| half.len() == 4 && half.is_sorted_by(|a, b| a < b)));
        // Each case in 4 / 9 of them, 89 of 200; the spread is 7.
        for case in 0..9 {
            let count = halves.iter().filter(|half| half.contains(&case)).count();
            assert!((61..=117).contains(&count), "case {case} in {count}");
        }
    }
}
