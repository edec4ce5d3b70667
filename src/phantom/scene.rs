//! The inside of a bowel as a distance field: a bent tube with crescent folds, and what grows or lies on its wall.
//!
//! Lengths are in radii of the tube. The field never claims more distance than there is (each part is scaled by its
//! steepest slope), so that rays may step by it.

use super::draw::Draw;
use super::growth::Growth;
use super::vector::{Vec3, vec3};

/// What a ray meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Material {
    /// The wall, its folds and its bulges.
    Mucosa,
    /// A polyp, stalk included: the mask.
    Polyp,
    /// Stool and food on the wall.
    Debris,
    /// Too far away to be lit.
    Lumen,
}

/// Distances beyond this are the dark end of the tube.
pub(super) const FAR: f32 = 9.0;

#[derive(Debug, Clone, Copy, Default)]
struct Fold {
    shift: f32,
    half_width: f32,
    height: f32,
    /// Where on the circle the crescent is highest.
    towards: [f32; 2],
    /// How far around the circle it reaches: -1 nowhere, 1 all around.
    reach: f32,
    /// How much it runs askew.
    skew: f32,
}

/// The wall of the tube without what grows on it.
#[derive(Debug, Clone)]
pub(super) struct Tube {
    bend: [f32; 2],
    tilt: [f32; 2],
    spacing: f32,
    /// How triangular the tube is, and which way its first corner points.
    corners: f32,
    corner_towards: [f32; 2],
    folds: [Fold; 32],
    /// The field is scaled down by this, because flanks of folds are steep.
    scale: f32,
}

impl Tube {
    pub(super) fn new(draw: &mut Draw) -> Tube {
        let circle = |draw: &mut Draw| {
            let side = draw.tangent(vec3(0.0, 0.0, 1.0));
            [side.x, side.y]
        };
        let spacing = draw.between(0.55, 1.3);
        let tall = if draw.chance(0.25) { draw.between(0.03, 0.12) } else { draw.between(0.15, 0.4) };
        let mut folds = [Fold::default(); 32];
        for fold in &mut folds {
            let half_width = draw.between(0.2, 0.45) * spacing.min(1.0);
            *fold = Fold {
                shift: draw.between(0.3, 0.7),
                half_width,
                height: (tall * draw.between(0.4, 1.2)).min(0.95 * half_width),
                towards: circle(draw),
                reach: draw.between(-0.2, 0.9),
                skew: draw.between(-0.25, 0.25) * spacing,
            };
        }
        // The steepest point of (1 - s²)² has slope 1.54; bends and skews add a little.
        let slope = folds.iter().map(|fold| 1.54 * fold.height / fold.half_width).fold(0.2, f32::max);
        Tube {
            scale: 1.0 / (1.0 + slope * slope).sqrt(),
            bend: [draw.between(-0.06, 0.06), draw.between(-0.06, 0.06)],
            tilt: [draw.between(-0.3, 0.3), draw.between(-0.3, 0.3)],
            spacing,
            corners: draw.between(0.0, 0.07),
            corner_towards: circle(draw),
            folds,
        }
    }

    /// Distance to the wall, positive inside.
    pub(super) fn distance(&self, p: Vec3) -> f32 {
        let z = p.z.clamp(-4.0, FAR);
        let (x, y) = (p.x - self.bend[0] * z * z, p.y - self.bend[1] * z * z);
        let r = (x * x + y * y).sqrt();
        let (cos, sin) = (x / r.max(1e-6), y / r.max(1e-6));
        let along = |towards: [f32; 2]| cos * towards[0] + sin * towards[1];
        let corner = along(self.corner_towards);
        let mut radius = 1.0 + self.corners * corner * (4.0 * corner * corner - 3.0);
        let z = p.z + self.tilt[0] * x + self.tilt[1] * y;
        let place = z / self.spacing + 16.0;
        let cell = place as i32;
        let neighbour = if place - cell as f32 > 0.5 { cell + 1 } else { cell - 1 };
        for n in [cell, neighbour] {
            let fold = &self.folds[(n & 31) as usize];
            let c = along(fold.towards);
            let s = (place - n as f32 - fold.shift) * self.spacing + fold.skew * c;
            let s = s / fold.half_width;
            let reach = fold.reach + c;
            if s.abs() < 1.0 && reach > 0.0 {
                let profile = 1.0 - s * s;
                let reach = reach.min(1.0);
                radius -= fold.height * profile * profile * reach * reach * (3.0 - 2.0 * reach);
            }
        }
        (radius - r) * self.scale
    }

    /// The direction from the wall into the tube.
    pub(super) fn normal(&self, p: Vec3) -> Vec3 {
        let h = 2e-3;
        let d = |x, y, z| self.distance(p + vec3(x, y, z));
        vec3(d(h, 0.0, 0.0) - d(-h, 0.0, 0.0), d(0.0, h, 0.0) - d(0.0, -h, 0.0), d(0.0, 0.0, h) - d(0.0, 0.0, -h))
            .unit()
    }
}

/// A tube and everything in it.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    pub(super) tube: Tube,
    pub(super) growths: Vec<Growth>,
}

impl Scene {
    /// Distance to the nearest surface.
    pub(super) fn distance(&self, p: Vec3) -> f32 {
        let mut distance = self.tube.distance(p);
        for growth in &self.growths {
            distance = growth.united(p, distance);
        }
        distance
    }

    /// What the surface at a point is made of: whatever would be met first without the smooth joints.
    pub(super) fn material(&self, p: Vec3) -> Material {
        if p.z > FAR - 1.0 {
            return Material::Lumen;
        }
        let mut best = (self.tube.distance(p), Material::Mucosa);
        for growth in &self.growths {
            if let Some(distance) = growth.distance(p, best.0.max(0.0)).filter(|d| *d < best.0) {
                best = (distance, growth.material);
            }
        }
        best.1
    }
}
