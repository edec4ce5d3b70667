//! Matrix products of numbers rounded to bf16 and added up in f32, on the matrix tiles of a processor that has them
//! (Intel's AMX: Xeons from 2023 on): 16 × 32 numbers times 32 × 16 in 16 cycles, where the widest vectors take 256.
//!
//! A tile of the left side holds 16 rows of 32 numbers; one of the right side 16 columns, as 16 rows of pairs, a pair being
//! two numbers of one column below one another. What a tile has too much is zero.

use super::Matrix;
use half::bf16;
use rayon::prelude::*;
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Rows of a tile on the left, columns on the right.
const LANES: usize = 16;
/// Numbers of a lane.
const DEPTH: usize = 32;
/// Rows of the result that a thread takes at once: so many of the left side stay in its cache while the right side passes.
const ROWS: usize = 256;

/// Whether the processor has the tiles and the system lets this program use them.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const TILE_AND_BF16: u32 = 1 << 24 | 1 << 22;
        const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
        const XTILEDATA: libc::c_ulong = 18;
        if __cpuid_count(0, 0).eax < 7 || __cpuid_count(7, 0).edx & TILE_AND_BF16 != TILE_AND_BF16 {
            return false;
        }
        #[expect(unsafe_code, reason = "Linux asks to be asked once a process; the call takes two numbers")]
        let refused = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) };
        refused == 0
    })
}

/// [`super::product`] on all threads, of numbers rounded to bf16 (to the nearest, of two the even one). Only where it is
/// [`available`].
pub(super) fn product([m, k, n]: [usize; 3], a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32], add: bool) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let (left, right) = (tiles(a, [m, k], Order::Rows), tiles(b.t(), [n, k], Order::Pairs));
    let across = k.div_ceil(DEPTH);
    // Every sum is taken as a whole, however many threads share the rows.
    let rows = m.div_ceil(rayon::current_num_threads()).next_multiple_of(2 * LANES).min(ROWS);
    out[..m * n].par_chunks_mut(rows * n).zip(left.par_chunks(rows / LANES * across)).for_each(|(out, left)| {
        let unit = Unit::configured();
        let mut block = Block([0.0; 4 * LANES * LANES]);
        for (right, column) in right.chunks(2 * across).zip((0..n).step_by(2 * LANES)) {
            for (left, out) in left.chunks(2 * across).zip(out.chunks_mut(2 * LANES * n)) {
                unit.multiply(left, right, across, &mut block);
                for (sums, row) in block.0.chunks(2 * LANES).zip(out.chunks_mut(n)) {
                    let row = row[column..].iter_mut().zip(sums);
                    match add {
                        true => row.for_each(|(to, sum)| *to += sum),
                        false => row.for_each(|(to, sum)| *to = *sum),
                    }
                }
            }
        }
    });
}

/// Numbers of a tile, row by row.
#[repr(C, align(64))]
struct Tile([u16; LANES * DEPTH]);

/// Four tiles of sums: 32 rows of 32.
#[repr(C, align(64))]
struct Block([f32; 4 * LANES * LANES]);

/// How a tile holds its lanes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// As its rows.
    Rows,
    /// As columns of pairs.
    Pairs,
}

/// The lanes (rows) of `x`, `[lanes, depth]`, as tiles: those of 16 lanes one after another.
fn tiles(x: Matrix<'_>, [lanes, depth]: [usize; 2], order: Order) -> Vec<Tile> {
    let across = depth.div_ceil(DEPTH);
    let places = (0..lanes.div_ceil(LANES) * across).into_par_iter().with_min_len(32);
    places
        .map(|place| {
            let (lane, from) = (place / across * LANES, place % across * DEPTH);
            let (lanes, depth) = (LANES.min(lanes - lane), DEPTH.min(depth - from));
            let start = lane * x.rows + from * x.cols;
            let mut staged = [[0f32; DEPTH]; LANES];
            if x.cols == 1 {
                for (lane, to) in staged.iter_mut().take(lanes).enumerate() {
                    to[..depth].copy_from_slice(&x.data[start + lane * x.rows..][..depth]);
                }
            } else {
                for at in 0..depth {
                    let from = x.data[start + at * x.cols..].iter().step_by(x.rows);
                    staged.iter_mut().take(lanes).zip(from).for_each(|(to, value)| to[at] = *value);
                }
            }
            let rounded = staged.map(|lane| lane.map(|value| bf16::from_f32(value).to_bits()));
            let mut tile = Tile([0; LANES * DEPTH]);
            match order {
                Order::Rows => tile.0.copy_from_slice(rounded.as_flattened()),
                Order::Pairs => {
                    for (pair, row) in tile.0.chunks_exact_mut(2 * LANES).enumerate() {
                        for (to, lane) in row.chunks_exact_mut(2).zip(&rounded) {
                            to.copy_from_slice(&lane[2 * pair..][..2]);
                        }
                    }
                }
            }
            tile
        })
        .collect()
}

