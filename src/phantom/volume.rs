//! Abdomens as CT or MR would show them: body, spine, ribs, lungs, bowel, and three organs to be found.
//!
//! Anatomy lies in the patient's space and is sampled wherever the grid's affine puts a voxel, so that flipped, permuted
//! and oblique files show the same patient: the liver is on the right however the file is stored.

use super::draw::{Draw, Purpose};
use super::noise::Noise;
use super::vector::{Vec3, mix, vec3};
use crate::image::{Grid, Labels, Volume};

/// Names of the classes.
pub const CLASSES: [(u16, &str); 3] = [(LIVER, "liver"), (KIDNEY, "kidney"), (SPLEEN, "spleen")];

const LIVER: u16 = 1;
const KIDNEY: u16 = 2;
const SPLEEN: u16 = 3;

/// A volume and its labels (see [`CLASSES`]); they depend on `seed` and `index` alone. Half of the volumes are CT in
/// Hounsfield units, half MR in arbitrary ones. Voxels are whole numbers that fit 16 bits.
pub fn generate(seed: u64, index: u64) -> (Volume, Labels) {
    let mut draw = Draw::new(seed, Purpose::Volume, index);
    let (grid, centre) = grid(&mut draw);
    let patient = Patient::new(&mut draw);
    let [ni, nj, _] = grid.shape;
    let mut tissues = Vec::with_capacity(grid.len());
    let mut places = Vec::with_capacity(grid.len());
    for n in 0..grid.len() {
        let mm = grid.to_mm([(n % ni) as f64, (n / ni % nj) as f64, (n / (ni * nj)) as f64]);
        let p = vec3((mm[0] - centre[0]) as f32, (mm[1] - centre[1]) as f32, (mm[2] - centre[2]) as f32);
        tissues.push(patient.tissue(p));
        places.push(p);
    }
    let voxels = if draw.chance(0.5) {
        hounsfield(&tissues, &places, &grid, &patient.noise, &mut draw)
    } else {
        resonance(&tissues, &places, &grid, &patient.noise, &mut draw)
    };
    let labels = tissues.iter().map(|tissue| tissue.label()).collect();
    (Volume { grid: grid.clone(), voxels }, Labels { grid, voxels: labels })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tissue {
    Air,
    Lung,
    Gas,
    Fat,
    Muscle,
    Bowel,
    Marrow,
    Bone,
    Blood,
    Fluid,
    Liver,
    Kidney,
    Spleen,
    Table,
}

impl Tissue {
    fn label(self) -> u16 {
        match self {
            Tissue::Liver => LIVER,
            Tissue::Kidney => KIDNEY,
            Tissue::Spleen => SPLEEN,
            _ => 0,
        }
    }
}

/// A grid of about 64 × 64 × 24 voxels, and where in its space the patient's middle is.
fn grid(draw: &mut Draw) -> (Grid, [f64; 3]) {
    let plane = 2 * (29 + draw.below(7));
    let sizes = [plane, plane, 20 + draw.below(9)];
    let in_plane = f64::from(draw.between(330.0, 430.0)) / plane as f64;
    // Rounded to a tenth, as scanners do.
    let round = |mm: f64| (mm * 10.0).round() / 10.0;
    let spacings = [round(in_plane), round(in_plane), round(f64::from(draw.between(8.5, 11.0)))];
    // Directions of the patient's axes, turned a little in half of the volumes.
    let lean = if draw.chance(0.5) { draw.between(0.03, 0.25) } else { 0.0 };
    let mut nudge = |axis: [f64; 3]| axis.map(|c| c + f64::from(lean * draw.between(-1.0, 1.0)));
    let x = unit(nudge([1.0, 0.0, 0.0]));
    let y = nudge([0.0, 1.0, 0.0]);
    let along = dot(x, y);
    let y = unit(std::array::from_fn(|n| y[n] - along * x[n]));
    let z = [x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]];
    let directions = [x, y, z];
    // Which of the patient's axes each file axis follows: mostly axial slices, sometimes coronal or sagittal storage.
    let order = [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 2, 1], [1, 2, 0], [2, 0, 1]][draw.below(7)];
    let mut grid = Grid { shape: [1; 3], spacing_mm: [1.0; 3], affine: [[0.0; 4]; 4] };
    for (n, axis) in order.into_iter().enumerate() {
        let sign = if draw.chance(0.5) { 1.0 } else { -1.0 };
        grid.shape[n] = sizes[axis];
        grid.spacing_mm[n] = spacings[axis];
        for (row, value) in directions[axis].into_iter().enumerate() {
            // Headers hold 32 bits: what is written is read back as it was.
            grid.affine[row][n] = f64::from((sign * spacings[axis] * value) as f32);
        }
    }
    grid.affine[3][3] = 1.0;
    let middle = grid.to_mm(grid.shape.map(|n| (n as f64 - 1.0) / 2.0));
    let mut centre = [0.0; 3];
    for row in 0..3 {
        let offset = f64::from(draw.between(-60.0, 60.0));
        grid.affine[row][3] = f64::from((offset - middle[row]) as f32);
        // No two scans begin at the same height, and few have the patient in their middle.
        let away = if row == 2 { 50.0 } else { 30.0 };
        centre[row] = offset + f64::from(draw.between(-away, away));
    }
    (grid, centre)
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn unit(v: [f64; 3]) -> [f64; 3] {
    let length = dot(v, v).sqrt();
    v.map(|c| c / length)
}

