//! Each CPU kernel beside burn's own operations: `cargo bench --bench kernels`, `-- linear` for one of them.
//!
//! Sizes are those of a block of ViT-B and of its neck at 512 pixels. A step is forward and backward together, because
//! backward consumes the graph.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark may panic; its names are its documentation")]

use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor, TensorData, activation, module};
use divan::{Bencher, black_box};
use segft::model::kernel::{Precision, adam, attention, conv, gelu, linear, norm, windows};
use segft::model::{SamConfig, Weight, checkpoint};

fn main() {
    segft::model::kernel::keep_freed_memory();
    divan::main();
}

/// Width of ViT-B.
const C: usize = 768;
/// Its heads.
const HEADS: usize = 12;
/// Positions along a side at 512 pixels.
const SIDE: usize = 32;
/// Positions.
const TOKENS: usize = SIDE * SIDE;
/// Channels of the neck.
const NECK: usize = 256;

fn wave<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

fn leaf<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    wave(shape).autodiff().require_grad()
}

/// Forward and backward of what `f` computes; `dy` has the output's shape.
fn step<const D: usize>(bencher: Bencher<'_, '_>, dy: Tensor<D>, f: impl Fn() -> Tensor<D>) {
    bencher.bench_local(|| black_box((f() * dy.clone()).sum().backward()));
}

/// A weight of a ViT-B with one block.
fn weight(name: &str) -> Weight {
    let config = SamConfig { depth: 1, ..SamConfig::named("vit_b").unwrap() };
    checkpoint::random("vit_b", config, 0).into_sam(&Device::flex()).weights.get(name).unwrap().clone()
}

/// The first `k` inputs of every output, trained alone.
fn chosen(mut weight: Weight, k: u32) -> Weight {
    let (out, fan_in) = weight.spec.matrix();
    let indices: Vec<u32> = (0..out as u32).flat_map(|row| (0..k).map(move |i| row * fan_in as u32 + i)).collect();
    weight.train_chosen(&indices, &Device::flex());
    weight
}

fn dense(mut weight: Weight) -> Weight {
    weight.train_all();
    weight
}

#[divan::bench_group(sample_count = 10, sample_size = 1)]
mod linear_768_to_3072 {
    use super::*;

    fn lin1() -> Weight {
        weight("image_encoder.blocks.0.mlp.lin1.weight")
    }

    fn burns(x: Tensor<2>, weight: &Weight) -> Tensor<2> {
        x.matmul(weight.matrix().transpose())
    }

    #[divan::bench]
    fn forward(bencher: Bencher<'_, '_>) {
        let (x, weight) = (wave([TOKENS, C]), lin1());
        bencher.bench_local(|| black_box(linear::project(x.clone(), &weight)));
    }

    /// Products of bf16, where the processor has them.
    #[divan::bench]
    fn forward_bf16(bencher: Bencher<'_, '_>) {
        if !Precision::Bf16.available() {
            return;
        }
        let (x, mut weight) = (wave([TOKENS, C]), lin1());
        weight.precision = Precision::Bf16;
        bencher.bench_local(|| black_box(linear::project(x.clone(), &weight)));
    }

    #[divan::bench]
    fn forward_burn(bencher: Bencher<'_, '_>) {
        let (x, weight) = (wave([TOKENS, C]), lin1());
        bencher.bench_local(|| black_box(burns(x.clone(), &weight)));
    }

    #[divan::bench]
    fn step_of_the_input_alone(bencher: Bencher<'_, '_>) {
        let (x, weight) = (leaf([TOKENS, C]), lin1());
        step(bencher, wave([TOKENS, 4 * C]), || linear::project(x.clone(), &weight));
    }

    #[divan::bench(args = [1, 4, 16, 64])]
    fn step_with_k_entries(bencher: Bencher<'_, '_>, k: u32) {
        let (x, weight) = (leaf([TOKENS, C]), chosen(lin1(), k));
        step(bencher, wave([TOKENS, 4 * C]), || linear::project(x.clone(), &weight));
    }

