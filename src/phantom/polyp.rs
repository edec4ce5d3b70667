//! Pictures that look like colonoscopy, with the exact mask of the polyps in them.
//!
//! A picture is a scene seen by a camera: nothing is pasted. Sizes follow what clinical sets show (half a percent to
//! half of the picture, median about a tenth); many polyps have nearly the colour of the wall they grow on, and
//! bulges, folds and debris are there to be mistaken for one.

use super::camera::Camera;
use super::draw::{Draw, Purpose};
use super::finish::{Frame, develop};
use super::growth::{Growth, Shape, Site};
use super::scene::{Material, Scene, Tube};
use super::shade::Tissue;
use super::vector::{Vec3, mix};
use crate::image::{Grid, Labels, Picture};

/// Smallest and largest part of a picture that its mask covers.
pub const AREA: [f32; 2] = [0.005, 0.5];

/// Pictures in consecutive sequences; the pattern repeats.
const SEQUENCES: [u64; 8] = [1, 2, 1, 3, 1, 1, 2, 1];

/// Widths and heights, the middle ones more often.
const SIZES: [[usize; 2]; 8] =
    [[256, 192], [272, 208], [288, 224], [288, 224], [288, 224], [304, 240], [304, 224], [320, 256]];

/// Quantiles of the square root of the part of a picture that its polyps shall cover: median a tenth.
const SIDES: [(f32, f32); 5] = [(0.0, 0.08), (0.06, 0.15), (0.5, 0.32), (0.95, 0.6), (1.0, 0.69)];

/// Pixels between the rays of a quick look.
const GLANCE: usize = 6;

/// Which sequence picture `index` belongs to, and which of its frames it is.
pub fn sequence(index: u64) -> (u64, u64) {
    let pattern: u64 = SEQUENCES.iter().sum();
    let (mut group, mut frame) = (index / pattern * SEQUENCES.len() as u64, index % pattern);
    for length in SEQUENCES {
        if frame < length {
            break;
        }
        frame -= length;
        group += 1;
    }
    (group, frame)
}

/// A picture and its mask (1 where a polyp is seen); they depend on `seed` and `index` alone. Pictures of one
/// [`sequence`] show the same place from slightly different views.
pub fn generate(seed: u64, index: u64) -> (Picture, Labels) {
    let (group, frame) = sequence(index);
    let mut draw = Draw::new(seed, Purpose::Scene, group);
    let place = Place::new(&mut draw);
    let tissue = Tissue::new(place.footprint, &mut draw);
    let mut draw = Draw::new(seed, Purpose::Take, index);
    let camera = if frame == 0 { place.camera } else { place.other_view(&mut draw) };
    let view = camera.view(&place.scene, |x, y| place.frame.shows(x, y));
    let light = tissue.light(&place.scene, &camera, &view, &mut draw);
    let voxels = view.materials.iter().map(|material| u16::from(*material == Material::Polyp)).collect();
    let mask = Labels { grid: Grid::picture(camera.width, camera.height), voxels };
    (develop(light, &place.frame, &mut draw), mask)
}

/// What a scene shall show.
#[derive(Debug, Clone, Copy)]
struct Wish {
    /// The part of the picture that its polyps cover.
    area: f32,
    shape: Shape,
    n_polyps: usize,
}

impl Wish {
    fn new(draw: &mut Draw) -> Wish {
        let shape = match draw.unit() {
            u if u < 0.38 => Shape::Sessile,
            u if u < 0.66 => Shape::Flat,
            u if u < 0.86 => Shape::Lobulated,
            _ => Shape::Pedunculated,
        };
        let u = draw.unit();
        let above = SIDES.iter().position(|(at, _)| u < *at).unwrap_or(SIDES.len() - 1);
        let ((from, low), (to, high)) = (SIDES[above - 1], SIDES[above]);
        let side = mix(low, high, (u - from) / (to - from));
        Wish { area: side * side, shape, n_polyps: if draw.chance(0.12) { 2 } else { 1 } }
    }
}

/// What the pictures of a sequence share.
struct Place {
    scene: Scene,
    frame: Frame,
    /// Of the first picture.
    camera: Camera,
    /// The part of the first picture that shows polyps.
    area: f32,
    /// Width of a pixel on the first polyp.
    footprint: f32,
}

/// A point on the wall that the camera sees.
#[derive(Debug, Clone, Copy)]
struct Spot {
    foot: Vec3,
    distance: f32,
}

impl Place {
    fn new(draw: &mut Draw) -> Place {
        let [width, height] = SIZES[draw.below(SIZES.len())];
        let frame = Frame::new(width, height, draw);
        let empty = |draw: &mut Draw| {
            let camera = Camera::new(width, height, draw);
            let scene = Scene { tube: Tube::new(draw), growths: Vec::new() };
            Place { scene, frame: frame.clone(), camera, area: 0.0, footprint: 0.01 }
        };
        // The wish is kept for some tries, or large polyps, which fail more often, would become rare.
        for _ in 0..30 {
            let wish = Wish::new(draw);
            for _ in 0..12 {
                let mut place = empty(draw);
                if place.furnish(wish, draw).is_some() {
                    return place;
                }
            }
        }
        // Half of the tries succeed: nobody will ever see this one.
        empty(draw)
    }