/// A ball that is stretched along the patient's axes: centre and radii in millimetres.
#[derive(Debug, Clone, Copy)]
struct Blob {
    centre: Vec3,
    radii: Vec3,
}

impl Blob {
    fn new(centre: [f32; 3], radii: [f32; 3], draw: &mut Draw) -> Blob {
        let mut near = |c: f32| c + draw.between(-8.0, 8.0);
        let centre = vec3(near(centre[0]), near(centre[1]), near(centre[2]));
        let mut about = |r: f32| r * draw.between(0.82, 1.18);
        Blob { centre, radii: vec3(about(radii[0]), about(radii[1]), about(radii[2])) }
    }

    /// Below 1 inside.
    fn depth(&self, p: Vec3) -> f32 {
        let v = p - self.centre;
        let v = vec3(v.x / self.radii.x, v.y / self.radii.y, v.z / self.radii.z);
        v.dot(v)
    }
}

/// Anatomy in millimetres: x to the patient's right, y to the front, z to the head.
struct Patient {
    noise: Noise,
    /// Half width and half depth of the trunk, and how thick the fat under the skin is.
    trunk: (f32, f32),
    fat: f32,
    liver: [Blob; 2],
    kidneys: [Blob; 2],
    spleen: Blob,
    stomach: Blob,
    /// Where the diaphragm is highest.
    diaphragm: f32,
    vertebra: (f32, f32),
    rib: (f32, f32),
    /// How much of the belly is bowel, and how much of the bowel is gas.
    bowel: (f32, f32),
    table: f32,
}

impl Patient {
    fn new(draw: &mut Draw) -> Patient {
        let (wide, deep) = (draw.between(138.0, 168.0), draw.between(98.0, 122.0));
        let (w, d) = (wide / 150.0, deep / 108.0);
        let mut blob = |centre: [f32; 3], radii: [f32; 3]| {
            Blob::new([centre[0] * w, centre[1] * d, centre[2]], [radii[0] * w, radii[1] * d, radii[2]], draw)
        };
        let liver = [blob([72.0, 8.0, 26.0], [54.0, 66.0, 62.0]), blob([14.0, 42.0, 40.0], [58.0, 34.0, 34.0])];
        let kidneys = [blob([56.0, -52.0, -38.0], [23.0, 21.0, 48.0]), blob([-56.0, -52.0, -28.0], [23.0, 21.0, 48.0])];
        let spleen = blob([-88.0, -36.0, 38.0], [28.0, 40.0, 46.0]);
        let stomach = blob([-52.0, 36.0, 34.0], [40.0, 34.0, 38.0]);
        Patient {
            noise: Noise::new(draw),
            trunk: (wide, deep),
            fat: draw.between(8.0, 24.0),
            liver,
            kidneys,
            spleen,
            stomach,
            diaphragm: draw.between(74.0, 100.0),
            vertebra: (draw.between(30.0, 38.0), draw.between(0.0, 34.0)),
            rib: (draw.between(26.0, 34.0), draw.between(0.0, 30.0)),
            bowel: (draw.between(-0.05, 0.2), draw.between(0.3, 0.55)),
            table: draw.between(4.0, 14.0),
        }
    }

    /// What is at a place.
    fn tissue(&self, p: Vec3) -> Tissue {
        let rim = 1.0 + 0.03 * self.noise.at(p * 0.008);
        let trunk = |inset: f32| {
            let (x, y) = (p.x / (self.trunk.0 - inset) / rim, p.y / (self.trunk.1 - inset) / rim);
            // Between an ellipse and a box, as trunks are.
            x * x + y * y - 0.25 * x * x * y * y
        };
        if trunk(0.0) > 1.0 {
            let gap = -self.trunk.1 * 1.04 - p.y;
            let lies = gap > 3.0 && gap < 3.0 + self.table && p.x.abs() < 190.0;
            return if lies { Tissue::Table } else { Tissue::Air };
        }
        if trunk(self.fat) > 1.0 {
            return Tissue::Fat;
        }
        if let Some(tissue) = self.spine(p) {
            return tissue;
        }
        let wall = trunk(self.fat + 14.0);
        let cavity = trunk(self.fat + 20.0);
        if cavity > 1.0 {
            let turn = p.z + 0.35 * p.y;
            let along = (turn + self.rib.1 + 600.0) / self.rib.0;
            let is_rib = along.fract() < 0.36 && wall < 1.0 && p.z > -30.0;
            return if is_rib { Tissue::Bone } else { Tissue::Muscle };
        }
        self.inside(p)
    }

