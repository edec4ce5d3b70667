//! The patch file: what a fine-tune changed, and all that is needed to use it. The base stays untouched.
//!
//! One safetensors file for every method. A part is named after its weight: `NAME#indices`, `NAME#old`, `NAME#new` for
//! chosen entries, `NAME#dense_old`, `NAME#dense_new` for weights trained as a whole, `NAME#added` for one that the base
//! does not have, in its shape. Values are absolute f32, so applying and reverting are exact to the bit. Patches stack: each
//! belongs to the checkpoint it was made over, and they come off in reverse order.

use crate::error::{Error, Result};
use crate::io::safetensors::{Reader, Values, write};
use crate::method::{Change, Plan};
use crate::model::checkpoint::Checkpoint;
use crate::model::{HostTensor, Weights, sam};
use crate::tune::selection::short;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Version of the file's layout.
const FORMAT: &str = "1";

/// Changed values of one weight.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// Values at flat indices.
    Sparse {
        /// Sorted flat indices.
        indices: Vec<u32>,
        /// Values of the base.
        old: Vec<f32>,
        /// Trained values.
        new: Vec<f32>,
    },
    /// The whole weight.
    Dense {
        /// Values of the base.
        old: Vec<f32>,
        /// Trained values.
        new: Vec<f32>,
    },
    /// A weight that the base does not have.
    Added {
        /// Its sizes, outermost first.
        shape: Vec<usize>,
        /// Trained values.
        new: Vec<f32>,
    },
}

/// What is needed to use the fine-tune, beside the values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Method that trained.
    pub method: String,
    /// Name of the base: `tiny`, `sam_vit_b`, or a file's stem.
    pub base_name: String,
    /// What was given as `--model`: a name or a file.
    pub base_model: String,
    /// SHA-256 of the base.
    pub base_sha256: String,
    /// What it was trained on.
    pub form: crate::data::Form,
    /// How pictures are brought into the network.
    pub preprocessing: crate::predict::Preprocessing,
    /// Probability from which a pixel is foreground.
    pub threshold: f32,
    /// The method's settings.
    pub settings: crate::method::Settings,
}

/// A fine-tune: changed values and how to use them.
#[derive(Debug, Clone, PartialEq)]
pub struct Patch {
    /// How to use it.
    pub about: About,
    /// Changed values by official name.
    pub deltas: BTreeMap<String, Delta>,
}

/// The values a plan is going to change, as they are before training.
pub fn capture(weights: &Weights, plan: &Plan) -> BTreeMap<String, Vec<f32>> {
    let mut old = BTreeMap::new();
    for (name, weight) in weights.iter() {
        match plan.get(name) {
            Some(Change::Dense) => {
                old.insert(name.clone(), weight.to_host().data);
            }
            Some(Change::Chosen(indices) | Change::Bypass(indices)) => {
                let host = weight.to_host().data;
                old.insert(name.clone(), indices.iter().map(|i| host[*i as usize]).collect());
            }
            _ => {}
        }
    }
    old
}

/// The difference between `old` (see [`capture`]) and the trained weights, where the plan says they may differ.
pub fn changes(old: &BTreeMap<String, Vec<f32>>, trained: &Weights, plan: &Plan) -> BTreeMap<String, Delta> {
    let mut deltas = BTreeMap::new();
    for (name, old) in old {
        let Some(weight) = trained.get(name) else { continue };
        let (host, old) = (weight.to_host().data, old.clone());
        let delta = match plan.get(name) {
            Some(Change::Chosen(indices) | Change::Bypass(indices)) => {
                let new = indices.iter().map(|i| host[*i as usize]).collect();
                Delta::Sparse { indices: indices.clone(), old, new }
            }
            _ => Delta::Dense { old, new: host },
        };
        deltas.insert(name.clone(), delta);
    }
    let added = plan.iter().filter(|(_, change)| matches!(change, Change::Added(_)));
    for (name, weight) in added.filter_map(|(name, _)| Some((name, trained.get(name)?))) {
        let HostTensor { shape, data: new } = weight.to_host();
        deltas.insert(name.clone(), Delta::Added { shape, new });
    }
    deltas
}

/// Which way a patch goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the base to the fine-tune.
    Apply,
    /// From the fine-tune to the base.
    Revert,
}

impl Patch {
    /// Number of changed values.
    pub fn n_values(&self) -> usize {
        self.deltas.values().map(Delta::len).sum()
    }

