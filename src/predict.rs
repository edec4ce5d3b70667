//! From a picture or volume to probabilities on its own grid: the one path that training's validation, the final test
//! and `segft predict` all take.

use crate::error::{Error, Result};
use crate::image::{Axis, Fit, Labels, Mosaic, Picture, Resize, SliceFrame, Volume, Window, cut, mirrored};
use crate::model::Sam;
pub use crate::model::kernel::Precision;
use crate::model::resize::bilinear;
use crate::model::sam::{Cache, Embedding, Masks, PointLabel, Prompt, logits_fullsize, logits_shown};
use crate::model::weights::to_vec;
use burn::tensor::{Device, Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How cases are brought into the network: fixed when training starts and stored with every fine-tune.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Side of the network's square, in pixels.
    pub image_size: usize,
    /// How a picture fills the square.
    pub resize: Resize,
    /// Subtracted from each channel, in 0..255.
    pub mean: [f32; 3],
    /// Each channel is divided by it.
    pub std: [f32; 3],
    /// The plane in which volumes are cut.
    pub axis: Axis,
    /// Grey levels of volumes.
    pub window: Window,
    /// Channel of volumes with several.
    pub channel: usize,
    /// Slices below and above, as red and blue.
    pub context: usize,
    /// Labels that are foreground, merged; every label but 0 when empty.
    pub labels: Vec<u16>,
    /// Millimetres along one pixel of the square, for volumes; where there is none, every slice fills the square.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spacing_mm: Option<f32>,
}

/// Squares that cover one slice, at most: a header in another unit must not ask for all memory.
const MOST_SQUARES: usize = 256;

/// Logit of what no square shows.
const UNSEEN: f32 = -30.0;

impl Preprocessing {
    /// SAM's own preprocessing at a size.
    pub fn new(image_size: usize) -> Preprocessing {
        Preprocessing {
            image_size,
            resize: Resize::default(),
            mean: crate::image::fit::MEAN,
            std: crate::image::fit::STD,
            axis: Axis::Auto,
            window: Window::Auto,
            channel: 0,
            context: 0,
            labels: Vec::new(),
            spacing_mm: None,
        }
    }

    /// The reference as it is trained and scored: 1 where foreground, else 0.
    pub fn foreground(&self, labels: Labels) -> Labels {
        labels.merged(&self.labels)
    }

    /// Where a picture of this size lies in the square.
    pub fn fit(&self, width: usize, height: usize) -> Fit {
        Fit::new(width, height, self.image_size, self.resize)
    }

    /// Where the slices of a volume lie in the square, or in several.
    ///
    /// # Errors
    /// A data error when they are far too large for the scale.
    pub fn fit_slices(&self, frame: &SliceFrame) -> Result<Fit> {
        let (width, height, pixel_mm) = (frame.width(), frame.height(), frame.pixel_spacing_mm());
        let Some(mm) = self.spacing_mm else { return Ok(self.fit(width, height)) };
        let fit = Fit::at_scale(width, height, self.image_size, pixel_mm, f64::from(mm));
        if fit.tile_count() > MOST_SQUARES {
            return Err(Error::data(format!(
                "slices of {:.1} × {:.1} mm are {} × {} pixels at the model's {mm} mm: more than {MOST_SQUARES} squares",
                width as f64 * pixel_mm[0],
                height as f64 * pixel_mm[1],
                fit.inner[0],
                fit.inner[1]
            ))
            .hint("look at the volume's spacing with `segft info`, or train with another --spacing, or --spacing off"));
        }
        Ok(fit)
    }
}

/// Prompts in pixels of the original picture.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompts {
    /// (x, y, inside or outside).
    pub points: Vec<(f32, f32, PointLabel)>,
    /// Corners x0, y0, x1, y1.
    pub bounds: Option<[f32; 4]>,
}

