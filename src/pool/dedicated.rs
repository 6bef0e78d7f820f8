//! Connections for work that no scope fits, as migrations: on one of the pool's places, and in its registry.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use diesel_async::AsyncPgConnection;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::admission::Permit;
use super::registry::{Holder, ScopeName};
use super::session::{CloseOnDrop, Ending};
use super::stats::CloseReason;
use super::{Pool, nested};
use crate::connect::Canceller;
use crate::error::{Error, Result};

/// A connection that is not the pool's any more.
pub(crate) struct Dedicated {
    pub(crate) conn: AsyncPgConnection,
    pub(crate) place: Place,
}

/// What a [`Dedicated`] connection takes up, until its session is over. To be dropped after the connection.
pub(crate) struct Place {
    pool: Arc<Pool>,
    key: usize,
    holder: Arc<Holder>,
    ending: Arc<Ending>,
    permit: Option<Permit>,
    watch: AbortHandle,
    _closer: CloseOnDrop,
}

impl Pool {
    /// Opens a connection for work that no scope fits. It takes one of the pool's places; an idle connection makes room
    /// for it. When the pool wants it to stop, what runs on it is cancelled and the connection cut.
    ///
    /// # Cancel safety
    /// As [`checkout`](Self::checkout).
    pub(crate) async fn dedicated(self: &Arc<Self>, scope: ScopeName) -> Result<Dedicated> {
        self.start();
        let began = Instant::now();
        let limit = self.limit(None);
        let admitted = self.admission.admit(limit.until).await;
        let mut permit = admitted.map_err(|refused| self.refusal(&refused, scope, limit, began))?;
        if let Some(held) = self.take_idle() {
            let freed = self.close_session(held, permit, CloseReason::Outdated).await;
            permit = freed.map_err(|_| Error::Closed { scope: scope.to_string() })?;
        }
        let session = self.bb8.dedicated_connection().await.map_err(|error| Error::Connect(Box::new(error)))?;
        let holder = Arc::new(Holder::new(scope, nested::id(self), nested::around(), Arc::clone(&session.wire)));
        let ending = Arc::clone(&session.ending);
        let (conn, closer, canceller) = session.into_parts();
        let stop = stop_when_told(Arc::clone(&holder), Arc::clone(&ending), canceller, self.config.cleanup_timeout);
        let place = Place {
            pool: Arc::clone(self),
            key: self.registry.enter(Arc::clone(&holder)),
            holder,
            ending,
            permit: Some(permit),
            watch: tokio::spawn(stop).abort_handle(),
            _closer: closer,
        };
        // As for a lease: `close` may have looked at the registry already.
        if self.admission.is_closed() {
            return Err(Error::Closed { scope: scope.to_string() });
        }
        Ok(Dedicated { conn, place })
    }
}

/// Whoever works on the connection may be on a blocking thread, so it is stopped from outside.
async fn stop_when_told(holder: Arc<Holder>, ending: Arc<Ending>, canceller: Canceller, patience: Duration) {
    poll_fn(|cx| if holder.is_told_to_stop(cx.waker()) { Poll::Ready(()) } else { Poll::Pending }).await;
    let _ = timeout(patience, canceller.cancel()).await;
    ending.cut();
}

impl Drop for Place {
    fn drop(&mut self) {
        self.watch.abort();
        if let Some(permit) = self.permit.take() {
            drop(self.pool.when_over(Arc::clone(&self.ending), permit));
        }
        self.pool.left(self.key, &self.holder);
    }
}
