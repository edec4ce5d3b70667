//! A block of the encoder whose inner activations are not kept: its backward step runs it again on the stored input, in
//! a graph of its own, and hands the gradients of its input and of its trained weights to the graph around it.
//!
//! The same operations on the same values in the same order: gradients are equal to the bit.

use super::image_encoder::{Block, block};
use crate::model::weights::{Scope, Weights};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, DispatchKindConversion, DispatchTensor, Flex};
use burn::tensor::Tensor;
use std::marker::PhantomData;

/// Weights of a block: two norms, four linear layers, two tables of positions.
const WEIGHTS: usize = 14;

/// As [`block`], and gradients with it; between the passes only the input is kept.
pub(super) fn recomputed(x: Tensor<4>, scope: &Scope<'_>, sizes: Block) -> Tensor<4> {
    if !x.is_tracked() && !scope.iter().any(|(_, weight)| weight.leaf().is_tracked()) {
        return block(x, scope, sizes);
    }
    #[cfg(feature = "cuda")]
    if x.device().without_autodiff() != burn::tensor::Device::flex() {
        return record::<burn::backend::Cube>(x, scope, sizes);
    }
    record::<Flex>(x, scope, sizes)
}

/// What running a block again takes.
#[derive(Debug, Clone)]
struct Again {
    x: Tensor<4>,
    weights: Weights,
    prefix: String,
    sizes: Block,
}

impl Again {
    fn run(&self, x: Tensor<4>) -> Tensor<4> {
        block(x, &self.weights.scope(&self.prefix), self.sizes)
    }
}

/// Runs the block outside of the graph and enters it there as one step.
fn record<B: Backend>(x: Tensor<4>, scope: &Scope<'_>, sizes: Block) -> Tensor<4>
where
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B>>,
{
    let again = Again {
        x: x.clone().without_autodiff(),
        weights: Weights::apart(scope),
        prefix: scope.prefix().to_string(),
        sizes,
    };
    let y = again.run(again.x.clone());
    let weights: Vec<NodeGuard> = scope.iter().map(|(_, weight)| node::<B, 1>(weight.leaf().clone())).collect();
    #[expect(clippy::expect_used, reason = "the configuration's table gives every block the same weights")]
    let weights: [NodeGuard; WEIGHTS] = weights.try_into().expect("the weights of a block");
    let mut weights = weights.into_iter();
    let mut x = Some(node::<B, 4>(x));
    #[expect(clippy::expect_used, reason = "as many as were counted")]
    let nodes = std::array::from_fn(|_| x.take().or_else(|| weights.next()).expect("an input"));
    let output = primitive::<B, 4>(y);
    Tensor::from_primitive::<Autodiff<B>>(
        match Rerun(PhantomData::<B>).prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(again, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        },
    )
}

/// The place of a tensor in the graph; of a constant, one without gradient.
fn node<B: Backend, const D: usize>(tensor: Tensor<D>) -> NodeGuard
where
    DispatchTensor: DispatchKindConversion<Autodiff<B>>,
{
    #[expect(clippy::expect_used, reason = "all tensors of a network lie on one device")]
    tensor.autodiff().try_into_primitive::<Autodiff<B>>().expect("a tensor of this backend").node()
}

fn primitive<B: Backend, const D: usize>(tensor: Tensor<D>) -> B::FloatTensorPrimitive
where
    DispatchTensor: DispatchKindConversion<B>,
{
    #[expect(clippy::expect_used, reason = "all tensors of a network lie on one device")]
    tensor.try_into_primitive::<B>().expect("a tensor of this backend")
}

/// The step in the graph. Its inputs: the block's input, then its weights in the order of their names.
#[derive(Debug)]
struct Rerun<B>(PhantomData<B>);

impl<B: Backend> Backward<B, { 1 + WEIGHTS }> for Rerun<B>
where
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B>>,
{
    type State = Again;

    fn backward(self, ops: Ops<Again, { 1 + WEIGHTS }>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = Tensor::<4>::from_primitive::<B>(grads.consume::<B>(&ops.node));
        let (mut again, [x_node, weight_nodes @ ..]) = (ops.state, ops.parents);
        let x = match x_node {
            Some(_) => again.x.clone().autodiff().require_grad(),
            None => again.x.clone(),
        };
        let tracked = |(node, _): &(Option<_>, _)| Option::is_some(node);
        for (_, (_, weight)) in weight_nodes.iter().cloned().zip(again.weights.iter_mut()).filter(tracked) {
            weight.track();
        }
        // The gradient of Σ y · dy by y is dy itself.
        let mut inner = (again.run(x.clone()) * dy).sum().backward();
        if let (Some(node), Some(gradient)) = (x_node, x.grad_remove(&mut inner)) {
            grads.register::<B>(node.id, primitive::<B, 4>(gradient));
        }
        for (node, (_, weight)) in weight_nodes.into_iter().zip(again.weights.iter()) {
            if let (Some(node), Some(gradient)) = (node, weight.leaf().grad_remove(&mut inner)) {
                grads.register::<B>(node.id, primitive::<B, 1>(gradient));
            }
        }
    }
}
