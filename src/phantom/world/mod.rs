//! An unlimited world of pictures with objects: what the embedded model is pretrained on, so that its features serve
//! endoscopy, ultrasound, CT, MR and microscopy alike. Flat and cheap (a few milliseconds a picture), unlike the polyp
//! phantom, because a network in training needs tens of thousands of them.

mod field;
mod shape;

use super::draw::{Draw, Purpose};
use super::vector::smoothstep;
use crate::image::Picture;
use field::{Grain, field};
use shape::Shape;

/// Changes whenever the same seed gives other bytes.
pub const VERSION: u32 = 1;

/// A picture and what is in it.
#[derive(Debug, Clone)]
pub struct Scene {
    /// The picture, square.
    pub picture: Picture,
    /// 0, or the number of the object seen at a pixel, row by row.
    pub objects: Vec<u8>,
    /// Number of objects; each is seen in at least [`SMALLEST`] pixels.
    pub count: u8,
    /// The kind of picture.
    pub style: Style,
}

/// What the picture looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Coloured things in any light.
    Photo,
    /// Relief lit from the camera, mucosa colours, glints.
    Endoscopy,
    /// A fan of multiplicative speckle.
    Ultrasound,
    /// Flat greys in a body.
    Ct,
    /// Soft greys with an uneven field.
    Mr,
    /// Many round cells.
    Cells,
}

/// Styles and how often each is drawn, in percent.
const STYLES: [(Style, u32); 6] = [
    (Style::Photo, 22),
    (Style::Endoscopy, 34),
    (Style::Ultrasound, 12),
    (Style::Ct, 11),
    (Style::Mr, 11),
    (Style::Cells, 10),
];

/// Pixels below which an object is taken out of the masks.
pub const SMALLEST: usize = 48;

/// What makes one style differ from another.
struct Look {
    /// Objects, at least and at most.
    objects: [usize; 2],
    /// Mean radius of an object as a part of the side, at least and at most.
    radius: [f32; 2],
    /// Things that look a little like objects and are none, at most.
    others: usize,
    /// Whether colour is used.
    colour: bool,
    /// Largest difference of an object's colour from what lies around it.
    contrast: f32,
    /// Height of the relief, in pixels.
    relief: f32,
    /// How uneven the light is.
    light: f32,
    /// Multiplicative speckle.
    speckle: f32,
    /// Additive noise.
    noise: f32,
    /// Outlines that are nearly round.
    round: f32,
}

impl Style {
    fn look(self, draw: &mut Draw) -> Look {
        let base = Look {
            objects: [1, 6],
            radius: [0.05, 0.3],
            others: 4,
            colour: true,
            contrast: 0.5,
            relief: 3.0,
            light: 0.4,
            speckle: 0.0,
            noise: 0.04,
            round: 0.1,
        };
        match self {
            Style::Photo => base,
            Style::Endoscopy => Look {
                objects: if draw.chance(0.75) { [1, 1] } else { [2, 4] },
                radius: [0.06, 0.36],
                others: 7,
                contrast: draw.between(0.06, 0.3),
                relief: draw.between(4.0, 14.0),
                light: 0.7,
                round: 0.35,
                ..base
            },
            Style::Ultrasound => Look {
                objects: [1, 3],
                radius: [0.06, 0.28],
                colour: false,
                contrast: 0.35,
                relief: 0.0,
                light: 0.5,
                speckle: draw.between(0.25, 0.9),
                ..base
            },
            Style::Ct => Look {
                objects: [2, 9],
                radius: [0.04, 0.2],
                colour: false,
                contrast: 0.3,
                relief: 0.0,
                light: 0.03,
                noise: draw.between(0.01, 0.1),
                ..base
            },
            Style::Mr => Look {
                objects: [1, 7],
                radius: [0.04, 0.26],
                colour: false,
                contrast: 0.35,
                relief: 0.0,
                light: 0.5,
                noise: draw.between(0.01, 0.08),
                ..base
            },
            Style::Cells => Look {
                objects: [4, 24],
                radius: [0.035, 0.09],
                others: 2,
                colour: draw.chance(0.6),
                contrast: 0.6,
                relief: 1.0,
                light: 0.15,
                round: 0.8,
                ..base
            },
        }
    }
}

