//! Random numbers of the phantoms: one ChaCha8 stream a purpose, so that no case depends on another one.

use super::vector::{Vec3, vec3};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream of random numbers is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// What the pictures of a sequence share; the number is the sequence's.
    Scene = 0,
    /// What one picture has for itself; the number is the picture's.
    Take = 1,
    /// A volume.
    Volume = 2,
    /// A scene of the pretraining world; the number is the scene's.
    World = 3,
}

/// A seeded source of random numbers.
#[derive(Debug, Clone)]
pub(super) struct Draw(ChaCha8Rng);

impl Draw {
    /// The stream of a seed, a purpose and a number.
    pub(super) fn new(seed: u64, purpose: Purpose, number: u64) -> Draw {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number.wrapping_mul(4).wrapping_add(purpose as u64));
        Draw(rng)
    }

    /// 32 random bits.
    pub(super) fn bits(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// Uniform in 0..1.
    pub(super) fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / 16_777_216.0
    }

    /// Uniform in `low..high`.
    pub(super) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// True with this probability.
    pub(super) fn chance(&mut self, probability: f32) -> bool {
        self.unit() < probability
    }

    /// A whole number in `0..n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        // The high half of the product: `n` is small, so the bias is far below anything visible.
        ((u64::from(self.bits()) * n as u64) >> 32) as usize
    }

    /// Bell-shaped around 0 with standard deviation 1, never beyond ±3.5 (Irwin and Hall's sum, no logarithm needed).
    pub(super) fn bell(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| self.unit()).sum();
        (sum - 2.0) * 1.732_050_8
    }

    /// A direction, all equally likely.
    pub(super) fn direction(&mut self) -> Vec3 {
        // Rejection instead of angles; a dozen tries fail about once in 10^4 draws, and then any direction will do.
        for _ in 0..12 {
            let v = vec3(self.between(-1.0, 1.0), self.between(-1.0, 1.0), self.between(-1.0, 1.0));
            if (0.01..1.0).contains(&v.dot(v)) {
                return v.unit();
            }
        }
        vec3(0.0, 0.0, 1.0)
    }

    /// A direction in the plane across `normal`.
    pub(super) fn tangent(&mut self, normal: Vec3) -> Vec3 {
        let side = self.direction().across(normal);
        if side.dot(side) > 1e-4 {
            return side.unit();
        }
        let axis = if normal.x.abs() < 0.7 { vec3(1.0, 0.0, 0.0) } else { vec3(0.0, 1.0, 0.0) };
        axis.across(normal).unit()
    }

    /// Uniform between two colours, each channel for itself.
    pub(super) fn colour(&mut self, low: [f32; 3], high: [f32; 3]) -> [f32; 3] {
        std::array::from_fn(|n| self.between(low[n], high[n]))
    }
}
