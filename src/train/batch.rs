//! Samples in memory: pictures and slices decoded and resized once, augmented from a seeded generator.

use crate::data::{Case, Form};
use crate::error::{Error, Result};
use crate::image::{Fit, Labels, Picture, SliceFrame, cut, cut_labels};
use crate::io::{nifti, picture as pictures};
use crate::predict::Preprocessing;
use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// One picture or slice at the network's scale, with its mask. One larger than the square is shown in parts.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Where it lies in the square.
    pub fit: Fit,
    /// RGB bytes of `fit.inner`.
    rgb: Vec<u8>,
    /// 0 or 1, as large as `fit.inner`.
    mask: Vec<u8>,
}

/// A batch on the device: pixels `[n, 3, size, size]`, target and valid `[n, 1, size, size]`.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Normalised, padded pictures.
    pub pixels: Tensor<4>,
    /// 1 where foreground.
    pub target: Tensor<4>,
    /// 1 where the picture is, 0 in the padding.
    pub valid: Tensor<4>,
}

/// Whether training pictures are varied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Augment {
    /// As they are.
    Off,
    /// Flips, small turns, scales and shifts, brightness and contrast.
    Mild,
    /// Any turn, twice the range of everything else: for pretraining, and for very few pictures.
    Strong,
}

/// Reads cases into samples, in the order of the cases (and slices).
///
/// Of a volume, every slice with foreground is taken and, evenly spaced, at most half as many without (at least one):
/// the network must see empty slices, but not mostly.
///
/// # Errors
/// The first unreadable or mismatched case, by name.
pub fn load(cases: &[Case], form: Form, preprocessing: &Preprocessing) -> Result<Vec<Sample>> {
    let per_case: Vec<Vec<Sample>> = cases
        .par_iter()
        .map(|case| match form {
            Form::Pictures => {
                let picture = pictures::read_picture(&case.image)?;
                let mask = read_reference(case, form, preprocessing)?;
                Ok(vec![sample(&picture, &mask, preprocessing).map_err(|e| e.at(&case.image))?])
            }
            Form::Volumes => slices(case, preprocessing),
        })
        .collect::<Result<_>>()?;
    Ok(per_case.into_iter().flatten().collect())
}

/// Reads a case's reference, foreground merged into 1.
///
/// # Errors
/// A data error naming the file.
pub fn read_reference(case: &Case, form: Form, preprocessing: &Preprocessing) -> Result<Labels> {
    Ok(preprocessing.foreground(read_labels(case, form)?))
}

/// Reads a case's reference as it is stored.
///
/// # Errors
/// A data error naming the file.
pub fn read_labels(case: &Case, form: Form) -> Result<Labels> {
    match form {
        Form::Pictures => pictures::read_mask(&case.mask),
        Form::Volumes => nifti::read_labels(&case.mask),
    }
}

fn slices(case: &Case, preprocessing: &Preprocessing) -> Result<Vec<Sample>> {
    let (volume, _) = nifti::read_volume(&case.image, preprocessing.channel)?;
    let labels = read_reference(case, Form::Volumes, preprocessing)?;
    if let Some(difference) = volume.grid.difference(&labels.grid) {
        return Err(Error::data(format!("case `{}`: image and labels lie on different grids: {difference}", case.id))
            .at(&case.mask)
            .hint("resample the labels onto the image's grid"));
    }
    let frame = SliceFrame::new(&volume.grid, preprocessing.axis);
    let fit = preprocessing.fit_slices(&frame).map_err(|e| e.at(&case.image))?;
    let levels = preprocessing.window.resolve(&volume);
    let masks: Vec<Labels> = (0..frame.count()).map(|slice| cut_labels(&labels, &frame, slice)).collect();
    let (full, empty): (Vec<usize>, Vec<usize>) =
        (0..masks.len()).partition(|slice| masks[*slice].voxels.iter().any(|v| *v != 0));
    let wanted = (full.len() / 2).clamp(1, empty.len().max(1)).min(empty.len());
    let spaced = (0..wanted).map(|i| empty[(2 * i + 1) * empty.len() / (2 * wanted)]);
    let mut chosen: Vec<usize> = full.iter().copied().chain(spaced).collect();
    chosen.sort_unstable();
    let one = |slice: usize| {
        let picture = cut(&volume, &frame, slice, &levels, preprocessing.context);
        sample_at(fit, &picture, &masks[slice])
    };
    chosen.into_iter().map(one).collect::<Result<_>>().map_err(|e| e.at(&case.image))
}

