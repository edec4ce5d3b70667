//! `report`: a run as one HTML page that needs nothing else: what it reached, how training went, pictures with both outlines,
//! and every case.
//!
//! The page is made from the run folder and the pictures that it names. It holds no time and no random number: the same run
//! gives the same bytes.

mod curve;
mod outline;
mod page;

use crate::data::Form;
use crate::error::{Error, Result};
use crate::io::{Replace, check_ending, check_free, check_place, write_atomic};
use crate::predict::Preprocessing;
use crate::run::Run;
use crate::tune::patch::Patch;
use outline::Shown;
use rayon::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Cases whose pictures are shown: the worst, those in the middle and the best of more than these together.
const WORST: usize = 12;
const MIDDLE: usize = 4;
const BEST: usize = 4;

/// The page that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Where it lies.
    pub path: PathBuf,
    /// Cases in it.
    pub cases: usize,
    /// Cases with a picture.
    pub pictures: usize,
    /// Why pictures are missing that would have been shown.
    pub missing: Vec<String>,
    /// Bytes of the page.
    pub bytes: usize,
}

impl Made {
    /// What to tell where pictures are missing.
    pub fn warning(&self) -> Option<String> {
        let first = self.missing.first()?;
        Some(format!("{} pictures are missing from the report; the first: {first}", self.missing.len()))
    }
}

/// One case of the run.
#[derive(Debug, Clone)]
struct Row {
    id: String,
    /// `None` where it is undefined.
    dice: Option<f64>,
    metrics: Value,
    files: [PathBuf; 3],
}

/// A case with its picture, or why there is none.
struct Picture<'a> {
    row: &'a Row,
    shown: std::result::Result<Shown, String>,
}

/// Writes the page of a completed run: `report.html` in its folder, or another file. A page that is there already and
/// holds the same is left alone.
///
/// # Errors
/// A usage error when the run is not complete or another page is there; a data error when the run's files are broken; a
/// job error when the page cannot be written. A picture that cannot be read is no error: the page says so.
pub fn run(run: &Run, to: Option<&Path>, replace: Replace) -> Result<Made> {
    if !run.is_completed() {
        return Err(Error::usage("the run is not complete: nothing to report yet")
            .at(&run.folder)
            .hint("finish it with `segft train --resume`"));
    }
    let path = to.map_or_else(|| run.report(), Path::to_path_buf);
    check_ending(&path, &["html", "htm"])?;
    // Whether what lies there may be replaced is known when the page is; where nothing can be written, now.
    check_place(&path, Replace::Allowed)?;
    let text = std::fs::read_to_string(run.metrics()).map_err(|e| Error::reading(run.metrics(), &e))?;
    let metrics: Value =
        serde_json::from_str(&text).map_err(|e| Error::data(format!("not a run's metrics: {e}")).at(run.metrics()))?;
    let about = Patch::load(&run.existing_patch()?)?.about;
    let rows = rows(&metrics, run);
    let chosen = chosen(&rows);
    // Volumes one by one: many at once may be more than the memory holds.
    let pictures: Vec<Picture<'_>> = match about.form {
        Form::Pictures => chosen.par_iter().map(|row| picture(row, &about.preprocessing)).collect(),
        Form::Volumes => chosen.iter().map(|row| picture(row, &about.preprocessing)).collect(),
    };
    let read = |path: PathBuf| std::fs::read_to_string(&path).map_err(|e| Error::reading(path, &e));
    let parts = page::Parts {
        name: name(&run.folder),
        metrics: &metrics,
        record: &serde_json::from_str(&read(run.record())?)
            .map_err(|e| Error::data(format!("not a run's record: {e}")).at(run.record()))?,
        config: &read(run.config())?,
        curves: curve::of(&read(run.history())?).map_err(|e| e.at(run.history()))?,
        rows: &rows,
        pictures: &pictures,
    };
    let html = page::html(&parts);
    if std::fs::read(&path).ok().as_deref() != Some(html.as_bytes()) {
        check_free(&path, replace)?;
        write_atomic(&path, |to| to.write_all(html.as_bytes()))?;
    }
    let missing: Vec<String> = pictures.iter().filter_map(|picture| picture.shown.as_ref().err().cloned()).collect();
    Ok(Made { path, cases: rows.len(), pictures: pictures.len() - missing.len(), missing, bytes: html.len() })
}

