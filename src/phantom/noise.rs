//! Smooth random fields in space: values on a lattice that repeats every 32 cells, interpolated.
//!
//! A table made once a scene costs a tenth of hashing at every sample, and its period is far longer than what a
//! picture shows of any octave that repeats visibly.

use super::draw::Draw;
use super::vector::{Vec3, vec3};

const SIDE: usize = 32;
const MASK: u32 = SIDE as u32 - 1;

/// A random field in space with values in -1..1 and about one bump a unit.
pub(super) struct Noise {
    table: Box<[f32; SIDE * SIDE * SIDE]>,
}

impl Noise {
    pub(super) fn new(draw: &mut Draw) -> Noise {
        let mut table = Box::new([0.0; SIDE * SIDE * SIDE]);
        for four in table.as_chunks_mut::<4>().0 {
            *four = draw.bits().to_le_bytes().map(|byte| f32::from(byte) / 127.5 - 1.0);
        }
        Noise { table }
    }

    /// The value at a point, continuous with its first derivative.
    pub(super) fn at(&self, p: Vec3) -> f32 {
        let (corners, f) = self.cell(p);
        let fade = |t: f32| t * t * (3.0 - 2.0 * t);
        let (u, v, w) = (fade(f.x), fade(f.y), fade(f.z));
        let x = |a: f32, b: f32| a + (b - a) * u;
        let low = x(corners[0], corners[1]) * (1.0 - v) + x(corners[2], corners[3]) * v;
        let high = x(corners[4], corners[5]) * (1.0 - v) + x(corners[6], corners[7]) * v;
        low + (high - low) * w
    }

    /// The gradient at a point.
    pub(super) fn slope(&self, p: Vec3) -> Vec3 {
        let (c, f) = self.cell(p);
        let fade = |t: f32| t * t * (3.0 - 2.0 * t);
        let rise = |t: f32| 6.0 * t * (1.0 - t);
        let (u, v, w) = (fade(f.x), fade(f.y), fade(f.z));
        let mix = |a: f32, b: f32, t: f32| a + (b - a) * t;
        let dx = mix(mix(c[1] - c[0], c[3] - c[2], v), mix(c[5] - c[4], c[7] - c[6], v), w);
        let dy = mix(mix(c[2] - c[0], c[3] - c[1], u), mix(c[6] - c[4], c[7] - c[5], u), w);
        let dz = mix(mix(c[4] - c[0], c[5] - c[1], u), mix(c[6] - c[2], c[7] - c[3], u), v);
        vec3(dx * rise(f.x), dy * rise(f.y), dz * rise(f.z))
    }

    /// A sum of octaves, each of twice the frequency and half the height, in about -1..1.
    pub(super) fn octaves(&self, p: Vec3, n: usize) -> f32 {
        let (mut sum, mut p, mut height, mut total) = (0.0, p, 1.0, 0.0);
        for _ in 0..n {
            sum += height * self.at(p);
            total += height;
            height *= 0.5;
            // The shift keeps the lattices of the octaves from lying on top of each other.
            p = p * 2.03 + vec3(7.3, 3.1, 11.7);
        }
        sum / total
    }

    /// The values at the eight corners of the cell around a point, x fastest, and where the point lies in the cell.
    #[inline]
    fn cell(&self, p: Vec3) -> ([f32; 8], Vec3) {
        // Positive, so that the conversion to an integer rounds down; a multiple of the period.
        let shift = 32.0 * SIDE as f32;
        let p = p + vec3(shift, shift, shift);
        let (x, y, z) = (p.x as u32, p.y as u32, p.z as u32);
        let f = vec3(p.x - x as f32, p.y - y as f32, p.z - z as f32);
        let (xs, ys, zs) = ([x & MASK, (x + 1) & MASK], [y & MASK, (y + 1) & MASK], [z & MASK, (z + 1) & MASK]);
        let value = |n: usize| {
            let at = (zs[n >> 2] << 10) | (ys[(n >> 1) & 1] << 5) | xs[n & 1];
            self.table[at as usize]
        };
        (std::array::from_fn(value), f)
    }
}

#[cfg(test)]
mod tests {
    use super::super::draw::Purpose;
    use super::*;

    #[test]
    fn the_slope_is_the_derivative_of_the_value() {
        let noise = Noise::new(&mut Draw::new(1, Purpose::Scene, 1));
        let (p, h) = (vec3(3.3, -1.6, 0.7), 1e-2);
        let step = |d: Vec3| (noise.at(p + d * h) - noise.at(p - d * h)) / (2.0 * h);
        let slope = noise.slope(p);
        assert!((slope.x - step(vec3(1.0, 0.0, 0.0))).abs() < 1e-2);
        assert!((slope.y - step(vec3(0.0, 1.0, 0.0))).abs() < 1e-2);
        assert!((slope.z - step(vec3(0.0, 0.0, 1.0))).abs() < 1e-2);
    }
}