/// The scene of a seed and a number, `size × size`.
pub fn scene(seed: u64, index: u64, size: usize) -> Scene {
    let mut draw = Draw::new(seed, Purpose::World, index);
    let ticket = draw.below(100) as u32;
    let mut sum = 0;
    let style = STYLES.iter().find(|(_, share)| {
        sum += share;
        ticket < sum
    });
    let style = style.map_or(Style::Photo, |(style, _)| *style);
    let look = style.look(&mut draw);
    let mut canvas = Canvas::new(&mut draw, size, style, &look);
    canvas.decorate(&mut draw, &look, style);
    canvas.place_objects(&mut draw, &look);
    let (objects, count) = renumbered(&canvas.objects);
    let mut light = canvas.lit(&mut draw, &look);
    if style == Style::Ultrasound {
        fan(&mut draw, size, &mut light);
    }
    Scene { picture: developed(light, size, &look, &mut draw), objects, count, style }
}

/// A picture that is being painted.
struct Canvas {
    size: usize,
    /// Colour without light.
    albedo: Vec<[f32; 3]>,
    height: Vec<f32>,
    gloss: f32,
    objects: Vec<u8>,
}

impl Canvas {
    fn new(draw: &mut Draw, size: usize, style: Style, look: &Look) -> Canvas {
        let cell = size as f32 * draw.between(0.05, 0.5);
        let hills = field(size, Grain::Hills, cell, 4, draw_stretch(draw), draw);
        let fine = texture(draw, size);
        let (low, high) = match style {
            Style::Endoscopy => {
                let wall = draw.colour([0.55, 0.2, 0.14], [0.95, 0.55, 0.45]);
                (wall, nudged(draw, wall, 0.16))
            }
            Style::Ct => ([0.35; 3], [draw.between(0.38, 0.5); 3]),
            _ => {
                let one = colour(draw, look.colour);
                (one, nudged_like(draw, one, 0.35, look.colour))
            }
        };
        let strength = if style == Style::Ct { 0.02 } else { draw.between(0.0, 0.22) };
        let paint = |(h, f): (&f32, &f32)| -> [f32; 3] {
            std::array::from_fn(|c| low[c] + (high[c] - low[c]) * h + strength * (f - 0.5))
        };
        let albedo = hills.iter().zip(&fine).map(paint).collect();
        let rough = look.relief * draw.between(0.3, 1.6);
        let height = hills.iter().zip(&fine).map(|(h, f)| rough * (3.0 * h + 0.15 * f)).collect();
        let gloss = if style == Style::Endoscopy { draw.between(0.0, 0.9) } else { 0.2 * draw.unit() };
        let mut canvas = Canvas { size, albedo, height, gloss, objects: vec![0; size * size] };
        if matches!(style, Style::Ct | Style::Mr) && draw.chance(0.8) {
            canvas.body(draw);
        }
        canvas
    }

    /// Air around a body.
    fn body(&mut self, draw: &mut Draw) {
        let size = self.size as f32;
        let shape = Shape::round([0.5 * size + 8.0 * draw.bell(), 0.5 * size + 8.0 * draw.bell()], 0.45 * size, draw);
        let rim = draw.between(0.0, 0.25);
        for n in 0..self.albedo.len() {
            let depth = shape.depth((n % self.size) as f32, (n / self.size) as f32);
            let inside = smoothstep(-1.0, 1.0, depth);
            let fat = rim * smoothstep(9.0, 5.0, depth);
            self.albedo[n] = self.albedo[n].map(|c| inside * (c + fat));
        }
    }

