//! What nobody waits for: warming up, retiring, keeping idle connections alive, noticing leaks, checking health.
//!
//! One task for each pool. It holds the pool weakly and ends by itself when the last handle is gone.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::admission::Permit;
use super::lease::Lease;
use super::opening::Whose;
use super::stats::{CloseReason, add};
use super::{Held, Pool, ScopeName, silence};
use crate::config::Config;

/// Never rarer than this, so that a leak or a missing connection is seen soon.
const LONGEST_TICK: Duration = Duration::from_secs(1);
const SHORTEST_TICK: Duration = Duration::from_millis(10);

/// A connection that goes from the idle ones, with its place.
type Idle = (Held, Permit);

/// Runs until the pool is dropped or closed.
pub(super) async fn keep(pool: Weak<Pool>, config: Config) {
    tokio::join!(tend(pool.clone(), &config), silence::listen(pool, config.checkout_timeout));
}

async fn tend(pool: Weak<Pool>, config: &Config) {
    let shortest = [config.max_lifetime, config.idle_timeout, config.keepalive, config.leak_threshold];
    let tick = shortest.into_iter().flatten().min().unwrap_or(LONGEST_TICK) / 4;
    // Not at once: the scope whose checkout started us is just opening the connection that we would find missing.
    let first = tokio::time::Instant::now() + SHORTEST_TICK;
    let mut ticks = tokio::time::interval_at(first, tick.clamp(SHORTEST_TICK, LONGEST_TICK));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(pool) = pool.upgrade() else { return };
        if pool.admission.is_closed() {
            return;
        }
        pool.notice_leaks();
        pool.tend_idle();
        pool.warm_up().await;
    }
}

impl Pool {
    /// Connections that are out, idle or being opened: those that are being closed count no more.
    fn live(&self) -> usize {
        self.in_use() + self.idle()
    }

    /// Logs a lease once when it has been out too long.
    fn notice_leaks(&self) {
        let Some(threshold) = self.config.leak_threshold else { return };
        for holder in self.registry.holders() {
            if holder.since.elapsed() < threshold {
                return; // sorted: the rest is younger
            }
            if !holder.leak_told.swap(true, Relaxed) {
                add(&self.counters.leaks);
                let out = holder.checkout();
                tracing::warn!(
                    scope = %holder.scope, held_for = ?out.held_for, phase = %out.phase, statements = out.statements,
                    backend_pid = out.backend_pid, "connection out for longer than leak_threshold"
                );
            }
        }
    }

    /// Closes idle connections that are too old, too long idle or dead, and sends a byte over quiet ones.
    fn tend_idle(self: &Arc<Self>) {
        let (leaving, quiet) = self.sort_idle();
        for ((held, permit), reason) in leaving {
            drop(self.close_session(held, permit, reason));
        }
        for (held, permit) in quiet {
            // In a task of its own: none waits for one that does not answer.
            let pool = Arc::clone(self);
            tokio::spawn(async move { pool.keep_alive(held, permit).await });
        }
    }

    /// Looks at every idle connection: those that are to be closed, and those that are to be spoken to. The others are idle
    /// again, the one used last on top.
    ///
    /// They are taken without a permit, since they are back before anybody else has the turn: whoever wants one meanwhile
    /// waits for that, and is neither refused nor made to open one. What does not go back needs a permit. If none is free,
    /// somebody is about to use that connection.
    fn sort_idle(&self) -> (Vec<(Idle, CloseReason)>, Vec<Idle>) {
        let mut spare = self.live().saturating_sub(self.config.min_idle as usize);
        let permit = || self.admission.try_admit().ok().flatten();
        let (mut leaving, mut quiet, mut good) = (Vec::new(), Vec::new(), Vec::new());
        let turn = self.taking.lock();
        while let Some(held) = self.take_next(&turn) {
            let reason = self.why_close(&held, spare > 0);
            match reason.and_then(|reason| Some((reason, permit()?))) {
                Some((reason, permit)) => {
                    spare = spare.saturating_sub(1);
                    leaving.push(((held, permit), reason));
                }
                None => good.push(held),
            }
        }
        if let Some(every) = self.config.keepalive {
            good.sort_unstable_by_key(|held| held.heard_of);
            // Those that were silent longest, and at most half: a borrower must not find all of them away.
            let half = good.len().div_ceil(2);
            let due = good.iter().take(half).take_while(|held| held.heard_of.elapsed() >= every).count();
            for held in good.drain(..due).collect::<Vec<_>>() {
                match permit() {
                    Some(permit) => quiet.push((held, permit)),
                    None => good.push(held),
                }
            }
        }
        good.sort_unstable_by_key(|held| held.idle_since);
        good.into_iter().for_each(drop);
        drop(turn);
        (leaving, quiet)
    }

    fn why_close(&self, held: &Held, spare: bool) -> Option<CloseReason> {
        let now = Instant::now();
        let idle = now.duration_since(held.idle_since);
        if held.is_dead() {
            Some(CloseReason::Broken)
        } else if !self.is_current(held) {
            Some(CloseReason::Outdated)
        } else if held.retire_at.is_some_and(|at| at <= now) {
            Some(CloseReason::Lifetime)
        } else if spare && self.config.idle_timeout.is_some_and(|limit| idle >= limit) {
            Some(CloseReason::Idle)
        } else {
            None
        }
    }

    /// An empty statement keeps firewalls and load balancers from forgetting the connection, and finds out if they did.
    async fn keep_alive(self: &Arc<Self>, held: Held, permit: Permit) {
        let scope = ScopeName::ours("keepalive");
        let idle_since = held.idle_since;
        let mut lease = Lease::new(Arc::clone(self), permit, held, scope);
        let answer = tokio::time::timeout(self.config.cleanup_timeout, lease.session().batch("")).await;
        let reason = match answer {
            Ok(Ok(())) => return lease.check_in_unused(idle_since),
            Ok(Err(_)) => CloseReason::Broken,
            Err(_) => CloseReason::Unresponsive,
        };
        lease.session_mut().close = Some(reason);
        lease.check_in();
    }

    /// Opens connections up to `min_idle`, one after the other: there is no hurry.
    async fn warm_up(self: &Arc<Self>) {
        while self.live() < self.config.min_idle as usize {
            let Ok(Some(permit)) = self.admission.try_admit() else { return };
            match self.open(permit, tokio::time::Instant::now(), Whose::Nobodys).await {
                Ok((held, permit)) => {
                    drop(held);
                    drop(permit);
                }
                Err(error) => {
                    tracing::debug!(%error, "warm-up failed");
                    return;
                }
            }
        }
    }
}
