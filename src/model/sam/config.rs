//! All sizes of SAM on one page, and the table of weights each of them needs.
//!
//! Names and shapes are those of the official checkpoints (Kirillov et al., Segment Anything, arXiv 2304.02643).

use crate::error::{Error, Result};
use crate::model::weights::{Kind, Part, WeightSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The numbers that make one SAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamConfig {
    /// Side of the square the position tables were made for, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch: usize,
    /// Width of the image encoder.
    pub embed: usize,
    /// Blocks of the image encoder.
    pub depth: usize,
    /// Attention heads of the image encoder.
    pub heads: usize,
    /// Side of an attention window, in patches.
    pub window: usize,
    /// Blocks whose attention is global.
    pub global: Vec<usize>,
    /// Channels of the embedding; width of the decoder.
    pub out_chans: usize,
    /// Hidden width of the decoder's MLPs.
    pub decoder_mlp: usize,
    /// Attention heads of the decoder.
    pub decoder_heads: usize,
    /// Hidden width of the IoU head.
    pub iou_hidden: usize,
    /// A convolutional stem in place of the patch embedding, its fine features used by the mask decoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stem: Option<Stem>,
}

/// Strided convolutions that lead from pixels to patches of 16: what a small network needs to learn edges and textures
/// from little data (Xiao et al., Early Convolutions Help Transformers See Better, arXiv 2106.14881). The mask decoder
/// adds its features at strides 8 and 4 while it upscales, as SAM 2 does (Ravi et al., arXiv 2408.00714).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stem {
    /// Channels at strides 2, 4 and 8.
    pub widths: [usize; 3],
    /// Residual blocks at strides 2, 4 and 8.
    pub blocks: [usize; 3],
}

/// Side of a patch under a stem: four convolutions of stride 2.
pub(super) const STEM_PATCH: usize = 16;

/// Layers of the two-way transformer.
pub const DECODER_LAYERS: usize = 2;
/// Mask tokens: one for a single mask, three for an ambiguous prompt.
pub const MASK_TOKENS: usize = 4;
/// Channels of the mask prompt's second convolution.
const MASK_CHANNELS: usize = 16;

impl SamConfig {
    fn official(embed: usize, depth: usize, heads: usize, global: [usize; 4]) -> SamConfig {
        SamConfig {
            image_size: 1024,
            patch: 16,
            embed,
            depth,
            heads,
            window: 14,
            global: global.to_vec(),
            out_chans: 256,
            decoder_mlp: 2048,
            decoder_heads: 8,
            iou_hidden: 256,
            stem: None,
        }
    }

    /// The embedded default: 256 pixels, small enough for two processor cores. models/README.md tells how the shape was
    /// chosen.
    pub fn tiny() -> SamConfig {
        SamConfig::tiny_of(192)
    }

    /// `tiny` with an encoder of this width, a multiple of 96, and everything else as much wider or narrower; heads are
    /// of 32 in any width.
    fn tiny_of(embed: usize) -> SamConfig {
        SamConfig {
            image_size: 256,
            patch: STEM_PATCH,
            embed,
            depth: 6,
            heads: embed / 32,
            window: 0,
            global: (0..6).collect(),
            out_chans: embed,
            decoder_mlp: 8 * embed / 3,
            decoder_heads: 8,
            iou_hidden: 2 * embed / 3,
            stem: Some(Stem { widths: [embed / 8, embed / 4, embed / 2], blocks: [0, 1, 2] }),
        }
    }

    /// The configuration of a named size.
    pub fn named(name: &str) -> Option<SamConfig> {
        match name {
            "tiny" => Some(Self::tiny()),
            "tiny-half" => Some(Self::tiny_of(96)),
            "tiny-double" => Some(Self::tiny_of(384)),
            "sam_vit_b" | "vit_b" | "medsam_vit_b" => Some(Self::official(768, 12, 12, [2, 5, 8, 11])),
            "sam_vit_l" | "vit_l" => Some(Self::official(1024, 24, 16, [5, 11, 17, 23])),
            "sam_vit_h" | "vit_h" => Some(Self::official(1280, 32, 16, [7, 15, 23, 31])),
            "vit_t" => Some(Self::official(192, 12, 3, [2, 5, 8, 11])),
            _ => None,
        }
    }

