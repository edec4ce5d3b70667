//! Colours of what is seen: mucosa with vessels, polyps, debris, and wet surfaces under a lamp beside the lens.

use super::camera::{Camera, View};
use super::draw::Draw;
use super::noise::Noise;
use super::scene::{Material, Scene};
use super::vector::{Vec3, mix, smoothstep, vec3};

/// How tissue looks throughout a sequence.
pub(super) struct Tissue {
    noise: Noise,
    mucosa: [f32; 3],
    /// Height and frequency of blotches, patches and grain of the wall.
    blotches: (f32, f32),
    patches: (f32, f32),
    grain: (f32, f32),
    /// Strength, frequency and thinness of the vessels.
    vessels: (f32, f32, f32),
    polyp: Lesion,
    debris: [f32; 3],
    /// Unevenness that breaks the light: coarse and fine.
    bumps: (f32, f32),
    /// How wet the wall is: size of the highlights.
    wet: f32,
    /// Darkness of creases.
    crease: f32,
}

/// How a polyp differs from the wall around it.
struct Lesion {
    /// Factors on the wall's colour.
    tint: [f32; 3],
    /// Strength and frequency of its pits.
    pits: (f32, f32),
    /// What is left of the wall's vessels on it.
    vessels: f32,
    /// Pale or dark patches on it.
    patches: f32,
    /// Whitish coating on top.
    cap: f32,
}

impl Lesion {
    /// `footprint` is the width of a pixel on the polyp: pits must be seen, yet not be noise.
    fn new(footprint: f32, draw: &mut Draw) -> Lesion {
        // A third of all polyps have nearly the colour of the wall; a quarter stand out at once.
        let strength = match draw.unit() {
            u if u < 0.35 => draw.between(0.0, 0.08),
            u if u < 0.75 => draw.between(0.08, 0.22),
            _ => draw.between(0.22, 0.5),
        };
        let pale = draw.between(-0.6, 1.0);
        let tint = if pale > 0.0 {
            [1.0 + 0.5 * strength * pale, 1.0 + strength, 1.0 + strength * draw.between(0.6, 1.2)]
        } else {
            [1.0 + 0.3 * strength * pale, 1.0 - strength, 1.0 - strength * draw.between(0.5, 1.0)]
        };
        Lesion {
            tint,
            pits: (draw.between(0.12, 0.36), 1.0 / (footprint * draw.between(4.0, 11.0))),
            vessels: if draw.chance(0.3) { draw.between(0.3, 0.8) } else { draw.between(0.0, 0.2) },
            patches: if draw.chance(0.5) { draw.between(0.05, 0.25) } else { 0.0 },
            cap: if draw.chance(0.15) { draw.between(0.2, 0.6) } else { 0.0 },
        }
    }
}

impl Tissue {
    /// `footprint` is the width of a pixel on the polyp.
    pub(super) fn new(footprint: f32, draw: &mut Draw) -> Tissue {
        let pale = draw.colour([0.78, 0.3, 0.22], [0.88, 0.4, 0.32]);
        let red = draw.colour([0.72, 0.16, 0.1], [0.86, 0.26, 0.18]);
        let brown = draw.colour([0.72, 0.28, 0.1], [0.84, 0.38, 0.19]);
        let (a, b) = match draw.below(3) {
            0 => (pale, red),
            1 => (red, brown),
            _ => (pale, brown),
        };
        let t = draw.unit();
        Tissue {
            noise: Noise::new(draw),
            mucosa: std::array::from_fn(|n| mix(a[n], b[n], t)),
            blotches: (draw.between(0.1, 0.35), draw.between(1.2, 3.0)),
            patches: (draw.between(0.03, 0.15), draw.between(5.0, 14.0)),
            grain: (draw.between(0.02, 0.1), draw.between(25.0, 70.0)),
            vessels: (
                if draw.chance(0.8) { draw.between(0.15, 0.7) } else { 0.0 },
                draw.between(2.0, 5.0),
                draw.between(7.0, 16.0),
            ),
            polyp: Lesion::new(footprint, draw),
            debris: draw.colour([0.5, 0.3, 0.06], [0.85, 0.6, 0.28]),
            bumps: (draw.between(0.01, 0.1), draw.between(0.0, 0.03)),
            wet: draw.between(0.0, 1.0),
            crease: draw.between(0.2, 0.9),
        }
    }

