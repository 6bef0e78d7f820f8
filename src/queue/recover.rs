//! Bringing back what workers held that are gone.

use chrono::{DateTime, Utc};
use diesel::dsl::{case_when, not, now};
use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use futures_util::try_join;

use super::{PutBack, QueueError, Worker};
use crate::error::Result;
use crate::executor::Executor;
use crate::jobs::ErrorInfo;
use crate::schema::{job_queue, jobs};
use crate::types::sql::t2m_queue_is_held;
use crate::types::{Document, JobId, JobStatus, QueueId, QueueStatus};

/// Puts back every job whose lease ran out, at most 1,000 at a time; those that were tried too often fail for good.
///
/// [`claim`](super::claim) takes over expired leases by itself, so nothing waits for this; it settles those that nobody may
/// claim any more. Call it now and then, from any worker. One round trip when there is nothing to do, else three: run it in a
/// transaction. By `job_queue_lease_idx`. Entries that somebody is at are left for the next time.
pub async fn put_back_expired<C: Executor>(conn: &mut C) -> Result<PutBack>
where
    for<'c> &'c C: Executor,
{
    let expired = job_queue::table
        .filter(t2m_queue_is_held(job_queue::queue_status))
        .filter(job_queue::lease_expires_at.le(now))
        .order(job_queue::lease_expires_at)
        .limit(1_000)
        .select(job_queue::id)
        .for_update()
        .skip_locked()
        .load(conn)
        .await?;
    put_back(conn, expired, "the worker's lease ran out").await
}

/// Puts back at once whatever this worker holds, at most 1,000 jobs: for a supervisor that saw it die, of a Python worker too.
///
/// One round trip when it held nothing, else three: run it in a transaction. By `job_queue_lease_idx`, which holds what is
/// being worked on and no more.
pub async fn put_back_worker<C: Executor>(conn: &mut C, worker: &Worker) -> Result<PutBack>
where
    for<'c> &'c C: Executor,
{
    let held = job_queue::table
        .filter(t2m_queue_is_held(job_queue::queue_status))
        .filter(job_queue::worker_id.eq(worker.id()))
        .order(job_queue::id)
        .limit(1_000)
        .select(job_queue::id)
        .for_update()
        .skip_locked()
        .load(conn)
        .await?;
    put_back(conn, held, "the worker was lost").await
}

/// The entries are locked, so they are what the SELECT saw.
async fn put_back<C: Executor>(conn: &mut C, entries: Vec<QueueId>, why: &str) -> Result<PutBack>
where
    for<'c> &'c C: Executor,
{
    if entries.is_empty() {
        return Ok(PutBack::default());
    }
    let lost = QueueError { message: Some(why.to_owned()), failed_at: Some(Utc::now()), ..QueueError::default() };
    let may_retry = || job_queue::retry_count.lt(job_queue::max_retries);
    let settled: Vec<(JobId, QueueStatus)> = diesel::update(job_queue::table)
        .filter(job_queue::id.eq_any(entries))
        .set((
            job_queue::queue_status.eq(case_when(may_retry(), QueueStatus::Queued.into_sql::<Text>())
                .otherwise(QueueStatus::Failed.into_sql::<Text>())),
            job_queue::completed_at.eq(case_when(
                may_retry(),
                None::<DateTime<Utc>>.into_sql::<Nullable<Timestamptz>>(),
            )
            .otherwise(now.into_sql::<Nullable<Timestamptz>>())),
            job_queue::retry_count.eq(job_queue::retry_count + 1),
            // Whoever held it must not finish it now.
            job_queue::lease_token.eq(job_queue::lease_token + 1),
            job_queue::lease_expires_at.eq(None::<DateTime<Utc>>),
            job_queue::errors.eq(job_queue::errors.concat(Document::new(vec![lost]))),
            job_queue::updated_at.eq(now),
        ))
        .returning((job_queue::job_id, job_queue::queue_status))
        .load(conn)
        .await?;
    let (queued, failed): (Vec<_>, Vec<_>) =
        settled.into_iter().partition(|(_, status)| *status == QueueStatus::Queued);
    let put_back = PutBack { queued: queued.len(), failed: failed.len() };
    let held = |ids: Vec<(JobId, QueueStatus)>| {
        jobs::table
            .filter(jobs::id.eq_any(ids.into_iter().map(|(id, _)| id).collect::<Vec<_>>()))
            .filter(jobs::status.eq(JobStatus::Processing))
            .filter(not(jobs::is_deleted))
    };
    let queued = diesel::update(held(queued)).set(jobs::status.eq(JobStatus::Queued));
    let failed = diesel::update(held(failed)).set((
        jobs::status.eq(JobStatus::Failed),
        jobs::completed_at.eq(now),
        jobs::error_info.eq(Document::new(ErrorInfo::new(why))),
    ));
    let (mut one, mut other) = (&*conn, &*conn);
    try_join!(queued.execute(&mut one), failed.execute(&mut other))?;
    Ok(put_back)
}
