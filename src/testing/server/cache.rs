//! A folder for what is slow to make: downloaded servers and freshly initialised data directories.
//!
//! Many test processes use it at once, so an entry is made aside and renamed into place whole: whoever comes second finds
//! that the name is taken and throws its own work away. An entry that exists is complete. No lock, nothing to clean up
//! after a process that died, except its own half-made folder, which the next one removes after a day.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, process};

use super::account::Account;
use crate::testing::error::{Error, Result};

/// Overrides where the cache is.
const VARIABLE: &str = "T2M_DB_TEST_CACHE";

/// The cache folder, writable by us and readable by the account that runs the server.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the first of these that works: `T2M_DB_TEST_CACHE`; `/var/cache/t2m-db` for root, whose home other accounts
    /// cannot enter; `$XDG_CACHE_HOME/t2m-db`; `~/.cache/t2m-db`; a folder of ours in the temporary folder.
    ///
    /// # Errors
    /// Only if none works, or if the one of the variable does not.
    pub(super) fn open(account: &Account) -> Result<Self> {
        if let Some(root) = env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from) {
            return Self::at(&root, account).map_err(|error| Error::Variable {
                variable: VARIABLE,
                value: root.display().to_string(),
                allowed: format!("a folder that we can write and the server's account can read ({error})"),
            });
        }
        let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let usual = match account {
            Account::Other { .. } => Some(PathBuf::from("/var/cache")),
            Account::Ourselves { .. } => env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home),
        };
        if let Some(cache) = usual.and_then(|usual| Self::at(&usual.join("t2m-db"), account).ok()) {
            return Ok(cache);
        }
        let us = if let Account::Ourselves { uid } = *account { uid } else { 0 };
        let temporary = env::temp_dir().join(format!("t2m-db-cache-{us}"));
        // The name can be guessed: if somebody else made the folder, what is in it is not to be run.
        let found = fs::symlink_metadata(&temporary);
        if found.is_ok_and(|found| !found.is_dir() || found.uid() != us) {
            return Err(Error::Program {
                what: "cannot find a folder to cache in".into(),
                output: format!("{} belongs to somebody else; set {VARIABLE}", temporary.display()),
            });
        }
        Self::at(&temporary, account)
    }

    fn at(root: &Path, account: &Account) -> Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(root).map_err(Error::io("make", root))?;
        let cache = Self { root: root.canonicalize().map_err(Error::io("find", root))? };
        if !account.reaches(&cache.root) {
            return Err(Error::Program {
                what: format!("the server's account cannot enter {}", root.display()),
                output: "some folder on the way is closed to others".into(),
            });
        }
        let probe = cache.aside("probe"); // a read-only file system tells us only when we write
        fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)).map_err(Error::io("write in", root))?;
        Ok(cache)
    }

    /// The entry called `name`; if it does not exist yet, `make` fills the empty folder that becomes it.
    ///
    /// # Errors
    /// What `make` returns, or what the file system said.
    pub(super) fn entry(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let entry = self.root.join(name);
        if entry.is_dir() {
            return Ok(entry);
        }
        self.sweep();
        let aside = Aside(self.aside(name));
        fs::create_dir(&aside.0).map_err(Error::io("make", &aside.0))?;
        make(&aside.0)?;
        match fs::rename(&aside.0, &entry) {
            Ok(()) => Ok(entry),
            Err(_) if entry.is_dir() => Ok(entry), // somebody was faster: theirs is as good as ours
            Err(error) => Err(Error::io("rename a folder to", &entry)(error)),
        }
    }

    fn aside(&self, name: &str) -> PathBuf {
        self.root.join(format!(".{name}.{}.{:08x}", process::id(), fastrand::u32(..)))
    }

    /// Removes what processes left behind that died half-way.
    fn sweep(&self) {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let old =
                || entry.metadata().and_then(|data| data.modified()).ok()?.elapsed().ok().filter(|age| *age > DAY);
            if entry.file_name().to_string_lossy().starts_with('.') && old().is_some() {
                let _ = fs::remove_dir_all(entry.path()); // another process may be sweeping too
            }
        }
    }
}

/// A half-made entry, removed unless it was renamed.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A short name for `parts` that changes when any of them does (FNV-1a: the same in every build, unlike std's hasher).
pub(in crate::testing) fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}
