//! Adafactor (Shazeer & Stern, arXiv 1804.04235, algorithms 4 and 5 with the settings of section 9): the second moment of a
//! matrix is kept as its rows' and columns' sums, and a step is relative to the size of the weight.

/// ε₁, added to squared gradients.
const EPSILON1: f64 = 1e-30;
/// ε₂: a weight counts as at least this large.
const EPSILON2: f64 = 1e-3;
/// d: an update's root mean square is at most this.
const CLIP: f64 = 1.0;

/// Second moments that were kept of no step yet: two vectors of a matrix of so many rows, one of anything else.
pub(super) fn start(values: usize, rows: Option<usize>) -> Vec<Vec<f32>> {
    match rows {
        Some(rows) => vec![vec![0.0; rows], vec![0.0; values / rows]],
        None => vec![vec![0.0; values]],
    }
}

/// The update at step `t`, from 1 on, in units of the learning rate, and new second moments in place of the old.
/// `scale` is the root mean square of the weight.
pub(super) fn update(gradient: &[f32], moments: &mut [Vec<f32>], scale: f64, t: u32) -> Vec<f32> {
    let keep = 1.0 - f64::from(t).powf(-0.8);
    let square = |g: f32| f64::from(g) * f64::from(g) + EPSILON1;
    let mix = |moment: &mut f32, new: f64| *moment = (keep * f64::from(*moment) + (1.0 - keep) * new) as f32;
    let update: Vec<f64> = match moments {
        [rows, columns] => {
            let width = columns.len();
            let mut below = vec![0.0; width];
            for (row, gradient) in rows.iter_mut().zip(gradient.chunks_exact(width)) {
                mix(row, gradient.iter().map(|g| square(*g)).sum());
                below.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += square(*g));
            }
            columns.iter_mut().zip(below).for_each(|(column, new)| mix(column, new));
            let total: f64 = rows.iter().map(|r| f64::from(*r)).sum();
            let one = |(i, g): (usize, &f32)| {
                let second = f64::from(rows[i / width]) / total * f64::from(columns[i % width]);
                f64::from(*g) / second.sqrt()
            };
            gradient.iter().enumerate().map(one).collect()
        }
        [all] => {
            let one = |(moment, g): (&mut f32, &f32)| {
                mix(moment, square(*g));
                f64::from(*g) / f64::from(*moment).sqrt()
            };
            all.iter_mut().zip(gradient).map(one).collect()
        }
        _ => Vec::new(),
    };
    let size = (update.iter().map(|u| u * u).sum::<f64>() / update.len().max(1) as f64).sqrt();
    let factor = scale.max(EPSILON2) / (size / CLIP).max(1.0);
    update.into_iter().map(|u| (u * factor) as f32).collect()
}

/// The root of the mean of squares.
pub(super) fn size(values: &[f32]) -> f64 {
    (values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / values.len().max(1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        got.iter().zip(want).for_each(|(g, w)| assert!((f64::from(*g) - w).abs() < 1e-5, "{got:?} {want:?}"));
    }

    #[test]
    fn a_matrix_by_hand() {
        // Squares 1, 4 / 9, 16: rows 5, 25, columns 10, 20, total 30. Second moments 5·10/30 …
        let mut moments = start(4, Some(2));
        let update = update(&[1.0, -2.0, 3.0, 4.0], &mut moments, 0.5, 1);
        assert_eq!(moments, [vec![5.0, 25.0], vec![10.0, 20.0]]);
        let second = [50.0 / 30.0, 100.0 / 30.0, 250.0 / 30.0, 500.0 / 30.0];
        let raw: Vec<f64> = [1.0, -2.0, 3.0, 4.0].iter().zip(second).map(|(g, v): (&f64, f64)| g / v.sqrt()).collect();
        // Its mean square: (0.6 + 1.2 + 1.08 + 0.96) / 4 < 1, so that nothing is clipped.
        close(&update, &raw.iter().map(|u| 0.5 * u).collect::<Vec<_>>());
    }

    #[test]
    fn a_vector_by_hand_is_clipped_and_scaled() {
        let mut moments = start(2, None);
        // The first step keeps nothing of before: signs. A weight of size 0 counts as 1e-3.
        close(&update(&[3.0, -0.5], &mut moments, 0.0, 1), &[1e-3, -1e-3]);
        // The second keeps 1 - 2^-0.8 = 0.42565. Moments 9, ¼ → 0.42565 · 9 + 0.57435 · 900 and 0.42565 / 4.
        let update = update(&[30.0, 0.0], &mut moments, 1.0, 2);
        let raw = 30.0 / (0.425_651 * 9.0 + 0.574_349 * 900.0f64).sqrt();
        // Mean square raw² / 2 = 0.86: not clipped.
        close(&update, &[raw, 0.0]);
        // A tenfold gradient in both entries at a late step would be ten steps at once: cut to a mean square of 1.
        let mut moments = vec![vec![1.0, 1.0]];
        let step = super::update(&[10.0, 10.0], &mut moments, 2.0, 10_000);
        close(&step, &[2.0, 2.0]);
    }
}
