//! The configuration of a training: defaults, then `--config` file, `SEGFT_*` environment, `--set` and flags.
//!
//! Keys are the words of the flags with `_`. An unknown key is an error that offers the nearest. The resolved
//! configuration is written into every run.

use crate::error::{Error, Result, nearest};
use crate::image::{Axis, Resize, Spacing, Window};
use crate::method::{self, Budget, Change, Group, OtherScores, Score, SelectionLoss, Settings, Train};
use crate::predict::{Precision, Preprocessing};
use crate::train::batch::Augment;
use crate::train::{Algorithm, BASE_WIDTH, EPSILON, Epsilon, LrScaling};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Whether backward runs the encoder's blocks again instead of keeping their inside: less memory, more time, the same
/// bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Where the memory at hand would not do otherwise.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// AdamW's usual decay.
const WEIGHT_DECAY: f64 = 1e-2;

/// Everything that decides a training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A named set, a folder or a CSV.
    pub dataset: String,
    /// Where the files of a named set are.
    pub data: Option<PathBuf>,
    /// A separate validation set.
    pub val: Option<PathBuf>,
    /// A separate test set, read once, at the end.
    pub test: Option<PathBuf>,
    /// Given splits.
    pub split: Option<PathBuf>,
    /// Number of cross-validation folds.
    pub folds: Option<usize>,
    /// Which of them is the test fold, counted from 0.
    pub fold: Option<usize>,
    /// Cases in all for training and validation.
    pub sizes: Option<usize>,
    /// `tiny`, `sam_vit_b`, … or a checkpoint file.
    pub model: String,
    /// The name of one of [`method::methods`].
    pub method: String,
    /// Entries chosen per output neuron; 1 where nothing is said of `ratio` and `budget` either.
    pub k: Option<usize>,
    /// Part of the weights to choose from, instead.
    pub ratio: Option<f64>,
    /// Entries in all, instead.
    pub budget: Option<usize>,
    /// What entries are chosen by; the method's own by default.
    pub score: Option<Score>,
    /// Among which weights the best are looked for; the method's own by default.
    pub group: Option<Group>,
    /// Which loss the gradients of the scores are of; that of the training by default.
    pub selection_loss: Option<SelectionLoss>,
    /// Size of what a method adds: rank, width or number; the method's own by default.
    pub rank: Option<usize>,
    /// Networks that train over the same outputs of the encoder's blocks, the best of which is kept.
    pub networks: usize,
    /// Whether the image encoder's biases train.
    pub biases: bool,
    /// Whether the mask decoder trains.
    pub decoder: bool,
    /// A selection made before.
    pub selection: Option<PathBuf>,
    /// Passes over the training cases, at most.
    pub epochs: usize,
    /// Trains for this time instead.
    pub minutes: Option<f64>,
    /// Trains exactly this many steps instead, without patience.
    pub steps: Option<usize>,
    /// Highest learning rate; the method's own by default.
    pub lr: Option<f64>,
    /// Highest learning rate of the mask decoder; `lr` by default.
    pub decoder_lr: Option<f64>,
    /// Samples a step.
    pub batch: usize,
    /// `adam`, `adamw`, `adam-atan2`, `sgd` or `adafactor`.
    pub optimizer: Algorithm,
    /// By how much of itself a matrix decays at a learning rate of 1, with `adamw`; 0.01 by default.
    pub weight_decay: Option<f64>,
    /// Adam's epsilon: a number, or `per-layer`.
    pub adam_eps: Epsilon,
    /// Whether layers of other widths learn at other rates: `none`, `noalign` or `full`.
    pub lr_scaling: LrScaling,
    /// The width at which `lr` is a layer's learning rate, and 1e-8 its epsilon.
    pub lr_base_width: usize,
    /// Whether alignment.csv is written.
    pub log_alignment: bool,
    /// Side of the network's square; the model's own by default.
    pub image_size: Option<usize>,
    /// `longest-side` or `square`.
    pub resize: Resize,
    /// `mild`, `strong` or `none`.
    pub augment: String,
    /// Epochs without a better validation mDice before training stops.
    pub patience: usize,
    /// `auto`, `axial`, `coronal` or `sagittal`.
    pub axis: Axis,
    /// `auto`, a name or `LO,HI`.
    pub window: Window,
    /// `auto`, `off` or millimetres: the scale at which volumes are shown. A run of before there was one has none.
    #[serde(default = "Spacing::off")]
    pub spacing: Spacing,
    /// Channel of volumes with several.
    pub channel: usize,
    /// Neighbour slices shown as colours.
    pub context: usize,
    /// Labels that are foreground; every one but 0 when empty.
    pub labels: Vec<u16>,
    /// Probability of foreground; chosen on validation by default.
    pub threshold: Option<f32>,
    /// The run folder.
    pub out: Option<PathBuf>,
    /// `auto`, `cpu`, `cuda`, `cuda:N`.
    pub device: String,
    /// Threads; all processors by default.
    pub threads: Option<usize>,
    /// `auto`, `on` or `off`.
    pub recompute: Recompute,
    /// In what the encoder's linear layers multiply while they train; what judges multiplies in f32.
    pub dtype: Precision,
    /// Seed of split, order and augmentation.
    pub seed: u64,
    /// Seed of the split alone; `seed` by default.
    pub split_seed: Option<u64>,
    /// Never use the network.
    pub offline: bool,
    /// Warn instead of refusing when a case stands on two sides of the split.
    pub allow_leak: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            dataset: "phantom".into(),
            data: None,
            val: None,
            test: None,
            split: None,
            folds: None,
            fold: None,
            sizes: None,
            model: "tiny".into(),
            method: "gps".into(),
            k: None,
            ratio: None,
            budget: None,
            score: None,
            group: None,
            selection_loss: None,
            rank: None,
            networks: 1,
            biases: true,
            decoder: true,
            selection: None,
            epochs: 12,
            minutes: None,
            steps: None,
            lr: None,
            decoder_lr: None,
            batch: 4,
            optimizer: Algorithm::default(),
            weight_decay: None,
            adam_eps: Epsilon::Same(EPSILON),
            lr_scaling: LrScaling::None,
            lr_base_width: BASE_WIDTH,
            log_alignment: false,
            image_size: None,
            resize: Resize::default(),
            augment: "mild".into(),
            patience: 12,
            axis: Axis::Auto,
            window: Window::Auto,
            spacing: Spacing::Auto,
            channel: 0,
            context: 0,
            labels: Vec::new(),
            threshold: None,
            out: None,
            device: "auto".into(),
            threads: None,
            recompute: Recompute::Auto,
            dtype: Precision::F32,
            seed: 0,
            split_seed: None,
            offline: false,
            allow_leak: false,
        }
    }
}