    fn spine(&self, p: Vec3) -> Option<Tissue> {
        let back = -0.5 * self.trunk.1;
        let (x, y) = (p.x, p.y - back);
        let canal = x * x + (y + 24.0) * (y + 24.0);
        if canal < 64.0 {
            return Some(Tissue::Fluid);
        }
        let body = x * x / 1.25 + y * y;
        if body < 17.0 * 17.0 {
            let along = ((p.z + self.vertebra.1 + 600.0) / self.vertebra.0).fract();
            return Some(match (along > 0.8, body > 13.5 * 13.5) {
                (true, _) => Tissue::Muscle,
                (false, true) => Tissue::Bone,
                (false, false) => Tissue::Marrow,
            });
        }
        if canal < 13.0 * 13.0 || (x.abs() < 4.0 && y < -24.0 && y > -46.0) {
            return Some(Tissue::Bone);
        }
        let artery = (x + 14.0) * (x + 14.0) + (y - 27.0) * (y - 27.0);
        let vein = (x - 14.0) * (x - 14.0) + (y - 26.0) * (y - 26.0);
        if artery < 90.0 || vein < 100.0 {
            return Some(Tissue::Blood);
        }
        let psoas = (x.abs() - 34.0) * (x.abs() - 34.0) / 1.4 + (y + 2.0) * (y + 2.0);
        (y < -22.0 && x.abs() < 70.0 || psoas < 15.0 * 15.0 && p.z < 10.0).then_some(Tissue::Muscle)
    }

    /// Organs, in the order in which they push each other aside.
    fn inside(&self, p: Vec3) -> Tissue {
        // Organs are not ellipsoids: a coarse field dents them.
        let dent = 0.35 * self.noise.at(p * 0.018) + 0.15 * self.noise.at(p * 0.045);
        let dome = p.x / self.trunk.0;
        let ceiling = self.diaphragm * (1.0 - 0.45 * (dome.abs() - 0.45) * (dome.abs() - 0.45)) - 0.0016 * p.y * p.y;
        if p.z > ceiling {
            let heart = p.x + 20.0;
            let is_heart = heart * heart + (p.y - 25.0) * (p.y - 25.0) < 45.0 * 45.0;
            return if is_heart { Tissue::Blood } else { Tissue::Lung };
        }
        for kidney in &self.kidneys {
            let depth = kidney.depth(p) + 0.4 * dent;
            let v = p - kidney.centre;
            // The hilum faces the spine and is filled with fat.
            let inwards = -v.x * kidney.centre.x.signum() / kidney.radii.x;
            let along = v.z / kidney.radii.z;
            if depth < 1.0 {
                let hilum = inwards > 0.15 + 1.6 * along * along && depth < 0.9 && (v.y / kidney.radii.y).abs() < 0.45;
                return if hilum { Tissue::Fat } else { Tissue::Kidney };
            }
            if depth < 1.5 {
                return Tissue::Fat;
            }
        }
        if self.spleen.depth(p) + dent < 1.0 {
            return Tissue::Spleen;
        }
        if self.liver.iter().map(|lobe| lobe.depth(p)).fold(f32::INFINITY, f32::min) + 0.8 * dent < 1.0 {
            let vessel = self.noise.at(p * 0.05 + vec3(3.0, 1.0, 7.0)).abs();
            return if vessel < 0.035 { Tissue::Blood } else { Tissue::Liver };
        }
        if self.stomach.depth(p) + dent < 1.0 {
            // Gas rises to the front of a patient who lies on the back.
            return if p.y > self.stomach.centre.y + 12.0 { Tissue::Gas } else { Tissue::Bowel };
        }
        let loops = self.noise.at(p * 0.03 + vec3(9.0, 4.0, 1.0));
        if loops > self.bowel.0 && p.y > -20.0 {
            return if loops > self.bowel.0 + self.bowel.1 { Tissue::Gas } else { Tissue::Bowel };
        }
        Tissue::Fat
    }
}

