//! A case as a small picture: outlines of reference and prediction over what the network saw of it.

use crate::error::{Error, Result};
use crate::image::{Labels, Picture, SliceFrame, cut, cut_labels};
use crate::io::{nifti, picture as pictures};
use crate::job::case::Input;
use crate::predict::Preprocessing;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, resize};
use image::{ExtendedColorType, RgbImage};
use std::path::Path;

/// Longest side of a picture, in pixels.
const SIDE: f64 = 360.0;
/// Of the pictures; outlines stay sharp.
const QUALITY: u8 = 88;
/// What only the reference, only the prediction, and both have as their outline: told apart by those who see no red or
/// no green, too.
pub(super) const REFERENCE: [u8; 3] = [0, 229, 255];
pub(super) const PREDICTION: [u8; 3] = [255, 140, 0];
pub(super) const BOTH: [u8; 3] = [255, 255, 255];

/// A picture for the page.
pub(super) struct Shown {
    pub jpeg: Vec<u8>,
    pub size: [u32; 2],
    /// Of a volume, which slice it is, counted towards right, anterior or superior, and why this one.
    pub slice: Option<String>,
}

/// A picture, or of a volume the slice in which prediction and reference differ most. Reference and prediction come with
/// the number of their foreground voxels when they were scored.
///
/// # Errors
/// A data error for a file that cannot be read, lies on another grid, or is not what was scored.
pub(super) fn show(image: &Path, scored: [(&Path, u64); 2], preprocessing: &Preprocessing) -> Result<Shown> {
    let input = Input::read(image, preprocessing.channel)?;
    let read = |path: &Path| match nifti::is_nifti(path) {
        true => nifti::read_labels(path),
        false => pictures::read_mask(path),
    };
    let [(reference, _), (prediction, _)] = scored;
    let masks = [preprocessing.foreground(read(reference)?), read(prediction)?];
    for (mask, (path, n)) in masks.iter().zip(scored) {
        if let Some(difference) = input.grid().difference(&mask.grid) {
            return Err(Error::data(format!("does not lie on the picture's grid: {difference}")).at(path));
        }
        let found = mask.voxels.iter().filter(|v| **v != 0).count() as u64;
        if found != n {
            return Err(Error::data(format!("has {found} foreground voxels, when it was scored it had {n}")).at(path));
        }
    }
    let (picture, masks, pixel_mm, slice) = match input {
        Input::Picture(picture) => (picture, masks, [1.0; 2], None),
        Input::Volume(volume, _) => {
            let frame = SliceFrame::new(&volume.grid, preprocessing.axis);
            let slice = most_different(&masks, &frame);
            let levels = preprocessing.window.resolve(&volume);
            let picture = cut(&volume, &frame, slice, &levels, 0);
            let masks = masks.map(|mask| cut_labels(&mask, &frame, slice));
            let why = if masks[0].voxels == masks[1].voxels { "" } else { ", where they differ most" };
            let text = format!("{} slice {} of {}{why}", frame.plane(), slice + 1, frame.count());
            (picture, masks, frame.pixel_spacing_mm(), Some(text))
        }
    };
    let drawn = draw(picture, &masks, pixel_mm)?;
    let size = [drawn.width(), drawn.height()];
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
        .encode(&drawn, size[0], size[1], ExtendedColorType::Rgb8)
        .map_err(|e| Error::job(format!("cannot encode a picture: {e}")))?;
    Ok(Shown { jpeg, size, slice })
}

/// The slice with the most voxels that only one of them has; of equals, the one with the most foreground, then the first.
fn most_different(masks: &[Labels; 2], frame: &SliceFrame) -> usize {
    let weight = |slice: usize| {
        let [a, b] = [0, 1].map(|i| cut_labels(&masks[i], frame, slice).voxels);
        let pairs = || a.iter().zip(&b).map(|(a, b)| (*a != 0, *b != 0));
        (pairs().filter(|(a, b)| a != b).count(), pairs().filter(|(a, b)| *a || *b).count())
    };
    (0..frame.count()).max_by_key(|slice| (weight(*slice), std::cmp::Reverse(*slice))).unwrap_or(0)
}

