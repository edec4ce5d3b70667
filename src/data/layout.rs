//! Layouts of data sets, detected by what lies in a folder: plain pairs, CSV, MSD, nnU-Net.

use super::{Case, Dataset, Form, Side};
use crate::error::{Error, Result, nearest};
use crate::io::stem;
use crate::io::{nifti, picture};
use rayon::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Table of cases that a folder may hold; it carries groups, which names alone do not.
const TABLE: &str = "cases.csv";

/// Opens a folder or CSV and checks that every picture and mask fit each other.
///
/// # Errors
/// A usage error when it is missing; a data error naming the file that has no partner, another size or another form.
pub(super) fn open(name: &str, path: &Path) -> Result<Dataset> {
    let (dataset, problems) = list(name, path)?;
    problems.into_iter().next().map_or(Ok(dataset), Err)
}

/// Opens a folder or CSV with all that is wrong with single cases, not the first alone. Cases without a partner are
/// not among its cases; perhaps none is left.
///
/// # Errors
/// A usage error when it is missing; a data error when no layout is recognised, or when cases cannot be told apart.
pub(super) fn list(name: &str, path: &Path) -> Result<(Dataset, Vec<Error>)> {
    let mut problems = Vec::new();
    let dataset = if !path.exists() {
        return Err(Error::usage("no such data set, folder or CSV").at(path));
    } else if path.is_file() {
        table(name, path, &mut problems)?
    } else if path.join("dataset.json").is_file() {
        described(name, path, &mut problems)?
    } else if path.join(TABLE).is_file() {
        table(name, &path.join(TABLE), &mut problems)?
    } else {
        pairs(name, path, &mut problems)?
    };
    check(dataset, problems)
}

/// `images/` with `masks/` or `labels/`, matched by stem.
fn pairs(name: &str, root: &Path, problems: &mut Vec<Error>) -> Result<Dataset> {
    let images = below(root, &["images", "image", "imgs"]);
    let masks = below(root, &["masks", "labels", "mask", "label"]);
    let (Some(images), Some(masks)) = (images, masks) else { return Err(unknown_layout(root)) };
    let (inputs, mut references) = (by_stem(&images)?, by_stem(&masks)?);
    let alone: Vec<String> = references.keys().filter(|id| !inputs.contains_key(*id)).cloned().collect();
    if inputs.is_empty() {
        return Err(Error::data("no picture and no volume in this folder")
            .at(&images)
            .hint("segft reads .jpg, .png, .tif, .bmp, .nii and .nii.gz"));
    }
    let mut cases = Vec::new();
    for (id, image) in inputs {
        let bare = id.strip_suffix("_0000").unwrap_or(&id).to_string();
        let mask = references.remove(&id).or_else(|| references.remove(&bare));
        let Some(mask) = mask else {
            let near = nearest(&id, alone.iter().map(String::as_str));
            let error = Error::data(format!("no mask for case `{id}` in `{}`", masks.display())).at(&image);
            problems.push(match near {
                Some(near) => error.hint(format!("the nearest name there is `{near}`")),
                None => error.hint("a mask has the name of its picture; any of the endings"),
            });
            continue;
        };
        cases.push(Case { id: bare, image, mask, group: None, side: None });
    }
    let alone = references.into_iter();
    problems.extend(
        alone.map(|(id, mask)| Error::data(format!("no picture for mask `{id}` in `{}`", images.display())).at(mask)),
    );
    let layout = format!("{}/ + {}/", file_name(&images), file_name(&masks));
    Ok(Dataset { name: name.into(), root: root.into(), layout, form: Form::Pictures, cases, classes: BTreeMap::new() })
}

/// Names of the column that says whom a case belongs to.
const GROUP: [&str; 4] = ["group", "patient", "patient_id", "sequence"];

