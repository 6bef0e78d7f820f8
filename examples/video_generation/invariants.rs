//! What must be true in the database when all is done, each asked as "how many break it?".

use diesel::dsl::{count_star, not};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use t2m_db::schema::{file_metadata, job_queue, jobs};
use t2m_db::types::{FileType, JobStatus};
use t2m_db::{Connection, Database, Error, Result};
use uuid::Uuid;

use crate::film::{FATE, Fate, SCENES, THUMBNAILS};

diesel::table! {
    /// The server's own list of sessions.
    pg_stat_activity (pid) {
        /// The server process.
        pid -> Int4,
        /// What the client calls itself.
        application_name -> Nullable<Text>,
        /// `active`, `idle`, `idle in transaction`, ...
        state -> Nullable<Text>,
    }
}

/// Something that must be so.
#[derive(Debug)]
pub(crate) struct Invariant {
    pub(crate) what: String,
    /// How many are not so.
    pub(crate) broken: i64,
}

impl Invariant {
    pub(crate) fn new(what: impl Into<String>, broken: i64) -> Self {
        Self { what: what.into(), broken }
    }

    /// One that is so or is not.
    pub(crate) fn holds(what: impl Into<String>, holds: bool) -> Self {
        Self::new(what, i64::from(!holds))
    }
}

/// The files of a type that the job of the outer query has.
macro_rules! files_of_job {
    ($type:expr) => {
        file_metadata::table
            .filter(file_metadata::job_id.eq(jobs::id.nullable()))
            .filter(file_metadata::file_type.eq($type))
            .filter(not(file_metadata::is_deleted))
            .count()
            .single_value()
            .assume_not_null()
    };
}

/// How far a run came, and so what can be asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// Every job was to come to its end.
    End,
    /// It was interrupted, and the workers gave back what they held.
    GivenBack,
    /// It was interrupted, and leases of workers that were killed may still run.
    Somewhere,
}

/// Asks for all of them in one snapshot.
pub(crate) async fn check(db: &Database, run: Uuid, reached: Reached) -> Result<Vec<Invariant>> {
    db.transaction("invariants")
        .isolation(t2m_db::Isolation::RepeatableRead)
        .read_only()
        .run(async |tx| {
            let mut found = of_files(tx, run).await?;
            found.extend(of_queue(tx, run, reached).await?);
            if reached == Reached::End {
                found.extend(of_ends(tx, run).await?);
            }
            Ok::<_, Error>(found)
        })
        .await
}

async fn of_files(tx: &mut t2m_db::Transaction, run: Uuid) -> Result<Vec<Invariant>> {
    let (scenes, thumbnails) = (i64::from(SCENES), i64::from(SCENES * THUMBNAILS));
    let of_run = || jobs::table.filter(jobs::batch_id.eq(run));
    let without_scenes = of_run()
        .filter(jobs::status.eq(JobStatus::Completed))
        .filter(files_of_job!(FileType::Video).ne(scenes))
        .count();
    let without_thumbnails = of_run()
        .filter(jobs::status.eq(JobStatus::Completed))
        .filter(files_of_job!(FileType::Thumbnail).ne(thumbnails))
        .count();
    let with_files = of_run()
        .filter(jobs::status.ne(JobStatus::Completed))
        .filter((files_of_job!(FileType::Video) + files_of_job!(FileType::Thumbnail)).ne(0))
        .count();
    let stored_twice = file_metadata::table
        .inner_join(jobs::table)
        .filter(jobs::batch_id.eq(run))
        .group_by(file_metadata::s3_key)
        .having(count_star().gt(1))
        .select(file_metadata::s3_key);
    let stored_twice: Vec<String> = stored_twice.load(tx).await?;
    Ok(vec![
        Invariant::new(format!("a completed job has its {scenes} scenes"), without_scenes.get_result(tx).await?),
        Invariant::new(format!("and its {thumbnails} thumbnails"), without_thumbnails.get_result(tx).await?),
        Invariant::new("any other job has no file", with_files.get_result(tx).await?),
        Invariant::new("no file is stored twice", i64::try_from(stored_twice.len()).unwrap_or(i64::MAX)),
    ])
}

async fn of_queue(tx: &mut t2m_db::Transaction, run: Uuid, reached: Reached) -> Result<Vec<Invariant>> {
    let of_run = || job_queue::table.inner_join(jobs::table).filter(jobs::batch_id.eq(run));
    let disagree = of_run().filter(job_queue::queue_status.ne(jobs::status)).count();
    let mut found = vec![Invariant::new("jobs and queue agree", disagree.get_result(tx).await?)];
    if reached != Reached::Somewhere {
        let held = of_run().filter(job_queue::lease_expires_at.is_not_null()).count();
        found.push(Invariant::new("no worker holds a lease any more", held.get_result(tx).await?));
    }
    Ok(found)
}

async fn of_ends(tx: &mut t2m_db::Transaction, run: Uuid) -> Result<Vec<Invariant>> {
    let of_run = || jobs::table.filter(jobs::batch_id.eq(run));
    let of_fates = |fates: &[Fate]| {
        let fates: Vec<_> = fates.iter().map(|fate| fate.as_str()).collect();
        of_run().filter(jobs::configuration.retrieve_as_text(FATE).assume_not_null().eq_any(fates))
    };
    let open =
        of_run().filter(jobs::status.ne_all([JobStatus::Completed, JobStatus::Failed, JobStatus::Cancelled])).count();
    let to_complete = of_fates(&[Fate::Completes, Fate::FailsOnce, Fate::Panics])
        .filter(jobs::status.ne(JobStatus::Completed))
        .count();
    let to_fail = of_fates(&[Fate::Fails, Fate::Unreadable]).filter(jobs::status.ne(JobStatus::Failed)).count();
    let to_be_cancelled =
        of_fates(&[Fate::Cancelled]).filter(jobs::status.ne_all([JobStatus::Cancelled, JobStatus::Completed])).count();
    Ok(vec![
        Invariant::new("every job came to its end", open.get_result(tx).await?),
        Invariant::new("what was to complete is completed", to_complete.get_result(tx).await?),
        Invariant::new("what was to fail has failed", to_fail.get_result(tx).await?),
        Invariant::new("what was called off is cancelled, or was stored before", to_be_cancelled.get_result(tx).await?),
    ])
}

/// The sessions that call themselves so, by state.
pub(crate) async fn sessions(conn: &mut Connection, application_name: &str) -> Result<Vec<(String, i64)>> {
    let sessions: Vec<(Option<String>, i64)> = pg_stat_activity::table
        .filter(pg_stat_activity::application_name.eq(application_name))
        .group_by(pg_stat_activity::state)
        .select((pg_stat_activity::state, count_star()))
        .load(conn)
        .await?;
    Ok(sessions.into_iter().map(|(state, count)| (state.unwrap_or_else(|| "unknown".to_owned()), count)).collect())
}
