//! The linear layer, dense or with chosen entries.
//!
//! Backward gives the input gradient and, of the weight gradient, what is trained: all of it, nothing, or the chosen
//! entries dW[r, c] = Σ_t dY[t, r] · X[t, c] alone. For chosen entries the dense dW is never formed, on any device.
//!
//! Patch embedding, neck and 1 × 1 convolutions are linear layers over rearranged pixels, so this file serves them too.

use super::inputs::see;
use super::tap::tap;
use super::{Matrix, Precision, Scratch, Threads, floats, indices, lanes, on_cpu, product, tensor, widest};
use crate::model::weights::{Scope, Weight};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Int, Shape, Tensor};
use rayon::prelude::*;

/// `x · Wᵀ + b` over the last dimension: `[…, fan_in]` → `[…, out]`, weight and bias found under `scope`.
pub fn linear<const D: usize>(x: Tensor<D>, scope: &Scope<'_>) -> Tensor<D> {
    affine(x, scope.get("weight"), Some(scope.get("bias").value.clone()), None)
}

/// `onto + x · Wᵀ + b`, as [`linear`] in one pass: a residual connection.
pub fn linear_onto<const D: usize>(x: Tensor<D>, scope: &Scope<'_>, onto: Tensor<D>) -> Tensor<D> {
    affine(x, scope.get("weight"), Some(scope.get("bias").value.clone()), Some(onto))
}

/// `x · Wᵀ` over the last dimension: `[…, fan_in]` → `[…, out]`.
pub fn project<const D: usize>(x: Tensor<D>, weight: &Weight) -> Tensor<D> {
    affine(x, weight, None, None)
}

/// `x · Mᵀ` over the last dimension, by a matrix `[out, fan_in]` that is computed: `[…, fan_in]` → `[…, out]`.
pub fn by_matrix<const D: usize>(x: Tensor<D>, matrix: Tensor<2>) -> Tensor<D> {
    let [out, fan_in] = matrix.dims();
    if !on_cpu(&x) {
        let mut shape = x.dims();
        let rows: usize = shape[..D - 1].iter().product();
        shape[D - 1] = out;
        return x.reshape([rows, fan_in]).matmul(matrix.transpose()).reshape(shape);
    }
    let flat: Tensor<1> = matrix.reshape([out * fan_in]);
    let chosen = Tensor::zeros([1], &flat.device().without_autodiff());
    fused(x, [out, fan_in], flat.clone(), (flat, chosen, false), None, None, Precision::F32)
}

fn affine<const D: usize>(
    x: Tensor<D>,
    weight: &Weight,
    bias: Option<Tensor<1>>,
    onto: Option<Tensor<D>>,
) -> Tensor<D> {
    see(&x, weight);
    if !on_cpu(&x) {
        let y = plain(x, weight, bias);
        return match onto {
            None => y,
            Some(onto) => onto + y,
        };
    }
    let (out, fan_in) = weight.spec.matrix();
    let leaf = leaf(&x, weight);
    fused(x, [out, fan_in], weight.value.clone(), leaf, bias, onto, weight.precision)
}

fn fused<const D: usize>(
    x: Tensor<D>,
    [out, fan_in]: [usize; 2],
    weight: Tensor<1>,
    (leaf, chosen, sparse): (Tensor<1>, Tensor<1, Int>, bool),
    bias: Option<Tensor<1>>,
    onto: Option<Tensor<D>>,
    precision: Precision,
) -> Tensor<D> {
    let mut shape = x.dims();
    let rows: usize = shape[..D - 1].iter().product();
    let device = x.device().without_autodiff();
    let bias = bias.unwrap_or_else(|| Tensor::zeros([out], &device));
    let residual = onto.is_some();
    let onto = onto.map_or_else(|| Tensor::zeros([1, 1], &device), |onto| onto.reshape([rows, out]));
    let y = Tensor::<2>::from_dispatch(<Dispatch as Linear>::fused_linear(
        x.reshape([rows, fan_in]).into_dispatch(),
        weight.into_dispatch(),
        leaf.into_dispatch(),
        bias.into_dispatch(),
        chosen.into_dispatch(),
        onto.into_dispatch(),
        sparse,
        residual,
        precision,
    ));
    shape[D - 1] = out;
    y.reshape(shape)
}

