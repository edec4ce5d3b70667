//! Scores: how much a weight is worth training, one number each, from the base alone, from gradients of the training
//! cases or from what a layer is given of them. g is one case's gradient of the loss, w the base's value, x the inputs that
//! a weight multiplies, n the number of cases; sums run over the cases.

use crate::error::{Error, Result, nearest};
use crate::model::WeightSpec;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// How much a weight is worth training; the largest are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// |Σ g|: gradients on which the cases agree (GPS, arXiv 2312.10136).
    Gradient,
    /// Σ |g|: gradients, whether the cases agree or not.
    AbsGradient,
    /// Σ g²: the diagonal of the empirical Fisher information (FISH mask, arXiv 2111.09839).
    Fisher,
    /// (Σ g)² / (n Σ g²), from 0 (the cases cancel) to 1 (they agree); 0 without any gradient.
    Snr,
    /// ḡ² / (h + λ): twice the loss that the best step of this weight alone takes away (arXiv 2211.15583).
    SecondOrder,
    /// The same with |h| by differences of gradients instead of the Fisher information: where that is not the Hessian.
    SecondOrderFd,
    /// |w Σ g|: what the loss changes, to first order, when the weight is taken out.
    GradientWeight,
    /// |w| · rms(x): the size of what a weight gives to its neuron's sum. After FPS (arXiv 2510.27359), |w| times the size
    /// of the input, which here is its root mean square. The cases pass through the network once, forwards.
    ActivationWeight,
    /// |w|.
    Largest,
    /// -|w|.
    Smallest,
    /// A number drawn from the seed.
    Random,
}

/// Every score by name.
const SCORES: [(&str, Score); 11] = [
    ("gradient", Score::Gradient),
    ("abs-gradient", Score::AbsGradient),
    ("fisher", Score::Fisher),
    ("snr", Score::Snr),
    ("second-order", Score::SecondOrder),
    ("second-order-fd", Score::SecondOrderFd),
    ("gradient-weight", Score::GradientWeight),
    ("activation-weight", Score::ActivationWeight),
    ("largest", Score::Largest),
    ("smallest", Score::Smallest),
    ("random", Score::Random),
];

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = SCORES.iter().find(|(_, score)| score == self).map(|(name, _)| *name);
        f.write_str(name.unwrap_or_default())
    }
}

impl FromStr for Score {
    type Err = Error;

    fn from_str(text: &str) -> Result<Score> {
        named("score", text, &SCORES)
    }
}

/// Which loss the gradients are of that scores are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SelectionLoss {
    /// That of the training: it goes through the decoder.
    Task,
    /// GPS's contrastive loss on what the encoder gives: it asks nothing of a decoder that may be untrained.
    Contrastive,
}

const LOSSES: [(&str, SelectionLoss); 2] = [("task", SelectionLoss::Task), ("contrastive", SelectionLoss::Contrastive)];

impl fmt::Display for SelectionLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = LOSSES.iter().find(|(_, loss)| loss == self).map(|(name, _)| *name);
        f.write_str(name.unwrap_or_default())
    }
}

impl FromStr for SelectionLoss {
    type Err = Error;

    fn from_str(text: &str) -> Result<SelectionLoss> {
        named("loss of the selection", text, &LOSSES)
    }
}

/// What a table of names says, or the nearest name.
pub(super) fn named<T: Copy>(what: &str, text: &str, known: &[(&str, T)]) -> Result<T> {
    if let Some((_, found)) = known.iter().find(|(name, _)| *name == text) {
        return Ok(*found);
    }
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let near = nearest(text, names.iter().copied()).map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
    Err(Error::usage(format!("unknown {what} `{text}`")).hint(format!("{near}known are {}", names.join(", "))))
}

/// A sum over cases of what one case's gradient is, or of what a layer is given of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sum {
    /// Σ g, with its signs.
    Signed,
    /// Σ |g|.
    Absolute,
    /// Σ g².
    Square,
    /// Σ h: the diagonal of the Hessian, by differences of [`Sum::Signed`] at moved weights.
    Curvature,
    /// Σ rms(x)²: of one case, the mean square over all places where a layer is at work; a number an input, not a weight.
    Inputs,
}

