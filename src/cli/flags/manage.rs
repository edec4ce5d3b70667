//! `patch`, `data` and `fetch`: files that other commands use.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum PatchCommand {
    /// Base and patch to a merged checkpoint
    Apply {
        /// Checkpoint file or model name
        base: String,
        /// patch.safetensors of a run
        patch: PathBuf,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Merged checkpoint back to the base
    Revert {
        /// Merged checkpoint file
        merged: String,
        /// The patch that was applied
        patch: PathBuf,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Which values two patches change, and how far they lie apart
    Diff {
        /// One patch
        a: PathBuf,
        /// The other
        b: PathBuf,
    },
}

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum DataCommand {
    /// Write a phantom set as a folder: `phantom` or `phantom-volume`
    Make {
        /// phantom or phantom-volume
        kind: String,
        /// The folder to make
        #[arg(long)]
        out: PathBuf,
        /// Number of cases
        #[arg(long)]
        count: Option<u64>,
        /// Seed of the generator
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Integrity and leaks of a folder or CSV
    Check {
        /// Folder or CSV
        path: PathBuf,
    },
    /// A seeded, grouped split, written as JSON
    Split {
        /// Folder or CSV
        path: PathBuf,
        /// The file to write
        #[arg(long)]
        out: PathBuf,
        /// Seed of the split
        #[arg(long, default_value_t = 0, env = "SEGFT_SEED", hide_env_values = true)]
        seed: u64,
        /// Never use the network
        #[arg(long, env = "SEGFT_OFFLINE", hide_env_values = true)]
        offline: bool,
    },
    /// The sets that segft knows by name
    List,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Fetch {
    /// What to fetch; see --list
    #[arg(required_unless_present = "list")]
    pub name: Option<String>,
    /// A file that is here already
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// What can be fetched
    #[arg(long, conflicts_with_all = ["name", "from"])]
    pub list: bool,
    /// Never use the network
    #[arg(long, env = "SEGFT_OFFLINE", hide_env_values = true)]
    pub offline: bool,
}
