//! What the phantoms promise: the same bytes from the same seed, exact masks of known sizes, groups, and a task that
//! neither a threshold nor a map of likely places solves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]
use rayon::prelude::*;
use segft::image::{Axis, Grid, Labels, Picture, SliceFrame, Volume};
use segft::io::{nifti, picture};
use segft::phantom::{self, DEFAULT_PICTURES, DEFAULT_VOLUMES, Kind, polyp, volume};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The default set, made once for all tests.
fn pictures() -> &'static [(Picture, Labels)] {
    static SET: OnceLock<Vec<(Picture, Labels)>> = OnceLock::new();
    SET.get_or_init(|| (0..DEFAULT_PICTURES).into_par_iter().map(|index| polyp::generate(0, index)).collect())
}

/// The default volumes, likewise.
fn volumes() -> &'static [(Volume, Labels)] {
    static SET: OnceLock<Vec<(Volume, Labels)>> = OnceLock::new();
    SET.get_or_init(|| (0..DEFAULT_VOLUMES).into_par_iter().map(|index| volume::generate(0, index)).collect())
}

/// A set in a cache is kept for its version: what changes these must change that.
#[test]
fn the_version_goes_with_the_generator() {
    let mean = |values: &mut dyn Iterator<Item = f64>, n: usize| values.sum::<f64>() / n as f64;
    let (picture, polyp) = &pictures()[0];
    let (volume, organs) = &volumes()[0];
    let found = [
        mean(&mut picture.rgb.iter().map(|v| f64::from(*v)), picture.rgb.len()),
        area(polyp),
        mean(&mut volume.voxels.iter().map(|v| f64::from(*v)), volume.voxels.len()),
        area(organs),
    ];
    assert_eq!(phantom::GENERATOR_VERSION, 2);
    // Not to the last bit: a library's sine may differ there from machine to machine.
    let wanted = [105.0723, 0.129934, -507.599, 0.0423197];
    let near = found.iter().zip(wanted).all(|(found, wanted)| (found - wanted).abs() <= 1e-4 * f64::abs(wanted));
    assert!(near, "{found:?} {wanted:?}");
}

fn area(mask: &Labels) -> f64 {
    mask.voxels.iter().filter(|v| **v > 0).count() as f64 / mask.voxels.len() as f64
}

/// Of two sets, given as pairs of (in one, in the other).
fn dice(pairs: impl Iterator<Item = (bool, bool)>) -> f64 {
    let (mut both, mut sum) = (0u64, 0u64);
    for (a, b) in pairs {
        both += u64::from(a && b);
        sum += u64::from(a) + u64::from(b);
    }
    2.0 * both as f64 / sum as f64
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(
                files(&path).into_iter().map(|(p, bytes)| (Path::new(path.file_name().unwrap()).join(p), bytes)),
            );
        } else {
            found.insert(path.file_name().unwrap().into(), std::fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn a_case_depends_on_seed_and_index_alone() {
    let (first, mask) = polyp::generate(5, 17);
    assert_eq!((first.clone(), mask), polyp::generate(5, 17));
    assert_ne!(first.rgb, polyp::generate(5, 16).0.rgb);
    assert_ne!(first.rgb, polyp::generate(6, 17).0.rgb);
}

#[test]
fn a_set_is_the_same_bytes_at_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, count) in [(Kind::Pictures, 8), (Kind::Volumes, 3)] {
        let made = [1, 3].map(|threads| {
            let target = folder.path().join(format!("{kind:?}-{threads}"));
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| phantom::write_set(kind, &target, 3, count)).unwrap();
            files(&target)
        });
        assert_eq!(made[0].len() as u64, 2 * count + 1);
        assert!(made[0] == made[1]);
    }
}

#[test]
fn masks_are_as_large_as_promised() {
    let mut areas: Vec<f64> = pictures().iter().map(|(_, mask)| area(mask)).collect();
    areas.sort_by(f64::total_cmp);
    let [smallest, largest] = polyp::AREA.map(f64::from);
    assert!(areas[0] >= smallest && *areas.last().unwrap() <= largest, "{} to {}", areas[0], areas.last().unwrap());
    let quantile = |q: f64| areas[(q * (areas.len() - 1) as f64) as usize];
    assert!((0.07..0.15).contains(&quantile(0.5)), "median {}", quantile(0.5));
    assert!(quantile(0.1) < 0.04 && quantile(0.9) > 0.25, "{} and {}", quantile(0.1), quantile(0.9));
    for seed in 1..20 {
        let areas: Vec<f64> = (0..6).into_par_iter().map(|n| area(&polyp::generate(seed, 31 * n).1)).collect();
        assert!(areas.iter().all(|a| (smallest..=largest).contains(a)), "seed {seed}: {areas:?}");
    }
}