/// CT: Hounsfield units, sometimes with contrast agent, noise as the dose was.
fn hounsfield(tissues: &[Tissue], places: &[Vec3], grid: &Grid, noise: &Noise, draw: &mut Draw) -> Vec<f32> {
    let contrast = if draw.chance(0.5) { draw.between(0.4, 1.0) } else { 0.0 };
    let liver = draw.between(48.0, 66.0) + 45.0 * contrast;
    let spleen = draw.between(42.0, 54.0) + 70.0 * contrast;
    let kidney = draw.between(28.0, 38.0) + 130.0 * contrast;
    let bone = draw.between(420.0, 800.0);
    let values = tissues.iter().zip(places).map(|(tissue, p)| {
        let mottle = noise.at(*p * 0.11);
        match tissue {
            Tissue::Air => -1000.0,
            Tissue::Lung => -830.0 + 60.0 * mottle,
            Tissue::Gas => -920.0,
            Tissue::Fat => -100.0 + 10.0 * mottle,
            Tissue::Muscle => 52.0 + 8.0 * mottle + 10.0 * contrast,
            Tissue::Bowel => 32.0 + 26.0 * mottle + 15.0 * contrast,
            Tissue::Marrow => 190.0 + 50.0 * mottle,
            Tissue::Bone => bone + 80.0 * mottle,
            Tissue::Blood => 42.0 + 130.0 * contrast,
            Tissue::Fluid => 18.0,
            Tissue::Liver => liver + 6.0 * mottle,
            Tissue::Kidney => kidney + 10.0 * mottle,
            Tissue::Spleen => spleen + 5.0 * mottle,
            Tissue::Table => -250.0,
        }
    });
    let soft = softened(&values.collect::<Vec<f32>>(), grid, draw.between(0.3, 0.9));
    let dose = draw.between(8.0, 28.0);
    soft.into_iter().map(|v| (v + dose * draw.bell()).round().clamp(-1024.0, 3071.0)).collect()
}

/// MR: arbitrary units, uneven reception, and noise that is never negative.
fn resonance(tissues: &[Tissue], places: &[Vec3], grid: &Grid, noise: &Noise, draw: &mut Draw) -> Vec<f32> {
    // T1-weighted or T2-weighted, each a little different from scan to scan.
    let is_t1 = draw.chance(0.5);
    let mut about = |t1: f32, t2: f32| (if is_t1 { t1 } else { t2 }) * draw.between(0.85, 1.15);
    let (fat, muscle, bowel) = (about(0.95, 0.8), about(0.4, 0.22), about(0.38, 0.6));
    let (marrow, blood, fluid) = (about(0.55, 0.45), about(0.2, 0.15), about(0.15, 1.1));
    let (liver, kidney, spleen) = (about(0.58, 0.34), about(0.42, 0.72), about(0.36, 0.62));
    let scale = draw.between(250.0, 1400.0);
    let tilt = draw.direction() * draw.between(0.0005, 0.0025);
    let bowl = draw.between(-0.000012, 0.000006);
    let values = tissues.iter().zip(places).map(|(tissue, p)| {
        let signal = match tissue {
            Tissue::Air | Tissue::Table | Tissue::Gas => 0.0,
            Tissue::Lung => 0.05,
            Tissue::Fat => fat,
            Tissue::Muscle => muscle,
            Tissue::Bowel => bowel * (1.0 + 0.4 * noise.at(*p * 0.07)),
            Tissue::Marrow => marrow,
            Tissue::Bone => 0.08,
            Tissue::Blood => blood,
            Tissue::Fluid => fluid,
            Tissue::Liver => liver,
            Tissue::Kidney => kidney,
            Tissue::Spleen => spleen,
        };
        let bias = (1.0 + tilt.dot(*p) + bowl * p.dot(*p)).clamp(0.3, 2.0);
        scale * signal * (1.0 + 0.06 * noise.at(*p * 0.1)) * bias
    });
    let soft = softened(&values.collect::<Vec<f32>>(), grid, draw.between(0.3, 0.9));
    let noise = scale * draw.between(0.01, 0.05);
    let rician = |v: f32, draw: &mut Draw| {
        let (real, imaginary) = (v + noise * draw.bell(), noise * draw.bell());
        (real * real + imaginary * imaginary).sqrt().round()
    };
    soft.into_iter().map(|v| rician(v, draw)).collect()
}

/// Voxels see a little of their neighbours: a 1-2-1 filter along each axis, `amount` of it.
fn softened(values: &[f32], grid: &Grid, amount: f32) -> Vec<f32> {
    let mut now = values.to_vec();
    let mut stride = 1;
    for length in grid.shape {
        let before = now.clone();
        for (n, value) in now.iter_mut().enumerate() {
            let place = n / stride % length;
            let low = if place > 0 { before[n - stride] } else { before[n] };
            let high = if place + 1 < length { before[n + stride] } else { before[n] };
            *value = mix(before[n], 0.25 * (low + high) + 0.5 * before[n], amount);
        }
        stride *= length;
    }
    now
}
