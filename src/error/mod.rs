//! What can go wrong, told to the person who reads it at 3 a.m.
//!
//! Every variant says what failed, for which scope, and what to look at next. `Display` never repeats
//! [`source()`](std::error::Error::source) and never holds a password: connection strings do not reach this module.
//!
//! SQLSTATE and message texts are read in [`classify`] only.

mod classify;
mod details;

use std::borrow::Cow;
use std::time::Duration;

pub(crate) use classify::{
    Annotation, annotate, connection_lost, is_consequence, is_demoted, is_server_gone, is_stale_plan, is_timeout,
    refusal,
};
pub use classify::{CommitOutcome, ConstraintKind, SqlState};
pub use details::{AbortReason, CheckoutTimeout, CommitUnknown, Overloaded, RetriesExhausted};

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation of this crate failed.
///
/// Scopes are named as `"name" (file:line:column)`. Whatever a transaction scope returns other than
/// [`CommitUnknown`](Self::CommitUnknown), [`AnswerLost`](Self::AnswerLost), or [`Aborted`](Self::Aborted) because the
/// body committed by itself, means that nothing was stored, unless its body went on after `commit_with`: see
/// [`commit_outcome`](Self::commit_outcome).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting has a value that cannot work. Nothing was connected.
    #[error("setting `{setting}` is {value}, allowed is {allowed}")]
    Config {
        /// The setting, by the name that [`Config`](crate::Config) and the environment use.
        setting: Cow<'static, str>,
        /// What it was set to; `***` in place of anything secret.
        value: String,
        /// What it may be set to.
        allowed: Cow<'static, str>,
    },

    /// No connection could be opened, and waiting would not help: wrong password, no such database, TLS refused, ...
    #[error("{0}")]
    Connect(Box<dyn std::error::Error + Send + Sync>),

    /// No connection became free within `checkout_timeout`.
    #[error("{0}")]
    CheckoutTimeout(Box<CheckoutTimeout>),

    /// The pool is overloaded: refused at once, or after a wait that had no prospect. Nothing was sent.
    #[error("{0}")]
    Overloaded(Box<Overloaded>),

    /// The [`Database`](crate::Database) was closed.
    #[error("{scope} was refused: the database handle is closed")]
    Closed {
        /// The scope that was refused or cancelled.
        scope: String,
    },

    /// A scope was opened inside a scope of the same task while no connection was free: it would wait for itself.
    #[error(
        "{inner} was opened inside {outer} and all {max_size} connections are out: it would wait for itself; \
        pass `tx` on instead of opening a second scope, or raise `max_size`"
    )]
    NestedCheckout {
        /// The scope that asked.
        inner: String,
        /// The scope of the same task that holds a connection.
        outer: String,
        /// The pool's bound.
        max_size: u32,
    },

    /// A statement failed, or the connection under it was lost before COMMIT.
    #[error("{}", classify::Described(.0))]
    Query(diesel::result::Error),

    /// The transaction could not be committed although the body returned `Ok`. It was rolled back.
    #[error("{scope} was not committed: {reason}")]
    Aborted {
        /// The transaction.
        scope: String,
        /// What stood against it.
        reason: AbortReason,
    },

    /// The scope's deadline passed. What it was doing was stopped, on the server too.
    #[error("{scope} passed its deadline of {budget:?} after {after:.1?}, while {phase}")]
    Deadline {
        /// The scope.
        scope: String,
        /// The whole budget.
        budget: Duration,
        /// How long the scope had run.
        after: Duration,
        /// What it was doing: `waiting for a connection`, `running its body`, ...
        phase: &'static str,
        /// Other than `NotCommitted` only if the body had used `commit_with`.
        outcome: CommitOutcome,
    },

    /// Every attempt of `run_retrying` failed, or its budget ran out.
    #[error("{0}")]
    SerializationRetriesExhausted(Box<RetriesExhausted>),

    /// The connection was lost during COMMIT, and whether the server committed cannot be known.
    #[error("{0}")]
    CommitUnknown(Box<CommitUnknown>),

    /// The transaction is committed, but the answer of its last statement is not to be had: that of
    /// [`commit_with`](crate::Transaction::commit_with) was lost with the connection, or that of
    /// [`commit_returning`](crate::Transaction::commit_returning) had no row or could not be read.
    #[error("{scope} is committed, but the answer of its last statement is not to be had")]
    AnswerLost {
        /// The transaction.
        scope: String,
        /// [`NotFound`](diesel::result::Error::NotFound), what could not be read, or how the connection was lost.
        source: diesel::result::Error,
    },

    /// The transaction has ended already, by `commit_with` or because it could not begin.
    #[error("{scope} was used after its end: {reason}")]
    Over {
        /// The transaction.
        scope: String,
        /// What ended it.
        reason: Cow<'static, str>,
        /// Whether what it had done until then is stored.
        outcome: CommitOutcome,
    },

    /// A migration failed. Those before it are applied; it is not, unless it runs outside a transaction.
    #[error("migration {migration} failed")]
    Migrate {
        /// The migration, or in brackets what was done instead of one.
        migration: String,
        /// The server's words, or those of the migration's source.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A value given to a domain function is outside what the table may hold. Nothing was stored.
    #[error("`{field}` is {value}, allowed is {allowed}")]
    Invalid {
        /// The field, as `entity.column`.
        field: &'static str,
        /// What was given, shortened.
        value: String,
        /// What is allowed.
        allowed: Cow<'static, str>,
    },

    /// One of many rows could not be stored, so none of the statement was.
    #[error("row {index} was refused, and none of the rows was stored")]
    Row {
        /// Its place in what was given, from 0.
        index: usize,
        /// Why.
        source: Box<Error>,
    },

    /// There is no such row for this owner. A row of somebody else looks exactly the same.
    #[error("no such {entity} for this owner")]
    NotFound {
        /// What was looked for: `user`, `job`, `video`, ...
        entity: &'static str,
    },

    /// A job or a queue entry cannot go from the state that it is in to the one asked for. Nothing was changed.
    #[error("{entity} is {from}: from there it cannot become {to}")]
    Transition {
        /// What was to change: `job`, `queue entry`.
        entity: &'static str,
        /// The state that it is in.
        from: String,
        /// The state that was asked for.
        to: &'static str,
    },

    /// This worker does not hold the job any more: its lease ran out and another took over, or the job was called off.
    #[error("the lease on job {job} with token {token} is over: another worker took the job, or it was called off")]
    LeaseLost {
        /// The job.
        job: uuid::Uuid,
        /// The fencing token of the lease that is over.
        token: i64,
    },

    /// A JSON column holds something that does not fit its type. The rest of the row, and of its list, is readable.
    #[error("document in {table} of row {id} does not fit at `{path}`: {reason}")]
    BrokenDocument {
        /// The table.
        table: &'static str,
        /// The row.
        id: uuid::Uuid,
        /// Column, then keys and positions inside the document.
        path: String,
        /// What is wrong there.
        reason: String,
    },
}

impl Error {
    /// This, of one row among many.
    pub(crate) fn of_row(self, index: usize) -> Self {
        Self::Row { index, source: Box::new(self) }
    }
}

impl From<diesel::result::Error> for Error {
    /// An error of ours that travelled through diesel comes out as what it was.
    fn from(error: diesel::result::Error) -> Self {
        use diesel::result::Error as Diesel;
        match error {
            Diesel::QueryBuilderError(inner) => {
                inner.downcast().map_or_else(|inner| Self::Query(Diesel::QueryBuilderError(inner)), |ours| *ours)
            }
            Diesel::SerializationError(inner) => {
                inner.downcast().map_or_else(|inner| Self::Query(Diesel::SerializationError(inner)), |ours| *ours)
            }
            other => Self::Query(other),
        }
    }
}
