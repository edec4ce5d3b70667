//! The selection file: which entries of which weights, chosen from which cases. Inspected, compared and reused.

use crate::error::{Error, Result};
use crate::io::safetensors::{Reader, Values, write};
use crate::method::{Budget, Chosen, Group, Score, SelectionLoss, selectable};
use crate::model::WeightSpec;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Its name in a run folder.
pub const FILE: &str = "selection.safetensors";
/// Version of the file's layout.
const FORMAT: &str = "1";

/// Chosen entries and where they come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// Sorted flat indices by official name.
    pub chosen: Chosen,
    /// Method that chose.
    pub method: String,
    /// How many entries were asked for.
    pub budget: Budget,
    /// By which score.
    pub score: Score,
    /// Among which weights.
    pub group: Group,
    /// Of which loss the gradients were; `None` for a score that reads none.
    pub loss: Option<SelectionLoss>,
    /// What random scores were drawn from; `None` for the others.
    pub seed: Option<u64>,
    /// Name of the base model.
    pub base_name: String,
    /// SHA-256 of the base model.
    pub base_sha256: String,
    /// Ids of the training cases that were looked at; none for a score of the weights alone.
    pub cases: Vec<String>,
}

impl Selection {
    /// Number of chosen entries.
    pub fn len(&self) -> usize {
        self.chosen.values().map(Vec::len).sum()
    }

    /// Whether nothing is chosen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the file; equal selections give equal bytes.
    ///
    /// # Errors
    /// A job error when it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut notes = BTreeMap::from([
            ("kind".into(), "selection".into()),
            ("format".into(), FORMAT.into()),
            ("method".into(), self.method.clone()),
            ("base_name".into(), self.base_name.clone()),
            ("base_sha256".into(), self.base_sha256.clone()),
            ("cases".into(), serde_json::json!(self.cases).to_string()),
        ]);
        let mut note = |key: &str, value: String| notes.insert(key.into(), value);
        match self.budget {
            Budget::PerNeuron(k) => note("k", k.to_string()),
            Budget::Ratio(ratio) => note("ratio", ratio.to_string()),
            Budget::Count(count) => note("budget", count.to_string()),
        };
        // A file that says nothing of these is GPS's, as every file was before there were others.
        if self.score != Score::Gradient {
            note("score", self.score.to_string());
        }
        if self.group != Group::Neuron {
            note("group", self.group.to_string());
        }
        if let Some(loss) = self.loss.filter(|loss| *loss != SelectionLoss::Task) {
            note("selection_loss", loss.to_string());
        }
        if let Some(seed) = self.seed {
            note("seed", seed.to_string());
        }
        let tensors =
            self.chosen.iter().map(|(name, i)| (name.clone(), (vec![i.len()], Values::U32(i.as_slice())))).collect();
        write(path, &notes, &tensors)
    }

    /// Reads a file, or that of a run folder.
    ///
    /// # Errors
    /// A weights error when it is damaged or no selection.
    pub fn load(path: &Path) -> Result<Selection> {
        let path = &if path.is_dir() { path.join(FILE) } else { path.to_path_buf() };
        let mut reader = Reader::open(path)?;
        let mut notes = reader.notes();
        if notes.get("kind").map(String::as_str) != Some("selection") {
            return Err(Error::weights("not a selection").at(path).hint("expected a file written by `segft select`"));
        }
        if notes.get("format").map(String::as_str) != Some(FORMAT) {
            return Err(Error::weights(format!(
                "selection of format {}, this program reads format {FORMAT}",
                notes.get("format").map(String::as_str).unwrap_or("unknown")
            ))
            .at(path));
        }
        let names: Vec<String> = reader.entries().into_keys().collect();
        let mut chosen = Chosen::new();
        for name in names {
            let indices = reader.indices(&name)?;
            if !indices.is_sorted_by(|a, b| a < b) {
                return Err(Error::weights(format!("indices of `{name}` are not sorted and unique")).at(path));
            }
            chosen.insert(name, indices);
        }
        let read = |what: &str, text: &str| Error::weights(format!("the selection's {what} is `{text}`")).at(path);
        let number = |key: &str| match notes.get(key) {
            Some(text) => text.parse::<f64>().map(Some).map_err(|_| read(key, text)),
            None => Ok(None),
        };
        let budget = match (number("ratio")?, number("budget")?, number("k")?) {
            (Some(ratio), ..) => Budget::Ratio(ratio),
            (_, Some(count), _) => Budget::Count(count as usize),
            (.., k) => Budget::PerNeuron(k.unwrap_or(1.0) as usize),
        };
        let score = notes.get("score").map(|text| text.parse().map_err(|_| read("score", text))).transpose()?;
        let score: Score = score.unwrap_or(Score::Gradient);
        let loss = notes.get("selection_loss");
        let loss = loss.map(|text| text.parse().map_err(|_| read("selection_loss", text))).transpose()?;
        let group = notes.get("group").map(|text| text.parse().map_err(|_| read("group", text))).transpose()?;
        let mut note = |key: &str| notes.remove(key).unwrap_or_default();
        Ok(Selection {
            chosen,
            method: note("method"),
            budget,
            score,
            group: group.unwrap_or(Group::Neuron),
            loss: score.reads_gradients().then(|| loss.unwrap_or(SelectionLoss::Task)),
            seed: note("seed").parse().ok(),
            base_name: note("base_name"),
            base_sha256: note("base_sha256"),
            cases: serde_json::from_str(&note("cases")).unwrap_or_default(),
        })
    }

    /// Checks that the selection was made for this network.
    ///
    /// # Errors
    /// A weights error naming the weight or the base that does not fit.
    pub fn check(&self, specs: &[WeightSpec], base_sha256: &str) -> Result<()> {
        let known: BTreeMap<&str, &WeightSpec> = specs.iter().map(|s| (s.name.as_str(), s)).collect();
        for (name, indices) in &self.chosen {
            let Some(spec) = known.get(name.as_str()) else {
                return Err(Error::weights(format!("the selection names `{name}`, which this model does not have")));
            };
            if !selectable(spec) {
                return Err(Error::weights(format!(
                    "the selection names `{name}`, whose entries do not train one by one: those of the encoder's matrices do"
                )));
            }
            let len = spec.len();
            if let Some(index) = indices.iter().find(|i| **i as usize >= len) {
                return Err(Error::weights(format!("index {index} of `{name}` lies beyond its {len} values")));
            }
        }
        if self.base_sha256 != base_sha256 {
            return Err(Error::weights(format!(
                "the selection was made for base `{}` ({}), not for this one ({})",
                self.base_name,
                short(&self.base_sha256),
                short(base_sha256)
            ))
            .hint("select again with this --model"));
        }
        Ok(())
    }
}

