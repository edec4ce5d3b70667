//! The largest weights: GPS's rule without data, a baseline of its ablation (arXiv 2312.10136) and the choice of
//! supertuning.
//!
//! In every output neuron of the image encoder, the k weights with the largest |w| train, from their values in the
//! base; biases train, norms and position tables stay, as for GPS: for SAM ViT-B and k = 1 167,936 values, for `tiny`
//! 22,200. Mergeable, no cost at inference; no pass over the training cases before: what GPS gains over this is what its
//! gradients are worth.

use super::{Group, OtherScores, Rule, Score, Tuning};

pub(super) struct Magnitude;

impl Tuning for Magnitude {
    fn rule(&self) -> Option<Rule> {
        Some(Rule { score: Score::Largest, group: Group::Neuron, other_scores: OtherScores::Refused })
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
    fn the_largest_of_each_neuron_whatever_its_sign() {
        assert_eq!(chosen_from_weights(&Magnitude, &[0.5, -3.0, 1.0, /* row 1 */ 2.0, 2.0, 0.0]), [1, 3]);
    }
}
