//! What a report holds, and how it is written as JSON.
//!
//! The keys are those of nnU-Net's summary.json and ours beside them; undefined numbers are `null`, never not-a-number.
//! Cases come by id and classes by value. How the numbers are made is `average.rs`; tables are `table.rs`.

use super::Unit;
use super::counts::Counts;
use super::options::{Empty, Protocol, Surfaces};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A 95 % interval, low and high.
pub type Interval = [f64; 2];

/// The score of a set of cases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The rule that the numbers follow.
    pub protocol: ProtocolNote,
    /// One entry a case, by id.
    pub metric_per_case: Vec<CaseMetrics>,
    /// Mean over cases, by class.
    pub mean: BTreeMap<u16, Means>,
    /// Mean of the classes' means, background left out.
    pub foreground_mean: Overlap,
    /// The protocol's one number for Dice.
    #[serde(rename = "mDice")]
    pub mdice: Option<f64>,
    /// The protocol's one number for IoU.
    #[serde(rename = "mIoU")]
    pub miou: Option<f64>,
    /// 95 % interval of `mdice` by bootstrap over cases.
    #[serde(rename = "mDice_ci95")]
    pub mdice_ci95: Option<Interval>,
    /// 95 % interval of `miou` by bootstrap over cases.
    #[serde(rename = "mIoU_ci95")]
    pub miou_ci95: Option<Interval>,
    /// Counts added over all cases first, by class.
    pub pooled: BTreeMap<u16, Overlap>,
    /// Cases scored.
    pub n_cases: usize,
    /// Cases whose reference holds no foreground class.
    pub n_empty_reference: usize,
    /// What became of the cases without foreground.
    pub empty_reference: EmptyReference,
    /// Cases with a class in neither mask, by class.
    pub n_absent: BTreeMap<u16, usize>,
    /// Cases left out of the means because the value is undefined, by class.
    pub n_undefined: BTreeMap<u16, Undefined>,
    /// Median over cases, by class.
    pub median: BTreeMap<u16, Overlap>,
    /// Standard deviation over cases (n − 1), by class.
    pub sd: BTreeMap<u16, Overlap>,
    /// Lowest Dice first.
    pub worst_cases: Vec<WorstCase>,
    /// What `HD95_mm` and `ASSD_mm` are measured in.
    pub distance_unit: Unit,
    /// Values that protocol `pranet` alone knows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pranet: Option<Pranet>,
    /// What `--allow-missing` left out.
    pub missing: Missing,
}

/// The rule that a report's numbers follow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProtocolNote {
    /// The protocol.
    pub name: Protocol,
    /// What a class in neither mask counts as.
    pub empty: Empty,
    /// Tolerance of `NSD`.
    pub nsd_tolerance_mm: f64,
    /// How mDice and mIoU are averaged, in words.
    pub averaging: String,
    /// Whether the numbers may stand beside plain Dice and IoU.
    pub comparable: bool,
    /// Whether surface distances were measured.
    pub surfaces: Surfaces,
    /// How surface distances are defined, in words.
    pub surface_rule: String,
    /// Resamples of the bootstrap.
    pub resamples: usize,
    /// Seed of the bootstrap.
    pub seed: u64,
}

/// One case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseMetrics {
    /// The case's id.
    pub case: String,
    /// Its reference, `null` when scored in memory.
    pub reference_file: Option<String>,
    /// Its prediction, `null` when scored in memory.
    pub prediction_file: Option<String>,
    /// By class.
    pub metrics: BTreeMap<u16, ClassMetrics>,
}

