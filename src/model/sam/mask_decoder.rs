//! SAM's mask decoder: masks at a quarter of the network's resolution, and how good each of them is thought to be.

use super::config::{MASK_TOKENS, SamConfig};
use super::image_encoder::{EPSILON, Embedding};
use super::layers::{double, mlp3, norm};
use super::prompt_encoder::PromptEmbedding;
use super::transformer::two_way;
use crate::model::kernel::gelu::gelu;
use crate::model::kernel::linear::linear;
use crate::model::weights::Weights;
use burn::tensor::Tensor;

/// One mask, or three for an ambiguous prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masks {
    /// The first token's mask: what fine-tuning trains.
    Single,
    /// The other three tokens' masks.
    Multi,
}

/// Masks and their predicted IoU.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// Logits, `[batch, masks, 4s, 4s]`.
    pub low_res: Tensor<4>,
    /// Predicted IoU, `[batch, masks]`.
    pub iou: Tensor<2>,
}

/// Decodes prompts against embeddings of the same batch.
///
/// # Shapes
/// `positions`: `[1, out_chans, s, s]`.
pub fn decode(
    config: &SamConfig,
    weights: &Weights,
    embedding: Embedding,
    positions: Tensor<4>,
    prompt: PromptEmbedding,
    masks: Masks,
) -> Decoded {
    let scope = weights.scope("mask_decoder");
    let Embedding { coarse, fine } = embedding;
    let [b, c, h, w] = coarse.dims();
    let tokens = {
        let iou: Tensor<2> = scope.at("iou_token").get("weight").shaped();
        let masks: Tensor<2> = scope.at("mask_tokens").get("weight").shaped();
        let output = Tensor::cat(vec![iou, masks], 0).unsqueeze::<3>().expand([b, 1 + MASK_TOKENS, c]);
        match prompt.sparse {
            Some(sparse) => Tensor::cat(vec![output, sparse], 1),
            None => output,
        }
    };
    let flat = |x: Tensor<4>| x.reshape([b, c, h * w]).swap_dims(1, 2);
    let image = flat(coarse + prompt.dense);
    let positions = flat(positions.expand([b, c, h, w]));
    let (tokens, image) = two_way(image, positions, tokens, &scope.at("transformer"), config.decoder_heads);

    let up = scope.at("output_upscaling");
    let (finer, finest) = match fine {
        Some([s4, s8]) => (Some(linear(s8, &scope.at("conv_s1"))), Some(linear(s4, &scope.at("conv_s0")))),
        None => (None, None),
    };
    let with = |x: Tensor<4>, fine: Option<Tensor<4>>| match fine {
        Some(fine) => x + fine,
        None => x,
    };
    let x = with(double(image.reshape([b, h, w, c]), &up.at(0)), finer);
    let x = gelu(norm(x, &up.at(1), EPSILON));
    let x = gelu(with(double(x, &up.at(3)), finest));
    let [_, height, width, channels] = x.dims();
    let x = x.reshape([b, height * width, channels]).swap_dims(1, 2);

    let wanted = match masks {
        Masks::Single => 0..1,
        Masks::Multi => 1..MASK_TOKENS,
    };
    let hyper = wanted.clone().map(|i| {
        let token = tokens.clone().slice([0..b, 1 + i..2 + i]);
        mlp3(token, &scope.at("output_hypernetworks_mlps").at(i))
    });
    let hyper = Tensor::cat(hyper.collect(), 1);
    let low_res = hyper.matmul(x).reshape([b, wanted.len(), height, width]);
    let iou = mlp3(tokens.slice([0..b, 0..1]), &scope.at("iou_prediction_head")).reshape([b, MASK_TOKENS]);
    Decoded { low_res, iou: iou.slice([0..b, wanted]) }
}
