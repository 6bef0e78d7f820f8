//! The one place where test databases meet the migrations.

use std::fs;
use std::path::Path;

use diesel_async::{AsyncConnection, AsyncPgConnection};

use super::error::{Error, Result};
use super::server::fingerprint;

/// Brings the database at `url` up to date.
pub(super) async fn apply(url: &str) -> Result<()> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Migration { source };
    let conn = AsyncPgConnection::establish(url).await.map_err(|error| failed(error.into()))?;
    crate::migrate::run(conn, ()).await.map(drop).map_err(|error| failed(error.into()))
}

/// Changes whenever a migration does, so that a template on a shared server is never an old one: by the files as they are
/// while one works on them, by the version of the package where there is no source any more.
pub(super) fn version() -> String {
    let files = files();
    let texts = files.iter().flat_map(|(name, sql)| [name.as_str(), sql.as_str()]);
    fingerprint([env!("CARGO_PKG_VERSION")].into_iter().chain(texts))
}

fn files() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let read = |entry: fs::DirEntry| {
        let sql = fs::read_to_string(entry.path().join("up.sql")).ok()?;
        Some((entry.file_name().to_string_lossy().into_owned(), sql))
    };
    let mut files: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().filter_map(read).collect();
    files.sort();
    files
}
