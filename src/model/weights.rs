//! The weights of a network as an ordered table: official name → values.
//!
//! Everything that concerns weights (strict loading, selection, patches, the optimizer, the proof that frozen weights
//! did not move) is a walk over this table; the network itself is functions that look weights up by name. Values are
//! kept flat, in PyTorch's layout (`[out, in]` for linear layers, `[out, in, kh, kw]` for convolutions), so an index in
//! a selection or patch means the same here, in a checkpoint and in PyTorch.

use super::kernel::Precision;
use super::kernel::tap::Sink;
use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A tensor in main memory, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// `shape.iter().product()` values.
    pub data: Vec<f32>,
}

/// What a weight is, by the module that owns it: the selection's rules are written in these words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `[out, in]`.
    Linear,
    /// `[out, in, kh, kw]`.
    Conv,
    /// `[in, out, kh, kw]`.
    ConvTranspose,
    /// Bias of a linear layer or convolution.
    Bias,
    /// Scale or shift of a layer norm.
    Norm,
    /// Absolute or relative position table.
    Position,
    /// Learned token.
    Embedding,
    /// Saved with the weights, never trained.
    Buffer,
}

/// Which part of the network a weight belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// `image_encoder.*`
    ImageEncoder,
    /// `prompt_encoder.*`
    PromptEncoder,
    /// `mask_decoder.*`
    MaskDecoder,
}

/// Name, kind and shape of one weight: what a configuration says a checkpoint must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightSpec {
    /// Official name, as in the state dict.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub part: Part,
    /// Official shape.
    pub shape: Vec<usize>,
    /// Whether a single mask without a prompt depends on it: not the IoU head, not the embeddings of points and masks.
    pub prompt_free: bool,
}

impl WeightSpec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows and columns of the weight seen as a matrix `[out, fan_in]`: convolutions are flattened.
    pub fn matrix(&self) -> (usize, usize) {
        let out = self.shape.first().copied().unwrap_or(1).max(1);
        (out, self.len() / out)
    }
}

/// The entries of a weight that are trained while the others stay.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// Sorted flat indices into the weight.
    pub indices: Arc<[u32]>,
    /// The same indices on the device.
    pub flat: Tensor<1, Int>,
    /// Output neuron of each index.
    pub rows: Tensor<1, Int>,
    /// Input of each index.
    pub cols: Tensor<1, Int>,
    /// The trained values, a leaf that gradients reach. The weight holds them at these indices, added to `base` where
    /// there is one: their gradient is the same.
    pub values: Tensor<1>,
    /// What a bypass goes around: the weight's values before training.
    pub base: Option<Tensor<1>>,
}

/// One named weight on the device.
#[derive(Debug, Clone)]
pub struct Weight {
    /// Name, kind, shape.
    pub spec: WeightSpec,
    /// All values, flat. Trained as a whole when the tensor requires gradients.
    pub value: Tensor<1>,
    /// Entries trained alone.
    pub chosen: Option<Chosen>,
    /// Where its gradient goes when it trains as a whole, instead of into the result of backward: on the CPU, where it is
    /// the matrix of a layer.
    pub sink: Option<Sink>,
    /// In what a layer multiplies by it.
    pub precision: Precision,
}

impl Weight {
    /// The values with their shape: `D` must be the rank of the weight.
    pub fn shaped<const D: usize>(&self) -> Tensor<D> {
        let mut shape = [1; D];
        shape.copy_from_slice(&self.spec.shape);
        self.value.clone().reshape(shape)
    }

    /// The weight as a matrix `[out, fan_in]`.
    pub fn matrix(&self) -> Tensor<2> {
        let (out, fan_in) = self.spec.matrix();
        self.value.clone().reshape([out, fan_in])
    }

    /// The tensor that gradients reach when the weight trains: the chosen entries, or all values.
    pub fn leaf(&self) -> &Tensor<1> {
        self.chosen.as_ref().map_or(&self.value, |chosen| &chosen.values)
    }