/// One class of one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the names are the definitions")]
pub struct ClassMetrics {
    pub dice: Option<f64>,
    #[serde(rename = "IoU")]
    pub iou: Option<f64>,
    #[serde(rename = "TP")]
    pub tp: u64,
    #[serde(rename = "FP")]
    pub fp: u64,
    #[serde(rename = "FN")]
    pub fn_: u64,
    #[serde(rename = "TN")]
    pub tn: u64,
    #[serde(rename = "n_pred")]
    pub n_pred: u64,
    #[serde(rename = "n_ref")]
    pub n_ref: u64,
    #[serde(rename = "sensitivity")]
    pub sensitivity: Option<f64>,
    #[serde(rename = "precision")]
    pub precision: Option<f64>,
    #[serde(rename = "HD95_mm")]
    pub hd95_mm: Option<f64>,
    #[serde(rename = "ASSD_mm")]
    pub assd_mm: Option<f64>,
    #[serde(rename = "NSD")]
    pub nsd: Option<f64>,
}

/// Dice and IoU.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Overlap {
    /// Dice.
    #[serde(rename = "Dice")]
    pub dice: Option<f64>,
    /// Intersection over union.
    #[serde(rename = "IoU")]
    pub iou: Option<f64>,
}

/// Mean over the cases in which a value is defined.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the names are those of `ClassMetrics`")]
pub struct Means {
    pub dice: Option<f64>,
    #[serde(rename = "IoU")]
    pub iou: Option<f64>,
    #[serde(rename = "sensitivity")]
    pub sensitivity: Option<f64>,
    #[serde(rename = "precision")]
    pub precision: Option<f64>,
    #[serde(rename = "HD95_mm")]
    pub hd95_mm: Option<f64>,
    #[serde(rename = "ASSD_mm")]
    pub assd_mm: Option<f64>,
    #[serde(rename = "NSD")]
    pub nsd: Option<f64>,
}

/// Cases without foreground in the reference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EmptyReference {
    /// How many of them the prediction left empty, too.
    pub n_correct: usize,
    /// Foreground voxels invented in one of them, on average.
    pub mean_false_positives: Option<f64>,
}

/// How many cases have no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undefined {
    /// Dice and IoU.
    #[serde(rename = "Dice")]
    pub dice: usize,
    /// HD95 and ASSD: one of the masks is empty.
    #[serde(rename = "HD95_mm")]
    pub hd95_mm: usize,
}

/// A case to look at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorstCase {
    /// Its id.
    pub case: String,
    /// The class.
    pub class: u16,
    /// Its Dice.
    #[serde(rename = "Dice")]
    pub dice: f64,
}

/// Values that protocol `pranet` alone knows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pranet {
    /// Largest mean over pictures at one threshold.
    #[serde(rename = "maxDice")]
    pub max_dice: f64,
    /// The same for IoU.
    #[serde(rename = "maxIoU")]
    pub max_iou: f64,
    /// Mean over pictures at 0.5 of the map as stored: plain Dice.
    #[serde(rename = "mDice_at_0.5")]
    pub mdice_at_half: Option<f64>,
    /// The same for IoU.
    #[serde(rename = "mIoU_at_0.5")]
    pub miou_at_half: Option<f64>,
}

/// What `--allow-missing` left out: ids of cases.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Missing {
    /// References without a prediction.
    pub predictions: Vec<String>,
    /// Predictions without a reference.
    pub references: Vec<String>,
    /// mDice when every missing prediction counts as an empty mask; `null` when none is missing.
    #[serde(rename = "mDice_if_empty")]
    pub mdice_if_empty: Option<f64>,
    /// mIoU when every missing prediction counts as an empty mask; `null` when none is missing.
    #[serde(rename = "mIoU_if_empty")]
    pub miou_if_empty: Option<f64>,
}

impl ClassMetrics {
    /// The counts again.
    pub fn counts(&self) -> Counts {
        Counts { tp: self.tp, fp: self.fp, fn_: self.fn_, tn: self.tn }
    }
}

impl Report {
    /// The report as one JSON object.
    ///
    /// # Errors
    /// None in practice: every key is a string and every number finite or `null`.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self).map_err(|e| Error::job(format!("cannot write the report as JSON: {e}")))
    }
}
