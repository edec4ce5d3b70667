//! What a training will take of the memory, from shapes alone, and whether it is to run the encoder's blocks again.
//!
//! A pass that is differentiated is largest when backward begins, with everything that was kept for it, when it comes to
//! the encoder, with the decoder's gradients, or when it ends, with every gradient. The sums below follow what each kernel keeps (`model/kernel`): inputs of layers whose
//! weights train, inputs of norms and activations, the three parts of attention.

use crate::config::Recompute;
use crate::device::{Chosen, available_memory};
use crate::method::selectable;
use crate::model::sam::{Activations, Stem};
use crate::model::{Part, Sam, SamConfig};
use crate::train::Options;
use std::collections::BTreeMap;

/// Bytes of a number.
const FLOAT: u64 = 4;

/// The program itself, its threads and the panels of its matrix products, in bytes.
const PROGRAM: u64 = 20 << 20;

/// Part of the memory at hand that a training may fill before blocks are run again.
const FILLED: f64 = 0.85;

/// Keeps what backward reads, or, where `need` bytes of it would not fit, runs blocks again.
pub fn activations(wanted: Recompute, need: u64, device: &Chosen) -> Activations {
    let tight = || device.name == "cpu" && available_memory().is_some_and(|free| need as f64 > FILLED * free as f64);
    match wanted {
        Recompute::On => Activations::Recomputed,
        Recompute::Off => Activations::Kept,
        Recompute::Auto if tight() => Activations::Recomputed,
        Recompute::Auto => Activations::Kept,
    }
}

/// Bytes of the selection pass beside the weights: so many sums of every encoder matrix, and one picture's pass with the
/// gradient of a layer.
pub fn selection(config: &SamConfig, size: usize, sums: usize, activations: Activations) -> u64 {
    let specs = config.specs();
    let looked_at = || specs.iter().filter(|s| selectable(s));
    let layers = looked_at().map(|s| s.len());
    let (encoder, layer) = (layers.clone().sum::<usize>(), layers.max().unwrap_or(0));
    let pass = Pass::of(config, size, activations, &looked_at().map(|s| (s.name.clone(), s.matrix().0)).collect());
    FLOAT * (sums * encoder + pass.peak(1, [0, layer])) as u64
}

/// Bytes of training what is attached, beside the weights: one step, the moments, and the state that is saved.
pub fn training(sam: &Sam, size: usize, batch: usize, activations: Activations) -> u64 {
    // The state's values and moments; the best values, and those from before.
    let trained: usize = sam.weights.iter().map(|(_, w)| w.trained()).sum();
    step(sam, size, batch, activations) + FLOAT * (3 * trained + 2 * reached(sam).iter().sum::<usize>()) as u64
}

/// Bytes of one step beside the weights, with the moments that it leaves.
pub fn step(sam: &Sam, size: usize, batch: usize, activations: Activations) -> u64 {
    let trained = sam.weights.iter().filter(|(_, w)| w.trained() > 0);
    let trained = trained.map(|(name, w)| (name.clone(), w.spec.matrix().0)).collect();
    let pass = Pass::of(&sam.config, size, activations, &trained);
    let [decoder, encoder] = reached(sam);
    FLOAT * (2 * (decoder + encoder) + pass.peak(batch, [decoder, encoder])) as u64
}

/// Bytes of the best so far of several networks while the next trains: values, state and moments, and what all start from.
pub fn waiting(sam: &Sam, networks: usize) -> u64 {
    let trained: usize = sam.weights.iter().map(|(_, w)| w.trained()).sum();
    if networks > 1 { FLOAT * 6 * trained as u64 } else { 0 }
}

/// Trained values that the loss of a single mask reaches, outside of the encoder and in it: those of the other three
/// masks get no gradient and no moments.
fn reached(sam: &Sam) -> [usize; 2] {
    let other = |name: &str| name.contains("hypernetworks_mlps.") && !name.contains("hypernetworks_mlps.0.");
    let mut sums = [0; 2];
    for (_, weight) in sam.weights.iter().filter(|(name, _)| !other(name)) {
        sums[usize::from(weight.spec.part == Part::ImageEncoder)] += weight.trained();
    }
    sums
}

