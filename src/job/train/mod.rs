//! `train`: select, fine-tune, validate, test, and write a run folder.

mod around;
mod networks;
mod reference;

use super::case::{prompt_free, result_path};
use super::forecast::{self, Memory};
use super::{base, report, select};
use crate::config::Config;
use crate::data::{self, Case, Splits};
use crate::device::{self, available_memory, peak_rss_mib};
use crate::error::{Error, Kind, Result};
use crate::io::{Replace, write_atomic};
use crate::method::{self, Counts};
use crate::model::checkpoint::{self, Checkpoint};
use crate::model::sam::{Activations, Cache};
use crate::model::{Sam, SamConfig};
use crate::predict::{Predictor, Preprocessing};
use crate::progress::Progress;
use crate::run::Run;
use crate::score::{self, Report};
use crate::signal;
use crate::train::batch::Augment;
use crate::train::{Options, State, batch};
use crate::tune::course::{Course, Terms};
use crate::tune::optimizer;
use crate::tune::patch::{self, About, Patch};
use crate::tune::proof::{self, Proof};
use crate::tune::scaling::Scaling;
use crate::tune::selection::Selection;
use around::{Around, Clock};
use networks::{Candidate, Training};
pub(super) use reference::{Reference, Validated, judging};
use serde_json::json;
use std::sync::Arc;

/// Steps between two saved states.
const SAVE_EVERY: usize = 50;

/// What is kept of pictures where the encoder's blocks are frozen may fill one part in so many of the memory at hand; where the system does not tell, a
/// GiB.
const EMBEDDINGS_SHARE: u64 = 4;

/// What a training came to.
#[derive(Debug)]
pub struct Outcome {
    /// The run folder.
    pub run: Run,
    /// Scores of the cases that judge it.
    pub report: Report,
    /// metrics.json.
    pub metrics: serde_json::Value,
}

/// Which cases judge a training when it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judge {
    /// The test cases.
    Test,
    /// The validation cases again: the training does not even know the test cases.
    Validation,
}

/// Trains from the start.
///
/// # Errors
/// Exit codes as the contract's table; nothing of a run is lost when it is interrupted.
pub fn start(config: Config, replace: Replace, progress: &Progress) -> Result<Outcome> {
    // Before the pictures are read: a missing device is known at once.
    super::check_dtype(&device::choose(&config.device)?, config.dtype)?;
    Run::check_free(config.out.as_deref(), replace)?;
    let splits = select::prepare(&config, progress)?;
    let outcome = begin(config, splits, Judge::Test, replace, progress)?;
    crown(&outcome.run, progress);
    Ok(outcome)
}

/// A training that the user asked for is over: `runs/latest` names it, and it gets its page. It is whole without both;
/// `segft report` makes the page again.
fn crown(run: &Run, progress: &Progress) {
    tell_latest(run, progress);
    match report::run(run, None, Replace::Allowed) {
        Ok(made) => {
            progress.line(format!("report       {}", made.path.display()));
            if let Some(warning) = made.warning() {
                progress.warn(warning);
            }
        }
        Err(error) => progress.warn(format!("no report: {error}")),
    }
}

/// The run is whole; that the current folder cannot be written is no reason to fail.
fn tell_latest(run: &Run, progress: &Progress) {
    if let Err(error) = run.mark_latest() {
        progress.warn(format!("{error}: name this run with --run {}", run.folder.display()));
    }
}

fn begin(config: Config, splits: Splits, judge: Judge, replace: Replace, progress: &Progress) -> Result<Outcome> {
    signal::listen()?;
    // Everything that can be refused is refused before a folder is made.
    let device = device::choose(&config.device)?;
    super::check_dtype(&device, config.dtype)?;
    let base = base::load(&config.model)?;
    let (config, ready) = Ready::read(config, &splits, &base, progress)?;
    let run = Run::create(config.out.as_deref(), &splits.dataset.name, &config.method, replace)?;
    let lock = run.lock()?;
    let text = config.to_toml()?;
    write_atomic(&run.config(), |to| to.write_all(text.as_bytes()))?;
    let outcome = Job { config, run: run.clone(), splits, device, judge, progress }.go(base, ready, State::default());
    drop(lock);
    outcome.map_err(|e| resumable(e, &run))
}

