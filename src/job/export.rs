//! `export` and `patch`: a fine-tune as an ordinary checkpoint, and back.

use super::base;
use crate::error::{Error, Result};
use crate::io::{Replace, check_free, write_atomic};
use crate::model::checkpoint::{self, Checkpoint};
use crate::run::Run;
use crate::tune::patch::{Direction, Patch};
use std::path::Path;

/// Writes the run's base with its patch applied: official names, f32, .safetensors or .pth by the name of `to`.
///
/// # Errors
/// A weights error when the base is not the run's; a usage error when `to` exists.
pub fn merged(run: &Run, model: Option<&str>, to: &Path, replace: Replace) -> Result<()> {
    check_free(to, replace)?;
    let patch = Patch::load(&run.patch())?;
    let mut base = base::load(model.unwrap_or(&patch.about.base_model))?;
    patch.turn(&mut base, Direction::Apply).map_err(|e| e.at(run.patch()))?;
    write(&base, to)
}

/// Copies the run's patch.
///
/// # Errors
/// A usage error when `to` exists or the run has none.
pub fn patch_alone(run: &Run, to: &Path, replace: Replace) -> Result<()> {
    check_free(to, replace)?;
    let bytes = std::fs::read(run.patch()).map_err(|e| Error::reading(run.patch(), &e))?;
    write_atomic(to, |file| file.write_all(&bytes))
}

/// Applies a patch to a base checkpoint, or takes it off a merged one, exactly to the bit.
///
/// # Errors
/// A weights error when the checkpoint does not hold the values the patch starts from.
pub fn turn(checkpoint: &str, patch: &Path, direction: Direction, to: &Path, replace: Replace) -> Result<()> {
    check_free(to, replace)?;
    let patch_file = Patch::load(patch)?;
    let mut base = base::load(checkpoint)?;
    patch_file.turn(&mut base, direction).map_err(|e| e.at(patch))?;
    write(&base, to)
}

fn write(checkpoint: &Checkpoint, to: &Path) -> Result<()> {
    match to.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => checkpoint::write_safetensors(to, &checkpoint.tensors),
        Some("pth" | "pt") => crate::model::pth::write(to, &checkpoint.tensors),
        _ => Err(Error::usage("a checkpoint is written as .safetensors or .pth").at(to).hint("give --to such a name")),
    }
}
