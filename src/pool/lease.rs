//! A connection that is out, and the guard that brings it back, however its scope ends.

use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;

use super::admission::Permit;
use super::registry::{Holder, ScopeName};
use super::session::Session;
use super::stats::{CloseReason, add};
use super::{Held, Pool, nested};
use crate::config::SessionReset;
use crate::statement::Effects;
use crate::wire::{Marks, Status};

/// A first flight may be sent again this often: once for a connection that died unseen, once more for one that was
/// opened while the server was going down.
const SLOTS: usize = 3;

/// The connections of one lease, in order; all but the last are dead. Only ever appended to, so that statements in
/// flight can borrow from it while another one replaces a dead connection.
type Slots = [OnceLock<Held>; SLOTS];

/// Why a connection is being cleaned up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The scope ended and its transaction is to be rolled back.
    RollBack,
    /// The scope ended well, but not everything that it sent is answered, or it left the session changed.
    TidyUp,
    /// The scope's future was dropped, or its deadline passed.
    Cancelled,
}

/// The right to use one connection. Dropped in any state, the connection is checked in clean or closed.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) pool: Arc<Pool>,
    /// Away while a dead connection is being replaced: it is with what goes on when the scope is dropped.
    permit: Mutex<Option<Permit>>,
    slots: Slots,
    current: AtomicU8,
    pub(crate) holder: Arc<Holder>,
    /// Its entry in the registry; gone when the connection was given back.
    key: Option<usize>,
    effects: Mutex<Effects>,
    /// `SET` tags of our own messages, and of statements that end with the transaction.
    own_sets: AtomicU32,
    lent_raw: AtomicBool,
    being_reclaimed: bool,
}

impl Lease {
    /// From here on the connection comes back by itself.
    pub(super) fn new(pool: Arc<Pool>, permit: Permit, held: Held, scope: ScopeName) -> Self {
        held.wire.start_scope();
        let holder = Arc::new(Holder::new(scope, nested::id(&pool), nested::around(), Arc::clone(&held.ending)));
        let key = Some(pool.registry.enter(Arc::clone(&holder)));
        if !scope.ours {
            add(&pool.counters.checkouts);
        }
        Self {
            pool,
            permit: Mutex::new(Some(permit)),
            slots: [OnceLock::from(held), OnceLock::new(), OnceLock::new()],
            current: AtomicU8::new(0),
            holder,
            key,
            effects: Mutex::default(),
            own_sets: AtomicU32::new(0),
            lent_raw: AtomicBool::new(false),
            being_reclaimed: false,
        }
    }

    /// Which of the lease's connections is in use.
    pub(crate) fn slot(&self) -> usize {
        usize::from(self.current.load(SeqCst))
    }

    /// The connection in use.
    pub(crate) fn session(&self) -> &Session {
        self.session_in(self.slot())
    }

    pub(crate) fn session_in(&self, slot: usize) -> &Session {
        self.slots[slot].get().expect("a slot is filled before it becomes the current one")
    }

    pub(crate) fn session_mut(&mut self) -> &mut Session {
        let slot = self.slot();
        self.slots[slot].get_mut().expect("a slot is filled before it becomes the current one")
    }

    /// Whether there is room for one more connection.
    pub(crate) fn may_replace(&self) -> bool {
        self.slot() + 1 < SLOTS
    }

    /// For [`Pool::replace_in`](super::Pool::replace_in).
    pub(super) fn take_permit(&self) -> Option<Permit> {
        self.permit.lock().take()
    }

    /// Goes on with `held`; the connection in use is dead.
    pub(super) fn replace(&self, held: Held, permit: Permit) {
        *self.permit.lock() = Some(permit);
        held.wire.start_scope();
        self.holder.moved_to(Arc::clone(&held.ending));
        // Those were of the BEGIN that was lost.
        self.own_sets.store(0, Relaxed);
        let next = self.slot() + 1;
        if self.slots[next].set(held).is_ok() {
            self.current.store(u8::try_from(next).unwrap_or(0), SeqCst);
        }
    }

    /// Notes what a text that is about to be sent does to the session.
    pub(crate) fn note(&self, effects: Effects) {
        if effects != Effects::default() {
            *self.effects.lock() |= effects;
        }
    }

    /// Notes that `sets` tags `SET` are of no consequence: of our own next message, or of a text that was answered.
    pub(crate) fn expect_sets(&self, sets: u32) {
        if sets > 0 {
            self.own_sets.fetch_add(sets, Relaxed);
        }
    }

    /// Notes that the bare connection is lent to the body: texts are not seen from now on, so it is reset in any case.
    pub(crate) fn note_raw(&self) {
        self.lent_raw.store(true, Relaxed);
    }

    pub(crate) fn effects(&self) -> Effects {
        self.effects.lock().and(self.session().wire.read())
    }

    /// The scope may have ended its transaction by itself, and so stored something.
    pub(crate) fn may_have_ended(&self) -> bool {
        self.effects().has(Effects::ENDS) || self.session().wire.tags().commits > 0
    }

