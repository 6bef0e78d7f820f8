//! Which PostgreSQL is started: an installed one if there is one, else a downloaded one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use super::account::Account;
use super::cache::Cache;
use super::fetch;
use crate::testing::error::{Error, Result};

/// The oldest major version that the crate supports.
const OLDEST: u32 = 15;
/// Asks for a certain major version.
const WANTED: &str = "T2M_DB_TEST_POSTGRES";

/// Where PostgreSQL is installed when it is not on the `PATH`: the parent of the folders that are named after versions,
/// and what their names begin with.
const PLACES: [(&str, &str); 7] = [
    ("/usr/lib/postgresql", ""),                          // Debian, Ubuntu
    ("/usr", "pgsql-"),                                   // Red Hat, the packages of postgresql.org
    ("/usr/lib", "postgresql"),                           // Alpine, Gentoo
    ("/usr/local/lib/postgresql", ""),                    // built by hand
    ("/opt/homebrew/opt", "postgresql"),                  // Homebrew on Apple silicon
    ("/usr/local/opt", "postgresql"),                     // Homebrew on Intel
    ("/Applications/Postgres.app/Contents/Versions", ""), // Postgres.app
];

/// The programs of one PostgreSQL.
#[derive(Clone, Debug)]
pub(super) struct Binaries {
    folder: PathBuf,
    version: String,
}

impl Binaries {
    /// The best there is: `PG_BIN`, else the `PATH`, else the usual places with the newest first, else a download.
    ///
    /// # Errors
    /// [`Error::NoServer`] with what was tried.
    pub(super) fn find(account: &Account) -> Result<Self> {
        if let Some(folder) = env::var_os("PG_BIN").filter(|value| !value.is_empty()) {
            return Self::at(Path::new(&folder)).ok_or_else(|| Error::Variable {
                variable: "PG_BIN",
                value: folder.to_string_lossy().into_owned(),
                allowed: format!("the `bin` folder of a PostgreSQL server of version {OLDEST} or newer"),
            });
        }
        let wanted = match env::var(WANTED).ok().filter(|value| !value.is_empty()) {
            None => None,
            Some(value) => Some(value.parse::<u32>().map_err(|_| Error::Variable {
                variable: WANTED,
                allowed: format!("a major version from {OLDEST}, such as 17"),
                value,
            })?),
        };
        let fits = |found: &Self| wanted.is_none_or(|wanted| found.major() == wanted);
        if let Some(found) = candidates().iter().filter_map(|folder| Self::at(folder)).find(fits) {
            return Ok(found);
        }
        let folder = fetch::fetched(&Cache::open(account)?, wanted)?;
        Self::at(&folder).ok_or_else(|| fetch::unusable(&folder))
    }

    /// What is in `folder`, if it is a whole server that runs here and is new enough.
    fn at(folder: &Path) -> Option<Self> {
        let mut found = Self { folder: folder.canonicalize().ok()?, version: String::new() };
        if !found.folder.join("initdb").is_file() {
            return None;
        }
        let mut command = Command::new(found.folder.join("postgres"));
        let said = command.arg("--version").envs(found.environment()).output().ok()?;
        String::from_utf8_lossy(&said.stdout).trim().clone_into(&mut found.version); // postgres (PostgreSQL) 15.20 (Debian ...)
        (said.status.success() && found.major() >= OLDEST).then_some(found)
    }

    /// The full path of one of the programs.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What the programs print as their version.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// The major version: 15, 17, ...; 0 if it cannot be told.
    pub(super) fn major(&self) -> u32 {
        let number = self.version.split(' ').nth(2).unwrap_or_default();
        let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    }

    /// Variables that the programs need: a downloaded server brings its own libraries, installed ones know theirs.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        let library = self.folder.with_file_name("lib");
        if !fetch::is_fetched(&self.folder) || !library.is_dir() {
            return Vec::new();
        }
        let library = library.to_string_lossy().into_owned();
        vec![("LD_LIBRARY_PATH".into(), library.clone()), ("DYLD_LIBRARY_PATH".into(), library)]
    }
}

/// Folders that may hold a server, best first.
fn candidates() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Follow the link: a lone link in /usr/local/bin does not have its siblings beside it.
    let program = |folder: PathBuf| fs::canonicalize(folder.join("postgres")).ok();
    let mut folders: Vec<_> =
        env::split_paths(&path).filter_map(program).filter_map(|found| Some(found.parent()?.to_owned())).collect();
    let mut placed = Vec::new();
    for (place, prefix) in PLACES {
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            if let Some(version) = entry.file_name().to_string_lossy().strip_prefix(prefix) {
                let version = version.trim_start_matches(['@', '-']).parse().unwrap_or(0.0_f32);
                placed.push((version, entry.path().join("bin")));
            }
        }
    }
    placed.sort_by(|one, other| other.0.total_cmp(&one.0));
    folders.extend(placed.into_iter().map(|(_, folder)| folder));
    folders
}