impl Prompts {
    /// Whether nothing is pointed at.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty() && self.bounds.is_none()
    }

    /// The smallest box with everything in it, x0, y0, x1, y1.
    fn around(&self) -> [f32; 4] {
        let corners = self.bounds.iter().flat_map(|[x0, y0, x1, y1]| [(*x0, *y0), (*x1, *y1)]);
        let all = corners.chain(self.points.iter().map(|(x, y, _)| (*x, *y)));
        all.fold([f32::MAX, f32::MAX, f32::MIN, f32::MIN], |[x0, y0, x1, y1], (x, y)| {
            [x0.min(x), y0.min(y), x1.max(x), y1.max(y)]
        })
    }

    /// As they are in the mirrored picture.
    fn mirrored(&self, size: [usize; 2], axes: [bool; 2]) -> Prompts {
        let along = |at: f32, axis: usize| if axes[axis] { (size[axis] - 1) as f32 - at } else { at };
        let points = self.points.iter().map(|(x, y, label)| (along(*x, 0), along(*y, 1), *label)).collect();
        let bounds = self.bounds.map(|[x0, y0, x1, y1]| {
            let ([x0, x1], [y0, y1]) = ([x0, x1].map(|x| along(x, 0)), [y0, y1].map(|y| along(y, 1)));
            [x0.min(x1), y0.min(y1), x0.max(x1), y0.max(y1)]
        });
        Prompts { points, bounds }
    }

    /// In the frame of the square at a corner.
    fn fitted(&self, fit: &Fit, corner: [usize; 2]) -> Prompt {
        let point = |x: f32, y: f32| fit.in_square(x, y, corner);
        let bounds = self.bounds.map(|[x0, y0, x1, y1]| {
            let ((x0, y0), (x1, y1)) = (point(x0, y0), point(x1, y1));
            [x0, y0, x1, y1]
        });
        let points = self.points.iter().map(|(x, y, label)| {
            let (x, y) = point(*x, *y);
            (x, y, *label)
        });
        Prompt { points: points.collect(), bounds }
    }
}

/// How often a picture is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Views {
    /// Once.
    One,
    /// Also mirrored left to right, top to bottom, and both: the probability is the mean of four. Four times the work.
    Mirrored,
}

impl Views {
    /// By which axes each view is mirrored.
    fn axes(self) -> &'static [[bool; 2]] {
        match self {
            Views::One => &[[false, false]],
            Views::Mirrored => &[[false, false], [true, false], [false, true], [true, true]],
        }
    }
}

/// A network that is ready to predict.
#[derive(Debug, Clone)]
pub struct Predictor {
    sam: Sam,
    views: Views,
    preprocessing: Preprocessing,
    device: Device,
    embeddings: Option<Arc<Cache>>,
}

impl Predictor {
    /// Takes the network as it is now, as a constant.
    pub fn new(sam: &Sam, preprocessing: &Preprocessing, device: &Device) -> Predictor {
        let (preprocessing, device) = (preprocessing.clone(), device.clone());
        Predictor { sam: sam.frozen(), views: Views::One, preprocessing, device, embeddings: None }
    }

    /// Looks at pictures and slices so often.
    pub fn with_views(self, views: Views) -> Predictor {
        Predictor { views, ..self }
    }

    /// The encoder's linear layers multiply in this precision; f32 without it.
    pub fn computing_in(mut self, precision: Precision) -> Predictor {
        self.sam.weights.compute_in(precision);
        self
    }

    /// Takes embeddings from a cache, and puts new ones there: for an encoder whose blocks do not train.
    pub fn with_embeddings(self, embeddings: Option<Arc<Cache>>) -> Predictor {
        Predictor { embeddings, ..self }
    }

    /// How cases are brought into the network.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    /// Probability of foreground for every pixel, row by row at the picture's own size.
    ///
    /// A single point is ambiguous: of the three masks for it, the one with the best predicted IoU is taken.
    ///
    /// # Errors
    /// A data error for a picture without pixels.
    pub fn picture(&self, picture: &Picture, prompts: &Prompts) -> Result<Vec<f32>> {
        self.viewed(picture, self.preprocessing.fit(picture.width, picture.height), prompts)
    }

