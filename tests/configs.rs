//! Every file in configs/ is a configuration that segft takes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use segft::config::Config;
use std::path::Path;

#[test]
fn every_configuration_resolves() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let files = std::fs::read_dir(folder).unwrap().flatten().map(|e| e.path());
    let mut seen = 0;
    for file in files.filter(|p| p.is_file() && p.extension().is_some_and(|e| e == "toml")) {
        if file.file_name().is_some_and(|n| n.to_string_lossy().starts_with("pretrain-")) {
            segft::job::pretrain::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            continue;
        }
        Config::resolve(Some(&file), &[], &[], &serde_json::json!({}))
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        seen += 1;
    }
    assert!(seen >= 3);
}
