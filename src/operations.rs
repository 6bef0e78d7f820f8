//! Exactly once, through anything: an operation is named by its caller before the first try, and the name is stored in the
//! same transaction as its work.
//!
//! Whoever has to do it again, because COMMIT's outcome is unknown, because the process died, or because a request came
//! twice, finds the name or does not, and the unique key decides between two that run at the same time: the second waits
//! for the first.
//!
//! ```no_run
//! # async fn example(db: &t2m_db::Database) -> t2m_db::Result<()> {
//! use t2m_db::operations::{self, Claim};
//! use t2m_db::types::OperationId;
//!
//! let id = OperationId::random(); // kept by the caller: the same at every further try
//! let charged = db.transaction("charge").idempotent().run_retrying(async |tx| {
//!     if operations::claim(tx, id).await? == Claim::Done {
//!         return Ok::<_, t2m_db::Error>(None);
//!     }
//!     // ... the work ...
//!     Ok(Some(42))
//! });
//! match charged.await? {
//!     Some(amount) => println!("charged {amount} just now"),
//!     None => println!("was charged before; what it came to has to be read from its rows"),
//! }
//! # Ok(()) }
//! ```
//!
//! **What an operation that was done before cannot give back is its value**: only its name is stored. A body that is told
//! [`Claim::Done`] reads what it needs from the rows that the operation stored, by a key that it can derive from the id.

use diesel::ExpressionMethods;
use diesel_async::RunQueryDsl;

use crate::error::Result;
use crate::executor::Executor;
use crate::schema::operations;
use crate::types::OperationId;

/// Whether an operation is still to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "`Done` means that the work must not be done again"]
pub enum Claim {
    /// It is this transaction's to do: stored when it commits, and nobody else's until it ends.
    Ours,
    /// An earlier transaction has done it and is committed.
    Done,
}

/// Claims the operation `id` for this transaction. The first statement of its body, so that nothing is done before it.
///
/// Waits for another transaction that has claimed it and has not ended.
///
/// # Errors
/// Under [`Isolation::RepeatableRead`](crate::Isolation::RepeatableRead) and
/// [`Serializable`](crate::Isolation::Serializable), 40001 if it was done since this transaction began: the next attempt of
/// `run_retrying` is told [`Claim::Done`].
///
/// # Cancel safety
/// As the statement of a transaction: dropped, the transaction can only be rolled back.
pub async fn claim(conn: &mut impl Executor, id: OperationId) -> Result<Claim> {
    let insert = diesel::insert_into(operations::table).values(operations::operation_id.eq(id));
    let stored = insert.on_conflict_do_nothing().execute(conn).await?;
    Ok(if stored == 1 { Claim::Ours } else { Claim::Done })
}
