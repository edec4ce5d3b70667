//! 2-D masks: which number of a picture file is which label.
//!
//! `image` turns palettes into colours and scales small greys up to 8 bits, so the samples of a PNG are read here with
//! the `png` crate as they are stored.

use super::{MOST_BYTES, open, pixels};
use crate::error::{Error, Result};
use crate::image::{Grid, Labels};
use image::{DynamicImage, ImageBuffer, ImageFormat};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// Between the largest and the smallest channel of a pixel, what JPEG may make of grey.
const MOST_CHROMA_NOISE: u8 = 40;

/// Reads a 2-D mask as labels: JPEG above 127 is 1; PNG, TIFF or BMP whose only non-zero value is 255 or 65535, that
/// is 1; otherwise values (palette indices of a PNG, too) are labels.
///
/// # Errors
/// As [`read_picture`]; a data error when colours differ, because colours do not say which class they are.
pub fn read_mask(path: &Path) -> Result<Labels> {
    let (decoder, format, orientation) = open(path)?;
    let ([width, height], values) = match format {
        ImageFormat::Png => png_values(path)?,
        ImageFormat::Jpeg => {
            let image = pixels(decoder, format, path)?;
            check_grey(&image, path)?;
            let grey = image.into_luma8();
            ([grey.width(), grey.height()], grey.into_raw().into_iter().map(|v| u16::from(v > 127)).collect())
        }
        _ => {
            let image = pixels(decoder, format, path)?;
            let samples = match image.color().bytes_per_pixel() / image.color().channel_count() {
                1 => image.as_bytes().iter().map(|v| u16::from(*v)).collect(),
                2 => image.as_bytes().as_chunks().0.iter().map(|v| u16::from_ne_bytes(*v)).collect(),
                _ => return Err(Error::data("floating-point mask: expected whole numbers").at(path)),
            };
            let grey =
                one_channel(samples, image.color().channel_count().into(), [image.width(), image.height()], path)?;
            ([image.width(), image.height()], grey)
        }
    };
    let white = |white| values.iter().all(|v| *v == 0 || *v == white) && values.contains(&white);
    let values = match white(255) || white(65535) {
        true => values.into_iter().map(|v| v.min(1)).collect(),
        false => values,
    };
    let upright = ImageBuffer::from_raw(width, height, values)
        .ok_or_else(|| Error::data("the picture holds fewer pixels than its header claims").at(path))?;
    let mut upright = DynamicImage::ImageLuma16(upright);
    upright.apply_orientation(orientation);
    let grid = Grid::picture(upright.width() as usize, upright.height() as usize);
    Ok(Labels { grid, voxels: upright.into_luma16().into_raw() })
}

/// Refuses a JPEG that is a colour picture: cut at its middle grey it would quietly be some mask.
fn check_grey(image: &DynamicImage, path: &Path) -> Result<()> {
    let Some(rgb) = image.as_rgb8() else { return Ok(()) };
    let coloured = |p: &image::Rgb<u8>| p.0.iter().max().zip(p.0.iter().min()).map_or(0, |(a, b)| a - b);
    let n = rgb.pixels().filter(|p| coloured(p) > MOST_CHROMA_NOISE).count();
    let all = rgb.pixels().len();
    // One pixel in a hundred: the edges of a mask that was stored with coarse colour.
    if 100 * n > all {
        return Err(Error::data(format!(
            "coloured mask: {n} of {all} pixels are coloured, and colours do not say which class they are"
        ))
        .at(path)
        .hint("is this the picture instead of its mask? Save the mask as PNG with one channel, or as a grey JPEG"));
    }
    Ok(())
}

/// The stored samples of a PNG, one a pixel, in storage orientation: palette indices and small greys as they are.
fn png_values(path: &Path) -> Result<([u32; 2], Vec<u16>)> {
    let broken = |e: png::DecodingError| Error::data(format!("cannot decode the picture: {e}")).at(path);
    let file = File::open(path).map_err(|e| Error::reading(path, &e))?;
    let limits = png::Limits { bytes: MOST_BYTES as usize };
    let mut decoder = png::Decoder::new_with_limits(BufReader::new(file), limits);
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(broken)?;
    let size = reader.output_buffer_size().filter(|size| *size as u64 <= MOST_BYTES);
    let size = size.ok_or_else(|| Error::data("the picture claims too much memory").at(path))?;
    let mut bytes = vec![0; size];
    let frame = reader.next_frame(&mut bytes).map_err(broken)?;
    let samples = frame.color_type.samples();
    let depth = frame.bit_depth as usize;
    let row_samples = frame.width as usize * samples;
    let mut values = Vec::with_capacity(row_samples * frame.height as usize);
    for row in bytes.chunks_exact(frame.line_size).take(frame.height as usize) {
        match depth {
            16 => values.extend(row.as_chunks().0.iter().map(|v| u16::from_be_bytes(*v))),
            // Samples of 1 to 8 bits fill each byte from its upper end; rows begin on a new byte.
            _ => values.extend((0..row_samples).map(|n| {
                let bit = n * depth;
                u16::from(row[bit / 8]) >> (8 - depth - bit % 8) & ((1 << depth) - 1)
            })),
        }
    }
    let size = [frame.width, frame.height];
    Ok((size, one_channel(values, samples, size, path)?))
}

