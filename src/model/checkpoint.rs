//! Checkpoints: .safetensors and PyTorch's .pth, read strictly and as data.
//!
//! A pickle is parsed, never executed (pytorch-reader). Every name and shape is checked against the configuration
//! before a value is used: a missing, unexpected or misshaped tensor is an error that names it and the nearest match.

use super::sam::{Activations, Sam, SamConfig, added};
use super::weights::{HostTensor, Kind, Part, WeightSpec, Weights};
use crate::error::{Error, Result, nearest};
use crate::io::safetensors::{Reader, Values, to_stream, values};
use burn::tensor::Device;
use pytorch_reader::{DType, PytorchReader};
use rand::{RngExt, SeedableRng};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Weights in main memory, checked against a configuration.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Sizes.
    pub config: SamConfig,
    /// Name for people: `tiny`, `sam_vit_b`, or the file's stem.
    pub name: String,
    /// Where the values came from, in words.
    pub origin: String,
    /// SHA-256 of the file, or of the values in safetensors form when there is no file.
    pub sha256: String,
    /// Values by official name: exactly those of the configuration.
    pub tensors: BTreeMap<String, HostTensor>,
    /// What a fine-tune added beside them; never in a file.
    pub added: BTreeMap<String, HostTensor>,
}

/// Names, shapes and container of a checkpoint, read without its values.
#[derive(Debug, Clone)]
pub struct Outline {
    /// `safetensors` or `pth`.
    pub format: &'static str,
    /// Shapes by name.
    pub shapes: BTreeMap<String, Vec<usize>>,
}

enum Source {
    Safetensors(Box<Reader>),
    Pytorch(BTreeMap<String, pytorch_reader::Tensor>),
}

/// Reads a checkpoint file.
///
/// # Errors
/// A weights error when the file is damaged, is not a SAM, has other tensors than its configuration needs, or values
/// that are no finite numbers.
pub fn read(path: &Path) -> Result<Checkpoint> {
    let source = open(path)?;
    let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Checkpoint { name, origin: path.display().to_string(), sha256: file_sha256(path)?, ..checked(source, path)? })
}

/// Reads a checkpoint that is compiled in.
///
/// # Errors
/// As [`read`].
pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Checkpoint> {
    let source = Source::Safetensors(Box::new(Reader::embedded(bytes, name)?));
    let (origin, sha256) = ("compiled in".into(), hex(&Sha256::digest(bytes)));
    Ok(Checkpoint { name: name.into(), origin, sha256, ..checked(source, Path::new(name))? })
}

/// Values whose names and shapes are those of their configuration.
fn checked(mut source: Source, path: &Path) -> Result<Checkpoint> {
    let outline = outline_of(&source);
    let config = SamConfig::from_shapes(&outline.shapes).map_err(|e| e.at(path))?;
    check(&config.specs(), &outline.shapes).map_err(|e| e.at(path))?;
    let mut tensors = BTreeMap::new();
    for (name, shape) in outline.shapes {
        let data = match &mut source {
            Source::Safetensors(reader) => reader.floats(&name)?,
            Source::Pytorch(table) => match table.get(&name) {
                Some(tensor) => pytorch_floats(tensor).map_err(|e| e.at(path))?,
                None => continue,
            },
        };
        let broken = data.iter().filter(|value| !value.is_finite()).count();
        if broken > 0 {
            return Err(Error::weights(format!(
                "tensor `{name}`: {broken} of {} values are no finite numbers",
                data.len()
            ))
            .at(path)
            .hint("the checkpoint is damaged, or its training ran away: take another"));
        }
        tensors.insert(name, HostTensor { shape, data });
    }
    let (name, origin, sha256, added) = (String::new(), String::new(), String::new(), BTreeMap::new());
    Ok(Checkpoint { config, name, origin, sha256, tensors, added })
}

/// Reads only names, shapes and container.
///
/// # Errors
/// A weights error when the file is damaged or of another kind.
pub fn outline(path: &Path) -> Result<Outline> {
    Ok(outline_of(&open(path)?))
}

