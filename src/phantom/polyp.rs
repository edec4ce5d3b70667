//! Pictures that look like colonoscopy, with the exact mask of the polyps in them.
//!
//! A picture is a scene seen by a camera: nothing is pasted. Sizes follow what clinical sets show (half a percent to
//! half of the picture, median about a tenth); half of the polyps have nearly the colour of the wall they grow on, and
//! bulges, folds and debris are there to be mistaken for one.

use super::camera::Camera;
use super::draw::{Draw, Purpose};
use super::finish::{Frame, develop};
use super::growth::{Growth, Shape, Site};
use super::scene::{Material, Scene, Tube};
use super::shade::Tissue;
use super::vector::Vec3;
use crate::image::{Grid, Labels, Picture};

/// Smallest and largest part of a picture that its mask covers.
pub const AREA: [f32; 2] = [0.005, 0.5];

/// Pictures in consecutive sequences; the pattern repeats.
const SEQUENCES: [u64; 8] = [1, 2, 1, 3, 1, 1, 2, 1];

/// Widths and heights, the middle ones more often.
const SIZES: [[usize; 2]; 8] =
    [[256, 192], [272, 208], [288, 224], [288, 224], [288, 224], [304, 240], [304, 224], [320, 256]];

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
    let place = Place::new(&mut Draw::new(seed, Purpose::Scene, group));
    let mut draw = Draw::new(seed, Purpose::Take, index);
    let camera = place.view(if frame == 0 { 0.0 } else { 0.12 }, &mut draw);
    let view = camera.view(&place.scene, |x, y| place.frame.shows(x, y));
    let light = place.tissue.light(&place.scene, &camera, &view, &mut draw);
    let width = camera.width;
    let seen = |(n, material): (usize, &Material)| {
        u16::from(*material == Material::Polyp && place.frame.shows(n % width, n / width))
    };
    let voxels = view.materials.iter().enumerate().map(seen).collect();
    (develop(light, &place.frame, &mut draw), Labels { grid: Grid::picture(width, camera.height), voxels })
}

/// What the pictures of a sequence share.
struct Place {
    scene: Scene,
    camera: Camera,
    frame: Frame,
    tissue: Tissue,
}

/// Pixels between the rays of a quick look.
const GLANCE: usize = 6;

impl Place {
    fn new(draw: &mut Draw) -> Place {
        let [width, height] = SIZES[draw.below(SIZES.len())];
        let frame = Frame::new(width, height, draw);
        // The wish is kept for some tries, or large polyps, which fail more often, would become rare.
        for _ in 0..20 {
            let wish = Wish::new(draw);
            for _ in 0..12 {
                if let Some((scene, camera, footprint)) = try_place(width, height, &frame, wish, draw) {
                    return Place { scene, camera, frame, tissue: Tissue::new(footprint, draw) };
                }
            }
        }
        // Half of the tries succeed, so 240 failures in a row are not to be expected in any lifetime.
        let scene = Scene { tube: Tube::new(draw), growths: Vec::new() };
        Place { scene, camera: Camera::new(width, height, draw), frame, tissue: Tissue::new(0.01, draw) }
    }

    /// The camera of one picture, moved as far from the first as still shows the polyp in a size within bounds.
    fn view(&self, mut amount: f32, draw: &mut Draw) -> Camera {
        for _ in 0..4 {
            if amount == 0.0 {
                break;
            }
            let camera = self.camera.moved(amount, draw);
            if self.scene.distance(camera.position) > 0.08 && in_bounds(seen(&self.scene, &camera, &self.frame)) {
                return camera;
            }
            amount *= 0.5;
        }
        self.camera
    }
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
        Wish { area: wanted_area(draw), shape, n_polyps: if draw.chance(0.12) { 2 } else { 1 } }
    }
}

/// The part of the picture that the polyps shall cover: piecewise linear in its square root, median a tenth.
fn wanted_area(draw: &mut Draw) -> f32 {
    let u = draw.unit();
    let side = if u < 0.5 { 0.09 + (0.316 - 0.09) * (u / 0.5) } else { 0.316 + (0.67 - 0.316) * (u - 0.5) / 0.5 };
    side * side
}

