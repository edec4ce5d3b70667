//! Downloads against a server on 127.0.0.1 that breaks off, ignores ranges, changes its file or lies.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use common::{command, discs, small_checkpoint};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// How the server behaves.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Honest,
    /// Breaks off after this many bytes, once.
    Breaks(usize),
    /// Breaks off once, and has another file afterwards.
    Changes(usize),
    NoRanges(usize),
    Missing,
}

/// Serves one file; the answer is the address and the request lines and ranges it saw.
fn serve(body: Vec<u8>, manner: Manner) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut lines = Vec::new();
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                let line = line.unwrap();
                if line.is_empty() {
                    break;
                }
                lines.push(line.to_lowercase());
            }
            let range = lines
                .iter()
                .find_map(|l| l.strip_prefix("range: bytes="))
                .map(|r| r.trim_end_matches('-').parse::<usize>().unwrap());
            log.lock().unwrap().push(range.map(|r| r.to_string()).unwrap_or("whole".into()));
            let version = if matches!(manner, Manner::Changes(_)) && n > 0 { 2 } else { 1 };
            let same =
                lines.iter().find_map(|l| l.strip_prefix("if-range: ")).is_none_or(|t| t == format!("\"v{version}\""));
            let from = match manner {
                Manner::NoRanges(_) => 0,
                _ if same => range.unwrap_or(0),
                _ => 0,
            };
            if manner == Manner::Missing {
                stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
                continue;
            }
            let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
            let mut head = format!(
                "HTTP/1.1 {status}\r\nETag: \"v{version}\"\r\nContent-Length: {}\r\nConnection: close\r\n",
                body.len() - from
            );
            if from > 0 {
                head += &format!("Content-Range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
            }
            let end = match manner {
                Manner::Breaks(at) | Manner::Changes(at) | Manner::NoRanges(at) if n == 0 => at,
                _ => body.len(),
            };
            stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
            stream.write_all(&body[from..end]).unwrap();
        }
    });
    (address, seen)
}

/// A zip with images/ and masks/, as Kvasir-SEG's.
fn archive(extra: &[(&str, &[u8])]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    discs(folder.path(), "k", 6, 0);
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    for kind in ["images", "masks"] {
        for i in 0..6 {
            let name = format!("{kind}/k{i:03}.png");
            zip.start_file(format!("Kvasir-SEG/{name}"), options).unwrap();
            zip.write_all(&std::fs::read(folder.path().join(name)).unwrap()).unwrap();
        }
    }
    for (name, bytes) in extra {
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn fetch(folder: &Path, base: &str, arguments: &[&str]) -> (i32, String) {
    let output = command(folder, arguments).env("SEGFT_FETCH_BASE_URL", base).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn broken_downloads_are_resumed() {
    let body = archive(&[]);
    for (manner, wanted) in [
        (Manner::Honest, vec!["whole".to_string()]),
        (Manner::Breaks(1000), vec!["whole".into(), "1000".into()]),
        (Manner::Changes(1000), vec!["whole".into(), "1000".into()]),
        (Manner::NoRanges(1000), vec!["whole".into(), "1000".into()]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (address, seen) = serve(body.clone(), manner);
        let (code, error) = fetch(folder.path(), &address, &["fetch", "polyp"]);
        assert_eq!(code, 0, "{error}");
        assert_eq!(*seen.lock().unwrap(), wanted);
        let cache = folder.path().join("cache");
        assert_eq!(std::fs::read_dir(cache.join("polyp/Kvasir-SEG/images")).unwrap().count(), 6);
        assert!(!cache.join("kvasir-seg.zip.part").exists());
        assert!(std::fs::read_to_string(cache.join("hashes.toml")).unwrap().contains("polyp"));
    }
}

#[test]
fn what_cannot_be_fetched_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let (address, _) = serve(archive(&[]), Manner::Missing);
    let (code, error) = fetch(folder.path(), &address, &["fetch", "polyp"]);
    assert!(code == 3 && error.contains("404") && error.contains("--from FILE"), "{error}");
    // Bytes that are not those of the published weights.
    let (address, _) = serve(vec![7; 5000], Manner::Honest);
    let (code, error) = fetch(folder.path(), &address, &["fetch", "sam_vit_b"]);
    assert!(code == 3 && error.contains("ec2df627"), "{error}");
    assert!(!cache.join("polyp").exists() && !cache.join("weights/sam_vit_b_01ec64.pth").exists());
    let (code, error) = fetch(folder.path(), "http://127.0.0.1:1", &["fetch", "polyp", "--offline"]);
    assert!(code == 3 && error.contains("--dataset phantom"), "{error}");
    let (code, error) = fetch(folder.path(), &address, &["fetch", "polip"]);
    assert!(code == 2 && error.contains("`polyp`"), "{error}");
}

#[test]
fn a_named_set_is_downloaded_where_it_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    small_checkpoint(&at.join("small.safetensors"));
    let train = ["train", "--dataset", "polyp", "--model", "small.safetensors", "--steps", "1", "--out"];
    // Nobody listens: what the program looked for, and what can be done.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (code, error) = fetch(at, &format!("http://{nobody}"), &[&train[..], &["none"]].concat());
    assert_eq!(code, 3, "{error}");
    let looked = at.join("cache/polyp").display().to_string();
    for part in [
        looked.as_str(),
        "https://datasets.simula.no/downloads/kvasir-seg.zip",
        &format!("http://{nobody}/kvasir-seg.zip"),
        "segft fetch polyp --from FILE",
        "--data DIR",
        "--dataset phantom",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!at.join("none").exists() && !at.join("cache/polyp").exists());

    let (address, seen) = serve(archive(&[]), Manner::Honest);
    for out in ["first", "second"] {
        let (code, error) = fetch(at, &address, &[&train[..], &[out]].concat());
        assert_eq!(code, 0, "{error}");
        assert_eq!(error.contains("research and education only"), out == "first", "{error}");
    }
    assert_eq!(*seen.lock().unwrap(), ["whole"], "the second one finds it in the cache");
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(at.join("first/run.json")).unwrap()).unwrap();
    let cases = |side: &str| record["splits"][side].as_array().unwrap().len();
    assert_eq!(cases("train") + cases("validation") + cases("test"), 6, "{record}");

    // Another file than the first time is not taken in silence.
    let hashes = std::fs::read_to_string(at.join("cache/hashes.toml")).unwrap();
    std::fs::remove_dir_all(at.join("cache/polyp")).unwrap();
    let (address, _) = serve(archive(&[("Kvasir-SEG/more.txt", b"x")]), Manner::Honest);
    for arguments in [&["fetch", "polyp"][..], &[&train[..], &["third"]].concat()[..]] {
        let (code, error) = fetch(at, &address, arguments);
        let recorded = hashes.split('"').nth(1).unwrap();
        assert!(code == 3 && error.contains(&format!("expected {recorded}")), "{error}");
        assert!(!at.join("cache/polyp").exists() && !at.join("cache/kvasir-seg.zip.part").exists());
    }
    assert_eq!(std::fs::read_to_string(at.join("cache/hashes.toml")).unwrap(), hashes);
}

#[test]
fn hostile_archives_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("a.zip");
    let arguments = ["fetch", "polyp", "--from", "a.zip"];
    std::fs::write(&from, archive(&[("../../evil.txt", b"x")])).unwrap();
    let (code, error) = fetch(folder.path(), "", &arguments);
    assert!(code == 3 && error.contains("outside"), "{error}");
    let whole = archive(&[]);
    std::fs::write(&from, &whole[..whole.len() / 2]).unwrap();
    let (code, error) = fetch(folder.path(), "", &arguments);
    assert!(code == 3 && error.contains("zip"), "{error}");
    assert!(!folder.path().join("cache/polyp").exists() && !folder.path().join("evil.txt").exists());
    std::fs::write(&from, whole).unwrap();
    let (code, error) = fetch(folder.path(), "", &arguments);
    assert_eq!(code, 0, "{error}");
}

