//! Fine-tuning methods: pure decisions. A table of weights (and gradients) goes in, a plan comes out.
//!
//! A method says which weights train and how; it never sees a network. Attaching the plan, the optimizer, the loop, the
//! patch and the report are the same for all of them. A new method is one file here and one line in [`methods`].

mod decoder;
mod full;
mod gps;

use crate::error::{Error, Result, nearest};
use crate::model::{Kind, Part, WeightSpec};
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

/// Gradients of the loss, summed with their signs over the training cases: official name → flat values.
pub type GradientTable = BTreeMap<String, Vec<f32>>;

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Weights per output neuron.
    pub k: usize,
    /// Biases of the image encoder (never those of its norms).
    pub biases: Train,
    /// The mask decoder, without its IoU head, and the "no mask" embedding.
    pub decoder: Train,
}

impl Default for Settings {
    /// GPS as its paper trains SAM: one weight a neuron, biases and decoder trained.
    fn default() -> Self {
        Settings { k: 1, biases: Train::Yes, decoder: Train::Yes }
    }
}

/// What a method has to answer.
pub trait Tuning {
    /// The entries to train alone, from gradients of the training cases; `None` for a method that chooses none.
    ///
    /// # Errors
    /// A job error when a gradient is not a number.
    fn choose(&self, specs: &[WeightSpec], gradients: &GradientTable, settings: &Settings) -> Result<Option<Chosen>> {
        let _ = (specs, gradients, settings);
        Ok(None)
    }

    /// Whether [`Tuning::choose`] reads gradients.
    fn needs_gradients(&self) -> bool {
        false
    }

    /// What happens to one weight of the image encoder that has no chosen entries.
    fn encoder(&self, spec: &WeightSpec, settings: &Settings) -> Change;

    /// A learning rate that suits the method at batch 4, tuned on a part of the training pictures.
    fn lr(&self) -> f64;
}

/// Every method by name, with one line that says what it trains.
pub fn methods() -> [(&'static str, &'static str, &'static dyn Tuning); 3] {
    [
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