/// The tensor that gradients reach in a layer with input `x`, the flat indices of its values in the weight, and whether
/// those are a part of it.
pub(super) fn leaf<const D: usize>(x: &Tensor<D>, weight: &Weight) -> (Tensor<1>, Tensor<1, Int>, bool) {
    match &weight.chosen {
        Some(chosen) => (chosen.values.clone(), chosen.flat.clone(), true),
        None => {
            let device = weight.value.device().without_autodiff();
            let leaf = match weight.sink.as_ref().filter(|_| weight.value.is_require_grad()) {
                Some(sink) => tap(x, weight.value.clone(), sink),
                None => weight.value.clone(),
            };
            (leaf, Tensor::zeros([1], &device), false)
        }
    }
}

pub(super) fn plain<const D: usize>(x: Tensor<D>, weight: &Weight, bias: Option<Tensor<1>>) -> Tensor<D> {
    let (out, fan_in) = weight.spec.matrix();
    let mut shape = x.dims();
    let rows: usize = shape[..D - 1].iter().product();
    let x = x.reshape([rows, fan_in]);
    let y = match &weight.chosen {
        None => x.matmul(weight.matrix().transpose()),
        Some(chosen) => Tensor::from_dispatch(<Dispatch as ChosenEntries>::chosen_linear(
            x.into_dispatch(),
            weight.matrix().into_dispatch(),
            chosen.values.clone().into_dispatch(),
            chosen.rows.clone().into_dispatch(),
            chosen.cols.clone().into_dispatch(),
        )),
    };
    shape[D - 1] = out;
    let y = y.reshape(shape);
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

/// The linear layer as one operation.
#[backend_extension(Flex, Autodiff)]
pub trait Linear: Backend {
    /// `x · Wᵀ + b`: `[tokens, fan_in]`, flat `[out · fan_in]`, `[out]` → `[tokens, out]`. `leaf` is the weight itself,
    /// or, when `sparse`, its values at the flat indices `chosen`: what gradients reach. With `residual` all of it is
    /// added to `onto`, `[tokens, out]`.
    #[allow(clippy::too_many_arguments, reason = "an operation takes tensors and numbers one by one")]
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        leaf: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        chosen: IntTensor<Self>,
        onto: FloatTensor<Self>,
        sparse: bool,
        residual: bool,
        precision: Precision,
    ) -> FloatTensor<Self>;
}

impl Linear for Flex {
    fn fused_linear(
        x: FlexTensor,
        weight: FlexTensor,
        _: FlexTensor,
        bias: FlexTensor,
        _: FlexTensor,
        onto: FlexTensor,
        _: bool,
        residual: bool,
        precision: Precision,
    ) -> FlexTensor {
        let (x, fan_in) = (x.to_contiguous(), x.layout().shape()[1]);
        let (x, weight, bias) = (floats(&x), floats(&weight), floats(&bias));
        let (rows, out) = (x.len() / fan_in, bias.len());
        let mut y = vec![0f32; rows * out];
        // On all threads: this is where the pages of a large output are touched first.
        match residual {
            false => y.par_chunks_mut(out.max(1)).for_each(|row| row.copy_from_slice(bias)),
            true => {
                let onto = onto.to_contiguous();
                let pairs = y.par_chunks_mut(out.max(1)).zip(floats(&onto).par_chunks(out.max(1)));
                pairs.for_each(|(y, onto)| y.iter_mut().zip(onto).zip(bias).for_each(|((y, o), b)| *y = o + b));
            }
        }
        let w = Matrix::new(weight, fan_in).t();
        precision.product([rows, fan_in, out], Matrix::new(x, fan_in), w, &mut y, true);
        tensor(y, [rows, out])
    }
}

