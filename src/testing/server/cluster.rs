//! The data directory of a private server: initialised once per machine, copied ever after.
//!
//! `initdb` takes 0.4 s, a copy of its result a tenth of that.

use std::fmt::Write;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, process};

use super::account::Account;
use super::binaries::Binaries;
use super::cache::{Cache, fingerprint};
use super::warden::{Warden, quote};
use crate::testing::error::{Error, Result};

/// `-N`: nothing here has to survive a power cut while it is made.
const INITDB: &str = "-U postgres -A trust -E UTF8 --locale=C -N --no-instructions";

/// Longest path of a Unix socket's folder that every system takes (104 bytes on macOS, less the socket's own name).
const LONGEST: usize = 80;

/// Memory that has to be free, in the system and in its shared memory folder, for a server to live there.
const ROOM: u64 = 3 << 30;

/// What a server's directory has to withstand.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Medium {
    /// In memory if there is room: a database is a few hundred files, and some file systems take a millisecond for each
    /// while many were deleted just before (ext4 without a journal, the disk of many a virtual machine).
    Quick,
    /// On a disk, where `fsync` means something.
    Disk,
}

/// Makes an empty directory for a server, owned by the account that runs it.
pub(super) fn directory(medium: Medium) -> Result<(PathBuf, Account)> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let name = format!("t2m-pg-{}-{number}-{:08x}", process::id(), fastrand::u32(..));
    let memory = (medium == Medium::Quick).then(memory_folder).flatten();
    let mut problem = Error::Program {
        what: "cannot make a directory for a server".into(),
        output: "neither the temporary folder nor /tmp can be used by the account that runs it".into(),
    };
    for folder in memory.into_iter().chain([env::temp_dir(), PathBuf::from("/tmp")]) {
        let directory = folder.join(&name);
        if let Err(error) = DirBuilder::new().mode(0o700).create(&directory) {
            problem = Error::io("make", &directory)(error);
            continue;
        }
        match Account::choose(&directory).and_then(|account| account.own(&directory).map(|()| account)) {
            Ok(account) if directory.as_os_str().len() <= LONGEST && account.reaches(&directory) => {
                return Ok((directory, account));
            }
            Ok(_) => {}
            Err(error) => problem = error,
        }
        fs::remove_dir(&directory).map_err(Error::io("remove", &directory))?;
    }
    Err(problem)
}

/// Linux's folder in memory, if it has room (containers give it 64 MB).
fn memory_folder() -> Option<PathBuf> {
    let folder = PathBuf::from("/dev/shm");
    let memory = fs::read_to_string("/proc/meminfo").ok()?;
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let listed = Command::new("df").args(["-Pk", "/dev/shm"]).output().ok()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let free = listed.lines().nth(1)?.split_whitespace().nth(3)?;
    let enough = |kilobytes: &str| kilobytes.parse::<u64>().is_ok_and(|kilobytes| kilobytes << 10 >= ROOM);
    (enough(available.trim().trim_end_matches(" kB")) && enough(free)).then_some(folder)
}

/// Fills `data` in the warden's directory with a fresh cluster.
pub(super) fn initialise(warden: &mut Warden, binaries: &Binaries, account: &Account) -> Result<()> {
    let initdb = quote(binaries.program("initdb"));
    match template(binaries, account, &initdb) {
        Ok(template) => warden.run("copy a fresh cluster", &format!("cp -a {} data", quote(template)))?,
        Err(_) => warden.run("initialise a cluster", &format!("{initdb} -D data {INITDB}"))?, // no cache: slower, that is all
    };
    Ok(())
}

fn template(binaries: &Binaries, account: &Account, initdb: &str) -> Result<PathBuf> {
    let uid = account.uid().to_string();
    let name = format!("cluster-{}-{}", binaries.major(), fingerprint([binaries.version(), initdb, INITDB, &uid]));
    let entry = Cache::open(account)?.entry(&name, |folder| {
        // A folder and a warden of its own: if we die, both go.
        let (making, account) = directory(Medium::Quick)?;
        let mut warden = Warden::guard(&making, &account)?;
        warden.export(&binaries.environment())?;
        warden.run("initialise a cluster", &format!("{initdb} -D data {INITDB}"))?;
        account.own(folder)?;
        let target = quote(folder.join("data"));
        warden.run("keep a fresh cluster", &format!("cp -a data {target}")).map(drop)
    })?;
    Ok(entry.join("data"))
}

/// Adds `settings` at the end of `postgresql.conf`, where they win.
pub(super) fn configure(data: &Path, settings: &[(String, String)]) -> Result<()> {
    let mut text = String::new();
    for (name, value) in settings {
        let _ = writeln!(text, "{name} = '{}'", value.replace('\'', "''"));
    }
    append(&data.join("postgresql.conf"), &text)
}

/// Adds `text` to a file of the cluster without changing its owner.
pub(super) fn append(file: &Path, text: &str) -> Result<()> {
    let opened = fs::OpenOptions::new().append(true).open(file).map_err(Error::io("open", file))?;
    std::io::Write::write_all(&mut &opened, text.as_bytes()).map_err(Error::io("write", file))
}