/// The tiles of the processor that this thread runs on, set up; given back when dropped. It stays on its thread.
struct Unit(PhantomData<*const ()>);

impl Unit {
    fn configured() -> Unit {
        /// Eight tiles of 16 rows of 64 bytes, as `ldtilecfg` reads it.
        #[repr(C, align(64))]
        struct Shape([u8; 64]);
        let mut shape = Shape([0; 64]);
        shape.0[0] = 1;
        for tile in 0..8 {
            shape.0[16 + 2 * tile] = 64;
            shape.0[48 + tile] = LANES as u8;
        }
        assert!(available());
        #[expect(unsafe_code, reason = "reads the 64 bytes of `shape`; the processor has tiles, by the assertion")]
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &shape, options(nostack, readonly));
        }
        Unit(PhantomData)
    }

    /// Two bands of 16 rows times two bands of 16 columns, `across` tiles each. Where one side has but one band it counts
    /// twice, and nobody reads what comes of it.
    fn multiply(&self, left: &[Tile], right: &[Tile], across: usize, out: &mut Block) {
        let bands = |side: &[Tile]| {
            assert!(across > 0 && (side.len() == across || side.len() == 2 * across));
            let second = side.len() - across;
            [side[..across].as_ptr(), side[second..].as_ptr()]
        };
        let ([a0, a1], [b0, b1]) = (bands(left), bands(right));
        const HALF: usize = 2 * LANES * LANES;
        let (upper, lower) = out.0.split_at_mut(HALF);
        #[expect(
            unsafe_code,
            reason = "reads `across` tiles of 1024 bytes from each band, which the assertion has seen, and writes 16 rows
                      of 128 bytes to each half of the block; the tiles were set up when `self` was made"
        )]
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{a0} + {row}]",
                "tileloadd tmm6, [{b0} + {row}]",
                "tileloadd tmm7, [{b1} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a1} + {row}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, 1024",
                "add {a1}, 1024",
                "add {b0}, 1024",
                "add {b1}, 1024",
                "dec {left}",
                "jnz 2b",
                "tilestored [{upper} + 2 * {row}], tmm0",
                "tilestored [{upper} + 2 * {row} + 64], tmm1",
                "tilestored [{lower} + 2 * {row}], tmm2",
                "tilestored [{lower} + 2 * {row} + 64], tmm3",
                a0 = inout(reg) a0 => _,
                a1 = inout(reg) a1 => _,
                b0 = inout(reg) b0 => _,
                b1 = inout(reg) b1 => _,
                left = inout(reg) across => _,
                row = in(reg) 64usize,
                upper = in(reg) upper.as_mut_ptr(),
                lower = in(reg) lower.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "the tiles were set up by this thread")]
        unsafe {
            asm!("tilerelease", options(nostack, nomem));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Threads, product as in_f32};
    use super::*;

    fn values(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    fn is_the_product_of_rounded_numbers() {
        if !available() {
            println!("skipped: no matrix tiles (AMX) here");
            return;
        }
        let rounded = |x: &[f32]| x.iter().map(|v| bf16::from_f32(*v).to_f32()).collect::<Vec<f32>>();
        // Whole tiles, one of everything, bands without a second, more rows than a thread takes at once.
        for [m, k, n] in [[64, 64, 64], [1, 1, 1], [17, 33, 15], [40, 100, 48], [600, 70, 33], [3, 5, 70]] {
            let (a, b) = (values(m * k, 0.37), values(k * n, 0.11));
            let (ra, rb) = (rounded(&a), rounded(&b));
            for (rows, columns) in [(false, false), (true, false), (false, true), (true, true)] {
                // A transposed side is read along the other way.
                let side = |x, [high, wide]: [usize; 2], turned| match turned {
                    false => Matrix::new(x, wide),
                    true => Matrix::new(x, high).t(),
                };
                for add in [false, true] {
                    let mut wanted = vec![0.5; m * n];
                    let (x, y) = (side(&ra, [m, k], rows), side(&rb, [k, n], columns));
                    in_f32([m, k, n], x, y, &mut wanted, add, Threads::One);
                    let mut found = vec![0.5; m * n];
                    let (x, y) = (side(&a, [m, k], rows), side(&b, [k, n], columns));
                    product([m, k, n], x, y, &mut found, add);
                    let worst = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(worst < 1e-4, "{m} {k} {n} {rows} {columns} {add}: {worst}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        if !available() {
            println!("skipped: no matrix tiles (AMX) here");
            return;
        }
        let mut out = [0.0];
        // The bits of this one would round to those of a number.
        let nan = f32::from_bits(0x7f80_0001);
        product([1, 1, 1], Matrix::new(&[nan], 1), Matrix::new(&[1.0], 1), &mut out, false);
        assert!(out[0].is_nan());
        product([1, 1, 1], Matrix::new(&[f32::INFINITY], 1), Matrix::new(&[1.0], 1), &mut out, false);
        assert_eq!(out, [f32::INFINITY]);
    }
}
