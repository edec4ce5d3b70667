//! The nuclear norm of a matrix that is zero but at chosen entries: its sub-gradient there.
//!
//! ‖A‖* = Σ σᵢ. With A = U S Vᵀ, zero singular values left out, U Vᵀ is a sub-gradient. The Gram matrix A Aᵀ = U S² Uᵀ
//! of the smaller side gives U and S by rotations, and U Vᵀ = (U S⁻¹ Uᵀ) A, of which only the chosen entries are
//! computed. Rows and columns without an entry are left out first.

use std::collections::BTreeMap;

/// Singular values below this part of the largest count as zero: their directions are rounding.
const ZERO: f64 = 1e-6;

/// The sub-gradient at flat `indices` of a matrix `[…, fan_in]` that holds `values` there and zeros elsewhere.
pub(super) fn subgradient(fan_in: usize, indices: &[u32], values: &[f32]) -> Vec<f32> {
    let places = indices.iter().map(|i| (*i as usize / fan_in, *i as usize % fan_in));
    let (rows, columns): (Vec<usize>, Vec<usize>) = places.unzip();
    let ((rows, n), (columns, m)) = (numbered(&rows), numbered(&columns));
    let (rows, columns, n, m) = if n <= m { (rows, columns, n, m) } else { (columns, rows, m, n) };
    let mut of_column: Vec<Vec<(usize, f64)>> = vec![Vec::new(); m];
    for ((row, column), value) in rows.iter().zip(&columns).zip(values) {
        of_column[*column].push((*row, f64::from(*value)));
    }
    let mut gram = vec![0f64; n * n];
    for entries in &of_column {
        for (i, x) in entries {
            entries.iter().for_each(|(j, y)| gram[i * n + j] += x * y);
        }
    }
    let vectors = diagonalise(&mut gram, n);
    let largest = (0..n).map(|i| gram[i * n + i]).fold(0.0, f64::max);
    let mut inverse_root = vec![0f64; n * n];
    for e in (0..n).filter(|e| gram[e * n + e] > ZERO * ZERO * largest) {
        let (vector, singular) = (&vectors[e * n..][..n], gram[e * n + e].sqrt());
        for (i, x) in vector.iter().enumerate() {
            inverse_root[i * n..][..n].iter_mut().zip(vector).for_each(|(w, y)| *w += x * y / singular);
        }
    }
    let at = |(row, column): (&usize, &usize)| {
        of_column[*column].iter().map(|(k, value)| inverse_root[row * n + k] * value).sum::<f64>() as f32
    };
    rows.iter().zip(&columns).map(at).collect()
}

/// Numbers in place of the values, in their order, and how many there are.
fn numbered(values: &[usize]) -> (Vec<usize>, usize) {
    let mut numbers: BTreeMap<usize, usize> = values.iter().map(|v| (*v, 0)).collect();
    numbers.values_mut().enumerate().for_each(|(i, number)| *number = i);
    (values.iter().map(|v| numbers[v]).collect(), numbers.len())
}

