//! Pairing of files; what they hold does not matter here.

use super::*;

fn folder(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in names {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    dir
}

fn pair(predictions: &[&str], references: &[&str]) -> Result<Vec<(String, String)>> {
    let (p, r) = (folder(predictions), folder(references));
    let pairing = find(p.path(), r.path(), MissingPolicy::Refuse, Protocol::Plain)?;
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    Ok(pairing.pairs.iter().map(|p| (p.case.clone(), name(&p.prediction))).collect())
}

#[test]
fn stems() {
    for (name, expected) in
        [("a/c.1.nii.gz", "c.1"), ("c.NII", "c"), ("c.hdr", "c"), ("c.png", "c"), ("c_seg.nii.gz", "c_seg"), ("c", "c")]
    {
        assert_eq!(stem(Path::new(name)), expected);
    }
}

#[test]
fn endings_and_appended_words_do_not_matter() {
    let found = pair(
        &["c1_seg.nii.gz", "c2.nii", "c3.png", "c4_0000.nii.gz", "notes.txt", "._c1.nii.gz"],
        &["c1.nii", "c2.nii.gz", "c3.jpg", "c4.nii.gz", "dataset.json"],
    )
    .unwrap();
    let expected = [("c1", "c1_seg.nii.gz"), ("c2", "c2.nii"), ("c3", "c3.png"), ("c4", "c4_0000.nii.gz")];
    assert_eq!(found, expected.map(|(a, b)| (a.to_string(), b.to_string())));
}

#[test]
fn a_case_that_ends_in_seg_is_itself() {
    assert_eq!(pair(&["a_seg.png"], &["a_seg.png"]).unwrap()[0].0, "a_seg");
}

#[test]
fn a_missing_partner_names_the_nearest_file() {
    let error = pair(&["c1.png", "case2.png"], &["c1.png", "cas2.png"]).unwrap_err();
    assert_eq!(error.kind.exit_code(), 3);
    assert!(error.message.contains("has no prediction") && error.message.contains("`case2.png`"), "{error}");
    let error = pair(&["c1.png"], &["c1.png", "c2.png", "c3.png"]).unwrap_err();
    assert!(error.message.contains("nor have 1 others") && error.message.contains("`c1.png`"), "{error}");
    let error = pair(&["c1.png", "c2.png"], &["c1.png"]).unwrap_err();
    assert!(error.message.contains("has no reference") && error.message.contains("`c1.png`"), "{error}");
    assert!(error.path.unwrap().ends_with("c2.png"));
}

#[test]
fn allowed_missing_files_are_listed() {
    let (p, r) = (folder(&["b.png", "c.png"]), folder(&["a.png", "b.png"]));
    let pairing = find(p.path(), r.path(), MissingPolicy::LeaveOut, Protocol::Plain).unwrap();
    let ids = |absent: &[Absent]| absent.iter().map(|a| a.case.clone()).collect::<Vec<_>>();
    assert_eq!(
        (ids(&pairing.without_prediction), ids(&pairing.without_reference)),
        (vec!["a".into()], vec!["c".into()])
    );
    assert_eq!(pairing.pairs.len(), 1);
    let (p, r) = (folder(&["x.png"]), folder(&["y.png"]));
    let error = find(p.path(), r.path(), MissingPolicy::LeaveOut, Protocol::Plain).unwrap_err();
    assert!(error.message.starts_with("no prediction matches"));
}

#[test]
fn nothing_there_is_an_error() {
    assert_eq!(pair(&[], &["a.png"]).unwrap_err().kind.exit_code(), 3);
    assert_eq!(pair(&["a.png"], &["notes.txt"]).unwrap_err().kind.exit_code(), 3);
    let dir = folder(&["a.png"]);
    let gone = find(&dir.path().join("gone"), dir.path(), MissingPolicy::Refuse, Protocol::Plain).unwrap_err();
    assert_eq!(gone.kind.exit_code(), 2);
    let mixed = find(&dir.path().join("a.png"), dir.path(), MissingPolicy::Refuse, Protocol::Plain).unwrap_err();
    assert_eq!(mixed.kind.exit_code(), 2);
}

#[test]
fn two_files_of_one_case_are_an_error() {
    assert!(pair(&["a.png", "a_seg.png"], &["a.png"]).unwrap_err().message.contains("two predictions"));
    assert!(pair(&["a.png"], &["a.png", "a.jpg"]).unwrap_err().message.contains("two references"));
}

#[test]
fn a_data_set_stands_for_its_references() {
    assert_eq!(pair(&["a.png"], &["images/a.jpg", "masks/a.png"]).unwrap().len(), 1);
    assert_eq!(pair(&["a.png"], &["images/a.png", "labels/a.png"]).unwrap().len(), 1);
    assert_eq!(pair(&["a.png"], &["masks/a.png", "labels/a.png"]).unwrap_err().kind.exit_code(), 2);
}

#[test]
fn header_and_voxels_are_one_volume() {
    assert_eq!(pair(&["a.hdr", "a.img"], &["a.nii"]).unwrap()[0].1, "a.hdr");
}

#[test]
fn maps_and_masks_side_by_side() {
    let (p, r) = (folder(&["a.png", "a_prob.png", "b_seg.png", "b_prob.png"]), folder(&["a.png", "b.png"]));
    let names = |protocol| -> Vec<String> {
        let pairing = find(p.path(), r.path(), MissingPolicy::Refuse, protocol).unwrap();
        pairing.pairs.iter().map(|p| p.prediction.file_name().unwrap().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(names(Protocol::Plain), ["a.png", "b_seg.png"]);
    assert_eq!(names(Protocol::Pranet), ["a_prob.png", "b_prob.png"]);
}
