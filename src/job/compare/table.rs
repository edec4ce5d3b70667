//! The table that the cells make, and what may be said about it. Holes are shown, never filled.

mod words;

use super::cell::{self, Cell, Setup};
use super::{Request, Size, plot, twice};
use crate::error::{Error, Result};
use crate::score::paired::{self, Paired};
use crate::score::report::Interval;
use serde::Serialize;
use std::collections::BTreeMap;

/// Methods × sizes, and each method against the first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    kind: &'static str,
    /// Steps of every training, and trials for every method and size; `null` without any cell.
    steps: Option<usize>,
    trials: Option<usize>,
    /// Seeds of each learning rate that was tried; the trials are counted once a seed.
    trial_seeds: Option<usize>,
    /// Seeds that trained again with twice the steps.
    doubled_seeds: Option<usize>,
    /// How many cases that a size left out judged that, at most; 0 where only validation did.
    left_out: usize,
    /// Whether they judged every row.
    all_left_out: bool,
    /// The only size the trials were made at; `null` for each its own.
    tuned_at: Option<Size>,
    rows: Vec<Row>,
    comparisons: Vec<Comparison>,
    /// Names of the cells that are not there: method-size-seed.
    missing: Vec<String>,
    n_cells: usize,
}

/// One method at one size.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(Default))]
pub(super) struct Row {
    pub(super) method: String,
    pub(super) size: Size,
    /// Seeds whose cell is there, and how many are wanted.
    seeds: Vec<u64>,
    seeds_wanted: usize,
    #[serde(rename = "mDice")]
    pub(super) mdice: Option<f64>,
    /// Over seeds; `null` below two.
    #[serde(rename = "mDice_sd")]
    mdice_sd: Option<f64>,
    /// Bootstrap over cases of each case's mean over seeds.
    #[serde(rename = "mDice_ci95")]
    pub(super) mdice_ci95: Option<Interval>,
    #[serde(rename = "mIoU")]
    miou: Option<f64>,
    lr: Option<f64>,
    trained_parameters: Option<usize>,
    parameters: Option<usize>,
    /// Of the image encoder.
    pub(super) trained_encoder_parameters: Option<usize>,
    encoder_parameters: Option<usize>,
    patch_bytes: Option<u64>,
    /// What fine-tunes add to the time of encoding a picture, as a part of it: the mean over seeds.
    extra_inference: Option<f64>,
    seconds_per_step: Option<f64>,
    /// The lowest over seeds: what the process kept from earlier trainings only adds.
    peak_rss_mib: Option<u64>,
    pub(super) converged: Option<bool>,
}

/// One method against the first at one size.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Comparison {
    size: Size,
    first: String,
    other: String,
    /// Seeds that both have.
    seeds: Vec<u64>,
    /// Cases whose Dice is undefined for one of them.
    n_left_out: usize,
    /// `null` when nothing may be said; then `reason` says why.
    #[serde(flatten)]
    paired: Option<Paired>,
    /// After Holm's correction over all comparisons of the table.
    p_holm: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Reads the cells that are there and makes the table.
