//! A path on which nothing comes back although the system acknowledges what is sent: a proxy that lost its server, a server
//! that is frozen. The kernel sees nothing wrong there, so each first flight is listened to.
//!
//! A first flight opens with something that is answered at once: BEGIN, or an empty statement before a read on a connection
//! that was not heard of lately. Not even that answered for half of `checkout_timeout`, the connection is closed, and the
//! flight goes again on another one in the other half. A read without an opening may just be slow: there, somebody
//! knocks at the server's door first.
//!
//! Scopes only leave a mark in their [`Holder`]; one task for each pool looks at all of them: a flight waits for no timer.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::Pool;
use super::registry::Holder;

const SHORTEST_TICK: Duration = Duration::from_millis(5);
const LONGEST_TICK: Duration = Duration::from_millis(500);

/// Runs until the pool is dropped or closed.
pub(super) async fn listen(pool: Weak<Pool>, checkout_timeout: Duration) {
    let patience = checkout_timeout / 2;
    let tick = (patience / 8).clamp(SHORTEST_TICK, LONGEST_TICK);
    // Counted, not timed: should this process stand still, what the server said meanwhile is read first. The first look
    // comes at any time within a tick.
    let looks = u32::try_from(patience.as_nanos().div_ceil(tick.as_nanos())).unwrap_or(u32::MAX - 1) + 1;
    let mut ticks = tokio::time::interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(pool) = pool.upgrade() else { return };
        if pool.admission.is_closed() {
            return;
        }
        for holder in pool.registry.holders() {
            holder.listen(looks, patience);
        }
    }
}

impl Holder {
    /// A first flight is sent; `opens`: with something ahead that is answered at once. False if one is on the way already.
    pub(crate) fn take_off(&self, now: Instant, opens: bool) -> bool {
        let after = u64::try_from(now.saturating_duration_since(self.since).as_micros()).unwrap_or(0);
        let flight = (after + 1) << 1 | u64::from(opens);
        self.flight.compare_exchange(0, flight, Relaxed, Relaxed).is_ok()
    }

    /// It was answered, or is lost.
    pub(crate) fn land(&self) {
        self.flight.store(0, Relaxed);
    }

    /// Looks after the first flight: when it is still on the way at its `looks`-th time, something is done.
    fn listen(self: Arc<Self>, looks: u32, patience: Duration) {
        let flight = self.flight.load(Relaxed);
        if flight == 0 || !self.is_in_body() || self.is_answered() {
            return;
        }
        if self.seen.swap(flight, Relaxed) != flight {
            self.looks.store(0, Relaxed);
        }
        if self.looks.fetch_add(1, Relaxed) + 1 != looks {
            return;
        }
        let ending = self.ending();
        if flight & 1 == 1 {
            ending.cut_for_silence(self.age(flight));
            return;
        }
        tokio::spawn(async move {
            let silent = ending.canceller.is_silent(patience / 2).await;
            if silent && self.flight.load(Relaxed) == flight && !self.is_answered() {
                ending.cut_for_silence(self.age(flight));
            }
        });
    }

    fn age(&self, flight: u64) -> Duration {
        self.since.elapsed().saturating_sub(Duration::from_micros(flight >> 1))
    }

    fn is_answered(&self) -> bool {
        self.ending().wire.has_answered()
    }
}