/// Bytes of what is kept of one picture where blocks are frozen: its embedding, or what a side network is given.
pub fn embedding(sam: &Sam, size: usize) -> u64 {
    let config = &sam.config;
    let square = |stride: usize| (size / stride).pow(2);
    let fine = config.stem.as_ref().map_or(0, |stem| square(4) * stem.widths[1] + square(8) * stem.widths[2]);
    let coarse = if sam.has_side() { (config.depth + 1) * config.embed } else { config.out_chans };
    FLOAT * (square(config.patch) * coarse + fine) as u64
}

/// The parts of the peak, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Pictures, masks and references, decoded.
    pub data: u64,
    /// The network.
    pub weights: u64,
    /// Beside these: the selection pass.
    pub selection: u64,
    /// Beside these: the training.
    pub training: u64,
    /// What is kept of pictures where the encoder's blocks are frozen.
    pub embeddings: u64,
}

impl Memory {
    /// The most that is held at once, in MiB.
    pub fn peak_mib(&self) -> u64 {
        (PROGRAM + self.data + self.weights + self.selection.max(self.training + self.embeddings)) >> 20
    }
}

/// Seconds of a training loop, from what its parts take.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// One step with a whole batch.
    pub step: f64,
    /// One validation.
    pub validation: f64,
}

impl Pace {
    /// Seconds from a step to the end, if no patience ends it.
    pub fn rest(&self, options: &Options, samples: usize, step: usize) -> f64 {
        if let Some(minutes) = options.minutes {
            return 60.0 * minutes;
        }
        let per_epoch = samples.div_ceil(options.batch);
        let total = options.steps.unwrap_or(per_epoch.saturating_mul(options.epochs));
        let left = total.saturating_sub(step);
        // The last batch of an epoch is smaller.
        let full = samples as f64 / (per_epoch * options.batch).max(1) as f64;
        self.step * left as f64 * full + self.validation * validations(left, per_epoch, options) as f64
    }
}

/// Validations within so many steps: one an epoch, or with counted steps one a tenth of the training.
fn validations(left: usize, per_epoch: usize, options: &Options) -> usize {
    match options.steps {
        None => left.div_ceil(per_epoch),
        Some(steps) => left.div_ceil(per_epoch.max((steps / 10).max(1).next_multiple_of(per_epoch))),
    }
}

/// Numbers that one picture's pass holds.
struct Pass {
    /// From forward to backward.
    kept: usize,
    /// Of these, the decoder's and the loss's: gone when backward comes to the encoder.
    head: usize,
    /// The most that backward holds in a block beside those.
    working: usize,
    /// What is left when backward reaches its last block.
    last: usize,
}

impl Pass {
    /// The most at once, with so many gradients outside of the encoder and in it.
    fn peak(&self, batch: usize, [decoder, encoder]: [usize; 2]) -> usize {
        let begin = batch * self.kept;
        let middle = batch * (self.kept - self.head + self.working) + decoder;
        begin.max(middle).max(batch * self.last + decoder + encoder)
    }

