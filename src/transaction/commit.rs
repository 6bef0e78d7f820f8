//! The end of a transaction, told truly.
//!
//! Ending is an owned future: polled by the caller while there is one, and by a task of its own when the caller goes
//! away. So a COMMIT that was sent runs to its end, and so does a ROLLBACK.
//!
//! The server's word decides: committed is what was answered with the tag `COMMIT`, once, to the one `BEGIN` that we
//! sent. An aborted transaction answers COMMIT with `ROLLBACK`, and no error.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::attempt::Budget;
use super::resolve::{Resolution, Sent, resolve};
use super::scope::{After, Mode, Scope};
use crate::config::CommitResolution;
use crate::error::{AbortReason, CommitUnknown, Error, Result, connection_lost, is_consequence};
use crate::pool::{Lease, Pool, Why, add};
use crate::statement::Effects;
use crate::wire::{Status, Tags, Wire};

/// What an [`after_commit`](super::Transaction::after_commit) hook is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The transaction's id, where it was known: it is not for a transaction that only read.
    pub xid: Option<u64>,
    /// The reply to COMMIT was lost and the outcome found out from the server afterwards.
    pub resolved: bool,
}

/// An ending that goes on when its caller goes away.
pub(super) struct Settling<T: 'static> {
    future: Option<BoxFuture<'static, T>>,
    pool: Arc<Pool>,
}

impl<T: Send + 'static> Settling<T> {
    pub(super) fn new(pool: &Arc<Pool>, future: impl Future<Output = T> + Send + 'static) -> Self {
        Self { future: Some(Box::pin(future)), pool: Arc::clone(pool) }
    }
}

impl<T: Send + 'static> Future for Settling<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Some(future) = &mut self.future else { return Poll::Pending };
        let settled = future.as_mut().poll(cx);
        if settled.is_ready() {
            self.future = None;
        }
        settled
    }
}

impl<T: 'static> Drop for Settling<T> {
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            // Nobody is left to hear of it; counters and hooks have.
            self.pool.spawn(async move { drop(future.await) });
        }
    }
}

/// Until when COMMIT may be sent, and be waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) at: Instant,
    pub(super) budget: Budget,
}

impl Scope {
    /// Commits, or says why not. The connection is checked in either way.
    pub(super) async fn commit(mut self: Box<Self>, limit: Option<Limit>) -> Result<()> {
        let Some(mut lease) = self.lease.take() else { return self.ended_before() };
        if self.is_begun() {
            if let Err(reason) = self.prepare_to_commit(&mut lease).await {
                self.lease = Some(lease);
                return Err(Box::pin(self.abort(reason)).await);
            }
            // In neither case is COMMIT sent, so there is nothing to be found out.
            let error = match limit {
                _ if lease.session().is_dead() => Some(self.lost_before_commit(&lease)),
                Some(limit) if limit.at <= Instant::now() => Some(limit.budget.passed_before_commit(self.name())),
                _ => None,
            };
            if let Some(error) = error {
                self.lease = Some(lease);
                Box::pin(self.roll_back()).await;
                return Err(error);
            }
            lease.holder.committing();
            let sent_at = SystemTime::now();
            let answer = lease.session().batch("COMMIT").await;
            return self.judge(lease, answer, sent_at, limit.map(|limit| limit.at)).await;
        }
        // Nothing was sent, so there is nothing to be told.
        if let Some(reason) = self.doomed() {
            self.lease = Some(lease);
            return Err(Box::pin(self.abort(reason)).await);
        }
        self.end(lease, Committed { xid: None, resolved: false }).await;
        Ok(())
    }

    /// The body may have ended its transaction by itself, in a text whose answer was lost too.
    fn lost_before_commit(&self, lease: &Lease) -> Error {
        if lease.may_have_ended() {
            let why = "the body sent a text that may have committed by itself".to_owned();
            return self.unknown(lease.session().wire.xid(), SystemTime::now(), why);
        }
        Error::from(self.lost(lease.session()))
    }

