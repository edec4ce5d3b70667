//! Pictures and 2-D masks: JPEG, PNG, TIFF, BMP, recognised by content.
//!
//! EXIF orientation is applied to picture and mask alike. Alpha is dropped, not composited: medical pictures use it as
//! a left-over, not as glass. 16-bit pictures are divided by 257, which keeps black black and white white.
//! A picture that claims more than a bomb would need is refused before memory is taken.

mod mask;

pub use mask::read_mask;

use crate::error::{Error, Result};
use crate::image::{Labels, Picture};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader};
use std::collections::BTreeSet;
use std::path::Path;

/// The most a picture may take in memory.
const MOST_BYTES: u64 = 512 << 20;

/// No format packs more than this into a byte: 1-bit palette PNG of one colour, at deflate's limit of 1032 to 1.
const MOST_EXPANSION: u64 = 1 << 15;

/// What is not worth a question.
const HARMLESS_BYTES: u64 = 16 << 20;

/// With more distinct values a grey picture is not taken for a mask.
const MOST_MASK_VALUES: usize = 32;

/// Reads a picture as RGB, EXIF orientation applied. Grey, palette, alpha and 16-bit pictures are converted.
///
/// # Errors
/// A usage error when there is no such file, a data error when it is not a picture or claims too much memory.
pub fn read_picture(path: &Path) -> Result<Picture> {
    let rgb = decode(path)?.0.into_rgb8();
    Ok(Picture { width: rgb.width() as usize, height: rgb.height() as usize, rgb: rgb.into_raw() })
}

/// Width and height of a picture as [`read_picture`] would return it, from its header alone.
///
/// # Errors
/// As [`read_picture`].
pub fn picture_size(path: &Path) -> Result<(usize, usize)> {
    let (decoder, _, orientation) = open(path)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    // EXIF 5 to 8 turn the picture by a quarter.
    Ok(if orientation.to_exif() >= 5 { (height, width) } else { (width, height) })
}

/// Whether the name says picture: .jpg, .jpeg, .png, .tif, .tiff, .bmp.
pub fn is_picture(path: &Path) -> bool {
    let end = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    ["jpg", "jpeg", "png", "tif", "tiff", "bmp"].contains(&end.as_str())
}

/// Writes a mask as PNG for looking at: 0/255 when all labels are 0 or 1, else as [`write_label_values`]. Either way
/// [`read_mask`] gives the labels back. The same mask gives the same bytes.
///
/// # Errors
/// A data error when the mask is not one slice, a job error when it cannot be written.
pub fn write_mask(path: &Path, mask: &Labels) -> Result<()> {
    if mask.voxels.iter().any(|v| *v > 1) {
        return write_label_values(path, mask);
    }
    let bytes: Vec<u8> = mask.voxels.iter().map(|v| if *v == 0 { 0 } else { 255 }).collect();
    write_grey(path, mask.grid.shape, png::BitDepth::Eight, &bytes)
}

/// Writes the label values themselves as PNG: 8 bit, 16 bit when a label exceeds 255. For masks of several classes,
/// where one picture that happens to hold class 1 alone must not look different.
///
/// # Errors
/// As [`write_mask`].
pub fn write_label_values(path: &Path, mask: &Labels) -> Result<()> {
    if mask.voxels.iter().all(|v| *v <= 255) {
        let bytes: Vec<u8> = mask.voxels.iter().map(|v| *v as u8).collect();
        return write_grey(path, mask.grid.shape, png::BitDepth::Eight, &bytes);
    }
    let bytes: Vec<u8> = mask.voxels.iter().flat_map(|v| v.to_be_bytes()).collect();
    write_grey(path, mask.grid.shape, png::BitDepth::Sixteen, &bytes)
}

/// Writes probabilities (0..1, row by row) as an 8-bit grey PNG.
///
/// # Errors
/// A data error when their number is not width x height, a job error when they cannot be written.
pub fn write_probabilities(path: &Path, width: usize, height: usize, probabilities: &[f32]) -> Result<()> {
    let bytes: Vec<u8> = probabilities.iter().map(|p| (p.clamp(0.0, 1.0) * 255.0).round() as u8).collect();
    write_grey(path, [width, height, 1], png::BitDepth::Eight, &bytes)
}

/// Writes a picture as 8-bit RGB PNG.
///
/// # Errors
/// As [`write_mask`].
pub fn write_picture(path: &Path, picture: &Picture) -> Result<()> {
    let shape = [picture.width, picture.height, 1];
    write_png(path, shape, png::ColorType::Rgb, png::BitDepth::Eight, &picture.rgb)
}

