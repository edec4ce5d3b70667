//! `pretrain`.

use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(in crate::cli) struct Pretrain {
    /// The recipe: a TOML file, as configs/pretrain-tiny.toml
    #[arg(long, value_name = "FILE", required_unless_present = "resume", conflicts_with = "resume")]
    config: Option<PathBuf>,
    /// Where the folders that the recipe names are
    #[arg(long, value_name = "DIR", default_value = ".")]
    data: PathBuf,
    /// The folder to write
    #[arg(long, value_name = "DIR", default_value = "pretraining")]
    out: PathBuf,
    /// Go on with what is in the folder
    #[arg(long)]
    resume: bool,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", env = "SEGFT_DEVICE", hide_env_values = true)]
    device: String,
    /// Threads [default: all processors]
    #[arg(long, env = "SEGFT_THREADS", hide_env_values = true)]
    pub threads: Option<usize>,
}

impl Pretrain {
    pub(in crate::cli) fn request(self) -> crate::job::pretrain::Request {
        let Pretrain { config, data, out, resume, device, .. } = self;
        crate::job::pretrain::Request { recipe: config, data, out, resume, device }
    }
}
