//! A first flight that was lost with its connection, sent again on another one. Why that is safe, and when it is not:
//! `ARCHITECTURE.md`.

use std::sync::atomic::Ordering::SeqCst;

use diesel::result::Error as Diesel;
use tokio::time::Instant;

use super::scope::{Failed, Mode, Scope};
use crate::error::{AbortReason, connection_lost, is_demoted, is_server_gone};
use crate::pool::{Lease, Session, add};
use crate::statement::Effects;

/// The SQLSTATE of a connection that failed.
const CONNECTION_FAILURE: &str = "08006";

impl Scope {
    /// The body was told nothing of this flight, nothing that it did can be stored, and the connection is lost or cannot write
    /// any more. That BEGIN was not answered does not mean that what came behind it was not executed. Once it was, only on the
    /// scope's first connection: the statement may be what ended it.
    pub(super) fn may_send_again(&self, lease: &Lease, slot: usize, failed: &Failed) -> bool {
        let out_of_slots = !lease.may_replace() && lease.slot() == slot;
        let (in_transaction, read_only) = match self.mode {
            Mode::Read => (false, true),
            Mode::Transaction { read_only, .. } => (true, read_only),
        };
        // A text of the flight may have stored something by itself.
        let stored = lease.effects().has(if in_transaction { Effects::ENDS } else { Effects::MANY });
        if out_of_slots || stored || self.doomed().is_some() {
            return false;
        }
        if self.is_abandoned(slot) || self.told.load(SeqCst) {
            return self.is_abandoned(slot);
        }
        let session = lease.session_in(slot);
        let demoted =
            failed.in_begin && !read_only && session.wire.first_error().is_some_and(|error| is_demoted(error.sqlstate));
        let lost = connection_lost(&failed.error) || session.is_dead();
        demoted || lost && (in_transaction && slot == 0 || !session.wire.has_begun())
    }

    /// Puts another connection in place of the one in `slot`; one of several statements of a flight does it for all. A flight
    /// that began at `began` has waited long enough for the first one to be lost: no longer than a checkout may take in all.
    pub(super) async fn replace(&self, lease: &Lease, slot: usize, began: Option<Instant>) -> Result<(), ()> {
        if matches!(self.mode, Mode::Transaction { .. }) {
            // Before anything is waited for: answers of the same flight may be there already.
            self.abandoned.fetch_max(slot + 1, SeqCst);
        }
        let _turn = self.replacing.lock().await;
        if lease.slot() != slot {
            return Ok(());
        }
        let session = lease.session_in(slot);
        let gone = session.wire.fatal().or_else(|| session.wire.first_error());
        // The second dead one in a row is no accident either, and where one path is silent so are its neighbours.
        if slot > 0 || session.ending.was_silent() || gone.is_some_and(|report| is_server_gone(report.sqlstate)) {
            lease.pool.outdate(session);
        }
        let patience = began.unwrap_or_else(Instant::now) + lease.pool.config.checkout_timeout;
        let until = self.until.map_or(patience, |until| until.min(patience));
        tracing::debug!(scope = %self.name(), was = ?session.last_words(), "first flight met a dead connection; sent again");
        lease.pool.replace_in(lease, until).await.map_err(|error| {
            tracing::debug!(scope = %self.name(), %error, "no other connection to send it on");
        })?;
        add(&lease.pool.counters.resent);
        self.begun_on.store(0, SeqCst);
        self.asked_for_xid.store(0, SeqCst);
        Ok(())
    }

    /// The transaction was lost on this slot before the body was told anything, and is done again on another one.
    pub(super) fn is_abandoned(&self, slot: usize) -> bool {
        self.abandoned.load(SeqCst) > slot
    }

    /// A statement of a flight that was lost cannot be sent again, though others of it may have been: so nothing of the
    /// transaction may be kept, whatever the body makes of the error.
    pub(super) fn given_up(&self, session: &Session, error: Diesel) -> Diesel {
        self.told.store(true, SeqCst);
        let error = self.explain(session, error);
        if matches!(self.mode, Mode::Transaction { .. }) {
            self.doom(AbortReason::StatementFailed { sqlstate: CONNECTION_FAILURE.into(), message: error.to_string() });
        }
        error
    }
}