fn seen(scene: &Scene, camera: &Camera, frame: &Frame) -> f32 {
    camera.glance(scene, GLANCE, |x, y| frame.shows(x, y)).polyp()
}

/// With a margin, because the quick look counts few rays.
fn in_bounds(area: f32) -> bool {
    (1.3 * AREA[0]..0.95 * AREA[1]).contains(&area)
}

/// A tube, a camera in it and polyps of the wanted size in its view, or `None` when this draw does not work out.
/// Also the width of a pixel on the first polyp.
fn try_place(
    width: usize,
    height: usize,
    frame: &Frame,
    Wish { area, shape, n_polyps }: Wish,
    draw: &mut Draw,
) -> Option<(Scene, Camera, f32)> {
    let mut scene = Scene { tube: Tube::new(draw), growths: Vec::new() };
    let camera = Camera::new(width, height, draw);
    if scene.distance(camera.position) < 0.15 {
        return None;
    }
    let spot = |scene: &Scene, draw: &mut Draw| {
        for _ in 0..20 {
            // The middle is more likely: that is where the endoscope is held.
            let mut middle = |length: usize| (draw.below(length) + draw.below(length)) / 2;
            let (x, y) = (middle(width), middle(height));
            let point = camera.hit(scene, x as f32 + 0.5, y as f32 + 0.5);
            if frame.shows(x, y) && scene.material(point) != Material::Lumen {
                return Some((point, (point - camera.position).length()));
            }
        }
        None
    };
    for _ in 0..draw.below(4) {
        let (foot, distance) = spot(&scene, draw)?;
        let site = Site { foot, normal: scene.tube.normal(foot), size: (distance * draw.between(0.1, 0.45)).min(0.45) };
        let bulge = Growth::bulge(site, draw);
        scene.growths.push(bulge);
    }
    // Large polyps are seen when they are near.
    let mut foot = spot(&scene, draw)?;
    for _ in 0..(area * 12.0) as usize {
        let other = spot(&scene, draw)?;
        if other.1 < foot.1 {
            foot = other;
        }
    }
    let (foot, distance) = foot;
    let share = if n_polyps == 1 { 1.0 } else { draw.between(0.6, 0.85) };
    sized(&mut scene, &camera, frame, foot, distance, area * share, shape, draw)?;
    if n_polyps > 1 {
        let (foot, distance) = spot(&scene, draw)?;
        sized(&mut scene, &camera, frame, foot, distance, area, Shape::Sessile, draw)?;
    }
    if draw.chance(0.3) {
        for _ in 0..1 + draw.below(6) {
            let (foot, distance) = spot(&scene, draw)?;
            let size = distance * draw.between(0.02, 0.09);
            scene.growths.push(Growth::debris(Site { foot, normal: scene.tube.normal(foot), size }, draw));
        }
    }
    let final_area = seen(&scene, &camera, frame);
    let footprint = camera.pixel() * distance;
    (scene.distance(camera.position) > 0.1 && in_bounds(final_area)).then_some((scene, camera, footprint))
}

/// Adds a polyp whose size is corrected until all polyps together cover `area`.
#[expect(clippy::too_many_arguments, reason = "where, how large and what shape")]
fn sized(
    scene: &mut Scene,
    camera: &Camera,
    frame: &Frame,
    foot: Vec3,
    distance: f32,
    area: f32,
    shape: Shape,
    rest: &mut Draw,
) -> Option<()> {
    let normal = scene.tube.normal(foot);
    let already = seen(scene, camera, frame);
    let pixels = (area - already).max(0.3 * AREA[0]) * (camera.width * camera.height) as f32;
    let mut size = (pixels / 3.1).sqrt() * camera.pixel() * distance;
    let proportions = rest.clone();
    for _ in 0..5 {
        size = size.clamp(0.02, 0.65);
        let mut draw = proportions.clone();
        scene.growths.push(Growth::polyp(shape, Site { foot, normal, size }, &mut draw));
        let found = seen(scene, camera, frame);
        if found > 0.75 * area && found < 1.33 * area {
            *rest = draw;
            return Some(());
        }
        scene.growths.pop();
        size *= (area / found.max(0.1 * area)).sqrt().clamp(0.5, 2.0);
    }
    None
}
