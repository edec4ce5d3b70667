//! From a picture's pixels to the network's square and back: SAM's pre- and post-processing.

use super::{Labels, Picture};
use crate::error::{Error, Result};
use fast_image_resize as fir;
use serde::{Deserialize, Serialize};

/// How a picture is brought into the square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// The longest side fills the square, zeros below or to the right: the official predictor.
    #[default]
    LongestSide,
    /// Both sides fill the square; the aspect ratio is not kept.
    Square,
}

/// SAM's channel means, in 0..255.
pub const MEAN: [f32; 3] = [123.675, 116.28, 103.53];
/// SAM's channel standard deviations, in 0..255.
pub const STD: [f32; 3] = [58.395, 57.12, 57.375];

/// Where a picture of one size lies in the network's square: the only place that converts between the two frames.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Size of the picture, width and height.
    pub picture: [usize; 2],
    /// Size of its image in the square.
    pub inner: [usize; 2],
    /// Side of the square.
    pub size: usize,
}

impl Fit {
    /// How a `width` × `height` picture goes into a square of `size`.
    pub fn new(width: usize, height: usize, size: usize, resize: Resize) -> Fit {
        let inner = match resize {
            Resize::Square => [size, size],
            Resize::LongestSide => {
                let scale = size as f64 / width.max(height) as f64;
                let side = |n: usize| ((n as f64 * scale + 0.5) as usize).clamp(1, size);
                [side(width), side(height)]
            }
        };
        Fit { picture: [width, height], inner, size }
    }

    /// A point of the picture in the square's frame.
    pub fn point(&self, x: f32, y: f32) -> (f32, f32) {
        (x * self.inner[0] as f32 / self.picture[0] as f32, y * self.inner[1] as f32 / self.picture[1] as f32)
    }

    /// The picture resized (Pillow's antialiased bilinear), not yet padded: RGB bytes of `inner`.
    ///
    /// # Errors
    /// A data error for a picture without pixels.
    pub fn resized(&self, picture: &Picture) -> Result<Vec<u8>> {
        let [w, h] = self.inner;
        let failed = |e: &dyn std::fmt::Display| {
            Error::data(format!("cannot resize a picture of {}×{} pixels: {e}", picture.width, picture.height))
        };
        if [w, h] == [picture.width, picture.height] {
            return Ok(picture.rgb.clone());
        }
        let source =
            fir::images::ImageRef::new(picture.width as u32, picture.height as u32, &picture.rgb, fir::PixelType::U8x3)
                .map_err(|e| failed(&e))?;
        let mut target = fir::images::Image::new(w as u32, h as u32, fir::PixelType::U8x3);
        let options = fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::Bilinear));
        fir::Resizer::new().resize(&source, &mut target, &options).map_err(|e| failed(&e))?;
        Ok(target.into_vec())
    }

    /// The network's input: normalised, then zero-padded, `[3, size, size]` row-major.
    ///
    /// # Errors
    /// A data error for a picture without pixels.
    pub fn pixels(&self, picture: &Picture) -> Result<Vec<f32>> {
        Ok(self.normalised(&self.resized(picture)?))
    }

    /// RGB bytes of `inner` as the network's input, `[3, size, size]`.
    pub fn normalised(&self, rgb: &[u8]) -> Vec<f32> {
        let [w, h] = self.inner;
        let mut out = vec![0f32; 3 * self.size * self.size];
        for (c, plane) in out.chunks_mut(self.size * self.size).enumerate() {
            for y in 0..h {
                let row = &mut plane[y * self.size..y * self.size + w];
                for (x, value) in row.iter_mut().enumerate() {
                    *value = (f32::from(rgb[3 * (y * w + x) + c]) - MEAN[c]) / STD[c];
                }
            }
        }
        out
    }

    /// A mask in the square's frame: nearest neighbour at pixel centres, 1 where the label is not 0 (`[size, size]`).
    /// Padding is 0.
    pub fn mask(&self, mask: &Labels) -> Vec<u8> {
        let [w, h] = self.inner;
        let [width, height] = self.picture;
        let mut out = vec![0u8; self.size * self.size];
        let source = |i: usize, inner: usize, outer: usize| ((2 * i + 1) * outer / (2 * inner)).min(outer - 1);
        for y in 0..h {
            let row = source(y, h, height) * width;
            for x in 0..w {
                out[y * self.size + x] = u8::from(mask.voxels[row + source(x, w, width)] != 0);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Grid;

    #[test]
    fn longest_side_rounds_as_the_official_predictor() {
        // 166 × 77 into 128: scale 128 / 166, 77 · 0.7711 = 59.37 → 59.
        let fit = Fit::new(166, 77, 128, Resize::LongestSide);
        assert_eq!(fit.inner, [128, 59]);
        assert_eq!(Fit::new(166, 77, 128, Resize::Square).inner, [128, 128]);
    }

    #[test]
    fn padding_is_zero_after_normalising() {
        let picture = Picture { width: 4, height: 2, rgb: vec![255; 24] };
        let fit = Fit::new(4, 2, 4, Resize::LongestSide);
        let pixels = fit.pixels(&picture).unwrap();
        assert_eq!(&pixels[8..16], &[0.0; 8], "rows below the picture");
        assert!((pixels[0] - (255.0 - MEAN[0]) / STD[0]).abs() < 1e-6);
    }

    #[test]
    fn a_mask_of_the_same_size_is_itself() {
        let mask = Labels { grid: Grid::picture(3, 3), voxels: vec![0, 1, 0, 2, 0, 0, 0, 0, 3] };
        let fit = Fit::new(3, 3, 3, Resize::Square);
        assert_eq!(fit.mask(&mask), vec![0, 1, 0, 1, 0, 0, 0, 0, 1]);
    }
}
