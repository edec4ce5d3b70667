//! Values by hand, by brute force and by symmetry.

use super::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn grid(shape: [usize; 3], spacing_mm: [f64; 3]) -> Grid {
    Grid { shape, spacing_mm, ..Grid::picture(1, 1) }
}

fn labels(shape: [usize; 3], spacing_mm: [f64; 3], ones: &[[usize; 3]]) -> Labels {
    let mut voxels = vec![0; shape.iter().product()];
    for [i, j, k] in ones {
        voxels[i + shape[0] * (j + shape[1] * k)] = 1;
    }
    Labels { grid: grid(shape, spacing_mm), voxels }
}

fn random(rng: &mut ChaCha8Rng, shape: [usize; 3], spacing: [f64; 3], share: f64) -> Labels {
    let voxels = (0..shape.iter().product()).map(|_| u16::from(rng.random_bool(share))).collect();
    Labels { grid: grid(shape, spacing), voxels }
}

#[test]
fn two_voxels_two_millimetres_apart() {
    // One voxel each, one index apart along an axis with 2 mm spacing: every distance is 2 mm.
    let spacing = [3.0, 2.0, 1.0];
    let a = labels([4, 4, 4], spacing, &[[1, 1, 1]]);
    let b = labels([4, 4, 4], spacing, &[[1, 2, 1]]);
    let d = &distances(&a, &b)[&1];
    assert_eq!((d.hausdorff_mm(95.0), d.assd_mm()), (Some(2.0), Some(2.0)));
    assert_eq!((d.nsd(1.9), d.nsd(2.0)), (Some(0.0), Some(1.0)));
}

#[test]
fn a_line_of_five_shifted_by_one() {
    // 1 pixel high: all are surface. Directed distances 0 0 0 0 1 on both sides.
    // 95th percentile: rank 0.95 · 4 = 3.8, so 0.8; mean 2 / 10.
    let line = |from: usize| -> Vec<[usize; 3]> { (from..from + 5).map(|i| [i, 3, 0]).collect() };
    let a = labels([10, 10, 1], [1.0; 3], &line(1));
    let b = labels([10, 10, 1], [1.0; 3], &line(2));
    let d = &distances(&a, &b)[&1];
    assert!((d.hausdorff_mm(95.0).unwrap() - 0.8).abs() < 1e-12);
    assert_eq!((d.hausdorff_mm(100.0), d.assd_mm(), d.nsd(0.0)), (Some(1.0), Some(0.2), Some(0.8)));
}

#[test]
fn a_picture_has_no_neighbours_across() {
    // A filled 3 × 3 square has 8 surface pixels, not 9.
    let square: Vec<[usize; 3]> = (0..9).map(|n| [1 + n % 3, 1 + n / 3, 0]).collect();
    let a = labels([5, 5, 1], [1.0; 3], &square);
    assert_eq!(distances(&a, &a)[&1].from_reference, vec![0.0; 8]);
}

#[test]
fn one_empty_mask_has_no_distance_and_no_agreement() {
    let a = labels([3, 3, 3], [1.0; 3], &[[1, 1, 1]]);
    let b = labels([3, 3, 3], [1.0; 3], &[]);
    for (reference, prediction) in [(&a, &b), (&b, &a)] {
        let d = &distances(reference, prediction)[&1];
        assert_eq!((d.hausdorff_mm(95.0), d.assd_mm(), d.nsd(1.0)), (None, None, Some(0.0)));
    }
    assert!(distances(&b, &b).is_empty());
}

#[test]
fn surfaces_by_brute_force() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..40 {
        let shape = [rng.random_range(1..8), rng.random_range(1..8), rng.random_range(1..6usize)];
        let (a, b) = (random(&mut rng, shape, [0.8, 1.1, 3.0], 0.7), random(&mut rng, shape, [0.8, 1.1, 3.0], 0.5));
        let expected = brute(&a, &b);
        let found = distances(&a, &b).remove(&1).unwrap_or_default();
        for (found, expected) in
            [(&found.from_reference, &expected.from_reference), (&found.from_prediction, &expected.from_prediction)]
        {
            assert_eq!(found.len(), expected.len());
            assert!(found.iter().zip(expected).all(|(f, e)| f == e || (f - e).abs() < 1e-9));
        }
    }
}

