//! Binary cross-entropy with logits plus soft IoU: the loss of GPS's SAM experiments (arXiv 2312.10136).

use burn::tensor::{Tensor, activation};

/// Keeps the soft IoU of an empty union defined; far below one pixel, so it changes no other value.
const TINY: f64 = 1e-6;

/// Loss parts, each a scalar of shape `[1]`.
#[derive(Debug, Clone)]
pub struct Loss {
    /// Mean over valid pixels of the whole batch.
    pub bce: Tensor<1>,
    /// Mean over pictures of 1 - Σpg / Σ(p + g - pg).
    pub soft_iou: Tensor<1>,
}

impl Loss {
    /// The sum that is trained.
    pub fn total(&self) -> Tensor<1> {
        self.bce.clone() + self.soft_iou.clone()
    }
}

/// Computes the loss; pixels whose `valid` is 0 (padding) do not count.
///
/// A picture with an empty mask has soft IoU 0 whatever is predicted, and so no gradient from that part: cross-entropy
/// alone teaches it.
///
/// # Shapes
/// All `[batch, 1, size, size]`; targets and validity are 0 or 1.
pub fn loss(logits: Tensor<4>, target: Tensor<4>, valid: Tensor<4>) -> Loss {
    let batch = logits.dims()[0];
    // max(x, 0) - x t + log(1 + exp(-|x|)): no overflow for any logit.
    let x = logits.clone();
    let pixel = activation::relu(x.clone()) - x.clone() * target.clone() + (x.abs().neg().exp() + 1.0).log();
    let bce = (pixel * valid.clone()).sum() / valid.clone().sum();

    let p = activation::sigmoid(logits) * valid;
    let sum = |t: Tensor<4>| t.sum_dim(3).sum_dim(2).reshape([batch]);
    let both = sum(p.clone() * target.clone());
    let either = sum(p + target) - both.clone();
    let soft_iou = (both / (either + TINY)).neg().mean() + 1.0;
    Loss { bce, soft_iou }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights::to_vec;
    use burn::tensor::Device;

    fn picture(values: [f32; 4]) -> Tensor<4> {
        let [a, b, c, d] = values;
        Tensor::from_data([[[[a, b], [c, d]]]], &Device::flex())
    }

    #[test]
    fn by_hand() {
        // All logits 0: bce = ln 2. p = ½ everywhere, mask of one pixel: both = ½, either = 2 + 1 - ½ = 2½, iou = 0.2.
        let loss = loss(picture([0.0; 4]), picture([1.0, 0.0, 0.0, 0.0]), picture([1.0; 4]));
        assert!((to_vec(loss.bce)[0] - 2f32.ln()).abs() < 1e-6);
        assert!((to_vec(loss.soft_iou)[0] - 0.8).abs() < 1e-5);
    }

    #[test]
    fn padding_does_not_count() {
        let far = loss(picture([0.0, 0.0, 50.0, -50.0]), picture([1.0, 0.0, 0.0, 0.0]), picture([1.0, 1.0, 0.0, 0.0]));
        assert!((to_vec(far.bce)[0] - 2f32.ln()).abs() < 1e-6);
        // p = ½ in two valid pixels: both = ½, either = 1 + 1 - ½ = 1½.
        assert!((to_vec(far.soft_iou)[0] - (1.0 - 1.0 / 3.0)).abs() < 1e-5);
    }

    #[test]
    fn an_empty_mask_gives_finite_loss_and_gradient() {
        let logits = picture([-90.0; 4]).autodiff().require_grad();
        let loss = loss(logits.clone(), picture([0.0; 4]), picture([1.0; 4]));
        let gradients = loss.total().backward();
        let gradient = to_vec(logits.grad(&gradients).unwrap());
        assert!(to_vec(loss.total())[0].is_finite() && gradient.iter().all(|g| g.is_finite()), "{gradient:?}");
    }
}
