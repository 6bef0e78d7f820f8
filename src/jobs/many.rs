//! Storing and enqueueing jobs by the thousand.

use std::collections::HashSet;

use diesel::dsl::{exists, not};
use diesel::prelude::*;
use diesel::sql_types::{Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::NewJob;
use super::queries::taken;
use crate::bulk::{Json, With, check_each, chunk, first_taken, incoming, name_row};
use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::schema::{job_queue, jobs, users};
use crate::types::{JobId, JobStatus, JobType, Priority, QueueStatus, UserId};

diesel::table! {
    new_jobs (id) {
        id -> Uuid,
        job_type -> Text,
        priority -> Text,
        configuration -> Jsonb,
        batch_id -> Nullable<Uuid>,
        parent_job_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    new_entries (job_id) {
        job_id -> Uuid,
        priority -> Text,
        max_retries -> Integer,
    }
}

diesel::allow_tables_to_appear_in_same_query!(new_jobs, jobs);
diesel::allow_tables_to_appear_in_same_query!(new_jobs, users);

incoming! {
    struct Jobs<'a> for new_jobs {
        id: JobId,
        job_type: &'a JobType,
        priority: &'a Priority,
        configuration: Json,
        batch_id: Option<Uuid>,
        parent_job_id: Option<JobId>,
    }
}

incoming! {
    struct Entries<'a> for new_entries {
        job_id: JobId,
        priority: &'a Priority,
        max_retries: i32,
    }
}

#[derive(Default)]
struct Rows<'a>(Jobs<'a>, Entries<'a>);

impl<'a> Rows<'a> {
    fn push(&mut self, job: &'a NewJob) -> Result<usize> {
        let NewJob { id, job_type, priority, configuration, batch_id, parent_job_id, max_retries } = job;
        let configuration = Json::of(configuration)?;
        let bytes = 150 + configuration.len();
        let Self(jobs, entries) = self;
        jobs.id.push(*id);
        jobs.job_type.push(job_type);
        jobs.priority.push(priority);
        jobs.configuration.push(configuration);
        jobs.batch_id.push(*batch_id);
        jobs.parent_job_id.push(*parent_job_id);
        entries.job_id.push(*id);
        entries.priority.push(priority);
        entries.max_retries.push(*max_retries);
        Ok(bytes)
    }

    /// The jobs of others that these are parts of. One of the same statement is as good as there.
    fn parents(&self) -> Vec<JobId> {
        let own: HashSet<_> = self.0.id.iter().collect();
        let parents: HashSet<_> =
            self.0.parent_job_id.iter().flatten().filter(|parent| !own.contains(parent)).collect();
        parents.into_iter().copied().collect()
    }
}

/// Stores jobs and puts them into the queue; waiting workers wake when the transaction commits.
///
/// Each 4 MiB of them, some 10,000, take two round trips: run it in a transaction. By the primary keys. The owner must
/// exist, and a parent be the same owner's, or come with or before its part: the INSERT itself looks.
///
/// # Errors
///
/// [`Error::NotFound`] for the user. [`Error::Row`] names the first job that does not fit, before anything is sent, whose
/// id is taken, or whose parent is not the owner's. Its chunk is not stored then, and nothing is if the transaction ends
/// with that error.
pub async fn create_and_enqueue_many(conn: &mut impl Executor, owner: UserId, jobs: &[NewJob]) -> Result<()> {
    check_each(jobs, NewJob::check)?;
    if let Some(index) = first_taken(jobs.iter().map(|job| job.id), &HashSet::new()) {
        return Err(taken(jobs[index].id).of_row(index));
    }
    let mut rest = jobs;
    while !rest.is_empty() {
        let first = jobs.len() - rest.len();
        let rows = chunk(&mut rest, Rows::push)?;
        insert(conn, owner, &rows, first).await?;
    }
    Ok(())
}

async fn insert(conn: &mut impl Executor, owner: UserId, rows: &Rows<'_>, first: usize) -> Result<()> {
    let Rows(new, entries) = rows;
    let wanted = rows.parents();
    let found = diesel::alias!(jobs as parent_jobs);
    let parents = found
        .filter(found.field(jobs::id).eq_any(&wanted))
        .filter(found.field(jobs::user_id).is_not_distinct_from(owner))
        .filter(not(found.field(jobs::is_deleted)))
        .select(diesel::dsl::count_star());
    // An owner who is just being deleted is waited for.
    let there = users::table.filter(users::id.eq(owner)).filter(not(users::is_deleted)).for_key_share();
    // Looked for as well, so that a taken id neither aborts the transaction nor stays unnamed.
    let before = jobs::table.filter(jobs::id.eq_any(&new.id));
    let query = diesel::insert_into(jobs::table)
        .values(
            new_jobs::table
                .filter(exists(there))
                .filter(parents.single_value().eq(i64::try_from(wanted.len()).unwrap_or(i64::MAX)))
                .filter(not(exists(before)))
                .select((
                    new_jobs::id,
                    owner.into_sql::<SqlUuid>(),
                    new_jobs::job_type,
                    new_jobs::priority,
                    new_jobs::configuration,
                    JobStatus::Queued.into_sql::<Text>(),
                    new_jobs::batch_id,
                    new_jobs::parent_job_id,
                )),
        )
        .into_columns((
            jobs::id,
            jobs::user_id,
            jobs::job_type,
            jobs::priority,
            jobs::configuration,
            jobs::status,
            jobs::batch_id,
            jobs::parent_job_id,
        ));
    let stored =
        With { rows: new, query }.execute(conn).await.map_err(|error| name_row(error, first, new.id.iter()))?;
    if stored < new.id.len() {
        return Err(refusal(conn, owner, rows, &wanted, first).await?);
    }
    let query = diesel::insert_into(job_queue::table)
        .values(new_entries::table.select((
            new_entries::job_id,
            new_entries::priority,
            QueueStatus::Queued.into_sql::<Text>(),
            new_entries::max_retries,
        )))
        .into_columns((job_queue::job_id, job_queue::priority, job_queue::queue_status, job_queue::max_retries));
    With { rows: entries, query }.execute(conn).await?;
    Ok(())
}

/// Why none was stored.
async fn refusal(
    conn: &mut impl Executor,
    owner: UserId,
    rows: &Rows<'_>,
    wanted: &[JobId],
    first: usize,
) -> Result<Error> {
    let Jobs { id, parent_job_id, .. } = &rows.0;
    let before: HashSet<JobId> =
        jobs::table.filter(jobs::id.eq_any(id)).select(jobs::id).load(conn).await?.into_iter().collect();
    if let Some(index) = first_taken(id.iter().copied(), &before) {
        return Ok(taken(id[index]).of_row(first + index));
    }
    let theirs: Vec<JobId> = jobs::table
        .filter(jobs::id.eq_any(wanted))
        .filter(jobs::user_id.is_not_distinct_from(owner)) // not by all that the owner has
        .filter(not(jobs::is_deleted))
        .select(jobs::id)
        .load(conn)
        .await?;
    let stray = |parent: &JobId| wanted.contains(parent) && !theirs.contains(parent);
    Ok(match parent_job_id.iter().position(|parent| parent.as_ref().is_some_and(stray)) {
        Some(index) => Error::NotFound { entity: "parent job" }.of_row(first + index),
        None => Error::NotFound { entity: "user" },
    })
}
