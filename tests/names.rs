//! Names and shapes of the official checkpoints, against the lists of the published models.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use segft::model::SamConfig;
use segft::model::checkpoint::hex;
use sha2::{Digest, Sha256};

/// How many tensors each published model has, and the SHA-256 of its sorted lines `NAME SHAPE\n`, a shape written as
/// `768x3x16x16`. Made from the lists alone: `cut -f1,2 --output-delimiter=' ' MODEL.txt | LC_ALL=C sort | sha256sum`.
const PUBLISHED: [(&str, usize, &str); 3] = [
    ("sam_vit_b", 314, "78d6db84016f15d3a8e09d71d986febbd9744c05e358e2856b726cc3caef2ba7"),
    ("sam_vit_l", 482, "eb848dd0537461b8b5f214c290a7dba8f1f33ef9dcaeec9fcfcb783dc1a9e5c8"),
    ("sam_vit_h", 594, "b99b63f26852f420e842e3354382082b1752c9375642969cbbb1a797ce174f86"),
];

/// Lines in their order, and what [`PUBLISHED`] says of them.
fn sorted(mut lines: Vec<String>) -> (Vec<String>, usize, String) {
    lines.sort();
    let hash = hex(&Sha256::digest(lines.concat()));
    let count = lines.len();
    (lines, count, hash)
}

fn ours(model: &str) -> (Vec<String>, usize, String) {
    let line = |name: &str, shape: &[usize]| {
        format!("{name} {}\n", shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("x"))
    };
    sorted(SamConfig::named(model).unwrap().specs().iter().map(|s| line(&s.name, &s.shape)).collect())
}

#[test]
fn names_and_shapes_are_the_official_ones() {
    for (model, count, hash) in PUBLISHED {
        let (_, our_count, our_hash) = ours(model);
        assert_eq!((our_count, our_hash.as_str()), (count, hash), "{model}");
    }
}

/// Where the lists themselves are at hand, they say which name is wrong, and that the hashes are theirs.
#[test]
fn the_published_lists_are_those_that_were_hashed() {
    let Some(shared) = common::shared() else { return };
    for (model, count, hash) in PUBLISHED {
        let text = std::fs::read_to_string(shared.join(format!("data/keys/{model}.txt"))).unwrap();
        let line = |row: &str| row.split('\t').take(2).collect::<Vec<_>>().join(" ") + "\n";
        let (lines, their_count, their_hash) = sorted(text.lines().map(line).collect());
        assert_eq!((their_count, their_hash.as_str()), (count, hash), "{model}");
        assert_eq!(ours(model).0, lines, "{model}");
    }
}
