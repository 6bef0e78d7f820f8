//! The pool: bb8 stores connections and opens them through [`Manager`]; who gets one, whether it is alive, when it is
//! retired, and the truth about all of it are ours.
//!
//! A checkout takes a permit ([`admission`], first come, first served), then the connection used last (a hot server
//! process and hot caches), or opens one. There is no ping: a closed socket has been seen by the driver's task; what
//! cannot be seen is found out by the first flight, which is sent again on another connection.
//!
//! **Invariant**: a connection is either idle in bb8, or in a [`Lease`], or being closed under a permit. Its permit is
//! released after the server has closed the session, so server sessions never exceed `max_size`. Why that holds: one
//! is opened only by a permit holder that found none idle; at that moment every session has a permit holder of its own.
//!
//! **Never**: `bb8::Pool::get` outside of this file; an `.await` between taking a connection and making its lease.

mod admission;
mod budget;
mod closing;
mod dedicated;
mod keeper;
mod lease;
mod manager;
mod nested;
mod opening;
mod reclaim;
mod refusal;
mod registry;
mod replace;
mod session;
mod silence;
mod stats;
mod store;

use std::future::Future;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, timeout_at};

use admission::{Admission, Permit, Refused};
use budget::RetryBudget;
pub use closing::CloseReport;
pub(crate) use dedicated::Dedicated;
pub(crate) use lease::{Lease, Why};
use manager::Manager;
pub(crate) use nested::inside;
use opening::{Opening, Whose};
pub(crate) use reclaim::Undone;
use registry::Registry;
pub use registry::{Checkout, Phase};
pub(crate) use registry::{Holder, ScopeName};
pub(crate) use session::{Identity, Session};
pub(crate) use stats::{CloseReason, Counters, add};
pub use stats::{Closed, Distribution, PoolStats};

use crate::config::Config;
use crate::connect::{ConnectError, Connector};
use crate::error::{Error, Result};
use crate::statement::Doorkeeper;

const SHUTTING_DOWN: &str = "the runtime is shutting down";

/// Longer than any process lives, and within what the clock can count.
const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// `span` after `from`, however long a span the caller has in mind.
pub(crate) fn later(from: Instant, span: Duration) -> Instant {
    from + span.min(FOR_EVER)
}

/// A connection as bb8 lends it.
pub(crate) type Held = bb8::PooledConnection<'static, Manager>;

/// Everything behind a [`Database`](crate::Database) handle.
pub(crate) struct Pool {
    pub(crate) config: Config,
    bb8: bb8::Pool<Manager>,
    // Held while an idle connection is looked for and taken, so that bb8 never opens one behind our back.
    taking: Mutex<()>,
    admission: Admission,
    opening: Opening,
    pub(crate) registry: Registry,
    pub(crate) counters: Arc<Counters>,
    pub(crate) doorkeeper: Doorkeeper,
    pub(crate) retries: RetryBudget,
    /// Sessions of an earlier epoch are not lent any more.
    epoch: Arc<AtomicU64>,
    /// Sessions of an epoch before this one may be on a silent path, as one of them was: nobody waits for their goodbye.
    silent_before: AtomicU64,
    /// Server sessions whose socket is open.
    open: Arc<AtomicUsize>,
    /// Permits that are only held until a session is over.
    leaving: Arc<AtomicUsize>,
    /// A lease came back.
    returned: Notify,
    /// For sessions beside the pool. Each holds a receiver until it is gone.
    closing: watch::Sender<bool>,
    pub(crate) connector: Connector,
    runtime: OnceLock<Handle>,
    /// What the handle wants to run beside the keeper; started with it.
    companion: Mutex<Option<Companion>>,
    /// They hold the pool weakly; when it goes they need not wait for their next tick.
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.tasks.get_mut().iter().for_each(AbortHandle::abort);
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("config", &self.config).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// A background task of the handle's. It gets the pool weakly and ends by itself.
pub(crate) type Companion = Box<dyn FnOnce(Weak<Pool>) -> BoxFuture<'static, ()> + Send>;

/// How long a checkout may take, and what says so.
#[derive(Clone, Copy, Debug)]
struct Limit {
    until: Instant,
    set_by: &'static str,
}

impl Pool {
    /// A pool that has not opened anything yet.
    pub(crate) fn new(config: Config, companion: Companion) -> Result<Arc<Self>> {
        config.validate()?;
        let connector = Connector::new(&config)?;
        let (counters, epoch, open) = (Arc::default(), Arc::default(), Arc::default());
        let manager = Manager {
            config: config.clone(),
            connector: connector.clone(),
            counters: Arc::clone(&counters),
            epoch: Arc::clone(&epoch),
            open: Arc::clone(&open),
        };
        let bb8 = bb8::Pool::builder()
            // Admission bounds the sessions. bb8 also counts dead ones that a lease still refers to.
            .max_size(config.max_size.saturating_mul(4))
            .min_idle(None)
            .test_on_check_out(false)
            .max_lifetime(None)
            .idle_timeout(None)
            .retry_connection(false)
            .queue_strategy(bb8::QueueStrategy::Lifo)
            .build_unchecked(manager);
        let retries = RetryBudget::new(config.retry.budget);
        let shed = config.queue_target.map(|target| (target, config.queue_interval));
        Ok(Arc::new(Self {
            admission: Admission::new(config.max_size as usize, config.max_waiting, shed),
            config,
            bb8,
            taking: Mutex::new(()),
            opening: Opening::default(),
            registry: Registry::default(),
            counters,
            doorkeeper: Doorkeeper::new(),
            retries,
            epoch,
            silent_before: AtomicU64::new(0),
            open,
            leaving: Arc::default(),
            returned: Notify::new(),
            closing: watch::Sender::new(false),
            connector,
            runtime: OnceLock::new(),
            companion: Mutex::new(Some(companion)),
            tasks: Mutex::default(),
        }))
    }

