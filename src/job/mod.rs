//! Jobs: one file each, reading like the sentence that describes it.

pub mod base;
pub mod bench;
pub mod case;
pub mod compare;
pub mod export;
pub mod forecast;
pub mod plan;
pub mod predict;
pub mod pretrain;
pub mod prompt;
pub mod score;
pub mod select;
pub mod train;

use crate::device::{self, Chosen};
use crate::error::Result;
use crate::progress::Progress;

/// The device that is asked for; what `auto` took is said.
fn device(wanted: &str, progress: &Progress) -> Result<Chosen> {
    let chosen = device::choose(wanted)?;
    crate::model::kernel::keep_freed_memory();
    if wanted == "auto" {
        progress.line(format!("device       {}", chosen.name));
    }
    Ok(chosen)
}
