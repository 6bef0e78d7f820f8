//! Who holds what: every connection that is out, by the scope that has it.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::task::Waker;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use slab::Slab;

use super::session::Ending;
use crate::wire::Status;

/// The scope that a connection is lent to: what to call it in errors, logs and reports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScopeName {
    pub(crate) name: &'static str,
    pub(crate) place: &'static Location<'static>,
    /// The pool's own work, as a health check: it is shown where it is, and no total counts it.
    pub(crate) ours: bool,
}

impl ScopeName {
    pub(crate) fn new(name: &'static str, place: &'static Location<'static>) -> Self {
        Self { name, place, ours: false }
    }

    #[track_caller]
    pub(crate) fn ours(name: &'static str) -> Self {
        Self { ours: true, ..Self::new(name, Location::caller()) }
    }
}

impl fmt::Display for ScopeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" ({})", self.name, self.place)
    }
}

/// What a connection that is out is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Outside a transaction, between statements.
    Idle,
    /// Inside a transaction, between statements: its locks are held while the body does something else.
    IdleInTransaction,
    /// The server is working on a statement.
    Running,
    /// COMMIT was sent.
    Committing,
    /// The scope has ended; the connection is being rolled back, reset or closed.
    Reclaiming,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::IdleInTransaction => "idle in transaction",
            Self::Running => "running a statement",
            Self::Committing => "committing",
            Self::Reclaiming => "being reclaimed",
        })
    }
}

/// One connection that is out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Checkout {
    /// The name of the scope that has it.
    pub name: &'static str,
    /// Where the scope was opened.
    pub caller: &'static Location<'static>,
    /// How long ago it was lent.
    pub held_for: Duration,
    /// What it is doing.
    pub phase: Phase,
    /// How many statements the scope has begun.
    pub statements: u64,
    /// The server process, as `pg_stat_activity.pid`.
    pub backend_pid: i32,
}

impl fmt::Display for Checkout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, caller, held_for, phase, statements, backend_pid } = self;
        write!(f, "\"{name}\" ({caller}) for {held_for:.1?}, {phase}, {statements} statements, backend {backend_pid}")
    }
}

const BODY: u8 = 0;
const COMMITTING: u8 = 1;
const RECLAIMING: u8 = 2;

/// The entry of one lease. Shared by the lease, the registry, whoever wants the scope to stop, and the scopes inside.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) scope: ScopeName,
    /// Of which pool, and inside of which scope it was opened.
    pub(super) pool: usize,
    pub(super) outer: Option<Arc<Holder>>,
    pub(crate) since: Instant,
    ending: Mutex<Arc<Ending>>,
    stage: AtomicU8,
    /// The first flight while it is on the way, else 0: see `silence`.
    pub(super) flight: AtomicU64,
    /// The flight that was on the way when it was looked at last, and how often it was.
    pub(super) seen: AtomicU64,
    pub(super) looks: AtomicU32,
    /// Statements whose future was polled, and of those the ones that ended: different while one runs or was dropped.
    pub(crate) started: AtomicU64,
    pub(crate) ended: AtomicU64,
    told_to_stop: AtomicBool,
    stopped: AtomicBool,
    stop: AtomicWaker,
    pub(crate) leak_told: AtomicBool,
}

impl Holder {
    pub(crate) fn new(scope: ScopeName, pool: usize, outer: Option<Arc<Self>>, ending: Arc<Ending>) -> Self {
        Self {
            scope,
            pool,
            outer,
            since: Instant::now(),
            ending: Mutex::new(ending),
            stage: AtomicU8::new(BODY),
            flight: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            looks: AtomicU32::new(0),
            started: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            told_to_stop: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            stop: AtomicWaker::new(),
            leak_told: AtomicBool::new(false),
        }
    }

    /// The lease goes on with another connection.
    pub(crate) fn moved_to(&self, ending: Arc<Ending>) {
        *self.ending.lock() = ending;
    }

    /// The session in use.
    pub(super) fn ending(&self) -> Arc<Ending> {
        Arc::clone(&self.ending.lock())
    }

    pub(crate) fn committing(&self) {
        self.stage.store(COMMITTING, Relaxed);
    }

    /// COMMIT was sent.
    pub(crate) fn is_committing(&self) -> bool {
        self.stage.load(Relaxed) == COMMITTING
    }

    /// The transaction's id, where it is known.
    pub(crate) fn xid(&self) -> Option<u64> {
        self.ending.lock().wire.xid()
    }

    pub(crate) fn reclaiming(&self) {
        self.stage.store(RECLAIMING, Relaxed);
    }

    /// Its body has the connection.
    pub(super) fn is_in_body(&self) -> bool {
        self.stage.load(Relaxed) == BODY
    }

    pub(crate) fn is_reclaiming(&self) -> bool {
        self.stage.load(Relaxed) == RECLAIMING
    }

    /// Asks the scope to end: it drops its body when it is polled next.
    pub(crate) fn tell_to_stop(&self) {
        self.told_to_stop.store(true, SeqCst);
        self.stop.wake();
    }

    /// Whether the scope was asked to end; if not, `waker` is called when it is.
    pub(crate) fn is_told_to_stop(&self, waker: &Waker) -> bool {
        if !self.told_to_stop.load(SeqCst) {
            self.stop.register(waker);
        }
        self.told_to_stop.load(SeqCst)
    }

    /// The scope obeyed: it was cut off, and did not just end by itself.
    pub(crate) fn note_stopped(&self) {
        self.stopped.store(true, SeqCst);
    }

    pub(super) fn was_stopped(&self) -> bool {
        self.stopped.load(SeqCst)
    }

    pub(crate) fn checkout(&self) -> Checkout {
        let ending = self.ending();
        let wire = &ending.wire;
        let phase = match self.stage.load(Relaxed) {
            COMMITTING => Phase::Committing,
            RECLAIMING => Phase::Reclaiming,
            _ if !wire.is_quiet() => Phase::Running,
            _ if wire.status() == Status::Idle => Phase::Idle,
            _ => Phase::IdleInTransaction,
        };
        Checkout {
            name: self.scope.name,
            caller: self.scope.place,
            held_for: self.since.elapsed(),
            phase,
            statements: self.started.load(Relaxed),
            backend_pid: wire.backend_pid(),
        }
    }
}

/// Every lease that is out. An entry is made with the lease and goes when the connection is back.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    // Held for one insertion, removal or copy; never across an await.
    holders: Mutex<Slab<Arc<Holder>>>,
}

impl Registry {
    pub(crate) fn enter(&self, holder: Arc<Holder>) -> usize {
        self.holders.lock().insert(holder)
    }

    pub(crate) fn leave(&self, key: usize) {
        self.holders.lock().try_remove(key);
    }

    pub(crate) fn len(&self) -> usize {
        self.holders.lock().len()
    }

    /// How many scopes of the caller's hold one, their clean-ups included.
    pub(super) fn scopes(&self) -> usize {
        self.holders.lock().iter().filter(|(_, holder)| !holder.scope.ours).count()
    }

    pub(crate) fn reclaiming(&self) -> usize {
        self.holders.lock().iter().filter(|(_, holder)| holder.is_reclaiming()).count()
    }

    /// All that are out, longest first.
    pub(crate) fn holders(&self) -> Vec<Arc<Holder>> {
        let mut all: Vec<_> = self.holders.lock().iter().map(|(_, holder)| Arc::clone(holder)).collect();
        all.sort_by_key(|holder| holder.since);
        all
    }

    pub(crate) fn checkouts(&self) -> Vec<Checkout> {
        self.holders().iter().map(|holder| holder.checkout()).collect()
    }
}
