//! NIfTI from the outside: the format zoo against nibabel, round trips that must not move a voxel, and hostile files.
//!
//! The zoo is read from `SEGFT_SHARED` (default `../shared` beside the repository), folder `data/nifti`; without it
//! that one test says so and passes. Everything else is made here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use flate2::{Compression, write::GzEncoder};
use rand::{RngExt, SeedableRng};
use segft::image::{Axis, Grid, SliceFrame, Window, cut};
use segft::info::describe;
use segft::io::nifti::{Template, read_header, read_labels, read_volume, write_labels, write_values};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A NIfTI-1 file in the making: a little-endian single file with sform code 0, spacing 1.
#[derive(Clone)]
struct Made(Vec<u8>);

impl Made {
    fn new(dims: &[i16], datatype: i16, data: &[u8]) -> Made {
        let mut made = Made(vec![0; 352]);
        made.put(0, &348i32.to_le_bytes()).shorts(40, &[dims.len() as i16, 1, 1, 1, 1, 1, 1, 1]).shorts(42, dims);
        made.shorts(70, &[datatype]).floats(76, &[1.0; 8]).floats(108, &[352.0]).put(344, b"n+1\0");
        made.0.extend_from_slice(data);
        made
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Made {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn shorts(&mut self, at: usize, values: &[i16]) -> &mut Made {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.put(at, &bytes)
    }

    fn floats(&mut self, at: usize, values: &[f32]) -> &mut Made {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.put(at, &bytes)
    }

    /// The same header in the other byte order; the voxels are left alone.
    fn big_endian(&self) -> Made {
        let mut big = self.clone();
        let swap = |bytes: &mut [u8], from: usize, to: usize, size: usize| {
            bytes[from..to].chunks_exact_mut(size).for_each(<[u8]>::reverse);
        };
        for (from, to, size) in
            [(0, 4, 4), (32, 36, 4), (36, 38, 2), (40, 56, 2), (56, 68, 4), (68, 76, 2), (76, 120, 4), (120, 122, 2)]
        {
            swap(&mut big.0, from, to, size);
        }
        for (from, to, size) in [(124, 148, 4), (252, 256, 2), (256, 328, 4)] {
            swap(&mut big.0, from, to, size);
        }
        big
    }

    fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let bytes = if name.ends_with(".gz") { gzip(&self.0) } else { self.0.clone() };
        written(folder, name, &bytes)
    }
}

fn written(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Exit code and message of what must fail.
fn refusal<T>(result: segft::error::Result<T>) -> (u8, String) {
    let error = result.err().unwrap();
    (error.kind.exit_code(), error.to_string())
}

#[test]
fn the_zoo_agrees_with_nibabel() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared = std::env::var_os("SEGFT_SHARED").map_or_else(|| repository.join("../shared"), PathBuf::from);
    let zoo = shared.join("data/nifti");
    if !zoo.is_dir() {
        eprintln!("SKIPPED: no files in {} (SEGFT_SHARED names their folder)", zoo.display());
        return;
    }
    let reference: Value =
        serde_json::from_slice(&std::fs::read(repository.join("tests/reference/volumes.json")).unwrap()).unwrap();
    // A plain header with a compressed image: nibabel does not find it, we do.
    let beyond_nibabel = ["nifti-rs/resources/minimal2.hdr"];
    let (mut n_read, mut n_refused) = (0, 0);
    for (name, expected) in reference.as_object().unwrap() {
        let path = zoo.join(name);
        let found = describe(&path);
        if expected == "refused" {
            assert_eq!(found.is_err(), !beyond_nibabel.contains(&name.as_str()), "{name}: {found:?}");
            n_refused += 1;
            continue;
        }
        let found = found.unwrap_or_else(|e| panic!("{name}: {e}"));
        for key in ["shape", "spacing_mm", "affine", "orientation", "dtype", "n_channels", "n_nonfinite", "labels"] {
            assert!(close(&found[key], &expected[key], 1e-12), "{name} {key}: {} != {}", found[key], expected[key]);
        }
        for key in ["min", "max", "mean"] {
            assert!(close(&found[key], &expected[key], 1e-9), "{name} {key}: {} != {}", found[key], expected[key]);
        }
        let (volume, _) = read_volume(&path, 0).unwrap();
        for voxel in expected["voxels"].as_array().unwrap() {
            let value = voxel[1].as_f64().unwrap();
            let place = voxel[0].as_u64().unwrap() as usize;
            assert!((f64::from(volume.voxels[place]) - value).abs() <= 1e-6 * value.abs(), "{name} {voxel}");
        }
        n_read += 1;
    }
    eprintln!("{n_read} files agree, {n_refused} are refused as expected");
    assert!(n_read > 80);
}

/// Equal, numbers to a relative tolerance.
fn close(a: &Value, b: &Value, tolerance: f64) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(a, b, tolerance))
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1.0)
        }
        _ => a == b,
    }
}

