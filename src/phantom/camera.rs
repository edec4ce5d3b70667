//! The eye of the endoscope: which ray belongs to a pixel, and how far it goes.
//!
//! Rays start as bundles: a bundle stops where its width no longer fits between the surfaces, and its parts go on from
//! there. Single rays are traced for every second pixel of every second row; between them distances are interpolated
//! where the surface is smooth, and traced where it is not. That is several times as fast as tracing every pixel.

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

    /// How far each pixel's ray goes and what it meets. Where the picture is not shown, nothing is traced.
    pub(super) fn view(&self, scene: &Scene, shown: impl Fn(usize, usize) -> bool) -> View {
        let mut tiles = Tiles { side: 16, columns: self.width.div_ceil(16), starts: Vec::new() };
        tiles.starts = vec![0.0; tiles.columns * self.height.div_ceil(16)];
        for side in [16, 4] {
            tiles = self.refined(scene, &tiles, side);
        }
        let (width, height) = (self.width, self.height);
        let mut view =
            View { width, distances: vec![0.0; width * height], materials: vec![Material::Lumen; width * height] };
        let trace = |view: &mut View, x: usize, y: usize| {
            if !shown(x, y) {
                return;
            }
            let ray = self.ray(x as f32 + 0.5, y as f32 + 0.5);
            let t = self.trace(scene, ray, tiles.starts[y / tiles.side * tiles.columns + x / tiles.side]);
            view.distances[y * width + x] = t;
            view.materials[y * width + x] = scene.material(self.position + ray * t);
        };
        for y in (0..height).step_by(2) {
            for x in (0..width).step_by(2) {
                trace(&mut view, x, y);
            }
        }
        // First the gaps in the even rows, then the odd rows from the rows above and below.
        for (first_row, first_column, row_step, column_step, stride) in [(0, 1, 2, 2, 1), (1, 0, 2, 1, width)] {
            for y in (first_row..height).step_by(row_step) {
                for x in (first_column..width).step_by(column_step) {
                    if !self.interpolate(scene, &mut view, x, y, stride) {
                        trace(&mut view, x, y);
                    }
                }
            }
        }
        view
    }

    /// Fills a pixel from its neighbours one and three pixels before and after it, `stride` apart. `false` at the
    /// border, at an edge, or where the surface bends.
    fn interpolate(&self, scene: &Scene, view: &mut View, x: usize, y: usize, stride: usize) -> bool {
        let (place, length) = if stride == 1 { (x, self.width) } else { (y, self.height) };
        if place < 3 || place + 3 >= length {
            return false;
        }
        let n = y * self.width + x;
        let [a, b, c, d] = [n - 3 * stride, n - stride, n + stride, n + 3 * stride].map(|m| view.distances[m]);
        if a.min(b).min(c).min(d) <= 0.0 {
            return false;
        }
        let bend = (a + c - 2.0 * b).abs().max((b + d - 2.0 * c).abs());
        if bend > 0.8 * self.pixel() * b.min(c) {
            return false;
        }
        view.distances[n] = 0.5625 * (b + c) - 0.0625 * (a + d);
        let (before, after) = (view.materials[n - stride], view.materials[n + stride]);
        view.materials[n] = match before == after {
            true => before,
            false => scene.material(self.position + self.ray(x as f32 + 0.5, y as f32 + 0.5) * view.distances[n]),
        };
        true
    }

    /// Traces bundles of `side` pixels from where the bundles of `above` stopped.
    fn refined(&self, scene: &Scene, above: &Tiles, side: usize) -> Tiles {
        let (columns, rows) = (self.width.div_ceil(side), self.height.div_ceil(side));
        // Half a diagonal of the bundle, wider by what distortion adds towards the corners.
        let cone = self.pixel() * 0.9 * side as f32;
        let mut starts = Vec::with_capacity(columns * rows);
        for row in 0..rows {
            for column in 0..columns {
                let start = above.starts[row * side / above.side * above.columns + column * side / above.side];
                let centre = |n: usize| (n * side) as f32 + 0.5 * side as f32;
                starts.push(self.advance(scene, self.ray(centre(column), centre(row)), start, cone));
            }
        }
        Tiles { side, columns, starts }
    }

    /// The last safe stop of a bundle of rays as wide as `cone` at distance 1.
    fn advance(&self, scene: &Scene, ray: Vec3, start: f32, cone: f32) -> f32 {
        let mut t = start;
        for _ in 0..60 {
            let room = scene.distance(self.position + ray * t);
            if room < cone * t || t > FAR {
                break;
            }
            t += room;
        }
        t
    }

    /// Where a single ray meets a surface, to a hundredth of a pixel. Stepping by the distance alone converges slowly
    /// on surfaces that are seen askew, so close to one the last two stops tell how far it is along the ray.
    fn trace(&self, scene: &Scene, ray: Vec3, start: f32) -> f32 {
        let pixel = self.pixel();
        let mut t = start;
        let mut before = None;
        for _ in 0..60 {
            let room = scene.distance(self.position + ray * t);
            if room.abs() < 0.01 * pixel * t || t > FAR {
                break;
            }
            let slope = before.map_or(0.0, |(t_before, room_before)| (room - room_before) / (t - t_before));
            before = Some((t, room));
            t += match room {
                room if slope < -0.08 && room < 6.0 * pixel * t => -room / slope,
                room => room.max(-pixel * t),
            };
        }
        t
    }

    /// The part of the picture that shows a polyp, by every `step`-th pixel of every `step`-th row.
    pub(super) fn polyp_share(&self, scene: &Scene, step: usize, shown: impl Fn(usize, usize) -> bool) -> f32 {
        if scene.growths.iter().all(|growth| growth.material != Material::Polyp) {
            return 0.0;
        }
        let (mut rays, mut hits) = (0, 0);
        for y in (step / 2..self.height).step_by(step) {
            for x in (step / 2..self.width).step_by(step) {
                rays += 1;
                let is_polyp = |p| scene.material(p) == Material::Polyp;
                hits += usize::from(shown(x, y) && is_polyp(self.hit(scene, x as f32 + 0.5, y as f32 + 0.5)));
            }
        }
        hits as f32 / rays.max(1) as f32
    }

    /// Where the ray through a point of the picture ends.
    pub(super) fn hit(&self, scene: &Scene, x: f32, y: f32) -> Vec3 {
        let ray = self.ray(x, y);
        self.position + ray * self.trace(scene, ray, 0.0)
    }
}

/// What a camera sees: one entry a pixel, row by row.
pub(super) struct View {
    pub(super) width: usize,
    pub(super) distances: Vec<f32>,
    pub(super) materials: Vec<Material>,
}

/// Bundles of rays and how far each went.
struct Tiles {
    side: usize,
    columns: usize,
    starts: Vec<f32>,
}
