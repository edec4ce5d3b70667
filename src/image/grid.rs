//! Where voxels lie in the scanner's space, and which way the axes of a file run there.
//!
//! Storage order says nothing about anatomy: the affine does. Orientation codes and the closest axis follow nibabel's
//! `aff2axcodes`, so that a name printed here is the name a Python user sees.

use crate::error::{Error, Result};

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

/// Which way one axis of the file runs in the scanner's space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Direction {
    /// The closest axis of RAS+ space: 0 is left to right, 1 posterior to anterior, 2 inferior to superior.
    pub world: usize,
    /// Whether growing indices run to the right, anterior or superior.
    pub positive: bool,
}

impl Direction {
    /// The side that growing indices run to: one of `R L A P S I`.
    pub fn letter(self) -> char {
        let (positive, negative) = [('R', 'L'), ('A', 'P'), ('S', 'I')][self.world];
        if self.positive { positive } else { negative }
    }
}

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

    /// Where each file axis runs, as nibabel's `io_orientation` decides: strongest axis first, each world axis once.
    pub fn directions(&self) -> [Direction; 3] {
        let rotation = nearest_rotation(self.unit_columns());
        let strength = |axis: usize| (0..3).map(|world| rotation[world][axis].powi(2)).fold(0.0, f64::max);
        let mut order = [0, 1, 2];
        order.sort_by(|a, b| strength(*b).total_cmp(&strength(*a)));
        let mut directions = [Direction { world: 0, positive: true }; 3];
        let mut free = vec![0, 1, 2];
        for axis in order {
            // The first of equals, as numpy's argmax. A column of zeros gets whatever axis is left.
            let mut best = 0;
            for n in 1..free.len() {
                if rotation[free[n]][axis].abs() > rotation[free[best]][axis].abs() {
                    best = n;
                }
            }
            let world = free.remove(best);
            directions[axis] = Direction { world, positive: rotation[world][axis] >= 0.0 };
        }
        directions
    }

    /// Orientation code such as `RAS` or `LPS`: the sides that growing i, j and k run to.
    pub fn orientation(&self) -> String {
        self.directions().iter().map(|direction| direction.letter()).collect()
    }

    /// The file axis closest to a world axis (0 right, 1 anterior, 2 superior).
    pub fn axis_along(&self, world: usize) -> usize {
        self.directions().iter().position(|direction| direction.world == world).unwrap_or(world)
    }

    /// RAS+ millimetres of a voxel index.
    pub fn to_mm(&self, index: [f64; 3]) -> [f64; 3] {
        std::array::from_fn(|row| (0..3).map(|n| self.affine[row][n] * index[n]).sum::<f64>() + self.affine[row][3])
    }

    /// Voxel index (not rounded, not clipped) of a point in RAS+ millimetres; `None` when the affine has no inverse.
    pub fn from_mm(&self, mm: [f64; 3]) -> Option<[f64; 3]> {
        let linear = std::array::from_fn(|row| std::array::from_fn(|n| self.affine[row][n]));
        let inverse = inverse(linear)?;
        Some(std::array::from_fn(|row| (0..3).map(|n| inverse[row][n] * (mm[n] - self.affine[n][3])).sum()))
    }

    /// The voxel that a prompt names: `i,j,k` (indices) or `mm:x,y,z` (RAS+ millimetres, nearest voxel).
    ///
    /// # Errors
    /// A usage error when the text is neither, or the point lies outside the grid.
    pub fn voxel(&self, text: &str) -> Result<[usize; 3]> {
        let (is_mm, list) = text.strip_prefix("mm:").map_or((false, text), |rest| (true, rest));
        let numbers: Vec<f64> = list.split(',').filter_map(|n| n.trim().parse().ok()).collect();
        let point = <[f64; 3]>::try_from(numbers)
            .ok()
            .filter(|p| list.split(',').count() == 3 && p.iter().all(|v| v.is_finite()));
        let point = point.ok_or_else(|| {
            Error::usage(format!("`{text}` is not a point of a volume"))
                .hint("write `i,j,k` voxels or `mm:x,y,z` in RAS")
        })?;
        let index = if is_mm {
            self.from_mm(point).ok_or_else(|| Error::data("the affine of the volume has no inverse"))?
        } else {
            point
        };
        let inside = index.iter().zip(self.shape).all(|(v, n)| v.round() >= 0.0 && v.round() < n as f64);
        if !inside {
            return Err(Error::usage(format!(
                "point `{text}` is voxel {:.1},{:.1},{:.1}, outside the volume of {:?} voxels",
                index[0], index[1], index[2], self.shape
            )));
        }
        Ok(index.map(|v| v.round() as usize))
    }

    /// Columns of the affine, scaled to length 1 (zero columns stay).
    fn unit_columns(&self) -> [[f64; 3]; 3] {
        let length: [f64; 3] =
            std::array::from_fn(|n| (0..3).map(|row| self.affine[row][n].powi(2)).sum::<f64>().sqrt());
        std::array::from_fn(|row| {
            std::array::from_fn(|n| self.affine[row][n] / if length[n] == 0.0 { 1.0 } else { length[n] })
        })
    }
}

