//! What the inputs of linear layers are while something is computed: for measuring, never in a training step.

use crate::model::weights::Weight;
use burn::tensor::{Int, Tensor, TensorData};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Rows of a layer's input, `[rows, fan_in]`, by the name of its weight.
pub type Inputs = BTreeMap<String, Tensor<2>>;

thread_local! {
    /// How many rows are kept, and those that are, while [`inputs`] is at work on this thread.
    static SEEN: RefCell<Option<(usize, Inputs)>> = const { RefCell::new(None) };
}

/// Does the work and keeps at most so many rows, evenly spaced, of what each linear layer is given the first time.
pub fn inputs<T>(rows: usize, work: impl FnOnce() -> T) -> (T, Inputs) {
    SEEN.with(|seen| *seen.borrow_mut() = Some((rows, Inputs::new())));
    let result = work();
    let seen = SEEN.with(|seen| seen.borrow_mut().take());
    (result, seen.map(|(_, inputs)| inputs).unwrap_or_default())
}

/// Called by a layer before it computes: does nothing unless somebody looks.
pub(super) fn see<const D: usize>(x: &Tensor<D>, weight: &Weight) {
    SEEN.with(|seen| {
        let mut seen = seen.borrow_mut();
        let Some((most, inputs)) = seen.as_mut().filter(|(_, inputs)| !inputs.contains_key(&weight.spec.name)) else {
            return;
        };
        let fan_in = weight.spec.matrix().1;
        let all = x.dims().iter().product::<usize>() / fan_in;
        let kept = all.min(*most);
        let spaced: Vec<i32> = (0..kept).map(|i| (i * all / kept) as i32).collect();
        let spaced = Tensor::<1, Int>::from_data(TensorData::new(spaced, [kept]), &x.device().without_autodiff());
        let x = x.clone().without_autodiff().reshape([all, fan_in]).select(0, spaced);
        inputs.insert(weight.spec.name.clone(), x);
    });
}