/// Tokens whose columns are laid out one after another at once.
const TILE: usize = 256;
/// Entries that a thread takes at once.
const ENTRIES: usize = 256;
/// From this part of a weight on, its gradient is computed a tile of rows at a time, and the entries picked out.
const DENSE_FROM: usize = 4;
/// Up to so many entries a neuron the columns are not worth their copies.
const FEW: usize = 2;
/// Rows of such a tile.
const TILE_ROWS: usize = 64;

/// Σ_t dy[t, row] · x[t, col] for every flat index `row · fan_in + col`, sorted.
fn chosen_gradient(x: &[f32], dy: &[f32], chosen: &[u32], fan_in: usize) -> Vec<f32> {
    let out = dy.len() * fan_in / x.len().max(1);
    match chosen.len() {
        n if n * DENSE_FROM > out * fan_in => chosen_from_tiles(x, dy, chosen, fan_in),
        n if n > FEW * out => chosen_from_columns(x, dy, chosen, [fan_in, out]),
        _ => chosen_from_rows(x, dy, chosen, [fan_in, out]),
    }
}

/// For few entries: `x` and `dy` are read once, as they lie, and what belongs to an entry is picked out of their rows.
fn chosen_from_rows(x: &[f32], dy: &[f32], chosen: &[u32], [fan_in, out]: [usize; 2]) -> Vec<f32> {
    const TOKENS: usize = 4;
    // A thread reads all of `x` for its entries, which are therefore as many as there can be; each sum is taken in the
    // same order whoever takes it.
    let share = chosen.len().div_ceil(rayon::current_num_threads()).max(1);
    let places: Vec<[u32; 2]> = chosen.iter().map(|i| [*i / fan_in as u32, *i % fan_in as u32]).collect();
    let mut sums = vec![0f32; chosen.len()];
    sums.par_chunks_mut(share).zip(places.par_chunks(share)).for_each(|(sums, places)| {
        for (x, dy) in x.chunks(TOKENS * fan_in).zip(dy.chunks(TOKENS * out)) {
            match x.len() == TOKENS * fan_in {
                true => picked::<TOKENS>(x, dy, places, fan_in, out, sums),
                false => x
                    .chunks_exact(fan_in)
                    .zip(dy.chunks_exact(out))
                    .for_each(|(x, dy)| picked::<1>(x, dy, places, fan_in, out, sums)),
            }
        }
    });
    sums
}

/// Adds dy[row] · x[col] of `N` tokens to every sum.
fn picked<const N: usize>(x: &[f32], dy: &[f32], places: &[[u32; 2]], fan_in: usize, out: usize, sums: &mut [f32]) {
    // Slices of one length each: a place is checked once for all tokens.
    let x: [&[f32]; N] = std::array::from_fn(|t| &x[t * fan_in..][..fan_in]);
    let dy: [&[f32]; N] = std::array::from_fn(|t| &dy[t * out..][..out]);
    for (sum, [row, col]) in sums.iter_mut().zip(places) {
        let products: [f32; N] = std::array::from_fn(|t| dy[t][*row as usize] * x[t][*col as usize]);
        *sum += products.iter().sum::<f32>();
    }
}

/// For more: their columns are laid out one after another, and each entry is a product of two.
fn chosen_from_columns(x: &[f32], dy: &[f32], chosen: &[u32], [fan_in, out]: [usize; 2]) -> Vec<f32> {
    let (rows, row_of) = distinct(chosen.iter().map(|i| *i as usize / fan_in), out);
    let (cols, col_of) = distinct(chosen.iter().map(|i| *i as usize % fan_in), fan_in);
    let (mut x_columns, mut dy_columns) = (Scratch::of(cols.len() * TILE), Scratch::of(rows.len() * TILE));
    let mut sums = vec![0f32; chosen.len()];
    for (x, dy) in x.chunks(TILE * fan_in).zip(dy.chunks(TILE * out)) {
        columns(x, fan_in, &cols, &mut x_columns);
        columns(dy, out, &rows, &mut dy_columns);
        let tokens = x.len() / fan_in;
        // Threads share the entries, not the tokens: every sum is taken in the same order whatever their number.
        let places = row_of.par_chunks(ENTRIES).zip(col_of.par_chunks(ENTRIES));
        let (x_columns, dy_columns): (&[f32], &[f32]) = (&x_columns, &dy_columns);
        sums.par_chunks_mut(ENTRIES).zip(places).for_each(|(sums, (rows, cols))| {
            dots(dy_columns, rows, x_columns, cols, tokens, sums);
        });
    }
    sums
}

