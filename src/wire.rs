//! The server's own word: what a session is doing, read off the protocol stream as it passes by.
//!
//! tokio-postgres throws away the two things that a scope must know to tell the truth: the transaction status that
//! every `ReadyForQuery` carries, and the tag of every `CommandComplete`. [`Tap`] is a pass-through around the socket
//! (above TLS, where there is TLS) that reads both, counts requests without an answer, keeps SQLSTATEs that diesel
//! hides, and writes it all into a [`Wire`] that the session shares.
//!
//! **Promise**: when a caller has seen a reply, the [`Wire`] has seen it too: bytes pass the tap before the driver
//! hands them on. **Limit**: a request still queued inside the client has not passed the tap yet.
//!
//! Message formats: PostgreSQL manual, "Frontend/Backend Protocol", "Message Formats".

mod frames;
mod report;
mod tap;

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

pub(crate) use report::{Report, Reports};
pub(crate) use tap::Tap;

/// What the last `ReadyForQuery` said of the session's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// `I`: outside a transaction.
    Idle,
    /// `T`: inside a transaction.
    Open,
    /// `E`: inside a transaction that can only be rolled back.
    Failed,
}

/// Command tags that a scope must know of, counted since the last [`Wire::start_scope`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tags {
    pub(crate) begins: u32,
    pub(crate) commits: u32,
    /// `ROLLBACK` that left the session outside a transaction. `ROLLBACK TO SAVEPOINT` has the same tag and is not counted.
    pub(crate) rollbacks: u32,
    /// Every `ROLLBACK` tag, to a savepoint or not.
    pub(crate) all_rollbacks: u32,
    pub(crate) releases: u32,
    pub(crate) sets: u32,
    pub(crate) seen: Marks,
}

/// Commands that change a session beyond its transaction, as a set of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks(u32);

impl Marks {
    pub(crate) const LISTEN: Self = Self(1);
    pub(crate) const PREPARE: Self = Self(2);
    pub(crate) const CURSOR: Self = Self(4);
    /// `DISCARD ALL` or `DEALLOCATE`: statements that diesel believes prepared are gone.
    pub(crate) const FORGOTTEN: Self = Self(16);
    pub(crate) const LOAD: Self = Self(32);

    pub(crate) fn has(self, mark: Self) -> bool {
        self.0 & mark.0 != 0
    }
}

/// What passed by on one session's socket. Written by its [`Tap`], read by whoever holds the session.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    status: AtomicU8,
    answers: AtomicBool,
    unanswered: AtomicU32,
    quiet: AtomicWaker,
    begins: AtomicU32,
    commits: AtomicU32,
    rollbacks: AtomicU32,
    all_rollbacks: AtomicU32,
    releases: AtomicU32,
    sets: AtomicU32,
    seen: AtomicU32,
    xid: AtomicU64,
    xid_answers: AtomicU32,
    backend_pid: AtomicI32,
    statements: AtomicI32,
    plain_password: AtomicBool,
    left_standby: AtomicBool,
    /// Reads the texts that are sent, while a body has the bare connection.
    reader: OnceLock<fn(&str) -> u8>,
    reading: AtomicBool,
    read: AtomicU8,
    reports: Mutex<Reports>,
}

/// The name of the column by which the tap knows that a row holds a transaction id.
pub(crate) const XID_COLUMN: &str = "t2m_xid";

