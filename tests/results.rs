//! The tables of the README are what the program prints of the results in the repository.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use std::path::Path;

const BEGIN: &str = "<!-- table: segft ";
const END: &str = "<!-- end of table -->";

#[test]
fn tables_are_what_their_commands_print() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let tables: Vec<&str> = readme.split(BEGIN).skip(1).collect();
    assert!(!tables.is_empty(), "no table in the README");
    for table in tables {
        let (command, rest) = table.split_once(" -->\n").unwrap();
        let text = rest.split_once(END).expect(END).0;
        let arguments: Vec<&str> = command.split(' ').collect();
        assert_eq!(common::ok(root, &arguments).trim(), text.trim(), "segft {command}");
    }
}
