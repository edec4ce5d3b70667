//! The selection pass: sums of gradients over one deterministic pass of the training cases, and the choice from them.

use crate::error::Result;
use crate::method::{self, Chosen, Evidence, GradientTable, Settings, Sum, Tuning, selectable};
use crate::model::weights::to_vec;
use crate::model::{Sam, WeightSpec};
use burn::tensor::Tensor;
use std::collections::BTreeMap;

/// The entries that a method trains alone; `None` for one that chooses none. Samples are drawn only when the method's
/// score is made of gradients; `seed` is for scores that are drawn.
///
/// # Errors
/// As [`accumulate`] and [`method::choose`].
pub fn choose<S>(
    method: &dyn Tuning,
    sam: &Sam,
    settings: &Settings,
    seed: u64,
    samples: impl Iterator<Item = Result<S>>,
    loss: impl FnMut(&Sam, S) -> Result<Tensor<1>>,
) -> Result<Option<Chosen>> {
    let Some(rule) = method::rule(method, settings) else { return Ok(None) };
    let (cases, sums) = match rule.score.needs() {
        [] => (0, BTreeMap::new()),
        needs => accumulate(sam, needs, samples, loss)?,
    };
    let weight = |spec: &WeightSpec| sam.weights.get(&spec.name).map(|w| to_vec(w.value.clone())).unwrap_or_default();
    method::choose(method, &sam.config.specs(), &Evidence { cases, sums, weight: &weight, seed }, settings)
}