    /// Reads the configuration off the shapes of a checkpoint; `decoder_heads` leaves no trace there and is
    /// taken to be the official 8.
    ///
    /// # Errors
    /// A weights error naming the first tensor without which the shapes cannot be read.
    pub fn from_shapes(shapes: &BTreeMap<String, Vec<usize>>) -> Result<SamConfig> {
        let found = || match shapes.len() {
            0 => "the file holds no tensor".to_string(),
            n => {
                let first: Vec<String> = shapes.keys().take(2).map(|name| format!("`{name}`")).collect();
                format!("the file holds {n} others, as {}", first.join(" and "))
            }
        };
        let dim = |name: &str, axis: usize| -> Result<usize> {
            shapes.get(name).and_then(|s| s.get(axis)).copied().filter(|n| *n > 0).ok_or_else(|| {
                let what = match shapes.get(name) {
                    Some(shape) => format!("`{name}` has the shape {shape:?}"),
                    None => format!("no tensor `{name}`; {}", found()),
                };
                Error::weights(format!("not a SAM: {what}")).hint(
                    "expected the official names, as `image_encoder.patch_embed.proj.weight`; see `segft info FILE`",
                )
            })
        };
        let stem = stem_from(shapes);
        let (embed, patch) = match stem {
            Some(_) => (dim("image_encoder.pos_embed", 3)?, STEM_PATCH),
            None => {
                (dim("image_encoder.patch_embed.proj.weight", 0)?, dim("image_encoder.patch_embed.proj.weight", 2)?)
            }
        };
        let grid = dim("image_encoder.pos_embed", 1)?;
        let head_dim = dim("image_encoder.blocks.0.attn.rel_pos_h", 1)?;
        if embed % head_dim != 0 {
            return Err(Error::weights(format!(
                "encoder width {embed} is not a multiple of the head width {head_dim}"
            )));
        }
        let mut rel = Vec::new();
        while let Some(shape) = shapes.get(&format!("image_encoder.blocks.{}.attn.rel_pos_h", rel.len())) {
            rel.push(shape.first().copied().unwrap_or(1).div_ceil(2));
        }
        let global: Vec<usize> = (0..rel.len()).filter(|i| rel[*i] == grid).collect();
        let window = rel.iter().copied().find(|n| *n != grid).unwrap_or(0);
        Ok(SamConfig {
            image_size: grid * patch,
            patch,
            embed,
            depth: rel.len(),
            heads: embed / head_dim,
            window,
            global,
            out_chans: dim("image_encoder.neck.0.weight", 0)?,
            decoder_mlp: dim("mask_decoder.transformer.layers.0.mlp.lin1.weight", 0)?,
            decoder_heads: 8,
            iou_hidden: dim("mask_decoder.iou_prediction_head.layers.0.weight", 0)?,
            stem,
        })
    }

