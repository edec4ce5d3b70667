//! Where voxels lie in the scanner's space.

/// Shape, spacing and affine of a volume or picture, in the file's own axis order.
///
/// The affine maps voxel indices (i, j, k, 1) to RAS+ millimetres. Equality of grids is a matter of tolerance:
/// use [`Grid::difference`], not `==`.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// Voxels along each axis.
    pub shape: [usize; 3],
    /// Distance between voxel centres along each axis, in millimetres.
    pub spacing_mm: [f64; 3],
    /// Voxel indices to RAS+ millimetres, row by row.
    pub affine: [[f64; 4]; 4],
}

impl Eq for Grid {}

impl Grid {
    /// The grid of a picture: one slice, spacing 1, no place in space.
    pub fn picture(width: usize, height: usize) -> Grid {
        let mut affine = [[0.0; 4]; 4];
        for (i, row) in affine.iter_mut().enumerate() {
            row[i] = 1.0;
        }
        Grid { shape: [width, height, 1], spacing_mm: [1.0; 3], affine }
    }

    /// Number of voxels.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no voxel.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Why two grids are not the same (shape, spacing or affine, with both values), or `None`.
    /// Lengths may differ by rounding in a header: 1e-3 mm or 1e-4 relative.
    pub fn difference(&self, other: &Grid) -> Option<String> {
        if self.shape != other.shape {
            return Some(format!("shape {:?} against {:?}", self.shape, other.shape));
        }
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-3f64.max(1e-4 * a.abs().max(b.abs()));
        if self.spacing_mm.iter().zip(&other.spacing_mm).any(|(a, b)| !near(*a, *b)) {
            return Some(format!("spacing {:?} mm against {:?} mm", self.spacing_mm, other.spacing_mm));
        }
        let largest = (0..12).map(|n| (self.affine[n / 4][n % 4], other.affine[n / 4][n % 4]));
        if let Some((a, b)) =
            largest.filter(|(a, b)| !near(*a, *b)).max_by(|x, y| (x.0 - x.1).abs().total_cmp(&(y.0 - y.1).abs()))
        {
            return Some(format!("affine differs by {:.4} mm ({a:.4} against {b:.4})", (a - b).abs()));
        }
        None
    }
}