/// A CSV `image,mask[,group][,split]`; paths are relative to the CSV.
fn table(name: &str, path: &Path, problems: &mut Vec<Error>) -> Result<Dataset> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_path(path)
        .map_err(|e| Error::data(format!("not a CSV: {e}")).at(path))?;
    let headers = reader.headers().map_err(|e| Error::data(format!("not a CSV: {e}")).at(path))?.clone();
    let column = |wanted: &[&str]| headers.iter().position(|h| wanted.contains(&h.to_lowercase().as_str()));
    let (Some(image), Some(mask)) = (column(&["image", "img", "picture"]), column(&["mask", "label"])) else {
        let found: Vec<&str> = headers.iter().collect();
        return Err(Error::data(format!("no columns `image` and `mask`; found {}", found.join(", ")))
            .at(path)
            .hint("the first line names the columns: image,mask[,group][,split]"));
    };
    let (group, split) = (column(&GROUP), column(&["split", "side"]));
    // Cases of a patient whose column is misspelt would stand on two sides.
    for header in headers.iter().filter(|_| group.is_none()) {
        if let Some(near) = nearest(&header.to_lowercase(), GROUP) {
            return Err(Error::data(format!("a column `{header}` that nothing reads"))
                .at(path)
                .hint(format!("did you mean `{near}`? Of another meaning: call it otherwise")));
        }
    }
    let base = path.parent().unwrap_or(Path::new("."));
    let mut cases = Vec::new();
    for (n, row) in reader.records().enumerate() {
        let line = n + 2;
        let row = row.map_err(|e| Error::data(format!("line {line}: {e}")).at(path))?;
        let field = |at: usize| row.get(at).unwrap_or("");
        let file = |at: usize, column: &str| -> Result<PathBuf> {
            let file = base.join(field(at));
            if field(at).is_empty() || !file.is_file() {
                return Err(
                    Error::data(format!("line {line}, column `{column}`: no such file `{}`", field(at))).at(path)
                );
            }
            Ok(file)
        };
        let (image, mask) = match (file(image, "image"), file(mask, "mask")) {
            (Ok(image), Ok(mask)) => (image, mask),
            missing => {
                problems.extend([missing.0.err(), missing.1.err()].into_iter().flatten());
                continue;
            }
        };
        let side = match split.map(field).filter(|s| !s.is_empty()) {
            None => None,
            Some(word) => match side(word) {
                Some(side) => Some(side),
                None => {
                    let wrong = format!("line {line}, column `split`: `{word}`, expected train, val or test");
                    problems.push(Error::data(wrong).at(path));
                    continue;
                }
            },
        };
        let id = stem(&image);
        let group = group.map(field).filter(|g| !g.is_empty()).map(String::from);
        cases.push(Case { id, image, mask, group, side });
    }
    let root = base.to_path_buf();
    let layout = format!("{} ({} rows)", file_name(path), cases.len());
    Ok(Dataset { name: name.into(), root, layout, form: Form::Pictures, cases, classes: BTreeMap::new() })
}

/// Medical Segmentation Decathlon or nnU-Net raw, told apart by their `dataset.json`.
fn described(name: &str, root: &Path, problems: &mut Vec<Error>) -> Result<Dataset> {
    let path = root.join("dataset.json");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::reading(&path, &e))?;
    let json: Value = serde_json::from_str(&text).map_err(|e| Error::data(format!("not JSON: {e}")).at(&path))?;
    let decathlon = json["training"].is_array();
    let mut classes = BTreeMap::new();
    for (key, value) in json["labels"].as_object().into_iter().flatten() {
        // MSD writes "1": "liver", nnU-Net "liver": 1.
        let (number, label) =
            if decathlon { (key.parse().ok(), value.as_str()) } else { (value.as_u64(), Some(key.as_str())) };
        if let (Some(number), Some(label)) = (number.and_then(|n: u64| u16::try_from(n).ok()), label)
            && number > 0
        {
            classes.insert(number, label.to_string());
        }
    }
    let mut cases = Vec::new();
    if decathlon {
        for entry in json["training"].as_array().into_iter().flatten() {
            let file = |key: &str| -> Result<PathBuf> {
                let name = entry[key]
                    .as_str()
                    .ok_or_else(|| Error::data(format!("an entry of `training` has no `{key}`")).at(&path))?;
                let file = root.join(name);
                // Many copies of the sets are unpacked while the list still says .nii.gz.
                let plain = file.with_extension("");
                match (file.is_file(), plain.is_file()) {
                    (true, _) => Ok(file),
                    (_, true) => Ok(plain),
                    _ => Err(Error::data(format!("`training` names `{name}`, which is not there")).at(&path)),
                }
            };
            let (image, mask) = match (file("image"), file("label")) {
                (Ok(image), Ok(mask)) => (image, mask),
                missing => {
                    problems.extend([missing.0.err(), missing.1.err()].into_iter().flatten());
                    continue;
                }
            };
            let id = stem(&image);
            cases.push(Case { id, image, mask, group: None, side: None });
        }
    } else {
        let images = by_stem(&root.join("imagesTr"))?;
        for (id, mask) in by_stem(&root.join("labelsTr"))? {
            let Some(image) = images.get(&format!("{id}_0000")).cloned() else {
                problems.push(Error::data(format!("no `{id}_0000` in imagesTr")).at(&mask));
                continue;
            };
            cases.push(Case { id, image, mask, group: None, side: None });
        }
    }
    let layout = if decathlon { "Medical Segmentation Decathlon" } else { "nnU-Net raw" }.to_string();
    Ok(Dataset { name: name.into(), root: root.into(), layout, form: Form::Volumes, cases, classes })
}

