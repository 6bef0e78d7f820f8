//! The only place that reads SQLSTATE or the text of a server's message.
//!
//! diesel-async turns a server's error into a kind and drops its SQLSTATE. The wire has seen it, so every error that
//! passes our connections is wrapped once more: `details()` then ends with a line `SQLSTATE xxxxx`, which is read back
//! here when the error becomes an [`Error`]. Codes: PostgreSQL manual, appendix A.

use std::fmt;

use diesel::result::{DatabaseErrorInformation, DatabaseErrorKind, Error as Diesel};

use super::{AbortReason, Error};

/// A five-character SQLSTATE.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// `40001`
    pub const SERIALIZATION_FAILURE: Self = Self(*b"40001");
    /// `40P01`
    pub const DEADLOCK_DETECTED: Self = Self(*b"40P01");
    /// `55P03`: `lock_timeout` passed, or `NOWAIT`.
    pub const LOCK_NOT_AVAILABLE: Self = Self(*b"55P03");
    /// `57014`: cancelled by a request, by `statement_timeout`, or by an administrator.
    pub const QUERY_CANCELED: Self = Self(*b"57014");
    /// `25006`: a write in a read-only transaction or on a standby.
    pub const READ_ONLY_TRANSACTION: Self = Self(*b"25006");

    pub(crate) const fn new(code: [u8; 5]) -> Self {
        Self(code)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 5] {
        &self.0
    }

    /// The five characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }

    /// Worth another attempt of the whole transaction.
    pub(crate) fn is_retryable(self) -> bool {
        self == Self::SERIALIZATION_FAILURE || self == Self::DEADLOCK_DETECTED || self.is_connection_lost()
    }

    /// The server ends this connection or has none to give: shutdown, crash, start-up, class 08.
    fn is_connection_lost(self) -> bool {
        matches!(&self.0, b"57P01" | b"57P02" | b"57P03" | b"57P05" | b"25P03") || self.0.starts_with(b"08")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the work of a failed transaction is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommitOutcome {
    /// Nothing is stored: it was rolled back, or never begun.
    NotCommitted,
    /// All of it is stored; what failed came after COMMIT.
    Committed,
    /// It may be stored or not.
    Unknown,
    /// The body committed by itself: what it had done until then is stored, the rest is not.
    InPart,
}

/// The kinds of constraint that a row can violate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConstraintKind {
    /// 23505
    Unique,
    /// 23503
    ForeignKey,
    /// 23502
    NotNull,
    /// 23514
    Check,
    /// 23P01
    Exclusion,
}

impl Error {
    /// The server's SQLSTATE, where an error of the server is behind this one.
    pub fn sqlstate(&self) -> Option<SqlState> {
        match self {
            Self::Query(error) => sqlstate(error),
            Self::Row { source, .. } => source.sqlstate(),
            Self::Aborted { reason: AbortReason::StatementFailed { sqlstate, .. }, .. } => {
                sqlstate.as_bytes().try_into().ok().map(SqlState)
            }
            _ => None,
        }
    }

