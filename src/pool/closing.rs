//! The end of a pool: refuse, drain, cancel, report.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::stats::CloseReason;
use super::{Checkout, Holder, Pool, later};

/// How a pool was closed.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CloseReport {
    /// Scopes that ended by themselves: within the grace, or with a COMMIT that was not called back any more.
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
        let mut scopes = self.scopes();
        self.admission.close();
        self.closing.send_replace(true);
        self.close_idle().await;
        let mut report = CloseReport::default();
        if !self.all_returned_by(later(Instant::now(), grace)).await {
            // What each is doing as it is told to stop is what the reader wants to know.
            let now = self.scopes();
            scopes.retain(|(holder, _)| !now.iter().any(|(other, _)| Arc::ptr_eq(holder, other)));
            scopes.extend(now);
            self.registry.holders().iter().for_each(|holder| holder.tell_to_stop());
            // The time that a clean-up may take, and a little for the scope to be polled.
            let patience = self.config.cleanup_timeout + Duration::from_millis(100);
            if !self.all_returned_by(Instant::now() + patience).await {
                let leaked = self.registry.holders();
                scopes.retain(|(holder, _)| !leaked.iter().any(|other| Arc::ptr_eq(holder, other)));
                report.leaked = leaked.iter().map(|holder| holder.checkout()).collect();
            }
        }
        // Only now: until it was polled again, a scope that was told to stop could still end by itself, and commit.
        for (holder, out) in scopes {
            if holder.was_stopped() {
                report.cancelled.push(out);
            } else {
                report.drained += 1;
            }
        }
        self.close_idle().await;
        let until = Instant::now() + self.config.cleanup_timeout;
        self.all_sessions_over(until, report.leaked.len()).await;
        let _ = timeout_at(until, self.closing.closed()).await;
        report
    }

    /// The caller's scopes that hold a connection. Our own work, as a health check, is in no report.
    fn scopes(&self) -> Vec<(Arc<Holder>, Checkout)> {
        let holders = self.registry.holders().into_iter().filter(|holder| !holder.scope.ours);
        holders.map(|holder| (Arc::clone(&holder), holder.checkout())).collect()
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
