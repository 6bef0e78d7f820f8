//! Workers, leases and failures.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::jobs::Job;
use crate::types::{Extra, JobId, UserId, seconds, text, text_opt};

/// Who claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    id: String,
    node: Option<String>,
}

impl Worker {
    /// A worker by a name that no other one has, such as host, process and number; at most 255 characters.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] naming the field.
    pub fn new(id: impl Into<String>, node: Option<String>) -> Result<Self> {
        let id = id.into();
        text("queue.worker_id", &id, 255)?;
        if id.is_empty() {
            return Err(Error::Invalid { field: "queue.worker_id", value: "empty".into(), allowed: "a name".into() });
        }
        text_opt("queue.processing_node", node.as_deref(), 255)?;
        Ok(Self { id, node })
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The machine that it runs on.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }
}

/// How many jobs to claim at once: 1 to 1,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSize(i64);

impl BatchSize {
    /// One job.
    pub const ONE: Self = Self(1);

    /// # Errors
    ///
    /// [`Error::Invalid`] naming `batch_size` and its limits.
    pub fn new(jobs: i64) -> Result<Self> {
        if (1..=1_000).contains(&jobs) {
            return Ok(Self(jobs));
        }
        Err(Error::Invalid { field: "batch_size", value: jobs.to_string(), allowed: "1 to 1000".into() })
    }

    /// The number of jobs.
    pub fn get(self) -> i64 {
        self.0
    }
}

/// The right to work on a job until it runs out, proved by a token that every claim raises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub(super) job: JobId,
    pub(super) owner: UserId,
    pub(super) token: i64,
    pub(super) retry_count: i32,
    pub(super) expires_at: DateTime<Utc>,
}

impl Lease {
    /// The job.
    pub fn job(&self) -> JobId {
        self.job
    }

    /// Whose job it is.
    pub fn owner(&self) -> UserId {
        self.owner
    }

    /// The fencing token. Hand it on to whatever the worker writes to outside of this database.
    pub fn token(&self) -> i64 {
        self.token
    }

    /// When it runs out, by the server's clock, unless a heartbeat comes first.
    pub fn expires_at(&self) -> DateTime<Utc> {
        self.expires_at
    }

    pub(super) fn lost(&self) -> Error {
        Error::LeaseLost { job: self.job.as_uuid(), token: self.token }
    }
}

/// A claimed job.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The right to work on it.
    pub lease: Lease,
    /// The job.
    pub job: Job,
    /// How often it failed, or its worker was lost, before this.
    pub retry_count: i32,
    /// How often it may be tried again.
    pub max_retries: i32,
}

/// How long a job waits after its n-th failure: twice as long each time, up to a limit, plus up to a quarter of chance so
/// that jobs that failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure. 5 seconds by default: longer than most hiccups of a service that the worker needs.
    pub first: Duration,
    /// The most, a century at most. 10 minutes by default: somebody waits for the video.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_secs(5), max: Duration::from_secs(600) }
    }
}

impl Backoff {
    /// The wait, in seconds, after `retry_count` failures before this one.
    pub(super) fn seconds(self, retry_count: i32) -> Result<f64> {
        let most = seconds("queue.backoff.max", self.max)?;
        let doubled = self.first.as_secs_f64() * f64::from(retry_count.clamp(0, 60)).exp2();
        Ok(doubled.min(most) * (1.0 + fastrand::f64() / 4.0))
    }
}

/// What became of a job that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It is tried again, not before this time.
    RetryAt(DateTime<Utc>),
    /// That was its last try.
    ForGood,
}

/// How many jobs came back from workers that are gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PutBack {
    /// Wait in the queue again.
    pub queued: usize,
    /// Were lost too often, and failed for good.
    pub failed: usize,
}

/// One failure in the history that a queue entry keeps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueError {
    /// What happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::types::time")]
    pub failed_at: Option<DateTime<Utc>>,
    /// Under which token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<i64>,
    /// Whatever else is known.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A lease of 1 second to 1 day, as seconds.
pub(super) fn lease_seconds(lease: Duration) -> Result<f64> {
    if (Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&lease) {
        return Ok(lease.as_secs_f64());
    }
    let value = format!("{} s", lease.as_secs_f64());
    Err(Error::Invalid { field: "queue.lease", value, allowed: "1 second to 1 day".into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_limit() {
        let backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(10) };
        for (failures, least) in [(0, 1.0), (1, 2.0), (3, 8.0), (4, 10.0), (i32::MAX, 10.0)] {
            let wait = backoff.seconds(failures).unwrap();
            assert!((least..=least * 1.25).contains(&wait), "{failures}: {wait}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        assert!(BatchSize::new(0).unwrap_err().to_string().contains("batch_size"));
        assert!(Worker::new("", None).unwrap_err().to_string().contains("queue.worker_id"));
        assert!(Worker::new("w", Some("n".repeat(256))).unwrap_err().to_string().contains("queue.processing_node"));
        assert!(lease_seconds(Duration::ZERO).is_err());
        let endless = Backoff { max: Duration::MAX, ..Backoff::default() };
        assert!(endless.seconds(0).unwrap_err().to_string().contains("queue.backoff.max"));
    }
}
