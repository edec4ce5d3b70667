//! Score × group × budget: which entries of the encoder's matrices are trained one by one.

use super::score::{Evidence, Score, named};
use super::{Chosen, selectable};
use crate::error::{Error, Result};
use crate::model::WeightSpec;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Among which weights the largest scores are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// An output neuron: a row of a linear layer, of a convolution seen as `[out, in · kh · kw]`.
    Neuron,
    /// A weight tensor.
    Tensor,
    /// All of them together.
    Global,
}

const GROUPS: [(&str, Group); 3] = [("neuron", Group::Neuron), ("tensor", Group::Tensor), ("global", Group::Global)];

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = GROUPS.iter().find(|(_, group)| group == self).map(|(name, _)| *name);
        f.write_str(name.unwrap_or_default())
    }
}

impl FromStr for Group {
    type Err = Error;

    fn from_str(text: &str) -> Result<Group> {
        named("group", text, &GROUPS)
    }
}

/// How many entries are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Budget {
    /// So many for every output neuron, at most its fan-in. In larger groups: as many as their neurons would have had
    /// together, so that groups are compared at the same count.
    #[serde(rename = "k")]
    PerNeuron(usize),
    /// This part of the weights that can be chosen.
    #[serde(rename = "ratio")]
    Ratio(f64),
    /// So many in all.
    #[serde(rename = "budget")]
    Count(usize),
}

/// How a method chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// What is best.
    pub score: Score,
    /// Among which weights, where `--group` does not say otherwise.
    pub group: Group,
    /// Whether `--score` may ask for another score: not where the score is what the method is named after.
    pub other_scores: OtherScores,
}

/// Whether a method takes another score than its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherScores {
    /// It does.
    Taken,
    /// It would be another method.
    Refused,
}

/// A piece of the table of weights: how many rows of which fan-in, and how many entries lie before it.
struct Piece {
    before: usize,
    rows: usize,
    fan_in: usize,
}

impl Piece {
    fn row(&self, row: usize) -> Piece {
        Piece { before: self.before + row * self.fan_in, rows: 1, fan_in: self.fan_in }
    }
}

impl Budget {
    /// Entries that a piece may have, of `total` in all pieces. A count is divided in proportion to the size, rounded
    /// so that the pieces of any division make the count exactly.
    fn share(self, piece: &Piece, total: usize) -> usize {
        let upto = |entries: usize, count: usize| (entries as u128 * count as u128 / total.max(1) as u128) as usize;
        match self {
            Budget::PerNeuron(k) => piece.rows * k.min(piece.fan_in),
            Budget::Ratio(ratio) => Budget::Count((ratio * total as f64).round() as usize).share(piece, total),
            Budget::Count(count) => upto(piece.before + piece.rows * piece.fan_in, count) - upto(piece.before, count),
        }
    }

    /// Whether it can be had from these weights: known from their shapes, before any gradient is.
    ///
    /// # Errors
    /// A usage error when it is nothing or more than there is.
    pub fn check(self, specs: &[WeightSpec]) -> Result<()> {
        let (pieces, total) = pieces(specs);
        match self {
            Budget::Count(count) if count > total => {
                Err(Error::usage(format!("--budget {count}: there are {total} weights to choose from")))
            }
            _ if total > 0 && pieces.iter().all(|piece| self.share(piece, total) == 0) => {
                Err(Error::usage(format!("of {total} weights to choose from the budget leaves none"))
                    .hint("raise --ratio"))
            }
            _ => Ok(()),
        }
    }
}

/// The matrices that are chosen from, one behind the other, and the number of their entries.
fn pieces(specs: &[WeightSpec]) -> (Vec<Piece>, usize) {
    let mut total = 0;
    let piece = |spec: &WeightSpec| {
        let (rows, fan_in) = spec.matrix();
        let before = total;
        total += spec.len();
        Piece { before, rows, fan_in }
    };
    let pieces = specs.iter().filter(|spec| selectable(spec)).map(piece).collect();
    (pieces, total)
}

