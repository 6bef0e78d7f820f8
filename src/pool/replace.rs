//! Sessions that end, and those that follow them: a place in `max_size` never has two.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::admission::Permit;
use super::lease::Lease;
use super::opening::Whose;
use super::session::Ending;
use super::stats::CloseReason;
use super::{Held, Pool, SHUTTING_DOWN};
use crate::connect::ConnectError;

impl Pool {
    /// A connection in place of one that was found dead, or that cannot write any more.
    ///
    /// The lease's permit goes along, so that what is being closed and opened keeps its place in `max_size` when the scope
    /// is dropped meanwhile. If there is no other connection the lease stays without one: its own is over.
    ///
    /// # Cancel safety
    /// As [`checkout`](Self::checkout).
    pub(crate) async fn replace_in(self: &Arc<Self>, lease: &Lease, until: Instant) -> Result<(), ConnectError> {
        let began = Instant::now();
        let Some(permit) = lease.take_permit() else { return Err(ConnectError::stopped(&"there was none before")) };
        let old = lease.session();
        if !old.is_dead() {
            old.ending.cut();
        }
        let over = self.when_over(Arc::clone(&old.ending), permit);
        let obtained = timeout_at(until, async {
            let permit = over.await.map_err(|_| ConnectError::stopped(&SHUTTING_DOWN))?;
            self.obtain(permit, None, until, Whose::Leases).await
        });
        let (held, permit) = obtained.await.unwrap_or_else(|_| Err(ConnectError::timed_out(began.elapsed())))?;
        lease.replace(held, permit);
        Ok(())
    }

    /// Closes a session and gives the permit away when the server has closed it too.
    pub(super) fn close_session(&self, held: Held, permit: Permit, reason: CloseReason) -> oneshot::Receiver<Permit> {
        let ending = Arc::clone(&held.ending);
        if held.epoch < self.silent_before.load(SeqCst) {
            ending.cut();
        }
        self.forget(held, reason);
        self.when_over(ending, permit)
    }

    /// Waits for the end of a session in a task of its own, which gives the permit away then.
    pub(super) fn when_over(&self, ending: Arc<Ending>, permit: Permit) -> oneshot::Receiver<Permit> {
        let (free, freed) = oneshot::channel();
        if ending.is_over() {
            let _ = free.send(permit);
            return freed;
        }
        let (patience, leaving) = (self.config.cleanup_timeout, Leaving::new(&self.leaving));
        self.spawn(async move {
            if tokio::time::timeout(patience, ending.over()).await.is_err() {
                ending.cut();
            }
            drop(leaving);
            let _ = free.send(permit);
        });
        freed
    }

    /// Drops a session for good. Its driver's task says goodbye to the server.
    pub(super) fn forget(&self, mut held: Held, reason: CloseReason) {
        held.close = Some(reason);
        self.counters.count_closed(reason);
        drop(held);
    }
}

/// Counts a place whose session is ending, until it is given away.
struct Leaving(Arc<AtomicUsize>);

impl Leaving {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}