impl Wire {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { status: AtomicU8::new(b'I'), ..Self::default() })
    }

    /// Forgets what the last scope did: counters start at zero, the last errors are dropped.
    pub(crate) fn start_scope(&self) {
        for counter in [&self.begins, &self.commits, &self.rollbacks, &self.all_rollbacks, &self.releases, &self.sets] {
            counter.store(0, Relaxed);
        }
        self.answers.store(false, Relaxed);
        self.seen.store(0, Relaxed);
        self.xid.store(0, Relaxed);
        self.xid_answers.store(0, Relaxed);
        self.reading.store(false, Relaxed);
        self.read.store(0, Relaxed);
        self.reports.lock().clear();
    }

    /// Something that was sent in this scope was answered. What else the server says may be late, as that a statement is closed.
    pub(crate) fn has_answered(&self) -> bool {
        self.answers.load(Relaxed)
    }

    pub(crate) fn status(&self) -> Status {
        match self.status.load(SeqCst) {
            b'I' => Status::Idle,
            b'T' => Status::Open,
            _ => Status::Failed,
        }
    }

    /// Nothing that was sent is without an answer. Closing a prepared statement does not count: no reply to it matters.
    pub(crate) fn is_quiet(&self) -> bool {
        self.unanswered.load(SeqCst) == 0
    }

    /// Waits until [`is_quiet`](Self::is_quiet). One waiter at a time: whoever holds the session.
    ///
    /// # Cancel safety
    /// Holds nothing; can be dropped and called again. Does not end by itself when the connection is lost.
    pub(crate) async fn quiet(&self) {
        poll_fn(|cx| {
            if self.is_quiet() {
                return Poll::Ready(());
            }
            self.quiet.register(cx.waker());
            if self.is_quiet() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    pub(crate) fn tags(&self) -> Tags {
        Tags {
            begins: self.begins.load(SeqCst),
            commits: self.commits.load(SeqCst),
            rollbacks: self.rollbacks.load(SeqCst),
            all_rollbacks: self.all_rollbacks.load(SeqCst),
            releases: self.releases.load(SeqCst),
            sets: self.sets.load(SeqCst),
            seen: Marks(self.seen.load(SeqCst)),
        }
    }

    /// From here on, until the next scope, `reader` is shown every text that is sent.
    pub(crate) fn read_texts(&self, reader: fn(&str) -> u8) {
        self.reader.get_or_init(|| reader);
        self.reading.store(true, SeqCst);
    }

    /// All bits that the reader of texts has answered.
    pub(crate) fn read(&self) -> u8 {
        self.read.load(SeqCst)
    }

    fn passed_text(&self, text: &[u8]) {
        if !text.is_empty()
            && let Some(reader) = self.reader.get()
        {
            self.read.fetch_or(reader(&String::from_utf8_lossy(text)), SeqCst);
        }
    }

    /// The BEGIN that a scope sent was answered, and not with an error.
    pub(crate) fn has_begun(&self) -> bool {
        self.begins.load(SeqCst) > 0
    }

    /// The transaction id that a row with the one column [`XID_COLUMN`] told in this scope.
    pub(crate) fn xid(&self) -> Option<u64> {
        Some(self.xid.load(SeqCst)).filter(|xid| *xid != 0)
    }

    /// How many such rows there were, those that told none included.
    pub(crate) fn xid_answers(&self) -> u32 {
        self.xid_answers.load(SeqCst)
    }

    /// The server process behind this session, as `pg_stat_activity.pid`. Zero before the login has ended.
    pub(crate) fn backend_pid(&self) -> i32 {
        self.backend_pid.load(Relaxed)
    }

    /// Statements prepared on the server: parsed and not closed. One whose preparation was dropped is never closed.
    pub(crate) fn statements(&self) -> i32 {
        self.statements.load(Relaxed)
    }

    /// The server asked for the password itself (clear text or MD5) instead of a proof of knowing it.
    pub(crate) fn asked_for_password(&self) -> bool {
        self.plain_password.load(Relaxed)
    }

    /// The server committed, and shut down without waiting for its synchronous standby any longer.
    pub(crate) fn left_standby(&self) -> bool {
        self.left_standby.load(SeqCst)
    }

    /// The error with which the server said that it ends this connection.
    pub(crate) fn fatal(&self) -> Option<Report> {
        self.reports.lock().fatal().cloned()
    }

    /// The first error of this scope, which is BEGIN's if that failed.
    pub(crate) fn first_error(&self) -> Option<Report> {
        self.reports.lock().first().cloned()
    }

    /// The newest error of this scope whose SQLSTATE fits.
    pub(crate) fn latest_error(&self, fits: impl Fn([u8; 5]) -> bool) -> Option<Report> {
        self.reports.lock().latest(fits).cloned()
    }

    /// The newest error with this message.
    pub(crate) fn error_with(&self, message: &str) -> Option<Report> {
        self.reports.lock().with_message(message).cloned()
    }

    fn sent(&self) {
        self.unanswered.fetch_add(1, SeqCst);
    }

    fn answered(&self) {
        self.answers.store(true, Relaxed);
        if self.unanswered.fetch_sub(1, SeqCst) == 1 {
            self.quiet.wake();
        }
    }

    fn ready(&self, status: u8) {
        self.status.store(status, SeqCst);
    }

    fn completed(&self, tag: &[u8]) {
        match tag {
            [b'S', b'E', b'L', ..] | [b'I' | b'U', ..] => {}
            [b'B', b'E', b'G', ..] | [b'S', b'T', b'A', ..] => bump(&self.begins),
            [b'C', b'O', b'M', b'M', b'I', ..] => bump(&self.commits),
            [b'R', b'O', b'L', b'L', ..] => bump(&self.all_rollbacks),
            [b'R', b'E', b'L', ..] => bump(&self.releases),
            b"SET" => bump(&self.sets),
            b"LISTEN" => self.mark(Marks::LISTEN),
            b"PREPARE" => self.mark(Marks::PREPARE),
            // PREPARE TRANSACTION ends the transaction as surely as COMMIT does.
            b"PREPARE TRANSACTION" => bump(&self.commits),
            b"DECLARE CURSOR" => self.mark(Marks::CURSOR),
            b"DISCARD ALL" | [b'D', b'E', b'A', b'L', ..] => self.mark(Marks::FORGOTTEN),
            b"LOAD" => self.mark(Marks::LOAD),
            _ => {}
        }
    }

    fn mark(&self, mark: Marks) {
        self.seen.fetch_or(mark.0, SeqCst);
    }
}

fn bump(counter: &AtomicU32) {
    counter.fetch_add(1, SeqCst);
}
