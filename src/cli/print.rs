//! The only code that writes to stdout.

use crate::error::{Error, Result};
use crate::job::select::Stability;
use crate::job::train::Outcome;
use crate::predict::Precision;
use crate::run::Run;
use crate::tune::patch::{Difference, DifferenceRow};
use crate::tune::selection::Overlap;
use serde_json::{Map, Value, json};
use std::io::{IsTerminal, Write};
use std::path::Path;

/// A result; a closed pipe is the reader's choice, not an error.
///
/// # Errors
/// A job error when it cannot be written, as on a full disk.
pub(super) fn stdout(text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::job(format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Whether messages are coloured: as `--color` says, else on a terminal that has not asked for none.
pub(super) fn colours(choice: clap::ColorChoice) -> Colours {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
        || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
    match choice {
        clap::ColorChoice::Always => Colours::On,
        clap::ColorChoice::Auto if !unwanted && std::io::stderr().is_terminal() => Colours::On,
        _ => Colours::Off,
    }
}

/// Whether messages are coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colours {
    On,
    Off,
}

/// One JSON object to stdout (`-`) or to a file.
pub(super) fn json(value: &Value, to: &str) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::job(e.to_string()))?;
    if to == "-" {
        return stdout(&text);
    }
    crate::io::write_atomic(Path::new(to), |file| writeln!(file, "{text}"))
}

/// What was expected and found, where, and what to do.
pub(super) fn error(error: &Error, colours: Colours) {
    // The colours of the argument parser's own errors.
    let [red, green, plain] = match colours {
        Colours::On => ["\x1b[1m\x1b[31m", "\x1b[32m", "\x1b[0m"],
        Colours::Off => [""; 3],
    };
    // Not eprintln!, which panics when stderr is closed.
    let mut out = std::io::stderr().lock();
    let _ = writeln!(out, "{red}error:{plain} {error}");
    if let Some(hint) = &error.hint {
        let _ = writeln!(out, "  {green}hint:{plain} {hint}");
    }
}

/// What the argument parser says, as our own error: the whole message, and its tips (else the usage) as hint.
pub(super) fn parse_error(error: &clap::Error) -> Error {
    let text = error.render().to_string();
    let (mut message, mut tips, mut usage) = (Vec::new(), Vec::new(), None);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match (line.strip_prefix("tip: "), line.strip_prefix("Usage: ")) {
            (Some(tip), _) => tips.push(tip.to_string()),
            (_, Some(found)) => usage = Some(format!("usage: {found}")),
            _ if line.starts_with("For more information") => {}
            // Lines after the usage belong to it.
            _ if usage.is_none() => message.push(line.trim_start_matches("error: ").to_string()),
            _ => {}
        }
    }
    let hint = if tips.is_empty() { usage } else { Some(tips.join("; ")) };
    Error { hint, ..Error::usage(message.join(" ")) }
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

/// How far selections from halves of the cases agree.
pub(super) fn stability(found: &Stability) -> String {
    let Stability { method, score, group, n_cases, halves, cases_per_half, shared_cases, .. } = found;
    let mut text = format!(
        "{method} (score {score}, group {group}) from {halves} halves of {n_cases} training cases: {cases_per_half} each, two share \
         {shared_cases:.1}; means over pairs\n\n{:16} {:>10} {:>9} {:>9} {:>9} {:>9}\n",
        "layers", "selected", "overlap", "chance", "Jaccard", "chance"
    );
    for row in &found.agreements {
        text.push_str(&format!(
            "{:16} {:10.0} {:9.4} {:9.4} {:9.4} {:9.4}\n",
            row.layers, row.n_values, row.overlap, row.overlap_by_chance, row.jaccard, row.jaccard_by_chance
        ));
    }
    text
}

/// The same as JSON.
pub(super) fn stability_json(found: &Stability) -> Result<Value> {
    let mut value = serde_json::to_value(found).map_err(|e| Error::job(e.to_string()))?;
    value["kind"] = json!("stability");
    Ok(value)
}

/// Difference of two patches.
pub(super) fn difference(difference: &Difference) -> String {
    let all = difference.total();
    let row = |r: &DifferenceRow| {
        let largest = r.largest.map(|v| format!("{v:.3e}")).unwrap_or_default();
        format!("{:58} {:>9} {:>9} {:>9} {largest:>10}\n", r.weight, r.both, r.only_a, r.only_b)
    };
    let head = format!("{:58} {:>9} {:>9} {:>9} {:>10}\n", "weight", "both", "only A", "only B", "largest");
    head + &difference.rows.iter().map(row).collect::<String>() + &row(&all)
}

/// The same as JSON.
pub(super) fn difference_json(difference: &Difference) -> Value {
    let DifferenceRow { both, only_a, only_b, largest, .. } = difference.total();
    json!({"kind": "patch-difference", "both": both, "only_a": only_a, "only_b": only_b, "largest": largest,
        "weights": difference.rows})
}

/// The same as JSON.
pub(super) fn overlap_json(overlap: &Overlap) -> Value {
    let (a, b, both) = overlap.total();
    let rows: Vec<Value> =
        overlap.rows.iter().map(|(name, a, b, both)| json!({"weight": name, "a": a, "b": b, "both": both})).collect();
    json!({"kind": "overlap", "a": a, "b": b, "both": both, "jaccard": overlap.jaccard(), "weights": rows})
}

/// Devices, weights, data sets, runs, cache and versions.
pub(super) fn doctor() -> Value {
    let here = |yes: bool| if yes { "in the cache" } else { "not here" };
    let cache = crate::job::base::cache();
    let weights: Map<String, Value> =
        crate::job::base::cached().into_iter().map(|(name, yes)| (name.to_string(), json!(here(yes)))).collect();
    let sets = crate::data::named::cached(&cache);
    let sets: Map<String, Value> = sets.into_iter().map(|(name, yes)| (name.to_string(), json!(here(yes)))).collect();
    let state = |run: &Run| if run.is_completed() { "completed" } else { "not completed" };
    let runs: Map<String, Value> =
        Run::all().iter().map(|run| (run.folder.display().to_string(), json!(state(run)))).collect();
    let latest = Run::newest().ok().map(|run| run.folder.display().to_string());
    let cuda = if cfg!(feature = "cuda") { "built in" } else { "not built in (build with --features cuda)" };
    let bf16 = match Precision::Bf16.available() {
        true => "here (--dtype bf16)",
        false => "not here (the processor has neither AMX nor AVX512-BF16)",
    };
    json!({
        "kind": "doctor",
        "segft": env!("CARGO_PKG_VERSION"),
        "cuda": cuda,
        "gpus": crate::device::gpus(),
        "threads": rayon::current_num_threads(),
        "bf16": bf16,
        "cache": cache.display().to_string(),
        "weights": weights,
        "sets": sets,
        "runs": runs,
        "newest_run": latest,
    })
}

/// What a check of a data set found, its problems last, each with what to do.
pub(super) fn checked(found: &crate::data::Found) -> String {
    let mut facts = found.facts.clone();
    if let Some(facts) = facts.as_object_mut() {
        facts.remove("problems");
    }
    let problem = |error: &Error| match &error.hint {
        Some(hint) => format!("problem  {error}\n  hint: {hint}\n"),
        None => format!("problem  {error}\n"),
    };
    crate::info::text(&facts) + &found.problems.iter().map(problem).collect::<String>()
}
