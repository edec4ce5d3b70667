//! The table "who may import whom" in ARCHITECTURE.md is true of the sources.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use segft::method::methods;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Module → modules it may use, from the Markdown table.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let section = text.split("## Who may import whom").nth(1).unwrap().split("\n## ").next().unwrap();
    let words = |cell: &str| -> BTreeSet<String> { cell.split('`').skip(1).step_by(2).map(String::from).collect() };
    let rows = section.lines().filter(|l| l.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        (words(cells[0]).pop_first().unwrap(), words(cells[1]))
    })
    .collect()
}

/// Where the tests at a file's foot begin.
fn tests_of(text: &str) -> usize {
    let heads = ["#[cfg(test)]\nmod tests {", "#[cfg(test)]\npub(super) mod tests {"];
    heads.iter().filter_map(|head| text.find(head)).min().unwrap_or(text.len())
}

/// Every source file below a folder, with its text up to the tests at its foot.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for path in std::fs::read_dir(folder).unwrap().flatten().map(|e| e.path()) {
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") && !path.to_string_lossy().ends_with("_tests.rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path, text[..tests_of(&text)].to_string()));
        }
    }
    found
}

/// The top-level module that a file belongs to.
fn module(path: &Path) -> String {
    let inner = path.strip_prefix(root().join("src")).unwrap();
    inner.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_string()
}

/// The path below src/.
fn inner(path: &Path) -> String {
    path.strip_prefix(root().join("src")).unwrap().to_string_lossy().replace('\\', "/")
}

/// A source without the lines that are comments.
fn code(text: &str) -> String {
    text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Modules named as `crate::name` or inside `crate::{…}` outside of comments.
fn used(text: &str) -> BTreeSet<String> {
    let code = code(text);
    let word = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    code.split("crate::").skip(1).map(word).filter(|w| !w.is_empty()).collect()
}

#[test]
fn imports_go_as_the_table_says() {
    let table = table();
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in sources(&root().join("src")) {
        let module = module(&path);
        if ["main", "lib", "error"].contains(&module.as_str()) {
            continue;
        }
        let Some(allowed) = table.get(&module) else {
            wrong.push(format!("{}: module `{module}` is not in the table", path.display()));
            continue;
        };
        for used in used(&text).into_iter().filter(|u| *u != module && u != "error") {
            if !allowed.contains(&used) {
                wrong.push(format!("{}: `{module}` uses `{used}`", path.display()));
            }
            seen.entry(module.clone()).or_default().insert(used);
        }
    }
    for (module, allowed) in &table {
        for idle in allowed.iter().filter(|a| !seen.get(module).is_some_and(|s| s.contains(*a))) {
            wrong.push(format!("the table allows `{module}` to use `{idle}`, which it does not"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn only_the_command_line_writes_to_stdout_and_only_the_network_knows_burn() {
    let mut wrong = Vec::new();
    for (path, text) in sources(&root().join("src")) {
        let module = module(&path);
        if module != "cli" && (text.contains(" println!(") || text.contains(" print!(") || text.contains("io::stdout"))
        {
            wrong.push(format!("{} writes to stdout", path.display()));
        }
        if ["score", "data", "image", "io", "phantom", "method"].contains(&module.as_str()) && text.contains("burn::") {
            wrong.push(format!("{} uses burn", path.display()));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Where the word for a method stands outside of `src/method`, and what is meant.
const EXCEPTIONS: [(&str, &str, &str); 8] = [
    ("cli/flags/training.rs", "decoder", "a setting"),
    ("config.rs", "decoder", "a setting"),
    ("config.rs", "full", "a way to scale learning rates"),
    ("config.rs", "last", "the method, in what is said to `--networks` with others"),
    ("job/base.rs", "random", "a base"),
    ("job/compare/mod.rs", "decoder", "a setting"),
    ("model/sam/adapter.rs", "adapter", "weights"),
    ("model/sam/image_encoder.rs", "norm", "layers"),
];

/// The seam: a new method is its file and its line. Its types are private to `src/method`, and no other source asks for it
/// by its name; the default alone is named.
#[test]
fn no_source_but_those_of_the_methods_names_a_method() {
    const DEFAULT: &str = "gps";
    let (mut wrong, mut meant) = (Vec::new(), BTreeSet::new());
    for (path, text) in sources(&root().join("src")).into_iter().filter(|(path, _)| module(path) != "method") {
        let inner = inner(&path);
        let code = code(&text);
        for name in methods().iter().map(|(name, ..)| *name).filter(|name| *name != DEFAULT) {
            if !code.contains(&format!("\"{name}\"")) && !code.contains(&format!("--method {name}")) {
                continue;
            }
            match EXCEPTIONS.iter().find(|(file, word, _)| *file == inner && *word == name) {
                Some(known) => _ = meant.insert(*known),
                None => wrong.push(format!("src/{inner} names the method `{name}`")),
            }
        }
    }
    let idle = EXCEPTIONS.iter().filter(|known| !meant.contains(*known));
    wrong.extend(idle.map(|(file, word, _)| format!("src/{file} does not say `{word}`")));
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Where a file is made otherwise than by `write_atomic`: by which call, how often, and why it may be.
const WRITERS: [(&str, &str, usize, &str); 7] = [
    ("data/fetch.rs", "File::create(", 2, "a lock; what an archive holds, in a folder that is named when it is whole"),
    ("data/fetch.rs", "File::options(", 1, "a download that can be resumed, and is named when it is whole"),
    ("data/fetch.rs", "fs::copy(", 1, "into a folder that is named when it is whole"),
    ("data/fetch.rs", "fs::write(", 1, "what such a download is a part of"),
    ("device.rs", "fs::write(", 1, "a word to the system, no file"),
    ("progress.rs", "OpenOptions", 1, "the log, which grows line by line"),
    ("run.rs", "File::create(", 1, "a lock"),
];

/// What is written is there whole or not at all; a call that could leave half a file is thought about first.
#[test]
fn files_are_made_whole_but_for_those_that_are_listed() {
    const CALLS: [&str; 6] =
        ["File::create(", "File::create_new(", "File::options(", "OpenOptions", "fs::copy(", "fs::write("];
    let mut found = BTreeMap::new();
    for (path, text) in sources(&root().join("src")) {
        let (inner, code) = (inner(&path), code(&text));
        for call in CALLS.into_iter().filter(|call| code.contains(call)) {
            found.insert((inner.clone(), call), code.matches(call).count());
        }
    }
    let mut wrong = Vec::new();
    for (file, call, times, _) in WRITERS {
        let is = found.remove(&(file.to_string(), call)).unwrap_or(0);
        if is != times {
            wrong.push(format!("src/{file} has `{call}` {is} times, {times} are listed"));
        }
    }
    wrong.extend(found.keys().map(|(file, call)| format!("src/{file} has `{call}`: by `write_atomic`, or listed?")));
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
