//! NIfTI-1 and NIfTI-2 headers: what is read from them, and the clean header that a result is written with.
//!
//! Both versions hold the same fields at different offsets, so one reader and one writer serve both. The `nifti` crate
//! knows version 1 only and takes memory on the header's word, which a hostile file must not make us do.
//! Defects are mended exactly where nibabel mends them; nothing that could name a patient is ever copied.

use super::dtype::Dtype;
use crate::error::{Error, Result};
use crate::image::Grid;

/// Bytes of the larger header; shorter ones are padded with zeros.
pub(super) const LONGEST: usize = 540;

/// What a NIfTI header says.
#[derive(Debug, Clone)]
pub struct Header {
    /// Where the voxels lie; missing axes have one voxel and spacing 1.
    pub grid: Grid,
    /// How voxels are stored.
    pub dtype: Dtype,
    /// Volumes along the fourth axis; 1 when there is none.
    pub n_channels: usize,
    /// Slope and intercept, when they change anything.
    pub scaling: Option<(f64, f64)>,
    pub(super) big_endian: bool,
    /// Whether the voxels are in an `.img` file.
    pub(super) separate: bool,
    pub(super) data_offset: u64,
    pub(super) template: Template,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// What a result keeps of the file that it must lie on: grid, both transforms with their codes, and units.
/// Free text, extensions and everything else that may name a patient are left behind.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    version: Version,
    pub(super) shape: [usize; 3],
    /// Axes that the file has: a 2-D picture comes back as one.
    n_axes: usize,
    /// The sign of the third axis in the quaternion form, then the three spacings.
    pixdim: [f64; 4],
    units: u8,
    qform_code: i16,
    sform_code: i16,
    /// Quaternion b, c, d, then the offset x, y, z.
    quaternion: [f64; 6],
    sform: [f64; 12],
}

/// Where a version keeps its fields.
struct Offsets {
    dim: usize,
    datatype: usize,
    bitpix: usize,
    pixdim: usize,
    vox_offset: usize,
    slope: usize,
    codes: usize,
    quaternion: usize,
    sform: usize,
    units: usize,
}

const ONE: Offsets = Offsets {
    dim: 40,
    datatype: 70,
    bitpix: 72,
    pixdim: 76,
    vox_offset: 108,
    slope: 112,
    codes: 252,
    quaternion: 256,
    sform: 280,
    units: 123,
};

const TWO: Offsets = Offsets {
    dim: 16,
    datatype: 12,
    bitpix: 14,
    pixdim: 104,
    vox_offset: 168,
    slope: 176,
    codes: 344,
    quaternion: 352,
    sform: 400,
    units: 500,
};

/// Numbers of a header in its version and byte order.
struct Fields<'a> {
    bytes: &'a [u8; LONGEST],
    version: Version,
    big: bool,
}

impl Fields<'_> {
    fn raw<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut raw: [u8; N] = std::array::from_fn(|n| self.bytes[at + n]);
        if self.big {
            raw.reverse();
        }
        raw
    }

    fn short(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.raw(at))
    }

    /// The n-th of a row of integers: 2 bytes in version 1; in version 2, `wide` bytes.
    fn integer(&self, at: usize, n: usize, wide: usize) -> i64 {
        match (self.version, wide) {
            (Version::One, _) => i64::from(self.short(at + 2 * n)),
            (Version::Two, 4) => i64::from(i32::from_le_bytes(self.raw(at + 4 * n))),
            (Version::Two, _) => i64::from_le_bytes(self.raw(at + 8 * n)),
        }
    }

    /// The n-th of a row of floating-point numbers.
    fn real(&self, at: usize, n: usize) -> f64 {
        match self.version {
            Version::One => f64::from(f32::from_le_bytes(self.raw(at + 4 * n))),
            Version::Two => f64::from_le_bytes(self.raw(at + 8 * n)),
        }
    }
}

/// Bytes of the header that starts with these 4 bytes: 540 when they say NIfTI-2, else 348.
pub(super) fn length(first: [u8; 4]) -> usize {
    if i32::from_le_bytes(first) == 540 || i32::from_be_bytes(first) == 540 { 540 } else { 348 }
}