#[test]
fn every_datatype_is_read_in_both_byte_orders() {
    let folder = folder();
    // 1, 2 and the largest value that every reader can hold; as f32 they are exact.
    macro_rules! check {
        ($code:expr, $kind:ty, $name:expr, $top:expr) => {
            let values: [$kind; 3] = [1 as $kind, 2 as $kind, $top];
            let expected = values.map(|v| v as f32);
            let little: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let made = Made::new(&[3, 1, 1], $code, &little);
            let big: Vec<u8> = values.iter().flat_map(|v| v.to_be_bytes()).collect();
            let swapped = Made::new(&[3, 1, 1], $code, &big).big_endian();
            for (made, name) in [(&made, "v.nii"), (&swapped, "b.nii"), (&made, "v.nii.gz"), (&swapped, "b.nii.gz")] {
                let path = made.write(folder.path(), name);
                assert_eq!(read_volume(&path, 0).unwrap().0.voxels, expected, "{} {name}", $name);
                assert_eq!(read_header(&path).unwrap().dtype.name(), $name);
            }
        };
    }
    check!(2, u8, "uint8", 255);
    check!(256, i8, "int8", -128);
    check!(4, i16, "int16", -32768);
    check!(512, u16, "uint16", 65535);
    check!(8, i32, "int32", -(1 << 30));
    check!(768, u32, "uint32", 1 << 31);
    check!(1024, i64, "int64", -(1 << 62));
    check!(1280, u64, "uint64", 1 << 63);
    check!(16, f32, "float32", -0.1);
    check!(64, f64, "float64", 0.25);
    for (code, name) in [(1, "binary"), (32, "complex64"), (128, "RGB24"), (1536, "float128"), (1792, "complex128")] {
        let path = Made::new(&[1, 1, 1], code, &[0; 32]).write(folder.path(), "v.nii");
        let (exit, message) = refusal(read_volume(&path, 0));
        assert!(exit == 3 && message.contains(name), "{message}");
    }
}

#[test]
fn slope_and_intercept_apply_unless_the_slope_is_zero_or_not_finite() {
    let folder = folder();
    let read = |slope: f32, inter: f32| {
        let path = Made::new(&[2], 2, &[0, 10]).floats(112, &[slope, inter]).write(folder.path(), "v.nii");
        read_volume(&path, 0).map(|(volume, _)| volume.voxels)
    };
    assert_eq!(read(2.0, -1.0).unwrap(), [-1.0, 19.0]);
    assert_eq!(read(1.0, -1024.0).unwrap(), [-1024.0, -1014.0]);
    for slope in [0.0, f32::NAN, f32::INFINITY] {
        assert_eq!(read(slope, 5.0).unwrap(), [0.0, 10.0]);
    }
    assert!(read(2.0, f32::NAN).is_err());
}

#[test]
fn axes_are_padded_channels_picked_and_more_refused() {
    let folder = folder();
    let write = |dims: &[i16], n: u8| Made::new(dims, 2, &(0..n).collect::<Vec<u8>>()).write(folder.path(), "v.nii");
    assert_eq!(read_header(&write(&[3], 3)).unwrap().grid.shape, [3, 1, 1]);
    assert_eq!(read_header(&write(&[3, 2], 6)).unwrap().grid.shape, [3, 2, 1]);
    let path = write(&[2, 1, 1, 3], 6);
    assert_eq!(read_header(&path).unwrap().n_channels, 3);
    assert_eq!(read_volume(&path, 2).unwrap().0.voxels, [4.0, 5.0]);
    let (exit, message) = refusal(read_volume(&path, 3));
    assert!(exit == 2 && message.contains("has 3"), "{message}");
    assert!(refusal(read_labels(&path)).1.contains("3 channels"));
    assert_eq!(read_volume(&write(&[2, 1, 1, 1, 1], 2), 0).unwrap().0.voxels, [0.0, 1.0]);
    for dims in [&[2, 1, 1, 1, 3][..], &[2, 0, 1], &[-2, 1, 1]] {
        assert_eq!(refusal(read_volume(&write(dims, 6), 0)).0, 3, "{dims:?}");
    }
}

