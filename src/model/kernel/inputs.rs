//! What the inputs of layers are while something is computed: for measuring and selecting, never in a training step.

use crate::model::weights::{Weight, to_vec};
use burn::tensor::{Int, Tensor, TensorData};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Rows of a layer's input, `[rows, fan_in]`, by the name of its weight.
pub type Inputs = BTreeMap<String, Tensor<2>>;

/// The mean square of each column of a layer's input, `[fan_in]` in the order of a row of its weight, by the name of that;
/// summed over the times that the layer was at work.
pub type Squares = BTreeMap<String, Vec<f32>>;

/// What is kept of inputs.
enum Seen {
    /// At most so many rows of what a layer is given the first time.
    Rows(usize, Inputs),
    /// Sums of their squares.
    Squares(Squares),
}

thread_local! {
    /// What is kept while [`inputs`] or [`squares`] is at work on this thread.
    static SEEN: RefCell<Option<Seen>> = const { RefCell::new(None) };
}

/// Does the work and keeps at most so many rows, evenly spaced, of what each linear layer is given the first time.
pub fn inputs<T>(rows: usize, work: impl FnOnce() -> T) -> (T, Inputs) {
    match looking(Seen::Rows(rows, Inputs::new()), work) {
        (result, Some(Seen::Rows(_, inputs))) => (result, inputs),
        (result, _) => (result, Inputs::new()),
    }
}

/// Does the work and sums the mean squares of what each linear layer and convolution is given: a number a column, no
/// input is kept. The columns of a convolution are those of the matrix of gathered neighbours that it stands for, zeros of
/// its padding among them; the zeros that windows of attention are filled up with are no input of any layer.
pub fn squares<T>(work: impl FnOnce() -> T) -> (T, Squares) {
    match looking(Seen::Squares(Squares::new()), work) {
        (result, Some(Seen::Squares(squares))) => (result, squares),
        (result, _) => (result, Squares::new()),
    }
}

fn looking<T>(seen: Seen, work: impl FnOnce() -> T) -> (T, Option<Seen>) {
    SEEN.with(|at| *at.borrow_mut() = Some(seen));
    let result = work();
    (result, SEEN.with(|at| at.borrow_mut().take()))
}

/// Called by a linear layer before it computes: does nothing unless somebody looks.
pub(super) fn see<const D: usize>(x: &Tensor<D>, weight: &Weight) {
    SEEN.with(|seen| match seen.borrow_mut().as_mut() {
        Some(Seen::Rows(most, inputs)) if !inputs.contains_key(&weight.spec.name) => {
            inputs.insert(weight.spec.name.clone(), spaced(x, weight.spec.matrix().1, *most));
        }
        Some(Seen::Squares(squares)) => add(squares, weight, std::iter::once(x.clone())),
        _ => {}
    });
}

/// The same of a convolution, whose input at each position of the kernel, `[…, in]`, is gathered only then.
pub(super) fn see_neighbours<I: ExactSizeIterator<Item = Tensor<4>>>(
    at_positions: impl FnOnce() -> I,
    weight: &Weight,
) {
    SEEN.with(|seen| {
        if let Some(Seen::Squares(squares)) = seen.borrow_mut().as_mut() {
            add(squares, weight, at_positions());
        }
    });
}

/// At most so many rows, evenly spaced: `[…, fan_in]` → `[rows, fan_in]`.
fn spaced<const D: usize>(x: &Tensor<D>, fan_in: usize, most: usize) -> Tensor<2> {
    let all = x.dims().iter().product::<usize>() / fan_in;
    let kept = all.min(most);
    let spaced: Vec<i32> = (0..kept).map(|i| (i * all / kept) as i32).collect();
    let spaced = Tensor::<1, Int>::from_data(TensorData::new(spaced, [kept]), &x.device().without_autodiff());
    x.clone().without_autodiff().reshape([all, fan_in]).select(0, spaced)
}

/// Adds the mean square of each column; the parts of a row of the weight lie interleaved, `[in, parts]`. Summed row after
/// row on one thread, so that the result depends on nothing else.
fn add<const D: usize>(squares: &mut Squares, weight: &Weight, parts: impl ExactSizeIterator<Item = Tensor<D>>) {
    let (fan_in, every) = (weight.spec.matrix().1, parts.len());
    let means = squares.entry(weight.spec.name.clone()).or_insert_with(|| vec![0.0; fan_in]);
    for (first, part) in parts.enumerate() {
        let (values, width) = (to_vec(part), fan_in / every);
        let mut sums = vec![0f64; width];
        for row in values.chunks_exact(width) {
            sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v) * f64::from(*v));
        }
        let rows = (values.len() / width).max(1) as f64;
        let columns = means.iter_mut().skip(first).step_by(every);
        columns.zip(sums).for_each(|(mean, sum)| *mean += (sum / rows) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::super::conv::conv3;
    use super::super::linear::project;
    use super::super::tests::weight;
    use super::*;
    use crate::model::weights::Kind;
    use burn::tensor::Device;

    #[test]
    fn squares_are_those_of_every_column() {
        let tensor = |values: &[f32], shape: [usize; 4]| {
            Tensor::<4>::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
        };
        let (linear, conv) = (weight("linear", Kind::Linear, &[3, 2]), weight("conv", Kind::Conv, &[1, 2, 3, 3]));
        let ((), seen) = squares(|| {
            // Twice: columns (1, 3) and (2, -4), then (0, 0) and (0, 2).
            project(tensor(&[1.0, 2.0, 3.0, -4.0], [1, 1, 2, 2]), &linear);
            project(tensor(&[0.0, 0.0, 0.0, 2.0], [1, 1, 2, 2]), &linear);
            // One row of two pixels, two channels: (1, 10), (2, 20). To the left of the first and to the right of the
            // second is padding, as is all above and below.
            conv3(tensor(&[1.0, 10.0, 2.0, 20.0], [1, 1, 2, 2]), &conv, 1);
        });
        assert_eq!(seen["linear"], [5.0, 10.0 + 2.0]);
        let middle = [0.5, 2.5, 2.0];
        let want: Vec<f32> =
            [1.0, 100.0].iter().flat_map(|c| [[0.0; 3], middle.map(|m| c * m), [0.0; 3]].concat()).collect();
        assert_eq!(seen["conv"], want);
        // A stride of two leaves out every second place: the one that is left sees its right neighbour.
        let ((), seen) = squares(|| {
            conv3(tensor(&[1.0, 10.0, 2.0, 20.0], [1, 1, 2, 2]), &conv, 2);
        });
        assert_eq!(seen["conv"][3..6], [0.0, 1.0, 4.0]);
        // Nobody looks any more.
        project(tensor(&[1.0; 4], [1, 1, 2, 2]), &linear);
        assert!(squares(|| ()).1.is_empty());
    }

    #[test]
    fn rows_are_those_of_linear_layers_the_first_time() {
        let (linear, conv) = (weight("linear", Kind::Linear, &[3, 1]), weight("conv", Kind::Conv, &[1, 1, 3, 3]));
        let tensor = |from: f32| {
            let values: Vec<f32> = (0..8).map(|i| from + i as f32).collect();
            Tensor::<4>::from_data(TensorData::new(values, [1, 2, 4, 1]), &Device::flex())
        };
        let ((), seen) = inputs(3, || {
            project(tensor(1.0), &linear);
            project(tensor(9.0), &linear);
            conv3(tensor(1.0), &conv, 1);
        });
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["linear"]);
        assert_eq!(to_vec(seen["linear"].clone()), [1.0, 3.0, 6.0]);
    }
}
