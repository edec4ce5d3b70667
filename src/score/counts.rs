//! Integer counts of one class in one case, and the ratios made of them.
//!
//! Counts stay integers to the very end, so that sums over cases are exact and pooled values are possible. All pixels
//! are counted, whatever the reference says there: leaving out those that the reference calls background would hide
//! every false positive, and a mask of all foreground would score 1.

use crate::image::Labels;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::AddAssign;

/// Voxels of one class: found, invented, missed, rightly left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// In both masks.
    pub tp: u64,
    /// In the prediction only.
    pub fp: u64,
    /// In the reference only.
    pub fn_: u64,
    /// In neither.
    pub tn: u64,
}

impl Counts {
    /// Voxels of the reference.
    pub fn n_ref(&self) -> u64 {
        self.tp + self.fn_
    }

    /// Voxels of the prediction.
    pub fn n_pred(&self) -> u64 {
        self.tp + self.fp
    }

    /// 2 TP / (2 TP + FP + FN); `None` when both masks are empty.
    pub fn dice(&self) -> Option<f64> {
        self.ratio(2 * self.tp, self.n_ref() + self.n_pred())
    }

    /// TP / (TP + FP + FN); `None` when both masks are empty.
    pub fn iou(&self) -> Option<f64> {
        self.ratio(self.tp, self.tp + self.fp + self.fn_)
    }

    /// TP / (TP + FN), also called recall; `None` when both masks are empty, 0 when one of them is.
    pub fn sensitivity(&self) -> Option<f64> {
        self.ratio(self.tp, self.n_ref())
    }

    /// TP / (TP + FP); `None` when both masks are empty, 0 when one of them is.
    pub fn precision(&self) -> Option<f64> {
        self.ratio(self.tp, self.n_pred())
    }

    /// The same counts with false positives forgiven: the protocol `gps-reference`.
    pub fn without_false_positives(&self) -> Counts {
        Counts { fp: 0, tn: self.tn + self.fp, ..*self }
    }

    /// One rule for the corners: undefined without any voxel of the class, 0 when one mask alone has some.
    fn ratio(&self, part: u64, whole: u64) -> Option<f64> {
        match (self.n_ref() + self.n_pred(), whole) {
            (0, _) => None,
            (_, 0) => Some(0.0),
            _ => Some(part as f64 / whole as f64),
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.tp += other.tp;
        self.fp += other.fp;
        self.fn_ += other.fn_;
        self.tn += other.tn;
    }
}

/// Counts of every class that occurs in one of two label maps of equal length, 0 included.
pub fn count(reference: &Labels, prediction: &Labels) -> BTreeMap<u16, Counts> {
    debug_assert_eq!(reference.voxels.len(), prediction.voxels.len(), "callers compare the grids first");
    let largest = reference.voxels.iter().chain(&prediction.voxels).copied().max().unwrap_or(0);
    let mut table = vec![Counts::default(); usize::from(largest) + 1];
    // Masks are long runs of the same pair: count the run, look the class up once.
    let mut add = |(r, p): (u16, u16), run: u64| {
        if r == p {
            table[usize::from(r)].tp += run;
        } else {
            table[usize::from(r)].fn_ += run;
            table[usize::from(p)].fp += run;
        }
    };
    let mut pairs = reference.voxels.iter().copied().zip(prediction.voxels.iter().copied());
    if let Some(mut pair) = pairs.next() {
        let mut run = 1;
        for next in pairs {
            if next == pair {
                run += 1;
            } else {
                add(pair, run);
                (pair, run) = (next, 1);
            }
        }
        add(pair, run);
    }
    let total = reference.voxels.len() as u64;
    (0u16..=largest)
        .zip(table)
        .filter(|(_, c)| c.n_ref() + c.n_pred() > 0)
        .map(|(class, c)| (class, Counts { tn: total - c.tp - c.fp - c.fn_, ..c }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Grid;

    fn row(voxels: &[u16]) -> Labels {
        Labels { grid: Grid::picture(voxels.len(), 1), voxels: voxels.to_vec() }
    }

    #[test]
    fn counts_by_hand() {
        // Voxels:        both 1, ref 1 only, both 2, pred 2 only, both 0, ref 1 against pred 2.
        let counts = count(&row(&[1, 1, 2, 0, 0, 1]), &row(&[1, 0, 2, 2, 0, 2]));
        assert_eq!(counts[&0], Counts { tp: 1, fp: 1, fn_: 1, tn: 3 });
        assert_eq!(counts[&1], Counts { tp: 1, fp: 0, fn_: 2, tn: 3 });
        assert_eq!(counts[&2], Counts { tp: 1, fp: 2, fn_: 0, tn: 3 });
        assert_eq!(counts[&1].dice(), Some(0.5), "2 · 1 / (1 + 3)");
        assert_eq!(counts[&2].iou(), Some(1.0 / 3.0), "1 / (1 + 2 + 0)");
        assert_eq!(counts[&1].sensitivity(), Some(1.0 / 3.0));
        assert_eq!(counts[&1].precision(), Some(1.0));
    }

    #[test]
    fn every_ratio_has_the_same_corners() {
        let neither = Counts { tn: 9, ..Counts::default() };
        let reference = Counts { fn_: 3, ..Counts::default() };
        let prediction = Counts { fp: 3, ..Counts::default() };
        for ratio in [Counts::dice, Counts::iou, Counts::sensitivity, Counts::precision] {
            assert_eq!(ratio(&neither), None);
            assert_eq!(ratio(&reference), Some(0.0));
            assert_eq!(ratio(&prediction), Some(0.0));
        }
    }

    #[test]
    fn nothing_to_count() {
        assert!(count(&row(&[]), &row(&[])).is_empty());
    }

    #[test]
    fn largest_label_fits() {
        let counts = count(&row(&[65535, 0]), &row(&[65535, 65535]));
        assert_eq!(counts[&65535], Counts { tp: 1, fp: 1, fn_: 0, tn: 0 });
    }
}
