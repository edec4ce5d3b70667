//! Contents of cases, and the check that none stands on two sides of a split.

use super::split::Contents;
use super::{Case, Form};
use crate::error::{Error, Result};
use crate::io::{nifti, picture};
use crate::model::checkpoint::hex;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// SHA-256 of the decoded pixels or voxels of every case: a copy saved in another format or under another name is found.
///
/// # Errors
/// A data error naming a picture that cannot be read.
pub(super) fn contents(cases: &[&Case], form: Form) -> Result<Contents> {
    let one = |case: &&Case| {
        let content = match form {
            Form::Pictures => {
                let picture = picture::read_picture(&case.image)?;
                picture_content(picture.width, &picture.rgb)
            }
            Form::Volumes => {
                let (volume, _) = nifti::read_volume(&case.image, 0)?;
                volume_content(volume.grid.shape, &volume.voxels)
            }
        };
        Ok((case.image.clone(), content))
    };
    let all: Vec<Result<_>> = cases.par_iter().map(one).collect();
    all.into_iter().collect()
}

/// SHA-256 of a picture's pixels.
pub(super) fn picture_content(width: usize, rgb: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(width.to_le_bytes());
    hash.update(rgb);
    hex(&hash.finalize())
}

/// SHA-256 of a volume's voxels.
pub(super) fn volume_content(shape: [usize; 3], voxels: &[f32]) -> String {
    let mut hash = Sha256::new();
    shape.iter().for_each(|n| hash.update(n.to_le_bytes()));
    hash.update(bytemuck::cast_slice::<f32, u8>(voxels));
    hex(&hash.finalize())
}

/// What stands on two sides, or twice on one.
pub(super) struct Found {
    /// Sentences naming both files and sides.
    pub leaks: Vec<String>,
    /// Sentences naming both files.
    pub duplicates: Vec<String>,
}

/// Compares contents and groups across named sides.
pub(super) fn find(sides: &[(&str, &[Case])], contents: &Contents) -> Found {
    let mut found = Found { leaks: Vec::new(), duplicates: Vec::new() };
    let mut seen: BTreeMap<&str, (&str, &Case)> = BTreeMap::new();
    let mut groups: BTreeMap<&str, (&str, &Case)> = BTreeMap::new();
    for (side, cases) in sides {
        for case in *cases {
            if let Some(content) = contents.get(&case.image) {
                match seen.get(content.as_str()) {
                    Some((other, twin)) => {
                        let pair = format!("`{}` and `{}`", twin.image.display(), case.image.display());
                        if other == side {
                            found.duplicates.push(format!("{pair} have the same content, both in {side}"));
                        } else {
                            found.leaks.push(format!("{pair} have the same content, in {other} and {side}"));
                        }
                    }
                    None => {
                        seen.insert(content, (side, case));
                    }
                }
            }
            // Where no group is given, an id says nothing about another folder's case of that name.
            let Some(group) = &case.group else { continue };
            match groups.get(group.as_str()) {
                Some((other, twin)) if other != side => found.leaks.push(format!(
                    "`{}` and `{}` belong to one group `{group}`, in {other} and {side}",
                    twin.image.display(),
                    case.image.display(),
                )),
                Some(_) => {}
                None => {
                    groups.insert(group, (side, case));
                }
            }
        }
    }
    found
}

/// Refuses leaks unless they are allowed; then, and for duplicates, the answer is what to warn of.
///
/// # Errors
/// A data error naming the first leak.
pub(super) fn judge(found: Found, allow: bool) -> Result<Vec<String>> {
    if let (Some(first), false) = (found.leaks.first(), allow) {
        let more = found.leaks.len() - 1;
        let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
        return Err(Error::data(format!("leak: {first}{more}"))
            .hint("take one of them out; --allow-leak trains all the same, and the scores mean little"));
    }
    let many = |mut list: Vec<String>| {
        let more = list.len().saturating_sub(3);
        list.truncate(3);
        if more > 0 {
            list.push(format!("and {more} more"));
        }
        list
    };
    Ok(many(found.leaks).into_iter().chain(many(found.duplicates)).collect())
}
