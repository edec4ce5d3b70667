//! What the training loop asks of its run: validation, saving, progress, and a forecast of its time.

use super::Job;
use super::reference::{Validated, judging};
use crate::error::{Error, Result};
use crate::io::write_atomic;
use crate::job::forecast::Pace;
use crate::model::Sam;
use crate::model::sam::Cache;
use crate::run::Run;
use crate::score::Report;
use crate::signal;
use crate::train::batch::{self, Augment, Sample};
use crate::train::{Epoch, Options, State, Surroundings, Validation};
use crate::tune::alignment::{Alignment, HEAD};
use crate::tune::course::{Course, Terms, Turn};
use burn::tensor::Tensor;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Forecasts the time of a training loop from one of its first steps.
pub(super) struct Clock<'a> {
    options: &'a Options,
    samples: usize,
    /// Seconds of a validation.
    validation: f64,
    /// The step of this process from which the forecast is made: the first that is like those after it.
    probe: usize,
    pub(super) started: Instant,
    stepped: Instant,
    steps: usize,
    pub(super) forecast: Option<f64>,
}

impl<'a> Clock<'a> {
    pub(super) fn start(validation: f64, samples: usize, options: &'a Options, cases: &Validated<'_>) -> Clock<'a> {
        // With kept embeddings the first epoch computes what the others find.
        let first = if cases.embeddings.is_some() { samples.div_ceil(options.batch) } else { 0 };
        let now = Instant::now();
        Clock { options, samples, validation, probe: first + 2, started: now, stepped: now, steps: 0, forecast: None }
    }

    fn step(&mut self, step: usize) {
        self.steps += 1;
        if self.steps == self.probe {
            let pace = Pace { step: self.stepped.elapsed().as_secs_f64(), validation: self.validation };
            let so_far = self.started.elapsed().as_secs_f64();
            let rest = pace.rest(self.options, self.samples, step);
            // A given time counts from the start.
            self.forecast = Some(if self.options.minutes.is_some() { rest } else { so_far + rest });
        }
        self.stepped = Instant::now();
    }
}

pub(super) struct Around<'a> {
    pub(super) job: &'a Job<'a>,
    /// Which of several, counted from 0.
    pub(super) network: usize,
    pub(super) clock: Clock<'a>,
    pub(super) validation: &'a Validated<'a>,
    pub(super) course: Course<'a>,
    pub(super) best: Option<f64>,
    pub(super) samples: &'a [Sample],
    /// Measured with the last validation, and not written yet.
    pub(super) aligned: Vec<Alignment>,
}

/// Training pictures through which alignment is measured.
const ALIGNED: usize = 4;

impl Surroundings for Around<'_> {
    fn validate(&mut self, sam: &Sam) -> Result<Validation> {
        let predictor = self.validation.predictor(sam, &self.job.device);
        let threshold = self.job.config.threshold.unwrap_or(0.5);
        let scores = self.validation.cases.iter().map(|case| case.judged(&predictor, threshold));
        if self.job.config.log_alignment {
            let chosen: Vec<usize> = (0..self.samples.len().min(ALIGNED)).collect();
            let batch = batch::draw(self.samples, &chosen, Augment::Off, 0, 0).on(&self.job.device.device);
            self.aligned = self.course.alignment(sam, batch.pixels);
        }
        let report = Report::from_cases(scores.collect::<Result<_>>()?, &judging())?;
        Ok(Validation { mdice: report.mdice.unwrap_or(0.0), miou: report.miou.unwrap_or(0.0) })
    }

    fn save(&mut self, state: &State) -> Result<()> {
        let path = self.job.run.state(self.network);
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|e| Error::writing(folder, &e))?;
        if let Some(row) = state.history.last().filter(|_| !self.aligned.is_empty()) {
            write_alignment(&self.job.run, row, &std::mem::take(&mut self.aligned))?;
        }
        // First: a run that is ended between the two writes it again as it goes on.
        write_history(&self.job.run, &state.history)?;
        state.save(&path)
    }

    fn penalty(&mut self, sam: &Sam, step: usize, kept: Option<&Terms>) -> Option<(String, Vec<f32>)> {
        self.course.penalty(sam, step, kept)
    }

    fn half_way(&mut self, sam: &Sam, losses: &mut dyn Iterator<Item = Tensor<1>>) -> Option<Turn> {
        let turn = self.course.half_way(sam, &mut losses.take_while(|_| !signal::stopped()))?;
        if signal::stopped() {
            return None;
        }
        let all = turn.kept.values().flatten();
        let (on, all) = all.fold((0, 0), |(on, all), k| (on + usize::from(*k > 0.0), all + 1));
        let (what, again) = match turn.rewound {
            None => ("selected", ""),
            // Better ones of before were another network's.
            Some(_) => ("added", ", from their start"),
        };
        if turn.rewound.is_some() {
            self.best = None;
        }
        self.job.progress.line(format!("half-way     {on} of {all} {what} weights train on{again}"));
        Some(turn)
    }

    fn stopped(&self) -> bool {
        signal::stopped()
    }

    fn stepped(&mut self, step: usize, _: usize, loss: f64) {
        self.clock.step(step);
        let best = self.best.map(|b| format!(" mDice {b:.3}")).unwrap_or_default();
        self.job.progress.at(step, format!("loss {loss:.3}{best}"));
    }

    fn embeddings(&self) -> Option<Arc<Cache>> {
        self.validation.embeddings.clone()
    }

    fn epoch(&mut self, row: &Epoch, best: bool, waited: f64) {
        // The validation is no part of the next step.
        self.clock.stepped = Instant::now();
        if best {
            self.best = Some(row.validation.mdice);
        }
        if row.epoch == 1 && row.validation.mdice == 0.0 {
            self.job.progress.warn("no validation case overlaps its reference yet: if this lasts, look at the masks (`segft data check`), --window and --lr");
        }
        self.job.progress.line(format!(
            "epoch {:3}    loss {:.4}  validation mDice {:.4}  mIoU {:.4}  {:.0} s ({waited:.1} s waiting for data){}",
            row.epoch,
            row.loss,
            row.validation.mdice,
            row.validation.miou,
            row.seconds,
            if best { "  best" } else { "" }
        ));
    }
}

pub(super) fn write_history(run: &Run, history: &[Epoch]) -> Result<()> {
    let mut text = String::from("epoch,step,lr,loss,val_mdice,val_miou,seconds\n");
    for row in history {
        let Epoch { epoch, step, lr, loss, validation, seconds } = row;
        let Validation { mdice, miou } = validation;
        text.push_str(&format!("{epoch},{step},{lr},{loss},{mdice},{miou},{seconds:.3}\n"));
    }
    write_atomic(&run.history(), |to| to.write_all(text.as_bytes()))
}

/// Adds to the table. It is written before the state: lines of a validation that a stopped run did not keep are dropped.
fn write_alignment(run: &Run, row: &Epoch, aligned: &[Alignment]) -> Result<()> {
    let path = run.alignment();
    let mut text = String::from(HEAD);
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let step = |line: &str| line.split(',').nth(1).and_then(|step| step.parse::<usize>().ok());
    for line in before.lines().filter(|line| step(line).is_some_and(|step| step < row.step)) {
        text.push_str(line);
        text.push('\n');
    }
    text.extend(aligned.iter().map(|alignment| alignment.line(row.epoch, row.step)));
    write_atomic(&path, |to| to.write_all(text.as_bytes()))
}
