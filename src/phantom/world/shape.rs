//! Outlines: how deep inside of a shape a point lies.

use super::super::draw::Draw;

/// A closed outline somewhere in a picture.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    centre: [f32; 2],
    /// Mean radius in pixels.
    pub(super) radius: f32,
    form: Form,
}

#[derive(Debug, Clone)]
enum Form {
    /// Radius by direction, as shares of the mean radius, on a stretched and turned plane.
    Star { rays: Vec<f32>, turn: [f32; 4] },
    /// Discs that melt into each other: centre and radius, in mean radii.
    Drops(Vec<[f32; 3]>),
    /// A path with a thickness, in mean radii.
    Tube { path: Vec<[f32; 2]>, thickness: f32 },
    /// A shape with a part taken away.
    Without(Box<Shape>, Box<Shape>),
}

/// Directions of a star.
const RAYS: usize = 64;

impl Shape {
    pub(super) fn new(centre: [f32; 2], radius: f32, draw: &mut Draw) -> Shape {
        let form = match draw.unit() {
            u if u < 0.55 => star(draw, 1.0),
            u if u < 0.7 => Form::Drops(
                (0..2 + draw.below(3))
                    .map(|_| [draw.between(-0.6, 0.6), draw.between(-0.6, 0.6), draw.between(0.35, 0.8)])
                    .collect(),
            ),
            u if u < 0.8 => corners(draw),
            u if u < 0.88 => tube(draw),
            u => {
                let whole = Shape { centre, radius, form: star(draw, 0.6) };
                // Out of the middle it leaves a ring, out of the side a crescent.
                let aside = if u < 0.94 { 0.12 } else { 0.8 };
                let hole = [centre[0] + aside * radius * draw.bell(), centre[1] + aside * radius * draw.bell()];
                let part = Shape { centre: hole, radius: radius * draw.between(0.4, 0.75), form: star(draw, 0.6) };
                Form::Without(Box::new(whole), Box::new(part))
            }
        };
        Shape { centre, radius, form }
    }

    /// A nearly round one.
    pub(super) fn round(centre: [f32; 2], radius: f32, draw: &mut Draw) -> Shape {
        Shape { centre, radius, form: star(draw, 0.35) }
    }

    /// A path such as a vessel, a fold or an instrument.
    pub(super) fn line(centre: [f32; 2], radius: f32, draw: &mut Draw) -> Shape {
        Shape { centre, radius, form: tube(draw) }
    }

    /// Columns and rows that the shape can reach.
    pub(super) fn bounds(&self, size: usize) -> [std::ops::Range<usize>; 2] {
        let reach = 2.2 * self.radius + 4.0;
        self.centre.map(|c| {
            let clamp = |v: f32| v.clamp(0.0, size as f32) as usize;
            clamp(c - reach)..clamp(c + reach)
        })
    }

    /// Depth below the outline in pixels, about: positive inside.
    pub(super) fn depth(&self, x: f32, y: f32) -> f32 {
        let (u, v) = ((x - self.centre[0]) / self.radius, (y - self.centre[1]) / self.radius);
        let depth = match &self.form {
            Form::Star { rays, turn } => {
                let (u, v) = (turn[0] * u + turn[1] * v, turn[2] * u + turn[3] * v);
                let direction = (v.atan2(u) / std::f32::consts::TAU + 1.0) * RAYS as f32;
                let (low, t) = (direction as usize, direction - direction.floor());
                let radius = rays[low % RAYS] * (1.0 - t) + rays[(low + 1) % RAYS] * t;
                radius - (u * u + v * v).sqrt()
            }
            Form::Drops(drops) => {
                let sum: f32 =
                    drops.iter().map(|[x, y, r]| r * r / ((u - x) * (u - x) + (v - y) * (v - y)).max(1e-4)).sum();
                // Potential 1 is the outline; its square root falls about linearly near it.
                0.5 * (sum.sqrt() - 1.0).min(1.0)
            }
            Form::Tube { path, thickness } => {
                let near = path.windows(2).map(|w| distance([u, v], w[0], w[1])).fold(f32::MAX, f32::min);
                thickness - near
            }
            Form::Without(whole, part) => return whole.depth(x, y).min(-part.depth(x, y)),
        };
        depth * self.radius
    }
}

fn star(draw: &mut Draw, roughness: f32) -> Form {
    let waves: Vec<[f32; 3]> = (1..7)
        .map(|k| {
            let height = roughness * 0.28 * draw.bell() / k as f32;
            [k as f32, height, draw.between(0.0, std::f32::consts::TAU)]
        })
        .collect();
    let ray = |n: usize| {
        let angle = n as f32 / RAYS as f32 * std::f32::consts::TAU;
        let bumps: f32 = waves.iter().map(|[k, height, phase]| height * (k * angle + phase).sin()).sum();
        (1.0 + bumps).max(0.25)
    };
    Form::Star { rays: (0..RAYS).map(ray).collect(), turn: turn(draw) }
}

fn corners(draw: &mut Draw) -> Form {
    let n = 3 + draw.below(5);
    let tips: Vec<f32> = (0..n).map(|_| draw.between(0.65, 1.35)).collect();
    let ray = |at: usize| {
        let place = at as f32 / RAYS as f32 * n as f32;
        let (low, t) = (place as usize, place - place.floor());
        // Straight edges between the tips.
        let (a, b) = (tips[low % n], tips[(low + 1) % n]);
        let wedge = std::f32::consts::TAU / n as f32;
        a * b * wedge.sin() / (a * (t * wedge).sin() + b * ((1.0 - t) * wedge).sin()).max(1e-3)
    };
    Form::Star { rays: (0..RAYS).map(|at| ray(at).clamp(0.2, 1.5)).collect(), turn: turn(draw) }
}

fn tube(draw: &mut Draw) -> Form {
    let mut at = [-1.6, draw.between(-0.5, 0.5)];
    let angle = draw.between(0.0, std::f32::consts::TAU);
    let (sin, cos) = angle.sin_cos();
    let mut heading = 0.4 * draw.bell();
    let mut path = Vec::new();
    for _ in 0..9 {
        path.push([cos * at[0] - sin * at[1], sin * at[0] + cos * at[1]]);
        heading = 0.8 * heading + 0.35 * draw.bell();
        at = [at[0] + 0.4, at[1] + 0.4 * heading];
    }
    Form::Tube { path, thickness: draw.between(0.1, 0.4) }
}

/// A turn and a stretch of the plane.
fn turn(draw: &mut Draw) -> [f32; 4] {
    let (sin, cos) = draw.between(0.0, std::f32::consts::PI).sin_cos();
    let stretch = 1.0 + 0.8 * draw.unit() * draw.unit();
    [cos * stretch, sin * stretch, -sin / stretch, cos / stretch]
}

/// From a point to a line from `a` to `b`.
fn distance(p: [f32; 2], a: [f32; 2], b: [f32; 2]) -> f32 {
    let (d, q) = ([b[0] - a[0], b[1] - a[1]], [p[0] - a[0], p[1] - a[1]]);
    let t = ((q[0] * d[0] + q[1] * d[1]) / (d[0] * d[0] + d[1] * d[1]).max(1e-6)).clamp(0.0, 1.0);
    let r = [q[0] - t * d[0], q[1] - t * d[1]];
    (r[0] * r[0] + r[1] * r[1]).sqrt()
}