/// Sums what `needs` names of d loss / d weight over samples, one at a time and in order, for every matrix of the image
/// encoder; the number of samples comes first.
///
/// `samples` yields one sample at a time; `loss` computes a scalar from the network and a sample. The network is not
/// changed.
///
/// # Errors
/// What a sample's loading or `loss` answers.
pub fn accumulate<S>(
    sam: &Sam,
    needs: &[Sum],
    samples: impl Iterator<Item = Result<S>>,
    mut loss: impl FnMut(&Sam, S) -> Result<Tensor<1>>,
) -> Result<(usize, BTreeMap<Sum, GradientTable>)> {
    let mut tracked = sam.frozen();
    for (_, weight) in tracked.weights.iter_mut().filter(|(_, weight)| selectable(&weight.spec)) {
        weight.train_all();
    }
    let mut cases = 0;
    let mut sums: BTreeMap<Sum, GradientTable> = needs.iter().map(|sum| (*sum, GradientTable::new())).collect();
    for sample in samples {
        let mut gradients = loss(&tracked, sample?)?.backward();
        cases += 1;
        for (name, weight) in tracked.weights.iter() {
            let Some(gradient) = weight.value.grad_remove(&mut gradients) else { continue };
            let gradient = to_vec(gradient);
            for (sum, table) in &mut sums {
                match table.get_mut(name) {
                    Some(total) => total.iter_mut().zip(&gradient).for_each(|(s, g)| *s += sum.term(*g)),
                    None => {
                        table.insert(name.clone(), gradient.iter().map(|g| sum.term(*g)).collect());
                    }
                }
            }
        }
    }
    Ok((cases, sums))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::method::{Budget, Score};
    use crate::model::{SamConfig, checkpoint};
    use burn::tensor::{Device, TensorData};

    const NAME: &str = "image_encoder.blocks.0.attn.proj.weight";

    fn small() -> Sam {
        checkpoint::random("test", SamConfig { depth: 1, global: vec![0], ..SamConfig::tiny() }, 1)
            .into_sam(&Device::flex())
    }

    /// Three cases that look at the first three values of one weight: L = Σ c·w over them.
    fn linear(sam: &Sam, factors: [f32; 3]) -> Tensor<1> {
        let factors = Tensor::<1>::from_data(TensorData::new(factors.to_vec(), [3]), &Device::flex());
        let values = sam.weights.get(NAME).unwrap().value.clone().narrow(0, 0, 3);
        (values * factors).sum()
    }

    #[test]
    fn only_the_sums_that_are_needed_are_held() {
        let sam = small();
        let cases = [[1.0, 2.0, 0.0], [1.0, -3.0, 0.0]];
        let pass = |needs: &[Sum]| {
            accumulate(&sam, needs, cases.into_iter().map(Ok), |sam, case| Ok(linear(sam, case))).unwrap()
        };
        for (sum, want) in
            [(Sum::Signed, [2.0, -1.0, 0.0]), (Sum::Absolute, [2.0, 5.0, 0.0]), (Sum::Square, [2.0, 13.0, 0.0])]
        {
            let (count, sums) = pass(&[sum]);
            assert_eq!((count, sums.len()), (2, 1));
            assert_eq!(sums[&sum][NAME][..3], want);
        }
        assert_eq!(pass(&[Sum::Signed, Sum::Square]).1.len(), 2);
    }

    #[test]
    fn a_score_of_the_weights_alone_draws_no_sample() {
        let sam = small();
        let settings = Settings { budget: Budget::Count(1), score: Some(Score::Largest), ..Settings::default() };
        let gps = method::find("gps").unwrap();
        let never = std::iter::once_with(|| -> Result<()> { Err(Error::job("a sample was drawn")) });
        let chosen = choose(gps, &sam, &settings, 0, never, |sam, ()| Ok(linear(sam, [0.0; 3]))).unwrap().unwrap();
        assert_eq!(chosen.values().map(Vec::len).sum::<usize>(), 1);
    }

    /// Least squares in three values of one weight: L = (a·(w - w₀) + r)² / 2, mean over two cases with r = 1 and -1.
    /// Its Hessian is the mean of a aᵀ, whose diagonal the Fisher information is, exactly, because r² = 1.
    const TOY: [([f32; 3], f32); 2] = [([6.0, 1.0, 0.0], 1.0), ([2.0, -1.0, -0.5], -1.0)];

    fn squares(values: Tensor<1>, start: &[f32], (a, r): ([f32; 3], f32)) -> Tensor<1> {
        let tensor = |v: Vec<f32>| Tensor::<1>::from_data(TensorData::new(v, [3]), &Device::flex());
        let residual = ((values - tensor(start.to_vec())) * tensor(a.to_vec())).sum() + r;
        residual.clone() * residual * 0.5
    }

    #[test]
    fn the_second_order_score_is_what_the_best_step_of_one_weight_takes_away() {
        let sam = small();
        let start = to_vec(sam.weights.get(NAME).unwrap().value.clone().narrow(0, 0, 3));
        let case =
            |sam: &Sam, case| Ok(squares(sam.weights.get(NAME).unwrap().value.clone().narrow(0, 0, 3), &start, case));
        // The exact second derivative along each weight: a second difference, which has no error in a square.
        let loss = |i: usize, step: f32| {
            let mut moved = start.clone();
            moved[i] += step;
            let at = |case| {
                f64::from(to_vec(squares(Tensor::from_floats(moved.as_slice(), &Device::flex()), &start, case))[0])
            };
            TOY.into_iter().map(at).sum::<f64>() / 2.0
        };
        let taken: Vec<f64> = (0..3)
            .map(|i| {
                let (gradient, hessian) =
                    ((loss(i, 1.0) - loss(i, -1.0)) / 2.0, loss(i, 1.0) - 2.0 * loss(i, 0.0) + loss(i, -1.0));
                loss(i, 0.0) - loss(i, (-gradient / hessian) as f32)
            })
            .collect();
        // g = (2, 1, 0.25), h = (20, 1, 0.125): g²/2h is 0.1, 0.5, 0.25.
        for (got, want) in taken.iter().zip([0.1, 0.5, 0.25]) {
            assert!((got - want).abs() < 1e-5, "{taken:?}");
        }
        let (count, sums) = accumulate(&sam, Score::SecondOrder.needs(), TOY.into_iter().map(Ok), case).unwrap();
        let weight = |_: &WeightSpec| Vec::new();
        let evidence = Evidence { cases: count, sums, weight: &weight, seed: 0 };
        let specs = sam.config.specs();
        let spec = specs.iter().find(|s| s.name == NAME).unwrap();
        let scores = Score::SecondOrder.of(spec, 0, &evidence, 0.0).unwrap().unwrap();
        for (score, taken) in scores.iter().zip(&taken) {
            assert!((f64::from(*score) / 2.0 - taken).abs() < 1e-5, "{scores:?} {taken:?}");
        }
        // With the damping that is used, and through the method: the second weight, where GPS takes the first.
        let first = |name: &str| {
            let settings =
                Settings { budget: Budget::Count(1), group: Some(method::Group::Global), ..Settings::default() };
            let cases = TOY.into_iter().map(Ok);
            choose(method::find(name).unwrap(), &sam, &settings, 0, cases, case).unwrap().unwrap()[NAME].clone()
        };
        assert_eq!((first("second-order"), first("gps")), (vec![1], vec![0]));
    }
}
