//! The handle: a thin facade over the pool and the scopes.

use std::future::{Future, ready};
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::health::{self, Health, LastHealth};
use crate::listen::{self, Listener};
use crate::migrate;
use crate::pool::{Checkout, CloseReport, Dedicated, Pool, PoolStats, ScopeName};
use crate::transaction::{Body, Connection, Transaction, TransactionBuilder, read};

/// A PostgreSQL database. Cheap to clone; clones share one pool.
#[derive(Clone, Debug)]
pub struct Database {
    pool: Arc<Pool>,
    last_health: LastHealth,
}

impl Database {
    /// Opens a pool and its first connection.
    ///
    /// # Errors
    /// [`Error::Config`] for an impossible setting; [`Error::Connect`] with the reason if the server will not have us.
    ///
    /// # Cancel safety
    /// Dropped, everything that was opened is closed.
    pub async fn connect(config: Config) -> Result<Self> {
        let database = Self::connect_lazy(config)?;
        database.pool.connect_first().await?;
        Ok(database)
    }

    /// As [`connect`](Self::connect), but the first connection is opened when one is needed. Needs no runtime.
    ///
    /// # Errors
    /// [`Error::Config`] for an impossible setting.
    pub fn connect_lazy(config: Config) -> Result<Self> {
        let last_health = LastHealth::default();
        let (interval, told) = (config.health_interval, Arc::clone(&last_health));
        let watch = move |pool| match interval {
            Some(interval) => health::watch(pool, interval, told).boxed(),
            None => ready(()).boxed(),
        };
        Ok(Self { pool: Pool::new(config, Box::new(watch))?, last_health })
    }

    /// Runs `body` in a transaction: committed if it returns `Ok`, rolled back if not, whatever happens.
    ///
    /// The same as `transaction("with_transaction").run(body)`; see [`TransactionBuilder::run`] for errors, panics and
    /// cancel safety.
    #[track_caller]
    pub fn with_transaction<'a, F, R, E>(&'a self, body: F) -> impl Future<Output = Result<R, E>> + Send + 'a
    where
        for<'r> F: AsyncFnOnce(&'r mut Transaction) -> Result<R, E>
            + Body<&'r mut Transaction, Result<R, E>, Fut: Send>
            + Send
            + 'a,
        R: Send + 'a,
        E: From<Error> + Send + 'a,
    {
        self.transaction("with_transaction").run(body)
    }

    /// A transaction with a name and options. The name goes into spans, logs, reports and errors.
    #[track_caller]
    pub fn transaction(&self, name: &'static str) -> TransactionBuilder<'_> {
        TransactionBuilder::new(&self.pool, ScopeName::new(name, Location::caller()))
    }

    /// Runs `body` on a connection without a transaction, for reads: one round trip each.
    ///
    /// A first read that is lost with its connection is sent again, on two other connections at most: one that ends its own
    /// session, as `pg_terminate_backend(pg_backend_pid())`, does so three times and then fails.
    ///
    /// # Errors
    /// The body's own; ours if no connection was to be had, as for [`TransactionBuilder::run`]; [`Error::Aborted`] if the body
    /// returned `Ok` and left a transaction open that it had begun by itself.
    ///
    /// # Panics
    /// A panic of the body goes on when the connection is checked in.
    ///
    /// # Cancel safety
    /// Dropped, a statement that runs is cancelled on the server and the connection is checked in.
    #[track_caller]
    pub fn with_connection<'a, F, R, E>(&'a self, body: F) -> impl Future<Output = Result<R, E>> + Send + 'a
    where
        for<'r> F: AsyncFnOnce(&'r mut Connection) -> Result<R, E>
            + Body<&'r mut Connection, Result<R, E>, Fut: Send>
            + Send
            + 'a,
        R: Send + 'a,
        E: From<Error> + Send + 'a,
    {
        let scope = ScopeName::new("with_connection", Location::caller());
        read(&self.pool, scope, body)
    }

    /// Listens on a channel: `NOTIFY` on it wakes the [`Listener`], also after the server was away for a while.
    ///
    /// It has a session of its own, one beside `max_size`, until it is dropped or the handle is closed.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that no channel can have; [`Error::Connect`]; [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Dropped, what was being opened is closed.
    pub async fn listen(&self, channel: &str) -> Result<Listener> {
        listen::listen(&self.pool, channel).await
    }

    /// Applies the migrations that this library brings and the database lacks, and returns their names. Processes that do
    /// so at the same time wait for each other: each migration is applied once.
    ///
    /// # Errors
    /// [`Error::Migrate`] names the one that failed; those before it stay applied. So it is with the one that
    /// [`close`](Self::close) cut off when its grace had passed.
    ///
    /// # Cancel safety
    /// Once it holds the lock, it runs to its end on a thread of its own.
    #[track_caller]
    pub fn migrate(&self) -> impl Future<Output = Result<Vec<String>>> + Send + '_ {
        let scope = ScopeName::new("migrate", Location::caller());
        async move {
            let Dedicated { conn, place } = self.pool.dedicated(scope).await?;
            migrate::run(conn, place).await
        }
    }

    /// The migrations that this library brings and the database lacks. While there are any, queries may fail.
    ///
    /// # Errors
    /// As [`with_connection`](Self::with_connection).
    pub async fn pending_migrations(&self) -> Result<Vec<String>> {
        self.with_connection(async |conn| migrate::pending(conn).await).await
    }

    /// Asks the server how it is. Takes 2 seconds at most; a full pool is reported as that, without asking.
    pub async fn health(&self) -> Health {
        health::check(&self.pool).await
    }

    /// What the background check, every `health_interval`, found last.
    pub fn last_health(&self) -> Option<Health> {
        self.last_health.lock().clone()
    }

    /// What the pool is doing and has done.
    pub fn stats(&self) -> PoolStats {
        self.pool.stats()
    }

    /// Every connection that is out, longest first.
    pub fn checkouts(&self) -> Vec<Checkout> {
        self.pool.registry.checkouts()
    }

    /// Closes idle connections now and the others as they come back, so that new ones log in anew: after a rotation of
    /// credentials.
    pub fn retire_connections(&self) {
        self.pool.outdate_all();
    }

    /// Refuses new scopes, waits `grace` for those that run, cancels the rest, closes every connection and reports.
    ///
    /// May be called from several tasks; each gets a report of what it saw.
    ///
    /// # Cancel safety
    /// Dropped half-way, the handle stays closed to new scopes; call it again to go on.
    pub async fn close(&self, grace: Duration) -> CloseReport {
        self.pool.close(grace).await
    }
}
