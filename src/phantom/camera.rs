//! The eye of the endoscope: which ray belongs to a pixel, and how far it goes.
//!
//! Rays are traced in bundles, from tiles of 16 pixels down to single ones: a bundle stops where its width no longer
//! fits between the surfaces, and its parts go on from there. That is exact and four times as fast as single rays.

use super::draw::Draw;
use super::scene::{FAR, Material, Scene};
use super::vector::{Vec3, vec3};

/// Where the endoscope is and what it looks at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Camera {
    pub(super) position: Vec3,
    /// To the right, downwards, forwards.
    axes: [Vec3; 3],
    pub(super) width: usize,
    pub(super) height: usize,
    /// Tangent of half the horizontal field of view.
    spread: f32,
    /// Barrel distortion.
    barrel: f32,
}

impl Camera {
    /// Somewhere in the tube, looking along it or at its wall.
    pub(super) fn new(width: usize, height: usize, draw: &mut Draw) -> Camera {
        let side = draw.tangent(vec3(0.0, 0.0, 1.0)) * draw.between(0.0, 0.5);
        let towards = draw.tangent(vec3(0.0, 0.0, 1.0)) * draw.between(0.0, 1.6);
        let forward = (vec3(0.0, 0.0, 1.0) + towards).unit();
        let right = draw.tangent(forward);
        Camera {
            position: side,
            axes: [right, forward.cross(right), forward],
            width,
            height,
            spread: draw.between(0.8, 1.25),
            barrel: draw.between(0.0, 0.15),
        }
    }

    /// The same camera a little later: moved and turned by about `amount`.
    pub(super) fn moved(&self, amount: f32, draw: &mut Draw) -> Camera {
        let position = self.position + draw.direction() * (amount * draw.between(0.3, 1.0));
        let turn = draw.direction() * (amount * draw.between(0.5, 1.5));
        let forward = (self.axes[2] + turn).unit();
        let right = (self.axes[0] + draw.direction() * (0.8 * amount)).across(forward).unit();
        Camera { position, axes: [right, forward.cross(right), forward], ..*self }
    }

    /// The direction seen at a point of the picture, in pixels from the upper left corner.
    pub(super) fn ray(&self, x: f32, y: f32) -> Vec3 {
        let half = 0.5 * self.width as f32;
        let (u, v) = ((x - half) / half, (y - 0.5 * self.height as f32) / half);
        let scale = self.spread * (1.0 + self.barrel * (u * u + v * v));
        (self.axes[0] * (u * scale) + self.axes[1] * (v * scale) + self.axes[2]).unit()
    }

    /// Width of a pixel at distance 1.
    pub(super) fn pixel(&self) -> f32 {
        2.0 * self.spread / self.width as f32
    }

    /// How far each pixel's ray goes, row by row.
    pub(super) fn distances(&self, scene: &Scene) -> Vec<f32> {
        let mut coarse = Level { side: 16, columns: self.width.div_ceil(16), starts: Vec::new() };
        coarse.starts = vec![0.0; coarse.columns * self.height.div_ceil(16)];
        let mut level = self.refined(scene, &coarse, 16);
        for side in [4, 2, 1] {
            level = self.refined(scene, &level, side);
        }
        level.starts
    }

    /// Traces bundles of `side` pixels from where the bundles of `above` stopped.
    fn refined(&self, scene: &Scene, above: &Level, side: usize) -> Level {
        let (columns, rows) = (self.width.div_ceil(side), self.height.div_ceil(side));
        // Half a diagonal of the bundle, wider by what distortion adds towards the corners; single rays stop short of
        // the surface by a hundredth of a pixel.
        let cone = self.pixel() * if side > 1 { 0.9 * side as f32 } else { 0.01 };
        let mut starts = Vec::with_capacity(columns * rows);
        for row in 0..rows {
            for column in 0..columns {
                let start = above.starts[row * side / above.side * above.columns + column * side / above.side];
                let centre = |n: usize| (n * side) as f32 + 0.5 * side as f32;
                starts.push(self.trace(scene, self.ray(centre(column), centre(row)), start, cone));
            }
        }
        Level { side, columns, starts }
    }

    fn trace(&self, scene: &Scene, ray: Vec3, start: f32, cone: f32) -> f32 {
        let mut t = start;
        for _ in 0..60 {
            let room = scene.distance(self.position + ray * t);
            if room < cone * t {
                break;
            }
            t += room;
            if t > FAR {
                break;
            }
        }
        t
    }

    /// What every `step`-th pixel of every `step`-th row shows where `visible` says so, and how far away it is.
    pub(super) fn glance(&self, scene: &Scene, step: usize, visible: impl Fn(usize, usize) -> bool) -> Glance {
        let mut glance = Glance { n_rays: 0, n_polyp: 0 };
        for y in (step / 2..self.height).step_by(step) {
            for x in (step / 2..self.width).step_by(step) {
                glance.n_rays += 1;
                if !visible(x, y) {
                    continue;
                }
                let point = self.hit(scene, x as f32 + 0.5, y as f32 + 0.5);
                glance.n_polyp += usize::from(scene.material(point) == Material::Polyp);
            }
        }
        glance
    }

    /// Where the ray through a point of the picture ends.
    pub(super) fn hit(&self, scene: &Scene, x: f32, y: f32) -> Vec3 {
        let ray = self.ray(x, y);
        self.position + ray * self.trace(scene, ray, 0.0, 0.2 * self.pixel())
    }
}

/// Bundles of rays and how far each went.
struct Level {
    side: usize,
    columns: usize,
    starts: Vec<f32>,
}

/// A quick count of what a camera sees.
#[derive(Debug, Clone, Copy)]
pub(super) struct Glance {
    n_rays: usize,
    n_polyp: usize,
}

impl Glance {
    /// The part of the picture that shows a polyp.
    pub(super) fn polyp(&self) -> f32 {
        self.n_polyp as f32 / self.n_rays.max(1) as f32
    }
}
