//! Bilinear resizing as two matrix products: one definition for logits, prompts and position tables.

use burn::tensor::{Device, Tensor, TensorData};

/// Bilinear resize of `[batch, channels, h, w]` to `[batch, channels, height, width]`, PyTorch's
/// `interpolate(mode="bilinear", align_corners=False)`: linear, so gradients pass through.
pub fn bilinear(x: Tensor<4>, height: usize, width: usize) -> Tensor<4> {
    let [_, _, h, w] = x.dims();
    let device = x.device().without_autodiff();
    let x = if h == height { x } else { matrix(h, height, &device).unsqueeze::<4>().matmul(x) };
    if w == width { x } else { x.matmul(matrix(w, width, &device).transpose().unsqueeze::<4>()) }
}

/// `[to, from]`: each output is a mean of its two neighbours (one tap at the borders).
pub fn matrix(from: usize, to: usize, device: &Device) -> Tensor<2> {
    let mut taps = vec![0f32; from * to];
    let scale = from as f32 / to as f32;
    for (i, row) in taps.chunks_mut(from).enumerate() {
        let at = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
        let low = (at as usize).min(from - 1);
        let high = (low + 1).min(from - 1);
        let part = at - low as f32;
        row[low] += 1.0 - part;
        row[high] += part;
    }
    Tensor::from_data(TensorData::new(taps, [to, from]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights::to_vec;

    #[test]
    fn doubling_two_pixels() {
        // Centres of the four outputs lie at -0.25, 0.25, 0.75, 1.25 of the input: 0, 0.25, 0.75, 1 after clamping.
        let x = Tensor::<4>::from_data([[[[0.0, 1.0]]]], &Device::flex());
        assert_eq!(to_vec(bilinear(x, 1, 4)), vec![0.0, 0.25, 0.75, 1.0]);
    }
}