/// A decoded picture and its mask as a sample.
///
/// # Errors
/// A data error when their sizes differ.
pub fn sample(picture: &Picture, mask: &Labels, preprocessing: &Preprocessing) -> Result<Sample> {
    sample_at(preprocessing.fit(picture.width, picture.height), picture, mask)
}

fn sample_at(fit: Fit, picture: &Picture, mask: &Labels) -> Result<Sample> {
    if mask.grid.shape[..2] != [picture.width, picture.height] {
        let [w, h, _] = mask.grid.shape;
        return Err(Error::data(format!(
            "the picture has {} × {} pixels, its mask {w} × {h}",
            picture.width, picture.height
        )));
    }
    Ok(Sample { fit, rgb: fit.resized(picture)?, mask: fit.mask(mask) })
}

impl Sample {
    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.rgb.len() + self.mask.len()
    }

    /// Whether anything is foreground.
    pub fn has_foreground(&self) -> bool {
        self.mask.contains(&1)
    }

    /// RGB bytes of what the square shows (`fit.extent()`) and the square's mask (`size × size`), both varied by what is
    /// drawn for this seed, epoch and number.
    pub fn varied(&self, augment: Augment, seed: u64, epoch: u64, number: u64) -> (Vec<u8>, Vec<u8>) {
        let corner = self.corner(seed, epoch, number);
        match augment {
            Augment::Off => (self.fit.part(&self.rgb, corner), self.mask_at(corner)),
            Augment::Mild => Change::draw(&MILD, seed, epoch, number).apply(self, corner),
            Augment::Strong => Change::draw(&STRONG, seed, epoch, number).apply(self, corner),
        }
    }

    /// Where the square lies on a sample that is larger: half of the time somewhere with a foreground pixel drawn by
    /// chance in it (as nnU-Net sees to a third), else anywhere.
    fn corner(&self, seed: u64, epoch: u64, number: u64) -> [usize; 2] {
        if self.fit.is_whole() {
            return [0, 0];
        }
        let mut rng = generator(seed, CORNERS + (epoch << 32) + number);
        let ([w, h], [ex, ey]) = (self.fit.inner, self.fit.extent());
        let foreground = self.mask.iter().filter(|m| **m != 0).count();
        let pixel = if foreground > 0 && rng.random::<bool>() {
            let nth = rng.random_range(0..foreground);
            self.mask.iter().enumerate().filter(|(_, m)| **m != 0).nth(nth).map(|(i, _)| [i % w, i / w])
        } else {
            None
        };
        let mut along = |axis: usize, n: usize, extent: usize| {
            let (first, last) = match pixel {
                Some(pixel) => ((pixel[axis] + 1).saturating_sub(extent), pixel[axis].min(n - extent)),
                None => (0, n - extent),
            };
            rng.random_range(first..=last)
        };
        [along(0, w, ex), along(1, h, ey)]
    }

    /// The mask of the square at a corner; padding is background.
    fn mask_at(&self, corner: [usize; 2]) -> Vec<u8> {
        let ([w, h], [left, above], size) = (self.fit.extent(), self.fit.margin, self.fit.size);
        let mut out = vec![0; size * size];
        for y in 0..h {
            let row = (corner[1] + y) * self.fit.inner[0] + corner[0];
            out[(above + y) * size + left..][..w].copy_from_slice(&self.mask[row..row + w]);
        }
        out
    }
}

