//! The polyp papers' protocol, after PraNet's evaluation code: probability maps at 256 thresholds.
//!
//! A map is an 8-bit grey picture. It is stretched from its own smallest and largest value to 0..1; at each threshold
//! 255/255, 254/255, … 0/255 a pixel with at least that value is foreground. Dice and IoU are averaged over pictures and
//! thresholds; without a single hit they are 0, also when both masks are empty. At threshold 0 everything is
//! foreground, so even a perfect map stays below 1. Comparisons are in whole numbers: no rounding decides a pixel.

use super::average::mean;
use super::counts::Counts;
use super::report::Pranet;
use super::{CaseScore, Options, Pair, evaluate_labels};
use crate::error::{Error, Result};
use crate::image::{Grid, Labels};
use crate::io::{nifti, picture};
use std::path::Path;

/// Dice and IoU of one case at the thresholds 0/255 to 255/255.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// One a threshold.
    pub dice: Vec<f64>,
    /// One a threshold.
    pub iou: Vec<f64>,
    /// Whether the map held two values at most, as a mask does.
    pub hard: bool,
}

impl Sweep {
    /// Sweeps the thresholds over a map; `reference` is 0 or 1, of equal length.
    pub fn new(reference: &[u16], map: &[u8]) -> Sweep {
        // Histograms of background and foreground pixels over the map's values.
        let mut histogram = [[0u64; 256]; 2];
        for (truth, value) in reference.iter().zip(map) {
            histogram[usize::from(*truth != 0)][usize::from(*value)] += 1;
        }
        let used: Vec<usize> = (0..256).filter(|v| histogram[0][*v] + histogram[1][*v] > 0).collect();
        let (low, high) = (used.first().copied().unwrap_or(0), used.last().copied().unwrap_or(0));
        // A constant map has nothing to stretch.
        let (low, range) = if low == high { (0, 255) } else { (low, high - low) };
        let n_ref: u64 = histogram[1].iter().sum();
        let mut sweep = Sweep { dice: Vec::with_capacity(256), iou: Vec::with_capacity(256), hard: is_hard(&used) };
        for threshold in 0..256 {
            let on = |v: &usize| v.saturating_sub(low) * 255 >= threshold * range;
            let sum = |truth: usize| (0..256).filter(on).map(|v| histogram[truth][v]).sum::<u64>();
            let (fp, tp) = (sum(0), sum(1));
            let counts = Counts { tp, fp, fn_: n_ref - tp, tn: 0 };
            sweep.dice.push(counts.dice().unwrap_or(0.0));
            sweep.iou.push(counts.iou().unwrap_or(0.0));
        }
        sweep
    }

    /// What a missing map scores.
    pub(super) fn nothing() -> Sweep {
        Sweep { dice: vec![0.0; 256], iou: vec![0.0; 256], hard: true }
    }
}

/// 0 and 255, or 0 and 1: nothing between that a threshold could divide.
fn is_hard(used: &[usize]) -> bool {
    used.iter().all(|v| [0, 255].contains(v)) || used.iter().all(|v| [0, 1].contains(v))
}

/// Scores one probability map: the sweep, and counts and distances at 0.5 of the map as stored.
///
/// # Errors
/// A data error when the file is no grey picture or of another size than its reference.
pub(super) fn evaluate_map(pair: &Pair, mut reference: Labels, options: &Options) -> Result<CaseScore> {
    binarise(&mut reference, &pair.reference)?;
    let (grid, map) = read_map(&pair.prediction)?;
    let half = Labels { grid, voxels: map.iter().map(|v| u16::from(*v >= 128)).collect() };
    let mut score = evaluate_labels(&pair.case, &reference, &half, options)?;
    let sweep = Sweep::new(&reference.voxels, &map);
    let n_voxels = score.n_voxels;
    let class = score.classes.entry(1).or_insert(super::ClassScore::absent(n_voxels, options.surfaces));
    class.over_thresholds = Some([&sweep.dice, &sweep.iou].map(|values| values.iter().sum::<f64>() / 256.0));
    score.sweep = Some(sweep);
    Ok(score)
}