impl Config {
    /// Puts the layers on top of each other: defaults, file, environment, `--set` pairs, flags.
    ///
    /// # Errors
    /// A usage error naming the key or value that is wrong, and the nearest known key.
    pub fn resolve(
        file: Option<&Path>,
        environment: &[(String, String)],
        set: &[String],
        flags: &Value,
    ) -> Result<Config> {
        let mut layers = match serde_json::to_value(Config::default()) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        };
        let known: Vec<String> = layers.keys().cloned().collect();
        let defaults = layers.clone();
        // Which layer said what: a later one takes back what an earlier one said otherwise of the same thing.
        let mut said: BTreeMap<String, usize> = BTreeMap::new();
        let mut put = |key: &str, value: Value, from: &str, layer: usize| -> Result<()> {
            let (key, value) = match (key, &value) {
                ("no_biases", Value::Bool(no)) => ("biases", Value::Bool(!no)),
                ("no_decoder", Value::Bool(no)) => ("decoder", Value::Bool(!no)),
                _ => (key, value),
            };
            if !known.iter().any(|k| k == key) {
                let near = nearest(key, known.iter().map(String::as_str));
                let hint = near.map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
                return Err(Error::usage(format!("unknown key `{key}` in {from}"))
                    .hint(format!("{hint}keys: {}", known.join(", "))));
            }
            let value = check_type(key, value, from)?;
            let before = |key: &str| said.get(key).is_some_and(|earlier| *earlier < layer);
            let others: &[&str] = match key {
                "k" | "ratio" | "budget" => &BUDGETS,
                "steps" | "minutes" => &["steps", "minutes"],
                "method" if before("method") && layers.get(key) != Some(&value) => &OF_A_METHOD,
                _ => &[],
            };
            for other in others.iter().filter(|other| **other != key && before(other)) {
                layers.insert(other.to_string(), defaults.get(*other).cloned().unwrap_or_default());
            }
            layers.insert(key.to_string(), value);
            said.insert(key.to_string(), layer);
            Ok(())
        };
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|e| Error::reading(path, &e))?;
            let table: toml::Table =
                toml::from_str(&text).map_err(|e| Error::usage(format!("not TOML: {e}")).at(path))?;
            for (key, value) in table {
                let value = serde_json::to_value(value).map_err(|e| Error::usage(e.to_string()).at(path))?;
                put(&key, value, "the configuration file", 0).map_err(|e| e.at(path))?;
            }
        }
        for (name, value) in environment {
            if !OTHER_VARIABLES.contains(&name.as_str()) {
                put(&name.trim_start_matches("SEGFT_").to_lowercase(), scalar(value), name, 1)?;
            }
        }
        for pair in set {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| Error::usage(format!("`--set {pair}` has no `=`")).hint("write --set key=value"))?;
            put(&key.replace('-', "_"), scalar(value), "--set", 2)?;
        }
        for (key, value) in flags.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null()) {
            put(key, value.clone(), &flag(key, value), 2)?;
        }
        let config: Config = serde_json::from_value(Value::Object(layers))
            .map_err(|e| Error::usage(format!("configuration: {e}")).hint("see `segft train --help`"))?;
        config.check()?;
        Ok(config)
    }

    /// Reads the configuration that a run was made with.
    ///
    /// # Errors
    /// A usage error when the file is missing or damaged.
    pub fn load(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::reading(path, &e))?;
        toml::from_str(&text).map_err(|e| Error::usage(format!("not a run's configuration: {e}")).at(path))
    }

    /// The configuration as TOML.
    ///
    /// # Errors
    /// A job error when a value cannot be written.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::job(format!("configuration: {e}")))
    }

    /// The method's settings.
    pub fn settings(&self) -> Settings {
        let train = |yes| if yes { Train::Yes } else { Train::No };
        Settings {
            budget: self.given_budget().unwrap_or(Settings::default().budget),
            score: self.score,
            group: self.group,
            biases: train(self.biases),
            decoder: train(self.decoder),
            rank: self.rank,
            seed: self.seed,
        }
    }

    fn given_budget(&self) -> Option<Budget> {
        let ratio = self.ratio.map(Budget::Ratio);
        ratio.or(self.budget.map(Budget::Count)).or(self.k.map(Budget::PerNeuron))
    }

    /// The same with what is left to the method filled in: what is written into a run is what was used.
    ///
    /// # Errors
    /// A usage error for an unknown method.
    pub fn settled(mut self) -> Result<Config> {
        let method = method::find(&self.method)?;
        self.lr.get_or_insert_with(|| method.lr());
        self.rank = self.rank.or(method.rank());
        if self.optimizer == Algorithm::AdamW {
            self.weight_decay.get_or_insert(WEIGHT_DECAY);
        }
        if let Some(rule) = method.rule() {
            self.score.get_or_insert(rule.score);
            self.group.get_or_insert(rule.group);
            if self.score.unwrap_or(rule.score).reads_gradients() {
                self.selection_loss.get_or_insert(SelectionLoss::Task);
            }
            self.set_budget(self.settings().budget);
        }
        Ok(self)
    }

    fn set_budget(&mut self, budget: Budget) {
        (self.k, self.ratio, self.budget) = match budget {
            Budget::PerNeuron(k) => (Some(k), None, None),
            Budget::Ratio(ratio) => (None, Some(ratio), None),
            Budget::Count(count) => (None, None, Some(count)),
        };
    }

    /// The same for one of several methods that share a configuration: what says how entries are chosen is dropped for
    /// one that chooses none, of which loss for one that reads no gradients, a rank for one without, `--no-biases` for one
    /// that trains no biases anyway.
    ///
    /// # Errors
    /// A usage error for an unknown method, for a score that it does not take, and for `--no-biases` where its biases
    /// train whatever is said.
    pub fn for_method(&self, name: &str) -> Result<Config> {
        let mut config = Config { method: name.to_string(), ..self.clone() };
        let method = method::find(name)?;
        config.rank = config.rank.filter(|_| method.rank().is_some());
        if method.rule().is_none() {
            (config.k, config.ratio, config.budget, config.score, config.group) = (None, None, None, None, None);
        }
        if !config.trains_encoder()? {
            config.decoder_lr = None;
        }
        if method::rule(method, &config.settings()).is_none_or(|rule| !rule.score.reads_gradients()) {
            config.selection_loss = None;
        }
        config.biases |= method::fixed_biases(method) == Some(Change::Frozen);
        config.check_choice()?;
        config.check_biases()?;
        config.check_trains()?;
        Ok(config)
    }

    /// The same with other values of some keys; one that says how many entries are chosen replaces what said so before.
    ///
    /// # Errors
    /// A usage error naming `from` and the key.
    pub fn with(&self, settings: &[(String, String)], from: &str) -> Result<Config> {
        if settings.is_empty() {
            return Ok(self.clone());
        }
        let mut all = serde_json::to_value(self).map_err(|e| Error::job(format!("configuration: {e}")))?;
        if settings.iter().any(|(key, _)| BUDGETS.contains(&key.as_str())) {
            BUDGETS.iter().for_each(|budget| all[*budget] = Value::Null);
        }
        for (key, value) in settings {
            all[key.as_str()] = check_type(key, scalar(value), from)?;
        }
        let config: Config =
            serde_json::from_value(all).map_err(|e| Error::usage(format!("configuration of {from}: {e}")))?;
        config.check()?;
        Ok(config)
    }

    /// The same with what a given selection was made with.
    ///
    /// # Errors
    /// A usage error naming a flag that says otherwise, or the method.
    pub fn with_selection(
        mut self,
        budget: Budget,
        score: Score,
        group: Group,
        loss: Option<SelectionLoss>,
    ) -> Result<Config> {
        let made = |flag: String, with: String| {
            Err(Error::usage(format!("{flag}: the selection was made with {with}")).hint("leave the flag out"))
        };
        let word = |budget: Budget| match budget {
            Budget::PerNeuron(k) => format!("--k {k}"),
            Budget::Ratio(ratio) => format!("--ratio {ratio}"),
            Budget::Count(count) => format!("--budget {count}"),
        };
        if let Some(given) = self.given_budget().filter(|given| *given != budget) {
            return made(word(given), word(budget));
        }
        if let Some(given) = self.score.filter(|given| *given != score) {
            return made(format!("--score {given}"), format!("--score {score}"));
        }
        if let Some(given) = self.group.filter(|given| *given != group) {
            return made(format!("--group {given}"), format!("--group {group}"));
        }
        if let (Some(given), Some(loss)) = (self.selection_loss.filter(|given| Some(*given) != loss), loss) {
            return made(format!("--selection-loss {given}"), format!("--selection-loss {loss}"));
        }
        self.set_budget(budget);
        (self.score, self.group) = (Some(score), Some(group));
        self.selection_loss = self.selection_loss.or(loss);
        self.check_choice()?;
        Ok(self)
    }

    /// How cases are brought into a network of this size; the scale of `--spacing auto` is still to be found.
    pub fn preprocessing(&self, image_size: usize) -> Preprocessing {
        Preprocessing {
            resize: self.resize,
            axis: self.axis,
            window: self.window,
            channel: self.channel,
            context: self.context,
            labels: self.labels.clone(),
            ..Preprocessing::new(self.image_size.unwrap_or(image_size))
        }
    }

    /// Whether training pictures are varied.
    pub fn augment(&self) -> Augment {
        match self.augment.as_str() {
            "none" => Augment::Off,
            "strong" => Augment::Strong,
            _ => Augment::Mild,
        }
    }

    fn check(&self) -> Result<()> {
        let wrong = |m: String| Err(Error::usage(m));
        self.check_choice()?;
        self.check_biases()?;
        self.check_trains()?;
        self.check_networks()?;
        if !["mild", "strong", "none"].contains(&self.augment.as_str()) {
            let near = nearest(&self.augment, ["mild", "strong", "none"]);
            let near = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            return wrong(format!("--augment is `{}`, expected mild, strong or none{near}", self.augment));
        }
        if self.rank == Some(0) {
            return wrong("--rank must be at least 1".into());
        }
        if self.rank.is_some() && method::find(&self.method)?.rank().is_none() {
            return Err(Error::usage(format!("--rank does not go with `--method {}`", self.method))
                .hint("that method adds nothing whose size could be chosen"));
        }
        if self.batch == 0 || self.epochs == 0 || self.patience == 0 {
            return wrong("--batch, --epochs and --patience must be at least 1".into());
        }
        if self.lr.is_some_and(|lr| !(lr > 0.0 && lr.is_finite())) {
            return wrong("--lr must be above 0".into());
        }
        if self.decoder_lr.is_some_and(|lr| !(lr > 0.0 && lr.is_finite())) {
            return wrong("--decoder-lr must be above 0".into());
        }
        if self.decoder_lr.is_some() && !self.decoder {
            return wrong("--decoder-lr does not go with --no-decoder: no weight would learn at it".into());
        }
        if self.decoder_lr.is_some() && !self.trains_encoder()? {
            return Err(Error::usage(format!("--decoder-lr does not go with `--method {}`", self.method))
                .hint("nothing but the decoder trains: --lr is its learning rate"));
        }
        if self.minutes.is_some_and(|m| !(m > 0.0 && m.is_finite())) {
            return wrong("--minutes must be above 0".into());
        }
        self.check_optimizer()?;
        if self.steps == Some(0) {
            return wrong("--steps must be at least 1".into());
        }
        if self.steps.is_some() && self.minutes.is_some() {
            return wrong("--steps and --minutes exclude each other".into());
        }
        if self.threshold.is_some_and(|t| !(0.0..=1.0).contains(&t)) {
            return wrong("--threshold must lie between 0 and 1".into());
        }
        if matches!(self.spacing, Spacing::Mm(_)) && self.resize == Resize::Square {
            return wrong(
                "--spacing MM and --resize square exclude each other: one keeps the scale, one fills the square".into(),
            );
        }
        if self.folds.is_some() != self.fold.is_some() {
            return wrong("--folds N and --fold I go together".into());
        }
        Ok(())
    }

    /// `--no-biases` must change something.
    fn check_biases(&self) -> Result<()> {
        let hint = match method::fixed_biases(method::find(&self.method)?) {
            _ if self.biases => return Ok(()),
            None => return Ok(()),
            Some(Change::Frozen) => "that method trains no biases of the encoder's layers: leave it out",
            Some(_) => "that method trains the encoder's biases: without them it would be another",
        };
        Err(Error::usage(format!("--no-biases does not go with `--method {}`", self.method)).hint(hint))
    }

    /// Something must train.
    fn check_trains(&self) -> Result<()> {
        if self.decoder || method::trains(method::find(&self.method)?, &self.settings()) {
            return Ok(());
        }
        Err(Error::usage(format!("--no-decoder leaves nothing to train with `--method {}`", self.method)))
    }

    /// Whether anything trains in the image encoder or beside it.
    fn trains_encoder(&self) -> Result<bool> {
        let settings = Settings { decoder: Train::No, ..self.settings() };
        Ok(method::trains(method::find(&self.method)?, &settings))
    }

    /// Several networks share blocks that stay, and pictures that stay.
    fn check_networks(&self) -> Result<()> {
        let wrong = |with: &str, hint: &str| {
            Err(Error::usage(format!("--networks {} does not go with {with}", self.networks)).hint(hint))
        };
        match self.networks {
            0 => Err(Error::usage("--networks must be at least 1")),
            1 => Ok(()),
            _ if !method::find(&self.method)?.shares_blocks() => wrong(
                &format!("`--method {}`", self.method),
                "of `--method last` several can share what the encoder makes of a picture",
            ),
            _ if self.augment != "none" => wrong(
                &format!("`--augment {}`", self.augment),
                "pictures that are varied pass through the encoder each time: say --augment none",
            ),
            _ if self.minutes.is_some() => wrong("--minutes", "each of them trains for --epochs or --steps"),
            _ if self.log_alignment => wrong("--log-alignment", "that table is of one network"),
            _ => Ok(()),
        }
    }

    /// What concerns one optimizer is not said of another.
    fn check_optimizer(&self) -> Result<()> {
        let wrong = |m: &str| Err(Error::usage(m));
        if self.lr_base_width == 0 {
            return wrong("--lr-base-width must be at least 1");
        }
        if self.weight_decay.is_some_and(|decay| !(0.0..=1.0).contains(&decay)) {
            return wrong("--weight-decay must lie between 0 and 1");
        }
        if self.weight_decay.is_some() && self.optimizer != Algorithm::AdamW {
            return wrong("--weight-decay goes with `--optimizer adamw` alone");
        }
        let has_epsilon = matches!(self.optimizer, Algorithm::Adam | Algorithm::AdamW);
        if self.adam_eps != Epsilon::Same(EPSILON) && !has_epsilon {
            return wrong("--adam-eps goes with `--optimizer adam` and `adamw` alone: the others have no such epsilon");
        }
        Ok(())
    }

    /// What says how entries are chosen: fits itself, and the method.
    fn check_choice(&self) -> Result<()> {
        let rule = method::find(&self.method)?.rule();
        let budgets =
            [("--k", self.k.is_some()), ("--ratio", self.ratio.is_some()), ("--budget", self.budget.is_some())];
        let mut budgets = budgets.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag);
        let budget = budgets.next();
        if let (Some(one), Some(other)) = (budget, budgets.next()) {
            return Err(Error::usage(format!("{one} and {other} exclude each other")).hint("each says how many"));
        }
        let Some(rule) = rule else {
            let others = [
                ("--score", self.score.is_some()),
                ("--group", self.group.is_some()),
                ("--selection", self.selection.is_some()),
                ("--selection-loss", self.selection_loss.is_some()),
            ];
            let other = others.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag);
            return match budget.or(other) {
                None => Ok(()),
                Some(flag) => Err(Error::usage(format!("{flag} does not go with `--method {}`", self.method))
                    .hint("that method chooses no single weights")),
            };
        };
        if self.k == Some(0) || self.budget == Some(0) {
            return Err(Error::usage(format!("{} must be at least 1", budget.unwrap_or("--k"))));
        }
        if self.ratio.is_some_and(|ratio| !(ratio > 0.0 && ratio <= 1.0)) {
            return Err(Error::usage("--ratio must lie above 0 and not above 1"));
        }
        let score = self.score.unwrap_or(rule.score);
        if let Some(loss) = self.selection_loss.filter(|_| !score.reads_gradients()) {
            return Err(Error::usage(format!("--selection-loss {loss} does not go with score `{score}`"))
                .hint("that score reads no gradients"));
        }
        match self.score.filter(|score| *score != rule.score && rule.other_scores == OtherScores::Refused) {
            None => Ok(()),
            Some(score) => Err(Error::usage(format!("--score {score} does not go with `--method {}`", self.method))
                .hint(format!("that method is score `{}`; for another: --method gps --score {score}", rule.score))),
        }
    }
}

