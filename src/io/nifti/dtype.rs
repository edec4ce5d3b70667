//! Datatypes of NIfTI voxels: those that hold one real number each are read, the others are refused by name.

use crate::error::{Error, Result};

/// How a voxel is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum Dtype {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

/// NIfTI code, numpy's name, bytes.
const DTYPES: [(Dtype, i16, &str, usize); 10] = [
    (Dtype::U8, 2, "uint8", 1),
    (Dtype::I8, 256, "int8", 1),
    (Dtype::U16, 512, "uint16", 2),
    (Dtype::I16, 4, "int16", 2),
    (Dtype::U32, 768, "uint32", 4),
    (Dtype::I32, 8, "int32", 4),
    (Dtype::U64, 1280, "uint64", 8),
    (Dtype::I64, 1024, "int64", 8),
    (Dtype::F32, 16, "float32", 4),
    (Dtype::F64, 64, "float64", 8),
];

/// Codes that are valid NIfTI but hold no single real number a voxel.
const REFUSED: [(i16, &str); 7] = [
    (1, "1-bit binary"),
    (32, "complex64"),
    (128, "RGB24 (colour)"),
    (1536, "float128"),
    (1792, "complex128"),
    (2048, "complex256"),
    (2304, "RGBA32 (colour)"),
];

impl Dtype {
    fn entry(self) -> (i16, &'static str, usize) {
        // The table lists every variant; the fallback is never reached.
        DTYPES.iter().find(|entry| entry.0 == self).map_or((2, "uint8", 1), |entry| (entry.1, entry.2, entry.3))
    }

    pub(super) fn from_code(code: i16) -> Result<Dtype> {
        if let Some(entry) = DTYPES.iter().find(|entry| entry.1 == code) {
            return Ok(entry.0);
        }
        match REFUSED.iter().find(|refused| refused.0 == code) {
            Some((_, name)) => {
                Err(Error::data(format!("voxels are stored as {name} (datatype {code}), not as one real number each"))
                    .hint("convert to an integer or floating-point datatype, one channel each"))
            }
            None => Err(Error::data(format!("datatype {code} is no NIfTI datatype"))),
        }
    }

    pub(super) fn code(self) -> i16 {
        self.entry().0
    }

    /// Numpy's name, such as `int16`.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    /// Bytes a voxel.
    pub fn size(self) -> usize {
        self.entry().2
    }

    /// Whether voxels are stored as integers.
    pub fn is_integer(self) -> bool {
        !matches!(self, Dtype::F32 | Dtype::F64)
    }
}
