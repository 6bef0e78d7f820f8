//! What there is of everything, counted by the database in one query.

use std::collections::BTreeMap;

use bigdecimal::{BigDecimal, ToPrimitive};
use diesel::dsl::{count_star, not, sum};
use diesel::prelude::*;
use diesel::sql_types::{Nullable, Numeric, Text};
use diesel_async::RunQueryDsl;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::schema::{file_metadata, job_queue, jobs, users};
use crate::types::{FileType, JobStatus, QueueStatus, UserId, UserStatus};

/// How many there are, and how large they are together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Rows.
    pub count: i64,
    /// Bytes.
    pub bytes: i64,
}

/// What a user has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UserStatistics {
    /// Jobs by status.
    pub jobs: BTreeMap<JobStatus, i64>,
    /// Files by type, with their bytes.
    pub files: BTreeMap<FileType, Tally>,
}

impl UserStatistics {
    /// All files together.
    pub fn total(&self) -> Tally {
        total(&self.files)
    }
}

/// What all users together have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SystemStatistics {
    /// Users by status.
    pub users: BTreeMap<UserStatus, i64>,
    /// Jobs by status.
    pub jobs: BTreeMap<JobStatus, i64>,
    /// Queue entries by status.
    pub queue: BTreeMap<QueueStatus, i64>,
    /// Files by type, with their bytes.
    pub files: BTreeMap<FileType, Tally>,
}

impl SystemStatistics {
    /// All files together.
    pub fn total(&self) -> Tally {
        total(&self.files)
    }
}

fn total(files: &BTreeMap<FileType, Tally>) -> Tally {
    files.values().fold(Tally::default(), |sum, tally| Tally {
        count: sum.count + tally.count,
        bytes: sum.bytes.saturating_add(tally.bytes),
    })
}

/// One line of the answer: what is counted, by which value, how many, how many bytes.
type Line = (String, String, i64, Option<BigDecimal>);

/// Counts a user's jobs by status and files by type.
///
/// One round trip, from `jobs_owner_status_idx` and `file_metadata_usage_idx` alone.
///
/// # Errors
///
/// [`Error::NotFound`] if there is no such user: one without anything has a line of zeroes, not an error.
pub async fn statistics(conn: &mut impl Executor, owner: UserId) -> Result<UserStatistics> {
    let none = || None::<BigDecimal>.into_sql::<Nullable<Numeric>>();
    let user = users::table.filter(users::id.eq(owner)).filter(not(users::is_deleted)).group_by(users::id).select((
        "user".into_sql::<Text>(),
        "".into_sql::<Text>(),
        count_star(),
        none(),
    ));
    let jobs = jobs::table
        .filter(jobs::user_id.eq(owner))
        .filter(not(jobs::is_deleted))
        .group_by(jobs::status)
        .select(("job".into_sql::<Text>(), jobs::status, count_star(), none()));
    let files = file_metadata::table
        .filter(file_metadata::user_id.eq(owner))
        .filter(not(file_metadata::is_deleted))
        .group_by(file_metadata::file_type)
        .select(("file".into_sql::<Text>(), file_metadata::file_type, count_star(), sum(file_metadata::file_size)));
    let lines: Vec<Line> = user.union_all(jobs).union_all(files).load(conn).await?;
    let mut found = UserStatistics::default();
    let mut exists = false;
    for (kind, value, count, bytes) in lines {
        match kind.as_str() {
            "job" => drop(found.jobs.insert(value.into(), count)),
            "file" => drop(found.files.insert(value.into(), tally(count, bytes))),
            _ => exists = true,
        }
    }
    if exists { Ok(found) } else { Err(Error::NotFound { entity: "user" }) }
}

/// Counts everything there is; for operators. One round trip. Reads four tables whole: ask now and then, not per request.
pub async fn system_statistics(conn: &mut impl Executor) -> Result<SystemStatistics> {
    let none = || None::<BigDecimal>.into_sql::<Nullable<Numeric>>();
    let users = users::table.filter(not(users::is_deleted)).group_by(users::status).select((
        "user".into_sql::<Text>(),
        users::status,
        count_star(),
        none(),
    ));
    let jobs = jobs::table.filter(not(jobs::is_deleted)).group_by(jobs::status).select((
        "job".into_sql::<Text>(),
        jobs::status,
        count_star(),
        none(),
    ));
    let queue = job_queue::table.group_by(job_queue::queue_status).select((
        "queue".into_sql::<Text>(),
        job_queue::queue_status,
        count_star(),
        none(),
    ));
    let files = file_metadata::table
        .filter(not(file_metadata::is_deleted))
        .group_by(file_metadata::file_type)
        .select(("file".into_sql::<Text>(), file_metadata::file_type, count_star(), sum(file_metadata::file_size)));
    let lines: Vec<Line> = users.union_all(jobs).union_all(queue).union_all(files).load(conn).await?;
    let mut found = SystemStatistics::default();
    for (kind, value, count, bytes) in lines {
        match kind.as_str() {
            "user" => drop(found.users.insert(value.into(), count)),
            "job" => drop(found.jobs.insert(value.into(), count)),
            "queue" => drop(found.queue.insert(value.into(), count)),
            _ => drop(found.files.insert(value.into(), tally(count, bytes))),
        }
    }
    Ok(found)
}

/// A sum of bytes is a `numeric` on the server; past what an i64 holds (8 exabytes) it stays there.
fn tally(count: i64, bytes: Option<BigDecimal>) -> Tally {
    Tally { count, bytes: bytes.map_or(0, |bytes| bytes.to_i64().unwrap_or(i64::MAX)) }
}
