//! One server session: the connection, the driver's task that moves its bytes, and what is known of it.

use std::future::poll_fn;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use diesel::connection::{
    CacheSize, Instrumentation, TransactionDepthChange, TransactionManagerStatus, get_default_instrumentation,
};
use diesel_async::{
    AnsiTransactionManager, AsyncConnection, AsyncPgConnection, SimpleAsyncConnection, TransactionManager,
};
use futures_util::{StreamExt, TryStreamExt, future, stream};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_postgres::{AsyncMessage, SimpleQueryMessage};

use super::registry::ScopeName;
use super::stats::CloseReason;
use crate::config::Config;
use crate::connect::{Canceller, ConnectError, Driver, Opened};
use crate::statement::{Effects, Kept};
use crate::wire::{Marks, Wire};

/// Undoes everything that a body may have done to a session beyond its transaction, in one message.
///
/// Not `DISCARD ALL`: that forgets statements which diesel believes prepared. `RESET ALL` goes back to what was given at
/// connect, where our own settings are. All of it is allowed in a read-only session and to any user.
pub(crate) const RESET: &str = "CLOSE ALL; UNLISTEN *; RESET SESSION AUTHORIZATION; RESET ALL; \
    SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; \
    DO $$ DECLARE n text; BEGIN \
    FOR n IN SELECT name FROM pg_prepared_statements WHERE from_sql LOOP EXECUTE format('DEALLOCATE %I', n); END LOOP; \
    END $$";

/// Tells one life of one server from another. A crash changes `stats_reset`, a restart the start time as well, a
/// promotion the timeline; any user may read them.
const IDENTITY: &str = "SELECT system_identifier, timeline_id, pg_postmaster_start_time(), \
    (SELECT stats_reset FROM pg_stat_bgwriter) FROM pg_control_system(), pg_control_checkpoint()";

/// A connection with so many more prepared statements than it keeps is replaced: those whose preparation was cut off
/// stay on the server.
const MOST_LOST_STATEMENTS: usize = 200;

/// See [`Session::was_heard_of_lately`].
const LATELY: Duration = Duration::from_secs(1);

/// A server as it was at some moment: transaction ids mean the same thing in two sessions only when these agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) system: String,
    pub(crate) timeline: String,
    /// Start of the server and of its statistics: both begin anew when shared memory does.
    pub(crate) life: (String, String),
}

/// A session from outside: how to reach its server, whether and how it has ended. Outlives it.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(super) wire: Arc<Wire>,
    pub(super) canceller: Canceller,
    over: AtomicBool,
    ended: Notify,
    close: Notify,
    at_once: AtomicBool,
    silent: AtomicBool,
    said: Mutex<Option<String>>,
}

impl Ending {
    fn new(wire: Arc<Wire>, canceller: Canceller) -> Self {
        let (over, at_once, silent) = Default::default();
        let (ended, close, said) = Default::default();
        Self { wire, canceller, over, ended, close, at_once, silent, said }
    }

    /// The socket is closed; the server has no such session any more, as far as can be known.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(SeqCst)
    }

    /// Waits for that.
    pub(crate) async fn over(&self) {
        let mut ended = pin!(self.ended.notified());
        loop {
            ended.as_mut().enable();
            if self.is_over() {
                return;
            }
            ended.as_mut().await;
            ended.set(self.ended.notified());
        }
    }

    /// Closes the socket, whatever was sent or is still to come.
    pub(super) fn cut(&self) {
        self.at_once.store(true, SeqCst);
        self.close.notify_one();
    }

    /// Closes the socket because nothing comes back on it, for so long.
    pub(super) fn cut_for_silence(&self, lasted: Duration) {
        let said = format!(
            "no word from the server for {lasted:.1?}, over half of `checkout_timeout`; the connection was given up"
        );
        *self.said.lock() = Some(said);
        self.silent.store(true, SeqCst);
        self.cut();
    }

    /// It was closed for that.
    pub(crate) fn was_silent(&self) -> bool {
        self.silent.load(SeqCst)
    }

    /// What the driver said last.
    pub(crate) fn said(&self) -> Option<String> {
        self.said.lock().clone()
    }
}

/// A login that went through: there is a session, whatever becomes of the attempt.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) endpoint: String,
    pub(super) ending: Arc<Ending>,
}

/// A live session. What bb8 stores.
pub(crate) struct Session {
    pub(crate) conn: AsyncPgConnection,
    pub(crate) wire: Arc<Wire>,
    pub(crate) ending: Arc<Ending>,
    /// Held while a cancel request is on its way.
    cancelling: Arc<tokio::sync::Mutex<()>>,
    pub(crate) kept: Kept,
    pub(crate) identity: Option<Identity>,
    /// When it is to be replaced, with jitter so that those opened together do not all go together.
    pub(crate) retire_at: Option<Instant>,
    pub(crate) idle_since: Instant,
    /// When the server last answered, as far as the pool looked.
    pub(crate) heard_of: Instant,
    /// The value of [`Pool::epoch`](super::Pool) when it was opened.
    pub(crate) epoch: u64,
    /// The bare connection was lent: its transaction manager may have been used.
    lent: bool,
    instrumented: bool,
    pub(crate) close: Option<CloseReason>,
    closer: CloseOnDrop,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("backend_pid", &self.wire.backend_pid()).finish_non_exhaustive()
    }
}