/// What a picture file holds, before conversion to RGB.
#[derive(Debug, Clone, PartialEq)]
pub struct PictureFacts {
    /// Pixels in a row, upright.
    pub width: usize,
    /// Rows, upright.
    pub height: usize,
    /// Samples a pixel; a palette counts as its colours.
    pub channels: usize,
    /// Numpy's name of a sample.
    pub dtype: &'static str,
    /// Smallest, largest and mean sample.
    pub range: (f64, f64, f64),
    /// The labels as [`read_mask`] reads them, when the picture looks like a mask: not JPEG, and few distinct values.
    pub labels: Option<Vec<u16>>,
}

/// Reads the facts that `segft info` prints.
///
/// # Errors
/// As [`read_picture`].
pub fn picture_facts(path: &Path) -> Result<PictureFacts> {
    let (image, format) = decode(path)?;
    let channels = usize::from(image.color().channel_count());
    let bytes = image.as_bytes();
    let (dtype, range) = match usize::from(image.color().bytes_per_pixel()) / channels {
        1 => ("uint8", range(bytes.iter().map(|v| f64::from(*v)))),
        2 => ("uint16", range(bytes.as_chunks().0.iter().map(|v| f64::from(u16::from_ne_bytes(*v))))),
        _ => ("float32", range(bytes.as_chunks().0.iter().map(|v| f64::from(f32::from_ne_bytes(*v))))),
    };
    let labels = match format {
        ImageFormat::Jpeg => None,
        _ => read_mask(path).ok().map(|mask| mask.voxels.into_iter().collect::<BTreeSet<u16>>()),
    };
    let labels = labels.filter(|set| set.len() <= MOST_MASK_VALUES).map(|set| set.into_iter().collect());
    let (width, height) = (image.width() as usize, image.height() as usize);
    Ok(PictureFacts { width, height, channels, dtype, range, labels })
}

fn range(values: impl Iterator<Item = f64> + Clone) -> (f64, f64, f64) {
    let n = values.clone().count().max(1) as f64;
    let min = values.clone().fold(f64::INFINITY, f64::min);
    (min, values.clone().fold(f64::NEG_INFINITY, f64::max), values.sum::<f64>() / n)
}

/// Opens a picture by its content, with its claims checked against the length of the file.
fn open(path: &Path) -> Result<(impl ImageDecoder, ImageFormat, Orientation)> {
    let failed = |e: std::io::Error| Error::reading(path, &e);
    let length = std::fs::metadata(path).map_err(failed)?.len();
    let mut reader = ImageReader::open(path).map_err(failed)?.with_guessed_format().map_err(failed)?;
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MOST_BYTES);
    reader.limits(limits);
    let unknown = || Error::data("not a picture: expected JPEG, PNG, TIFF or BMP").at(path);
    let format = reader.format().ok_or_else(unknown)?;
    let mut decoder = reader.into_decoder().map_err(|e| broken(path, &e))?;
    let most = MOST_BYTES.min(length.saturating_mul(MOST_EXPANSION).max(HARMLESS_BYTES));
    let (width, height) = decoder.dimensions();
    if decoder.total_bytes() > most {
        return Err(Error::data(format!(
            "the picture claims {width} x {height} pixels, more than the {} MiB that a file of {length} bytes may take",
            most >> 20
        ))
        .at(path)
        .hint("if it is genuine, cut it into tiles"));
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((decoder, format, orientation))
}

fn decode(path: &Path) -> Result<(DynamicImage, ImageFormat)> {
    let (decoder, format, orientation) = open(path)?;
    let mut image = pixels(decoder, format, path)?;
    image.apply_orientation(orientation);
    Ok((image, format))
}

/// Decodes what was opened.
fn pixels(decoder: impl ImageDecoder, format: ImageFormat, path: &Path) -> Result<DynamicImage> {
    if format == ImageFormat::Jpeg && !jpeg_ends(&std::fs::read(path).map_err(|e| Error::reading(path, &e))?) {
        return Err(Error::data("the JPEG is cut short: its end is missing")
            .at(path)
            .hint("copy it again from where it came from; the missing part would be grey"));
    }
    DynamicImage::from_decoder(decoder).map_err(|e| broken(path, &e))
}

/// Whether the picture in a JPEG file has its end marker (ITU T.81, B.1.1): the decoder fills what is missing with grey, which
/// in a mask is foreground. What stands in segments before the picture, as a small one of its own, does not count.
fn jpeg_ends(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    let mut at = 2;
    while let Some([0xff, marker]) = bytes.get(at..at + 2) {
        let length = match bytes.get(at + 2..at + 4) {
            // Fill bytes before a marker, and markers without a segment.
            _ if *marker == 0xff => {
                at += 1;
                continue;
            }
            Some([high, low]) => usize::from(u16::from_be_bytes([*high, *low])),
            _ => return false,
        };
        at += 2 + length;
        if *marker == START_OF_SCAN {
            return bytes.get(at..).is_some_and(|scan| scan.windows(2).any(|pair| pair == [0xff, 0xd9]));
        }
    }
    false
}