impl Header {
    /// Reads a header of 348 or 540 bytes, padded to [`LONGEST`]; `single` when voxels should follow in the same file.
    pub(super) fn parse(bytes: &[u8; LONGEST], single: bool) -> Result<Header> {
        let first = [bytes[0], bytes[1], bytes[2], bytes[3]];
        let version = if length(first) == 540 { Version::Two } else { Version::One };
        let (at, magic) = match version {
            Version::One => (&ONE, &bytes[344..348]),
            Version::Two => (&TWO, &bytes[4..8]),
        };
        let separate = match magic {
            b"n+1\0" | b"n+2\0" => false,
            b"ni1\0" | b"ni2\0" => true,
            _ if [[92, 1, 0, 0], [0, 0, 1, 92]].contains(&first) => {
                return Err(Error::data(
                    "no NIfTI magic: this looks like an ANALYZE 7.5 header, which has no orientation",
                )
                .hint("convert it to NIfTI, checking left and right"));
            }
            _ => return Err(Error::data("not a NIfTI file: no `n+1`, `ni1`, `n+2` or `ni2` in its header")),
        };
        if single && separate {
            return Err(Error::data("the header says that the voxels are in a separate `.img` file")
                .hint("name the pair `.hdr` and `.img`"));
        }
        // The number of axes is 1 to 7 in the right byte order, and far from it in the other.
        let little = Fields { bytes, version, big: false };
        let fields =
            if (1..=7).contains(&little.integer(at.dim, 0, 8)) { little } else { Fields { big: true, ..little } };
        let (shape, n_channels) = dimensions(&fields, at)?;
        let dtype = Dtype::from_code(fields.short(at.datatype))?;
        let template = Template::read(&fields, at, shape)?;
        let grid = template.grid();
        if grid.affine.iter().flatten().any(|v| !v.is_finite()) {
            return Err(Error::data("the affine is not finite").hint("repair the sform or qform of the header"));
        }
        let (slope, inter) = (fields.real(at.slope, 0), fields.real(at.slope, 1));
        let scaling = (slope != 0.0 && slope.is_finite() && (slope, inter) != (1.0, 0.0)).then_some((slope, inter));
        if scaling.is_some() && !inter.is_finite() {
            return Err(Error::data(format!("slope `{slope}` is valid, but intercept `{inter}` is not")));
        }
        let vox_offset = match version {
            Version::One => fields.real(at.vox_offset, 0),
            Version::Two => fields.integer(at.vox_offset, 0, 8) as f64,
        };
        let least = if separate { 0 } else { length(first) as u64 + 4 };
        // An offset of 0 in a single file means directly after the header.
        let data_offset = if vox_offset == 0.0 { least } else { vox_offset as u64 };
        if !(0.0..1e15).contains(&vox_offset) || data_offset < least {
            return Err(Error::data(format!("voxels cannot start at byte `{vox_offset}`, inside the header")));
        }
        Ok(Header { grid, dtype, n_channels, scaling, big_endian: fields.big, separate, data_offset, template })
    }

    /// Bytes of all voxels of all channels; `None` when that overflows.
    pub(super) fn data_bytes(&self) -> Option<u64> {
        let factors = self.grid.shape.into_iter().chain([self.n_channels, self.dtype.size()]);
        factors.map(|n| n as u64).try_fold(1u64, u64::checked_mul)
    }
}

/// Three axes and the number of channels; missing axes are 1.
fn dimensions(fields: &Fields, at: &Offsets) -> Result<([usize; 3], usize)> {
    let n_axes = fields.integer(at.dim, 0, 8);
    if !(1..=7).contains(&n_axes) {
        return Err(Error::data(format!("the header claims `{n_axes}` axes, expected 1 to 7")));
    }
    let given: Vec<i64> = (1..=n_axes as usize).map(|n| fields.integer(at.dim, n, 8)).collect();
    if let Some(wrong) = given.iter().find(|n| **n < 1 || **n > 1 << 40) {
        return Err(Error::data(format!("the header claims an axis of `{wrong}` voxels, in {given:?}")));
    }
    if given.iter().skip(4).any(|n| *n != 1) {
        return Err(Error::data(format!("{n_axes} axes {given:?}: expected a volume, or volumes along a fourth axis")));
    }
    let size = |n: usize| given.get(n).map_or(1, |v| *v as usize);
    Ok(([size(0), size(1), size(2)], size(3)))
}

impl Template {
    /// The template of a grid made here: scanner coordinates in millimetres, as sform.
    pub fn of_grid(grid: &Grid) -> Template {
        Template {
            version: if grid.shape.iter().any(|n| *n > i16::MAX as usize) { Version::Two } else { Version::One },
            shape: grid.shape,
            n_axes: 3,
            pixdim: [1.0, grid.spacing_mm[0], grid.spacing_mm[1], grid.spacing_mm[2]],
            units: 2,
            qform_code: 0,
            sform_code: 1,
            quaternion: [0.0; 6],
            sform: std::array::from_fn(|n| grid.affine[n / 4][n % 4]),
        }
    }

