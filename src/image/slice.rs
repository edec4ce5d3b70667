//! Cutting a volume into pictures and putting label pictures back.
//!
//! The affine, not the storage order, decides what is shown where: the same anatomy looks the same however the file
//! is stored. Pictures are laid out as radiologists look at them, slices are counted along RAS+:
//!
//! | plane | picture x | picture y | slices |
//! |---|---|---|---|
//! | axial | right to left | anterior to posterior | inferior to superior |
//! | coronal | right to left | superior to inferior | posterior to anterior |
//! | sagittal | anterior to posterior | superior to inferior | left to right |

use super::{Grid, Labels, Levels, Picture, Volume};
use crate::error::{Error, Result, nearest};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The plane in which a volume is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Across the file axis of length 1, if there is one; else across the axis whose spacing is more than 1.5 times
    /// every other (the plane of acquisition); else axial.
    #[default]
    Auto,
    /// Seen from the feet.
    Axial,
    /// Seen from the front.
    Coronal,
    /// Seen from the side.
    Sagittal,
}

const AXES: [(&str, Axis); 4] =
    [("auto", Axis::Auto), ("axial", Axis::Axial), ("coronal", Axis::Coronal), ("sagittal", Axis::Sagittal)];

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        AXES.iter().filter(|(_, axis)| axis == self).try_for_each(|(name, _)| f.write_str(name))
    }
}

impl FromStr for Axis {
    type Err = Error;

    fn from_str(text: &str) -> Result<Axis> {
        if let Some((_, axis)) = AXES.iter().find(|(name, _)| *name == text) {
            return Ok(*axis);
        }
        let hint = match nearest(text, AXES.iter().map(|(name, _)| *name)) {
            Some(name) => format!("did you mean `{name}`?"),
            None => "known are auto, axial, coronal, sagittal".to_string(),
        };
        Err(Error::usage(format!("unknown axis `{text}`")).hint(hint))
    }
}

/// How the slices of a grid are cut: three file axes in the order (slice, x, y), each perhaps reversed.
#[derive(Debug, Clone, PartialEq)]
pub struct SliceFrame {
    plane: Axis,
    file_axes: [usize; 3],
    sizes: [usize; 3],
    strides: [usize; 3],
    reversed: [bool; 3],
    spacing_mm: [f64; 3],
}

impl SliceFrame {
    /// Decides the cut for a grid; `Axis::Auto` is resolved here.
    pub fn new(grid: &Grid, axis: Axis) -> SliceFrame {
        let directions = grid.directions();
        let plane = match axis {
            Axis::Auto => match thick_axis(grid).map(|n| directions[n].world) {
                Some(0) => Axis::Sagittal,
                Some(1) => Axis::Coronal,
                _ => Axis::Axial,
            },
            given => given,
        };
        // World axes of (slice, x, y). Slices are counted along RAS+; both directions in the picture run against it.
        let worlds = match plane {
            Axis::Sagittal => [0, 1, 2],
            Axis::Coronal => [1, 0, 2],
            Axis::Axial | Axis::Auto => [2, 0, 1],
        };
        let file_axes = worlds.map(|world| grid.axis_along(world));
        let strides = [1, grid.shape[0], grid.shape[0] * grid.shape[1]];
        SliceFrame {
            plane,
            file_axes,
            sizes: file_axes.map(|n| grid.shape[n]),
            strides: file_axes.map(|n| strides[n]),
            reversed: std::array::from_fn(|n| directions[file_axes[n]].positive != (n == 0)),
            spacing_mm: file_axes.map(|n| grid.spacing_mm[n]),
        }
    }

    /// The plane of the slices: never `Auto`.
    pub fn plane(&self) -> Axis {
        self.plane
    }

    /// The file axis across the slices (0, 1 or 2).
    pub fn file_axis(&self) -> usize {
        self.file_axes[0]
    }

    /// Number of slices.
    pub fn count(&self) -> usize {
        self.sizes[0]
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.sizes[1]
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.sizes[2]
    }

    /// Distance between pixel centres in x and y, in millimetres.
    pub fn pixel_spacing_mm(&self) -> [f64; 2] {
        [self.spacing_mm[1], self.spacing_mm[2]]
    }

    /// Distance between slices, in millimetres.
    pub fn slice_spacing_mm(&self) -> f64 {
        self.spacing_mm[0]
    }

    /// Offset in the volume's voxels of pixel (x, y) of a slice; all three must lie within the frame's sizes.
    pub fn index(&self, slice: usize, x: usize, y: usize) -> usize {
        let place = [slice, x, y];
        (0..3).map(|n| self.strides[n] * self.turned(n, place[n])).sum()
    }

    /// The (slice, x, y) of a voxel (i, j, k) within the grid: prompts in voxels to pixels of a slice.
    pub fn locate(&self, i: usize, j: usize, k: usize) -> (usize, usize, usize) {
        let voxel = [i, j, k];
        let place = |n: usize| self.turned(n, voxel[self.file_axes[n]]);
        (place(0), place(1), place(2))
    }

