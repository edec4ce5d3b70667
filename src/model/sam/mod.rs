//! Segment Anything (Kirillov et al., arXiv 2304.02643): image encoder, prompt encoder, mask decoder.

mod adapter;
pub mod added;
mod cache;
pub mod config;
pub mod image_encoder;
mod layers;
pub mod mask_decoder;
pub mod prompt_encoder;
mod prompts;
mod recompute;
mod side;
mod transformer;

pub use added::Addition;
pub use cache::{Cache, Counts};
pub use config::{SamConfig, Stem};
pub use image_encoder::{Activations, Embedding};
pub use mask_decoder::{Decoded, Masks};
pub use prompt_encoder::{PointLabel, Prompt, PromptEmbedding};

use super::resize::bilinear;
use super::weights::{Part, Weight, Weights};
use crate::image::Fit;
use burn::tensor::Tensor;

/// A SAM with its weights on a device.
#[derive(Debug, Clone)]
pub struct Sam {
    /// Sizes.
    pub config: SamConfig,
    /// Weights by official name.
    pub weights: Weights,
    /// What a step that is differentiated keeps of the encoder's blocks.
    pub activations: Activations,
}

impl Sam {
    /// The same network (weights shared) as a constant: what is computed with it is not recorded for gradients.
    pub fn frozen(&self) -> Sam {
        Sam { config: self.config.clone(), weights: self.weights.frozen(), activations: self.activations }
    }

    /// Whether no weight of the image encoder trains but those of a side network: what its blocks make of a picture then
    /// stays the same.
    pub fn blocks_are_frozen(&self) -> bool {
        let beside = |name: &str| Addition::of(name).is_some_and(|(family, _)| family == Addition::Side);
        let trains = |(name, weight): (&String, &Weight)| {
            weight.spec.part == Part::ImageEncoder && weight.trained() > 0 && !beside(name)
        };
        !self.weights.iter().any(trains)
    }

    /// Whether there is a side network.
    pub fn has_side(&self) -> bool {
        image_encoder::has_side(&self.weights)
    }

    /// Embeds normalised, padded pictures: `[batch, 3, size, size]` → side `s = size / patch`.
    pub fn embed(&self, pixels: Tensor<4>) -> Embedding {
        image_encoder::encode(&self.config, &self.weights, pixels, self.activations)
    }

    /// Masks for one prompt per embedding.
    ///
    /// # Shapes
    /// `earlier`: logits `[batch, 1, 4s, 4s]` → logits `[batch, 1 or 3, 4s, 4s]` and predicted IoU `[batch, 1 or 3]`.
    pub fn decode(
        &self,
        embedding: Embedding,
        prompts: &[Prompt],
        earlier: Option<Tensor<4>>,
        masks: Masks,
    ) -> Decoded {
        let side = embedding.coarse.dims()[2];
        let size = side * self.config.patch;
        let prompt = prompt_encoder::encode(&self.config, &self.weights, prompts, earlier, size);
        let positions = prompt_encoder::dense_positions(&self.config, &self.weights, side);
        mask_decoder::decode(&self.config, &self.weights, embedding, positions, prompt, masks)
    }
}

/// Logits at the picture's own size: up to the square, padding cut off, then to the picture, both bilinear (the
/// official post-processing). `[1, masks, 4s, 4s]` → `[1, masks, height, width]`.
pub fn logits_fullsize(low_res: Tensor<4>, fit: &Fit) -> Tensor<4> {
    bilinear(logits_shown(low_res, fit), fit.picture[1], fit.picture[0])
}

/// The first half of [`logits_fullsize`]: what one square shows, at the network's scale, without its padding.
/// `[1, masks, 4s, 4s]` → `[1, masks, h, w]` of `fit.extent()`.
pub fn logits_shown(low_res: Tensor<4>, fit: &Fit) -> Tensor<4> {
    let [b, m, _, _] = low_res.dims();
    let ([w, h], [left, above]) = (fit.extent(), fit.margin);
    let square = bilinear(low_res, fit.size, fit.size);
    if [w, h] == [fit.size; 2] { square } else { square.slice([0..b, 0..m, above..above + h, left..left + w]) }
}