    #[divan::bench]
    fn step_with_all_entries(bencher: Bencher<'_, '_>) {
        let (x, weight) = (leaf([TOKENS, C]), dense(lin1()));
        step(bencher, wave([TOKENS, 4 * C]), || linear::project(x.clone(), &weight));
    }

    #[divan::bench]
    fn step_with_all_entries_burn(bencher: Bencher<'_, '_>) {
        let (x, weight) = (leaf([TOKENS, C]), dense(lin1()));
        step(bencher, wave([TOKENS, 4 * C]), || burns(x.clone(), &weight));
    }
}

#[divan::bench_group(sample_count = 10, sample_size = 1)]
mod conv_3x3_256_to_256 {
    use super::*;

    fn neck() -> Weight {
        weight("image_encoder.neck.2.weight")
    }

    fn burns(x: Tensor<4>, weight: &Weight) -> Tensor<4> {
        let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
        module::conv2d(x, weight.shaped::<4>(), None, options)
    }

    #[divan::bench]
    fn forward(bencher: Bencher<'_, '_>) {
        let (x, weight) = (wave([1, SIDE, SIDE, NECK]), neck());
        bencher.bench_local(|| black_box(conv::conv3(x.clone(), &weight, 1)));
    }

    #[divan::bench]
    fn forward_burn(bencher: Bencher<'_, '_>) {
        let (x, weight) = (wave([1, NECK, SIDE, SIDE]), neck());
        bencher.bench_local(|| black_box(burns(x.clone(), &weight)));
    }

    #[divan::bench]
    fn step_with_1_entry(bencher: Bencher<'_, '_>) {
        let (x, weight) = (leaf([1, SIDE, SIDE, NECK]), chosen(neck(), 1));
        step(bencher, wave([1, SIDE, SIDE, NECK]), || conv::conv3(x.clone(), &weight, 1));
    }

    #[divan::bench]
    fn step_with_all_entries(bencher: Bencher<'_, '_>) {
        let (x, weight) = (leaf([1, SIDE, SIDE, NECK]), dense(neck()));
        step(bencher, wave([1, SIDE, SIDE, NECK]), || conv::conv3(x.clone(), &weight, 1));
    }

    #[divan::bench]
    fn step_with_all_entries_burn(bencher: Bencher<'_, '_>) {
        let (x, weight) = (leaf([1, NECK, SIDE, SIDE]), dense(neck()));
        step(bencher, wave([1, NECK, SIDE, SIDE]), || burns(x.clone(), &weight));
    }
}

/// 1024 positions at once.
#[divan::bench_group(sample_count = 10, sample_size = 1)]
mod attention_of_12_heads {
    use super::*;
    use burn::tensor::Int;

    /// Side of a window.
    const WINDOW: usize = 14;

    fn tables(side: usize) -> [Tensor<2>; 2] {
        [wave([2 * side - 1, C / HEADS]), wave([2 * side - 1, C / HEADS])]
    }