/// The folder's own name, however it was named.
fn name(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    whole.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The cases of metrics.json, the lowest Dice first; those without one last.
fn rows(metrics: &Value, run: &Run) -> Vec<Row> {
    let row = |case: &Value| {
        let text = |key: &str| case[key].as_str().unwrap_or_default();
        let metrics = case["metrics"]["1"].clone();
        // The folder may have been moved since.
        let prediction = run.predictions().join(Path::new(text("prediction_file")).file_name().unwrap_or_default());
        let files = [text("image_file").into(), text("reference_file").into(), prediction];
        Row { id: text("case").to_string(), dice: metrics["Dice"].as_f64(), metrics, files }
    };
    let mut rows: Vec<Row> = metrics["metric_per_case"].as_array().into_iter().flatten().map(row).collect();
    let key = |row: &Row| row.dice.unwrap_or(f64::INFINITY);
    rows.sort_by(|a, b| key(a).total_cmp(&key(b)).then_with(|| a.id.cmp(&b.id)));
    rows
}

/// The rows whose pictures are shown, in their order.
fn chosen(rows: &[Row]) -> Vec<&Row> {
    let n = rows.len();
    if n <= WORST + MIDDLE + BEST {
        return rows.iter().collect();
    }
    let scored = rows.iter().filter(|row| row.dice.is_some()).count();
    let middle = (scored / 2).clamp(WORST + MIDDLE / 2, n - BEST - MIDDLE / 2);
    let best = scored.max(WORST + MIDDLE + BEST);
    let mut at: Vec<usize> =
        (0..WORST).chain(middle - MIDDLE / 2..middle + MIDDLE / 2).chain(best - BEST..best).collect();
    at.dedup();
    at.into_iter().map(|i| &rows[i]).collect()
}

fn picture<'a>(row: &'a Row, preprocessing: &Preprocessing) -> Picture<'a> {
    let [image, reference, prediction] = &row.files;
    let shown = match image.as_os_str().is_empty() {
        true => Err(Error::data("the run does not say where its picture is: an older segft made it")),
        false => {
            let scored = ["n_ref", "n_pred"].map(|key| row.metrics[key].as_u64().unwrap_or(0));
            outline::show(image, [(reference, scored[0]), (prediction, scored[1])], preprocessing).map_err(|e| {
                match image.is_relative() && !image.is_file() {
                    true => e.hint(
                        "the run was trained with relative paths: report it from the folder where it was trained",
                    ),
                    false => e,
                }
            })
        }
    };
    let said =
        |e: Error| format!("case {}: {e}{}", row.id, e.hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default());
    Picture { row, shown: shown.map_err(said) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_the_middle_and_the_best_are_shown() {
        let row = |i: usize, dice: Option<f64>| Row {
            id: format!("c{i:02}"),
            dice,
            metrics: Value::Null,
            files: Default::default(),
        };
        let names = |rows: &[Row]| chosen(rows).iter().map(|row| row.id.clone()).collect::<Vec<_>>();
        let few: Vec<Row> = (0..20).map(|i| row(i, Some(0.5))).collect();
        assert_eq!(names(&few).len(), 20);
        // 100 cases, the last ten without a Dice.
        let many: Vec<Row> = (0..100).map(|i| row(i, (i < 90).then_some(i as f64 / 100.0))).collect();
        let shown = names(&many);
        assert_eq!(shown.len(), 20);
        assert_eq!((&shown[..2], &shown[12..16]), (&["c00".into(), "c01".into()][..], &many_names(43..47)[..]));
        assert_eq!(shown[16..], many_names(86..90));
        for n in 21..60 {
            for scored in 0..=n {
                let rows: Vec<Row> = (0..n).map(|i| row(i, (i < scored).then_some(0.1))).collect();
                let shown = names(&rows);
                assert!(shown.windows(2).all(|pair| pair[0] < pair[1]), "{n} {scored}: each once, in order");
            }
        }
    }

    fn many_names(range: std::ops::Range<usize>) -> Vec<String> {
        range.map(|i| format!("c{i:02}")).collect()
    }
}
