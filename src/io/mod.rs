//! The only code that opens data files. Everything written goes through [`write_atomic`].

pub mod dicom;
pub mod nifti;
pub mod picture;
pub mod safetensors;

use crate::error::{Error, Result};
use std::io::Write;
use std::path::Path;

/// Writes a whole file or nothing: a temporary name in the same folder, `fsync`, rename.
///
/// # Errors
/// A job error naming `path` when the folder is missing or full; the old file, if any, is then untouched.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |e: std::io::Error| Error::writing(path, &e);
    let file = tempfile::Builder::new().prefix(".segft-").tempfile_in(folder).map_err(failed)?;
    let mut buffered = std::io::BufWriter::with_capacity(1 << 20, file);
    fill(&mut buffered).map_err(failed)?;
    let file = buffered.into_inner().map_err(|e| failed(e.into_error()))?;
    // A temporary file is private; what is written for the user gets the usual permissions.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).map_err(failed)?;
    }
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// Refuses a name whose ending is none of these.
///
/// # Errors
/// A usage error naming `path`.
pub fn check_ending(path: &Path, endings: &[&str]) -> Result<()> {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    match endings.contains(&ending.as_str()) {
        true => Ok(()),
        false => Err(Error::usage(format!("written as .{}", endings.join(" or ."))).at(path)),
    }
}

/// Refuses a place that is not there, and what [`check_free`] refuses.
///
/// # Errors
/// A usage error naming the missing folder, or `path`.
pub fn check_place(path: &Path, replace: Replace) -> Result<()> {
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty() && !p.is_dir()) {
        return Err(Error::usage("there is no such folder to write into").at(folder));
    }
    check_free(path, replace)
}

/// Refuses to replace what exists, unless forced. Checked before the first expensive step.
///
/// # Errors
/// A usage error naming `path` when it exists and `force` is [`Replace::Never`], and when it is a folder.
pub fn check_free(path: &Path, replace: Replace) -> Result<()> {
    if replace == Replace::Allowed && path.is_dir() {
        return Err(Error::usage("is a folder, and a file is to be written").at(path));
    }
    if replace == Replace::Never && path.exists() {
        return Err(Error::usage("already exists").at(path).hint("choose another name, or replace it with --force"));
    }
    Ok(())
}

/// The name without folder and ending: `a/b.nii.gz` is `b`.
pub fn stem(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let lower = name.to_lowercase();
    let ending = if nifti::is_nifti(path) {
        let inner = lower.strip_suffix(".gz").unwrap_or(&lower);
        lower.len() - inner.rfind('.').unwrap_or(inner.len())
    } else {
        path.extension().map_or(0, |e| e.to_string_lossy().len() + 1)
    };
    // Lower case may be of another length outside ASCII; then nothing is cut.
    name.get(..name.len().saturating_sub(ending)).map_or(name.clone(), str::to_string)
}

/// Whether an existing output may be replaced (`--force`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// Existing files are an error.
    Never,
    /// Existing files are replaced.
    Allowed,
}