/// What a training reads before its folder is made: a refusal leaves nothing behind.
pub(super) struct Ready {
    pub(super) preprocessing: Preprocessing,
    pub(super) samples: Vec<batch::Sample>,
    pub(super) validation: Vec<Reference>,
    pub(super) given: Option<Selection>,
}

impl Ready {
    /// Bytes of it.
    pub(super) fn bytes(&self) -> u64 {
        let samples: usize = self.samples.iter().map(batch::Sample::bytes).sum();
        let cases: usize = self.validation.iter().map(Reference::bytes).sum();
        (samples + cases) as u64
    }

    /// Reads it, and fills in what the configuration leaves to the method and to a given selection: what is written
    /// into the run is what was used.
    pub(super) fn read(
        mut config: Config,
        splits: &Splits,
        base: &Checkpoint,
        progress: &Progress,
    ) -> Result<(Config, Ready)> {
        let preprocessing = select::preprocessing_at_scale(&config, &base.config, splits)?;
        let given = match config.selection.clone() {
            Some(path) => {
                let selection = Selection::load(&path)?;
                selection.check(&base.config.specs(), &base.sha256).map_err(|e| e.at(&path))?;
                config = config
                    .with_selection(selection.budget, selection.score, selection.group, selection.loss)
                    .map_err(|e| e.at(&path))?;
                check_cases(&selection, splits, config.allow_leak, progress).map_err(|e| e.at(&path))?;
                Some(selection)
            }
            None => None,
        };
        let form = splits.dataset.form;
        let config = select::settled(config, form)?;
        check_size(&config, &base.config)?;
        let samples = batch::load(&splits.train, form, &preprocessing)?;
        select::check_foreground(&samples, splits, &preprocessing, progress)?;
        select::check_contrast(&config, &samples, splits)?;
        let validation = Reference::read(&splits.validation, form, &preprocessing)?;
        if validation.iter().all(|case| case.reference.voxels.iter().all(|v| *v == 0)) {
            progress.warn("no validation case has foreground: the first epoch and threshold ½ are as good as any");
        }
        signal::check()?;
        Ok((config, Ready { preprocessing, samples, validation, given }))
    }
}

/// Whether what is asked for fits the network: known before anything is read.
fn check_size(config: &Config, network: &SamConfig) -> Result<()> {
    if method::find(&config.method)?.rule().is_some() {
        config.settings().budget.check(&network.specs())?;
    }
    // More than a layer has inputs is no low rank, and more prompts than patches no prompting.
    let most = network.embed.max((network.image_size / network.patch).pow(2));
    match config.rank.filter(|rank| *rank > most) {
        None => Ok(()),
        Some(rank) => Err(Error::usage(format!("--rank {rank} is too large for this network: at most {most}"))),
    }
}

/// A selection that has seen cases which choose or judge is a leak, as a training that has.
fn check_cases(selection: &Selection, splits: &Splits, allow_leak: bool, progress: &Progress) -> Result<()> {
    let held_out = splits.validation.iter().chain(&splits.test).map(|case| &case.id);
    let trained = |id: &String| splits.train.iter().any(|case| case.id == *id);
    let seen: Vec<&String> = held_out.filter(|id| selection.cases.contains(id) && !trained(id)).collect();
    let Some(first) = seen.first() else { return Ok(()) };
    let message =
        format!("the selection has seen {} of this run's validation and test cases, as `{first}`", seen.len());
    if allow_leak {
        progress.warn(message);
        return Ok(());
    }
    Err(Error::data(format!("leak: {message}"))
        .hint("select with the same --seed and --sizes; --allow-leak trains all the same, and the scores mean little"))
}

