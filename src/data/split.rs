//! Dividing a set into training, validation and test, by seed and by group.

use super::{Case, Dataset, Request, Side, layout};
use crate::error::{Error, Result, nearest};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Part of a set without a given test set that is tested.
const TEST: f64 = 0.15;
/// Part that validates when the test set is given: 80 / 20.
const VALIDATION: f64 = 0.2;

/// The three sides and how they came about.
pub(super) struct Sides {
    pub train: Vec<Case>,
    pub validation: Vec<Case>,
    pub test: Vec<Case>,
    pub rule: String,
}

/// Contents of pictures by path: cases with equal contents stay together.
pub(super) type Contents = BTreeMap<PathBuf, String>;

/// Divides by the most explicit wish: a split file, sides of the set itself, folds, or the seed.
///
/// # Errors
/// A usage error when a split names unknown cases, a data error when a side would stay empty.
pub(super) fn divide(
    request: &Request,
    dataset: &Dataset,
    val: Option<&Dataset>,
    test: Option<&Dataset>,
    contents: &Contents,
) -> Result<Sides> {
    let mut cases = dataset.cases.clone();
    let mut rule = Vec::new();
    if let Some(file) = &request.split {
        apply(file, request.fold.map(|(_, i)| i), &mut cases)?;
        rule.push(format!("split {}", file.display()));
    }
    let given = |side: Side| cases.iter().filter(|c| c.side == Some(side)).cloned().collect::<Vec<_>>();
    let (mut validation, mut tested) = (given(Side::Validation), given(Side::Test));
    if request.split.is_none() && cases.iter().any(|c| c.side.is_some()) {
        rule.push("sides given by the set".into());
    }
    // With a split file, cases it does not name are left out; otherwise they train.
    let rest = cases.into_iter().filter(|c| match c.side {
        Some(side) => side == Side::Train,
        None => request.split.is_none(),
    });
    let mut groups = grouped(rest.collect(), contents);
    groups.shuffle(&mut ChaCha8Rng::seed_from_u64(request.seed));
    let (total, units) = (groups.iter().map(Vec::len).sum::<usize>(), groups.len());

    if let Some(test) = test {
        tested = test.cases.clone();
        rule.push("given test set".into());
    }
    if let Some(val) = val {
        validation = val.cases.clone();
        rule.push("given validation set".into());
    }
    // The groups of the fold that validates.
    let mut next: Vec<Vec<Case>> = Vec::new();
    if let (Some((folds, fold)), None) = (request.fold, &request.split) {
        // One each for test, validation and training, but those that are given.
        let least = 1 + usize::from(test.is_none()) + usize::from(validation.is_empty());
        if folds < least || fold >= folds || folds > groups.len() {
            return Err(Error::usage(format!("fold {fold} of {folds} with {} groups", groups.len()))
                .hint(format!("--folds N with {least} ≤ N ≤ groups, --fold I with 0 ≤ I < N")));
        }
        let mut dealt: Vec<Vec<Vec<Case>>> = vec![Vec::new(); folds];
        groups.into_iter().enumerate().for_each(|(n, group)| dealt[n % folds].push(group));
        if test.is_none() {
            tested = std::mem::take(&mut dealt[fold]).into_iter().flatten().collect();
        }
        if validation.is_empty() {
            next = std::mem::take(&mut dealt[(fold + 1) % folds]);
        }
        groups = dealt.into_iter().flatten().collect();
        rule.push(format!("fold {fold} of {folds}, seed {}", request.seed));
    }
    if tested.is_empty() {
        tested = take(&mut groups, (total as f64 * TEST).round() as usize);
        rule.push(format!("15 % test, seed {}", request.seed));
    }
    if let Some(size) = request.size {
        let count = |groups: &[Vec<Case>]| groups.iter().map(Vec::len).sum::<usize>();
        let (learning, judging) = (count(&groups), count(&next));
        let available = learning + judging;
        if size < 2 || size > available {
            return Err(Error::usage(format!(
                "--sizes {size}: there are {available} cases for training and validation"
            ))
            .hint(format!("from 2 to {available}, or all")));
        }
        // A fold that validates keeps its part.
        let kept = size * judging / available;
        cut(&mut next, kept);
        cut(&mut groups, size - kept);
        rule.push(format!("{size} cases for training and validation"));
    }
    validation.extend(next.into_iter().flatten());
    if validation.is_empty() {
        let left: usize = groups.iter().map(Vec::len).sum();
        let share = if test.is_some() { VALIDATION } else { TEST / (1.0 - TEST) };
        validation = take(&mut groups, ((left as f64 * share).round() as usize).max(1));
        // Said as a part of what the test's is a part of.
        let whole = if request.size.is_some() { left } else { total };
        let percent = 100.0 * share * left as f64 / whole as f64;
        rule.push(format!("{percent:.0} % validation, seed {}", request.seed));
    }
    let train: Vec<Case> = groups.into_iter().flatten().collect();
    for (side, name) in [(&train, "training"), (&validation, "validation"), (&tested, "test")] {
        if side.is_empty() {
            return Err(Error::data(format!(
                "no case is left for {name}: {total} cases in {units} groups are too few"
            ))
            .at(&dataset.root)
            .hint("three groups at least; or give --val and --test"));
        }
    }
    let sorted = |mut side: Vec<Case>| {
        side.sort();
        side
    };
    let rule = rule.join(", ");
    Ok(Sides { train: sorted(train), validation: sorted(validation), test: sorted(tested), rule })
}

