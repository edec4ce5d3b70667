//! Takes a weight's gradient out of backward as soon as it is there, so that those of all layers never lie side by side.
//!
//! A tap hands its weight through. In backward it gives the gradient to a [`Sink`] and passes nothing on. It stands in the
//! graph behind the layer's input, too, although it does nothing with it: steps run from the deepest up, and one that
//! depended on the weight alone would run last, with every other weight's.

use super::floats;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use std::fmt;
use std::sync::Arc;

type Take = dyn Fn(&[f32]) + Send + Sync;

/// Where a gradient goes instead of into the result of backward.
#[derive(Clone)]
pub struct Sink(Arc<Take>);

impl Sink {
    /// Calls `take` with the flat gradient, once for each use of the weight in what is differentiated.
    pub fn new(take: impl Fn(&[f32]) + Send + Sync + 'static) -> Sink {
        Sink(Arc::new(take))
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}

/// The flat weight, tapped, for a layer with input `x`.
pub(super) fn tap<const D: usize>(x: &Tensor<D>, weight: Tensor<1>, sink: &Sink) -> Tensor<1> {
    let (x, weight) = (x.clone().into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Tap>::tapped(x, weight, sink.clone()))
}

/// The tap as an operation.
#[backend_extension(Flex, Autodiff)]
pub trait Tap: Backend {
    /// `weight` as it is; `x` says where in the graph.
    fn tapped(x: FloatTensor<Self>, weight: FloatTensor<Self>, sink: Sink) -> FloatTensor<Self>;
}

impl Tap for Flex {
    fn tapped(_: FlexTensor, weight: FlexTensor, _: Sink) -> FlexTensor {
        weight
    }
}

impl<C: CheckpointStrategy> Tap for Autodiff<Flex, C> {
    fn tapped(x: FloatTensor<Self>, weight: FloatTensor<Self>, sink: Sink) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Tapped;
        impl Backward<Flex, 2> for Tapped {
            type State = Sink;

            fn backward(self, ops: Ops<Sink, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = grads.consume::<Flex>(&ops.node).to_contiguous();
                (ops.state.0)(floats(&gradient));
            }
        }
        match Tapped.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(sink, weight.into_primitive()),
            OpsKind::UnTracked(prep) => prep.finish(weight.into_primitive()),
        }
    }
}