///
/// # Errors
/// A data error when a file is damaged, or when cells were made with different settings.
pub fn read(request: &Request) -> Result<Table> {
    let mut groups = Vec::new();
    let mut missing = Vec::new();
    let mut first: Option<(String, Setup)> = None;
    let mut sizes: BTreeMap<Size, String> = BTreeMap::new();
    let mut bases: BTreeMap<Option<&str>, String> = BTreeMap::new();
    for size in &request.sizes {
        let mut judges = Vec::new();
        for row in &request.rows {
            let mut cells = Vec::new();
            for seed in &request.seeds {
                let path = request.cell_file(row, *size, *seed);
                let Some(cell) = cell::read::<Cell>(&path)? else {
                    missing.push(format!("{}-{size}-{seed}", row.name));
                    continue;
                };
                let wanted = request.like(&cell.setup)?;
                if let Some(difference) = cell::difference(&cell.setup, &wanted)? {
                    return Err(Error::usage(format!("made with other settings: {difference}"))
                        .at(&path)
                        .hint("give --report the options of the comparison, or choose another --out"));
                }
                let name = path.display().to_string();
                let data = sizes.entry(*size).or_insert(cell.setup.data_hash.clone());
                let base = bases.entry(row.model.as_deref()).or_insert(cell.setup.base_sha256.clone());
                let shared = shared(&cell.setup, data, base);
                let (other, wanted) = first.get_or_insert((name, shared.clone()));
                if let Some(difference) = cell::difference(&shared, wanted)? {
                    return Err(Error::data(format!("made with other settings than {other}: {difference}"))
                        .at(&path)
                        .hint("make the cells again with one command and --force, or choose another --out"));
                }
                if cell.trials != cell.setup.lrs.len() * cell.setup.trial_seeds {
                    return Err(Error::data("the number of trials is not the same for every method").at(&path));
                }
                judges.extend(twice::judges(&cell).map(|n| (path, n)));
                cells.push(cell);
            }
            groups.push(Group { method: row.name.clone(), size: *size, cells });
        }
        twice::check_judges(&judges)?;
    }
    let comparisons = comparisons(&groups, request);
    let cells = groups.iter().flat_map(|group| &group.cells);
    let asked: Vec<usize> = cells.clone().filter_map(twice::judges).collect();
    let wanted = request.seeds.len();
    Ok(Table {
        kind: "comparison",
        steps: first.as_ref().map(|(_, setup)| setup.steps),
        trials: first.as_ref().map(|(_, setup)| setup.lrs.len() * setup.trial_seeds),
        trial_seeds: first.as_ref().map(|(_, setup)| setup.trial_seeds),
        doubled_seeds: first.as_ref().map(|(_, setup)| setup.doubled_seeds),
        left_out: asked.iter().copied().max().unwrap_or(0),
        all_left_out: asked.into_iter().all(|n| n > 0),
        tuned_at: first.as_ref().and_then(|(_, setup)| setup.tuned_at),
        rows: groups.iter().map(|group| group.row(wanted, request.config.seed)).collect(),
        comparisons,
        missing,
        n_cells: groups.len() * wanted,
    })
}

/// What all cells of a table have in common. The data differ from size to size, and not within one; a row may have a
/// base of its own.
fn shared(setup: &Setup, data_hash: &str, base_sha256: &str) -> Setup {
    let unless = |theirs: &String, ours: &str| if theirs == ours { String::new() } else { theirs.clone() };
    Setup {
        method: String::new(),
        size: Size::All,
        seed: 0,
        lr: 0.0,
        lr_multiple: 0.0,
        data_hash: unless(&setup.data_hash, data_hash),
        base_sha256: unless(&setup.base_sha256, base_sha256),
        ..setup.clone()
    }
}

/// The cells of one method at one size.
struct Group {
    method: String,
    size: Size,
    cells: Vec<Cell>,
}

impl Group {
    fn row(&self, seeds_wanted: usize, seed: u64) -> Row {
        let of = |value: fn(&Cell) -> Option<f64>| self.cells.iter().filter_map(value).collect::<Vec<_>>();
        let mdice = of(|cell| cell.mdice);
        let (_, cases) = self.cases(&self.seeds(), Undefined::Skipped);
        let cases: Vec<f64> = cases.into_values().collect();
        let first = self.cells.first();
        Row {
            method: self.method.clone(),
            size: self.size,
            seeds: self.seeds(),
            seeds_wanted,
            mdice: mean(&mdice),
            mdice_sd: sd(&mdice),
            mdice_ci95: paired::mean_interval(&cases, seed),
            miou: mean(&of(|cell| cell.miou)),
            lr: first.map(|cell| cell.setup.lr),
            trained_parameters: first.map(|cell| cell.trained_parameters),
            parameters: first.map(|cell| cell.parameters),
            trained_encoder_parameters: first.and_then(|cell| cell.trained_encoder_parameters),
            encoder_parameters: first.and_then(|cell| cell.encoder_parameters),
            patch_bytes: first.and_then(|cell| cell.patch_bytes),
            extra_inference: mean(&of(|cell| cell.extra_inference)),
            seconds_per_step: mean(&of(|cell| cell.seconds_per_step)),
            peak_rss_mib: self.cells.iter().filter_map(|cell| cell.peak_rss_mib).min(),
            converged: self.converged(),
        }
    }

