//! `replay`: the training of a run once more, and whether the same came out.

use super::train::{self, Judge, check_record};
use super::{base, select};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use crate::run::Run;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What a run and its replay have in common.
#[derive(Debug)]
pub struct Replay {
    /// Files of the run, and whether the replay's hold the same: bytes, but for seconds; of metrics.json, every case's scores.
    /// A selection that was given is not among them.
    pub files: BTreeMap<&'static str, bool>,
    /// mDice of the test cases, of the run and of its replay; `null` without a test case that has one.
    pub mdice: [Value; 2],
    /// What made the run and what made the replay, where they are not the same.
    pub made_by: Vec<String>,
    /// The run.
    pub run: Run,
    /// The replay.
    pub again: Run,
}

/// Trains with a run's own configuration, split and base, in its sub-folder `replay`. A replay that was stopped goes on
/// there; one that is complete is made again.
///
/// # Errors
/// A usage error for a run that is not complete, or that ended when a clock said so; a data or weights error when its cases
/// or its base are others by now; whatever a training answers.
pub fn run(run: Run, progress: &Progress) -> Result<Replay> {
    if !run.is_completed() {
        return Err(Error::usage("the run is not complete")
            .at(&run.folder)
            .hint("finish it with `segft train --resume`"));
    }
    let config = Config::load(&run.config())?;
    if config.minutes.is_some() {
        return Err(Error::usage("a run of --minutes ends where the clock says, which does not repeat")
            .at(&run.folder)
            .hint("train with --epochs or --steps what is to be replayed"));
    }
    let splits = select::prepare(&config, progress)?;
    let sha256 = base::load(&config.model)?.sha256;
    check_record(&run, &splits, &sha256)?;
    let again = Run { folder: run.folder.join("replay") };
    // A given selection stands in the run; where it came from may be gone.
    let given = config.selection.is_some();
    // What is missing is known before anything is trained.
    let then = Kept::read(&run, given)?;
    // One that differed was kept to be looked at; this call asks again.
    if again.is_completed() {
        std::fs::remove_dir_all(&again.folder).map_err(|e| Error::writing(&again.folder, &e))?;
    }
    let config = Config { out: Some(again.folder.clone()), selection: given.then(|| run.selection()), ..config };
    train::complete(config, splits, &sha256, Judge::Test, progress).map_err(|e| match e.kind {
        Kind::Interrupted => e.hint("the same `segft replay` goes on from here"),
        _ => e,
    })?;
    progress.end_log();
    let now = Kept::read(&again, given)?;
    let mut files: BTreeMap<&'static str, bool> =
        then.files.iter().map(|(name, bytes)| (*name, now.files.get(name) == Some(bytes))).collect();
    files.insert("metrics.json", scores(&then.metrics) == scores(&now.metrics));
    let mdice = [then.metrics["mDice"].clone(), now.metrics["mDice"].clone()];
    let (then, now) = (then.record, now.record);
    let made_by = ["segft", "device"].iter().filter(|key| then[**key] != now[**key]);
    let made_by = made_by.map(|key| format!("{key}: {}, now {}", then[*key], now[*key])).collect();
    Ok(Replay { files, mdice, made_by, run, again })
}

/// What of a run is compared.
struct Kept {
    files: BTreeMap<&'static str, Vec<u8>>,
    metrics: Value,
    record: Value,
}

impl Kept {
    /// Reads it; a given selection says nothing about the program.
    fn read(run: &Run, given: bool) -> Result<Kept> {
        let mut files = BTreeMap::from([
            ("patch.safetensors", content(&run.existing_patch()?)?),
            ("history.csv", content(&run.history())?),
        ]);
        if run.selection().is_file() && !given {
            files.insert("selection.safetensors", content(&run.selection())?);
        }
        Ok(Kept { files, metrics: json_of(&run.metrics())?, record: json_of(&run.record())? })
    }
}

/// A file's bytes; of a history, without the seconds.
fn content(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(|e| Error::reading(path, &e))?;
    if path.file_name().is_none_or(|name| name != "history.csv") {
        return Ok(bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let header = text.lines().next().unwrap_or("");
    let timeless: Vec<bool> = header.split(',').map(|column| column != "seconds").collect();
    let kept = |line: &str| {
        let fields = line.split(',').zip(&timeless);
        fields.filter(|(_, kept)| **kept).map(|(field, _)| field.to_string()).collect::<Vec<_>>().join(",")
    };
    Ok(text.lines().map(kept).collect::<Vec<_>>().join("\n").into_bytes())
}

/// Every case with its scores.
fn scores(metrics: &Value) -> Vec<[Value; 2]> {
    let cases = metrics["metric_per_case"].as_array().cloned().unwrap_or_default();
    cases.into_iter().map(|case| [case["case"].clone(), case["metrics"].clone()]).collect()
}

fn json_of(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::reading(path, &e))?;
    serde_json::from_str(&text).map_err(|e| Error::data(format!("not JSON: {e}")).at(path))
}

impl Replay {
    /// Whether every file is the same.
    pub fn same(&self) -> bool {
        self.files.values().all(|same| *same)
    }

    /// Takes a replay away that taught nothing new.
    ///
    /// # Errors
    /// A job error when its folder cannot be removed.
    pub fn tidy(&self) -> Result<()> {
        let folder = &self.again.folder;
        match self.same() {
            true => std::fs::remove_dir_all(folder).map_err(|e| Error::writing(folder, &e)),
            false => Ok(()),
        }
    }

    /// That something differs (exit 1), and what may be the reason.
    pub fn error(&self) -> Option<Error> {
        let differ: Vec<&str> = self.files.iter().filter(|(_, same)| !**same).map(|(name, _)| *name).collect();
        let reason = match self.made_by.as_slice() {
            [] => "the same bytes are promised on the CPU and one instruction set; the replay is kept beside the run"
                .into(),
            made_by => format!("the run was not made by this program here ({})", made_by.join("; ")),
        };
        (!differ.is_empty())
            .then(|| Error::job(format!("not the same: {}", differ.join(", "))).at(&self.again.folder).hint(reason))
    }

    /// The answer as one JSON object.
    pub fn json(&self) -> Value {
        let [then, now] = &self.mdice;
        json!({
            "run": self.run.folder.display().to_string(),
            "same": self.same(),
            "files": self.files,
            "mDice": then,
            "mDice_replayed": now,
            "made_by": self.made_by,
        })
    }

    /// The answer for people.
    pub fn text(&self) -> String {
        let line = |(name, same): (&&str, &bool)| format!("{name:22} {}\n", if *same { "the same" } else { "differs" });
        let files: String = self.files.iter().map(line).collect();
        let [then, now] = &self.mdice;
        format!("{files}{:22} {then}, replayed {now}\n", "mDice")
    }
}
