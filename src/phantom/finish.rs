//! From light to the saved picture: exposure, lens and sensor, and the frame that the processor of an endoscope draws.

use super::draw::Draw;
use super::vector::{mix, smoothstep};
use crate::image::Picture;

/// What of the sensor's rectangle is shown, and what is drawn beside it. The same throughout a sequence.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    width: usize,
    height: usize,
    /// Length of the cut corners, left and right, in heights.
    cut: [f32; 2],
    /// Black margin, left and right, in widths.
    margin: [f32; 2],
    /// Radius in half diagonals beyond which nothing is shown.
    round: f32,
    /// A box in the lower left corner: width and height as parts of the picture.
    inset: Option<[f32; 2]>,
    /// Rows of small print at the left.
    print: Vec<(usize, u32, u32)>,
}

impl Frame {
    pub(super) fn new(width: usize, height: usize, draw: &mut Draw) -> Frame {
        let corner = |draw: &mut Draw| draw.between(0.1, 0.3);
        let (cut, round) = match draw.unit() {
            u if u < 0.6 => {
                let side = corner(draw);
                ([side, side], 2.0)
            }
            u if u < 0.75 => ([0.0, corner(draw)], 2.0),
            u if u < 0.9 => ([0.0, 0.0], draw.between(0.8, 0.97)),
            _ => ([0.0, 0.0], 2.0),
        };
        let margin = if draw.chance(0.5) { [draw.between(0.0, 0.08), draw.between(0.0, 0.05)] } else { [0.0, 0.0] };
        let inset = draw.chance(0.3).then(|| [draw.between(0.2, 0.34), draw.between(0.2, 0.32)]);
        let mut print = Vec::new();
        if draw.chance(0.35) {
            let mut row = (height as f32 * draw.between(0.05, 0.6)) as usize;
            for _ in 0..2 + draw.below(4) {
                print.push((row, draw.bits(), draw.bits()));
                row += 6 + draw.below(5);
            }
        }
        Frame { width, height, cut, margin, round, inset, print }
    }

    /// Whether tissue is shown at a pixel.
    pub(super) fn shows(&self, x: usize, y: usize) -> bool {
        let (w, h) = (self.width as f32, self.height as f32);
        let (x, y) = (x as f32 + 0.5, y as f32 + 0.5);
        let (left, right) = (x - self.margin[0] * w, (1.0 - self.margin[1]) * w - x);
        let edge = y.min(h - y);
        let (u, v) = (2.0 * x / w - 1.0, 2.0 * y / h - 1.0);
        left > 0.0
            && right > 0.0
            && left + edge > self.cut[0] * h
            && right + edge > self.cut[1] * h
            && u * u + v * v < 2.0 * self.round * self.round
            && self.inset.is_none_or(|[iw, ih]| x > iw * w || y < (1.0 - ih) * h)
    }

    /// Letters of 3 × 5 pixels made of random bits: looks like a date, says nothing.
    fn draw_print(&self, rgb: &mut [u8]) {
        for (row, letters, length) in &self.print {
            let mut bits = *letters | 1;
            for letter in 0..3 + (*length % 8) as usize {
                bits = bits.wrapping_mul(0x9E37_79B1).rotate_left(7);
                for n in 0..15 {
                    let (x, y) = (3 + 4 * letter + n % 3, row + n / 3);
                    if bits >> n & 1 == 1 && x < self.width && y < self.height {
                        rgb[3 * (y * self.width + x)..][..3].copy_from_slice(&[206, 208, 204]);
                    }
                }
            }
        }
    }
}

/// Develops the light of a scene into a picture.
pub(super) fn develop(mut light: Vec<[f32; 3]>, frame: &Frame, draw: &mut Draw) -> Picture {
    let (width, height) = (frame.width, frame.height);
    bubbles(&mut light, width, height, draw);
    expose(&mut light, frame, draw);
    if draw.chance(0.25) {
        light = smeared(&light, width, height, draw);
    }
    // The rays are points; the sensor's cells are not. Defocus is more of the same.
    let passes = 1 + if draw.chance(0.25) { 1 + draw.below(4) } else { 0 };
    for _ in 0..passes {
        light = softened(&light, width, height);
    }
    let sharpen = if draw.chance(0.7) { draw.between(0.2, 1.6) } else { 0.0 };
    if sharpen > 0.05 {
        let soft = softened(&light, width, height);
        for (pixel, soft) in light.iter_mut().zip(soft) {
            *pixel = std::array::from_fn(|n| pixel[n] + sharpen * (pixel[n] - soft[n]));
        }
    }
    if draw.chance(0.15) {
        light = fringed(&light, width, height, draw);
    }
    let mut picture = quantised(&light, frame, draw);
    frame.draw_print(&mut picture.rgb);
    picture
}

