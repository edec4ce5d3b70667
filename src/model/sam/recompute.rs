//! A block of the encoder whose inner activations are not kept: its backward step runs it again on the stored input, in
//! a graph of its own, and hands the gradients of its input and of its trained weights to the graph around it.
//!
//! The same operations on the same values in the same order: gradients are equal to the bit.

use super::added::Addition;
use super::image_encoder::{Block, block};
use crate::model::weights::{Scope, Weight, Weights};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, DispatchKindConversion, DispatchTensor, Flex};
use burn::tensor::Tensor;
use std::marker::PhantomData;

/// Weights of a block: two norms, four linear layers, two tables of positions.
const WEIGHTS: usize = 14;

/// What a block's step in the graph depends on: its input, its weights, and those that a method added, as one.
const INPUTS: usize = 1 + WEIGHTS + 1;

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
    let leaf = |(_, weight): (_, &Weight)| weight.leaf().clone();
    let mut nodes = vec![node::<B, 4>(x)];
    nodes.extend(scope.iter().filter(|(name, _)| !is_added(name)).map(leaf).map(node::<B, 1>));
    // How many are added is the method's affair: end to end they are one input, and the graph around takes its
    // gradient apart again.
    let added: Vec<Tensor<1>> =
        scope.iter().filter(|(name, _)| is_added(name)).map(leaf).map(Tensor::autodiff).collect();
    let added = if added.is_empty() { Tensor::zeros([1], &again.x.device()) } else { Tensor::cat(added, 0) };
    nodes.push(node::<B, 1>(added));
    #[expect(clippy::expect_used, reason = "the configuration's table gives every block the same weights")]
    let nodes: [NodeGuard; INPUTS] = nodes.try_into().expect("the weights of a block");
    let output = primitive::<B, 4>(y);
    Tensor::from_primitive::<Autodiff<B>>(
        match Rerun(PhantomData::<B>).prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(again, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        },
    )
}

/// Whether a method added the weight of that name.
fn is_added(name: &str) -> bool {
    Addition::of(name).is_some()
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

/// The step in the graph. Its inputs: the block's input, then its weights in the order of their names, then those that a
/// method added, end to end.
#[derive(Debug)]
struct Rerun<B>(PhantomData<B>);

impl<B: Backend> Backward<B, INPUTS> for Rerun<B>
where
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B>>,
{
    type State = Again;

    fn backward(self, ops: Ops<Again, INPUTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = Tensor::<4>::from_primitive::<B>(grads.consume::<B>(&ops.node));
        let (mut again, [x_node, weight_nodes @ .., added_node]) = (ops.state, ops.parents);
        let x = match x_node {
            Some(_) => again.x.clone().autodiff().require_grad(),
            None => again.x.clone(),
        };
        let mut nodes = weight_nodes.iter();
        for (name, weight) in again.weights.iter_mut() {
            let wanted = if is_added(name) { added_node.is_some() } else { nodes.next().is_some_and(Option::is_some) };
            if wanted {
                weight.track();
            }
        }
        // The gradient of Σ y · dy by y is dy itself.
        let mut inner = (again.run(x.clone()) * dy).sum().backward();
        if let (Some(node), Some(gradient)) = (x_node, x.grad_remove(&mut inner)) {
            grads.register::<B>(node.id, primitive::<B, 4>(gradient));
        }
        let mut nodes = weight_nodes.into_iter();
        let mut added = Vec::new();
        for (name, weight) in again.weights.iter() {
            let gradient = weight.leaf().grad_remove(&mut inner);
            if is_added(name) {
                let nothing = || Tensor::zeros(weight.leaf().dims(), &again.x.device());
                added.push(gradient.unwrap_or_else(nothing));
            } else if let (Some(Some(node)), Some(gradient)) = (nodes.next(), gradient) {
                grads.register::<B>(node.id, primitive::<B, 1>(gradient));
            }
        }
        if let Some(node) = added_node {
            grads.register::<B>(node.id, primitive::<B, 1>(Tensor::cat(added, 0)));
        }
    }
}
