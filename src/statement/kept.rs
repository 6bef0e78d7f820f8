//! Which statements stay prepared on a connection.
//!
//! diesel's cache evicts nothing by itself: it can only be emptied whole. So the care goes into admission. A text that
//! its query type fixes is admitted at once: the program has a bounded number of those. Any other text is admitted when
//! it *returns*: the first time it is prepared for that one execution, as diesel would always do. Texts that vary
//! without end (IN lists, boxed queries) thus never fill the cache. When it is full and texts that return are being
//! turned away, it is emptied at check-in and fills with what is used now.

use std::any::TypeId;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// What the inner connection finds a prepared statement by, as a hash.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    hash: u64,
    /// The type of the query fixes its text, so the program has a bounded number of them.
    by_type: bool,
}

impl Key {
    pub(super) fn of_type(id: TypeId) -> Self {
        let mut hasher = AsItIs::default();
        id.hash(&mut hasher);
        Self { hash: hasher.finish(), by_type: true }
    }

    pub(super) fn of_text(sql: &str, types: impl Iterator<Item = u32>) -> Self {
        let mut hasher = DefaultHasher::new();
        sql.hash(&mut hasher);
        types.for_each(|oid| oid.hash(&mut hasher));
        Self { hash: hasher.finish(), by_type: false }
    }
}

/// Hashes what is a hash already: a text's, or a type's id.
#[derive(Debug, Default)]
pub(super) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

/// Remembers, roughly and in bounded memory, which texts were seen before: one for all connections of a pool.
#[derive(Debug)]
pub(crate) struct Doorkeeper {
    seen: Box<[AtomicU64]>,
}

impl Doorkeeper {
    const SLOTS: u64 = 4096;

    pub(crate) fn new() -> Self {
        Self { seen: (0..Self::SLOTS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Whether `hash` was here before; from now on it was. Two texts that share a slot forget each other.
    fn returns(&self, hash: u64) -> bool {
        let slot = &self.seen[(hash % Self::SLOTS) as usize];
        slot.swap(hash, Relaxed) == hash
    }
}

/// Whether a statement is to stay prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    No,
    /// From this time on.
    Yes,
    /// The server has it already.
    Prepared,
}

/// The statements that one connection keeps.
#[derive(Debug)]
pub(crate) struct Kept {
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By hash: whether the server is known to have it.
    statements: HashMap<u64, bool, BuildHasherDefault<AsItIs>>,
    turned_away: usize,
    /// Something made kept statements worthless: `DISCARD`, a changed schema.
    worthless: bool,
}

impl Kept {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::default() }
    }

    /// The most that are kept.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether a statement is to stay prepared.
    pub(crate) fn admit(&self, key: Key, doorkeeper: &Doorkeeper) -> Admitted {
        if self.capacity == 0 {
            return Admitted::No;
        }
        let mut state = self.state.lock();
        if state.worthless {
            return Admitted::No;
        }
        if let Some(prepared) = state.statements.get(&key.hash) {
            return if *prepared { Admitted::Prepared } else { Admitted::Yes };
        }
        if !key.by_type && !doorkeeper.returns(key.hash) {
            return Admitted::No;
        }
        if state.statements.len() >= self.capacity {
            state.turned_away += 1;
            return Admitted::No;
        }
        state.statements.insert(key.hash, false);
        Admitted::Yes
    }

    /// The server answered the statement: it is prepared there.
    pub(crate) fn prepared(&self, key: Key) {
        if let Some(prepared) = self.state.lock().statements.get_mut(&key.hash) {
            *prepared = true;
        }
    }

    /// Whether executing the statement sends it in one message, with no `Parse` before.
    pub(crate) fn is_prepared(&self, key: Key) -> bool {
        let state = self.state.lock();
        !state.worthless && state.statements.get(&key.hash) == Some(&true)
    }

    /// Kept statements can no longer be trusted: none is used until they were emptied.
    pub(crate) fn distrust(&self) {
        self.state.lock().worthless = true;
    }

    /// Whether the inner cache is to be emptied at check-in. Says so once: the caller empties it.
    pub(crate) fn wants_emptying(&self) -> bool {
        let mut state = self.state.lock();
        let wanted = state.worthless || state.turned_away >= self.capacity.max(1);
        if wanted {
            *state = State::default();
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(sql: &str) -> Key {
        Key::of_text(sql, std::iter::empty())
    }

    #[test]
    fn endless_texts_do_not_push_out_the_ones_that_return() {
        let (kept, door) = (Kept::new(8), Doorkeeper::new());
        let hot = text("UPDATE hot");
        assert_eq!(kept.admit(hot, &door), Admitted::No, "the first time it is one of many");
        assert_eq!(kept.admit(hot, &door), Admitted::Yes);
        kept.prepared(hot);
        for n in 0..10_000 {
            assert_eq!(kept.admit(text(&format!("SELECT IN list of {n}")), &door), Admitted::No);
        }
        assert_eq!(kept.admit(hot, &door), Admitted::Prepared);
        assert!(!kept.wants_emptying());
    }

    #[test]
    fn a_full_cache_is_emptied_when_returning_texts_are_turned_away() {
        let (kept, door) = (Kept::new(4), Doorkeeper::new());
        for n in 0..4 {
            let text = text(&format!("old {n}"));
            kept.admit(text, &door);
            assert_eq!(kept.admit(text, &door), Admitted::Yes);
        }
        let fresh = text("fresh");
        kept.admit(fresh, &door);
        for _ in 0..4 {
            assert_eq!(kept.admit(fresh, &door), Admitted::No);
        }
        assert!(kept.wants_emptying());
        assert_eq!(kept.admit(fresh, &door), Admitted::Yes, "there is room again");
    }

    #[test]
    fn zero_keeps_nothing() {
        let (kept, door) = (Kept::new(0), Doorkeeper::new());
        let hot = text("UPDATE hot");
        assert_eq!((kept.admit(hot, &door), kept.admit(hot, &door)), (Admitted::No, Admitted::No));
    }

    #[test]
    fn one_text_with_binds_of_other_types_is_another_statement() {
        let (kept, door) = (Kept::new(4), Doorkeeper::new());
        let (of_int, of_text) =
            (Key::of_text("SELECT $1", [23].into_iter()), Key::of_text("SELECT $1", [25].into_iter()));
        kept.admit(of_int, &door);
        kept.admit(of_int, &door);
        kept.prepared(of_int);
        assert!(kept.is_prepared(of_int) && !kept.is_prepared(of_text));
    }
}