    fn read(fields: &Fields, at: &Offsets, shape: [usize; 3]) -> Result<Template> {
        // Codes beyond 5 mean nothing: no transform.
        let code = |n| Some(fields.integer(at.codes, n, 4)).filter(|c| (0..=5).contains(c)).unwrap_or(0) as i16;
        let (qform_code, sform_code) = (code(0), code(1));
        let n_axes = fields.integer(at.dim, 0, 8) as usize;
        let mut pixdim: [f64; 4] = std::array::from_fn(|n| fields.real(at.pixdim, n));
        if pixdim[0] != -1.0 {
            pixdim[0] = 1.0;
        }
        for (n, spacing) in pixdim.iter_mut().enumerate().skip(1) {
            if !spacing.is_finite() {
                return Err(Error::data(format!("pixdim[{n}] is `{spacing}`")).hint("repair the spacing of the header"));
            }
            let unused = n > n_axes && qform_code == 0 && sform_code == 0;
            *spacing = if *spacing == 0.0 || unused { 1.0 } else { spacing.abs() };
        }
        Ok(Template {
            version: fields.version,
            shape,
            n_axes: n_axes.clamp(1, 3),
            pixdim,
            units: fields.bytes[at.units + if fields.version == Version::Two && fields.big { 3 } else { 0 }],
            qform_code,
            sform_code,
            quaternion: std::array::from_fn(|n| fields.real(at.quaternion, n)),
            sform: std::array::from_fn(|n| fields.real(at.sform, n)),
        })
    }

    /// The grid, its affine chosen as nibabel does: sform, else qform, else spacing alone.
    pub fn grid(&self) -> Grid {
        let mut affine = [[0.0, 0.0, 0.0, 0.0], [0.0; 4], [0.0; 4], [0.0, 0.0, 0.0, 1.0]];
        let spacing_mm = [self.pixdim[1], self.pixdim[2], self.pixdim[3]];
        if self.sform_code > 0 {
            for (n, value) in self.sform.iter().enumerate() {
                affine[n / 4][n % 4] = *value;
            }
        } else if self.qform_code > 0 {
            let rotation = self.rotation();
            for (row, target) in affine.iter_mut().take(3).enumerate() {
                for (n, value) in rotation[row].iter().enumerate() {
                    target[n] = value * if n == 2 { spacing_mm[n] * self.pixdim[0] } else { spacing_mm[n] };
                }
                target[3] = self.quaternion[3 + row];
            }
        } else {
            // No transform: the centre of the volume is the origin, and i runs to the left as ANALYZE had it.
            for n in 0..3 {
                let step = if n == 0 { -spacing_mm[n] } else { spacing_mm[n] };
                affine[n][n] = step;
                affine[n][3] = -step * (self.shape[n] as f64 - 1.0) / 2.0;
            }
        }
        Grid { shape: self.shape, spacing_mm, affine }
    }

    /// The quaternion form's rotation matrix. Only b, c and d are stored; a follows from the length being 1.
    fn rotation(&self) -> [[f64; 3]; 3] {
        let [b, c, d] = [self.quaternion[0], self.quaternion[1], self.quaternion[2]];
        let epsilon = if self.version == Version::One { f64::from(f32::EPSILON) } else { f64::EPSILON };
        let rest = 1.0 - (b * b + c * c + d * d);
        // Rounding may leave a little more or less than nothing: a rotation by 180 degrees.
        let a = if rest < 3.0 * epsilon { 0.0 } else { rest.sqrt() };
        let norm = a * a + b * b + c * c + d * d;
        let s = 2.0 / norm;
        [
            [1.0 - s * (c * c + d * d), s * (b * c - a * d), s * (b * d + a * c)],
            [s * (b * c + a * d), 1.0 - s * (b * b + d * d), s * (c * d - a * b)],
            [s * (b * d - a * c), s * (c * d + a * b), 1.0 - s * (b * b + c * c)],
        ]
    }