    /// Patches along a side of the square.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch
    }

    /// Every weight the configuration needs, in the order of the network.
    pub fn specs(&self) -> Vec<WeightSpec> {
        let mut t = Table { part: Part::ImageEncoder, prompt_free: true, rows: Vec::new() };
        let (c, o, hidden) = (self.embed, self.out_chans, 4 * self.embed);
        t.put("image_encoder.pos_embed", Kind::Position, &[1, self.grid(), self.grid(), c]);
        match &self.stem {
            None => t.conv("image_encoder.patch_embed.proj", &[c, 3, self.patch, self.patch], true),
            Some(stem) => t.stem(stem, c),
        }
        for i in 0..self.depth {
            let block = format!("image_encoder.blocks.{i}");
            let side = if self.global.contains(&i) { self.grid() } else { self.window };
            t.norm(&format!("{block}.norm1"), c);
            t.linear(&format!("{block}.attn.qkv"), c, 3 * c);
            t.linear(&format!("{block}.attn.proj"), c, c);
            for axis in ["h", "w"] {
                t.put(&format!("{block}.attn.rel_pos_{axis}"), Kind::Position, &[2 * side - 1, c / self.heads]);
            }
            t.norm(&format!("{block}.norm2"), c);
            t.linear(&format!("{block}.mlp.lin1"), c, hidden);
            t.linear(&format!("{block}.mlp.lin2"), hidden, c);
        }
        t.conv("image_encoder.neck.0", &[o, c, 1, 1], false);
        t.norm("image_encoder.neck.1", o);
        t.conv("image_encoder.neck.2", &[o, o, 3, 3], false);
        t.norm("image_encoder.neck.3", o);

        (t.part, t.prompt_free) = (Part::PromptEncoder, false);
        t.put("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", Kind::Buffer, &[2, o / 2]);
        for i in 0..4 {
            t.put(&format!("prompt_encoder.point_embeddings.{i}.weight"), Kind::Embedding, &[1, o]);
        }
        t.put("prompt_encoder.not_a_point_embed.weight", Kind::Embedding, &[1, o]);
        t.conv("prompt_encoder.mask_downscaling.0", &[MASK_CHANNELS / 4, 1, 2, 2], true);
        t.norm("prompt_encoder.mask_downscaling.1", MASK_CHANNELS / 4);
        t.conv("prompt_encoder.mask_downscaling.3", &[MASK_CHANNELS, MASK_CHANNELS / 4, 2, 2], true);
        t.norm("prompt_encoder.mask_downscaling.4", MASK_CHANNELS);
        t.conv("prompt_encoder.mask_downscaling.6", &[o, MASK_CHANNELS, 1, 1], true);
        t.prompt_free = true;
        t.put("prompt_encoder.no_mask_embed.weight", Kind::Embedding, &[1, o]);

        t.part = Part::MaskDecoder;
        let transformer = "mask_decoder.transformer";
        for i in 0..DECODER_LAYERS {
            let layer = format!("{transformer}.layers.{i}");
            t.attention(&format!("{layer}.self_attn"), o, o);
            t.norm(&format!("{layer}.norm1"), o);
            t.attention(&format!("{layer}.cross_attn_token_to_image"), o, o / 2);
            t.norm(&format!("{layer}.norm2"), o);
            t.linear(&format!("{layer}.mlp.lin1"), o, self.decoder_mlp);
            t.linear(&format!("{layer}.mlp.lin2"), self.decoder_mlp, o);
            t.norm(&format!("{layer}.norm3"), o);
            t.norm(&format!("{layer}.norm4"), o);
            t.attention(&format!("{layer}.cross_attn_image_to_token"), o, o / 2);
        }
        t.attention(&format!("{transformer}.final_attn_token_to_image"), o, o / 2);
        t.norm(&format!("{transformer}.norm_final_attn"), o);
        t.put("mask_decoder.iou_token.weight", Kind::Embedding, &[1, o]);
        t.put("mask_decoder.mask_tokens.weight", Kind::Embedding, &[MASK_TOKENS, o]);
        t.transposed("mask_decoder.output_upscaling.0", o, o / 4);
        t.norm("mask_decoder.output_upscaling.1", o / 4);
        t.transposed("mask_decoder.output_upscaling.3", o / 4, o / 8);
        if let Some(Stem { widths: [_, fine, coarse], .. }) = self.stem {
            t.conv("mask_decoder.conv_s0", &[o / 8, fine, 1, 1], true);
            t.conv("mask_decoder.conv_s1", &[o / 4, coarse, 1, 1], true);
        }
        for i in 0..MASK_TOKENS {
            t.mlp(&format!("mask_decoder.output_hypernetworks_mlps.{i}"), [o, o, o, o / 8]);
        }
        t.prompt_free = false;
        t.mlp("mask_decoder.iou_prediction_head", [o, self.iou_hidden, self.iou_hidden, MASK_TOKENS]);
        t.rows
    }
}

/// The stem that the shapes tell of, if they do.
fn stem_from(shapes: &BTreeMap<String, Vec<usize>>) -> Option<Stem> {
    let stage = |i: usize| format!("image_encoder.stem.{i}");
    let width = |i: usize| shapes.get(&format!("{}.conv.weight", stage(i))).and_then(|s| s.first()).copied();
    let blocks =
        |i: usize| (0..).take_while(|b| shapes.contains_key(&format!("{}.blocks.{b}.conv1.weight", stage(i)))).count();
    Some(Stem { widths: [width(0)?, width(1)?, width(2)?], blocks: [blocks(0), blocks(1), blocks(2)] })
}

struct Table {
    part: Part,
    prompt_free: bool,
    rows: Vec<WeightSpec>,
}

