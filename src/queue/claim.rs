//! Taking jobs from the queue so that nobody else gets the same ones.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::dsl::{array, case_when, min, not, now};
use diesel::prelude::*;
use diesel::sql_types::{Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use super::recover::{RAN_OUT, give_up_jobs};
use super::row::lease_seconds;
use super::{BatchSize, Claim, Lease, QueueError, Worker};
use crate::error::Result;
use crate::executor::Executor;
use crate::jobs::Job;
use crate::schema::{job_queue, jobs};
use crate::types::sql::{coalesce, t2m_from_now, t2m_priority_rank, t2m_queue_is_held, t2m_queue_is_open};
use crate::types::{Document, JobId, JobStatus, QueueId, QueueStatus};

/// Jobs lost on their last try that one claim gives up: all there are on most days, and no long wait on the others.
const GIVEN_UP: i64 = 100;

/// What an entry tells at its claim; without a time at the end it was given up.
type Taken = (QueueId, JobId, i64, i32, i32, i16, DateTime<Utc>, Option<DateTime<Utc>>);

/// Claims up to `batch` jobs for `lease`, the most pressing first, then the oldest; empty if there is nothing to do.
///
/// An entry that another worker is just claiming is passed over, not waited for. One whose lease ran out is taken over and
/// counts as tried once more. On the way jobs are failed for good whose lease ran out on their last try, up to 100, and
/// entries closed whose job was called off or deleted behind the queue's back.
///
/// Two round trips, and one more for each of these two kinds if there are any: run it in a transaction of its own. By
/// `job_queue_claim_idx` in its order, without a sort, and `job_queue_lease_idx`; the jobs by primary key. For workers: all
/// owners' jobs.
///
/// # Errors
///
/// [`Error::Invalid`](crate::Error::Invalid) for a lease shorter than a second or longer than a day.
pub async fn claim(conn: &mut impl Executor, worker: &Worker, batch: BatchSize, lease: Duration) -> Result<Vec<Claim>> {
    let seconds = lease_seconds(lease)?;
    let taken = take_entries(conn, worker, batch, seconds).await?;
    let (lost, mut taken): (Vec<Taken>, Vec<Taken>) = taken.into_iter().partition(|(.., until)| until.is_none());
    if !lost.is_empty() {
        give_up_jobs(conn, lost.iter().map(|entry| entry.1).collect(), RAN_OUT).await?;
    }
    if taken.is_empty() {
        return Ok(Vec::new());
    }
    // RETURNING has no order.
    taken.sort_by_key(|(id, .., rank, queued_at, _)| (*rank, *queued_at, *id));
    let mut started = start_jobs(conn, taken.iter().map(|entry| entry.1).collect()).await?;
    let mut claims = Vec::with_capacity(taken.len());
    let mut orphans = Vec::new();
    for (entry, id, token, retry_count, max_retries, _, _, expires_at) in taken {
        match (started.remove(&id), expires_at) {
            (Some(job), Some(expires_at)) => {
                let lease = Lease { job: id, owner: job.user_id, token, retry_count, expires_at };
                claims.push(Claim { lease, job, retry_count, max_retries });
            }
            _ => orphans.push(entry),
        }
    }
    if !orphans.is_empty() {
        close_orphans(conn, orphans).await?;
    }
    Ok(claims)
}

/// How long until something may be claimed that cannot be now: a retry that waits, or a lease that runs out. `None` if there
/// is nothing of that kind, and zero if something is due already.
///
/// For a worker whose [`claim`] found nothing: it sleeps so long, unless a notification wakes it before. One round trip, by
/// `job_queue_claim_idx`, which then holds little but what waits, and `job_queue_lease_idx`: it reads what that claim has
/// read, all that waits or is held. For workers: all owners' jobs.
pub async fn due_in(conn: &mut impl Executor) -> Result<Option<Duration>> {
    let retry = job_queue::table
        .filter(t2m_queue_is_open(job_queue::queue_status))
        .filter(job_queue::queue_status.eq(QueueStatus::Queued))
        .select(min(coalesce(job_queue::next_retry_at, job_queue::queued_at.nullable())));
    let lease =
        job_queue::table.filter(t2m_queue_is_held(job_queue::queue_status)).select(min(job_queue::lease_expires_at));
    let (asked_at, retry, lease): (DateTime<Utc>, Option<DateTime<Utc>>, Option<DateTime<Utc>>) =
        diesel::select((now.into_sql::<Timestamptz>(), retry.single_value(), lease.single_value()))
            .get_result(conn)
            .await?;
    Ok(retry.into_iter().chain(lease).min().map(|at| (at - asked_at).to_std().unwrap_or_default()))
}

async fn take_entries(conn: &mut impl Executor, worker: &Worker, batch: BatchSize, seconds: f64) -> Result<Vec<Taken>> {
    let entry = diesel::alias!(job_queue as next_entries);
    let waits = entry
        .field(job_queue::queue_status)
        .eq(QueueStatus::Queued)
        .and(entry.field(job_queue::next_retry_at).is_null().or(entry.field(job_queue::next_retry_at).le(now)));
    // NULL, a lease of Python's, is not less than anything: its workers are not taken over.
    let was_lost = entry
        .field(job_queue::lease_expires_at)
        .le(now.into_sql::<Nullable<Timestamptz>>())
        .assume_not_null()
        .and(entry.field(job_queue::queue_status).eq(QueueStatus::Processing))
        .and(entry.field(job_queue::retry_count).lt(entry.field(job_queue::max_retries)));
    let spent = diesel::alias!(job_queue as spent_entries);
    let spent = spent
        .filter(t2m_queue_is_held(spent.field(job_queue::queue_status)))
        .filter(spent.field(job_queue::lease_expires_at).le(now))
        .filter(spent.field(job_queue::retry_count).ge(spent.field(job_queue::max_retries)))
        .order(spent.field(job_queue::lease_expires_at))
        .limit(GIVEN_UP)
        .select(spent.field(job_queue::id))
        .for_update()
        .skip_locked();
    let next = entry
        .filter(t2m_queue_is_open(entry.field(job_queue::queue_status)))
        .filter(waits.or(was_lost))
        .order((
            t2m_priority_rank(entry.field(job_queue::priority)),
            entry.field(job_queue::queued_at),
            entry.field(job_queue::id),
        ))
        .limit(batch.get())
        .select(entry.field(job_queue::id))
        .for_update()
        .skip_locked();
    let lost = |message| QueueError { message: Some(message), failed_at: Some(Utc::now()), ..QueueError::default() };
    let taken_over = lost(format!("{RAN_OUT}; taken over by {}", worker.id()));
    let given_up = lost(RAN_OUT.to_owned());
    let was_held = || job_queue::queue_status.eq(QueueStatus::Processing);
    let was_spent = || was_held().and(job_queue::retry_count.ge(job_queue::max_retries));
    let never = || None::<DateTime<Utc>>.into_sql::<Nullable<Timestamptz>>();
    // An array is read once; a plain `IN` the planner may read again for every row, and claim more than the limit.
    Ok(diesel::update(job_queue::table)
        .filter(job_queue::id.eq_any(array::<SqlUuid, _>(next)).or(job_queue::id.eq_any(array::<SqlUuid, _>(spent))))
        .set((
            job_queue::queue_status.eq(case_when(was_spent(), QueueStatus::Failed.into_sql::<Text>())
                .otherwise(QueueStatus::Processing.into_sql::<Text>())),
            job_queue::completed_at
                .eq(case_when(was_spent(), now.into_sql::<Nullable<Timestamptz>>()).otherwise(never())),
            job_queue::worker_id.eq(worker.id()),
            job_queue::processing_node.eq(worker.node()),
            job_queue::processing_started_at.eq(now),
            job_queue::updated_at.eq(now),
            job_queue::next_retry_at.eq(None::<DateTime<Utc>>),
            job_queue::lease_expires_at.eq(case_when(was_spent(), never()).otherwise(t2m_from_now(seconds).nullable())),
            job_queue::lease_token.eq(job_queue::lease_token + 1),
            job_queue::retry_count.eq(job_queue::retry_count
                + case_when(was_held(), 1.into_sql::<Integer>()).otherwise(0.into_sql::<Integer>())),
            job_queue::errors.eq(case_when(was_spent(), job_queue::errors.concat(Document::new(vec![given_up])))
                .when(was_held(), job_queue::errors.concat(Document::new(vec![taken_over])))
                .otherwise(job_queue::errors)),
        ))
        .returning((
            job_queue::id,
            job_queue::job_id,
            job_queue::lease_token,
            job_queue::retry_count,
            job_queue::max_retries,
            t2m_priority_rank(job_queue::priority),
            job_queue::queued_at,
            job_queue::lease_expires_at,
        ))
        .load(conn)
        .await?)
}

async fn start_jobs(conn: &mut impl Executor, ids: Vec<JobId>) -> Result<HashMap<JobId, Job>> {
    let workable = [JobStatus::Created, JobStatus::Queued, JobStatus::Processing];
    let started: Vec<Job> = diesel::update(jobs::table)
        .filter(jobs::id.eq_any(ids))
        .filter(jobs::status.eq_any(workable))
        .filter(not(jobs::is_deleted))
        .set((
            jobs::status.eq(JobStatus::Processing),
            jobs::started_at.eq(coalesce(jobs::started_at, now.into_sql::<Nullable<Timestamptz>>())),
        ))
        .returning(Job::as_returning())
        .load(conn)
        .await?;
    Ok(started.into_iter().map(|job| (job.id, job)).collect())
}

async fn close_orphans(conn: &mut impl Executor, entries: Vec<QueueId>) -> Result<()> {
    diesel::update(job_queue::table)
        .filter(job_queue::id.eq_any(entries))
        .set((
            job_queue::queue_status.eq(QueueStatus::Cancelled),
            job_queue::completed_at.eq(now),
            job_queue::updated_at.eq(now),
            job_queue::lease_expires_at.eq(None::<DateTime<Utc>>),
        ))
        .execute(conn)
        .await?;
    Ok(())
}
