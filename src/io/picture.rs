//! Pictures and 2-D masks.

use crate::error::{Error, Result};
use crate::image::{Labels, Picture};
use std::path::Path;

/// Reads a picture as RGB, EXIF orientation applied. Grey, palette, alpha and 16-bit pictures are converted.
pub fn read_picture(path: &Path) -> Result<Picture> {
    Err(Error::data("not read yet").at(path))
}

/// Reads a 2-D mask as labels (contract: JPEG above 127 is 1; PNG or TIFF whose only non-zero value is 255 or 65535,
/// that is 1; otherwise values, palette indices too, are labels).
pub fn read_mask(path: &Path) -> Result<Labels> {
    Err(Error::data("not read yet").at(path))
}

/// Writes a mask as PNG: 0/255 when `binary`, else the label values (8 bit, 16 bit when a label exceeds 255).
pub fn write_mask(path: &Path, mask: &Labels) -> Result<()> {
    let _ = mask;
    Err(Error::data("not written yet").at(path))
}

/// Writes probabilities (0..1, row by row) as an 8-bit grey PNG.
pub fn write_probabilities(path: &Path, width: usize, height: usize, probabilities: &[f32]) -> Result<()> {
    let _ = (width, height, probabilities);
    Err(Error::data("not written yet").at(path))
}
