//! What bb8 calls: opening, and whether a connection that comes back may stay.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use futures_util::FutureExt;

use super::session::{Begun, Ending, Session};
use super::stats::{Counters, add};
use crate::config::Config;
use crate::connect::{ConnectError, Connector};

/// Opens sessions. Liveness, age and cleanliness are decided by the pool before a connection reaches bb8 again.
pub(crate) struct Manager {
    pub(super) config: Config,
    pub(super) connector: Connector,
    pub(super) counters: Arc<Counters>,
    pub(super) epoch: Arc<AtomicU64>,
    pub(super) open: Arc<AtomicUsize>,
}

/// Why no connection was opened, and what is left of the attempt.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(super) error: ConnectError,
    /// The login had gone through: this session is ending, and until then it takes its place in `max_size`.
    pub(super) left: Option<Arc<Ending>>,
}

impl From<ConnectError> for Failed {
    /// Of an attempt that left nothing behind.
    fn from(error: ConnectError) -> Self {
        Self { error, left: None }
    }
}

impl bb8::ManageConnection for Manager {
    /// Boxed: it is moved between bb8, the lease and the body, and is large.
    type Connection = Box<Session>;
    type Error = Failed;

    async fn connect(&self) -> Result<Box<Session>, Failed> {
        let (began, epoch) = (Instant::now(), self.epoch.load(SeqCst));
        let left = OnceLock::new();
        let session = async {
            let opened = self.connector.connect().await?;
            Session::establish(opened, &self.config, epoch, &self.open, &left).await.map(Box::new)
        };
        // A password provider is the caller's code: its panic is one failed attempt, and its words may be secret.
        let session = AssertUnwindSafe(session).catch_unwind();
        let session = match tokio::time::timeout(self.config.connect_timeout, session).await {
            Ok(Ok(session)) => session,
            Ok(Err(_)) => Err(ConnectError::stopped(&"it panicked; is it the password provider?")),
            Err(_) => Err(match left.get() {
                Some(Begun { endpoint, .. }) => ConnectError::timed_out_at(endpoint, began.elapsed()),
                None => ConnectError::timed_out(began.elapsed()),
            }),
        };
        match &session {
            Ok(_) => {
                add(&self.counters.opened);
                self.counters.connect.record(began.elapsed());
            }
            Err(_) => add(&self.counters.open_failures),
        }
        session.map_err(|error| Failed { error, left: left.into_inner().map(|left| left.ending) })
    }

    /// Never asked: there is no ping, see [`Pool`](super::Pool).
    async fn is_valid(&self, _: &mut Box<Session>) -> Result<(), Failed> {
        Ok(())
    }

    fn has_broken(&self, session: &mut Box<Session>) -> bool {
        session.close.is_some()
    }
}
