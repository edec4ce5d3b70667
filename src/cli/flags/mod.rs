//! Every flag, with its help. Defaults of a training live in [`crate::config`]; flags left out are not set.

mod bench;
mod compare;
mod manage;
mod predict;
mod pretrain;
mod score;
mod training;

pub(super) use bench::Bench;
pub(super) use compare::Compare;
pub(super) use manage::{DataCommand, Fetch, PatchCommand};
pub(super) use predict::Predict;
pub(super) use pretrain::Pretrain;
pub(super) use score::Score;
pub(super) use training::{Common, Plan, Select, Train};

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  segft train --dataset phantom            learn from generated pictures: no data needed
  segft train --dataset my-polyps/         a folder with images/ and masks/
  segft predict frame.png volume.nii.gz    masks by the newest run, on the same grid
  segft score                              Dice and IoU of the newest run, case by case
  segft info volume.nii.gz                 what a file is

Exit codes: 0 done, 1 the job failed, 2 wrong usage, 3 bad data or weights, 5 device, 130 interrupted.
Not a medical device: for research only.";

/// Fine-tune a pretrained SAM on your own medical pictures and volumes, by training the few weights that matter.
#[derive(Parser, Debug)]
#[command(name = "segft", version, after_help = EXAMPLES, propagate_version = true, args_override_self = true, subcommand_required = true, arg_required_else_help = true)]
pub(in crate::cli) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Global {
    /// One JSON object on stdout, or to a file with --json=FILE
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "-", value_name = "FILE")]
    pub json: Option<String>,
    /// Only warnings and results
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// More: versions, folders, hashes, how long each part took
    #[arg(long, short, global = true)]
    pub verbose: bool,
    /// Colours in messages
    #[arg(long, global = true, default_value = "auto", value_name = "auto|always|never", hide_possible_values = true)]
    pub color: clap::ColorChoice,
    /// Replace outputs that exist
    #[arg(long, global = true)]
    pub force: bool,
}

/// The command line with what its definition cannot say: colours, and that `--lr -1` is a number, so that our own
/// answer about the range is given.
pub(in crate::cli) fn command(color: clap::ColorChoice) -> clap::Command {
    fn numbers(command: clap::Command) -> clap::Command {
        let numeric = |arg: clap::Arg| match arg.get_action().takes_values() && !arg.is_allow_hyphen_values_set() {
            true => arg.allow_negative_numbers(true),
            false => arg,
        };
        command.mut_args(numeric).mut_subcommands(numbers)
    }
    numbers(<Cli as clap::CommandFactory>::command()).color(color)
}

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum Command {
    /// Select, fine-tune, validate and test; write a run folder
    Train(Box<Train>),
    /// Masks for pictures, NIfTI volumes and folders of them, on the same grid
    Predict(Predict),
    /// Dice and IoU per case, mDice and mIoU
    Score(Score),
    /// What `train` with the same flags would take: memory from shapes, time from one step
    Plan(Box<Plan>),
    /// Only the selection: which weights, how many, where
    Select(Box<Select>),
    /// Methods side by side on one protocol: a table, resumable cell by cell
    Compare(Box<Compare>),
    /// What a file is: volume, picture, checkpoint, selection, patch, run or data set
    Info {
        /// File or folder
        file: PathBuf,
    },
    /// A fine-tune as an ordinary checkpoint with the official SAM names
    Export {
        /// Run folder; the newest completed run by default
        run: Option<PathBuf>,
        /// The file to write: .safetensors or .pth
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// Only the patch
        #[arg(long)]
        patch: bool,
        /// The base, where it is not where the run found it
        #[arg(long)]
        model: Option<String>,
    },
    /// A run as one HTML page: scores, curves, pictures with both outlines, every case
    Report {
        /// Run folder [default: the newest completed run]
        run: Option<PathBuf>,
        /// The file to write [default: report.html in the run folder]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Threads [default: all processors]
        #[arg(long, value_name = "THREADS", env = "SEGFT_THREADS", hide_env_values = true, value_parser = whole)]
        threads: Option<usize>,
    },
    /// Train a run once more and compare: the same selection, patch, history and scores?
    Replay {
        /// Run folder; the newest completed run by default
        run: Option<PathBuf>,
        /// Threads [default: all processors]; another number changes no byte
        #[arg(long, value_name = "THREADS", env = "SEGFT_THREADS", hide_env_values = true, value_parser = whole)]
        threads: Option<usize>,
    },
    /// Patches over a base checkpoint, exact to the bit both ways
    #[command(subcommand)]
    Patch(PatchCommand),
    /// Data sets and weights into the cache
    Fetch(Fetch),
    /// Make, check, split and list data sets
    #[command(subcommand)]
    Data(DataCommand),
    /// Make the embedded model again, or another one, by a recipe (advanced)
    Pretrain(Pretrain),
    /// Seconds and memory of one kind of work
    Bench(Bench),
    /// Devices, weights, data sets, runs, cache and versions
    Doctor,
    /// Completions for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// The manual page, on stdout: `segft man | man -l -`
    Man,
}

/// A count; said in words where the parser would speak of digits.
fn whole(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a whole number that is not negative".to_string())
}