    /// Lets things grow as wished, or says that it does not work out here.
    fn furnish(&mut self, wish: Wish, draw: &mut Draw) -> Option<()> {
        if self.scene.distance(self.camera.position) < 0.15 {
            return None;
        }
        for _ in 0..draw.below(3) {
            let Spot { foot, distance } = self.spot(draw)?;
            let size = (distance * draw.between(0.1, 0.45)).min(0.45);
            let bulge = Growth::bulge(Site { foot, normal: self.scene.tube.normal(foot), size }, draw);
            self.scene.growths.push(bulge);
        }
        // Large polyps are seen when they are near.
        let mut spot = self.spot(draw)?;
        for _ in 0..(wish.area * 12.0) as usize {
            let other = self.spot(draw)?;
            spot = if other.distance < spot.distance { other } else { spot };
        }
        self.footprint = self.camera.pixel() * spot.distance;
        let share = if wish.n_polyps == 1 { 1.0 } else { draw.between(0.6, 0.85) };
        self.grow(spot, wish.area * share, wish.shape, draw)?;
        for _ in 1..wish.n_polyps {
            let spot = self.spot(draw)?;
            self.grow(spot, wish.area, Shape::Sessile, draw)?;
        }
        if draw.chance(0.3) {
            for _ in 0..1 + draw.below(6) {
                let Spot { foot, distance } = self.spot(draw)?;
                // On a polyp it would leave holes in the mask that nobody would draw.
                if self.scene.material(foot) != Material::Polyp {
                    let site =
                        Site { foot, normal: self.scene.tube.normal(foot), size: distance * draw.between(0.02, 0.09) };
                    self.scene.growths.push(Growth::debris(site, draw));
                }
            }
        }
        self.area = self.seen(&self.camera);
        self.fits(&self.camera, self.area).then_some(())
    }

    /// Adds a polyp whose size is corrected until all polyps together cover `area`.
    fn grow(&mut self, Spot { foot, distance }: Spot, area: f32, shape: Shape, draw: &mut Draw) -> Option<()> {
        let normal = self.scene.tube.normal(foot);
        let missing = (area - self.seen(&self.camera)).max(0.3 * AREA[0]);
        let pixels = missing * (self.camera.width * self.camera.height) as f32;
        let mut size = (pixels / 3.1).sqrt() * self.camera.pixel() * distance;
        for _ in 0..5 {
            size = size.clamp(0.02, 0.65);
            // The same numbers each time: the same polyp, larger or smaller.
            let mut after = draw.clone();
            self.scene.growths.push(Growth::polyp(shape, Site { foot, normal, size }, &mut after));
            let found = self.seen(&self.camera);
            if found > 0.75 * area && found < 1.33 * area {
                *draw = after;
                return Some(());
            }
            self.scene.growths.pop();
            size *= (area / found.max(0.1 * area)).sqrt().clamp(0.5, 2.0);
        }
        None
    }

    /// A point of the wall in view, or `None` when hardly anything else than the dark is.
    fn spot(&self, draw: &mut Draw) -> Option<Spot> {
        for _ in 0..20 {
            // The middle is more likely: that is where the endoscope is held.
            let mut middle = |length: usize| (draw.below(length) + draw.below(length)) / 2;
            let (x, y) = (middle(self.camera.width), middle(self.camera.height));
            let foot = self.camera.hit(&self.scene, x as f32 + 0.5, y as f32 + 0.5);
            if self.frame.shows(x, y) && self.scene.material(foot) != Material::Lumen {
                return Some(Spot { foot, distance: (foot - self.camera.position).length() });
            }
        }
        None
    }

    /// Another view, moved as far from the first as still shows about as much of the polyps.
    fn other_view(&self, draw: &mut Draw) -> Camera {
        for amount in [0.12, 0.06, 0.03, 0.015] {
            let camera = self.camera.moved(amount, draw);
            let area = self.seen(&camera);
            if area > 0.5 * self.area && area < 2.0 * self.area && self.fits(&camera, area) {
                return camera;
            }
        }
        self.camera
    }

    /// The part of the picture that shows polyps, by a quick look.
    fn seen(&self, camera: &Camera) -> f32 {
        camera.polyp_share(&self.scene, GLANCE, |x, y| self.frame.shows(x, y))
    }

    /// Whether the camera touches nothing and the polyps are neither too small nor too large, with a margin because
    /// the quick look counts few rays.
    fn fits(&self, camera: &Camera, area: f32) -> bool {
        (1.3 * AREA[0]..0.95 * AREA[1]).contains(&area) && self.scene.distance(camera.position) > 0.08
    }
}
