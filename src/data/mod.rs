//! Where cases come from: layouts, named sets, splits, leak checks.

mod check;
pub mod fetch;
mod layout;
mod leak;
pub mod named;
mod split;

use crate::error::{Error, Result};
use crate::model::checkpoint::{file_sha256, hex};
pub use check::{Found, check};
use sha2::{Digest, Sha256};
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
    /// Patient or sequence, where it is known: never on two sides of a split.
    pub group: Option<String>,
    /// Side given by the set itself (a CSV's `split` column), if any.
    pub side: Option<Side>,
}

impl Case {
    /// What is never divided.
    pub fn unit(&self) -> Unit<'_> {
        self.group.as_deref().map_or(Unit::Alone(&self.id), Unit::Group)
    }
}

/// Whose cases stay together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit<'a> {
    /// All of a group.
    Group(&'a str),
    /// A case that nothing is known of, by its id: no group is meant that has its name.
    Alone(&'a str),
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
    /// Remarks for the user, for stderr.
    pub warnings: Vec<String>,
    /// SHA-256 of each picture's decoded content.
    pub contents: BTreeMap<PathBuf, String>,
}

/// Finds the set and detects its layout, undivided.
///
/// # Errors
/// As [`prepare`].
pub fn open(request: &Request) -> Result<Dataset> {
    named::open(request)
}

/// Finds the set, detects its layout, divides it and checks that nothing leaks.
///
/// # Errors
/// A usage error for unknown names; a data error naming the file, the field, or both cases of a leak.
pub fn prepare(request: &Request) -> Result<Splits> {
    let dataset = named::open(request)?;
    let other = |path: &Option<PathBuf>| path.as_ref().map(|p| layout::open(&named::name_of(p), p)).transpose();
    let (val, test) = (other(&request.val)?, other(&request.test)?);
    if let Some(set) = [&val, &test].into_iter().flatten().find(|set| set.form != dataset.form) {
        return Err(Error::data("pictures and volumes are not mixed").at(&set.root));
    }
    let sets = [Some(&dataset), val.as_ref(), test.as_ref()];
    let cases: Vec<&Case> = sets.into_iter().flatten().flat_map(|set| &set.cases).collect();
    let contents = leak::contents(&cases, dataset.form)?;
    let sides = split::divide(request, &dataset, val.as_ref(), test.as_ref(), &contents)?;
    let named = [("training", &sides.train[..]), ("validation", &sides.validation[..]), ("test", &sides.test[..])];
    let warnings = leak::judge(leak::find(&named, &contents), request.allow_leak)?;
    let split::Sides { train, validation, test, rule } = sides;
    Ok(Splits { dataset, train, validation, test, rule, warnings, contents })
}

/// A hash over sides, ids and contents of all cases and masks, for the run record.
///
/// # Errors
/// A data error naming a mask that cannot be read.
pub fn data_hash(splits: &Splits) -> Result<String> {
    let mut hash = Sha256::new();
    for (side, cases) in [("train", &splits.train), ("validation", &splits.validation), ("test", &splits.test)] {
        hash.update(side);
        for case in cases {
            hash.update(&case.id);
            hash.update(splits.contents.get(&case.image).map(String::as_str).unwrap_or(""));
            hash.update(file_sha256(&case.mask)?);
        }
    }
    Ok(hex(&hash.finalize()))
}
