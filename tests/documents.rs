//! What the documents say is so.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use t2m_db::Config;

const README: &str = include_str!("../README.md");
const SETTINGS: &str = include_str!("../src/config/settings.rs");
const PREFIX: &str = "`T2M_DB_";

/// The rows of README's table of settings: name and default.
fn documented() -> Vec<(String, String)> {
    let rows = README.lines().filter_map(|line| line.strip_prefix("| ")?.strip_prefix(PREFIX));
    let cells = rows.map(|row| row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect::<Vec<_>>());
    cells.map(|cells| (cells[0].to_lowercase(), cells[1].clone())).collect()
}

fn read(settings: &[(String, String)]) -> Result<Config, serde_json::Error> {
    let url = ("url".to_owned(), json!("postgres://u@h/d"));
    let settings = settings.iter().map(|(name, value)| (name.clone(), json!(value)));
    serde_json::from_value(Value::Object(settings.chain([url]).collect()))
}

#[test]
fn the_readme_lists_every_setting_with_its_default() {
    let known: BTreeSet<_> =
        SETTINGS.lines().filter_map(|line| Some(line.strip_prefix("    (\"")?.split_once('"')?.0.to_owned())).collect();
    assert!(known.len() > 20, "the settings are not where they were: {known:?}");
    let documented = documented();
    let named: BTreeSet<_> = documented.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(named, known, "left: README.md, right: src/config/settings.rs");
    // Set to what the table says, each leaves the configuration as it is when nothing is set.
    let default = format!("{:?}", read(&[]).unwrap());
    for setting in documented {
        let config = read(std::slice::from_ref(&setting)).unwrap_or_else(|error| panic!("{setting:?}: {error}"));
        assert_eq!(format!("{config:?}"), default, "README.md gives another default for {}", setting.0);
    }
}

#[test]
fn the_links_between_the_documents_lead_somewhere() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target) {
            let file = target.split('#').next().unwrap_or_default();
            if !file.contains("://") && !file.is_empty() {
                assert!(root.join(file).exists(), "{document}: {target}");
            }
        }
    }
}

/// What the documentation of a function on rows must tell: its owner check, its round trips, its index.
const TELLS: &[(&str, &[&str])] = &[
    ("whose rows", &["owner", "operators", "workers", "lease", "user"]),
    ("its round trips", &["round trip"]),
    ("its index", &["_idx`", "primary key", "unique index", "tables whole"]),
];

#[test]
fn every_function_of_the_domain_tells_what_it_checks_and_costs() {
    let (mut functions, mut silent) = (0, Vec::new());
    for module in ["users", "jobs", "queue", "files"] {
        for file in std::fs::read_dir(format!("{}/src/{module}", env!("CARGO_MANIFEST_DIR"))).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let mut docs = String::new();
            for line in text.lines() {
                if let Some(doc) = line.strip_prefix("///") {
                    docs += doc;
                } else if let Some(function) = line.strip_prefix("pub async fn ") {
                    functions += 1;
                    let name = function.split(['(', '<']).next().unwrap();
                    let docs = std::mem::take(&mut docs);
                    let missing = TELLS.iter().filter(|(_, words)| !words.iter().any(|word| docs.contains(word)));
                    silent.extend(missing.map(|(what, _)| format!("{module}::{name} does not tell {what}")));
                } else if !line.starts_with("#[") {
                    docs.clear();
                }
            }
        }
    }
    assert!(functions > 45, "{functions}");
    assert!(silent.is_empty(), "{silent:#?}");
}
