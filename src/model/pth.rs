//! Writing a state dict as PyTorch's .pth: a zip of a pickle and one raw file per tensor, as `torch.save` lays it out.
//!
//! The pickle is made of the few opcodes that an ordered dictionary of tensors needs (protocol 2), so that
//! `torch.load(…, weights_only=True)` reads it.

use super::weights::HostTensor;
use crate::error::Result;
use crate::io::write_atomic;
use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Writes tensors under their names.
///
/// # Errors
/// A job error when the file cannot be written.
pub fn write(path: &Path, tensors: &BTreeMap<String, HostTensor>) -> Result<()> {
    write_atomic(path, |to| {
        // The zip's directory needs a seekable target; a checkpoint fits in memory by definition.
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let plain = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).with_alignment(64);
        let mut put = |name: &str, bytes: &[u8]| -> std::io::Result<()> {
            zip.start_file(format!("archive/{name}"), plain)?;
            zip.write_all(bytes)
        };
        put("data.pkl", &pickle(tensors))?;
        put("byteorder", b"little")?;
        for (i, tensor) in tensors.values().enumerate() {
            let bytes: Vec<u8> = tensor.data.iter().flat_map(|v| v.to_le_bytes()).collect();
            put(&format!("data/{i}"), &bytes)?;
        }
        put("version", b"3\n")?;
        to.write_all(zip.finish()?.get_ref())
    })
}

/// `{name: torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict()), …}`.
fn pickle(tensors: &BTreeMap<String, HostTensor>) -> Vec<u8> {
    let mut p = Pickle(vec![0x80, 2]);
    p.raw(b"}("); // an empty dict, then a mark for SETITEMS
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        p.text(name);
        p.raw(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        p.text("storage");
        p.raw(b"ctorch\nFloatStorage\n");
        p.text(&i.to_string());
        p.text("cpu");
        p.int(tensor.data.len());
        p.raw(b"tQ"); // tuple, persistent id
        p.int(0);
        p.tuple(&tensor.shape);
        let strides: Vec<usize> = (0..tensor.shape.len()).map(|d| tensor.shape[d + 1..].iter().product()).collect();
        p.tuple(&strides);
        p.raw(b"\x89ccollections\nOrderedDict\n)RtR"); // False, OrderedDict(), tuple, call
    }
    p.raw(b"u."); // SETITEMS, stop
    p.0
}

struct Pickle(Vec<u8>);

impl Pickle {
    fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
    fn text(&mut self, text: &str) {
        self.0.push(b'X');
        self.raw(&(text.len() as u32).to_le_bytes());
        self.raw(text.as_bytes());
    }
    fn int(&mut self, value: usize) {
        // LONG1: eight bytes hold any length; the leading zero bit keeps it positive.
        self.raw(&[0x8a, 8]);
        self.raw(&(value as i64).to_le_bytes());
    }
    fn tuple(&mut self, values: &[usize]) {
        self.raw(b"(");
        values.iter().for_each(|v| self.int(*v));
        self.raw(b"t");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pth");
        let tensor = HostTensor { shape: vec![2, 3], data: vec![0.0, -1.5, 2.0, f32::MIN_POSITIVE, 4.0, 5.0] };
        let tensors = BTreeMap::from([("a.weight".to_string(), tensor)]);
        write(&path, &tensors).unwrap();
        let reader = pytorch_reader::PytorchReader::new(&path).unwrap();
        let read = reader.get("a.weight").unwrap();
        assert_eq!(read.shape(), [2, 3]);
        let bytes: Vec<u8> = tensors["a.weight"].data.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(read.read().unwrap(), bytes);
    }
}