#[test]
fn pictures_and_masks_have_the_same_size_and_two_values() {
    for (picture, mask) in pictures() {
        assert_eq!(mask.grid, Grid::picture(picture.width, picture.height));
        assert_eq!(picture.rgb.len(), 3 * picture.width * picture.height);
        assert!((256..=320).contains(&picture.width) && (192..=256).contains(&picture.height));
        assert!(mask.voxels.iter().all(|v| *v <= 1));
    }
}

#[test]
fn groups_are_sequences_of_one_to_three_pictures_of_one_place() {
    let mut groups: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut names = BTreeSet::new();
    for index in 0..DEFAULT_PICTURES {
        let (id, group) = phantom::name(Kind::Pictures, index);
        assert!(id.starts_with(&group) && names.insert(id));
        groups.entry(group).or_default().push(index);
    }
    assert_eq!(groups.len(), 160);
    for members in groups.values() {
        assert!((1..=3).contains(&members.len()));
        let sizes: BTreeSet<_> =
            members.iter().map(|n| &pictures()[*n as usize].0).map(|p| (p.width, p.height)).collect();
        assert_eq!(sizes.len(), 1);
        // The same polyps from nearly the same place: about as large, but no copies.
        let (first, first_mask) = &pictures()[members[0] as usize];
        for (picture, mask) in members[1..].iter().map(|n| &pictures()[*n as usize]) {
            assert_ne!(first.rgb, picture.rgb);
            assert!((0.4..2.5).contains(&(area(mask) / area(first_mask))), "{members:?}");
        }
    }
}

/// Otsu's threshold on the grey values of one picture: the one that separates two classes best.
fn otsu(greys: &[u8]) -> u8 {
    let mut histogram = [0f64; 256];
    greys.iter().for_each(|g| histogram[usize::from(*g)] += 1.0);
    let total: f64 = histogram.iter().zip(0..).map(|(n, grey)| n * f64::from(grey)).sum();
    let (mut below, mut sum, mut best) = (0.0, 0.0, (0.0, 0));
    for (grey, n) in histogram.iter().enumerate().take(255) {
        below += n;
        sum += n * grey as f64;
        let above = greys.len() as f64 - below;
        if below > 0.0 && above > 0.0 {
            let distance = sum / below - (total - sum) / above;
            let between = below * above * distance * distance;
            if between > best.0 {
                best = (between, grey as u8);
            }
        }
    }
    best.1
}

#[test]
fn a_threshold_does_not_find_the_polyps() {
    let scores: Vec<f64> = pictures()
        .par_iter()
        .map(|(picture, mask)| {
            let grey =
                |p: &[u8; 3]| (0.299 * f32::from(p[0]) + 0.587 * f32::from(p[1]) + 0.114 * f32::from(p[2])) as u8;
            let greys: Vec<u8> = picture.rgb.as_chunks().0.iter().map(grey).collect();
            let threshold = otsu(&greys);
            let of =
                |bright: bool| dice(greys.iter().zip(&mask.voxels).map(|(g, m)| ((*g > threshold) == bright, *m > 0)));
            of(true).max(of(false))
        })
        .collect();
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    println!("Otsu, the better polarity for each picture: mDice {mean:.3}");
    assert!(mean < 0.5, "{mean}");
}

/// What the mean of the training masks scores at the threshold that suits these best: on them, and on the others.
fn mean_mask(train: &[Vec<bool>], test: &[Vec<bool>]) -> [f64; 2] {
    let mean: Vec<usize> = (0..train[0].len()).map(|n| train.iter().filter(|mask| mask[n]).count()).collect();
    let score = |masks: &[Vec<bool>], least: usize| {
        masks.iter().map(|mask| dice(mean.iter().zip(mask).map(|(m, t)| (*m >= least, *t)))).sum::<f64>()
            / masks.len() as f64
    };
    let best = (1..=*mean.iter().max().unwrap()).max_by(|a, b| score(train, *a).total_cmp(&score(train, *b))).unwrap();
    [score(train, best), score(test, best)]
}

