//! Run folders: where a training writes, which run is the newest, and that only one process writes at a time.

use crate::error::{Error, Result, nearest};
use crate::io::{Replace, write_atomic};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The folder that holds runs, below the current one.
pub const RUNS: &str = "runs";

/// A run folder and the names of the files in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The folder.
    pub folder: PathBuf,
}

fn taken(folder: &Path) -> bool {
    // A lock alone is what is left of a run that was killed at once.
    std::fs::read_dir(folder).is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name() != ".lock"))
}

impl Run {
    /// A new folder: the given one, or the next free `runs/<dataset>-<method>-<n>`.
    ///
    /// # Errors
    /// A usage error when the given folder exists and holds something (with `--force`: something that is not a run); a
    /// job error when it cannot be made.
    pub fn create(given: Option<&Path>, dataset: &str, method: &str, force: Replace) -> Result<Run> {
        Run::check_free(given, force)?;
        let folder = match given {
            Some(folder) => {
                if taken(folder) {
                    // Another process may be at work in it; the lock goes with the folder.
                    let _held = Run { folder: folder.to_path_buf() }.lock()?;
                    std::fs::remove_dir_all(folder).map_err(|e| Error::writing(folder, &e))?;
                }
                std::fs::create_dir_all(folder).map_err(|e| Error::writing(folder, &e))?;
                folder.to_path_buf()
            }
            None => {
                std::fs::create_dir_all(RUNS).map_err(|e| Error::writing(RUNS, &e))?;
                let mut n = 1;
                loop {
                    let folder = Path::new(RUNS).join(format!("{dataset}-{method}-{n}"));
                    // Made, not asked for: two trainings started at once get two folders.
                    match std::fs::create_dir(&folder) {
                        Ok(()) => break folder,
                        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => n += 1,
                        Err(e) => return Err(Error::writing(&folder, &e)),
                    }
                }
            }
        };
        Ok(Run { folder })
    }

    /// Refuses a folder that [`Run::create`] would refuse: before anything is read.
    ///
    /// # Errors
    /// As [`Run::create`].
    pub fn check_free(given: Option<&Path>, force: Replace) -> Result<()> {
        if let Some(file) = given.filter(|folder| folder.is_file()) {
            return Err(Error::usage("a run is a folder, this is a file").at(file).hint("choose another --out"));
        }
        let Some(folder) = given.filter(|folder| taken(folder)) else { return Ok(()) };
        if force == Replace::Never {
            return Err(Error::usage("the run folder exists already")
                .at(folder)
                .hint("choose another --out, go on with --resume, or replace it with --force"));
        }
        // `--force` replaces a run, never somebody's other folder.
        if !folder.join("config.toml").is_file() {
            return Err(Error::usage("this folder holds something that is not a run")
                .at(folder)
                .hint("choose another --out"));
        }
        Ok(())
    }

    /// An existing run.
    ///
    /// # Errors
    /// A usage error when the folder is missing or is no run, offering the nearest name.
    pub fn open(folder: &Path) -> Result<Run> {
        let run = Run { folder: folder.to_path_buf() };
        if folder.is_file() {
            let parent = folder.parent().filter(|p| p.join("config.toml").is_file());
            let hint = parent.map(|p| format!("name the folder: {}", p.display()));
            return Err(Error::usage("a run is a folder, this is a file")
                .at(folder)
                .hint(hint.unwrap_or_else(|| "runs are made by `segft train`".into())));
        }
        if !folder.is_dir() {
            let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let names: Vec<String> = std::fs::read_dir(parent)
                .map(|d| d.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
                .unwrap_or_default();
            let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let near = nearest(&name, names.iter().map(String::as_str));
            let error = Error::usage("no such run folder").at(folder);
            return Err(match near {
                Some(near) => error.hint(format!("did you mean `{}`?", parent.join(near).display())),
                None => error.hint("runs are made by `segft train`"),
            });
        }
        if !run.config().is_file() {
            return Err(Error::usage("not a run folder: it has no config.toml").at(folder));
        }
        Ok(run)
    }

    /// The newest completed run.
    ///
    /// # Errors
    /// A usage error when there is none yet.
    pub fn newest() -> Result<Run> {
        let latest = Path::new(RUNS).join("latest");
        let name = std::fs::read_to_string(&latest).unwrap_or_default();
        if name.trim().is_empty() {
            return Err(Error::usage("no completed run yet")
                .at(RUNS)
                .hint("train one with `segft train`, or name a run with --run DIR"));
        }
        let run = Run::open(Path::new(name.trim())).map_err(|e| {
            Error { message: format!("{latest}, the newest run's name: {e}", latest = latest.display()), ..e }
                .hint("name a run with --run DIR; `segft doctor` lists them")
        })?;
        if !run.is_completed() {
            return Err(Error::usage("runs/latest names a run that is not complete").at(run.folder));
        }
        Ok(run)
    }

    /// The newest run that was started and not completed.
    ///
    /// # Errors
    /// A usage error when there is none.
    pub fn unfinished() -> Result<Run> {
        let mut runs: Vec<(std::time::SystemTime, PathBuf)> = Run::all()
            .into_iter()
            .filter(|run| !run.is_completed())
            .filter_map(|run| Some((run.config().metadata().ok()?.modified().ok()?, run.folder)))
            .collect();
        runs.sort();
        let (_, folder) = runs
            .pop()
            .ok_or_else(|| Error::usage("no unfinished run to resume").at(RUNS).hint("name one with --resume RUN"))?;
        Ok(Run { folder })
    }

    /// Marks this run as the newest completed one.
    ///
    /// # Errors
    /// A job error when `runs/latest` cannot be written.
    pub fn mark_latest(&self) -> Result<()> {
        std::fs::create_dir_all(RUNS).map_err(|e| Error::writing(RUNS, &e))?;
        let text = format!("{}\n", self.folder.display());
        write_atomic(&Path::new(RUNS).join("latest"), |to| to.write_all(text.as_bytes()))
    }

    /// Whether `runs/latest` should name this completed run and does not: it ended well, and after the one that is named.
    pub fn was_not_marked(&self) -> bool {
        let ended = |run: &Run| run.metrics().metadata().ok()?.modified().ok();
        let text = std::fs::read_to_string(self.metrics()).unwrap_or_default();
        let metrics: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let proven = metrics["frozen_weights_unchanged"] == true;
        proven && Run::newest().map_or(true, |latest| ended(self) > ended(&latest))
    }

    /// Keeps other processes from writing here while the answer lives.
    ///
    /// # Errors
    /// A job error when another process holds the run.
    pub fn lock(&self) -> Result<File> {
        let path = self.folder.join(".lock");
        let file = File::create(&path).map_err(|e| Error::writing(&path, &e))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => {
                Err(Error::job("another segft is writing to this run").at(&self.folder).hint("wait for it, or stop it"))
            }
            Err(std::fs::TryLockError::Error(e)) => Err(Error::writing(&path, &e)),
        }
    }

