//! The learning rate: linear warm-up, then half a cosine down to a small rest.

/// Part of the training that warms up.
const WARMUP: f64 = 0.05;
/// Lowest learning rate, as a part of the highest.
const REST: f64 = 1e-2;

/// Learning rate when `done` of the training (0..1) is over.
pub fn learning_rate(highest: f64, done: f64) -> f64 {
    if done < WARMUP {
        return highest * (REST + (1.0 - REST) * done / WARMUP);
    }
    let part = ((done - WARMUP) / (1.0 - WARMUP)).min(1.0);
    highest * (REST + (1.0 - REST) * 0.5 * (1.0 + (std::f64::consts::PI * part).cos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls() {
        assert_eq!(learning_rate(2.0, 0.0), 2.0 * REST);
        assert_eq!(learning_rate(2.0, WARMUP), 2.0);
        let middle = WARMUP + (1.0 - WARMUP) / 2.0;
        assert!((learning_rate(2.0, middle) - 2.0 * (REST + (1.0 - REST) * 0.5)).abs() < 1e-12);
        assert!((learning_rate(2.0, 1.0) - 2.0 * REST).abs() < 1e-12);
    }
}
