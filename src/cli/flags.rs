//! Every flag, with its help. Defaults of a training live in [`crate::config`]; flags left out are not set.

use crate::config::{Config, Recompute};
use crate::io::Replace;
use crate::job::compare::Size;
use crate::job::predict::{Probabilities, Request, Weights};
use crate::job::prompt::Taken;
use crate::job::score::What;
use crate::score::pairs::MissingPolicy;
use crate::score::{Empty, LabelUse, Options, Protocol, Surfaces};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
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
pub(super) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args, Debug)]
pub(super) struct Global {
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
pub(super) fn command(color: clap::ColorChoice) -> clap::Command {
    fn numbers(command: clap::Command) -> clap::Command {
        let numeric = |arg: clap::Arg| match arg.get_action().takes_values() && !arg.is_allow_hyphen_values_set() {
            true => arg.allow_negative_numbers(true),
            false => arg,
        };
        command.mut_args(numeric).mut_subcommands(numbers)
    }
    numbers(<Cli as clap::CommandFactory>::command()).color(color)
}

/// What a training may be told beside `--resume`.
const WITH_RESUME: [&str; 1] = ["threads"];

impl Train {
    /// A resumed run has its own configuration: a flag that says otherwise would be passed over.
    ///
    /// # Errors
    /// A usage error naming the first such flag.
    pub(super) fn check_resume(&self) -> crate::error::Result<()> {
        let given =
            [serde_json::to_value(&self.common), serde_json::to_value(&self.one)].map(Result::unwrap_or_default);
        let mut flags = given
            .iter()
            .filter_map(serde_json::Value::as_object)
            .flatten()
            .filter(|(key, value)| !value.is_null() && !WITH_RESUME.contains(&key.as_str()))
            .map(|(key, value)| crate::config::flag(key, value))
            .chain(self.common.config.is_some().then(|| "--config".to_string()))
            .chain(self.common.set.first().map(|_| "--set".to_string()));
        match flags.next() {
            None => Ok(()),
            Some(flag) => Err(crate::error::Error::usage(format!("{flag} does not go with --resume"))
                .hint("a resumed run keeps the configuration it was started with; only --threads may change")),
        }
    }
}

#[derive(Subcommand, Debug)]
pub(super) enum Command {
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
    /// Seconds and memory of one kind of work, with random weights
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

#[derive(Args, Debug)]
pub(super) struct Pretrain {
    /// The recipe: a TOML file, as configs/pretrain-tiny.toml
    #[arg(long, value_name = "FILE", required_unless_present = "resume", conflicts_with = "resume")]
    config: Option<PathBuf>,
    /// Where the folders that the recipe names are
    #[arg(long, value_name = "DIR", default_value = ".")]
    data: PathBuf,
    /// The folder to write
    #[arg(long, value_name = "DIR", default_value = "pretraining")]
    out: PathBuf,
    /// Go on with what is in the folder
    #[arg(long)]
    resume: bool,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", env = "SEGFT_DEVICE", hide_env_values = true)]
    device: String,
    /// Threads [default: all processors]
    #[arg(long, env = "SEGFT_THREADS", hide_env_values = true)]
    pub threads: Option<usize>,
}

impl Pretrain {
    pub(super) fn request(self) -> crate::job::pretrain::Request {
        let Pretrain { config, data, out, resume, device, .. } = self;
        crate::job::pretrain::Request { recipe: config, data, out, resume, device }
    }
}

#[derive(Args, Debug)]
pub(super) struct Bench {
    /// tiny, vit_t, vit_b, vit_l or vit_h
    #[arg(long, default_value = "tiny")]
    model: String,
    /// Side of the square; the model's own by default
    #[arg(long)]
    image: Option<usize>,
    /// encode, predict, or a method for one training step of it
    #[arg(long, default_value = "gps")]
    mode: String,
    /// Pictures at once
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Entries per neuron, in modes that choose entries
    #[arg(long, default_value_t = 1)]
    k: usize,
    /// Timed repetitions
    #[arg(long, default_value_t = 3)]
    steps: usize,
    /// Repetitions before those
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Threads; all processors by default
    #[arg(long, env = "SEGFT_THREADS", hide_env_values = true)]
    pub threads: Option<usize>,
    /// In a training step, run the encoder's blocks again in backward instead of keeping their inside
    #[arg(long)]
    recompute: bool,
    /// f32
    #[arg(long, default_value = "f32", value_parser = ["f32"])]
    dtype: String,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", env = "SEGFT_DEVICE", hide_env_values = true)]
    device: String,
}

impl Bench {
    pub(super) fn request(self) -> crate::job::bench::Request {
        let Bench { model, image, mode, batch, k, steps, warmup, device, .. } = self;
        let recompute = if self.recompute { Recompute::On } else { Recompute::Off };
        crate::job::bench::Request { model, image, mode, batch, k, steps, warmup, recompute, device }
    }
}

#[derive(Subcommand, Debug)]
pub(super) enum PatchCommand {
    /// Base and patch to a merged checkpoint
    Apply {
        /// Checkpoint file or model name
        base: String,
        /// patch.safetensors of a run
        patch: PathBuf,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Merged checkpoint back to the base
    Revert {
        /// Merged checkpoint file
        merged: String,
        /// The patch that was applied
        patch: PathBuf,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Which values two patches change, and how far they lie apart
    Diff {
        /// One patch
        a: PathBuf,
        /// The other
        b: PathBuf,
    },
}

#[derive(Subcommand, Debug)]
pub(super) enum DataCommand {
    /// Write a phantom set as a folder: `phantom` or `phantom-volume`
    Make {
        /// phantom or phantom-volume
        kind: String,
        /// The folder to make
        #[arg(long)]
        out: PathBuf,
        /// Number of cases
        #[arg(long)]
        count: Option<u64>,
        /// Seed of the generator
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Integrity and leaks of a folder or CSV
    Check {
        /// Folder or CSV
        path: PathBuf,
    },
    /// A seeded, grouped split, written as JSON
    Split {
        /// Folder or CSV
        path: PathBuf,
        /// The file to write
        #[arg(long)]
        out: PathBuf,
        /// Seed of the split
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// The sets that segft knows by name
    List,
}

#[derive(Args, Debug)]
pub(super) struct Fetch {
    /// What to fetch; see --list
    #[arg(required_unless_present = "list")]
    pub name: Option<String>,
    /// A file that is here already
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// What can be fetched
    #[arg(long, conflicts_with_all = ["name", "from"])]
    pub list: bool,
    /// Never use the network
    #[arg(long, env = "SEGFT_OFFLINE", hide_env_values = true)]
    pub offline: bool,
}

#[derive(Args, Debug)]
pub(super) struct Train {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub one: One,
    /// Go on where a run was stopped; the newest unfinished one by default
    #[arg(long, value_name = "RUN", num_args = 0..=1)]
    pub resume: Option<Option<PathBuf>>,
}

#[derive(Args, Debug)]
pub(super) struct Plan {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub one: One,
}

#[derive(Args, Debug)]
pub(super) struct Select {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub one: One,
    /// Overlap of two selections
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    pub diff: Option<Vec<PathBuf>>,
}

/// Methods side by side on one protocol: a table, cell by cell.
#[derive(Args, Debug)]
pub(super) struct Compare {
    /// The methods, each also as METHOD@MODEL; every other one is compared with the first
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
    /// Try them at this size only, for all sizes [default: each size by itself]
    #[arg(long, value_name = "SIZE", help_heading = "Comparison")]
    trials_at: Option<Size>,
    /// The folder of the results; what is there is not made again [default: compare/<dataset>]
    #[arg(long, value_name = "DIR", help_heading = "Comparison")]
    pub out: Option<PathBuf>,
    /// Train nothing: print the table of what is there
    #[arg(long, help_heading = "Comparison")]
    pub report: bool,
    /// Write the table's rows as CSV
    #[arg(long, value_name = "FILE", help_heading = "Comparison")]
    pub csv: Option<PathBuf>,
    #[command(flatten)]
    pub common: Common,
}

impl Compare {
    pub(super) fn request(&self, config: Config) -> crate::error::Result<crate::job::compare::Request> {
        let Compare { methods, seeds, sizes, lrs, trials_at, .. } = self;
        crate::job::compare::Request::new(config, methods.clone(), *seeds, sizes.clone(), lrs.clone(), *trials_at)
    }
}

/// Flags of one training alone. Names are the keys of the configuration.
#[derive(Args, Debug, Serialize)]
pub(super) struct One {
    /// Cases in all for training and validation
    #[arg(long, value_name = "N", help_heading = "Data", value_parser = whole)]
    sizes: Option<usize>,
    /// gps, full, decoder, bitfit, norm, magnitude, random, fisher, second-order, neuroada or sara [default:
    /// gps]
    #[arg(long, help_heading = "Model and method")]
    method: Option<String>,
    /// A selection made before
    #[arg(long, value_name = "FILE", help_heading = "Model and method")]
    selection: Option<PathBuf>,
    /// Passes over the training cases, at most [default: 12]
    #[arg(long, help_heading = "Training", value_parser = whole)]
    epochs: Option<usize>,
    /// Train for this time instead (not reproducible to the byte)
    #[arg(long, help_heading = "Training")]
    minutes: Option<f64>,
    /// Train exactly this many steps instead, without patience
    #[arg(long, conflicts_with = "minutes", help_heading = "Training", value_parser = whole)]
    steps: Option<usize>,
    /// Highest learning rate [default: the method's own]
    #[arg(long, help_heading = "Training")]
    lr: Option<f64>,
    /// Epochs without a better validation mDice before training stops [default: 8]
    #[arg(long, help_heading = "Training", value_parser = whole)]
    patience: Option<usize>,
    /// The run folder [default: runs/<dataset>-<method>-<n>]
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    out: Option<PathBuf>,
}

/// Flags of every training. Names are the keys of the configuration.
#[derive(Args, Debug, Serialize)]
pub(super) struct Common {
    /// phantom, phantom-volume, polyp, a folder, or a CSV image,mask[,group][,split] [default: phantom]
    #[arg(long, value_name = "NAME|DIR", help_heading = "Data")]
    dataset: Option<String>,
    /// Where the files of a named set are
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    data: Option<PathBuf>,
    /// A separate validation set
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    val: Option<PathBuf>,
    /// A separate test set, read once, at the end
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    test: Option<PathBuf>,
    /// Given splits
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    split: Option<PathBuf>,
    /// Cross-validation: number of folds
    #[arg(long, value_name = "N", help_heading = "Data", value_parser = whole)]
    folds: Option<usize>,
    /// Cross-validation: the test fold, counted from 0
    #[arg(long, value_name = "I", help_heading = "Data", value_parser = whole)]
    fold: Option<usize>,
    /// Train although a case stands on two sides of the split
    #[arg(long, help_heading = "Data")]
    #[serde(serialize_with = "if_set")]
    allow_leak: bool,
    /// tiny, tiny-random, sam_vit_b, sam_vit_l, sam_vit_h, medsam_vit_b, or a checkpoint file [default: tiny]
    #[arg(long, value_name = "NAME|FILE", help_heading = "Model and method")]
    model: Option<String>,
    /// Weights selected per output neuron; in larger groups, as many in all [default: 1]
    #[arg(long, help_heading = "Model and method", value_parser = whole)]
    k: Option<usize>,
    /// Part of the encoder's matrices selected, instead of --k
    #[arg(long, value_name = "PART", help_heading = "Model and method")]
    ratio: Option<f64>,
    /// Weights selected in all, instead of --k
    #[arg(long, value_name = "N", help_heading = "Model and method", value_parser = whole)]
    budget: Option<usize>,
    /// gradient, abs-gradient, fisher, snr, second-order, gradient-weight, largest, smallest or random [default: the
    /// method's own]
    #[arg(long, help_heading = "Model and method")]
    score: Option<String>,
    /// neuron, tensor or global: among which weights the best scores are looked for [default: the method's own]
    #[arg(long, help_heading = "Model and method")]
    group: Option<String>,
    /// Leave the image encoder's biases as they are
    #[arg(long = "no-biases", help_heading = "Model and method")]
    #[serde(rename = "biases", serialize_with = "if_unset")]
    no_biases: bool,
    /// Leave the mask decoder as it is
    #[arg(long = "no-decoder", help_heading = "Model and method")]
    #[serde(rename = "decoder", serialize_with = "if_unset")]
    no_decoder: bool,
    /// Samples a step [default: 4]
    #[arg(long, help_heading = "Training", value_parser = whole)]
    batch: Option<usize>,
    /// Adam's epsilon [default: 1e-8]
    #[arg(long, help_heading = "Training")]
    adam_eps: Option<f64>,
    /// Side of the network's square in pixels [default: the model's own]
    #[arg(long, help_heading = "Training", value_parser = whole)]
    image_size: Option<usize>,
    /// longest-side or square [default: longest-side]
    #[arg(long, help_heading = "Training")]
    resize: Option<String>,
    /// mild, strong or none [default: mild]
    #[arg(long, help_heading = "Training")]
    augment: Option<String>,
    /// Probability of foreground [default: chosen on validation]
    #[arg(long, help_heading = "Training")]
    threshold: Option<f32>,
    /// auto, axial, coronal or sagittal [default: auto]
    #[arg(long, help_heading = "Volumes")]
    axis: Option<String>,
    /// auto, abdomen, lung, bone, brain, …, or LO,HI [default: auto]
    #[arg(long, allow_hyphen_values = true, help_heading = "Volumes")]
    window: Option<String>,
    /// Channel of volumes with several [default: 0]
    #[arg(long, help_heading = "Volumes", value_parser = whole)]
    channel: Option<usize>,
    /// Neighbour slices shown as red and blue [default: 0]
    #[arg(long, help_heading = "Volumes", value_parser = whole)]
    context: Option<usize>,
    /// Labels that are foreground, merged [default: all but 0]
    #[arg(long, value_delimiter = ',', help_heading = "Volumes")]
    labels: Option<Vec<u16>>,
    /// auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long, help_heading = "Run")]
    device: Option<String>,
    /// Threads [default: all processors]
    #[arg(long, help_heading = "Run", value_parser = whole)]
    pub threads: Option<usize>,
    /// Run the encoder's blocks again in backward instead of keeping their inside: auto (where memory would not do
    /// otherwise), on or off; the result is the same to the byte [default: auto]
    #[arg(long, value_name = "auto|on|off", help_heading = "Run")]
    recompute: Option<String>,
    /// Seed of split, order and augmentation [default: 0]
    #[arg(long, help_heading = "Run")]
    seed: Option<u64>,
    /// Seed of the split alone [default: --seed]
    #[arg(long, help_heading = "Run")]
    split_seed: Option<u64>,
    /// Never use the network
    #[arg(long, help_heading = "Run")]
    #[serde(serialize_with = "if_set")]
    offline: bool,
    /// A TOML file with the same keys
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Any key of the configuration
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Run")]
    #[serde(skip)]
    pub set: Vec<String>,
}

/// A count; said in words where the parser would speak of digits.
fn whole(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a whole number that is not negative".to_string())
}

/// A switch that was not given leaves the key alone.
fn if_set<S: serde::Serializer>(set: &bool, to: S) -> Result<S::Ok, S::Error> {
    if *set { to.serialize_bool(true) } else { to.serialize_none() }
}

/// As [`if_set`], for a `--no-…` switch.
fn if_unset<S: serde::Serializer>(set: &bool, to: S) -> Result<S::Ok, S::Error> {
    if *set { to.serialize_bool(false) } else { to.serialize_none() }
}

#[derive(Args, Debug)]
pub(super) struct Predict {
    /// Pictures, volumes, folders
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Run folder, or `none` for the base model [default: the newest completed run]
    #[arg(long, value_name = "DIR|none")]
    run: Option<PathBuf>,
    /// Base model: with --run, the run's base; alone, the base model answers
    #[arg(long, value_name = "NAME|FILE")]
    model: Option<String>,
    /// A folder, or a file for one input
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Probability of foreground [default: the run's, 0.5 without one]
    #[arg(long, env = "SEGFT_THRESHOLD", hide_env_values = true)]
    threshold: Option<f32>,
    /// Write probability maps too
    #[arg(long)]
    prob: bool,
    /// x0,y0,x1,y1 in pixels; i0,j0,k0,i1,j1,k1 in voxels
    #[arg(long = "box", value_name = "BOX", allow_hyphen_values = true)]
    boxes: Vec<String>,
    /// x,y[,0|1] in pixels; i,j,k[,0|1] in voxels, or mm:x,y,z in RAS (repeatable)
    #[arg(long = "point", value_name = "POINT", allow_hyphen_values = true)]
    points: Vec<String>,
    /// Take the prompt from a reference, to judge a promptable model; slices without foreground get none
    #[arg(long, value_name = "none|box|point", requires = "reference", conflicts_with_all = ["boxes", "points"])]
    prompt: Option<Taken>,
    /// That reference: a file, or a folder with a file of each input's name
    #[arg(long = "ref", value_name = "PATH", requires = "prompt")]
    reference: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", env = "SEGFT_DEVICE", hide_env_values = true)]
    device: String,
    /// Threads [default: all processors]
    #[arg(long, env = "SEGFT_THREADS", hide_env_values = true)]
    pub threads: Option<usize>,
}

impl Predict {
    pub(super) fn request(&self, replace: Replace) -> Request {
        let weights = match (&self.run, &self.model) {
            (Some(run), _) if run.as_os_str() == "none" => Weights::Base,
            (Some(run), _) => Weights::Run(run.clone()),
            (None, Some(_)) => Weights::Base,
            (None, None) => Weights::Newest,
        };
        Request {
            inputs: self.inputs.clone(),
            weights,
            model: self.model.clone(),
            out: self.out.clone(),
            replace,
            threshold: self.threshold,
            probabilities: if self.prob { Probabilities::Written } else { Probabilities::Skipped },
            boxes: self.boxes.clone(),
            points: self.points.clone(),
            taken: self.prompt.zip(self.reference.clone()),
            device: self.device.clone(),
        }
    }
}

#[derive(Args, Debug)]
pub(super) struct Score {
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
    pub(super) fn request(&self) -> crate::error::Result<(What, Options)> {
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
