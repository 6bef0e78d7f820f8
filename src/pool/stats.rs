//! Numbers that an operator can trust: counted where a thing happens, read without stopping anything.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The server or the network ended it, or its state could not be proven clean.
    Broken,
    /// Older than `max_lifetime`.
    Lifetime,
    /// Idle for longer than `idle_timeout`.
    Idle,
    /// The server did not answer: within `cleanup_timeout`, or a first flight within half of `checkout_timeout`.
    Unresponsive,
    /// A sibling learned that the server went away, or that credentials were rotated.
    Outdated,
    /// Statements whose preparation was cut off had piled up on the server.
    Worn,
    /// The one piece of work that it was opened for is done.
    Finished,
    /// The pool was closed.
    Shutdown,
}

/// A duration histogram: four buckets for each doubling, from a microsecond to over an hour. Never locks.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; Self::BUCKETS],
    sum_micros: AtomicU64,
    max_micros: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; Self::BUCKETS],
            sum_micros: AtomicU64::new(0),
            max_micros: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    const BUCKETS: usize = 128;

    pub(crate) fn record(&self, value: Duration) {
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        self.buckets[Self::bucket(micros)].fetch_add(1, Relaxed);
        self.sum_micros.fetch_add(micros, Relaxed);
        if self.max_micros.load(Relaxed) < micros {
            self.max_micros.fetch_max(micros, Relaxed);
        }
    }

    /// Values below 4 have a bucket each; from there the two bits below the highest choose a quarter of the doubling.
    fn bucket(micros: u64) -> usize {
        if micros < 4 {
            return usize::try_from(micros).unwrap_or(0);
        }
        let high = micros.ilog2();
        let quarter = (micros >> (high - 2)) & 3;
        let index = u64::from(high - 1) * 4 + quarter;
        usize::try_from(index).map_or(Self::BUCKETS - 1, |index| index.min(Self::BUCKETS - 1))
    }

    /// The largest value that falls into `bucket`.
    fn ceiling(bucket: usize) -> u64 {
        if bucket < 4 {
            return bucket as u64;
        }
        let (high, quarter) = (bucket / 4 + 1, (bucket % 4) as u64);
        (((4 + quarter + 1) << (high - 2)) - 1).min(u64::MAX / 2)
    }

    pub(crate) fn snapshot(&self) -> Distribution {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let count: u64 = counts.iter().sum();
        let max = self.max_micros.load(Relaxed);
        let quantile = |per_mille: u64| {
            let rank = (count * per_mille).div_ceil(1000);
            let mut seen = 0;
            let bucket = counts.iter().position(|n| {
                seen += n;
                seen >= rank && rank > 0
            });
            Duration::from_micros(bucket.map_or(0, |bucket| Self::ceiling(bucket).min(max)))
        };
        Distribution {
            count,
            mean: Duration::from_micros(self.sum_micros.load(Relaxed).checked_div(count).unwrap_or(0)),
            p50: quantile(500),
            p99: quantile(990),
            p999: quantile(999),
            max: Duration::from_micros(max),
        }
    }
}

/// How a duration was distributed since the pool was made. Quantiles are upper bounds, at most 25% above the true value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Distribution {
    /// How many values were recorded.
    pub count: u64,
    /// Their arithmetic mean.
    pub mean: Duration,
    /// Half of them were at most this long.
    pub p50: Duration,
    /// 99% of them were at most this long.
    pub p99: Duration,
    /// 99.9% of them were at most this long.
    pub p999: Duration,
    /// The longest.
    pub max: Duration,
}

/// Connections closed since the pool was made, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// The server or the network ended them, or they could not be proven clean.
    pub broken: u64,
    /// Older than `max_lifetime`.
    pub lifetime: u64,
    /// Idle for longer than `idle_timeout`.
    pub idle: u64,
    /// The server did not answer: within `cleanup_timeout`, or a first flight within half of `checkout_timeout`.
    pub unresponsive: u64,
    /// A sibling learned that the server went away, or that credentials were rotated.
    pub outdated: u64,
    /// Statements whose preparation was cut off had piled up on the server.
    pub worn: u64,
    /// The one piece of work that they were opened for, migrations, was done.
    pub finished: u64,
    /// The pool was closed.
    pub shutdown: u64,
}

impl Closed {
    /// All of them.
    pub fn total(&self) -> u64 {
        let Self { broken, lifetime, idle, unresponsive, outdated, worn, finished, shutdown } = *self;
        broken + lifetime + idle + unresponsive + outdated + worn + finished + shutdown
    }
}

