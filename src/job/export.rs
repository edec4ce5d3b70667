//! `export` and `patch`: a fine-tune as an ordinary checkpoint, and back.

use super::base;
use crate::error::{Error, Result};
use crate::io::{Replace, check_ending, check_place, write_atomic};
use crate::model::checkpoint::{self, Checkpoint};
use crate::run::Run;
use crate::tune::patch::{Direction, Patch};
use std::path::Path;

/// Writes the run's base with its patch applied: official names, f32, .safetensors or .pth by the name of `to`. What was
/// added is folded into the official weights.
///
/// # Errors
/// A weights error when the base is not the run's; a usage error when `to` exists, or when the run's method added weights
/// that no official one can take up.
pub fn merged(run: &Run, model: Option<&str>, to: &Path, replace: Replace) -> Result<()> {
    check_place(to, replace)?;
    check_ending(to, &["safetensors", "pth", "pt"])?;
    let patch = Patch::load(&run.existing_patch()?)?;
    let mut base = base::load(model.unwrap_or(&patch.about.base_model))?;
    let other = |e: Error| e.at(run.patch()).hint("give the base it was trained on with --model");
    patch.turn(&mut base, Direction::Apply).map_err(other)?;
    write(&base.merged().map_err(|e| e.at(run.patch()))?, to)
}

/// Copies the run's patch.
///
/// # Errors
/// A usage error when `to` exists or the run has none.
pub fn patch_alone(run: &Run, to: &Path, replace: Replace) -> Result<()> {
    check_place(to, replace)?;
    check_ending(to, &["safetensors"])?;
    let patch = run.existing_patch()?;
    let bytes = std::fs::read(&patch).map_err(|e| Error::reading(&patch, &e))?;
    write_atomic(to, |file| file.write_all(&bytes))
}

/// Applies a patch to a base checkpoint, or takes it off a merged one, exactly to the bit.
///
/// # Errors
/// A weights error when the checkpoint does not hold the values the patch starts from; a usage error when the patch adds
/// weights that no official one can take up.
pub fn turn(checkpoint: &str, patch: &Path, direction: Direction, to: &Path, replace: Replace) -> Result<()> {
    check_place(to, replace)?;
    check_ending(to, &["safetensors", "pth", "pt"])?;
    let patch = &Run::patch_in(patch)?;
    let patch_file = Patch::load(patch)?;
    let mut base = base::load(checkpoint)?;
    if direction == Direction::Revert && patch_file.n_added() > 0 {
        return write(&beside_base(&patch_file, &base).map_err(|e| e.at(patch))?, to);
    }
    let hint = match direction {
        Direction::Apply => format!("name the base that it was made for: `{}`", patch_file.about.base_model),
        Direction::Revert => "name the checkpoint that it was applied to".into(),
    };
    patch_file.turn(&mut base, direction).map_err(|e| e.at(patch).hint(hint))?;
    write(&base.merged().map_err(|e| e.at(patch))?, to)
}

/// The base that a checkpoint with folded additions was made from. A sum does not tell its terms: to be exact to the bit,
/// the base is made into the fine-tune again and compared.
fn beside_base(patch: &Patch, checkpoint: &Checkpoint) -> Result<Checkpoint> {
    let about = &patch.about;
    let base = base::load(&about.base_model).map_err(|e| {
        let hint = e.hint.clone().unwrap_or_default();
        e.hint(format!("what the patch adds is taken off beside its base, `{}`. {hint}", about.base_model))
    })?;
    let mut tuned = base.clone();
    patch.turn(&mut tuned, Direction::Apply)?;
    let tuned = tuned.merged()?;
    let bits = |checkpoint: &Checkpoint, name: &str| {
        checkpoint.tensors.get(name).map(|t| t.data.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
    };
    match tuned.tensors.keys().find(|name| bits(&tuned, name) != bits(checkpoint, name)) {
        None => Ok(base),
        Some(name) => Err(Error::weights(format!(
            "`{name}` does not hold the fine-tune's values: the patch belongs to other weights"
        ))
        .hint("name the checkpoint that it was applied to")),
    }
}

fn write(checkpoint: &Checkpoint, to: &Path) -> Result<()> {
    match to.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("safetensors")) {
        true => checkpoint::write_safetensors(to, &checkpoint.tensors),
        false => crate::model::pth::write(to, &checkpoint.tensors),
    }
}