impl Session {
    /// Makes a session of a connection that has just logged in: two round trips, diesel's own.
    ///
    /// # Cancel safety
    /// Dropped, the session is closed; its end is that of `begun`.
    pub(super) async fn establish(
        opened: Opened,
        config: &Config,
        epoch: u64,
        open: &Arc<AtomicUsize>,
        begun: &OnceLock<Begun>,
    ) -> Result<Self, ConnectError> {
        let Opened { client, driver, wire, canceller, endpoint } = opened;
        let ending = Arc::new(Ending::new(Arc::clone(&wire), canceller));
        // Before the first await: an attempt that is given up at one of them leaves a task that ends.
        let closer = CloseOnDrop(Arc::clone(&ending));
        open.fetch_add(1, SeqCst);
        let over = Over { ending: Arc::clone(&ending), open: Arc::clone(open) };
        tokio::spawn(drive(over, driver, config.cleanup_timeout));
        let _ = begun.set(Begun { endpoint: endpoint.clone(), ending: Arc::clone(&ending) });
        // Sent before the client is given away, read while diesel sets up: no round trip of its own.
        let rows = client.simple_query_raw(IDENTITY).await;
        let identity = async {
            let rows = rows.ok()?.try_collect::<Vec<_>>().await.ok()?;
            rows.iter().find_map(identity_of)
        };
        let (conn, identity) = future::join(AsyncPgConnection::try_from(client), identity).await;
        let mut conn = conn.map_err(|error| ConnectError::setup(&endpoint, &error))?;
        if config.statement_cache_size == 0 {
            // For what never passes `Kept`: a query whose types are looked up is left to diesel-async whole.
            conn.set_prepared_statement_cache_size(CacheSize::Disabled);
        }
        let now = Instant::now();
        // Up to a tenth earlier.
        let retire_at = config.max_lifetime.map(|limit| now + limit.mul_f64(1.0 - fastrand::f64() / 10.0));
        let kept = Kept::new(config.statement_cache_size);
        let (idle_since, heard_of) = (now, now);
        Ok(Self {
            conn,
            wire,
            ending,
            cancelling: Arc::default(),
            kept,
            identity,
            retire_at,
            idle_since,
            heard_of,
            epoch,
            lent: false,
            instrumented: false,
            close: None,
            closer,
        })
    }

    /// The connection by itself, and what closes it.
    pub(super) fn into_parts(self) -> (AsyncPgConnection, CloseOnDrop) {
        (self.conn, self.closer)
    }

    /// Sends `sql` as one message, whatever the statement cache or the transaction manager think.
    pub(crate) async fn batch(&self, sql: &str) -> diesel::QueryResult<()> {
        (&self.conn).batch_execute(sql).await
    }

    /// Has the server cancel what runs, for `scope`. When this returns the signal cannot hit a later statement.
    ///
    /// # Cancel safety
    /// Dropped, the request is seen to its end by a task of its own: [`cancelled`](Self::cancelled) waits for it.
    pub(crate) async fn cancel(&self, scope: ScopeName) {
        let turn = Arc::clone(&self.cancelling).lock_owned().await;
        let canceller = self.ending.canceller.clone();
        let request = tokio::spawn(async move {
            if let Err(error) = canceller.cancel().await {
                tracing::debug!(%scope, %error, "cancel request failed");
            }
            drop(turn);
        });
        let _ = request.await;
    }

    /// Waits until no cancel request is on its way any more.
    pub(crate) async fn cancelled(&self) {
        drop(self.cancelling.lock().await);
    }

