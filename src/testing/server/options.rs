//! How a private server is to be: what is listened on, who may come in, what survives a crash.

use std::fmt::Write;

use super::Server;
use super::tls::Tls;
use crate::testing::error::Result;

/// Settings of every private server: quick, small, and room for many test databases at once.
const ALWAYS: [(&str, &str); 9] = [
    ("max_connections", "300"),
    ("superuser_reserved_connections", "10"), // tests that fill the server still get to look at it
    ("shared_buffers", "64MB"),
    ("dynamic_shared_memory_type", "mmap"), // containers have little in /dev/shm
    ("max_wal_size", "4GB"),                // no checkpoint in the middle of a measurement
    ("max_wal_senders", "10"),
    ("wal_level", "replica"), // so that any of them can have a standby
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
];

/// Builds a private [`Server`]; made by [`Server::builder`].
#[derive(Clone, Debug, Default)]
#[must_use = "nothing starts before `start`"]
pub struct ServerBuilder {
    pub(super) durable: bool,
    pub(super) tcp: bool,
    pub(super) role: Option<(String, String)>,
    pub(super) tls: Option<Tls>,
    pub(super) settings: Vec<(String, String)>,
}

impl ServerBuilder {
    /// What was reported as committed survives a crash (`fsync`, `synchronous_commit` and `full_page_writes` on).
    ///
    /// Default: off, and in memory if there is room, because nothing of a test server outlives it.
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// Listens on a free port of 127.0.0.1 too. Default: on a Unix socket only, which nobody else on the machine can open.
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Makes a role that has to give a password (SCRAM-SHA-256), wherever it connects from.
    ///
    /// It may create databases, and read and write every table. The superuser `postgres` still needs no password.
    pub fn password(mut self, role: impl Into<String>, password: impl Into<String>) -> Self {
        self.role = Some((role.into(), password.into()));
        self
    }

    /// Serves TLS, and refuses connections over TCP without it. Implies [`tcp`](Self::tcp).
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self.tcp()
    }

    /// Sets any configuration parameter of the server; the last value given for a name holds.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Starts the server.
    ///
    /// # Errors
    /// [`NoServer`](crate::testing::Error::NoServer) if this machine has no PostgreSQL and none could be downloaded, or
    /// what the server said when it did not come up.
    ///
    /// # Cancel safety
    /// If the future is dropped the server is started and removed in the background.
    pub async fn start(self) -> Result<Server> {
        super::blocking(move || Server::launch(&self)).await
    }

    /// Everything for `postgresql.conf`, weakest first.
    pub(super) fn configuration(&self) -> Vec<(String, String)> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let durability = if self.durable { "on" } else { "off" };
        let mut all: Vec<_> = ALWAYS.iter().map(own).collect();
        for name in ["fsync", "synchronous_commit", "full_page_writes"] {
            all.push((name.into(), durability.into()));
        }
        all.push(("listen_addresses".into(), if self.tcp { "127.0.0.1" } else { "" }.into()));
        if self.tls.is_some() {
            all.extend(Tls::settings());
        }
        all.extend(self.settings.iter().cloned());
        all
    }

    /// The lines of `pg_hba.conf`, the first that fits deciding.
    pub(super) fn authentication(&self) -> String {
        let method = if self.role.is_some() { "scram-sha-256" } else { "trust" };
        let (kind, extra) = match &self.tls {
            None => ("host", ""),
            Some(tls) => ("hostssl", if tls.asks_for_client_certificates() { "clientcert=verify-ca" } else { "" }),
        };
        let mut lines = String::new();
        for (who, method) in [("all postgres", "trust"), ("replication postgres", "trust"), ("all all", method)] {
            let _ = writeln!(lines, "local {who} {method}\n{kind} {who} 127.0.0.1/32 {method} {extra}");
        }
        lines
    }
}
