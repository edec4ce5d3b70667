//! `compare`: methods × sizes × seeds on one protocol, a fixed number of steps each, a small JSON file a cell.
//!
//! A row is a method, with settings (`gps:k=16`) or a base (`gps@tiny-random`) of its own if it likes. For each row and
//! size (or at one size for all) the learning rate is chosen by trials, the same number for every row, on the validation side of the training
//! set, each with one seed or the mean of several. Then each seed trains once with it, and the test set is read once for that cell. The first
//! seed, or several, train again with twice the steps: a method and size whose mean Dice still moves is not converged,
//! and says nothing about the method ([`twice`]).
//!
//! A selection depends on base and training cases alone, so the trainings of a row and size share it.
//!
//! Files that are there are not made again, so a stopped comparison goes on with the same command.

mod cell;
mod plot;
mod row;
mod table;
mod trials;
mod twice;

use super::train::{self, Judge};
use super::{base, bench, select};
use crate::config::Config;
use crate::data::{self, Case, Form, Splits, named};
use crate::device::{self, forget_peak};
use crate::error::{Error, Kind, Result};
use crate::image::Spacing;
use crate::io::Replace;
use crate::method;
use crate::model::checkpoint::hex;
use crate::model::kernel::return_freed_memory;
use crate::progress::Progress;
use crate::run::Run;
use crate::score::report::CaseMetrics;
use crate::signal;
use crate::tune::patch::{Direction, Patch};
use crate::tune::selection::Selection;
use cell::{Cell, Setup, Trial};
use row::Row;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
pub use table::{Table, read};
use trials::Chosen;
pub use trials::Trials;
use twice::{LeftOut, STILL};

/// Steps of a training where none are given.
const STEPS: usize = 300;
/// What to do after an interruption.
const GO_ON: &str = "the same command goes on from here";
/// A training that takes longer is said to.
const LONG_SECONDS: f64 = 180.0;

/// How many cases a training may use for training and validation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(Default))]
#[serde(into = "String", try_from = "String")]
pub enum Size {
    /// So many.
    Cases(usize),
    /// All that there are.
    #[cfg_attr(test, default)]
    All,
}

impl Size {
    /// The number, if there is a limit.
    pub fn cases(self) -> Option<usize> {
        match self {
            Size::Cases(n) => Some(n),
            Size::All => None,
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Cases(n) => write!(f, "{n}"),
            Size::All => write!(f, "all"),
        }
    }
}

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Size> {
        match (text, text.parse()) {
            ("all", _) => Ok(Size::All),
            (_, Ok(n)) => Ok(Size::Cases(n)),
            _ => Err(Error::usage(format!("`{text}` is no size: a number of cases, or all"))),
        }
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        size.to_string()
    }
}

impl TryFrom<String> for Size {
    type Error = Error;

    fn try_from(text: String) -> Result<Size> {
        text.parse()
    }
}

/// What changes what comes out, beside method, base, data, steps and learning rate: shared, or a row's own.
const OPTIONS: [&str; 26] = [
    "k",
    "ratio",
    "budget",
    "score",
    "group",
    "selection_loss",
    "rank",
    "biases",
    "decoder",
    "batch",
    "optimizer",
    "weight_decay",
    "adam_eps",
    "lr_scaling",
    "lr_base_width",
    "decoder_lr",
    "image_size",
    "resize",
    "augment",
    "axis",
    "window",
    "channel",
    "context",
    "labels",
    "threshold",
    "dtype",
];

/// What is compared.
#[derive(Debug, Clone)]
pub struct Request {
    /// What every training shares.
    config: Config,
    rows: Vec<Row>,
    /// The only size that learning rates are tried at; each at its own by default.
    tuned_at: Option<Size>,
    sizes: Vec<Size>,
    seeds: Vec<u64>,
    steps: usize,
    /// Multiples of each method's own learning rate.
    lrs: Vec<f64>,
    /// The first of the seeds and those after it, that each of them is tried with.
    trial_seeds: Vec<u64>,
    /// How many of the seeds train again with twice the steps.
    doubled_seeds: usize,
    out: PathBuf,
}

