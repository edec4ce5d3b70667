//! What `segft data check` and `segft info DIR` tell of a set: everything that is wrong with it, not the first alone.

use super::{Case, Dataset, Form, Side, Unit, layout, leak, named};
use crate::error::{Error, Result};
use crate::io::{nifti, picture};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A set as it was found.
pub struct Found {
    /// What `--json` prints.
    pub facts: Value,
    /// What must be mended before anything can be trained on it: files that cannot be read, that have no partner or do
    /// not fit it.
    pub problems: Vec<Error>,
    /// Whether any mask has foreground; without it nothing can be learnt.
    pub has_foreground: bool,
}

/// What reading a picture or volume tells.
struct Image {
    content: String,
    /// Voxels that are NaN or infinite; a picture has none.
    n_nonfinite: usize,
}

/// Reads every file of a set; sub-folders train/, val/ and test/, or the sides that a table gives, are compared.
///
/// # Errors
/// Where there is no set to be looked at: a missing folder, an unknown layout. What is wrong with single cases is found,
/// not an error.
pub fn check(path: &Path) -> Result<Found> {
    let sides: Vec<PathBuf> =
        ["train", "val", "validation", "test"].iter().map(|s| path.join(s)).filter(|p| p.is_dir()).collect();
    let roots = if sides.is_empty() || path.join("images").is_dir() { vec![path.to_path_buf()] } else { sides };
    let (mut sets, mut problems) = (Vec::new(), Vec::new());
    for root in &roots {
        let (set, unfit) = layout::list(&named::name_of(root), root)?;
        sets.push(set);
        problems.extend(unfit);
    }
    let cases: Vec<&Case> = sets.iter().flat_map(|set| &set.cases).collect();
    let form = sets.iter().find(|set| !set.cases.is_empty()).map_or(Form::Pictures, |set| set.form);
    let looks: Vec<(Result<Image>, Result<BTreeSet<usize>>)> = cases.par_iter().map(|case| look(case, form)).collect();
    let (mut contents, mut labels) = (BTreeMap::new(), BTreeSet::new());
    let (mut empty, mut nonfinite) = (Vec::new(), BTreeMap::new());
    for (case, (image, mask)) in cases.iter().zip(looks) {
        for error in [image.as_ref().err(), mask.as_ref().err()].into_iter().flatten() {
            // What its header had told already is not told twice.
            if !problems.iter().any(|known| known.to_string() == error.to_string()) {
                problems.push(error.clone());
            }
        }
        if let Ok(image) = image {
            contents.insert(case.image.clone(), image.content);
            if image.n_nonfinite > 0 {
                nonfinite.insert(case.id.clone(), image.n_nonfinite);
            }
        }
        if let Ok(mask) = mask {
            if mask.iter().all(|label| *label == 0) {
                empty.push(case.id.clone());
            }
            labels.extend(mask);
        }
    }
    let sides = sides_of(&sets);
    let named: Vec<(&str, &[Case])> = sides.iter().map(|(name, cases)| (name.as_str(), &cases[..])).collect();
    let found = leak::find(&named, &contents);
    let groups: BTreeSet<Unit<'_>> = cases.iter().map(|case| case.unit()).collect();
    let facts = json!({
        "kind": "dataset",
        "path": path.display().to_string(),
        "layout": sets[0].layout,
        "form": form,
        "n_cases": cases.len(),
        "n_groups": groups.len(),
        "sides": named.iter().map(|(name, cases)| json!({"name": name, "n_cases": cases.len()})).collect::<Vec<_>>(),
        "labels": labels,
        "classes": sets[0].classes,
        "n_empty_masks": empty.len(),
        "empty_masks": empty,
        "nonfinite_voxels": nonfinite,
        "leaks": found.leaks,
        "duplicates": found.duplicates,
        "problems": problems.iter().map(|problem| problem.json()["error"].clone()).collect::<Vec<_>>(),
    });
    Ok(Found { facts, problems, has_foreground: labels.iter().any(|label| *label != 0) })
}

/// Reads a case: what its picture tells, and the labels of its mask.
fn look(case: &Case, form: Form) -> (Result<Image>, Result<BTreeSet<usize>>) {
    let (image, mask) = match form {
        Form::Pictures => {
            let image = picture::read_picture(&case.image)
                .map(|picture| Image { content: leak::picture_content(picture.width, &picture.rgb), n_nonfinite: 0 });
            (image, picture::read_mask(&case.mask))
        }
        Form::Volumes => {
            let image = nifti::read_volume(&case.image, 0).map(|(volume, _)| Image {
                content: leak::volume_content(volume.grid.shape, &volume.voxels),
                n_nonfinite: volume.voxels.iter().filter(|v| !v.is_finite()).count(),
            });
            (image, nifti::read_labels(&case.mask))
        }
    };
    let labels = mask.map(|mask| {
        let mut seen = vec![false; 1 << 16];
        mask.voxels.iter().for_each(|v| seen[usize::from(*v)] = true);
        seen.iter().enumerate().filter(|(_, seen)| **seen).map(|(label, _)| label).collect()
    });
    (image, labels)
}

/// The sides that are compared: folders, or those that a table gives. Cases without a side train, as in a training.
fn sides_of(sets: &[Dataset]) -> Vec<(String, Vec<Case>)> {
    let mut sides: Vec<(String, Vec<Case>)> = Vec::new();
    for set in sets {
        let given = set.cases.iter().any(|c| c.side.is_some());
        for case in &set.cases {
            let name = match case.side {
                _ if !given => &set.name,
                None | Some(Side::Train) => "train",
                Some(Side::Validation) => "validation",
                Some(Side::Test) => "test",
            };
            match sides.iter_mut().find(|(known, _)| known == name) {
                Some((_, cases)) => cases.push(case.clone()),
                None => sides.push((name.to_string(), vec![case.clone()])),
            }
        }
    }
    sides
}
