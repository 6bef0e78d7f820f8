//! Moving a job from state to state for its owner. The UPDATE names the states that it may come from.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::dsl::{array, case_when, jsonb_typeof, not, now};
use diesel::prelude::*;
use diesel::sql_types::{Bool, Jsonb, Nullable, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use super::state::before;
use super::{Completion, ErrorInfo, Job, Stage};
use crate::bulk::Json;
use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::schema::{job_queue, jobs};
use crate::types::sql::{
    coalesce, coalesce_numeric, coalesce_text, t2m_from_now, t2m_job_is_finished, t2m_queue_is_open,
};
use crate::types::{Document, JobId, JobStatus, Percentage, QueueStatus, UserId, document, seconds, text};

/// Begins the owner's job without the queue: for work that is done on the spot. Its queue entry, if any, is closed.
///
/// Two round trips: run it in a transaction. By primary key and the unique index on the queue's job.
///
/// # Errors
///
/// [`Error::Transition`] unless it is created or queued; [`Error::NotFound`].
pub async fn start(conn: &mut impl Executor, owner: UserId, id: JobId) -> Result<Job> {
    close_entry(conn, owner, id, &JobStatus::Processing, QueueStatus::Cancelled).await?;
    let moved = diesel::update(jobs::table)
        .filter(jobs::id.eq(id))
        .filter(jobs::user_id.eq(owner))
        .filter(not(jobs::is_deleted))
        .filter(jobs::status.eq_any(before(&JobStatus::Processing)))
        .set((
            jobs::status.eq(JobStatus::Processing),
            jobs::started_at.eq(coalesce(jobs::started_at, now.into_sql::<Nullable<Timestamptz>>())),
        ))
        .returning(Job::as_returning())
        .get_result(conn)
        .await
        .optional()?;
    told(conn, owner, id, "processing", moved).await
}

/// Records how far the owner's job is, the stage that runs and, if one is done, that one. One round trip, by primary key.
///
/// For work without the queue's lease; a worker uses [`queue::progress`](crate::queue::progress), which a late one cannot.
/// What is done stays done when a job is tried again, so that the next try may go on from there: a stage that is recorded
/// already is not recorded twice.
///
/// # Errors
///
/// [`Error::Transition`] unless a worker is at it; [`Error::Invalid`] for a stage of more than 100 characters, or with NUL;
/// [`Error::NotFound`].
pub async fn set_progress(
    conn: &mut impl Executor,
    owner: UserId,
    id: JobId,
    progress: &Percentage,
    stage: &str,
    done: Option<&Stage>,
) -> Result<Job> {
    text("job.current_stage", stage, 100)?;
    document("job.stages_completed", &done)?;
    let done = || Document::new(done.into_iter().cloned().collect::<Vec<_>>());
    // SQLAlchemy stores JSON's null for None.
    let stages = case_when(jsonb_typeof(jobs::stages_completed).eq("null"), done().into_sql::<Jsonb>())
        .when(jobs::stages_completed.contains(done()), jobs::stages_completed)
        .otherwise(jobs::stages_completed.concat(done()));
    let moved = diesel::update(jobs::table)
        .filter(jobs::id.eq(id))
        .filter(jobs::user_id.eq(owner))
        .filter(not(jobs::is_deleted))
        .filter(jobs::status.eq(JobStatus::Processing))
        .set((
            jobs::progress_percentage.eq(progress.as_decimal()),
            jobs::current_stage.eq(stage),
            jobs::stages_completed.eq(stages),
        ))
        .returning(Job::as_returning())
        .get_result(conn)
        .await
        .optional()?;
    told(conn, owner, id, "processing", moved).await
}

/// Completes the owner's job that was done without the queue's lease; a worker uses [`queue::complete`](crate::queue::complete).
///
/// Two round trips: run it in a transaction. By primary key and the unique index on the queue's job.
///
/// # Errors
///
/// [`Error::Transition`] unless it was being worked on; [`Error::Invalid`] for what does not fit; [`Error::NotFound`].
pub async fn complete(conn: &mut impl Executor, owner: UserId, id: JobId, result: &Completion) -> Result<Job> {
    result.check()?;
    close_entry(conn, owner, id, &JobStatus::Completed, QueueStatus::Completed).await?;
    finish_job(conn, owner, id, result).await
}

/// The job's half of completing it. The caller has closed the queue entry, and so holds its lock.
pub(crate) async fn finish_job(conn: &mut impl Executor, owner: UserId, id: JobId, result: &Completion) -> Result<Job> {
    let seconds = result.check()?;
    let took = seconds.as_ref().map(crate::types::Seconds::as_decimal);
    let new = || result.metrics.clone().map(Document::new).into_sql::<Nullable<Jsonb>>();
    let metrics = case_when(result.metrics.is_none().into_sql::<Bool>(), jobs::metrics)
        .when(jsonb_typeof(jobs::metrics).eq("object"), jobs::metrics.concat(new()))
        .otherwise(new());
    let moved = diesel::update(jobs::table)
        .filter(jobs::id.eq(id))
        .filter(jobs::user_id.eq(owner))
        .filter(not(jobs::is_deleted))
        .filter(jobs::status.eq_any(before(&JobStatus::Completed)))
        .set((
            jobs::status.eq(JobStatus::Completed),
            jobs::progress_percentage.eq(bigdecimal::BigDecimal::from(100)),
            jobs::completed_at.eq(now),
            jobs::result_url.eq(coalesce_text(result.result_url.as_deref(), jobs::result_url)),
            jobs::metrics.eq(metrics),
            jobs::processing_time_seconds.eq(coalesce_numeric(took, jobs::processing_time_seconds)),
            jobs::error_info.eq(None::<Document<ErrorInfo>>), // of an attempt that failed before this one
        ))
        .returning(Job::as_returning())
        .get_result(conn)
        .await
        .optional()?;
    told(conn, owner, id, "completed", moved).await
}

/// Gives the owner's job up for good; a worker that wants it tried again uses [`queue::fail`](crate::queue::fail).
///
/// A failure is recorded whatever it says: U+FFFD stands in place of NUL.
/// Two round trips: run it in a transaction. By primary key and the unique index on the queue's job.
///
/// # Errors
///
/// [`Error::Transition`] unless it was queued or being worked on; [`Error::NotFound`].
pub async fn fail(conn: &mut impl Executor, owner: UserId, id: JobId, error: &ErrorInfo) -> Result<Job> {
    close_entry(conn, owner, id, &JobStatus::Failed, QueueStatus::Failed).await?;
    let moved = diesel::update(jobs::table)
        .filter(jobs::id.eq(id))
        .filter(jobs::user_id.eq(owner))
        .filter(not(jobs::is_deleted))
        .filter(jobs::status.eq_any(before(&JobStatus::Failed)))
        .set((jobs::status.eq(JobStatus::Failed), jobs::completed_at.eq(now), jobs::error_info.eq(Json::lossy(error)?)))
        .returning(Job::as_returning())
        .get_result(conn)
        .await
        .optional()?;
    told(conn, owner, id, "failed", moved).await
}

/// Calls the owner's job off. A worker that is at it learns of it at its next heartbeat and cannot finish it.
///
/// Two round trips: run it in a transaction. By primary key and the unique index on the queue's job.
///
/// # Errors
///
/// [`Error::Transition`] if it is finished; [`Error::NotFound`].
pub async fn cancel(conn: &mut impl Executor, owner: UserId, id: JobId) -> Result<Job> {
    close_entry(conn, owner, id, &JobStatus::Cancelled, QueueStatus::Cancelled).await?;
    let moved = diesel::update(jobs::table)
        .filter(jobs::id.eq(id))
        .filter(jobs::user_id.eq(owner))
        .filter(not(jobs::is_deleted))
        .filter(jobs::status.eq_any(before(&JobStatus::Cancelled)))
        .set((jobs::status.eq(JobStatus::Cancelled), jobs::completed_at.eq(now)))
        .returning(Job::as_returning())
        .get_result(conn)
        .await
        .optional()?;
    told(conn, owner, id, "cancelled", moved).await
}

/// Deletes the owner's job in whatever state; what is not finished is called off. Its files stay.
///
/// Two round trips: run it in a transaction. By primary key and the unique index on the queue's job.
///
/// # Errors
///
/// [`Error::NotFound`].
pub async fn soft_delete(conn: &mut impl Executor, owner: UserId, id: JobId) -> Result<()> {
    close_entry(conn, owner, id, &JobStatus::Cancelled, QueueStatus::Cancelled).await?;
    let gone = diesel::update(jobs::table)
        .filter(jobs::id.eq(id))
        .filter(jobs::user_id.eq(owner))
        .filter(not(jobs::is_deleted))
        .set((
            jobs::is_deleted.eq(true),
            jobs::deleted_at.eq(now),
            jobs::status.eq(case_when(t2m_job_is_finished(jobs::status), jobs::status)
                .when(jobs::status.eq(JobStatus::Archived), jobs::status)
                .otherwise(JobStatus::Cancelled.into_sql::<diesel::sql_types::Text>())),
        ))
        .execute(conn)
        .await?;
    if gone == 0 { Err(Error::NotFound { entity: "job" }) } else { Ok(()) }
}

/// Archives and deletes jobs that finished longer ago than this, of all users, at most 1,000 at a time; returns how many.
///
/// For operators: call it until it returns less than 1,000. One round trip, by `jobs_finished_idx`. Rows that others are at
/// are left for the next time.
///
/// # Errors
///
/// [`Error::Invalid`] for more than a century.
pub async fn cleanup(conn: &mut impl Executor, older_than: Duration) -> Result<usize> {
    let age = seconds("jobs.older_than", older_than)?;
    let old = diesel::alias!(jobs as old_jobs);
    let finished_at = || coalesce(old.field(jobs::completed_at), old.field(jobs::updated_at).nullable());
    let old = old
        .filter(not(old.field(jobs::is_deleted)))
        .filter(t2m_job_is_finished(old.field(jobs::status)))
        .filter(finished_at().lt(t2m_from_now(-age).nullable()))
        .order(finished_at())
        .limit(1_000)
        .select(old.field(jobs::id))
        .for_update()
        .skip_locked();
    // An array is read once; a plain `IN` the planner may read again for every row, and take more than the limit.
    Ok(diesel::update(jobs::table)
        .filter(jobs::id.eq_any(array::<SqlUuid, _>(old)))
        .set((jobs::is_deleted.eq(true), jobs::deleted_at.eq(now), jobs::status.eq(JobStatus::Archived)))
        .execute(conn)
        .await?)
}

/// Closes the queue entry of a job that may go to `to`, before the job itself is touched.
async fn close_entry(
    conn: &mut impl Executor,
    owner: UserId,
    id: JobId,
    to: &JobStatus,
    entry: QueueStatus,
) -> Result<()> {
    let may_move = jobs::table
        .filter(jobs::id.eq(id))
        .filter(jobs::user_id.eq(owner))
        .filter(not(jobs::is_deleted))
        .filter(jobs::status.eq_any(before(to)))
        .select(jobs::id);
    diesel::update(job_queue::table)
        .filter(job_queue::job_id.eq(id))
        .filter(job_queue::job_id.eq_any(may_move))
        .filter(t2m_queue_is_open(job_queue::queue_status))
        .set((
            job_queue::queue_status.eq(entry),
            job_queue::completed_at.eq(now),
            job_queue::updated_at.eq(now),
            job_queue::lease_expires_at.eq(None::<DateTime<Utc>>),
            job_queue::next_retry_at.eq(None::<DateTime<Utc>>),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// A move that hit no row: one more round trip says why.
pub(super) async fn told(
    conn: &mut impl Executor,
    owner: UserId,
    id: JobId,
    to: &'static str,
    moved: Option<Job>,
) -> Result<Job> {
    match moved {
        Some(job) => Ok(job),
        None => Err(refuse(conn, owner, id, to).await?),
    }
}

/// Why a job could not become `to`: it is not there for this owner, or the state that it is in does not lead there.
async fn refuse(conn: &mut impl Executor, owner: UserId, id: JobId, to: &'static str) -> Result<Error> {
    let status: Option<JobStatus> = jobs::table
        .filter(jobs::id.eq(id))
        .filter(jobs::user_id.eq(owner))
        .filter(not(jobs::is_deleted))
        .select(jobs::status)
        .first(conn)
        .await
        .optional()?;
    Ok(match status {
        Some(from) => Error::Transition { entity: "job", from: from.to_string(), to },
        None => Error::NotFound { entity: "job" },
    })
}
