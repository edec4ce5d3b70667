//! The base model that `--model` names, and the cache folder.

use crate::error::{Error, Result, nearest};
use crate::model::SamConfig;
use crate::model::checkpoint::{self, Checkpoint};
use std::path::{Path, PathBuf};

/// Where the weights of a named model are.
enum Place {
    /// Compiled in.
    Embedded(&'static [u8]),
    /// The size of this name, drawn from this seed: what a comparison with "no pretraining" starts from. Part of what a
    /// patch is made for.
    Random(&'static str, u64),
    /// A file of this name under `<cache>/weights`.
    Cached(&'static str),
}

/// Names that `--model` knows.
static NAMED: [(&str, Place); 8] = [
    ("tiny", Place::Embedded(include_bytes!("../../models/tiny.safetensors"))),
    ("tiny-random", Place::Random("tiny", 0)),
    ("tiny-half-random", Place::Random("tiny-half", 0)),
    ("tiny-double-random", Place::Random("tiny-double", 0)),
    ("sam_vit_b", Place::Cached("sam_vit_b_01ec64.pth")),
    ("sam_vit_l", Place::Cached("sam_vit_l_0b3195.pth")),
    ("sam_vit_h", Place::Cached("sam_vit_h_4b8939.pth")),
    ("medsam_vit_b", Place::Cached("medsam_vit_b.pth")),
];

/// Named weights, and whether they are in the cache: for `doctor`.
pub fn cached() -> Vec<(&'static str, bool)> {
    let weights = cache().join("weights");
    let file = |(name, place): &(&'static str, Place)| match place {
        Place::Cached(file) => Some((*name, weights.join(file).is_file())),
        _ => None,
    };
    NAMED.iter().filter_map(file).collect()
}

/// Loads a base model by name or file.
///
/// # Errors
/// A usage error for an unknown name; a weights error when the file is not there yet (saying how to get it), damaged,
/// or not a SAM.
pub fn load(model: &str) -> Result<Checkpoint> {
    let path = Path::new(model);
    match NAMED.iter().find(|(name, _)| *name == model) {
        Some((name, Place::Embedded(bytes))) => checkpoint::embedded(name, bytes),
        Some((name, Place::Random(size, seed))) => {
            let config = SamConfig::named(size).ok_or_else(|| Error::job(format!("no size called `{size}`")))?;
            Ok(checkpoint::random(name, config, *seed))
        }
        Some((name, Place::Cached(file))) => {
            let path = cache().join("weights").join(file);
            if !path.is_file() {
                // Some have no address: then the file must be at hand.
                let from = format!("`segft fetch {name} --from FILE`");
                let hint = match crate::data::fetch::Item::find(name).map(|item| item.url) {
                    Ok(Some(_)) => format!("fetch them with `segft fetch {name}`, or {from} offline"),
                    _ => format!("get {file} from its authors, then {from}"),
                };
                return Err(Error::weights(format!("the weights of `{name}` are not in the cache"))
                    .at(path)
                    .hint(hint));
            }
            let read = checkpoint::read(&path)
                .map_err(|e| e.hint(format!("the file in the cache is damaged: `segft fetch {name} --force`")))?;
            Ok(Checkpoint { name: name.to_string(), ..read })
        }
        None if path.is_file() => checkpoint::read(path),
        None => {
            let names: Vec<&str> = NAMED.iter().map(|(name, _)| *name).collect();
            let near =
                nearest(model, names.iter().copied()).map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
            Err(Error::usage(format!("no model and no file called `{model}`"))
                .hint(format!("{near}models: {}, or a .pth or .safetensors file", names.join(", "))))
        }
    }
}

/// What to tell the user about where the weights come from, if it matters.
pub fn warning(base: &Checkpoint) -> Option<String> {
    base.origin
        .starts_with("random")
        .then(|| format!("`{}` starts from a {}: nothing is pretrained, expect modest scores", base.name, base.origin))
}

/// Where fetched and generated files are kept: `SEGFT_CACHE`, else the user's cache folder.
pub fn cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("SEGFT_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|p| p.join("segft")))
        .or_else(|| set("LOCALAPPDATA").map(|p| p.join("segft").join("cache")))
        .or_else(|| set("HOME").map(|p| p.join(".cache").join("segft")))
        .unwrap_or_else(|| PathBuf::from(".segft-cache"))
}
