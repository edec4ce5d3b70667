//! Tables between `<!-- table: segft … -->` and `<!-- end of table -->` are what that command prints of the results in
//! the repository.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use std::path::Path;

const BEGIN: &str = "<!-- table: segft ";
const END: &str = "<!-- end of table -->";

#[test]
fn tables_are_what_their_commands_print() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tables = 0;
    for page in ["README.md", "benches/RESULTS.md", "docs/comparison.md"] {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        for table in text.split(BEGIN).skip(1) {
            let (command, rest) = table.split_once(" -->\n").unwrap();
            let shown = rest.split_once(END).expect(END).0;
            let arguments: Vec<&str> = command.split(' ').collect();
            assert_eq!(common::ok(root, &arguments).trim(), shown.trim(), "{page}: segft {command}");
            tables += 1;
        }
    }
    assert!(tables > 0, "no table");
}
