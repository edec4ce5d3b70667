//! NIfTI volumes and label maps.

use crate::error::{Error, Result};
use crate::image::{Labels, Volume};
use std::path::Path;

/// The header of the file that a result must lie on: grid, codes and units are copied from it.
#[derive(Debug, Clone)]
pub struct Template {}

/// Reads one channel of a volume, slope and intercept applied.
pub fn read_volume(path: &Path, channel: usize) -> Result<(Volume, Template)> {
    let _ = channel;
    Err(Error::data("not read yet").at(path))
}

/// Reads a label map: literal values, which must be whole numbers in 0..=65535.
pub fn read_labels(path: &Path) -> Result<Labels> {
    Err(Error::data("not read yet").at(path))
}

/// Writes labels on the template's grid: u8, or u16 when a label exceeds 255; slope 1.
pub fn write_labels(path: &Path, labels: &Labels, template: &Template) -> Result<()> {
    let _ = (labels, template);
    Err(Error::data("not written yet").at(path))
}

/// Writes f32 values (probabilities) on the template's grid.
pub fn write_values(path: &Path, values: &[f32], template: &Template) -> Result<()> {
    let _ = (values, template);
    Err(Error::data("not written yet").at(path))
}

/// Whether the name says NIfTI: .nii, .nii.gz, .hdr, .img (and .hdr.gz, .img.gz).
pub fn is_nifti(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.ends_with(".nii") || name.ends_with(".hdr") || name.ends_with(".img")
}