/// The entries that a rule takes.
///
/// # Errors
/// A job error when a gradient is not a number; a usage error when the budget is nothing or more than there is.
pub(super) fn choose(specs: &[WeightSpec], evidence: &Evidence<'_>, rule: Rule, budget: Budget) -> Result<Chosen> {
    budget.check(specs)?;
    let damping = evidence.damping();
    let all: Vec<&WeightSpec> = specs.iter().filter(|spec| selectable(spec)).collect();
    let (pieces, total) = pieces(specs);
    let share = |piece: &Piece| budget.share(piece, total);
    let wanted: usize = pieces.iter().map(share).sum();
    let mut chosen = Chosen::new();
    // Of all tensors together: (score, which tensor, index), the best so far.
    let mut best: Vec<(f32, usize, u32)> = Vec::new();
    for (number, (spec, piece)) in all.iter().zip(&pieces).enumerate() {
        let Some(scores) = rule.score.of(spec, number as u64, evidence, damping)? else { continue };
        let indices = match rule.group {
            Group::Neuron => per_row(&scores, piece.fan_in, |row| share(&piece.row(row))),
            Group::Tensor => top(&scores, share(piece)),
            Group::Global => {
                best.extend(top(&scores, wanted).into_iter().map(|i| (scores[i as usize], number, i)));
                keep(&mut best, wanted);
                Vec::new()
            }
        };
        chosen.insert(spec.name.clone(), indices);
    }
    for (_, number, index) in best {
        chosen.entry(all[number].name.clone()).or_default().push(index);
    }
    chosen.values_mut().for_each(|indices| indices.sort_unstable());
    chosen.retain(|_, indices| !indices.is_empty());
    Ok(chosen)
}

/// Sorted flat indices of the best of every row; `count` says how many a row has.
fn per_row(scores: &[f32], fan_in: usize, count: impl Fn(usize) -> usize + Sync) -> Vec<u32> {
    let row_top = |(row, scores): (usize, &[f32])| {
        top(scores, count(row)).into_iter().map(move |i| (row * fan_in) as u32 + i).collect::<Vec<u32>>()
    };
    scores.par_chunks_exact(fan_in).enumerate().flat_map_iter(row_top).collect()
}

/// Sorted indices of the `n` largest scores; the lowest index wins a tie.
fn top(scores: &[f32], n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    let by = |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b));
    if n > 0 && n < order.len() {
        order.select_nth_unstable_by(n - 1, by);
    }
    order.truncate(n);
    order.sort_unstable();
    order
}