/// Which of `n` places occur, rising, and for each of those given where in that list it stands.
fn distinct(places: impl Iterator<Item = usize> + Clone, n: usize) -> (Vec<u32>, Vec<u32>) {
    let mut at = vec![u32::MAX; n];
    places.clone().for_each(|place| at[place] = 0);
    let occurring: Vec<u32> = (0..n as u32).filter(|place| at[*place as usize] == 0).collect();
    for (n, place) in occurring.iter().enumerate() {
        at[*place as usize] = n as u32;
    }
    let found = places.map(|place| at[place]).collect();
    (occurring, found)
}

/// These columns of `x`, `[tokens, width]`, into rows of [`TILE`] values.
fn columns(x: &[f32], width: usize, wanted: &[u32], out: &mut [f32]) {
    // So many tokens at once keep within a cache that a power of two between rows leaves few places.
    const TOKENS: usize = 8;
    const COLUMNS: usize = 64;
    out.par_chunks_mut(COLUMNS * TILE).zip(wanted.par_chunks(COLUMNS)).for_each(|(out, wanted)| {
        for (n, x) in x.chunks(TOKENS * width).enumerate() {
            let rows: [&[f32]; TOKENS] = std::array::from_fn(|token| x.get(token * width..).unwrap_or_default());
            for (out, column) in out.chunks_exact_mut(TILE).zip(wanted) {
                let to = &mut out[n * TOKENS..][..TOKENS];
                // Behind the last token stands what nobody reads.
                let value = |row: &[f32]| row.get(*column as usize).copied().unwrap_or_default();
                to.iter_mut().zip(rows).for_each(|(to, row)| *to = value(row));
            }
        }
    });
}

widest! {
    /// Adds Σ_t a[row, t] · b[col, t] to every sum, over the first `tokens` of rows of [`TILE`].
    fn dots(a: &[f32], rows: &[u32], b: &[f32], cols: &[u32], tokens: usize, sums: &mut [f32]) {
        for (sum, (row, col)) in sums.iter_mut().zip(rows.iter().zip(cols)) {
            let a = &a[*row as usize * TILE..][..tokens];
            let b = &b[*col as usize * TILE..][..tokens];
            *sum += lanes([a, b], |[a, b]| a * b);
        }
    }
}

/// For many: dW in tiles of rows, each gone when its entries are picked out.
fn chosen_from_tiles(x: &[f32], dy: &[f32], chosen: &[u32], fan_in: usize) -> Vec<f32> {
    let tokens = x.len() / fan_in;
    let out = dy.len() / tokens.max(1);
    let tiles: Vec<usize> = (0..out).step_by(TILE_ROWS).collect();
    let parts = tiles.into_par_iter().map(|first| {
        let rows = TILE_ROWS.min(out - first);
        let (from, to) = ((first * fan_in) as u32, ((first + rows) * fan_in) as u32);
        let within = chosen.partition_point(|i| *i < from)..chosen.partition_point(|i| *i < to);
        let mut tile = Scratch::of(rows * fan_in);
        let dy = Matrix::new(&dy[first..], out).t();
        product([rows, tokens, fan_in], dy, Matrix::new(x, fan_in), &mut tile, false, Threads::One);
        chosen[within].iter().map(|i| tile[(*i - from) as usize]).collect::<Vec<f32>>()
    });
    parts.collect::<Vec<_>>().concat()
}

