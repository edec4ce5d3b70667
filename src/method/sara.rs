//! SaRA (Hu et al., ICLR 2025, arXiv 2409.06633): the weights that do least are put to use.
//!
//! M = {|w| ≤ θ}: the smallest weights of the image encoder's matrices train, from their values in the base and with
//! their signs; θ follows from the number that is asked for (`--ratio 0.05` is typical of the paper), all tensors
//! ranked together. Two things are added to the loop. To the loss, λ ‖W ⊙ M‖* of one matrix drawn at a step (λ = 5e-4):
//! the sum of its singular values, through the sub-gradient U Vᵀ in M; it is added every 8 steps, 8 times as much,
//! because of its cost, and the loss that is reported is without it. And half-way, the weights of M that are still in the
//! band |w| ≤ θ train on alone, the others stay where they have got to, and the optimizer starts anew.
//!
//! Unlike the published code, a start keeps its sign, and the second set lies inside the first. Unlike the paper, biases
//! are not ranked and do not train. As many as GPS's k = 1 are 84,224 values for SAM ViT-B, 11,592 for `tiny`; a twentieth
//! is 4,315,546 and 180,724. Mergeable, no cost at inference; no pass over the training cases before, and for the term one
//! decomposition of a matrix every 8 steps.
//!
//! `sara-one-stage` is the same without choosing again: the first set trains to the end, as in a row of the paper's
//! ablation. What `sara` gains over it is what the second half is worth.

use super::{Change, Entries, Group, HalfWay, OtherScores, Penalty, Rule, Score, Settings, Tuning, nuclear};
use crate::model::WeightSpec;

/// λ, and every how many steps it is taken so many times.
const WEIGHT: f32 = 5e-4;
const EVERY: usize = 8;

pub(super) struct Sara;
pub(super) struct SaraOneStage;

impl Tuning for Sara {
    fn rule(&self) -> Option<Rule> {
        Some(Rule { score: Score::Smallest, group: Group::Global, other_scores: OtherScores::Refused })
    }

    fn encoder(&self, _: &WeightSpec, _: &Settings) -> Change {
        Change::Frozen
    }

    fn penalty(&self) -> Option<Penalty> {
        let gradient = |entries: &Entries<'_>| {
            let slope = nuclear::subgradient(entries.spec.matrix().1, entries.indices, &entries.now);
            slope.iter().map(|s| WEIGHT * EVERY as f32 * s).collect()
        };
        Some(Penalty { every: EVERY, gradient })
    }

    fn half_way(&self) -> Option<HalfWay> {
        Some(HalfWay::Keep(|entries| {
            let band = entries.iter().flat_map(|e| e.start).fold(0f32, |band, w| band.max(w.abs()));
            let inside = |w: &f32| f32::from(u8::from(w.abs() <= band));
            entries.iter().map(|e| e.now.iter().map(inside).collect()).collect()
        }))
    }

    /// The paper's for θ = 2e-3; not tuned here.
    fn lr(&self) -> f64 {
        5e-4
    }
}

/// [`Sara`] but for what it changes half-way.
impl Tuning for SaraOneStage {
    fn rule(&self) -> Option<Rule> {
        Sara.rule()
    }

    fn encoder(&self, spec: &WeightSpec, settings: &Settings) -> Change {
        Sara.encoder(spec, settings)
    }

    fn penalty(&self) -> Option<Penalty> {
        Sara.penalty()
    }

    fn lr(&self) -> f64 {
        Sara.lr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::tests::{chosen_from_weights, matrix, trained_in_encoder};
    use crate::model::SamConfig;

    #[test]
    fn the_smallest_of_all_and_no_biases() {
        assert_eq!(chosen_from_weights(&Sara, &[0.5, -3.0, 0.0, /* row 1 */ 2.0, 2.0, -0.25]), [2, 5]);
        assert_eq!(chosen_from_weights(&Sara, &[0.5, 0.1, 0.0, /* row 1 */ 2.0, 2.0, 3.0]), [1, 2]);
        assert!(trained_in_encoder(&Sara, &SamConfig::tiny().specs()).is_empty());
    }

    #[test]
    fn half_way_those_still_in_the_band_go_on() {
        // The band reaches to 0.3, the largest start of both weights.
        let spec = matrix(2, 8);
        let entries = [
            Entries { spec: &spec, indices: &[0, 3, 4], start: &[0.1, -0.3, 0.2], now: vec![0.29, -0.31, -0.3] },
            Entries { spec: &spec, indices: &[1], start: &[0.0], now: vec![0.5] },
        ];
        let Some(HalfWay::Keep(keep)) = Sara.half_way() else { unreachable!("it keeps entries") };
        assert_eq!(keep(&entries), [vec![1.0, 0.0, 1.0], vec![0.0]]);
    }

    #[test]
    fn one_stage_differs_half_way_alone() {
        assert!(SaraOneStage.half_way().is_none());
        assert_eq!((SaraOneStage.rule(), SaraOneStage.lr()), (Sara.rule(), Sara.lr()));
        assert_eq!(SaraOneStage.penalty().unwrap().every, EVERY);
        assert!(trained_in_encoder(&SaraOneStage, &SamConfig::tiny().specs()).is_empty());
    }

    #[test]
    fn the_penalty_is_the_scaled_slope() {
        // Two entries on a diagonal: the singular values are their sizes, the slopes their signs.
        let spec = matrix(2, 4);
        let penalty = Sara.penalty().unwrap();
        let entries = Entries { spec: &spec, indices: &[0, 3], start: &[0.0; 2], now: vec![0.5, -0.2] };
        let got = (penalty.gradient)(&entries);
        for (got, want) in got.iter().zip([8.0 * 5e-4, -8.0 * 5e-4]) {
            assert!((got - want).abs() < 1e-8, "{got}");
        }
    }
}
