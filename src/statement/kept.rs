//! Which statements stay prepared on a connection.
//!
//! diesel's cache evicts nothing by itself: it can only be emptied whole. So the care goes into admission. A text that
//! its query type fixes is admitted at once: the program has a bounded number of those. Any other text is admitted when
//! it *returns*: the first time it is prepared for that one execution, as diesel would always do. Texts that vary
//! without end (IN lists, boxed queries) thus never fill the cache. When it is full and texts that return are being
//! turned away, it is emptied at check-in and fills with what is used now.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::Text;

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

/// The statements that one connection keeps.
#[derive(Debug)]
pub(crate) struct Kept {
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By hash of the text: whether the server is known to have it.
    texts: HashMap<u64, bool>,
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

    /// Whether `text` is to stay prepared.
    pub(crate) fn admit(&self, text: &Text, doorkeeper: &Doorkeeper) -> bool {
        if self.capacity == 0 {
            return false;
        }
        let mut state = self.state.lock();
        if state.worthless {
            return false;
        }
        if state.texts.contains_key(&text.hash) {
            return true;
        }
        if !text.by_type && !doorkeeper.returns(text.hash) {
            return false;
        }
        if state.texts.len() >= self.capacity {
            state.turned_away += 1;
            return false;
        }
        state.texts.insert(text.hash, false);
        true
    }

    /// The server answered `text`: it is prepared there.
    pub(crate) fn prepared(&self, text: &Text) {
        if let Some(prepared) = self.state.lock().texts.get_mut(&text.hash) {
            *prepared = true;
        }
    }

    /// Whether executing `text` sends it in one message, with no `Parse` before.
    pub(crate) fn is_prepared(&self, text: &Text) -> bool {
        let state = self.state.lock();
        !state.worthless && state.texts.get(&text.hash) == Some(&true)
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

    fn text(sql: &str) -> Text {
        Text::new(sql.to_owned())
    }

    #[test]
    fn endless_texts_do_not_push_out_the_ones_that_return() {
        let (kept, door) = (Kept::new(8), Doorkeeper::new());
        let hot = text("UPDATE hot");
        assert!(!kept.admit(&hot, &door), "the first time it is one of many");
        assert!(kept.admit(&hot, &door));
        kept.prepared(&hot);
        for n in 0..10_000 {
            assert!(!kept.admit(&text(&format!("SELECT IN list of {n}")), &door));
        }
        assert!(kept.is_prepared(&hot));
        assert!(!kept.wants_emptying());
    }

    #[test]
    fn a_full_cache_is_emptied_when_returning_texts_are_turned_away() {
        let (kept, door) = (Kept::new(4), Doorkeeper::new());
        for n in 0..4 {
            let text = text(&format!("old {n}"));
            kept.admit(&text, &door);
            assert!(kept.admit(&text, &door));
        }
        let fresh = text("fresh");
        kept.admit(&fresh, &door);
        for _ in 0..4 {
            assert!(!kept.admit(&fresh, &door));
        }
        assert!(kept.wants_emptying());
        assert!(kept.admit(&fresh, &door), "there is room again");
    }

    #[test]
    fn zero_keeps_nothing() {
        let (kept, door) = (Kept::new(0), Doorkeeper::new());
        let hot = text("UPDATE hot");
        assert!(!kept.admit(&hot, &door) && !kept.admit(&hot, &door));
    }
}