    /// `trained`: weights that train, added ones among them, and the rows of each.
    fn of(config: &SamConfig, size: usize, activations: Activations, trained: &BTreeMap<String, usize>) -> Pass {
        let side = size / config.patch;
        let (tokens, c, o) = (side * side, config.embed, config.out_chans);
        let rows = |name: String| trained.get(&name).copied().unwrap_or(0);
        let trains = |name: String| trained.contains_key(&name);
        let below =
            |prefix: &str| trained.range(prefix.to_string()..).next().is_some_and(|(name, _)| name.starts_with(prefix));
        // The input of a linear layer whose matrix trains or has another beside it, and the output that is scaled.
        let linear = |layer: &str, tokens: usize, from: usize, to: usize| {
            let input = trains(format!("{layer}.weight"))
                || ["", "q.", "k.", "v."].iter().any(|part| trains(format!("{layer}.{part}lora_a")));
            let output = trains(format!("{layer}.ssf_scale"));
            tokens * (if input { from } else { 0 } + if output { to } else { 0 })
        };
        // Whether anything so far trains: only behind it there is a gradient to compute.
        let mut tracked = ["pos_embed", "patch_embed.", "stem.", "prompt_generator."]
            .iter()
            .any(|name| below(&format!("image_encoder.{name}")));
        // What scales a stem's output does not reach into it.
        let into_stem = |name: &String| name.starts_with("image_encoder.stem.") && !name.contains(".ssf_");
        let mut kept = match &config.stem {
            Some(stem) if trained.keys().any(into_stem) => stem_kept(stem, size, c),
            Some(_) => 0,
            None => linear("image_encoder.patch_embed.proj", tokens, 3 * config.patch * config.patch, c),
        };
        let (mut inside, mut working): (usize, usize) = (0, 0);
        for i in 0..config.depth {
            let block = format!("image_encoder.blocks.{i}");
            let (windows, window) = if config.global.contains(&i) {
                (1, side)
            } else {
                (side.div_ceil(config.window.max(1)).pow(2), config.window)
            };
            let windowed = windows * window * window;
            // Beside the block: the stream before and behind its norm, queries, keys, values and what is attended to.
            let rank = rows(format!("image_encoder.side.{i}.query"));
            if rank > 0 {
                kept += (tokens + windowed) * c + 4 * windowed * rank;
                working = working.max(3 * windowed * c);
            }
            tracked |= below(&format!("{block}."));
            if !tracked {
                continue;
            }
            let block = 9 * tokens * c
                + linear(&format!("{block}.attn.qkv"), tokens, c, 3 * c)
                + linear(&format!("{block}.attn.proj"), tokens, c, c)
                + linear(&format!("{block}.mlp.lin1"), tokens, c, 4 * c)
                + linear(&format!("{block}.mlp.lin2"), tokens, 4 * c, c)
                + match rows(format!("{block}.mlp.adapter.down.weight")) {
                    0 => 0,
                    width => tokens * (c + 2 * width),
                }
                + 3 * windows * c * (rows(format!("{block}.prompts")) + rows(format!("{block}.attn.prompts_kv")));
            // Gradients of keys and values are those of whole windows until they are summed.
            let backward = (10 * tokens * c).max(6 * tokens * c + 2 * windowed * c);
            match activations {
                Activations::Kept => kept += block,
                Activations::Recomputed => kept += tokens * c,
            }
            (inside, working) = (inside.max(block), working.max(backward));
        }
        tracked |= below("image_encoder.neck.") || below("image_encoder.side.");
        if tracked {
            kept += linear("image_encoder.neck.0", tokens, c, o) + 3 * tokens * o;
        }
        // The decoder: 15 and 7 times the embedding in its transformer and while it upscales; the loss and the batch.
        let head = 22 * tokens * o + 19 * size * size;
        // Of a block that is run again there are also its output, that one's gradient, and their product.
        let again = if activations == Activations::Recomputed && inside > 0 { 3 * tokens * c } else { 0 };
        let last = inside + working + again;
        let working = if activations == Activations::Recomputed { last } else { working };
        Pass { kept: kept + head, head, working, last }
    }
}

