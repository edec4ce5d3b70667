//! Fine-tuning methods: pure decisions. A table of weights (and gradients) goes in, a plan comes out.
//!
//! A method says which weights train and how, and which it adds; it never sees a network. Attaching the plan, the
//! optimizer, the loop, the patch and the report are the same for all of them. A new method is one file here and one line
//! in [`methods`].

mod adapter;
mod added;
mod bitfit;
pub mod choice;
mod decoder;
mod e2vpt;
mod fisher;
mod full;
mod gps;
mod last;
mod lora;
mod magnitude;
mod neuroada;
mod norm;
mod nuclear;
mod random;
mod sam_adapter;
mod sara;
pub mod score;
mod second_order;
mod ssf;
mod vpt;

use crate::error::{Error, Result, nearest};
use crate::model::{Kind, Part, SamConfig, WeightSpec};
pub use added::Added;
pub use choice::{Budget, Group, OtherScores, Rule};
pub use score::{Evidence, GradientTable, Score, SelectionLoss, Sum};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What happens to one weight.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Stays, bit for bit.
    Frozen,
    /// Every value trains.
    Dense,
    /// Only the values at these flat indices (sorted, unique) train.
    Chosen(Vec<u32>),
    /// Only what is added to the values at these flat indices trains, from zero.
    Bypass(Vec<u32>),
    /// The base has no such weight: it is added, and every value of it trains.
    Added(Added),
}

/// How chosen entries train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As they are: [`Change::Chosen`].
    Values,
    /// Through what is added to them: [`Change::Bypass`].
    Bypass,
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
    /// The size of what is added, instead of the method's own: the rank of matrices, the width of adapters, the number
    /// of prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// What the start of added weights is drawn from.
    #[serde(default)]
    pub seed: u64,
}

impl Default for Settings {
    /// GPS as its paper trains SAM: one weight a neuron, biases and decoder trained.
    fn default() -> Self {
        let (budget, train) = (Budget::PerNeuron(1), Train::Yes);
        Settings { budget, score: None, group: None, biases: train, decoder: train, rank: None, seed: 0 }
    }
}

/// The chosen entries of one weight while they train.
#[derive(Debug)]
pub struct Entries<'a> {
    /// The weight.
    pub spec: &'a WeightSpec,
    /// Where the entries lie.
    pub indices: &'a [u32],
    /// Their values in the base.
    pub start: &'a [f32],
    /// Their values now.
    pub now: Vec<f32>,
}