impl Sum {
    /// What one case adds of its gradient; of a curvature, at the moved weights; of inputs, of rms(x).
    pub fn term(self, value: f32) -> f32 {
        match self {
            Sum::Signed | Sum::Curvature => value,
            Sum::Absolute => value.abs(),
            Sum::Square | Sum::Inputs => value * value,
        }
    }

    /// Of what it is, for messages.
    fn of(self) -> &'static str {
        match self {
            Sum::Inputs => "input",
            _ => "gradient",
        }
    }
}

/// Sums over the training cases: official name → flat values; of [`Sum::Inputs`] as many as the weight's fan-in.
pub type GradientTable = BTreeMap<String, Vec<f32>>;

/// What scores are computed from.
pub struct Evidence<'a> {
    /// Number of cases summed.
    pub cases: usize,
    /// The sums that the score asked for, and no others: each of gradients is as large as the encoder.
    pub sums: BTreeMap<Sum, GradientTable>,
    /// The base's values of a weight, read when a score needs them.
    pub weight: &'a dyn Fn(&WeightSpec) -> Vec<f32>,
    /// What random scores are drawn from.
    pub seed: u64,
}

impl Evidence<'_> {
    /// A sum of one weight; `None` when the loss does not reach it.
    ///
    /// # Errors
    /// A job error when a value is not a number.
    fn sum(&self, sum: Sum, name: &str) -> Result<Option<&[f32]>> {
        let Some(values) = self.sums.get(&sum).and_then(|table| table.get(name)) else { return Ok(None) };
        match values.iter().position(|g| !g.is_finite()) {
            None => Ok(Some(values)),
            Some(at) => Err(Error::job(format!("the {} of `{name}` is not a number at {at}", sum.of()))
                .hint("look for broken pictures with `segft data check`")),
        }
    }

    /// λ of the second-order scores: the mean of h over all weights, in size. It keeps a weight that hardly has a
    /// gradient from being divided by hardly any curvature, and follows the scale of the loss.
    pub(super) fn damping(&self) -> f64 {
        let table = self.sums.get(&Sum::Curvature).or_else(|| self.sums.get(&Sum::Square));
        let (mut sum, mut values) = (0f64, 0);
        for curvature in table.into_iter().flat_map(BTreeMap::values) {
            sum += curvature.iter().map(|v| f64::from(v.abs())).sum::<f64>();
            values += curvature.len();
        }
        sum / (self.cases.max(1) * values.max(1)) as f64
    }
}

