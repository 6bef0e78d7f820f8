//! Whether the database can be worked with right now, in a bounded time and at the price of one read.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use diesel::QueryableByName;
use diesel::sql_types::{Bool, Double, Nullable, Text};
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::pool::{Pool, PoolStats, ScopeName};
use crate::transaction::read;

/// A check never takes longer, whatever hangs: liveness probes commonly give up after a few seconds.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A standby that is further behind answers questions about the past.
const TOLERABLE_LAG: f64 = 10.0;

/// How well the database can be worked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HealthStatus {
    /// Reads and writes go through.
    Healthy,
    /// It works, but not as it should: the pool is full, or the server is a standby.
    Degraded,
    /// Nothing goes through.
    Unhealthy,
}

/// What a health check found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// The verdict.
    pub status: HealthStatus,
    /// How long the check took, waiting for a connection included. `None` if the server was not asked.
    pub latency: Option<Duration>,
    /// As the server tells it, `15.8 (Debian 15.8-1)`.
    pub server_version: Option<String>,
    /// Why it is not `Healthy`.
    pub reason: Option<String>,
    /// When it was found.
    pub checked_at: SystemTime,
}

#[derive(Debug, QueryableByName)]
struct Answer {
    #[diesel(sql_type = Text)]
    version: String,
    #[diesel(sql_type = Bool)]
    standby: bool,
    #[diesel(sql_type = Nullable<Double>)]
    lag: Option<f64>,
}

const QUESTION: &str = "SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS standby, \
    CASE WHEN pg_is_in_recovery() AND pg_last_wal_receive_lsn() IS DISTINCT FROM pg_last_wal_replay_lsn() \
    THEN extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float8 END AS lag";

/// Asks the server, unless the pool is full: then that is the answer.
pub(crate) async fn check(pool: &Arc<Pool>) -> Health {
    let began = Instant::now();
    if let Some(full) = full(pool) {
        return Health::new(HealthStatus::Degraded, None, Some(full));
    }
    let asked = AtomicBool::new(false);
    let answer = timeout(TIMEOUT, ask(pool, &asked)).await;
    let latency = Some(began.elapsed());
    match answer {
        Ok(Ok(answer)) => {
            let reason = answer.complaint().or_else(|| waiting(pool));
            let status = if reason.is_some() { HealthStatus::Degraded } else { HealthStatus::Healthy };
            Health { latency, server_version: Some(answer.version), ..Health::new(status, None, reason) }
        }
        Ok(Err(error)) if got_no_connection(&error, pool) => {
            Health::new(HealthStatus::Degraded, None, Some(crowded(&pool.stats())))
        }
        Ok(Err(error)) => Health::new(HealthStatus::Unhealthy, latency, Some(error.to_string())),
        // The check's own connection may be what makes the pool full: then the server was asked and is silent.
        Err(_) if !asked.load(Relaxed) && pool.is_saturated() => {
            Health::new(HealthStatus::Degraded, None, Some(crowded(&pool.stats())))
        }
        Err(_) => {
            let why = pool.last_connect_failure().map(|failure| format!("; connect failed {failure}"));
            let reason = format!("no answer within {TIMEOUT:?}{}", why.unwrap_or_default());
            Health::new(HealthStatus::Unhealthy, latency, Some(reason))
        }
    }
}

/// Sets `asked` when it has a connection.
async fn ask(pool: &Arc<Pool>, asked: &AtomicBool) -> Result<Answer> {
    use diesel_async::RunQueryDsl; // here only: it has a `load` that hides the one of atomics
    let scope = ScopeName::ours("health");
    let answer = read(pool, scope, async |conn| {
        asked.store(true, Relaxed);
        diesel::sql_query(QUESTION).get_result(conn).await.map_err(Error::from)
    });
    answer.await
}

impl Health {
    fn new(status: HealthStatus, latency: Option<Duration>, reason: Option<String>) -> Self {
        Self { status, latency, server_version: None, reason, checked_at: SystemTime::now() }
    }
}

impl Answer {
    fn complaint(&self) -> Option<String> {
        match self.lag {
            Some(lag) if lag > TOLERABLE_LAG => Some(format!("the server is a standby, {lag:.0} s behind")),
            _ if self.standby => Some("the server is a standby: writes are refused".to_owned()),
            _ => None,
        }
    }
}

/// Whether a check was turned away because there is too much to do, and not because the server is away.
fn got_no_connection(error: &Error, pool: &Pool) -> bool {
    match error {
        Error::Overloaded(_) => pool.last_connect_failure().is_none(),
        Error::CheckoutTimeout(_) => pool.is_saturated(),
        _ => false,
    }
}

fn full(pool: &Pool) -> Option<String> {
    let stats = pool.stats();
    (stats.checked_out >= stats.max_size).then(|| crowded(&stats))
}

fn crowded(stats: &PoolStats) -> String {
    let PoolStats { checked_out, max_size, waiting, .. } = stats;
    format!("the pool is full: {checked_out} of {max_size} connections are out, {waiting} scopes wait")
}

fn waiting(pool: &Pool) -> Option<String> {
    let waiting = pool.stats().waiting;
    (waiting > 0).then(|| format!("{waiting} scopes wait for a connection"))
}

/// What the background check found last.
pub(crate) type LastHealth = Arc<Mutex<Option<Health>>>;

/// Checks every `health_interval` until the pool is gone, and logs when the verdict changes.
pub(crate) async fn watch(pool: Weak<Pool>, interval: Duration, told: LastHealth) {
    // Connecting has just shown how the server is.
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = HealthStatus::Healthy;
    loop {
        ticks.tick().await;
        let Some(pool) = pool.upgrade() else { return };
        if pool.is_closed() {
            return;
        }
        let health = check(&pool).await;
        if health.status != last {
            tracing::warn!(was = ?last, now = ?health.status, reason = health.reason, "database health changed");
            last = health.status;
        }
        *told.lock() = Some(health);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_is_complained_of_and_one_that_is_behind_by_how_much() {
        let complaint = |standby, lag| Answer { version: String::new(), standby, lag }.complaint();
        assert_eq!(complaint(false, None), None);
        assert_eq!(complaint(true, Some(1.0)).unwrap(), "the server is a standby: writes are refused");
        assert_eq!(complaint(true, Some(11.4)).unwrap(), "the server is a standby, 11 s behind");
    }
}
