//! How each row's learning rate is chosen: multiples of its method's own, the same for every row, judged on validation.

use super::cell::{self, Setup, Trial};
use super::row::Row;
use super::{Request, Sides, Size, Work};
use crate::error::{Error, Result};
use crate::method;
use std::path::PathBuf;

/// How each row's learning rate is chosen.
#[derive(Debug, Clone)]
pub struct Trials {
    /// Multiples of each method's own.
    pub lrs: Vec<f64>,
    /// Seeds that each is tried with; the mean counts.
    pub seeds: u64,
    /// The only size that they are tried at; each at its own by default.
    pub tuned_at: Option<Size>,
}

impl Request {
    /// A trial in file names. Those of the first seed, which was once the only one, do not name it.
    fn trial_name(&self, row: &Row, size: Size, lr_multiple: f64, seed: u64) -> String {
        let seed = if seed == self.config.seed { String::new() } else { format!("-{seed}") };
        format!("{}-{size}-{lr_multiple}{seed}", row.file_name())
    }

    pub(super) fn trial_file(&self, row: &Row, size: Size, lr_multiple: f64, seed: u64) -> PathBuf {
        self.out.join("trials").join(format!("{}.json", self.trial_name(row, size, lr_multiple, seed)))
    }

    /// Every learning rate with every seed that it is tried with.
    pub(super) fn trials(&self) -> impl Iterator<Item = (f64, u64)> {
        self.lrs.iter().flat_map(|lr| self.trial_seeds.iter().map(|seed| (*lr, *seed)))
    }
}

/// A learning rate that trials chose.
#[derive(Clone, Copy)]
pub(super) struct Chosen {
    pub(super) lr: f64,
    pub(super) multiple: f64,
    pub(super) trials: usize,
}

/// The learning rate with the best validation mDice, as the mean over the seeds it was tried with, of which none may have
/// run away; of equals, the one nearest to the method's own. `None` when there is none.
fn chosen(trials: &[Trial]) -> Option<Chosen> {
    let mean = |multiple: f64| {
        let of = trials.iter().filter(|trial| trial.setup.lr_multiple == multiple);
        let found = of.map(|trial| trial.validation_mdice).collect::<Option<Vec<f64>>>()?;
        Some(found.iter().sum::<f64>() / found.len() as f64)
    };
    let far = |trial: &Trial| trial.setup.lr_multiple.ln().abs();
    let scored = trials.iter().filter_map(|trial| Some((mean(trial.setup.lr_multiple)?, trial)));
    let best = scored.max_by(|(x, a), (y, b)| {
        let nearer = far(b).total_cmp(&far(a));
        x.total_cmp(y).then(nearer)
    });
    best.map(|(_, best)| Chosen { lr: best.setup.lr, multiple: best.setup.lr_multiple, trials: trials.len() })
}

impl Work<'_> {
    pub(super) fn trial_setup(&self, row: &Row, sides: &Sides, lr_multiple: f64, seed: u64) -> Result<Setup> {
        let setup = self.setup(row, sides, seed, sides.learning_hash.clone())?;
        Ok(Setup { lr: lr_multiple * method::find(&row.method)?.lr(), lr_multiple, ..setup })
    }

    /// The learning rate that trials choose.
    pub(super) fn tune(&self, row: &Row, sides: &Sides) -> Result<Chosen> {
        let trials = self.request.trials().map(|(multiple, seed)| self.trial(row, sides, multiple, seed));
        chosen(&trials.collect::<Result<Vec<_>>>()?).ok_or_else(|| {
            let seeds = if self.request.trial_seeds.len() > 1 { " with at least one seed" } else { "" };
            Error::job(format!("{}, {} cases: the loss ran away at every learning rate{seeds}", row.name, sides.size))
                .hint("give lower multiples with --lrs")
        })
    }

    fn trial(&self, row: &Row, sides: &Sides, multiple: f64, seed: u64) -> Result<Trial> {
        let path = self.request.trial_file(row, sides.size, multiple, seed);
        let setup = self.trial_setup(row, sides, multiple, seed)?;
        if let Some(trial) = cell::known(&path, &setup, self.replace)? {
            return Ok(trial);
        }
        let of_many = if self.request.trial_seeds.len() > 1 { format!(", seed {seed}") } else { String::new() };
        self.say(&format!("{}, {} cases, trial of {multiple} × its learning rate{of_many}", row.name, sides.size));
        let folder = self.request.trial_name(row, sides.size, multiple, seed);
        let folder = self.request.runs().join(format!("trial-{folder}"));
        let validation_mdice = self.validated(row, &setup, sides, &folder)?;
        let trial = Trial { setup, validation_mdice };
        cell::write(&path, &trial)?;
        self.remove(&folder)?;
        Ok(trial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(multiple: f64, seed: u64, mdice: Option<f64>) -> Trial {
        let setup = Setup { lr: 0.002 * multiple, lr_multiple: multiple, seed, ..Setup::default() };
        Trial { setup, validation_mdice: mdice }
    }

    #[test]
    fn the_mean_over_seeds_chooses_and_a_rate_that_ran_away_once_is_out() {
        let one_seed = [trial(1.0, 0, Some(0.70)), trial(3.0, 0, Some(0.72)), trial(10.0, 0, Some(0.75))];
        assert_eq!(chosen(&one_seed).unwrap().multiple, 10.0);
        let mut two: Vec<Trial> = one_seed.to_vec();
        two.extend([trial(1.0, 1, Some(0.71)), trial(3.0, 1, Some(0.70)), trial(10.0, 1, Some(0.60))]);
        let found = chosen(&two).unwrap();
        assert_eq!((found.multiple, found.lr, found.trials), (3.0, 0.006, 6));
        two[4].validation_mdice = None;
        assert_eq!(chosen(&two).unwrap().multiple, 1.0, "3 ran away with one seed");
        two.iter_mut().for_each(|trial| trial.validation_mdice = None);
        assert!(chosen(&two).is_none());
    }

    #[test]
    fn of_equals_the_nearest_to_the_methods_own_is_chosen() {
        let equal = [0.3, 3.0, 1.0, 10.0].map(|multiple| trial(multiple, 0, Some(0.5)));
        assert_eq!(chosen(&equal).unwrap().multiple, 1.0);
    }
}