    /// The same work may succeed if it is done again from the start: a serialization failure, a deadlock, a connection lost
    /// before COMMIT. Never true when the outcome of a COMMIT is unknown.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Query(error) => {
                matches!(error, Diesel::DatabaseError(DatabaseErrorKind::SerializationFailure, _))
                    || self.sqlstate().is_some_and(SqlState::is_retryable)
                    || is_stale_plan(error)
                    || connection_lost(error)
            }
            Self::Aborted { .. } => self.sqlstate().is_some_and(SqlState::is_retryable),
            Self::CheckoutTimeout(_) | Self::Overloaded { .. } | Self::SerializationRetriesExhausted(_) => true,
            _ => false,
        }
    }

    /// The connection was lost: closed by the server, the network, or an administrator.
    pub fn is_connection_lost(&self) -> bool {
        match self {
            Self::Query(error) => connection_lost(error),
            Self::CommitUnknown(_) => true,
            _ => self.sqlstate().is_some_and(SqlState::is_connection_lost),
        }
    }

    /// A value that must be unique is there already; [`constraint`](Self::constraint) says which.
    pub fn is_unique_violation(&self) -> bool {
        self.constraint_kind() == Some(ConstraintKind::Unique)
    }

    /// Which kind of constraint refused the row.
    pub fn constraint_kind(&self) -> Option<ConstraintKind> {
        let kind = match self {
            Self::Query(Diesel::DatabaseError(kind, _)) => kind,
            Self::Row { source, .. } => return source.constraint_kind(),
            _ => return None,
        };
        Some(match kind {
            DatabaseErrorKind::UniqueViolation => ConstraintKind::Unique,
            DatabaseErrorKind::ForeignKeyViolation => ConstraintKind::ForeignKey,
            DatabaseErrorKind::NotNullViolation => ConstraintKind::NotNull,
            DatabaseErrorKind::CheckViolation => ConstraintKind::Check,
            DatabaseErrorKind::ExclusionViolation => ConstraintKind::Exclusion,
            _ => return None,
        })
    }

    /// The name of the constraint that refused the row.
    pub fn constraint(&self) -> Option<&str> {
        self.information()?.constraint_name()
    }

    /// The table that the server named.
    pub fn table(&self) -> Option<&str> {
        self.information()?.table_name()
    }

    /// The column that the server named.
    pub fn column(&self) -> Option<&str> {
        self.information()?.column_name()
    }

    /// Whether the work of the scope that returned this is stored.
    pub fn commit_outcome(&self) -> CommitOutcome {
        match self {
            Self::CommitUnknown(_) => CommitOutcome::Unknown,
            Self::Aborted { reason: AbortReason::BodyCommitted, .. } => CommitOutcome::InPart,
            Self::AnswerLost { .. } => CommitOutcome::Committed,
            Self::Deadline { outcome, .. } | Self::Over { outcome, .. } => *outcome,
            _ => CommitOutcome::NotCommitted,
        }
    }

    fn information(&self) -> Option<&(dyn DatabaseErrorInformation + Send + Sync)> {
        match self {
            Self::Query(Diesel::DatabaseError(_, information)) => Some(information.as_ref()),
            Self::Row { source, .. } => source.information(),
            _ => None,
        }
    }
}

/// The line that [`annotate`] appends to an error's details.
const MARK: &str = "SQLSTATE ";

fn sqlstate(error: &Diesel) -> Option<SqlState> {
    let Diesel::DatabaseError(_, information) = error else { return None };
    let (_, code) = information.details()?.rsplit_once(MARK)?;
    code.as_bytes().try_into().ok().map(SqlState)
}

/// The connection under the statement is gone.
pub(crate) fn connection_lost(error: &Diesel) -> bool {
    let Diesel::DatabaseError(kind, _) = error else { return false };
    matches!(kind, DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection)
        || sqlstate(error).is_some_and(SqlState::is_connection_lost)
}

/// The schema changed under a prepared statement. PostgreSQL has no SQLSTATE of its own for it (0A000 is shared).
pub(crate) fn is_stale_plan(error: &Diesel) -> bool {
    let Diesel::DatabaseError(_, information) = error else { return false };
    information.message() == STALE_PLAN
}

/// In the server's words, where they are not translated.
const STALE_PLAN: &str = "cached plan must not change result type";

/// `statement_timeout` or `idle_in_transaction_session_timeout` has passed, or the statement was cancelled.
pub(crate) fn is_timeout(sqlstate: [u8; 5]) -> bool {
    matches!(&sqlstate, b"57014" | b"25P03")
}

/// "current transaction is aborted": it says no more than that a statement before it failed.
pub(crate) fn is_consequence(sqlstate: [u8; 5]) -> bool {
    &sqlstate == b"25P02"
}