/// Both outlines over the picture, at the page's size; pixels become square.
fn draw(picture: Picture, masks: &[Labels; 2], pixel_mm: [f64; 2]) -> Result<RgbImage> {
    let (width, height) = (picture.width, picture.height);
    let extent = [width as f64 * pixel_mm[0], height as f64 * pixel_mm[1]];
    // A spacing that is next to nothing, or endless, is no number here: the cast makes it 0.
    let part = |side: f64| (SIDE * (side / extent[0].max(extent[1]))).round().clamp(1.0, SIDE);
    let [columns, rows] = extent.map(|side| (part(side) as u32).max(1));
    let full = RgbImage::from_raw(width as u32, height as u32, picture.rgb)
        .ok_or_else(|| Error::data("the picture has not the size it says"))?;
    let mut drawn = resize(&full, columns, rows, FilterType::Triangle);
    let inside = |mask: &Labels, x: i64, y: i64| {
        let within = x >= 0 && y >= 0 && x < i64::from(columns) && y < i64::from(rows);
        within && {
            let from = |at: i64, of: usize, to: u32| (2 * at as usize + 1) * of / (2 * to as usize);
            mask.voxels[from(y, height, rows) * width + from(x, width, columns)] != 0
        }
    };
    // The outermost two pixels of a mask.
    let near = [(-1, 0), (1, 0), (0, -1), (0, 1), (-2, 0), (2, 0), (0, -2), (0, 2), (-1, -1), (1, 1), (-1, 1), (1, -1)];
    let outline =
        |mask: &Labels, x: i64, y: i64| inside(mask, x, y) && near.iter().any(|(dx, dy)| !inside(mask, x + dx, y + dy));
    for (x, y, pixel) in drawn.enumerate_pixels_mut() {
        let [reference, prediction] = [0, 1].map(|i| outline(&masks[i], i64::from(x), i64::from(y)));
        match (reference, prediction) {
            (true, true) => pixel.0 = BOTH,
            (true, false) => pixel.0 = REFERENCE,
            (false, true) => pixel.0 = PREDICTION,
            (false, false) => (),
        }
    }
    Ok(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Axis, Grid};

    fn mask(shape: [usize; 3], marked: impl Fn(usize, usize, usize) -> bool) -> Labels {
        let grid = Grid { shape, ..Grid::picture(shape[0], shape[1]) };
        let mut voxels = Vec::new();
        for z in 0..shape[2] {
            for y in 0..shape[1] {
                voxels.extend((0..shape[0]).map(|x| u16::from(marked(x, y, z))));
            }
        }
        Labels { grid, voxels }
    }

    #[test]
    fn outlines_are_where_the_masks_end() {
        let picture = Picture { width: 40, height: 20, rgb: vec![90; 3 * 40 * 20] };
        // The left half, and the same but for its upper half.
        let masks = [mask([40, 20, 1], |x, _, _| x < 20), mask([40, 20, 1], |x, y, _| x < 20 && y >= 10)];
        let drawn = draw(picture, &masks, [1.0, 1.0]).unwrap();
        assert_eq!((drawn.width(), drawn.height()), (360, 180));
        assert_eq!(drawn.get_pixel(179, 40).0, REFERENCE, "the right end of the reference alone");
        assert_eq!(drawn.get_pixel(179, 140).0, BOTH);
        assert_eq!(drawn.get_pixel(90, 90).0, PREDICTION, "the upper end of the prediction");
        assert_eq!([drawn.get_pixel(90, 140).0, drawn.get_pixel(300, 40).0], [[90; 3]; 2]);
    }

    #[test]
    fn pixels_that_are_not_square_are_shown_square() {
        let picture = Picture { width: 10, height: 10, rgb: vec![0; 300] };
        let masks = [(); 2].map(|()| mask([10, 10, 1], |_, _, _| false));
        let drawn = draw(picture, &masks, [1.0, 3.0]).unwrap();
        assert_eq!((drawn.width(), drawn.height()), (120, 360));
    }

    #[test]
    fn the_slice_that_differs_most_is_shown() {
        let reference = mask([6, 6, 5], |x, _, z| x < 3 && z > 0);
        let prediction = mask([6, 6, 5], |x, _, z| (x < 3 && z > 0) != (z == 3 && x == 0));
        let frame = SliceFrame::new(&reference.grid, Axis::Axial);
        let at = |masks: &[Labels; 2]| {
            let slice = most_different(masks, &frame);
            (0..5).find(|z| frame.index(slice, 0, 0) / 36 == *z).unwrap()
        };
        assert_eq!(at(&[reference.clone(), prediction]), 3);
        assert!(at(&[reference.clone(), reference]) > 0, "of equals, one with foreground");
    }
}
