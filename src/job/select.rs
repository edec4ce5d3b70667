//! `select`: which weights matter, from the gradients of the training cases.

use crate::config::Config;
use crate::data::{self, Form, Splits};
use crate::error::{Error, Result};
use crate::image::{Resize, SliceFrame, Spacing};
use crate::io::nifti;
use crate::job::{base, forecast};
use crate::method::{self, Rule, Score};
use crate::model::checkpoint::Checkpoint;
use crate::model::sam::Activations;
use crate::model::{Sam, SamConfig};
use crate::predict::{Preprocessing, prompt_free_logits};
use crate::progress::Progress;
use crate::train::batch::{self, Augment, Sample};
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
    let preprocessing = preprocessing_at_scale(config, &checkpoint.config, &splits)?;
    tell_spacing(&preprocessing, config, splits.dataset.form, progress);
    let samples = batch::load(&splits.train, splits.dataset.form, &preprocessing)?;
    check_foreground(&samples, &splits, &preprocessing, progress)?;
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

/// How many sums of gradients of the training cases the configured method chooses entries by.
pub fn sums(config: &Config) -> usize {
    rule(config).map_or(0, |rule| rule.score.needs().len())
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
        progress.start("selecting", samples.len());
    }
    let chosen = gradients::choose(method, sam, &settings, config.seed, (0..samples.len()).map(Ok), |sam, i| {
        let batch = batch::batch(samples, &[i], Augment::Off, 0, 0, device);
        let logits = prompt_free_logits(sam, batch.pixels);
        progress.at(i + 1, "");
        Ok(loss(logits, batch.target, batch.valid).total())
    });
    progress.end();
    Ok(Selection {
        chosen: chosen?.unwrap_or_default(),
        method: config.method.clone(),
        budget: settings.budget,
        score: rule.score,
        group: rule.group,
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