/// Drops alpha, and colour that is grey; refuses colour that is not.
fn one_channel(samples: Vec<u16>, channels: usize, [width, _]: [u32; 2], path: &Path) -> Result<Vec<u16>> {
    if channels == 1 {
        return Ok(samples);
    }
    let is_colour = |pixel: &[u16]| channels >= 3 && (pixel[0] != pixel[1] || pixel[1] != pixel[2]);
    if let Some(n) = samples.chunks_exact(channels).position(is_colour) {
        let pixel = &samples[n * channels..n * channels + 3];
        return Err(Error::data(format!(
            "coloured mask: pixel ({}, {}) is `{pixel:?}`, and colours do not say which class they are",
            n % width as usize,
            n / width as usize
        ))
        .at(path)
        .hint("save it with one channel or a palette, whose values are the labels"));
    }
    Ok(samples.chunks_exact(channels).map(|pixel| pixel[0]).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::picture_facts;
    use super::*;
    use image::{ExtendedColorType, ImageEncoder};
    use std::path::PathBuf;

    /// A PNG as other programs write it, by `png` itself.
    pub(crate) fn png_file(
        folder: &Path,
        size: [u32; 2],
        color: png::ColorType,
        depth: png::BitDepth,
        bytes: &[u8],
    ) -> PathBuf {
        let path = folder.join("made.png");
        let mut encoder = png::Encoder::new(File::create(&path).unwrap(), size[0], size[1]);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == png::ColorType::Indexed {
            encoder.set_palette((0..=255u8).flat_map(|n| [n, 0, 255 - n]).take(48).collect::<Vec<u8>>());
        }
        encoder.write_header().unwrap().write_image_data(bytes).unwrap();
        path
    }

    #[test]
    fn palette_and_small_greys_are_labels_as_stored() {
        let folder = tempfile::tempdir().unwrap();
        // Two pixels a byte, upper half first; a row of three ends in padding.
        let indexed =
            png_file(folder.path(), [3, 2], png::ColorType::Indexed, png::BitDepth::Four, &[0x01, 0x20, 0x3f, 0x10]);
        assert_eq!(read_mask(&indexed).unwrap().voxels, [0, 1, 2, 3, 15, 1]);
        let grey = png_file(folder.path(), [4, 1], png::ColorType::Grayscale, png::BitDepth::Two, &[0b0001_1011]);
        assert_eq!(read_mask(&grey).unwrap().voxels, [0, 1, 2, 3]);
        let bits = png_file(folder.path(), [4, 1], png::ColorType::Grayscale, png::BitDepth::One, &[0b0110_0000]);
        assert_eq!(read_mask(&bits).unwrap().voxels, [0, 1, 1, 0]);
        let deep =
            png_file(folder.path(), [2, 1], png::ColorType::Grayscale, png::BitDepth::Sixteen, &[0, 0, 255, 255]);
        assert_eq!(read_mask(&deep).unwrap().voxels, [0, 1]);
        let deep =
            png_file(folder.path(), [2, 1], png::ColorType::Grayscale, png::BitDepth::Sixteen, &[1, 0, 255, 255]);
        assert_eq!(read_mask(&deep).unwrap().voxels, [256, 65535]);
    }

    #[test]
    fn grey_in_three_channels_is_a_mask_and_colour_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let grey = png_file(
            folder.path(),
            [2, 1],
            png::ColorType::Rgba,
            png::BitDepth::Eight,
            &[255, 255, 255, 9, 0, 0, 0, 255],
        );
        assert_eq!(read_mask(&grey).unwrap().voxels, [1, 0]);
        let two = png_file(
            folder.path(),
            [2, 1],
            png::ColorType::GrayscaleAlpha,
            png::BitDepth::Eight,
            &[254, 255, 255, 255],
        );
        assert_eq!(read_mask(&two).unwrap().voxels, [254, 255]);
        let colour = png_file(folder.path(), [2, 1], png::ColorType::Rgb, png::BitDepth::Eight, &[0, 0, 0, 200, 0, 0]);
        let error = read_mask(&colour).unwrap_err();
        assert!(error.message.contains("(1, 0)") && error.message.contains("[200, 0, 0]"), "{error}");
    }

    #[test]
    fn jpeg_masks_are_cut_in_the_middle() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.jpg");
        let grey: Vec<u8> = (0..64).map(|n| if n % 8 < 4 { 100 } else { 160 }).collect();
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(File::create(&path).unwrap(), 100);
        encoder.write_image(&grey, 8, 8, ExtendedColorType::L8).unwrap();
        let expected: Vec<u16> = (0..64).map(|n| u16::from(n % 8 >= 4)).collect();
        assert_eq!(read_mask(&path).unwrap().voxels, expected);
        assert_eq!(picture_facts(&path).unwrap().labels, None);
        // The same grey stored as RGB is a mask; a picture in colours is none.
        let rgb: Vec<u8> = grey.iter().flat_map(|v| [*v; 3]).collect();
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(File::create(&path).unwrap(), 60);
        encoder.write_image(&rgb, 8, 8, ExtendedColorType::Rgb8).unwrap();
        assert_eq!(read_mask(&path).unwrap().voxels, expected);
        let red: Vec<u8> = grey.iter().flat_map(|v| [*v, v / 3, v / 4]).collect();
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(File::create(&path).unwrap(), 90);
        encoder.write_image(&red, 8, 8, ExtendedColorType::Rgb8).unwrap();
        let error = read_mask(&path).unwrap_err();
        assert!(error.kind.exit_code() == 3 && error.message.contains("64 of 64"), "{error}");
    }
}
