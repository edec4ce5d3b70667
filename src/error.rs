//! One error type for the whole library, sorted by whose turn it is to act.
//!
//! Every error says what was expected, what was found, in which file, case or field, and what to do. The kind decides
//! the exit code of the program; the message starts in lower case and ends without a full stop.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result with the library's error.
pub type Result<T> = std::result::Result<T, Error>;

/// Who can mend it, and the exit code that tells scripts so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The job itself failed: disk full, not-a-number loss, locked run (exit 1).
    Job,
    /// The loss is no longer a number (exit 1).
    Diverged,
    /// Wrong flags, keys, paths, or an output that exists (exit 2).
    Usage,
    /// Unreadable, mismatched or leaking data (exit 3).
    Data,
    /// Unreadable or mismatched weights, selections and patches (exit 3).
    Weights,
    /// A device is missing or out of memory (exit 5).
    Device,
    /// Stopped by SIGINT or SIGTERM after saving (exit 130).
    Interrupted,
}

impl Kind {
    /// The exit code of the program for this kind.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Job | Kind::Diverged => 1,
            Kind::Usage => 2,
            Kind::Data | Kind::Weights => 3,
            Kind::Device => 5,
            Kind::Interrupted => 130,
        }
    }

    /// The word used in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Job | Kind::Diverged => "job",
            Kind::Usage => "usage",
            Kind::Data => "data",
            Kind::Weights => "weights",
            Kind::Device => "device",
            Kind::Interrupted => "interrupted",
        }
    }
}

/// What went wrong, where, and what to do.
#[derive(Debug, Clone)]
pub struct Error {
    /// Who can mend it.
    pub kind: Kind,
    /// What was expected and what was found.
    pub message: String,
    /// The file or folder concerned.
    pub path: Option<PathBuf>,
    /// What to do.
    pub hint: Option<String>,
}

impl Error {
    /// An error of `kind` with a message.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), path: None, hint: None }
    }
    /// The job failed (exit 1).
    pub fn job(message: impl Into<String>) -> Self {
        Self::new(Kind::Job, message)
    }
    /// Wrong usage or configuration (exit 2).
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }
    /// Bad data (exit 3).
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(Kind::Data, message)
    }
    /// Bad weights (exit 3).
    pub fn weights(message: impl Into<String>) -> Self {
        Self::new(Kind::Weights, message)
    }
    /// A device problem (exit 5).
    pub fn device(message: impl Into<String>) -> Self {
        Self::new(Kind::Device, message)
    }
    /// Names the file or folder concerned, unless one is named already.
    pub fn at(mut self, path: impl AsRef<Path>) -> Self {
        self.path.get_or_insert_with(|| path.as_ref().to_path_buf());
        self
    }
    /// Says what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// A file that could not be read: missing is a usage error, anything else a data error.
    pub fn reading(path: impl AsRef<Path>, error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::NotFound {
            Self::usage("no such file or folder").at(path)
        } else {
            Self::data(format!("cannot read: {error}")).at(path)
        }
    }
    /// A file that could not be written: the job failed.
    pub fn writing(path: impl AsRef<Path>, error: &std::io::Error) -> Self {
        // A temporary file's error carries its name, which means nothing to the user: the kind says it without.
        let text = error.to_string();
        let text = if text.contains(".segft-") { std::io::Error::from(error.kind()).to_string() } else { text };
        Self::job(format!("cannot write: {text}"))
            .at(path)
            .hint("check that the folder is writable and the disk not full")
    }
    /// `{"error":{"kind","message","path","hint"}}`.
    pub fn json(&self) -> serde_json::Value {
        let path = self.path.as_ref().map(|p| p.display().to_string());
        serde_json::json!({"error": {"kind": self.kind.name(), "message": self.message, "path": path, "hint": self.hint}})
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}: ", path.display())?;
        }
        write!(f, "{}", self.message)
    }
}

impl std::error::Error for Error {}

/// `, did you mean …?` for the known name nearest to `given`, or nothing when none is near.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(given, name), name))
        .min()
        .filter(|(distance, name)| *distance <= 2.max(name.len() / 3))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_offers_only_what_is_near() {
        assert_eq!(nearest("kvsair", ["kvasir", "phantom"]), Some("kvasir"));
        assert_eq!(nearest("zzzzzzzz", ["kvasir", "phantom"]), None);
    }
}