/// A batch in main memory: it can be made ahead, on another thread.
#[derive(Debug, Clone)]
pub struct Drawn {
    /// Side of the square.
    pub size: usize,
    /// Normalised, padded pictures, one after the other.
    pub pixels: Vec<f32>,
    target: Vec<f32>,
    valid: Vec<f32>,
}

impl Drawn {
    /// Puts it on a device.
    pub fn on(self, device: &Device) -> Batch {
        let (n, size) = (self.valid.len() / (self.size * self.size), self.size);
        let tensor = |data: Vec<f32>, channels: usize| {
            Tensor::<4>::from_data(TensorData::new(data, [n, channels, size, size]), device)
        };
        Batch { valid: tensor(self.valid, 1), target: tensor(self.target, 1), pixels: tensor(self.pixels, 3) }
    }
}

/// As [`draw`], on a device.
pub fn batch(samples: &[Sample], chosen: &[usize], augment: Augment, seed: u64, epoch: u64, device: &Device) -> Batch {
    draw(samples, chosen, augment, seed, epoch).on(device)
}

/// Puts samples together. Each is varied by its own generator, drawn from the seed, the epoch and the sample's number,
/// so a batch does not depend on what was drawn before it: resuming in the middle of an epoch needs no saved state.
pub fn draw(samples: &[Sample], chosen: &[usize], augment: Augment, seed: u64, epoch: u64) -> Drawn {
    let size = chosen.first().map(|i| samples[*i].fit.size).unwrap_or(1);
    let area = size * size;
    let parts: Vec<(Vec<f32>, Vec<u8>)> = chosen
        .par_iter()
        .map(|i| {
            let sample = &samples[*i];
            let (rgb, mask) = sample.varied(augment, seed, epoch, *i as u64);
            (sample.fit.normalised(&rgb), mask)
        })
        .collect();
    let inside = |sample: &Sample, pixel: usize| {
        let ([w, h], [left, above]) = (sample.fit.extent(), sample.fit.margin);
        (left..left + w).contains(&(pixel % size)) && (above..above + h).contains(&(pixel / size))
    };
    let valid = chosen.iter().flat_map(|i| (0..area).map(|p| f32::from(u8::from(inside(&samples[*i], p)))));
    Drawn {
        size,
        valid: valid.collect(),
        target: parts.iter().flat_map(|p| p.1.iter().copied().map(f32::from)).collect(),
        pixels: parts.into_iter().flat_map(|p| p.0).collect(),
    }
}

/// Streams of [`Sample::corner`]; a sample's variation has its own.
const CORNERS: u64 = 3 << 61;

