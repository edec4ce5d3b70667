//! From scored cases to one report: means, medians, intervals, pooled values, and what was undefined.
//!
//! Cases are sorted by id and classes by value, so the order of the input changes nothing. The training loop and the
//! `score` command come through [`Report::from_cases`] alike.

use super::bootstrap;
use super::counts::Counts;
use super::options::{Options, Protocol};
use super::report::{
    CaseMetrics, ClassMetrics, EmptyReference, Means, Missing, Overlap, ProtocolNote, Report, Undefined, WorstCase,
};
use super::surface::quantile;
use super::{CaseScore, ClassScore, pranet};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// How many of the worst cases a report names.
const N_WORST: usize = 5;

/// Mean of the defined values; `None` without any.
pub(super) fn mean(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let (sum, n) = values.into_iter().flatten().fold((0.0, 0u64), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / n as f64)
}

/// Whether mIoU ≥ mDice / (2 − mDice), to rounding.
///
/// A theorem for equally weighted means over the same masks, nested ones too: IoU = D / (2 − D) is convex and
/// increasing. A pair that breaks it cannot share one definition.
pub(super) fn agree(mdice: Option<f64>, miou: Option<f64>) -> bool {
    match (mdice, miou) {
        (Some(d), Some(iou)) => iou >= d / (2.0 - d) - 1e-9,
        (None, None) => true,
        _ => false,
    }
}

impl Report {
    /// Averages scored cases by the options' protocol.
    ///
    /// # Errors
    /// A data error without any case, with two cases of one id, or when `pranet` gets masks instead of maps.
    pub fn from_cases(mut cases: Vec<CaseScore>, options: &Options) -> Result<Report> {
        options.check()?;
        cases.sort_by(|a, b| a.case.cmp(&b.case));
        check_cases(&cases, options)?;
        let classes = foreground(&cases, options);
        let with_background: BTreeSet<u16> = match options.protocol {
            Protocol::Mmseg => classes.iter().copied().chain([0]).collect(),
            _ => classes.clone(),
        };
        let metric_per_case: Vec<CaseMetrics> =
            cases.iter().map(|case| CaseMetrics::new(case, &with_background, options)).collect();
        let everyone: Vec<usize> = (0..cases.len()).collect();
        let statistic = |drawn: &[usize]| headline(&metric_per_case, drawn, options.protocol);
        let [mdice, miou] = statistic(&everyone);
        debug_assert!(agree(mdice, miou), "mDice {mdice:?} and mIoU {miou:?} are not of the same masks");
        // One defined case among undefined ones has no spread that a bootstrap could show.
        let n_defined = metric_per_case.iter().filter(|c| c.metrics.values().any(|m| m.dice.is_some())).count();
        let [mdice_ci95, miou_ci95] = match n_defined {
            0 | 1 => [None; 2],
            _ => bootstrap::intervals(cases.len(), options.resamples, options.seed, statistic),
        };
        let column = |class: u16| metric_per_case.iter().map(move |case| &case.metrics[&class]);
        let by_class = |classes: &BTreeSet<u16>, make: &dyn Fn(u16) -> Overlap| -> BTreeMap<u16, Overlap> {
            classes.iter().map(|class| (*class, make(*class))).collect()
        };
        let over_cases = |summary: &dyn Fn(&[f64]) -> Option<f64>, class: u16| Overlap {
            dice: summary(&column(class).filter_map(|m| m.dice).collect::<Vec<_>>()),
            iou: summary(&column(class).filter_map(|m| m.iou).collect::<Vec<_>>()),
        };
        let means: BTreeMap<u16, Means> =
            with_background.iter().map(|class| (*class, Means::new(column(*class)))).collect();
        let empty: Vec<u64> = metric_per_case
            .iter()
            .filter(|case| classes.iter().all(|class| case.metrics[class].n_ref == 0))
            .map(|case| classes.iter().map(|class| case.metrics[class].fp).sum())
            .collect();
        Ok(Report {
            protocol: ProtocolNote::new(options),
            foreground_mean: Overlap {
                dice: mean(classes.iter().map(|class| means[class].dice)),
                iou: mean(classes.iter().map(|class| means[class].iou)),
            },
            mean: means,
            mdice,
            miou,
            mdice_ci95,
            miou_ci95,
            pooled: by_class(&with_background, &|class| pooled(column(class), options.protocol)),
            n_cases: cases.len(),
            n_empty_reference: empty.len(),
            empty_reference: EmptyReference {
                n_correct: empty.iter().filter(|invented| **invented == 0).count(),
                mean_false_positives: mean(empty.iter().map(|invented| Some(*invented as f64))),
            },
            n_absent: classes.iter().map(|c| (*c, column(*c).filter(|m| m.is_absent()).count())).collect(),
            n_undefined: classes.iter().map(|c| (*c, Undefined::new(column(*c)))).collect(),
            median: by_class(&classes, &|class| over_cases(&|values| quantile(values, 0.5), class)),
            sd: by_class(&classes, &|class| over_cases(&deviation, class)),
            worst_cases: worst(&metric_per_case),
            distance_unit: cases.iter().map(|case| case.unit).max().unwrap_or_default(),
            pranet: pranet::summary(&cases),
            missing: Missing::default(),
            metric_per_case,
        })
    }
}

