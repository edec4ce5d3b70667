//! Two methods on the same cases: how large is the difference, and could it be chance?
//!
//! Everything is made from one number a case, the difference of two Dice values (each already a mean over seeds). Cases
//! are what other patients would replace, so cases are what is drawn and flipped; seeds are not.

use super::bootstrap;
use super::report::Interval;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Resamples of the bootstrap, and flips of the test where not all can be tried.
const DRAWS: usize = 10_000;
/// Up to this many cases every combination of signs is tried.
const ALL_FLIPS: usize = 12;
/// Means that differ by less are equal: the order of a sum must not decide.
const ROUNDING: f64 = 1e-12;

/// What the differences of a set of cases say.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Paired {
    /// Cases.
    pub n_cases: usize,
    /// Mean difference.
    pub difference: f64,
    /// 95 % interval of the mean difference by percentile bootstrap over cases; `None` below two.
    pub ci95: Option<Interval>,
    /// Two-sided p of the sign-flip permutation test.
    pub p: f64,
}

/// Judges the mean of paired differences; `None` without any.
///
/// The sign-flip test: if the methods were exchangeable, each case's difference could as well have the other sign. p is
/// the share of sign combinations whose mean is at least as far from 0 as the one seen. Up to 12 cases all 2ⁿ
/// combinations are tried (the one seen is among them); above, 10,000 are drawn (ChaCha8 of `seed`, one bit a case) and
/// p = (1 + those at least as far) / (1 + 10,000). The interval draws its cases from the same seed.
pub fn compare(differences: &[f64], seed: u64) -> Option<Paired> {
    let n = differences.len();
    let mean = |sum: f64| sum / n as f64;
    let difference = mean(differences.iter().sum());
    let flipped = |flips: &mut dyn FnMut(usize) -> bool| {
        let sum = differences.iter().enumerate().map(|(i, d)| if flips(i) { -d } else { *d }).sum::<f64>();
        mean(sum).abs() >= difference.abs() - ROUNDING
    };
    let p = match n {
        0 => return None,
        1..=ALL_FLIPS => {
            let all = 1u32 << n;
            let far = (0..all).filter(|bits| flipped(&mut |i| bits >> i & 1 == 1)).count();
            far as f64 / f64::from(all)
        }
        _ => {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let far = (0..DRAWS).filter(|_| flipped(&mut |_| rng.random())).count();
            (1 + far) as f64 / (1 + DRAWS) as f64
        }
    };
    Some(Paired { n_cases: n, difference, ci95: mean_interval(differences, seed), p })
}

/// 95 % interval of a mean by percentile bootstrap over cases; `None` below two.
pub fn mean_interval(values: &[f64], seed: u64) -> Option<Interval> {
    let mean = |drawn: &[usize]| drawn.iter().map(|i| values[*i]).sum::<f64>() / drawn.len() as f64;
    bootstrap::intervals(values.len(), DRAWS, seed, |drawn| [Some(mean(drawn)), None])[0]
}

/// Holm's correction for having asked several questions: the i-th smallest of m values becomes the largest of
/// (m − j + 1) · p₍ⱼ₎ over j ≤ i, at most 1. The answer is in the order given.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut corrected = vec![0.0; p.len()];
    let mut largest: f64 = 0.0;
    for (rank, i) in order.into_iter().enumerate() {
        largest = largest.max((p.len() - rank) as f64 * p[i]).min(1.0);
        corrected[i] = largest;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_signs_of_few_cases() {
        // 1 + 2 + 3 = 6: of eight sign combinations only +++ and −−− are as far from 0.
        let paired = compare(&[1.0, 2.0, 3.0], 0).unwrap();
        assert_eq!((paired.n_cases, paired.difference, paired.p), (3, 2.0, 0.25));
        // 3 + 2 − 1 = 4: also 6 and −6, and −4: 4 of 8.
        assert_eq!(compare(&[3.0, 2.0, -1.0], 0).unwrap().p, 0.5);
        // A mean of 0 is nowhere nearer.
        assert_eq!(compare(&[1.0, -1.0], 0).unwrap().p, 1.0);
        assert_eq!(compare(&[0.5], 0).unwrap().ci95, None);
        assert_eq!(compare(&[], 0), None);
    }

    #[test]
    fn rounding_does_not_decide() {
        // 0.1 + 0.2 + 0.3 in another order is another number in the last bit; p is 2 / 8 all the same.
        for differences in [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.2, 0.3, 0.1]] {
            assert_eq!(compare(&differences, 0).unwrap().p, 0.25);
        }
    }

    #[test]
    fn drawn_signs_of_many_cases() {
        // 20 equal differences: only 2 of 2²⁰ combinations are as far, so hardly any of 10,000 draws.
        let paired = compare(&[0.01; 20], 0).unwrap();
        assert!(paired.p <= 3.0 / 10_001.0, "{}", paired.p);
        assert_eq!(
            paired.ci95.map(|[low, high]| (low * 1e6).round() == 1e4 && (high * 1e6).round() == 1e4),
            Some(true)
        );
        // Alternating ±1 and one 0: the mean is 0, so every draw is as far.
        let even: Vec<f64> = (0..21).map(|i| [1.0, -1.0][i % 2] * f64::from(u8::from(i != 20))).collect();
        assert_eq!(compare(&even, 0).unwrap().p, 1.0);
        // 16 cases, 11 of +1 and 5 of −1: sum 6. P(|sum| ≥ 6) = 2 · P(at least 11 heads of 16) = 2 · 6885 / 65536.
        let values: Vec<f64> = (0..16).map(|i| if i < 11 { 1.0 } else { -1.0 }).collect();
        let p = compare(&values, 0).unwrap().p;
        assert!((p - 2.0 * 6885.0 / 65536.0).abs() < 0.02, "{p}");
        assert_eq!(compare(&values, 1), compare(&values, 1));
    }

    #[test]
    fn holm_by_hand() {
        // Sorted 0.01, 0.03, 0.04: 3 · 0.01 = 0.03; 2 · 0.03 = 0.06; 1 · 0.04 = 0.04, but never below its forerunner.
        let corrected = holm(&[0.01, 0.04, 0.03]);
        for (have, want) in corrected.iter().zip([0.03, 0.06, 0.06]) {
            assert!((have - want).abs() < 1e-12, "{corrected:?}");
        }
        assert_eq!(holm(&[0.7, 0.6]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }
}