/// The definition, word for word.
fn brute(a: &Labels, b: &Labels) -> SurfaceDistances {
    let (shape, spacing) = (a.grid.shape, a.grid.spacing_mm);
    let at = |v: usize| [v % shape[0], v / shape[0] % shape[1], v / (shape[0] * shape[1])];
    let is_one = |labels: &Labels, p: [isize; 3]| {
        (0..3).all(|x| p[x] >= 0 && p[x] < shape[x] as isize)
            && labels.voxels[p[0] as usize + shape[0] * (p[1] as usize + shape[1] * p[2] as usize)] == 1
    };
    let surface = |labels: &Labels| -> Vec<[usize; 3]> {
        let on = |v: &usize| {
            let p = at(*v).map(|n| n as isize);
            let outside = |axis: usize, step: isize| {
                let mut q = p;
                q[axis] += step;
                !is_one(labels, q)
            };
            is_one(labels, p) && (0..3).filter(|x| shape[*x] > 1).any(|x| outside(x, 1) || outside(x, -1))
        };
        (0..labels.voxels.len()).filter(on).map(at).collect()
    };
    let directed = |from: &[[usize; 3]], to: &[[usize; 3]]| -> Vec<f64> {
        let one = |p: &[usize; 3], q: &[usize; 3]| {
            (0..3).map(|x| (spacing[x] * p[x].abs_diff(q[x]) as f64).powi(2)).sum::<f64>().sqrt()
        };
        from.iter().map(|p| to.iter().map(|q| one(p, q)).fold(f64::INFINITY, f64::min)).collect()
    };
    let (a, b) = (surface(a), surface(b));
    SurfaceDistances { from_reference: directed(&a, &b), from_prediction: directed(&b, &a) }
}

#[test]
fn symmetric_flip_invariant_and_below_the_hausdorff_distance() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for _ in 0..30 {
        let shape = [9, 7, 5];
        let (a, b) = (random(&mut rng, shape, [1.0, 0.5, 2.5], 0.3), random(&mut rng, shape, [1.0, 0.5, 2.5], 0.1));
        let measure = |a: &Labels, b: &Labels| {
            let d = &distances(a, b)[&1];
            assert!(d.hausdorff_mm(95.0) <= d.hausdorff_mm(100.0));
            [d.hausdorff_mm(95.0), d.assd_mm(), d.nsd(1.0)].map(|x| x.unwrap())
        };
        // Reversing the voxels flips all three axes.
        let flip = |labels: &Labels| Labels {
            grid: labels.grid.clone(),
            voxels: labels.voxels.iter().rev().copied().collect(),
        };
        for other in [measure(&b, &a), measure(&flip(&a), &flip(&b))] {
            assert!(measure(&a, &b).iter().zip(other).all(|(x, y)| (x - y).abs() < 1e-9));
        }
    }
}

#[test]
fn classes_are_measured_apart() {
    let mut a = labels([6, 1, 1], [1.0; 3], &[[0, 0, 0]]);
    let mut b = a.clone();
    (a.voxels[3], b.voxels[5]) = (7, 7);
    let all = distances(&a, &b);
    assert_eq!(all.keys().copied().collect::<Vec<_>>(), [1, 7]);
    assert_eq!((all[&1].hausdorff_mm(95.0), all[&7].hausdorff_mm(95.0)), (Some(0.0), Some(2.0)));
}

#[test]
fn quantile_is_numpys() {
    // numpy.quantile([1, 2, 4, 8], 0.95) = 4 + 0.85 · 4
    assert!((quantile(&[8.0, 1.0, 4.0, 2.0], 0.95).unwrap() - 7.4).abs() < 1e-12);
    assert_eq!(quantile(&[], 0.5), None);
    assert_eq!(quantile(&[3.0], 0.5), Some(3.0));
}
