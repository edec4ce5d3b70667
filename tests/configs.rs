//! Every file in configs/ is a configuration that segft takes, every method has one, and the help tells the defaults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use segft::config::Config;
use segft::method::methods;
use segft::train::Algorithm;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

#[test]
fn every_configuration_resolves_and_every_method_has_one() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let files = std::fs::read_dir(folder).unwrap().flatten().map(|e| e.path());
    let mut configured = BTreeSet::new();
    for file in files.filter(|p| p.is_file() && p.extension().is_some_and(|e| e == "toml")) {
        if file.file_name().is_some_and(|n| n.to_string_lossy().starts_with("pretrain-")) {
            segft::job::pretrain::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            continue;
        }
        let config = Config::resolve(Some(&file), &[], &[], &serde_json::json!({}))
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        configured.insert(config.method);
    }
    let missing: Vec<_> = methods().iter().map(|(name, ..)| *name).filter(|name| !configured.contains(*name)).collect();
    assert!(missing.is_empty(), "no file in configs/ for {missing:?}");
}

/// Each flag in a command's help, with all that is said of it on one line.
fn told(help: &str) -> BTreeMap<String, String> {
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    let mut flag = String::new();
    for line in help.lines() {
        // `      --k <K>` or `  -q, --quiet`: what is said of a flag stands farther to the right.
        let short = line.strip_prefix("  -").and_then(|l| l.split_once(", --"));
        if let Some(head) = line.strip_prefix("      --").or(short.map(|(_, head)| head)) {
            flag = head.chars().take_while(|c| c.is_alphanumeric() || *c == '-').collect();
        }
        let text = told.entry(flag.clone()).or_default();
        text.push(' ');
        text.push_str(line.trim());
    }
    told
}

/// Flags of `train` whose default is said in words that are no value of a key.
const IN_WORDS: [&str; 12] = [
    // No key: of messages.
    "color",
    // The method's own.
    "group",
    "lr",
    "rank",
    "score",
    // The model's own.
    "image-size",
    // All but 0; all processors.
    "labels",
    "threads",
    // Chosen on validation.
    "threshold",
    // That of --seed, that of --lr.
    "split-seed",
    "decoder-lr",
    // Numbered.
    "out",
];

#[test]
fn help_tells_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let help = common::ok(folder.path(), &["train", "--help"]);
    let plain = serde_json::to_value(Config::default()).unwrap();
    // Some are filled in when a training begins, a decay with the optimizer that has one.
    let settled = Config { optimizer: Algorithm::AdamW, ..Config::default() }.settled().unwrap();
    let settled = serde_json::to_value(settled).unwrap();
    let (mut wrong, mut words, mut compared) = (Vec::new(), BTreeSet::new(), 0);
    for (flag, text) in told(&help) {
        let Some((_, rest)) = text.split_once("[default: ") else { continue };
        if IN_WORDS.contains(&flag.as_str()) {
            words.insert(flag);
            continue;
        }
        // `192, that of tiny` is 192.
        let default = rest.split([']', ',']).next().unwrap_or_default();
        let key = flag.replace('-', "_");
        let value = if plain[&key].is_null() { &settled[&key] } else { &plain[&key] };
        let same = match value {
            Value::Number(number) => default.parse::<f64>().ok() == number.as_f64(),
            Value::String(word) => default == word,
            _ => false,
        };
        if !same {
            wrong.push(format!("--{flag} [default: {default}], the configuration has {value}"));
        }
        compared += 1;
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let idle: Vec<_> = IN_WORDS.iter().filter(|flag| !words.contains(**flag)).collect();
    assert!(idle.is_empty(), "no default is said of {idle:?}");
    assert!(compared >= 20, "{compared} compared");
}