    fn seeds(&self) -> Vec<u64> {
        self.cells.iter().map(|cell| cell.setup.seed).collect()
    }

    /// What the cells that were asked say; `None` when one is not there.
    fn converged(&self) -> Option<bool> {
        twice::converged(&self.cells)
    }

    /// Mean Dice over these seeds by case, and all cases' ids.
    fn cases(&self, seeds: &[u64], undefined: Undefined) -> (Vec<&String>, BTreeMap<&String, f64>) {
        let cells: Vec<&Cell> = self.cells.iter().filter(|cell| seeds.contains(&cell.setup.seed)).collect();
        let ids: Vec<&String> = cells.first().map(|cell| cell.cases.keys().collect()).unwrap_or_default();
        let one = |id: &&'_ String| {
            let values: Vec<f64> = cells.iter().filter_map(|cell| cell.cases.get(*id).copied().flatten()).collect();
            match undefined {
                Undefined::LeavesOut if values.len() < cells.len() => None,
                _ => mean(&values),
            }
        };
        let means = ids.iter().filter_map(|id| Some((*id, one(id)?))).collect();
        (ids, means)
    }
}

/// What a seed in which a case has no Dice does to that case.
#[derive(Clone, Copy)]
enum Undefined {
    /// The mean is over the other seeds.
    Skipped,
    /// The case has no mean.
    LeavesOut,
}

/// Every method against the first at the same size.
fn comparisons(groups: &[Group], request: &Request) -> Vec<Comparison> {
    let mut all: Vec<Comparison> = groups
        .chunks(request.rows.len())
        .flat_map(|of_size| of_size.iter().skip(1).map(|other| against(&of_size[0], other, request.config.seed)))
        .collect();
    let corrected = paired::holm(&all.iter().filter_map(|c| c.paired.map(|paired| paired.p)).collect::<Vec<_>>());
    for (comparison, p) in all.iter_mut().filter(|c| c.paired.is_some()).zip(corrected) {
        comparison.p_holm = Some(p);
    }
    all
}

fn against(first: &Group, other: &Group, seed: u64) -> Comparison {
    let seeds: Vec<u64> = first.seeds().into_iter().filter(|seed| other.seeds().contains(seed)).collect();
    let reason = match [first, other].into_iter().find(|group| group.converged() != Some(true)) {
        Some(group) if group.converged() == Some(false) => Some(format!("{} has not converged", group.method)),
        Some(group) => Some(format!("the cell that shows whether {} has converged is missing", group.method)),
        None if seeds.is_empty() => Some("no seed is there for both".to_string()),
        None => None,
    };
    let (ids, before) = first.cases(&seeds, Undefined::LeavesOut);
    let (_, after) = other.cases(&seeds, Undefined::LeavesOut);
    let differences: Vec<f64> = ids.iter().filter_map(|id| Some(after.get(id)? - before.get(id)?)).collect();
    let paired = if reason.is_none() { paired::compare(&differences, seed) } else { None };
    Comparison {
        size: first.size,
        first: first.method.clone(),
        other: other.method.clone(),
        n_left_out: ids.len() - differences.len(),
        reason: reason.or_else(|| paired.is_none().then(|| "no case has a Dice for both".to_string())),
        seeds,
        paired,
        p_holm: None,
    }
}

