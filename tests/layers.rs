//! Imports run one way. What a module may import stands here and nowhere else, and a module that is not listed is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The core, bottom to top: each may import from those before it.
const CORE: [&str; 10] =
    ["error", "config", "wire", "connect", "statement", "pool", "listen", "transaction", "health", "database"];

/// Everything else, with what it may import.
const REST: [(&str, &[&str]); 11] = [
    ("executor", &[]), // the one bound that both halves know: diesel alone
    ("migrate", &["error", "executor"]),
    ("bulk", &["error", "types"]), // many rows in one typed statement; no table
    ("schema", &[]),
    ("types", &["error"]),
    // The domain: its tables, its words, how to say what went wrong, and something to run a query on. Nothing of a pool.
    ("users", &["schema", "types", "error", "executor", "bulk"]),
    ("jobs", &["schema", "types", "error", "executor", "bulk"]),
    ("files", &["schema", "types", "error", "executor", "bulk"]),
    ("operations", &["schema", "types", "error", "executor"]),
    ("queue", &["schema", "types", "error", "executor", "bulk", "jobs"]),
    ("testing", &["error", "config", "database", "schema", "types", "migrate"]),
];

/// Names that `lib.rs` exports and modules below it may call by the short path.
const SHORT: [(&str, &str); 5] =
    [("Error", "error"), ("Result", "error"), ("Config", "config"), ("Database", "database"), ("Executor", "executor")];

#[test]
fn imports_run_one_way() {
    let allowed = allowed();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for file in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
        let path = file.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
        let module = path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if module == "lib" {
            continue;
        }
        let Some(may) = allowed.get(module.as_str()) else {
            panic!("src/{module} is not listed in {}: say there what it may import", file!());
        };
        seen.insert(module.clone());
        for (line, imported) in imports(&fs::read_to_string(&file).unwrap()) {
            if imported != module && !may.contains(imported.as_str()) {
                wrong.push(format!("src/{}:{line}: `{module}` must not import `{imported}`", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let gone: Vec<_> = allowed.keys().filter(|module| !seen.contains(**module)).collect();
    assert!(gone.is_empty(), "listed, but not in src: {gone:?}");
}

#[test]
fn a_violation_would_be_seen() {
    let text = "//! crate::pool is praised here\nuse crate::error::Result;\nuse crate::{Error, pool::Pool};\n\
                fn f() -> crate::transaction::Mode { todo() } // crate::health\n\
                #[cfg(test)]\nmod tests { use crate::database::Database; }\n";
    let found: Vec<_> = imports(text).into_iter().map(|(_, module)| module).collect();
    assert_eq!(found, ["error", "error", "pool", "transaction"]);
    assert!(!allowed()["files"].contains("pool") && !allowed()["pool"].contains("files"));
    assert!(!allowed()["pool"].contains("transaction") && allowed()["transaction"].contains("pool"));
}

fn allowed() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut allowed: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (position, module) in CORE.iter().enumerate() {
        allowed.insert(*module, CORE[..position].iter().copied().collect());
    }
    allowed.entry("database").or_default().insert("migrate");
    for (module, may) in REST {
        allowed.insert(module, may.iter().copied().collect());
    }
    allowed
}

/// Every file of the crate that is not a test.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_tests = path.file_stem().is_some_and(|name| name == "tests");
        if is_tests {
            continue;
        }
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The modules that a text names after `crate::`, with their lines; comments and unit tests aside.
fn imports(text: &str) -> Vec<(usize, String)> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut found = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        for rest in line.split("crate::").skip(1) {
            let names = match rest.strip_prefix('{') {
                // One line, one level: rustfmt breaks a longer list, and then its names are not seen, so that is refused.
                Some(list) => {
                    let list = list.split_once('}').unwrap_or_else(|| panic!("name modules one by one: {line}"));
                    list.0.split(',').map(str::trim).collect()
                }
                None => vec![rest],
            };
            for name in names {
                let name: String = name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let module = SHORT.iter().find(|(short, _)| *short == name).map_or(name.as_str(), |(_, module)| module);
                found.push((number + 1, module.to_owned()));
            }
        }
    }
    found
}
