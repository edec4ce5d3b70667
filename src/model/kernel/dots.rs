//! Blocks of a product of bf16 numbers by the pairwise dot products of AVX-512 (AMD from Zen 4 on, Intel from Cooper Lake
//! on): 16 sums take two numbers each in one instruction, twice what f32 does.

use super::bf16::{BAND, Block, Tile};
use std::arch::x86_64::{__m512bh, __m512i, _mm512_dpbf16_ps, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps};

/// Rows whose sums stay in registers: 8 of 32 numbers.
const ROWS: usize = 8;

/// Whether the processor has them.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

/// Two bands of 16 rows times two bands of 16 columns, as [`super::bf16::Unit::multiply`]. Only where it is [`available`].
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn multiply(left: [&[Tile]; 2], right: [&[Tile]; 2], out: &mut Block) {
    for (rows, out) in out.0.chunks_exact_mut(2 * ROWS * BAND).enumerate() {
        let (band, first) = (left[rows * ROWS / BAND], rows * ROWS % BAND);
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for ((left, right0), right1) in band.iter().zip(right[0]).zip(right[1]) {
            let (left, _) = left.0.as_chunks::<2>();
            let (right0, _) = right0.0.as_chunks::<{ 2 * BAND }>();
            let (right1, _) = right1.0.as_chunks::<{ 2 * BAND }>();
            for (pair, columns) in right0.iter().zip(right1).enumerate() {
                let columns = [vector(columns.0), vector(columns.1)];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let [low, high] = left[(first + row) * BAND + pair];
                    let twice = numbers(_mm512_set1_epi32((u32::from(high) << 16 | u32::from(low)) as i32));
                    sums[0] = _mm512_dpbf16_ps(sums[0], twice, columns[0]);
                    sums[1] = _mm512_dpbf16_ps(sums[1], twice, columns[1]);
                }
            }
        }
        for (sums, out) in sums.iter().zip(out.chunks_exact_mut(2 * BAND)) {
            for (sums, out) in sums.iter().zip(out.chunks_exact_mut(BAND)) {
                #[expect(unsafe_code, reason = "writes the 16 numbers of `out`")]
                unsafe {
                    _mm512_storeu_ps(out.as_mut_ptr(), *sums);
                }
            }
        }
    }
}

#[inline(always)]
fn vector(values: &[u16; 2 * BAND]) -> __m512bh {
    #[expect(unsafe_code, reason = "64 bytes for 64, of which each combination is numbers")]
    unsafe {
        std::mem::transmute_copy(values)
    }
}

#[inline(always)]
fn numbers(bits: __m512i) -> __m512bh {
    #[expect(unsafe_code, reason = "64 bytes for 64, of which each combination is numbers")]
    unsafe {
        std::mem::transmute(bits)
    }
}
