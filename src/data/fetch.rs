//! Data sets and weights into the cache: from a file that is here already, or by download.
//!
//! A download goes to a `.part` file, is resumed with a range request when it breaks, checked by SHA-256 (against the
//! published hash, else against the one recorded at the first download in `hashes.toml`), and only then gets its name.
//! Weights must also have the names and shapes of the SAM they are fetched as. A hash is recorded once the file has
//! proved to be what it should: a wrong one must not lock the right one out.
//! `SEGFT_FETCH_BASE_URL` replaces everything before the file's name in the addresses, for mirrors and tests.

use super::named::KVASIR_URL;
use crate::error::{Error, Result, nearest};
use crate::io::{Replace, write_atomic};
use crate::model::SamConfig;
use crate::model::checkpoint::{self, file_md5, file_sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Times that a broken download is taken up again.
const TRIES: usize = 4;
/// Most that an archive may unpack to.
const MAX_UNPACKED: u64 = 4 << 30;

/// Something that can be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// What to write after `segft fetch`.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Where it comes from; nothing when only `--from` can give it.
    pub url: Option<&'static str>,
    /// Name of the file.
    pub file: &'static str,
    /// About how large the download is, in MiB.
    pub mib: u64,
    /// Under which licence.
    pub licence: &'static str,
    /// What its publisher says, where he does.
    pub hash: Option<Hash>,
    /// What becomes of the file.
    pub kind: Kind,
}

/// A published hash of a whole file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// In hexadecimal.
    Sha256(&'static str),
    /// In hexadecimal. Against damage, not against malice: for files of which nothing better is published.
    Md5(&'static str),
}

/// What becomes of a fetched file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An archive, unpacked to `<cache>/<name>/`.
    Archive,
    /// Weights, kept as `<cache>/weights/<file>`.
    Weights,
}

/// Everything that can be fetched, one line each.
#[rustfmt::skip]
pub const ITEMS: [Item; 5] = [
    Item { name: "polyp", what: "Kvasir-SEG, 1,000 polyp pictures with masks", url: Some(KVASIR_URL), file: "kvasir-seg.zip", mib: 46, licence: "research and education only", hash: None, kind: Kind::Archive },
    Item { name: "sam_vit_b", what: "SAM ViT-B", url: Some("https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth"), file: "sam_vit_b_01ec64.pth", mib: 358, licence: "Apache-2.0", hash: Some(Hash::Sha256("ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912")), kind: Kind::Weights },
    Item { name: "sam_vit_l", what: "SAM ViT-L", url: Some("https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth"), file: "sam_vit_l_0b3195.pth", mib: 1191, licence: "Apache-2.0", hash: Some(Hash::Md5("0b3195507c641ddb6910d2bb5adee89c")), kind: Kind::Weights },
    Item { name: "sam_vit_h", what: "SAM ViT-H", url: Some("https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth"), file: "sam_vit_h_4b8939.pth", mib: 2445, licence: "Apache-2.0", hash: Some(Hash::Md5("4b8939a88964f0f4ff5f5b2642c598a6")), kind: Kind::Weights },
    Item { name: "medsam_vit_b", what: "MedSAM ViT-B; with --from alone", url: None, file: "medsam_vit_b.pth", mib: 358, licence: "Apache-2.0", hash: None, kind: Kind::Weights },
];

/// Whether the network may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Downloads are allowed.
    Allowed,
    /// `--offline`.
    Never,
}

impl Item {
    /// The item of that name.
    ///
    /// # Errors
    /// A usage error that offers the nearest.
    pub fn find(name: &str) -> Result<Item> {
        ITEMS.into_iter().find(|i| i.name == name).ok_or_else(|| {
            let near = nearest(name, ITEMS.iter().map(|i| i.name));
            let hint = near.map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
            let names: Vec<&str> = ITEMS.iter().map(|i| i.name).collect();
            Error::usage(format!("nothing called `{name}` can be fetched"))
                .hint(format!("{hint}known: {}", names.join(", ")))
        })
    }

