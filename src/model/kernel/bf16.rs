//! Matrix products of numbers rounded to bf16 and added up in f32, by what the processor has for it: the matrix tiles of
//! [`super::amx`] or the dot products of [`super::dots`].
//!
//! A tile of the left side holds 16 rows of 32 numbers; one of the right side 16 columns, as 16 rows of pairs, a pair being
//! two numbers of one column below one another. What a tile has too much is zero.

#[cfg(target_os = "linux")]
use super::amx;
use super::{Matrix, dots, widest};
use half::bf16;
use rayon::prelude::*;
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Rows of a tile on the left, columns on the right.
pub(super) const BAND: usize = 16;
/// Numbers of a row or column in a tile.
const DEPTH: usize = 32;
/// Rows of the result that a thread takes at once: so many of the left side stay in its cache while the right side passes.
const ROWS: usize = 256;

/// How a processor multiplies them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    #[cfg(target_os = "linux")]
    Tiles,
    Dots,
}

impl Means {
    /// The fastest that this processor has, if it has any.
    pub(super) fn fastest() -> Option<Means> {
        Means::here().next()
    }

    /// What it has, the fastest first.
    fn here() -> impl Iterator<Item = Means> {
        let all = [
            #[cfg(target_os = "linux")]
            (Means::Tiles, amx::available as fn() -> bool),
            (Means::Dots, dots::available),
        ];
        all.into_iter().filter(|(_, available)| available()).map(|(means, _)| means)
    }
}

/// [`super::product`] on all threads, of numbers rounded to bf16 (to the nearest, of two the even one).
pub(super) fn product(means: Means, [m, k, n]: [usize; 3], a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32], add: bool) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let (left, right) = (tiles(a, [m, k], Order::Rows), tiles(b.t(), [n, k], Order::Pairs));
    let across = k.div_ceil(DEPTH);
    // Every sum is taken as a whole, however many threads share the rows.
    let rows = m.div_ceil(rayon::current_num_threads()).next_multiple_of(2 * BAND).min(ROWS);
    out[..m * n].par_chunks_mut(rows * n).zip(left.par_chunks(rows / BAND * across)).for_each(|(out, left)| {
        let unit = Unit::of(means);
        let mut block = Block([0.0; 4 * BAND * BAND]);
        for (right, column) in right.chunks(2 * across).zip((0..n).step_by(2 * BAND)) {
            for (left, out) in left.chunks(2 * across).zip(out.chunks_mut(2 * BAND * n)) {
                out.chunks(n).for_each(|row| fetch(&row[column..]));
                unit.multiply(left, right, across, &mut block);
                for (sums, row) in block.0.chunks(2 * BAND).zip(out.chunks_mut(n)) {
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

/// Asks for most of the first 32 numbers of a row, so that they are there when a block is done.
fn fetch(row: &[f32]) {
    for line in row.chunks(16).take(2) {
        #[expect(unsafe_code, reason = "a hint, which reads nothing")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
    }
}

/// Pairs of a tile, row by row; the first number of a pair is in the lower half.
#[repr(C, align(64))]
pub(super) struct Tile(pub(super) [[u32; BAND]; DEPTH / 2]);

/// Four tiles of sums: 32 rows of 32.
#[repr(C, align(64))]
pub(super) struct Block(pub(super) [f32; 4 * BAND * BAND]);

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
    let places = (0..lanes.div_ceil(BAND) * across).into_par_iter().with_min_len(32);
    places
        .map(|place| {
            let (lane, from) = (place / across * BAND, place % across * DEPTH);
            let (lanes, depth) = (BAND.min(lanes - lane), DEPTH.min(depth - from));
            let start = lane * x.rows + from * x.cols;
            let mut staged = [[0f32; DEPTH]; BAND];
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
            let mut tile = Tile([[0; BAND]; DEPTH / 2]);
            lay(&staged, order, &mut tile);
            tile
        })
        .collect()
}

widest! {
    /// Rounds the lanes of a tile and lays them out.
    fn lay(staged: &[[f32; DEPTH]; BAND], order: Order, tile: &mut Tile) {
        let bits = |value: f32| u32::from(bf16::from_f32(value).to_bits());
        let mut lanes = [[0; DEPTH / 2]; BAND];
        for (lane, from) in lanes.iter_mut().zip(staged) {
            let (from, _) = from.as_chunks::<2>();
            lane.iter_mut().zip(from).for_each(|(pair, [low, high])| *pair = bits(*high) << 16 | bits(*low));
        }
        match order {
            Order::Rows => tile.0 = lanes,
            Order::Pairs => {
                for (pair, row) in tile.0.iter_mut().enumerate() {
                    row.iter_mut().zip(&lanes).for_each(|(to, lane)| *to = lane[pair]);
                }
            }
        }
    }
}

/// Means that are set up for this thread.
enum Unit {
    #[cfg(target_os = "linux")]
    Tiles(amx::Unit),
    Dots,
}

impl Unit {
    fn of(means: Means) -> Unit {
        match means {
            #[cfg(target_os = "linux")]
            Means::Tiles => Unit::Tiles(amx::Unit::configured()),
            Means::Dots => {
                assert!(dots::available());
                Unit::Dots
            }
        }
    }

    /// Two bands of 16 rows times two bands of 16 columns, `across` tiles each. Where one side has but one band it counts
    /// twice, and nobody reads what comes of it.
    fn multiply(&self, left: &[Tile], right: &[Tile], across: usize, out: &mut Block) {
        let [left, right] = [left, right].map(|side| [&side[..across], &side[side.len() - across..]]);
        match self {
            #[cfg(target_os = "linux")]
            Unit::Tiles(unit) => unit.multiply(left, right, out),
            #[expect(unsafe_code, reason = "the processor has them, asserted when `self` was made")]
            Unit::Dots => unsafe { dots::multiply(left, right, out) },
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Threads, product as in_f32};
    use super::*;

    fn values(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    pub(in crate::model::kernel) fn is_the_product_of_rounded_numbers() {
        if Means::fastest().is_none() {
            println!("skipped: no bf16 products (AMX, AVX512-BF16) here");
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
                    let (x, y) = (side(&a, [m, k], rows), side(&b, [k, n], columns));
                    for means in Means::here() {
                        let mut found = vec![0.5; m * n];
                        product(means, [m, k, n], x, y, &mut found, add);
                        let worst = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                        assert!(worst < 1e-4, "{means:?} {m} {k} {n} {rows} {columns} {add}: {worst}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        if Means::fastest().is_none() {
            println!("skipped: no bf16 products (AMX, AVX512-BF16) here");
            return;
        }
        // The bits of this one would round to those of a number.
        let nan = f32::from_bits(0x7f80_0001);
        for means in Means::here() {
            let mut out = [0.0];
            product(means, [1, 1, 1], Matrix::new(&[nan], 1), Matrix::new(&[1.0], 1), &mut out, false);
            assert!(out[0].is_nan(), "{means:?}");
            product(means, [1, 1, 1], Matrix::new(&[f32::INFINITY], 1), Matrix::new(&[1.0], 1), &mut out, false);
            assert_eq!(out, [f32::INFINITY], "{means:?}");
        }
    }
}