#[test]
fn pairs_are_found_from_either_side() {
    let folder = folder();
    let mut made = Made::new(&[2, 2, 1], 2, &[]);
    made.put(344, b"ni1\0").floats(108, &[0.0]);
    for (header, image) in [("a.hdr", "a.img"), ("b.hdr.gz", "b.img.gz"), ("c.hdr", "c.img.gz"), ("ä.hdr", "ä.img")] {
        let header = made.write(folder.path(), header);
        let bytes = if image.ends_with(".gz") { gzip(&[1, 2, 3, 4]) } else { vec![1, 2, 3, 4] };
        let image = written(folder.path(), image, &bytes);
        assert_eq!(read_volume(&header, 0).unwrap().0.voxels, [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(read_volume(&image, 0).unwrap().0.voxels, [1.0, 2.0, 3.0, 4.0]);
        std::fs::remove_file(&image).unwrap();
        assert!(refusal(read_volume(&header, 0)).1.contains(".img` is not beside"), "{header:?}");
        assert_eq!(refusal(read_volume(&image, 0)).0, 2);
    }
    let lone = made.write(folder.path(), "lone.nii");
    assert!(refusal(read_volume(&lone, 0)).1.contains(".img"));
    made.put(344, &[0; 4]);
    let analyze = made.write(folder.path(), "a.hdr");
    written(folder.path(), "a.img", &[1, 2, 3, 4]);
    assert!(refusal(read_volume(&analyze, 0)).1.contains("ANALYZE"));
}

#[test]
fn claims_are_checked_against_the_file() {
    let folder = folder();
    // 2^15 cubed float64 voxels: 256 TiB.
    let huge = Made::new(&[32767, 32767, 32767], 64, &[0; 100]);
    for name in ["huge.nii", "huge.nii.gz"] {
        let path = huge.write(folder.path(), name);
        for (exit, message) in [
            refusal(read_volume(&path, 0)),
            refusal(read_header(&path)),
            refusal(read_labels(&path)),
            refusal(describe(&path)),
        ] {
            assert!(exit == 3 && message.contains("claims 2814"), "{message}");
        }
    }
    // All seven axes at most: the product overflows 64 bits.
    let path = Made::new(&[32767; 7], 64, &[]).write(folder.path(), "most.nii");
    assert_eq!(refusal(read_volume(&path, 0)).0, 3);
    // One voxel short, plain and compressed; and a bomb, which is read no further than declared.
    let data = [7; 1000];
    let mut short = Made::new(&[10, 10, 10], 2, &data);
    short.0.pop();
    for name in ["short.nii", "short.nii.gz"] {
        assert_eq!(refusal(read_volume(&short.write(folder.path(), name), 0)).0, 3, "{name}");
    }
    let mut bomb = Made::new(&[10, 10, 10], 2, &data);
    bomb.0.resize(64 << 20, 0);
    assert_eq!(read_volume(&bomb.write(folder.path(), "bomb.nii.gz"), 0).unwrap().0.voxels, [7.0; 1000]);
    // A damaged checksum at the end of the gzip stream is noticed.
    let mut damaged = gzip(&Made::new(&[10, 10, 10], 2, &data).0);
    let crc = damaged.len() - 8;
    damaged[crc] ^= 1;
    let path = written(folder.path(), "damaged.nii.gz", &damaged);
    assert!(refusal(read_volume(&path, 0)).1.contains("cannot read the voxels"));
    // The name is not believed.
    let path = written(folder.path(), "plain.nii.gz", &Made::new(&[10, 10, 10], 2, &data).0);
    assert_eq!(read_volume(&path, 0).unwrap().0.voxels.len(), 1000);
    assert_eq!(refusal(read_volume(&folder.path().join("none.nii"), 0)).0, 2);
    assert_eq!(refusal(read_volume(folder.path(), 0)).0, 3);
}

#[test]
fn labels_are_whole_numbers_or_an_error_that_names_them() {
    let folder = folder();
    let floats = |values: &[f32]| {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Made::new(&[values.len() as i16], 16, &data).write(folder.path(), "labels.nii")
    };
    assert_eq!(read_labels(&floats(&[0.0, 1.0, 65535.0, -0.0])).unwrap().voxels, [0, 1, 65535, 0]);
    for (values, named) in [
        ([0.0, 0.5, 1.0, 0.25], "2 of 4 voxels are no label, the first is `0.5`"),
        ([0.0, -1.0, 1.0, 1.0], "1 of 4 voxels are no label, the first is `-1`"),
        ([0.0, 1.0, 65536.0, 1.0], "the first is `65536`"),
        ([0.0, 1.0, f32::NAN, 1.0], "the first is `NaN`"),
    ] {
        let (exit, message) = refusal(read_labels(&floats(&values)));
        assert!(exit == 3 && message.contains(named) && message.contains("labels.nii"), "{message}");
    }
    // 0 and 255 stored with slope 1/255: the rounding of the slope is forgiven.
    let path = Made::new(&[2], 2, &[0, 255]).floats(112, &[1.0 / 255.0, 0.0]).write(folder.path(), "labels.nii");
    assert_eq!(read_labels(&path).unwrap().voxels, [0, 1]);
}

#[test]
fn voxels_that_are_not_finite_are_counted_and_shown_black() {
    let folder = folder();
    let data: Vec<u8> = [f32::NAN, 5.0, 7.0, f32::NEG_INFINITY].iter().flat_map(|v| v.to_le_bytes()).collect();
    let path = Made::new(&[4, 1, 1], 16, &data).write(folder.path(), "v.nii");
    let facts = describe(&path).unwrap();
    assert_eq!((&facts["min"], &facts["mean"], &facts["n_nonfinite"]), (&5.into(), &6.into(), &2.into()));
    let (volume, _) = read_volume(&path, 0).unwrap();
    assert!(volume.voxels[0].is_nan());
    let frame = SliceFrame::new(&volume.grid, Axis::Axial);
    let picture = cut(&volume, &frame, 0, &Window::Range(0.0, 10.0).resolve(&volume), 0);
    // No transform: i runs to the left, and so does picture x. 5 of 10 is grey 128, 7 of 10 is 179.
    assert_eq!(picture.rgb.chunks_exact(3).map(|p| p[0]).collect::<Vec<u8>>(), [128, 128, 179, 128]);
}

/// A signed permutation of the axes with spacings, oblique by `tilt` radians about the first world axis.
fn affine(order: [usize; 3], signs: usize, spacing: [f64; 3], tilt: f64) -> [[f64; 4]; 3] {
    let mut rows = [[0.0, 0.0, 0.0, -31.25], [0.0, 0.0, 0.0, 12.5], [0.0, 0.0, 0.0, 400.125]];
    for axis in 0..3 {
        let sign = if signs >> axis & 1 == 1 { -1.0 } else { 1.0 };
        let mut unit = [0.0; 3];
        unit[order[axis]] = sign;
        let (sin, cos) = tilt.sin_cos();
        let turned = [unit[0], cos * unit[1] - sin * unit[2], sin * unit[1] + cos * unit[2]];
        for world in 0..3 {
            rows[world][axis] = turned[world] * spacing[axis];
        }
    }
    rows
}

/// The sign of the third axis and the quaternion (b, c, d) of a rotation with spacings.
fn quaternion(rows: &[[f64; 4]; 3], spacing: [f64; 3]) -> (f32, [f32; 3]) {
    let mut r = [[0.0; 3]; 3];
    for (row, target) in rows.iter().zip(&mut r) {
        *target = std::array::from_fn(|n| row[n] / spacing[n]);
    }
    let minor = |a: usize, b: usize| r[1][a] * r[2][b] - r[1][b] * r[2][a];
    let determinant: f64 = r[0][0] * minor(1, 2) - r[0][1] * minor(0, 2) + r[0][2] * minor(0, 1);
    r.iter_mut().for_each(|row| row[2] *= determinant.signum());
    // Of a, b, c, d the one with the largest square is safe to divide by.
    let squares = [
        1.0 + r[0][0] + r[1][1] + r[2][2],
        1.0 + r[0][0] - r[1][1] - r[2][2],
        1.0 - r[0][0] + r[1][1] - r[2][2],
        1.0 - r[0][0] - r[1][1] + r[2][2],
    ];
    let largest = (0..4).max_by(|a, b| squares[*a].total_cmp(&squares[*b])).unwrap();
    let s = squares[largest].sqrt();
    let (x, y, z) = (r[2][1] - r[1][2], r[0][2] - r[2][0], r[1][0] - r[0][1]);
    let (xy, xz, yz) = (r[0][1] + r[1][0], r[0][2] + r[2][0], r[1][2] + r[2][1]);
    let twice = match largest {
        0 => [s, x / s, y / s, z / s],
        1 => [x / s, s, xy / s, xz / s],
        2 => [y / s, xy / s, s, yz / s],
        _ => [z / s, xz / s, yz / s, s],
    };
    let sign = if twice[0] < 0.0 { -0.5 } else { 0.5 };
    (determinant.signum() as f32, [1, 2, 3].map(|n| (sign * twice[n]) as f32))
}

#[test]
fn a_mask_lies_on_its_volume_in_every_orientation() {
    let folder = folder();
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let spacing = [0.75, 1.5, 3.0];
    let mut n_checked = 0;
    for (order, signs) in orders.into_iter().flat_map(|order| (0..8).map(move |signs| (order, signs))) {
        for tilt in [0.0, 0.3] {
            let rows = affine(order, signs, spacing, tilt);
            let (qfac, bcd) = quaternion(&rows, spacing);
            // qform code, sform code: none, one alone, both (and then with different codes).
            for codes in [[0, 0], [1, 0], [0, 2], [3, 4]] {
                let mut made = Made::new(&[3, 4, 2], 4, &[1; 48]);
                made.floats(76, &[qfac, 0.75, 1.5, 3.0]).put(123, &[10]).shorts(252, &codes);
                made.floats(256, &bcd).floats(268, &[-31.25, 12.5, 400.125]);
                for (n, row) in rows.iter().enumerate() {
                    made.floats(280 + 16 * n, &row.map(|v| v as f32));
                }
                // What could name a patient, and an extension that would.
                made.put(4, b"DOE JANE")
                    .put(14, b"hospital")
                    .put(148, b"born 1970")
                    .put(228, b"aux")
                    .put(348, &[1, 0, 0, 0]);
                for source in [made.clone(), made.big_endian()] {
                    let path = source.write(folder.path(), "volume.nii.gz");
                    let (volume, template) = read_volume(&path, 0).unwrap();
                    if codes != [0, 0] {
                        for n in 0..12 {
                            let (found, expected) = (volume.grid.affine[n / 4][n % 4], rows[n / 4][n % 4]);
                            assert!((found - expected).abs() < 2e-6, "{order:?} {signs} {codes:?} {:?}", volume.grid);
                        }
                    }
                    let labels: Vec<u16> = (0..24).collect();
                    let labels = segft::image::Labels { grid: volume.grid.clone(), voxels: labels };
                    let out = folder.path().join("mask.nii");
                    write_labels(&out, &labels, &template).unwrap();
                    assert_eq!(read_labels(&out).unwrap(), labels);
                    let bytes = std::fs::read(&out).unwrap();
                    // Spacing, units, codes and both transforms: byte for byte.
                    for range in [76..92, 123..124, 252..328] {
                        assert_eq!(
                            bytes[range.clone()],
                            made.0[range.clone()],
                            "{order:?} {signs} {codes:?} {range:?}"
                        );
                    }
                    // Data type and names, description, auxiliary file, extension.
                    for private in [4..40, 124..252, 328..344, 348..352] {
                        assert!(bytes[private.clone()].iter().all(|b| *b == 0), "{private:?}");
                    }
                    assert_eq!((bytes.len(), &bytes[40..48], bytes[70]), (352 + 24, &[3, 0, 3, 0, 4, 0, 2, 0][..], 2));
                    n_checked += 1;
                }
            }
        }
    }
    assert_eq!(n_checked, 48 * 2 * 4 * 2);
}

#[test]
fn masks_grow_to_16_bits_only_when_needed_and_are_the_same_every_time() {
    let folder = folder();
    let grid = Grid::picture(2, 2);
    let template = Template::of_grid(&grid);
    let labels = |voxels: [u16; 4]| segft::image::Labels { grid: grid.clone(), voxels: voxels.to_vec() };
    let path = folder.path().join("mask.nii.gz");
    for (voxels, dtype) in [([0, 1, 2, 255], "uint8"), ([0, 1, 256, 65535], "uint16")] {
        write_labels(&path, &labels(voxels), &template).unwrap();
        let first = std::fs::read(&path).unwrap();
        assert_eq!(read_header(&path).unwrap().dtype.name(), dtype);
        assert_eq!(read_labels(&path).unwrap(), labels(voxels));
        write_labels(&path, &labels(voxels), &template).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
    }
    write_values(&path, &[0.0, 0.5, 1.0, 0.1], &template).unwrap();
    assert_eq!(read_volume(&path, 0).unwrap().0.voxels, [0.0, 0.5, 1.0, 0.1]);
    assert_eq!(refusal(write_values(&path, &[0.0], &template)).0, 3);
    assert_eq!(refusal(write_labels(&folder.path().join("mask.png"), &labels([0; 4]), &template)).0, 2);
    assert_eq!(refusal(write_labels(&folder.path().join("no/mask.nii"), &labels([0; 4]), &template)).0, 1);
    let mut turned = labels([0; 4]);
    turned.grid.shape = [4, 1, 1];
    assert_eq!(refusal(write_labels(&path, &turned, &template)).0, 3);
}

#[test]
fn damaged_files_are_errors_and_never_a_panic() {
    let folder = folder();
    let data: Vec<u8> = (0..96).collect();
    let mut made = Made::new(&[4, 3, 2, 2], 4, &data);
    made.shorts(252, &[1, 1])
        .floats(112, &[2.0, 1.0])
        .floats(280, &[1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    let mut two = Template::of_grid(&Grid { shape: [40_000, 1, 1], ..Grid::picture(1, 1) });
    let long = folder.path().join("long.nii");
    write_values(&long, &vec![1.0; 40_000], &two).unwrap();
    two = read_volume(&long, 0).unwrap().1;
    assert_eq!(two.grid().shape, [40_000, 1, 1]);
    let two = std::fs::read(&long).unwrap();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    for (name, whole) in
        [("v.nii", made.0.clone()), ("v.nii.gz", gzip(&made.0)), ("b.nii", made.big_endian().0), ("two.nii", two)]
    {
        let path = folder.path().join(name);
        let attempt = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let whole = read_volume(&path, 0).is_ok();
            let _ = (read_header(&path), read_labels(&path), describe(&path));
            whole
        };
        assert!(attempt(&whole));
        for n in (0..whole.len()).step_by(whole.len().div_ceil(450)) {
            assert!(!attempt(&whole[..n]), "{name} cut to {n} bytes");
        }
        for _ in 0..1500 {
            let mut flipped = whole.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..whole.len().min(600));
                flipped[at] = rng.random();
            }
            attempt(&flipped);
        }
    }
}

#[test]
fn another_reader_finds_the_same_voxels() {
    use nifti::{IntoNdArray, NiftiObject, ReaderOptions};
    let folder = folder();
    let path = folder.path().join("labels.nii.gz");
    let grid = Grid { shape: [4, 3, 2], ..Grid::picture(1, 1) };
    let labels = segft::image::Labels { grid: grid.clone(), voxels: (0..24).collect() };
    write_labels(&path, &labels, &Template::of_grid(&grid)).unwrap();
    let read = ReaderOptions::new().read_file(&path).unwrap();
    let voxels: ndarray::ArrayD<u16> = read.into_volume().into_ndarray().unwrap();
    assert_eq!(voxels.shape(), [4, 3, 2]);
    for (index, value) in voxels.indexed_iter() {
        assert_eq!(usize::from(*value), index[0] + 4 * (index[1] + 3 * index[2]));
    }
}

#[test]
fn a_mask_has_the_axes_of_its_input() {
    let dir = folder();
    for dims in [&[3, 2][..], &[3, 2, 1], &[3, 2, 1, 2]] {
        let n: i16 = dims.iter().product();
        let made = Made::new(dims, 2, &vec![1; n as usize]);
        let (volume, template) = read_volume(&made.write(dir.path(), "a.nii"), 0).unwrap();
        let labels = segft::image::Labels { voxels: vec![1; 6], grid: volume.grid };
        let path = dir.path().join("mask.nii");
        write_labels(&path, &labels, &template).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(i16::from_le_bytes([bytes[40], bytes[41]]), dims.len().min(3) as i16);
        assert_eq!(read_labels(&path).unwrap().grid.shape, [3, 2, 1]);
    }
}

#[test]
fn the_channel_that_is_taken_is_said_once() {
    let dir = folder();
    let at = dir.path();
    common::small_checkpoint(&at.join("small.safetensors"));
    for (dims, name) in [(&[8, 6, 2, 3][..], "a.nii"), (&[8, 6, 2, 3], "b.nii"), (&[8, 6], "flat.nii")] {
        let n: i16 = dims.iter().product();
        Made::new(dims, 2, &(0..n).map(|v| v as u8).collect::<Vec<_>>()).write(at, name);
    }
    let predict = ["predict", "a.nii", "b.nii", "--model", "small.safetensors", "--box", "1,1,0,5,4,0"];
    let output = common::segft(at, &predict);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.matches("channel 0 of 3").count() == 1, "{told}");
    common::ok(at, &["predict", "flat.nii", "--model", "small.safetensors", "--box", "1,1,0,5,4,0"]);
    assert_eq!(std::fs::read(at.join("flat_seg.nii")).unwrap()[40], 2);
}

