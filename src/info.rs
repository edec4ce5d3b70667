//! What a file is, in facts: the JSON object of `segft info --json` and its form for people.
//!
//! To teach it another kind: a variant of [`Kind`], a line in [`recognise`], a function that returns the object.

use crate::error::{Error, Result};
use crate::io::{dicom, nifti, picture, safetensors};
use crate::method::Budget;
use crate::model::checkpoint;
use crate::run::Run;
use crate::tune::patch::Patch;
use crate::tune::selection::Selection;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Kinds that are recognised, by name and content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Volume,
    Picture,
    Checkpoint,
    Selection,
    Patch,
    Run,
    Dataset,
}

/// Describes a file; keys and values as the JSON of `segft info`.
///
/// # Errors
/// A usage error when there is no such file; a data error when it is damaged, or of no kind that is known.
pub fn describe(path: &Path) -> Result<Value> {
    match recognise(path)? {
        Kind::Volume => volume(path),
        Kind::Picture => image(path),
        Kind::Checkpoint => weights(path),
        Kind::Selection => selection(path),
        Kind::Patch => patch(path),
        Kind::Run => run(path),
        Kind::Dataset => {
            let found = crate::data::check(path)?;
            found.problems.into_iter().next().map_or(Ok(found.facts), Err)
        }
    }
}

fn recognise(path: &Path) -> Result<Kind> {
    if !path.exists() {
        return Err(Error::usage("no such file or folder").at(path));
    }
    // A pipe would be waited for.
    if !path.is_file() && !path.is_dir() {
        return Err(Error::usage("neither a file nor a folder").at(path));
    }
    if path.is_file() && nifti::is_nifti(path) {
        return Ok(Kind::Volume);
    }
    if path.is_file() && picture::is_picture(path) {
        return Ok(Kind::Picture);
    }
    if path.is_dir() && path.join("config.toml").is_file() {
        return Ok(Kind::Run);
    }
    if path.is_dir() {
        return Ok(Kind::Dataset);
    }
    if dicom::is_dicom(path) {
        let folder = path.parent().unwrap_or(Path::new("."));
        return Err(Error::data("a DICOM file").at(path).hint(dicom::hint(folder)));
    }
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    match extension.as_str() {
        "pth" | "pt" | "bin" => Ok(Kind::Checkpoint),
        // Ours and everybody's share a container; the note in its header tells them apart.
        "safetensors" => match safetensors::Reader::open(path)?.notes().get("kind").map(String::as_str) {
            Some("selection") => Ok(Kind::Selection),
            Some("patch") => Ok(Kind::Patch),
            _ => Ok(Kind::Checkpoint),
        },
        "csv" => Ok(Kind::Dataset),
        _ => Err(Error::data("not recognised").at(path).hint(
            "understood are volumes (.nii, .nii.gz, .hdr + .img), pictures (.jpg, .png, .tif, .bmp), \
             weights (.pth, .safetensors), selections, patches, run folders and data sets",
        )),
    }
}

fn weights(path: &Path) -> Result<Value> {
    let outline = checkpoint::outline(path)?;
    let specs = checkpoint::specs_of(&outline);
    let n_parameters: usize = match &specs {
        // A SAM's buffer is no parameter; of another network every tensor is counted.
        Ok(specs) => checkpoint::counts(specs).0,
        Err(_) => outline.shapes.values().map(|s| s.iter().product::<usize>()).sum(),
    };
    Ok(json!({
        "kind": "checkpoint",
        "path": path.display().to_string(),
        "format": outline.format,
        "model": checkpoint::name_of(&outline),
        "n_parameters": n_parameters,
        "n_tensors": outline.shapes.len(),
        "sha256": checkpoint::file_sha256(path)?,
        "problem": specs.err().map(|e| e.message),
    }))
}

fn selection(path: &Path) -> Result<Value> {
    let selection = Selection::load(path)?;
    let weights: Map<String, Value> = selection.chosen.iter().map(|(n, i)| (n.clone(), json!(i.len()))).collect();
    let (k, ratio, budget) = match selection.budget {
        Budget::PerNeuron(k) => (Some(k), None, None),
        Budget::Ratio(ratio) => (None, Some(ratio), None),
        Budget::Count(count) => (None, None, Some(count)),
    };
    Ok(json!({
        "kind": "selection",
        "path": path.display().to_string(),
        "method": selection.method,
        "k": k,
        "ratio": ratio,
        "budget": budget,
        "score": selection.score.to_string(),
        "group": selection.group.to_string(),
        "selection_loss": selection.loss.map(|loss| loss.to_string()),
        "seed": selection.seed,
        "base_name": selection.base_name,
        "base_sha256": selection.base_sha256,
        "n_values": selection.len(),
        "n_tensors": selection.chosen.len(),
        "n_cases": selection.cases.len(),
        "weights": weights,
    }))
}

