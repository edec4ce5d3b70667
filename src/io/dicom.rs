//! DICOM is not read: a series makes one volume only with its geometry, which is another program's work. It is recognised,
//! so that the answer is what to do.

use std::io::Read;
use std::path::Path;

/// By its name, or by the mark behind its preamble: many scanners write files without an ending.
pub fn is_dicom(file: &Path) -> bool {
    let named = file.extension().is_some_and(|e| e.eq_ignore_ascii_case("dcm") || e.eq_ignore_ascii_case("ima"));
    let mut start = [0; 132];
    named || std::fs::File::open(file).and_then(|mut f| f.read_exact(&mut start)).is_ok() && start.ends_with(b"DICM")
}

/// What to do with a folder of it.
pub fn hint(folder: &Path) -> String {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    format!("DICOM is converted first: `dcm2niix -z y -o nifti {}`, then `segft predict nifti`", folder.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_ending_is_recognised_by_its_mark() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            is_dicom(&path)
        };
        let marked = [vec![0; 128], b"DICM".to_vec(), vec![2; 9]].concat();
        assert!(file("IM000001", &marked) && file("a.dcm", b"") && file("b.IMA", b""));
        assert!(!file("notes", b"DICM") && !file("IM000002", &[0; 200]) && !is_dicom(&folder.path().join("none")));
    }
}
