//! Voxels of a NIfTI file as a stream of `f64`: sizes are checked before memory is taken, and a compressed file is
//! read no further than its header declares. Never holds more than one chunk.

use super::dtype::Dtype;
use super::header::{Header, LONGEST, length};
use crate::error::{Error, Result};
use flate2::bufread::MultiGzDecoder;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Voxels decoded at a time.
const CHUNK: usize = 1 << 16;

/// Deflate cannot expand beyond 1032 to 1; a header that claims more is lying.
const MOST_EXPANSION: u64 = 1100;

/// A header, and its voxels waiting to be read.
pub(super) struct Source {
    pub(super) header: Header,
    /// Whether the length of the file has proved that all voxels are there.
    pub(super) proved: bool,
    reader: Box<dyn Read>,
    /// The file with the voxels.
    path: PathBuf,
}

/// An open file that decompresses itself if its first bytes say gzip, whatever its name.
struct Opened {
    reader: Box<dyn Read>,
    length: u64,
    compressed: bool,
}

fn open_file(path: &Path) -> Result<Opened> {
    let failed = |e: std::io::Error| Error::reading(path, &e);
    let file = File::open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(Error::data("expected a NIfTI file, found a folder or device").at(path));
    }
    let mut buffered = BufReader::with_capacity(1 << 16, file);
    let compressed = buffered.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
    let reader: Box<dyn Read> = if compressed { Box::new(MultiGzDecoder::new(buffered)) } else { Box::new(buffered) };
    Ok(Opened { reader, length: about.len(), compressed })
}

/// Opens a file or a pair, reads the header, and checks the declared size against what the file can hold.
pub(super) fn open(path: &Path) -> Result<Source> {
    let (header_path, image_path) = pair(path)?;
    let mut opened = open_file(&header_path)?;
    let mut bytes = [0; LONGEST];
    let mut fill = |part: &mut [u8]| match opened.reader.read_exact(part) {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(Error::data("too short for a NIfTI header").at(&header_path))
        }
        Err(e) => Err(Error::reading(&header_path, &e)),
        Ok(()) => Ok(()),
    };
    fill(&mut bytes[..348])?;
    let size = length([bytes[0], bytes[1], bytes[2], bytes[3]]);
    fill(&mut bytes[348..size])?;
    let mut header = Header::parse(&bytes, image_path.is_none()).map_err(|e| e.at(&header_path))?;
    let mut done = size as u64;
    if let Some(image) = &image_path {
        opened = open_file(image)?;
        done = 0;
        if !header.separate {
            // The header of a single file, taken apart by hand: its offset means nothing in the other file.
            header.data_offset = 0;
        }
    }
    let path = image_path.unwrap_or(header_path);
    let proved = check_size(&header, &opened).map_err(|e| e.at(&path))?;
    let mut source = Source { header, proved, reader: opened.reader, path };
    source.skip(source.header.data_offset - done)?;
    Ok(source)
}

/// The header file, and the voxel file when it is another.
fn pair(path: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let lower = name.to_ascii_lowercase();
    let bare = lower.strip_suffix(".gz").unwrap_or(&lower);
    if !bare.ends_with(".hdr") && !bare.ends_with(".img") {
        return Ok((path.to_path_buf(), None));
    }
    let partner = if bare.ends_with(".hdr") { "img" } else { "hdr" };
    let stem = &name[..bare.len() - 3];
    let candidates = [partner.to_string(), format!("{partner}.gz"), partner.to_uppercase()];
    let found = candidates.iter().map(|end| path.with_file_name(format!("{stem}{end}"))).find(|p| p.is_file());
    match found {
        _ if !path.exists() => Err(Error::reading(path, &std::io::ErrorKind::NotFound.into())),
        Some(other) if partner == "img" => Ok((path.to_path_buf(), Some(other))),
        Some(other) => Ok((other, Some(path.to_path_buf()))),
        None => Err(Error::data(format!("one of a pair: `{stem}{partner}` is not beside it"))
            .at(path)
            .hint("keep `.hdr` and `.img` together")),
    }
}