    /// Folds, vessels, dark holes and spots that are no objects.
    fn decorate(&mut self, draw: &mut Draw, look: &Look, style: Style) {
        let size = self.size as f32;
        if draw.chance(0.5) {
            let cell = size * draw.between(0.15, 0.6);
            let ridges = field(self.size, Grain::Ridges, cell, 2, draw_stretch(draw), draw);
            let (deep, tint) = (look.relief * draw.between(0.5, 2.5), 0.12 * draw.bell());
            for ((height, albedo), r) in self.height.iter_mut().zip(&mut self.albedo).zip(&ridges) {
                let crest = r * r * r;
                *height += deep * crest;
                *albedo = albedo.map(|c| c + tint * crest);
            }
        }
        for _ in 0..draw.below(look.others + 1) {
            let centre = [draw.between(0.0, size), draw.between(0.0, size)];
            let difference = signed(draw, 0.5 * look.contrast + 0.05);
            match draw.below(4) {
                // A dark hole with soft edges: a lumen, a shadow, a bowel loop.
                0 if style == Style::Endoscopy => {
                    let shape = Shape::round(centre, size * draw.between(0.08, 0.3), draw);
                    self.paint(
                        draw,
                        &shape,
                        25.0,
                        Paint { tint: [-0.5; 3], lift: -2.0 * look.relief, texture: 0.0 },
                        0,
                    );
                }
                1 => {
                    let shape = Shape::round(centre, size * draw.between(0.008, 0.02), draw);
                    self.paint(draw, &shape, 1.0, Paint { tint: [difference; 3], lift: 0.0, texture: 0.0 }, 0);
                }
                _ => {
                    let shape = Shape::line(centre, size * draw.between(0.1, 0.4), draw);
                    let lift = look.relief * draw.between(-0.5, 1.0);
                    self.paint(draw, &shape, 3.0, Paint { tint: [difference; 3], lift, texture: 0.0 }, 0);
                }
            }
        }
    }

    fn place_objects(&mut self, draw: &mut Draw, look: &Look) {
        let size = self.size as f32;
        let count = look.objects[0] + draw.below(look.objects[1] - look.objects[0] + 1);
        let common = colour(draw, look.colour);
        for number in 1..=count {
            let centre = [draw.between(0.08, 0.92) * size, draw.between(0.08, 0.92) * size];
            let share = draw.unit();
            let radius = size * (look.radius[0] + (look.radius[1] - look.radius[0]) * share * share);
            let shape = if draw.chance(look.round) {
                Shape::round(centre, radius, draw)
            } else {
                Shape::new(centre, radius, draw)
            };
            let here = self.albedo[(centre[1] as usize) * self.size + centre[0] as usize];
            let wanted = match draw.unit() {
                u if u < 0.3 => common,
                _ => nudged_like(draw, here, look.contrast, look.colour),
            };
            // At least a little of everything that tells an object: colour, relief or texture.
            let strength = look.contrast * draw.between(0.15, 1.0);
            let tint = std::array::from_fn(|c| (wanted[c] - here[c]).clamp(-strength, strength));
            let lift = look.relief * draw.between(0.4, 2.2) * if draw.chance(0.85) { 1.0 } else { -0.6 };
            let plain = look.relief < 0.5 && tint.iter().all(|t: &f32| t.abs() < 0.06);
            let tint = if plain { [signed(draw, 0.12); 3] } else { tint };
            let texture = if draw.chance(0.6) { draw.between(0.03, 0.25) } else { 0.0 };
            let soft = if draw.chance(0.7) { draw.between(0.6, 2.5) } else { draw.between(2.5, 7.0) };
            self.paint(draw, &shape, soft, Paint { tint, lift, texture }, number as u8);
        }
    }

