//! Which prediction belongs to which reference.
//!
//! Files are matched by case: the name without its ending, so that `.nii` meets `.nii.gz` and `.png` meets `.jpg`. A
//! prediction may carry what tools append (`_seg`, nnU-Net's channel `_0000`, `_prob` for maps). What has no partner is
//! an error that names the nearest file: a mean over fewer cases is a different number.

use super::Protocol;
use crate::error::{Error, Result};
use crate::io::stem;
use crate::io::{nifti, picture};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where references lie in a data set's folder.
const NESTED: [&str; 2] = ["labels", "masks"];

/// Endings of a prediction's stem that are no part of the case.
const APPENDED: [&str; 3] = ["_seg", "_prob", "_0000"];

/// A prediction and its reference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// The reference's stem.
    pub case: String,
    /// What is right.
    pub reference: PathBuf,
    /// What was predicted.
    pub prediction: PathBuf,
}

/// A file without partner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Absent {
    /// The file's stem.
    pub case: String,
    /// The file that is there.
    pub path: PathBuf,
}

/// Pairs, and what was left out; each sorted by case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pairing {
    /// What can be scored; never empty.
    pub pairs: Vec<Pair>,
    /// References that nothing was predicted for.
    pub without_prediction: Vec<Absent>,
    /// Predictions that nothing is known about.
    pub without_reference: Vec<Absent>,
}

/// What to do with files that have no partner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissingPolicy {
    /// An error.
    #[default]
    Refuse,
    /// Left out, and told (`--allow-missing`).
    LeaveOut,
}

/// Pairs a file with a file, or the files of two folders by case.
///
/// A reference folder with a `labels/` or `masks/` folder in it stands for that folder.
///
/// # Errors
/// A usage error when a path is missing or a file stands against a folder; a data error when a file has no partner,
/// a case has two files, or nothing matches.
pub fn find(prediction: &Path, reference: &Path, missing: MissingPolicy, protocol: Protocol) -> Result<Pairing> {
    for path in [prediction, reference] {
        std::fs::metadata(path).map_err(|e| Error::reading(path, &e))?;
    }
    match (prediction.is_dir(), reference.is_dir()) {
        (false, false) => {
            let case = stem(reference);
            let (reference, prediction) = (reference.to_path_buf(), prediction.to_path_buf());
            Ok(Pairing { pairs: vec![Pair { case, reference, prediction }], ..Pairing::default() })
        }
        (true, true) => {
            let reference = nested(reference)?;
            let predictions = chosen(masks(prediction)?, protocol);
            match_up(predictions, by_case(masks(&reference)?, "reference")?, missing, [prediction, &reference])
        }
        (is_folder, _) => {
            let (folder, file) = if is_folder { (prediction, reference) } else { (reference, prediction) };
            Err(Error::usage(format!(
                "a folder against the file {}: expected two files or two folders",
                file.display()
            ))
            .at(folder)
            .hint("give the file of that case in both places"))
        }
    }
}

/// The folder of references inside a data set's folder, or the folder itself.
fn nested(folder: &Path) -> Result<PathBuf> {
    let inside: Vec<PathBuf> = NESTED.iter().map(|name| folder.join(name)).filter(|path| path.is_dir()).collect();
    match inside.as_slice() {
        [] => Ok(folder.to_path_buf()),
        [one] => Ok(one.clone()),
        [one, two, ..] => Err(Error::usage(format!("both {} and {} are there", one.display(), two.display()))
            .at(folder)
            .hint("name the folder of references itself")),
    }
}

/// The mask files of a folder, sorted. Hidden files (`._` ones of archives, too) and other endings are no masks.
fn masks(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::reading(folder, &e))? {
        let path = entry.map_err(|e| Error::reading(folder, &e))?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.is_file() && (nifti::is_nifti(&path) || picture::is_picture(&path)) {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::data("no mask in this folder: expected .nii, .nii.gz, .png, .jpg, .tif or .bmp")
            .at(folder)
            .hint("name the folder that holds the masks themselves"));
    }
    files.sort();
    // A pair of header and voxels is one volume.
    let headers: Vec<String> = files.iter().filter(|p| has_ending(p, ".hdr")).map(|p| stem(p)).collect();
    files.retain(|path| !(has_ending(path, ".img") && headers.contains(&stem(path))));
    Ok(files)
}

fn has_ending(path: &Path, ending: &str) -> bool {
    let name = path.to_string_lossy().to_lowercase();
    name.strip_suffix(".gz").unwrap_or(&name).ends_with(ending)
}