/// The checkpoint of a seeded random initialisation, as PyTorch would start: for `tiny` until it is pretrained, for
/// tests and for benchmarks.
pub fn random(name: &str, config: SamConfig, seed: u64) -> Checkpoint {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut tensors = BTreeMap::new();
    for spec in config.specs() {
        let (_, fan_in) = spec.matrix();
        let mut normal = |std: f32| -> Vec<f32> {
            let mut draw = || rng.random::<f32>();
            // Box–Muller; 1 - u keeps the logarithm finite.
            let one = |u: f32, v: f32| (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos() * std;
            (0..spec.len()).map(|_| one(draw(), draw())).collect()
        };
        let data = match spec.kind {
            Kind::Linear | Kind::Conv => normal((1.0 / fan_in as f32).sqrt()),
            Kind::ConvTranspose => normal((1.0 / spec.shape[0] as f32).sqrt()),
            Kind::Norm if spec.name.ends_with("weight") => vec![1.0; spec.len()],
            Kind::Norm | Kind::Bias => vec![0.0; spec.len()],
            Kind::Position => normal(0.02),
            Kind::Embedding | Kind::Buffer => normal(1.0),
        };
        tensors.insert(spec.name.clone(), HostTensor { shape: spec.shape, data });
    }
    let origin = format!("random initialisation, seed {seed}");
    let sha256 = content_sha256(&tensors);
    Checkpoint { config, name: name.to_string(), origin, sha256, tensors, added: BTreeMap::new() }
}

impl Checkpoint {
    /// Puts the weights on a device.
    pub fn into_sam(self, device: &Device) -> Sam {
        let mut weights = Weights::new(self.config.specs(), self.tensors, device);
        for (name, tensor) in self.added {
            weights.insert(added::spec(&name, tensor.shape), tensor.data, device);
        }
        Sam { config: self.config, weights, activations: Activations::Kept }
    }

    /// The same network as an ordinary checkpoint: what was added is folded into the official weights.
    ///
    /// # Errors
    /// As [`added::merge`].
    pub fn merged(mut self) -> Result<Checkpoint> {
        added::merge(&mut self.tensors, &self.added)?;
        self.added.clear();
        Ok(self)
    }

    /// Parameters of the whole network and of its image encoder; buffers are not counted.
    pub fn counts(&self) -> (usize, usize) {
        counts(&self.config.specs())
    }
}

/// Parameters of the whole network and of its image encoder; buffers are not counted.
pub fn counts(specs: &[WeightSpec]) -> (usize, usize) {
    let of = |keep: &dyn Fn(&WeightSpec) -> bool| {
        specs.iter().filter(|s| s.kind != Kind::Buffer && keep(s)).map(WeightSpec::len).sum()
    };
    (of(&|_| true), of(&|s| s.part == Part::ImageEncoder))
}

/// The table of weights that a file's shapes belong to.
///
/// # Errors
/// A weights error when they are not those of a SAM.
pub fn specs_of(outline: &Outline) -> Result<Vec<WeightSpec>> {
    let specs = SamConfig::from_shapes(&outline.shapes)?.specs();
    check(&specs, &outline.shapes)?;
    Ok(specs)
}

/// The named size with exactly these shapes; `sam` for any other SAM, `unknown` for another network.
pub fn name_of(outline: &Outline) -> &'static str {
    match SamConfig::from_shapes(&outline.shapes) {
        Ok(config) => ["tiny", "sam_vit_b", "sam_vit_l", "sam_vit_h"]
            .into_iter()
            .find(|name| SamConfig::named(name).as_ref() == Some(&config))
            .unwrap_or("sam"),
        Err(_) => "unknown",
    }
}

/// Writes weights under their official names, f32.
///
/// # Errors
/// A job error when the file cannot be written.
pub fn write_safetensors(path: &Path, tensors: &BTreeMap<String, HostTensor>) -> Result<()> {
    let views: BTreeMap<_, _> =
        tensors.iter().map(|(name, t)| (name.clone(), (t.shape.clone(), Values::F32(&t.data)))).collect();
    crate::io::safetensors::write(path, &BTreeMap::new(), &views)
}

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// When the file cannot be read.
pub fn file_sha256(path: &Path) -> Result<String> {
    file_digest::<Sha256>(path)
}

/// MD5 of a file, in hexadecimal.
///
/// # Errors
/// When the file cannot be read.
pub fn file_md5(path: &Path) -> Result<String> {
    file_digest::<md5::Md5>(path)
}

fn file_digest<D: Digest>(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).map_err(|e| Error::reading(path, &e))?;
    let mut hash = D::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(|e| Error::reading(path, &e))? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// SHA-256 of weights in safetensors form.
