//! Blocks of a product of bf16 numbers by the pairwise dot products of AVX-512 (AVX512-BF16: AMD from Zen 4 on, Intel's Xeons of
//! Cooper Lake and from Sapphire Rapids on): 16 sums take two products each in one instruction, where f32 has one.

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
    for (part, out) in out.0.chunks_exact_mut(2 * ROWS * BAND).enumerate() {
        let (band, half) = (left[part * ROWS / BAND], part % (BAND / ROWS));
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for ((left, right0), right1) in band.iter().zip(right[0]).zip(right[1]) {
            let rows: &[[u32; BAND]; ROWS] = &left.0.as_chunks().0[half];
            for (pair, columns) in right0.0.iter().zip(&right1.0).enumerate() {
                let columns = [numbers(vector(columns.0)), numbers(vector(columns.1))];
                for (row, sums) in rows.iter().zip(&mut sums) {
                    let twice = numbers(_mm512_set1_epi32(row[pair] as i32));
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
fn vector(pairs: &[u32; BAND]) -> __m512i {
    #[expect(unsafe_code, reason = "64 bytes for 64, of which each combination is numbers")]
    unsafe {
        std::mem::transmute(*pairs)
    }
}

#[inline(always)]
fn numbers(pairs: __m512i) -> __m512bh {
    #[expect(unsafe_code, reason = "64 bytes for 64, of which each combination is numbers")]
    unsafe {
        std::mem::transmute(pairs)
    }
}
