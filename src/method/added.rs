//! Weights that a method adds to the network, and the values they start from.

use crate::model::WeightSpec;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// A weight that the base does not have; it trains as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Added {
    /// Name, kind and shape: one of those that the network looks for ([`crate::model::sam::Addition`]).
    pub spec: WeightSpec,
    /// Values at the start.
    pub start: Vec<f32>,
}

impl Added {
    /// One value everywhere.
    pub fn constant(spec: WeightSpec, value: f32) -> Added {
        Added { start: vec![value; spec.len()], spec }
    }

    /// Evenly from -bound to bound.
    pub fn uniform(spec: WeightSpec, bound: f32, seed: u64) -> Added {
        let mut rng = generator(seed, &spec.name);
        Added { start: (0..spec.len()).map(|_| bound * (2.0 * rng.random::<f32>() - 1.0)).collect(), spec }
    }

    /// Normally distributed.
    pub fn normal(spec: WeightSpec, mean: f32, deviation: f32, seed: u64) -> Added {
        let mut rng = generator(seed, &spec.name);
        // Box–Muller; 1 - u keeps the logarithm finite.
        let mut one = || {
            let (u, v): (f32, f32) = (rng.random(), rng.random());
            mean + deviation * (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()
        };
        Added { start: (0..spec.len()).map(|_| one()).collect(), spec }
    }
}

/// What a weight's values are drawn from: the seed and its name, whatever else is added.
fn generator(seed: u64, name: &str) -> ChaCha8Rng {
    let hash = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
    ChaCha8Rng::from_seed(hash.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::tests::matrix;

    #[test]
    fn draws_follow_seed_and_name_and_their_distribution() {
        let draw = |name: &str, seed| {
            Added::normal(WeightSpec { name: name.into(), ..matrix(100, 10_000) }, 1.0, 0.5, seed).start
        };
        assert_eq!(draw("a", 1), draw("a", 1));
        assert!(draw("a", 1) != draw("a", 2) && draw("a", 1) != draw("b", 1));
        let values = draw("a", 1);
        let mean = values.iter().sum::<f32>() / 1e4;
        let square = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 1e4;
        // Ten thousand draws: the mean is off by 0.005, the deviation by 0.0035, as a rule; four times that at most.
        assert!((mean - 1.0).abs() < 0.02 && (square.sqrt() - 0.5).abs() < 0.014, "{mean} {square}");
        let even = Added::uniform(matrix(100, 10_000), 3.0, 1).start;
        assert!(even.iter().all(|v| v.abs() <= 3.0));
        // Of |v| the mean is 1.5.
        assert!((even.iter().map(|v| v.abs()).sum::<f32>() / 1e4 - 1.5).abs() < 0.04);
    }
}
