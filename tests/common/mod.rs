//! What the black-box tests share: the binary, a tiny checkpoint, a tiny data set, the shared folder.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses its part; a test may panic")]

use segft::image::{Grid, Labels, Picture};
use segft::io::picture;
use segft::model::{SamConfig, checkpoint};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// `segft` in a folder, with its own cache.
pub fn segft(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

/// The same, not started yet.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segft"));
    command.current_dir(folder).args(arguments).env("SEGFT_CACHE", folder.join("cache"));
    command
}

/// Standard output of a command that must succeed.
pub fn ok(folder: &Path, arguments: &[&str]) -> String {
    let output = segft(folder, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "segft {arguments:?}: {:?}\n{error}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Exit code and standard error of a command that must fail.
pub fn fails(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let output = segft(folder, arguments);
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A SAM small enough to train in a test: 72 pixels, 81 patches, two blocks.
pub fn small_config() -> SamConfig {
    SamConfig {
        image_size: 72,
        patch: 8,
        embed: 52,
        depth: 2,
        heads: 4,
        window: 5,
        global: vec![1],
        out_chans: 48,
        decoder_mlp: 56,
        decoder_heads: 8,
        iou_hidden: 24,
        stem: None,
    }
}

/// Writes the small SAM's random weights.
pub fn small_checkpoint(path: &Path) {
    let checkpoint = checkpoint::random("small", small_config(), 3);
    checkpoint::write_safetensors(path, &checkpoint.tensors).unwrap();
}

/// Writes `count` pictures of 48 × 40 with a bright disc, and their masks. `variant` changes every pixel.
pub fn discs(folder: &Path, prefix: &str, count: usize, variant: u8) {
    std::fs::create_dir_all(folder.join("images")).unwrap();
    std::fs::create_dir_all(folder.join("masks")).unwrap();
    for i in 0..count {
        let (w, h) = (48usize, 40usize);
        let (cx, cy, r) = (12.0 + (i * 7 % 24) as f32, 12.0 + (i * 5 % 16) as f32, 5.0 + (i % 5) as f32);
        let mut rgb = vec![0u8; 3 * w * h];
        let mut mask = vec![0u16; w * h];
        for y in 0..h {
            for x in 0..w {
                let inside = (x as f32 - cx).hypot(y as f32 - cy) < r;
                let noise = ((x * 31 + y * 17 + i * 101) % 23) as u8;
                let base = if inside { 150 } else { 60 } + noise + variant;
                rgb[3 * (y * w + x)..][..3].copy_from_slice(&[base, base / 2, base / 3]);
                mask[y * w + x] = u16::from(inside);
            }
        }
        let name = format!("{prefix}{i:03}.png");
        picture::write_picture(&folder.join("images").join(&name), &Picture { width: w, height: h, rgb }).unwrap();
        let labels = Labels { grid: Grid::picture(w, h), voxels: mask };
        picture::write_mask(&folder.join("masks").join(&name), &labels).unwrap();
    }
}

/// Flags of a training that takes seconds.
pub const QUICK: [&str; 10] =
    ["--model", "small.safetensors", "--epochs", "2", "--batch", "4", "--seed", "5", "--threads", "2"];

/// The folder of real data, if it is there: `SEGFT_SHARED`, else `../shared`.
pub fn shared() -> Option<PathBuf> {
    let folder = std::env::var_os("SEGFT_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED: no real data at {} (set SEGFT_SHARED)", folder.display());
    None
}