    /// Paints a shape over what is there; `number` 0 leaves the masks as they are, so things in front of an object hide
    /// it only where their number is written.
    fn paint(&mut self, draw: &mut Draw, shape: &Shape, soft: f32, paint: Paint, number: u8) {
        let [columns, rows] = shape.bounds(self.size);
        let grain = if paint.texture > 0.0 { Some(texture(draw, self.size)) } else { None };
        let rim = if draw.chance(0.3) { signed(draw, 0.15) } else { 0.0 };
        // How much of the background's own texture an object keeps.
        let keep = draw.between(0.3, 1.0);
        let mean = self.albedo[rows.start.min(self.size - 1) * self.size + columns.start.min(self.size - 1)];
        let dome = (0.6 * shape.radius).max(2.0);
        for y in rows {
            for x in columns.clone() {
                let depth = shape.depth(x as f32, y as f32);
                let alpha = smoothstep(-soft, soft, depth);
                if alpha <= 0.0 {
                    continue;
                }
                let n = y * self.size + x;
                let grain = grain.as_ref().map_or(0.0, |g| paint.texture * (g[n] - 0.5));
                let edge = rim * smoothstep(0.0, 1.0, depth) * smoothstep(5.0, 2.0, depth);
                let old = self.albedo[n];
                self.albedo[n] = std::array::from_fn(|c| {
                    let ground = if number > 0 { mean[c] + (old[c] - mean[c]) * keep } else { old[c] };
                    old[c] + alpha * (ground - old[c]) * 0.5 + alpha * (paint.tint[c] + grain + edge)
                });
                let rise = (depth / dome).clamp(0.0, 1.0);
                self.height[n] += paint.lift * dome * 0.25 * rise * (2.0 - rise);
                if number > 0 && depth > 0.0 {
                    self.objects[n] = number;
                }
            }
        }
    }

    /// Light on the relief, falling off towards a side or away from the middle.
    fn lit(&self, draw: &mut Draw, look: &Look) -> Vec<[f32; 3]> {
        let (size, side) = (self.size, self.size as f32);
        let lamp = [side * draw.between(0.2, 0.8), side * draw.between(0.2, 0.8)];
        let far = [draw.between(-1.0, 1.0), draw.between(-1.0, 1.0)];
        let central = draw.chance(0.6);
        let fall = look.light * draw.unit();
        let gain = draw.between(0.75, 1.25);
        let sharp = 20 + 60 * draw.below(3) as i32;
        let pixel = |n: usize| {
            let (x, y) = (n % size, n / size);
            let at = |x: usize, y: usize| self.height[y.min(size - 1) * size + x.min(size - 1)];
            let slope = [at(x + 1, y) - at(x.saturating_sub(1), y), at(x, y + 1) - at(x, y.saturating_sub(1))];
            let (u, v) = ((x as f32 - lamp[0]) / side, (y as f32 - lamp[1]) / side);
            let towards = if central { [-1.6 * u, -1.6 * v] } else { far };
            let steep = (1.0 + 0.25 * (slope[0] * slope[0] + slope[1] * slope[1])).sqrt();
            let lean = (towards[0] * towards[0] + towards[1] * towards[1] + 1.0).sqrt();
            let facing = (1.0 - 0.5 * (slope[0] * towards[0] + slope[1] * towards[1])) / (steep * lean);
            let shade = if look.relief > 0.1 { 0.25 + 0.9 * facing.max(0.0) } else { 1.0 };
            let dim = 1.0 - fall * if central { 2.2 * (u * u + v * v) } else { 0.7 * (far[0] * u + far[1] * v) };
            let glint = if self.gloss > 0.05 { self.gloss * facing.clamp(0.0, 1.0).powi(sharp) } else { 0.0 };
            self.albedo[n].map(|c| (c.max(0.0) * shade + glint) * gain * dim.max(0.05))
        };
        (0..size * size).map(pixel).collect()
    }
}

/// What a shape does to what is under it.
struct Paint {
    /// Added to the colour.
    tint: [f32; 3],
    /// Added to the height at the top, in quarter radii.
    lift: f32,
    /// Strength of a texture of its own.
    texture: f32,
}

fn draw_stretch(draw: &mut Draw) -> f32 {
    if draw.chance(0.3) { draw.between(0.35, 2.8) } else { 1.0 }
}

