//! Whether a row has converged: the first seeds train again with twice the steps, and the mean Dice may not move.
//!
//! What judges that is not what chose the best epoch, where there is anything else: of 50 cases 10 choose, and the best
//! of more epochs on 10 cases is better by chance alone. A size that leaves cases of the training set out is judged on
//! those, as many as there are test cases at most; with all cases, and where nothing is left out, validation judges.
//! The test set never does.

use super::cell::Cell;
use super::row::Row;
use super::{GO_ON, Request, Sides, Size, Work};
use crate::config::Config;
use crate::data::{Case, Splits};
use crate::device;
use crate::error::{Error, Result};
use crate::job::train::{Reference, judging};
use crate::job::{base, select};
use crate::predict::Predictor;
use crate::run::Run;
use crate::score::Report;
use crate::signal;
use crate::tune::patch::{Direction, Patch};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Twice the steps must move the mean Dice by less than this.
pub(super) const STILL: f64 = 0.01;

/// What cases say that a training has nothing to do with, after its steps and after twice as many.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LeftOut {
    pub cases: usize,
    #[serde(rename = "mDice")]
    pub mdice: f64,
    /// `null` when the loss ran away.
    #[serde(rename = "mDice_doubled")]
    pub mdice_doubled: Option<f64>,
}

impl Cell {
    /// How far twice the steps moved the mean Dice, infinitely where the loss ran away; `None` for a seed that was not
    /// asked.
    pub(super) fn moved(&self) -> Option<f64> {
        self.converged?;
        let (once, twice) = match &self.left_out {
            Some(left_out) => (left_out.mdice, left_out.mdice_doubled),
            None => (self.validation_mdice, self.validation_mdice_doubled),
        };
        Some(twice.map_or(f64::INFINITY, |twice| twice - once))
    }
}

/// Whether the mean over seeds stays where it is; `None` as long as seeds are missing that are to be asked.
pub(super) fn converged(cells: &[Cell]) -> Option<bool> {
    let moved: Vec<f64> = cells.iter().filter_map(Cell::moved).collect();
    let asked = cells.first()?.setup.doubled_seeds;
    (moved.len() >= asked).then(|| (moved.iter().sum::<f64>() / moved.len() as f64).abs() < STILL)
}

/// How many left out cases judge a cell, 0 where validation does; `None` for a seed that was not asked.
pub(super) fn judges(cell: &Cell) -> Option<usize> {
    cell.converged.map(|_| cell.left_out.as_ref().map_or(0, |left_out| left_out.cases))
}

/// Refuses files of one size that were not judged alike.
///
/// # Errors
/// A data error that names the file.
pub(super) fn check_judges(files: &[(PathBuf, usize)]) -> Result<()> {
    let Some((_, wanted)) = files.first() else { return Ok(()) };
    files.iter().try_for_each(|(path, found)| check_judge(path, *found, *wanted))
}

/// # Errors
/// A data error when as many left out cases as wanted did not judge.
pub(super) fn check_judge(path: &Path, found: usize, wanted: usize) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(Error::data(format!("twice the steps were judged by {found} cases that the size leaves out, not {wanted}"))
        .at(path)
        .hint("remove the file, and it is made again"))
}

impl Request {
    /// Whether this seed's training is made again with twice the steps.
    pub(super) fn is_doubled(&self, seed: u64) -> bool {
        self.seeds.iter().take(self.doubled_seeds).any(|asked| *asked == seed)
    }
}