    /// Scores with decomposed relative positions, softmax, weighted sum.
    fn burns(qkv: Tensor<3>, [rel_h, rel_w]: [Tensor<2>; 2], side: usize) -> Tensor<3> {
        let [b, n, _] = qkv.dims();
        let d = C / HEADS;
        let qkv = qkv.reshape([b, n, 3, HEADS, d]).permute([2, 0, 3, 1, 4]).reshape([3, b * HEADS, n, d]);
        let part = |i: usize| qkv.clone().narrow(0, i, 1).reshape([b * HEADS, n, d]);
        let (q, k, v) = (part(0), part(1), part(2));
        let by = |table: Tensor<2>| {
            let offsets: Vec<i32> = (0..side * side).map(|i| (i / side + side - 1 - i % side) as i32).collect();
            let offsets = TensorData::new(offsets, [side * side]);
            table.select(0, Tensor::<1, Int>::from_data(offsets, &Device::flex())).reshape([side, side, d])
        };
        let scores = (q.clone() * (d as f64).powf(-0.5)).matmul(k.transpose());
        let q = q.reshape([b * HEADS, side, side, d]);
        let along_h = q.clone().matmul(by(rel_h).transpose().unsqueeze::<4>());
        let along_w = q.permute([0, 2, 1, 3]).matmul(by(rel_w).transpose().unsqueeze::<4>()).permute([0, 2, 1, 3]);
        let scores = scores.reshape([b * HEADS, side, side, side, side])
            + along_h.reshape([b * HEADS, side, side, side, 1])
            + along_w.reshape([b * HEADS, side, side, 1, side]);
        let y = activation::softmax(scores.reshape([b * HEADS, n, n]), 2).matmul(v);
        y.reshape([b, HEADS, n, d]).permute([0, 2, 1, 3]).reshape([b, n, C])
    }

    /// The same in windows, which are padded and cut out, and put together again.
    fn burns_in_windows(qkv: Tensor<3>, behind: Tensor<2>, tables: [Tensor<2>; 2]) -> Tensor<3> {
        let qkv = windows::partition(qkv.reshape([1, SIDE, SIDE, 3 * C]), WINDOW, behind.reshape([3 * C]));
        let n = qkv.dims()[0];
        let y = burns(qkv.reshape([n, WINDOW * WINDOW, 3 * C]), tables, WINDOW);
        windows::unpartition(y.reshape([n, WINDOW, WINDOW, C]), [1, SIDE, SIDE]).reshape([1, TOKENS, C])
    }

    fn ours(qkv: Tensor<3>, [rel_h, rel_w]: [Tensor<2>; 2]) -> Tensor<3> {
        attention::self_attention(qkv, rel_h, rel_w, HEADS, [SIDE, SIDE])
    }

    fn ours_in_windows(qkv: Tensor<3>, behind: Tensor<2>, tables: [Tensor<2>; 2]) -> Tensor<3> {
        windows::window_attention(qkv, behind, tables, HEADS, [SIDE, SIDE], WINDOW)
    }

    #[divan::bench]
    fn forward(bencher: Bencher<'_, '_>) {
        let (qkv, tables) = (wave([1, TOKENS, 3 * C]), tables(SIDE));
        bencher.bench_local(|| black_box(ours(qkv.clone(), tables.clone())));
    }

    #[divan::bench]
    fn forward_burn(bencher: Bencher<'_, '_>) {
        let (qkv, tables) = (wave([1, TOKENS, 3 * C]), tables(SIDE));
        bencher.bench_local(|| black_box(burns(qkv.clone(), tables.clone(), SIDE)));
    }

    #[divan::bench]
    fn step(bencher: Bencher<'_, '_>) {
        let (qkv, tables) = (leaf([1, TOKENS, 3 * C]), tables(SIDE));
        super::step(bencher, wave([1, TOKENS, C]), || ours(qkv.clone(), tables.clone()));
    }

    #[divan::bench]
    fn step_burn(bencher: Bencher<'_, '_>) {
        let (qkv, tables) = (leaf([1, TOKENS, 3 * C]), tables(SIDE));
        super::step(bencher, wave([1, TOKENS, C]), || burns(qkv.clone(), tables.clone(), SIDE));
    }

    #[divan::bench]
    fn windows_forward(bencher: Bencher<'_, '_>) {
        let (qkv, behind, tables) = (wave([1, TOKENS, 3 * C]), wave([1, 3 * C]), tables(WINDOW));
        bencher.bench_local(|| black_box(ours_in_windows(qkv.clone(), behind.clone(), tables.clone())));
    }