/// With no run there is nobody else to say how a CT is to be seen.
#[test]
fn the_base_model_sees_volumes_as_it_is_told() {
    let folder = folder();
    let at = folder.path();
    common::small_checkpoint(&at.join("small.safetensors"));
    let greys: Vec<u8> = (0..960i32).flat_map(|i| ((i * 37 % 1500 - 500) as i16).to_le_bytes()).collect();
    Made::new(&[12, 10, 8], 4, &greys).write(at, "ct.nii");
    let predict = |out: &str, more: &[&str]| {
        let base =
            ["predict", "ct.nii", "--model", "small.safetensors", "--box", "2,2,2,9,8,6", "--prob", "--out", out];
        common::ok(at, &[&base[..], more].concat());
        std::fs::read(at.join(out).join("ct_prob.nii.gz")).unwrap()
    };
    let usual = predict("usual", &[]);
    assert_eq!(usual, predict("auto", &["--window", "auto", "--axis", "auto", "--channel", "0", "--context", "0"]));
    for more in [["--window", "-160,240"], ["--window", "lung"], ["--axis", "sagittal"], ["--context", "1"]] {
        assert_ne!(usual, predict(&more.join("")[2..], &more), "{more:?}");
    }
    // A box around nothing is none, whichever way it is written.
    for text in ["3,3,3,3,3,3", "3,3,3,3,3,6"] {
        let (code, error) = common::fails(at, &["predict", "ct.nii", "--model", "small.safetensors", "--box", text]);
        assert_eq!((code, error.contains("no area")), (2, true), "{error}");
    }
    // A run has its own.
    common::discs(&at.join("discs"), "a", 12, 0);
    common::ok(at, &[&["train", "--dataset", "discs", "--out", "run"][..], &common::QUICK].concat());
    let (code, error) = common::fails(at, &["predict", "ct.nii", "--run", "run", "--window", "lung"]);
    assert!(code == 2 && error.contains("--window") && error.contains("--run none"), "{error}");
    // Twelve bits in a 16-bit picture are nearly black, and that is said.
    let dim = image::ImageBuffer::from_fn(48, 40, |x, y| image::Luma([(x * y % 1020) as u16]));
    image::DynamicImage::ImageLuma16(dim).save(at.join("dim.png")).unwrap();
    let said = common::segft(at, &["predict", "dim.png", "discs/images/a000.png", "--run", "run", "--out", "seen"]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("dim is nearly black") && !said.contains("a000 is nearly"), "{said}");
}
