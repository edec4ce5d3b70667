//! What a training will take of the memory, from shapes alone, and whether it is to run the encoder's blocks again.
//!
//! A pass that is differentiated is largest either when backward begins, with everything that was kept for it, or when
//! it ends, with every gradient. The sums below follow what each kernel keeps (`model/kernel`): inputs of layers whose
//! weights train, inputs of norms and activations, the three parts of attention.

use crate::config::Recompute;
use crate::device::{Chosen, available_memory};
use crate::model::sam::{Activations, Stem};
use crate::model::{Kind, Part, Sam, SamConfig};

/// Bytes of a number.
const FLOAT: u64 = 4;

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

/// Bytes of the selection pass beside the weights: sums of every encoder matrix, and one picture's pass or gradients.
pub fn selection(config: &SamConfig, size: usize, activations: Activations) -> u64 {
    let specs = config.specs();
    let matrix = |kind: Kind| matches!(kind, Kind::Linear | Kind::Conv);
    let encoder: usize = specs.iter().filter(|s| s.part == Part::ImageEncoder && matrix(s.kind)).map(|s| s.len()).sum();
    let trains = |name: &str| specs.iter().any(|s| s.name == name && s.part == Part::ImageEncoder && matrix(s.kind));
    let pass = Pass::of(config, size, activations, &trains);
    let kept = pass.kept + pass.working;
    FLOAT * (encoder + kept.max(encoder)) as u64
}

/// Bytes of training what is attached, beside the weights: moments, the state that is saved, and one step.
pub fn step(sam: &Sam, size: usize, batch: usize, activations: Activations) -> u64 {
    let trained: usize = sam.weights.iter().map(|(_, w)| w.trained()).sum();
    let trains = |name: &str| sam.weights.get(name).is_some_and(|w| w.trained() > 0);
    let pass = Pass::of(&sam.config, size, activations, &trains);
    // Moments; values and moments of the saved state; the best values, and those from before.
    let state = 7 * trained;
    FLOAT * (state + (batch * pass.kept + batch * pass.working).max(trained)) as u64
}

/// Numbers that one picture's pass holds.
struct Pass {
    /// From forward to backward.
    kept: usize,
    /// The most that backward holds beside those.
    working: usize,
}

impl Pass {
    fn of(config: &SamConfig, size: usize, activations: Activations, trains: &dyn Fn(&str) -> bool) -> Pass {
        let side = size / config.patch;
        let (tokens, c, o) = (side * side, config.embed, config.out_chans);
        let if_trained = |name: &str, numbers: usize| if trains(name) { numbers } else { 0 };
        // Whether anything so far trains: only behind it there is a gradient to compute.
        let mut tracked = config.specs().iter().take_while(|s| !s.name.contains(".blocks.0.")).any(|s| trains(&s.name));
        let mut kept = match &config.stem {
            Some(stem) if tracked => stem_kept(stem, size, c),
            Some(_) => 0,
            None => if_trained("image_encoder.patch_embed.proj.weight", tokens * 3 * config.patch * config.patch),
        };
        let (mut inside, mut working) = (0, 0);
        for i in 0..config.depth {
            let name = |rest: &str| format!("image_encoder.blocks.{i}.{rest}");
            let windowed = if config.global.contains(&i) {
                tokens
            } else {
                side.div_ceil(config.window.max(1)).pow(2) * config.window * config.window
            };
            tracked |= config.specs().iter().any(|s| s.name.starts_with(&name("")) && trains(&s.name));
            if !tracked {
                continue;
            }
            let block = 2 * tokens * c
                + 3 * windowed * c
                + 4 * tokens * c
                + if_trained(&name("attn.qkv.weight"), windowed * c)
                + if_trained(&name("attn.proj.weight"), windowed * c)
                + if_trained(&name("mlp.lin1.weight"), tokens * c)
                + if_trained(&name("mlp.lin2.weight"), 4 * tokens * c);
            let backward = (10 * tokens * c).max(8 * windowed * c);
            match activations {
                Activations::Kept => kept += block,
                Activations::Recomputed => kept += tokens * c,
            }
            (inside, working) = (inside.max(block), working.max(backward));
        }
        tracked |= config.specs().iter().any(|s| s.name.starts_with("image_encoder.neck.") && trains(&s.name));
        if tracked {
            kept += if_trained("image_encoder.neck.0.weight", tokens * c) + 3 * tokens * o;
        }
        // The decoder: 15 and 7 times the embedding in its transformer and while it upscales; the loss and the batch.
        let head = 22 * tokens * o + 19 * size * size;
        if activations == Activations::Recomputed {
            // A block's inside is there when the head's is gone; with it the block's output, its gradient, their product.
            working = (inside + working + 3 * tokens * c).saturating_sub(head);
        } else {
            working = working.saturating_sub(head);
        }
        Pass { kept: kept + head, working }
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
        let pass = |trains: &dyn Fn(&str) -> bool| Pass::of(&config, 256, Activations::Kept, trains).kept;
        let decoder = pass(&|name| name.starts_with("mask_decoder"));
        let last = pass(&|name| name.contains("blocks.11."));
        let all = pass(&|_| true);
        assert!(decoder < last && last < all, "{decoder} {last} {all}");
        let less = Pass::of(&config, 256, Activations::Recomputed, &|_| true);
        assert!(less.kept + less.working < all / 2, "{} {}", less.kept, less.working);
    }

    #[test]
    fn a_trained_weight_counts_seven_times_and_once_more() {
        // Nothing but 3 entries trains, and a picture of one patch: 7 · 3 numbers of state beside the pass.
        let device = Device::flex();
        let mut sam = checkpoint::random("tiny", SamConfig::tiny(), 1).into_sam(&device);
        let before = step(&sam, 16, 1, Activations::Kept);
        let name = "image_encoder.blocks.5.mlp.lin2.weight";
        sam.weights.get_mut(name).unwrap().train_chosen(&[0, 1, 2], &device);
        let pass = |trains: bool| {
            let pass = Pass::of(&sam.config, 16, Activations::Kept, &|n| trains && n == name);
            pass.kept + pass.working
        };
        let more = step(&sam, 16, 1, Activations::Kept) - before;
        assert_eq!(more, 4 * (7 * 3 + pass(true) - pass(false)) as u64);
    }
}
