//! Dice and IoU from integer counts; distances from surfaces. No network is needed to score.
//!
//! In reading order: [`counts`] (one class of one case), [`surface`] (HD95, ASSD, NSD), [`options`] (which rule),
//! [`report`] (many cases, one number), [`pairs`] (which file belongs to which), [`pranet`] (probability maps), [`paired`]
//! (two methods on the same cases).
//!
//! The rule, once: counts are integers to the end. A class in neither mask of a case is undefined and left out of means,
//! and counted; in one mask only it is 0. Means run over cases, then over foreground classes. What is pooled says so.

mod average;
mod bootstrap;
pub mod counts;
pub mod distance;
pub mod options;
pub mod paired;
pub mod pairs;
pub mod pranet;
pub mod report;
pub mod surface;
mod table;

pub use counts::Counts;
pub use options::{Empty, LabelUse, Options, Protocol, Surfaces};
pub use pairs::{Absent, Pair, Pairing};
pub use report::Report;

use crate::error::{Error, Result};
use crate::image::{Grid, Labels};
use crate::io::{nifti, picture};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Values that a mask picture may hold beyond those of its reference before it is taken for a probability map.
const MOST_UNKNOWN_LABELS: usize = 32;

/// What one case scored, before any averaging.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseScore {
    /// Unique in the set.
    pub case: String,
    /// The reference's path, if it is a file.
    pub reference_file: Option<String>,
    /// The prediction's path, if it is a file.
    pub prediction_file: Option<String>,
    /// Voxels of the grid.
    pub n_voxels: u64,
    /// What distances are measured in.
    pub unit: Unit,
    /// Classes that occur in either mask; 0 is background.
    pub classes: BTreeMap<u16, ClassScore>,
    /// The 256 thresholds of protocol `pranet`.
    pub sweep: Option<pranet::Sweep>,
}

/// One class of one case.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassScore {
    /// What was found, invented, missed.
    pub counts: Counts,
    /// Surface distances, unless skipped.
    pub surface: Option<SurfaceScore>,
    /// Means of Dice and IoU over the thresholds of protocol `pranet`.
    pub over_thresholds: Option<[f64; 2]>,
}

/// Surface distances of one class of one case; rules in [`surface`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SurfaceScore {
    /// 95th percentile of the Hausdorff distance; `None` when either mask is empty.
    pub hd95_mm: Option<f64>,
    /// Average symmetric surface distance; `None` when either mask is empty.
    pub assd_mm: Option<f64>,
    /// Normalised surface Dice; `None` when both masks are empty, 0 when one is.
    pub nsd: Option<f64>,
}

/// What distances are measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Millimetres: the grid has a spacing.
    #[default]
    Mm,
    /// Pixels: a picture does not say how large it is.
    Pixel,
}

impl ClassScore {
    /// A class that is in neither mask of a case.
    fn absent(n_voxels: u64, surfaces: Surfaces) -> ClassScore {
        ClassScore {
            counts: Counts { tn: n_voxels, ..Counts::default() },
            surface: (surfaces == Surfaces::Measured).then(SurfaceScore::default),
            over_thresholds: None,
        }
    }
}

/// Scores pairs of files; cases in parallel.
///
/// # Errors
/// The first case, by the order of the pairs, that cannot be read or lies on another grid: a mean over fewer cases is
/// a different number. A data error without any pair.
pub fn evaluate(pairs: &[Pair], options: &Options) -> Result<Report> {
    options.check()?;
    Report::from_cases(scored(pairs, options)?, options)
}

/// As [`evaluate`], for what [`pairs::find`] found: also says which cases are missing, and what the score would be if
/// each missing prediction were an empty mask.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_pairing(pairing: &Pairing, options: &Options) -> Result<Report> {
    options.check()?;
    let mut cases = scored(&pairing.pairs, options)?;
    let mut report = Report::from_cases(cases.clone(), options)?;
    let ids = |absent: &[Absent]| absent.iter().map(|a| a.case.clone()).collect();
    report.missing.predictions = ids(&pairing.without_prediction);
    report.missing.references = ids(&pairing.without_reference);
    if !pairing.without_prediction.is_empty() {
        for absent in &pairing.without_prediction {
            let mut reference = read(&absent.path)?;
            if let LabelUse::Merged(labels) = &options.labels {
                reference = reference.merged(labels);
            }
            if options.protocol == Protocol::Pranet {
                pranet::binarise(&mut reference, &absent.path)?;
            }
            let empty = Labels { grid: reference.grid.clone(), voxels: vec![0; reference.voxels.len()] };
            cases.push(evaluate_labels(&absent.case, &reference, &empty, options)?.with_nothing_found());
        }
        let all = Report::from_cases(cases, options)?;
        (report.missing.mdice_if_empty, report.missing.miou_if_empty) = (all.mdice, all.miou);
    }
    Ok(report)
}