/// A term beside the loss, of the chosen entries of one matrix that is drawn for the step.
#[derive(Debug, Clone, Copy)]
pub struct Penalty {
    /// It is added at every so-many-th step.
    pub every: usize,
    /// Its gradient in the entries.
    pub gradient: fn(&Entries<'_>) -> Vec<f32>,
}

/// What a method changes half-way. The optimizer then starts anew.
#[derive(Debug, Clone, Copy)]
pub enum HalfWay {
    /// For every chosen entry of every weight, whether it trains on (1) or stays where it is (0).
    Keep(fn(&[Entries<'_>]) -> Vec<Vec<f32>>),
    /// Entries of what was added become zero and stay so; all that trains begins again where it started.
    Prune(Prune),
}

/// How entries of added weights are pruned: by the mean over the training cases of the absolute derivatives by masks.
#[derive(Debug, Clone, Copy)]
pub struct Prune {
    /// Derivatives of one case's loss by the masks.
    pub slopes: fn(&[Slope<'_>]) -> Vec<f32>,
    /// For every entry of every added weight, whether it stays (1) or is pruned (0), from those means.
    pub keep: fn(&[&WeightSpec], &[f32]) -> Vec<Vec<f32>>,
}

/// An added weight and its gradient for one case.
#[derive(Debug)]
pub struct Slope<'a> {
    /// The weight.
    pub spec: &'a WeightSpec,
    /// Its values.
    pub now: Vec<f32>,
    /// The derivatives of the loss by them.
    pub gradient: Vec<f32>,
}

/// What a method has to answer.
pub trait Tuning {
    /// How entries of the encoder's matrices are chosen, to be trained alone; `None` for a method that chooses none.
    fn rule(&self) -> Option<Rule> {
        None
    }

    /// How the chosen entries train.
    fn form(&self) -> Form {
        Form::Values
    }

    /// What happens to one weight of the image encoder that has no chosen entries. Where nothing else is said: biases
    /// train, as the settings want it.
    fn encoder(&self, spec: &WeightSpec, settings: &Settings) -> Change {
        match spec.kind {
            Kind::Bias if settings.biases == Train::Yes => Change::Dense,
            _ => Change::Frozen,
        }
    }

    /// Weights that are added to the network; none, for most. The network finds them by their names.
    fn added(&self, specs: &[WeightSpec], settings: &Settings) -> Vec<Added> {
        let _ = (specs, settings);
        Vec::new()
    }

    /// The size of what is added where [`Settings::rank`] asks for none; `None` for a method that has no such size.
    fn rank(&self) -> Option<usize> {
        None
    }

    /// Whether several networks can share what the encoder's blocks make of a picture, as `--networks` asks: they start
    /// apart, by [`Settings::seed`], and the blocks depend on nothing that trains.
    fn shares_blocks(&self) -> bool {
        false
    }

    /// A term beside the loss; none, for most.
    fn penalty(&self) -> Option<Penalty> {
        None
    }

    /// What changes half-way; `None`, for most: nothing.
    fn half_way(&self) -> Option<HalfWay> {
        None
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
        ("bitfit", "the biases of the encoder, those of its norms too, decoder", &bitfit::BitFit),
        ("norm", "the norms of the encoder, decoder", &norm::Norm),
        ("magnitude", "as gps, with the largest weights", &magnitude::Magnitude),
        ("random", "as gps, with weights drawn by lot", &random::Random),
        ("fisher", "as gps, with the largest Fisher information", &fisher::Fisher),
        ("second-order", "as gps, with the largest squared gradient over curvature", &second_order::SecondOrder),
        ("neuroada", "a bypass, from zero, around the k largest weights per neuron, decoder", &neuroada::NeuroAda),
        ("sara", "the smallest weights of the encoder, from half-way those still small, decoder", &sara::Sara),
        ("sara-one-stage", "as sara, but without choosing again half-way", &sara::SaraOneStage),
        ("lora", "a matrix of low rank added to queries and values, decoder", &lora::Lora),
        ("lora-all", "a matrix of low rank added to every linear layer of the encoder, decoder", &lora::LoraAll),
        ("ssf", "a scale and a shift behind every layer and norm of the encoder, decoder", &ssf::Ssf),
        ("adapter", "a bottleneck behind every MLP of the encoder, decoder", &adapter::Adapter),
        (
            "sam-adapter",
            "prompts from the picture's fine structure, before every block, decoder",
            &sam_adapter::SamAdapter,
        ),
        ("vpt", "prompt tokens in every block's attention, decoder", &vpt::Vpt),
        ("e2vpt", "key-value prompts and token prompts, pruned half-way, decoder", &e2vpt::E2Vpt),
        ("last", "a side network of low-rank attention over the frozen encoder, decoder", &last::Last),
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

/// What a method does with the biases of the encoder's layers whatever the settings say of them; `None` where they decide.
pub fn fixed_biases(method: &dyn Tuning) -> Option<Change> {
    let name = "image_encoder.blocks.0.attn.qkv.bias".to_string();
    let spec = WeightSpec { name, kind: Kind::Bias, part: Part::ImageEncoder, shape: vec![1], prompt_free: true };
    let change = |biases| method.encoder(&spec, &Settings { biases, ..Settings::default() });
    Some(change(Train::Yes)).filter(|always| *always == change(Train::No))
}

/// Whether anything trains under these settings: in every size the same kinds of weights do.
pub fn trains(method: &dyn Tuning, settings: &Settings) -> bool {
    let specs = SamConfig::tiny().specs();
    let plan = plan(method, &specs, None, &Settings { rank: None, ..settings.clone() });
    method.rule().is_some() || counts(&specs, &plan).trained > 0
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

/// The whole plan: chosen entries, the method's word on the rest of the encoder, what it adds, and the same rule for every
/// method outside of it (what a prompt-free single mask depends on trains, unless the decoder is to stay).
pub fn plan(method: &dyn Tuning, specs: &[WeightSpec], chosen: Option<&Chosen>, settings: &Settings) -> Plan {
    let change = |spec: &WeightSpec| match (chosen.and_then(|c| c.get(&spec.name)), spec.part) {
        _ if spec.kind == Kind::Buffer => Change::Frozen,
        (Some(indices), _) => match method.form() {
            Form::Values => Change::Chosen(indices.clone()),
            Form::Bypass => Change::Bypass(indices.clone()),
        },
        (None, Part::ImageEncoder) => method.encoder(spec, settings),
        (None, _) if settings.decoder == Train::Yes && spec.prompt_free => Change::Dense,
        (None, _) => Change::Frozen,
    };
    let added = method.added(specs, settings).into_iter().map(|a| (a.spec.name.clone(), Change::Added(a)));
    specs.iter().map(|spec| (spec.name.clone(), change(spec))).chain(added).collect()
}

/// Trained values of a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub trained: usize,
    /// Those of the image encoder.
    pub encoder: usize,
    /// Of these, entries chosen one by one.
    pub selected_encoder_weights: usize,
    /// Of these, biases of layers.
    pub encoder_biases: usize,
    /// Of these, values of weights that the base does not have.
    pub added: usize,
}

/// Counts a plan's trained values. What is added counts as the encoder's, where all of it is.
pub fn counts(specs: &[WeightSpec], plan: &Plan) -> Counts {
    let mut counts = Counts::default();
    for spec in specs {
        let (n, alone) = match plan.get(&spec.name) {
            None | Some(Change::Frozen | Change::Added(_)) => continue,
            Some(Change::Dense) => (spec.len(), 0),
            Some(Change::Chosen(indices) | Change::Bypass(indices)) => (indices.len(), indices.len()),
        };
        counts.trained += n;
        if spec.part == Part::ImageEncoder {
            counts.encoder += n;
            counts.selected_encoder_weights += alone;
            counts.encoder_biases += if spec.kind == Kind::Bias { n } else { 0 };
        }
    }
    let added = |change: &Change| match change {
        Change::Added(added) => added.start.len(),
        _ => 0,
    };
    counts.added = plan.values().map(added).sum();
    counts.trained += counts.added;
    counts.encoder += counts.added;
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One matrix of the encoder.
    pub(super) fn matrix(rows: usize, len: usize) -> WeightSpec {
        let (name, shape) = ("w".to_string(), vec![rows, len / rows]);
        WeightSpec { name, kind: Kind::Linear, part: Part::ImageEncoder, shape, prompt_free: true }
    }

    fn chosen(method: &dyn Tuning, spec: WeightSpec, evidence: &Evidence<'_>) -> Vec<u32> {
        let chosen = choose(method, &[spec], evidence, &Settings::default()).unwrap().unwrap();
        chosen["w"].clone()
    }

    /// What a method chooses, one a row, from a matrix of two rows that holds these values.
    pub(super) fn chosen_from_weights(method: &dyn Tuning, values: &[f32]) -> Vec<u32> {
        let weight = |_: &WeightSpec| values.to_vec();
        let evidence = Evidence { cases: 0, sums: BTreeMap::new(), weight: &weight, seed: 3 };
        chosen(method, matrix(2, values.len()), &evidence)
    }

    /// What a method chooses, one a row of at most two, from the gradients of these cases.
    pub(super) fn chosen_from_cases<const N: usize>(method: &dyn Tuning, cases: &[[f32; N]]) -> Vec<u32> {
        let needs = method.rule().unwrap().score.needs();
        let total = |sum: &Sum| (0..N).map(|i| cases.iter().map(|g| sum.term(g[i])).sum()).collect();
        let sums = needs.iter().map(|sum| (*sum, GradientTable::from([("w".to_string(), total(sum))])));
        let evidence = Evidence { cases: cases.len(), sums: sums.collect(), weight: &|_| Vec::new(), seed: 0 };
        chosen(method, matrix(N.div_ceil(2), N), &evidence)
    }

    /// Weights of the encoder that a method trains as a whole.
    pub(super) fn trained_in_encoder<'a>(method: &dyn Tuning, specs: &'a [WeightSpec]) -> Vec<&'a WeightSpec> {
        let plan = plan(method, specs, None, &Settings::default());
        let trains = |s: &&WeightSpec| s.part == Part::ImageEncoder && plan[&s.name] != Change::Frozen;
        specs.iter().filter(trains).collect()
    }

    /// Values that a method adds, at a rank.
    pub(super) fn added_values(method: &dyn Tuning, specs: &[WeightSpec], rank: Option<usize>) -> usize {
        let settings = Settings { rank, decoder: Train::No, ..Settings::default() };
        let counts = counts(specs, &plan(method, specs, None, &settings));
        assert_eq!((counts.added, counts.encoder_biases), (counts.trained, 0), "nothing else trains");
        counts.added
    }

    #[test]
    fn names_are_found_and_offered() {
        for (name, what, _) in methods() {
            assert!(find(name).is_ok() && !what.is_empty(), "{name}");
        }
        let error = find("magnitde").err().unwrap();
        assert!(error.hint.unwrap().contains("`magnitude`"));
    }

    #[test]
    fn biases_follow_the_settings_where_they_are_no_part_of_the_method() {
        let fixed = |name: &str| fixed_biases(find(name).unwrap());
        assert_eq!(["gps", "magnitude", "random", "fisher", "second-order"].map(fixed), [const { None }; 5]);
        assert_eq!(["full", "bitfit"].map(fixed), [const { Some(Change::Dense) }; 2]);
        let none = ["decoder", "norm", "neuroada", "sara", "sara-one-stage"];
        assert_eq!(none.map(fixed), [const { Some(Change::Frozen) }; 5]);
    }

    #[test]
    fn chosen_entries_and_bypasses_are_counted_alike() {
        let specs = [matrix(2, 8)];
        for change in [Change::Chosen(vec![1, 5]), Change::Bypass(vec![1, 5])] {
            let plan = Plan::from([("w".to_string(), change)]);
            let want = Counts { trained: 2, encoder: 2, selected_encoder_weights: 2, encoder_biases: 0, added: 0 };
            assert_eq!(counts(&specs, &plan), want);
        }
        let plan = Plan::from([("w".to_string(), Change::Dense)]);
        assert_eq!(counts(&specs, &plan), Counts { trained: 8, encoder: 8, ..Counts::default() });
    }
}
