//! Fine-tuning methods: pure decisions. A table of weights (and gradients) goes in, a plan comes out.
//!
//! A method says which weights train and how; it never sees a network. Attaching the plan, the optimizer, the loop, the
//! patch and the report are the same for all of them. A new method is one file here and one line in [`methods`].

pub mod choice;
mod decoder;
mod full;
mod gps;
pub mod score;

use crate::error::{Error, Result, nearest};
use crate::model::{Kind, Part, WeightSpec};
pub use choice::{Budget, Group, OtherScores, Rule};
pub use score::{Evidence, GradientTable, Score, Sum};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What happens to one weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Stays, bit for bit.
    Frozen,
    /// Every value trains.
    Dense,
    /// Only the values at these flat indices (sorted, unique) train.
    Chosen(Vec<u32>),
}

/// What happens to every weight, by official name.
pub type Plan = BTreeMap<String, Change>;

/// Chosen entries by official name: sorted flat indices into the PyTorch layout.
pub type Chosen = BTreeMap<String, Vec<u32>>;

/// Whether something is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Train {
    /// It trains.
    Yes,
    /// It stays.
    No,
}

/// Settings that methods read; each uses what concerns it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// How many entries are chosen.
    #[serde(flatten)]
    pub budget: Budget,
    /// Instead of the method's own score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<Score>,
    /// Instead of the method's own group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// Biases of the image encoder (never those of its norms).
    pub biases: Train,
    /// The mask decoder, without its IoU head, and the "no mask" embedding.
    pub decoder: Train,
}

impl Default for Settings {
    /// GPS as its paper trains SAM: one weight a neuron, biases and decoder trained.
    fn default() -> Self {
        Settings { budget: Budget::PerNeuron(1), score: None, group: None, biases: Train::Yes, decoder: Train::Yes }
    }
}

/// What a method has to answer.
pub trait Tuning {
    /// How entries of the encoder's matrices are chosen, to be trained alone; `None` for a method that chooses none.
    fn rule(&self) -> Option<Rule> {
        None
    }

    /// What happens to one weight of the image encoder that has no chosen entries. Where nothing else is said: biases
    /// train, as the settings want it.
    fn encoder(&self, spec: &WeightSpec, settings: &Settings) -> Change {
        match spec.kind {
            Kind::Bias if settings.biases == Train::Yes => Change::Dense,
            _ => Change::Frozen,
        }
    }

    /// A learning rate that suits the method at batch 4. The method's file says where it comes from.
    fn lr(&self) -> f64;
}

/// Every method by name, with one line that says what it trains.
pub fn methods() -> &'static [(&'static str, &'static str, &'static dyn Tuning)] {
    &[
        ("gps", "the k weights per neuron of the encoder with the largest gradient, biases, decoder", &gps::Gps),
        ("full", "every weight of the encoder, decoder", &full::Full),
        ("decoder", "the decoder alone", &decoder::Decoder),
    ]
}

/// The method of that name.
///
/// # Errors
/// A usage error that offers the nearest name.
pub fn find(name: &str) -> Result<&'static dyn Tuning> {
    let known = methods();
    known.iter().find(|(n, ..)| *n == name).map(|(_, _, method)| *method).ok_or_else(|| {
        let near = nearest(name, known.iter().map(|(n, ..)| *n));
        let all: Vec<_> = known.iter().map(|(n, ..)| *n).collect();
        let hint = near.map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
        Error::usage(format!("unknown method `{name}`")).hint(format!("{hint}methods: {}", all.join(", ")))
    })
}

/// Whether entries of this weight can be chosen one by one: the encoder's matrices, never norms or position tables.
///
/// Rules go by what a weight is, not by what its name contains: a rule on "norm" or "pos" would miss the neck's norms,
/// which have neither in their names.
pub fn selectable(spec: &WeightSpec) -> bool {
    spec.part == Part::ImageEncoder && matches!(spec.kind, Kind::Linear | Kind::Conv)
}

/// How a method chooses entries under these settings.
pub fn rule(method: &dyn Tuning, settings: &Settings) -> Option<Rule> {
    let own = method.rule()?;
    let (score, group) = (settings.score.unwrap_or(own.score), settings.group.unwrap_or(own.group));
    Some(Rule { score, group, ..own })
}

/// The entries that a method trains alone; `None` for one that chooses none.
///
/// # Errors
/// A job error when a gradient is not a number; a usage error when the budget is nothing or more than there is.
pub fn choose(
    method: &dyn Tuning,
    specs: &[WeightSpec],
    evidence: &Evidence<'_>,
    settings: &Settings,
) -> Result<Option<Chosen>> {
    rule(method, settings).map(|rule| choice::choose(specs, evidence, rule, settings.budget)).transpose()
}

/// The whole plan: chosen entries, the method's word on the rest of the encoder, and the same rule for every method
/// outside of it (what a prompt-free single mask depends on trains, unless the decoder is to stay).
pub fn plan(method: &dyn Tuning, specs: &[WeightSpec], chosen: Option<&Chosen>, settings: &Settings) -> Plan {
    let change = |spec: &WeightSpec| match (chosen.and_then(|c| c.get(&spec.name)), spec.part) {
        _ if spec.kind == Kind::Buffer => Change::Frozen,
        (Some(indices), _) => Change::Chosen(indices.clone()),
        (None, Part::ImageEncoder) => method.encoder(spec, settings),
        (None, _) if settings.decoder == Train::Yes && spec.prompt_free => Change::Dense,
        (None, _) => Change::Frozen,
    };
    specs.iter().map(|spec| (spec.name.clone(), change(spec))).collect()
}

/// Trained values of a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub trained: usize,
    /// Entries chosen one by one in the image encoder.
    pub selected_encoder_weights: usize,
    /// Biases of the image encoder.
    pub encoder_biases: usize,
}

/// Counts a plan's trained values.
pub fn counts(specs: &[WeightSpec], plan: &Plan) -> Counts {
    let mut counts = Counts::default();
    for spec in specs {
        let n = match plan.get(&spec.name) {
            Some(Change::Dense) => spec.len(),
            Some(Change::Chosen(indices)) => indices.len(),
            _ => 0,
        };
        counts.trained += n;
        if spec.part == Part::ImageEncoder {
            match plan.get(&spec.name) {
                Some(Change::Chosen(_)) => counts.selected_encoder_weights += n,
                Some(Change::Dense) if spec.kind == Kind::Bias => counts.encoder_biases += n,
                _ => {}
            }
        }
    }
    counts
}
