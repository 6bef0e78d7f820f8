//! A PostgreSQL that starts itself, and tools to break it: for tests, examples and benches, ours and the backend's.
//!
//! ```no_run
//! # async fn test() -> Result<(), Box<dyn std::error::Error>> {
//! let db = t2m_db::testing::database().await; // a migrated database of its own, some 20 ms
//! let proxy = t2m_db::testing::Proxy::start(&db.url()).await?; // between the client and the server
//! proxy.hold_replies();
//! # Ok(()) }
//! ```
//!
//! - [`database`] gives each test a database of its own on a [`Server`] that all tests of the process share: that of
//!   `DATABASE_URL` if it is set, else a private one that starts in a fraction of a second and is gone, with its
//!   directory, when the process ends, however it ends. Where PostgreSQL is not installed it is downloaded once.
//! - [`Server::start`] gives a test a server of its own, to stop, kill, restart, replicate.
//! - [`Proxy`] stands between client and server and counts, holds back, delays or cuts.
//! - [`Dataset`] fills a migrated database with as many files as wanted.
//! - [`PollLimit`] drops a future at its n-th poll.
//!
//! Nothing here is meant for production, and nothing waits by sleeping for a guessed time: what returns has happened.
//!
//! # Environment
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `DATABASE_URL` | use this server; its user must be allowed to create databases | a private server |
//! | `PG_BIN` | the folder with `postgres` and `initdb` | `PATH`, then the usual places, newest first, then a download |
//! | `T2M_DB_TEST_POSTGRES` | major version of the private server | any from 15 on; a download is 17 |
//! | `T2M_DB_TEST_CACHE` | where downloads and initialised data directories are kept | `/var/cache/t2m-db` for root, else `$XDG_CACHE_HOME/t2m-db` or `~/.cache/t2m-db` |

mod database;
mod dataset;
mod error;
mod migrations;
mod poll_limit;
mod proxy;
mod server;
mod url;

pub use database::TestDatabase;
pub use dataset::Dataset;
pub use error::{Error, Result};
pub use poll_limit::{Moment, PollLimit, Polled};
pub use proxy::{Counts, Frontend, Gate, Match, Message, Proxy, When};
pub use server::{CertificateFiles, Replication, Server, ServerBuilder, Stop, Tls};

/// A migrated database of the caller's own, on the [shared](Server::shared) server.
///
/// # Panics
/// If there is no server or the migrations fail: no test can go on then. [`Server::database`] returns an error instead.
///
/// # Cancel safety
/// Nothing is left behind.
pub async fn database() -> TestDatabase {
    made(async { Server::shared().await?.database().await }.await)
}

/// A database with nothing in it, on the [shared](Server::shared) server.
///
/// # Panics
/// As [`database`].
///
/// # Cancel safety
/// Nothing is left behind.
pub async fn empty_database() -> TestDatabase {
    made(async { Server::shared().await?.empty_database().await }.await)
}

fn made(database: Result<TestDatabase>) -> TestDatabase {
    use std::error::Error as _;
    database.unwrap_or_else(|error| {
        let mut why = String::new();
        let mut source = error.source();
        while let Some(error) = source {
            why = format!("{why}: {error}");
            source = error.source();
        }
        panic!("no test database: {error}{why}")
    })
}
