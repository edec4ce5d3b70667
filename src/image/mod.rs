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