    fn unknown(&self, xid: Option<u64>, sent_at: SystemTime, why: String) -> Error {
        Error::CommitUnknown(Box::new(CommitUnknown { scope: self.name().to_string(), xid, sent_at, why }))
    }

    /// `commit_with` has ended it; that its error may have been swallowed changes nothing.
    fn ended_before(&self) -> Result<()> {
        match &self.after {
            After::Committed => Ok(()),
            After::RolledBack { .. } => {
                Err(Error::Aborted { scope: self.name().to_string(), reason: AbortReason::CommitWithFailed })
            }
            After::Unknown => {
                let why =
                    "commit_with was dropped, or its error not passed on, before the outcome was known".to_owned();
                Err(self.unknown(None, SystemTime::now(), why))
            }
        }
    }

    /// Sees to it that COMMIT can be believed; the reason if it cannot.
    async fn prepare_to_commit(&self, lease: &mut Lease) -> Result<(), AbortReason> {
        if let Some(reason) = self.doomed() {
            return Err(reason);
        }
        if self.nest.is_unsettled() {
            Box::pin(self.settle_nested(lease)).await.map_err(|_| AbortReason::NestedUnknown)?;
        }
        let depth = self.nest.depth() + lease.session_mut().left_nested();
        if depth > 0 {
            return Err(AbortReason::UnfinishedNested { depth });
        }
        // The body dropped a statement, and COMMIT would wait for it. What failed is told by COMMIT's own answer.
        if lease.was_left_running() {
            let _ = lease.drain("").await;
        }
        let session = lease.session();
        if self.expects_xid() && session.wire.xid().is_none() {
            self.await_xid(session).await;
        }
        what_the_body_did(&session.wire, lease.effects()).map_or(Ok(()), Err)
    }

    /// Reads the server's answer to COMMIT.
    pub(super) async fn judge(
        mut self: Box<Self>,
        lease: Lease,
        answer: diesel::QueryResult<()>,
        sent_at: SystemTime,
        until: Option<Instant>,
    ) -> Result<()> {
        let wire = &lease.session().wire;
        match answer {
            Ok(()) => {
                lease.all_ended();
                let tags = wire.tags();
                let as_sent =
                    (tags.begins, tags.commits, tags.rollbacks) == (1, 1, 0) && !is_chained(&tags, lease.effects());
                if as_sent && wire.status() == Status::Idle {
                    let committed = Committed { xid: wire.xid(), resolved: false };
                    self.end(lease, committed).await;
                    return Ok(());
                }
                let reason = match wire.latest_error(|sqlstate| !is_consequence(sqlstate)) {
                    // It committed what came behind, be it that the body ended its transaction unseen until now.
                    _ if tags.commits > 1 || tags.commits == 1 && is_chained(&tags, lease.effects()) => {
                        AbortReason::BodyCommitted
                    }
                    Some(report) => {
                        AbortReason::StatementFailed { sqlstate: report.sqlstate().to_owned(), message: report.message }
                    }
                    None => AbortReason::NotConfirmed,
                };
                self.lease = Some(lease);
                Err(Box::pin(self.abort(reason)).await)
            }
            Err(error) if connection_lost(&error) || lease.session().is_dead() => {
                Box::pin(self.find_out(lease, error, sent_at, until)).await
            }
            Err(error) => {
                // A deferred constraint, a serialization failure: the server has rolled back.
                let error = Error::from(self.explain(lease.session(), error));
                lease.all_ended();
                self.lease = Some(lease);
                Box::pin(self.roll_back()).await;
                Err(error)
            }
        }
    }