/// The same for entries of several tensors, in any order; the first tensor wins a tie.
fn keep(best: &mut Vec<(f32, usize, u32)>, n: usize) {
    if n > 0 && n < best.len() {
        best.select_nth_unstable_by(n - 1, |a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    }
    best.truncate(n);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::score::{GradientTable, Sum};
    use crate::model::{Kind, Part};
    use std::collections::BTreeMap;

    fn spec(name: &str, kind: Kind, shape: &[usize]) -> WeightSpec {
        WeightSpec { name: name.into(), kind, part: Part::ImageEncoder, shape: shape.to_vec(), prompt_free: true }
    }

    /// Two matrices, two rows of four and two of two, and a bias that is never chosen from.
    fn table() -> (Vec<WeightSpec>, GradientTable) {
        let specs = vec![
            spec("z", Kind::Linear, &[2, 4]),
            spec("bias", Kind::Bias, &[2]),
            spec("a", Kind::Conv, &[2, 2, 1, 1]),
        ];
        let values = [
            ("z", vec![0.0, -3.0, 3.0, 1.0, /* row 1 */ 5.0, 5.0, 5.0, -6.0]),
            ("bias", vec![99.0, 99.0]),
            ("a", vec![0.5, 0.25, /* row 1 */ 6.0, -7.0]),
        ];
        (specs, values.map(|(name, v)| (name.to_string(), v)).into())
    }

    fn chosen_from(group: Group, budget: Budget) -> Result<Chosen> {
        let (specs, table) = table();
        let sums = BTreeMap::from([(Sum::Signed, table)]);
        let evidence = Evidence { cases: 1, sums, weight: &|_| Vec::new(), seed: 0 };
        choose(&specs, &evidence, Rule { score: Score::Gradient, group, other_scores: OtherScores::Taken }, budget)
    }

    fn of(z: &[u32], a: &[u32]) -> Chosen {
        let both = [("z", z), ("a", a)].into_iter().filter(|(_, v)| !v.is_empty());
        both.map(|(name, v)| (name.to_string(), v.to_vec())).collect()
    }

    #[test]
    fn groups_take_the_same_count_from_different_places() {
        // By neuron one each; by tensor the two best of each; of all: -7, then 6 and -6, then the first of the 5s.
        assert_eq!(chosen_from(Group::Neuron, Budget::PerNeuron(1)).unwrap(), of(&[1, 7], &[0, 3]));
        assert_eq!(chosen_from(Group::Tensor, Budget::PerNeuron(1)).unwrap(), of(&[4, 7], &[2, 3]));
        assert_eq!(chosen_from(Group::Global, Budget::PerNeuron(1)).unwrap(), of(&[4, 7], &[2, 3]));
        // Two a neuron: all of `a`, half of `z`; of all: the eighth is the first of the two 3s.
        assert_eq!(chosen_from(Group::Neuron, Budget::PerNeuron(2)).unwrap(), of(&[1, 2, 4, 7], &[0, 1, 2, 3]));
        assert_eq!(chosen_from(Group::Global, Budget::PerNeuron(2)).unwrap(), of(&[1, 2, 4, 5, 6, 7], &[2, 3]));
        assert_eq!(
            chosen_from(Group::Neuron, Budget::PerNeuron(9)).unwrap(),
            chosen_from(Group::Global, Budget::PerNeuron(9)).unwrap()
        );
    }

    #[test]
    fn a_count_is_met_exactly_whatever_the_group() {
        for count in 1..=12 {
            for group in [Group::Neuron, Group::Tensor, Group::Global] {
                let chosen = chosen_from(group, Budget::Count(count)).unwrap();
                assert_eq!(chosen.values().map(Vec::len).sum::<usize>(), count, "{group}");
                let ratio = chosen_from(group, Budget::Ratio(count as f64 / 12.0)).unwrap();
                assert_eq!(ratio, chosen, "{group}");
            }
        }
        // In proportion to the size: of six, four to `z`, two to each of its rows.
        assert_eq!(chosen_from(Group::Neuron, Budget::Count(6)).unwrap(), of(&[1, 2, 4, 7], &[0, 3]));
        // The three of all, the last of them in both tensors: of 6 and -6 the first tensor's is not before -7.
        assert_eq!(chosen_from(Group::Global, Budget::Count(2)).unwrap(), of(&[7], &[3]));
    }

    #[test]
    fn budgets_that_cannot_be_are_refused() {
        let error = chosen_from(Group::Global, Budget::Count(13)).unwrap_err();
        assert!(error.message.contains("--budget 13") && error.message.contains("12 weights"), "{error}");
        let error = chosen_from(Group::Neuron, Budget::Ratio(0.01)).unwrap_err();
        assert_eq!((error.kind.exit_code(), error.message.contains("none")), (2, true), "{error}");
    }

    #[test]
    fn a_weight_that_the_loss_does_not_reach_is_not_chosen_from() {
        let (specs, mut table) = table();
        table.remove("z");
        let evidence =
            Evidence { cases: 1, sums: BTreeMap::from([(Sum::Signed, table)]), weight: &|_| Vec::new(), seed: 0 };
        let rule = Rule { score: Score::Gradient, group: Group::Neuron, other_scores: OtherScores::Taken };
        assert_eq!(choose(&specs, &evidence, rule, Budget::PerNeuron(1)).unwrap(), of(&[], &[0, 3]));
    }

    #[test]
    fn ties_go_to_the_lowest_index() {
        assert_eq!(top(&[1.0, 2.0, 2.0, 2.0], 2), [1, 2]);
        assert_eq!(top(&[2.0, 1.0], 9), [0, 1]);
        let mut best = vec![(1.0, 1, 0), (1.0, 0, 5), (1.0, 0, 4), (0.5, 0, 0)];
        keep(&mut best, 2);
        best.sort_by_key(|b| b.2);
        assert_eq!(best, [(1.0, 0, 4), (1.0, 0, 5)]);
    }
}
