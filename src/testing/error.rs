//! Why a private server, a test database or a proxy could not do what a test asked, with the line to type next.

use std::io;
use std::path::PathBuf;

/// The result of everything in [`testing`](crate::testing) that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the test's tools failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No PostgreSQL to start: not installed, not in the cache, and the download failed.
    #[error(
        "no PostgreSQL server to start: {reason}\n\
         Do one of these, then run the same command again:\n  \
         {advice}\n  \
         export DATABASE_URL=postgres://user:password@host/postgres   (a server whose user may create databases)\n  \
         export PG_BIN=/path/to/postgresql/bin"
    )]
    NoServer {
        /// What was tried, and how the last attempt ended.
        reason: String,
        /// The line that installs PostgreSQL on this kind of machine.
        advice: &'static str,
    },

    /// An environment variable of ours has a value that cannot work.
    #[error("`{variable}` is `{value}`, allowed is {allowed}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// What it was set to; `***` in place of anything secret.
        value: String,
        /// What it may be set to.
        allowed: String,
    },

    /// The operating system refused something.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// A program of PostgreSQL failed, or the server did not come up.
    #[error("{what}:\n{output}")]
    Program {
        /// What was attempted.
        what: String,
        /// What it printed, or the end of the server's log.
        output: String,
    },

    /// The server is not ours to break: it came from `DATABASE_URL`.
    #[error("cannot {action} the server of DATABASE_URL: start a private one with `Server::start()`")]
    NotPrivate {
        /// What was asked for.
        action: &'static str,
    },

    /// A statement of ours failed, or no connection could be made.
    #[error("cannot {action}")]
    Postgres {
        /// What was attempted.
        action: String,
        /// What the server or the client library said.
        source: tokio_postgres::Error,
    },

    /// A migration failed on the template database.
    #[error("cannot migrate the template database")]
    Migration {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// Certificates could not be made.
    #[error("cannot make a certificate")]
    Certificate {
        /// Why.
        #[from]
        source: rcgen::Error,
    },
}

impl Error {
    /// For `map_err`: names the action and the path of an I/O error.
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// For `map_err`: names the action of a database error.
    pub(super) fn postgres(action: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Self {
        let action = action.into();
        move |source| Self::Postgres { action, source }
    }
}