/// Sums over rows, pieces of 256 rows in their order.
pub(super) fn column_sums(x: &[f32], width: usize) -> Vec<f32> {
    let add = |mut sum: Vec<f32>, row: &[f32]| {
        sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
        sum
    };
    let parts: Vec<Vec<f32>> =
        x.par_chunks(256 * width).map(|rows| rows.chunks_exact(width).fold(vec![0f32; width], add)).collect();
    parts.iter().fold(vec![0f32; width], |sum, part| add(sum, part))
}

impl<C: CheckpointStrategy> Linear for Autodiff<Flex, C> {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        leaf: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        chosen: IntTensor<Self>,
        onto: FloatTensor<Self>,
        sparse: bool,
        residual: bool,
        precision: Precision,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct FusedLinear;
        #[derive(Debug, Clone)]
        struct State {
            /// Kept only where a weight gradient is wanted.
            x: Option<FlexTensor>,
            weight: FlexTensor,
            chosen: FlexTensor,
            sparse: bool,
            fan_in: usize,
            precision: Precision,
        }
        impl Backward<Flex, 4> for FusedLinear {
            type State = State;

            fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
                let [x_node, leaf_node, bias_node, onto_node] = ops.parents;
                let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
                if let Some(node) = onto_node {
                    grads.register::<Flex>(node.id, dy.clone());
                }
                let (out, state) = (dy.layout().shape()[1], ops.state);
                let (dy, fan_in) = (floats(&dy), state.fan_in);
                let rows = dy.len() / out;
                if let Some(node) = bias_node {
                    grads.register::<Flex>(node.id, tensor(column_sums(dy, out), [out]));
                }
                if let (Some(node), Some(x)) = (leaf_node, &state.x) {
                    let x = x.to_contiguous();
                    let dw = if state.sparse {
                        chosen_gradient(floats(&x), dy, &indices(&state.chosen), fan_in)
                    } else {
                        let mut dw = vec![0f32; out * fan_in];
                        let x = Matrix::new(floats(&x), fan_in);
                        state.precision.product([out, rows, fan_in], Matrix::new(dy, out).t(), x, &mut dw, false);
                        dw
                    };
                    let n = dw.len();
                    grads.register::<Flex>(node.id, tensor(dw, [n]));
                }
                if let Some(node) = x_node {
                    let mut dx = vec![0f32; rows * fan_in];
                    let w = Matrix::new(floats(&state.weight), fan_in);
                    state.precision.product([rows, out, fan_in], Matrix::new(dy, out), w, &mut dx, false);
                    grads.register::<Flex>(node.id, tensor(dx, [rows, fan_in]));
                }
            }
        }
        let (nodes, wants_weight) = ([x.node(), leaf.node(), bias.node(), onto.node()], leaf.is_tracked());
        match FusedLinear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (x, weight) = (x.into_primitive(), weight.into_primitive());
                let state = State {
                    x: wants_weight.then(|| x.clone()),
                    weight: weight.clone(),
                    chosen: chosen.clone(),
                    sparse,
                    fan_in: x.layout().shape()[1],
                    precision,
                };
                let [leaf, bias, onto] = [leaf, bias, onto].map(|t| t.into_primitive());
                prep.finish(state, Flex::fused_linear(x, weight, leaf, bias, chosen, onto, sparse, residual, precision))
            }
            OpsKind::UnTracked(prep) => {
                let [x, weight, leaf, bias, onto] = [x, weight, leaf, bias, onto].map(|t| t.into_primitive());
                prep.finish(Flex::fused_linear(x, weight, leaf, bias, chosen, onto, sparse, residual, precision))
            }
        }
    }
}