/// Keys that say how many entries are chosen.
pub const BUDGETS: [&str; 3] = ["k", "ratio", "budget"];

/// Keys that mean something to one method, and little to another.
const OF_A_METHOD: [&str; 9] = ["k", "ratio", "budget", "score", "group", "selection_loss", "rank", "lr", "decoder_lr"];

/// Variables that are no keys of a training.
const OTHER_VARIABLES: [&str; 4] = ["SEGFT_CACHE", "SEGFT_SHARED", "SEGFT_PARITY_DIR", "SEGFT_FETCH_BASE_URL"];

/// Refuses a `SEGFT_…` variable that nothing reads: a misspelt one would be passed over in silence.
///
/// # Errors
/// A usage error that offers the nearest.
pub fn check_environment(environment: &[(String, String)]) -> Result<()> {
    let keys = match serde_json::to_value(Config::default()) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let known: Vec<String> = keys
        .keys()
        .map(|key| format!("SEGFT_{}", key.to_uppercase()))
        .chain(OTHER_VARIABLES.map(String::from))
        .collect();
    match environment.iter().find(|(name, _)| name.starts_with("SEGFT_") && !known.contains(name)) {
        None => Ok(()),
        Some((name, _)) => {
            let near = nearest(name, known.iter().map(String::as_str));
            let hint = near.map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
            Err(Error::usage(format!("unknown variable `{name}` in the environment"))
                .hint(format!("{hint}known are SEGFT_ and a key in capitals, as SEGFT_EPOCHS, and SEGFT_CACHE")))
        }
    }
}

