//! Jobs: one file each, reading like the sentence that describes it.

pub mod base;
pub mod bench;
pub mod case;
pub mod compare;
pub mod export;
pub mod predict;
pub mod pretrain;
pub mod prompt;
pub mod score;
pub mod select;
pub mod train;
