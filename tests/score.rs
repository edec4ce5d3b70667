//! Scoring from the outside: files and folders in, one report out; surfaces against MONAI; properties that must hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use segft::error::Error;
use segft::image::{Grid, Labels};
use segft::io::nifti::{Template, write_labels};
use segft::io::picture::{write_mask, write_probabilities};
use segft::score::pairs::{MissingPolicy, find};
use segft::score::{
    LabelUse, Options, Protocol, Report, Surfaces, evaluate, evaluate_labels, evaluate_pairing, surface,
};
use serde_json::Value;
use std::path::Path;
use tempfile::TempDir;

fn volume_grid(shape: [usize; 3], spacing_mm: [f64; 3]) -> Grid {
    let mut grid = Grid { shape, spacing_mm, ..Grid::picture(1, 1) };
    (0..3).for_each(|axis| grid.affine[axis][axis] = spacing_mm[axis]);
    grid
}

fn random(rng: &mut ChaCha8Rng, grid: &Grid, classes: u16) -> Labels {
    let voxels = (0..grid.len()).map(|_| rng.random_range(0..=classes)).collect();
    Labels { grid: grid.clone(), voxels }
}

/// The bits of a reference mask: first axis fastest, most significant bit of each byte first.
fn mask(hex: &Value, grid: &Grid) -> Labels {
    let hex = hex.as_str().unwrap();
    let bytes = (0..hex.len() / 2).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap());
    let bits = bytes.flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1)));
    Labels { grid: grid.clone(), voxels: bits.take(grid.len()).collect() }
}

/// A pair of folders with the same names in both.
fn folders() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    ["pred", "ref"].iter().for_each(|name| std::fs::create_dir(dir.path().join(name)).unwrap());
    dir
}

fn score(dir: &TempDir, options: &Options) -> Result<Report, Error> {
    score_with(dir, options, MissingPolicy::Refuse)
}

fn score_with(dir: &TempDir, options: &Options, missing: MissingPolicy) -> Result<Report, Error> {
    let pairing = find(&dir.path().join("pred"), &dir.path().join("ref"), missing, options.protocol)?;
    evaluate_pairing(&pairing, options)
}

fn write_volume(path: &Path, labels: &Labels) {
    write_labels(path, labels, &Template::of_grid(&labels.grid)).unwrap();
}