    fn leaf_mut(&mut self) -> &mut Tensor<1> {
        self.chosen.as_mut().map_or(&mut self.value, |chosen| &mut chosen.values)
    }

    /// The same values, shared, outside of any graph; chosen entries stay chosen.
    pub(crate) fn apart(&self) -> Weight {
        let mut apart = self.clone();
        let leaf = apart.leaf_mut();
        *leaf = leaf.clone().without_autodiff();
        apart
    }

    /// Makes what stands [`Weight::apart`] the leaf of a new graph.
    pub(crate) fn track(&mut self) {
        let leaf = self.leaf_mut();
        *leaf = leaf.clone().autodiff().require_grad();
    }

    /// Trains the weight as a whole.
    pub fn train_all(&mut self) {
        self.value = self.value.clone().detach().autodiff().require_grad();
    }

    /// Trains the entries at `indices` (sorted, unique) only.
    pub fn train_chosen(&mut self, indices: &[u32], device: &Device) {
        let (mut chosen, base) = self.at(indices, device);
        chosen.values = base.autodiff().require_grad();
        self.chosen = Some(chosen);
    }

    /// Trains what is added to the entries at `indices` (sorted, unique), from zero.
    pub fn train_bypass(&mut self, indices: &[u32], device: &Device) {
        let (chosen, base) = self.at(indices, device);
        self.chosen = Some(Chosen { base: Some(base), ..chosen });
    }

    /// Places to train, with zeros, and the values that the weight holds there.
    fn at(&self, indices: &[u32], device: &Device) -> (Chosen, Tensor<1>) {
        let fan_in = self.spec.matrix().1 as u32;
        let ints = |f: &dyn Fn(u32) -> u32| {
            let data: Vec<i32> = indices.iter().map(|i| f(*i) as i32).collect();
            Tensor::<1, Int>::from_data(TensorData::new(data, [indices.len()]), device)
        };
        let flat = ints(&|i| i);
        let base = self.value.clone().select(0, flat.clone());
        let values = Tensor::zeros([indices.len()], device).autodiff().require_grad();
        let (rows, cols) = (ints(&|i| i / fan_in), ints(&|i| i % fan_in));
        (Chosen { indices: indices.into(), flat, rows, cols, values, base: None }, base)
    }

    /// Replaces the trained values at the chosen indices, in the leaf and in the weight (a bypass: added to what it goes
    /// around), without a dense copy.
    pub fn set_chosen(&mut self, values: Tensor<1>) {
        if let Some(chosen) = &mut self.chosen {
            let values = values.without_autodiff();
            chosen.values = values.clone().autodiff().require_grad();
            let values = match &chosen.base {
                Some(base) => base.clone() + values,
                None => values,
            };
            // Taken out of the table first, so that the tensor has one owner and is changed in place.
            let empty = Tensor::zeros([1], &values.device());
            let weight = std::mem::replace(&mut self.value, empty);
            self.value = weight.scatter(0, chosen.flat.clone(), values, IndexingUpdateOp::Assign);
        }
    }

    /// The values in main memory.
    pub fn to_host(&self) -> HostTensor {
        HostTensor { shape: self.spec.shape.clone(), data: to_vec(self.value.clone()) }
    }

    /// Number of trained values.
    pub fn trained(&self) -> usize {
        match &self.chosen {
            Some(chosen) => chosen.indices.len(),
            None if self.value.is_require_grad() => self.spec.len(),
            None => 0,
        }
    }
}

/// Values of a tensor in main memory, row-major.
pub fn to_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    #[expect(clippy::expect_used, reason = "every float tensor of the program is f32")]
    tensor.without_autodiff().into_data().try_into_vec::<f32>().expect("f32 tensor")
}

/// All weights of a network, by official name.
#[derive(Debug, Clone, Default)]
pub struct Weights {
    table: BTreeMap<String, Weight>,
}