/// The layer with chosen entries on any device, from burn's own operations.
#[cfg_attr(feature = "cuda", backend_extension(Flex, Cube, Autodiff))]
#[cfg_attr(not(feature = "cuda"), backend_extension(Flex, Autodiff))]
pub trait ChosenEntries: Backend {
    /// `x · Wᵀ`, `[tokens, fan_in]` × `[out, fan_in]` → `[tokens, out]`; `values` stand in `weight` at (rows, cols)
    /// already and are named only so that their gradient is recorded.
    fn chosen_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        values: FloatTensor<Self>,
        rows: IntTensor<Self>,
        cols: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let _ = (values, rows, cols);
        Self::float_matmul(x, Self::float_swap_dims(weight, 0, 1))
    }

    /// `Σ_t dy[t, rows[m]] · x[t, cols[m]]` for every chosen entry m.
    fn chosen_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        rows: IntTensor<Self>,
        cols: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let product = Self::float_mul(Self::float_select(dy, 1, rows), Self::float_select(x, 1, cols));
        let sum = Self::float_sum_dim(product, 0);
        let n = burn::backend::TensorMetadata::shape(&sum).num_elements();
        Self::float_reshape(sum, Shape::new([n]))
    }
}

#[cfg(feature = "cuda")]
impl ChosenEntries for burn::backend::Cube {}

impl ChosenEntries for Flex {}