    /// Notes the runtime that clean-ups run on, and starts the keeper, once.
    pub(crate) fn start(self: &Arc<Self>) {
        self.runtime.get_or_init(|| {
            let runtime = Handle::current();
            let keeper = runtime.spawn(keeper::keep(Arc::downgrade(self), self.config.clone()));
            let companion = self.companion.lock().take();
            let companion = companion.map(|companion| runtime.spawn(companion(Arc::downgrade(self))));
            self.tasks.lock().extend(companion.iter().chain([&keeper]).map(JoinHandle::abort_handle));
            runtime
        });
    }

    /// Opens the first connection, so that what is wrong is known now.
    ///
    /// # Errors
    /// [`Error::Connect`], whatever the reason: there is no waiting for a server that is not there.
    pub(crate) async fn connect_first(self: &Arc<Self>) -> Result<()> {
        let Ok(Some(permit)) = self.admission.try_admit() else { return Ok(()) };
        // A deadline that has passed allows one attempt, and `connect_timeout` bounds that.
        let opened = self.open(permit, Instant::now(), Whose::Nobodys).await;
        drop(opened.map_err(|error| Error::Connect(Box::new(error)))?);
        // Only now: a handle that could not connect has nothing to keep.
        self.start();
        Ok(())
    }

    /// Lends a connection, within `checkout_timeout` and by `deadline`.
    ///
    /// # Cancel safety
    /// Dropped while waiting, it leaves no trace. A connection being opened for it goes to the idle ones.
    pub(crate) async fn checkout(self: &Arc<Self>, scope: ScopeName, deadline: Option<Instant>) -> Result<Lease> {
        self.start();
        // What is rare is boxed: a future is as large as its largest path, and is moved whole.
        let permit = match self.admission.try_admit() {
            Ok(Some(permit)) => permit,
            Ok(None) => return Box::pin(self.wait(scope, self.limit(deadline))).await,
            Err(refused) => return Err(self.refusal(&refused, scope, self.limit(deadline), Instant::now())),
        };
        match self.take_idle() {
            Some(held) if self.is_current(&held) => {
                self.waited(scope, Duration::ZERO);
                // No await since the connection was taken.
                self.lend(permit, held, scope)
            }
            unfit => Box::pin(self.lease(permit, unfit, scope, self.limit(deadline), Instant::now())).await,
        }
    }

    fn limit(&self, deadline: Option<Instant>) -> Limit {
        let patience = Instant::now() + self.config.checkout_timeout;
        match deadline {
            Some(until) if until < patience => Limit { until, set_by: "the scope's deadline" },
            _ => Limit { until: patience, set_by: "`checkout_timeout`" },
        }
    }

    async fn wait(self: &Arc<Self>, scope: ScopeName, limit: Limit) -> Result<Lease> {
        let began = Instant::now();
        let permit = self.in_line(scope, limit, began).await?;
        self.lease(permit, None, scope, limit, began).await
    }

    /// Waits for a permit; none was to be had at once.
    async fn in_line(self: &Arc<Self>, scope: ScopeName, limit: Limit, began: Instant) -> Result<Permit> {
        nested::check(self, scope)?;
        let coming = self.config.max_waiting.map_or(0, |_| self.coming());
        let admitted = self.admission.admit(limit.until, coming).await;
        admitted.map_err(|refused| self.refusal(&refused, scope, limit, began))
    }

    /// Places that become free without anybody's help: neither lent to a scope nor promised to one that is waiting for its
    /// login. On them a connection is being opened, looked after or closed.
    fn coming(&self) -> usize {
        let taken = self.registry.scopes() + self.admission.logging_in();
        (self.config.max_size as usize).saturating_sub(taken)
    }

