//! What a worker does with the lease that it holds.
//!
//! Every UPDATE here is fenced by the lease's token, and by the job: Python ends a job without a look at its queue entry. A
//! worker is told both in the same way.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::dsl::{auto_type, case_when, exists, not, now};
use diesel::prelude::*;
use diesel::sql_types::{Bool, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::row::lease_seconds;
use super::{Backoff, Failure, Lease, QueueError};
use crate::bulk::Json;
use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::jobs::{Completion, ErrorInfo, Job, Stage, finish_job, set_progress};
use crate::schema::{job_queue, jobs};
use crate::types::sql::t2m_from_now;
use crate::types::{Document, JobId, JobStatus, Percentage, QueueStatus, UserId, document, text};

/// Prolongs a lease, counted from now. One round trip, by the unique index on the queue's job.
///
/// # Errors
///
/// [`Error::LeaseLost`]: stop working, somebody else has the job, or it was called off or deleted.
pub async fn heartbeat(conn: &mut impl Executor, lease: &mut Lease, prolong: Duration) -> Result<()> {
    let seconds = lease_seconds(prolong)?;
    let expires_at: Option<DateTime<Utc>> = diesel::update(held(lease))
        .set((job_queue::lease_expires_at.eq(t2m_from_now(seconds).nullable()), job_queue::updated_at.eq(now)))
        .returning(job_queue::lease_expires_at.assume_not_null())
        .get_result(conn)
        .await
        .optional()?;
    lease.expires_at = expires_at.ok_or_else(|| lease.lost())?;
    Ok(())
}

/// Records how far the job is, as [`jobs::set_progress`](crate::jobs::set_progress), and prolongs the lease as [`heartbeat`].
///
/// A worker that was overtaken cannot: the lease is proved, and held until the transaction ends, before the job is touched.
/// Two round trips: run it in a transaction. By the unique index on the queue's job, and by primary key.
///
/// # Errors
///
/// [`Error::LeaseLost`]; [`Error::Invalid`] for a stage of more than 100 characters, or with NUL. Nothing is stored if the
/// transaction ends with that error.
pub async fn progress(
    conn: &mut impl Executor,
    lease: &mut Lease,
    prolong: Duration,
    progress: &Percentage,
    stage: &str,
    done: Option<&Stage>,
) -> Result<Job> {
    text("job.current_stage", stage, 100)?;
    document("job.stages_completed", &done)?;
    heartbeat(conn, lease, prolong).await?;
    let moved = set_progress(conn, lease.owner, lease.job, progress, stage, done).await;
    moved.map_err(|error| moved_away(lease, error))
}

/// Completes the job and ends the lease; a lease that ran out still counts as long as nobody else took the job.
///
/// Two round trips: run it in the transaction that stores what the job made, so that both are there or neither. By the unique
/// index on the queue's job, and by primary key.
///
/// # Errors
///
/// [`Error::LeaseLost`]; [`Error::Invalid`] names what does not fit. Nothing is stored if the transaction ends with that error.
pub async fn complete(conn: &mut impl Executor, lease: &Lease, result: &Completion) -> Result<Job> {
    result.check()?;
    let closed = diesel::update(held(lease))
        .set((
            job_queue::queue_status.eq(QueueStatus::Completed),
            job_queue::completed_at.eq(now),
            job_queue::updated_at.eq(now),
            job_queue::lease_expires_at.eq(None::<DateTime<Utc>>),
        ))
        .execute(conn)
        .await?;
    if closed == 0 {
        return Err(lease.lost());
    }
    finish_job(conn, lease.owner, lease.job, result).await.map_err(|error| moved_away(lease, error))
}

/// Ends the lease with a failure: the job waits for its next try, or fails for good after its last. The queue entry keeps
/// every failure, the job shows the latest. A failure is recorded whatever it says: U+FFFD stands in place of NUL.
///
/// Two round trips: run it in a transaction. By the unique index on the queue's job, and by primary key.
///
/// # Errors
///
/// [`Error::LeaseLost`]; [`Error::Invalid`] for a backoff of more than a century. Nothing is stored if the transaction ends
/// with that error.
pub async fn fail(conn: &mut impl Executor, lease: &Lease, error: &ErrorInfo, backoff: Backoff) -> Result<Failure> {
    let entry = QueueError {
        message: error.message.clone(),
        failed_at: Some(error.failed_at.unwrap_or_else(Utc::now)),
        token: Some(lease.token),
        ..QueueError::default()
    };
    let may_retry = || job_queue::retry_count.lt(job_queue::max_retries);
    let wait = t2m_from_now(backoff.seconds(lease.retry_count)?).nullable();
    let never = || None::<DateTime<Utc>>.into_sql::<Nullable<Timestamptz>>();
    let settled: Option<Option<DateTime<Utc>>> = diesel::update(held(lease))
        .set((
            job_queue::queue_status.eq(case_when(may_retry(), QueueStatus::Queued.into_sql::<Text>())
                .otherwise(QueueStatus::Failed.into_sql::<Text>())),
            job_queue::next_retry_at.eq(case_when(may_retry(), wait).otherwise(never())),
            job_queue::completed_at
                .eq(case_when(may_retry(), never()).otherwise(now.into_sql::<Nullable<Timestamptz>>())),
            job_queue::retry_count.eq(job_queue::retry_count + 1),
            job_queue::errors.eq(job_queue::errors.concat(Json::lossy(&[entry])?)),
            job_queue::lease_expires_at.eq(None::<DateTime<Utc>>),
            job_queue::updated_at.eq(now),
        ))
        .returning(job_queue::next_retry_at)
        .get_result(conn)
        .await
        .optional()?;
    let next_try = settled.ok_or_else(|| lease.lost())?;
    let for_good = next_try.is_none();
    let moved = diesel::update(worked_on(lease))
        .set((
            jobs::status.eq(if for_good { JobStatus::Failed } else { JobStatus::Queued }),
            jobs::completed_at
                .eq(case_when(for_good.into_sql::<Bool>(), now.into_sql::<Nullable<Timestamptz>>()).otherwise(never())),
            jobs::error_info.eq(Json::lossy(error)?),
        ))
        .execute(conn)
        .await?;
    if moved == 0 {
        return Err(lease.lost());
    }
    Ok(next_try.map_or(Failure::ForGood, Failure::RetryAt))
}

/// Gives the job of a lease back untried, for a worker that shuts down: it waits where it waited before, and nothing counts as failed.
///
/// Two round trips: run it in a transaction. By the unique index on the queue's job, and by primary key.
///
/// # Errors
///
/// [`Error::LeaseLost`]. Nothing is stored if the transaction ends with that error.
pub async fn release(conn: &mut impl Executor, lease: &Lease) -> Result<()> {
    let given_back = diesel::update(held(lease))
        .set((
            job_queue::queue_status.eq(QueueStatus::Queued),
            job_queue::lease_expires_at.eq(None::<DateTime<Utc>>),
            job_queue::updated_at.eq(now),
        ))
        .execute(conn)
        .await?;
    if given_back == 0 {
        return Err(lease.lost());
    }
    let moved = diesel::update(worked_on(lease)).set(jobs::status.eq(JobStatus::Queued)).execute(conn).await?;
    if moved == 0 { Err(lease.lost()) } else { Ok(()) }
}

/// Where the owner's job stands in the queue, and every failure so far. One round trip, by the unique index on the queue's job.
pub async fn entry(
    conn: &mut impl Executor,
    owner: UserId,
    id: JobId,
) -> Result<Option<(QueueStatus, Vec<QueueError>)>> {
    let found: Option<(QueueStatus, Document<Vec<QueueError>>)> = job_queue::table
        .inner_join(jobs::table)
        .filter(job_queue::job_id.eq(id))
        .filter(jobs::user_id.eq(owner))
        .filter(not(jobs::is_deleted))
        .select((job_queue::queue_status, job_queue::errors))
        .first(conn)
        .await
        .optional()?;
    let Some((status, errors)) = found else { return Ok(None) };
    let errors = errors.into_inner().map_err(|broken| Error::BrokenDocument {
        table: "job_queue of job",
        id: id.as_uuid(),
        path: format!("errors.{}", broken.path),
        reason: broken.reason,
    })?;
    Ok(Some((status, errors)))
}

/// The entry of a lease that counts.
#[auto_type(no_type_alias)]
fn held(lease: &Lease) -> _ {
    let (job, token): (JobId, i64) = (lease.job, lease.token);
    let processing: QueueStatus = QueueStatus::Processing;
    let working: worked_on = worked_on(lease);
    job_queue::table
        .filter(job_queue::job_id.eq(job))
        .filter(job_queue::lease_token.eq(token))
        .filter(job_queue::queue_status.eq(processing))
        .filter(exists(working))
}

/// The job of a lease, while it is being worked on.
#[auto_type]
fn worked_on(lease: &Lease) -> _ {
    let (job, owner): (JobId, UserId) = (lease.job, lease.owner);
    let processing: JobStatus = JobStatus::Processing;
    jobs::table
        .filter(jobs::id.eq(job))
        .filter(jobs::user_id.eq(owner))
        .filter(jobs::status.eq(processing))
        .filter(not(jobs::is_deleted))
}

/// A job that moved away after its entry was looked at.
fn moved_away(lease: &Lease, error: Error) -> Error {
    match error {
        Error::Transition { .. } | Error::NotFound { .. } => lease.lost(),
        other => other,
    }
}