/// A generator for one purpose within a run: streams of different purposes never overlap.
pub fn generator(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// How far a variation goes, up and down.
struct Reach {
    /// Radians.
    turn: f32,
    /// Of the scale 1.
    zoom: f32,
    /// Parts of width and height.
    shift: f32,
    /// Of the factor 1, all channels alike.
    contrast: f32,
    /// Of the factor 1, each channel for itself.
    colour: f32,
    /// In 0..255.
    brightness: f32,
}

const MILD: Reach = Reach { turn: 0.26, zoom: 0.15, shift: 0.06, contrast: 0.2, colour: 0.05, brightness: 20.0 };
const STRONG: Reach =
    Reach { turn: std::f32::consts::PI, zoom: 0.3, shift: 0.12, contrast: 0.4, colour: 0.1, brightness: 40.0 };

/// One random variation of a picture.
#[derive(Debug)]
struct Change {
    /// Output offsets from the centre → source offsets, row-major 2 × 2.
    turn: [f32; 4],
    /// Shift of the source, as parts of width and height.
    shift: [f32; 2],
    /// Factor and offset of each channel, in 0..255.
    gain: [f32; 3],
    offset: f32,
}

impl Change {
    fn draw(reach: &Reach, seed: u64, epoch: u64, sample: u64) -> Change {
        let mut rng = generator(seed, 1 + (epoch << 32) + sample);
        let mut around = |middle: f32, by: f32| middle - by + 2.0 * by * rng.random::<f32>();
        let (flip_x, flip_y) = (around(0.0, 1.0) < 0.0, around(0.0, 1.0) < 0.0);
        let (angle, zoom) = (around(0.0, reach.turn), around(1.0, reach.zoom));
        let (x, y) = (if flip_x { -zoom } else { zoom }, if flip_y { -zoom } else { zoom });
        let (sin, cos) = angle.sin_cos();
        let shift = [around(0.0, reach.shift), around(0.0, reach.shift)];
        let contrast = around(1.0, reach.contrast);
        let gain = [0; 3].map(|_| contrast * around(1.0, reach.colour));
        Change { turn: [cos * x, -sin * y, sin * x, cos * y], shift, gain, offset: around(0.0, reach.brightness) }
    }

    /// What the square at a corner shows, varied about its middle: picture (bilinear) and mask (nearest). What a turn
    /// brings in comes from the sample around the square; outside of the sample is black and background.
    fn apply(&self, sample: &Sample, corner: [usize; 2]) -> (Vec<u8>, Vec<u8>) {
        let ([w, h], [width, height], size) = (sample.fit.extent(), sample.fit.inner, sample.fit.size);
        let [left, above] = sample.fit.margin;
        let (cx, cy) = ((w as f32 - 1.0) / 2.0, (h as f32 - 1.0) / 2.0);
        let (mx, my) = (cx + corner[0] as f32, cy + corner[1] as f32);
        let mut rgb = vec![0u8; 3 * w * h];
        let mut mask = vec![0u8; size * size];
        for y in 0..h {
            for x in 0..w {
                let (dx, dy) = (x as f32 - cx, y as f32 - cy);
                let sx = self.turn[0] * dx + self.turn[1] * dy + mx + self.shift[0] * w as f32;
                let sy = self.turn[2] * dx + self.turn[3] * dy + my + self.shift[1] * h as f32;
                if sx < 0.0 || sy < 0.0 || sx > (width - 1) as f32 || sy > (height - 1) as f32 {
                    continue;
                }
                mask[(above + y) * size + left + x] = sample.mask[(sy + 0.5) as usize * width + (sx + 0.5) as usize];
                let (x0, y0) = (sx as usize, sy as usize);
                let (x1, y1) = ((x0 + 1).min(width - 1), (y0 + 1).min(height - 1));
                let (fx, fy) = (sx - x0 as f32, sy - y0 as f32);
                for c in 0..3 {
                    let at = |x: usize, y: usize| f32::from(sample.rgb[3 * (y * width + x) + c]);
                    let top = at(x0, y0) * (1.0 - fx) + at(x1, y0) * fx;
                    let low = at(x0, y1) * (1.0 - fx) + at(x1, y1) * fx;
                    let value = (top * (1.0 - fy) + low * fy) * self.gain[c] + self.offset;
                    rgb[3 * (y * w + x) + c] = (value + 0.5).clamp(0.0, 255.0) as u8;
                }
            }
        }
        (rgb, mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Grid;

    fn square() -> Sample {
        let picture = Picture { width: 8, height: 8, rgb: (0..192).map(|v| v as u8).collect() };
        let mut mask = Labels { grid: Grid::picture(8, 8), voxels: vec![0; 64] };
        mask.voxels[3 * 8 + 2] = 1;
        sample(&picture, &mask, &Preprocessing::new(8)).unwrap()
    }

    #[test]
    fn a_flip_moves_picture_and_mask_alike() {
        let change = Change { turn: [-1.0, 0.0, 0.0, 1.0], shift: [0.0; 2], gain: [1.0; 3], offset: 0.0 };
        let (rgb, mask) = change.apply(&square(), [0, 0]);
        assert_eq!(mask.iter().position(|m| *m == 1), Some(3 * 8 + 5), "x = 2 becomes 7 - 2 = 5");
        assert_eq!(rgb[..3], square().rgb[21..24]);
    }

    #[test]
    fn a_batch_depends_on_seed_epoch_and_sample_only() {
        let samples = vec![square(), square(), square()];
        let device = Device::flex();
        let pixels = |chosen: &[usize], seed, epoch| {
            crate::model::weights::to_vec(batch(&samples, chosen, Augment::Mild, seed, epoch, &device).pixels)
        };
        let both = pixels(&[1, 2], 5, 3);
        assert_eq!(both[192..], pixels(&[2], 5, 3)[..]);
        assert_ne!(both[192..], pixels(&[2], 5, 4)[..]);
        assert_ne!(both[192..], both[..192]);
    }

    /// 12 × 8 pixels of 2 mm at 1 mm a pixel in a square of 8: 24 × 16, foreground at (20..22, 4..6) of it.
    fn large() -> Sample {
        let picture = Picture { width: 12, height: 8, rgb: (0..288).map(|v| v as u8).collect() };
        let mut mask = Labels { grid: Grid::picture(12, 8), voxels: vec![0; 96] };
        mask.voxels[2 * 12 + 10] = 1;
        sample_at(Fit::at_scale(12, 8, 8, [2.0; 2], 1.0), &picture, &mask).unwrap()
    }

    #[test]
    fn a_sample_larger_than_the_square_is_shown_where_the_foreground_is_half_of_the_time() {
        let sample = large();
        let corners: Vec<[usize; 2]> = (0..400).map(|epoch| sample.corner(5, epoch, 3)).collect();
        assert!(corners.iter().all(|[x, y]| *x <= 16 && *y <= 8));
        assert!(corners.contains(&[0, 0]) || corners.iter().any(|c| c[0] < 4), "also where there is none");
        // A foreground pixel is in sight in half of the draws, and in some of the others: corners 13 to 16 and 0 to 5
        // have one, 4 · 6 of 17 · 9. Half and 0.5 · 24 / 153 are 0.578; three standard deviations of 400 are 0.074.
        let seen = corners.iter().filter(|c| sample.mask_at(**c).contains(&1)).count();
        assert!((202..=261).contains(&seen), "{seen}");
        assert_eq!(sample.corner(5, 7, 3), corners[7]);
        assert_eq!(square().corner(5, 7, 3), [0, 0]);
    }

    #[test]
    fn the_padding_of_a_small_slice_is_not_valid() {
        // 2 × 4 pixels in the middle of a square of 4: one column to each side.
        let picture = Picture { width: 2, height: 4, rgb: vec![255; 24] };
        let mask = Labels { grid: Grid::picture(2, 4), voxels: vec![1; 8] };
        let samples = [sample_at(Fit::at_scale(2, 4, 4, [1.0; 2], 1.0), &picture, &mask).unwrap()];
        let still = Change { turn: [1.0, 0.0, 0.0, 1.0], shift: [0.0; 2], gain: [1.0; 3], offset: 0.0 };
        assert_eq!(still.apply(&samples[0], [0, 0]).1, samples[0].mask_at([0, 0]));
        let drawn = draw(&samples, &[0], Augment::Off, 0, 0);
        let columns = [0.0, 1.0, 1.0, 0.0].repeat(4);
        assert_eq!((drawn.valid, drawn.target), (columns.clone(), columns));
    }

    #[test]
    fn picture_and_mask_are_shown_from_the_same_corner() {
        let sample = large();
        let still = Change { turn: [1.0, 0.0, 0.0, 1.0], shift: [0.0; 2], gain: [1.0; 3], offset: 0.0 };
        for corner in [[0, 0], [13, 2], [16, 8]] {
            let (rgb, mask) = still.apply(&sample, corner);
            assert_eq!((&rgb, &mask), (&sample.fit.part(&sample.rgb, corner), &sample.mask_at(corner)));
        }
        // From (13, 2) the foreground of (20, 4) lies at (7, 2).
        assert_eq!(sample.mask_at([13, 2]).iter().position(|m| *m == 1), Some(2 * 8 + 7));
        let (rgb, mask) = sample.varied(Augment::Mild, 1, 2, 3);
        assert_eq!((rgb.len(), mask.len()), (3 * 64, 64));
    }
}
