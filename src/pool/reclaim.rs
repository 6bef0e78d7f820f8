//! Cleaning up after a scope: whatever runs is cancelled and drained, the transaction rolled back, the session reset
//! where it was changed, and the connection checked in, or closed if the server does not answer in time.
//!
//! The connection keeps its permit and its entry in the registry until all that is done.

use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::time::timeout;

use super::lease::{Lease, Why};
use super::session::RESET;
use super::stats::{CloseReason, add};
use crate::error::connection_lost;
use crate::wire::Status;

/// How long a statement that nobody waits for may go on before it is cancelled: most are just about to end.
const GRACE: Duration = Duration::from_millis(10);

/// It is cancelled again after twice the time each time, up to this.
const LONGEST_GRACE: Duration = Duration::from_millis(500);

/// A cancel request may hit our own message instead; it is sent again then.
const MOST_TRIES: usize = 4;

impl Lease {
    /// Makes the connection clean and checks it in.
    ///
    /// # Cancel safety
    /// Dropped half-way, the connection is closed.
    pub(crate) async fn reclaim(mut self, why: Why) {
        self.is_being_reclaimed();
        if !self.was_left_running() {
            // Rows that nobody read to their end: most often the rest is on its way already.
            let _ = timeout(GRACE, self.session().wire.quiet()).await;
        }
        let left_running = !self.is_answered();
        let patience = self.pool.config.cleanup_timeout;
        match timeout(patience, self.clean()).await {
            Ok(true) => {
                if left_running || why == Why::Cancelled {
                    add(&self.pool.counters.salvaged);
                }
                self.check_in();
            }
            Ok(false) => {
                tracing::debug!(scope = %self.holder.scope, "connection lost before it could be cleaned");
                self.discard(CloseReason::Broken);
            }
            Err(_) => {
                tracing::warn!(
                    scope = %self.holder.scope, backend_pid = self.session().wire.backend_pid(), ?patience,
                    "server did not answer the clean-up within cleanup_timeout; connection closed"
                );
                self.discard(CloseReason::Unresponsive);
            }
        }
    }

    /// Whether the session is proven clean in the end.
    async fn clean(&self) -> bool {
        let session = self.session();
        let settled = self.is_answered() && session.wire.status() == Status::Idle;
        if !settled && self.undo("ROLLBACK", Status::Idle).await != Undone::Clean {
            return false;
        }
        let dirt = self.dirt();
        if let Some(what) = dirt {
            tracing::warn!(scope = %self.holder.scope, left_behind = what, "session changed by a scope; it is reset");
            add(&self.pool.counters.reset);
        }
        if (dirt.is_some() || self.is_reset_anyway()) && session.batch(RESET).await.is_err() {
            return false;
        }
        session.wire.quiet().await;
        session.wire.status() == Status::Idle && !session.is_dead()
    }

    /// Rolls back with `sql` and so drains the connection: the reply is the proof that everything before it is answered.
    /// What nobody waits for any more is cancelled first. In the end the session is in `expected`.
    pub(crate) async fn undo(&self, sql: &str, expected: Status) -> Undone {
        let session = self.session();
        for _ in 0..MOST_TRIES {
            if session.is_dead() {
                return Undone::Lost;
            }
            match self.drain(sql).await {
                Ok(()) if session.wire.status() == expected => {
                    self.all_ended();
                    return Undone::Clean;
                }
                Err(error) if connection_lost(&error) => return Undone::Lost,
                _ => {}
            }
        }
        Undone::Stuck
    }
}

impl Lease {
    /// Sends `sql`, whose reply is the proof that everything before it is answered. What nobody waits for any more is cancelled.
    pub(crate) async fn drain(&self, sql: &str) -> diesel::QueryResult<()> {
        let session = self.session();
        let left_running = !self.is_answered();
        let mut drained = pin!(session.batch(sql));
        let mut grace = GRACE;
        let result = loop {
            if let Ok(result) = timeout(grace, &mut drained).await {
                break result;
            }
            // Again and again: a request that comes before the server has read the statement does nothing.
            if left_running
                && let Either::Left((result, _)) = select(&mut drained, pin!(session.cancel(self.holder.scope))).await
            {
                break result;
            }
            grace = (grace * 2).min(LONGEST_GRACE);
        };
        // One that is still on its way must not hit what is sent next.
        session.cancelled().await;
        result
    }
}

/// What came of [`Lease::undo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undone {
    Clean,
    Lost,
    /// The server answered, but not with what was asked for.
    Stuck,
}