#[test]
fn the_mean_mask_does_not_find_the_polyps() {
    // Nearest neighbours on a common size are fair enough: the mean mask is smooth.
    const SIDE: usize = 128;
    let squares: Vec<Vec<bool>> = pictures()
        .iter()
        .map(|(picture, mask)| {
            let at = |n: usize| (n / SIDE * picture.height / SIDE) * picture.width + n % SIDE * picture.width / SIDE;
            (0..SIDE * SIDE).map(|n| mask.voxels[at(n)] > 0).collect()
        })
        .collect();
    // Groups are whole on either side: the default pattern of sequences begins anew every twelve pictures.
    let (train, test) = squares.split_at(squares.len() / 12 * 12 * 17 / 20);
    let [seen, unseen] = mean_mask(train, test);
    println!("mean training mask at its best threshold: mDice {seen:.3} on its own cases, {unseen:.3} on the others");
    assert!(seen < 0.5 && unseen < 0.5, "{seen} {unseen}");
}

/// Organs together, as a training sees them, and each by itself.
const ORGANS: [&[u16]; 4] = [&[1, 2, 3], &[1], &[2], &[3]];

#[test]
fn a_threshold_does_not_find_the_organs() {
    for organs in ORGANS {
        let scores = volumes().par_iter().map(|(volume, labels)| {
            let [low, high] =
                volume.voxels.iter().fold([f32::MAX, f32::MIN], |[low, high], v| [low.min(*v), high.max(*v)]);
            let greys: Vec<u8> = volume.voxels.iter().map(|v| (255.0 * (v - low) / (high - low)) as u8).collect();
            let threshold = otsu(&greys);
            let of = |bright: bool| {
                dice(greys.iter().zip(&labels.voxels).map(|(g, l)| ((*g > threshold) == bright, organs.contains(l))))
            };
            of(true).max(of(false))
        });
        let mean = scores.sum::<f64>() / volumes().len() as f64;
        println!("Otsu, the better polarity for each volume, organs {organs:?}: mDice {mean:.3}");
        assert!(mean < 0.5, "{organs:?}: {mean}");
    }
}

#[test]
fn the_mean_mask_does_not_find_the_organs() {
    // As the patient lies, however the file is stored: nearest neighbours on a common size.
    const SIDE: usize = 48;
    for organs in ORGANS {
        let cubes: Vec<Vec<bool>> = volumes()
            .par_iter()
            .map(|(volume, labels)| {
                let frame = SliceFrame::new(&volume.grid, Axis::Axial);
                let at = |n: usize| {
                    let place = |n: usize, of: usize| n % SIDE * of / SIDE;
                    let (x, y) = (place(n, frame.width()), place(n / SIDE, frame.height()));
                    frame.index(place(n / SIDE / SIDE, frame.count()), x, y)
                };
                (0..SIDE.pow(3)).map(|n| organs.contains(&labels.voxels[at(n)])).collect()
            })
            .collect();
        let (train, test) = cubes.split_at(cubes.len() * 17 / 20);
        let [seen, unseen] = mean_mask(train, test);
        println!("mean training mask, organs {organs:?}: mDice {seen:.3} on its own cases, {unseen:.3} on the others");
        assert!(seen < 0.5 && unseen < 0.5, "{organs:?}: {seen} {unseen}");
    }
}

#[test]
fn volumes_hold_three_organs_on_the_sides_where_they_belong() {
    let mut orientations = BTreeSet::new();
    for index in 0..24 {
        let (scan, labels) = volume::generate(1, index);
        assert_eq!((scan.clone(), labels.clone()), volume::generate(1, index));
        assert_eq!(scan.grid, labels.grid);
        assert_eq!(scan.voxels.len(), scan.grid.len());
        assert!(scan.voxels.iter().all(|v| v.fract() == 0.0 && v.abs() < 32000.0));
        orientations.insert(scan.grid.orientation());
        let middle = |class: u16| {
            let [ni, nj, _] = scan.grid.shape;
            let members: Vec<usize> = (0..scan.grid.len()).filter(|n| labels.voxels[*n] == class).collect();
            assert!(members.len() > 50, "volume {index} has {} voxels of class {class}", members.len());
            let mm = members.iter().map(|n| scan.grid.to_mm([n % ni, n / ni % nj, n / (ni * nj)].map(|v| v as f64)));
            let sum = mm.fold([0.0; 3], |sum, p| std::array::from_fn(|n| sum[n] + p[n]));
            sum.map(|s| s / members.len() as f64)
        };
        let [liver, kidneys, spleen] = volume::CLASSES.map(|(class, _)| middle(class));
        // RAS+: larger x is farther to the patient's right, larger y farther to the front.
        assert!(liver[0] > spleen[0] + 80.0 && kidneys[1] < liver[1], "volume {index}");
        assert!(labels.voxels.iter().all(|v| *v <= 3));
    }
    assert!(orientations.len() >= 4, "{orientations:?}");
}

