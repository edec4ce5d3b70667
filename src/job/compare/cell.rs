//! The small files that a comparison leaves: one a trial, one a cell, each with everything that decided it.

use super::Size;
use super::twice::LeftOut;
use crate::error::{Error, Result};
use crate::io::{Replace, write_atomic};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Results of before there could be several seeds do not say how many they had.
fn one() -> usize {
    1
}

/// Everything that decides a trial or a cell. A file made by another setup is never taken for this one's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Default))]
pub(super) struct Setup {
    pub method: String,
    pub size: Size,
    pub seed: u64,
    /// The learning rate, and what multiple of the method's own it is.
    pub lr: f64,
    pub lr_multiple: f64,
    /// The multiples that were tried to choose it; none in a trial.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lrs: Vec<f64>,
    /// How many seeds each of them was tried with; the mean counts. One in a trial.
    #[serde(default = "one")]
    pub trial_seeds: usize,
    /// How many of the seeds train again with twice the steps. One in a trial, where none does.
    #[serde(default = "one")]
    pub doubled_seeds: usize,
    /// The only size they were tried at; the cell's own by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuned_at: Option<Size>,
    pub steps: usize,
    pub split_seed: u64,
    pub base_sha256: String,
    /// Of the cases it may know: without test cases in a trial.
    pub data_hash: String,
    /// The rest of the configuration.
    pub options: Map<String, Value>,
}

/// A training of one learning rate, judged on validation alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Trial {
    #[serde(flatten)]
    pub setup: Setup,
    /// `null` when the loss ran away.
    #[serde(rename = "validation_mDice")]
    pub validation_mdice: Option<f64>,
}

/// A training that is judged on the test set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Default))]
pub(super) struct Cell {
    #[serde(flatten)]
    pub setup: Setup,
    /// Number of trials that chose the learning rate.
    pub trials: usize,
    #[serde(rename = "mDice")]
    pub mdice: Option<f64>,
    #[serde(rename = "mIoU")]
    pub miou: Option<f64>,
    #[serde(rename = "validation_mDice")]
    pub validation_mdice: f64,
    /// The same after twice the steps; only the first seeds are asked.
    #[serde(rename = "validation_mDice_doubled")]
    pub validation_mdice_doubled: Option<f64>,
    /// What judges instead of validation, where the size leaves cases out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<LeftOut>,
    /// Whether twice the steps moved this seed's mDice by less than 0.01; the mean over seeds counts.
    pub converged: Option<bool>,
    pub trained_parameters: usize,
    pub parameters: usize,
    /// Of the image encoder; cells made before these were written have none.
    #[serde(default)]
    pub trained_encoder_parameters: Option<usize>,
    #[serde(default)]
    pub encoder_parameters: Option<usize>,
    #[serde(default)]
    pub patch_bytes: Option<u64>,
    /// What the fine-tune adds to the time of encoding a picture, as a part of it.
    #[serde(default)]
    pub extra_inference: Option<f64>,
    /// Validation included.
    pub seconds_per_step: Option<f64>,
    pub peak_rss_mib: Option<u64>,
    pub device: String,
    /// Dice of each test case by id; `null` where undefined.
    pub cases: BTreeMap<String, Option<f64>>,
}

/// A file that knows its setup.
pub(super) trait Record: Serialize + DeserializeOwned {
    fn setup(&self) -> &Setup;
}

impl Record for Trial {
    fn setup(&self) -> &Setup {
        &self.setup
    }
}

impl Record for Cell {
    fn setup(&self) -> &Setup {
        &self.setup
    }
}

/// Reads a record, if it is there.
///
/// # Errors
/// A data error when it is damaged.
pub(super) fn read<T: Record>(path: &Path) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::reading(path, &e))?;
    let record = serde_json::from_str(&text).map_err(|e| {
        Error::data(format!("not a result of `segft compare`: {e}")).at(path).hint("remove it, and it is made again")
    })?;
    Ok(Some(record))
}

/// Reads a record made by this setup; with `--force`, one made by another counts as missing.
///
/// # Errors
/// A usage error naming what differs; a data error when the file is damaged.
pub(super) fn known<T: Record>(path: &Path, wanted: &Setup, replace: Replace) -> Result<Option<T>> {
    let Some(record) = read::<T>(path)? else { return Ok(None) };
    match (difference(record.setup(), wanted)?, replace) {
        (None, _) => Ok(Some(record)),
        (Some(_), Replace::Allowed) => Ok(None),
        (Some(difference), Replace::Never) => Err(Error::usage(format!("made with other settings: {difference}"))
            .at(path)
            .hint("choose another --out, or replace it with --force")),
    }
}

/// Writes a record.
///
/// # Errors
/// A job error when it cannot be written.
pub(super) fn write<T: Record>(path: &Path, record: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(record).map_err(|e| Error::job(e.to_string()).at(path))?;
    write_atomic(path, |to| writeln!(to, "{text}"))
}

/// The first setting in which two setups differ, in words.
///
/// # Errors
/// None in practice: a setup is plain JSON.
pub(super) fn difference(there: &Setup, wanted: &Setup) -> Result<Option<String>> {
    let flat = |setup: &Setup| -> Result<Map<String, Value>> {
        let mut all = match serde_json::to_value(setup).map_err(|e| Error::job(e.to_string()))? {
            Value::Object(all) => all,
            _ => Map::new(),
        };
        all.remove("options");
        all.extend(setup.options.clone());
        Ok(all)
    };
    let (there, wanted) = (flat(there)?, flat(wanted)?);
    let word = |value: Option<&Value>| value.map(Value::to_string).unwrap_or_else(|| "not there".into());
    let differs = |key: &&String| there.get(*key) != wanted.get(*key);
    let key = wanted.keys().chain(there.keys()).find(differs);
    Ok(key.map(|key| format!("`{key}` is {}, wanted {}", word(there.get(key)), word(wanted.get(key)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> Setup {
        Setup {
            method: "gps".into(),
            size: Size::Cases(50),
            seed: 1,
            lr: 0.00066,
            lr_multiple: 0.33,
            lrs: vec![0.33, 1.0],
            trial_seeds: 1,
            doubled_seeds: 1,
            tuned_at: None,
            steps: 300,
            split_seed: 0,
            base_sha256: "aa".into(),
            data_hash: "bb".into(),
            options: Map::from_iter([("k".to_string(), Value::from(1))]),
        }
    }

    #[test]
    fn what_is_written_is_read_and_another_setup_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trial.json");
        let trial = Trial { setup: setup(), validation_mdice: Some(0.1 + 0.2) };
        assert_eq!(known::<Trial>(&path, &setup(), Replace::Never).unwrap(), None);
        write(&path, &trial).unwrap();
        assert_eq!(known(&path, &setup(), Replace::Never).unwrap(), Some(trial));
        let mut other = setup();
        other.options.insert("k".into(), Value::from(2));
        let error = known::<Trial>(&path, &other, Replace::Never).unwrap_err();
        assert_eq!((error.kind.exit_code(), error.message.contains("`k` is 1, wanted 2")), (2, true), "{error}");
        assert_eq!(known::<Trial>(&path, &other, Replace::Allowed).unwrap(), None);
    }
}
