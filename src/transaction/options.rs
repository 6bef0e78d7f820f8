//! What a transaction is to be like.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::attempt::{Budget, attempt};
use super::body::Body;
use super::connection::Transaction;
use super::retry;
use super::scope::Mode;
use crate::config::Retry;
use crate::error::Error;
use crate::pool::{Pool, ScopeName};

/// How far a transaction is isolated from others (PostgreSQL manual, "Transaction Isolation").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// Each statement sees what was committed before it. The server's default unless it was configured otherwise.
    #[default]
    ReadCommitted,
    /// Every statement sees what was committed before the first one. A write to a row that changed since fails (40001).
    RepeatableRead,
    /// As if transactions had run one after the other. May fail (40001): use
    /// [`run_retrying`](TransactionBuilder::run_retrying).
    Serializable,
}

/// A transaction to be run; made by [`Database::transaction`](crate::Database::transaction).
#[derive(Clone, Debug)]
#[must_use = "a transaction runs when `run` or `run_retrying` is called and awaited"]
pub struct TransactionBuilder<'d> {
    pub(super) pool: &'d Arc<Pool>,
    pub(super) scope: ScopeName,
    pub(super) retry: Retry,
    pub(super) idempotent: bool,
    isolation: Option<Isolation>,
    read_only: bool,
    deferrable: bool,
    deadline: Option<Duration>,
    user: Option<Uuid>,
}

impl<'d> TransactionBuilder<'d> {
    pub(crate) fn new(pool: &'d Arc<Pool>, scope: ScopeName) -> Self {
        let retry = pool.config.retry.clone();
        Self {
            pool,
            scope,
            retry,
            idempotent: false,
            isolation: None,
            read_only: false,
            deferrable: false,
            deadline: None,
            user: None,
        }
    }

