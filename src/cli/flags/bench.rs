//! `bench`.

use crate::config::Recompute;
use crate::predict::Precision;
use clap::Args;

#[derive(Args, Debug)]
pub(in crate::cli) struct Bench {
    /// vit_t, vit_b, vit_l or vit_h with random weights, or a model as of `train`
    #[arg(long, default_value = "tiny")]
    model: String,
    /// Side of the square; the model's own by default
    #[arg(long)]
    image: Option<usize>,
    /// encode, predict, chain (forward and the gradients of inputs alone), or a method for one training step of it
    #[arg(long, default_value = "gps")]
    mode: String,
    /// Pictures at once
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Entries per neuron, in modes that choose entries
    #[arg(long, default_value_t = 1)]
    k: usize,
    /// Timed repetitions
    #[arg(long, default_value_t = 3)]
    steps: usize,
    /// Repetitions before those
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Threads; all processors by default
    #[arg(long, env = "SEGFT_THREADS", hide_env_values = true)]
    pub threads: Option<usize>,
    /// In a training step, run the encoder's blocks again in backward instead of keeping their inside
    #[arg(long)]
    recompute: bool,
    /// f32, or bf16 on a processor with AMX or AVX512-BF16
    #[arg(long, default_value = "f32")]
    dtype: Precision,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", env = "SEGFT_DEVICE", hide_env_values = true)]
    device: String,
}

impl Bench {
    pub(in crate::cli) fn request(self) -> crate::job::bench::Request {
        let Bench { model, image, mode, batch, k, steps, warmup, device, dtype, .. } = self;
        let recompute = if self.recompute { Recompute::On } else { Recompute::Off };
        crate::job::bench::Request { model, image, mode, batch, k, steps, warmup, recompute, dtype, device }
    }
}