    /// As [`Predictor::picture`], of a picture or slice that lies in the square as `fit` says: the mean of all views.
    fn viewed(&self, picture: &Picture, fit: Fit, prompts: &Prompts) -> Result<Vec<f32>> {
        let (size, views) = ([picture.width, picture.height], self.views.axes());
        let mut mean = vec![0f32; size[0] * size[1]];
        for axes in views {
            let seen = self.fitted(&picture.mirrored(*axes), fit, &prompts.mirrored(size, *axes))?;
            let back = mirrored(&seen, size[0], *axes);
            mean.iter_mut().zip(back).for_each(|(mean, p)| *mean += p / views.len() as f32);
        }
        Ok(mean)
    }

    /// One view of a picture or slice that lies in the square as `fit` says. Without prompts, what is
    /// larger than the square is seen in overlapping ones, and their logits are averaged. What is pointed at is seen in
    /// the one square around it, and the rest is background; prompts farther apart than that are seen in one square that
    /// shows all.
    fn fitted(&self, picture: &Picture, fit: Fit, prompts: &Prompts) -> Result<Vec<f32>> {
        let (fit, corners) = match prompts.is_empty() {
            true => (fit, fit.tiles()),
            false => match fit.tile_around(prompts.around()) {
                Some(corner) => (fit, vec![corner]),
                None => (self.preprocessing.fit(picture.width, picture.height), vec![[0, 0]]),
            },
        };
        let rgb = fit.resized(picture)?;
        if fit.is_whole() {
            let low_res = self.logits(&fit, &rgb, [0, 0], prompts);
            return Ok(to_vec(activation::sigmoid(logits_fullsize(low_res, &fit))));
        }
        let mut mosaic = Mosaic::new(&fit);
        for corner in corners {
            let low_res = self.logits(&fit, &fit.part(&rgb, corner), corner, prompts);
            mosaic.add(corner, &to_vec(logits_shown(low_res, &fit)));
        }
        let [w, h] = fit.inner;
        let logits = Tensor::from_data(TensorData::new(mosaic.mean(UNSEEN), [1, 1, h, w]), &self.device);
        Ok(to_vec(activation::sigmoid(bilinear(logits, picture.height, picture.width))))
    }

    /// Logits `[1, 1, 4s, 4s]` of one square, whose RGB bytes are those of `fit.extent()` at a corner.
    fn logits(&self, fit: &Fit, rgb: &[u8], corner: [usize; 2], prompts: &Prompts) -> Tensor<4> {
        let (pixels, size) = (fit.normalised(rgb), fit.size);
        let embedding = match &self.embeddings {
            Some(cache) => cache.embed(&self.sam, &pixels, &self.device),
            None => self.sam.embed(Tensor::from_data(TensorData::new(pixels, [1, 3, size, size]), &self.device)),
        };
        let ambiguous = prompts.points.len() == 1 && prompts.bounds.is_none();
        let masks = if ambiguous { Masks::Multi } else { Masks::Single };
        let decoded = self.sam.decode(embedding, &[prompts.fitted(fit, corner)], None, masks);
        let best = to_vec(decoded.iou)
            .iter()
            .enumerate()
            .fold((0, f32::MIN), |best, (i, v)| if *v > best.1 { (i, *v) } else { best });
        let [b, _, h, w] = decoded.low_res.dims();
        decoded.low_res.slice([0..b, best.0..best.0 + 1, 0..h, 0..w])
    }

    /// Probability of foreground for every voxel, in the volume's own order. `slice_done` is called after each slice;
    /// `prompts` gives what is pointed at in a slice.
    ///
    /// # Errors
    /// A data error for a volume without voxels, or one that is far too large for the model's scale.
    pub fn volume(
        &self,
        volume: &Volume,
        prompts: impl Fn(usize) -> Option<Prompts>,
        mut slice_done: impl FnMut(usize, usize),
    ) -> Result<Vec<f32>> {
        let frame = SliceFrame::new(&volume.grid, self.preprocessing.axis);
        let fit = self.preprocessing.fit_slices(&frame)?;
        let levels = self.preprocessing.window.resolve(volume);
        let mut probabilities = vec![0f32; volume.grid.len()];
        for slice in 0..frame.count() {
            // A slice without prompts stays background when others have some.
            if let Some(prompts) = prompts(slice) {
                let picture = cut(volume, &frame, slice, &levels, self.preprocessing.context);
                let plane = self.viewed(&picture, fit, &prompts)?;
                for (pixel, p) in plane.into_iter().enumerate() {
                    let (x, y) = (pixel % frame.width(), pixel / frame.width());
                    probabilities[frame.index(slice, x, y)] = p;
                }
            }
            slice_done(slice + 1, frame.count());
        }
        Ok(probabilities)
    }
}