fn patch(path: &Path) -> Result<Value> {
    let patch = Patch::load(path)?;
    let bytes = std::fs::metadata(path).map_err(|e| Error::reading(path, &e))?.len();
    Ok(json!({
        "kind": "patch",
        "path": path.display().to_string(),
        "method": patch.about.method,
        "base_name": patch.about.base_name,
        "base_sha256": patch.about.base_sha256,
        "n_values": patch.n_values(),
        "n_tensors": patch.deltas.len(),
        "n_added": patch.n_added(),
        "bytes": bytes,
        "threshold": f64::from(patch.about.threshold),
        "spacing_mm": patch.about.preprocessing.spacing_mm,
        "preprocessing": serde_json::to_value(&patch.about.preprocessing).unwrap_or(Value::Null),
    }))
}

fn run(path: &Path) -> Result<Value> {
    let run = Run::open(path)?;
    let read = |path: &Path| -> Value {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or(Value::Null)
    };
    let (metrics, record) = (read(&run.metrics()), read(&run.record()));
    let count = |side: &str| record["splits"][side].as_array().map(Vec::len);
    Ok(json!({
        "kind": "run",
        "path": path.display().to_string(),
        "completed": run.is_completed(),
        "method": metrics["method"],
        "model": metrics["model"],
        "dataset": record["dataset"]["name"],
        "seed": metrics["seed"],
        "epochs": metrics["epochs"],
        "train": count("train"),
        "validation": count("validation"),
        "test": count("test"),
        "spacing_mm": record["spacing_mm"],
        "mDice": metrics["mDice"],
        "mIoU": metrics["mIoU"],
        "base_sha256": record["base"]["sha256"],
    }))
}

fn volume(path: &Path) -> Result<Value> {
    let (header, facts) = nifti::statistics(path)?;
    let grid = &header.grid;
    Ok(json!({
        "kind": "volume",
        "path": path.display().to_string(),
        "shape": grid.shape,
        "spacing_mm": grid.spacing_mm.map(number),
        "affine": grid.affine.map(|row| row.map(number)),
        "orientation": grid.orientation(),
        "dtype": header.dtype.name(),
        "n_channels": header.n_channels,
        "min": facts.finite.map(|(min, _, _)| number(min)),
        "max": facts.finite.map(|(_, max, _)| number(max)),
        "mean": facts.finite.map(|(_, _, mean)| number(mean)),
        "n_nonfinite": facts.n_nonfinite,
        "labels": facts.labels,
    }))
}

fn image(path: &Path) -> Result<Value> {
    let facts = picture::picture_facts(path)?;
    let (min, max, mean) = facts.range;
    Ok(json!({
        "kind": "picture",
        "path": path.display().to_string(),
        "width": facts.width,
        "height": facts.height,
        "channels": facts.channels,
        "dtype": facts.dtype,
        "min": number(min),
        "max": number(max),
        "mean": number(mean),
        "labels": facts.labels,
    }))
}

/// Whole numbers without a decimal point (no `-0`); what JSON cannot hold is null.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 { json!(value as i64) } else { json!(value) }
}

/// The facts for people: one a line, the names aligned.
pub fn text(facts: &Value) -> String {
    let empty = Map::new();
    let facts = facts.as_object().unwrap_or(&empty);
    let width = facts.keys().map(String::len).max().unwrap_or(0);
    let shown = facts.iter().filter(|(_, value)| !value.is_null());
    shown.map(|(key, value)| format!("{key:width$}  {}\n", phrase(key, value))).collect()
}