/// Scores one prediction in memory. The same code serves files and validation during training.
///
/// # Errors
/// A data error naming the case and both values when the grids differ.
pub fn evaluate_labels(case: &str, reference: &Labels, prediction: &Labels, options: &Options) -> Result<CaseScore> {
    if let Some(difference) = difference(&reference.grid, &prediction.grid) {
        return Err(Error::data(format!("case `{case}`: reference against prediction: {difference}"))
            .hint("score masks on the grid of the reference; `segft predict` keeps the grid of its input"));
    }
    if reference.voxels.len() != prediction.voxels.len() {
        let (r, p) = (reference.voxels.len(), prediction.voxels.len());
        return Err(Error::data(format!("case `{case}`: {r} voxels in the reference, {p} in the prediction")));
    }
    let mut surfaces = match options.surfaces {
        Surfaces::Measured => Some(surface::distances(reference, prediction)),
        Surfaces::Skipped => None,
    };
    let classes = counts::count(reference, prediction).into_iter().map(|(class, counts)| {
        let surface = surfaces.as_mut().map(|all| {
            let distances = all.remove(&class).unwrap_or_default();
            SurfaceScore {
                hd95_mm: distances.hausdorff_mm(95.0),
                assd_mm: distances.assd_mm(),
                nsd: distances.nsd(options.nsd_tolerance_mm),
            }
        });
        (class, ClassScore { counts, surface, over_thresholds: None })
    });
    Ok(CaseScore {
        case: case.into(),
        reference_file: None,
        prediction_file: None,
        n_voxels: reference.voxels.len() as u64,
        unit: if is_picture(&reference.grid) { Unit::Pixel } else { Unit::Mm },
        classes: classes.collect(),
        sweep: None,
    })
}

impl CaseScore {
    /// The score of a missing prediction under `pranet`: nothing at any threshold. Other protocols do not look here.
    fn with_nothing_found(mut self) -> CaseScore {
        self.classes.values_mut().for_each(|class| class.over_thresholds = Some([0.0; 2]));
        self.sweep = Some(pranet::Sweep::nothing());
        self
    }
}

fn scored(pairs: &[Pair], options: &Options) -> Result<Vec<CaseScore>> {
    // Collected before the first error is looked for, so that the same error is named on every run.
    let merged = match &options.labels {
        LabelUse::Classes => None,
        LabelUse::Merged(labels) => Some((labels.as_slice(), labels_of_predictions(pairs, labels, options))),
    };
    let all: Vec<Result<CaseScore>> = pairs.par_iter().map(|pair| evaluate_pair(pair, merged, options)).collect();
    all.into_iter().collect()
}

/// The labels that are foreground in the predictions: those of the references, unless no prediction holds more than
/// label 1. Those are merged already, and their 1 need not be the references' 1.
fn labels_of_predictions<'a>(pairs: &[Pair], labels: &'a [u16], options: &Options) -> &'a [u16] {
    let binary = |pair: &Pair| read(&pair.prediction).is_ok_and(|l| l.voxels.iter().all(|v| *v <= 1));
    let soft = options.protocol == Protocol::Pranet;
    if labels.is_empty() || soft || pairs.par_iter().all(binary) { &[] } else { labels }
}

fn evaluate_pair(pair: &Pair, merged: Option<(&[u16], &[u16])>, options: &Options) -> Result<CaseScore> {
    let mut reference = read(&pair.reference)?;
    if let Some((labels, _)) = merged {
        reference = reference.merged(labels);
    }
    let mut score = if options.protocol == Protocol::Pranet {
        pranet::evaluate_map(pair, reference, options)
    } else {
        let mut prediction = read(&pair.prediction)?;
        check_is_mask(pair, &reference, &prediction, options)?;
        if let Some((_, labels)) = merged {
            prediction = prediction.merged(labels);
        }
        evaluate_labels(&pair.case, &reference, &prediction, options)
    }
    .map_err(|e| e.at(&pair.prediction))?;
    score.reference_file = Some(pair.reference.display().to_string());
    score.prediction_file = Some(pair.prediction.display().to_string());
    Ok(score)
}

/// Reads a mask or a label map by what its name says.
fn read(path: &Path) -> Result<Labels> {
    if nifti::is_nifti(path) { nifti::read_labels(path) } else { picture::read_mask(path) }
}

/// A grey picture read as a mask would quietly become a hundred classes.
fn check_is_mask(pair: &Pair, reference: &Labels, prediction: &Labels, options: &Options) -> Result<()> {
    if options.classes.is_some() || !is_picture(&prediction.grid) {
        return Ok(());
    }
    let mut seen = vec![false; usize::from(u16::MAX) + 1];
    prediction.voxels.iter().for_each(|v| seen[usize::from(*v)] = true);
    reference.voxels.iter().for_each(|v| seen[usize::from(*v)] = false);
    let unknown = seen.iter().filter(|s| **s).count();
    if unknown <= MOST_UNKNOWN_LABELS {
        return Ok(());
    }
    Err(Error::data(format!("case `{}`: the prediction holds {unknown} values that its reference does not", pair.case))
        .at(&pair.prediction)
        .hint("is this a probability map? score masks, or use --protocol pranet; --labels names the classes to score"))
}

fn is_picture(grid: &Grid) -> bool {
    let [width, height, _] = grid.shape;
    *grid == Grid::picture(width, height)
}

/// Why two grids differ, in the words of pictures where both are.
fn difference(reference: &Grid, prediction: &Grid) -> Option<String> {
    let difference = reference.difference(prediction)?;
    if is_picture(reference) && is_picture(prediction) {
        let size = |grid: &Grid| format!("{}×{}", grid.shape[0], grid.shape[1]);
        return Some(format!("size {} against {} pixels", size(reference), size(prediction)));
    }
    Some(difference)
}