impl Score {
    /// The sums it is computed from; a pass over the training cases makes these.
    pub fn needs(self) -> &'static [Sum] {
        match self {
            Score::Gradient | Score::GradientWeight => &[Sum::Signed],
            Score::AbsGradient => &[Sum::Absolute],
            Score::Fisher => &[Sum::Square],
            Score::Snr | Score::SecondOrder => &[Sum::Signed, Sum::Square],
            Score::SecondOrderFd => &[Sum::Signed, Sum::Curvature],
            Score::ActivationWeight => &[Sum::Inputs],
            Score::Largest | Score::Smallest | Score::Random => &[],
        }
    }

    /// Whether any of these are of gradients: it matters, then, of which loss.
    pub fn reads_gradients(self) -> bool {
        self.needs().iter().any(|sum| *sum != Sum::Inputs)
    }

    /// The score of every value of a weight, the `number`-th; `None` when the loss does not reach it. `damping` is
    /// [`Evidence::damping`].
    pub(crate) fn of(
        self,
        spec: &WeightSpec,
        number: u64,
        evidence: &Evidence<'_>,
        damping: f64,
    ) -> Result<Option<Vec<f32>>> {
        let sum = |sum| evidence.sum(sum, &spec.name);
        let cases = evidence.cases as f64;
        let both = |second: Sum, damping: f64| -> Result<Option<Vec<f32>>> {
            let pairs = sum(Sum::Signed)?.zip(sum(second)?);
            let mean = |sum: &f32| f64::from(*sum) / cases;
            let one = |(signed, second): (&f32, &f32)| newton(mean(signed), mean(second).abs(), damping) as f32;
            Ok(pairs.map(|(signed, second)| signed.iter().zip(second).map(one).collect()))
        };
        match self {
            Score::Gradient => Ok(sum(Sum::Signed)?.map(|g| g.iter().map(|g| g.abs()).collect())),
            Score::AbsGradient => Ok(sum(Sum::Absolute)?.map(<[f32]>::to_vec)),
            Score::Fisher => Ok(sum(Sum::Square)?.map(<[f32]>::to_vec)),
            Score::Snr => both(Sum::Square, 0.0),
            Score::SecondOrder => both(Sum::Square, damping),
            Score::SecondOrderFd => both(Sum::Curvature, damping),
            Score::GradientWeight => Ok(sum(Sum::Signed)?.map(|g| {
                let weight = (evidence.weight)(spec);
                g.iter().zip(&weight).map(|(g, w)| (g * w).abs()).collect()
            })),
            Score::ActivationWeight => Ok(sum(Sum::Inputs)?.map(|squares| {
                let rms = squares.iter().map(|square| (f64::from(*square) / cases).sqrt() as f32);
                // Row after row of the matrix, each with the same inputs.
                (evidence.weight)(spec).iter().zip(rms.cycle()).map(|(w, rms)| w.abs() * rms).collect()
            })),
            Score::Largest => Ok(Some((evidence.weight)(spec).iter().map(|w| w.abs()).collect())),
            Score::Smallest => Ok(Some((evidence.weight)(spec).iter().map(|w| -w.abs()).collect())),
            Score::Random => {
                let mut rng = ChaCha8Rng::seed_from_u64(evidence.seed);
                // Streams of their own, apart from those of order, augmentation and pretraining.
                rng.set_stream((3 << 62) + number);
                Ok(Some((0..spec.len()).map(|_| rng.random()).collect()))
            }
        }
    }
}

