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
use super::{Held, Pool, ScopeName};
use crate::config::Config;

/// Never rarer than this, so that a leak or a missing connection is seen soon.
const LONGEST_TICK: Duration = Duration::from_secs(1);
const SHORTEST_TICK: Duration = Duration::from_millis(10);

/// Runs until the pool is dropped or closed.
pub(super) async fn keep(pool: Weak<Pool>, config: Config) {
    let shortest = [config.max_lifetime, config.idle_timeout, config.keepalive, config.leak_threshold];
    let tick = shortest.into_iter().flatten().min().unwrap_or(LONGEST_TICK) / 4;
    let mut ticks = tokio::time::interval(tick.clamp(SHORTEST_TICK, LONGEST_TICK));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(pool) = pool.upgrade() else { return };
        if pool.admission.is_closed() {
            return;
        }
        let _background = pool.in_background();
        pool.notice_leaks();
        pool.tend_idle();
        pool.warm_up().await;
    }
}

impl Pool {
    /// Connections that are out or idle: those that are being closed count no more.
    fn live(&self) -> usize {
        let stats = self.stats();
        stats.checked_out + stats.idle
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
        let mut spare = self.live().saturating_sub(self.config.min_idle as usize);
        let mut good: Vec<(Held, Permit)> = Vec::new();
        let mut quiet = None;
        // Everything idle is looked at without an await, so nobody finds the pool empty for long.
        while let Ok(Some(permit)) = self.admission.try_admit() {
            let Some(held) = self.take_idle() else { break };
            let now = Instant::now();
            let idle = now.duration_since(held.idle_since);
            let reason = if held.is_dead() {
                Some(CloseReason::Broken)
            } else if !self.is_current(&held) {
                Some(CloseReason::Outdated)
            } else if held.retire_at.is_some_and(|at| at <= now) {
                Some(CloseReason::Lifetime)
            } else if spare > 0 && self.config.idle_timeout.is_some_and(|limit| idle >= limit) {
                Some(CloseReason::Idle)
            } else {
                None
            };
            if let Some(reason) = reason {
                spare = spare.saturating_sub(1);
                drop(self.close_session(held, permit, reason));
            } else if quiet.is_none() && self.config.keepalive.is_some_and(|every| held.heard_of.elapsed() >= every) {
                // One each tick: a borrower must not find all of them away.
                quiet = Some((held, permit));
            } else {
                good.push((held, permit));
            }
        }
        // The one used last was taken first: back in reverse order it is on top again. bb8 first, then the permit.
        while let Some((held, permit)) = good.pop() {
            drop(held);
            drop(permit);
        }
        if let Some((held, permit)) = quiet {
            // In a task of its own: the others do not wait for one that does not answer.
            let (pool, background) = (Arc::clone(self), self.in_background());
            tokio::spawn(async move {
                pool.keep_alive(held, permit).await;
                drop(background);
            });
        }
    }

    /// An empty statement keeps firewalls and load balancers from forgetting the connection, and finds out if they did.
    async fn keep_alive(self: &Arc<Self>, held: Held, permit: Permit) {
        let scope = ScopeName::ours("keepalive");
        let idle_since = held.idle_since;
        let mut lease = Lease::new(Arc::clone(self), permit, held, scope);
        let answer = tokio::time::timeout(self.config.cleanup_timeout, lease.session().batch("")).await;
        if matches!(answer, Ok(Ok(()))) {
            lease.check_in_unused(idle_since);
        } else {
            lease.session_mut().close = Some(CloseReason::Unresponsive);
            lease.check_in();
        }
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