fn texture(draw: &mut Draw, size: usize) -> Vec<f32> {
    let grain = match draw.below(8) {
        0 => Grain::Cells,
        1 | 2 => Grain::Ridges,
        3 => Grain::Stripes,
        _ => Grain::Hills,
    };
    let (cell, octaves) = (draw.between(4.0, 28.0), 1 + draw.below(3));
    field(size, grain, cell, octaves, draw_stretch(draw), draw)
}

fn colour(draw: &mut Draw, coloured: bool) -> [f32; 3] {
    if coloured { draw.colour([0.05; 3], [0.95; 3]) } else { [draw.between(0.05, 0.9); 3] }
}

fn nudged(draw: &mut Draw, from: [f32; 3], by: f32) -> [f32; 3] {
    from.map(|c| (c + by * 0.6 * draw.bell()).clamp(0.02, 1.0))
}

fn nudged_like(draw: &mut Draw, from: [f32; 3], by: f32, coloured: bool) -> [f32; 3] {
    if coloured {
        return nudged(draw, from, by);
    }
    let step = signed(draw, by);
    from.map(|c| (c + step).clamp(0.02, 1.0))
}

/// Between half of `most` and `most`, up or down.
fn signed(draw: &mut Draw, most: f32) -> f32 {
    let value = most * draw.between(0.5, 1.0);
    if draw.chance(0.5) { value } else { -value }
}

/// The sector that a probe sees, with shadows along its rays.
fn fan(draw: &mut Draw, size: usize, light: &mut [[f32; 3]]) {
    let side = size as f32;
    let (apex, open) = ([side * draw.between(0.35, 0.65), -side * draw.between(0.02, 0.5)], draw.between(0.5, 1.4));
    let far = side * draw.between(1.0, 1.6);
    let whole = draw.chance(0.35);
    let shadow = [draw.between(-open, open), draw.between(0.0, 0.2), draw.between(0.2, 0.9)];
    for (n, pixel) in light.iter_mut().enumerate() {
        let (x, y) = ((n % size) as f32 - apex[0], (n / size) as f32 - apex[1]);
        let slant = x / y.max(1.0);
        let inside = whole || (slant.abs() < open && x * x + y * y < far * far);
        let dark = if (slant - shadow[0]).abs() < shadow[1] && y > shadow[2] * side { 0.3 } else { 1.0 };
        *pixel = if inside { pixel.map(|c| c * dark) } else { [0.01; 3] };
    }
}

/// Blur, speckle, noise, gamma and colour cast: from light to bytes.
fn developed(mut light: Vec<[f32; 3]>, size: usize, look: &Look, draw: &mut Draw) -> Picture {
    if look.speckle > 0.0 {
        let [along, across] = [draw.between(2.0, 3.5), draw.between(2.0, 6.0)];
        let grain = field(size, Grain::Hills, (along * across).sqrt(), 2, (across / along).sqrt(), draw);
        light.iter_mut().zip(&grain).for_each(|(p, g)| {
            let factor = (1.0 + 2.5 * look.speckle * (g - 0.5)).max(0.05);
            *p = p.map(|c| c * factor);
        });
    }
    let passes = if draw.chance(0.5) { draw.below(5) } else { 0 };
    (0..passes).for_each(|_| soften(&mut light, size));
    let gamma = draw.between(0.75, 1.3);
    let cast = if look.colour { draw.colour([0.85; 3], [1.15; 3]) } else { [1.0; 3] };
    let noise = look.noise * draw.unit();
    // A table for the power: it is the same curve for every pixel.
    let curve: Vec<f32> = (0..=1024).map(|n| (n as f32 / 1024.0).powf(gamma)).collect();
    let mut rgb = Vec::with_capacity(3 * light.len());
    for pixel in &light {
        let bytes = draw.bits().to_le_bytes().map(|byte| f32::from(byte) / 127.5 - 1.0);
        for c in 0..3 {
            let grain = noise * (bytes[3] + if look.colour { bytes[c] } else { bytes[0] });
            let value = curve[(pixel[c] * cast[c] * 1024.0).clamp(0.0, 1024.0) as usize] + grain;
            rgb.push((value * 255.0 + 0.5).clamp(0.0, 255.0) as u8);
        }
    }
    Picture { width: size, height: size, rgb }
}

