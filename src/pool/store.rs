//! What bb8 does for us: it keeps the connections that are idle, the one used last on top. Nothing else calls its `get`.

use std::time::Instant;

use futures_util::FutureExt;
use parking_lot::MutexGuard;

use super::admission::Permit;
use super::stats::CloseReason;
use super::{Held, Pool, Session};
use crate::error::is_server_gone;

impl Pool {
    /// The connection that was used last, if one is idle.
    pub(super) fn take_idle(&self) -> Option<Held> {
        self.take_next(&self.taking.lock())
    }

    /// How many are idle. Those that are only looked at for a moment count: who looks has the turn.
    pub(super) fn idle(&self) -> usize {
        let _turn = self.taking.lock();
        self.bb8.state().idle_connections as usize
    }

    /// As [`take_idle`](Self::take_idle), for who has the turn already: nobody opens a connection while all are in his hand.
    pub(super) fn take_next(&self, _turn: &MutexGuard<'_, ()>) -> Option<Held> {
        if self.bb8.state().idle_connections == 0 {
            return None;
        }
        #[expect(clippy::disallowed_methods, reason = "with one idle and the turn ours: it is there at the first poll")]
        self.bb8.get_owned().now_or_never()?.ok()
    }

    pub(super) fn store_and_take(&self, session: Box<Session>) -> Held {
        let _turn = self.taking.lock();
        self.bb8.add(session).unwrap_or_else(|_| unreachable!("bb8 has room for four times the permits"));
        #[expect(clippy::disallowed_methods, reason = "under a permit, just put on top: it is there at the first poll")]
        let held = self.bb8.get_owned().now_or_never();
        held.and_then(std::result::Result::ok)
            .unwrap_or_else(|| unreachable!("it was just stored and we hold the lock"))
    }

    /// Takes a connection back from a lease that is proven clean, or closes it.
    pub(super) fn take_back(
        &self,
        mut held: Held,
        permit: Permit,
        close: Option<CloseReason>,
        now: Instant,
        unused_since: Option<Instant>,
    ) {
        if held.is_dead() && held.wire.fatal().is_some_and(|report| is_server_gone(report.sqlstate)) {
            // Its siblings were opened before that, and are on the same server.
            self.outdate(&held);
        }
        let close = close.or(held.close).or_else(|| {
            if held.is_dead() {
                Some(held.cause_of_death())
            } else if self.admission.is_closed() {
                Some(CloseReason::Shutdown)
            } else if !self.is_current(&held) {
                Some(CloseReason::Outdated)
            } else if held.retire_at.is_some_and(|at| at <= now) {
                Some(CloseReason::Lifetime)
            } else if held.is_worn() {
                Some(CloseReason::Worn)
            } else {
                None
            }
        });
        if let Some(reason) = close {
            drop(self.close_session(held, permit, reason));
            return;
        }
        held.tidy();
        held.heard_of = now;
        held.idle_since = unused_since.unwrap_or(now);
        // In this order: who gets the permit must find the connection.
        drop(held);
        drop(permit);
    }
}