impl ClassMetrics {
    fn new(score: &ClassScore, options: &Options) -> ClassMetrics {
        let fill = |ratio| options.empty.fill(ratio);
        let Counts { tp, fp, fn_, tn } = score.counts;
        let counted = options.protocol.counts(&score.counts);
        // The thresholds' means follow PraNet's own rule for empty masks.
        let (dice, iou) = match score.over_thresholds {
            Some([dice, iou]) => (Some(dice), Some(iou)),
            None => (fill(counted.dice()), fill(counted.iou())),
        };
        ClassMetrics {
            dice,
            iou,
            tp,
            fp,
            fn_,
            tn,
            n_pred: score.counts.n_pred(),
            n_ref: score.counts.n_ref(),
            sensitivity: fill(score.counts.sensitivity()),
            precision: fill(score.counts.precision()),
            hd95_mm: score.surface.and_then(|s| s.hd95_mm),
            assd_mm: score.surface.and_then(|s| s.assd_mm),
            nsd: score.surface.and_then(|s| fill(s.nsd)),
        }
    }

    fn is_absent(&self) -> bool {
        self.n_pred + self.n_ref == 0
    }
}

impl ProtocolNote {
    fn new(options: &Options) -> ProtocolNote {
        ProtocolNote {
            name: options.protocol,
            empty: options.empty,
            nsd_tolerance_mm: options.nsd_tolerance_mm,
            averaging: options.protocol.averaging().into(),
            comparable: options.protocol.comparable(),
            surfaces: options.surfaces,
            surface_rule: "voxel centres with a face neighbour outside the mask; HD95 is the larger of the two directed 95th percentiles, interpolated linearly; ASSD pools both surfaces".into(),
            resamples: options.resamples,
            seed: options.seed,
        }
    }
}

impl CaseMetrics {
    fn new(case: &CaseScore, classes: &BTreeSet<u16>, options: &Options) -> CaseMetrics {
        // A class that occurs elsewhere in the set only.
        let absent = ClassScore::absent(case.n_voxels, options.surfaces);
        let metrics = |class: &u16| (*class, ClassMetrics::new(case.classes.get(class).unwrap_or(&absent), options));
        CaseMetrics {
            case: case.case.clone(),
            reference_file: case.reference_file.clone(),
            prediction_file: case.prediction_file.clone(),
            metrics: classes.iter().map(metrics).collect(),
        }
    }
}

