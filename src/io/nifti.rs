//! NIfTI volumes and label maps: `.nii`, `.hdr` + `.img`, each also gzipped, versions 1 and 2, both byte orders.
//!
//! Labels are read literally and written on the input's own grid, so that a mask opens on top of its picture in every
//! viewer. What a file may claim is bounded by its length; see `nifti/voxels.rs`.

mod dtype;
mod header;
mod voxels;

pub use dtype::Dtype;
pub use header::{Header, Template};

use crate::error::{Error, Result};
use crate::image::{Labels, Volume};
use flate2::{Compression, GzBuilder};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

/// Reads the header alone: grid, storage and number of channels, checked against the length of the file.
///
/// # Errors
/// A usage error when there is no such file, a data error when it is not NIfTI or cannot hold what it claims.
pub fn read_header(path: &Path) -> Result<Header> {
    Ok(voxels::open(path)?.header)
}

/// Reads one channel of a volume, slope and intercept applied; voxels that are not finite stay so. The template is
/// what results on this grid are written with.
///
/// # Errors
/// As [`read_header`]; a usage error when there is no such channel; a data error when the file is cut short.
pub fn read_volume(path: &Path, channel: usize) -> Result<(Volume, Template)> {
    let source = voxels::open(path)?;
    let (grid, template) = (source.header.grid.clone(), source.header.template.clone());
    if channel >= source.header.n_channels {
        return Err(Error::usage(format!("no channel {channel}: the volume has {}", source.header.n_channels))
            .at(path)
            .hint("channels are counted from 0: --channel"));
    }
    let mut voxels = reserved(if source.proved { grid.len() } else { 0 }, path)?;
    source.stream(Some(channel), |values| append(&mut voxels, values.iter().map(|v| *v as f32), path))?;
    Ok((Volume { grid, voxels }, template))
}

/// Reads a label map: literal values, which must be whole numbers in 0..=65535.
///
/// # Errors
/// As [`read_header`]; a data error that names the value and how many voxels are no label; a volume with channels.
pub fn read_labels(path: &Path) -> Result<Labels> {
    let source = voxels::open(path)?;
    let header = source.header.clone();
    if header.n_channels > 1 {
        return Err(Error::data(format!(
            "a label map has one value a voxel, this file {} channels",
            header.n_channels
        ))
        .at(path));
    }
    // Scaled label maps carry the rounding of a 32-bit slope.
    let slack = if header.scaling.is_some() { 1e-4 } else { 0.0 };
    // The nearest, or the end of the range that a value lies beyond; what is no number is 0. (`round` is a call each.)
    let nearest = |v: f64| (v + 0.5) as u16;
    let is_label = |v: f64| (v - f64::from(nearest(v))).abs() <= slack;
    let (mut wrong, mut n_wrong) = (None, 0u64);
    let mut labels = reserved(if source.proved { header.grid.len() } else { 0 }, path)?;
    source.stream(None, |values| {
        for value in values.iter().filter(|v| !is_label(**v)) {
            wrong.get_or_insert(*value);
            n_wrong += 1;
        }
        append(&mut labels, values.iter().map(|v| nearest(*v)), path)
    })?;
    match wrong {
        Some(value) => Err(Error::data(format!(
            "{n_wrong} of {} voxels are no label, the first is `{value}`: expected whole numbers from 0 to 65535",
            header.grid.len()
        ))
        .at(path)
        .hint("is this the picture instead of its label map, or a probability map?")),
        None => Ok(Labels { grid: header.grid, voxels: labels }),
    }
}

/// Writes labels on the template's grid: u8, or u16 when a label exceeds 255; slope 1. The same labels give the same
/// bytes. Compressed when the name ends in `.nii.gz`.
///
/// # Errors
/// A usage error for a name that is not `.nii` or `.nii.gz`, a data error when the shapes differ, a job error when
/// the disk is full.
pub fn write_labels(path: &Path, labels: &Labels, template: &Template) -> Result<()> {
    if labels.grid.shape != template.shape {
        return Err(Error::data(format!(
            "labels of {:?} voxels do not fit the grid of {:?} that they are written on",
            labels.grid.shape, template.shape
        ))
        .at(path));
    }
    let narrow = labels.voxels.iter().all(|v| *v <= 255);
    let dtype = if narrow { Dtype::U8 } else { Dtype::U16 };
    write(path, &labels.voxels, template, dtype, |value, bytes| {
        bytes.extend_from_slice(&value.to_le_bytes()[..dtype.size()]);
    })
}

/// Writes f32 values (probabilities, intensities) on the template's grid.
///
/// # Errors
/// As [`write_labels`].
pub fn write_values(path: &Path, values: &[f32], template: &Template) -> Result<()> {
    write(path, values, template, Dtype::F32, |value, bytes| bytes.extend_from_slice(&value.to_le_bytes()))
}