/// Goes on where a run was stopped: with the configuration it was started with.
///
/// # Errors
/// As [`start`]; a data error when cases changed since, a usage error when the run is complete.
pub fn resume(run: Run, progress: &Progress) -> Result<Outcome> {
    if run.is_completed() {
        // Perhaps it was ended just before it could be marked.
        if run.was_not_marked() {
            tell_latest(&run, progress);
        }
        return Err(Error::usage("the run is complete: nothing to resume").at(run.folder));
    }
    let config = Config::load(&run.config())?;
    let splits = select::prepare(&config, progress)?;
    let outcome = go_on(run, config, splits, Judge::Test, progress)?;
    crown(&outcome.run, progress);
    Ok(outcome)
}

fn go_on(run: Run, config: Config, splits: Splits, judge: Judge, progress: &Progress) -> Result<Outcome> {
    signal::listen()?;
    let lock = run.lock()?;
    let device = device::choose(&config.device)?;
    super::check_dtype(&device, config.dtype)?;
    let base = base::load(&config.model)?;
    check_record(&run, &splits, &base.sha256)?;
    // The run's own selection stands in its folder; the file it came from may be gone.
    let given = config.selection.clone().filter(|_| !run.selection().is_file());
    let (config, ready) = Ready::read(Config { selection: given, ..config }, &splits, &base, progress)?;
    let state = saved(&run, 0)?;
    progress.line(format!("resuming {} after {} epochs", run.folder.display(), state.epoch));
    let outcome = Job { config, run: run.clone(), splits, device, judge, progress }.go(base, ready, state);
    drop(lock);
    outcome.map_err(|e| resumable(e, &run))
}

/// What was interrupted once its folder was there goes on from there.
fn resumable(error: Error, run: &Run) -> Error {
    match error.kind {
        Kind::Interrupted => {
            let hint = format!("go on with `segft train --resume {}`", run.folder.display());
            error.at(&run.folder).hint(hint)
        }
        _ => error,
    }
}

/// Where one of several networks of a run was stopped, or the start.
fn saved(run: &Run, network: usize) -> Result<State> {
    let path = run.state(network);
    if path.is_file() { State::load(&path) } else { Ok(State::default()) }
}

/// Does what is still to do of a training in `config.out`: all of it, the rest of a stopped one, or nothing. What lies
/// there from other settings, cases or weights is replaced. The answer is the run's metrics.json.
pub(super) fn complete(
    config: Config,
    mut splits: Splits,
    base_sha256: &str,
    judge: Judge,
    progress: &Progress,
) -> Result<serde_json::Value> {
    if judge == Judge::Validation {
        splits.test.clear();
    }
    let run = Run { folder: config.out.clone().unwrap_or_default() };
    // What stands in a run's folder is settled.
    let config = select::settled(config, splits.dataset.form)?;
    let mine = Config::load(&run.config()).is_ok_and(|there| there == config)
        && check_record(&run, &splits, base_sha256).is_ok();
    if mine && run.is_completed() {
        let text = std::fs::read_to_string(run.metrics()).map_err(|e| Error::reading(run.metrics(), &e))?;
        return serde_json::from_str(&text).map_err(|e| Error::data(format!("metrics: {e}")).at(run.metrics()));
    }
    let outcome = match mine {
        true => go_on(run, config, splits, judge, progress)?,
        false => begin(config, splits, judge, Replace::Allowed, progress)?,
    };
    Ok(outcome.metrics)
}

struct Job<'a> {
    config: Config,
    run: Run,
    splits: Splits,
    device: device::Chosen,
    judge: Judge,
    progress: &'a Progress,
}

