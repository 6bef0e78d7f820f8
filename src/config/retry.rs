//! How often and how soon a transaction is tried again.

use std::time::Duration;

/// How `run_retrying` retries: how often, after what pause, and how much retrying the whole handle may do.
///
/// Retried are a serialization failure (40001), a deadlock (40P01) and a connection lost before COMMIT; never a commit whose
/// outcome is unknown, and never beyond the scope's deadline.
///
/// The pause before a retry is drawn between zero and `base * 2^(retries so far)`, at most `cap`: "full jitter", which keeps
/// those that collided from colliding again. All retries of a handle share a budget, a bucket of tokens: a retry takes one, a
/// scope that ends well without a retry gives a tenth back. When a whole system is in trouble the bucket is soon empty and
/// errors go straight to the callers, instead of multiplying the load.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Retry {
    pub(crate) attempts: u32,
    pub(crate) base: Duration,
    pub(crate) cap: Duration,
    pub(crate) budget: u32,
    pub(crate) on_lock_timeout: bool,
}

impl Default for Retry {
    /// 5 attempts, pauses from 10 ms up to 1 s, a budget of 100.
    ///
    /// Ten milliseconds is about the length of the transaction that won; four pauses come to 75 ms on average.
    fn default() -> Self {
        Self {
            attempts: 5,
            base: Duration::from_millis(10),
            cap: Duration::from_secs(1),
            budget: 100,
            on_lock_timeout: false,
        }
    }
}

impl Retry {
    /// For transactions that are expected to collide: up to `attempts` in all, the first one included.
    ///
    /// One attempt means no retry.
    pub fn serialization(attempts: u32) -> Self {
        Self { attempts, ..Self::default() }
    }

    /// The pause is drawn between zero and `base`, doubled after each retry, at most `cap`.
    pub fn backoff_between(mut self, base: Duration, cap: Duration) -> Self {
        (self.base, self.cap) = (base, cap);
        self
    }

    /// The size of the bucket that all retries of a handle draw from. Only the handle's own setting
    /// ([`Config::retry`](crate::Config::retry)) matters: the bucket is filled when it connects.
    pub fn budget(mut self, tokens: u32) -> Self {
        self.budget = tokens;
        self
    }

    /// Retries a lock that was not to be had (55P03: `lock_timeout` passed, or `NOWAIT`), too.
    pub fn on_lock_timeout(mut self) -> Self {
        self.on_lock_timeout = true;
        self
    }

    /// The pause before retry number `retry`, counted from zero; drawn anew each time.
    pub(crate) fn backoff(&self, retry: u32) -> Duration {
        let ceiling = u64::try_from(self.ceiling(retry).as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(fastrand::u64(..=ceiling))
    }

    fn ceiling(&self, retry: u32) -> Duration {
        let factor = 1_u32.checked_shl(retry).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.cap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_the_cap_and_is_never_longer() {
        let retry = Retry::serialization(9).backoff_between(Duration::from_millis(10), Duration::from_millis(50));
        let ceilings: Vec<_> = [0, 1, 2, 3, 31, 32, u32::MAX].map(|n| retry.ceiling(n).as_millis()).into();
        assert_eq!(ceilings, [10, 20, 40, 50, 50, 50, 50]);
        for n in 0..1_000 {
            assert!(retry.backoff(n) <= retry.ceiling(n));
        }
    }

    #[test]
    fn pauses_differ() {
        let retry = Retry::default();
        let drawn: std::collections::HashSet<_> = (0..100).map(|_| retry.backoff(5)).collect();
        assert!(drawn.len() > 50, "{} different of 100", drawn.len());
    }
}