/// Sets the gain by what is shown, as the automatic exposure does, then compresses highlights; square roots for gamma.
fn expose(light: &mut [[f32; 3]], frame: &Frame, draw: &mut Draw) {
    let (width, height) = (frame.width, frame.height);
    let shown = (0..light.len()).step_by(13).filter(|n| frame.shows(n % width, n / width));
    let mut greys: Vec<f32> = shown.map(|n| 0.5 * light[n][0] + 0.5 * light[n][1]).collect();
    greys.sort_by(f32::total_cmp);
    let median = greys.get(greys.len() / 2).copied().unwrap_or(1.0);
    let bright = greys.get(greys.len() * 9 / 10).copied().unwrap_or(1.0);
    let gain = draw.between(0.28, 0.56) / (0.65 * median + 0.35 * bright).max(1e-4);
    let white: [f32; 3] = [draw.between(0.92, 1.08), draw.between(0.94, 1.06), draw.between(0.85, 1.15)];
    let vignette = draw.between(0.0, 0.5);
    let colourful = draw.between(1.1, 1.7);
    let veil = draw.between(0.0, 0.02);
    let centre = [draw.between(-0.25, 0.25), draw.between(-0.25, 0.25)];
    for (n, pixel) in light.iter_mut().enumerate() {
        let u = 2.0 * (n % width) as f32 / width as f32 - 1.0 - centre[0];
        let v = 2.0 * (n / width) as f32 / height as f32 - 1.0 - centre[1];
        let fall = 1.0 - vignette * smoothstep(0.2, 2.2, u * u + v * v);
        let film: [f32; 3] = std::array::from_fn(|c| {
            let x = pixel[c] * gain * white[c] * fall + veil;
            (x * (1.0 + x / 4.0) / (1.0 + x)).sqrt() * 1.18
        });
        // The curve takes colour away; processors of endoscopes give it back.
        let grey = 0.3 * film[0] + 0.59 * film[1] + 0.11 * film[2];
        *pixel = film.map(|c| (grey + colourful * (c - grey)).max(0.0));
    }
}

/// Rings of foam, here and there.
fn bubbles(light: &mut [[f32; 3]], width: usize, height: usize, draw: &mut Draw) {
    if !draw.chance(0.25) {
        return;
    }
    let (cx, cy) = (draw.between(0.0, width as f32), draw.between(0.0, height as f32));
    for _ in 0..3 + draw.below(22) {
        let (x, y) = (cx + 22.0 * draw.bell(), cy + 18.0 * draw.bell());
        let radius = draw.between(1.5, 6.0);
        let reach = radius as i32 + 2;
        for dy in -reach..=reach {
            for dx in -reach..=reach {
                let (px, py) = (x as i32 + dx, y as i32 + dy);
                if px < 0 || py < 0 || px >= width as i32 || py >= height as i32 {
                    continue;
                }
                let (u, v) = ((px as f32 - x) / radius, (py as f32 - y) / radius);
                let r = (u * u + v * v).sqrt();
                let rim = smoothstep(0.7, 0.95, r) * smoothstep(1.25, 1.0, r);
                let glint = smoothstep(0.35, 0.1, ((u + 0.4) * (u + 0.4) + (v + 0.4) * (v + 0.4)).sqrt());
                let pixel = &mut light[py as usize * width + px as usize];
                // Relative to what lies under it: foam is lit by the same lamp.
                *pixel = pixel.map(|c| c * (1.0 + 0.7 * rim) + glint * (0.6 * c + 0.2));
            }
        }
    }
}

/// Motion blur: the mean along a short line.
fn smeared(light: &[[f32; 3]], width: usize, height: usize, draw: &mut Draw) -> Vec<[f32; 3]> {
    let (dx, dy) = (draw.between(-3.5, 3.5), draw.between(-3.5, 3.5));
    let mut out = vec![[0.0; 3]; light.len()];
    for step in -2..=2 {
        let (sx, sy) = ((dx * step as f32 * 0.5) as i32, (dy * step as f32 * 0.5) as i32);
        for y in 0..height {
            let row = (y as i32 + sy).clamp(0, height as i32 - 1) as usize * width;
            for x in 0..width {
                let from = light[row + (x as i32 + sx).clamp(0, width as i32 - 1) as usize];
                let to = &mut out[y * width + x];
                *to = std::array::from_fn(|n| to[n] + 0.2 * from[n]);
            }
        }
    }
    out
}

