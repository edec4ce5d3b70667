//! One case on its way through the network: read, predict, write on the same grid.

use crate::data::Form;
use crate::error::Result;
use crate::image::{Grid, Labels, Picture, SliceFrame, Volume};
use crate::io::{nifti, picture as pictures};
use crate::predict::{Predictor, Preprocessing, Prompts};
use std::path::{Path, PathBuf};

/// A picture, or a volume with the header its result must carry.
#[derive(Debug, Clone)]
pub enum Input {
    /// One picture.
    Picture(Picture),
    /// One volume.
    Volume(Volume, Box<nifti::Template>),
}

impl Input {
    /// Reads a file by what its name says.
    ///
    /// # Errors
    /// A data error naming the file.
    pub fn read(path: &Path, channel: usize) -> Result<Input> {
        if nifti::is_nifti(path) {
            let (volume, template) = nifti::read_volume(path, channel)?;
            Ok(Input::Volume(volume, Box::new(template)))
        } else {
            Ok(Input::Picture(pictures::read_picture(path)?))
        }
    }

    /// Pictures or volumes.
    pub fn form(&self) -> Form {
        match self {
            Input::Picture(_) => Form::Pictures,
            Input::Volume(..) => Form::Volumes,
        }
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Input::Picture(picture) => picture.rgb.len(),
            Input::Volume(volume, _) => size_of_val(volume.voxels.as_slice()),
        }
    }

    /// Pictures that the network sees of it: of a volume, the squares that cover each slice.
    pub fn pictures(&self, preprocessing: &Preprocessing) -> usize {
        match self {
            Input::Picture(_) => 1,
            Input::Volume(volume, _) => {
                let frame = SliceFrame::new(&volume.grid, preprocessing.axis);
                frame.count() * preprocessing.fit_slices(&frame).map_or(1, |fit| fit.tile_count())
            }
        }
    }

    /// Where the voxels lie.
    pub fn grid(&self) -> Grid {
        match self {
            Input::Picture(picture) => Grid::picture(picture.width, picture.height),
            Input::Volume(volume, _) => volume.grid.clone(),
        }
    }

    /// Probability of foreground on the input's grid. `prompts` says what is pointed at in a slice (a picture is slice
    /// 0); `slice_done` is called with (done, of).
    ///
    /// # Errors
    /// A data error for an input without voxels.
    pub fn probabilities(
        &self,
        predictor: &Predictor,
        prompts: impl Fn(usize) -> Option<Prompts>,
        mut slice_done: impl FnMut(usize, usize),
    ) -> Result<Vec<f32>> {
        match self {
            Input::Picture(picture) => {
                let probabilities = predictor.picture(picture, &prompts(0).unwrap_or_default())?;
                slice_done(1, 1);
                Ok(probabilities)
            }
            Input::Volume(volume, _) => predictor.volume(volume, prompts, slice_done),
        }
    }

    /// Labels on the input's grid where the probability reaches the threshold.
    pub fn labels(&self, probabilities: &[f32], threshold: f32) -> Labels {
        Labels { grid: self.grid(), voxels: crate::predict::threshold(probabilities, threshold) }
    }

    /// Writes labels: a PNG of 0 and 255, or NIfTI with the input's header.
    ///
    /// # Errors
    /// A job error when the file cannot be written.
    pub fn write_labels(&self, path: &Path, labels: &Labels) -> Result<()> {
        match self {
            Input::Picture(_) => pictures::write_mask(path, labels),
            Input::Volume(_, template) => nifti::write_labels(path, labels, template),
        }
    }

    /// Writes probabilities: an 8-bit grey PNG, or f32 NIfTI.
    ///
    /// # Errors
    /// A job error when the file cannot be written.
    pub fn write_probabilities(&self, path: &Path, probabilities: &[f32]) -> Result<()> {
        match self {
            Input::Picture(p) => pictures::write_probabilities(path, p.width, p.height, probabilities),
            Input::Volume(_, template) => nifti::write_values(path, probabilities, template),
        }
    }
}

/// No prompt anywhere: every slice is predicted.
pub fn prompt_free(_: usize) -> Option<Prompts> {
    Some(Prompts::default())
}

/// `folder/<id>.png` or `folder/<id>.nii.gz`.
pub fn result_path(folder: &Path, id: &str, form: Form) -> PathBuf {
    folder.join(match form {
        Form::Pictures => format!("{id}.png"),
        Form::Volumes => format!("{id}.nii.gz"),
    })
}
