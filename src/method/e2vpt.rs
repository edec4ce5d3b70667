//! E²VPT (Han et al., ICCV 2023, arXiv 2307.13770): prompts as keys and values, and token prompts that are pruned.
//!
//! Every block has n token prompts P `[n, d]`, as VPT's deep form, and 5 key-value prompts `[5, d]` that are appended to
//! the keys and, the same ones, to the values of its attention, behind `attn.qkv`; every window has them, and no position
//! is added to them. n is `--rank`, 10 by default. All of these train. P starts as VPT's, key-value prompts evenly within
//! ±√(6 / (5 d / heads)), which is Kaiming's for `[heads, 5, d / heads]`: away from the base. Nothing else of the image
//! encoder trains. Without the paper's dropout.
//!
//! Half-way P is pruned and training begins again. With a mask ρ_k on every token and ζ_ks on each of its 16 pieces, both
//! shared by the blocks, a token is ρ_k ζ_ks P_ks; a mask's importance is the mean over the training cases of |∂L/∂mask|,
//! which at masks of one is |Σ P · ∂L/∂P| over what the mask lies on. Half of the tokens stay (one at least), and of each
//! of these half of its pieces (four at least). What is pruned is zero from then on. Everything that trains, the decoder
//! too, goes back to the bytes it started from, and the second half of the schedule trains what is left. Unlike the
//! published code, the importance is of absolute values; the paper trains again from the start of the schedule, and
//! chooses on validation how much is pruned.
//!
//! For SAM ViT-B (n + 5) d a block: 138,240 values for n = 10, 0.154 % of the encoder; for `tiny` 17,280. Not mergeable: a
//! fine-tune is base and patch, at inference with n + 5 keys more in every attention (a pruned token is a key, too: that
//! of a zero). No pass over the training cases before, one half-way.

use super::{Added, Change, HalfWay, Prune, Settings, Slope, Tuning, vpt};
use crate::model::sam::Addition;
use crate::model::{Kind, WeightSpec};

pub(super) struct E2Vpt;

/// Token prompts a block where none are asked for.
const TOKENS: usize = 10;
/// Key-value prompts a block.
const KEYS: usize = 5;
/// Pieces of a token.
const PIECES: usize = 16;
/// Fewest pieces of a token that stay.
const FEWEST: usize = 4;

impl Tuning for E2Vpt {
    fn added(&self, specs: &[WeightSpec], settings: &Settings) -> Vec<Added> {
        let mut all = vpt::tokens(specs, settings.rank.unwrap_or(TOKENS), settings.seed);
        let owners = specs.iter().filter_map(|s| s.name.strip_suffix(".qkv.weight"));
        let keys = owners.filter_map(|owner| Addition::KeyPrompts.weights(owner, specs, KEYS)).flatten();
        // A table of relative positions is as wide as a head.
        let table = specs.iter().find(|s| s.kind == Kind::Position && s.name.ends_with(".rel_pos_h"));
        let head = table.map_or(1, |table| table.matrix().1);
        let bound = (6.0 / (KEYS * head) as f32).sqrt();
        all.extend(keys.map(|spec| Added::uniform(spec, bound, settings.seed)));
        all
    }

    fn rank(&self) -> Option<usize> {
        Some(TOKENS)
    }

    fn encoder(&self, _: &WeightSpec, _: &Settings) -> Change {
        Change::Frozen
    }

    fn half_way(&self) -> Option<HalfWay> {
        Some(HalfWay::Prune(Prune { slopes, keep }))
    }

    /// As VPT's.
    fn lr(&self) -> f64 {
        2e-3
    }
}

/// Tokens of the blocks, not their key-value prompts.
fn is_tokens(spec: &WeightSpec) -> bool {
    matches!(Addition::of(&spec.name), Some((Addition::Prompts, _)))
}

/// The piece in which a token's entry lies.
fn piece(at: usize, width: usize) -> usize {
    at * PIECES / width
}

