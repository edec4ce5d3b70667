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

/// A slice that is larger than the square by so little is shrunk into it: `--augment mild` covers more, and four squares
/// take four times as long.
const SLACK: f64 = 1.1;

/// Neighbouring squares over a picture that is larger than one lie at most two thirds of a side apart.
const STEP: (usize, usize) = (2, 3);

/// Where a picture of one size lies in the network's square: the only place that converts between the two frames.
///
/// A slice at a physical scale may be larger than the square: then each square shows a part of it, named by the part's
/// corner in the scaled picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Size of the picture, width and height.
    pub picture: [usize; 2],
    /// Size of the picture at the network's scale.
    pub inner: [usize; 2],
    /// Side of the square.
    pub size: usize,
    /// Padding to the left and above; the rest is to the right and below.
    pub margin: [usize; 2],
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
        Fit { picture: [width, height], inner, size, margin: [0, 0] }
    }

    /// How a slice whose pixels measure `pixel_mm` goes into a square whose pixels measure `mm`: each axis by its own.
    /// A smaller one lies in the middle, as patients lie in the middle of a scan, however wide its field is.
    pub fn at_scale(width: usize, height: usize, size: usize, pixel_mm: [f64; 2], mm: f64) -> Fit {
        let exact = [width as f64 * pixel_mm[0] / mm, height as f64 * pixel_mm[1] / mm];
        let over = exact[0].max(exact[1]) / size as f64;
        let shrink = if over > 1.0 && over <= SLACK { over } else { 1.0 };
        let inner = exact.map(|n| ((n / shrink + 0.5) as usize).max(1));
        Fit { picture: [width, height], inner, size, margin: inner.map(|n| size.saturating_sub(n) / 2) }
    }

    /// Size of what one square shows of it.
    pub fn extent(&self) -> [usize; 2] {
        self.inner.map(|n| n.min(self.size))
    }

    /// Whether one square shows all of it.
    pub fn is_whole(&self) -> bool {
        self.extent() == self.inner
    }

    /// Squares along each axis.
    fn counts(&self) -> [usize; 2] {
        let step = (self.size * STEP.0 / STEP.1).max(1);
        self.inner.map(|n| 1 + n.saturating_sub(self.size).div_ceil(step))
    }

    /// Number of squares that cover it.
    pub fn tile_count(&self) -> usize {
        self.counts()[0].saturating_mul(self.counts()[1])
    }

    /// Corners of squares that cover it, evenly spaced.
    pub fn tiles(&self) -> Vec<[usize; 2]> {
        let ([nx, ny], [ex, ey]) = (self.counts(), self.extent());
        let at = |i: usize, n: usize, room: usize| if n == 1 { 0 } else { i * room / (n - 1) };
        let row = |y: usize| (0..nx).map(move |x| [at(x, nx, self.inner[0] - ex), y]);
        (0..ny).flat_map(|y| row(at(y, ny, self.inner[1] - ey))).collect()
    }

    /// Corner of the square with this box of the picture, x0, y0, x1, y1, in its middle (at the picture's edge, as near
    /// as it goes); `None` when the box is larger than a square.
    pub fn tile_around(&self, [x0, y0, x1, y1]: [f32; 4]) -> Option<[usize; 2]> {
        let (low, high) = (self.point(x0, y0), self.point(x1, y1));
        let corner = |low: f32, high: f32, n: usize, extent: usize| {
            let middle = (low + high) / 2.0 - extent as f32 / 2.0;
            // A part of a pixel more, by rounding, is not larger.
            ((high - low) as usize <= extent).then(|| (middle.max(0.0).round() as usize).min(n - extent))
        };
        let ([w, h], [ex, ey]) = (self.inner, self.extent());
        Some([corner(low.0, high.0, w, ex)?, corner(low.1, high.1, h, ey)?])
    }

    /// A point of the picture in the frame of the square at a corner.
    pub fn in_square(&self, x: f32, y: f32, corner: [usize; 2]) -> (f32, f32) {
        let (x, y) = self.point(x, y);
        let place = |at: f32, axis: usize| at - corner[axis] as f32 + self.margin[axis] as f32;
        (place(x, 0), place(y, 1))
    }

    /// A point of the picture in the scaled picture's frame.
    pub fn point(&self, x: f32, y: f32) -> (f32, f32) {
        (x * self.inner[0] as f32 / self.picture[0] as f32, y * self.inner[1] as f32 / self.picture[1] as f32)
    }

    /// The picture resized (Pillow's antialiased bilinear): RGB bytes of `inner`.
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

    /// What the square at a corner shows of the RGB bytes of `inner`: bytes of `extent`.
    pub fn part(&self, rgb: &[u8], corner: [usize; 2]) -> Vec<u8> {
        let [w, h] = self.extent();
        let row = |y: usize| 3 * ((corner[1] + y) * self.inner[0] + corner[0]);
        (0..h).flat_map(|y| rgb[row(y)..row(y) + 3 * w].iter().copied()).collect()
    }

    /// RGB bytes of `extent` as the network's input: normalised, then zero-padded, `[3, size, size]` row-major.
    pub fn normalised(&self, rgb: &[u8]) -> Vec<f32> {
        let ([w, h], [left, above]) = (self.extent(), self.margin);
        let mut out = vec![0f32; 3 * self.size * self.size];
        for (c, plane) in out.chunks_mut(self.size * self.size).enumerate() {
            for y in 0..h {
                let row = &mut plane[(above + y) * self.size + left..][..w];
                for (x, value) in row.iter_mut().enumerate() {
                    *value = (f32::from(rgb[3 * (y * w + x) + c]) - MEAN[c]) / STD[c];
                }
            }
        }
        out
    }

    /// A mask at the network's scale, as large as `inner`: nearest neighbour at pixel centres, 1 where the label is not 0.
    pub fn mask(&self, mask: &Labels) -> Vec<u8> {
        let [w, h] = self.inner;
        let [width, height] = self.picture;
        let mut out = Vec::with_capacity(w * h);
        let source = |i: usize, inner: usize, outer: usize| ((2 * i + 1) * outer / (2 * inner)).min(outer - 1);
        for y in 0..h {
            let row = source(y, h, height) * width;
            out.extend((0..w).map(|x| u8::from(mask.voxels[row + source(x, w, width)] != 0)));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Grid, Mosaic};
    use crate::model::resize::bilinear;
    use crate::model::sam::{logits_fullsize, logits_shown};
    use crate::model::weights::to_vec;
    use burn::tensor::{Device, Tensor, TensorData};

    #[test]
    fn longest_side_rounds_as_the_official_predictor() {
        // 166 × 77 into 128: scale 128 / 166, 77 · 0.7711 = 59.37 → 59.
        let fit = Fit::new(166, 77, 128, Resize::LongestSide);
        assert_eq!(fit.inner, [128, 59]);
        assert_eq!(Fit::new(166, 77, 128, Resize::Square).inner, [128, 128]);
    }

    #[test]
    fn a_slice_at_a_scale_has_its_size_in_millimetres() {
        // 100 × 60 pixels of 0.8 × 2 mm are 80 × 120 mm; at 1.5 mm: 53.3 and 80.
        let fit = Fit::at_scale(100, 60, 128, [0.8, 2.0], 1.5);
        assert_eq!((fit.inner, fit.extent(), fit.tiles()), ([53, 80], [53, 80], vec![[0, 0]]));
        assert_eq!((fit.margin, fit.point(50.0, 30.0)), ([37, 24], (26.5, 40.0)));
        assert_eq!(fit.in_square(50.0, 30.0, [0, 0]), (63.5, 64.0), "the middle is in the middle");
        // 366 mm and 180 mm at 180 / 128 mm: 260.3 and 128 pixels. Two steps of at most 85 cross the 132 beyond a square.
        let fit = Fit::at_scale(122, 60, 128, [3.0; 2], 180.0 / 128.0);
        assert_eq!((fit.inner, fit.extent()), ([260, 128], [128, 128]));
        assert_eq!((fit.tiles(), fit.tile_count()), (vec![[0, 0], [66, 0], [132, 0]], 3));
        // 105 × 63 go into a square of 100 as they are, but for a twentieth; 112 do not.
        assert_eq!(Fit::at_scale(100, 60, 100, [1.05; 2], 1.0).inner, [100, 60]);
        assert_eq!(Fit::at_scale(100, 60, 100, [1.12; 2], 1.0).inner, [112, 67]);
        // Smaller than a pixel is a pixel.
        assert_eq!(Fit::at_scale(4, 4, 8, [0.001; 2], 1.0).inner, [1, 1]);
    }

    #[test]
    fn a_square_around_a_box_keeps_to_the_picture() {
        // Twice as large at the network's scale: 40 × 16 in a square of 16.
        let fit = Fit::at_scale(20, 8, 16, [2.0; 2], 1.0);
        // 9..11 is 18..22: the middle, 20, less half a square.
        assert_eq!(fit.tile_around([9.0, 3.0, 11.0, 5.0]), Some([12, 0]));
        assert_eq!(fit.tile_around([0.0, 0.0, 0.0, 0.0]), Some([0, 0]));
        assert_eq!(fit.tile_around([19.0, 7.0, 19.0, 7.0]), Some([24, 0]));
        assert_eq!(fit.tile_around([2.0, 0.0, 11.0, 1.0]), None, "18 pixels do not fit into 16");
        let whole = Fit::at_scale(31, 29, 16, [0.5; 2], 1.0);
        assert_eq!(whole.tile_around([0.0, 0.0, 31.0, 29.0]), Some([0, 0]));
    }

    #[test]
    fn a_part_is_cut_from_its_corner() {
        let fit = Fit::at_scale(3, 3, 2, [1.0; 2], 1.0);
        let rgb: Vec<u8> = (0..9).flat_map(|v| [v; 3]).collect();
        assert_eq!(fit.part(&rgb, [1, 1]), [4, 4, 4, 5, 5, 5, 7, 7, 7, 8, 8, 8]);
    }

    #[test]
    fn padding_is_zero_after_normalising() {
        let picture = Picture { width: 4, height: 2, rgb: vec![255; 24] };
        let fit = Fit::new(4, 2, 4, Resize::LongestSide);
        let pixels = fit.normalised(&fit.resized(&picture).unwrap());
        assert_eq!(&pixels[8..16], &[0.0; 8], "rows below the picture");
        assert!((pixels[0] - (255.0 - MEAN[0]) / STD[0]).abs() < 1e-6);
    }

    #[test]
    fn a_small_slice_lies_in_the_middle() {
        let fit = Fit::at_scale(2, 1, 4, [1.0; 2], 1.0);
        let pixels = fit.normalised(&[255; 6]);
        // One pixel to the left and to the right, one row above and two below.
        let white: Vec<usize> = (0..16).filter(|i| pixels[*i] != 0.0).collect();
        assert_eq!(white, [5, 6]);
    }

    #[test]
    fn a_mask_of_the_same_size_is_itself() {
        let mask = Labels { grid: Grid::picture(3, 3), voxels: vec![0, 1, 0, 2, 0, 0, 0, 0, 3] };
        let fit = Fit::new(3, 3, 3, Resize::Square);
        assert_eq!(fit.mask(&mask), vec![0, 1, 0, 1, 0, 0, 0, 0, 1]);
    }

    /// Middle of what is marked, in pixels' edges.
    fn middle(marked: impl Fn(usize, usize) -> bool, size: [usize; 2]) -> [f64; 2] {
        let all = (0..size[0] * size[1]).map(|i| (i % size[0], i / size[0]));
        let inside: Vec<(usize, usize)> = all.filter(|(x, y)| marked(*x, *y)).collect();
        let mean = |of: &dyn Fn(&(usize, usize)) -> usize| {
            inside.iter().map(|p| of(p) as f64 + 0.5).sum::<f64>() / inside.len() as f64
        };
        [mean(&|p| p.0), mean(&|p| p.1)]
    }

    /// A box of the picture: its pixels and its corners come to the same place in the square, and what a network says
    /// there comes back to where the box was.
    #[test]
    fn there_and_back_a_box_stays_where_it_is() {
        let scaled = |width, height, mm| Fit::at_scale(width, height, 64, [0.8, 1.5], mm);
        for fit in [
            Fit::new(48, 40, 64, Resize::LongestSide),
            Fit::new(77, 166, 64, Resize::LongestSide),
            Fit::new(48, 40, 64, Resize::Square),
            Fit::new(77, 166, 64, Resize::Square),
            // Smaller than the square, with its margins; shrunk a little; seen in parts.
            scaled(60, 31, 1.2),
            scaled(84, 40, 1.0),
            scaled(150, 70, 0.9),
        ] {
            let [width, height] = fit.picture;
            let [x0, y0, x1, y1] = [width / 3, height / 2, 3 * width / 4, 4 * height / 5];
            let is_inside = |x: usize, y: usize| (x0..x1).contains(&x) && (y0..y1).contains(&y);
            let inside: Vec<bool> = (0..width * height).map(|i| is_inside(i % width, i / width)).collect();
            let rgb = inside.iter().flat_map(|i| [if *i { 255 } else { 0 }; 3]).collect();
            let rgb = fit.resized(&Picture { width, height, rgb }).unwrap();
            let voxels = inside.iter().map(|i| u16::from(*i)).collect();
            let mask = fit.mask(&Labels { grid: Grid::picture(width, height), voxels });
            let size = fit.size;
            let mut mosaic = Mosaic::new(&fit);
            let mut logits = Tensor::zeros([1, 1, size, size], &Device::flex());
            for corner in fit.tiles() {
                let pixels = fit.normalised(&fit.part(&rgb, corner));
                if fit.is_whole() {
                    // Half of the way from black to white, as the network sees it.
                    let bright = |x: usize, y: usize| pixels[y * size + x] > (127.5 - MEAN[0]) / STD[0];
                    let found = middle(bright, [size; 2]);
                    let (low, high) =
                        (fit.in_square(x0 as f32, y0 as f32, corner), fit.in_square(x1 as f32, y1 as f32, corner));
                    let expected = [(low.0 + high.0) / 2.0, (low.1 + high.1) / 2.0].map(f64::from);
                    assert!(
                        (0..2).all(|n| (found[n] - expected[n]).abs() <= 0.5),
                        "{fit:?}: {found:?} for {expected:?}"
                    );
                }
                let ([w, h], [left, above]) = (fit.extent(), fit.margin);
                let mut said = vec![-9f32; size * size];
                for (x, y) in (0..w * h).map(|i| (i % w, i / w)) {
                    let marked = mask[(corner[1] + y) * fit.inner[0] + corner[0] + x] == 1;
                    said[(above + y) * size + left + x] = if marked { 9.0 } else { -9.0 };
                }
                logits = Tensor::from_data(TensorData::new(said, [1, 1, size, size]), &Device::flex());
                mosaic.add(corner, &to_vec(logits_shown(logits.clone(), &fit)));
            }
            let back = match fit.is_whole() {
                true => logits_fullsize(logits, &fit),
                false => {
                    let all = TensorData::new(mosaic.mean(f32::NAN), [1, 1, fit.inner[1], fit.inner[0]]);
                    bilinear(Tensor::from_data(all, &Device::flex()), height, width)
                }
            };
            let back = to_vec(back);
            assert_eq!(back.len(), width * height);
            let wrong = back.iter().zip(&inside).filter(|(back, inside)| (**back > 0.0) != **inside).count();
            // Not more than a seam as wide as what a pixel of the square shows, on two of the four sides.
            let step = (0..2).map(|n| fit.picture[n].div_ceil(fit.inner[n])).max().unwrap();
            assert!(wrong <= step * (x1 - x0 + y1 - y0), "{fit:?}: {wrong} pixels");
            let (was, is) = (middle(is_inside, fit.picture), middle(|x, y| back[y * width + x] > 0.0, fit.picture));
            assert!((0..2).all(|n| (was[n] - is[n]).abs() <= 0.5 * step as f64), "{fit:?}: {is:?} for {was:?}");
        }
    }
}