/// Foreground where the probability reaches the threshold.
pub fn threshold(probabilities: &[f32], threshold: f32) -> Vec<u16> {
    probabilities.iter().map(|p| u16::from(*p >= threshold)).collect()
}

/// Logits of the prompt-free single mask at the network's size, for training: `[batch, 3, size, size]` →
/// `[batch, 1, size, size]`.
pub fn prompt_free_logits(sam: &Sam, pixels: Tensor<4>) -> Tensor<4> {
    let size = pixels.dims()[3];
    logits_of(sam, sam.embed(pixels), size)
}

/// As [`prompt_free_logits`], of pictures that are embedded already; `size` is the side of the square.
pub fn logits_of(sam: &Sam, embedding: Embedding, size: usize) -> Tensor<4> {
    let prompts = vec![Prompt::default(); embedding.coarse.dims()[0]];
    let decoded = sam.decode(embedding, &prompts, None, Masks::Single);
    bilinear(decoded.low_res, size, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_of_before_there_was_a_scale_has_none() {
        let now = serde_json::to_value(Preprocessing { spacing_mm: Some(1.40625), ..Preprocessing::new(128) }).unwrap();
        assert_eq!(serde_json::from_value::<Preprocessing>(now.clone()).unwrap().spacing_mm, Some(1.40625));
        let mut old = now;
        old.as_object_mut().unwrap().remove("spacing_mm");
        let read = serde_json::from_value::<Preprocessing>(old.clone()).unwrap();
        assert_eq!(read, Preprocessing::new(128));
        // And one without a scale is written as it was.
        assert_eq!(serde_json::to_value(&read).unwrap(), old);
        old["spacing"] = 1.into();
        assert!(serde_json::from_value::<Preprocessing>(old).is_err(), "an unknown key is never passed over");
    }

    #[test]
    fn prompts_are_mirrored_with_their_picture() {
        let prompts = Prompts { points: vec![(9.0, 3.0, PointLabel::Outside)], bounds: Some([8.0, 2.0, 11.0, 5.0]) };
        let twice = prompts.mirrored([20, 7], [true, true]).mirrored([20, 7], [true, true]);
        assert_eq!(twice, prompts);
        let across = prompts.mirrored([20, 7], [true, false]);
        assert_eq!((across.points[0].0, across.points[0].1, across.bounds), (10.0, 3.0, Some([8.0, 2.0, 11.0, 5.0])));
        assert_eq!(prompts.mirrored([20, 7], [false, true]).bounds, Some([8.0, 1.0, 11.0, 4.0]));
        assert_eq!(mirrored(&[1, 2, 3, 4, 5, 6], 3, [true, false]), [3, 2, 1, 6, 5, 4]);
        assert_eq!(mirrored(&[1, 2, 3, 4, 5, 6], 3, [false, true]), [4, 5, 6, 1, 2, 3]);
    }

    #[test]
    fn a_prompt_is_told_from_the_corner_of_its_square() {
        let prompts = Prompts { points: vec![(9.0, 3.0, PointLabel::Inside)], bounds: Some([8.0, 2.0, 11.0, 5.0]) };
        assert_eq!(prompts.around(), [8.0, 2.0, 11.0, 5.0]);
        // Twice as large at the network's scale, 40 × 14 in a square of 16: one row of padding above and below.
        let fitted = prompts.fitted(&Fit::at_scale(20, 7, 16, [2.0; 2], 1.0), [12, 0]);
        assert_eq!(fitted.points, [(6.0, 7.0, PointLabel::Inside)]);
        assert_eq!(fitted.bounds, Some([4.0, 5.0, 10.0, 11.0]));
    }
}