    /// Where it is kept.
    pub fn place(&self, cache: &Path) -> PathBuf {
        match self.kind {
            Kind::Archive => cache.join(self.name),
            Kind::Weights => cache.join("weights").join(self.file),
        }
    }

    /// SHA-256 of the file that was fetched first, where none is published.
    pub fn recorded(&self, cache: &Path) -> Option<String> {
        known_hashes(cache).get(self.name).and_then(|v| v.as_str()).map(String::from)
    }

    fn address(&self) -> Option<String> {
        let url = self.url?;
        Some(match std::env::var("SEGFT_FETCH_BASE_URL") {
            Ok(base) if !base.is_empty() => format!("{}/{}", base.trim_end_matches('/'), self.file),
            _ => url.to_string(),
        })
    }
}

/// What `--dataset polyp` does when the cache has nothing.
///
/// # Errors
/// As [`fetch`].
pub(super) fn polyp(cache: &Path, progress: &dyn Fn(u64, Option<u64>)) -> Result<()> {
    fetch(Item::find("polyp")?, None, cache, Network::Allowed, Replace::Never, progress).map(|_| ())
}

/// Fetches an item and says where it is. What is there already stays, unless it may be replaced; a file that is given
/// is never passed over in silence. `progress` is called with (bytes, of).
///
/// # Errors
/// A usage error when a file is given and the item is there already; a data error naming the address, the folder and
/// what to do without network; a wrong checksum, weights of another network, a damaged archive or an archive that would
/// write outside its folder. The cache then holds nothing half, and what was there before.
pub fn fetch(
    item: Item,
    from: Option<&Path>,
    cache: &Path,
    network: Network,
    replace: Replace,
    progress: &dyn Fn(u64, Option<u64>),
) -> Result<PathBuf> {
    let place = item.place(cache);
    if place.exists() && replace == Replace::Never {
        return match from {
            None => Ok(place),
            Some(_) => Err(Error::usage(format!("`{}` is in the cache already", item.name))
                .at(place)
                .hint("replace it with --force")),
        };
    }
    let folder = place.parent().unwrap_or(cache);
    std::fs::create_dir_all(folder).map_err(|e| Error::writing(folder, &e))?;
    let lock = folder.join(format!(".{}.lock", item.name));
    let held = File::create(&lock).map_err(|e| Error::writing(&lock, &e))?;
    held.try_lock().map_err(|_| Error::job(format!("another segft is fetching `{}`", item.name)).at(folder))?;

    let result = match from {
        Some(source) if source.is_dir() && item.kind == Kind::Archive => {
            // No file was seen: what an earlier one's hash was says nothing of this.
            adopt_folder(source, &place).and_then(|()| forget_hash(&item, cache))
        }
        Some(source) => take(&item, source, &place, cache, replace),
        None => downloaded(&item, folder, &place, cache, network, progress),
    };
    let _ = std::fs::remove_file(&lock);
    result.map(|()| place)
}

/// Downloads, checks and puts a file where it belongs.
fn downloaded(
    item: &Item,
    folder: &Path,
    place: &Path,
    cache: &Path,
    network: Network,
    progress: &dyn Fn(u64, Option<u64>),
) -> Result<()> {
    let part = folder.join(format!("{}.part", item.file));
    download(item, &part, network, progress).map_err(|e| without_network(item, place, e))?;
    let taken = take(item, &part, place, cache, Replace::Never);
    // What fails its check would fail it again: the next try starts anew.
    let _ = std::fs::remove_file(&part);
    taken
}

/// Checks a file, puts it where it belongs, and only then records the hash of a first one.
fn take(item: &Item, file: &Path, place: &Path, cache: &Path, replace: Replace) -> Result<()> {
    let digest = match item.hash {
        Some(Hash::Md5(_)) => file_md5(file)?,
        _ => file_sha256(file)?,
    };
    check_hash(item, &digest, cache, replace).map_err(|e| e.at(file))?;
    if item.kind == Kind::Weights {
        check_weights(item, file)?;
    }
    settle(item, file, place)?;
    match item.hash {
        Some(_) => Ok(()),
        None => record_hash(item, &digest, cache),
    }
}