/// Derivatives of one case's loss by the masks: of every token, then of every piece of every token.
fn slopes(added: &[Slope<'_>]) -> Vec<f32> {
    let tokens = || added.iter().filter(|slope| is_tokens(slope.spec));
    let count = tokens().map(|slope| slope.spec.matrix().0).max().unwrap_or(0);
    let mut all = vec![0f32; count * (1 + PIECES)];
    for Slope { spec, now, gradient } in tokens() {
        let width = spec.matrix().1;
        for (i, (value, slope)) in now.iter().zip(gradient).enumerate() {
            let token = i / width;
            all[token] += value * slope;
            all[count + token * PIECES + piece(i % width, width)] += value * slope;
        }
    }
    all
}

/// Which entries stay (1), from the importance of the masks.
fn keep(specs: &[&WeightSpec], importance: &[f32]) -> Vec<Vec<f32>> {
    let count = importance.len() / (1 + PIECES);
    let tokens = largest(&importance[..count], count.div_ceil(2).max(1));
    let pieces: Vec<Vec<bool>> = (0..count)
        .map(|token| largest(&importance[count + token * PIECES..][..PIECES], (PIECES / 2).max(FEWEST)))
        .collect();
    let mask = |spec: &&WeightSpec| {
        let width = spec.matrix().1;
        let stays = |i: usize| !is_tokens(spec) || (tokens[i / width] && pieces[i / width][piece(i % width, width)]);
        (0..spec.len()).map(|i| f32::from(u8::from(stays(i)))).collect()
    };
    specs.iter().map(mask).collect()
}

/// Which are the `count` largest; of equals the first.
fn largest(values: &[f32], count: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]).then(a.cmp(b)));
    let mut stays = vec![false; values.len()];
    order.into_iter().take(count).for_each(|i| stays[i] = true);
    stays
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::tests::{added_values, matrix, trained_in_encoder};
    use crate::model::SamConfig;

    #[test]
    fn counts_are_those_of_the_formula() {
        let specs = SamConfig::named("sam_vit_b").unwrap().specs();
        assert_eq!(added_values(&E2Vpt, &specs, None), 138_240);
        assert!(trained_in_encoder(&E2Vpt, &specs).is_empty());
        let added = E2Vpt.added(&specs, &Settings::default());
        let keys = added.iter().find(|a| a.spec.name.ends_with("prompts_kv")).unwrap();
        let (bound, largest) = ((6f32 / 320.0).sqrt(), keys.start.iter().fold(0f32, |most, v| most.max(v.abs())));
        assert!(largest <= bound && largest > 0.99 * bound);
    }

    /// Two blocks of three tokens, 32 wide: pieces of two. Token 1 matters little: its blocks point against each other.
    #[test]
    fn as_many_stay_as_are_asked_for_and_those_that_matter() {
        let named = |name: &str| WeightSpec { name: name.into(), ..matrix(3, 96) };
        let (a, b, keys) = (named("x.0.prompts"), named("x.1.prompts"), named("x.0.attn.prompts_kv"));
        // Piece s of a token has the derivative 2 (s + 1), of token 0 the other way round.
        let now: Vec<f32> = (0..96).map(|i| [-1.0, 1.0, 2.0][i / 32]).collect();
        let gradient: Vec<f32> = (0..96).map(|i| (i % 32 / 2 + 1) as f32).collect();
        let against = gradient.iter().enumerate().map(|(i, g)| if i / 32 == 1 { -g } else { *g }).collect();
        let slope = |spec, gradient| Slope { spec, now: now.clone(), gradient };
        let masks = slopes(&[slope(&a, gradient.clone()), slope(&b, against), slope(&keys, vec![9.0; 96])]);
        assert_eq!(masks.len(), 3 + 48);
        assert_eq!(masks[..3], [-544.0, 0.0, 1088.0]);
        assert_eq!((masks[3], masks[3 + 15], masks[3 + 16], masks[3 + 47]), (-4.0, -64.0, 0.0, 128.0));
        let importance: Vec<f32> = masks.iter().map(|m| m.abs()).collect();
        let kept = keep(&[&a, &b, &keys], &importance);
        let stays = |i: usize| i / 32 != 1 && i % 32 >= 16;
        assert!(kept[0].iter().enumerate().all(|(i, k)| (*k == 1.0) == stays(i)));
        assert!(kept[1] == kept[0] && kept[2].iter().all(|k| *k == 1.0));
    }
}