/// The flag that sets a key to this value.
pub fn flag(key: &str, value: &Value) -> String {
    let no = if *value == Value::Bool(false) { "no-" } else { "" };
    format!("--{no}{}", key.replace('_', "-"))
}

/// Checks one value by itself, so that the error can name its key and where it comes from.
fn check_type(key: &str, value: Value, from: &str) -> Result<Value> {
    let shown = match &value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let named = if from.starts_with("--") && from != "--set" { from.to_string() } else { format!("`{key}` in {from}") };
    // These say themselves which names there are.
    let renamed = |e: Error| Error { message: format!("{named}: {}", e.message), ..e };
    match key {
        "window" => {
            shown.parse::<Window>().map_err(renamed)?;
        }
        "spacing" => {
            shown.parse::<Spacing>().map_err(renamed)?;
        }
        "axis" => {
            shown.parse::<Axis>().map_err(renamed)?;
        }
        "score" => {
            shown.parse::<Score>().map_err(renamed)?;
        }
        "group" => {
            shown.parse::<Group>().map_err(renamed)?;
        }
        "selection_loss" => {
            shown.parse::<SelectionLoss>().map_err(renamed)?;
        }
        _ => {}
    }
    // In the environment a switch is often 1 or 0.
    let value = match (default_of(key), value.as_u64()) {
        (Value::Bool(_), Some(n @ 0..=1)) => Value::Bool(n == 1),
        // A name may look like a number: `--set out=3`.
        (Value::String(_), _) if value.is_number() => Value::String(shown.clone()),
        _ => value,
    };
    let alone = Map::from_iter([(key.to_string(), value.clone())]);
    match serde_json::from_value::<Config>(Value::Object(alone)) {
        Ok(_) => Ok(value),
        Err(error) => {
            let words: &[&str] = match key {
                "resize" => &["longest-side", "square"],
                "optimizer" => &["adam", "adamw", "adam-atan2", "sgd", "adafactor"],
                "lr_scaling" => &["none", "noalign", "full"],
                _ => &[],
            };
            let hint = match nearest(&shown, words.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "see `segft train --help`".into(),
            };
            Err(Error::usage(format!("{named} is `{shown}`{}", expectation(&error.to_string()))).hint(hint))
        }
    }
}