#[test]
fn a_wrong_file_does_not_lock_the_right_one_out() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("notes.txt", zip::write::SimpleFileOptions::default()).unwrap();
    std::fs::write(at.join("wrong.zip"), zip.finish().unwrap().into_inner()).unwrap();
    std::fs::write(at.join("right.zip"), archive(&[])).unwrap();
    let (code, error) = fetch(at, "", &["fetch", "polyp", "--from", "wrong.zip"]);
    assert!(code == 3 && error.contains("notes.txt"), "{error}");
    assert!(!at.join("cache/hashes.toml").exists() && !at.join("cache/.polyp.lock").exists());
    let right = ["fetch", "polyp", "--from", "right.zip"];
    let (code, error) = fetch(at, "", &right);
    assert_eq!(code, 0, "{error}");
    assert!(!at.join("cache/.polyp.lock").exists());
    // What is there is neither passed over in silence nor lost.
    let (code, error) = fetch(at, "", &right);
    assert!(code == 2 && error.contains("--force"), "{error}");
    let (code, error) = fetch(at, "", &["fetch", "polyp", "--from", "wrong.zip", "--force"]);
    assert_eq!(code, 3, "{error}");
    assert!(at.join("cache/polyp/Kvasir-SEG/images").is_dir());
    let (code, error) = fetch(at, "", &[&right[..], &["--force"]].concat());
    assert_eq!(code, 0, "{error}");
    assert!(at.join("cache/polyp/Kvasir-SEG/images").is_dir());
}

#[test]
fn weights_must_be_those_of_their_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("run.sh"), "#!/bin/sh\n").unwrap();
    small_checkpoint(&at.join("small.safetensors"));
    for (arguments, code, word) in [
        (&["fetch", "medsam_vit_b", "--from", "run.sh"][..], 3, "not a checkpoint"),
        (&["fetch", "sam_vit_l", "--from", "small.safetensors"], 3, "expected 0b319550"),
        (&["fetch", "sam_vit_b", "--from", "small.safetensors"], 3, "ec2df627"),
        (&["fetch", "medsam_vit_b", "--from", "small.safetensors"], 3, "not of `medsam_vit_b`"),
        (&["fetch", "medsam_vit_b"], 3, "segft fetch medsam_vit_b --from FILE"),
        (&["fetch", "--list", "polyp"], 2, "--list"),
        (&["predict", "run.sh", "--model", "medsam_vit_b"], 3, "run.sh"),
    ] {
        let (got, error) = fetch(at, "", arguments);
        assert!(got == code && error.contains(word), "{arguments:?}: {got} {error}");
    }
    assert!(std::fs::read_dir(at.join("cache/weights")).unwrap().next().is_none(), "something was kept");
}
