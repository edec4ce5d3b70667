//! Values of overlapping squares put together.

use super::Fit;

/// The mean of overlapping squares over a scaled picture, at its own pixels.
///
/// A pixel counts less the nearer it lies to its square's edge, where the network sees little around it (as nnU-Net's
/// Gaussian, here a tent): neighbouring squares pass into each other without a seam.
#[derive(Debug, Clone)]
pub struct Mosaic {
    fit: Fit,
    sum: Vec<f32>,
    weight: Vec<f32>,
}

impl Mosaic {
    /// Nothing yet.
    pub fn new(fit: &Fit) -> Mosaic {
        let len = fit.inner[0] * fit.inner[1];
        Mosaic { fit: *fit, sum: vec![0.0; len], weight: vec![0.0; len] }
    }

    /// Adds the values of one square, `fit.extent()` of them, row by row; `corner` is where it lies.
    pub fn add(&mut self, corner: [usize; 2], values: &[f32]) {
        let [w, h] = self.fit.extent();
        let tent = |i: usize, n: usize| (i + 1).min(n - i) as f32;
        for y in 0..h {
            for x in 0..w {
                let weight = tent(x, w) * tent(y, h);
                let at = (corner[1] + y) * self.fit.inner[0] + corner[0] + x;
                self.sum[at] += weight * values[y * w + x];
                self.weight[at] += weight;
            }
        }
    }

    /// The means, `fit.inner` of them; `outside` where no square lies.
    pub fn mean(&self, outside: f32) -> Vec<f32> {
        let pairs = self.sum.iter().zip(&self.weight);
        pairs.map(|(sum, weight)| if *weight > 0.0 { sum / weight } else { outside }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Resize;

    #[test]
    fn squares_meet_by_their_distance_to_the_edge() {
        // 6 pixels in squares of 4: corners 0 and 2. Tents are 1 2 2 1; in pixel 2 the first square counts 2 and the
        // second 1, in pixel 3 the other way round. Rows count alike everywhere.
        let fit = Fit { inner: [6, 1], ..Fit::new(6, 1, 4, Resize::LongestSide) };
        assert_eq!(fit.tiles(), [[0, 0], [2, 0]]);
        let mut mosaic = Mosaic::new(&fit);
        mosaic.add([0, 0], &[0.0; 4]);
        assert_eq!(mosaic.mean(-9.0), [0.0, 0.0, 0.0, 0.0, -9.0, -9.0]);
        mosaic.add([2, 0], &[3.0; 4]);
        assert_eq!(mosaic.mean(-9.0), [0.0, 0.0, 1.0, 2.0, 3.0, 3.0]);
    }

    #[test]
    fn a_constant_stays_itself_and_every_pixel_is_covered() {
        for inner in [[8, 8], [10, 3], [20, 31], [64, 8]] {
            let fit = Fit::at_scale(inner[0], inner[1], 8, [1.0; 2], 1.0);
            let mut mosaic = Mosaic::new(&fit);
            let [w, h] = fit.extent();
            fit.tiles().into_iter().for_each(|corner| mosaic.add(corner, &vec![0.5; w * h]));
            assert!(mosaic.mean(f32::NAN).iter().all(|v| (v - 0.5).abs() < 1e-6), "{inner:?}");
        }
    }
}