    #[divan::bench]
    fn windows_forward_burn(bencher: Bencher<'_, '_>) {
        let (qkv, behind, tables) = (wave([1, TOKENS, 3 * C]), wave([1, 3 * C]), tables(WINDOW));
        bencher.bench_local(|| black_box(burns_in_windows(qkv.clone(), behind.clone(), tables.clone())));
    }

    #[divan::bench]
    fn windows_step(bencher: Bencher<'_, '_>) {
        let (qkv, behind, tables) = (leaf([1, TOKENS, 3 * C]), wave([1, 3 * C]), tables(WINDOW));
        let ours = || ours_in_windows(qkv.clone(), behind.clone(), tables.clone());
        super::step(bencher, wave([1, TOKENS, C]), ours);
    }

    #[divan::bench]
    fn windows_step_burn(bencher: Bencher<'_, '_>) {
        let (qkv, behind, tables) = (leaf([1, TOKENS, 3 * C]), wave([1, 3 * C]), tables(WINDOW));
        let burns = || burns_in_windows(qkv.clone(), behind.clone(), tables.clone());
        super::step(bencher, wave([1, TOKENS, C]), burns);
    }
}

/// The decoder's: 9 tokens ask 1024 positions, in 8 heads of 16.
#[divan::bench_group(sample_count = 20, sample_size = 1)]
mod attention_of_9_to_1024 {
    use super::*;

    const WIDTH: usize = 128;

    fn burns(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        let split = |x: Tensor<3>| {
            let n = x.dims()[1];
            x.reshape([1, n, 8, WIDTH / 8]).permute([0, 2, 1, 3])
        };
        let (q, k, v) = (split(q), split(k), split(v));
        let scores = q.matmul(k.transpose()) / ((WIDTH / 8) as f64).sqrt();
        activation::softmax(scores, 3).matmul(v).permute([0, 2, 1, 3]).reshape([1, 9, WIDTH])
    }

    fn step_of(bencher: Bencher<'_, '_>, f: fn(Tensor<3>, Tensor<3>, Tensor<3>) -> Tensor<3>) {
        let (q, k, v) = (leaf([1, 9, WIDTH]), leaf([1, TOKENS, WIDTH]), leaf([1, TOKENS, WIDTH]));
        super::step(bencher, wave([1, 9, WIDTH]), || f(q.clone(), k.clone(), v.clone()));
    }

    #[divan::bench]
    fn step(bencher: Bencher<'_, '_>) {
        step_of(bencher, |q, k, v| attention::cross_attention(q, k, v, 8));
    }

    #[divan::bench]
    fn step_burn(bencher: Bencher<'_, '_>) {
        step_of(bencher, burns);
    }
}

#[divan::bench_group(sample_count = 20, sample_size = 1)]
mod norm_of_1024_rows_of_768 {
    use super::*;

    fn ours(x: Tensor<2>, scale: Tensor<1>, shift: Tensor<1>) -> Tensor<2> {
        norm::norm(x, scale, shift, 1e-6)
    }

    fn burns(x: Tensor<2>, scale: Tensor<1>, shift: Tensor<1>) -> Tensor<2> {
        module::layer_norm(x, scale, Some(shift), 1e-6)
    }

    type Norm = fn(Tensor<2>, Tensor<1>, Tensor<1>) -> Tensor<2>;

    fn forward_of(bencher: Bencher<'_, '_>, f: Norm) {
        let (x, scale, shift) = (wave([TOKENS, C]), wave([C]), wave([C]));
        bencher.bench_local(|| black_box(f(x.clone(), scale.clone(), shift.clone())));
    }

    fn step_of(bencher: Bencher<'_, '_>, f: Norm) {
        let (x, scale, shift) = (leaf([TOKENS, C]), leaf([C]), leaf([C]));
        super::step(bencher, wave([TOKENS, C]), || f(x.clone(), scale.clone(), shift.clone()));
    }

    #[divan::bench]
    fn forward(bencher: Bencher<'_, '_>) {
        forward_of(bencher, ours);
    }

