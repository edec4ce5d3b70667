//! What is pointed at: prompts from the command line, or taken from a reference to judge a promptable model.

use super::case::Input;
use crate::data::Form;
use crate::error::{Error, Result, nearest};
use crate::image::{Axis, Grid, Labels, SliceFrame, cut_labels};
use crate::io::{nifti, picture as pictures, stem};
use crate::model::sam::PointLabel;
use crate::predict::Prompts;
use crate::score::distance;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is pointed at in which slice. A slice without an entry stays background.
pub(super) type BySlice = BTreeMap<usize, Prompts>;

/// Prompts as the command line gives them: boxes `x0,y0,x1,y1`, in volumes `i0,j0,k0,i1,j1,k1` or
/// `mm:x0,y0,z0,x1,y1,z1`; points `x,y[,0|1]`, in volumes `i,j,k[,0|1]` or `mm:x,y,z[,0|1]`.
///
/// # Errors
/// A usage error for one that cannot be read or does not lie in the picture.
pub(super) fn given(boxes: &[String], points: &[String], case: &Input, axis: Axis) -> Result<BySlice> {
    let mut by_slice = BySlice::new();
    match case {
        Input::Picture(picture) => {
            let (w, h) = (picture.width as f32, picture.height as f32);
            let prompts = by_slice.entry(0).or_default();
            for text in boxes {
                let [x0, y0, x1, y1]: [f32; 4] =
                    numbers(text)?.try_into().map_err(|_| wrong("box", text, "x0,y0,x1,y1"))?;
                if x0 >= x1 || y0 >= y1 {
                    return Err(Error::usage(format!("--box {text} has its corners the wrong way round, or no area"))
                        .hint("corners are x0,y0,x1,y1 with x0 < x1 and y0 < y1, in pixels; y points down"));
                }
                if !(0.0 <= x0 && x1 <= w && 0.0 <= y0 && y1 <= h) {
                    return Err(Error::usage(format!("--box {text} does not lie in the picture of {w} × {h} pixels"))
                        .hint("corners are x0,y0,x1,y1 with x0 < x1 and y0 < y1"));
                }
                prompts.bounds = Some([x0, y0, x1, y1]);
            }
            for text in points {
                let (x, y, label) = match numbers(text)?.as_slice() {
                    [x, y] => (*x, *y, PointLabel::Inside),
                    [x, y, label] => (*x, *y, point_label(*label, text)?),
                    _ => return Err(wrong("point", text, "x,y or x,y,0 or x,y,1")),
                };
                if !(0.0..w).contains(&x) || !(0.0..h).contains(&y) {
                    return Err(Error::usage(format!(
                        "--point {text} does not lie in the picture of {w} × {h} pixels"
                    )));
                }
                prompts.points.push((x, y, label));
            }
        }
        Input::Volume(volume, _) => {
            let frame = SliceFrame::new(&volume.grid, axis);
            for text in boxes {
                let [a, b] = corners(&volume.grid, text)?;
                // Millimetres may run against the voxels' axes; an edge without a voxel between its ends is no box either way.
                if (0..3).filter(|axis| a[*axis] != b[*axis]).count() < 2 {
                    return Err(Error::usage(format!("--box {text} has no area"))
                        .hint("its corners are i0,j0,k0,i1,j1,k1 in voxels, or mm:x0,y0,z0,x1,y1,z1"));
                }
                let (a, b) = (frame.locate(a[0], a[1], a[2]), frame.locate(b[0], b[1], b[2]));
                let bounds = [a.1.min(b.1), a.2.min(b.2), a.1.max(b.1), a.2.max(b.2)].map(|v| v as f32);
                for slice in a.0.min(b.0)..=a.0.max(b.0) {
                    by_slice.entry(slice).or_default().bounds = Some(bounds);
                }
            }
            for text in points {
                let (place, label) = match text.split(',').count() {
                    4 => match text.rsplit_once(',') {
                        Some((place, label)) => (place, point_label(label.trim().parse().unwrap_or(-1.0), text)?),
                        None => (text.as_str(), PointLabel::Inside),
                    },
                    _ => (text.as_str(), PointLabel::Inside),
                };
                let [i, j, k] = volume.grid.voxel(place)?;
                let (slice, x, y) = frame.locate(i, j, k);
                by_slice.entry(slice).or_default().points.push((x as f32, y as f32, label));
            }
        }
    }
    Ok(by_slice)
}

/// What a prompt is made of when it is taken from a reference: to judge a promptable model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Nothing is pointed at; every slice is predicted.
    None,
    /// The box around the foreground of each slice that has some.
    Box,
    /// The pixel farthest from the edge of that foreground, as SAM's evaluation takes it (arXiv 2304.02643, D.1).
    Point,
}

impl std::str::FromStr for Taken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Taken> {
        match text {
            "none" => Ok(Taken::None),
            "box" => Ok(Taken::Box),
            "point" => Ok(Taken::Point),
            _ => Err(Error::usage(format!("--prompt is `{text}`, expected none, box or point"))),
        }
    }
}

