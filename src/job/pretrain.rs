//! `pretrain`: makes a model from random weights (or goes on from a checkpoint) by a recipe that says everything.

use crate::data::{self, Form};
use crate::device;
use crate::error::{Error, Result};
use crate::io::safetensors::Values;
use crate::io::{Replace, write_atomic};
use crate::model::{Sam, SamConfig, checkpoint};
use crate::predict::Preprocessing;
use crate::progress::Progress;
use crate::signal;
use crate::train::batch::{self, Sample};
use crate::train::pretrain::{Means, Options, Pool, Stage, Surroundings};
use crate::train::state::State;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Steps between two saved states.
const SAVE_EVERY: usize = 250;

/// Everything that decides a pretraining.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// A named size, or a name for `shape`.
    pub model: String,
    /// Sizes of a network that has no name.
    pub shape: Option<SamConfig>,
    /// A checkpoint to go on from; random weights by default.
    pub start: Option<PathBuf>,
    /// Of the initialisation and of everything that is drawn.
    pub seed: u64,
    /// Pictures a step.
    pub batch: usize,
    /// One after the other.
    pub stage: Vec<StageRecipe>,
}

/// A stretch of the pretraining. What its sets leave comes from the generated world.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecipe {
    /// For people, and for the names of files.
    pub name: String,
    /// Steps.
    pub steps: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Side of the square in pixels; the model's own by default.
    pub size: Option<usize>,
    /// Sets of pictures with masks.
    #[serde(default)]
    pub set: Vec<SetRecipe>,
}

/// Pictures with masks: `phantom`, or a folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetRecipe {
    /// `phantom`, or a folder below `--data`.
    pub dataset: String,
    /// Number of phantoms.
    pub count: Option<u64>,
    /// Part of the pictures that come from here, 0..1.
    pub share: f64,
}

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Request {
    /// The recipe; a resumed pretraining has its own.
    pub recipe: Option<PathBuf>,
    /// Where the recipe's folders are.
    pub data: PathBuf,
    /// The folder to write.
    pub out: PathBuf,
    /// Go on with what is in the folder.
    pub resume: bool,
    /// `auto`, `cpu`, `cuda`, `cuda:N`.
    pub device: String,
}

/// Pretrains and writes one checkpoint a stage, f16 under the official names.
///
/// # Errors
/// A usage error for a recipe that makes no sense; data and job errors as of `train`.
pub fn run(request: &Request, replace: Replace, progress: &Progress) -> Result<Value> {
    let device = device::choose(&request.device)?;
    let folder = Folder(request.out.clone());
    let recipe = match (&request.recipe, request.resume) {
        (Some(path), false) => read(path)?,
        (None, true) => read(&folder.recipe())?,
        _ => return Err(Error::usage("name a recipe with --config, or go on with --resume --out DIR")),
    };
    let config = match &recipe.shape {
        Some(shape) => shape.clone(),
        None => SamConfig::named(&recipe.model).ok_or_else(|| {
            Error::usage(format!("no size called `{}`", recipe.model)).hint("tiny, vit_t, vit_b, vit_l, vit_h")
        })?,
    };
    let stages = recipe.stage.iter().map(|stage| open(stage, request, &recipe, &config)).collect::<Result<Vec<_>>>()?;
    let base = match &recipe.start {
        Some(path) => checkpoint::read(path)?,
        None => checkpoint::random(&recipe.model, config.clone(), recipe.seed),
    };
    if base.config != config {
        return Err(Error::weights(format!("the checkpoint is not of the shape of `{}`", recipe.model))
            .at(recipe.start.clone().unwrap_or_default()));
    }
    let state = match request.resume {
        true => State::load(&folder.state())?,
        false => folder.create(&recipe, replace)?,
    };
    progress.log_to(&folder.0.join("log.txt"));
    progress.line(format!("model        {} ({} parameters), {}", recipe.model, base.counts().0, base.origin));
    progress.line(format!("device       {}", device.name));
    for (stage, recipe) in stages.iter().zip(&recipe.stage) {
        let sets: Vec<String> = recipe.set.iter().map(|s| format!("{} {:.0} %", s.dataset, 100.0 * s.share)).collect();
        let pictures: usize = stage.pools.iter().map(|p| p.samples.len()).sum();
        progress.line(format!(
            "stage        {}: {} steps at {} pixels; {} ({pictures} pictures)",
            recipe.name,
            stage.steps,
            stage.size,
            sets.join(", ")
        ));
    }
    let options = Options { stages, batch: recipe.batch, seed: recipe.seed, save_every: SAVE_EVERY };
    let mut sam = base.into_sam(&device.device);
    signal::listen()?;
    let mut around = Around { folder: &folder, recipe: &recipe, progress, last: Means::default() };
    progress.start("pretraining", options.stages.iter().map(|s| s.steps).sum());
    let outcome = crate::train::pretrain::run(&mut sam, &options, state, &mut around, &device.device);
    progress.end();
    outcome.map_err(|e| e.at(&request.out))?;
    let last = around.last;
    let file = folder.weights(recipe.stage.len() - 1, &recipe);
    Ok(json!({
        "checkpoint": file.display().to_string(),
        "sha256": checkpoint::file_sha256(&file)?,
        "loss": last.loss, "iou_without_prompt": last.free, "iou_box": last.boxed, "iou_point": last.pointed,
    }))
}