impl Request {
    /// Checks what was asked for. The configuration's `seed` is the first of the seeds and of the trials' seeds, and that of
    /// the split.
    ///
    /// # Errors
    /// A usage error for unknown methods, for what is named twice, and for keys that have no place in a comparison.
    pub fn new(
        config: Config,
        methods: Vec<String>,
        seeds: u64,
        sizes: Vec<Size>,
        Trials { lrs, seeds: trial_seeds, tuned_at }: Trials,
        doubled_seeds: u64,
    ) -> Result<Request> {
        let rows = methods.iter().map(|name| Row::parse(name, &OPTIONS)).collect::<Result<Vec<_>>>()?;
        rows.iter().try_for_each(|row| row.config(&config).map(|_| ()))?;
        for (key, set) in [
            ("minutes", config.minutes.is_some()),
            ("lr", config.lr.is_some()),
            ("selection", config.selection.is_some()),
            ("sizes", config.sizes.is_some()),
            ("networks", config.networks > 1),
        ] {
            if set {
                return Err(Error::usage(format!("the key `{key}` has no place in a comparison"))
                    .hint("it counts --steps, tries --lrs, selects in every cell, takes its sizes from --sizes and its seeds from --seeds"));
            }
        }
        let twice = |words: Vec<String>| words.iter().enumerate().any(|(i, w)| words[..i].contains(w));
        if twice(methods)
            || twice(sizes.iter().map(Size::to_string).collect())
            || twice(lrs.iter().map(f64::to_string).collect())
        {
            return Err(Error::usage("--methods, --sizes and --lrs name nothing twice"));
        }
        if rows.is_empty() || sizes.is_empty() || lrs.is_empty() || seeds == 0 || trial_seeds == 0 {
            return Err(Error::usage("--methods, --sizes, --lrs, --seeds and --trial-seeds need at least one each"));
        }
        if doubled_seeds == 0 || doubled_seeds > seeds {
            return Err(Error::usage(format!("--doubled-seeds {doubled_seeds}: 1 to {seeds}, the first of --seeds")));
        }
        if lrs.iter().any(|lr| !(*lr > 0.0 && lr.is_finite())) {
            return Err(Error::usage("--lrs are multiples above 0"));
        }
        let name = named::name_of(Path::new(&config.dataset));
        let out = config.out.clone().unwrap_or_else(|| Path::new("compare").join(name));
        let [seeds, trial_seeds] =
            [seeds, trial_seeds].map(|n| (0..n).map(|i| config.seed.wrapping_add(i)).collect::<Vec<_>>());
        let steps = config.steps.unwrap_or(STEPS);
        Ok(Request {
            config,
            rows,
            tuned_at,
            sizes,
            seeds,
            steps,
            lrs,
            trial_seeds,
            doubled_seeds: doubled_seeds as usize,
            out,
        })
    }

    fn cell_file(&self, row: &Row, size: Size, seed: u64) -> PathBuf {
        self.out.join("cells").join(format!("{}-{size}-{seed}.json", row.file_name()))
    }

    fn runs(&self) -> PathBuf {
        self.out.join("runs")
    }

    fn selections(&self) -> PathBuf {
        self.runs().join("selections")
    }

    fn split_seed(&self) -> u64 {
        self.config.split_seed.unwrap_or(self.config.seed)
    }