/// Cases of one group or one content together; groups sorted, so that the order of files does not matter.
fn grouped(mut cases: Vec<Case>, contents: &Contents) -> Vec<Vec<Case>> {
    cases.sort();
    let mut groups: Vec<Vec<Case>> = Vec::new();
    let mut by_key: BTreeMap<String, usize> = BTreeMap::new();
    for case in cases {
        let keys =
            [format!("{:?}", case.unit()), format!("c{}", contents.get(&case.image).cloned().unwrap_or_default())];
        let found: Vec<usize> = keys.iter().filter_map(|k| by_key.get(k).copied()).collect();
        let at = found.first().copied().unwrap_or_else(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        // A case can tie two groups together: then the second moves into the first.
        if let Some(other) = found.get(1).copied().filter(|o| *o != at) {
            let moved = std::mem::take(&mut groups[other]);
            groups[at].extend(moved);
            by_key.values_mut().filter(|g| **g == other).for_each(|g| *g = at);
        }
        keys.into_iter().for_each(|k| {
            by_key.insert(k, at);
        });
        groups[at].push(case);
    }
    groups.retain(|g| !g.is_empty());
    groups
}

/// Takes whole groups from the end until `wanted` cases are there (at least one group, never all).
fn take(groups: &mut Vec<Vec<Case>>, wanted: usize) -> Vec<Case> {
    let mut taken = Vec::new();
    while taken.len() < wanted.max(1) && groups.len() > 1 {
        taken.extend(groups.pop().unwrap_or_default());
    }
    taken
}

/// Keeps the first `size` cases: the 50 are among the 100.
fn cut(groups: &mut Vec<Vec<Case>>, size: usize) {
    let mut left = size;
    for group in groups.iter_mut() {
        group.truncate(left);
        left -= group.len();
    }
    groups.retain(|g| !g.is_empty());
}

/// Reads sides from a file: JSON `{"train": […], "val": […], "test": […]}`, nnU-Net's list of folds, or CSV `id,split`.
fn apply(file: &Path, fold: Option<usize>, cases: &mut [Case]) -> Result<()> {
    let text = std::fs::read_to_string(file).map_err(|e| Error::reading(file, &e))?;
    let mut sides: BTreeMap<String, Side> = BTreeMap::new();
    let mut put = |id: &str, side: Side| match sides.insert(id.to_string(), side) {
        Some(other) if other != side => {
            Err(Error::data(format!("case `{id}` stands on two sides of the split")).at(file))
        }
        _ => Ok(()),
    };
    match serde_json::from_str::<Value>(&text) {
        Ok(json) => {
            let json = match json.as_array() {
                Some(folds) => folds.get(fold.unwrap_or(0)).cloned().unwrap_or(Value::Null),
                None => json,
            };
            let lists =
                json.as_object().ok_or_else(|| Error::data("expected lists `train`, `val`, `test`").at(file))?;
            for (word, ids) in lists {
                let side = layout::side(word)
                    .ok_or_else(|| Error::data(format!("unknown side `{word}`, expected train, val, test")).at(file))?;
                for id in ids.as_array().into_iter().flatten().filter_map(Value::as_str) {
                    put(id, side)?;
                }
            }
        }
        Err(_) => {
            for (n, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
                let (id, word) = line.split_once(',').unwrap_or((line, ""));
                match layout::side(word.trim()) {
                    Some(side) => put(id.trim(), side)?,
                    None if n == 0 => {}
                    None => {
                        return Err(Error::data(format!("line {}: expected id,split, found `{line}`", n + 1)).at(file));
                    }
                }
            }
        }
    }
    for id in sides.keys() {
        if !cases.iter().any(|c| c.id == *id) {
            let near = nearest(id, cases.iter().map(|c| c.id.as_str()));
            let error = Error::data(format!("the split names case `{id}`, which the set does not have")).at(file);
            return Err(match near {
                Some(near) => error.hint(format!("the nearest is `{near}`")),
                None => error,
            });
        }
    }
    cases.iter_mut().for_each(|case| case.side = sides.get(&case.id).copied());
    Ok(())
}