/// Reads a recipe.
///
/// # Errors
/// A usage error naming the field that is wrong.
pub fn read(path: &Path) -> Result<Recipe> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::reading(path, &e))?;
    let recipe: Recipe = toml::from_str(&text).map_err(|e| Error::usage(format!("not a recipe: {e}")).at(path))?;
    let wrong = |m: String| Err(Error::usage(m).at(path));
    if recipe.batch == 0 || recipe.stage.is_empty() {
        return wrong("a recipe has a batch of at least 1 and at least one [[stage]]".into());
    }
    for stage in &recipe.stage {
        let shares: f64 = stage.set.iter().map(|s| s.share).sum();
        let fair = stage.set.iter().all(|s| s.share >= 0.0) && shares <= 1.0 + 1e-9;
        if stage.steps == 0 || !(stage.lr > 0.0 && stage.lr.is_finite()) || !fair {
            return wrong(format!("stage `{}`: steps and lr must be above 0, shares add up to at most 1", stage.name));
        }
    }
    Ok(recipe)
}

fn open(stage: &StageRecipe, request: &Request, recipe: &Recipe, config: &SamConfig) -> Result<Stage> {
    let size = stage.size.unwrap_or(config.image_size);
    if size == 0 || !size.is_multiple_of(config.patch) || size > 4096 {
        return Err(Error::usage(format!(
            "stage `{}`: a size of {size} is not a multiple of the patch of {} pixels, at most 4096",
            stage.name, config.patch
        )));
    }
    let preprocessing = Preprocessing::new(size);
    let pools = stage.set.iter().map(|set| {
        let samples = if set.dataset == "phantom" {
            phantoms(set.count.unwrap_or(crate::phantom::DEFAULT_PICTURES), recipe.seed, &preprocessing)?
        } else {
            let dataset = request.data.join(&set.dataset).display().to_string();
            let set = data::open(&data::Request { dataset, ..data::Request::default() })?;
            if set.form != Form::Pictures {
                return Err(Error::data("pretraining reads pictures, not volumes").at(set.root));
            }
            batch::load(&set.cases, set.form, &preprocessing)?
        };
        Ok(Pool { share: set.share, samples })
    });
    Ok(Stage { steps: stage.steps, lr: stage.lr, size, pools: pools.collect::<Result<_>>()? })
}

/// Polyp phantoms that no data set of `train` holds: their seed is the recipe's, set apart.
fn phantoms(count: u64, seed: u64, preprocessing: &Preprocessing) -> Result<Vec<Sample>> {
    let one = |index: u64| {
        let (picture, mask) = crate::phantom::polyp::generate(seed ^ APART, index);
        batch::sample(&picture, &mask, preprocessing)
    };
    (0..count).into_par_iter().map(one).collect()
}

/// Sets the phantoms of pretraining apart from those of `--dataset phantom`.
const APART: u64 = 0x7072_6574_7261_696e;

struct Folder(PathBuf);

impl Folder {
    fn create(&self, recipe: &Recipe, replace: Replace) -> Result<State> {
        crate::io::check_free(&self.recipe(), replace)?;
        let checkpoints = self.0.join("checkpoint");
        std::fs::create_dir_all(&checkpoints).map_err(|e| Error::writing(&checkpoints, &e))?;
        let text = toml::to_string(recipe).map_err(|e| Error::job(format!("recipe: {e}")))?;
        write_atomic(&self.recipe(), |to| to.write_all(text.as_bytes()))?;
        let state = State::default();
        state.save(&self.state())?;
        Ok(state)
    }
    fn recipe(&self) -> PathBuf {
        self.0.join("recipe.toml")
    }
    fn state(&self) -> PathBuf {
        self.0.join("checkpoint").join("state.safetensors")
    }
    fn weights(&self, stage: usize, recipe: &Recipe) -> PathBuf {
        self.0.join(format!("{}-{}.safetensors", recipe.model, recipe.stage[stage].name))
    }
}

struct Around<'a> {
    folder: &'a Folder,
    recipe: &'a Recipe,
    progress: &'a Progress,
    last: Means,
}

impl Surroundings for Around<'_> {
    fn stepped(&mut self, step: usize, total: usize, means: &Means) {
        let Means { loss, free, boxed, pointed } = means;
        let text = format!("loss {loss:.4}  IoU free {free:.3} box {boxed:.3} point {pointed:.3}");
        self.progress.line(format!("step {step:6} of {total}  {text}"));
        self.progress.at(step, text);
        self.last = *means;
    }

    fn save(&mut self, state: &State) -> Result<()> {
        state.save(&self.folder.state())
    }

    fn stage(&mut self, number: usize, sam: &Sam) -> Result<()> {
        let path = self.folder.weights(number, self.recipe);
        let tensors: BTreeMap<_, _> = sam.weights.iter().map(|(name, w)| (name.clone(), w.to_host())).collect();
        let views: BTreeMap<_, _> =
            tensors.iter().map(|(name, t)| (name.clone(), (t.shape.clone(), Values::F16(&t.data)))).collect();
        crate::io::safetensors::write(&path, &BTreeMap::new(), &views)?;
        self.progress.line(format!("wrote        {}", path.display()));
        Ok(())
    }

    fn stopped(&self) -> bool {
        signal::stopped()
    }
}