fn without_network(item: &Item, place: &Path, cause: Error) -> Error {
    let hint = match item.kind {
        Kind::Archive => format!(
            "download it elsewhere and run `segft fetch {} --from FILE`; or start without data: `--dataset phantom`",
            item.name
        ),
        Kind::Weights => format!("download it elsewhere and run `segft fetch {} --from FILE`", item.name),
    };
    let Some(address) = item.address() else { return cause.at(place) };
    let message =
        format!("`{}` is not in the cache and could not be fetched from {address}: {}", item.name, cause.message);
    Error { kind: cause.kind, ..Error::data(message) }.at(place).hint(hint)
}

/// Compares with the published hash, else with the one recorded at the first download. A recorded one gives way to
/// `--force`: the user then says that the other file is meant.
fn check_hash(item: &Item, digest: &str, cache: &Path, replace: Replace) -> Result<()> {
    let wrong = |kind: &str, expected: &str| Error::data(format!("{kind} is {digest}, expected {expected}"));
    let another = "the file is damaged or another one: fetch it again";
    match (item.hash, item.recorded(cache)) {
        (Some(Hash::Sha256(published)), _) if published != digest => Err(wrong("SHA-256", published).hint(another)),
        (Some(Hash::Md5(published)), _) if published != digest => Err(wrong("MD5", published).hint(another)),
        (None, Some(recorded)) if recorded != digest && replace == Replace::Never => Err(wrong("SHA-256", &recorded).hint(
            "it is not the file that was fetched first (see hashes.toml in the cache); take it all the same with --force",
        )),
        _ => Ok(()),
    }
}

fn known_hashes(cache: &Path) -> toml::Table {
    std::fs::read_to_string(cache.join("hashes.toml")).ok().and_then(|t| toml::from_str(&t).ok()).unwrap_or_default()
}

fn forget_hash(item: &Item, cache: &Path) -> Result<()> {
    let mut known = known_hashes(cache);
    match known.remove(item.name) {
        None => Ok(()),
        Some(_) => write_hashes(&known, cache),
    }
}

fn record_hash(item: &Item, digest: &str, cache: &Path) -> Result<()> {
    let mut known = known_hashes(cache);
    known.insert(item.name.to_string(), toml::Value::String(digest.to_string()));
    write_hashes(&known, cache)
}

fn write_hashes(known: &toml::Table, cache: &Path) -> Result<()> {
    let text = toml::to_string(known).map_err(|e| Error::job(e.to_string()))?;
    write_atomic(&cache.join("hashes.toml"), |to| to.write_all(text.as_bytes()))
}

/// Weights must be those of the SAM whose name they get: every name and shape is compared, no value is read.
fn check_weights(item: &Item, file: &Path) -> Result<()> {
    let outline = checkpoint::outline(file)?;
    checkpoint::specs_of(&outline).map_err(|e| e.at(file))?;
    if SamConfig::from_shapes(&outline.shapes).ok() != SamConfig::named(item.name) {
        return Err(Error::weights(format!(
            "these are the weights of `{}`, not of `{}`",
            checkpoint::name_of(&outline),
            item.name
        ))
        .at(file)
        .hint("any checkpoint can be used where it is, with --model FILE"));
    }
    Ok(())
}

/// Puts a checked file where it belongs.
fn settle(item: &Item, file: &Path, place: &Path) -> Result<()> {
    match item.kind {
        Kind::Archive => unpack(file, place),
        Kind::Weights => {
            let mut from = File::open(file).map_err(|e| Error::reading(file, &e))?;
            write_atomic(place, |to| std::io::copy(&mut from, to).map(|_| ()))
        }
    }
}

