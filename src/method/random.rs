//! Weights drawn by lot: the baseline that any way of choosing must beat at the same number (as in the ablation of SaRA,
//! arXiv 2409.06633).
//!
//! In every output neuron of the image encoder, k weights drawn from `--seed` train, from their values in the base;
//! biases train, norms and position tables stay, as for GPS: for SAM ViT-B and k = 1 167,936 values, for `tiny` 22,200.
//! Mergeable, no cost at inference; no pass over the training cases before.

use super::{Group, OtherScores, Rule, Score, Tuning};

pub(super) struct Random;

impl Tuning for Random {
    fn rule(&self) -> Option<Rule> {
        Some(Rule { score: Score::Random, group: Group::Neuron, other_scores: OtherScores::Refused })
    }

    /// That of GPS; not tuned by itself.
    fn lr(&self) -> f64 {
        1e-3
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::tests::chosen_from_weights;

    #[test]
    fn one_of_each_neuron_the_same_for_the_same_seed() {
        let chosen = chosen_from_weights(&Random, &[0.0; 600]);
        assert_eq!(chosen.iter().map(|i| i / 300).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(chosen, chosen_from_weights(&Random, &[1.0; 600]), "the values do not matter");
        assert_ne!(chosen[0], chosen[1] - 300);
    }
}