    fn turned(&self, n: usize, position: usize) -> usize {
        if self.reversed[n] { self.sizes[n] - 1 - position } else { position }
    }

    /// Offsets of a slice's pixels, row by row from the top. Slices beyond the last are the last.
    fn offsets(&self, slice: usize) -> impl Iterator<Item = usize> + '_ {
        let slice = slice.min(self.count() - 1);
        (0..self.height()).flat_map(move |y| (0..self.width()).map(move |x| self.index(slice, x, y)))
    }
}

/// The axis that `auto` cuts across for the shape or spacing alone, if either is clear.
fn thick_axis(grid: &Grid) -> Option<usize> {
    let single: Vec<usize> = (0..3).filter(|n| grid.shape[*n] == 1).collect();
    if let [only] = single[..] {
        return Some(only);
    }
    (0..3).find(|n| (0..3).all(|other| other == *n || grid.spacing_mm[*n] > 1.5 * grid.spacing_mm[other]))
}

/// Cuts one slice. `context` 0: grey in all three channels; n: the slices n below, here and n above as red, green and
/// blue, the ends repeated. `frame` must be made from the volume's own grid.
pub fn cut(volume: &Volume, frame: &SliceFrame, slice: usize, levels: &Levels, context: usize) -> Picture {
    let (width, height) = (frame.width(), frame.height());
    let mut rgb = vec![0; 3 * width * height];
    let slices = [slice.saturating_sub(context), slice, slice.saturating_add(context)];
    for (channel, slice) in slices.into_iter().enumerate() {
        for (pixel, offset) in rgb.chunks_exact_mut(3).zip(frame.offsets(slice)) {
            pixel[channel] = levels.grey(volume.voxels[offset]);
        }
    }
    Picture { width, height, rgb }
}

/// Cuts one slice of a label map, on [`Grid::picture`]. `frame` must be made from the labels' own grid.
pub fn cut_labels(labels: &Labels, frame: &SliceFrame, slice: usize) -> Labels {
    let voxels = frame.offsets(slice).map(|offset| labels.voxels[offset]).collect();
    Labels { grid: Grid::picture(frame.width(), frame.height()), voxels }
}