/// What was expected, in words that are not a language's types.
fn expectation(error: &str) -> String {
    let Some((_, expected)) = error.rsplit_once("expected ") else { return format!(": {error}") };
    let words = match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" | "u64" | "usize" => "a whole number that is not negative",
        "path string" => "a path",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        other => other,
    };
    format!(", expected {words}")
}

fn default_of(key: &str) -> Value {
    serde_json::to_value(Config::default()).ok().and_then(|v| v.get(key).cloned()).unwrap_or(Value::Null)
}

/// A word from the environment or `--set` as number, truth value, list or text.
fn scalar(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn flags(json: &str) -> Value {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn later_layers_win() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.toml");
        std::fs::write(&file, "epochs = 3\nseed = 1\nlr = 0.5\nwindow = \"0,80\"\n").unwrap();
        let environment = [("SEGFT_SEED".to_string(), "2".to_string()), ("SEGFT_CACHE".to_string(), "x".to_string())];
        let config =
            Config::resolve(Some(&file), &environment, &["lr=0.25".into()], &flags(r#"{"epochs":4,"k":null}"#))
                .unwrap();
        assert_eq!((config.epochs, config.seed, config.lr, config.k), (4, 2, Some(0.25), None));
        assert_eq!(config.window.to_string(), "0,80");
    }

    #[test]
    fn what_is_written_is_read() {
        let config = Config { lr: Some(1e-3), labels: vec![1, 2], ..Config::default() };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        std::fs::write(&file, config.to_toml().unwrap()).unwrap();
        assert_eq!(Config::load(&file).unwrap(), config);
    }

    #[test]
    fn a_spacing_is_a_word_or_a_number_and_old_runs_have_none() {
        let set = |text: &str| Config::resolve(None, &[], &[format!("spacing={text}")], &flags("{}"));
        assert_eq!(set("1.5").unwrap().spacing, Spacing::Mm(1.5));
        assert_eq!(set("off").unwrap().spacing, Spacing::Off);
        assert_eq!(set("0").unwrap_err().kind.exit_code(), 2);
        assert!(set("of").unwrap_err().hint.unwrap().contains("`off`"));
        let square = ["spacing=1.5".to_string(), "resize=square".to_string()];
        assert!(Config::resolve(None, &[], &square, &flags("{}")).unwrap_err().message.contains("--resize square"));
        assert_eq!(Config::default().spacing, Spacing::Auto);
        let old = Config::default().to_toml().unwrap().replace("spacing = \"auto\"\n", "");
        assert_eq!(toml::from_str::<Config>(&old).unwrap().spacing, Spacing::Off);
    }

    #[test]
    fn what_is_left_to_the_method_is_filled_in_and_stays() {
        let config = Config::default().settled().unwrap();
        let choice = (config.k, config.ratio, config.score, config.group);
        assert_eq!(choice, (Some(1), None, Some(Score::Gradient), Some(Group::Neuron)));
        assert_eq!(config.clone().settled().unwrap(), config);
        config.check().unwrap();
        let shared = Config { ratio: Some(0.5), ..Config::default() };
        assert_eq!(shared.for_method("gps").unwrap().settled().unwrap().ratio, Some(0.5));
        let full = shared.for_method("full").unwrap().settled().unwrap();
        assert_eq!((full.k, full.ratio, full.score), (None, None, None));
        full.check().unwrap();
    }

    #[test]
    fn a_later_layer_takes_back_what_an_earlier_one_said_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.toml");
        let with = |text: &str, flags: Value| {
            std::fs::write(&file, text).unwrap();
            Config::resolve(Some(&file), &[("SEGFT_MINUTES".into(), "3".into())], &[], &flags)
        };
        let config = with("k = 4\nsteps = 9\nno_decoder = true\n", json!({ "ratio": 0.5 })).unwrap();
        assert_eq!((config.k, config.ratio, config.steps, config.minutes), (None, Some(0.5), None, Some(3.0)));
        assert!(!config.decoder);
        // Within one layer it is a contradiction.
        let error = with("k = 4\nratio = 0.5\n", json!({})).unwrap_err();
        assert!(error.message.contains("exclude each other"), "{error}");
        // A run's configuration with another method: what was settled for the first is dropped, what is said now stays.
        let config =
            with("method = \"gps\"\nk = 4\nscore = \"fisher\"\nlr = 1e-3\n", json!({ "method": "full" })).unwrap();
        assert_eq!((config.method.as_str(), config.k, config.score, config.lr), ("full", None, None, None));
        let config = with("method = \"full\"\nlr = 1e-3\n", json!({ "method": "gps", "k": 2 })).unwrap();
        assert_eq!((config.k, config.lr), (Some(2), None));
        // A file that names no method says what it wants of the one that is named.
        assert!(with("k = 4\n", json!({ "method": "full" })).is_err());
    }

    #[test]
    fn something_must_train() {
        for method in ["decoder", "gps", "lora"] {
            let answer = Config::resolve(None, &[], &[], &json!({ "method": method, "decoder": false }));
            assert_eq!(answer.is_err(), method == "decoder", "{method}");
        }
        assert!(Config { decoder: false, ..Config::default() }.for_method("decoder").is_err());
    }

    #[test]
    fn no_biases_is_refused_where_it_would_change_nothing() {
        for (method, why) in [
            ("full", "trains the encoder's biases"),
            ("bitfit", "trains the encoder's biases"),
            ("decoder", "trains no biases"),
            ("norm", "trains no biases"),
            ("neuroada", "trains no biases"),
            ("sara", "trains no biases"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("a.toml");
            std::fs::write(&file, format!("method = \"{method}\"\nbiases = false\n")).unwrap();
            let from_flags = Config::resolve(None, &[], &[], &json!({ "method": method, "biases": false }));
            for answer in [from_flags, Config::resolve(Some(&file), &[], &[], &json!({}))] {
                let error = answer.unwrap_err();
                assert_eq!(error.kind.exit_code(), 2, "{error}");
                assert!(error.message.contains("--no-biases") && error.message.contains(method), "{error}");
                assert!(error.hint.unwrap().contains(why), "{method}");
            }
            // Beside others in a comparison: refused where biases would train, else what was asked for is so anyway.
            let beside = Config { biases: false, ..Config::default() }.for_method(method);
            assert_eq!(beside.is_err(), ["full", "bitfit"].contains(&method), "{method}");
        }
        let gps = Config::resolve(None, &[], &[], &json!({ "biases": false })).unwrap();
        assert_eq!(gps.for_method("gps").unwrap().settings().biases, Train::No);
    }

    #[test]
    fn a_given_selection_says_how_it_was_made() {
        let contrastive = Some(SelectionLoss::Contrastive);
        let made =
            |config: Config| config.with_selection(Budget::PerNeuron(2), Score::Fisher, Group::Tensor, contrastive);
        let config = made(Config::default()).unwrap();
        assert_eq!(config.selection_loss, contrastive);
        assert_eq!((config.k, config.score, config.group), (Some(2), Some(Score::Fisher), Some(Group::Tensor)));
        assert_eq!(made(config.clone()).unwrap(), config);
        for (config, flag) in [
            (Config { k: Some(1), ..Config::default() }, "--k 1"),
            (Config { ratio: Some(0.1), ..Config::default() }, "--ratio 0.1"),
            (Config { score: Some(Score::Snr), ..Config::default() }, "--score snr"),
            (Config { group: Some(Group::Neuron), ..Config::default() }, "--group neuron"),
            (Config { selection_loss: Some(SelectionLoss::Task), ..Config::default() }, "--selection-loss task"),
            (Config { method: "full".into(), ..Config::default() }, "`--method full`"),
        ] {
            let error = made(config).unwrap_err();
            assert_eq!((error.kind.exit_code(), error.message.contains(flag)), (2, true), "{flag}: {error}");
        }
    }

    #[test]
    fn what_concerns_one_optimizer_is_not_said_of_another() {
        let set = |pairs: &[&str]| {
            let pairs: Vec<String> = pairs.iter().map(ToString::to_string).collect();
            Config::resolve(None, &[], &pairs, &flags("{}"))
        };
        let config = set(&["optimizer=adamw", "adam_eps=per-layer", "lr_scaling=noalign"]).unwrap();
        assert_eq!((config.optimizer, config.adam_eps), (Algorithm::AdamW, Epsilon::PerLayer));
        assert_eq!(config.lr_scaling, LrScaling::NoAlign);
        assert_eq!(config.clone().settled().unwrap().weight_decay, Some(0.01));
        assert_eq!(Config::default().settled().unwrap().weight_decay, None);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        std::fs::write(&file, config.to_toml().unwrap()).unwrap();
        assert_eq!(Config::load(&file).unwrap(), config);
        // As a flag gives it, and as the environment does.
        let epsilon = Config::resolve(None, &[], &[], &flags(r#"{"adam_eps": "1e-12"}"#)).unwrap().adam_eps;
        assert_eq!((epsilon, set(&["adam_eps=1e-12"]).unwrap().adam_eps), (Epsilon::Same(1e-12), epsilon));
        for (pairs, wanted) in [
            (&["weight_decay=0.1"][..], "--weight-decay goes with"),
            (&["optimizer=sgd", "adam_eps=1e-12"], "--adam-eps goes with"),
            (&["optimizer=adam-atan2", "adam_eps=per-layer"], "--adam-eps goes with"),
            (&["adam_eps=-1"], "above 0"),
            (&["adam_eps=0"], "above 0"),
            (&["adam_eps=per-laier"], "did you mean `per-layer`"),
            (&["lr_base_width=0"], "at least 1"),
            (&["decoder_lr=0"], "above 0"),
            (&["decoder_lr=0.001", "decoder=false"], "--no-decoder"),
            (&["decoder_lr=0.001", "method=decoder"], "--lr is its learning rate"),
            (&["lr_scaling=ful"], "did you mean `full`"),
            (&["optimizer=adm"], "did you mean `adam`"),
        ] {
            let error = set(pairs).unwrap_err();
            let text = format!("{} {}", error.message, error.hint.clone().unwrap_or_default());
            assert_eq!((error.kind.exit_code(), text.contains(wanted)), (2, true), "{pairs:?}: {text}");
        }
    }

    #[test]
    fn an_unknown_key_offers_the_nearest() {
        let error = Config::resolve(None, &[], &["epocs=3".into()], &flags("{}")).unwrap_err();
        assert_eq!(error.kind.exit_code(), 2);
        assert!(error.hint.unwrap().contains("`epochs`"));
    }
}
