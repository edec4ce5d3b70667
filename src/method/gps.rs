//! Gradient-based parameter selection (GPS; Zhang et al., CVPR 2024, arXiv 2312.10136).
//!
//! In every output neuron of the image encoder, the k weights with the largest |Σ gradient| over the training cases
//! are trained: rows of linear layers, rows of convolutions seen as `[out, in · kh · kw]`. Norms and position tables
//! stay; biases train. Nothing is added to the network, so the result is an ordinary checkpoint (mergeable, no cost at
//! inference).
//!
//! Rules go by what a weight is, not by what its name contains: a rule on "norm" or "pos" would miss the neck's norms,
//! which have neither in their names. k beyond the fan-in is the whole row.

use super::{Change, Chosen, GradientTable, Settings, Train, Tuning};
use crate::error::{Error, Result};
use crate::model::{Kind, Part, WeightSpec};
use rayon::prelude::*;

pub(super) struct Gps;

impl Tuning for Gps {
    fn needs_gradients(&self) -> bool {
        true
    }

    fn choose(&self, specs: &[WeightSpec], gradients: &GradientTable, settings: &Settings) -> Result<Option<Chosen>> {
        let mut chosen = Chosen::new();
        for spec in specs.iter().filter(|s| selectable(s)) {
            if let Some(gradient) = gradients.get(&spec.name) {
                if let Some(at) = gradient.iter().position(|g| !g.is_finite()) {
                    return Err(Error::job(format!("the gradient of `{}` is not a number at {at}", spec.name))
                        .hint("look for broken pictures with `segft data check`"));
                }
                chosen.insert(spec.name.clone(), top_per_row(gradient, spec.matrix().1, settings.k));
            }
        }
        Ok(Some(chosen))
    }

    fn encoder(&self, spec: &WeightSpec, settings: &Settings) -> Change {
        match spec.kind {
            Kind::Bias if settings.biases == Train::Yes => Change::Dense,
            _ => Change::Frozen,
        }
    }

    fn lr(&self) -> f64 {
        1e-3
    }
}

/// Whether entries of this weight are chosen one by one.
pub(super) fn selectable(spec: &WeightSpec) -> bool {
    spec.part == Part::ImageEncoder && matches!(spec.kind, Kind::Linear | Kind::Conv)
}

/// Sorted flat indices of the `k` largest |values| in every row; the lowest index wins a tie.
fn top_per_row(values: &[f32], fan_in: usize, k: usize) -> Vec<u32> {
    let k = k.min(fan_in);
    let row_top = |(row, values): (usize, &[f32])| {
        let mut order: Vec<u32> = (0..fan_in as u32).collect();
        let by = |a: &u32, b: &u32| {
            let size = |i: &u32| values[*i as usize].abs();
            size(b).total_cmp(&size(a)).then(a.cmp(b))
        };
        if k > 0 && k < fan_in {
            order.select_nth_unstable_by(k - 1, by);
        }
        order.truncate(k);
        order.sort_unstable();
        order.into_iter().map(move |i| (row * fan_in) as u32 + i).collect::<Vec<u32>>()
    };
    values.par_chunks_exact(fan_in).enumerate().flat_map_iter(row_top).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lowest_index_and_signs_do_not_count() {
        let values = [0.0, -3.0, 3.0, 1.0, /* row 1 */ 5.0, 5.0, 5.0, -6.0];
        assert_eq!(top_per_row(&values, 4, 1), vec![1, 7]);
        assert_eq!(top_per_row(&values, 4, 2), vec![1, 2, 4, 7]);
    }

    #[test]
    fn k_beyond_the_fan_in_is_the_whole_row() {
        assert_eq!(top_per_row(&[1.0, 2.0], 2, 9), vec![0, 1]);
    }

    #[test]
    fn rules_go_by_kind() {
        let mut specs = crate::model::SamConfig::tiny().specs();
        specs.extend(crate::model::SamConfig::named("vit_t").map(|c| c.specs()).unwrap_or_default());
        let spec = |name: &str| specs.iter().find(|s| s.name == name).unwrap();
        assert!(selectable(spec("image_encoder.neck.2.weight")));
        assert!(selectable(spec("image_encoder.patch_embed.proj.weight")));
        assert!(selectable(spec("image_encoder.stem.1.blocks.0.conv1.weight")));
        for frozen in ["image_encoder.neck.1.weight", "image_encoder.pos_embed", "image_encoder.blocks.0.norm1.bias"] {
            assert!(!selectable(spec(frozen)), "{frozen}");
            assert_eq!(Gps.encoder(spec(frozen), &Settings::default()), Change::Frozen, "{frozen}");
        }
        assert_eq!(Gps.encoder(spec("image_encoder.blocks.0.attn.qkv.bias"), &Settings::default()), Change::Dense);
    }
}