    /// The settings that all trainings share and that change what comes out.
    fn options(&self) -> Result<Map<String, Value>> {
        // What results of before these keys do not say is the default.
        const LATER: [&str; 12] = [
            "ratio",
            "budget",
            "score",
            "group",
            "selection_loss",
            "rank",
            "optimizer",
            "weight_decay",
            "lr_scaling",
            "lr_base_width",
            "decoder_lr",
            "dtype",
        ];
        let mut config = self.config.clone();
        if config.ratio.is_none() && config.budget.is_none() {
            config.k.get_or_insert(1);
        }
        let all = serde_json::to_value(&config).map_err(|e| Error::job(format!("configuration: {e}")))?;
        let default = serde_json::to_value(Config::default()).map_err(|e| Error::job(format!("configuration: {e}")))?;
        let said = OPTIONS.iter().filter(|name| !(LATER.contains(name) && all[**name] == default[**name]));
        Ok(said.map(|name| (name.to_string(), all[*name].clone())).collect())
    }

    /// The setup of a cell, with what this request says instead: all but the data and the base, which a report does not read.
    fn like(&self, setup: &Setup) -> Result<Setup> {
        let mut options = self.options()?;
        // Whether the data are volumes is not known here.
        options.extend(setup.options.get_key_value("spacing").map(|(key, value)| (key.clone(), value.clone())));
        let (lrs, tuned_at, steps) = (self.lrs.clone(), self.tuned_at, self.steps);
        let (trial_seeds, doubled_seeds) = (self.trial_seeds.len(), self.doubled_seeds);
        Ok(Setup {
            lrs,
            trial_seeds,
            doubled_seeds,
            tuned_at,
            steps,
            options,
            split_seed: self.split_seed(),
            ..setup.clone()
        })
    }

    /// The configuration of one training.
    fn training(&self, row: &Row, setup: &Setup, folder: PathBuf) -> Result<Config> {
        Ok(Config {
            sizes: setup.size.cases(),
            steps: Some(setup.steps),
            lr: Some(setup.lr),
            seed: setup.seed,
            split_seed: Some(setup.split_seed),
            out: Some(folder),
            ..row.config(&self.config)?
        })
    }
}

/// The cases of one size.
struct Sides {
    size: Size,
    splits: Splits,
    /// Cases that show whether twice the steps help.
    left_out: Vec<Case>,
    /// With and without the test cases.
    data_hash: String,
    learning_hash: String,
}

/// Trains what is not there yet.
///
/// # Errors
/// What a training answers; a usage error when a file was made with other settings; [`Kind::Interrupted`] when the user
/// asked to stop: all that is done is kept, and the same call goes on.
pub fn fill(request: &Request, replace: Replace, progress: &Progress) -> Result<()> {
    signal::listen()?;
    let mut bases = BTreeMap::new();
    for row in &request.rows {
        let config = row.config(&request.config)?;
        let base = base::load(&config.model)?;
        select::preprocessing(&config, &base.config)?;
        super::check_dtype(&device::choose(&config.device)?, config.dtype)?;
        bases.insert(row.name.clone(), base.sha256);
    }
    let work = Work { request, bases, replace, progress };
    let sides = request.sizes.iter().map(|size| work.sides(*size)).collect::<Result<Vec<_>>>()?;
    let tuned = request.tuned_at.map(|size| work.sides(size)).transpose()?;
    sides.iter().try_for_each(|sides| work.check(sides, tuned.as_ref().unwrap_or(sides)))?;
    for folder in ["trials", "cells", "runs"].map(|name| request.out.join(name)) {
        std::fs::create_dir_all(&folder).map_err(|e| Error::writing(&folder, &e))?;
    }
    let lock = Run { folder: request.runs() }.lock()?;
    sides.iter().try_for_each(|sides| work.fill(sides, tuned.as_ref().unwrap_or(sides)))?;
    drop(lock);
    // Stays when something else is in there, such as a training of another call that was stopped.
    let _ = std::fs::remove_dir_all(request.selections());
    let _ = std::fs::remove_file(request.runs().join(".lock"));
    let _ = std::fs::remove_dir(request.runs());
    Ok(())
}

struct Work<'a> {
    request: &'a Request,
    /// SHA-256 of each row's base.
    bases: BTreeMap<String, String>,
    replace: Replace,
    progress: &'a Progress,
}