    /// Every statement that was begun was also seen to end, by its future and by the server.
    pub(crate) fn is_answered(&self) -> bool {
        self.holder.started.load(SeqCst) == self.holder.ended.load(SeqCst) && self.session().wire.is_quiet()
    }

    /// A statement's future was dropped before it ended.
    pub(crate) fn was_left_running(&self) -> bool {
        self.holder.started.load(SeqCst) != self.holder.ended.load(SeqCst)
    }

    /// A reply has proven that everything sent before it is answered.
    pub(crate) fn all_ended(&self) {
        self.holder.ended.store(self.holder.started.load(SeqCst), SeqCst);
    }

    /// Proven: the next borrower will find nothing of this scope.
    pub(crate) fn is_clean(&self) -> bool {
        self.is_answered()
            && self.session().wire.status() == Status::Idle
            && self.dirt().is_none()
            && !self.is_reset_anyway()
    }

    /// What the scope left behind in the session beyond its transaction.
    pub(super) fn dirt(&self) -> Option<&'static str> {
        let (tags, effects) = (self.session().wire.tags(), self.effects());
        if tags.seen.has(Marks::FORGOTTEN) {
            self.session().kept.distrust();
        }
        if tags.sets > self.own_sets.load(Relaxed) {
            Some("SET")
        } else if effects.has(Effects::SET_CONFIG) {
            Some("set_config()")
        } else if effects.has(Effects::ADVISORY_LOCK) {
            Some("a session-level advisory lock")
        } else if tags.seen.has(Marks::LISTEN) {
            Some("LISTEN")
        } else if tags.seen.has(Marks::PREPARE) {
            Some("PREPARE")
        } else if tags.seen.has(Marks::CURSOR) && effects.has(Effects::HOLD) {
            Some("a cursor WITH HOLD")
        } else if effects.has(Effects::TEMPORARY) {
            Some("a temporary table")
        } else if effects.has(Effects::BLOCK) {
            Some("a DO block")
        } else if tags.seen.has(Marks::LOAD) {
            Some("LOAD")
        } else {
            None
        }
    }

    /// Whether the session is reset although nothing was seen: because it may be, or because it is always done.
    pub(super) fn is_reset_anyway(&self) -> bool {
        self.lent_raw.load(Relaxed) || self.pool.config.session_reset == SessionReset::Always
    }

    /// Back to the pool. The caller has proven the connection clean.
    pub(crate) fn check_in(mut self) {
        self.give_back(None, None);
    }

    /// As [`check_in`](Self::check_in), for a connection that was only looked after: it stays idle since `idle_since`.
    pub(super) fn check_in_unused(mut self, idle_since: Instant) {
        self.give_back(None, Some(idle_since));
    }

    /// Closed instead of lent again.
    pub(super) fn discard(mut self, reason: CloseReason) {
        add(&self.pool.counters.discarded);
        self.give_back(Some(reason), None);
    }

    fn give_back(&mut self, close: Option<CloseReason>, unused_since: Option<Instant>) {
        let Some(key) = self.key.take() else { return };
        let current = self.slot();
        let slots = mem::take(&mut self.slots);
        let mut kept = None;
        for (slot, held) in slots.into_iter().enumerate() {
            match held.into_inner() {
                Some(held) if slot == current => kept = Some(held),
                // Dead already: its place in `max_size` is the one that its successor has.
                Some(held) => {
                    let reason = held.cause_of_death();
                    self.pool.forget(held, reason);
                }
                None => {}
            }
        }
        let now = Instant::now();
        if !self.holder.scope.ours {
            self.pool.counters.hold.record(now.duration_since(self.holder.since));
        }
        match (kept, self.permit.get_mut().take()) {
            (Some(held), Some(permit)) => self.pool.take_back(held, permit, close, now, unused_since),
            // It is dead, and could not be replaced or is being replaced still.
            (Some(held), None) => {
                let reason = held.cause_of_death();
                self.pool.forget(held, reason);
            }
            (None, _) => {}
        }
        self.pool.left(key, &self.holder);
    }

    pub(super) fn is_being_reclaimed(&mut self) {
        self.being_reclaimed = true;
        self.holder.reclaiming();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.key.is_none() {
            return;
        }
        if self.being_reclaimed {
            // The clean-up itself was dropped: the runtime is shutting down. Closing is all that is left.
            self.give_back(Some(CloseReason::Broken), None);
            return;
        }
        let lease = Self {
            pool: Arc::clone(&self.pool),
            permit: Mutex::new(self.permit.get_mut().take()),
            slots: mem::take(&mut self.slots),
            current: AtomicU8::new(self.current.load(SeqCst)),
            holder: Arc::clone(&self.holder),
            key: self.key.take(),
            effects: Mutex::new(*self.effects.get_mut()),
            own_sets: AtomicU32::new(self.own_sets.load(Relaxed)),
            lent_raw: AtomicBool::new(self.lent_raw.load(Relaxed)),
            // If the task below is dropped before it runs, closing is all that is left.
            being_reclaimed: true,
        };
        if lease.is_clean() {
            lease.check_in();
        } else {
            let pool = Arc::clone(&lease.pool);
            pool.spawn(lease.reclaim(Why::Cancelled));
        }
    }
}