/// What a stem keeps: of each stage its input, its norm's and its activation's, and four times as much a block.
fn stem_kept(stem: &Stem, size: usize, embed: usize) -> usize {
    let stages = stem.widths.into_iter().zip(stem.blocks).enumerate();
    let area = |stage: usize| (size >> (stage + 1)).pow(2);
    let inner: usize = stages.map(|(i, (width, blocks))| area(i) * width * (3 + 4 * blocks)).sum();
    3 * size * size + inner + area(3) * embed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::checkpoint;
    use burn::tensor::Device;

    #[test]
    fn blocks_are_run_again_where_memory_would_not_do() {
        let cpu = Chosen { device: Device::flex(), name: "cpu".into() };
        assert_eq!(activations(Recompute::Auto, 0, &cpu), Activations::Kept);
        if available_memory().is_some() {
            assert_eq!(activations(Recompute::Auto, 1 << 50, &cpu), Activations::Recomputed);
        }
        assert_eq!(activations(Recompute::Off, 1 << 50, &cpu), Activations::Kept);
        assert_eq!(activations(Recompute::On, 0, &cpu), Activations::Recomputed);
    }

    #[test]
    fn what_is_not_differentiated_is_not_kept() {
        let config = SamConfig::named("vit_t").unwrap();
        let names = |trains: &dyn Fn(&str) -> bool| -> BTreeMap<String, usize> {
            config.specs().into_iter().map(|s| (s.name, 1)).filter(|(name, _)| trains(name)).collect()
        };
        let kept = |names: BTreeMap<String, usize>| Pass::of(&config, 256, Activations::Kept, &names).kept;
        let decoder = kept(names(&|name| name.starts_with("mask_decoder")));
        let last = kept(names(&|name| name.contains("blocks.11.")));
        let all = kept(names(&|_| true));
        assert!(decoder < last && last < all, "{decoder} {last} {all}");
        // A matrix added to a layer keeps its input, a scale its output: 256 tokens of 192, the last block is global.
        let [plain, beside, scaled] = ["bias", "q.lora_a", "ssf_scale"]
            .map(|part| kept(BTreeMap::from([(format!("image_encoder.blocks.11.attn.qkv.{part}"), 4)])));
        assert_eq!([beside - plain, scaled - plain], [256 * 192, 3 * 256 * 192]);
        let less = Pass::of(&config, 256, Activations::Recomputed, &names(&|_| true));
        assert!(less.kept + less.working < all / 2, "{} {}", less.kept, less.working);
    }

    #[test]
    fn steps_and_validations_are_counted() {
        let pace = Pace { step: 2.0, validation: 5.0 };
        let options = Options {
            epochs: 4,
            batch: 4,
            lr: 1e-3,
            optimizer: crate::tune::optimizer::Settings::default(),
            seed: 0,
            augment: crate::train::batch::Augment::Off,
            patience: 9,
            minutes: None,
            steps: None,
            save_every: 50,
        };
        // 12 samples: three steps an epoch. From step 2 on 10 steps and 4 validations.
        assert_eq!(pace.rest(&options, 12, 2), 40.0);
        // 10 samples: the third batch holds 2 of 4. 10 steps are 8⅓ whole ones.
        assert!((pace.rest(&options, 10, 2) - (2.0 * 10.0 * 10.0 / 12.0 + 20.0)).abs() < 1e-9);
        // 45 steps: a validation every second epoch and at the end, 8 in all.
        let counted = Options { epochs: usize::MAX, steps: Some(45), ..options.clone() };
        assert_eq!(pace.rest(&counted, 12, 0), 90.0 + 40.0);
        assert_eq!(pace.rest(&Options { minutes: Some(0.5), ..options }, 12, 2), 30.0);
    }

    #[test]
    fn a_trained_weight_counts_seven_times() {
        // Nothing but 3 entries trains, and a picture of one patch: 7 · 3 numbers of state beside the pass.
        let device = Device::flex();
        let mut sam = checkpoint::random("tiny", SamConfig::tiny(), 1).into_sam(&device);
        let before = training(&sam, 16, 1, Activations::Kept);
        let name = "image_encoder.blocks.5.mlp.lin2.weight";
        sam.weights.get_mut(name).unwrap().train_chosen(&[0, 1, 2], &device);
        let pass = |trains: bool| {
            let trained = trains.then(|| (name.to_string(), 1)).into_iter().collect();
            Pass::of(&sam.config, 16, Activations::Kept, &trained).peak(1, [0, 0])
        };
        let more = training(&sam, 16, 1, Activations::Kept) - before;
        assert_eq!(more, 4 * (7 * 3 + pass(true) - pass(false)) as u64);
    }
}