impl Work<'_> {
    /// The cases of the training set that a size leaves out: of nobody, and with no content, that is on one of the sides.
    pub(super) fn left_out(&self, size: Size, splits: &Splits) -> Result<Vec<Case>> {
        if size == Size::All {
            return Ok(Vec::new());
        }
        let split_seed = Some(self.request.split_seed());
        let all = select::prepare(&Config { sizes: None, split_seed, ..self.request.config.clone() }, self.progress)?;
        let sides = [&splits.train, &splits.validation, &splits.test];
        let units: BTreeSet<_> = sides.iter().flat_map(|side| side.iter().map(Case::unit)).collect();
        let contents: BTreeSet<_> =
            sides.iter().flat_map(|side| side.iter().filter_map(|case| splits.contents.get(&case.image))).collect();
        let copied = |case: &Case| all.contents.get(&case.image).is_some_and(|content| contents.contains(content));
        let mut others: Vec<Case> = all.train.iter().chain(&all.validation).cloned().collect();
        others.retain(|case| !units.contains(&case.unit()) && !copied(case));
        others.sort();
        others.truncate(splits.test.len());
        Ok(others)
    }

    /// The mean Dice of the left out cases with the fine-tune in a run folder; `None` where no case is left out.
    pub(super) fn judged_by_others(&self, row: &Row, sides: &Sides, folder: &Path) -> Result<Option<f64>> {
        if sides.left_out.is_empty() {
            return Ok(None);
        }
        let config = row.config(&self.request.config)?;
        let patch = Patch::load(&Run { folder: folder.to_path_buf() }.patch())?;
        let mut tuned = base::load(&config.model)?;
        patch.turn(&mut tuned, Direction::Apply)?;
        let device = device::choose(&config.device)?.device;
        let sam = tuned.into_sam(&device);
        let about = &patch.about;
        let predictor = Predictor::new(&sam, &about.preprocessing, &device);
        let scores = sides.left_out.iter().map(|case| {
            signal::check().map_err(|e| e.hint(GO_ON))?;
            Reference::of(case, about.form, &about.preprocessing)?.judged(&predictor, about.threshold)
        });
        // As validation counts it.
        Ok(Some(Report::from_cases(scores.collect::<Result<_>>()?, &judging())?.mdice.unwrap_or(0.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::cell::Setup;
    use super::*;

    fn cell(once: f64, twice: Option<f64>, left_out: Option<LeftOut>) -> Cell {
        let setup = Setup { doubled_seeds: 1, ..Setup::default() };
        let (validation_mdice, validation_mdice_doubled) = (once, twice);
        // The cell's own word does not matter but for having been asked.
        Cell { setup, validation_mdice, validation_mdice_doubled, left_out, converged: Some(true), ..Cell::default() }
    }

    #[test]
    fn the_mean_over_seeds_decides_on_cases_that_chose_nothing() {
        let others = |mdice, twice| Some(LeftOut { cases: 100, mdice, mdice_doubled: twice });
        assert_eq!(converged(&[cell(0.70, Some(0.705), None)]), Some(true));
        assert_eq!(converged(&[cell(0.70, Some(0.72), None)]), Some(false));
        assert_eq!(converged(&[cell(0.70, Some(0.72), others(0.6, Some(0.605)))]), Some(true));
        assert_eq!(converged(&[cell(0.70, Some(0.70), others(0.6, Some(0.58)))]), Some(false));
        let apart = [cell(0.70, Some(0.72), None), cell(0.71, Some(0.695), None)];
        assert_eq!(converged(&apart), Some(true), "+0.02 and −0.015");
        assert_eq!(converged(&[cell(0.7, Some(0.7), None), cell(0.7, None, None)]), Some(false), "one ran away");
        let two = |cell: Cell| Cell { setup: Setup { doubled_seeds: 2, ..Setup::default() }, ..cell };
        assert_eq!(converged(&[two(cell(0.7, Some(0.7), None))]), None, "one of two is missing");
        let not_asked = Cell { converged: None, ..two(cell(0.7, None, None)) };
        assert_eq!(converged(&[two(cell(0.7, Some(0.7), None)), not_asked]), None);
        assert_eq!(converged(&[]), None);

        let old = cell(0.7, Some(0.7), None);
        assert_eq!((judges(&old), judges(&apart[0])), (Some(0), Some(0)));
        assert_eq!(judges(&cell(0.7, Some(0.7), others(0.6, Some(0.6)))), Some(100));
        assert_eq!(judges(&Cell { converged: None, ..old }), None);
        check_judges(&[("a".into(), 100), ("b".into(), 100)]).unwrap();
        let error = check_judges(&[("a".into(), 100), ("b".into(), 0)]).unwrap_err();
        assert!(error.path.as_deref() == Some(Path::new("b")) && error.message.contains("by 0 cases"), "{error}");
    }
}