impl Table {
    /// Every method at every size.
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The scores as a picture in SVG.
    ///
    /// # Errors
    /// A data error when there is nothing to draw.
    pub fn svg(&self) -> Result<String> {
        plot::svg(self)
    }

    /// The table as one JSON object.
    ///
    /// # Errors
    /// None in practice: every number is finite or `null`.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self).map_err(|e| Error::job(format!("cannot write the table as JSON: {e}")))
    }

    /// The rows as CSV.
    ///
    /// # Errors
    /// None in practice: it is written into memory.
    pub fn csv(&self) -> Result<String> {
        let failed = |e: &dyn std::fmt::Display| Error::job(format!("cannot write the CSV: {e}"));
        let mut csv = csv::Writer::from_writer(Vec::new());
        csv.write_record([
            "method",
            "size",
            "seeds",
            "seeds_wanted",
            "mDice",
            "mDice_sd",
            "mDice_low",
            "mDice_high",
            "mIoU",
            "lr",
            "trained_parameters",
            "parameters",
            "trained_encoder_parameters",
            "encoder_parameters",
            "patch_bytes",
            "extra_inference",
            "seconds_per_step",
            "peak_rss_mib",
            "converged",
        ])
        .map_err(|e| failed(&e))?;
        for row in &self.rows {
            csv.serialize((
                (&row.method, row.size, row.seeds.len(), row.seeds_wanted),
                (row.mdice, row.mdice_sd, row.mdice_ci95.map(|[low, _]| low), row.mdice_ci95.map(|[_, high]| high)),
                (row.miou, row.lr, row.trained_parameters, row.parameters),
                (row.trained_encoder_parameters, row.encoder_parameters, row.patch_bytes, row.extra_inference),
                (row.seconds_per_step, row.peak_rss_mib, row.converged),
            ))
            .map_err(|e| failed(&e))?;
        }
        let bytes = csv.into_inner().map_err(|e| failed(&e))?;
        String::from_utf8(bytes).map_err(|e| failed(&e))
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Standard deviation (n − 1); `None` below two.
fn sd(values: &[f64]) -> Option<f64> {
    let centre = mean(values).filter(|_| values.len() > 1)?;
    let squares: f64 = values.iter().map(|v| (v - centre).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

#[cfg(test)]
impl Row {
    /// With low, mean and high mDice.
    pub(super) fn of(method: &str, cases: usize, encoder: Option<usize>, mdice: Option<[f64; 3]>) -> Row {
        Row {
            method: method.into(),
            size: Size::Cases(cases),
            mdice: mdice.map(|[_, mean, _]| mean),
            mdice_ci95: mdice.map(|[low, _, high]| [low, high]),
            trained_encoder_parameters: encoder,
            ..Row::default()
        }
    }
}

#[cfg(test)]
impl Table {
    pub(super) fn of(rows: Vec<Row>) -> Table {
        let (missing, comparisons) = (Vec::new(), Vec::new());
        Table {
            kind: "comparison",
            steps: None,
            trials: None,
            trial_seeds: None,
            doubled_seeds: None,
            left_out: 0,
            all_left_out: false,
            tuned_at: None,
            rows,
            comparisons,
            missing,
            n_cells: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(method: &str, seed: u64, converged: Option<bool>, dice: &[Option<f64>]) -> Cell {
        let setup = Setup {
            method: method.into(),
            size: Size::Cases(50),
            seed,
            lr: 1e-3,
            lr_multiple: 1.0,
            lrs: vec![1.0],
            trial_seeds: 1,
            doubled_seeds: 1,
            tuned_at: None,
            steps: 10,
            split_seed: 0,
            base_sha256: "aa".into(),
            data_hash: "bb".into(),
            options: serde_json::Map::new(),
        };
        Cell {
            setup,
            trials: 1,
            mdice: mean(&dice.iter().flatten().copied().collect::<Vec<_>>()),
            miou: Some(0.5),
            validation_mdice: 0.5,
            validation_mdice_doubled: converged.map(|yes| if yes { 0.5 } else { 0.6 }),
            left_out: None,
            converged,
            trained_parameters: 1_234_567,
            parameters: 10_000_000,
            trained_encoder_parameters: Some(5000),
            encoder_parameters: Some(1_000_000),
            patch_bytes: Some(1025),
            extra_inference: Some(0.123),
            seconds_per_step: Some(0.5),
            peak_rss_mib: Some(100),
            device: "cpu".into(),
            cases: dice.iter().enumerate().map(|(i, d)| (format!("c{i}"), *d)).collect(),
        }
    }

    fn group(method: &str, cells: Vec<Cell>) -> Group {
        Group { method: method.into(), size: Size::Cases(50), cells }
    }

    #[test]
    fn pairs_are_means_over_seeds_of_the_same_cases() {
        let first = group(
            "gps",
            vec![
                cell("gps", 0, Some(true), &[Some(0.2), Some(0.4), Some(0.6), None]),
                cell("gps", 1, None, &[Some(0.4), Some(0.6), Some(0.8), Some(0.9)]),
            ],
        );
        let other = group(
            "full",
            vec![
                cell("full", 0, Some(true), &[Some(0.4), Some(0.6), Some(0.7), Some(0.1)]),
                cell("full", 1, None, &[Some(0.4), Some(0.8), Some(1.0), Some(0.1)]),
            ],
        );
        // Means 0.3, 0.5, 0.7 against 0.4, 0.7, 0.85: differences 0.1, 0.2, 0.15; the fourth lacks a Dice once.
        let found = against(&first, &other, 0);
        let paired = found.paired.unwrap();
        assert!((paired.difference - 0.15).abs() < 1e-12);
        assert_eq!((paired.n_cases, paired.p, found.n_left_out, found.seeds.len()), (3, 0.25, 1, 2));
        // In the row, the fourth case's mean is over the seed that has one.
        let row = first.row(3, 0);
        assert!((row.mdice.unwrap() - (0.4 + 0.675) / 2.0).abs() < 1e-12);
        assert_eq!(row.fields(false)[5..10], ["1,234,567", "0.50 %", "12.35 %", "2", "0.50"]);
        assert_eq!(row.fields(true)[8..11], ["2", "+12 %", "0.50"]);
        assert_eq!(Row { extra_inference: Some(0.0), ..row.clone() }.fields(true)[9], "0");
        assert!(row.fields(false)[2].ends_with("(2 of 3 seeds)"), "{:?}", row.fields(false));
        let comparison = Comparison { p_holm: Some(0.25), ..found };
        let sentence = comparison.sentence();
        assert!(
            sentence.starts_with(
                "Trained on 50 cases, gps and full do not differ on these 3 test cases (difference +0.150, 95 % 0."
            ) && sentence.ends_with("p = 0.25; 2 seeds; 1 without a Dice left out)"),
            "{sentence}"
        );
    }

    #[test]
    fn what_has_not_converged_is_not_compared() {
        let of = |method: &str, converged| group(method, vec![cell(method, 0, converged, &[Some(0.5), Some(0.6)])]);
        let found = against(&of("gps", Some(true)), &of("full", Some(false)), 0);
        assert_eq!((found.paired, found.reason.as_deref()), (None, Some("full has not converged")));
        assert!(of("full", Some(false)).row(1, 0).fields(false)[2].starts_with('('));
        let found = against(&of("gps", Some(true)), &of("full", None), 0);
        assert!(found.reason.unwrap().contains("missing"));
        let hole = group("full", Vec::new());
        assert_eq!(hole.row(1, 0).fields(false)[2..].iter().filter(|f| *f == "–").count(), 10);
        assert!(against(&of("gps", Some(true)), &hole, 0).paired.is_none());
    }
}