/// First twelve digits of a hash, for messages.
pub fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// How two selections overlap, weight by weight and in all.
#[derive(Debug, Clone, PartialEq)]
pub struct Overlap {
    /// (name, entries in A, entries in B, in both).
    pub rows: Vec<(String, usize, usize, usize)>,
}

impl Overlap {
    /// Compares two selections.
    pub fn of(a: &Selection, b: &Selection) -> Overlap {
        let names: BTreeSet<&String> = a.chosen.keys().chain(b.chosen.keys()).collect();
        let none = Vec::new();
        let rows = names.into_iter().map(|name| {
            let (x, y) = (a.chosen.get(name).unwrap_or(&none), b.chosen.get(name).unwrap_or(&none));
            let both = x.iter().filter(|i| y.binary_search(i).is_ok()).count();
            (name.clone(), x.len(), y.len(), both)
        });
        Overlap { rows: rows.collect() }
    }

    /// Entries in A, in B, in both.
    pub fn total(&self) -> (usize, usize, usize) {
        self.rows.iter().fold((0, 0, 0), |t, r| (t.0 + r.1, t.1 + r.2, t.2 + r.3))
    }

    /// |A ∩ B| / |A ∪ B|; 1 when both are empty.
    pub fn jaccard(&self) -> f64 {
        let (a, b, both) = self.total();
        jaccard(a as f64, b as f64, both as f64)
    }
}

/// The same from the numbers of entries.
pub(super) fn jaccard(a: f64, b: f64, both: f64) -> f64 {
    if a + b == 0.0 { 1.0 } else { both / (a + b - both) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("selection.safetensors");
        let (task, contrastive) = (Some(SelectionLoss::Task), Some(SelectionLoss::Contrastive));
        for (budget, score, group, loss, seed) in [
            (Budget::PerNeuron(3), Score::Gradient, Group::Neuron, task, None),
            (Budget::Ratio(0.1), Score::Snr, Group::Tensor, contrastive, None),
            (Budget::Count(2), Score::Random, Group::Global, None, Some(u64::MAX)),
            (Budget::PerNeuron(1), Score::ActivationWeight, Group::Neuron, None, None),
        ] {
            let selection = Selection {
                chosen: Chosen::from([("w".to_string(), vec![1, 7])]),
                method: "gps".into(),
                budget,
                score,
                group,
                loss,
                seed,
                base_name: "tiny".into(),
                base_sha256: "aa".into(),
                cases: vec!["c01".into()],
            };
            selection.save(&path).unwrap();
            assert_eq!(Selection::load(&path).unwrap(), selection);
            let notes = Reader::open(&path).unwrap().notes();
            // A file of GPS's has the notes it always had.
            assert_eq!(notes.contains_key("score") || notes.contains_key("group"), score != Score::Gradient);
            assert_eq!(notes.contains_key("selection_loss"), loss == contrastive);
        }
    }
}
