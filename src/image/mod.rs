//! The backbone types: where voxels lie in space, and what they hold. No files, no network.

pub mod fit;
mod grid;
mod mosaic;
mod slice;
mod spacing;
mod window;

pub use fit::{Fit, Resize};
pub use grid::{Direction, Grid};
pub use mosaic::Mosaic;
pub use slice::{Axis, SliceFrame, cut, cut_labels, paste};
pub use spacing::Spacing;
pub use window::{Levels, PRESETS, Preset, Window};

/// Intensities on a grid: `f32` after slope and intercept, first axis fastest (`i + ni * (j + nj * k)`).
#[derive(Debug, Clone, PartialEq)]
pub struct Volume {
    /// Where the voxels lie.
    pub grid: Grid,
    /// One value a voxel, first axis fastest.
    pub voxels: Vec<f32>,
}

/// Class values on a grid, first axis fastest. A separate type, so that labels are never interpolated.
///
/// A 2-D mask is `Labels` on [`Grid::picture`]: pixel (x, y) is `voxels[y * width + x]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Where the voxels lie.
    pub grid: Grid,
    /// One class a voxel; 0 is background.
    pub voxels: Vec<u16>,
}

impl Labels {
    /// One foreground: 1 where the label is one of these (any but 0 when none is named), else 0.
    pub fn merged(mut self, labels: &[u16]) -> Labels {
        for value in &mut self.voxels {
            *value = u16::from(*value != 0 && (labels.is_empty() || labels.contains(value)));
        }
        self
    }
}

/// An 8-bit RGB picture: what the network sees, read from a file or cut from a volume through a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[r, g, b, r, g, b, …]`, row by row from the top.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// Left to right, top to bottom, as asked.
    pub fn mirrored(&self, axes: [bool; 2]) -> Picture {
        let pixels: Vec<[u8; 3]> = self.rgb.as_chunks().0.to_vec();
        Picture { rgb: mirrored(&pixels, self.width, axes).concat(), ..*self }
    }
}

/// Values of rows of `width`, each mirrored left to right (the first of `axes`), the rows top to bottom (the second).
pub fn mirrored<T: Copy>(values: &[T], width: usize, axes: [bool; 2]) -> Vec<T> {
    let height = values.len() / width.max(1);
    let from = |at: usize, n: usize, mirror: bool| if mirror { n - 1 - at } else { at };
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    places.map(|(x, y)| values[from(y, height, axes[1]) * width + from(x, width, axes[0])]).collect()
}
