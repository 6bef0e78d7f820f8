//! Bringing back what workers held that are gone.

use chrono::{DateTime, Utc};
use diesel::dsl::{auto_type, case_when, not, now};
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

/// What is recorded of a lease that ran out.
pub(super) const RAN_OUT: &str = "the worker's lease ran out";

/// Puts back every job whose lease ran out, at most 1,000 at a time; those that were tried too often fail for good.
///
/// [`claim`](super::claim) does both by itself. This is for when nobody claims: so that whoever asked is told what became of
/// a job although all workers are gone. One round trip when there is nothing to do, else three: run it in a
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
    put_back(conn, expired, RAN_OUT).await
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
    let ids = |settled: Vec<(JobId, QueueStatus)>| settled.into_iter().map(|(id, _)| id).collect();
    let (mut one, mut other) = (&*conn, &*conn);
    try_join!(put_back_jobs(&mut one, ids(queued)), give_up_jobs(&mut other, ids(failed), why))?;
    Ok(put_back)
}

async fn put_back_jobs(conn: &mut impl Executor, ids: Vec<JobId>) -> Result<()> {
    diesel::update(worked_on(ids)).set(jobs::status.eq(JobStatus::Queued)).execute(conn).await?;
    Ok(())
}

/// The jobs of entries that were lost on their last try.
pub(super) async fn give_up_jobs(conn: &mut impl Executor, ids: Vec<JobId>, why: &str) -> Result<()> {
    diesel::update(worked_on(ids))
        .set((
            jobs::status.eq(JobStatus::Failed),
            jobs::completed_at.eq(now),
            jobs::error_info.eq(Document::new(ErrorInfo::new(why))),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

#[auto_type(no_type_alias)]
fn worked_on(ids: Vec<JobId>) -> _ {
    let processing: JobStatus = JobStatus::Processing;
    jobs::table.filter(jobs::id.eq_any(ids)).filter(jobs::status.eq(processing)).filter(not(jobs::is_deleted))
}