/// Refuses what the file cannot hold. True when its length proves that it holds everything.
fn check_size(header: &Header, opened: &Opened) -> Result<bool> {
    let claimed = header.data_bytes().and_then(|bytes| bytes.checked_add(header.data_offset));
    let most = if opened.compressed { opened.length.saturating_mul(MOST_EXPANSION) } else { opened.length };
    match claimed {
        Some(claimed) if claimed <= most => Ok(!opened.compressed),
        _ => {
            let size = claimed.map_or("more than 2^64".to_string(), |n| n.to_string());
            let [i, j, k] = header.grid.shape;
            let kind = if opened.compressed { "compressed file" } else { "file" };
            Err(Error::data(format!(
                "the header claims {size} bytes ({i} x {j} x {k} voxels, {} channels, {}), the {kind} has {}",
                header.n_channels,
                header.dtype.name(),
                opened.length
            ))
            .hint("the file is cut short or damaged: copy it again"))
        }
    }
}

impl Source {
    /// Hands the voxels of one channel, or of all, to `take` in chunks, slope and intercept applied. The rest of the
    /// file is read past, so that a truncated or damaged file is always noticed.
    pub(super) fn stream(mut self, channel: Option<usize>, mut take: impl FnMut(&[f64]) -> Result<()>) -> Result<()> {
        let n_voxels = self.header.grid.len();
        let size = self.header.dtype.size();
        let channel_bytes = (n_voxels * size) as u64;
        let (before, n_read) = channel.map_or((0, self.header.n_channels), |n| (n, 1));
        self.skip(before as u64 * channel_bytes)?;
        let mut bytes = vec![0; CHUNK * size];
        let mut values = Vec::with_capacity(CHUNK);
        let mut left = n_voxels * n_read;
        while left > 0 {
            let n = left.min(CHUNK);
            let part = &mut bytes[..n * size];
            if let Err(error) = self.reader.read_exact(part) {
                return Err(self.broken(&error));
            }
            values.clear();
            decode(part, self.header.dtype, self.header.big_endian, &mut values);
            if let Some((slope, inter)) = self.header.scaling {
                values.iter_mut().for_each(|v| *v = *v * slope + inter);
            }
            take(&values)?;
            left -= n;
        }
        self.skip((self.header.n_channels - before - n_read) as u64 * channel_bytes)?;
        // At the end of a gzip member its checksum is compared; anything beyond is not read.
        std::io::copy(&mut (&mut self.reader).take(1), &mut std::io::sink()).map_err(|e| self.broken(&e)).map(drop)
    }

    fn skip(&mut self, n_bytes: u64) -> Result<()> {
        match std::io::copy(&mut (&mut self.reader).take(n_bytes), &mut std::io::sink()) {
            Ok(n) if n == n_bytes => Ok(()),
            Ok(_) => Err(self.broken(&std::io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(self.broken(&error)),
        }
    }

    fn broken(&self, error: &std::io::Error) -> Error {
        let message = if error.kind() == std::io::ErrorKind::UnexpectedEof {
            "the file ends before the last voxel that its header claims".to_string()
        } else {
            format!("cannot read the voxels: {error}")
        };
        Error::data(message).at(&self.path).hint("the file is cut short or damaged: copy it again")
    }
}

/// Appends the numbers that the bytes hold.
fn decode(bytes: &[u8], dtype: Dtype, big: bool, values: &mut Vec<f64>) {
    macro_rules! numbers {
        ($kind:ty) => {{
            let (chunks, _) = bytes.as_chunks();
            match big {
                false => values.extend(chunks.iter().map(|raw| <$kind>::from_le_bytes(*raw) as f64)),
                true => values.extend(chunks.iter().map(|raw| <$kind>::from_be_bytes(*raw) as f64)),
            }
        }};
    }
    match dtype {
        Dtype::U8 => numbers!(u8),
        Dtype::I8 => numbers!(i8),
        Dtype::U16 => numbers!(u16),
        Dtype::I16 => numbers!(i16),
        Dtype::U32 => numbers!(u32),
        Dtype::I32 => numbers!(i32),
        Dtype::U64 => numbers!(u64),
        Dtype::I64 => numbers!(i64),
        Dtype::F32 => numbers!(f32),
        Dtype::F64 => numbers!(f64),
    }
}
