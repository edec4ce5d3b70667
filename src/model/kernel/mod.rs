//! Fused operations for the CPU, each with its own backward step.
//!
//! The network calls the functions of this module. On the CPU backend they run as one operation each; on any other
//! device, and wherever a test asks for it, the same function is composed of burn's own operations (`plain`), which is
//! also what every kernel is tested against.
//!
//! Work is cut into pieces by shape alone, never by the number of threads, and pieces are summed in their order: any
//! number of threads gives the same bytes.

pub mod adam;
pub mod attention;
pub mod conv;
pub mod gelu;
pub mod inputs;
pub mod linear;
pub mod norm;
pub mod tap;

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use std::cell::RefCell;

/// Whether the tensor lies where the kernels work.
fn on_cpu<const D: usize>(x: &Tensor<D>) -> bool {
    x.device().without_autodiff() == Device::flex()
}

/// Values of a contiguous float tensor.
fn floats(tensor: &FlexTensor) -> &[f32] {
    #[expect(clippy::expect_used, reason = "every float tensor of the program is f32, made contiguous by the caller")]
    tensor.as_slice::<f32>().expect("contiguous f32")
}

/// Values of an integer tensor.
fn indices(tensor: &FlexTensor) -> Vec<u32> {
    match tensor.dtype() {
        DType::I64 => tensor.storage::<i64>().iter().map(|i| *i as u32).collect(),
        _ => tensor.storage::<i32>().iter().map(|i| *i as u32).collect(),
    }
}

fn tensor(data: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(data, shape))
}

/// Defines a function that runs in the widest compiled form the processor has.
macro_rules! widest {
    ($(#[$about:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$about])*
        #[allow(clippy::too_many_arguments, reason = "slices of one kernel")]
        fn $name($($arg: $type),*) {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "slices of one kernel")]
            fn plain($($arg: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,fma")]
                #[allow(clippy::too_many_arguments, reason = "slices of one kernel")]
                fn avx512($($arg: $type),*) {
                    plain($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "slices of one kernel")]
                fn avx2($($arg: $type),*) {
                    plain($($arg),*)
                }
                let fma = is_x86_feature_detected!("fma");
                if fma && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                    #[expect(unsafe_code, reason = "the processor was asked for these features in the line above")]
                    return unsafe { avx512($($arg),*) };
                }
                if fma && is_x86_feature_detected!("avx2") {
                    #[expect(unsafe_code, reason = "the processor was asked for these features in the line above")]
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    };
}
use widest;

/// A matrix inside a slice: element (r, c) is at `r * rows + c * cols`.
#[derive(Debug, Clone, Copy)]
struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major, `width` values a row.
    fn new(data: &'a [f32], width: usize) -> Matrix<'a> {
        Matrix { data, rows: width, cols: 1 }
    }

    /// The transpose, without a copy.
    fn t(self) -> Matrix<'a> {
        Matrix { data: self.data, rows: self.cols, cols: self.rows }
    }
}

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A panel for a matrix product, kept by its thread from one operation to the next. What it holds at first is arbitrary.
#[derive(Debug)]
struct Scratch {
    values: Vec<f32>,
    len: usize,
}

impl Scratch {
    fn of(len: usize) -> Scratch {
        let mut values = FREE.with(|free| free.borrow_mut().pop()).unwrap_or_default();
        if values.len() < len {
            values.resize(len, 0.0);
        }
        Scratch { values, len }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        // While a thread ends its panels may be gone already: this one is then freed with it.
        let _ = FREE.try_with(|free| free.borrow_mut().push(values));
    }
}

impl std::ops::Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

impl std::ops::DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
    }
}

/// One thread, for products inside a parallel loop, or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Threads {
    One,
    All,
}

/// `out = a · b` of sizes `[m, k]` · `[k, n]`, or `out += a · b`; `out` is row-major, `[m, n]`.
fn product([m, k, n]: [usize; 3], a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32], add: bool, threads: Threads) {
    let last = |r: usize, c: usize, x: &Matrix<'_>| (r - 1) * x.rows + (c - 1) * x.cols;
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(last(m, k, &a) < a.data.len() && last(k, n, &b) < b.data.len() && m * n <= out.len());
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(rayon::current_num_threads()),
    };
    #[expect(unsafe_code, reason = "gemm takes pointers; the assertion above keeps every element inside its slice")]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            a.data.as_ptr(),
            a.cols as isize,
            a.rows as isize,
            b.data.as_ptr(),
            b.cols as isize,
            b.rows as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// From here on e^-z counts as 0: beside 1 it is far below what f32 can tell.
