//! Distances between the surfaces of two masks: HD95, ASSD and NSD, in millimetres.
//!
//! Tools disagree by more than 100 mm on the same masks (arXiv 2410.02630), so the rules are named:
//! * surface: centres of the mask's voxels with a face neighbour outside the mask, outside the volume included;
//!   axes of length 1 have no neighbours (a picture, a single slice). MONAI's rule for `hausdorff`, not DeepMind's
//!   marching squares with area weights;
//! * HD95: the larger of the two directed 95th percentiles, linear between order statistics (numpy's default);
//! * ASSD: mean over the distances of both surfaces, pooled; NSD: share of both surfaces within the tolerance.

use super::distance;
use crate::image::{Grid, Labels};
use std::collections::BTreeMap;

/// Distances from each surface to the other, in millimetres, unsorted.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SurfaceDistances {
    /// One a surface voxel of the prediction.
    pub from_prediction: Vec<f64>,
    /// One a surface voxel of the reference.
    pub from_reference: Vec<f64>,
}

impl SurfaceDistances {
    /// Hausdorff distance at a percentile (100 is the maximum); `None` when either mask is empty.
    pub fn hausdorff_mm(&self, percentile: f64) -> Option<f64> {
        let directed = |distances: &[f64]| quantile(distances, percentile / 100.0);
        Some(directed(&self.from_prediction)?.max(directed(&self.from_reference)?))
    }

    /// Average symmetric surface distance; `None` when either mask is empty.
    pub fn assd_mm(&self) -> Option<f64> {
        if self.from_prediction.is_empty() || self.from_reference.is_empty() {
            return None;
        }
        let sum: f64 = self.from_prediction.iter().chain(&self.from_reference).sum();
        Some(sum / (self.from_prediction.len() + self.from_reference.len()) as f64)
    }

    /// Normalised surface Dice: `None` when both masks are empty, 0 when one of them is.
    pub fn nsd(&self, tolerance_mm: f64) -> Option<f64> {
        let all = self.from_prediction.len() + self.from_reference.len();
        // Distances are square roots of sums of products: forgive the last digits, or 3 · 0.1 mm exceeds 0.3 mm.
        let within = |d: &&f64| **d <= tolerance_mm * (1.0 + 1e-9);
        let near = self.from_prediction.iter().chain(&self.from_reference).filter(within).count();
        (all > 0).then(|| near as f64 / all as f64)
    }
}

/// The value below which a share `q` of the values lies, linear between order statistics (numpy's default).
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = q.clamp(0.0, 1.0) * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    // Equal neighbours first: infinity minus infinity is not a number.
    Some(if low == high { low } else { low + (high - low) * rank.fract() })
}

/// Surface distances of every class but 0 that occurs in one of two label maps on the same grid.
///
/// A class in one map only has infinite distances on that side, none on the other.
pub fn distances(reference: &Labels, prediction: &Labels) -> BTreeMap<u16, SurfaceDistances> {
    let grid = &reference.grid;
    let mut boxes = BTreeMap::new();
    extend_boxes(&mut boxes, reference);
    extend_boxes(&mut boxes, prediction);
    boxes.into_iter().map(|(class, region)| (class, between(grid, &region, class, reference, prediction))).collect()
}

/// Indices from `low` to `high`, both included: the joint bounding box of a class in two label maps.
///
/// Nothing outside it belongs to either mask, so distances inside it are those of the whole volume.
#[derive(Debug, Clone, Copy)]
struct Region {
    low: [usize; 3],
    high: [usize; 3],
}

impl Region {
    fn shape(&self) -> [usize; 3] {
        std::array::from_fn(|axis| self.high[axis] - self.low[axis] + 1)
    }
}

/// Grows each class's box by the runs of that class along the first axis.
fn extend_boxes(boxes: &mut BTreeMap<u16, Region>, labels: &Labels) {
    let [ni, nj, _] = labels.grid.shape;
    for (row, voxels) in labels.voxels.chunks_exact(ni.max(1)).enumerate() {
        let (j, k) = (row % nj, row / nj);
        let mut start = 0;
        for run in voxels.chunk_by(|a, b| a == b) {
            if run[0] != 0 {
                let (low, high) = ([start, j, k], [start + run.len() - 1, j, k]);
                let region = boxes.entry(run[0]).or_insert(Region { low, high });
                for axis in 0..3 {
                    region.low[axis] = region.low[axis].min(low[axis]);
                    region.high[axis] = region.high[axis].max(high[axis]);
                }
            }
            start += run.len();
        }
    }
}

fn between(grid: &Grid, region: &Region, class: u16, reference: &Labels, prediction: &Labels) -> SurfaceDistances {
    let shape = region.shape();
    let reference = surface(grid, region, class, reference);
    let prediction = surface(grid, region, class, prediction);
    let directed = |from: &[bool], to: &[bool]| -> Vec<f64> {
        let squared = distance::squared(to, shape, grid.spacing_mm);
        from.iter().zip(squared).filter(|(on, _)| **on).map(|(_, d)| d.sqrt()).collect()
    };
    SurfaceDistances {
        from_prediction: directed(&prediction, &reference),
        from_reference: directed(&reference, &prediction),
    }
}

/// Which voxels of the region are on the surface of a class.
fn surface(grid: &Grid, region: &Region, class: u16, labels: &Labels) -> Vec<bool> {
    let [ni, nj, _] = grid.shape;
    let [bi, bj, bk] = region.shape();
    let mut inside = Vec::with_capacity(bi * bj * bk);
    for k in region.low[2]..=region.high[2] {
        for j in region.low[1]..=region.high[1] {
            let start = region.low[0] + ni * (j + nj * k);
            inside.extend(labels.voxels[start..start + bi].iter().map(|v| *v == class));
        }
    }
    let mut on = inside.clone();
    // What lies beyond the region is outside the mask, as the region is the mask's box or larger.
    for (axis, stride) in [1, bi, bi * bj].into_iter().enumerate().filter(|(axis, _)| grid.shape[*axis] > 1) {
        let (n, block) = (region.shape()[axis], stride * region.shape()[axis]);
        for (v, on) in on.iter_mut().enumerate().filter(|(_, on)| **on) {
            let p = v % block / stride;
            // Marked for erosion: kept `true` only while every neighbour so far is inside.
            *on = p > 0 && p + 1 < n && inside[v - stride] && inside[v + stride];
        }
    }
    inside.iter().zip(on).map(|(inside, deep)| *inside && !deep).collect()
}

#[cfg(test)]
#[path = "surface_tests.rs"]
mod tests;
