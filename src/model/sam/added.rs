//! Weights that fine-tuning methods add to the image encoder. They stand in the table beside the official ones, and the
//! network looks for them by name: without them it computes what it always did, to the bit.
//!
//! | family | weights, `OWNER.` before each | owner |
//! |---|---|---|
//! | [`Addition::LowRank`] | `lora_a` `[r, in]`, `lora_b` `[out, r]` | a linear layer, or `q`, `k`, `v` below `attn.qkv` |
//! | [`Addition::ScaleShift`] | `ssf_scale` `[out]`, `ssf_shift` `[out]` | a layer with a bias, or a norm |
//! | [`Addition::Adapter`] | `adapter.down` `[b, d]`, `adapter.up` `[d, b]`, with biases | a block's `mlp` |
//! | [`Addition::Prompts`] | `prompts` `[n, d]` | a block |
//! | [`Addition::KeyPrompts`] | `prompts_kv` `[n, d]` | a block's `attn` |
//! | [`Addition::Generator`] | `high` `[e, 3 p²]`, `patches` `[e, d]`, `up` `[d, e]`, with biases | `image_encoder.prompt_generator` |
//! | [`Addition::Generated`] | `tune` `[e, e]`, with a bias | a number below that |
//! | [`Addition::Side`] | `query`, `key`, `value` `[r, d]`, `up` `[d, r]` | `image_encoder.side`, a block's number below it |
//!
//! Some of them fold into the official weights ([`merge`]), others cannot: those fine-tunes are a base and a patch.

use crate::error::{Error, Result, nearest};
use crate::model::weights::{HostTensor, Kind, Part, Scope, WeightSpec};
use burn::tensor::Tensor;
use std::collections::BTreeMap;

/// What weights are added, and what they compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addition {
    /// W x + B A x.
    LowRank,
    /// γ ⊙ y + β of a layer's output y.
    ScaleShift,
    /// y + up(GELU(down(y))) of the MLP's output y.
    Adapter,
    /// Tokens that are keys and values beside those of a picture or window: they go through the block's norm and `qkv`.
    Prompts,
    /// The same rows as keys and as values, behind `qkv`.
    KeyPrompts,
    /// What is added to the input of every block: `up` of what its `tune` makes of a picture's high frequencies and
    /// patches.
    Generator,
    /// A block's layer of the generator.
    Generated,
    /// Attention of rank r over a block's input, beside the block.
    Side,
}

/// Every family and the last parts of its names; the first one's outermost size is the family's own: a rank, a width, a
/// number.
const FAMILIES: [(Addition, &[&str]); 8] = [
    (Addition::LowRank, &["lora_a", "lora_b"]),
    (Addition::ScaleShift, &["ssf_scale", "ssf_shift"]),
    (Addition::Adapter, &["adapter.down.weight", "adapter.down.bias", "adapter.up.weight", "adapter.up.bias"]),
    (Addition::Prompts, &["prompts"]),
    (Addition::KeyPrompts, &["prompts_kv"]),
    (Addition::Generator, &["high.weight", "high.bias", "patches.weight", "patches.bias", "up.weight", "up.bias"]),
    (Addition::Generated, &["tune.weight", "tune.bias"]),
    (Addition::Side, &["query", "key", "value", "up"]),
];

/// The only owner of [`Addition::Generator`].
pub const GENERATOR: &str = "image_encoder.prompt_generator";

/// Where the layers of [`Addition::Side`] are: not in the blocks, which do not depend on them.
pub const SIDE: &str = "image_encoder.side";

/// The thirds of `attn.qkv`'s rows.
const THIRDS: [&str; 3] = ["q", "k", "v"];

impl Addition {
    /// The family of an added weight, and its owner; `None` for an official name.
    pub fn of(name: &str) -> Option<(Addition, &str)> {
        let owner = |part: &&str| name.strip_suffix(*part).and_then(|owner| owner.strip_suffix('.'));
        let mut families =
            FAMILIES.into_iter().filter_map(|(family, parts)| Some((family, parts.iter().find_map(owner)?)));
        families.find(|(family, owner)| family.owns(owner))
    }

    /// Whether such a name may own the family. Only here are the names of one family the ends of official ones.
    fn owns(self, owner: &str) -> bool {
        match self {
            Addition::Generator => owner == GENERATOR,
            Addition::Generated => owner.strip_prefix(GENERATOR).is_some_and(|rest| rest.starts_with('.')),
            Addition::Side => owner.strip_prefix(SIDE).is_some_and(|rest| rest.starts_with('.')),
            _ => true,
        }
    }

