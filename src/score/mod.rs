//! Dice and IoU from integer counts; distances from surfaces. No network is needed to score.
