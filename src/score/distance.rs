//! Exact Euclidean distance transform with a spacing per axis.
//!
//! Felzenszwalb and Huttenlocher, "Distance Transforms of Sampled Functions" (Theory of Computing, 2012): one pass
//! along each axis takes the lower envelope of parabolas, linear in the number of voxels. Squared distances are `f64`,
//! so that 3 mm and 4 mm apart is 5 mm and not almost.

/// Squared distance of every voxel to the nearest site, in units of `spacing` squared; infinite without a site.
///
/// `sites` and the result have the first axis fastest.
pub fn squared(sites: &[bool], shape: [usize; 3], spacing: [f64; 3]) -> Vec<f64> {
    let mut field: Vec<f64> = sites.iter().map(|site| if *site { 0.0 } else { f64::INFINITY }).collect();
    let [ni, nj, _] = shape;
    let mut line = Line::new(shape.into_iter().max().unwrap_or(0));
    for (axis, stride) in [1, ni, ni * nj].into_iter().enumerate() {
        let n = shape[axis];
        if n < 2 {
            continue;
        }
        let block = stride * n;
        for start in (0..field.len()).step_by(block) {
            for first in start..start + stride {
                line.lower(&mut field, first, stride, n, spacing[axis]);
            }
        }
    }
    field
}

/// Scratch memory of one line of voxels.
struct Line {
    /// The line before the pass.
    values: Vec<f64>,
    /// Indices of the parabolas that make up the envelope.
    sites: Vec<usize>,
    /// Where, in index units, each parabola of the envelope takes over from the one before.
    from: Vec<f64>,
}

impl Line {
    fn new(longest: usize) -> Line {
        Line { values: vec![0.0; longest], sites: Vec::with_capacity(longest), from: Vec::with_capacity(longest) }
    }

    /// Replaces `n` values, `stride` apart, by the minimum over sites q of value(q) + (spacing · (p − q))².
    fn lower(&mut self, field: &mut [f64], first: usize, stride: usize, n: usize, spacing: f64) {
        let values = &mut self.values[..n];
        for (p, value) in values.iter_mut().enumerate() {
            *value = field[first + p * stride];
        }
        self.sites.clear();
        self.from.clear();
        let square = spacing * spacing;
        for (q, value) in values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
            let mut start = f64::NEG_INFINITY;
            while let (Some(last), Some(from)) = (self.sites.last(), self.from.last()) {
                // Parabolas of the same width cross once.
                let rise = (value - values[*last]) / square;
                start = (rise + (q * q) as f64 - (last * last) as f64) / (2 * (q - last)) as f64;
                if start > *from {
                    break;
                }
                self.sites.pop();
                self.from.pop();
                start = f64::NEG_INFINITY;
            }
            self.sites.push(q);
            self.from.push(start);
        }
        if self.sites.is_empty() {
            return;
        }
        let mut k = 0;
        for p in 0..n {
            while k + 1 < self.from.len() && self.from[k + 1] <= p as f64 {
                k += 1;
            }
            let q = self.sites[k];
            field[first + p * stride] = values[q] + square * (p.abs_diff(q) * p.abs_diff(q)) as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn equals_brute_force() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for round in 0..60 {
            let shape = [rng.random_range(1..9), rng.random_range(1..9), rng.random_range(1..7usize)];
            let spacing = [0.7, 1.3, 5.0].map(|s| if round % 2 == 0 { 1.0 } else { s });
            let n: usize = shape.iter().product();
            let sites: Vec<bool> = (0..n).map(|_| rng.random_bool(0.08)).collect();
            let at = |v: usize| [v % shape[0], v / shape[0] % shape[1], v / (shape[0] * shape[1])];
            for (v, found) in squared(&sites, shape, spacing).into_iter().enumerate() {
                let expected = (0..n)
                    .filter(|s| sites[*s])
                    .map(|s| (0..3).map(|a| (spacing[a] * at(v)[a].abs_diff(at(s)[a]) as f64).powi(2)).sum::<f64>())
                    .fold(f64::INFINITY, f64::min);
                assert!(found == expected || (found - expected).abs() < 1e-9, "{found} against {expected}");
            }
        }
    }

    #[test]
    fn three_and_four_make_five() {
        let mut sites = vec![false; 4 * 5];
        sites[0] = true;
        assert_eq!(squared(&sites, [4, 5, 1], [1.0; 3])[3 + 4 * 4], 25.0);
    }
}