impl Table {
    fn put(&mut self, name: &str, kind: Kind, shape: &[usize]) {
        let (part, prompt_free) = (self.part, self.prompt_free);
        self.rows.push(WeightSpec { name: name.to_string(), kind, part, shape: shape.to_vec(), prompt_free });
    }
    fn linear(&mut self, name: &str, from: usize, to: usize) {
        self.put(&format!("{name}.weight"), Kind::Linear, &[to, from]);
        self.put(&format!("{name}.bias"), Kind::Bias, &[to]);
    }
    fn conv(&mut self, name: &str, shape: &[usize; 4], bias: bool) {
        self.put(&format!("{name}.weight"), Kind::Conv, shape);
        if bias {
            self.put(&format!("{name}.bias"), Kind::Bias, &shape[..1]);
        }
    }
    fn transposed(&mut self, name: &str, from: usize, to: usize) {
        self.put(&format!("{name}.weight"), Kind::ConvTranspose, &[from, to, 2, 2]);
        self.put(&format!("{name}.bias"), Kind::Bias, &[to]);
    }
    fn norm(&mut self, name: &str, width: usize) {
        self.put(&format!("{name}.weight"), Kind::Norm, &[width]);
        self.put(&format!("{name}.bias"), Kind::Norm, &[width]);
    }
    fn stem(&mut self, stem: &Stem, embed: usize) {
        let mut from = 3;
        for (i, to) in stem.widths.into_iter().chain([embed]).enumerate() {
            let stage = format!("image_encoder.stem.{i}");
            self.conv(&format!("{stage}.conv"), &[to, from, 3, 3], false);
            self.norm(&format!("{stage}.norm"), to);
            for block in 0..stem.blocks.get(i).copied().unwrap_or(0) {
                let block = format!("{stage}.blocks.{block}");
                self.conv(&format!("{block}.conv1"), &[to, to, 3, 3], false);
                self.norm(&format!("{block}.norm"), to);
                self.conv(&format!("{block}.conv2"), &[to, to, 3, 3], true);
            }
            from = to;
        }
    }
    fn attention(&mut self, name: &str, width: usize, inner: usize) {
        for proj in ["q_proj", "k_proj", "v_proj"] {
            self.linear(&format!("{name}.{proj}"), width, inner);
        }
        self.linear(&format!("{name}.out_proj"), inner, width);
    }
    fn mlp(&mut self, name: &str, widths: [usize; 4]) {
        for i in 0..3 {
            self.linear(&format!("{name}.layers.{i}"), widths[i], widths[i + 1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_the_paper() {
        // Encoder of ViT-B: 89,670,912 weights; one per output neuron is 84,224 (12 × 6,912 + 768 + 512).
        let specs = SamConfig::named("sam_vit_b").unwrap().specs();
        let encoder: Vec<_> = specs.iter().filter(|s| s.part == Part::ImageEncoder).collect();
        assert_eq!(encoder.iter().map(|s| s.len()).sum::<usize>(), 89_670_912);
        let neurons =
            encoder.iter().filter(|s| matches!(s.kind, Kind::Linear | Kind::Conv)).map(|s| s.matrix().0).sum::<usize>();
        assert_eq!(neurons, 84_224);
    }

    #[test]
    fn half_and_double_of_tiny() {
        let width = |name: &str| SamConfig::named(name).unwrap();
        for (name, factor) in [("tiny-half", 0.5), ("tiny-double", 2.0)] {
            let (other, tiny) = (width(name), SamConfig::tiny());
            let times = |n: usize| (factor * n as f64) as usize;
            assert_eq!(other.stem.unwrap().widths, tiny.stem.unwrap().widths.map(times));
            for (other, tiny) in [
                (other.embed, tiny.embed),
                (other.heads, tiny.heads),
                (other.out_chans, tiny.out_chans),
                (other.decoder_mlp, tiny.decoder_mlp),
                (other.iou_hidden, tiny.iou_hidden),
            ] {
                assert_eq!(other, times(tiny), "{name}");
            }
        }
    }

    #[test]
    fn a_configuration_is_read_off_its_own_shapes() {
        for name in ["tiny", "tiny-half", "tiny-double", "sam_vit_b", "sam_vit_l", "sam_vit_h", "vit_t"] {
            let config = SamConfig::named(name).unwrap();
            let shapes = config.specs().into_iter().map(|s| (s.name, s.shape)).collect();
            assert_eq!(SamConfig::from_shapes(&shapes).unwrap(), config, "{name}");
        }
    }
}
