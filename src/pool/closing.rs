//! The end of a pool: refuse, drain, cancel, report.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::stats::CloseReason;
use super::{Checkout, Phase, Pool};

/// How a pool was closed.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CloseReport {
    /// Scopes that ended by themselves within the grace.
    pub drained: usize,
    /// Scopes that were cancelled when the grace had passed; their transactions were rolled back.
    pub cancelled: Vec<Checkout>,
    /// Scopes that could not even be cancelled: they hold a connection but nobody polls them. Their connections close
    /// when they are dropped.
    pub leaked: Vec<Checkout>,
}

impl Pool {
    /// Refuses new scopes, waits `grace` for those that run, cancels the rest and closes every connection.
    ///
    /// # Cancel safety
    /// Dropped half-way, the pool stays closed to new scopes; call it again to go on.
    pub(crate) async fn close(self: &Arc<Self>, grace: Duration) -> CloseReport {
        let before = self.registry.len();
        self.admission.close();
        self.closing.send_replace(true);
        self.close_idle().await;
        let mut report = CloseReport::default();
        if !self.all_returned_by(Instant::now() + grace).await {
            for holder in self.registry.holders() {
                let out = holder.checkout();
                // A COMMIT that was sent is not called back.
                if !matches!(out.phase, Phase::Committing | Phase::Reclaiming) {
                    report.cancelled.push(out);
                }
                holder.tell_to_stop();
            }
            // The time that a clean-up may take, and a little for the scope to be polled.
            let patience = self.config.cleanup_timeout + Duration::from_millis(100);
            if !self.all_returned_by(Instant::now() + patience).await {
                report.leaked = self.registry.checkouts();
                let leaked = |one: &Checkout| report.leaked.iter().any(|other| other.backend_pid == one.backend_pid);
                report.cancelled.retain(|one| !leaked(one));
            }
        }
        report.drained = before.saturating_sub(report.cancelled.len() + report.leaked.len());
        self.close_idle().await;
        let until = Instant::now() + self.config.cleanup_timeout;
        self.all_sessions_over(until, report.leaked.len()).await;
        let _ = timeout_at(until, self.closing.closed()).await;
        report
    }

    async fn all_returned_by(&self, until: Instant) -> bool {
        loop {
            let returned = self.returned.notified();
            if self.registry.len() == 0 {
                return true;
            }
            if timeout_at(until, returned).await.is_err() {
                return self.registry.len() == 0;
            }
        }
    }

    /// Closes what is idle; nothing is lent any more, so no permit is needed.
    async fn close_idle(&self) {
        let mut endings = Vec::new();
        while let Some(held) = self.take_idle() {
            endings.push(Arc::clone(&held.ending));
            self.forget(held, CloseReason::Shutdown);
        }
        let until = Instant::now() + self.config.cleanup_timeout;
        for ending in endings {
            let _ = timeout_at(until, ending.over()).await;
        }
    }

    /// Connections that are being opened or closed keep their permits until no session is left of them; idle ones have
    /// none, and another task that closes may have taken them.
    async fn all_sessions_over(&self, until: Instant, but: usize) {
        let left = || self.admission.out().max(super::session::count(&self.open));
        while left() > but && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.close_idle().await;
        }
    }
}