/// Downloads to `part`, going on where an earlier try stopped if the server still has the same file.
fn download(item: &Item, part: &Path, network: Network, progress: &dyn Fn(u64, Option<u64>)) -> Result<()> {
    let Some(address) = item.address() else {
        return Err(Error::data(format!("`{}` has no address that it can be fetched from", item.name)).hint(format!(
            "get {} from its authors (github.com/bowang-lab/MedSAM), then `segft fetch {} --from FILE`",
            item.file, item.name
        )));
    };
    if network == Network::Never {
        return Err(Error::data("the network is switched off (--offline)"));
    }
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .user_agent(concat!("segft/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let tag_path = part.with_extension("part.tag");
    let mut last = Error::data("no answer");
    for attempt in 0..TRIES {
        if attempt > 0 {
            std::thread::sleep(Duration::from_millis(200 * attempt as u64));
        }
        match piece(&agent, &address, part, &tag_path, progress) {
            Ok(true) => {
                let _ = std::fs::remove_file(&tag_path);
                return Ok(());
            }
            Ok(false) => last = Error::data("the connection broke before the file was complete"),
            Err(error) if error.kind == crate::error::Kind::Usage => return Err(Error::data(error.message)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// One request; the answer says whether the file is complete. A usage error means that trying again is useless.
fn piece(
    agent: &ureq::Agent,
    url: &str,
    part: &Path,
    tag_path: &Path,
    progress: &dyn Fn(u64, Option<u64>),
) -> Result<bool> {
    let have = part.metadata().map(|m| m.len()).unwrap_or(0);
    let tag = std::fs::read_to_string(tag_path).ok().filter(|t| !t.is_empty());
    let mut request = agent.get(url);
    // Without a tag nothing tells whether the server still has the same file: then from the start.
    if let (Some(tag), true) = (&tag, have > 0) {
        request = request.header("Range", format!("bytes={have}-")).header("If-Range", tag);
    }
    let response = request.call().map_err(|e| Error::data(e.to_string()))?;
    let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(String::from);
    let (start, total) = match response.status().as_u16() {
        206 => {
            let total = header("content-range").and_then(|r| r.rsplit('/').next().and_then(|n| n.parse().ok()));
            (have, total)
        }
        200 => (0, header("content-length").and_then(|n| n.parse().ok())),
        // A range beyond the end: what is here is not what is there.
        416 => {
            let _ = std::fs::remove_file(part);
            return Ok(false);
        }
        status @ 400..=499 => return Err(Error::usage(format!("the server answers {status}"))),
        status => return Err(Error::data(format!("the server answers {status}"))),
    };
    let strong = header("etag").filter(|t| !t.starts_with("W/")).or_else(|| header("last-modified"));
    std::fs::write(tag_path, strong.unwrap_or_default()).map_err(|e| Error::writing(tag_path, &e))?;
    let mut file =
        File::options().create(true).write(true).truncate(false).open(part).map_err(|e| Error::writing(part, &e))?;
    file.set_len(start).map_err(|e| Error::writing(part, &e))?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(|e| Error::writing(part, &e))?;
    let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
    let (mut done, mut buffer) = (start, vec![0u8; 1 << 16]);
    loop {
        match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                file.write_all(&buffer[..n]).map_err(|e| Error::writing(part, &e))?;
                done += n as u64;
                progress(done, total);
            }
            Err(_) => return Ok(false),
        }
    }
    file.sync_all().map_err(|e| Error::writing(part, &e))?;
    Ok(total.is_none_or(|total| done == total))
}

/// Unpacks a zip into a new folder that appears when it is complete. Names that leave the folder are refused, links are
/// passed over, and sizes are bounded while bytes come, not by the header's word.
fn unpack(archive: &Path, place: &Path) -> Result<()> {
    let bad = |m: String| Error::data(m).at(archive).hint("the archive is damaged or not the one that was published");
    let parent = place.parent().unwrap_or(Path::new("."));
    let making =
        tempfile::Builder::new().prefix(".segft-").tempdir_in(parent).map_err(|e| Error::writing(parent, &e))?;
    let file = File::open(archive).map_err(|e| Error::reading(archive, &e))?;
    let mut zip = zip::ZipArchive::new(file).map_err(|e| bad(format!("not a zip archive: {e}")))?;
    let mut left = MAX_UNPACKED;
    for i in 0..zip.len() {
        let entry = zip.by_index(i).map_err(|e| bad(format!("entry {i}: {e}")))?;
        let name = entry
            .enclosed_name()
            .ok_or_else(|| bad(format!("entry `{}` lies outside of the archive", entry.name())))?;
        if entry.is_symlink() || name.components().any(|c| c.as_os_str() == "__MACOSX") {
            continue;
        }
        let target = making.path().join(&name);
        if entry.is_dir() {
            std::fs::create_dir_all(&target).map_err(|e| Error::writing(&target, &e))?;
            continue;
        }
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::writing(folder, &e))?;
        }
        let claimed = entry.size();
        let mut out = File::create(&target).map_err(|e| Error::writing(&target, &e))?;
        let mut bounded = entry.take(claimed.min(left) + 1);
        let n = std::io::copy(&mut bounded, &mut out).map_err(|e| bad(format!("`{}`: {e}", name.display())))?;
        if n > claimed || n > left {
            return Err(bad(format!("`{}` unpacks to more than it declares", name.display())));
        }
        left -= n;
    }
    adopt(making.path(), place)?;
    // What was renamed is no longer there to be cleaned up.
    let _ = making.keep();
    Ok(())
}

/// Checks that images/ and masks/ came out and gives the folder its name.
fn adopt(made: &Path, place: &Path) -> Result<()> {
    let whole = |f: &Path| f.join("images").is_dir() && f.join("masks").is_dir();
    let nested: Vec<PathBuf> =
        std::fs::read_dir(made).map(|d| d.flatten().map(|e| e.path()).collect()).unwrap_or_default();
    if !whole(made) && !nested.iter().any(|f| whole(f)) {
        let names: Vec<String> =
            nested.iter().filter_map(|p| p.file_name().map(|n| n.to_string_lossy().into_owned())).collect();
        return Err(Error::data(format!("no images/ and masks/ in the archive; found {}", names.join(", ")))
            .hint("give the archive as it was published"));
    }
    let failed = |e: std::io::Error| Error::writing(place, &e);
    if !place.exists() {
        return std::fs::rename(made, place).map_err(failed);
    }
    // `--force`: the old set steps aside and is thrown away when the new one has its name.
    let parent = place.parent().unwrap_or(Path::new("."));
    let aside = tempfile::Builder::new().prefix(".segft-").tempdir_in(parent).map_err(failed)?;
    std::fs::rename(place, aside.path().join("old")).map_err(failed)?;
    std::fs::rename(made, place).map_err(failed)
}

/// `--from FOLDER`: copies images/ and masks/.
fn adopt_folder(source: &Path, place: &Path) -> Result<()> {
    let parent = place.parent().unwrap_or(Path::new("."));
    let making =
        tempfile::Builder::new().prefix(".segft-").tempdir_in(parent).map_err(|e| Error::writing(parent, &e))?;
    let root = [source.to_path_buf(), source.join("Kvasir-SEG")].into_iter().find(|f| f.join("images").is_dir());
    let root = root.ok_or_else(|| Error::data("no images/ in this folder").at(source))?;
    for name in ["images", "masks"] {
        let (from, to) = (root.join(name), making.path().join(name));
        std::fs::create_dir(&to).map_err(|e| Error::writing(&to, &e))?;
        for entry in
            std::fs::read_dir(&from).map_err(|e| Error::reading(&from, &e))?.flatten().filter(|e| e.path().is_file())
        {
            let target = to.join(entry.file_name());
            std::fs::copy(entry.path(), &target).map_err(|e| Error::writing(&target, &e))?;
        }
    }
    adopt(making.path(), place)?;
    let _ = making.keep();
    Ok(())
}
