//! `train`, `plan`, `select`: one training, or what it begins with. Names of flags are the keys of the configuration.

use super::whole;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// What a training may be told beside `--resume`.
const WITH_RESUME: [&str; 1] = ["threads"];

#[derive(Args, Debug)]
pub(in crate::cli) struct Train {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub one: One,
    /// Go on where a run was stopped; the newest unfinished one by default
    #[arg(long, value_name = "RUN", num_args = 0..=1)]
    pub resume: Option<Option<PathBuf>>,
}

impl Train {
    /// A resumed run has its own configuration: a flag that says otherwise would be passed over.
    ///
    /// # Errors
    /// A usage error naming the first such flag.
    pub(in crate::cli) fn check_resume(&self) -> crate::error::Result<()> {
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

#[derive(Args, Debug)]
pub(in crate::cli) struct Plan {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub one: One,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Select {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub one: One,
    /// Overlap of two selections
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    pub diff: Option<Vec<PathBuf>>,
    /// How far the selection hangs on which cases there are: overlap of those from N random halves of the training
    /// cases, beside that of chance; nothing is written
    #[arg(long, value_name = "N", value_parser = whole, conflicts_with_all = ["diff", "out"])]
    pub stability: Option<usize>,
}

/// The help of `--method`: every name.
fn method_help() -> String {
    let names: Vec<&str> = crate::method::methods().iter().map(|(name, ..)| *name).collect();
    format!("{} [default: gps]", names.join(", "))
}

/// Flags of one training alone. Names are the keys of the configuration.
#[derive(Args, Debug, Serialize)]
pub(in crate::cli) struct One {
    /// Cases in all for training and validation
    #[arg(long, value_name = "N", help_heading = "Data", value_parser = whole)]
    sizes: Option<usize>,
    #[arg(long, help = method_help(), help_heading = "Model and method")]
    method: Option<String>,
    /// A selection made before
    #[arg(long, value_name = "FILE", help_heading = "Model and method")]
    selection: Option<PathBuf>,
    /// With last and --augment none: this many side networks, each with a start and a decoder of its own, over blocks that
    /// see a picture once for all; the best on validation is kept [default: 1]
    #[arg(long, value_name = "N", help_heading = "Model and method", value_parser = whole)]
    networks: Option<usize>,
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
    /// Highest learning rate of the mask decoder [default: that of --lr]
    #[arg(long, value_name = "LR", help_heading = "Training")]
    decoder_lr: Option<f64>,
    /// Epochs without a better validation mDice before training stops [default: 12]
    #[arg(long, help_heading = "Training", value_parser = whole)]
    patience: Option<usize>,
    /// The run folder [default: runs/<dataset>-<method>-<n>]
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    out: Option<PathBuf>,
}

/// Flags of every training. Names are the keys of the configuration.
#[derive(Args, Debug, Serialize)]
pub(in crate::cli) struct Common {
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
    /// tiny, tiny-random, sam_vit_b, sam_vit_l, sam_vit_h, medsam_vit_b, or a checkpoint file; for studies of width
    /// tiny-half-random and tiny-double-random [default: tiny]
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
    /// gradient, abs-gradient, fisher, snr, second-order, second-order-fd, gradient-weight, activation-weight (no gradients: one
    /// pass forwards), largest, smallest or random [default: the method's own]
    #[arg(long, help_heading = "Model and method")]
    score: Option<String>,
    /// neuron, tensor or global: among which weights the best scores are looked for [default: the method's own]
    #[arg(long, help_heading = "Model and method")]
    group: Option<String>,
    /// task or contrastive: of which loss the gradients are that scores are made of; contrastive (foreground against
    /// background in what the encoder gives) asks nothing of the decoder [default: task]
    #[arg(long, value_name = "task|contrastive", help_heading = "Model and method")]
    selection_loss: Option<String>,
    /// Size of what a method adds: rank of lora, width of adapters, number of prompts [default: the method's own]
    #[arg(long, value_name = "N", help_heading = "Model and method", value_parser = whole)]
    rank: Option<usize>,
    /// Leave the image encoder's biases as they are, with methods that train them beside what they are named after
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
    /// adam, adamw, adam-atan2 (no epsilon: the scale of the loss does not matter), sgd (momentum 0.9) or adafactor
    /// (rates relative to the size of each weight); the methods' own learning rates are Adam's [default: adam]
    #[arg(long, value_name = "NAME", help_heading = "Training")]
    optimizer: Option<String>,
    /// With adamw: at a learning rate of 1, matrices lose this part of themselves, selected weights of their way from the
    /// base [default: 0.01]
    #[arg(long, value_name = "PART", help_heading = "Training")]
    weight_decay: Option<f64>,
    /// Adam's epsilon, or `per-layer`: the default at the base width, as gradients shrink in wider layers [default: 1e-8]
    #[arg(long, value_name = "E|per-layer", allow_hyphen_values = true, help_heading = "Training")]
    adam_eps: Option<String>,
    /// Learning rates by width, (n / base)^-c by arXiv 2407.05872: none, noalign (Adam's c = 1/2) or full (c = 1);
    /// selected weights by their number per neuron, with base 1 [default: none]
    #[arg(long, value_name = "none|noalign|full", help_heading = "Training")]
    lr_scaling: Option<String>,
    /// The width at which --lr is a layer's learning rate [default: 192, that of tiny]
    #[arg(long, value_name = "N", help_heading = "Training", value_parser = whole)]
    lr_base_width: Option<usize>,
    /// Write alignment.csv: after each validation, how weights and their changes lie to the inputs of their layers
    #[arg(long, help_heading = "Training")]
    #[serde(serialize_with = "if_set")]
    log_alignment: bool,
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
    /// Millimetres along one pixel of the network's square, so that an organ is as large from every scanner: auto (every
    /// training slice just fits), off (every slice fills the square), or MM; larger slices are seen in overlapping
    /// squares [default: auto]
    #[arg(long, value_name = "auto|off|MM", help_heading = "Volumes")]
    spacing: Option<String>,
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
    /// In what the encoder's linear layers multiply in training steps: f32, or bf16 on a processor with AMX or
    /// AVX512-BF16. Selection, validation and test stay f32 [default: f32]
    #[arg(long, value_name = "f32|bf16", help_heading = "Run")]
    dtype: Option<String>,
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

/// A switch that was not given leaves the key alone.
fn if_set<S: serde::Serializer>(set: &bool, to: S) -> Result<S::Ok, S::Error> {
    if *set { to.serialize_bool(true) } else { to.serialize_none() }
}

/// As [`if_set`], for a `--no-…` switch.
fn if_unset<S: serde::Serializer>(set: &bool, to: S) -> Result<S::Ok, S::Error> {
    if *set { to.serialize_bool(false) } else { to.serialize_none() }
}