    /// Writes the file; equal patches give equal bytes.
    ///
    /// # Errors
    /// A job error when it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let about = serde_json::to_string(&self.about).map_err(|e| Error::job(format!("patch settings: {e}")))?;
        let notes = BTreeMap::from([
            ("kind".to_string(), "patch".to_string()),
            ("format".to_string(), FORMAT.to_string()),
            ("about".to_string(), about),
        ]);
        let mut tensors = BTreeMap::new();
        for (name, delta) in &self.deltas {
            let mut put = |part: &str, shape: &[usize], values| {
                tensors.insert(format!("{name}#{part}"), (shape.to_vec(), values));
            };
            match delta {
                Delta::Sparse { indices, old, new } => {
                    put("indices", &[indices.len()], Values::U32(indices));
                    put("old", &[old.len()], Values::F32(old));
                    put("new", &[new.len()], Values::F32(new));
                }
                Delta::Dense { old, new } => {
                    put("dense_old", &[old.len()], Values::F32(old));
                    put("dense_new", &[new.len()], Values::F32(new));
                }
                Delta::Added { shape, new } => put("added", shape, Values::F32(new)),
            }
        }
        write(path, &notes, &tensors)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// A weights error when it is damaged, of another format, or no patch.
    pub fn load(path: &Path) -> Result<Patch> {
        let mut reader = Reader::open(path)?;
        let notes = reader.notes();
        if notes.get("kind").map(String::as_str) != Some("patch") {
            return Err(Error::weights("not a patch").at(path).hint("expected the patch.safetensors of a run"));
        }
        let format = notes.get("format").map(String::as_str).unwrap_or("unknown");
        if format != FORMAT {
            return Err(
                Error::weights(format!("patch of format {format}, this program reads format {FORMAT}")).at(path)
            );
        }
        let about = notes.get("about").map(String::as_str).unwrap_or("");
        let about: About =
            serde_json::from_str(about).map_err(|e| Error::weights(format!("patch settings: {e}")).at(path))?;
        let entries = reader.entries();
        let names: BTreeSet<String> =
            entries.keys().filter_map(|n| n.split_once('#')).map(|(name, _)| name.to_string()).collect();
        let mut deltas = BTreeMap::new();
        for name in names {
            let delta = if entries.contains_key(&format!("{name}#dense_new")) {
                Delta::Dense {
                    old: reader.floats(&format!("{name}#dense_old"))?,
                    new: reader.floats(&format!("{name}#dense_new"))?,
                }
            } else if let Some((_, shape)) = entries.get(&format!("{name}#added")) {
                Delta::Added { shape: shape.clone(), new: reader.floats(&format!("{name}#added"))? }
            } else {
                Delta::Sparse {
                    indices: reader.indices(&format!("{name}#indices"))?,
                    old: reader.floats(&format!("{name}#old"))?,
                    new: reader.floats(&format!("{name}#new"))?,
                }
            };
            delta.check(&name).map_err(|e| e.at(path))?;
            deltas.insert(name, delta);
        }
        Ok(Patch { about, deltas })
    }

    /// Changes a checkpoint's values in place. Weights that the base does not have are put beside the others: see
    /// [`Checkpoint::merged`].
    ///
    /// # Errors
    /// A weights error when the patch was made for another base: by hash on the way there, by the values it left on
    /// the way back. Nothing is changed then.
    pub fn turn(&self, checkpoint: &mut Checkpoint, direction: Direction) -> Result<()> {
        if direction == Direction::Apply && checkpoint.sha256 != self.about.base_sha256 {
            return Err(Error::weights(format!(
                "the patch belongs to base `{}` with SHA-256 {}…, this is `{}` with {}…",
                self.about.base_name,
                short(&self.about.base_sha256),
                checkpoint.name,
                short(&checkpoint.sha256)
            ))
            .hint("give the base that it was made for"));
        }
        let (added, changed): (Vec<_>, Vec<_>) =
            self.deltas.iter().partition(|(_, delta)| matches!(delta, Delta::Added { .. }));
        let added: BTreeMap<String, HostTensor> = added
            .into_iter()
            .filter_map(|(name, delta)| match delta {
                Delta::Added { shape, new } => {
                    Some((name.clone(), HostTensor { shape: shape.clone(), data: new.clone() }))
                }
                _ => None,
            })
            .collect();
        for (name, delta) in &changed {
            let tensor = checkpoint.tensors.get(*name);
            let tensor = tensor
                .ok_or_else(|| Error::weights(format!("the patch names `{name}`, the base has no such weight")))?;
            delta.fits(name, tensor, direction)?;
        }
        match direction {
            Direction::Apply => {
                let shapes = added.iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect();
                sam::added::check(&checkpoint.config.specs(), &shapes)?;
                checkpoint.added = added;
            }
            Direction::Revert if checkpoint.added == added => checkpoint.added.clear(),
            Direction::Revert => {
                return Err(Error::weights("the checkpoint does not have what the patch adds, beside its own weights"));
            }
        }
        for (name, delta) in changed {
            if let Some(tensor) = checkpoint.tensors.get_mut(name) {
                delta.turn(&mut tensor.data, direction);
            }
        }
        Ok(())
    }

    /// Number of values of weights that the base does not have.
    pub fn n_added(&self) -> usize {
        self.deltas.values().filter(|delta| matches!(delta, Delta::Added { .. })).map(Delta::len).sum()
    }
}

/// How two patches differ, weight by weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Weights that either patch changes, by name.
    pub rows: Vec<DifferenceRow>,
}

/// Values of one weight in two patches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DifferenceRow {
    /// Official name.
    pub weight: String,
    /// Values that both change.
    pub both: usize,
    /// Values that only A changes.
    pub only_a: usize,
    /// Values that only B changes.
    pub only_b: usize,
    /// Largest difference between trained values that both change; `None` without any.
    pub largest: Option<f32>,
}

