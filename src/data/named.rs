//! Sets that segft knows by name, one line each.

use super::{Dataset, Request, layout};
use crate::error::{Error, Result, nearest};
use crate::phantom::{self, Kind};
use std::path::{Path, PathBuf};

/// Where Kvasir-SEG is downloaded from.
pub const KVASIR_URL: &str = "https://datasets.simula.no/downloads/kvasir-seg.zip";

/// A named set: name, what it is, and how its folder is found.
type Named = (&'static str, &'static str, fn(&Request) -> Result<PathBuf>);

/// Every named set.
const SETS: [Named; 3] = [
    ("phantom", "generated polyp-like endoscopy pictures; no data needed", |r| generated(r, Kind::Pictures)),
    ("phantom-volume", "generated CT- and MR-like volumes with organs; no data needed", |r| {
        generated(r, Kind::Volumes)
    }),
    ("polyp", "Kvasir-SEG, 1,000 polyp pictures (research and education only)", polyp),
];

/// Names and descriptions.
pub fn list() -> Vec<(&'static str, &'static str)> {
    SETS.iter().map(|(name, what, _)| (*name, *what)).collect()
}

/// Named sets, and whether the cache has them: for `doctor`. Generated ones are made when they are asked for.
pub fn cached(cache: &Path) -> Vec<(&'static str, bool)> {
    let folder = |name: &str| match name {
        "polyp" => cache.join(name),
        _ => cache.join(format!("{name}-v{}", phantom::GENERATOR_VERSION)),
    };
    SETS.iter().map(|(name, ..)| (*name, folder(name).is_dir())).collect()
}

/// Opens a named set, a folder or a CSV.
///
/// # Errors
/// A usage error for an unknown name, offering the nearest; what the layout answers.
pub(super) fn open(request: &Request) -> Result<Dataset> {
    if let Some((name, _, find)) = SETS.iter().find(|(name, ..)| *name == request.dataset) {
        return layout::open(name, &find(request)?);
    }
    let path = Path::new(&request.dataset);
    if let (true, Some(data)) = (path.exists(), &request.data) {
        return Err(Error::usage(format!(
            "--data {} says where the files of a named set are, but `{}` is a folder or CSV itself",
            data.display(),
            request.dataset
        ))
        .hint("leave --data out, or name a set: see `segft data list`"));
    }
    if !path.exists() {
        let near = nearest(&request.dataset, SETS.iter().map(|(name, ..)| *name));
        let hint = near.map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
        let names: Vec<&str> = SETS.iter().map(|(name, ..)| *name).collect();
        return Err(Error::usage(format!("no data set, folder or CSV called `{}`", request.dataset))
            .hint(format!("{hint}named sets: {}; or a folder with images/ and masks/", names.join(", "))));
    }
    layout::open(&name_of(path), path)
}

/// A short name for a run folder: `kvasir-train` for `…/kvasir/train`.
pub fn name_of(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let last = |p: &Path| p.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let name = last(&full);
    let name = match (layout::side(&name), full.parent()) {
        (Some(_), Some(parent)) => format!("{}-{name}", last(parent)),
        _ => name,
    };
    let safe: String = name.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
    if safe.is_empty() { "data".into() } else { safe }
}

/// The default generated set: always seed 0, so that a training's seed does not change the data.
fn generated(request: &Request, kind: Kind) -> Result<PathBuf> {
    let (name, count) = match kind {
        Kind::Pictures => ("phantom", phantom::DEFAULT_PICTURES),
        Kind::Volumes => ("phantom-volume", phantom::DEFAULT_VOLUMES),
    };
    if let Some(folder) = &request.data {
        return Ok(folder.clone());
    }
    let folder = request.cache.join(format!("{name}-v{}", phantom::GENERATOR_VERSION));
    if !folder.is_dir() {
        phantom::write_set(kind, &folder, 0, count).or_else(|e| {
            // Another process may have made it meanwhile: the folder appears whole or not at all.
            if folder.is_dir() { Ok(()) } else { Err(e) }
        })?;
    }
    Ok(folder)
}

/// What opening the set is going to download, if anything: to be said before it starts.
pub fn download_of(request: &Request) -> Option<String> {
    let missing = request.dataset == "polyp" && request.data.is_none() && !request.offline;
    (missing && !request.cache.join("polyp").exists())
        .then(|| "fetching Kvasir-SEG (about 46 MiB; licence: research and education only)".to_string())
}

/// Downloads what [`download_of`] tells of. `progress` is called with (bytes, of).
///
/// # Errors
/// A data error that says what can be done instead.
pub fn download(request: &Request, progress: &dyn Fn(u64, Option<u64>)) -> Result<()> {
    super::fetch::polyp(&request.cache, progress).map_err(|cause| not_here(request, &cause))
}

fn not_here(request: &Request, cause: &Error) -> Error {
    Error::data(format!(
        "Kvasir-SEG is not in `{}` and could not be downloaded from {KVASIR_URL}: {cause}",
        request.cache.join("polyp").display()
    ))
    .hint(
        "download the file elsewhere and run `segft fetch polyp --from FILE`, name its folder with --data DIR, \
         or start without data: `--dataset phantom`",
    )
}

/// Kvasir-SEG from `--data`, else from the cache.
fn polyp(request: &Request) -> Result<PathBuf> {
    let whole = |folder: &Path| {
        [folder.to_path_buf(), folder.join("Kvasir-SEG")].into_iter().find(|f| f.join("images").is_dir())
    };
    if let Some(folder) = &request.data {
        if !folder.is_dir() {
            return Err(Error::usage("no such folder").at(folder));
        }
        return whole(folder).ok_or_else(|| {
            Error::data("no images/ in this folder")
                .at(folder)
                .hint("--data names the folder that holds images/ and masks/")
        });
    }
    let folder = request.cache.join("polyp");
    if let Some(found) = whole(&folder) {
        return Ok(found);
    }
    if request.offline {
        return Err(not_here(request, &Error::data("offline")));
    }
    download(request, &|_, _| ())?;
    whole(&folder).ok_or_else(|| not_here(request, &Error::data("no images/ in what was fetched")))
}
