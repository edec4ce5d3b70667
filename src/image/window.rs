//! Which intensities become black and white when a slice is shown to the network.
//!
//! A window is a rule (`auto`, a name, or two numbers) that is resolved once per volume into two grey levels.
//! `auto` does not guess the modality: it takes percentiles, for CT as for MR; CT users name a window.

use super::Volume;
use crate::error::{Error, Result, nearest};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A named CT window in Hounsfield units, as radiologists give it.
#[derive(Debug, PartialEq)]
pub struct Preset {
    /// What to write after `--window`.
    pub name: &'static str,
    /// The middle.
    pub level: f32,
    /// Black to white.
    pub width: f32,
}

/// The usual CT windows (level and width in HU as in common viewers; 40/400 is also MedSAM's for the abdomen).
pub const PRESETS: [Preset; 7] = [
    Preset { name: "abdomen", level: 40.0, width: 400.0 },
    Preset { name: "soft-tissue", level: 40.0, width: 400.0 },
    Preset { name: "liver", level: 30.0, width: 150.0 },
    Preset { name: "mediastinum", level: 50.0, width: 350.0 },
    Preset { name: "lung", level: -600.0, width: 1500.0 },
    Preset { name: "bone", level: 400.0, width: 1800.0 },
    Preset { name: "brain", level: 40.0, width: 80.0 },
];

/// Rule for the grey levels of a volume; written as `auto`, a preset's name or `LO,HI`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Window {
    /// The 0.5 and 99.5 percentiles of the whole volume's finite voxels.
    #[default]
    Auto,
    /// One of [`PRESETS`].
    Preset(&'static Preset),
    /// Black at the first value, white at the second, in the units of the volume.
    Range(f32, f32),
}

/// Grey levels of one volume: a [`Window`] that has seen its voxels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Levels {
    /// Black at and below.
    pub lo: f32,
    /// White at and above; when not above `lo`, everything is black.
    pub hi: f32,
    /// Stands for voxels that are not finite: the smallest finite value.
    pub fill: f32,
}

impl Levels {
    /// The grey value of a voxel.
    pub fn grey(&self, value: f32) -> u8 {
        let value = if value.is_finite() { value } else { self.fill };
        if self.hi <= self.lo {
            return 0;
        }
        // In f64, so that a window as wide as f32 allows does not overflow.
        let share = (f64::from(value) - f64::from(self.lo)) / (f64::from(self.hi) - f64::from(self.lo));
        (share.clamp(0.0, 1.0) * 255.0).round() as u8
    }
}

impl Window {
    /// Grey levels for this volume. Constant or wholly non-finite volumes are black, never a division by zero.
    pub fn resolve(&self, volume: &Volume) -> Levels {
        let finite = || volume.voxels.iter().copied().filter(|v| v.is_finite());
        let smallest = finite().fold(f32::INFINITY, f32::min);
        if smallest == f32::INFINITY {
            return Levels { lo: 0.0, hi: 0.0, fill: 0.0 };
        }
        let (lo, hi) = match self {
            Window::Range(lo, hi) => (*lo, *hi),
            Window::Preset(preset) => (preset.level - preset.width / 2.0, preset.level + preset.width / 2.0),
            Window::Auto => match percentiles(&volume.voxels, [0.5, 99.5]) {
                // Almost everything has one value (a label map, a phantom): its extremes are what there is to see.
                [lo, hi] if lo >= hi => (smallest, finite().fold(smallest, f32::max)),
                [lo, hi] => (lo, hi),
            },
        };
        Levels { lo, hi, fill: smallest }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Window::Auto => f.write_str("auto"),
            Window::Preset(preset) => f.write_str(preset.name),
            Window::Range(lo, hi) => write!(f, "{lo},{hi}"),
        }
    }
}

impl FromStr for Window {
    type Err = Error;

    fn from_str(text: &str) -> Result<Window> {
        if text == "auto" {
            return Ok(Window::Auto);
        }
        if let Some(preset) = PRESETS.iter().find(|preset| preset.name == text) {
            return Ok(Window::Preset(preset));
        }
        if let Some((lo, hi)) = text.split_once(',') {
            return match (lo.trim().parse::<f32>(), hi.trim().parse::<f32>()) {
                (Ok(lo), Ok(hi)) if lo.is_finite() && hi.is_finite() && lo < hi => Ok(Window::Range(lo, hi)),
                _ => Err(Error::usage(format!("window `{text}` is not two numbers, the lower one first"))
                    .hint("write `--window=LO,HI`, for example `--window=-160,240`")),
            };
        }
        let known: Vec<&str> = std::iter::once("auto").chain(PRESETS.iter().map(|preset| preset.name)).collect();
        let hint = match nearest(text, known.iter().copied()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("known are {}, or `LO,HI`", known.join(", ")),
        };
        Err(Error::usage(format!("unknown window `{text}`")).hint(hint))
    }
}

impl TryFrom<String> for Window {
    type Error = Error;
    fn try_from(text: String) -> Result<Window> {
        text.parse()
    }
}

