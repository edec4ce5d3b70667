//! What grows or lies on the wall: polyps of four shapes, bulges that only look like them, and debris.

use super::draw::Draw;
use super::scene::Material;
use super::vector::Vec3;

/// A shape made of rounded parts.
#[derive(Debug, Clone)]
pub(super) struct Growth {
    pub(super) material: Material,
    parts: Vec<Part>,
    /// Everything lies in this ball.
    centre: Vec3,
    radius: f32,
    /// How smoothly it rises out of the wall, as a length.
    skirt: f32,
    /// How smoothly its parts run into each other.
    joint: f32,
    /// Height and frequency of the lumps on its surface.
    lumps: (f32, f32),
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Ellipsoid { centre: Vec3, frame: [Vec3; 3], radii: [f32; 3] },
    Stalk { from: Vec3, to: Vec3, radius: f32 },
}

/// The outline of a polyp, after the Paris classification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// A dome (0-Is).
    Sessile,
    /// A head on a stalk (0-Ip).
    Pedunculated,
    /// Hardly raised (0-IIa).
    Flat,
    /// A dome of several lobes.
    Lobulated,
}

/// Where something sits on the wall.
#[derive(Debug, Clone, Copy)]
pub(super) struct Site {
    /// On the wall.
    pub(super) foot: Vec3,
    /// From the wall into the tube.
    pub(super) normal: Vec3,
    /// Half its width.
    pub(super) size: f32,
}

impl Growth {
    /// A polyp. Its proportions come from `draw`; the same draw with another size is the same polyp, larger.
    pub(super) fn polyp(shape: Shape, site: Site, draw: &mut Draw) -> Growth {
        let Site { foot, normal, size } = site;
        let frame = upright(normal, draw);
        let mut parts = Vec::new();
        let mut dome = |at: f32, flat: f32, draw: &mut Draw| {
            let radii = [size * draw.between(0.85, 1.2), size * draw.between(0.7, 1.0), size * flat];
            parts.push(Part::Ellipsoid { centre: foot + normal * (size * at), frame, radii });
        };
        let mut lumps = draw.between(0.02, 0.1);
        match shape {
            Shape::Sessile => {
                let (at, flat) = (draw.between(-0.1, 0.2), draw.between(0.3, 0.85));
                dome(at, flat, draw);
            }
            Shape::Flat => {
                let flat = draw.between(0.16, 0.32);
                dome(0.0, flat, draw);
                lumps = draw.between(0.0, 0.05);
            }
            Shape::Pedunculated => {
                let lean = draw.tangent(normal) * draw.between(0.2, 1.1) + normal;
                let head = foot + lean.unit() * (size * draw.between(1.0, 1.6));
                let radii =
                    [size * draw.between(0.8, 1.1), size * draw.between(0.7, 0.95), size * draw.between(0.7, 1.0)];
                parts.push(Part::Ellipsoid { centre: head, frame: upright(lean.unit(), draw), radii });
                parts.push(Part::Stalk { from: foot, to: head, radius: size * draw.between(0.25, 0.42) });
            }
            Shape::Lobulated => {
                dome(0.1, 0.6, draw);
                for _ in 0..4 + draw.below(6) {
                    let towards = draw.direction();
                    let towards = if towards.dot(normal) < -0.1 { -towards } else { towards };
                    let out = towards.across(normal) * 0.8 + normal * (0.45 * towards.dot(normal));
                    let radius = size * draw.between(0.28, 0.5);
                    let radii = [radius, radius * draw.between(0.8, 1.0), radius * draw.between(0.8, 1.0)];
                    parts.push(Part::Ellipsoid { centre: foot + out * size, frame: upright(towards, draw), radii });
                }
            }
        }
        let skirt = size * if draw.chance(0.4) { draw.between(0.25, 0.5) } else { draw.between(0.03, 0.2) };
        let joint = size * draw.between(0.06, 0.16);
        let frequency = draw.between(1.5, 3.5) / size;
        Growth::new(Material::Polyp, parts, skirt, joint, (lumps * size, frequency))
    }

    /// A smooth bulge of the wall, as wide as a polyp may be: looks like one, is none.
    pub(super) fn bulge(site: Site, draw: &mut Draw) -> Growth {
        let Site { foot, normal, size } = site;
        let radii = [size * draw.between(0.9, 1.8), size * draw.between(0.6, 1.0), size * draw.between(0.25, 0.7)];
        let centre = foot - normal * (size * draw.between(0.0, 0.2));
        let parts = vec![Part::Ellipsoid { centre, frame: upright(normal, draw), radii }];
        Growth::new(Material::Mucosa, parts, size * draw.between(0.35, 0.9), 0.0, (0.0, 1.0))
    }

    /// A crumb of stool, or a few that stick together.
    pub(super) fn debris(site: Site, draw: &mut Draw) -> Growth {
        let Site { foot, normal, size } = site;
        let parts = (0..1 + draw.below(4)).map(|_| {
            let radii = [size * draw.between(0.4, 1.0), size * draw.between(0.4, 0.9), size * draw.between(0.2, 0.6)];
            let centre = foot + draw.tangent(normal) * (size * draw.between(0.0, 0.9));
            Part::Ellipsoid { centre, frame: upright(normal, draw), radii }
        });
        let parts = parts.collect();
        Growth::new(Material::Debris, parts, 0.02 * size, 0.2 * size, (0.12 * size, 2.5 / size))
    }

