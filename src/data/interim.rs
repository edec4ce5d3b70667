//! Plain folders and phantoms.

use super::*;
use crate::error::Error;
use crate::io::{nifti, picture as pictures};
use crate::score::pairs::stem;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use sha2::{Digest, Sha256};
use std::path::Path;

fn folder(name: &str, root: &Path) -> Result<Dataset> {
    let list = |dir: &Path| -> Result<BTreeMap<String, PathBuf>> {
        let entries = std::fs::read_dir(dir).map_err(|e| Error::reading(dir, &e))?;
        Ok(entries
            .flatten()
            .map(|e| e.path())
            .filter(|p| nifti::is_nifti(p) || pictures::is_picture(p))
            .map(|p| (stem(&p), p))
            .collect())
    };
    let labels = ["masks", "labels"].iter().map(|n| root.join(n)).find(|p| p.is_dir());
    let labels = labels.ok_or_else(|| Error::data("expected images/ and masks/ (or labels/)").at(root))?;
    let (images, mut masks) = (list(&root.join("images"))?, list(&labels)?);
    let mut cases = Vec::new();
    for (id, image) in images {
        let mask = masks.remove(&id).ok_or_else(|| Error::data(format!("no mask for `{id}`")).at(&image))?;
        cases.push(Case { group: id.clone(), id, image, mask, side: None });
    }
    let form = if cases.first().is_some_and(|c| nifti::is_nifti(&c.image)) { Form::Volumes } else { Form::Pictures };
    Ok(Dataset {
        name: name.into(),
        root: root.into(),
        layout: "images/ + masks/".into(),
        form,
        cases,
        classes: BTreeMap::new(),
    })
}

pub(super) fn prepare(request: &Request) -> Result<Splits> {
    let dataset = match request.dataset.as_str() {
        "phantom" => {
            let root = request.cache.join(format!("phantom-v{}", crate::phantom::GENERATOR_VERSION));
            if !root.is_dir() {
                std::fs::create_dir_all(&request.cache).map_err(|e| Error::writing(&request.cache, &e))?;
                crate::phantom::write_set(crate::phantom::Kind::Pictures, &root, 0, 240)?;
            }
            folder("phantom", &root)?
        }
        path => {
            let root = Path::new(path);
            let name = root.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            folder(&name, root)?
        }
    };
    let mut cases = dataset.cases.clone();
    cases.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(request.seed));
    let mut test = match &request.test {
        Some(path) => folder("test", path)?.cases,
        None => {
            let n = (cases.len() * 15 / 100).max(1);
            cases.split_off(cases.len() - n)
        }
    };
    if let Some(size) = request.size {
        cases.truncate(size);
    }
    let n = (cases.len() / 5).max(1);
    let mut validation = cases.split_off(cases.len() - n);
    let mut train = cases;
    for side in [&mut train, &mut validation, &mut test] {
        side.sort();
    }
    Ok(Splits { dataset, train, validation, test, rule: "seeded".into(), warnings: vec![] })
}

pub(super) fn data_hash(splits: &Splits) -> Result<String> {
    let mut hash = Sha256::new();
    for case in splits.train.iter().chain(&splits.validation).chain(&splits.test) {
        hash.update(case.id.as_bytes());
    }
    Ok(crate::model::checkpoint::hex(&hash.finalize()))
}