    /// The weights of the family at this owner, in the order of the table above; `None` where the network would not look
    /// for them. `size` is the rank; a scale and shift have their owner's.
    pub fn weights(self, owner: &str, specs: &[WeightSpec], size: usize) -> Option<Vec<WeightSpec>> {
        let find = |name: String| specs.iter().find(|s| s.name == name && s.part == Part::ImageEncoder);
        let shapes: Vec<Vec<usize>> = match self {
            Addition::LowRank => {
                let third =
                    owner.rsplit_once('.').filter(|(layer, last)| layer.ends_with(".qkv") && THIRDS.contains(last));
                let weight = find(format!("{}.weight", third.map_or(owner, |(layer, _)| layer)))?;
                let (out, fan_in) = weight.matrix();
                let out = if third.is_some() { out / THIRDS.len() } else { out };
                (weight.kind == Kind::Linear).then(|| vec![vec![size, fan_in], vec![out, size]])?
            }
            Addition::Adapter => {
                let d = find(format!("{owner}.lin2.weight"))?.matrix().0;
                vec![vec![size, d], vec![size], vec![d, size], vec![d]]
            }
            Addition::Prompts => vec![vec![size, find(format!("{owner}.attn.qkv.weight"))?.matrix().1]],
            Addition::KeyPrompts => vec![vec![size, find(format!("{owner}.qkv.weight"))?.matrix().1]],
            Addition::Generator if owner == GENERATOR => {
                let (d, patch) = patches(specs)?;
                vec![vec![size, 3 * patch * patch], vec![size], vec![size, d], vec![size], vec![d, size], vec![d]]
            }
            Addition::Generated => {
                let block = owner.strip_prefix(GENERATOR)?.strip_prefix('.')?;
                find(format!("image_encoder.blocks.{block}.attn.qkv.weight"))?;
                vec![vec![size, size], vec![size]]
            }
            Addition::Generator => return None,
            Addition::Side => {
                let block = owner.strip_prefix(SIDE)?.strip_prefix('.')?;
                let d = find(format!("image_encoder.blocks.{block}.attn.qkv.weight"))?.matrix().1;
                vec![vec![size, d], vec![size, d], vec![size, d], vec![d, size]]
            }
            Addition::ScaleShift => {
                let (weight, _) = (find(format!("{owner}.weight"))?, find(format!("{owner}.bias"))?);
                let scaled = matches!(weight.kind, Kind::Linear | Kind::Norm) || owner.ends_with("patch_embed.proj");
                scaled.then(|| vec![vec![weight.matrix().0]; 2])?
            }
        };
        let parts = FAMILIES.iter().find(|(family, _)| *family == self).map(|(_, parts)| *parts)?;
        let spec = |(part, shape): (&&str, Vec<usize>)| spec(&format!("{owner}.{part}"), shape);
        Some(parts.iter().zip(shapes).map(spec).collect())
    }
}

/// Width of the encoder and side of a patch.
fn patches(specs: &[WeightSpec]) -> Option<(usize, usize)> {
    let shape = |name: &str| specs.iter().find(|s| s.name == name).map(|s| &s.shape);
    match shape("image_encoder.patch_embed.proj.weight") {
        Some(shape) => Some((shape[0], shape[2])),
        None => Some((*shape("image_encoder.pos_embed")?.last()?, super::config::STEM_PATCH)),
    }
}

/// What is known of an added weight by its name.
pub fn spec(name: &str, shape: Vec<usize>) -> WeightSpec {
    let kind = match Addition::of(name) {
        Some((Addition::ScaleShift, _)) => Kind::Norm,
        Some((Addition::Prompts | Addition::KeyPrompts, _)) => Kind::Embedding,
        _ if name.ends_with(".bias") => Kind::Bias,
        _ => Kind::Linear,
    };
    WeightSpec { name: name.to_string(), kind, part: Part::ImageEncoder, shape, prompt_free: true }
}

/// Whether the network would find every one of these weights, whole families, in their shapes.
///
/// # Errors
/// A weights error naming the first that it would not: looking for what may be there, it would pass over a misspelt one.
pub fn check(specs: &[WeightSpec], added: &BTreeMap<String, Vec<usize>>) -> Result<()> {
    for (name, shape) in added {
        let unknown = || {
            let near = nearest(name, specs.iter().map(|s| s.name.as_str()));
            Error::weights(format!("`{name}` is no weight that can be added to this network")).hint(
                near.map(|n| format!("nearest: `{n}`")).unwrap_or_else(|| "the patch is of another version".into()),
            )
        };
        let (family, owner) = Addition::of(name).ok_or_else(unknown)?;
        let parts = FAMILIES.iter().find(|(f, _)| *f == family).map(|(_, parts)| *parts).unwrap_or_default();
        // A block's layer of the generator is as wide as the generator.
        let owner_of_size = if family == Addition::Generated { GENERATOR } else { owner };
        let first = match family {
            Addition::Generated => Some("high.weight"),
            _ => parts.first().copied(),
        };
        let first = first.and_then(|part| added.get(&format!("{owner_of_size}.{part}")));
        let size = first.and_then(|shape| shape.first()).copied().unwrap_or(0);
        let all = family.weights(owner, specs, size).ok_or_else(unknown)?;
        if let Some(missing) = all.iter().find(|spec| !added.contains_key(&spec.name)) {
            return Err(Error::weights(format!("`{name}` is added without `{}`", missing.name)));
        }
        if let Some(wrong) = all.iter().find(|spec| spec.name == *name && (spec.shape != *shape || spec.is_empty())) {
            return Err(Error::weights(format!("`{name}` has shape {shape:?}, expected {:?}", wrong.shape)));
        }
    }
    Ok(())
}

