//! Networks: named weights, checkpoints, and SAM. Knows nothing of training, data sets or methods.

pub mod checkpoint;
pub mod kernel;
pub mod pth;
pub mod resize;
pub mod sam;
pub mod weights;

pub use sam::{Sam, SamConfig};
pub use weights::{HostTensor, Kind, Part, Weight, WeightSpec, Weights};
