//! Percentile bootstrap over cases: how far would the number move with other patients.

use super::report::Interval;
use super::surface::quantile;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// 95 % intervals of two statistics over `n` cases, from the same resamples.
///
/// `statistics` gets the indices of the drawn cases and answers `None` where it is undefined; such draws do not count.
/// `None` below two cases, or when no draw is defined.
pub(super) fn intervals(
    n: usize,
    resamples: usize,
    seed: u64,
    mut statistics: impl FnMut(&[usize]) -> [Option<f64>; 2],
) -> [Option<Interval>; 2] {
    if n < 2 {
        return [None; 2];
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = vec![0; n];
    let mut values: [Vec<f64>; 2] = std::array::from_fn(|_| Vec::with_capacity(resamples));
    for _ in 0..resamples {
        drawn.fill_with(|| rng.random_range(0..n));
        for (values, value) in values.iter_mut().zip(statistics(&drawn)) {
            values.extend(value);
        }
    }
    values.map(|values| Some([quantile(&values, 0.025)?, quantile(&values, 0.975)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn means(values: &[f64], seed: u64) -> [Option<Interval>; 2] {
        intervals(values.len(), 2000, seed, |drawn| {
            [Some(drawn.iter().map(|i| values[*i]).sum::<f64>() / drawn.len() as f64), None]
        })
    }

    #[test]
    fn seeded_and_undefined_below_two() {
        let values: Vec<f64> = (1..30).map(|i| f64::from(i).sqrt()).collect();
        assert_eq!(means(&values, 7), means(&values, 7));
        assert_ne!(means(&values, 7), means(&values, 8));
        assert_eq!(means(&values, 7)[1], None, "never defined");
        assert_eq!(means(&values[..1], 7), [None; 2]);
        assert_eq!(means(&[0.25; 5], 7)[0], Some([0.25; 2]));
    }

    #[test]
    fn width_is_that_of_the_normal_approximation() {
        // 400 values, half 0 and half 1: standard error 0.5 / 20 = 0.025, interval 0.5 ± 1.96 · 0.025.
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let [low, high] = means(&values, 0)[0].unwrap();
        assert!((low - 0.451).abs() < 0.005 && (high - 0.549).abs() < 0.005, "{low} {high}");
    }

    #[test]
    fn the_stream_is_fixed() {
        // Byte-equal reports on every platform need the same draws: indices as first drawn, ChaCha8, seed 0.
        let mut first = Vec::new();
        intervals(10, 1, 0, |drawn| {
            first = drawn.to_vec();
            [None; 2]
        });
        assert_eq!(first, FIRST_DRAW);
    }

    const FIRST_DRAW: [usize; 10] = [6, 7, 7, 4, 5, 6, 5, 0, 1, 8];
}
