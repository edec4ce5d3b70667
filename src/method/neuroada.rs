//! NeuroAda (Zhang et al., EMNLP 2025, arXiv 2510.18940): a bypass around the k largest weights of every neuron.
//!
//! y = (W + Δ) x + b with W and b as they are in the base and Δ zero but at the k entries of every output neuron with
//! the largest |w|, where it starts at zero and trains: the fine-tune starts as the base, and a step so small that it
//! would be lost in w is kept in Δ. Nothing else of the image encoder trains, no biases. For SAM ViT-B 84,224 k values,
//! 0.094 k % of the encoder, for `tiny` 11,592 k; the paper takes k = 1 and 20. Mergeable (W + Δ is written where the
//! weight lies, so there is no second product), no cost at inference; no pass over the training cases before. `--score`
//! asks for the paper's other choices: `gradient`, `random`, `smallest`.

use super::{Change, Form, Group, OtherScores, Rule, Score, Settings, Tuning};
use crate::model::WeightSpec;

pub(super) struct NeuroAda;

impl Tuning for NeuroAda {
    fn rule(&self) -> Option<Rule> {
        Some(Rule { score: Score::Largest, group: Group::Neuron, other_scores: OtherScores::Taken })
    }

    fn form(&self) -> Form {
        Form::Bypass
    }

    fn encoder(&self, _: &WeightSpec, _: &Settings) -> Change {
        Change::Frozen
    }

    /// Between the paper's 7e-4 and 3e-3 for language models; not tuned here.
    fn lr(&self) -> f64 {
        1e-3
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::tests::{chosen_from_weights, trained_in_encoder};
    use crate::method::{Chosen, plan};
    use crate::model::SamConfig;

    #[test]
    fn the_largest_of_each_neuron_get_a_bypass_and_nothing_else_trains() {
        assert_eq!(chosen_from_weights(&NeuroAda, &[0.5, -3.0, 1.0, /* row 1 */ 2.0, 2.0, 0.0]), [1, 3]);
        let specs = SamConfig::tiny().specs();
        assert!(trained_in_encoder(&NeuroAda, &specs).is_empty());
        let name = "image_encoder.blocks.0.mlp.lin1.weight".to_string();
        let chosen = Chosen::from([(name.clone(), vec![1, 3])]);
        let plan = plan(&NeuroAda, &specs, Some(&chosen), &Settings::default());
        assert_eq!(plan[&name], Change::Bypass(vec![1, 3]));
    }
}