    fn new(material: Material, parts: Vec<Part>, skirt: f32, joint: f32, lumps: (f32, f32)) -> Growth {
        let mut points = Vec::new();
        for part in &parts {
            match part {
                Part::Ellipsoid { centre, radii, .. } => points.push((*centre, radii[0].max(radii[1]).max(radii[2]))),
                Part::Stalk { from, to, radius } => points.extend([(*from, *radius), (*to, *radius)]),
            }
        }
        let centre = points.iter().fold(Vec3::default(), |sum, (p, _)| sum + *p) * (1.0 / points.len() as f32);
        let radius = points.iter().map(|(p, r)| (*p - centre).length() + r).fold(0.0, f32::max);
        // The joints between parts and the lumps swell the outline a little.
        Growth { material, parts, centre, radius: radius + joint + 1.5 * lumps.0, skirt, joint, lumps }
    }

    /// Distance to this alone, or `None` when it is farther away than `limit`.
    pub(super) fn distance(&self, p: Vec3, limit: f32) -> Option<f32> {
        let away = p - self.centre;
        // Distances are scaled by 0.85 below, so the limit reaches a little farther.
        let reach = self.radius + 1.2 * (limit + self.skirt);
        if away.dot(away) > reach * reach {
            return None;
        }
        let mut distance = f32::INFINITY;
        for part in &self.parts {
            distance = smooth_min(distance, part.distance(p), self.joint);
        }
        if self.lumps.0 > 0.0 {
            distance += self.lumps.0 * ripple((p - self.centre) * self.lumps.1);
        }
        Some(distance * 0.85)
    }

    /// Distance to this together with what else is `distance` away.
    pub(super) fn united(&self, p: Vec3, distance: f32) -> f32 {
        match self.distance(p, distance.max(0.0)) {
            Some(own) => smooth_min(distance, own, self.skirt),
            None => distance,
        }
    }
}

impl Part {
    fn distance(&self, p: Vec3) -> f32 {
        match self {
            Part::Ellipsoid { centre, frame, radii } => {
                let v = p - *centre;
                let scaled: [f32; 3] = std::array::from_fn(|n| v.dot(frame[n]) / radii[n]);
                let again: [f32; 3] = std::array::from_fn(|n| scaled[n] / radii[n]);
                let length = |v: [f32; 3]| (v[0] * v[0] + v[1] * v[1] + v[2] * v[2]).sqrt();
                // The usual first-order estimate: exact on the surface, slightly short elsewhere.
                let k = length(scaled);
                k * (k - 1.0) / length(again).max(1e-6)
            }
            Part::Stalk { from, to, radius } => {
                let (v, axis) = (p - *from, *to - *from);
                let t = (v.dot(axis) / axis.dot(axis)).clamp(0.0, 1.0);
                // Wider at the foot.
                (v - axis * t).length() - radius * (1.0 + 0.5 * (1.0 - t) * (1.0 - t))
            }
        }
    }
}

/// Lumps without a table: products of parabolic waves, in -1..1.
fn ripple(p: Vec3) -> f32 {
    let wave = |x: f32| {
        let x = x + 64.0;
        let n = x as i32;
        let t = x - n as f32;
        let bump = 4.0 * t * (1.0 - t);
        if n & 1 == 0 { bump } else { -bump }
    };
    // Turned against the axes, or the lumps would stand in rows.
    let a = wave(0.8 * p.x + 0.6 * p.y) * wave(0.8 * p.y - 0.6 * p.z + 0.3);
    let b = wave(0.7 * p.z + 0.5 * p.x - 0.5 * p.y + 0.7);
    0.6 * a + 0.4 * b
}

/// The smaller of two distances, rounded where they differ by less than `width`.
fn smooth_min(a: f32, b: f32, width: f32) -> f32 {
    let near = width - (a - b).abs();
    if near <= 0.0 || width <= 0.0 {
        return a.min(b);
    }
    a.min(b) - near * near / (4.0 * width)
}

/// Two random directions across `normal`, then `normal` itself.
fn upright(normal: Vec3, draw: &mut Draw) -> [Vec3; 3] {
    let side = draw.tangent(normal);
    [side, normal.cross(side), normal]
}

#[cfg(test)]
mod tests {
    use super::super::draw::Purpose;
    use super::super::vector::vec3;
    use super::*;

    #[test]
    fn the_field_is_zero_on_a_ball_and_grows_outwards() {
        let frame = [vec3(1.0, 0.0, 0.0), vec3(0.0, 1.0, 0.0), vec3(0.0, 0.0, 1.0)];
        let ball = Part::Ellipsoid { centre: vec3(1.0, 0.0, 0.0), frame, radii: [2.0; 3] };
        assert!(ball.distance(vec3(3.0, 0.0, 0.0)).abs() < 1e-6);
        assert!((ball.distance(vec3(1.0, 5.0, 0.0)) - 3.0).abs() < 1e-5);
    }

    #[test]
    fn a_larger_polyp_is_the_same_polyp() {
        let site = |size| Site { foot: Vec3::default(), normal: vec3(0.0, 0.0, 1.0), size };
        let make = |size| Growth::polyp(Shape::Lobulated, site(size), &mut Draw::new(3, Purpose::Scene, 0));
        let (small, large) = (make(0.1), make(0.2));
        let p = vec3(0.05, 0.02, 0.08);
        let (a, b) = (small.distance(p, 1.0).unwrap(), large.distance(p * 2.0, 1.0).unwrap());
        assert!((2.0 * a - b).abs() < 1e-4, "{a} {b}");
    }
}
