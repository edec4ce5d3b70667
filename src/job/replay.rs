//! `replay`: the training of a run once more, and whether the same came out.

use super::train::{self, Judge, check_record};
use super::{base, select};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::run::Run;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What a run and its replay have in common.
#[derive(Debug)]
pub struct Replay {
    /// Files of the run, and whether the replay's hold the same: bytes, but for seconds; of metrics.json, every case's scores.
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
/// there.
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
    let selection = config.selection.as_ref().map(|_| run.selection());
    let config = Config { out: Some(again.folder.clone()), selection, ..config };
    train::complete(config, splits, &sha256, Judge::Test, progress)?;
    progress.end_log();
    let mut files = BTreeMap::new();
    for (name, path) in [
        ("selection.safetensors", Run::selection as fn(&Run) -> _),
        ("patch.safetensors", Run::patch),
        ("history.csv", Run::history),
    ] {
        if path(&run).is_file() || path(&again).is_file() {
            let [then, now] = [&run, &again].map(|run| content(&path(run)));
            files.insert(name, then? == now?);
        }
    }
    let [then, now] = [&run, &again].map(|run| json_of(&run.metrics()));
    let (then, now) = (then?, now?);
    files.insert("metrics.json", scores(&then) == scores(&now));
    let mdice = [then["mDice"].clone(), now["mDice"].clone()];
    let [then, now] = [&run, &again].map(|run| json_of(&run.record()));
    let (then, now) = (then?, now?);
    let made_by = ["segft", "device"].iter().filter(|key| then[**key] != now[**key]);
    let made_by = made_by.map(|key| format!("{key}: {}, now {}", then[*key], now[*key])).collect();
    Ok(Replay { files, mdice, made_by, run, again })
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