/// Makes a reference 0 or 1: grey values above 128 are foreground, as in PraNet's code; 0 and 1 stay.
pub(super) fn binarise(reference: &mut Labels, path: &Path) -> Result<()> {
    let largest = reference.voxels.iter().copied().max().unwrap_or(0);
    if (2..=128).contains(&largest) {
        return Err(Error::data(format!("labels up to {largest}: protocol `pranet` knows one class"))
            .at(path)
            .hint("use --protocol plain for several classes"));
    }
    if largest > 128 {
        reference.voxels.iter_mut().for_each(|v| *v = u16::from(*v > 128));
    }
    Ok(())
}

/// Size and values of an 8-bit grey picture.
fn read_map(path: &Path) -> Result<(Grid, Vec<u8>)> {
    if nifti::is_nifti(path) {
        return Err(needs_maps("this is a volume").at(path));
    }
    let picture = picture::read_picture(path)?;
    let (pixels, _) = picture.rgb.as_chunks::<3>();
    if pixels.iter().any(|[r, g, b]| r != g || g != b) {
        return Err(needs_maps("this picture has colours").at(path));
    }
    Ok((Grid::picture(picture.width, picture.height), pixels.iter().map(|[grey, ..]| *grey).collect()))
}

/// What to do when there is no probability map.
pub(super) fn needs_maps(found: &str) -> Error {
    Error::data(format!("protocol `pranet` needs probability maps, 8-bit grey PNG: {found}"))
        .hint("make them with `segft predict --prob`, or score masks with --protocol plain")
}

/// The values that this protocol alone knows; `None` unless every case has a sweep.
pub(super) fn summary(cases: &[CaseScore]) -> Option<Pranet> {
    let sweeps: Vec<&Sweep> = cases.iter().map(|case| case.sweep.as_ref()).collect::<Option<_>>()?;
    let best = |values: fn(&Sweep) -> &[f64]| {
        let at = |t: usize| sweeps.iter().map(|s| values(s)[t]).sum::<f64>() / sweeps.len() as f64;
        (0..256).map(at).fold(0.0, f64::max)
    };
    let at_half = |ratio: fn(&Counts) -> Option<f64>| {
        mean(cases.iter().map(|c| c.classes.get(&1).and_then(|c| ratio(&c.counts))))
    };
    Some(Pranet {
        max_dice: best(|s| &s.dice),
        max_iou: best(|s| &s.iou),
        mdice_at_half: at_half(Counts::dice),
        miou_at_half: at_half(Counts::iou),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soft_map_by_hand() {
        // Values 10, 110, 210 stretch to 0, 0.5, 1; the reference is the last pixel.
        // Threshold 0: 3 on, Dice 2 / 4. 1 to 127 (≤ 0.4980): 2 on, Dice 2 / 3. 128 to 255: 1 on, Dice 1.
        let sweep = Sweep::new(&[0, 0, 1], &[10, 110, 210]);
        assert_eq!((sweep.dice[0], sweep.dice[127], sweep.dice[128], sweep.dice[255]), (0.5, 2.0 / 3.0, 1.0, 1.0));
        let mean = sweep.dice.iter().sum::<f64>() / 256.0;
        assert!((mean - (0.5 + 127.0 * 2.0 / 3.0 + 128.0) / 256.0).abs() < 1e-12);
        assert!(!sweep.hard);
    }

    #[test]
    fn a_perfect_mask_loses_the_last_threshold() {
        let sweep = Sweep::new(&[0, 0, 0, 1], &[0, 0, 0, 255]);
        assert!(sweep.hard && sweep.dice[1..].iter().all(|d| *d == 1.0));
        assert_eq!(sweep.dice[0], 0.4, "2 · 1 / (1 + 4)");
    }

    #[test]
    fn empty_masks_are_zero() {
        assert!(Sweep::new(&[0, 0], &[0, 90]).dice.iter().all(|d| *d == 0.0));
    }

    #[test]
    fn a_constant_map_is_not_stretched() {
        let sweep = Sweep::new(&[1, 1], &[100, 100]);
        assert_eq!((sweep.dice[100], sweep.dice[101]), (1.0, 0.0));
    }
}
