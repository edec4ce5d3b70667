//! Every file in configs/ is a configuration that segft takes, and every method has one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use segft::config::Config;
use segft::method::methods;
use std::collections::BTreeSet;
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
