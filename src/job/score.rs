//! `score`: a run's predictions again, or any predictions against any references.

use crate::error::{Error, Result};
use crate::image::Labels;
use crate::io::{nifti, picture as pictures};
use crate::run::Run;
use crate::score::{self, Options, Report};
use crate::tune::patch::Patch;
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What is scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The newest completed run.
    Newest,
    /// This run.
    Run(PathBuf),
    /// These files or folders.
    Files {
        /// Predictions.
        pred: PathBuf,
        /// References.
        reference: PathBuf,
        /// What happens when one of a pair is missing.
        absent: score::pairs::MissingPolicy,
    },
}

/// Scores.
///
/// # Errors
/// A usage error without a run; a data error naming the case that is missing, unreadable or on another grid.
pub fn run(what: &What, options: &Options) -> Result<Report> {
    match what {
        What::Newest => of_run(&Run::newest()?, options),
        What::Run(folder) => of_run(&Run::open(folder)?, options),
        What::Files { pred, reference, absent } => {
            score::evaluate_pairing(&score::pairs::find(pred, reference, *absent, options.protocol)?, options)
        }
    }
}

/// Reads the run's own list of cases, and each reference as the run trained on it (labels merged).
fn of_run(run: &Run, options: &Options) -> Result<Report> {
    if !run.is_completed() {
        return Err(Error::usage("the run is not complete: nothing to score yet")
            .at(&run.folder)
            .hint("finish it with `segft train --resume`"));
    }
    let text = std::fs::read_to_string(run.metrics()).map_err(|e| Error::reading(run.metrics(), &e))?;
    let metrics: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| Error::data(format!("not a run's metrics: {e}")).at(run.metrics()))?;
    let preprocessing = Patch::load(&run.existing_patch()?)?.about.preprocessing;
    let cases = metrics["metric_per_case"].as_array().cloned().unwrap_or_default();
    let scores: Vec<Result<score::CaseScore>> = cases
        .par_iter()
        .map(|case| {
            let field = |key: &str| {
                case[key]
                    .as_str()
                    .map(PathBuf::from)
                    .ok_or_else(|| Error::data(format!("a case lacks `{key}`")).at(run.metrics()))
            };
            let (reference, recorded) = (field("reference_file")?, field("prediction_file")?);
            // The folder may have been moved since: predictions are looked for where the run is now.
            let prediction = run.predictions().join(recorded.file_name().unwrap_or_default());
            let found = read(&reference).map_err(|e| match reference.is_relative() && !reference.is_file() {
                true => {
                    e.hint("the run was trained with relative paths: score it from the folder where it was trained")
                }
                false => e,
            });
            let labels = preprocessing.foreground(found?);
            let id = case["case"].as_str().unwrap_or_default();
            let mut score = score::evaluate_labels(id, &labels, &read(&prediction)?, options)?;
            score.reference_file = Some(reference.display().to_string());
            score.prediction_file = Some(prediction.display().to_string());
            Ok(score)
        })
        .collect();
    Report::from_cases(scores.into_iter().collect::<Result<_>>()?, options)
}

/// What to tell when predictions of merged labels meet references of several: their score says little.
pub fn warning(report: &Report) -> Option<String> {
    let classes = |present: &dyn Fn(&score::report::ClassMetrics) -> bool| -> BTreeSet<u16> {
        let all = report.metric_per_case.iter().flat_map(|case| &case.metrics);
        all.filter(|(class, metrics)| **class != 0 && present(metrics)).map(|(class, _)| *class).collect()
    };
    let (predicted, referenced) = (classes(&|m| m.n_pred > 0), classes(&|m| m.n_ref > 0));
    (predicted.iter().eq([&1]) && referenced.iter().any(|class| *class != 1)).then(|| {
        let all: Vec<String> = referenced.iter().map(u16::to_string).collect();
        format!(
            "the predictions hold label 1 alone, the references {}: after a training that merged labels, score with \
             --merge (with the --labels of the training, if it had some)",
            all.join(", ")
        )
    })
}

fn read(path: &Path) -> Result<Labels> {
    if nifti::is_nifti(path) { nifti::read_labels(path) } else { pictures::read_mask(path) }
}
