//! Where cases come from: layouts, named sets, splits, leak checks.

mod interim;

use crate::error::Result;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Pictures (one mask a picture) or volumes (cut into slices for the network, scored whole).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// JPEG, PNG, TIFF, BMP.
    Pictures,
    /// NIfTI.
    Volumes,
}

/// One picture or volume with its reference, and whom it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// Unique in the set; the stem of the picture.
    pub id: String,
    /// The picture or volume.
    pub image: PathBuf,
    /// The reference mask or label map.
    pub mask: PathBuf,
    /// Patient or sequence: never on two sides of a split. The id where nothing is known.
    pub group: String,
    /// Side given by the set itself (a CSV's `split` column), if any.
    pub side: Option<Side>,
}

/// Sides of a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Trains the weights and feeds the selection.
    Train,
    /// Chooses checkpoint, threshold and post-processing.
    Validation,
    /// Read once, at the end.
    Test,
}

/// A set of cases with references.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Short name, used for the run folder.
    pub name: String,
    /// Where it lies.
    pub root: PathBuf,
    /// What layout was detected, in words.
    pub layout: String,
    /// Pictures or volumes.
    pub form: Form,
    /// Sorted by id.
    pub cases: Vec<Case>,
    /// Names of classes, where the set gives them.
    pub classes: BTreeMap<u16, String>,
}

/// How a set is found and divided: the flags of `train` that concern data.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// A named set, a folder or a CSV.
    pub dataset: String,
    /// Where the files of a named set are (`--data`).
    pub data: Option<PathBuf>,
    /// Separate validation set (`--val`).
    pub val: Option<PathBuf>,
    /// Separate test set (`--test`).
    pub test: Option<PathBuf>,
    /// Given splits (`--split`).
    pub split: Option<PathBuf>,
    /// Cross-validation: number of folds and which one is the test fold.
    pub fold: Option<(usize, usize)>,
    /// At most this many cases in all for training and validation (`--sizes 50`).
    pub size: Option<usize>,
    /// Seed of the split and of generated sets.
    pub seed: u64,
    /// Where fetched and generated sets are kept.
    pub cache: PathBuf,
    /// Never use the network (`--offline`).
    pub offline: bool,
    /// Warn instead of refusing when a case stands on two sides (`--allow-leak`).
    pub allow_leak: bool,
}

/// The three sides, each sorted by id.
#[derive(Debug, Clone)]
pub struct Splits {
    /// The set the training cases come from.
    pub dataset: Dataset,
    /// Trains the weights and feeds the selection.
    pub train: Vec<Case>,
    /// Chooses checkpoint and threshold.
    pub validation: Vec<Case>,
    /// Read once, at the end.
    pub test: Vec<Case>,
    /// How they were made, in words.
    pub rule: String,
    /// Remarks for the user (skipped files, small sets), for stderr.
    pub warnings: Vec<String>,
}

/// Finds the set, detects its layout, divides it and checks that nothing leaks.
pub fn prepare(request: &Request) -> Result<Splits> {
    interim::prepare(request)
}

/// A hash over ids and contents of all cases, for the run record.
pub fn data_hash(splits: &Splits) -> Result<String> {
    interim::data_hash(splits)
}
