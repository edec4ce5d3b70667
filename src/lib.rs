//! segft fine-tunes a pretrained SAM on your own medical pictures and volumes, by training the few weights that matter.
//!
//! Modules, in reading order: [`image`] and [`io`] (what data is and how it is read), [`score`] (Dice and IoU),
//! [`phantom`] and [`data`] (where cases come from).

pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod error;
pub mod image;
pub mod info;
pub mod io;
pub mod job;
pub mod method;
pub mod model;
pub mod phantom;
pub mod predict;
pub mod progress;
pub mod run;
pub mod score;
pub mod signal;
pub mod train;
pub mod tune;