    /// COMMIT was sent and its reply lost.
    async fn find_out(
        mut self: Box<Self>,
        lease: Lease,
        error: diesel::result::Error,
        sent_at: SystemTime,
        until: Option<Instant>,
    ) -> Result<()> {
        let session = lease.session();
        let lost = self.explain(session, error);
        let xid = session.wire.xid();
        let sent = Sent { xid, identity: session.identity.clone() };
        let read_only = matches!(self.mode, Mode::Transaction { read_only: true, .. });
        let resolution = if read_only || session.wire.tags().begins == 0 && session.wire.fatal().is_some() {
            // There was nothing to commit; or the server said goodbye before it had read BEGIN.
            Resolution::NotCommitted
        } else if lease.pool.config.commit_resolution == CommitResolution::Off {
            Resolution::Unknown("commit_resolution is off".to_owned())
        } else if !self.expects_xid() {
            let why = "it was seen to send only SELECTs, so its id was not asked for (read_only() says that nothing is written)";
            Resolution::Unknown(why.to_owned())
        } else if session.wire.left_standby() {
            // Committed there; whether it is where the next primary is, that server did not wait to learn.
            Resolution::Unknown("the server shut down while COMMIT waited for its synchronous standby".to_owned())
        } else {
            resolve(&lease, &sent, until).await
        };
        match resolution {
            Resolution::Committed => {
                add(&lease.pool.counters.resolved);
                self.end(lease, Committed { xid, resolved: true }).await;
                Ok(())
            }
            Resolution::NotCommitted => {
                add(&lease.pool.counters.resolved);
                self.lease = Some(lease);
                self.roll_back().await;
                Err(Error::from(lost))
            }
            Resolution::Unknown(why) => {
                add(&lease.pool.counters.commit_unknown);
                self.note_duration(&lease, "of unknown outcome");
                lease.reclaim(Why::RollBack).await;
                Err(self.unknown(xid, sent_at, why))
            }
        }
    }

    /// It is committed: checks the connection in, then runs the hooks.
    async fn end(mut self: Box<Self>, lease: Lease, committed: Committed) {
        let pool = Arc::clone(&lease.pool);
        if self.is_begun() {
            add(&pool.counters.commits);
            self.note_duration(&lease, "committed");
        }
        if lease.is_clean() {
            lease.check_in();
        } else {
            Box::pin(lease.reclaim(Why::TidyUp)).await;
        }
        for hook in std::mem::take(self.hooks.get_mut()) {
            if catch_unwind(AssertUnwindSafe(|| hook(&committed))).is_err() {
                tracing::error!(scope = %self.name(), "an after_commit hook panicked; the transaction is committed");
            }
        }
    }

    pub(super) async fn abort(self: Box<Self>, reason: AbortReason) -> Error {
        let scope = self.name().to_string();
        self.roll_back().await;
        Error::Aborted { scope, reason }
    }

    /// Rolls back and checks in. The reply to ROLLBACK is waited for.
    pub(super) async fn roll_back(mut self: Box<Self>) {
        let Some(lease) = self.lease.take() else { return };
        if self.is_begun() {
            add(&lease.pool.counters.rollbacks);
            self.note_duration(&lease, "rolled back");
        }
        if lease.is_clean() {
            lease.check_in();
        } else {
            lease.reclaim(Why::RollBack).await;
        }
    }

    pub(super) fn note_duration(&self, lease: &Lease, end: &str) {
        let took = lease.holder.since.elapsed();
        lease.pool.counters.transaction.record(took);
        if lease.pool.config.slow_threshold.is_some_and(|threshold| took >= threshold) {
            add(&lease.pool.counters.slow);
            let statements: Vec<_> = self
                .statements
                .lock()
                .iter()
                .map(|(at, text)| format!("+{:.1?} {}", at.saturating_duration_since(lease.holder.since), text.sql))
                .collect();
            tracing::warn!(scope = %self.name(), ?took, end, ?statements, "transaction longer than slow_threshold");
        }
    }
}

/// A transaction was rolled back and another begun at once: the status byte did not show it.
fn is_chained(tags: &Tags, effects: Effects) -> bool {
    effects.has(Effects::CHAIN) && tags.all_rollbacks > 0
}

/// What a body did to the transaction that was not its to do.
pub(super) fn what_the_body_did(wire: &Wire, effects: Effects) -> Option<AbortReason> {
    let tags = wire.tags();
    if tags.commits > 0 {
        Some(AbortReason::BodyCommitted)
    } else if tags.rollbacks > 0 || is_chained(&tags, effects) {
        Some(AbortReason::BodyRolledBack)
    } else if tags.begins > 1 {
        Some(AbortReason::BodyBegan)
    } else {
        None
    }
}