/// Of an error of BEGIN READ WRITE: the server became a standby. PostgreSQL says 0A000 ("cannot set transaction read-write
/// mode during recovery"); others say 25006.
pub(crate) fn is_demoted(sqlstate: [u8; 5]) -> bool {
    matches!(&sqlstate, b"0A000" | b"25006")
}

/// Of what a first flight was lost with: the server as a whole went away or became a standby, and its other connections are
/// not worth trying.
pub(crate) fn is_server_gone(sqlstate: [u8; 5]) -> bool {
    matches!(&sqlstate, b"57P01" | b"57P02" | b"57P03") || is_demoted(sqlstate)
}

/// What the wire and the scope know about an error that diesel reports.
#[derive(Debug, Default)]
pub(crate) struct Annotation {
    pub(crate) sqlstate: Option<[u8; 5]>,
    /// In place of "connection closed": who closed it.
    pub(crate) last_words: Option<String>,
    /// Of an error that is only a [consequence](is_consequence): the message of what it comes from.
    pub(crate) cause: Option<String>,
    /// What to do about it, where the server has no hint.
    pub(crate) hint: Option<&'static str>,
    /// It is what [`is_stale_plan`] looks for, in whatever language.
    pub(crate) stale_plan: bool,
}

/// Adds what diesel left out. Kind, message and names stay as they are.
pub(crate) fn annotate(error: Diesel, note: &Annotation) -> Diesel {
    let Diesel::DatabaseError(kind, inner) = error else { return error };
    let message = match (&note.last_words, &note.cause, kind) {
        (Some(words), _, DatabaseErrorKind::UnableToSendCommand) => format!("connection lost: {words}"),
        _ if note.stale_plan => STALE_PLAN.to_owned(),
        (_, Some(cause), _) => format!("{}, since a statement before this one failed: {cause}", inner.message()),
        _ => inner.message().to_owned(),
    };
    let details = match (inner.details(), note.sqlstate) {
        (Some(details), Some(code)) => Some(format!("{details}\n{MARK}{}", SqlState(code))),
        (None, Some(code)) => Some(format!("{MARK}{}", SqlState(code))),
        (details, None) => details.map(str::to_owned),
    };
    let hint = note.hint.or(inner.hint()).map(str::to_owned);
    Diesel::DatabaseError(kind, Box::new(Annotated { inner, message, details, hint }))
}

struct Annotated {
    inner: Box<dyn DatabaseErrorInformation + Send + Sync>,
    message: String,
    details: Option<String>,
    hint: Option<String>,
}

impl DatabaseErrorInformation for Annotated {
    fn message(&self) -> &str {
        &self.message
    }
    fn details(&self) -> Option<&str> {
        self.details.as_deref()
    }
    fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
    fn table_name(&self) -> Option<&str> {
        self.inner.table_name()
    }
    fn column_name(&self) -> Option<&str> {
        self.inner.column_name()
    }
    fn constraint_name(&self) -> Option<&str> {
        self.inner.constraint_name()
    }
    fn statement_position(&self) -> Option<i32> {
        self.inner.statement_position()
    }
}

/// An error of ours, for diesel to carry to the caller; see [`From`].
pub(crate) fn refusal(error: Error) -> Diesel {
    Diesel::QueryBuilderError(Box::new(error))
}

/// Everything that a server told about an error, in one line.
pub(super) struct Described<'a>(pub(super) &'a Diesel);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let Diesel::DatabaseError(_, information) = self.0 else { return Ok(()) };
        let named = [
            ("constraint", information.constraint_name()),
            ("table", information.table_name()),
            ("column", information.column_name()),
        ];
        for (what, name) in named {
            if let Some(name) = name {
                write!(f, ", {what} \"{name}\"")?;
            }
        }
        if let Some(details) = information.details() {
            write!(f, "; {}", details.replace('\n', "; "))?;
        }
        if let Some(hint) = information.hint() {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}
