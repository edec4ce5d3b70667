//! The selection pass: sums of gradients, or of the inputs of layers, over one deterministic pass of the training cases, and
//! the choice from them.

use crate::error::{Error, Result};
use crate::method::{self, Chosen, Evidence, GradientTable, Settings, Sum, Tuning, selectable};
use crate::model::kernel::inputs::squares;
use crate::model::kernel::tap::Sink;
use crate::model::weights::to_vec;
use crate::model::{Sam, WeightSpec};
use burn::tensor::{Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How often the weights are moved for a curvature.
const PROBES: u64 = 4;

/// How far: this part of the root mean square of a tensor's values.
const STEP: f64 = 1e-2;

/// Buffers of the size of the encoder's matrices that sums take: a curvature needs moved weights and their gradients, of
/// inputs there is a number a column alone.
pub fn buffers(needs: &[Sum]) -> usize {
    needs.iter().filter(|sum| **sum != Sum::Inputs).count() + if needs.contains(&Sum::Curvature) { 2 } else { 0 }
}

/// Passes over the samples that sums take.
pub fn passes(needs: &[Sum]) -> usize {
    match needs {
        [] => 0,
        needs if needs.contains(&Sum::Curvature) => 1 + PROBES as usize,
        _ => 1,
    }
}

/// The entries that a method trains alone; `None` for one that chooses none. Samples are drawn only when the method's
/// score reads cases, [`passes`] times; `seed` is for what is drawn. A score of inputs has `loss` computed, of a network
/// that is constant, and takes no gradient of it.
///
/// # Errors
/// As [`accumulate`] and [`method::choose`].
pub fn choose<S>(
    method: &dyn Tuning,
    sam: &Sam,
    settings: &Settings,
    seed: u64,
    samples: impl Iterator<Item = Result<S>> + Clone,
    mut loss: impl FnMut(&Sam, S) -> Result<Tensor<1>>,
) -> Result<Option<Chosen>> {
    let Some(rule) = method::rule(method, settings) else { return Ok(None) };
    let (cases, sums) = match rule.score.needs() {
        [] => (0, BTreeMap::new()),
        [Sum::Inputs] => inputs(sam, samples, &mut loss)?,
        needs => {
            let first: Vec<Sum> = needs.iter().copied().filter(|sum| *sum != Sum::Curvature).collect();
            let (cases, mut sums) = accumulate(sam, &first, samples.clone(), &mut loss)?;
            if let (true, Some(at_rest)) = (needs.contains(&Sum::Curvature), sums.get(&Sum::Signed)) {
                let curvature = curvature(sam, at_rest, PROBES, seed, samples, &mut loss)?;
                sums.insert(Sum::Curvature, curvature);
            }
            (cases, sums)
        }
    };
    let weight = |spec: &WeightSpec| sam.weights.get(&spec.name).map(|w| to_vec(w.value.clone())).unwrap_or_default();
    method::choose(method, &sam.config.specs(), &Evidence { cases, sums, weight: &weight, seed }, settings)
}

/// Sums [`Sum::Inputs`] over samples, one at a time and in order, for every matrix of the image encoder; the number of
/// samples comes first. The encoder must be a part of `loss`, which is computed forwards alone.
///
/// # Errors
/// What a sample's loading or `loss` answers.
fn inputs<S>(
    sam: &Sam,
    mut samples: impl Iterator<Item = Result<S>>,
    mut loss: impl FnMut(&Sam, S) -> Result<Tensor<1>>,
) -> Result<(usize, BTreeMap<Sum, GradientTable>)> {
    let frozen = sam.frozen();
    let (cases, mut sums) = squares(|| samples.try_fold(0, |cases, sample| loss(&frozen, sample?).map(|_| cases + 1)));
    sums.retain(|name, _| sam.weights.get(name).is_some_and(|weight| selectable(&weight.spec)));
    Ok((cases?, BTreeMap::from([(Sum::Inputs, sums)])))
}

/// Sums what `needs` names of d loss / d weight over samples, one at a time and in order, for every matrix of the image
/// encoder; the number of samples comes first.
///
/// `samples` yields one sample at a time; `loss` computes a scalar from the network and a sample. The network is not
/// changed. On the CPU each layer's gradient is added and dropped inside backward, so that beside the sums there is
/// never more than a layer of them.
///
/// # Errors
/// What a sample's loading or `loss` answers; a job error when a loss uses a weight twice and what is summed is not
/// linear in the gradient.
pub fn accumulate<S>(
    sam: &Sam,
    needs: &[Sum],
    samples: impl Iterator<Item = Result<S>>,
    mut loss: impl FnMut(&Sam, S) -> Result<Tensor<1>>,
) -> Result<(usize, BTreeMap<Sum, GradientTable>)> {
    let mut tracked = sam.frozen();
    let mut totals = BTreeMap::new();
    for (name, weight) in tracked.weights.iter_mut().filter(|(_, weight)| selectable(&weight.spec)) {
        weight.train_all();
        let total = Arc::new(Total { needs: needs.to_vec(), sums: Mutex::default() });
        totals.insert(name.clone(), total.clone());
        weight.sink = Some(Sink::new(move |gradient| total.add(gradient)));
    }
    let mut cases = 0;
    for sample in samples {
        let mut gradients = loss(&tracked, sample?)?.backward();
        cases += 1;
        for (name, weight) in tracked.weights.iter() {
            // What no sink has taken: on other devices.
            if let (Some(total), Some(gradient)) = (totals.get(name), weight.value.grad_remove(&mut gradients)) {
                total.add(&to_vec(gradient));
            }
        }
        let linear = needs.iter().all(|sum| matches!(sum, Sum::Signed | Sum::Curvature));
        if let Some((name, _)) = totals.iter().find(|(_, total)| !linear && total.added() > cases) {
            return Err(Error::job(format!("`{name}` is used twice in one loss: its gradient comes in two parts")));
        }
    }
    let mut sums: BTreeMap<Sum, GradientTable> = needs.iter().map(|sum| (*sum, GradientTable::new())).collect();
    for (name, total) in totals {
        for (sum, values) in total.take() {
            sums.entry(sum).or_default().insert(name.clone(), values);
        }
    }
    Ok((cases, sums))
}

/// One weight's sums.
struct Total {
    needs: Vec<Sum>,
    sums: Mutex<Sums>,
}

#[derive(Default)]
struct Sums {
    /// How often something was added.
    added: usize,
    /// None while nothing was.
    values: BTreeMap<Sum, Vec<f32>>,
}

impl Total {
    /// A panic while a sum is made ends the program: what it left is not looked at.
    fn lock(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, gradient: &[f32]) {
        let mut sums = self.lock();
        if sums.added == 0 {
            sums.values = self.needs.iter().map(|sum| (*sum, vec![0.0; gradient.len()])).collect();
        }
        sums.added += 1;
        for (sum, total) in &mut sums.values {
            total.iter_mut().zip(gradient).for_each(|(t, g)| *t += sum.term(*g));
        }
    }

    fn added(&self) -> usize {
        self.lock().added
    }

    fn take(&self) -> BTreeMap<Sum, Vec<f32>> {
        std::mem::take(&mut self.lock().values)
    }
}

/// The diagonal of the Hessian of the loss, summed over samples, from first derivatives: all weights are moved at once, each
/// by e up or down as is drawn (u = ±1), and
///
/// hᵢ ≈ mean over the probes of uᵢ (Σ gᵢ(w + e u) - Σ gᵢ(w)) / eᵢ = Hᵢᵢ + Σ_{j ≠ i} Hᵢⱼ uᵢ uⱼ eⱼ / eᵢ + O(e).
///
/// The terms of other weights are 0 in expectation and die away as 1 / √probes; that is Hutchinson's estimate (with
/// differences in the place of a second backward pass, which there is none of). Each probe is one more pass over the
/// samples and, while it lasts, a copy of the encoder's matrices. Summed gradients at rest are taken from `at_rest`.
fn curvature<S>(
    sam: &Sam,
    at_rest: &GradientTable,
    probes: u64,
    seed: u64,
    samples: impl Iterator<Item = Result<S>> + Clone,
    mut loss: impl FnMut(&Sam, S) -> Result<Tensor<1>>,
) -> Result<GradientTable> {
    let mut sums = GradientTable::new();
    for probe in 0..probes {
        let mut moved = sam.frozen();
        let all = moved.weights.iter_mut().filter(|(_, weight)| selectable(&weight.spec));
        for (number, (name, weight)) in all.enumerate() {
            let step = step(&to_vec(weight.value.clone()));
            let by: Vec<f32> = signs(seed, probe, number as u64, at_rest.get(name).map_or(0, Vec::len))
                .map(|up| if up { step } else { -step })
                .collect();
            if !by.is_empty() {
                let device = weight.value.device();
                weight.value =
                    weight.value.clone() + Tensor::from_data(TensorData::new(by, [weight.spec.len()]), &device);
            }
        }
        let (_, mut there) = accumulate(&moved, &[Sum::Curvature], samples.clone(), &mut loss)?;
        let there = there.remove(&Sum::Curvature).unwrap_or_default();
        let all = sam.weights.iter().filter(|(_, weight)| selectable(&weight.spec));
        for (number, (name, weight)) in all.enumerate() {
            let (Some(there), Some(here)) = (there.get(name), at_rest.get(name)) else { continue };
            let step = step(&to_vec(weight.value.clone())) * probes as f32;
            let sum = sums.entry(name.clone()).or_insert_with(|| vec![0.0; here.len()]);
            let differences = there.iter().zip(here).map(|(there, here)| (there - here) / step);
            let signs = signs(seed, probe, number as u64, here.len());
            for ((sum, difference), up) in sum.iter_mut().zip(differences).zip(signs) {
                *sum += if up { difference } else { -difference };
            }
        }
    }
    Ok(sums)
}

/// How far the values of a tensor are moved.
fn step(values: &[f32]) -> f32 {
    let squares: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
    let size = (squares / values.len().max(1) as f64).sqrt();
    (STEP * if size > 0.0 { size } else { 1.0 }) as f32
}

/// Which way each of `n` values of the `number`-th weight is moved.
fn signs(seed: u64, probe: u64, number: u64, n: usize) -> impl Iterator<Item = bool> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Streams of their own, apart from those of order, augmentation, pretraining and random scores.
    rng.set_stream((7 << 61) + (probe << 32) + number);
    (0..n).map(move |_| rng.random())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{Budget, Score};
    use crate::model::sam::Activations;
    use crate::model::{SamConfig, checkpoint};
    use burn::tensor::Device;

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
    fn what_is_summed_in_backward_is_what_it_returns() {
        // The inner of a block on 2 × 2 patches, once as it is summed and once as burn returns it.
        for activations in [Activations::Kept, Activations::Recomputed] {
            let sam = Sam { activations, ..small() };
            let values: Vec<f32> = (0..3 * 32 * 32).map(|i| (i as f32 * 0.37).sin()).collect();
            let pixels = Tensor::<4>::from_data(TensorData::new(values, [1, 3, 32, 32]), &Device::flex());
            let loss = |sam: &Sam| {
                let y = sam.embed(pixels.clone()).coarse;
                (y.clone() * y).sum()
            };
            let mut tracked = sam.frozen();
            tracked.weights.iter_mut().for_each(|(_, weight)| weight.train_all());
            let gradients = loss(&tracked).backward();
            let once = std::iter::once(Ok(()));
            let needs = [Sum::Signed, Sum::Square];
            let (_, sums) = accumulate(&sam, &needs, once, |sam, ()| Ok(loss(sam))).unwrap();
            for (name, weight) in tracked.weights.iter().filter(|(_, weight)| selectable(&weight.spec)) {
                let want = weight.value.grad(&gradients).map(to_vec);
                assert_eq!(sums[&Sum::Signed].get(name), want.as_ref(), "{name}");
                let squares = want.map(|g| g.iter().map(|g| g * g).collect::<Vec<f32>>());
                assert_eq!(sums[&Sum::Square].get(name), squares.as_ref(), "{name}");
            }
            // Twice in one loss: parts of a sum may come one by one, parts of a square not.
            let twice = |sam: &Sam, ()| Ok(loss(sam) + loss(sam));
            let pass = |sum: Sum| accumulate(&sam, &[sum], std::iter::once(Ok(())), twice);
            let (one, two) = (&sums[&Sum::Signed], &pass(Sum::Signed).unwrap().1[&Sum::Signed]);
            assert!(one.iter().all(|(name, one)| one.iter().zip(&two[name]).all(|(a, b)| 2.0 * a == *b)));
            assert!(pass(Sum::Square).unwrap_err().message.contains("twice"));
        }
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

    #[test]
    fn inputs_are_summed_forwards_alone() {
        let sam = small();
        let picture = |step: f32| {
            let values: Vec<f32> = (0..3 * 32 * 32).map(|i| (i as f32 * step).sin()).collect();
            Tensor::<4>::from_data(TensorData::new(values, [1, 3, 32, 32]), &Device::flex())
        };
        let pictures = [0.37, 0.11];
        let (cases, sums) = inputs(&sam, pictures.into_iter().map(Ok), |sam, step| {
            assert!(sam.weights.iter().all(|(_, weight)| weight.trained() == 0));
            let y = sam.embed(picture(step)).coarse.mean();
            assert!(!y.is_tracked(), "a graph was made");
            Ok(y)
        })
        .unwrap();
        let sums = &sums[&Sum::Inputs];
        let names = sam.weights.iter().filter(|(_, weight)| selectable(&weight.spec));
        assert!(cases == 2 && names.map(|(name, _)| name).eq(sums.keys()));
        for (name, sums) in sums {
            let fan_in = sam.weights.get(name).unwrap().spec.matrix().1;
            assert!(sums.len() == fan_in && sums.iter().any(|sum| *sum > 0.0), "{name}");
        }
        // The first convolution is given the picture itself: 16 × 16 places, two pixels apart, and their neighbours.
        let want = |column: usize| {
            let (channel, y, x) = (column / 9, column % 9 / 3, column % 3);
            let square = |step: f32, place: usize| {
                let (y, x) = (2 * (place / 16) + y, 2 * (place % 16) + x);
                let inside = (1..=32).contains(&y) && (1..=32).contains(&x);
                if inside { ((channel * 1024 + (y - 1) * 32 + x - 1) as f32 * step).sin().powi(2) } else { 0.0 }
            };
            pictures.map(|step| (0..256).map(|place| square(step, place)).sum::<f32>() / 256.0).iter().sum::<f32>()
        };
        for (column, got) in sums["image_encoder.stem.0.conv.weight"].iter().enumerate() {
            assert!((got - want(column)).abs() < 1e-5, "{column}: {got} against {}", want(column));
        }
        // What is chosen follows: |w| times the root of those means.
        let settings = Settings { score: Some(Score::ActivationWeight), ..Settings::default() };
        let gps = method::find("gps").unwrap();
        let embed = |sam: &Sam, step| Ok(sam.embed(picture(step)).coarse.mean());
        let chosen = choose(gps, &sam, &settings, 0, pictures.into_iter().map(Ok), embed).unwrap().unwrap();
        for (name, sums) in sums {
            let weight = to_vec(sam.weights.get(name).unwrap().value.clone());
            let score = |row: &[f32], at: usize| row[at].abs() * (sums[at] / 2.0).sqrt();
            for (row, best) in weight.chunks_exact(sums.len()).zip(&chosen[name]) {
                let best = score(row, *best as usize % sums.len());
                assert!((0..sums.len()).all(|at| score(row, at) <= best * (1.0 + 1e-6)), "{name}");
            }
        }
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

    /// Six values of the weight as a network, y = c · tanh(A x), A of 2 × 2, c of 2, which stand at V + 20 (w - w₀) so that
    /// a step is neither lost in rounding nor large; case (x, target).
    const NET: [([f32; 2], f32); 3] = [([1.0, -0.5], 0.8), ([0.3, 2.0], -1.0), ([-1.5, 0.7], 0.2)];
    const V: [f32; 6] = [0.4, -0.3, 0.2, 0.5, 0.8, -0.6];

    fn net(sam: &Sam, start: &[f32], (x, target): ([f32; 2], f32)) -> Tensor<1> {
        let [start, at] = [start, &V].map(|v| Tensor::<1>::from_data(v, &Device::flex()));
        let values = (sam.weights.get(NAME).unwrap().value.clone().narrow(0, 0, 6) - start) * 20.0 + at;
        let x = Tensor::<2>::from_data([x], &Device::flex());
        let hidden = x.matmul(values.clone().narrow(0, 0, 4).reshape([2, 2]).transpose()).tanh();
        let residual = (hidden.reshape([2]) * values.narrow(0, 4, 2)).sum() - target;
        residual.clone() * residual * 0.5
    }

    /// The same loss of all cases in f64.
    fn net_exact(v: &[f64]) -> f64 {
        let one = |(x, target): &([f32; 2], f32)| {
            let [x0, x1] = x.map(f64::from);
            let unit = |i: usize| (v[2 * i] * x0 + v[2 * i + 1] * x1).tanh() * v[4 + i];
            (unit(0) + unit(1) - f64::from(*target)).powi(2) / 2.0
        };
        NET.iter().map(one).sum()
    }

    #[test]
    fn curvature_by_differences_is_the_exact_diagonal_of_a_networks_hessian() {
        const TRIES: u64 = 2000;
        let sam = small();
        let start = to_vec(sam.weights.get(NAME).unwrap().value.clone().narrow(0, 0, 6));
        let cases = || NET.into_iter().map(Ok);
        let case = |sam: &Sam, case| Ok(net(sam, &start, case));
        let (_, sums) = accumulate(&sam, &[Sum::Signed], cases(), case).unwrap();
        let got = curvature(&sam, &sums[&Sum::Signed], TRIES, 3, cases(), case).unwrap().remove(NAME).unwrap();
        // Exact to about 1e-6: second differences of the loss itself.
        let moved = |i: usize, a: f64, j: usize, b: f64| {
            let mut v = V.map(f64::from);
            v[i] += a;
            v[j] += b;
            net_exact(&v)
        };
        let s = 1e-4;
        let hessian = |i: usize, j: usize| {
            (moved(i, s, j, s) - moved(i, s, j, -s) - moved(i, -s, j, s) + moved(i, -s, j, -s)) / (4.0 * s * s)
        };
        for i in 0..6 {
            // The spread of the mean over probes, from the other entries of the row (all steps are of one size): 0.03 to
            // 0.04, where the diagonal is 0.05, 2.05, 1.09, 0.71, 0.90 and 0.62.
            let row = (0..6).filter(|j| *j != i).map(|j| hessian(i, j).powi(2)).sum::<f64>();
            let spread = (row / TRIES as f64).sqrt();
            let (got, want) = (f64::from(got[i]) / 400.0, hessian(i, i));
            assert!((got - want).abs() < 4.0 * spread + 0.02 * want.abs(), "{i}: {got} against {want} ± {spread}");
        }
        assert!(got[6..].iter().all(|h| *h == 0.0), "nothing else bends");
    }

    #[test]
    fn a_hessian_without_cross_terms_takes_one_probe() {
        let sam = small();
        let start = to_vec(sam.weights.get(NAME).unwrap().value.clone().narrow(0, 0, 3));
        // L = Σ (bᵢ dᵢ + aᵢ dᵢ² / 2) of d = w - w₀: g = b and h = a, also where the loss bends down.
        let case = |sam: &Sam, (b, a): ([f32; 3], [f32; 3])| {
            let [start, b, a] = [&start[..], &b, &a].map(|v| Tensor::<1>::from_data(v, &Device::flex()));
            let d = sam.weights.get(NAME).unwrap().value.clone().narrow(0, 0, 3) - start;
            Ok((d.clone() * b).sum() + (d.clone() * d * a).sum() * 0.5)
        };
        let cases =
            || [([3.0, 1.0, 0.25], [30.0, -1.5, 0.0]), ([1.0, 1.0, 0.25], [10.0, -0.5, 0.25])].into_iter().map(Ok);
        let (_, sums) = accumulate(&sam, &[Sum::Signed], cases(), case).unwrap();
        let got = curvature(&sam, &sums[&Sum::Signed], 1, 0, cases(), case).unwrap().remove(NAME).unwrap();
        for (got, want) in got.iter().zip([40.0, -2.0, 0.25]) {
            assert!((got - want).abs() < 1e-2 * want.abs(), "{got} against {want}");
        }
        // g² / |h| is 4 / 20, 1 / 1, 0.0625 / 0.125: the second, where GPS takes the first.
        let first = |score| {
            let (group, budget) = (Some(method::Group::Global), Budget::Count(1));
            let settings = Settings { budget, group, score, ..Settings::default() };
            let gps = method::find("gps").unwrap();
            choose(gps, &sam, &settings, 0, cases(), case).unwrap().unwrap()[NAME].clone()
        };
        assert_eq!((first(Some(Score::SecondOrderFd)), first(None)), (vec![1], vec![0]));
    }

    #[test]
    fn fisher_information_is_the_hessian_of_a_logistic_loss_whose_labels_are_as_likely_as_it_says() {
        // Cross-entropy of a logit a·(w - w₀), 0 at the start: probability ½, and both labels once. By hand: gradients
        // ± a / 2, their squares a² / 4; the Hessian p (1 - p) a², the same.
        let sam = small();
        let start = to_vec(sam.weights.get(NAME).unwrap().value.clone().narrow(0, 0, 3));
        let a = [2.0, -1.0, 0.5];
        let case = |sam: &Sam, label: f32| {
            let values = sam.weights.get(NAME).unwrap().value.clone().narrow(0, 0, 3);
            let away = values - Tensor::<1>::from_data(start.as_slice(), &Device::flex());
            let logit = (away * Tensor::<1>::from_data(a, &Device::flex())).sum();
            // log(1 + exp(x)) - label · x
            Ok((logit.clone().exp() + 1.0).log() - logit * label)
        };
        let cases = || [0.0, 1.0].into_iter().map(Ok);
        let (_, sums) = accumulate(&sam, &[Sum::Square], cases(), case).unwrap();
        let fisher = &sums[&Sum::Square][NAME];
        for i in 0..3 {
            let want = 2.0 * a[i] * a[i] / 4.0;
            assert!((fisher[i] - want).abs() < 1e-5, "{fisher:?}");
        }
    }
}
