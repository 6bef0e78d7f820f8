//! The queue: who works on which job, and until when.
//!
//! A worker holds a job by a *lease*, not by a transaction that stays open while it renders: [`claim`] gives it one that
//! ends by itself, [`heartbeat`] and [`progress`] prolong it, [`complete`] or [`fail`] ends it. A job whose worker died comes
//! back by itself: [`claim`] takes leases that ran out as well, and fails the jobs that were lost too often. Every claim
//! raises the job's *fencing token*; a worker that comes late shows an old one and is told [`Error::LeaseLost`]. So a job is
//! completed once, however many workers believed to have it.
//!
//! Python knows neither lease nor token. When it claims, requeues or ends an entry, a trigger raises the token and ends the
//! lease, so that its worker is not taken over and ours is told. When it ends a job and leaves the entry, our worker is told
//! as well, and the next claim after the lease closes the entry.
//!
//! Queue entries have no owner of their own: they are the machine room. Everything that touches a job through them names the
//! job's owner, whom the lease carries.
//!
//! # Waiting for work
//!
//! A trigger notifies [`CHANNEL`] when a transaction that put something into the queue commits. A worker listens first and
//! claims then, so that nothing falls in between, and polls nothing:
//!
//! ```no_run
//! # use std::time::Duration;
//! # use t2m_db::{Database, Error, queue};
//! # async fn worker(db: &Database, worker: &queue::Worker) -> Result<(), Error> {
//! let mut listener = db.listen(queue::CHANNEL).await?;
//! loop {
//!     let lease = Duration::from_secs(60);
//!     let claims = db.with_transaction(async |tx| queue::claim(tx, worker, queue::BatchSize::ONE, lease).await).await?;
//!     if claims.is_empty() {
//!         let due = db.with_connection(async |conn| queue::due_in(conn).await).await?.unwrap_or(Duration::MAX);
//!         let due = due.max(Duration::from_millis(25)); // what is due may be locked: somebody else is just at it
//!         if let Ok(None) = tokio::time::timeout(due, listener.next()).await {
//!             return Ok(()); // the database was closed
//!         }
//!     }
//!     for claim in claims {
//!         // render, with a heartbeat now and then, and complete or fail
//!     }
//! }
//! # }
//! ```
//!
//! [`Error::LeaseLost`]: crate::Error::LeaseLost

mod claim;
mod recover;
mod row;
mod settle;

pub use claim::{claim, due_in};
pub use recover::{put_back_expired, put_back_worker};
pub use row::{Backoff, BatchSize, Claim, Failure, Lease, PutBack, QueueError, Worker};
pub use settle::{complete, entry, fail, heartbeat, progress, release};

/// The channel that [`claim`]'s callers listen on.
pub const CHANNEL: &str = "t2m_job_queue";
