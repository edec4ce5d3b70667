//! Second-order approximation method (SAM; Fu et al., AAAI 2023, arXiv 2211.15583; not the network of that name).
//!
//! Which m weights, changed alone, take most of the loss away? With a diagonal Hessian h the loss along weight i is
//! L + gᵢ d + hᵢ d² / 2; the best d = -gᵢ / hᵢ takes gᵢ² / 2hᵢ away. So the weights with the largest g² / h train, from
//! their values in the base.
//!
//! Here g is the mean gradient of the training cases and h the diagonal of their empirical Fisher information, the mean
//! of g²: one first-order pass gives both, and for a log-likelihood it is the Hessian's in expectation. It is damped by
//! its mean over all weights, so that a weight with hardly any gradient is not divided by hardly any curvature. (The
//! published code takes h as constant in the runs it reports.)
//!
//! Where is Fisher's the Hessian? Exactly, for the negative logarithm of a likelihood (cross-entropy, squared error of
//! unit variance) whose labels are as likely as the network says, where the network is linear in the weight; else the
//! part of the Hessian that bending of the network itself does not add to. Neither holds of soft IoU, nor of labels that
//! the network does not expect: there `--method gps --score second-order-fd` is the same method with |h| from
//! differences of gradients at moved weights (`tune/gradients.rs`). It takes five passes over the training cases instead
//! of one, and four buffers of the encoder's size instead of two; what it finds is noisy.
//!
//! The paper takes 0.5 % of every tensor: `--group tensor --ratio 0.005`; the default is GPS's number in every neuron, so
//! that the two differ in their score alone. Biases train, norms and position tables stay, as for GPS: for SAM ViT-B and
//! k = 1 167,936 values, for `tiny` 22,200. Mergeable, no cost at inference; one pass forward and backward over the
//! training cases and two buffers of the encoder's size.

use super::{Group, OtherScores, Rule, Score, Tuning};

pub(super) struct SecondOrder;

impl Tuning for SecondOrder {
    fn rule(&self) -> Option<Rule> {
        Some(Rule { score: Score::SecondOrder, group: Group::Neuron, other_scores: OtherScores::Refused })
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
    fn a_gradient_that_holds_beats_a_larger_one_that_wavers() {
        // Entry 0: mean 1.5, mean square 92.5; entry 1: 1 and 1. Damped by (92.5 + 1) / 2 = 46.75: 2.25 / 139.25 is
        // below 1 / 47.75.
        let cases = [[11.0, 1.0], [-8.0, 1.0]];
        assert_eq!(chosen_from_cases(&crate::method::gps::Gps, &cases), [0]);
        assert_eq!(chosen_from_cases(&SecondOrder, &cases), [1]);
    }
}