impl Means {
    fn new<'a>(column: impl Iterator<Item = &'a ClassMetrics> + Clone) -> Means {
        let of = |value: fn(&ClassMetrics) -> Option<f64>| mean(column.clone().map(value));
        Means {
            dice: of(|m| m.dice),
            iou: of(|m| m.iou),
            sensitivity: of(|m| m.sensitivity),
            precision: of(|m| m.precision),
            hd95_mm: of(|m| m.hd95_mm),
            assd_mm: of(|m| m.assd_mm),
            nsd: of(|m| m.nsd),
        }
    }
}

impl Undefined {
    fn new<'a>(column: impl Iterator<Item = &'a ClassMetrics> + Clone) -> Undefined {
        Undefined {
            dice: column.clone().filter(|m| m.dice.is_none()).count(),
            hd95_mm: column.filter(|m| m.hd95_mm.is_none()).count(),
        }
    }
}

fn check_cases(cases: &[CaseScore], options: &Options) -> Result<()> {
    if cases.is_empty() {
        return Err(Error::data("no case to score: the mean of nothing is not a number")
            .hint("check that the two folders hold masks of the same cases"));
    }
    if let Some(twice) = cases.windows(2).find(|pair| pair[0].case == pair[1].case) {
        return Err(
            Error::data(format!("two cases are called `{}`", twice[0].case)).hint("give each case its own name")
        );
    }
    if options.protocol == Protocol::Pranet
        && cases.iter().all(|case| case.sweep.as_ref().is_none_or(|sweep| sweep.hard))
    {
        return Err(pranet::needs_maps("these are masks, their only values are 0 and 255, or 0 and 1"));
    }
    Ok(())
}

/// The classes asked for, or those found; 1 when every mask is empty, so that a report always has a class.
fn foreground(cases: &[CaseScore], options: &Options) -> BTreeSet<u16> {
    let found = || -> BTreeSet<u16> { cases.iter().flat_map(|case| case.classes.keys().copied()).collect() };
    let mut classes = options.classes.clone().unwrap_or_else(found);
    classes.remove(&0);
    if classes.is_empty() {
        classes.insert(1);
    }
    classes
}

/// mDice and mIoU of the drawn cases by a protocol.
fn headline(cases: &[CaseMetrics], drawn: &[usize], protocol: Protocol) -> [Option<f64>; 2] {
    let classes = cases.first().map(|case| case.metrics.keys()).into_iter().flatten();
    let values: Vec<Overlap> = classes
        .map(|class| {
            let column = drawn.iter().map(|i| &cases[*i].metrics[class]);
            match protocol {
                Protocol::Plain | Protocol::Pranet => {
                    Overlap { dice: mean(column.clone().map(|m| m.dice)), iou: mean(column.map(|m| m.iou)) }
                }
                Protocol::Mmseg | Protocol::GpsReference => pooled(column, protocol),
            }
        })
        .collect();
    [mean(values.iter().map(|o| o.dice)), mean(values.iter().map(|o| o.iou))]
}

fn pooled<'a>(column: impl Iterator<Item = &'a ClassMetrics>, protocol: Protocol) -> Overlap {
    let mut sum = Counts::default();
    column.for_each(|m| sum += protocol.counts(&m.counts()));
    Overlap { dice: sum.dice(), iou: sum.iou() }
}

/// Standard deviation of a sample; `None` below two values.
fn deviation(values: &[f64]) -> Option<f64> {
    let centre = mean(values.iter().copied().map(Some))?;
    let squares: f64 = values.iter().map(|v| (v - centre).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

fn worst(cases: &[CaseMetrics]) -> Vec<WorstCase> {
    let mut all: Vec<WorstCase> = cases
        .iter()
        .flat_map(|case| {
            let foreground = case.metrics.iter().filter(|(class, _)| **class != 0);
            foreground
                .filter_map(|(class, m)| Some(WorstCase { case: case.case.clone(), class: *class, dice: m.dice? }))
        })
        .collect();
    // A stable sort: equal ones stay in the order of cases and classes.
    all.sort_by(|a, b| a.dice.total_cmp(&b.dice));
    all.truncate(N_WORST);
    all
}

#[cfg(test)]
#[path = "average_tests.rs"]
mod tests;