impl Difference {
    /// Compares two patches.
    pub fn of(a: &Patch, b: &Patch) -> Difference {
        let names: BTreeSet<&String> = a.deltas.keys().chain(b.deltas.keys()).collect();
        let values = |patch: &Patch, name: &String| patch.deltas.get(name).map(Delta::trained).unwrap_or_default();
        let size = |patch: &Patch, name: &String| match patch.deltas.get(name) {
            Some(Delta::Added { shape, .. }) => Some(shape.clone()),
            _ => None,
        };
        let rows = names.into_iter().map(|name| {
            let (x, y) = (values(a, name), values(b, name));
            // An index into an added weight of another size means another place.
            let y = if size(a, name) == size(b, name) || x.is_empty() {
                y
            } else {
                y.into_iter().map(|(i, v)| (i + x.len() as u32, v)).collect()
            };
            let pairs: Vec<f32> = x.iter().filter_map(|(i, v)| Some((v - y.get(i)?).abs())).collect();
            DifferenceRow {
                weight: name.clone(),
                both: pairs.len(),
                only_a: x.len() - pairs.len(),
                only_b: y.len() - pairs.len(),
                largest: pairs.into_iter().reduce(f32::max),
            }
        });
        Difference { rows: rows.collect() }
    }

    /// All weights together.
    pub fn total(&self) -> DifferenceRow {
        let sum = |of: &dyn Fn(&DifferenceRow) -> usize| self.rows.iter().map(of).sum();
        DifferenceRow {
            weight: "all".into(),
            both: sum(&|r| r.both),
            only_a: sum(&|r| r.only_a),
            only_b: sum(&|r| r.only_b),
            largest: self.rows.iter().filter_map(|r| r.largest).reduce(f32::max),
        }
    }
}

impl Delta {
    /// Trained values by flat index.
    fn trained(&self) -> BTreeMap<u32, f32> {
        match self {
            Delta::Sparse { indices, new, .. } => indices.iter().copied().zip(new.iter().copied()).collect(),
            Delta::Dense { new, .. } | Delta::Added { new, .. } => (0..).zip(new.iter().copied()).collect(),
        }
    }

    /// Number of changed values.
    pub fn len(&self) -> usize {
        match self {
            Delta::Sparse { new, .. } | Delta::Dense { new, .. } | Delta::Added { new, .. } => new.len(),
        }
    }

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes new (or old) values over those of the base's weight. There is none under what is added.
    pub fn turn(&self, values: &mut [f32], direction: Direction) {
        let pick = |old, new| if direction == Direction::Apply { new } else { old };
        match self {
            Delta::Sparse { indices, old, new } => {
                let source: &Vec<f32> = pick(old, new);
                indices.iter().zip(source).for_each(|(i, v)| values[*i as usize] = *v);
            }
            Delta::Dense { old, new } => values.copy_from_slice(pick(old, new)),
            Delta::Added { .. } => {}
        }
    }

    fn check(&self, name: &str) -> Result<()> {
        let ok = match self {
            Delta::Sparse { indices, old, new } => {
                indices.len() == new.len() && old.len() == new.len() && indices.is_sorted_by(|a, b| a < b)
            }
            Delta::Dense { old, new } => old.len() == new.len(),
            Delta::Added { shape, new } => shape.iter().product::<usize>() == new.len(),
        };
        if !ok {
            return Err(Error::weights(format!("parts of `{name}` do not fit each other")));
        }
        let (Delta::Sparse { new, .. } | Delta::Dense { new, .. } | Delta::Added { new, .. }) = self;
        match new.iter().filter(|value| !value.is_finite()).count() {
            0 => Ok(()),
            n => Err(Error::weights(format!("`{name}`: {n} of {} new values are no finite numbers", new.len()))),
        }
    }

    /// The weight has room for the delta and holds, bit for bit, the values it starts from.
    fn fits(&self, name: &str, tensor: &HostTensor, direction: Direction) -> Result<()> {
        let n = tensor.data.len();
        let room = match self {
            Delta::Sparse { indices, .. } => indices.last().is_none_or(|i| (*i as usize) < n),
            Delta::Dense { new, .. } => new.len() == n,
            Delta::Added { .. } => false,
        };
        if !room {
            return Err(Error::weights(format!("the patch does not fit `{name}` of {n} values")));
        }
        let from = |old, new| if direction == Direction::Apply { old } else { new };
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits();
        let starts = match self {
            Delta::Sparse { indices, old, new } => {
                let expected: &Vec<f32> = from(old, new);
                indices.iter().zip(expected).all(|(i, v)| same(tensor.data[*i as usize], *v))
            }
            Delta::Dense { old, new } => {
                let expected: &Vec<f32> = from(old, new);
                tensor.data.iter().zip(expected).all(|(a, b)| same(*a, *b))
            }
            Delta::Added { .. } => false,
        };
        if !starts {
            let what = if direction == Direction::Apply { "the base's" } else { "the fine-tune's" };
            return Err(Error::weights(format!(
                "`{name}` does not hold {what} values: the patch belongs to other weights"
            )));
        }
        Ok(())
    }
}