    /// Whether the run came to its end: its last file is there and whole.
    pub fn is_completed(&self) -> bool {
        let text = std::fs::read_to_string(self.metrics()).unwrap_or_default();
        serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|metrics| metrics.is_object())
    }

    /// A patch file as it is, or that of a run folder.
    ///
    /// # Errors
    /// As [`Run::open`] and [`Run::existing_patch`], of a folder.
    pub fn patch_in(path: &Path) -> Result<PathBuf> {
        match path.is_dir() {
            true => Run::open(path)?.existing_patch(),
            false => Ok(path.to_path_buf()),
        }
    }

    /// The fine-tune, if the run has one.
    ///
    /// # Errors
    /// A usage error saying what to do when it is missing.
    pub fn existing_patch(&self) -> Result<PathBuf> {
        let path = self.patch();
        match (path.is_file(), self.is_completed()) {
            (true, _) => Ok(path),
            (false, false) => Err(Error::usage("the run has no patch yet")
                .at(&self.folder)
                .hint("finish it with `segft train --resume`")),
            (false, true) => {
                Err(Error::usage("the run's patch is gone").at(path).hint("put the file back, or train again"))
            }
        }
    }

    /// The runs below the current folder, by name.
    pub fn all() -> Vec<Run> {
        let entries = std::fs::read_dir(RUNS).map(|d| d.flatten().map(|e| e.path()).collect::<Vec<_>>());
        let mut runs: Vec<Run> = entries.unwrap_or_default().into_iter().map(|folder| Run { folder }).collect();
        runs.retain(|run| run.config().is_file());
        runs.sort_by(|a, b| a.folder.cmp(&b.folder));
        runs
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.folder.join("config.toml")
    }
    /// Which entries train.
    pub fn selection(&self) -> PathBuf {
        self.folder.join("selection.safetensors")
    }
    /// The fine-tune.
    pub fn patch(&self) -> PathBuf {
        self.folder.join("patch.safetensors")
    }
    /// One line an epoch.
    pub fn history(&self) -> PathBuf {
        self.folder.join("history.csv")
    }
    /// How weights and their changes lie to the inputs of their layers, after each validation: where it was asked for.
    pub fn alignment(&self) -> PathBuf {
        self.folder.join("alignment.csv")
    }
    /// Scores of the test split. Written last: a run that has it is complete.
    pub fn metrics(&self) -> PathBuf {
        self.folder.join("metrics.json")
    }
    /// Scores of each test case.
    pub fn per_case(&self) -> PathBuf {
        self.folder.join("per_case.csv")
    }
    /// Predicted masks of the test cases.
    pub fn predictions(&self) -> PathBuf {
        self.folder.join("predictions")
    }
    /// All of it as one page.
    pub fn report(&self) -> PathBuf {
        self.folder.join("report.html")
    }
    /// What was said while training.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log.txt")
    }
    /// Versions, device, data hash, splits.
    pub fn record(&self) -> PathBuf {
        self.folder.join("run.json")
    }
    /// The state to resume from; of several networks, each has its own, counted from 0.
    pub fn state(&self, network: usize) -> PathBuf {
        let number = if network == 0 { String::new() } else { format!("-{network}") };
        self.folder.join("checkpoint").join(format!("state{number}.safetensors"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_at_work_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let run = Run { folder: folder.path().join("a") };
        std::fs::create_dir(&run.folder).unwrap();
        std::fs::write(run.config(), "").unwrap();
        let create = || Run::create(Some(&run.folder), "discs", "gps", Replace::Allowed);
        let lock = run.lock().unwrap();
        let error = create().unwrap_err();
        assert_eq!((error.kind.exit_code(), run.config().is_file()), (1, true), "{error}");
        drop(lock);
        create().unwrap();
        assert!(!run.config().exists());
    }

    #[test]
    fn a_file_is_no_place_for_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        std::fs::write(&file, "mine").unwrap();
        assert_eq!(Run::check_free(Some(&file), Replace::Allowed).unwrap_err().kind.exit_code(), 2);
    }

    #[test]
    fn a_patch_is_a_file_or_in_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let run = Run { folder: folder.path().to_path_buf() };
        assert_eq!(Run::patch_in(&run.folder).unwrap_err().kind.exit_code(), 2);
        std::fs::write(run.config(), "").unwrap();
        std::fs::write(run.patch(), "").unwrap();
        assert_eq!(Run::patch_in(&run.folder).unwrap(), run.patch());
        assert_eq!(Run::patch_in(&run.patch()).unwrap(), run.patch());
    }
}
