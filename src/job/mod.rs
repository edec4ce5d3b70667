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
pub mod replay;
pub mod report;
pub mod score;
pub mod select;
pub mod train;

use crate::device::{self, Chosen};
use crate::error::{Error, Result};
use crate::predict::Precision;
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

/// Whether a device takes products in this precision.
///
/// # Errors
/// A device error saying what it lacks.
fn check_dtype(chosen: &Chosen, dtype: Precision) -> Result<()> {
    let lacks = match dtype.available() {
        _ if dtype == Precision::F32 => return Ok(()),
        _ if chosen.name != "cpu" => "bf16 is made for the CPU alone",
        true => return Ok(()),
        false => "this processor has no products of bf16 (AMX or AVX512-BF16), and bf16 is slower than f32 without",
    };
    Err(Error::device(format!("no bf16 on `{}`: {lacks}", chosen.name)).hint("use --dtype f32"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_for_processors_that_have_it() {
        let cpu = device::choose("cpu").unwrap();
        check_dtype(&cpu, Precision::F32).unwrap();
        assert_eq!(check_dtype(&cpu, Precision::Bf16).is_ok(), Precision::Bf16.available());
        let gpu = Chosen { name: "cuda:0".into(), ..cpu };
        assert_eq!(check_dtype(&gpu, Precision::Bf16).unwrap_err().kind.exit_code(), 5);
    }
}