fn phrase(key: &str, value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => short(number.as_f64(), number),
        // Matrices row by row under each other would break the alignment: rows are set apart by `;`.
        Value::Array(items) => {
            let nested = items.iter().any(Value::is_array);
            let join = match key {
                "shape" | "spacing_mm" => " x ",
                // Sentences.
                "leaks" | "duplicates" => "; ",
                _ if nested => "; ",
                "affine" => " ",
                _ => ", ",
            };
            items.iter().map(|item| phrase(key, item)).collect::<Vec<_>>().join(join)
        }
        Value::Object(map) => {
            map.iter().map(|(name, value)| format!("{name} {}", phrase(name, value))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

/// Six significant digits are enough for people; whole numbers stay whole.
fn short(value: Option<f64>, exact: &serde_json::Number) -> String {
    match value {
        Some(v) if !exact.is_i64() && !exact.is_u64() && v != 0.0 => {
            let digits = (5 - v.abs().log10().floor() as i64).clamp(0, 12) as usize;
            let fixed = format!("{v:.digits$}");
            if fixed.contains('.') { fixed.trim_end_matches('0').trim_end_matches('.').to_string() } else { fixed }
        }
        _ => exact.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Grid, Labels, Picture};

    #[test]
    fn volumes_are_described_with_the_promised_keys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.nii.gz");
        let mut grid = Grid::picture(2, 2);
        grid.shape = [2, 2, 3];
        grid.spacing_mm = [1.0, 1.0, 2.5];
        grid.affine[2][2] = 2.5;
        // 12 voxels: ten 0, one 1, one 2. Mean 3 / 12.
        let voxels = vec![0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0];
        let labels = Labels { grid: grid.clone(), voxels };
        nifti::write_labels(&path, &labels, &nifti::Template::of_grid(&grid)).unwrap();
        let facts = describe(&path).unwrap();
        let expected = json!({"kind": "volume", "path": path, "shape": [2, 2, 3], "spacing_mm": [1, 1, 2.5],
            "affine": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2.5, 0], [0, 0, 0, 1]], "orientation": "RAS",
            "dtype": "uint8", "n_channels": 1, "min": 0, "max": 2, "mean": 0.25, "n_nonfinite": 0, "labels": [0, 1, 2]});
        assert_eq!(facts, expected);
        let text = text(&facts);
        for line in [
            "shape        2 x 2 x 3\n",
            "affine       1 0 0 0; 0 1 0 0; 0 0 2.5 0; 0 0 0 1\n",
            "labels       0, 1, 2\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn undefined_numbers_are_null_and_left_out_of_the_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("values.nii");
        let grid = Grid::picture(2, 1);
        nifti::write_values(&path, &[f32::NAN, f32::INFINITY], &nifti::Template::of_grid(&grid)).unwrap();
        let facts = describe(&path).unwrap();
        assert_eq!((&facts["min"], &facts["labels"], &facts["n_nonfinite"]), (&Value::Null, &Value::Null, &json!(2)));
        assert!(!text(&facts).contains("min"));
        assert_eq!(text(&json!({"mean": 103.23456789, "tiny": 1.5e-7})), "mean  103.235\ntiny  0.00000015\n");
    }

    #[test]
    fn pictures_are_described_and_masks_recognised() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.png");
        picture::write_mask(&path, &Labels { grid: Grid::picture(2, 1), voxels: vec![0, 1] }).unwrap();
        let facts = describe(&path).unwrap();
        assert_eq!(
            facts,
            json!({"kind": "picture", "path": path, "width": 2, "height": 1, "channels": 1,
            "dtype": "uint8", "min": 0, "max": 255, "mean": 127.5, "labels": [0, 1]})
        );
        let path = folder.path().join("colour.png");
        picture::write_picture(&path, &Picture { width: 1, height: 1, rgb: vec![1, 2, 3] }).unwrap();
        assert_eq!(describe(&path).unwrap()["labels"], Value::Null);
    }

    #[cfg(unix)]
    #[test]
    fn a_name_that_is_not_unicode_is_shown_as_well_as_can_be() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(std::ffi::OsStr::from_bytes(b"m\xffsk.png"));
        picture::write_mask(&path, &Labels { grid: Grid::picture(1, 1), voxels: vec![1] }).unwrap();
        assert!(describe(&path).unwrap()["path"].as_str().unwrap().ends_with("sk.png"));
    }

    #[test]
    fn what_is_not_recognised_is_named_with_what_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        std::fs::write(&path, "hello").unwrap();
        let error = describe(&path).unwrap_err();
        assert_eq!(error.kind.exit_code(), 3);
        assert!(error.hint.unwrap().contains(".nii.gz"));
        assert_eq!(describe(&folder.path().join("none.nii")).unwrap_err().kind.exit_code(), 2);
    }
}