/// Jacobi's method: turns a symmetric matrix into the diagonal one of its eigenvalues, and gives its eigenvectors as
/// rows.
fn diagonalise(a: &mut [f64], n: usize) -> Vec<f64> {
    const SWEEPS: usize = 60;
    let mut vectors = vec![0f64; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    let whole: f64 = a.iter().map(|v| v * v).sum();
    for _ in 0..SWEEPS {
        let off: f64 = (0..n * n).filter(|i| i / n != i % n).map(|i| a[i] * a[i]).sum();
        if off <= 1e-28 * whole {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                let between = a[p * n + q];
                if between == 0.0 {
                    continue;
                }
                let ratio = (a[q * n + q] - a[p * n + p]) / (2.0 * between);
                let tangent = ratio.signum() / (ratio.abs() + ratio.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                let sine = tangent * cosine;
                let turn = |values: &mut [f64], x: usize, y: usize| {
                    (values[x], values[y]) =
                        (cosine * values[x] - sine * values[y], sine * values[x] + cosine * values[y]);
                };
                (0..n).for_each(|k| turn(a, p * n + k, q * n + k));
                (0..n).for_each(|k| turn(a, k * n + p, k * n + q));
                (0..n).for_each(|k| turn(&mut vectors, p * n + k, q * n + k));
            }
        }
    }
    vectors
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of a rotation of the first two axes, then of the last two.
    fn rotation<const N: usize>(first: f64, second: f64) -> [[f64; N]; N] {
        let mut rows = [[0.0; N]; N];
        (0..N).for_each(|i| rows[i][i] = 1.0);
        for (x, y, angle) in [(0, 1, first), (N - 2, N - 1, second), (0, N - 1, first + second)] {
            let (a, b) = (rows[x], rows[y]);
            rows[x] = std::array::from_fn(|k| angle.cos() * a[k] - angle.sin() * b[k]);
            rows[y] = std::array::from_fn(|k| angle.sin() * a[k] + angle.cos() * b[k]);
        }
        rows
    }

    /// Σ sᵢ uᵢ vᵢᵀ of 3 × 4, and Σ uᵢ vᵢᵀ over the s that are not zero: a singular value decomposition known from the
    /// start.
    fn known(singular: [f64; 3]) -> (Vec<f32>, Vec<f32>) {
        let (u, v) = (rotation::<3>(0.4, 1.1), rotation::<4>(-0.7, 0.3));
        let product = |s: [f64; 3]| -> Vec<f32> {
            let at = |i: usize, j: usize| (0..3).map(|k| s[k] * u[k][i] * v[k][j]).sum::<f64>() as f32;
            (0..12).map(|i| at(i / 4, i % 4)).collect()
        };
        (product(singular), product(singular.map(|s| f64::from(u8::from(s > 0.0)))))
    }

    #[test]
    fn it_is_that_of_a_known_decomposition() {
        let all: Vec<u32> = (0..12).collect();
        for singular in [[3.0, 2.0, 0.5], [1.0, 1.0, 1.0], [3.0, 0.002, 0.0], [2.0, 0.0, 0.0]] {
            let (matrix, want) = known(singular);
            let got = subgradient(4, &all, &matrix);
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() < 2e-4, "{singular:?}: {got} against {want}");
            }
            // And on its side.
            let turned: Vec<f32> = (0..12).map(|i| matrix[i % 3 * 4 + i / 3]).collect();
            let got = subgradient(3, &all, &turned);
            assert!((0..12).all(|i| (got[i] - want[i % 3 * 4 + i / 3]).abs() < 2e-4), "{singular:?}");
        }
    }

    #[test]
    fn it_is_the_slope_of_the_norm_at_the_chosen_entries() {
        // Five entries of 4 × 6, a row and three columns without any.
        let (indices, values) = ([1u32, 2, 8, 13, 14], [0.5f32, -1.5, 2.0, 0.25, 0.75]);
        // The norm itself: A · U Vᵀ summed is Σ σ.
        let norm = |values: &[f32]| {
            let slope = subgradient(6, &indices, values);
            slope.iter().zip(values).map(|(s, v)| f64::from(s * v)).sum::<f64>()
        };
        let slope = subgradient(6, &indices, &values);
        for i in 0..5 {
            let mut moved = [values, values];
            moved[0][i] += 1e-2;
            moved[1][i] -= 1e-2;
            let difference = (norm(&moved[0]) - norm(&moved[1])) / 2e-2;
            assert!((difference - f64::from(slope[i])).abs() < 1e-3, "{i}: {difference} against {}", slope[i]);
        }
        // A single entry's norm is its size.
        assert_eq!(subgradient(6, &[9], &[-3.0]), [-1.0]);
        assert_eq!(subgradient(6, &[9], &[0.0]), [0.0]);
        assert!(subgradient(6, &[], &[]).is_empty());
    }
}
