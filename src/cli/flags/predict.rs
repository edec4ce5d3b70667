//! `predict`.

use crate::io::Replace;
use crate::job::predict::{Axis, Probabilities, Request, Slices, Weights, Window};
use crate::job::prompt::Taken;
use crate::predict::{Precision, Views};
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(in crate::cli) struct Predict {
    /// Pictures, volumes, folders
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Run folder, or `none` for the base model [default: the newest completed run]
    #[arg(long, value_name = "DIR|none")]
    run: Option<PathBuf>,
    /// Base model: with --run, the run's base; alone, the base model answers
    #[arg(long, value_name = "NAME|FILE")]
    model: Option<String>,
    /// A folder, or a file for one input
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Probability of foreground [default: the run's, 0.5 without one]
    #[arg(long, env = "SEGFT_THRESHOLD", hide_env_values = true)]
    threshold: Option<f32>,
    /// Write probability maps too
    #[arg(long)]
    prob: bool,
    /// Look at every picture or slice mirrored too, and take the mean of four: four times the work
    #[arg(long)]
    tta: bool,
    /// x0,y0,x1,y1 in pixels; i0,j0,k0,i1,j1,k1 in voxels, or mm:x0,y0,z0,x1,y1,z1 in RAS
    #[arg(long = "box", value_name = "BOX", allow_hyphen_values = true)]
    boxes: Vec<String>,
    /// x,y[,0|1] in pixels; i,j,k[,0|1] in voxels, or mm:x,y,z in RAS (repeatable)
    #[arg(long = "point", value_name = "POINT", allow_hyphen_values = true)]
    points: Vec<String>,
    /// Take the prompt from a reference, to judge a promptable model; slices without foreground get none
    #[arg(long, value_name = "none|box|point", requires = "reference", conflicts_with_all = ["boxes", "points"])]
    prompt: Option<Taken>,
    /// That reference: a file, or a folder with a file of each input's name
    #[arg(long = "ref", value_name = "PATH", requires = "prompt")]
    reference: Option<PathBuf>,
    /// Without a run, the plane in which volumes are cut: axial, coronal, sagittal or auto; a run has its own
    #[arg(long)]
    axis: Option<Axis>,
    /// Without a run, grey levels of volumes: a name such as abdomen, or LO,HI; a run has its own
    #[arg(long, value_name = "NAME|LO,HI", allow_hyphen_values = true)]
    window: Option<Window>,
    /// Without a run, the channel of volumes with several; a run has its own
    #[arg(long)]
    channel: Option<usize>,
    /// Without a run, slices below and above, as red and blue; a run has its own
    #[arg(long)]
    context: Option<usize>,
    /// In what the encoder's linear layers multiply: f32, or bf16 on a processor with AMX or AVX512-BF16, which is
    /// faster and moves probabilities in the third digit
    #[arg(long, default_value = "f32", env = "SEGFT_DTYPE", hide_env_values = true)]
    dtype: Precision,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", env = "SEGFT_DEVICE", hide_env_values = true)]
    device: String,
    /// Threads [default: all processors]
    #[arg(long, env = "SEGFT_THREADS", hide_env_values = true)]
    pub threads: Option<usize>,
}

impl Predict {
    pub(in crate::cli) fn request(&self, replace: Replace) -> Request {
        let weights = match (&self.run, &self.model) {
            (Some(run), _) if run.as_os_str() == "none" => Weights::Base,
            (Some(run), _) => Weights::Run(run.clone()),
            (None, Some(_)) => Weights::Base,
            (None, None) => Weights::Newest,
        };
        Request {
            inputs: self.inputs.clone(),
            weights,
            model: self.model.clone(),
            out: self.out.clone(),
            replace,
            threshold: self.threshold,
            probabilities: if self.prob { Probabilities::Written } else { Probabilities::Skipped },
            boxes: self.boxes.clone(),
            points: self.points.clone(),
            views: if self.tta { Views::Mirrored } else { Views::One },
            taken: self.prompt.zip(self.reference.clone()),
            slices: Slices { axis: self.axis, window: self.window, channel: self.channel, context: self.context },
            dtype: self.dtype,
            device: self.device.clone(),
        }
    }
}
