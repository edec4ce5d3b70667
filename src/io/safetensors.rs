//! The safetensors container: checkpoints, selections and patches.
//!
//! Reading streams tensor by tensor, after every size in the header was checked against the file. Writing is our own
//! few lines because equal content must give equal bytes, also in the header (the crate keeps metadata in a hash map).

use super::write_atomic;
use crate::error::{Error, Result};
use safetensors::tensor::{Dtype, Metadata};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// A header larger than this is not that of a network's weights.
const MAX_HEADER: u64 = 64 << 20;

/// A file, or bytes that are compiled in.
trait Source: Read + Seek {}
impl<S: Read + Seek> Source for S {}

/// An open file: names, types and shapes are known, values are not read yet.
pub struct Reader {
    source: Box<dyn Source>,
    data_start: u64,
    metadata: Metadata,
    path: std::path::PathBuf,
}

impl Reader {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// A weights error when the header is no safetensors header or claims more than the file holds.
    pub fn open(path: &Path) -> Result<Reader> {
        let file = File::open(path).map_err(|e| Error::reading(path, &e))?;
        let length = file.metadata().map_err(|e| Error::reading(path, &e))?.len();
        Reader::new(Box::new(file), length, path)
    }

    /// Reads bytes that are compiled in; `name` stands for the path in errors.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn embedded(bytes: &'static [u8], name: &str) -> Result<Reader> {
        Reader::new(Box::new(std::io::Cursor::new(bytes)), bytes.len() as u64, Path::new(name))
    }

    fn new(mut source: Box<dyn Source>, length: u64, path: &Path) -> Result<Reader> {
        let bad = |m: String| {
            Error::weights(m).at(path).hint("the file is cut short, damaged or not safetensors: get or write it again")
        };
        let mut size = [0u8; 8];
        source.read_exact(&mut size).map_err(|_| bad(format!("not a safetensors file: {length} bytes in all")))?;
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER || size + 8 > length {
            return Err(bad(format!("not a safetensors file: it claims a header of {size} bytes and holds {length}")));
        }
        let mut header = vec![0u8; size as usize];
        source.read_exact(&mut header).map_err(|e| Error::reading(path, &e))?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|e| bad(format!("damaged safetensors header: {e}")))?;
        let (claimed, held) = (metadata.data_len() as u64, length - 8 - size);
        if claimed != held {
            return Err(bad(format!("the header claims {claimed} bytes of tensors, the file holds {held}")));
        }
        Ok(Reader { source, data_start: 8 + size, metadata, path: path.to_path_buf() })
    }

    /// Free-form strings of the header.
    pub fn notes(&self) -> BTreeMap<String, String> {
        self.metadata.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// Names, types and shapes, by name.
    pub fn entries(&self) -> BTreeMap<String, (Dtype, Vec<usize>)> {
        self.metadata.tensors().into_iter().map(|(name, info)| (name, (info.dtype, info.shape.clone()))).collect()
    }

    /// The bytes of a tensor, little endian.
    ///
    /// # Errors
    /// A weights error when there is no such tensor.
    pub fn bytes(&mut self, name: &str) -> Result<Vec<u8>> {
        let info = self.metadata.info(name).ok_or_else(|| {
            Error::weights(format!("no tensor `{name}`")).at(&self.path).hint("the file is of another kind")
        })?;
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0u8; end - start];
        self.source
            .seek(SeekFrom::Start(self.data_start + start as u64))
            .and_then(|_| self.source.read_exact(&mut bytes))
            .map_err(|e| Error::reading(&self.path, &e))?;
        Ok(bytes)
    }

    /// A tensor as f32: f32, f64, f16 and bf16 are read.
    ///
    /// # Errors
    /// A weights error naming a tensor that is of another type.
    pub fn floats(&mut self, name: &str) -> Result<Vec<f32>> {
        let dtype = self.metadata.info(name).map(|i| i.dtype);
        let bytes = self.bytes(name)?;
        match dtype {
            Some(Dtype::F32) => Ok(values(&bytes, f32::from_le_bytes)),
            Some(Dtype::F64) => Ok(values(&bytes, |b| f64::from_le_bytes(b) as f32)),
            Some(Dtype::F16) => Ok(values(&bytes, |b| half::f16::from_le_bytes(b).to_f32())),
            Some(Dtype::BF16) => Ok(values(&bytes, |b| half::bf16::from_le_bytes(b).to_f32())),
            other => {
                Err(Error::weights(format!("tensor `{name}` is {other:?}, expected floating point")).at(&self.path))
            }
        }
    }

    /// A tensor of u32.
    ///
    /// # Errors
    /// A weights error naming a tensor that is of another type.
    pub fn indices(&mut self, name: &str) -> Result<Vec<u32>> {
        match self.metadata.info(name).map(|i| i.dtype) {
            Some(Dtype::U32) | None => Ok(values(&self.bytes(name)?, u32::from_le_bytes)),
            other => Err(Error::weights(format!("tensor `{name}` is {other:?}, expected U32")).at(&self.path)),
        }
    }
}

/// Little-endian bytes as values.
pub fn values<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
}

/// Values of a tensor to be written.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// 32-bit floating point.
    F32(&'a [f32]),
    /// 16-bit floating point, rounded from 32 bits.
    F16(&'a [f32]),
    /// Unsigned 32-bit integers.
    U32(&'a [u32]),
}

impl Values<'_> {
    fn header(&self) -> (&'static str, usize) {
        match self {
            Values::F32(v) => ("F32", 4 * v.len()),
            Values::F16(v) => ("F16", 2 * v.len()),
            Values::U32(v) => ("U32", 4 * v.len()),
        }
    }

    fn write(&self, to: &mut dyn Write) -> std::io::Result<()> {
        match self {
            Values::F32(v) => v.iter().try_for_each(|x| to.write_all(&x.to_le_bytes())),
            Values::F16(v) => v.iter().try_for_each(|x| to.write_all(&half::f16::from_f32(*x).to_le_bytes())),
            Values::U32(v) => v.iter().try_for_each(|x| to.write_all(&x.to_le_bytes())),
        }
    }
}

/// Writes tensors and notes; the same content gives the same bytes.
///
/// # Errors
/// A job error naming `path` when it cannot be written; an existing file is then untouched.
pub fn write(
    path: &Path,
    notes: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, (Vec<usize>, Values<'_>)>,
) -> Result<()> {
    write_atomic(path, |to| to_stream(to, notes, tensors))
}

/// As [`write`], to any stream.
///
/// # Errors
/// What the stream answers.
pub fn to_stream(
    to: &mut dyn Write,
    notes: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, (Vec<usize>, Values<'_>)>,
) -> std::io::Result<()> {
    let mut header = serde_json::Map::new();
    if !notes.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(notes));
    }
    let mut offset = 0;
    for (name, (shape, values)) in tensors {
        let (dtype, size) = values.header();
        header.insert(
            name.clone(),
            serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}),
        );
        offset += size;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    to.write_all(&(header.len() as u64).to_le_bytes())?;
    to.write_all(&header)?;
    tensors.values().try_for_each(|(_, values)| values.write(to))
}