/// Puts a 2-D label picture into its slice of a label map: the inverse of [`cut_labels`].
///
/// # Errors
/// A data error when the sizes do not fit or there is no such slice.
pub fn paste(labels: &mut Labels, frame: &SliceFrame, slice: usize, picture: &Labels) -> Result<()> {
    let (width, height) = (frame.width(), frame.height());
    if picture.grid.shape != [width, height, 1] || picture.voxels.len() != width * height || slice >= frame.count() {
        return Err(Error::data(format!(
            "slice {slice} of {} has {width} x {height} pixels, the mask {} x {}",
            frame.count(),
            picture.grid.shape[0],
            picture.grid.shape[1]
        )));
    }
    for (value, offset) in picture.voxels.iter().zip(frame.offsets(slice)) {
        labels.voxels[offset] = *value;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Window;

    /// A grid whose file axes (i, j, k) run to the given sides.
    fn grid(code: &str, shape: [usize; 3], spacing_mm: [f64; 3]) -> Grid {
        let mut affine = [[0.0; 4]; 4];
        for (n, letter) in code.chars().enumerate() {
            let world = "RLAPSI".find(letter).unwrap() / 2;
            affine[world][n] = if "RAS".contains(letter) { spacing_mm[n] } else { -spacing_mm[n] };
        }
        affine[3][3] = 1.0;
        Grid { shape, spacing_mm, affine }
    }

    /// All 48 ways to store three axes.
    fn codes() -> Vec<String> {
        let pairs = [["R", "L"], ["A", "P"], ["S", "I"]];
        let mut codes = Vec::new();
        for [a, b, c] in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            for sides in 0..8 {
                codes.push([pairs[a][sides & 1], pairs[b][sides >> 1 & 1], pairs[c][sides >> 2]].concat());
            }
        }
        codes
    }

    /// A value for the anatomical place (r, a, s), 0-based from left, posterior, inferior, in a 3 x 4 x 5 body.
    fn body(code: &str) -> Volume {
        let extent = [3, 4, 5];
        let worlds: Vec<usize> = code.chars().map(|letter| "RLAPSI".find(letter).unwrap() / 2).collect();
        let shape: [usize; 3] = std::array::from_fn(|n| extent[worlds[n]]);
        let mut voxels = Vec::new();
        for k in 0..shape[2] {
            for j in 0..shape[1] {
                for i in 0..shape[0] {
                    let mut place = [0; 3];
                    for (n, (letter, index)) in code.chars().zip([i, j, k]).enumerate() {
                        place[worlds[n]] = if "RAS".contains(letter) { index } else { shape[n] - 1 - index };
                    }
                    voxels.push((100 * place[0] + 10 * place[1] + place[2]) as f32);
                }
            }
        }
        Volume { grid: grid(code, shape, [1.0; 3]), voxels }
    }

    #[test]
    fn the_same_anatomy_looks_the_same_in_all_48_storage_orders() {
        let levels = Levels { lo: 0.0, hi: 255.0, fill: 0.0 };
        assert_eq!(codes().len(), 48);
        for code in codes() {
            let body = body(&code);
            let labels = Labels { grid: body.grid.clone(), voxels: body.voxels.iter().map(|v| *v as u16).collect() };
            let frame = SliceFrame::new(&body.grid, Axis::Axial);
            assert_eq!((frame.count(), frame.width(), frame.height()), (5, 3, 4), "{code}");
            let slice = cut_labels(&labels, &frame, 2);
            // Top left is right and anterior (r = 2, a = 3); x runs to the left, y to posterior.
            assert_eq!(slice.voxels[..6], [232, 132, 32, 222, 122, 22], "{code}");
            let coronal = cut_labels(&labels, &SliceFrame::new(&body.grid, Axis::Coronal), 1);
            assert_eq!(coronal.voxels[..4], [214, 114, 14, 213], "{code}");
            let sagittal = cut_labels(&labels, &SliceFrame::new(&body.grid, Axis::Sagittal), 0);
            assert_eq!(sagittal.voxels[..5], [34, 24, 14, 4, 33], "{code}");
            assert_eq!(cut(&body, &frame, 2, &levels, 0).rgb[..6], [232, 232, 232, 132, 132, 132], "{code}");
            // Context: inferior, here, superior; clamped at the top end.
            assert_eq!(cut(&body, &frame, 4, &levels, 1).rgb[3..6], [133, 134, 134], "{code}");
        }
    }

    #[test]
    fn cutting_locating_and_pasting_agree() {
        for code in ["RAS", "LPI", "SLA", "PIR"] {
            for axis in [Axis::Axial, Axis::Coronal, Axis::Sagittal] {
                let body = body(code);
                let frame = SliceFrame::new(&body.grid, axis);
                let original =
                    Labels { grid: body.grid.clone(), voxels: body.voxels.iter().map(|v| *v as u16).collect() };
                let mut rebuilt = Labels { voxels: vec![0; original.voxels.len()], ..original.clone() };
                for slice in 0..frame.count() {
                    paste(&mut rebuilt, &frame, slice, &cut_labels(&original, &frame, slice)).unwrap();
                }
                assert_eq!(rebuilt, original);
                let [ni, nj, nk] = body.grid.shape;
                for (i, j, k) in [(0, 0, 0), (ni - 1, 1, 0), (1, nj - 1, nk - 1)] {
                    let (slice, x, y) = frame.locate(i, j, k);
                    assert_eq!(frame.index(slice, x, y), i + ni * (j + nj * k));
                }
                let small = Labels { grid: Grid::picture(1, 1), voxels: vec![0] };
                assert!(paste(&mut rebuilt, &frame, 0, &small).is_err());
            }
        }
    }

    #[test]
    fn auto_follows_the_thick_axis_and_else_the_affine() {
        let plane = |code, shape, spacing| SliceFrame::new(&grid(code, shape, spacing), Axis::Auto).plane();
        assert_eq!(plane("RAS", [9, 9, 9], [1.0, 1.0, 1.0]), Axis::Axial);
        assert_eq!(plane("RAS", [9, 9, 9], [1.0, 3.0, 1.0]), Axis::Coronal);
        // i is thick and runs to superior.
        assert_eq!(plane("SRA", [9, 9, 9], [3.0, 1.0, 1.0]), Axis::Axial);
        assert_eq!(plane("ASR", [9, 9, 9], [1.0, 1.0, 2.0]), Axis::Sagittal);
        // Two thick axes, or one barely thicker: not clear.
        assert_eq!(plane("RAS", [9, 9, 9], [2.0, 2.0, 1.0]), Axis::Axial);
        assert_eq!(plane("RAS", [9, 9, 9], [1.0, 1.4, 1.0]), Axis::Axial);
        // A single slice is cut as it is, whatever its thickness.
        assert_eq!(plane("RAS", [9, 1, 9], [1.0, 1.0, 1.0]), Axis::Coronal);
        let frame = SliceFrame::new(&grid("SRA", [7, 8, 9], [3.0, 1.0, 2.0]), Axis::Axial);
        assert_eq!((frame.file_axis(), frame.pixel_spacing_mm(), frame.slice_spacing_mm()), (0, [1.0, 2.0], 3.0));
    }

    #[test]
    fn axes_are_written_as_they_are_read() {
        for (name, axis) in AXES {
            assert_eq!(name.parse::<Axis>().unwrap(), axis);
            assert_eq!(axis.to_string(), name);
            assert_eq!(serde_json::to_string(&axis).unwrap(), format!("\"{name}\""));
        }
        assert_eq!("axail".parse::<Axis>().unwrap_err().hint.unwrap(), "did you mean `axial`?");
        let body = body("RAS");
        let frame = SliceFrame::new(&body.grid, Axis::Axial);
        let far = cut(&body, &frame, 99, &Window::Auto.resolve(&body), usize::MAX);
        assert_eq!(far.rgb.len(), 36);
    }
}
