//! The only code that writes to stdout.

use crate::error::{Error, Result};
use crate::job::train::Outcome;
use crate::tune::selection::Overlap;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// A result; a closed pipe is the reader's choice, not an error.
pub(super) fn stdout(text: &str) {
    if !text.is_empty() {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{}", text.trim_end());
    }
}

/// One JSON object to stdout (`-`) or to a file.
pub(super) fn json(value: &Value, to: &str) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::job(e.to_string()))?;
    if to == "-" {
        stdout(&text);
        return Ok(());
    }
    crate::io::write_atomic(Path::new(to), |file| writeln!(file, "{text}"))
}

/// What was expected and found, where, and what to do.
pub(super) fn error(error: &Error) {
    eprintln!("error: {error}");
    if let Some(hint) = &error.hint {
        eprintln!("  hint: {hint}");
    }
}

/// The end of a training: the cases, the means, where everything is.
pub(super) fn training(outcome: &Outcome) -> String {
    format!("{}\nrun folder: {}", outcome.report.table().trim_end(), outcome.run.folder.display())
}

/// Overlap of two selections.
pub(super) fn overlap(overlap: &Overlap) -> String {
    let (a, b, both) = overlap.total();
    let mut text = format!("{:58} {:>8} {:>8} {:>8}\n", "weight", "A", "B", "both");
    for (name, a, b, both) in &overlap.rows {
        text.push_str(&format!("{name:58} {a:8} {b:8} {both:8}\n"));
    }
    text.push_str(&format!("{:58} {a:8} {b:8} {both:8}\nJaccard {:.4}", "all", overlap.jaccard()));
    text
}

/// The same as JSON.
pub(super) fn overlap_json(overlap: &Overlap) -> Value {
    let (a, b, both) = overlap.total();
    let rows: Vec<Value> =
        overlap.rows.iter().map(|(name, a, b, both)| json!({"weight": name, "a": a, "b": b, "both": both})).collect();
    json!({"kind": "overlap", "a": a, "b": b, "both": both, "jaccard": overlap.jaccard(), "weights": rows})
}

/// Devices, cache and versions.
pub(super) fn doctor() -> Value {
    let cuda = if cfg!(feature = "cuda") { "built in" } else { "not built in (build with --features cuda)" };
    json!({
        "kind": "doctor",
        "segft": env!("CARGO_PKG_VERSION"),
        "cuda": cuda,
        "gpus": crate::device::gpus(),
        "threads": rayon::current_num_threads(),
        "cache": crate::job::base::cache().display().to_string(),
    })
}