    /// What reflects at a point: wall, polyp or debris. `footprint` is the width of a pixel there.
    fn albedo(&self, p: Vec3, material: Material, footprint: f32) -> [f32; 3] {
        // Octaves finer than a pixel would turn into noise.
        let seen = |frequency: f32| smoothstep(0.5, 0.2, frequency * footprint);
        let octave = |(height, frequency): (f32, f32)| match height * seen(frequency) {
            height if height > 1e-3 => height * self.noise.at(p * frequency),
            _ => 0.0,
        };
        if material == Material::Debris {
            let mottled = 1.0 + octave((0.4, 12.0)) + octave((0.25, 40.0));
            return self.debris.map(|c| c * mottled);
        }
        let blotch = self.blotches.0 * self.noise.octaves(p * self.blotches.1, 2);
        let mut grey = 1.0 + 0.5 * blotch + octave(self.patches) + octave(self.grain);
        let mut red = blotch;
        let mut vessel = self.vessel(p, footprint);
        let mut colour = self.mucosa;
        if material == Material::Polyp {
            let lesion = &self.polyp;
            vessel *= lesion.vessels;
            let pit = octave(lesion.pits) + 0.5 * octave((lesion.pits.0, 1.9 * lesion.pits.1));
            grey = 1.0 + 0.3 * blotch + pit;
            red = 0.5 * blotch - 0.5 * pit;
            let patch = smoothstep(0.1, 0.5, self.noise.at(p * (0.15 * lesion.pits.1)));
            for (n, channel) in colour.iter_mut().enumerate() {
                *channel *= lesion.tint[n] * (1.0 - lesion.patches * patch * [0.3, 1.0, 1.0][n]);
                *channel = mix(
                    *channel,
                    [0.85, 0.75, 0.6][n],
                    lesion.cap * smoothstep(0.0, 0.6, self.noise.at(p * (0.08 * lesion.pits.1))),
                );
            }
        }
        // Blood absorbs green and blue: redder is darker there.
        let factors = [1.0 - 0.3 * vessel, 1.0 - 0.9 * red - 0.85 * vessel, 1.0 - 0.8 * red - 0.8 * vessel];
        std::array::from_fn(|n| (colour[n] * grey * factors[n]).clamp(0.01, 1.0))
    }

    /// Vessels lie where a warped field crosses zero: thin, winding and branching. 0 between them, 1 on them.
    fn vessel(&self, p: Vec3, footprint: f32) -> f32 {
        let (strength, frequency, thinness) = self.vessels;
        if strength <= 0.0 {
            return 0.0;
        }
        let warp = self.noise.at(p * (2.0 * frequency)) * 0.22;
        let q = p * frequency + vec3(warp, -warp, warp);
        let presence = smoothstep(-0.25, 0.35, self.noise.at(q * 0.37 + vec3(5.0, 9.0, 2.0)));
        if presence <= 0.0 {
            return 0.0;
        }
        let line = |at: Vec3, thin: f32| {
            // Lines never get thinner than a pixel, fainter instead.
            let widest = 0.7 / (frequency * footprint);
            let thin_seen = thin.min(widest);
            (1.0 - thin_seen * self.noise.at(at).abs()).max(0.0) * (thin_seen / thin)
        };
        let large = line(q, thinness);
        let small = 0.7 * line(q * 2.3 + vec3(1.7, 4.2, 8.8), 0.8 * thinness);
        strength * presence * large.max(small)
    }