/// Prompts taken from a case's reference.
///
/// # Errors
/// A data error when the reference is missing, unreadable or on another grid.
pub(super) fn taken(kind: Taken, reference: &Path, input: &Path, case: &Input, axis: Axis) -> Result<BySlice> {
    let path = reference_of(reference, input)?;
    let labels = match case.form() {
        Form::Pictures => pictures::read_mask(&path)?,
        Form::Volumes => nifti::read_labels(&path)?,
    };
    if let Some(difference) = case.grid().difference(&labels.grid) {
        return Err(Error::data(format!("the reference lies on another grid: {difference}")).at(path));
    }
    let frame = match case {
        Input::Picture(_) => None,
        Input::Volume(volume, _) => Some(SliceFrame::new(&volume.grid, axis)),
    };
    let count = frame.as_ref().map_or(1, SliceFrame::count);
    let one = |slice: usize| {
        let plane = match &frame {
            Some(frame) => cut_labels(&labels, frame, slice),
            None => labels.clone(),
        };
        let prompts = match kind {
            Taken::None => Some(Prompts::default()),
            Taken::Box => around(&plane).map(|bounds| Prompts { bounds: Some(bounds), points: vec![] }),
            Taken::Point => {
                deepest(&plane).map(|(x, y)| Prompts { bounds: None, points: vec![(x, y, PointLabel::Inside)] })
            }
        };
        Some((slice, prompts?))
    };
    Ok((0..count).filter_map(one).collect())
}

/// The reference itself, or the file of the input's name in a folder of references.
fn reference_of(reference: &Path, input: &Path) -> Result<PathBuf> {
    if !reference.is_dir() {
        return Ok(reference.to_path_buf());
    }
    let wanted = stem(input);
    let files: Vec<PathBuf> =
        std::fs::read_dir(reference).map_err(|e| Error::reading(reference, &e))?.flatten().map(|e| e.path()).collect();
    let found = files.iter().find(|path| stem(path) == wanted);
    found.cloned().ok_or_else(|| {
        let names: Vec<String> = files.iter().map(|path| stem(path)).collect();
        let near = nearest(&wanted, names.iter().map(String::as_str)).map(String::from);
        let error = Error::data(format!("no reference for `{wanted}`")).at(reference);
        match near {
            Some(near) => error.hint(format!("the nearest name there is `{near}`")),
            None => error,
        }
    })
}

/// Corners of the box around the foreground.
fn around(mask: &Labels) -> Option<[f32; 4]> {
    let width = mask.grid.shape[0];
    let places = || mask.voxels.iter().enumerate().filter(|(_, v)| **v != 0).map(|(i, _)| (i % width, i / width));
    let (x0, x1) = (places().map(|p| p.0).min()?, places().map(|p| p.0).max()?);
    let (y0, y1) = (places().map(|p| p.1).min()?, places().map(|p| p.1).max()?);
    Some([x0, y0, x1, y1].map(|v| v as f32))
}

/// The foreground pixel farthest from the background; what lies outside of the picture is background.
fn deepest(mask: &Labels) -> Option<(f32, f32)> {
    let [w, h, _] = mask.grid.shape;
    let (wide, high) = (w + 2, h + 2);
    let inside =
        |x: usize, y: usize| (1..=w).contains(&x) && (1..=h).contains(&y) && mask.voxels[(y - 1) * w + x - 1] != 0;
    let background: Vec<bool> = (0..wide * high).map(|i| !inside(i % wide, i / wide)).collect();
    let depth = distance::squared(&background, [wide, high, 1], [1.0; 3]);
    // The first of equals, so that the answer does not depend on how the search goes.
    let best = depth.iter().enumerate().fold((0, 0.0), |best, (i, d)| if *d > best.1 { (i, *d) } else { best });
    (best.1 > 0.0).then(|| ((best.0 % wide - 1) as f32, (best.0 / wide - 1) as f32))
}

/// Two opposite corners of a box in a volume, in voxels; both lie in the box.
fn corners(grid: &Grid, text: &str) -> Result<[[usize; 3]; 2]> {
    let (form, list) = text.strip_prefix("mm:").map_or(("", text), |list| ("mm:", list));
    let numbers: Vec<&str> = list.split(',').collect();
    if numbers.len() != 6 {
        return Err(wrong("box", text, "i0,j0,k0,i1,j1,k1 in voxels, or mm:x0,y0,z0,x1,y1,z1, for a volume"));
    }
    let corner =
        |at: &[&str]| grid.voxel(&format!("{form}{}", at.join(","))).map_err(|e| e.hint(format!("in --box {text}")));
    Ok([corner(&numbers[..3])?, corner(&numbers[3..])?])
}

fn numbers(text: &str) -> Result<Vec<f32>> {
    let parsed: std::result::Result<Vec<f32>, _> = text.split(',').map(|n| n.trim().parse::<f32>()).collect();
    match parsed {
        Ok(numbers) if numbers.iter().all(|n| n.is_finite()) => Ok(numbers),
        _ => {
            Err(Error::usage(format!("`{text}` is no list of numbers"))
                .hint("separate them by commas, as 10,20,110,90"))
        }
    }
}

fn point_label(label: f32, text: &str) -> Result<PointLabel> {
    match label {
        1.0 => Ok(PointLabel::Inside),
        0.0 => Ok(PointLabel::Outside),
        _ => Err(Error::usage(format!("--point {text}: the last number is 1 (inside) or 0 (outside)"))),
    }
}

fn wrong(what: &str, text: &str, expected: &str) -> Error {
    Error::usage(format!("--{what} {text} has the wrong number of values")).hint(format!("expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_taken_from_a_mask() {
        // 7 × 5 pixels; foreground 5 × 3 from (1, 1), and one pixel at (6, 4).
        let mut mask = Labels { grid: Grid::picture(7, 5), voxels: vec![0; 35] };
        (1..4).for_each(|y| (1..6).for_each(|x| mask.voxels[y * 7 + x] = 2));
        mask.voxels[4 * 7 + 6] = 1;
        assert_eq!(around(&mask), Some([1.0, 1.0, 6.0, 4.0]));
        // The middle row is 2 from the background; its first such pixel is (2, 2).
        assert_eq!(deepest(&mask), Some((2.0, 2.0)));
        mask.voxels.fill(0);
        assert_eq!((around(&mask), deepest(&mask)), (None, None));
    }
}