/// Folds added weights into the official ones, which then compute the same by themselves, to rounding: W + B A first, then
/// γ ⊙ W and γ ⊙ b + β, as the network computes them. `added` is [`check`]ed.
///
/// # Errors
/// A usage error naming a weight that no official one can take up; nothing is changed then.
pub fn merge(tensors: &mut BTreeMap<String, HostTensor>, added: &BTreeMap<String, HostTensor>) -> Result<()> {
    if let Some(name) = added.keys().find(|name| !Addition::of(name).is_some_and(|(family, _)| family.folds())) {
        return Err(Error::usage(format!(
            "`{name}` was added to the network: an ordinary checkpoint has no place for it"
        ))
        .hint("keep the base and the patch: `segft export --patch`, and predict with the run"));
    }
    let of = |family: Addition, part: &'static str| {
        added.iter().filter_map(move |(name, tensor)| {
            let (_, owner) = Addition::of(name).filter(|(f, _)| *f == family)?;
            Some((owner, tensor)).filter(|_| name.ends_with(part))
        })
    };
    for (owner, a) in of(Addition::LowRank, "lora_a") {
        let Some(b) = added.get(&format!("{owner}.lora_b")) else { continue };
        let (rank, fan_in) = (a.shape[0], a.shape[1]);
        let third =
            owner.rsplit_once('.').and_then(|(layer, last)| Some((layer, THIRDS.iter().position(|t| *t == last)?)));
        let (layer, first) = third.map_or((owner, 0), |(layer, third)| (layer, third * b.shape[0]));
        let Some(weight) = tensors.get_mut(&format!("{layer}.weight")) else { continue };
        let rows = weight.data.chunks_exact_mut(fan_in).skip(first);
        for (row, b) in rows.zip(b.data.chunks_exact(rank)) {
            for (at, value) in row.iter_mut().enumerate() {
                let product: f64 = (0..rank).map(|r| f64::from(b[r]) * f64::from(a.data[r * fan_in + at])).sum();
                *value = (f64::from(*value) + product) as f32;
            }
        }
    }
    for (owner, scale) in of(Addition::ScaleShift, "ssf_scale") {
        let Some(shift) = added.get(&format!("{owner}.ssf_shift")) else { continue };
        if let Some(weight) = tensors.get_mut(&format!("{owner}.weight")) {
            let fan_in = weight.data.len() / scale.data.len();
            let rows = weight.data.chunks_exact_mut(fan_in).zip(&scale.data);
            rows.for_each(|(row, scale)| row.iter_mut().for_each(|v| *v *= scale));
        }
        if let Some(bias) = tensors.get_mut(&format!("{owner}.bias")) {
            let rows = bias.data.iter_mut().zip(&scale.data).zip(&shift.data);
            rows.for_each(|((bias, scale), shift)| *bias = bias.mul_add(*scale, *shift));
        }
    }
    Ok(())
}

impl Addition {
    /// Whether official weights can take it up.
    pub fn folds(self) -> bool {
        matches!(self, Addition::LowRank | Addition::ScaleShift)
    }
}

/// A and B of a layer, those of thirds of its rows put together; `None` without any.
pub(super) fn low_rank(scope: &Scope<'_>) -> Option<[Tensor<2>; 2]> {
    let pair = |scope: &Scope<'_>| Some([scope.find("lora_a")?.shaped::<2>(), scope.find("lora_b")?.shaped::<2>()]);
    if let Some(pair) = pair(scope) {
        return Some(pair);
    }
    let thirds = THIRDS.map(|third| pair(&scope.at(third)));
    let rank: usize = thirds.iter().flatten().map(|[a, _]| a.dims()[0]).sum();
    let [rows, _] = thirds.iter().flatten().next()?[1].dims();
    // B has the thirds' rows below and their columns beside each other, zeros elsewhere.
    let device = thirds.iter().flatten().next()?[0].device();
    let zeros = |columns: usize| Tensor::<2>::zeros([rows, columns], &device);
    let mut before = 0;
    let mut below = Vec::new();
    for third in &thirds {
        let Some([_, b]) = third else {
            below.push(zeros(rank));
            continue;
        };
        let width = b.dims()[1];
        let parts = [
            (before > 0).then(|| zeros(before)),
            Some(b.clone()),
            (before + width < rank).then(|| zeros(rank - before - width)),
        ];
        below.push(Tensor::cat(parts.into_iter().flatten().collect(), 1));
        before += width;
    }
    let a = thirds.into_iter().flatten().map(|[a, _]| a).collect();
    Some([Tensor::cat(a, 0), Tensor::cat(below, 0)])
}

/// γ and β of a layer or norm.
pub(super) fn scale_shift(scope: &Scope<'_>) -> Option<[Tensor<1>; 2]> {
    Some([scope.find("ssf_scale")?.value.clone(), scope.find("ssf_shift")?.value.clone()])
}