impl Work<'_> {
    fn sides(&self, size: Size) -> Result<Sides> {
        let split_seed = Some(self.request.split_seed());
        let config = Config { sizes: size.cases(), split_seed, ..self.request.config.clone() };
        let splits = select::prepare(&config, self.progress)?;
        let left_out = self.left_out(size, &splits)?;
        let data_hash = data::data_hash(&splits)?;
        let learning_hash = data::data_hash(&Splits { test: Vec::new(), ..splits.clone() })?;
        Ok(Sides { size, splits, left_out, data_hash, learning_hash })
    }

    /// A setup whose learning rate is still open.
    fn setup(&self, row: &Row, sides: &Sides, seed: u64, data_hash: String) -> Result<Setup> {
        let mut options = self.request.options()?;
        // Pictures have no scale, and results of before there was one were without.
        if sides.splits.dataset.form == Form::Volumes && self.request.config.spacing != Spacing::Off {
            options.insert("spacing".into(), json!(self.request.config.spacing));
        }
        Ok(Setup {
            method: row.name.clone(),
            size: sides.size,
            seed,
            lr: 0.0,
            lr_multiple: 0.0,
            lrs: Vec::new(),
            trial_seeds: 1,
            doubled_seeds: 1,
            tuned_at: None,
            steps: self.request.steps,
            split_seed: self.request.split_seed(),
            base_sha256: self.bases[&row.name].clone(),
            data_hash,
            options,
        })
    }

    fn cell_setup(&self, row: &Row, sides: &Sides, seed: u64, lr: f64, lr_multiple: f64) -> Result<Setup> {
        let setup = self.setup(row, sides, seed, sides.data_hash.clone())?;
        let Request { lrs, tuned_at, trial_seeds, doubled_seeds, .. } = self.request;
        let (lrs, trial_seeds, doubled_seeds) = (lrs.clone(), trial_seeds.len(), *doubled_seeds);
        Ok(Setup { lr, lr_multiple, lrs, trial_seeds, doubled_seeds, tuned_at: *tuned_at, ..setup })
    }

    /// Refuses files of other settings before anything is trained.
    fn check(&self, sides: &Sides, tuned: &Sides) -> Result<()> {
        for row in &self.request.rows {
            for (multiple, seed) in self.request.trials() {
                let wanted = self.trial_setup(row, tuned, multiple, seed)?;
                let path = self.request.trial_file(row, tuned.size, multiple, seed);
                cell::known::<Trial>(&path, &wanted, self.replace)?;
            }
            for seed in &self.request.seeds {
                let path = self.request.cell_file(row, sides.size, *seed);
                if let Some(cell) = cell::read::<Cell>(&path)? {
                    // Which rate is right is not known before the trials are done.
                    let wanted = self.cell_setup(row, sides, *seed, cell.setup.lr, cell.setup.lr_multiple)?;
                    let known = cell::known::<Cell>(&path, &wanted, self.replace)?;
                    if let Some(judges) = known.and_then(|cell| twice::judges(&cell)) {
                        twice::check_judge(&path, judges, sides.left_out.len())?;
                    }
                }
            }
        }
        Ok(())
    }

    fn fill(&self, sides: &Sides, tuned: &Sides) -> Result<()> {
        let rows = &self.request.rows;
        let chosen = rows.iter().map(|row| self.tune(row, tuned)).collect::<Result<Vec<_>>>()?;
        if chosen.iter().any(|c| c.trials != chosen[0].trials) {
            return Err(Error::job("the methods did not get the same number of trials").at(&self.request.out));
        }
        for seed in &self.request.seeds {
            for (row, chosen) in rows.iter().zip(&chosen) {
                self.cell(row, sides, *seed, *chosen)?;
            }
        }
        Ok(())
    }

    fn cell(&self, row: &Row, sides: &Sides, seed: u64, chosen: Chosen) -> Result<()> {
        let path = self.request.cell_file(row, sides.size, seed);
        let setup = self.cell_setup(row, sides, seed, chosen.lr, chosen.multiple)?;
        if cell::known::<Cell>(&path, &setup, self.replace)?.is_some() {
            return Ok(());
        }
        self.say(&format!("{}, {} cases, seed {seed}", row.name, sides.size));
        let folder = self.request.runs().join(format!("{}-{}-{seed}", row.file_name(), sides.size));
        let metrics = self.train(row, &setup, sides, Judge::Test, &folder)?;
        let doubled_folder = folder.with_file_name(format!("{}-{}-{seed}-doubled", row.file_name(), sides.size));
        let mut left_out = None;
        let mut doubled = None;
        let asked = self.request.is_doubled(seed);
        if asked {
            self.say(&format!("{}, {} cases, seed {seed}, twice the steps", row.name, sides.size));
            let setup = Setup { steps: 2 * setup.steps, ..setup.clone() };
            doubled = self.validated(row, &setup, sides, &doubled_folder)?;
            if let Some(mdice) = self.judged_by_others(row, sides, &folder)? {
                let mdice_doubled = match doubled {
                    Some(_) => self.judged_by_others(row, sides, &doubled_folder)?,
                    None => None,
                };
                left_out = Some(LeftOut { cases: sides.left_out.len(), mdice, mdice_doubled });
            }
        }
        let cell = Cell {
            setup,
            trials: chosen.trials,
            mdice: metrics.mdice,
            miou: metrics.miou,
            validation_mdice: metrics.validation_mdice,
            validation_mdice_doubled: doubled,
            left_out,
            converged: asked.then_some(false),
            trained_parameters: metrics.trained_parameters,
            parameters: metrics.parameters,
            trained_encoder_parameters: Some(metrics.trained_encoder_parameters),
            encoder_parameters: Some(metrics.encoder_parameters),
            patch_bytes: metrics.patch_bytes,
            extra_inference: Some(self.extra_inference(row, &folder)?),
            seconds_per_step: metrics.seconds_per_step,
            peak_rss_mib: metrics.peak_rss_mib,
            device: metrics.device,
            cases: metrics.metric_per_case.iter().map(|case| (case.case.clone(), dice(case))).collect(),
        };
        let converged = cell.moved().map(|moved| moved.abs() < STILL);
        let cell = Cell { converged, ..cell };
        cell::write(&path, &cell)?;
        self.remove(&folder)?;
        self.remove(&doubled_folder)
    }

    /// What the fine-tune in a run folder adds to the time of encoding a picture.
    fn extra_inference(&self, row: &Row, folder: &Path) -> Result<f64> {
        let config = row.config(&self.request.config)?;
        let patch = Patch::load(&Run { folder: folder.to_path_buf() }.patch())?;
        let mut tuned = base::load(&config.model)?;
        patch.turn(&mut tuned, Direction::Apply)?;
        let device = device::choose(&config.device)?.device;
        Ok(bench::extra_time(base::load(&config.model)?, tuned, patch.about.preprocessing.image_size, &device))
    }

    /// The validation mDice of a training that never sees a test case; `None` when the loss ran away.
    fn validated(&self, row: &Row, setup: &Setup, sides: &Sides, folder: &Path) -> Result<Option<f64>> {
        match self.train(row, setup, sides, Judge::Validation, folder) {
            Ok(metrics) => Ok(Some(metrics.validation_mdice)),
            Err(e) if e.kind == Kind::Diverged => {
                self.progress.warn(&e.message);
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn train(&self, row: &Row, setup: &Setup, sides: &Sides, judge: Judge, folder: &Path) -> Result<Metrics> {
        // A signal that comes between two trainings is seen by nobody else.
        if signal::stopped() {
            return Err(Error::new(Kind::Interrupted, "stopped, what is done is kept").hint(GO_ON));
        }
        let shared = self.shared_selection(row, setup, sides)?;
        let selection = shared.clone().filter(|path| path.is_file());
        let config = Config { selection, ..self.request.training(row, setup, folder.to_path_buf())? };
        return_freed_memory();
        let counted = forget_peak();
        let metrics = train::complete(config, sides.splits.clone(), &setup.base_sha256, judge, self.progress);
        let metrics = metrics.map_err(|e| if e.kind == Kind::Interrupted { e.hint(GO_ON) } else { e })?;
        let mut metrics: Metrics =
            serde_json::from_value(metrics).map_err(|e| Error::job(format!("metrics: {e}")).at(folder))?;
        // A run that failed its proof has written its figures all the same.
        if !metrics.frozen_weights_unchanged {
            return Err(Error::job("weights moved that must not").at(folder));
        }
        if metrics.seconds > LONG_SECONDS && setup.steps == self.request.steps {
            self.progress.warn(format!("this training took {:.0} s: fewer --steps?", metrics.seconds));
        }
        let patch = Run { folder: folder.to_path_buf() }.patch();
        metrics.patch_bytes = Some(std::fs::metadata(&patch).map_err(|e| Error::reading(&patch, &e))?.len());
        if counted.is_none() {
            metrics.peak_rss_mib = None;
        }
        if let Some(shared) = shared.filter(|path| !path.is_file()) {
            Selection::load(&Run { folder: folder.to_path_buf() }.selection())?.save(&shared)?;
        }
        Ok(metrics)
    }

    /// Where the selection of these cases, base and settings is or will be; `None` for a method that reads no cases.
    fn shared_selection(&self, row: &Row, setup: &Setup, sides: &Sides) -> Result<Option<PathBuf>> {
        let settings = row.config(&self.request.config)?.settings();
        if method::rule(method::find(&row.method)?, &settings).is_none_or(|rule| rule.score.needs().is_empty()) {
            return Ok(None);
        }
        let folder = self.request.selections();
        std::fs::create_dir_all(&folder).map_err(|e| Error::writing(&folder, &e))?;
        let decided = format!("{} {} {}", setup.base_sha256, sides.learning_hash, json!(setup.options));
        let name = format!("{}-{}.safetensors", row.file_name(), hex(&Sha256::digest(decided)));
        Ok(Some(folder.join(name)))
    }

    /// Takes a run folder away whose result is written.
    fn remove(&self, folder: &Path) -> Result<()> {
        self.progress.end_log();
        match std::fs::remove_dir_all(folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::writing(folder, &e)),
            _ => Ok(()),
        }
    }

    fn say(&self, what: &str) {
        self.progress.line(format!("== {what}"));
    }
}

/// What a comparison reads of a metrics.json.
#[derive(Deserialize)]
struct Metrics {
    #[serde(rename = "mDice")]
    mdice: Option<f64>,
    #[serde(rename = "mIoU")]
    miou: Option<f64>,
    #[serde(rename = "validation_mDice")]
    validation_mdice: f64,
    trained_parameters: usize,
    parameters: usize,
    trained_encoder_parameters: usize,
    encoder_parameters: usize,
    /// Read from the file itself.
    #[serde(skip)]
    patch_bytes: Option<u64>,
    seconds_per_step: Option<f64>,
    seconds: f64,
    peak_rss_mib: Option<u64>,
    device: String,
    frozen_weights_unchanged: bool,
    metric_per_case: Vec<CaseMetrics>,
}

/// Mean Dice of a case over its foreground classes; `None` where none is defined.
fn dice(case: &CaseMetrics) -> Option<f64> {
    let defined: Vec<f64> =
        case.metrics.iter().filter(|(class, _)| **class != 0).filter_map(|(_, metrics)| metrics.dice).collect();
    (!defined.is_empty()).then(|| defined.iter().sum::<f64>() / defined.len() as f64)
}