/// Writes a volume made here on its own grid: i16 when all voxels are whole numbers that fit (Hounsfield units), else f32.
///
/// # Errors
/// As [`write_labels`].
pub fn write_volume(path: &Path, volume: &Volume) -> Result<()> {
    let template = Template::of_grid(&volume.grid);
    let fits = |v: &f32| v.fract() == 0.0 && (f32::from(i16::MIN)..=f32::from(i16::MAX)).contains(v);
    if !volume.voxels.iter().all(fits) {
        return write_values(path, &volume.voxels, &template);
    }
    write(path, &volume.voxels, &template, Dtype::I16, |value, bytes| {
        bytes.extend_from_slice(&(value as i16).to_le_bytes());
    })
}

/// Whether the name says NIfTI: .nii, .nii.gz, .hdr, .img (and .hdr.gz, .img.gz).
pub fn is_nifti(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.ends_with(".nii") || name.ends_with(".hdr") || name.ends_with(".img")
}

/// Facts about all voxels of all channels, after slope and intercept.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Smallest, largest and mean finite value; `None` when no value is finite.
    pub finite: Option<(f64, f64, f64)>,
    /// Voxels that are NaN or infinite.
    pub n_nonfinite: u64,
    /// The distinct values in order, when voxels are stored as integers, are whole, and at most 256 differ.
    pub labels: Option<Vec<i64>>,
}

/// Reads every voxel once without keeping it.
///
/// # Errors
/// As [`read_volume`].
pub fn statistics(path: &Path) -> Result<(Header, Statistics)> {
    let source = voxels::open(path)?;
    let header = source.header.clone();
    let (mut min, mut max, mut sum, mut n_finite, mut n_nonfinite) = (f64::INFINITY, f64::NEG_INFINITY, 0.0, 0u64, 0);
    let mut labels = header.dtype.is_integer().then(BTreeSet::new);
    source.stream(None, |values| {
        // One sum a chunk keeps rounding small over millions of voxels.
        let mut chunk_sum = 0.0;
        for value in values.iter().filter(|v| v.is_finite()) {
            min = min.min(*value);
            max = max.max(*value);
            chunk_sum += value;
            n_finite += 1;
        }
        sum += chunk_sum;
        n_nonfinite += values.iter().filter(|v| !v.is_finite()).count() as u64;
        collect_labels(&mut labels, values);
        Ok(())
    })?;
    let finite = (n_finite > 0).then(|| (min, max, sum / n_finite as f64));
    Ok((header, Statistics { finite, n_nonfinite, labels: labels.map(|set| set.into_iter().collect()) }))
}

/// Adds the distinct values, or gives up for good when they are too many or not whole.
fn collect_labels(labels: &mut Option<BTreeSet<i64>>, values: &[f64]) {
    let mut last = None;
    for value in values {
        let Some(set) = labels else { return };
        // Neighbours are mostly equal: one look-up a run.
        if last == Some(*value) {
            continue;
        }
        last = Some(*value);
        if value.fract() == 0.0 {
            set.insert(*value as i64);
        }
        if value.fract() != 0.0 || set.len() > 256 {
            *labels = None;
        }
    }
}

fn out_of_memory(path: &Path) -> Error {
    Error::job("not enough memory for the voxels").at(path)
}

fn reserved<T>(n: usize, path: &Path) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(n).map_err(|_| out_of_memory(path))?;
    Ok(values)
}

/// Grows with what was really read, for files whose length proves nothing.
fn append<T>(all: &mut Vec<T>, more: impl ExactSizeIterator<Item = T>, path: &Path) -> Result<()> {
    all.try_reserve(more.len()).map_err(|_| out_of_memory(path))?;
    all.extend(more);
    Ok(())
}

fn write<T: Copy>(
    path: &Path,
    values: &[T],
    template: &Template,
    dtype: Dtype,
    encode: impl Fn(T, &mut Vec<u8>),
) -> Result<()> {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let compressed = name.ends_with(".nii.gz");
    if !compressed && !name.ends_with(".nii") {
        return Err(Error::usage("a volume is written as `.nii` or `.nii.gz`").at(path));
    }
    if values.len() != template.grid().len() {
        return Err(Error::data(format!(
            "{} values do not fill the grid of {:?} voxels that they are written on",
            values.len(),
            template.shape
        ))
        .at(path));
    }
    let fill = |out: &mut dyn Write| -> std::io::Result<()> {
        out.write_all(&template.header(dtype))?;
        let mut bytes = Vec::with_capacity(dtype.size() << 16);
        for chunk in values.chunks(1 << 16) {
            bytes.clear();
            chunk.iter().for_each(|value| encode(*value, &mut bytes));
            out.write_all(&bytes)?;
        }
        Ok(())
    };
    super::write_atomic(path, |out| {
        if !compressed {
            return fill(out);
        }
        // No name and no time in the gzip header: the same labels give the same bytes.
        let mut gzip = GzBuilder::new().write(out, Compression::new(6));
        fill(&mut gzip)?;
        gzip.finish().map(drop)
    })
}
