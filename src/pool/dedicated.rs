//! Connections for work that no scope fits, as migrations: on one of the pool's places, and in its registry.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use diesel_async::AsyncPgConnection;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::admission::Permit;
use super::registry::{Holder, ScopeName};
use super::session::{CloseOnDrop, Ending, Session};
use super::stats::CloseReason;
use super::{Pool, nested};
use crate::connect::ConnectError;
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
    /// Dropped while waiting, it leaves no trace. A connection being opened for it is closed again, and has its place until
    /// then.
    pub(crate) async fn dedicated(self: &Arc<Self>, scope: ScopeName) -> Result<Dedicated> {
        self.start();
        let (limit, began) = (self.limit(None), Instant::now());
        let mut permit = match self.admission.try_admit() {
            Ok(Some(permit)) => permit,
            Ok(None) => self.in_line(scope, limit, began).await?,
            Err(refused) => return Err(self.refusal(&refused, scope, limit, began)),
        };
        if let Some(held) = self.take_idle() {
            let freed = self.close_session(held, permit, CloseReason::Outdated).await;
            permit = freed.map_err(|_| Error::Closed { scope: scope.to_string() })?;
        }
        let opened = self.open_dedicated(permit, scope).await;
        // As for a lease: `close` may have looked at the registry already.
        if self.admission.is_closed() {
            return Err(Error::Closed { scope: scope.to_string() });
        }
        opened.map_err(|error| Error::Connect(Box::new(error)))
    }

    /// In a task of its own, which has the permit whatever becomes of the caller.
    async fn open_dedicated(self: &Arc<Self>, permit: Permit, scope: ScopeName) -> Result<Dedicated, ConnectError> {
        let (answer, result) = oneshot::channel();
        let (pool, outer) = (Arc::clone(self), nested::around());
        let task = tokio::spawn(async move {
            let opened = tokio::select! {
                opened = pool.bb8.dedicated_connection() => opened,
                () = pool.admission.closed() => Err(ConnectError::stopped(&"the pool was closed").into()),
            };
            let opened = match opened {
                Ok(session) => Ok(pool.dedicate(*session, permit, scope, outer)),
                Err(failed) => Err(pool.give_up(failed, permit)),
            };
            // Unsent, it is closed as if its work were done.
            drop(answer.send(opened));
        });
        match result.await {
            Ok(opened) => opened,
            Err(_) => Err(match task.await {
                Err(error) => ConnectError::stopped(&error),
                Ok(()) => ConnectError::stopped(&"nobody waited for it"),
            }),
        }
    }

    /// From here on its place comes back by itself.
    fn dedicate(
        self: &Arc<Self>,
        session: Session,
        permit: Permit,
        scope: ScopeName,
        outer: Option<Arc<Holder>>,
    ) -> Dedicated {
        let holder = Arc::new(Holder::new(scope, nested::id(self), outer, Arc::clone(&session.ending)));
        let ending = Arc::clone(&session.ending);
        let (conn, closer) = session.into_parts();
        let stop = stop_when_told(Arc::clone(&holder), Arc::clone(&ending), self.config.cleanup_timeout);
        let place = Place {
            pool: Arc::clone(self),
            key: self.registry.enter(Arc::clone(&holder)),
            holder,
            ending,
            permit: Some(permit),
            watch: tokio::spawn(stop).abort_handle(),
            _closer: closer,
        };
        Dedicated { conn, place }
    }
}

/// Whoever works on the connection may be on a blocking thread, so it is stopped from outside.
async fn stop_when_told(holder: Arc<Holder>, ending: Arc<Ending>, patience: Duration) {
    poll_fn(|cx| if holder.is_told_to_stop(cx.waker()) { Poll::Ready(()) } else { Poll::Pending }).await;
    holder.note_stopped();
    let _ = timeout(patience, ending.canceller.cancel()).await;
    ending.cut();
}

impl Drop for Place {
    fn drop(&mut self) {
        self.watch.abort();
        let closed = self.pool.admission.is_closed();
        self.pool.counters.count_closed(if closed { CloseReason::Shutdown } else { CloseReason::Finished });
        if let Some(permit) = self.permit.take() {
            drop(self.pool.when_over(Arc::clone(&self.ending), permit));
        }
        self.pool.left(self.key, &self.holder);
    }
}