#[test]
fn surfaces_agree_with_monai() {
    // MONAI keeps distances and the rank of the percentile in 32 bits: 1e-5 is its rounding, not ours.
    let near = |found: f64, expected: &Value| {
        let expected = expected.as_f64().unwrap();
        assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{found} against {expected}");
    };
    let reference: Value = serde_json::from_str(include_str!("reference/surface.json")).unwrap();
    let cases = reference["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 20);
    for case in cases {
        let of = |key: &str, n: usize| case[key].get(n).and_then(Value::as_f64).unwrap_or(1.0);
        let grid = volume_grid([0, 1, 2].map(|n| of("shape", n) as usize), [0, 1, 2].map(|n| of("spacing_mm", n)));
        let (reference, prediction) = (mask(&case["reference"], &grid), mask(&case["prediction"], &grid));
        let distances = &surface::distances(&reference, &prediction)[&1];
        near(distances.hausdorff_mm(100.0).unwrap(), &case["HD_mm"]);
        near(distances.hausdorff_mm(95.0).unwrap(), &case["HD95_mm"]);
        near(distances.assd_mm().unwrap(), &case["ASSD_mm"]);
        for (tolerance, nsd) in case["NSD"].as_object().unwrap() {
            near(distances.nsd(tolerance.parse().unwrap()).unwrap(), nsd);
        }
        let score = evaluate_labels("c", &reference, &prediction, &Options::default()).unwrap();
        near(score.classes[&1].counts.dice().unwrap(), &case["Dice"]);
        near(score.classes[&1].counts.iou().unwrap(), &case["IoU"]);
    }
}

#[test]
fn folders_of_volumes_score_as_their_labels_in_memory() {
    let (dir, mut rng) = (folders(), ChaCha8Rng::seed_from_u64(1));
    let grid = volume_grid([7, 6, 5], [1.0, 1.5, 3.0]);
    let mut cases = Vec::new();
    for n in 0..6 {
        let (reference, prediction) = (random(&mut rng, &grid, 3), random(&mut rng, &grid, 2));
        // Endings and appended words differ, as tools' do.
        write_volume(&dir.path().join(format!("ref/c{n}.nii")), &reference);
        let suffix = if n % 2 == 0 { "_seg" } else { "" };
        write_volume(&dir.path().join(format!("pred/c{n}{suffix}.nii.gz")), &prediction);
        cases.push(evaluate_labels(&format!("c{n}"), &reference, &prediction, &Options::default()).unwrap());
    }
    let report = score(&dir, &Options::default()).unwrap();
    let mut expected = Report::from_cases(cases, &Options::default()).unwrap();
    for (expected, found) in expected.metric_per_case.iter_mut().zip(&report.metric_per_case) {
        assert!(found.prediction_file.as_ref().unwrap().contains(&found.case));
        expected.reference_file.clone_from(&found.reference_file);
        expected.prediction_file.clone_from(&found.prediction_file);
    }
    assert_eq!(report, expected);
    assert_eq!(report.mean.keys().copied().collect::<Vec<_>>(), [1, 2, 3], "3 is in the references only");
    assert_eq!(report.mean[&3].dice, Some(0.0));
    let json = serde_json::to_string(&report.json().unwrap()).unwrap();
    assert!(!json.contains("NaN") && json.contains("\"HD95_mm\":null"));
}

#[test]
fn shuffled_pairs_give_the_same_bytes() {
    let (dir, mut rng) = (folders(), ChaCha8Rng::seed_from_u64(2));
    let grid = volume_grid([5, 5, 5], [1.0; 3]);
    for n in 0..5 {
        write_volume(&dir.path().join(format!("ref/c{n}.nii")), &random(&mut rng, &grid, 1));
        write_volume(&dir.path().join(format!("pred/c{n}.nii")), &random(&mut rng, &grid, 1));
    }
    let mut pairs =
        find(&dir.path().join("pred"), &dir.path().join("ref"), MissingPolicy::Refuse, Protocol::Plain).unwrap().pairs;
    let text = |report: Report| report.json().unwrap().to_string() + &report.table() + &report.csv().unwrap();
    let sorted = text(evaluate(&pairs, &Options::default()).unwrap());
    pairs.rotate_left(2);
    pairs.swap(0, 1);
    assert_eq!(text(evaluate(&pairs, &Options::default()).unwrap()), sorted);
}

#[test]
fn grids_that_differ_are_named_with_case_and_both_values() {
    let dir = folders();
    let labels = |spacing| {
        let grid = volume_grid([3, 3, 3], [1.0, 1.0, spacing]);
        Labels { voxels: vec![1; 27], grid }
    };
    write_volume(&dir.path().join("ref/c1.nii"), &labels(2.5));
    write_volume(&dir.path().join("pred/c1.nii"), &labels(5.0));
    let error = score(&dir, &Options::default()).unwrap_err();
    assert_eq!(error.kind.exit_code(), 3);
    assert!(["`c1`", "2.5", "5.0"].iter().all(|part| error.message.contains(part)), "{error}");
    let dir = folders();
    let picture = |width| Labels { grid: Grid::picture(width, 4), voxels: vec![1; 4 * width] };
    write_mask(&dir.path().join("ref/p.png"), &picture(6)).unwrap();
    write_mask(&dir.path().join("pred/p.png"), &picture(5)).unwrap();
    let error = score(&dir, &Options::default()).unwrap_err();
    assert!(error.message.contains("size 6×4 against 5×4 pixels"), "{error}");
}

#[test]
fn a_grey_picture_is_not_taken_for_a_hundred_classes() {
    let dir = folders();
    let grid = Grid::picture(16, 16);
    write_mask(&dir.path().join("ref/p.png"), &Labels { grid, voxels: vec![1; 256] }).unwrap();
    let ramp: Vec<f32> = (0..256).map(|v| v as f32 / 255.0).collect();
    write_probabilities(&dir.path().join("pred/p.png"), 16, 16, &ramp).unwrap();
    let error = score(&dir, &Options::default()).unwrap_err();
    assert!(error.hint.unwrap().contains("--protocol pranet"));
}

#[test]
fn pranet_sweeps_maps_and_refuses_masks() {
    let dir = folders();
    // The map of pixels 10, 110, 210 with the last one right; by hand in src/score/pranet.rs.
    let reference = Labels { grid: Grid::picture(3, 1), voxels: vec![0, 0, 1] };
    write_mask(&dir.path().join("ref/p.png"), &reference).unwrap();
    write_probabilities(&dir.path().join("pred/p.png"), 3, 1, &[10.0 / 255.0, 110.0 / 255.0, 210.0 / 255.0]).unwrap();
    let options = Options { protocol: Protocol::Pranet, ..Options::default() };
    let report = score(&dir, &options).unwrap();
    let expected = (0.5 + 127.0 * 2.0 / 3.0 + 128.0) / 256.0;
    assert!((report.mdice.unwrap() - expected).abs() < 1e-12);
    let pranet = report.pranet.unwrap();
    assert_eq!((pranet.max_dice, pranet.mdice_at_half), (1.0, Some(1.0)));
    assert_eq!(report.metric_per_case[0].metrics[&1].tp, 1);
    // A hard map among soft ones is a map; alone it is a mask.
    write_mask(&dir.path().join("ref/q.png"), &reference).unwrap();
    write_mask(&dir.path().join("pred/q.png"), &reference).unwrap();
    assert_eq!(score(&dir, &options).unwrap().n_cases, 2);
    std::fs::remove_file(dir.path().join("ref/p.png")).unwrap();
    std::fs::remove_file(dir.path().join("pred/p.png")).unwrap();
    let error = score(&dir, &options).unwrap_err();
    assert!(error.hint.unwrap().contains("predict --prob"));
    assert_eq!(error.kind.exit_code(), 3);
}

#[test]
fn missing_predictions_are_refused_or_told_loudly() {
    let (dir, grid) = (folders(), Grid::picture(4, 4));
    let square = Labels { grid, voxels: [[1; 8], [0; 8]].concat() };
    for name in ["ref/a.png", "ref/b.png", "pred/a.png", "pred/x.png"] {
        write_mask(&dir.path().join(name), &square).unwrap();
    }
    let error = score(&dir, &Options::default()).unwrap_err();
    assert!(error.kind.exit_code() == 3 && error.message.contains("`x.png`"), "{error}");
    let report = score_with(&dir, &Options::default(), MissingPolicy::LeaveOut).unwrap();
    assert_eq!((report.mdice, report.n_cases), (Some(1.0), 1));
    assert_eq!(
        (&report.missing.predictions[..], &report.missing.references[..]),
        (&["b".into()][..], &["x".into()][..])
    );
    assert_eq!(report.missing.mdice_if_empty, Some(0.5), "1 and 0");
    let table = report.table();
    assert!(table.contains("WARNING: 1 reference without a prediction left out (`b`)"), "{table}");
    assert!(table.contains("mDice 0.5000") && table.contains("1 prediction without a reference"), "{table}");
}

#[test]
fn labels_that_never_meet_are_told() {
    let grid = volume_grid([2, 2, 2], [1.0; 3]);
    let labels = |value| Labels { grid: grid.clone(), voxels: vec![value; 8] };
    let case = evaluate_labels("c", &labels(255), &labels(1), &Options::default()).unwrap();
    let table = Report::from_cases(vec![case], &Options::default()).unwrap().table();
    assert!(table.contains("the references hold [255], the predictions [1]"), "{table}");
}

#[test]
fn merged_labels_are_scored_as_they_were_trained() {
    let dir = folders();
    let grid = volume_grid([4, 1, 1], [1.0; 3]);
    let labels = |voxels: [u16; 4]| Labels { grid: grid.clone(), voxels: voxels.to_vec() };
    write_volume(&dir.path().join("ref/c.nii"), &labels([1, 2, 3, 0]));
    write_volume(&dir.path().join("pred/c.nii"), &labels([1, 1, 0, 0]));
    let merged = |l: &[u16]| Options { labels: LabelUse::Merged(l.to_vec()), ..Options::default() };
    // All labels: 2 of 3 found; 1 and 2: both; 2 alone: one found, one invented. Dice 4/5, 1, 2/3.
    for (labels, dice) in [(&[][..], 0.8), (&[1, 2], 1.0), (&[2], 2.0 / 3.0)] {
        let report = score(&dir, &merged(labels)).unwrap();
        assert_eq!(report.mean.keys().copied().collect::<Vec<_>>(), [1]);
        assert!((report.mdice.unwrap() - dice).abs() < 1e-12, "{labels:?}: {:?}", report.mdice);
    }
    // Predictions that know several labels are merged by the same rule.
    write_volume(&dir.path().join("pred/c.nii"), &labels([1, 2, 2, 0]));
    assert!((score(&dir, &merged(&[2])).unwrap().mdice.unwrap() - 2.0 / 3.0).abs() < 1e-12);
    assert_eq!(score(&dir, &merged(&[])).unwrap().mdice, Some(1.0));
    assert!(segft::job::score::warning(&score(&dir, &Options::default()).unwrap()).is_none());
    write_volume(&dir.path().join("pred/c.nii"), &labels([1, 1, 0, 0]));
    let warning = segft::job::score::warning(&score(&dir, &Options::default()).unwrap()).unwrap();
    assert!(warning.contains("--merge") && warning.contains("1, 2, 3"), "{warning}");
    assert!(segft::job::score::warning(&score(&dir, &merged(&[])).unwrap()).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn scores_are_symmetric_flip_invariant_and_bounded(
        seed in any::<u64>(), shape in [1..7usize, 1..7usize, 1..5usize], spacing in [0.3..4.0f64, 0.3..4.0, 0.3..4.0],
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let grid = volume_grid(shape, spacing);
        let (a, b) = (random(&mut rng, &grid, 2), random(&mut rng, &grid, 2));
        let flip = |labels: &Labels| Labels { grid: grid.clone(), voxels: labels.voxels.iter().rev().copied().collect() };
        let report = |a: &Labels, b: &Labels| {
            let options = Options { resamples: 1, ..Options::default() };
            Report::from_cases(vec![evaluate_labels("c", a, b, &options).unwrap()], &options).unwrap()
        };
        let (one, swapped, flipped, same) =
            (report(&a, &b), report(&b, &a), report(&flip(&a), &flip(&b)), report(&a, &a));
        for (class, means) in &one.mean {
            for other in [&swapped, &flipped] {
                prop_assert_eq!(means.dice, other.mean[class].dice);
                prop_assert_eq!(means.iou, other.mean[class].iou);
                for (x, y) in [(means.hd95_mm, other.mean[class].hd95_mm), (means.assd_mm, other.mean[class].assd_mm)] {
                    prop_assert!(x == y || (x.unwrap() - y.unwrap()).abs() < 1e-9);
                }
            }
            prop_assert!(means.dice.is_none_or(|d| (0.0..=1.0).contains(&d)));
            prop_assert_eq!(means.sensitivity, swapped.mean[class].precision);
            // A report of empty masks still names class 1.
            let hausdorff = surface::distances(&a, &b).get(class).and_then(|d| d.hausdorff_mm(100.0));
            prop_assert!(means.hd95_mm <= hausdorff);
        }
        prop_assert!(same.mdice.is_none_or(|dice| dice == 1.0));
        prop_assert!(same.mean.values().all(|means| means.hd95_mm.is_none_or(|d| d == 0.0)));
    }
}

#[test]
#[ignore = "a measurement: cargo test --release --test score -- --ignored --nocapture"]
fn speed_of_two_hundred_hippocampi() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let grid = volume_grid([35, 51, 36], [1.0; 3]);
    // Two ellipsoids side by side, with a little noise in where they lie.
    let mut blobs = || {
        let shift: [f64; 3] = std::array::from_fn(|_| rng.random_range(-2.0..2.0));
        let voxels = (0..grid.len()).map(|v| {
            let p = [v % 35, v / 35 % 51, v / (35 * 51)].map(|n| n as f64);
            let inside =
                |centre: [f64; 3]| (0..3).map(|n| ((p[n] - centre[n] - shift[n]) / 9.0).powi(2)).sum::<f64>() < 1.0;
            if inside([17.0, 15.0, 18.0]) { 1 } else { u16::from(inside([17.0, 33.0, 18.0])) * 2 }
        });
        Labels { grid: grid.clone(), voxels: voxels.collect() }
    };
    let pairs: Vec<(Labels, Labels)> = (0..200).map(|_| (blobs(), blobs())).collect();
    for surfaces in [Surfaces::Skipped, Surfaces::Measured] {
        let options = Options { surfaces, ..Options::default() };
        let start = std::time::Instant::now();
        let score =
            |(n, (a, b)): (usize, &(Labels, Labels))| evaluate_labels(&format!("{n:03}"), a, b, &options).unwrap();
        let cases: Vec<_> = pairs.iter().enumerate().map(score).collect();
        let scored = start.elapsed();
        let report = Report::from_cases(cases, &options).unwrap();
        eprintln!(
            "{surfaces:?}: cases {scored:?} on one thread, report {:?}, mDice {:?}",
            start.elapsed() - scored,
            report.mdice
        );
    }
}