    /// The isolation level; without it the server's `default_transaction_isolation`.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = Some(isolation);
        self
    }

    /// The server refuses every write (25006).
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// With [`Isolation::Serializable`] and [`read_only`](Self::read_only): waits for a snapshot that cannot fail later.
    pub fn deferrable(mut self) -> Self {
        self.deferrable = true;
        self
    }

    /// One budget for everything: waiting for a connection, BEGIN, the body, COMMIT and retries. When it is over the
    /// body is dropped and the server stops working on it: `statement_timeout`, 100 ms longer, and
    /// `idle_in_transaction_session_timeout`, 1 s longer, ride with BEGIN as a backstop.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// How [`run_retrying`](Self::run_retrying) retries; without it [`Config::retry`](crate::Config::retry).
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Has [`run_retrying`](Self::run_retrying) go on after a COMMIT whose outcome is unknown: the body finds out by itself
    /// whether an earlier attempt was committed, and does nothing a second time.
    ///
    /// That is a promise of the caller's. [`operations::claim`](crate::operations::claim) as its first statement keeps it.
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Runs as the owner `user`: row-level security then hides the rows of all others, also from a query that forgot to
    /// ask for the owner. Set for this transaction only, in the flight that opens it.
    ///
    /// Policies bind roles that do not own the tables and are no superusers: log in as such a one. For the owner of the
    /// tables this changes nothing and is no error, because a role may be bound in one table and own another;
    /// `SELECT row_security_active('jobs')` tells.
    pub fn as_user(mut self, user: impl Into<Uuid>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Runs `body` once, in a transaction: committed if it returns `Ok`, rolled back if not.
    ///
    /// When the connection is lost before the body was told anything, its first statement is sent again on another one, in a
    /// transaction of its own. The server may have worked on it before, though nothing of that is stored; only what a
    /// transaction does not undo (a sequence, a function that calls the outside world) happened twice.
    ///
    /// # Errors
    /// The body's own, as it is. Ours otherwise: no connection ([`Error::CheckoutTimeout`], [`Error::Connect`],
    /// [`Error::Overloaded`], [`Error::NestedCheckout`], [`Error::Closed`]), not committed although the body returned
    /// `Ok` ([`Error::Aborted`], [`Error::Query`]), [`Error::Deadline`], [`Error::CommitUnknown`].
    ///
    /// # Panics
    /// A panic of the body goes on after ROLLBACK, when the connection is checked in.
    ///
    /// # Cancel safety
    /// Dropped before COMMIT was sent, the transaction is rolled back; after, COMMIT runs to its end. The connection is
    /// cleaned up and checked in either way.
    #[expect(clippy::manual_async_fn, reason = "that it is Send is part of the contract")]
    pub fn run<'a, F, R, E>(self, body: F) -> impl Future<Output = Result<R, E>> + Send + 'a
    where
        for<'r> F: AsyncFnOnce(&'r mut Transaction) -> Result<R, E>
            + Body<&'r mut Transaction, Result<R, E>, Fut: Send>
            + Send
            + 'a,
        R: Send + 'a,
        E: From<Error> + Send + 'a,
        'd: 'a,
    {
        async move {
            let budget = Budget::new(self.deadline);
            attempt(&self, budget, body).await.map_err(|failure| failure.error)
        }
    }

    /// Runs `body` again after a failure that another attempt may mend: a serialization failure (40001), a deadlock
    /// (40P01), a connection lost before COMMIT. Each attempt has a clone of the body and a transaction of its own, after
    /// a random pause, within the deadline, and as long as the handle's retry budget lasts.
    ///
    /// Never after a COMMIT whose outcome is unknown, unless the body is [`idempotent`](Self::idempotent).
    ///
    /// # Errors
    /// As [`run`](Self::run); [`Error::SerializationRetriesExhausted`] with the history when there was no further attempt.
    /// After an unknown COMMIT the first [`Error::CommitUnknown`], whatever ended the attempts after it.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    #[expect(clippy::manual_async_fn, reason = "that it is Send is part of the contract")]
    pub fn run_retrying<'a, F, R, E>(self, body: F) -> impl Future<Output = Result<R, E>> + Send + 'a
    where
        for<'r> F: AsyncFnOnce(&'r mut Transaction) -> Result<R, E>
            + Body<&'r mut Transaction, Result<R, E>, Fut: Send>
            + Clone
            + Send
            + 'a,
        R: Send + 'a,
        E: From<Error> + Send + 'a,
        'd: 'a,
    {
        async move {
            let budget = Budget::new(self.deadline);
            retry::run(&self, budget, body).await
        }
    }

    /// The message that opens the transaction.
    pub(super) fn mode(&self, until: Option<Instant>) -> Mode {
        let read_only = self.read_only;
        if self.isolation.is_none() && !self.deferrable && until.is_none() && self.user.is_none() {
            let begin = if read_only { "BEGIN READ ONLY" } else { "BEGIN READ WRITE" };
            return Mode::Transaction { begin: Cow::Borrowed(begin), sets: 0, read_only };
        }
        let mut begin = String::from("BEGIN");
        begin.push_str(match self.isolation {
            None => "",
            Some(Isolation::ReadCommitted) => " ISOLATION LEVEL READ COMMITTED",
            Some(Isolation::RepeatableRead) => " ISOLATION LEVEL REPEATABLE READ",
            Some(Isolation::Serializable) => " ISOLATION LEVEL SERIALIZABLE",
        });
        begin.push_str(if read_only { " READ ONLY" } else { " READ WRITE" });
        if self.deferrable {
            begin.push_str(" DEFERRABLE");
        }
        let mut sets = 0;
        if let Some(until) = until {
            // The client stops first; the server only if the client cannot.
            let left = until.saturating_duration_since(Instant::now());
            let millis = |backstop: Duration| (left + backstop).as_millis().clamp(1, i32::MAX as u128);
            let (statement, idle) = (millis(STATEMENT_BACKSTOP), millis(IDLE_BACKSTOP));
            let _ = write!(
                begin,
                "; SET LOCAL statement_timeout = {statement}; SET LOCAL idle_in_transaction_session_timeout = {idle}"
            );
            sets += 2;
        }
        if let Some(user) = self.user {
            let _ = write!(begin, "; SET LOCAL t2m.user_id = '{user}'");
            sets += 1;
        }
        Mode::Transaction { begin: Cow::Owned(begin), sets, read_only }
    }
}

/// How much longer than the client the server lets a statement run.
const STATEMENT_BACKSTOP: Duration = Duration::from_millis(100);
/// And an idle transaction, which it ends with the whole session: a client that only got no processor for a moment would
/// have to connect again, when it has the least time for it.
const IDLE_BACKSTOP: Duration = Duration::from_secs(1);
