//! How much of a selection is the data's, and how much is chance: selections from different cases, compared in pairs.

use super::selection::{Overlap, Selection, jaccard};
use crate::method::Group;
use crate::model::WeightSpec;
use serde::Serialize;
use std::collections::BTreeMap;

/// How far selections agree in a part of the encoder: means over their pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Agreement {
    /// A kind of layer, as `attn.qkv`, or `all`.
    pub layers: String,
    /// Entries that a selection has there.
    pub n_values: f64,
    /// Entries that both have, over those that one has.
    pub overlap: f64,
    /// Entries that both have, over those that either has.
    pub jaccard: f64,
    /// The overlap of selections drawn by lot.
    pub overlap_by_chance: f64,
    /// Their Jaccard index.
    pub jaccard_by_chance: f64,
}

/// Entries of a pair of selections: in A, in B, in both, and those that both would have by chance.
#[derive(Debug, Clone, Copy, Default)]
struct Pair {
    a: f64,
    b: f64,
    both: f64,
    chance: f64,
}

/// Agreement of at least two selections made by one rule, by kind of layer in the network's order, and of all last.
///
/// Chance: as many entries as were chosen in each neuron (groups `tensor` and `global`: in each tensor), drawn by lot.
/// Of a and b entries among n both have a b / n, the mean of the hypergeometric distribution. The Jaccard index by chance
/// is the ratio of such means.
pub fn agreements(selections: &[Selection], specs: &[WeightSpec]) -> Vec<Agreement> {
    let mut kinds: Vec<String> = Vec::new();
    for spec in specs.iter().filter(|spec| selections.iter().any(|s| s.chosen.contains_key(&spec.name))) {
        let kind = layers(&spec.name);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds.push(ALL.to_string());
    let mut pairs: BTreeMap<String, Vec<Pair>> = BTreeMap::new();
    for (i, a) in selections.iter().enumerate() {
        for b in &selections[i + 1..] {
            for (kind, pair) in compare(a, b, specs) {
                pairs.entry(kind).or_default().push(pair);
            }
        }
    }
    let of = |layers: String| {
        let pairs = pairs.get(&layers).map(Vec::as_slice).unwrap_or_default();
        let mean = |f: &dyn Fn(&Pair) -> f64| pairs.iter().map(f).sum::<f64>() / pairs.len().max(1) as f64;
        Agreement {
            n_values: mean(&|p| (p.a + p.b) / 2.0),
            overlap: mean(&|p| 2.0 * p.both / (p.a + p.b)),
            jaccard: mean(&|p| jaccard(p.a, p.b, p.both)),
            overlap_by_chance: mean(&|p| 2.0 * p.chance / (p.a + p.b)),
            jaccard_by_chance: mean(&|p| jaccard(p.a, p.b, p.chance)),
            layers,
        }
    };
    kinds.into_iter().map(of).collect()
}

const ALL: &str = "all";

/// A pair by kinds of layers, where either has an entry.
fn compare(a: &Selection, b: &Selection, specs: &[WeightSpec]) -> BTreeMap<String, Pair> {
    let specs: BTreeMap<&str, &WeightSpec> = specs.iter().map(|spec| (spec.name.as_str(), spec)).collect();
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    for (name, in_a, in_b, both) in Overlap::of(a, b).rows {
        let Some(spec) = specs.get(name.as_str()) else { continue };
        let chance = by_chance(a, b, spec);
        for kind in [layers(&name), ALL.to_string()] {
            let pair = pairs.entry(kind).or_default();
            pair.a += in_a as f64;
            pair.b += in_b as f64;
            pair.both += both as f64;
            pair.chance += chance;
        }
    }
    pairs
}

/// Entries of a weight that both would have by chance.
fn by_chance(a: &Selection, b: &Selection, spec: &WeightSpec) -> f64 {
    let n = match a.group {
        Group::Neuron => spec.matrix().1,
        Group::Tensor | Group::Global => spec.len(),
    };
    let counts = |selection: &Selection| {
        let mut counts = vec![0usize; spec.len().div_ceil(n.max(1))];
        for index in selection.chosen.get(&spec.name).into_iter().flatten() {
            if let Some(count) = counts.get_mut(*index as usize / n) {
                *count += 1;
            }
        }
        counts
    };
    counts(a).into_iter().zip(counts(b)).map(|(a, b)| (a * b) as f64 / n as f64).sum()
}

/// The kind of layer that a weight belongs to: its place in a block, whichever block; else the encoder's part.
fn layers(name: &str) -> String {
    let inner = name.trim_start_matches("image_encoder.").trim_end_matches(".weight");
    let kind = match inner.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
        Some((_, place)) => place,
        None => inner.split('.').next().unwrap_or(inner),
    };
    kind.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{Budget, Chosen, Score};
    use crate::model::{Kind, Part};

    fn spec(name: &str, shape: [usize; 2]) -> WeightSpec {
        let name = format!("image_encoder.{name}.weight");
        WeightSpec { name, kind: Kind::Linear, part: Part::ImageEncoder, shape: shape.to_vec(), prompt_free: true }
    }

    fn selection(group: Group, entries: &[(&str, &[u32])]) -> Selection {
        let chosen: Chosen =
            entries.iter().map(|(name, at)| (format!("image_encoder.{name}.weight"), at.to_vec())).collect();
        Selection {
            chosen,
            method: "gps".into(),
            budget: Budget::PerNeuron(1),
            score: Score::Gradient,
            group,
            loss: None,
            seed: None,
            base_name: "toy".into(),
            base_sha256: "aa".into(),
            cases: Vec::new(),
        }
    }

    #[test]
    fn agreement_and_chance_by_hand() {
        // Two layers of one kind, each of two neurons with four inputs, and one of another with five.
        let specs = [spec("blocks.0.attn.qkv", [2, 4]), spec("blocks.1.attn.qkv", [2, 4]), spec("neck.0", [1, 5])];
        let of = |group| {
            let pick = |first: &[u32], second: &[u32], neck: &[u32]| {
                selection(group, &[("blocks.0.attn.qkv", first), ("blocks.1.attn.qkv", second), ("neck.0", neck)])
            };
            let three = [pick(&[1, 5], &[0, 4], &[2]), pick(&[1, 6], &[0, 4], &[2]), pick(&[2, 6], &[3, 7], &[2])];
            agreements(&three, &specs)
        };
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} against {b}");
        let found = of(Group::Neuron);
        assert_eq!(found.iter().map(|a| a.layers.as_str()).collect::<Vec<_>>(), ["attn.qkv", "neck", "all"]);
        // In qkv the pairs share 3, 0 and 1 of 4 entries; by chance 4 neurons · 1 · 1 / 4 = 1.
        assert_eq!(found[0].n_values, 4.0);
        near(found[0].overlap, (3.0 + 0.0 + 1.0) / 4.0 / 3.0);
        near(found[0].jaccard, (3.0 / 5.0 + 0.0 + 1.0 / 7.0) / 3.0);
        near(found[0].overlap_by_chance, 0.25);
        near(found[0].jaccard_by_chance, 1.0 / 7.0);
        // In the neck they share the one; by chance one fifth of the time.
        near(found[1].overlap, 1.0);
        near(found[1].overlap_by_chance, 0.2);
        // Of all: 4, 1 and 2 of 5; by chance 1.2 of 5.
        near(found[2].overlap, 7.0 / 15.0);
        near(found[2].overlap_by_chance, 0.24);
        near(found[2].jaccard_by_chance, 1.2 / 8.8);
        // By tensor: 2 · 2 / 8 in each qkv.
        let found = of(Group::Tensor);
        near(found[0].overlap_by_chance, 2.0 * 0.5 / 4.0);
        near(found[1].overlap_by_chance, 0.2);
    }

    #[test]
    fn what_is_drawn_by_lot_agrees_as_by_chance() {
        // 64 neurons of 16 inputs, three chosen in each by a small generator.
        let specs = [spec("blocks.0.mlp.lin1", [64, 16])];
        let mut state = 7u64;
        let mut draw = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % n) as u32
        };
        let many: Vec<Selection> = (0..40)
            .map(|_| {
                let mut all = Vec::new();
                for row in 0..64 {
                    let mut left: Vec<u32> = (0..16).collect();
                    let mut three: Vec<u32> = (0..3).map(|i| left.swap_remove(draw(16 - i) as usize)).collect();
                    three.sort_unstable();
                    all.extend(three.iter().map(|at| 16 * row + at));
                }
                selection(Group::Neuron, &[("blocks.0.mlp.lin1", &all)])
            })
            .collect();
        let all = agreements(&many, &specs).pop().unwrap();
        // 3 · 3 / 16 of 3. Its spread over 780 pairs of 64 neurons is far below 0.01.
        assert!((all.overlap_by_chance - 3.0 / 16.0).abs() < 1e-12);
        assert!((all.overlap - all.overlap_by_chance).abs() < 0.01, "{all:?}");
        assert!((all.jaccard - all.jaccard_by_chance).abs() < 0.01, "{all:?}");
    }
}