const NOTHING: f32 = 32.0;

/// e^-z for z ≥ 0: 2^n · e^r with |r| ≤ ½ ln 2 and a polynomial of degree 6, and 0 from [`NOTHING`] on. No branch, so loops
/// over it are compiled into vector instructions.
///
/// The zeros are for speed: in a pretrained network most of attention's weights are of this kind, and what is multiplied
/// with e^-87 is no normal number any more. Processors take a hundred times as long for those: a training step took 1.7
/// times as long as it does now.
#[inline(always)]
fn exp_negative(z: f32) -> f32 {
    let something = z < NOTHING;
    // Adding 1.5 · 2²³ rounds to the nearest whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let z = -z.min(NOTHING);
    let shifted = z * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (z - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let p = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0))))));
    let power = p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if something { power } else { 0.0 }
}

/// Lanes of a sum that the compiler can keep in vector registers.
const LANES: usize = 16;

/// Σ f(i) over `0..n` in a fixed order of lanes.
#[inline(always)]
fn lanes(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let whole = n - n % LANES;
    let mut at = 0;
    while at < whole {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(at + lane);
        }
        at += LANES;
    }
    let rest: f32 = (whole..n).map(&f).sum();
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0] + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights::{HostTensor, Kind, Part, Weight, WeightSpec, Weights, to_vec};
    use std::collections::BTreeMap;

    /// A wave through a tensor: values that no kernel treats alike.
    pub(super) fn wave<const D: usize>(shape: [usize; D], step: f32) -> Tensor<D> {
        let n = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..n).map(|i| (i as f32 * step).sin() + 0.1).collect();
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    /// The same as something to differentiate by.
    pub(super) fn leaf<const D: usize>(shape: [usize; D], step: f32) -> Tensor<D> {
        wave(shape, step).autodiff().require_grad()
    }

    pub(super) fn weight(name: &str, kind: Kind, shape: &[usize]) -> Weight {
        let spec =
            WeightSpec { name: name.into(), kind, part: Part::ImageEncoder, shape: shape.to_vec(), prompt_free: true };
        let data = (0..shape.iter().product()).map(|i| (i as f32 * 1.1).sin()).collect();
        let host = BTreeMap::from([(name.to_string(), HostTensor { shape: shape.to_vec(), data })]);
        Weights::new(vec![spec], host, &Device::flex()).get(name).unwrap().clone()
    }

    pub(super) fn close(a: Tensor<1>, b: Tensor<1>, tolerance: f32) {
        let (a, b) = (to_vec(a), to_vec(b));
        assert_eq!(a.len(), b.len());
        let scale = b.iter().fold(1f32, |m, v| m.max(v.abs()));
        for (i, (a, b)) in a.iter().zip(&b).enumerate() {
            assert!((a - b).abs() <= tolerance * scale, "{i}: {a} against {b}");
        }
    }

    #[test]
    fn products_of_transposes() {
        // [[1, 2], [3, 4], [5, 6]]ᵀ · [[1], [1], [2]] = [[14], [18]]
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 1.0, 2.0]);
        let mut out = [0.0; 2];
        product([2, 3, 1], Matrix::new(&a, 2).t(), Matrix::new(&b, 1), &mut out, false, Threads::One);
        assert_eq!(out, [14.0, 18.0]);
        product([2, 3, 1], Matrix::new(&a, 2).t(), Matrix::new(&b, 1), &mut out, true, Threads::All);
        assert_eq!(out, [28.0, 36.0]);
    }

    #[test]
    fn sums_by_lanes_and_exponentials() {
        assert_eq!(lanes(37, |i| i as f32), 666.0);
        for i in 0..2000 {
            let z = i as f32 * 0.05;
            let wanted = if z < NOTHING { (-z).exp() } else { 0.0 };
            assert!((exp_negative(z) - wanted).abs() <= 3e-7 * wanted, "{z}");
        }
        assert!((-NOTHING).exp() < 1e-6 * f32::EPSILON, "what is left out cannot be told beside 1");
    }
}
