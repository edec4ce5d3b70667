//! `pretrain` on the real binary: a recipe is repeated to the byte, also when it was stopped on the way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use common::{command, discs, fails, ok};
use std::path::Path;
use std::time::{Duration, Instant};

/// A network of 32 pixels, on the generated world first and then half on a folder.
const RECIPE: &str = r#"
model = "dot"
seed = 5
batch = 2
[shape]
image_size = 32
patch = 16
embed = 24
depth = 1
heads = 2
window = 0
global = [0]
out_chans = 16
decoder_mlp = 16
decoder_heads = 8
iou_hidden = 8
stem = { widths = [4, 8, 8], blocks = [0, 0, 1] }
[[stage]]
name = "world"
size = 16
steps = 150
lr = 1e-3
[[stage]]
name = "discs"
steps = 150
lr = 1e-3
[[stage.set]]
dataset = "discs"
share = 0.5
"#;

fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("recipe.toml"), RECIPE).unwrap();
    discs(&folder.path().join("discs"), "a", 4, 0);
    folder
}

fn weights(folder: &Path, out: &str, stage: &str) -> Vec<u8> {
    std::fs::read(folder.join(out).join(format!("dot-{stage}.safetensors"))).unwrap()
}

#[test]
fn a_recipe_is_repeated_and_resumed_to_the_byte() {
    let folder = workplace();
    let at = folder.path();
    ok(at, &["pretrain", "--config", "recipe.toml", "--out", "whole"]);
    let mut child =
        command(at, &["pretrain", "--config", "recipe.toml", "--out", "cut", "--threads", "1"]).spawn().unwrap();
    // Killed after the first stage was saved and, on any machine, before the end of the second.
    let start = Instant::now();
    while !at.join("cut/dot-world.safetensors").is_file() {
        assert!(start.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!at.join("cut/dot-discs.safetensors").is_file(), "it was not stopped in time: the test says nothing");
    ok(at, &["pretrain", "--resume", "--out", "cut"]);
    for stage in ["world", "discs"] {
        assert!(weights(at, "whole", stage) == weights(at, "cut", stage), "{stage}");
    }
    assert_ne!(weights(at, "whole", "world"), weights(at, "whole", "discs"));
    // What was made is a checkpoint like any other.
    let info: serde_json::Value =
        serde_json::from_str(&ok(at, &["info", "whole/dot-discs.safetensors", "--json"])).unwrap();
    assert_eq!(info["kind"], "checkpoint");
}

#[test]
fn a_wrong_recipe_is_refused_before_anything_is_made() {
    let folder = workplace();
    let at = folder.path();
    for (from, to, word) in [
        ("share = 0.5", "share = 1.5", "shares"),
        ("steps = 150", "steps = 0", "steps"),
        ("batch = 2", "bach = 2", "bach"),
    ] {
        std::fs::write(at.join("wrong.toml"), RECIPE.replacen(from, to, 1)).unwrap();
        let (code, text) = fails(at, &["pretrain", "--config", "wrong.toml", "--out", "none"]);
        assert!(code == 2 && text.contains(word), "{code}: {text}");
        assert!(!at.join("none").exists());
    }
    let (code, text) = fails(at, &["pretrain", "--config", "recipe.toml", "--data", "nowhere"]);
    assert!(code == 2 && text.contains("nowhere"), "{code}: {text}");
}