/// The binomial filter 1-2-1 along both axes.
fn softened(light: &[[f32; 3]], width: usize, height: usize) -> Vec<[f32; 3]> {
    let blend = |a: [f32; 3], b: [f32; 3], c: [f32; 3]| std::array::from_fn(|n| 0.25 * (a[n] + c[n]) + 0.5 * b[n]);
    let mut rows = Vec::with_capacity(light.len());
    for row in light.chunks_exact(width) {
        rows.extend((0..width).map(|x| blend(row[x.saturating_sub(1)], row[x], row[(x + 1).min(width - 1)])));
    }
    let mut out: Vec<[f32; 3]> = Vec::with_capacity(light.len());
    for y in 0..height {
        let row = |y: usize| &rows[y * width..(y + 1) * width];
        let (above, here, below) = (row(y.saturating_sub(1)), row(y), row((y + 1).min(height - 1)));
        out.extend((0..width).map(|x| blend(above[x], here[x], below[x])));
    }
    out
}

/// Endoscopes that take red, green and blue one after another show coloured fringes when they move.
fn fringed(light: &[[f32; 3]], width: usize, height: usize, draw: &mut Draw) -> Vec<[f32; 3]> {
    let (dx, dy) = (draw.below(7) as i32 - 3, draw.below(5) as i32 - 2);
    let from = |x: i32, y: i32| y.clamp(0, height as i32 - 1) as usize * width + x.clamp(0, width as i32 - 1) as usize;
    let pixels = (0..light.len()).map(|n| {
        let (x, y) = ((n % width) as i32, (n / width) as i32);
        [light[from(x + dx, y + dy)][0], light[n][1], light[from(x - dx, y - dy)][2]]
    });
    pixels.collect()
}

/// Frame, noise, and colour at half the resolution in coarse steps, as JPEG stores it.
fn quantised(light: &[[f32; 3]], frame: &Frame, draw: &mut Draw) -> Picture {
    let (width, height) = (frame.width, frame.height);
    let noise = draw.between(0.5, 5.5);
    let coarse = draw.between(1.0, 7.0);
    let black = draw.between(2.0, 14.0);
    let mut luma = Vec::with_capacity(light.len());
    for (n, pixel) in light.iter().enumerate() {
        let bits = draw.bits().to_le_bytes().map(|byte| f32::from(byte) / 127.5 - 1.0);
        let own = if frame.shows(n % width, n / width) {
            let own = 255.0 * (0.3 * pixel[0] + 0.59 * pixel[1] + 0.11 * pixel[2]);
            own + noise * (bits[0] + bits[1]) * mix(1.3, 0.7, (own / 255.0).clamp(0.0, 1.0))
        } else {
            black + 0.4 * noise * bits[0]
        };
        luma.push(own);
    }
    let step = |c: f32| {
        let steps = c / coarse + 512.5;
        (steps as i32 - 512) as f32 * coarse
    };
    let mut rgb = vec![0; 3 * light.len()];
    for top in (0..height).step_by(2) {
        for left in (0..width).step_by(2) {
            let cells = [(left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)];
            let cells = cells.map(|(x, y)| y.min(height - 1) * width + x.min(width - 1));
            let (mut blue, mut red) = (0.0, 0.0);
            for n in cells.iter().filter(|n| frame.shows(*n % width, *n / width)) {
                let [r, g, b] = light[*n];
                let own = 0.3 * r + 0.59 * g + 0.11 * b;
                blue += 63.75 * (b - own).clamp(-1.0, 1.0);
                red += 63.75 * (r - own).clamp(-1.0, 1.0);
            }
            let (blue, red) = (step(blue), step(red));
            for n in cells {
                let y = luma[n];
                let channels = [y + red, y - (0.3 * red + 0.11 * blue) / 0.59, y + blue];
                for (c, value) in channels.into_iter().enumerate() {
                    rgb[3 * n + c] = (value + 0.5).clamp(0.0, 255.0) as u8;
                }
            }
        }
    }
    Picture { width, height, rgb }
}