pub fn content_sha256(tensors: &BTreeMap<String, HostTensor>) -> String {
    struct Sink(Sha256);
    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let views: BTreeMap<_, _> =
        tensors.iter().map(|(name, t)| (name.clone(), (t.shape.clone(), Values::F32(&t.data)))).collect();
    let mut sink = std::io::BufWriter::with_capacity(1 << 16, Sink(Sha256::new()));
    // Hashing never fails; an error here would leave the hash of a prefix, so it is turned into an empty string.
    match to_stream(&mut sink, &BTreeMap::new(), &views).and_then(|()| sink.into_inner().map_err(|e| e.into_error())) {
        Ok(sink) => hex(&sink.0.finalize()),
        Err(_) => String::new(),
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Compares the names and shapes of a file with what the configuration needs.
fn check(specs: &[WeightSpec], shapes: &BTreeMap<String, Vec<usize>>) -> Result<()> {
    let mut wrong = Vec::new();
    for spec in specs {
        match shapes.get(&spec.name) {
            None => {
                let near = nearest(&spec.name, shapes.keys().map(String::as_str));
                let near = near.map(|n| format!(" (nearest in the file: `{n}`)")).unwrap_or_default();
                wrong.push(format!("missing `{}` {:?}{near}", spec.name, spec.shape));
            }
            Some(shape) if *shape != spec.shape => {
                wrong.push(format!("`{}` has shape {shape:?}, expected {:?}", spec.name, spec.shape))
            }
            Some(_) => {}
        }
    }
    let known: BTreeMap<&str, ()> = specs.iter().map(|s| (s.name.as_str(), ())).collect();
    for name in shapes.keys().filter(|n| !known.contains_key(n.as_str())) {
        let near = nearest(name, known.keys().copied());
        wrong.push(format!("unexpected `{name}`{}", near.map(|n| format!(" (nearest: `{n}`)")).unwrap_or_default()));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let more = wrong.len().saturating_sub(8);
    wrong.truncate(8);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Err(Error::weights(format!("the tensors are not those of this SAM: {}{more}", wrong.join("; ")))
        .hint("every tensor must be there with its official name and shape; nothing is loaded in part"))
}

fn open(path: &Path) -> Result<Source> {
    let mut magic = [0u8; 9];
    let mut file = std::fs::File::open(path).map_err(|e| Error::reading(path, &e))?;
    let n = file.read(&mut magic).map_err(|e| Error::reading(path, &e))?;
    // A safetensors file starts with the length of its JSON header; everything else is left to the pickle's reader.
    if n == 9 && magic[8] == b'{' {
        return Ok(Source::Safetensors(Box::new(Reader::open(path)?)));
    }
    let reader = PytorchReader::new(path).map_err(|e| {
        Error::weights(format!("not a checkpoint: {e}"))
            .at(path)
            .hint("expected .safetensors, or a .pth file as torch.save(model.state_dict(), …) writes it")
    })?;
    // Training scripts wrap the state dict (`model.`, `state_dict.`, `module.`): one common prefix is taken off.
    let tensors = reader.into_tensors();
    check_claims(path, file, &tensors)?;
    const ANCHOR: &str = "image_encoder.patch_embed.proj.weight";
    let prefix = tensors.keys().find_map(|k| k.strip_suffix(ANCHOR)).unwrap_or("").to_string();
    Ok(Source::Pytorch(
        tensors.into_iter().map(|(k, t)| (k.strip_prefix(&prefix).map(String::from).unwrap_or(k), t)).collect(),
    ))
}

/// No tensor of a .pth is larger than the largest entry of its zip, which has one a storage, or than the whole of an older file
/// that is no zip: what a pickle claims is checked before memory is taken.
///
/// # Errors
/// A weights error naming the tensor.
fn check_claims<'a>(
    path: &Path,
    file: std::fs::File,
    tensors: impl IntoIterator<Item = (&'a String, &'a pytorch_reader::Tensor)>,
) -> Result<()> {
    /// What deflate can make of a byte.
    const MOST_EXPANSION: u64 = 1032;
    let length = file.metadata().map_err(|e| Error::reading(path, &e))?.len();
    let entry = |zip: &mut zip::ZipArchive<std::io::BufReader<std::fs::File>>, at| {
        let entry = zip.by_index_raw(at).ok()?;
        Some(entry.size().min(entry.compressed_size().min(length).saturating_mul(MOST_EXPANSION)))
    };
    let most = match zip::ZipArchive::new(std::io::BufReader::new(file)) {
        Ok(mut zip) => (0..zip.len()).filter_map(|at| entry(&mut zip, at)).max().unwrap_or(0),
        Err(_) => length,
    };
    for (name, tensor) in tensors.into_iter().collect::<BTreeMap<_, _>>() {
        let values = tensor.shape().iter().try_fold(1u64, |n, size| n.checked_mul(*size as u64));
        let bytes = values.and_then(|n| n.checked_mul(tensor.dtype().size() as u64));
        if bytes.is_none_or(|bytes| bytes > most) {
            let claim = bytes.map_or("more than there can be".into(), |bytes| format!("{bytes} bytes"));
            return Err(Error::weights(format!(
                "`{name}` claims {claim}, the file holds no more than {most} for a tensor"
            ))
            .at(path)
            .hint("the file is damaged or cut short"));
        }
    }
    Ok(())
}

fn outline_of(source: &Source) -> Outline {
    match source {
        Source::Safetensors(reader) => Outline {
            format: "safetensors",
            shapes: reader.entries().into_iter().map(|(name, (_, shape))| (name, shape)).collect(),
        },
        Source::Pytorch(table) => Outline {
            format: "pth",
            shapes: table.iter().map(|(name, t)| (name.clone(), t.shape().to_vec())).collect(),
        },
    }
}

fn pytorch_floats(tensor: &pytorch_reader::Tensor) -> Result<Vec<f32>> {
    let bytes = tensor.read().map_err(|e| Error::weights(format!("cannot read tensor `{}`: {e}", tensor.name)))?;
    match tensor.dtype() {
        DType::F32 => Ok(values(&bytes, f32::from_ne_bytes)),
        DType::F64 => Ok(values(&bytes, |b| f64::from_ne_bytes(b) as f32)),
        DType::F16 => Ok(values(&bytes, |b| half::f16::from_ne_bytes(b).to_f32())),
        DType::BF16 => Ok(values(&bytes, |b| half::bf16::from_ne_bytes(b).to_f32())),
        other => Err(Error::weights(format!("tensor `{}` is {other:?}, expected floating point", tensor.name))),
    }
}