/// Of a mask and a probability map of one case, the one that the protocol scores.
fn chosen(files: Vec<PathBuf>, protocol: Protocol) -> Vec<PathBuf> {
    let stems: Vec<String> = files.iter().map(|path| stem(path)).collect();
    let has_map = |case: &str| stems.iter().any(|s| s.strip_suffix("_prob") == Some(case));
    let has_mask = |case: &str| stems.iter().any(|s| s == case || s.strip_suffix("_seg") == Some(case));
    let keep = |own: &str| match (protocol, own.strip_suffix("_prob")) {
        (Protocol::Pranet, Some(_)) => true,
        (Protocol::Pranet, None) => !has_map(own.strip_suffix("_seg").unwrap_or(own)),
        (_, Some(case)) => !has_mask(case),
        (_, None) => true,
    };
    let kept: Vec<bool> = stems.iter().map(|own| keep(own)).collect();
    files.into_iter().zip(kept).filter_map(|(path, kept)| kept.then_some(path)).collect()
}

/// Files by stem.
fn by_case(files: Vec<PathBuf>, what: &str) -> Result<BTreeMap<String, PathBuf>> {
    let mut cases: BTreeMap<String, PathBuf> = BTreeMap::new();
    for path in files {
        let case = stem(&path);
        if let Some(other) = cases.insert(case.clone(), path.clone()) {
            return Err(two_files(&case, what, &other, &path));
        }
    }
    Ok(cases)
}

fn two_files(case: &str, what: &str, one: &Path, other: &Path) -> Error {
    Error::data(format!("case `{case}` has two {what}s: {} and {}", one.display(), other.display()))
        .at(other)
        .hint("keep one of them")
}

/// The reference's stem that a prediction's stem means: itself, or without what tools append.
fn case_of<'a>(own: &'a str, references: &BTreeMap<String, PathBuf>) -> Option<&'a str> {
    if references.contains_key(own) {
        return Some(own);
    }
    APPENDED.iter().filter_map(|ending| own.strip_suffix(ending)).find_map(|shorter| case_of(shorter, references))
}

fn match_up(
    predictions: Vec<PathBuf>,
    references: BTreeMap<String, PathBuf>,
    missing: MissingPolicy,
    folders: [&Path; 2],
) -> Result<Pairing> {
    let mut predicted: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut pairing = Pairing::default();
    for path in predictions {
        let own = stem(&path);
        let Some(case) = case_of(&own, &references) else {
            pairing.without_reference.push(Absent { case: own, path });
            continue;
        };
        if let Some(other) = predicted.insert(case.to_string(), path.clone()) {
            return Err(two_files(case, "prediction", &other, &path));
        }
    }
    for (case, reference) in references {
        match predicted.remove(&case) {
            Some(prediction) => pairing.pairs.push(Pair { case, reference, prediction }),
            None => pairing.without_prediction.push(Absent { case, path: reference }),
        }
    }
    if missing == MissingPolicy::Refuse {
        check_complete(&pairing, folders)?;
    }
    if pairing.pairs.is_empty() {
        return Err(Error::data(format!("no prediction matches a reference in {}", folders[1].display()))
            .at(folders[0])
            .hint("a prediction is named as its reference; endings may differ"));
    }
    Ok(pairing)
}

/// Refuses files without partner, missing predictions first: they lift a mean unseen.
fn check_complete(pairing: &Pairing, [predictions, references]: [&Path; 2]) -> Result<()> {
    let paired = |side: fn(&Pair) -> &PathBuf| pairing.pairs.iter().map(side);
    if let Some(absent) = pairing.without_prediction.first() {
        let free = pairing.without_reference.iter().map(|a| &a.path);
        let near = nearest(&absent.case, free).or_else(|| nearest(&absent.case, paired(|p| &p.prediction)));
        return Err(incomplete("reference", "prediction", absent, &pairing.without_prediction, predictions, near));
    }
    if let Some(absent) = pairing.without_reference.first() {
        let near = nearest(&absent.case, paired(|p| &p.reference));
        return Err(incomplete("prediction", "reference", absent, &pairing.without_reference, references, near));
    }
    Ok(())
}

fn incomplete(
    there: &str,
    wanted: &str,
    absent: &Absent,
    all: &[Absent],
    folder: &Path,
    near: Option<String>,
) -> Error {
    let more = match all.len() {
        1 => String::new(),
        n => format!(" (nor have {} others)", n - 1),
    };
    let near = near.map(|name| format!("; the nearest file is `{name}`")).unwrap_or_default();
    Error::data(format!(
        "this {there} has no {wanted}{more}: expected case `{}` in {}{near}",
        absent.case,
        folder.display()
    ))
    .at(&absent.path)
    .hint("name both alike (endings may differ), or leave such files out with --allow-missing")
}

/// The file name whose stem is nearest to a case.
fn nearest<'a>(case: &str, files: impl Iterator<Item = &'a PathBuf>) -> Option<String> {
    files
        .min_by_key(|path| (strsim::damerau_levenshtein(case, &stem(path)), path.to_path_buf()))
        .and_then(|path| path.file_name())
        .map(|name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
#[path = "pairs_tests.rs"]
mod tests;
