//! `compare`: many trainings.

use super::training::Common;
use super::whole;
use crate::config::Config;
use crate::job::compare::{Request, Size, Trials};
use clap::Args;
use std::path::PathBuf;

/// Methods side by side on one protocol: a table, cell by cell.
#[derive(Args, Debug)]
pub(in crate::cli) struct Compare {
    /// The rows: METHOD[:KEY=VALUE…][@MODEL], as gps, gps:k=16, gps@tiny-random; every other one is compared with the
    /// first
    #[arg(long, value_delimiter = ',', required = true, help_heading = "Comparison")]
    methods: Vec<String>,
    /// Trainings of each method at each size, with seeds from --seed on; the split stays
    #[arg(long, default_value_t = 3, value_name = "N", help_heading = "Comparison")]
    seeds: u64,
    /// Cases in all for training and validation, or `all`
    #[arg(long, value_delimiter = ',', default_value = "all", help_heading = "Comparison")]
    sizes: Vec<Size>,
    /// Steps of every training [default: 300]
    #[arg(long, help_heading = "Comparison", value_parser = whole)]
    pub steps: Option<usize>,
    /// Trials: multiples of each method's own learning rate, judged on validation
    #[arg(long, value_delimiter = ',', default_value = "0.33,1,3", help_heading = "Comparison")]
    lrs: Vec<f64>,
    /// Seeds that each learning rate is tried with: the best mean is chosen, and a rate at which the loss ran away with one
    /// of them is out
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Comparison")]
    trial_seeds: u64,
    /// Try them at this size only, for all sizes [default: each size by itself]
    #[arg(long, value_name = "SIZE", help_heading = "Comparison")]
    trials_at: Option<Size>,
    /// How many of the seeds train again with twice the steps: a row whose mean Dice still moves is not converged
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Comparison")]
    doubled_seeds: u64,
    /// The folder of the results; what is there is not made again [default: compare/<dataset>]
    #[arg(long, value_name = "DIR", help_heading = "Comparison")]
    pub out: Option<PathBuf>,
    /// Train nothing: print the table of what is there
    #[arg(long, help_heading = "Comparison")]
    pub report: bool,
    /// Write the table's rows as CSV
    #[arg(long, value_name = "FILE", help_heading = "Comparison")]
    pub csv: Option<PathBuf>,
    /// Draw the scores over the number of trained encoder values, as SVG
    #[arg(long, value_name = "FILE", help_heading = "Comparison")]
    pub plot: Option<PathBuf>,
    #[command(flatten)]
    pub common: Common,
}

impl Compare {
    pub(in crate::cli) fn request(&self, config: Config) -> crate::error::Result<Request> {
        let Compare { methods, seeds, sizes, lrs, trial_seeds, doubled_seeds, trials_at, .. } = self;
        let trials = Trials { lrs: lrs.clone(), seeds: *trial_seeds, tuned_at: *trials_at };
        Request::new(config, methods.clone(), *seeds, sizes.clone(), trials, *doubled_seeds)
    }
}
