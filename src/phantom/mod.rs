//! Seeded generators of polyp-like pictures and CT/MR-like volumes: for the first run, the tests and the pretraining.
//!
//! Every case depends on its seed and number alone, so a set is the same bytes however many threads make it, and a
//! longer set begins with the shorter one. Nothing is taken from real pictures.

mod camera;
mod draw;
mod finish;
mod growth;
mod noise;
pub mod polyp;
mod scene;
mod shade;
mod vector;
pub mod volume;
pub mod world;

use crate::error::{Error, Result};
use crate::io::{nifti, picture};
use rayon::prelude::*;
use std::path::Path;

/// Changes whenever the same seed gives other bytes: part of the key of anything cached.
pub const GENERATOR_VERSION: u32 = 2;

/// Pictures of the default set: a test side of 15 % is 36.
pub const DEFAULT_PICTURES: u64 = 240;

/// Volumes of the default set.
pub const DEFAULT_VOLUMES: u64 = 40;

/// Name of the table that says which case belongs to which sequence: `image,mask,group`.
pub const TABLE: &str = "cases.csv";

/// What is generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Endoscopy with polyps: `images/*.png`, `masks/*.png` (0 and 255).
    Pictures,
    /// Abdomens in CT and MR: `images/*.nii.gz`, `labels/*.nii.gz`.
    Volumes,
}

/// Name and group of a case: `p0007_2` of `p0007`, or `v0003` of itself.
pub fn name(kind: Kind, index: u64) -> (String, String) {
    match kind {
        Kind::Pictures => {
            let (group, frame) = polyp::sequence(index);
            (format!("p{group:04}_{frame}"), format!("p{group:04}"))
        }
        Kind::Volumes => (format!("v{index:04}"), format!("v{index:04}")),
    }
}

/// Writes a set of `count` cases as a new folder. The folder appears when it is complete, never half.
///
/// # Errors
/// A usage error when the folder exists and is not empty, a job error when it cannot be written.
pub fn write_set(kind: Kind, folder: &Path, seed: u64, count: u64) -> Result<()> {
    if std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file() {
        return Err(Error::usage("already exists").at(folder).hint("choose a folder that is new or empty"));
    }
    make_set(kind, folder, seed, count)
}

/// As [`write_set`], in place of a set that was made here before (`--force`).
///
/// # Errors
/// A usage error when the folder holds anything else; the old set then stays, as it does when writing fails.
pub fn replace_set(kind: Kind, folder: &Path, seed: u64, count: u64) -> Result<()> {
    let names: Vec<String> = std::fs::read_dir(folder)
        .map(|d| d.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    if names.is_empty() {
        return write_set(kind, folder, seed, count);
    }
    let ours = |name: &String| ["images", "masks", "labels", TABLE].contains(&name.as_str());
    if !folder.join(TABLE).is_file() || !names.iter().all(ours) {
        return Err(Error::usage("this folder holds something that is not a generated set")
            .at(folder)
            .hint("choose another --out"));
    }
    let failed = |e: std::io::Error| Error::writing(folder, &e);
    let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let aside = tempfile::Builder::new().prefix(".segft-").tempdir_in(parent).map_err(failed)?;
    let made = aside.path().join("new");
    make_set(kind, &made, seed, count)?;
    std::fs::rename(folder, aside.path().join("old")).map_err(failed)?;
    std::fs::rename(&made, folder).map_err(failed)
}

fn make_set(kind: Kind, folder: &Path, seed: u64, count: u64) -> Result<()> {
    if count == 0 {
        return Err(Error::usage("a set of 0 cases is no set").hint("--count 1 at least"));
    }
    let failed = |e: std::io::Error| Error::writing(folder, &e);
    let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed)?;
    let making = tempfile::Builder::new().prefix(".segft-").tempdir_in(parent).map_err(failed)?;
    let (masks, suffix) = match kind {
        Kind::Pictures => ("masks", "png"),
        Kind::Volumes => ("labels", "nii.gz"),
    };
    for name in ["images", masks] {
        std::fs::create_dir(making.path().join(name)).map_err(failed)?;
    }
    let table: Vec<String> = (0..count)
        .into_par_iter()
        .map(|index| {
            let (id, group) = name(kind, index);
            let (image, mask) = (format!("images/{id}.{suffix}"), format!("{masks}/{id}.{suffix}"));
            write_case(kind, seed, index, &making.path().join(&image), &making.path().join(&mask))?;
            Ok(format!("{image},{mask},{group}\n"))
        })
        .collect::<Result<_>>()?;
    crate::io::write_atomic(&making.path().join(TABLE), |out| {
        out.write_all(b"image,mask,group\n")?;
        table.iter().try_for_each(|line| out.write_all(line.as_bytes()))
    })?;
    // A temporary folder is private; what is written for the user gets the usual permissions.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(making.path(), std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
    }
    std::fs::rename(making.path(), folder).map_err(failed)?;
    // What was renamed is no longer there to be cleaned up.
    let _ = making.keep();
    Ok(())
}

fn write_case(kind: Kind, seed: u64, index: u64, image: &Path, mask: &Path) -> Result<()> {
    match kind {
        Kind::Pictures => {
            let (pixels, labels) = polyp::generate(seed, index);
            picture::write_picture(image, &pixels)?;
            picture::write_mask(mask, &labels)
        }
        Kind::Volumes => {
            let (volume, labels) = volume::generate(seed, index);
            nifti::write_volume(image, &volume)?;
            nifti::write_labels(mask, &labels, &nifti::Template::of_grid(&labels.grid))
        }
    }
}
