//! `score`.

use crate::job::score::What;
use crate::score::pairs::MissingPolicy;
use crate::score::{Empty, LabelUse, Options, Protocol, Surfaces};
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(in crate::cli) struct Score {
    /// Run folder [default: the newest completed run]
    #[arg(conflicts_with_all = ["pred", "reference"])]
    run: Option<PathBuf>,
    /// Predictions: a file or folder
    #[arg(long, value_name = "PATH", requires = "reference")]
    pred: Option<PathBuf>,
    /// References: a file or folder
    #[arg(long = "ref", value_name = "PATH", requires = "pred", id = "reference")]
    reference: Option<PathBuf>,
    /// What a class in neither mask counts as: nan, one or zero
    #[arg(long, default_value = "nan")]
    empty: Empty,
    /// plain, pranet, mmseg or gps-reference
    #[arg(long, default_value = "plain")]
    protocol: Protocol,
    /// Tolerance of the normalised surface Dice in mm
    #[arg(long, default_value_t = 1.0, value_name = "MM")]
    nsd_tolerance: f64,
    /// Dice and IoU alone: the distances between surfaces take most of the time
    #[arg(long, conflicts_with = "nsd_tolerance")]
    no_surfaces: bool,
    /// The classes to score [default: those found]
    #[arg(long, value_delimiter = ',')]
    labels: Option<Vec<u16>>,
    /// Count every label but 0, or those of --labels, as one foreground, as a training does
    #[arg(long, requires = "pred")]
    merge: bool,
    /// Leave cases out that lack a prediction or a reference, and say so
    #[arg(long)]
    allow_missing: bool,
    /// Write the cases as CSV
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Seed of the bootstrap
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads [default: all processors]
    #[arg(long, env = "SEGFT_THREADS", hide_env_values = true)]
    pub threads: Option<usize>,
}

impl Score {
    pub(in crate::cli) fn request(&self) -> crate::error::Result<(What, Options)> {
        let what = match (&self.run, &self.pred, &self.reference) {
            (_, Some(pred), Some(reference)) => What::Files {
                pred: pred.clone(),
                reference: reference.clone(),
                absent: if self.allow_missing { MissingPolicy::LeaveOut } else { MissingPolicy::Refuse },
            },
            (Some(run), ..) => What::Run(run.clone()),
            _ => What::Newest,
        };
        let options = Options {
            protocol: self.protocol,
            empty: self.empty,
            surfaces: if self.no_surfaces { Surfaces::Skipped } else { Surfaces::Measured },
            nsd_tolerance_mm: self.nsd_tolerance,
            classes: self.labels.as_ref().filter(|_| !self.merge).map(|l| l.iter().copied().collect()),
            labels: match self.merge {
                true => LabelUse::Merged(self.labels.clone().unwrap_or_default()),
                false => LabelUse::Classes,
            },
            seed: self.seed,
            ..Options::default()
        };
        options.check()?;
        Ok((what, options))
    }
}
