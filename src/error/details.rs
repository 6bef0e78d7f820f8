//! What the larger errors carry.

use std::fmt;
use std::time::{Duration, SystemTime};

/// No connection became free in time. `Display` is a small report: who holds what, and what to try.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CheckoutTimeout {
    /// The scope that waited.
    pub scope: String,
    /// How long it waited.
    pub waited: Duration,
    /// Whether `checkout_timeout` or the scope's own deadline ended the wait.
    pub limit: &'static str,
    /// Server sessions that exist.
    pub size: usize,
    /// The most that may exist.
    pub max_size: usize,
    /// Scopes that still wait.
    pub waiting: usize,
    /// Who holds a connection: name, place, how long, doing what. Longest first.
    pub holders: Vec<String>,
    /// What the last failed attempts to connect said, if the server could not be reached.
    pub connect_failures: Vec<String>,
}

impl fmt::Display for CheckoutTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        let Self { scope, waited, limit, size, max_size, waiting, holders, connect_failures } = self;
        write!(f, "{scope} got no connection within {waited:.1?} ({limit}): ")?;
        write!(f, "{} of {max_size} are out, {size} open, {waiting} others wait", holders.len())?;
        for holder in holders.iter().take(SHOWN) {
            write!(f, "\n  held by {holder}")?;
        }
        if holders.len() > SHOWN {
            write!(f, "\n  and {} more", holders.len() - SHOWN)?;
        }
        for failure in connect_failures {
            write!(f, "\n  connect failed {failure}")?;
        }
        f.write_str(match (connect_failures.is_empty(), holders.len() >= *max_size) {
            (false, _) => "\n  try: see whether the server is up and reachable from here",
            (true, true) => {
                "\n  try: end the longest holders (an \"idle in transaction\" one waits for something that is not the \
                 database), or raise `max_size`"
            }
            (true, false) => "\n  try: see whether opening connections is slow (`stats().connect`)",
        })
    }
}

/// A scope was refused instead of let wait. `Display` is a small report, as that of [`CheckoutTimeout`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Overloaded {
    /// The scope that was refused.
    pub scope: String,
    /// How long it had waited.
    pub waited: Duration,
    /// Which bound was reached.
    pub reason: &'static str,
    /// The setting that holds that bound.
    pub setting: &'static str,
    /// The most sessions that may exist.
    pub max_size: usize,
    /// Connections that are out.
    pub out: usize,
    /// Scopes that wait.
    pub waiting: usize,
    /// The few that have held a connection longest: name, place, how long, doing what.
    pub longest: Vec<String>,
}

impl Overloaded {
    /// How many holders are told.
    pub(crate) const SHOWN: usize = 3;
}

impl fmt::Display for Overloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scope, waited, reason, setting, max_size, out, waiting, longest } = self;
        write!(f, "{scope} was refused a connection after {waited:.1?}, {reason}: ")?;
        write!(f, "{out} of {max_size} are out, {waiting} others wait")?;
        for holder in longest {
            write!(f, "\n  held by {holder}")?;
        }
        if *out > longest.len() {
            write!(f, "\n  and {} more", out - longest.len())?;
        }
        write!(
            f,
            "\n  try: answer \"busy\" and come again later; end the longest holders, raise `max_size`, or raise `{setting}` if \
             waiting is better than a no"
        )
    }
}

/// What stood against a COMMIT.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AbortReason {
    /// A statement failed and the body went on as if it had not.
    StatementFailed {
        /// Of the first statement that failed.
        sqlstate: String,
        /// The server's words.
        message: String,
    },
    /// The body opened `depth` savepoints that it neither released nor rolled back.
    UnfinishedNested {
        /// How many.
        depth: usize,
    },
    /// A nested scope was cancelled while its RELEASE was on the way: whether its work is part of this transaction
    /// cannot be known.
    NestedUnknown,
    /// The body sent `BEGIN` itself.
    BodyBegan,
    /// The body sent `COMMIT` itself. **What it had done until then is stored.**
    BodyCommitted,
    /// The body sent `ROLLBACK` itself.
    BodyRolledBack,
    /// `BEGIN` failed.
    NotBegun {
        /// The server's words.
        message: String,
    },
    /// `commit_with` failed and the body returned `Ok` nevertheless.
    CommitWithFailed,
    /// The server answered COMMIT with something else.
    NotConfirmed,
}

impl fmt::Display for AbortReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StatementFailed { sqlstate, message } => {
                write!(
                    f,
                    "a statement in it had failed and the error was not passed on: {message} (SQLSTATE {sqlstate})"
                )
            }
            Self::UnfinishedNested { depth } => write!(f, "{depth} savepoints were neither released nor rolled back"),
            Self::NestedUnknown => f.write_str("a nested scope was cancelled while its RELEASE was on the way"),
            Self::BodyBegan => f.write_str("its body sent BEGIN; use `savepoint` to nest"),
            Self::BodyCommitted => f.write_str("its body sent COMMIT; what it did until then is stored"),
            Self::BodyRolledBack => f.write_str("its body sent ROLLBACK; return an error to roll back"),
            Self::NotBegun { message } => write!(f, "BEGIN failed: {message}"),
            Self::CommitWithFailed => f.write_str("commit_with had failed and its error was not passed on"),
            Self::NotConfirmed => f.write_str("the server did not answer COMMIT with COMMIT"),
        }
    }
}

/// The reply to COMMIT was lost, or did not come in time, and the outcome could not be found out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CommitUnknown {
    /// The transaction.
    pub scope: String,
    /// Its id, where it was known.
    pub xid: Option<u64>,
    /// When COMMIT was sent.
    pub sent_at: SystemTime,
    /// Why the outcome could not be found out.
    pub why: String,
}

impl fmt::Display for CommitUnknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scope, xid, sent_at, why } = self;
        let at = chrono::DateTime::<chrono::Utc>::from(*sent_at).format("%F %T%.3f UTC");
        write!(f, "{scope} may or may not be committed: no answer came to its COMMIT of {at}, and {why}; ")?;
        match xid {
            Some(xid) => write!(
                f,
                "to find out: `SELECT pg_xact_status('{xid}')` if the server has not restarted since, else look for its rows"
            ),
            None => f.write_str("to find out: look for its rows"),
        }
    }
}

/// All attempts failed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RetriesExhausted {
    /// The transaction.
    pub scope: String,
    /// Attempts made.
    pub attempts: u32,
    /// How long they took together.
    pub elapsed: Duration,
    /// Why there was no further attempt.
    pub stopped_by: &'static str,
    /// What each attempt failed with, in order.
    pub history: Vec<String>,
}

impl fmt::Display for RetriesExhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scope, attempts, elapsed, stopped_by, history } = self;
        write!(f, "{scope} failed {attempts} times in {elapsed:.1?} and was not tried again: {stopped_by}")?;
        history.iter().enumerate().try_for_each(|(n, what)| write!(f, "\n  attempt {}: {what}", n + 1))
    }
}