impl Job<'_> {
    fn go(self, base: Checkpoint, ready: Ready, state: State) -> Result<Outcome> {
        let (config, run, progress) = (&self.config, &self.run, self.progress);
        progress.log_to(&run.log());
        self.introduce(&base);
        select::tell_spacing(&ready.preprocessing, config, self.splits.dataset.form, progress);
        self.record(&select::about(&base), ready.preprocessing.spacing_mm, None, &[])?;
        let method = method::find(&config.method)?;
        let (parameters, encoder_parameters) = checkpoint::counts(&base.config.specs());
        let mut memory = Memory { data: ready.bytes(), weights: 4 * parameters as u64, ..Memory::default() };
        let Ready { preprocessing, samples, validation, given } = ready;
        let specs = base.config.specs();
        let about = select::about(&base);
        let before = proof::fingerprints(&base.tensors);
        let mut sam = base.into_sam(&self.device.device);
        let size = preprocessing.image_size;
        let need = forecast::selection(&sam.config, size, select::sums(config), Activations::Kept);
        sam.activations = forecast::activations(config.recompute, need, &self.device);
        if select::sums(config) > 0 && !run.selection().is_file() && given.is_none() {
            memory.selection = forecast::selection(&sam.config, size, select::sums(config), sam.activations);
        }
        let selection = match method.rule() {
            Some(_) => Some(self.selection(&sam, &about, &samples, given)?),
            None => None,
        };
        let plan = method::plan(method, &specs, selection.as_ref().map(|s| &s.chosen), &config.settings());
        let counts = method::counts(&specs, &plan);
        self.say_counts(&counts, encoder_parameters, parameters);

        // Further networks start from the same base.
        let fresh = (config.networks > 1).then(|| sam.clone());
        let old = patch::capture(&sam.weights, &plan);
        crate::tune::attach(&mut sam, &plan, &self.device.device);
        sam.weights.compute_in(config.dtype);
        let options = options(config, method);
        let optimizer::Settings { algorithm, scaling, .. } = options.optimizer;
        scaling.lines(&sam, algorithm.family()).iter().for_each(|line| progress.detail(line));
        if let Some(rate) = config.decoder_lr {
            progress.detail(format!("decoder      learns at {rate:e} where that says lr"));
        }
        let need = forecast::training(&sam, size, options.batch, Activations::Kept);
        sam.activations = forecast::activations(config.recompute, need, &self.device);
        memory.training =
            forecast::training(&sam, size, options.batch, sam.activations) + forecast::waiting(&sam, config.networks);
        if sam.activations == Activations::Recomputed {
            progress.line("memory       blocks of the encoder are run again in backward: less memory, more time");
        }
        let embeddings = self.embeddings(&sam);
        if embeddings.is_some() {
            let pictures = embedded(&samples, &validation, &options, &preprocessing) as u64;
            memory.embeddings = embeddings_limit(&self.device).min(pictures * forecast::embedding(&sam, size));
        }
        let cases = Validated { cases: &validation, preprocessing: &preprocessing, embeddings: embeddings.clone() };
        let training = Training { method, samples: &samples, validation: &cases, old: &old, options: &options };
        let first = self.train(Candidate::new(config.settings(), plan, sam, state), &training, 0)?;
        let (best, networks) = match fresh {
            None => (first, Vec::new()),
            Some(fresh) => self.best_of(first, &fresh, &training)?,
        };
        let Candidate { sam, state, .. } = &best;
        let threshold = match config.threshold {
            Some(threshold) => threshold,
            None => self.choose_threshold(sam, &cases)?,
        };
        if let Some(counts) = embeddings.map(|cache| cache.counts()) {
            progress.line(format!(
                "embeddings   {} computed ({} MiB kept), {} times found again",
                counts.computed,
                counts.bytes >> 20,
                counts.found
            ));
        }

        let proof = self.finish(&best, &old, &before, &about, &preprocessing, threshold)?;
        let report = self.test(sam, &preprocessing, threshold)?;
        let mut metrics = self.metrics(&report, &counts, &proof, state, [parameters, encoder_parameters], threshold)?;
        metrics["forecast"] = json!({ "peak_rss_mib": memory.peak_mib(), "seconds": best.forecast });
        if let Some(peak) = peak_rss_mib() {
            progress.line(format!("memory       forecast {} MiB at its peak, was {peak} MiB", memory.peak_mib()));
        }
        let text = serde_json::to_string_pretty(&metrics).map_err(|e| Error::job(format!("metrics: {e}")))?;
        if !proof.moved.is_empty() {
            write_atomic(&run.metrics(), |to| to.write_all(text.as_bytes()))?;
            return Err(Error::job(format!("weights moved that must not: {}", proof.moved.join(", ")))
                .at(&run.folder)
                .hint("this is a defect of segft: please report it with the run's log.txt"));
        }
        self.record(&about, preprocessing.spacing_mm, Some(state), &networks)?;
        let table = report.csv()?;
        write_atomic(&run.per_case(), |to| to.write_all(table.as_bytes()))?;
        write_atomic(&run.metrics(), |to| to.write_all(text.as_bytes()))?;
        Ok(Outcome { run: run.clone(), report, metrics })
    }

    fn introduce(&self, base: &Checkpoint) {
        let (splits, progress) = (&self.splits, self.progress);
        progress.line(format!("run folder   {}", self.run.folder.display()));
        progress.line(format!("device       {}", self.device.name));
        progress.line(format!(
            "data         {}: {}; {} training, {} validation, {} test cases ({})",
            splits.dataset.name,
            splits.dataset.layout,
            splits.train.len(),
            splits.validation.len(),
            splits.test.len(),
            splits.rule
        ));
        progress.line(format!("base model   {} ({})", base.name, base.origin));
        progress.detail(format!("base SHA-256 {}", base.sha256));
        splits.warnings.iter().for_each(|w| progress.warn(w));
        if let Some(warning) = base::warning(base) {
            progress.warn(warning);
        }
    }

    fn say_counts(&self, counts: &Counts, encoder: usize, all: usize) {
        let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole as f64;
        self.progress.line(format!(
            "training     {} of {} weights ({:.2} %); {} of the encoder ({:.3} % of it): {} selected, {} biases, {} added, {} others",
            counts.trained,
            all,
            percent(counts.trained, all),
            counts.encoder,
            percent(counts.encoder, encoder),
            counts.selected_encoder_weights,
            counts.encoder_biases,
            counts.added,
            counts.encoder - counts.selected_encoder_weights - counts.encoder_biases - counts.added,
        ));
    }

    /// The selection of an earlier part of this run, a given one, or a new one.
    fn selection(
        &self,
        sam: &Sam,
        about: &(String, String),
        samples: &[batch::Sample],
        given: Option<Selection>,
    ) -> Result<Selection> {
        let mine = self.run.selection();
        if mine.is_file() {
            return Selection::load(&mine);
        }
        let selection = match given {
            Some(selection) => selection,
            None => {
                select::select(sam, about, samples, &self.splits, &self.config, self.progress, &self.device.device)?
            }
        };
        selection.save(&mine)?;
        Ok(selection)
    }

    /// Where embeddings, or what a side network makes them of, are kept, if the encoder's blocks do not train.
    fn embeddings(&self, sam: &Sam) -> Option<Arc<Cache>> {
        if !sam.blocks_are_frozen() {
            return None;
        }
        let limit = embeddings_limit(&self.device);
        let (what, are) = if sam.has_side() { ("outputs of its blocks", "are") } else { ("embedding", "is") };
        self.progress.line(format!(
            "embeddings   the encoder is frozen: a picture's {what} {are} computed once and kept, up to {} MiB in all",
            limit >> 20
        ));
        Some(Arc::new(Cache::new(limit as usize)))
    }

    /// Trains what is attached, from its state on: one of several networks, counted from 0.
    fn train(&self, one: Candidate, training: &Training<'_>, network: usize) -> Result<Candidate> {
        let Candidate { settings, plan, mut sam, state, .. } = one;
        let &Training { method, samples, validation, old, options } = training;
        let device = &self.device.device;
        if self.config.networks > 1 {
            let (number, n) = (network + 1, self.config.networks);
            self.progress.line(format!("network      {number} of {n}, from seed {}", settings.seed));
        }
        let course = Course::new(method, &plan, old, self.config.seed);
        let clock = Clock::start(validation.seconds(&sam, &self.device)?, samples.len(), options, validation);
        let (best, aligned) = (state.best_mdice(), Vec::new());
        let mut around = Around { job: self, network, validation, course, best, clock, samples, aligned };
        let in_epochs = samples.len().div_ceil(options.batch).saturating_mul(options.epochs);
        // Nobody knows how many steps fit into minutes.
        let total = if options.minutes.is_some() { 0 } else { options.steps.unwrap_or(in_epochs) };
        self.progress.start("training", total);
        let state = crate::train::run(&mut sam, samples, options, state, &mut around, device);
        self.progress.end();
        let state = state?;
        if let Some(best) = state.best.as_ref().map(|(epoch, _)| *epoch) {
            let mdice = state.best_mdice().unwrap_or(0.0);
            self.progress.line(format!("best epoch   {best}, validation mDice {mdice:.4}"));
        }
        let (forecast, took) = (around.clock.forecast, around.clock.started.elapsed().as_secs_f64());
        if let Some(forecast) = forecast {
            self.progress.line(format!(
                "time         forecast {forecast:.1} s for training and validation (if no patience ends it), took {took:.1} s"
            ));
        }
        Ok(Candidate { settings, plan, sam, state, forecast })
    }

    /// The threshold with the best validation mDice; of equals, the one nearest to ½.
    fn choose_threshold(&self, sam: &Sam, validation: &Validated<'_>) -> Result<f32> {
        let predictor = validation.predictor(sam, &self.device);
        let candidates: Vec<f32> = (3..=17).map(|i| i as f32 * 0.05).collect();
        let mut dice: Vec<Vec<f64>> = vec![Vec::new(); candidates.len()];
        for case in validation.cases {
            signal::check()?;
            let probabilities = case.input.probabilities(&predictor, prompt_free, |_, _| ())?;
            for (candidate, dice) in candidates.iter().zip(&mut dice) {
                let prediction = case.input.labels(&probabilities, *candidate);
                let counts = score::counts::count(&case.reference, &prediction);
                dice.extend(counts.get(&1).and_then(|c| c.dice()));
            }
        }
        let mean = |v: &Vec<f64>| v.iter().sum::<f64>() / v.len().max(1) as f64;
        let best = candidates.iter().zip(dice.iter().map(mean)).fold((0.5f32, f64::MIN), |best, (t, d)| {
            let nearer = (t - 0.5).abs() < (best.0 - 0.5).abs();
            if d > best.1 || (d == best.1 && nearer) { (*t, d) } else { best }
        });
        self.progress.line(format!("threshold    {:.2}, chosen on validation (mDice {:.4})", best.0, best.1.max(0.0)));
        Ok(best.0)
    }

    /// Writes the patch and proves that nothing else moved.
    fn finish(
        &self,
        best: &Candidate,
        old: &Terms,
        before: &proof::Fingerprints,
        base: &(String, String),
        preprocessing: &Preprocessing,
        threshold: f32,
    ) -> Result<Proof> {
        let Candidate { settings, plan, sam, .. } = best;
        let deltas = patch::changes(old, &sam.weights, plan);
        let proof = proof::compare(before, &sam.weights, &deltas);
        self.progress.line(format!(
            "frozen       {} of {} weights, {}",
            proof.frozen_values,
            proof.frozen_values + proof.trained_values,
            if proof.moved.is_empty() { "every byte as before" } else { "NOT ALL as before" }
        ));
        let about = About {
            method: self.config.method.clone(),
            base_name: base.0.clone(),
            base_model: self.config.model.clone(),
            base_sha256: base.1.clone(),
            form: self.splits.dataset.form,
            preprocessing: preprocessing.clone(),
            threshold,
            settings: settings.clone(),
        };
        Patch { about, deltas }.save(&self.run.patch())?;
        Ok(proof)
    }

    /// The cases that judge the training.
    fn judged(&self) -> &[Case] {
        match self.judge {
            Judge::Test => &self.splits.test,
            Judge::Validation => &self.splits.validation,
        }
    }

    /// Predicts and scores the cases that judge: test cases are read here for the first time.
    fn test(&self, sam: &Sam, preprocessing: &Preprocessing, threshold: f32) -> Result<Report> {
        let form = self.splits.dataset.form;
        let predictor = Predictor::new(sam, preprocessing, &self.device.device);
        let folder = self.run.predictions();
        std::fs::create_dir_all(&folder).map_err(|e| Error::writing(&folder, &e))?;
        let options = score::Options { seed: self.config.seed, ..score::Options::default() };
        let mut scores = Vec::new();
        let cases = self.judged();
        self.progress.start("testing", cases.len());
        for (done, case) in cases.iter().enumerate() {
            signal::check()?;
            let case = Reference::of(case, form, preprocessing)?;
            let probabilities = case.input.probabilities(&predictor, prompt_free, |_, _| ())?;
            let labels = case.input.labels(&probabilities, threshold);
            let path = result_path(&folder, &case.id, form);
            case.input.write_labels(&path, &labels)?;
            let mut score = score::evaluate_labels(&case.id, &case.reference, &labels, &options)?;
            score.reference_file = Some(case.mask.clone());
            score.prediction_file = Some(path.display().to_string());
            scores.push(score);
            self.progress.at(done + 1, "");
        }
        self.progress.end();
        Report::from_cases(scores, &options)
    }

    fn metrics(
        &self,
        report: &Report,
        counts: &Counts,
        proof: &Proof,
        state: &State,
        [parameters, encoder_parameters]: [usize; 2],
        threshold: f32,
    ) -> Result<serde_json::Value> {
        let mut metrics = report.json()?;
        let steps = state.history.last().map(|row| row.step).unwrap_or(0);
        let own = json!({
            "method": self.config.method,
            "model": self.config.model,
            "dataset": self.splits.dataset.name,
            "seed": self.config.seed,
            "epochs": state.epoch,
            "best_epoch": state.best.as_ref().map(|(epoch, _)| epoch),
            "validation_mDice": state.best_mdice(),
            "threshold": threshold,
            "steps": steps,
            "trained_parameters": counts.trained,
            "selected_encoder_weights": counts.selected_encoder_weights,
            "trained_encoder_biases": counts.encoder_biases,
            "trained_encoder_parameters": counts.encoder,
            "added_parameters": counts.added,
            "encoder_parameters": encoder_parameters,
            "parameters": parameters,
            "seconds_per_step": if steps == 0 { None } else { Some(state.seconds / steps as f64) },
            "seconds": state.seconds,
            "peak_rss_mib": peak_rss_mib(),
            "device": self.device.name,
            "frozen_weights_unchanged": proof.moved.is_empty(),
            "frozen_weights": proof.frozen_values,
        });
        for case in metrics["metric_per_case"].as_array_mut().into_iter().flatten() {
            let mine = self.judged().iter().find(|one| case["case"] == one.id.as_str());
            case["image_file"] = mine.map(|one| one.image.display().to_string()).into();
        }
        if let (Some(all), Some(own)) = (metrics.as_object_mut(), own.as_object()) {
            all.extend(own.clone());
        }
        Ok(metrics)
    }

    /// Ids of the cases that the run's selection has looked at, or will.
    fn selection_cases(&self) -> Result<Vec<String>> {
        match self.run.selection() {
            made if made.is_file() => Ok(Selection::load(&made)?.cases),
            _ => Ok(select::cases(&self.config, &self.splits)),
        }
    }

    /// What a reader needs to know where the numbers come from. Case ids only: nothing of a patient's header.
    /// `networks` is what is said of each of several.
    fn record(
        &self,
        base: &(String, String),
        spacing_mm: Option<f32>,
        state: Option<&State>,
        networks: &[serde_json::Value],
    ) -> Result<()> {
        let ids = |cases: &[Case]| cases.iter().map(|c| c.id.clone()).collect::<Vec<_>>();
        let splits = &self.splits;
        let mut record = json!({
            "segft": env!("CARGO_PKG_VERSION"),
            "burn": "0.22.1",
            "device": self.device.name,
            "threads": rayon::current_num_threads(),
            "base": {"name": base.0, "sha256": base.1},
            "dataset": {"name": splits.dataset.name, "layout": splits.dataset.layout, "hash": data::data_hash(splits)?},
            "spacing_mm": spacing_mm,
            "split_rule": splits.rule,
            "splits": {"train": ids(&splits.train), "validation": ids(&splits.validation), "test": ids(&splits.test)},
            "selection_cases": self.selection_cases()?,
            "seconds": state.map(|s| s.seconds),
        });
        if !networks.is_empty() {
            record["networks"] = json!(networks);
        }
        let text = serde_json::to_string_pretty(&record).map_err(|e| Error::job(format!("run record: {e}")))?;
        write_atomic(&self.run.record(), |to| to.write_all(text.as_bytes()))
    }
}