fn broken(path: &Path, error: &ImageError) -> Error {
    match error {
        ImageError::Limits(_) => Error::data(format!("the picture claims more than {} MiB", MOST_BYTES >> 20))
            .hint("if it is genuine, cut it into tiles"),
        ImageError::Unsupported(_) => Error::data(format!("cannot read this kind of picture: {error}"))
            .hint("JPEG, PNG, TIFF and BMP are read; save it as PNG"),
        _ => Error::data(format!("cannot decode the picture: {error}")),
    }
    .at(path)
}

fn write_grey(path: &Path, shape: [usize; 3], depth: png::BitDepth, bytes: &[u8]) -> Result<()> {
    write_png(path, shape, png::ColorType::Grayscale, depth, bytes)
}

fn write_png(path: &Path, shape: [usize; 3], color: png::ColorType, depth: png::BitDepth, bytes: &[u8]) -> Result<()> {
    let [width, height, depth_z] = shape;
    let sample = if depth == png::BitDepth::Sixteen { 2 } else { 1 };
    let size = (u32::try_from(width), u32::try_from(height));
    let (Ok(columns), Ok(rows), 1) = (size.0, size.1, depth_z) else {
        return Err(Error::data(format!("a PNG holds one slice, not {shape:?}")).at(path));
    };
    if bytes.len() != width * height * color.samples() * sample || bytes.is_empty() {
        return Err(Error::data(format!("{} bytes do not make {width} x {height} pixels", bytes.len())).at(path));
    }
    super::write_atomic(path, |out| {
        let mut encoder = png::Encoder::new(out, columns, rows);
        encoder.set_color(color);
        encoder.set_depth(depth);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(bytes)?;
        writer.finish()?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::mask::tests::png_file;
    use super::*;
    use crate::image::Grid;
    use image::{ExtendedColorType, ImageEncoder};
    use std::fs::File;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_jpeg_that_is_cut_short_is_refused() {
        let folder = folder();
        let path = folder.path().join("a.jpg");
        let noise = |x: u32, y: u32| image::Rgb([(x * y % 251) as u8, (x * 7 % 256) as u8, (y * 3 % 256) as u8]);
        image::RgbImage::from_fn(64, 48, noise).save(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        // Something behind the end does no harm; an end inside a segment before the picture is not its end.
        let comment = [0xff, 0xfe, 0, 6, 0xff, 0xd9, 0xff, 0xd9];
        let commented = [&whole[..2], &comment, &whole[2..]].concat();
        for bytes in [&whole, &[&whole[..], b"trailer"].concat(), &commented] {
            std::fs::write(&path, bytes).unwrap();
            read_picture(&path).unwrap();
        }
        for bytes in [&whole[..whole.len() - 2], &whole[..whole.len() * 2 / 3], &commented[..commented.len() - 9]] {
            std::fs::write(&path, bytes).unwrap();
            for error in [read_picture(&path).unwrap_err(), read_mask(&path).unwrap_err()] {
                assert!(error.kind.exit_code() == 3 && error.message.contains("cut short"), "{error}");
            }
        }
    }

    fn labels(width: usize, height: usize, voxels: &[u16]) -> Labels {
        Labels { grid: Grid::picture(width, height), voxels: voxels.to_vec() }
    }

    #[test]
    fn masks_come_back_as_they_were_written() {
        let folder = folder();
        let path = folder.path().join("mask.png");
        for values in [[0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 255, 7], [0, 1, 256, 3, 65535, 7]] {
            let mask = labels(3, 2, &values);
            write_mask(&path, &mask).unwrap();
            assert_eq!(read_mask(&path).unwrap(), mask);
            let first = std::fs::read(&path).unwrap();
            write_mask(&path, &mask).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), first);
        }
        write_mask(&path, &labels(2, 1, &[0, 1])).unwrap();
        assert_eq!(image::open(&path).unwrap().into_luma8().into_raw(), [0, 255]);
        write_label_values(&path, &labels(2, 1, &[0, 1])).unwrap();
        assert_eq!(image::open(&path).unwrap().into_luma8().into_raw(), [0, 1]);
        assert_eq!(read_mask(&path).unwrap().voxels, [0, 1]);
        assert!(write_mask(&path, &labels(2, 2, &[0])).is_err());
    }

    #[test]
    fn exif_turns_picture_and_mask_alike() {
        let folder = folder();
        // A little-endian TIFF block with one entry: orientation (0x112), one u16, 6 = rotate by 90 degrees clockwise.
        let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
        let path = folder.path().join("turned.png");
        let mut encoder = image::codecs::png::PngEncoder::new(File::create(&path).unwrap());
        encoder.set_exif_metadata(exif.clone()).unwrap();
        // 1 2 3   turned clockwise is   4 1
        // 4 5 6                         5 2
        //                               6 3
        encoder.write_image(&[1, 2, 3, 4, 5, 6], 3, 2, ExtendedColorType::L8).unwrap();
        assert_eq!(picture_size(&path).unwrap(), (2, 3));
        let mask = read_mask(&path).unwrap();
        assert_eq!((mask.grid.shape, &mask.voxels[..]), ([2, 3, 1], &[4, 1, 5, 2, 6, 3][..]));
        let picture = read_picture(&path).unwrap();
        assert_eq!((picture.width, picture.height), (2, 3));
        assert_eq!(picture.rgb[..6], [4, 4, 4, 1, 1, 1]);

        let path = folder.path().join("turned.jpg");
        let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(File::create(&path).unwrap(), 100);
        encoder.set_exif_metadata(exif).unwrap();
        // White on the left is white on top afterwards.
        let grey: Vec<u8> = (0..128).map(|n| if n % 16 < 8 { 255 } else { 0 }).collect();
        encoder.write_image(&grey, 16, 8, ExtendedColorType::L8).unwrap();
        assert_eq!(picture_size(&path).unwrap(), (8, 16));
        let mask = read_mask(&path).unwrap();
        assert_eq!((mask.grid.shape, mask.voxels), ([8, 16, 1], [vec![1; 64], vec![0; 64]].concat()));
        assert_eq!(read_picture(&path).unwrap().rgb[..3], [255, 255, 255]);
    }

    #[test]
    fn every_kind_of_picture_becomes_rgb() {
        let folder = folder();
        let deep =
            png_file(folder.path(), [2, 1], png::ColorType::Grayscale, png::BitDepth::Sixteen, &[255, 255, 128, 128]);
        assert_eq!(read_picture(&deep).unwrap().rgb, [255, 255, 255, 128, 128, 128]);
        assert_eq!(picture_facts(&deep).unwrap().dtype, "uint16");
        let indexed = png_file(folder.path(), [1, 1], png::ColorType::Indexed, png::BitDepth::Eight, &[2]);
        assert_eq!(read_picture(&indexed).unwrap().rgb, [2, 0, 253]);
        let clear = png_file(folder.path(), [1, 1], png::ColorType::Rgba, png::BitDepth::Eight, &[9, 8, 7, 0]);
        assert_eq!(read_picture(&clear).unwrap().rgb, [9, 8, 7]);
        for name in ["grey.tif", "grey.bmp", "grey.jpg"] {
            let path = folder.path().join(name);
            image::GrayImage::from_pixel(8, 8, image::Luma([77])).save(&path).unwrap();
            assert_eq!(read_picture(&path).unwrap().rgb[..3], [77, 77, 77], "{name}");
            assert_eq!(picture_size(&path).unwrap(), (8, 8));
            if name != "grey.jpg" {
                assert_eq!(read_mask(&path).unwrap().voxels, [77; 64], "{name}");
            }
        }
        // The name is not believed: a PNG called .jpg is read as PNG.
        let misnamed = folder.path().join("misnamed.jpg");
        std::fs::rename(&clear, &misnamed).unwrap();
        assert_eq!(read_picture(&misnamed).unwrap().rgb, [9, 8, 7]);
    }

    #[test]
    fn bombs_and_rubbish_are_refused() {
        let folder = folder();
        let path = png_file(folder.path(), [8, 8], png::ColorType::Rgb, png::BitDepth::Eight, &[7; 192]);
        let whole = std::fs::read(&path).unwrap();
        // The header chunk with other sizes; its checksum is computed anew by the encoder's own routine.
        for side in [9_000u32, 60_000, 0x7fff_ffff] {
            let mut claimed = whole.clone();
            claimed[16..20].copy_from_slice(&side.to_be_bytes());
            claimed[20..24].copy_from_slice(&side.to_be_bytes());
            let mut sum = flate2::Crc::new();
            sum.update(&claimed[12..29]);
            claimed[29..33].copy_from_slice(&sum.sum().to_be_bytes());
            std::fs::write(&path, &claimed).unwrap();
            let error = read_picture(&path).unwrap_err();
            assert!(error.message.contains("claims"), "{side}: {error}");
            assert!(read_mask(&path).is_err() && picture_size(&path).is_err() && picture_facts(&path).is_err());
        }
        for n in 0..whole.len() {
            std::fs::write(&path, &whole[..n]).unwrap();
            let _ = (read_picture(&path), read_mask(&path));
        }
        std::fs::write(&path, "no picture").unwrap();
        assert_eq!(read_picture(&path).unwrap_err().kind.exit_code(), 3);
        assert_eq!(read_picture(&folder.path().join("none.png")).unwrap_err().kind.exit_code(), 2);
        assert_eq!(read_picture(folder.path()).unwrap_err().kind.exit_code(), 3);
    }
}
