//! Fused operations for the CPU, each with its own backward step.
//!
//! The network calls the functions of this module. On the CPU backend they run as one operation each; on any other
//! device, and wherever a test asks for it, the same function is composed of burn's own operations (`plain`), which is
//! also what every kernel is tested against.
//!
//! Every sum is taken by one thread, or in pieces that are cut by shape alone and added in their order: any number of
//! threads gives the same bytes.

pub mod adam;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod bf16;
pub mod conv;
#[cfg(target_arch = "x86_64")]
mod dots;
pub mod gelu;
pub mod inputs;
pub mod linear;
pub mod norm;
pub mod tap;
pub mod windows;

use crate::error::Error;
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::str::FromStr;

/// Lets memory that is freed stay with the program for the next operation. glibc gives the large outputs of layers back to
/// the system one by one, and the system then hands out the same pages again, zeroed and one fault each: a tenth of the
/// time of a picture of 512 pixels. Nothing happens with another C library. Called once, before a network runs.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const PAD: i32 = 64 << 20;
        let settings = [(libc::M_MMAP_THRESHOLD, i32::MAX), (libc::M_TRIM_THRESHOLD, i32::MAX), (libc::M_TOP_PAD, PAD)];
        for (parameter, value) in settings {
            #[expect(
                unsafe_code,
                reason = "a setting of the C library; it takes two numbers and touches no memory of ours"
            )]
            unsafe {
                libc::mallopt(parameter, value);
            }
        }
    }
}

/// Gives what is kept back to the system: between two jobs whose memory is measured.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "a call into the C library; it frees only what nobody holds")]
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// In what the products of a linear layer are taken; sums, and all that is kept, are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As they are.
    #[default]
    F32,
    /// Of numbers rounded to the eight leading bits that bf16 keeps: forward, and backward for both gradients.
    Bf16,
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(word: &str) -> Result<Precision, Error> {
        match word {
            "f32" => Ok(Precision::F32),
            "bf16" => Ok(Precision::Bf16),
            _ => Err(Error::usage(format!("unknown precision `{word}`: f32 or bf16"))),
        }
    }
}

impl Precision {
    /// Whether this processor has products for it. Nothing is computed in it elsewhere.
    pub fn available(self) -> bool {
        match self {
            Precision::F32 => true,
            #[cfg(target_arch = "x86_64")]
            Precision::Bf16 => bf16::Means::fastest().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            Precision::Bf16 => false,
        }
    }

    /// `out = a · b` or `out += a · b` on all threads, as [`product`].
    fn product(self, sizes: [usize; 3], a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32], add: bool) {
        #[cfg(target_arch = "x86_64")]
        if let (Precision::Bf16, Some(means)) = (self, bf16::Means::fastest()) {
            return bf16::product(means, sizes, a, b, out, add);
        }
        product(sizes, a, b, out, add, Threads::All);
    }
}

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

/// The forms in which a kernel is compiled for x86-64.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    Portable,
    Avx2,
    Avx512,
}

/// The widest that the processor has.
#[cfg(target_arch = "x86_64")]
fn form() -> Form {
    let fma = is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
    let found = match (fma && avx512, fma && is_x86_feature_detected!("avx2")) {
        (true, _) => Form::Avx512,
        (_, true) => Form::Avx2,
        _ => Form::Portable,
    };
    #[cfg(test)]
    let found = found.min(tests::widest_asked());
    found
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
                match $crate::model::kernel::form() {
                    $crate::model::kernel::Form::Avx512 => {
                        #[expect(unsafe_code, reason = "the processor was asked for these features by `form`")]
                        return unsafe { avx512($($arg),*) };
                    }
                    $crate::model::kernel::Form::Avx2 => {
                        #[expect(unsafe_code, reason = "the processor was asked for these features by `form`")]
                        return unsafe { avx2($($arg),*) };
                    }
                    $crate::model::kernel::Form::Portable => {}
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

/// Σ f of what stands at the same place of slices of one length, in a fixed order of lanes.
#[inline(always)]
fn lanes<const N: usize>(of: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let n = of[0].len();
    let of = of.map(|values| values[..n].as_chunks::<LANES>());
    let mut sums = [0f32; LANES];
    for at in 0..n / LANES {
        // Whole chunks have no bounds to check inside, which would keep the compiler from vectors.
        let chunks = of.map(|(chunks, _)| &chunks[at]);
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(chunks.map(|chunk| chunk[lane]));
        }
    }
    let rest: f32 = (0..n % LANES).map(|i| f(of.map(|(_, rest)| rest[i]))).sum();
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

    /// Index of the widest form that kernels may take.
    #[cfg(target_arch = "x86_64")]
    static WIDEST: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(2);
    #[cfg(target_arch = "x86_64")]
    const FORMS: [Form; 3] = [Form::Portable, Form::Avx2, Form::Avx512];

    #[cfg(target_arch = "x86_64")]
    pub(super) fn widest_asked() -> Form {
        FORMS[WIDEST.load(std::sync::atomic::Ordering::Relaxed)]
    }

    /// Tests beside this one may then take another form than usual, and hold in that too.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn every_form_equals_the_plain_operations() {
        for (i, asked) in FORMS.into_iter().enumerate() {
            WIDEST.store(i, std::sync::atomic::Ordering::Relaxed);
            assert!(form() <= asked);
            super::adam::tests::equals_the_plain_operations();
            super::bf16::tests::is_the_product_of_rounded_numbers();
            super::attention::tests::self_attention_equals_the_plain_operations_forward_and_backward();
            super::attention::tests::cross_attention_equals_the_plain_operations_forward_and_backward();
            super::gelu::tests::equals_the_plain_operation_forward_and_backward();
            super::linear::tests::many_chosen_entries_have_the_dense_gradient();
            super::norm::tests::equals_the_plain_operation_forward_and_backward();
            super::windows::tests::equals_the_plain_operations_forward_and_backward();
        }
    }

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

    /// Minor page faults of this process so far.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        stat.rsplit(')').next().unwrap().split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn freed_memory_is_used_again() {
        keep_freed_memory();
        // More than what glibc keeps by itself: 40 MiB, 10,240 pages.
        let touch = || std::hint::black_box(vec![1f32; 10 << 20]);
        touch();
        let ten_times = || {
            let before = faults();
            (0..10).for_each(|_| drop(touch()));
            faults() - before
        };
        // Other tests run beside this one, and their faults count too: the least of some tries is this one's.
        let least = (0..5).map(|_| ten_times()).min().unwrap();
        assert!(least < 60_000, "{least} faults for the same memory ten times");
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
        let values: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(lanes([&values], |[v]| v), 666.0);
        assert_eq!(lanes([&values, &values[..37]], |[a, b]| a * b), 16_206.0);
        for i in 0..2000 {
            let z = i as f32 * 0.05;
            let wanted = if z < NOTHING { (-z).exp() } else { 0.0 };
            assert!((exp_negative(z) - wanted).abs() <= 3e-7 * wanted, "{z}");
        }
        assert!((-NOTHING).exp() < 1e-6 * f32::EPSILON, "what is left out cannot be told beside 1");
    }
}