    /// Places that are lent, or on which a connection is being opened: all but those whose session is ending.
    fn in_use(&self) -> usize {
        self.admission.out().saturating_sub(self.leaving.load(SeqCst))
    }

    /// Whether who gets no connection waits for the scopes that have them, and not for the server.
    pub(crate) fn is_saturated(&self) -> bool {
        let all_out = self.admission.out() >= self.config.max_size as usize;
        all_out && self.registry.len() * 2 > self.in_use() && self.opening.failures().is_empty()
    }

    async fn lease(
        self: &Arc<Self>,
        permit: Permit,
        unfit: Option<Held>,
        scope: ScopeName,
        limit: Limit,
        began: Instant,
    ) -> Result<Lease> {
        // An attempt that is still under way then goes on without us, and keeps its place until it ends.
        let (held, permit) =
            match timeout_at(limit.until, self.obtain(permit, unfit, limit.until, Whose::Nobodys)).await {
                Ok(Ok(obtained)) => obtained,
                _ if self.admission.is_closed() => return Err(self.refusal(&Refused::Closed, scope, limit, began)),
                Ok(Err(error)) if error.is_fatal() => return Err(Error::Connect(Box::new(error))),
                Ok(Err(_)) | Err(_) => return Err(self.refusal(&Refused::TimedOut, scope, limit, began)),
            };
        self.waited(scope, began.elapsed());
        // No await since the connection was taken.
        self.lend(permit, held, scope)
    }

    fn waited(&self, scope: ScopeName, wait: Duration) {
        if !scope.ours {
            self.counters.wait.record(wait);
        }
    }

    /// The pool may have been closed since the permit was given: then `close` found no entry to wait for.
    fn lend(self: &Arc<Self>, permit: Permit, held: Held, scope: ScopeName) -> Result<Lease> {
        let lease = Lease::new(Arc::clone(self), permit, held, scope);
        if self.admission.is_closed() {
            lease.check_in();
            return Err(Error::Closed { scope: scope.to_string() });
        }
        Ok(lease)
    }

    /// Changes when the pool is closed or dropped; `close` waits until nobody holds one of these any more.
    pub(crate) fn until_closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.admission.is_closed()
    }

    /// An idle connection that may be lent, or a new one; `unfit` was found not to be.
    async fn obtain(
        self: &Arc<Self>,
        mut permit: Permit,
        mut unfit: Option<Held>,
        until: Instant,
        whose: Whose,
    ) -> Result<(Held, Permit), ConnectError> {
        loop {
            if let Some(held) = unfit.take() {
                let reason = if held.is_dead() { CloseReason::Broken } else { CloseReason::Outdated };
                let freed = self.close_session(held, permit, reason).await;
                permit = freed.map_err(|_| ConnectError::stopped(&SHUTTING_DOWN))?;
            }
            match self.take_idle() {
                Some(held) if self.is_current(&held) => return Ok((held, permit)),
                Some(held) => unfit = Some(held),
                None => break,
            }
        }
        let _waiting = self.admission.wait_for_login();
        self.open(permit, until, whose).await
    }

    /// What the last failed attempt to connect said, unless the server was reached since.
    pub(crate) fn last_connect_failure(&self) -> Option<String> {
        self.opening.failures().pop()
    }

    fn is_current(&self, session: &Session) -> bool {
        !session.is_dead() && session.epoch == self.epoch.load(SeqCst)
    }

    /// A session learned that the server went away: what was opened before is not worth trying.
    pub(crate) fn outdate(&self, session: &Session) {
        if session.ending.was_silent() {
            self.silent_before.fetch_max(session.epoch + 1, SeqCst);
        }
        // Only the first of them; its siblings come to the same conclusion.
        let _ = self.epoch.compare_exchange(session.epoch, session.epoch + 1, SeqCst, SeqCst);
    }

    /// Closes connections as they come back and the idle ones, as after a rotation of credentials.
    pub(crate) fn outdate_all(&self) {
        self.epoch.fetch_add(1, SeqCst);
    }

    fn left(&self, key: usize, holder: &Holder) {
        self.registry.leave(key);
        if holder.leak_told.load(SeqCst) {
            tracing::warn!(scope = %holder.scope, held_for = ?holder.since.elapsed(), "leaked connection came back");
        }
        if self.admission.is_closed() {
            self.returned.notify_waiters();
        }
    }

    /// Runs `task` on this runtime, or on the one that the pool was started on when called from outside of any.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(task);
        } else if let Some(runtime) = self.runtime.get() {
            runtime.spawn(task);
        }
    }

    pub(crate) fn stats(&self) -> PoolStats {
        let mut stats = self.counters.totals();
        stats.size = session::count(&self.open);
        stats.max_size = self.config.max_size as usize;
        stats.checked_out = self.registry.len();
        stats.idle = self.idle();
        stats.waiting = self.admission.waiting();
        stats.reclaiming = self.registry.reclaiming();
        stats
    }
}