impl<B: ChosenEntries, C: CheckpointStrategy> ChosenEntries for Autodiff<B, C> {
    fn chosen_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        values: FloatTensor<Self>,
        rows: IntTensor<Self>,
        cols: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct ChosenLinear;
        #[derive(Debug, Clone)]
        struct State<B: Backend> {
            x: FloatTensor<B>,
            weight: FloatTensor<B>,
            rows: IntTensor<B>,
            cols: IntTensor<B>,
        }
        impl<B: ChosenEntries> Backward<B, 2> for ChosenLinear {
            type State = State<B>;

            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let [x, values] = ops.parents;
                let dy = grads.consume::<B>(&ops.node);
                let state = ops.state;
                if let Some(node) = values {
                    let gradient = B::chosen_gradient(state.x, dy.clone(), state.rows, state.cols);
                    grads.register::<B>(node.id, gradient);
                }
                if let Some(node) = x {
                    grads.register::<B>(node.id, B::float_matmul(dy, state.weight));
                }
            }
        }
        match ChosenLinear.prepare::<C>([x.node(), values.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = State::<B> {
                    x: x.primitive().clone(),
                    weight: weight.primitive().clone(),
                    rows: rows.clone(),
                    cols: cols.clone(),
                };
                prep.finish(
                    state,
                    B::chosen_linear(x.into_primitive(), weight.into_primitive(), values.into_primitive(), rows, cols),
                )
            }
            OpsKind::UnTracked(prep) => prep.finish(B::chosen_linear(
                x.into_primitive(),
                weight.into_primitive(),
                values.into_primitive(),
                rows,
                cols,
            )),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::{close, leaf as leaf_of, wave, weight};
    use super::*;
    use crate::model::weights::{Kind, to_vec};
    use burn::tensor::{Device, TensorData};

    /// 300 tokens, 7 inputs, 5 outputs: more tokens than one piece of any kernel.
    fn layer() -> (Tensor<2>, Weight) {
        (wave([300, 7], 0.37), weight("w", Kind::Linear, &[5, 7]))
    }

    #[test]
    fn equals_the_plain_operations_forward_and_backward() {
        let mut dense = layer().1;
        let (mut sparse, frozen) = (dense.clone(), dense.clone());
        dense.train_all();
        sparse.train_chosen(&[0, 8, 20, 21, 34], &Device::flex());
        for weight in [dense, sparse, frozen] {
            let run = |f: fn(Tensor<3>, &Weight, Option<Tensor<1>>, Option<Tensor<3>>) -> Tensor<3>| {
                let (x, bias, onto) = (leaf_of([3, 100, 7], 0.37), leaf_of([5], 0.7), leaf_of([3, 100, 5], 0.9));
                let alone = f(x.clone(), &weight, Some(bias.clone()), None);
                let y = alone.clone() * 0.5 + f(x.clone(), &weight, Some(bias.clone()), Some(onto.clone()));
                let grads = (y.clone() * wave([3, 100, 5], 0.11)).sum().backward();
                let values = weight.chosen.as_ref().map(|c| &c.values).unwrap_or(&weight.value);
                let [dx, donto] = [&x, &onto].map(|t| t.grad(&grads).unwrap().flatten(0, 2));
                let mut all = vec![alone.flatten(0, 2), y.flatten(0, 2), dx, donto, bias.grad(&grads).unwrap()];
                all.extend(values.grad(&grads));
                all
            };
            let added = |x: Tensor<3>, weight: &Weight, bias: Option<Tensor<1>>, onto: Option<Tensor<3>>| {
                let y = plain(x, weight, bias);
                onto.map(|onto| onto + y.clone()).unwrap_or(y)
            };
            let (a, b) = (run(affine), run(added));
            assert_eq!(a.len(), b.len());
            a.into_iter().zip(b).for_each(|(a, b)| close(a, b, 1e-5));
        }
    }

    /// Gradients of Σ y² by x and by the trained values.
    fn gradients(x: &Tensor<2>, weight: &Weight) -> (Vec<f32>, Vec<f32>) {
        let x = x.clone().autodiff().require_grad();
        let y = project(x.clone(), weight);
        let grads = (y.clone() * y).sum().backward();
        let leaf = weight.chosen.as_ref().map(|c| &c.values).unwrap_or(&weight.value);
        (to_vec(x.grad(&grads).unwrap()), to_vec(leaf.grad(&grads).unwrap()))
    }

    #[test]
    fn chosen_entries_have_the_dense_gradient() {
        let (x, mut dense) = layer();
        let mut sparse = dense.clone();
        let chosen = [0u32, 8, 20, 21, 34];
        dense.train_all();
        sparse.train_chosen(&chosen, &Device::flex());
        let ((dx, dw), (sx, sw)) = (gradients(&x, &dense), gradients(&x, &sparse));
        let near = |a: f32, b: f32| (a - b).abs() <= 1e-4 * (1.0 + b.abs());
        assert!(dx.iter().zip(&sx).all(|(a, b)| near(*b, *a)));
        assert!(chosen.iter().zip(&sw).all(|(i, b)| near(*b, dw[*i as usize])), "{sw:?} {dw:?}");
    }

    #[test]
    pub(in super::super) fn many_chosen_entries_have_the_dense_gradient() {
        // 600 tokens are two tiles and a rest; 80 outputs a tile of rows and a rest. From few entries to nearly all.
        let x = wave([600, 30], 0.37);
        for every in [400, 37, 5, 3, 1] {
            let mut dense = weight("w", Kind::Linear, &[80, 30]);
            let mut sparse = dense.clone();
            let chosen: Vec<u32> = (0..2400).filter(|i| i % every == 0 && i % 7 != 3).collect();
            dense.train_all();
            sparse.train_chosen(&chosen, &Device::flex());
            let (dense, sparse) = (gradients(&x, &dense).1, gradients(&x, &sparse).1);
            let wanted: Vec<f32> = chosen.iter().map(|i| dense[*i as usize]).collect();
            let n = chosen.len();
            let tensor = |values| Tensor::<1>::from_data(TensorData::new(values, [n]), &Device::flex());
            close(tensor(sparse), tensor(wanted), 1e-5);
        }
    }

    #[test]
    fn chosen_entries_have_the_finite_difference() {
        let (x, mut weight) = layer();
        weight.train_chosen(&[8, 20], &Device::flex());
        let gradient = gradients(&x, &weight).1;
        let loss = |at: usize, by: f32| {
            let mut moved = weight.clone();
            let mut values = to_vec(moved.chosen.as_ref().unwrap().values.clone());
            values[at] += by;
            moved.set_chosen(Tensor::from_data(TensorData::new(values, [2]), &Device::flex()));
            let y = project(x.clone(), &moved).without_autodiff();
            to_vec((y.clone() * y).sum())[0]
        };
        for (at, exact) in gradient.iter().enumerate() {
            // The loss is quadratic in each value: central differences are exact but for rounding.
            let difference = (loss(at, 0.05) - loss(at, -0.05)) / 0.1;
            assert!((difference - exact).abs() <= 2e-2 * exact.abs().max(1.0), "{difference} against {exact}");
        }
    }
}
