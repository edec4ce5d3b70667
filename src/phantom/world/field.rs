//! Random fields over a picture, made row by row so that thousands of pictures cost seconds.

use super::super::draw::Draw;

/// The character of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grain {
    /// Soft hills.
    Hills,
    /// Sharp crests: folds, vessels, fibres.
    Ridges,
    /// Rounded cells with seams between them.
    Cells,
    /// Stripes that bend.
    Stripes,
}

/// `size × size` values in about 0..1. `cell` is the length of the coarsest structure in pixels; `stretch` draws it out
/// along x (above 1) or y (below 1).
pub(super) fn field(size: usize, grain: Grain, cell: f32, octaves: usize, stretch: f32, draw: &mut Draw) -> Vec<f32> {
    if grain == Grain::Cells {
        return cells(draw, size, cell);
    }
    let mut out = vec![0f32; size * size];
    let (mut height, mut total, mut cell) = (1.0, 0.0, cell.max(2.0));
    for _ in 0..octaves.max(1) {
        add_octave(draw, size, [cell * stretch.max(0.05), cell / stretch.max(0.05)], height, &mut out);
        total += height;
        height *= draw.between(0.35, 0.65);
        cell = (cell * 0.5).max(2.0);
    }
    let norm = 1.0 / total;
    match grain {
        Grain::Ridges => out.iter_mut().for_each(|v| *v = 1.0 - (*v * norm * 3.0).abs().min(1.0)),
        Grain::Stripes => {
            let [fx, fy] = [draw.between(-0.2, 0.2), draw.between(-0.2, 0.2)];
            let bend = draw.between(2.0, 9.0);
            for (n, v) in out.iter_mut().enumerate() {
                let phase = fx * (n % size) as f32 + fy * (n / size) as f32 + bend * *v * norm;
                // A triangle wave is a stripe as good as a sine, and cheaper.
                *v = 2.0 * (phase - (phase + 0.5).floor()).abs();
            }
        }
        _ => out.iter_mut().for_each(|v| *v = (0.5 + 0.5 * *v * norm).clamp(0.0, 1.0)),
    }
    out
}

/// One octave of value noise in -1..1, times `height`.
fn add_octave(draw: &mut Draw, size: usize, cell: [f32; 2], height: f32, out: &mut [f32]) {
    let [cols, rows] = cell.map(|c| (size as f32 / c.max(1.0)) as usize + 3);
    let mut lattice = vec![0f32; cols * rows];
    for four in lattice.chunks_mut(4) {
        let bytes = draw.bits().to_le_bytes();
        four.iter_mut().zip(bytes).for_each(|(v, byte)| *v = f32::from(byte) / 127.5 - 1.0);
    }
    let shift = [draw.unit(), draw.unit()];
    let at = |n: usize, axis: usize| {
        let p = n as f32 / cell[axis].max(1.0) + shift[axis];
        let low = p as usize;
        let t = p - low as f32;
        (low, t * t * (3.0 - 2.0 * t))
    };
    let columns: Vec<(usize, f32)> = (0..size).map(|x| at(x, 0)).collect();
    let mut row = vec![0f32; cols];
    for (y, out) in out.chunks_exact_mut(size).enumerate() {
        let (low, t) = at(y, 1);
        let (a, b) = (&lattice[low * cols..], &lattice[(low + 1) * cols..]);
        row.iter_mut().zip(a.iter().zip(b)).for_each(|(v, (a, b))| *v = (a + (b - a) * t) * height);
        for (v, (x, t)) in out.iter_mut().zip(&columns) {
            *v += row[*x] + (row[x + 1] - row[*x]) * t;
        }
    }
}

/// Distance to the nearest of scattered points, one in each cell of a lattice, 0 at the point and about 1 at a seam.
fn cells(draw: &mut Draw, size: usize, cell: f32) -> Vec<f32> {
    let cell = cell.max(5.0);
    let side = (size as f32 / cell) as usize + 3;
    let points: Vec<[f32; 2]> = (0..side * side)
        .map(|n| {
            let (x, y) = ((n % side) as f32 - 1.0, (n / side) as f32 - 1.0);
            [(x + draw.unit()) * cell, (y + draw.unit()) * cell]
        })
        .collect();
    let mut out = vec![0f32; size * size];
    for (n, v) in out.iter_mut().enumerate() {
        let (x, y) = ((n % size) as f32, (n / size) as f32);
        let (cx, cy) = ((x / cell) as usize + 1, (y / cell) as usize + 1);
        let mut nearest = f32::MAX;
        for row in cy - 1..=(cy + 1).min(side - 1) {
            for p in &points[row * side + cx - 1..=row * side + (cx + 1).min(side - 1)] {
                nearest = nearest.min((p[0] - x) * (p[0] - x) + (p[1] - y) * (p[1] - y));
            }
        }
        *v = (nearest.sqrt() / cell).min(1.0);
    }
    out
}
