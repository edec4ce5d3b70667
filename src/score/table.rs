//! The report for people: a table on the terminal, a CSV for spreadsheets.
//!
//! The averaging rule stands beside the number, and what was left out is said in words. No colours, no locale.

use super::Unit;
use super::options::{Empty, Surfaces};
use super::report::{ClassMetrics, Overlap, Report};
use crate::error::{Error, Result};
use std::fmt::Write;

/// The columns of a class of a case after its name: title, value, decimals.
type Column = (&'static str, fn(&ClassMetrics) -> Option<f64>, usize);

impl Report {
    /// The table of `segft score`: cases, then the set's numbers.
    pub fn table(&self) -> String {
        let mut text = grid(&self.rows());
        text.push('\n');
        text.push_str(&self.summary());
        text
    }

    /// The set's numbers without the cases: for the end of a training run.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let interval =
            |ci: Option<[f64; 2]>| ci.map(|[l, h]| format!("  95 % interval {l:.4} to {h:.4}")).unwrap_or_default();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<10}{value}");
        };
        if self.mean.len() > 1 {
            for (class, means) in &self.mean {
                line(&format!("class {class}"), overlap(Overlap { dice: means.dice, iou: means.iou }));
            }
        }
        line("mDice", format!("{}{}", number(self.mdice, 4), interval(self.mdice_ci95)));
        line("mIoU", format!("{}{}", number(self.miou, 4), interval(self.miou_ci95)));
        line("", format!("({}: {})", self.protocol.name.name(), self.protocol.averaging));
        for (class, pooled) in &self.pooled {
            line("pooled", format!("{}  (class {class}; counts added over cases first)", overlap(*pooled)));
        }
        if let Some(pranet) = &self.pranet {
            line("max", format!("Dice {:.4}  IoU {:.4}  (best single threshold)", pranet.max_dice, pranet.max_iou));
            let half = Overlap { dice: pranet.mdice_at_half, iou: pranet.miou_at_half };
            line("at 0.5", format!("{}  (mean over pictures)", overlap(half)));
        }
        line("cases", self.case_line());
        for (class, absent) in self.n_absent.iter().filter(|(_, absent)| **absent > 0) {
            let treated = match self.protocol.empty {
                Empty::Nan => "left out of the mean",
                Empty::One => "counted as 1",
                Empty::Zero => "counted as 0",
            };
            line(
                "",
                format!("class {class} is in neither mask of {absent} of {}: {treated}", plural(self.n_cases, "case")),
            );
        }
        if self.worst_cases.len() > 1 && self.n_cases > self.worst_cases.len() {
            let worst: Vec<String> = self.worst_cases.iter().map(|w| format!("{} {:.4}", w.case, w.dice)).collect();
            line("worst", worst.join(", "));
        }
        text.push_str(&self.warnings());
        text
    }

    fn case_line(&self) -> String {
        let mut line = format!("{}, {} with an empty reference", self.n_cases, self.n_empty_reference);
        if self.n_empty_reference > 0 {
            let _ = write!(line, " ({} of them rightly left empty)", self.empty_reference.n_correct);
        }
        line
    }

    /// What nobody may overlook.
    fn warnings(&self) -> String {
        let mut text = String::new();
        let named = |ids: &[String]| {
            let shown = ids.iter().take(5).map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
            if ids.len() > 5 { format!("{shown}, …") } else { shown }
        };
        let missing = &self.missing;
        if !missing.predictions.is_empty() {
            let _ = writeln!(
                text,
                "WARNING: {} without a prediction left out ({}); counted as empty masks: mDice {}, mIoU {}",
                plural(missing.predictions.len(), "reference"),
                named(&missing.predictions),
                number(missing.mdice_if_empty, 4),
                number(missing.miou_if_empty, 4)
            );
        }
        if !missing.references.is_empty() {
            let n = plural(missing.references.len(), "prediction");
            let _ = writeln!(text, "WARNING: {n} without a reference left out ({})", named(&missing.references));
        }
        if !self.protocol.comparable {
            let _ = writeln!(
                text,
                "WARNING: not comparable with plain Dice and IoU: protocol {}",
                self.protocol.name.name()
            );
        }
        text
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns: Vec<Column> = vec![("Dice", |m| m.dice, 4), ("IoU", |m| m.iou, 4)];
        columns.push(("sens.", |m| m.sensitivity, 4));
        columns.push(("prec.", |m| m.precision, 4));
        if self.protocol.surfaces == Surfaces::Measured {
            let [hd95, assd] = match self.distance_unit {
                Unit::Mm => ["HD95 mm", "ASSD mm"],
                Unit::Pixel => ["HD95 px", "ASSD px"],
            };
            columns.push((hd95, |m| m.hd95_mm, 2));
            columns.push((assd, |m| m.assd_mm, 2));
            columns.push(("NSD", |m| m.nsd, 4));
        }
        columns
    }

    /// Title row, then one row a class of a case.
    fn rows(&self) -> Vec<Vec<String>> {
        let columns = self.columns();
        // One class only: a column of ones says nothing.
        let several = self.mean.len() > 1;
        let row = |case: &str, class: String, values: Vec<String>| -> Vec<String> {
            let class = several.then_some(class);
            std::iter::once(case.to_string()).chain(class).chain(values).collect()
        };
        let mut rows = vec![row("case", "class".into(), columns.iter().map(|c| c.0.to_string()).collect())];
        for case in &self.metric_per_case {
            for (class, metrics) in &case.metrics {
                let values = columns.iter().map(|(_, value, decimals)| number(value(metrics), *decimals));
                rows.push(row(&case.case, class.to_string(), values.collect()));
            }
        }
        rows
    }

    /// One line a class of a case; undefined values are empty fields.
    ///
    /// # Errors
    /// None in practice: the lines are written to memory.
    pub fn csv(&self) -> Result<String> {
        let failed = |e: &dyn std::fmt::Display| Error::job(format!("cannot write the CSV: {e}"));
        let mut csv = csv::Writer::from_writer(Vec::new());
        csv.write_record([
            "case",
            "class",
            "Dice",
            "IoU",
            "TP",
            "FP",
            "FN",
            "TN",
            "n_pred",
            "n_ref",
            "sensitivity",
            "precision",
            "HD95_mm",
            "ASSD_mm",
            "NSD",
            "reference_file",
            "prediction_file",
        ])
        .map_err(|e| failed(&e))?;
        for case in &self.metric_per_case {
            for (class, m) in &case.metrics {
                let values = (m.dice, m.iou, m.tp, m.fp, m.fn_, m.tn, m.n_pred, m.n_ref);
                let more = (m.sensitivity, m.precision, m.hd95_mm, m.assd_mm, m.nsd);
                let files = (&case.reference_file, &case.prediction_file);
                csv.serialize((&case.case, class, values, more, files)).map_err(|e| failed(&e))?;
            }
        }
        String::from_utf8(csv.into_inner().map_err(|e| failed(&e))?).map_err(|e| failed(&e))
    }
}

fn overlap(values: Overlap) -> String {
    format!("Dice {}  IoU {}", number(values.dice, 4), number(values.iou, 4))
}

/// A number, or a dash where it is undefined.
fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.decimals$}"))
}

fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// Rows in columns: the first to the left, the others to the right.
fn grid(rows: &[Vec<String>]) -> String {
    let n = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..n).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}
