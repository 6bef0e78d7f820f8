//! Storing and finding jobs.

use chrono::{DateTime, Utc};
use diesel::dsl::{array, exists, not, now};
use diesel::prelude::*;
use diesel::query_dsl::methods;
use diesel::sql_types::{Bool, Integer, Jsonb, Nullable, Record, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::transitions::told;
use super::{Job, NewJob};
use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::schema::{job_queue, jobs, users};
use crate::types::sql::t2m_queue_is_open;
use crate::types::{Cursor, Document, JobId, JobStatus, List, Page, PageSize, QueueStatus, UserId, page_of, text};

/// Stores a job and puts it into the queue; a waiting worker wakes when the transaction commits.
///
/// An id that the owner has used already is the same request again: nothing is stored, and the job comes back as it is by
/// now. So a call whose answer was lost may be repeated. The owner must exist, and a parent job be the same owner's: the
/// INSERT itself looks. Two round trips: run it in a transaction. By the primary keys.
///
/// # Errors
///
/// [`Error::NotFound`] for the user or the parent job; [`Error::Invalid`] names what the table would refuse, or `job.id` if a
/// job of somebody else or a deleted one has it. Nothing is stored then, and the transaction may go on.
pub async fn create_and_enqueue(conn: &mut impl Executor, owner: UserId, job: &NewJob) -> Result<Job> {
    job.check()?;
    let NewJob { id, job_type, priority, configuration, batch_id, parent_job_id, max_retries } = job;
    let parent = diesel::alias!(jobs as parent_jobs);
    let parent_is_theirs = exists(
        parent
            .filter(parent.field(jobs::id).nullable().eq(*parent_job_id))
            .filter(parent.field(jobs::user_id).is_not_distinct_from(owner)) // not by all that the owner has
            .filter(not(parent.field(jobs::is_deleted))),
    );
    let row = users::table
        .filter(users::id.eq(owner))
        .filter(not(users::is_deleted))
        .filter(parent_job_id.is_none().into_sql::<Bool>().or(parent_is_theirs))
        .select((
            id.into_sql::<SqlUuid>(),
            users::id,
            job_type.as_str().into_sql::<Text>(),
            priority.as_str().into_sql::<Text>(),
            Document::new(configuration.clone()).into_sql::<Jsonb>(),
            JobStatus::Queued.into_sql::<Text>(),
            batch_id.into_sql::<Nullable<SqlUuid>>(),
            parent_job_id.into_sql::<Nullable<SqlUuid>>(),
        ))
        .for_key_share(); // an owner who is just being deleted is waited for
    let stored = diesel::insert_into(jobs::table)
        .values(row)
        .into_columns((
            jobs::id,
            jobs::user_id,
            jobs::job_type,
            jobs::priority,
            jobs::configuration,
            jobs::status,
            jobs::batch_id,
            jobs::parent_job_id,
        ))
        .on_conflict(jobs::id)
        .do_nothing()
        .returning(Job::as_returning())
        .get_result(conn)
        .await
        .optional()?;
    let Some(stored) = stored else { return not_stored(conn, owner, job).await };
    diesel::insert_into(job_queue::table)
        .values((
            job_queue::job_id.eq(id),
            job_queue::priority.eq(priority),
            job_queue::queue_status.eq(QueueStatus::Queued),
            job_queue::max_retries.eq(max_retries.into_sql::<Integer>()),
        ))
        .execute(conn)
        .await?;
    Ok(stored)
}

/// The job if it was stored before, else why it was not stored now.
async fn not_stored(conn: &mut impl Executor, owner: UserId, job: &NewJob) -> Result<Job> {
    if let Some(before) = find(conn, owner, job.id).await? {
        return Ok(before);
    }
    if diesel::select(exists(jobs::table.filter(jobs::id.eq(job.id)))).get_result(conn).await? {
        return Err(taken(job.id));
    }
    Err(Error::NotFound { entity: if job.parent_job_id.is_some() { "user or parent job" } else { "user" } })
}

/// The id is another job's.
pub(super) fn taken(id: JobId) -> Error {
    Error::Invalid { field: "job.id", value: id.to_string(), allowed: "an id that no other job has".into() }
}

/// Puts the owner's job into the queue that is stored but not in it, as Python may leave one; a waiting worker wakes when the
/// transaction commits.
///
/// An entry that is there already is used: one that waits stays where it is, one that was closed begins anew. Two round
/// trips: run it in a transaction. By primary key and the unique index on the queue's job.
///
/// # Errors
///
/// [`Error::Transition`] unless it is created; [`Error::NotFound`].
pub async fn enqueue(conn: &mut impl Executor, owner: UserId, id: JobId) -> Result<Job> {
    let created = || {
        jobs::table
            .filter(jobs::id.eq(id))
            .filter(jobs::user_id.eq(owner))
            .filter(not(jobs::is_deleted))
            .filter(jobs::status.eq(JobStatus::Created))
    };
    let enqueued = diesel::insert_into(job_queue::table)
        .values(created().select((jobs::id, jobs::priority, QueueStatus::Queued.into_sql::<Text>())))
        .into_columns((job_queue::job_id, job_queue::priority, job_queue::queue_status))
        .on_conflict(job_queue::job_id)
        .do_update()
        .set((
            job_queue::queue_status.eq(QueueStatus::Queued),
            job_queue::queued_at.eq(now),
            job_queue::updated_at.eq(now),
            job_queue::retry_count.eq(0),
            job_queue::completed_at.eq(None::<DateTime<Utc>>),
            job_queue::next_retry_at.eq(None::<DateTime<Utc>>),
        ));
    methods::FilterDsl::filter(enqueued, not(t2m_queue_is_open(job_queue::queue_status))).execute(conn).await?;
    let moved = diesel::update(created())
        .set(jobs::status.eq(JobStatus::Queued))
        .returning(Job::as_returning())
        .get_result(conn)
        .await
        .optional()?;
    told(conn, owner, id, "queued", moved).await
}

/// The owner's job with this id. One round trip, by primary key.
pub async fn find(conn: &mut impl Executor, owner: UserId, id: JobId) -> Result<Option<Job>> {
    let found = jobs::table
        .filter(jobs::id.eq(id))
        .filter(jobs::user_id.eq(owner))
        .filter(not(jobs::is_deleted))
        .select(Job::as_select());
    Ok(found.first(conn).await.optional()?)
}

/// The owner's jobs, the newest first. One round trip, by `jobs_owner_idx`, the same at any depth.
///
/// # Errors
///
/// [`Error::Invalid`] for a cursor of another list.
pub async fn list(conn: &mut impl Executor, owner: UserId, size: PageSize, after: Option<Cursor>) -> Result<Page<Job>> {
    let below = Cursor::key(after, List::Jobs)?;
    let rows = jobs::table
        .filter(jobs::user_id.eq(owner))
        .filter(not(jobs::is_deleted))
        .filter((jobs::created_at, jobs::id).into_sql::<Record<(Timestamptz, SqlUuid)>>().lt(below))
        .order((jobs::created_at.desc(), jobs::id.desc()))
        .limit(size.get() + 1)
        .select(Job::as_select())
        .load(conn)
        .await?;
    Ok(page_of(rows, size, cursor))
}

/// The owner's jobs in one state, the newest first. One round trip, by `jobs_owner_status_idx`, the same at any depth.
///
/// # Errors
///
/// [`Error::Invalid`] for a cursor of another list, or for a status that no column could hold.
pub async fn list_by_status(
    conn: &mut impl Executor,
    owner: UserId,
    status: &JobStatus,
    size: PageSize,
    after: Option<Cursor>,
) -> Result<Page<Job>> {
    text("job.status", status.as_str(), 50)?;
    let below = Cursor::key(after, List::Jobs)?;
    let rows = jobs::table
        .filter(jobs::user_id.eq(owner))
        .filter(not(jobs::is_deleted))
        .filter(jobs::status.eq(status))
        .filter((jobs::created_at, jobs::id).into_sql::<Record<(Timestamptz, SqlUuid)>>().lt(below))
        .order((jobs::created_at.desc(), jobs::id.desc()))
        .limit(size.get() + 1)
        .select(Job::as_select())
        .load(conn)
        .await?;
    Ok(page_of(rows, size, cursor))
}

/// The owner's jobs that are not finished, the newest first, at most 1,000: of more the oldest are left out without a word.
///
/// One round trip, by `jobs_owner_status_idx` and primary key. What a user has under way is little, so it is not paged; where
/// it may not be, [`list_by_status`] is.
pub async fn active(conn: &mut impl Executor, owner: UserId) -> Result<Vec<Job>> {
    let candidate = diesel::alias!(jobs as active_jobs);
    let under_way = candidate
        .filter(candidate.field(jobs::user_id).eq(owner))
        .filter(not(candidate.field(jobs::is_deleted)))
        .filter(candidate.field(jobs::status).eq_any([JobStatus::Created, JobStatus::Queued, JobStatus::Processing]))
        .select(candidate.field(jobs::id));
    // An array: where the planner may choose, it goes through all that the owner ever had, to be spared the sort.
    Ok(jobs::table
        .filter(jobs::id.eq_any(array::<SqlUuid, _>(under_way)))
        .order((jobs::created_at.desc(), jobs::id.desc()))
        .limit(1_000)
        .select(Job::as_select())
        .load(conn)
        .await?)
}

/// The owner's jobs of a batch, in the order in which they were asked for, at most 1,000: of more the newest are left out
/// without a word. One round trip, by `jobs_batch_idx`.
pub async fn batch(conn: &mut impl Executor, owner: UserId, batch_id: Uuid) -> Result<Vec<Job>> {
    Ok(jobs::table
        .filter(jobs::batch_id.eq(batch_id))
        .filter(jobs::user_id.eq(owner))
        .filter(not(jobs::is_deleted))
        .order((jobs::created_at, jobs::id))
        .limit(1_000)
        .select(Job::as_select())
        .load(conn)
        .await?)
}

fn cursor(job: &Job) -> Cursor {
    Cursor::new(List::Jobs, job.created_at, job.id.as_uuid())
}