    /// A connection that was idle for longer may have died unseen.
    pub(crate) fn was_heard_of_lately(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard_of) < LATELY
    }

    /// Whether the server ended this session, or the network did.
    pub(crate) fn is_dead(&self) -> bool {
        self.ending.is_over() || self.wire.fatal().is_some()
    }

    /// Why a dead one is closed.
    pub(super) fn cause_of_death(&self) -> CloseReason {
        if self.ending.was_silent() { CloseReason::Unresponsive } else { CloseReason::Broken }
    }

    /// In the server's words where it said any, else in the driver's.
    pub(crate) fn last_words(&self) -> Option<String> {
        let fatal = self.wire.fatal().map(|report| format!("{} (SQLSTATE {})", report.message, report.sqlstate()));
        fatal.or_else(|| self.ending.said())
    }

    /// The bare connection, told that it is inside a transaction so that it nests with savepoints.
    ///
    /// Whoever has it can empty its cache of statements and change its instrumentation: neither is trusted afterwards.
    pub(crate) fn lend(&mut self, in_transaction: bool) -> diesel::QueryResult<&mut AsyncPgConnection> {
        (self.lent, self.instrumented) = (true, true);
        self.kept.distrust();
        self.wire.read_texts(Effects::bits_of);
        *self.conn.transaction_state() = AnsiTransactionManager::default();
        if in_transaction {
            let status = AnsiTransactionManager::transaction_manager_status_mut(&mut self.conn);
            if let TransactionManagerStatus::Valid(status) = status {
                status.change_transaction_depth(TransactionDepthChange::IncreaseDepth)?;
            }
        }
        Ok(&mut self.conn)
    }

    /// How many nested transactions of the bare connection were neither committed nor rolled back, because they were dropped.
    pub(crate) fn left_nested(&mut self) -> usize {
        if !self.lent {
            return 0;
        }
        let status = AnsiTransactionManager::transaction_manager_status_mut(&mut self.conn);
        let depth = status.transaction_depth().ok().flatten().map_or(0, NonZeroU32::get);
        usize::try_from(depth.saturating_sub(1)).unwrap_or(usize::MAX)
    }

    /// Instruments the connection until it is checked in.
    pub(crate) fn instrument(&mut self, instrumentation: impl Instrumentation) {
        self.instrumented = true;
        self.conn.set_instrumentation(instrumentation);
    }

    /// So much was cut off on it that it is better replaced; or statements that the client believes prepared are gone, those by
    /// which it looks types up included.
    pub(super) fn is_worn(&self) -> bool {
        let forgotten = self.wire.tags().seen.has(Marks::FORGOTTEN);
        forgotten
            || usize::try_from(self.wire.statements())
                .is_ok_and(|count| count > self.kept.capacity() + MOST_LOST_STATEMENTS)
    }

    /// Makes diesel's view of the connection what the server's is: no transaction, and no statement that is not there.
    pub(super) fn tidy(&mut self) {
        if std::mem::take(&mut self.lent) {
            *self.conn.transaction_state() = AnsiTransactionManager::default();
        }
        if std::mem::take(&mut self.instrumented) {
            self.conn.set_instrumentation(get_default_instrumentation());
        }
        if self.kept.wants_emptying() {
            self.conn.set_prepared_statement_cache_size(CacheSize::Disabled);
            if self.kept.capacity() > 0 {
                self.conn.set_prepared_statement_cache_size(CacheSize::Unbounded);
            }
        }
    }
}

/// Tells the driver's task that its session is not needed any more.
#[derive(Debug)]
pub(crate) struct CloseOnDrop(Arc<Ending>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        // From here on the driver's task has `cleanup_timeout` to say goodbye.
        self.0.close.notify_one();
    }
}

fn identity_of(message: &SimpleQueryMessage) -> Option<Identity> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    let text = |column| row.try_get(column).ok().flatten().map(str::to_owned);
    Some(Identity { system: text(0)?, timeline: text(1)?, life: (text(2)?, text(3)?) })
}

/// Says that a session is over when its driver's task ends, however it ends.
struct Over {
    ending: Arc<Ending>,
    open: Arc<AtomicUsize>,
}

impl Drop for Over {
    fn drop(&mut self) {
        self.open.fetch_sub(1, SeqCst);
        self.ending.over.store(true, SeqCst);
        self.ending.ended.notify_waiters();
    }
}

/// Moves the bytes of one session until it ends, and keeps what was said at the end.
///
/// `over` comes first and so is dropped last: when the session is said to be over, its socket is closed.
async fn drive(over: Over, mut driver: Driver, patience: Duration) {
    let ending = Arc::clone(&over.ending);
    let mut messages = pin!(stream::poll_fn(|cx| driver.poll_message(cx)));
    let mut close = pin!(async {
        ending.close.notified().await;
        if !ending.at_once.load(SeqCst) {
            tokio::time::sleep(patience).await;
        }
    });
    loop {
        let message = poll_fn(|cx| {
            if close.as_mut().poll(cx).is_ready() {
                return std::task::Poll::Ready(None);
            }
            messages.as_mut().poll_next_unpin(cx)
        })
        .await;
        match message {
            Some(Ok(AsyncMessage::Notice(notice))) => {
                tracing::debug!(severity = notice.severity(), code = notice.code().code(), "{}", notice.message());
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                *over.ending.said.lock() = Some(describe(&error));
                return;
            }
            None => return,
        }
    }
}

/// tokio-postgres keeps the server's words in the source of its error.
fn describe(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Sessions that exist: the count goes down when the driver's task has ended.
pub(super) fn count(open: &AtomicUsize) -> usize {
    open.load(Relaxed)
}