/// The binomial filter 1-2-1 along both axes, in place.
fn soften(light: &mut [[f32; 3]], size: usize) {
    let blend = |a: [f32; 3], b: [f32; 3], c: [f32; 3]| std::array::from_fn(|n| 0.25 * (a[n] + c[n]) + 0.5 * b[n]);
    for row in light.chunks_exact_mut(size) {
        let mut before = row[0];
        for x in 0..size {
            let here = row[x];
            row[x] = blend(before, here, row[(x + 1).min(size - 1)]);
            before = here;
        }
    }
    let mut above: Vec<[f32; 3]> = light[..size].to_vec();
    for y in 0..size {
        for x in 0..size {
            let here = light[y * size + x];
            light[y * size + x] = blend(above[x], here, light[(y + 1).min(size - 1) * size + x]);
            above[x] = here;
        }
    }
}

/// Objects that are hardly seen are taken out, the others numbered 1, 2, ….
fn renumbered(objects: &[u8]) -> (Vec<u8>, u8) {
    let mut seen = [0usize; 256];
    objects.iter().for_each(|n| seen[*n as usize] += 1);
    let mut new = [0u8; 256];
    let mut count = 0;
    for (number, seen) in seen.iter().enumerate().skip(1) {
        if *seen >= SMALLEST {
            count += 1;
            new[number] = count;
        }
    }
    (objects.iter().map(|n| new[*n as usize]).collect(), count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scene_depends_on_its_seed_and_number_alone() {
        let (a, b) = (scene(1, 7, 96), scene(1, 7, 96));
        assert_eq!(a.picture.rgb, b.picture.rgb);
        assert_eq!(a.objects, b.objects);
        assert_ne!(a.picture.rgb, scene(1, 8, 96).picture.rgb);
        assert_ne!(a.picture.rgb, scene(2, 7, 96).picture.rgb);
    }

    #[test]
    fn objects_are_numbered_seen_and_told_from_what_is_around_them() {
        let (mut empty, mut told, mut all, mut styles) = (0, 0, 0, Vec::new());
        for index in 0..60 {
            let scene = scene(3, index, 128);
            empty += usize::from(scene.count == 0);
            if !styles.contains(&scene.style) {
                styles.push(scene.style);
            }
            for number in 1..=scene.count {
                let pixels: Vec<usize> = (0..scene.objects.len()).filter(|n| scene.objects[*n] == number).collect();
                assert!(pixels.len() >= SMALLEST);
                // Mean colour inside against a ring of ten pixels around it.
                let inside = |n: usize| scene.objects[n] == number;
                let ring = (0..scene.objects.len()).filter(|n| {
                    let (x, y) = ((n % 128) as i32, (n / 128) as i32);
                    let near = |dx: i32, dy: i32| {
                        let (x, y) = (x + dx, y + dy);
                        (0..128).contains(&x) && (0..128).contains(&y) && inside((y * 128 + x) as usize)
                    };
                    !inside(*n) && [(6, 0), (-6, 0), (0, 6), (0, -6)].iter().any(|(dx, dy)| near(*dx, *dy))
                });
                let (mut sums, mut counts) = ([0f64; 2], [0f64; 2]);
                for (side, n) in pixels.iter().map(|n| (0, *n)).chain(ring.map(|n| (1, n))) {
                    sums[side] += scene.picture.rgb[3 * n..3 * n + 3].iter().map(|v| f64::from(*v)).sum::<f64>() / 3.0;
                    counts[side] += 1.0;
                }
                all += 1;
                told += usize::from((sums[0] / counts[0] - sums[1] / counts[1].max(1.0)).abs() > 3.0);
            }
        }
        assert_eq!(styles.len(), STYLES.len());
        assert!(empty <= 2, "{empty} scenes without an object");
        assert!(told * 10 > all * 7, "{told} of {all} objects differ from their surroundings in brightness alone");
    }
}