/// Checks what every layout must keep: one form, unique ids, one size per pair. Sorts by id.
fn check(mut dataset: Dataset, mut problems: Vec<Error>) -> Result<(Dataset, Vec<Error>)> {
    dataset.cases.sort();
    if dataset.cases.is_empty() && problems.is_empty() {
        problems.push(Error::data("no case in this data set").at(&dataset.root));
    }
    if let Some(pair) = dataset.cases.windows(2).find(|p| p[0].id == p[1].id) {
        let (a, b) = (pair[0].image.display(), pair[1].image.display());
        return Err(Error::data(format!("two pictures are called `{}`: `{a}` and `{b}`", pair[0].id)).at(&dataset.root));
    }
    let volumes = dataset.cases.iter().filter(|c| nifti::is_nifti(&c.image)).count();
    if volumes != 0 && volumes != dataset.cases.len() {
        return Err(Error::data(format!(
            "{volumes} volumes among {} cases: pictures and volumes are not mixed",
            dataset.cases.len()
        ))
        .at(&dataset.root));
    }
    dataset.form = if volumes > 0 { Form::Volumes } else { Form::Pictures };
    let form = dataset.form;
    let results: Vec<Result<()>> = dataset.cases.par_iter().map(|case| same_size(case, form)).collect();
    problems.extend(results.into_iter().filter_map(Result::err));
    Ok((dataset, problems))
}

fn same_size(case: &Case, form: Form) -> Result<()> {
    let difference = match form {
        Form::Pictures => {
            let (image, mask) = (picture::picture_size(&case.image)?, picture::picture_size(&case.mask)?);
            (image != mask)
                .then(|| format!("the picture has {} × {} pixels, its mask {} × {}", image.0, image.1, mask.0, mask.1))
        }
        Form::Volumes => {
            let (image, mask) = (nifti::read_header(&case.image)?, nifti::read_header(&case.mask)?);
            image.grid.difference(&mask.grid).map(|d| format!("image and labels lie on different grids: {d}"))
        }
    };
    match difference {
        None => Ok(()),
        Some(d) => Err(Error::data(format!("case `{}`: {d}", case.id))
            .at(&case.mask)
            .hint("the mask must be drawn on the picture as it is stored (EXIF orientation applied to both)")),
    }
}

/// What a folder holds instead of a known layout, and what to do.
fn unknown_layout(root: &Path) -> Error {
    let mut found: Vec<String> = std::fs::read_dir(root)
        .map(|d| d.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    found.sort();
    let sides: Vec<&String> = found.iter().filter(|f| side(f).is_some() && root.join(f).is_dir()).collect();
    let hint = match sides.as_slice() {
        [] => "expected images/ with masks/ or labels/, a dataset.json, or a CSV image,mask".to_string(),
        _ => {
            let train = sides.iter().find(|s| side(s) == Some(Side::Train)).map(|s| s.as_str()).unwrap_or("train");
            let held = sides.iter().find(|s| side(s) != Some(Side::Train)).map(|s| s.as_str()).unwrap_or("test");
            format!("it holds sides: use --dataset {0}/{train} --test {0}/{held}", root.display())
        }
    };
    let more = found.len().saturating_sub(6);
    found.truncate(6);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let what = if found.is_empty() { "nothing".to_string() } else { found.join(", ") + &more };
    Error::data(format!("no images/ and masks/ here; found {what}")).at(root).hint(hint)
}

/// A side by the words that data sets use.
pub(super) fn side(word: &str) -> Option<Side> {
    match word.to_lowercase().as_str() {
        "train" | "training" => Some(Side::Train),
        "val" | "valid" | "validation" => Some(Side::Validation),
        "test" | "testing" => Some(Side::Test),
        _ => None,
    }
}

/// The first folder below `root` with one of these names, whatever its case.
fn below(root: &Path, names: &[&str]) -> Option<PathBuf> {
    let entries: Vec<PathBuf> =
        std::fs::read_dir(root).ok()?.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    names.iter().find_map(|name| entries.iter().find(|p| file_name(p).to_lowercase() == *name).cloned())
}

/// Pictures and volumes of a folder by stem; hidden files are passed over, and of a .hdr/.img pair the header stands.
fn by_stem(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::reading(folder, &e))?.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().to_lowercase());
        let image_half = name.strip_suffix(".gz").unwrap_or(&name).ends_with(".img");
        if name.starts_with('.')
            || image_half
            || !path.is_file()
            || !(nifti::is_nifti(&path) || picture::is_picture(&path))
        {
            continue;
        }
        if let Some(other) = files.insert(stem(&path), path.clone()) {
            return Err(Error::data(format!(
                "two files for one case: `{}` and `{}`",
                file_name(&other),
                file_name(&path)
            ))
            .at(folder));
        }
    }
    Ok(files)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}