/// What a pool is doing now, and what it has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Server sessions that exist now.
    pub size: usize,
    /// The most that may exist.
    pub max_size: usize,
    /// Connections that are out: lent to a scope, or being cleaned up after one.
    pub checked_out: usize,
    /// Connections ready to be lent.
    pub idle: usize,
    /// Scopes that wait for a connection.
    pub waiting: usize,
    /// Of those checked out: how many are being cleaned up.
    pub reclaiming: usize,

    /// Connections lent.
    pub checkouts: u64,
    /// Scopes that gave up waiting after `checkout_timeout`.
    pub timeouts: u64,
    /// Scopes refused because too many waited or waits had been too long.
    pub shed: u64,
    /// Connections opened.
    pub opened: u64,
    /// Attempts to open one that failed.
    pub open_failures: u64,
    /// Connections closed, by reason.
    pub closed: Closed,
    /// Transactions committed.
    pub commits: u64,
    /// Transactions rolled back, for whatever reason.
    pub rollbacks: u64,
    /// Scopes whose future was dropped before it ended.
    pub cancelled: u64,
    /// Scopes whose body panicked.
    pub panicked: u64,
    /// Connections that were left in the middle of something and could be cleaned.
    pub salvaged: u64,
    /// Connections that could not be cleaned and were closed.
    pub discarded: u64,
    /// Connections that came back with session state and were reset.
    pub reset: u64,
    /// First flights that met a dead connection and were sent again on another.
    pub resent: u64,
    /// Attempts of `run_retrying` after the first.
    pub retries: u64,
    /// Lost COMMITs whose outcome was found out.
    pub resolved: u64,
    /// Lost COMMITs whose outcome could not be known.
    pub commit_unknown: u64,
    /// Leases held past `leak_threshold`.
    pub leaks: u64,
    /// Transactions longer than `slow_threshold`.
    pub slow: u64,

    /// How long scopes waited for a connection.
    pub wait: Distribution,
    /// How long connections were out.
    pub hold: Distribution,
    /// How long it took to open a connection.
    pub connect: Distribution,
    /// How long transactions took, from BEGIN to the end.
    pub transaction: Distribution,
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// The counters behind [`PoolStats`].
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
            pub(crate) closed_broken: AtomicU64,
            pub(crate) closed_lifetime: AtomicU64,
            pub(crate) closed_idle: AtomicU64,
            pub(crate) closed_unresponsive: AtomicU64,
            pub(crate) closed_outdated: AtomicU64,
            pub(crate) closed_worn: AtomicU64,
            pub(crate) closed_finished: AtomicU64,
            pub(crate) closed_shutdown: AtomicU64,
            pub(crate) wait: Histogram,
            pub(crate) hold: Histogram,
            pub(crate) connect: Histogram,
            pub(crate) transaction: Histogram,
        }

        impl Counters {
            /// The totals; the caller fills in what is true now.
            pub(crate) fn totals(&self) -> PoolStats {
                PoolStats {
                    $($name: self.$name.load(Relaxed),)*
                    closed: Closed {
                        broken: self.closed_broken.load(Relaxed),
                        lifetime: self.closed_lifetime.load(Relaxed),
                        idle: self.closed_idle.load(Relaxed),
                        unresponsive: self.closed_unresponsive.load(Relaxed),
                        outdated: self.closed_outdated.load(Relaxed),
                        worn: self.closed_worn.load(Relaxed),
                        finished: self.closed_finished.load(Relaxed),
                        shutdown: self.closed_shutdown.load(Relaxed),
                    },
                    wait: self.wait.snapshot(),
                    hold: self.hold.snapshot(),
                    connect: self.connect.snapshot(),
                    transaction: self.transaction.snapshot(),
                    ..PoolStats::default()
                }
            }
        }
    };
}

counters! {
    checkouts, timeouts, shed, opened, open_failures, commits, rollbacks, cancelled, panicked, salvaged, discarded, reset,
    resent, retries, resolved, commit_unknown, leaks, slow,
}

impl Counters {
    pub(crate) fn count_closed(&self, reason: CloseReason) {
        let counter = match reason {
            CloseReason::Broken => &self.closed_broken,
            CloseReason::Lifetime => &self.closed_lifetime,
            CloseReason::Idle => &self.closed_idle,
            CloseReason::Unresponsive => &self.closed_unresponsive,
            CloseReason::Outdated => &self.closed_outdated,
            CloseReason::Worn => &self.closed_worn,
            CloseReason::Finished => &self.closed_finished,
            CloseReason::Shutdown => &self.closed_shutdown,
        };
        add(counter);
    }
}

/// One more.
pub(crate) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_hold_what_falls_into_them() {
        for micros in (0..100_000).chain((17..33).map(|n| 1 << n)) {
            let bucket = Histogram::bucket(micros);
            assert!(Histogram::ceiling(bucket) >= micros, "{micros} in {bucket}");
            assert!(bucket == 0 || Histogram::ceiling(bucket - 1) < micros, "{micros} in {bucket}");
        }
    }

    #[test]
    fn quantiles_bound_the_values() {
        let histogram = Histogram::default();
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        let told = histogram.snapshot();
        assert_eq!((told.count, told.max), (1000, Duration::from_millis(1)));
        assert!((500..=625).contains(&told.p50.as_micros()), "{told:?}");
        assert!((990..=1000).contains(&told.p99.as_micros()), "{told:?}");
        assert_eq!(Histogram::default().snapshot(), Distribution::default());
    }
}
