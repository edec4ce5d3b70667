//! Fisher information (FISH mask; Sung et al., NeurIPS 2021, arXiv 2111.09839) by neuron.
//!
//! F = 1/n Σ (∂L/∂w)² over the n training cases is the diagonal of the empirical Fisher information; in every output
//! neuron of the image encoder, the k weights with the largest F train, from their values in the base. A case counts
//! although another one pulls the other way, which is what GPS's |Σ g| leaves out. The paper ranks all weights together:
//! `--group global`. Biases train, norms and position tables stay, as for GPS: for SAM ViT-B and k = 1 167,936 values, for
//! `tiny` 22,200. Mergeable, no cost at inference; one pass forward and backward over the training cases and one buffer of
//! the encoder's size.

use super::{Group, OtherScores, Rule, Score, Tuning};

pub(super) struct Fisher;

impl Tuning for Fisher {
    fn rule(&self) -> Option<Rule> {
        Some(Rule { score: Score::Fisher, group: Group::Neuron, other_scores: OtherScores::Refused })
    }

    /// That of GPS; not tuned by itself.
    fn lr(&self) -> f64 {
        1e-3
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::tests::chosen_from_cases;

    #[test]
    fn cases_that_pull_apart_count() {
        // Entry 0: 3 and -3, which cancel; entry 1: 1 and 1, which GPS would take.
        let cases = [[3.0, 1.0, /* row 1 */ 0.0, 2.0], [-3.0, 1.0, /* row 1 */ 0.5, 2.0]];
        assert_eq!(chosen_from_cases(&Fisher, &cases), [0, 3]);
        assert_eq!(chosen_from_cases(&crate::method::gps::Gps, &cases), [1, 3]);
    }
}