/// How the configuration trains.
pub(super) fn options(config: &Config, method: &dyn method::Tuning) -> Options {
    // With a clock or counted steps, epochs are only counted.
    let limited = config.minutes.is_some() || config.steps.is_some();
    let lr = config.lr.unwrap_or_else(|| method.lr());
    Options {
        epochs: if limited { usize::MAX } else { config.epochs },
        batch: config.batch,
        lr,
        optimizer: optimizer::Settings {
            algorithm: config.optimizer,
            decay: config.weight_decay.unwrap_or(0.0),
            decoder: config.decoder_lr.map(|decoder| decoder / lr),
            scaling: Scaling { rates: config.lr_scaling, base: config.lr_base_width, epsilon: config.adam_eps },
        },
        seed: config.seed,
        augment: config.augment(),
        // What changes half-way must come there.
        patience: if limited || method.half_way().is_some() { usize::MAX } else { config.patience },
        minutes: config.minutes,
        steps: config.steps,
        save_every: SAVE_EVERY,
    }
}

/// Pictures that frozen blocks see once.
pub(super) fn embedded(
    samples: &[batch::Sample],
    validation: &[Reference],
    options: &Options,
    preprocessing: &Preprocessing,
) -> usize {
    let still = match options.augment {
        // What is larger than the square is seen in another part each time.
        Augment::Off => samples.iter().filter(|sample| sample.fit.is_whole()).count(),
        _ => 0,
    };
    still + validation.iter().map(|case| case.input.pictures(preprocessing)).sum::<usize>()
}

/// Bytes that are kept of pictures where the encoder's blocks are frozen.
pub(super) fn embeddings_limit(device: &device::Chosen) -> u64 {
    let free = available_memory().filter(|_| device.name == "cpu");
    free.map_or(1 << 30, |free| free / EMBEDDINGS_SHARE)
}

/// A resumed run must see the cases and the base it was started with.
pub(super) fn check_record(run: &Run, splits: &Splits, base_sha256: &str) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(run.record()) else { return Ok(()) };
    let record: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| Error::data(format!("run record: {e}")).at(run.record()))?;
    let then = |pointer: &str| record.pointer(pointer).and_then(|v| v.as_str()).unwrap_or("").to_string();
    if then("/dataset/hash") != data::data_hash(splits)? {
        return Err(Error::data("the cases are not those the run was started with")
            .at(&splits.dataset.root)
            .hint("put the data back as it was, or start a new run"));
    }
    if then("/base/sha256") != base_sha256 {
        return Err(Error::weights("the base model is not the one the run was started with").at(&run.folder));
    }
    Ok(())
}