    #[divan::bench]
    fn forward_burn(bencher: Bencher<'_, '_>) {
        forward_of(bencher, burns);
    }

    #[divan::bench]
    fn step(bencher: Bencher<'_, '_>) {
        step_of(bencher, ours);
    }

    #[divan::bench]
    fn step_burn(bencher: Bencher<'_, '_>) {
        step_of(bencher, burns);
    }
}

#[divan::bench_group(sample_count = 20, sample_size = 1)]
mod gelu_of_1024_rows_of_3072 {
    use super::*;

    #[divan::bench]
    fn forward(bencher: Bencher<'_, '_>) {
        let x = wave([TOKENS, 4 * C]);
        bencher.bench_local(|| black_box(gelu::gelu(x.clone())));
    }

    #[divan::bench]
    fn forward_burn(bencher: Bencher<'_, '_>) {
        let x = wave([TOKENS, 4 * C]);
        bencher.bench_local(|| black_box(activation::gelu(x.clone())));
    }

    #[divan::bench]
    fn step(bencher: Bencher<'_, '_>) {
        let x = leaf([TOKENS, 4 * C]);
        super::step(bencher, wave([TOKENS, 4 * C]), || gelu::gelu(x.clone()));
    }

    #[divan::bench]
    fn step_burn(bencher: Bencher<'_, '_>) {
        let x = leaf([TOKENS, 4 * C]);
        super::step(bencher, wave([TOKENS, 4 * C]), || activation::gelu(x.clone()));
    }
}

/// The sparse step's values, and one dense matrix.
#[divan::bench_group(sample_count = 20, sample_size = 1)]
mod adam_of_n_values {
    use super::*;

    const VALUES: [usize; 2] = [84_224, 768 * 3072];
    const LR: f64 = 2e-5;
    const BIASES: [f64; 2] = [0.1, 9e-4];
    const EPSILON: adam::Denominator = adam::Denominator::Epsilon(1e-8);

    #[divan::bench(args = VALUES)]
    fn ours(bencher: Bencher<'_, '_>, n: usize) {
        let (x, g, m, v) = (wave([n]), wave([n]), wave([n]), wave([n]).abs());
        let step = |of| adam::step(x.clone(), g.clone(), (m.clone(), v.clone()), LR, BIASES, of);
        bencher.bench_local(|| black_box(step(EPSILON)));
    }

    #[divan::bench(args = VALUES)]
    fn ours_with_atan2(bencher: Bencher<'_, '_>, n: usize) {
        let (x, g, m, v) = (wave([n]), wave([n]), wave([n]), wave([n]).abs());
        let step = |of| adam::step(x.clone(), g.clone(), (m.clone(), v.clone()), LR, BIASES, of);
        bencher.bench_local(|| black_box(step(adam::Denominator::Atan2)));
    }

    #[divan::bench(args = VALUES)]
    fn burns(bencher: Bencher<'_, '_>, n: usize) {
        let (x, g, m, v) = (wave([n]), wave([n]), wave([n]), wave([n]).abs());
        let [rate, root, epsilon] = [LR / BIASES[0], BIASES[1].sqrt(), 1e-8];
        bencher.bench_local(|| {
            let (x, g, m, v) = (x.clone(), g.clone(), m.clone(), v.clone());
            let v = v * adam::BETA2 + g.clone() * g.clone() * (1.0 - adam::BETA2);
            let m = m * adam::BETA1 + g * (1.0 - adam::BETA1);
            black_box((x - m.clone() / (v.clone().sqrt() / root + epsilon) * rate, m, v))
        });
    }
}

/// The machine's matrix peak on all cores, as far as the library under every kernel reaches it: 137.4 GFLOP over the seconds.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn product_of_4096(bencher: Bencher<'_, '_>) {
    let (a, b) = (wave([4096, 4096]), wave([4096, 4096]));
    bencher.bench_local(|| black_box(a.clone().matmul(b.clone())));
}
