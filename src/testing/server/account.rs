//! The operating system user that a private server runs as: PostgreSQL refuses to run as root.

use std::fs::{self, Metadata};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::testing::error::{Error, Result};

/// Who runs the server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Account {
    /// Whoever runs the tests.
    Ourselves { uid: u32 },
    /// We are root, so somebody else: `postgres`, else `nobody`.
    Other { uid: u32, gid: u32 },
}

impl Account {
    /// The account for a server whose directory is `directory`, which we have just made.
    pub(super) fn choose(directory: &Path) -> Result<Self> {
        let uid = fs::metadata(directory).map_err(Error::io("look at", directory))?.uid();
        if uid != 0 {
            return Ok(Self::Ourselves { uid });
        }
        let passwd = fs::read_to_string("/etc/passwd").map_err(Error::io("read", "/etc/passwd"))?;
        let find = |name: &str| {
            let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
            let mut numbers = line.split(':').skip(2).map(str::parse);
            Some(Self::Other { uid: numbers.next()?.ok()?, gid: numbers.next()?.ok()? })
        };
        ["postgres", "_postgres", "nobody"].into_iter().find_map(find).ok_or_else(|| Error::Program {
            what: "cannot start a server as root".into(),
            output: "neither `postgres` nor `nobody` is in /etc/passwd to run it as".into(),
        })
    }

    /// The user id, a part of the name of whatever only this account can use.
    pub(super) fn uid(&self) -> u32 {
        match *self {
            Self::Ourselves { uid } | Self::Other { uid, .. } => uid,
        }
    }

    /// Makes `command` run as this account.
    pub(super) fn run(&self, command: &mut Command) {
        if let Self::Other { uid, gid } = *self {
            command.uid(uid).gid(gid); // clears the supplementary groups too
        }
    }

    /// Hands `path` over to this account and to nobody else.
    pub(super) fn own(&self, path: &Path) -> Result<()> {
        if let Self::Other { uid, gid } = *self {
            chown(path, Some(uid), Some(gid)).map_err(Error::io("change the owner of", path))?;
        }
        Ok(())
    }

    /// Whether this account can get at what is inside `path`: as root we can make files in places where it cannot look.
    pub(super) fn reaches(&self, path: &Path) -> bool {
        let Self::Other { uid, gid } = *self else { return true };
        let enters = |of: Metadata| {
            let mode = of.permissions().mode();
            let bit = if of.uid() == uid { 0o100 } else { u32::from(of.gid() == gid) * 0o007 + 0o001 };
            mode & bit & 0o111 != 0
        };
        path.canonicalize().is_ok_and(|path| path.ancestors().all(|folder| fs::metadata(folder).is_ok_and(enters)))
    }
}