/// g² / (h + λ): along one weight the loss is L + g·d + h·d²/2; the best step takes g² / 2h away. 0 where nothing
/// bends and nothing falls.
fn newton(gradient: f64, curvature: f64, damping: f64) -> f64 {
    let divisor = curvature + damping;
    if divisor > 0.0 { gradient * gradient / divisor } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Kind, Part};

    fn spec(n: usize) -> WeightSpec {
        let (name, shape) = ("w".to_string(), vec![1, n]);
        WeightSpec { name, kind: Kind::Linear, part: Part::ImageEncoder, shape, prompt_free: true }
    }

    /// Scores of four weights from three cases' gradients.
    fn scores(score: Score) -> Vec<f32> {
        let cases = [[1.0, 3.0, 0.0, -2.0], [1.0, -3.0, 0.0, -2.0], [1.0, 1.0, 0.0, 1.0]];
        let sums = score.needs().iter().map(|sum| {
            let total = (0..4).map(|i| cases.iter().map(|g| sum.term(g[i])).sum()).collect();
            (*sum, GradientTable::from([("w".to_string(), total)]))
        });
        let evidence = Evidence { cases: 3, sums: sums.collect(), weight: &|_| vec![0.5, -2.0, 1.0, 0.25], seed: 7 };
        score.of(&spec(4), 0, &evidence, evidence.damping()).unwrap().unwrap()
    }

    #[test]
    fn every_score_is_its_formula() {
        assert_eq!(scores(Score::Gradient), [3.0, 1.0, 0.0, 3.0]);
        assert_eq!(scores(Score::AbsGradient), [3.0, 7.0, 0.0, 5.0]);
        assert_eq!(scores(Score::Fisher), [3.0, 19.0, 0.0, 9.0]);
        // Squares of sums over n times sums of squares: 9/9, 1/57, nothing, 9/27.
        assert_eq!(scores(Score::Snr), [1.0, 1.0 / 57.0, 0.0, 1.0 / 3.0]);
        assert_eq!(scores(Score::GradientWeight), [1.5, 2.0, 0.0, 0.75]);
        // With inputs of these sizes: the roots of 3 / 3, 19 / 3, nothing, 9 / 3.
        let sizes = [1.0, (19.0f64 / 3.0).sqrt() as f32, 0.0, 3f64.sqrt() as f32];
        assert_eq!(scores(Score::ActivationWeight), [0.5, 2.0 * sizes[1], 0.0, 0.25 * sizes[3]]);
        assert_eq!(scores(Score::Largest), [0.5, 2.0, 1.0, 0.25]);
        assert_eq!(scores(Score::Smallest), [-0.5, -2.0, -1.0, -0.25]);
        // Mean squares 1, 19/3, 0, 3: their mean is 31/12.
        let damped = |g: f64, h: f64| (g * g / (h + 31.0 / 12.0)) as f32;
        let want = [damped(1.0, 1.0), damped(1.0 / 3.0, 19.0 / 3.0), 0.0, damped(1.0, 3.0)];
        assert_eq!(scores(Score::SecondOrder), want);
        assert_eq!(scores(Score::Random), scores(Score::Random));
    }

    #[test]
    fn a_curvature_counts_in_size() {
        // Two cases: means g = 1, 1, 2 and h = -1, 3, 0; λ is the mean of 1, 3, 0.
        let table = |values: [f32; 3]| GradientTable::from([("w".to_string(), values.to_vec())]);
        let sums = [(Sum::Signed, table([2.0, 2.0, 4.0])), (Sum::Curvature, table([-2.0, 6.0, 0.0]))];
        let evidence = Evidence { cases: 2, sums: sums.into(), weight: &|_| Vec::new(), seed: 0 };
        let scores = Score::SecondOrderFd.of(&spec(3), 0, &evidence, evidence.damping()).unwrap().unwrap();
        let third = 4.0 / 3.0;
        assert_eq!(scores, [1.0 / (1.0 + third), 1.0 / (3.0 + third), 4.0 / third].map(|score| score as f32));
    }

    #[test]
    fn every_row_has_the_same_inputs() {
        // Two neurons of two inputs; two cases with mean squares that sum to 8 and 18: sizes 2 and 3.
        let table = GradientTable::from([("w".to_string(), vec![8.0, 18.0])]);
        let (sums, weight) = (BTreeMap::from([(Sum::Inputs, table)]), |_: &WeightSpec| vec![1.0, -1.0, -5.0, 0.5]);
        let evidence = Evidence { cases: 2, sums, weight: &weight, seed: 0 };
        let scores = Score::ActivationWeight.of(&spec(4), 0, &evidence, 0.0).unwrap().unwrap();
        assert_eq!(scores, [2.0, 3.0, 10.0, 1.5]);
        assert!(!Score::ActivationWeight.reads_gradients() && Score::SecondOrderFd.reads_gradients());
        assert!(!Score::Largest.reads_gradients());
    }

    #[test]
    fn random_scores_follow_seed_and_weight() {
        let of = |seed, number| {
            let evidence = Evidence { cases: 0, sums: BTreeMap::new(), weight: &|_| Vec::new(), seed };
            Score::Random.of(&spec(9), number, &evidence, 0.0).unwrap().unwrap()
        };
        assert_ne!(of(1, 0), of(2, 0));
        assert_ne!(of(1, 0), of(1, 1));
    }

    #[test]
    fn what_is_no_number_is_named() {
        let table = GradientTable::from([("w".to_string(), vec![0.0, f32::NAN])]);
        let sums = BTreeMap::from([(Sum::Signed, table)]);
        let evidence = Evidence { cases: 1, sums, weight: &|_| Vec::new(), seed: 0 };
        let error = Score::Gradient.of(&spec(2), 0, &evidence, 0.0).unwrap_err();
        assert!(error.message.contains("`w`") && error.message.contains("at 1"), "{error}");
    }

    #[test]
    fn names_are_those_of_the_files() {
        for (name, score) in SCORES {
            assert_eq!((name.parse::<Score>().unwrap(), score.to_string()), (score, name.to_string()));
            assert_eq!(serde_json::to_value(score).unwrap(), name);
        }
        assert!("fischer".parse::<Score>().unwrap_err().hint.unwrap().contains("did you mean `fisher`"));
    }
}