    /// The light that reaches the camera from each pixel.
    pub(super) fn light(&self, scene: &Scene, camera: &Camera, view: &View, draw: &mut Draw) -> Vec<[f32; 3]> {
        let width = view.width;
        let rays: Vec<Vec3> =
            (0..view.distances.len()).map(|n| camera.ray((n % width) as f32 + 0.5, (n / width) as f32 + 0.5)).collect();
        let points: Vec<Vec3> = rays.iter().zip(&view.distances).map(|(ray, t)| camera.position + *ray * *t).collect();
        let lamp = camera.position + draw.direction() * draw.between(0.02, 0.09);
        let mut open = vec![1.0; points.len()];
        let mut light = Vec::with_capacity(points.len());
        for n in 0..points.len() {
            let material = view.materials[n];
            if material == Material::Lumen {
                light.push([0.0; 3]);
                continue;
            }
            let normal = normal(&points, &view.distances, width, n);
            let normal = if normal.dot(rays[n]) > 0.0 { -normal } else { normal };
            // Shadow in creases is soft: once for four pixels is enough.
            let (x, y) = (n % width, n / width);
            let corner = (y & !1) * width + (x & !1);
            if n == corner || view.materials[corner] == Material::Lumen {
                let room = scene.distance(points[n] + normal * 0.12) / 0.12;
                open[n] = mix(1.0, smoothstep(-0.2, 0.75, room), self.crease);
            } else {
                open[n] = open[corner];
            }
            let footprint = camera.pixel() * view.distances[n];
            light.push(self.reflected(points[n], normal, -rays[n], lamp, open[n], material, footprint));
        }
        light
    }

    #[expect(clippy::too_many_arguments, reason = "the geometry of one reflection")]
    fn reflected(
        &self,
        p: Vec3,
        normal: Vec3,
        view: Vec3,
        lamp: Vec3,
        open: f32,
        material: Material,
        footprint: f32,
    ) -> [f32; 3] {
        let coarse = self.noise.slope(p * 9.0) * self.bumps.0;
        let fine = self.noise.slope(p * 31.0) * (self.bumps.1 * smoothstep(0.5, 0.1, 31.0 * footprint) * 3.0);
        let bumped =
            (normal - (coarse + fine).across(normal) * if material == Material::Mucosa { 1.0 } else { 1.6 }).unit();
        let to_lamp = lamp - p;
        let near = to_lamp.dot(to_lamp);
        let to_lamp = to_lamp.unit();
        // Light that wanders through tissue softens the shadow side.
        let lambert = ((bumped.dot(to_lamp) + 0.12) / 1.12).max(0.02);
        let irradiance = lambert * open / (near + 0.03);
        let albedo = self.albedo(p, material, footprint);
        // Far walls are lit by light that has been reflected by red walls before.
        let deep = smoothstep(0.5, 4.0, near);
        let half = (to_lamp + view).unit();
        let shine = bumped.dot(half).max(0.0);
        let shine = [0; 6].iter().fold(shine, |s, _| s * s);
        let edge = if material == Material::Debris { 0.95 } else { mix(0.93, 0.6, self.wet) };
        // Broken by a little noise, which is not asked for where it could not matter.
        let highlight = match shine + 0.12 > edge {
            true => smoothstep(edge, edge + 0.1, shine + 0.12 * self.noise.at(p * 23.0)) * (1.2 / (near + 0.15)),
            false => 0.0,
        };
        std::array::from_fn(|n| {
            let reflected = albedo[n] * mix(1.0, [1.0, 0.75, 0.7][n], deep);
            irradiance * reflected + highlight * [1.0, 0.97, 0.93][n]
        })
    }
}

/// The surface's direction at a pixel, from the neighbours that lie nearest in depth: no edge is blurred.
fn normal(points: &[Vec3], distances: &[f32], width: usize, n: usize) -> Vec3 {
    let step = |before: Option<usize>, after: Option<usize>| {
        let jump = |m: usize| (distances[m] - distances[n]).abs();
        match (before, after) {
            (Some(a), Some(b)) if jump(a).max(jump(b)) < 2.0 * jump(a).min(jump(b)) + 0.02 * distances[n] => {
                points[b] - points[a]
            }
            (Some(a), Some(b)) if jump(a) < jump(b) => points[n] - points[a],
            (_, Some(b)) => points[b] - points[n],
            (Some(a), None) => points[n] - points[a],
            (None, None) => vec3(1.0, 0.0, 0.0),
        }
    };
    let x = n % width;
    let across = step((x > 0).then(|| n - 1), (x + 1 < width).then(|| n + 1));
    let down = step(n.checked_sub(width), Some(n + width).filter(|m| *m < points.len()));
    across.cross(down).unit()
}