impl From<Window> for String {
    fn from(window: Window) -> String {
        window.to_string()
    }
}

/// Percentiles of the finite values, interpolated linearly like numpy's, without copying or sorting the volume:
/// values are counted by the upper, then the lower 16 bits of a key that sorts as they do.
fn percentiles<const N: usize>(values: &[f32], percents: [f64; N]) -> [f32; N] {
    let keys = || values.iter().filter(|v| v.is_finite()).map(|v| sortable(*v));
    let mut coarse = vec![0u64; 1 << 16];
    keys().for_each(|key| coarse[(key >> 16) as usize] += 1);
    let n_finite: u64 = coarse.iter().sum();
    if n_finite == 0 {
        return [0.0; N];
    }
    let nth = |rank: u64| {
        let (upper, rank) = bin_of(&coarse, rank);
        let mut fine = vec![0u64; 1 << 16];
        keys().filter(|key| key >> 16 == upper).for_each(|key| fine[(key & 0xffff) as usize] += 1);
        f64::from(unsortable(upper << 16 | bin_of(&fine, rank).0))
    };
    percents.map(|percent| {
        let position = percent / 100.0 * (n_finite - 1) as f64;
        let (below, share) = (position.floor(), position.fract());
        let lower = nth(below as u64);
        let upper = if share > 0.0 { nth(below as u64 + 1) } else { lower };
        (lower + share * (upper - lower)) as f32
    })
}

/// The bin that holds the `rank`-th value (from 0), and its rank within the bin.
fn bin_of(counts: &[u64], mut rank: u64) -> (u32, u64) {
    for (bin, count) in (0..).zip(counts) {
        if rank < *count {
            return (bin, rank);
        }
        rank -= count;
    }
    (0, 0)
}

fn sortable(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

fn unsortable(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Grid;

    fn volume(voxels: Vec<f32>) -> Volume {
        Volume { grid: Grid::picture(voxels.len(), 1), voxels }
    }

    #[test]
    fn percentiles_interpolate_between_neighbours_and_skip_what_is_not_finite() {
        // -100..=100 shuffled: the p-th percentile of 201 evenly spaced values is -100 + 2 p.
        let mut values: Vec<f32> = (0..201).map(|n| ((n * 77) % 201) as f32 - 100.0).collect();
        values.extend([f32::NAN, f32::INFINITY]);
        assert_eq!(percentiles(&values, [0.0, 0.5, 25.0, 99.5, 100.0]), [-100.0, -99.0, -50.0, 99.0, 100.0]);
        // Between 1 and 2: numpy.percentile([1, 2], 25) is 1.25.
        assert_eq!(percentiles(&[2.0, 1.0], [25.0]), [1.25]);
    }

    #[test]
    fn grey_levels_clamp_and_never_divide_by_zero() {
        let levels = Window::Range(-160.0, 240.0).resolve(&volume(vec![-1000.0, 40.0, f32::NAN]));
        assert_eq!(levels.fill, -1000.0);
        // 40 is in the middle: 127.5, rounded away from zero.
        assert_eq!([-500.0, -160.0, 40.0, 240.0, 900.0].map(|v| levels.grey(v)), [0, 0, 128, 255, 255]);
        assert_eq!(levels.grey(f32::NAN), 0);
        for flat in [vec![7.0; 5], vec![f32::NAN; 5], vec![]] {
            assert_eq!(Window::Auto.resolve(&volume(flat)).grey(7.0), 0);
        }
        // One voxel in a thousand is not black: percentiles alone would see nothing.
        let mut sparse = vec![0.0; 1000];
        sparse[3] = 2.0;
        assert_eq!(Window::Auto.resolve(&volume(sparse)).grey(2.0), 255);
        let widest = Levels { lo: f32::MIN, hi: f32::MAX, fill: 0.0 };
        assert_eq!([f32::MIN, 0.0, f32::MAX].map(|v| widest.grey(v)), [0, 128, 255]);
    }

    #[test]
    fn windows_are_written_as_they_are_read() {
        for text in ["auto", "abdomen", "lung", "-160,240", "0.25,1.5"] {
            assert_eq!(text.parse::<Window>().unwrap().to_string(), text);
        }
        let json = serde_json::to_string(&Window::Range(-160.0, 240.0)).unwrap();
        assert_eq!(json, "\"-160,240\"");
        assert_eq!(serde_json::from_str::<Window>(&json).unwrap(), Window::Range(-160.0, 240.0));
        let lung = "lung".parse::<Window>().unwrap().resolve(&volume(vec![0.0]));
        assert_eq!((lung.lo, lung.hi), (-1350.0, 150.0));
        assert_eq!("lnug".parse::<Window>().unwrap_err().hint.unwrap(), "did you mean `lung`?");
        for wrong in ["", "240,-160", "1,1", "1,x", "1,NaN", "1,2,3", "kidney"] {
            assert!(wrong.parse::<Window>().is_err(), "{wrong}");
        }
    }
}