impl Weights {
    /// Puts checked tensors on a device. `tensors` holds exactly the names and shapes of `specs`.
    pub(crate) fn new(specs: Vec<WeightSpec>, mut tensors: BTreeMap<String, HostTensor>, device: &Device) -> Weights {
        let mut weights = Weights::default();
        for spec in specs {
            if let Some(host) = tensors.remove(&spec.name) {
                weights.insert(spec, host.data, device);
            }
        }
        weights
    }

    /// The weight of that name.
    pub fn get(&self, name: &str) -> Option<&Weight> {
        self.table.get(name)
    }

    /// The weight of that name, to change it.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Weight> {
        self.table.get_mut(name)
    }

    /// Puts a weight that the configuration does not have beside the others.
    pub fn insert(&mut self, spec: WeightSpec, values: Vec<f32>, device: &Device) {
        let n = values.len();
        let value = Tensor::from_data(TensorData::new(values, [n]), device);
        let weight = Weight { spec, value, chosen: None, sink: None, precision: Precision::F32 };
        self.table.insert(weight.spec.name.clone(), weight);
    }

    /// Weights in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Weight)> {
        self.table.iter()
    }

    /// Weights in the order of their names, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&String, &mut Weight)> {
        self.table.iter_mut()
    }

    /// Linear layers of the image encoder multiply in this precision from now on: nearly all of the work, and none of what
    /// draws the masks.
    pub fn compute_in(&mut self, precision: Precision) {
        let linear = |w: &&mut Weight| w.spec.part == Part::ImageEncoder && w.spec.kind == Kind::Linear;
        self.table.values_mut().filter(linear).for_each(|weight| weight.precision = precision);
    }

    /// The same weights (shared, not copied) as constants, multiplied by in f32: nothing computed from them is recorded for
    /// gradients.
    pub fn frozen(&self) -> Weights {
        let freeze = |w: &Weight| {
            let value = w.value.clone().without_autodiff();
            Weight { spec: w.spec.clone(), value, chosen: None, sink: None, precision: Precision::F32 }
        };
        Weights { table: self.table.iter().map(|(name, w)| (name.clone(), freeze(w))).collect() }
    }

    /// The weights below a view's prefix as a table of their own: shared, outside of any graph.
    pub(crate) fn apart(scope: &Scope<'_>) -> Weights {
        Weights { table: scope.iter().map(|(name, weight)| (name.clone(), weight.apart())).collect() }
    }

    /// Looks names up below a prefix.
    pub fn scope<'a>(&'a self, prefix: &str) -> Scope<'a> {
        Scope { weights: self, prefix: prefix.to_string() }
    }
}

/// A view of the table below a prefix, as `image_encoder.blocks.3`.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The view one name further down.
    pub fn at(&self, name: impl std::fmt::Display) -> Scope<'a> {
        Scope { weights: self.weights, prefix: format!("{}.{name}", self.prefix) }
    }

    /// What every name of this view begins with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The weights below the prefix in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'a String, &'a Weight)> + use<'a> {
        let below = format!("{}.", self.prefix);
        self.weights.table.range(below.clone()..).take_while(move |(name, _)| name.starts_with(&below))
    }

    /// The weight `prefix.name`, if there is one: what a method may have added.
    pub fn find(&self, name: &str) -> Option<&'a Weight> {
        self.weights.get(&format!("{}.{name}", self.prefix))
    }

    /// The weight `prefix.name`.
    ///
    /// # Panics
    /// When the configuration's table of weights lacks it: a defect of the network's code, not of a file, because
    /// loading is strict.
    pub fn get(&self, name: &str) -> &'a Weight {
        let name = format!("{}.{name}", self.prefix);
        #[expect(clippy::expect_used, reason = "strict loading: the table holds every name of the configuration")]
        self.weights.get(&name).expect("a weight of the configuration's table")
    }
}