/// The orthogonal factor of the polar decomposition, by Newton's iteration: shear must not decide what an axis is
/// called. A matrix without inverse is returned as it is.
fn nearest_rotation(matrix: [[f64; 3]; 3]) -> [[f64; 3]; 3] {
    let mut rotation = matrix;
    for _ in 0..60 {
        let Some(inverse) = inverse(rotation) else { return matrix };
        let next: [[f64; 3]; 3] =
            std::array::from_fn(|row| std::array::from_fn(|n| 0.5 * (rotation[row][n] + inverse[n][row])));
        let moved = (0..9).map(|n| (next[n / 3][n % 3] - rotation[n / 3][n % 3]).abs()).fold(0.0, f64::max);
        rotation = next;
        if moved < 1e-15 {
            break;
        }
    }
    rotation
}

/// Inverse by cofactors; `None` when singular to rounding.
fn inverse(m: [[f64; 3]; 3]) -> Option<[[f64; 3]; 3]> {
    let cofactor = |row: usize, n: usize| {
        let (r1, r2, c1, c2) = ((row + 1) % 3, (row + 2) % 3, (n + 1) % 3, (n + 2) % 3);
        m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1]
    };
    let determinant: f64 = (0..3).map(|n| m[0][n] * cofactor(0, n)).sum();
    let scale: f64 = (0..3).map(|n| (0..3).map(|row| m[row][n].powi(2)).sum::<f64>().sqrt()).product();
    if !determinant.is_finite() || determinant.abs() <= 1e-12 * scale {
        return None;
    }
    Some(std::array::from_fn(|row| std::array::from_fn(|n| cofactor(n, row) / determinant)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(rows: [[f64; 4]; 3]) -> Grid {
        let mut affine = Grid::picture(1, 1).affine;
        affine[..3].copy_from_slice(&rows);
        Grid { shape: [10, 20, 30], spacing_mm: [1.0; 3], affine }
    }

    #[test]
    fn codes_name_the_side_that_indices_grow_towards() {
        let lps = grid([[-2.0, 0.0, 0.0, 9.0], [0.0, -2.0, 0.0, 9.0], [0.0, 0.0, 3.0, 0.0]]);
        assert_eq!(lps.orientation(), "LPS");
        // i runs to superior, j to the left, k to anterior.
        let sla = grid([[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]);
        assert_eq!(sla.orientation(), "SLA");
        assert_eq!((sla.axis_along(0), sla.axis_along(1), sla.axis_along(2)), (1, 2, 0));
    }

    #[test]
    fn every_world_axis_is_used_once_even_when_columns_lean_the_same_way() {
        // Both i and j lean to the right; i more so (checked with nibabel 5.4.2: RAS).
        let leaning = grid([[1.0, 0.8, 0.0, 0.0], [0.1, 0.6, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]);
        assert_eq!(leaning.orientation(), "RAS");
        let flat = grid([[0.0; 4], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]);
        assert_eq!(flat.orientation(), "RAS");
        assert_eq!(flat.from_mm([0.0; 3]), None);
    }

    #[test]
    fn millimetres_and_voxels_are_inverse() {
        // x = -2 i + 9, so 5 mm is i = 2; y = j - 3, so 4 mm is j = 7; z = 2.5 k, so 10 mm is k = 4.
        let g = grid([[-2.0, 0.0, 0.0, 9.0], [0.0, 1.0, 0.0, -3.0], [0.0, 0.0, 2.5, 0.0]]);
        assert_eq!(g.to_mm([2.0, 7.0, 4.0]), [5.0, 4.0, 10.0]);
        assert_eq!(g.voxel("mm:5,4,10").ok(), Some([2, 7, 4]));
        assert_eq!(g.voxel("2, 7, 4").ok(), Some([2, 7, 4]));
        for wrong in ["2,7", "2,7,x", "2,7,4,1", "mm:2,7", "10,0,0", "-1,0,0", "NaN,0,0", ""] {
            assert!(g.voxel(wrong).is_err(), "{wrong}");
        }
    }
}