#[test]
fn affines_are_invertible_and_spacings_anisotropic() {
    for index in 0..24 {
        let grid = volume::generate(2, index).0.grid;
        let voxel = [3.0, 5.0, 7.0];
        let back = grid.from_mm(grid.to_mm(voxel)).unwrap();
        assert!(voxel.iter().zip(back).all(|(a, b)| (a - b).abs() < 1e-4), "{back:?}");
        for n in 0..3 {
            let step = (0..3).map(|row| grid.affine[row][n].powi(2)).sum::<f64>().sqrt();
            assert!((step - grid.spacing_mm[n]).abs() < 1e-4);
        }
        let widest = grid.spacing_mm.iter().fold(0.0, |a: f64, b| a.max(*b));
        assert!(grid.spacing_mm.iter().any(|s| widest > 1.1 * s));
    }
}

#[test]
fn organs_lie_inside_the_body() {
    for index in 0..24 {
        let (scan, labels) = volume::generate(3, index);
        let shape = scan.grid.shape;
        let is_ct = scan.voxels.iter().any(|v| *v < -900.0);
        let mut organ: Vec<f32> =
            scan.voxels.iter().zip(&labels.voxels).filter(|(_, l)| **l > 0).map(|(v, _)| *v).collect();
        organ.sort_by(f32::total_cmp);
        let low = organ[organ.len() / 20];
        assert!(!is_ct || low > -200.0, "volume {index}: {low}");
        let is_air = |n: usize| scan.voxels[n] < if is_ct { -500.0 } else { 0.5 * low };
        // Everything that air outside reaches from a corner, step by step.
        let mut outside = vec![false; scan.grid.len()];
        // From every corner: a patient who lies off the middle may part what is around.
        let [i, j, k] = shape.map(|length| [0, length - 1]);
        let corners = i.into_iter().flat_map(|i| j.map(|j| k.map(|k| i + shape[0] * (j + shape[1] * k))));
        let mut open: Vec<usize> = corners.flatten().collect();
        while let Some(n) = open.pop() {
            if outside[n] || !is_air(n) {
                continue;
            }
            outside[n] = true;
            let mut stride = 1;
            for length in shape {
                let place = n / stride % length;
                open.extend((place > 0).then(|| n - stride));
                open.extend((place + 1 < length).then(|| n + stride));
                stride *= length;
            }
        }
        let share = outside.iter().filter(|o| **o).count() as f64 / outside.len() as f64;
        assert!((0.08..0.8).contains(&share), "volume {index}: {share} of it is outside");
        assert!((0..outside.len()).all(|n| labels.voxels[n] == 0 || !outside[n]), "volume {index}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("deep/b"));
    phantom::write_set(Kind::Pictures, &a, 4, 3).unwrap();
    phantom::write_set(Kind::Volumes, &b, 4, 2).unwrap();
    let (id, _) = phantom::name(Kind::Pictures, 2);
    let (pixels, mask) = polyp::generate(4, 2);
    assert_eq!(picture::read_picture(&a.join(format!("images/{id}.png"))).unwrap(), pixels);
    assert_eq!(picture::read_mask(&a.join(format!("masks/{id}.png"))).unwrap(), mask);
    let table = std::fs::read_to_string(a.join(phantom::TABLE)).unwrap();
    assert_eq!(table.lines().next(), Some("image,mask,group"));
    assert_eq!(table.lines().nth(3), Some("images/p0001_1.png,masks/p0001_1.png,p0001"));

    let (scan, labels) = volume::generate(4, 1);
    let path = b.join("images/v0001.nii.gz");
    let (read, _) = nifti::read_volume(&path, 0).unwrap();
    assert_eq!(read.voxels, scan.voxels);
    assert_eq!(read.grid.difference(&scan.grid), None);
    assert_eq!(nifti::read_header(&path).unwrap().dtype, nifti::Dtype::I16);
    assert_eq!(nifti::read_labels(&b.join("labels/v0001.nii.gz")).unwrap().voxels, labels.voxels);
}

#[test]
fn a_set_never_replaces_anything_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("set");
    std::fs::create_dir(&target).unwrap();
    phantom::write_set(Kind::Pictures, &target, 0, 1).unwrap();
    let before = files(&target);
    let error = phantom::write_set(Kind::Pictures, &target, 1, 1).unwrap_err();
    assert_eq!(error.kind.exit_code(), 2);
    assert_eq!(files(&target), before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