    /// The clean little-endian header of a single file of at most three axes on this grid, up to the first voxel.
    pub(super) fn header(&self, dtype: Dtype) -> Vec<u8> {
        let at = if self.version == Version::One { &ONE } else { &TWO };
        let size: usize = if self.version == Version::One { 348 } else { 540 };
        // Four zero bytes after the header: no extensions.
        let mut bytes = vec![0; size + 4];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &(size as i32).to_le_bytes());
        put(at.datatype, &dtype.code().to_le_bytes());
        put(at.bitpix, &(8 * dtype.size() as i16).to_le_bytes());
        let dims = [self.n_axes, self.shape[0], self.shape[1], self.shape[2], 1, 1, 1, 1];
        let mut pixdim = [1.0; 8];
        pixdim[..4].copy_from_slice(&self.pixdim);
        let reals = [
            (at.pixdim, &pixdim[..]),
            (at.slope, &[1.0, 0.0]),
            (at.quaternion, &self.quaternion),
            (at.sform, &self.sform),
        ];
        match self.version {
            Version::One => {
                put(344, b"n+1\0");
                dims.iter().enumerate().for_each(|(n, v)| put(at.dim + 2 * n, &(*v as i16).to_le_bytes()));
                put(at.vox_offset, &(size as f32 + 4.0).to_le_bytes());
                put(at.codes, &self.qform_code.to_le_bytes());
                put(at.codes + 2, &self.sform_code.to_le_bytes());
                for (start, values) in reals {
                    values.iter().enumerate().for_each(|(n, v)| put(start + 4 * n, &(*v as f32).to_le_bytes()));
                }
            }
            Version::Two => {
                put(4, b"n+2\0\r\n\x1a\n");
                dims.iter().enumerate().for_each(|(n, v)| put(at.dim + 8 * n, &(*v as i64).to_le_bytes()));
                put(at.vox_offset, &(size as i64 + 4).to_le_bytes());
                put(at.codes, &i32::from(self.qform_code).to_le_bytes());
                put(at.codes + 4, &i32::from(self.sform_code).to_le_bytes());
                for (start, values) in reals {
                    values.iter().enumerate().for_each(|(n, v)| put(start + 8 * n, &v.to_le_bytes()));
                }
            }
        }
        put(at.units, &[self.units]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quaternion_turns_the_axes() {
        // (b, c, d) = (0, 0, sin 45°): a quarter turn about z takes i to y and j to -x; spacings 2 and 3, third axis
        // reversed by pixdim[0] = -1.
        let mut template = Template::of_grid(&Grid::picture(4, 4));
        template.sform_code = 0;
        template.qform_code = 1;
        template.pixdim = [-1.0, 2.0, 3.0, 4.0];
        template.quaternion = [0.0, 0.0, 0.5f64.sqrt(), 7.0, 8.0, 9.0];
        let expected = [[0.0, -3.0, 0.0, 7.0], [2.0, 0.0, 0.0, 8.0], [0.0, 0.0, -4.0, 9.0], [0.0, 0.0, 0.0, 1.0]];
        let affine = template.grid().affine;
        for n in 0..16 {
            assert!((affine[n / 4][n % 4] - expected[n / 4][n % 4]).abs() < 1e-12, "{affine:?}");
        }
        // Half a turn about x, with rounding that makes b longer than 1: a is 0, not the root of a negative number.
        template.quaternion[..3].copy_from_slice(&[1.000_000_1, 0.0, 0.0]);
        assert_eq!(template.grid().affine[0][0], 2.0);
    }

    #[test]
    fn without_codes_the_centre_is_the_origin_and_i_runs_left() {
        // nibabel's documented example: shape 3 x 5 x 7, zooms 3, 2, 1.
        let mut grid = Grid::picture(3, 5);
        grid.shape[2] = 7;
        grid.spacing_mm = [3.0, 2.0, 1.0];
        let template = Template { sform_code: 0, ..Template::of_grid(&grid) };
        let expected = [[-3.0, 0.0, 0.0, 3.0], [0.0, 2.0, 0.0, -4.0], [0.0, 0.0, 1.0, -3.0], [0.0, 0.0, 0.0, 1.0]];
        assert_eq!(template.grid().affine, expected);
    }

    #[test]
    fn a_written_header_is_read_back_in_both_versions() {
        for version in [Version::One, Version::Two] {
            let mut template =
                Template { version, qform_code: 2, units: 10, ..Template::of_grid(&Grid::picture(3, 5)) };
            template.quaternion = [0.1, 0.2, 0.3, 4.0, 5.0, 6.0].map(|v: f32| f64::from(v));
            let mut bytes = [0; LONGEST];
            let written = template.header(Dtype::I16);
            bytes[..written.len() - 4].copy_from_slice(&written[..written.len() - 4]);
            let header = Header::parse(&bytes, true).unwrap();
            assert_eq!(header.template, template);
            assert_eq!((header.dtype, header.n_channels, header.scaling), (Dtype::I16, 1, None));
            assert_eq!(header.data_offset, written.len() as u64);
        }
    }
}
