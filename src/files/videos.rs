//! Storing, finding, changing and deleting videos.

use std::collections::HashMap;

use diesel::dsl::{case_when, exists, jsonb_typeof, not, now};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Jsonb, Nullable, Record, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use futures_util::try_join;

use super::{NewVideo, Stored, Video, VideoDetails};
use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::schema::{file_metadata, jobs, users};
use crate::types::{Cursor, Document, FileId, FileType, JobId, List, Page, PageSize, UserId, page_of};

/// The most ids that one call takes.
pub(super) const MOST_IDS: usize = 1_000;

pub(super) const NOT_FOUND: Error = Error::NotFound { entity: "video" };

/// Stores a rendered scene.
///
/// The owner must exist, and the job be the same owner's: the INSERT itself looks. One round trip, by the primary keys.
///
/// # Errors
///
/// [`Error::NotFound`] for the user or the job; [`Error::Invalid`] names what does not fit. Nothing is stored then.
pub async fn video_store(conn: &mut impl Executor, owner: UserId, video: &NewVideo) -> Result<Video> {
    video.check()?;
    let NewVideo { job, stored, details, description, tags } = video;
    let Stored {
        original_filename,
        stored_filename,
        s3_bucket,
        s3_key,
        s3_version_id,
        file_size,
        content_type,
        checksum,
    } = stored;
    let job_is_theirs = exists(
        jobs::table
            .filter(jobs::id.nullable().eq(*job))
            .filter(jobs::user_id.is_not_distinct_from(owner))
            .filter(not(jobs::is_deleted)),
    );
    let row = users::table
        .filter(users::id.eq(owner))
        .filter(not(users::is_deleted))
        .filter(job.is_none().into_sql::<Bool>().or(job_is_theirs))
        .select((
            users::id,
            job.into_sql::<Nullable<SqlUuid>>(),
            FileType::Video.into_sql::<Text>(),
            original_filename.into_sql::<Text>(),
            stored_filename.into_sql::<Text>(),
            s3_bucket.into_sql::<Text>(),
            s3_key.into_sql::<Text>(),
            s3_version_id.as_deref().into_sql::<Nullable<Text>>(),
            file_size.into_sql::<BigInt>(),
            content_type.into_sql::<Text>(),
            checksum.as_deref().into_sql::<Nullable<Text>>(),
            Document::new(details.clone()).into_sql::<Jsonb>(),
            description.as_deref().into_sql::<Nullable<Text>>(),
            Document::new(tags.clone()).into_sql::<Jsonb>(),
        ))
        .for_key_share(); // an owner who is just being deleted is waited for
    diesel::insert_into(file_metadata::table)
        .values(row)
        .into_columns((
            file_metadata::user_id,
            file_metadata::job_id,
            file_metadata::file_type,
            file_metadata::original_filename,
            file_metadata::stored_filename,
            file_metadata::s3_bucket,
            file_metadata::s3_key,
            file_metadata::s3_version_id,
            file_metadata::file_size,
            file_metadata::content_type,
            file_metadata::checksum,
            file_metadata::file_metadata_,
            file_metadata::description,
            file_metadata::tags,
        ))
        .returning(Video::as_returning())
        .get_result(conn)
        .await
        .optional()?
        .ok_or(Error::NotFound { entity: if job.is_some() { "user or job" } else { "user" } })
}

/// The owner's video with this id. One round trip, by primary key.
pub async fn video_find(conn: &mut impl Executor, owner: UserId, id: FileId) -> Result<Option<Video>> {
    let found = file_metadata::table
        .filter(file_metadata::id.eq(id))
        .filter(file_metadata::user_id.eq(owner))
        .filter(file_metadata::file_type.eq(FileType::Video))
        .filter(not(file_metadata::is_deleted))
        .select(Video::as_select());
    Ok(found.first(conn).await.optional()?)
}

/// The owner's videos, the newest first. One round trip, by `file_metadata_owner_idx` in its order, the same at any depth.
///
/// # Errors
///
/// [`Error::Invalid`] for a cursor of another list. A document that does not fit is no error here: see
/// [`File::broken_documents`](super::File::broken_documents).
pub async fn video_list(
    conn: &mut impl Executor,
    owner: UserId,
    size: PageSize,
    after: Option<Cursor>,
) -> Result<Page<Video>> {
    let below = Cursor::key(after, List::Files)?;
    let rows = file_metadata::table
        .filter(file_metadata::user_id.eq(owner))
        .filter(file_metadata::file_type.eq(FileType::Video))
        .filter(not(file_metadata::is_deleted))
        .filter((file_metadata::created_at, file_metadata::id).into_sql::<Record<(Timestamptz, SqlUuid)>>().lt(below))
        .order((file_metadata::created_at.desc(), file_metadata::id.desc()))
        .limit(size.get() + 1)
        .select(Video::as_select())
        .load(conn)
        .await?;
    Ok(page_of(rows, size, |video: &Video| Cursor::new(List::Files, video.created_at, video.id.as_uuid())))
}

/// The owner's videos of these jobs, by job, each job's by scene; a job without any is left out.
///
/// One round trip however many jobs, by `file_metadata_job_idx`.
///
/// # Errors
///
/// [`Error::Invalid`] for more than 1,000 jobs.
pub async fn video_by_job(
    conn: &mut impl Executor,
    owner: UserId,
    jobs: &[JobId],
) -> Result<HashMap<JobId, Vec<Video>>> {
    at_most("jobs", jobs.len())?;
    let rows: Vec<Video> = file_metadata::table
        .filter(file_metadata::job_id.eq_any(jobs))
        .filter(file_metadata::user_id.is_not_distinct_from(owner))
        .filter(file_metadata::file_type.eq(FileType::Video))
        .filter(not(file_metadata::is_deleted))
        .select(Video::as_select())
        .load(conn)
        .await?;
    let mut by_job: HashMap<JobId, Vec<Video>> = HashMap::new();
    for video in rows {
        if let Some(job) = video.job_id {
            by_job.entry(job).or_default().push(video);
        }
    }
    for videos in by_job.values_mut() {
        // Sorted here, so that a scene number that is no number does not fail the query.
        videos.sort_by_key(|video| {
            let scene = video.details().ok().and_then(|details| details.scene_number);
            (scene.unwrap_or(i32::MAX), video.created_at, video.id)
        });
    }
    Ok(by_job)
}

/// Sets the keys that `details` of the owner's video has and leaves all others as they are, unknown ones included.
///
/// Details that were read may be changed and sent back: `view_count`, `download_count` and `last_accessed` are left out, and
/// move by [`video_count_view`](super::video_count_view) and [`video_count_download`](super::video_count_download) only.
/// The server merges, so two changes at once lose nothing. One round trip, by primary key.
///
/// # Errors
///
/// [`Error::NotFound`]; [`Error::Invalid`] names what does not fit; [`Error::BrokenDocument`] if the document is no object:
/// it is left as it is then.
pub async fn video_change_details(
    conn: &mut impl Executor,
    owner: UserId,
    id: FileId,
    details: &VideoDetails,
) -> Result<Video> {
    details.check()?;
    let kind = || jsonb_typeof(file_metadata::file_metadata_);
    let changes = details.without_counts();
    let changes = || Document::new(changes.clone());
    // SQLAlchemy stores JSON's null for None.
    let merged = case_when(kind().eq("object"), file_metadata::file_metadata_.concat(changes()))
        .when(kind().eq("null"), changes().into_sql::<Jsonb>())
        .otherwise(file_metadata::file_metadata_);
    let video: Video = diesel::update(file_metadata::table)
        .filter(file_metadata::id.eq(id))
        .filter(file_metadata::user_id.eq(owner))
        .filter(file_metadata::file_type.eq(FileType::Video))
        .filter(not(file_metadata::is_deleted))
        .set(file_metadata::file_metadata_.eq(merged))
        .returning(Video::as_returning())
        .get_result(conn)
        .await
        .optional()?
        .ok_or(NOT_FOUND)?;
    video.is_object()?;
    Ok(video)
}

/// Deletes the owner's video together with its thumbnails and returns how many of these there were.
///
/// Two statements in one round trip, and the second again if it found none: run it in a transaction. By primary key and
/// `file_metadata_video_idx`. A thumbnail that is being stored at the same time goes too, or is refused.
///
/// # Errors
///
/// [`Error::NotFound`]: nothing was deleted.
pub async fn video_delete<C: Executor>(conn: &mut C, owner: UserId, id: FileId) -> Result<usize>
where
    for<'c> &'c C: Executor,
{
    // Whoever stores a thumbnail holds the video, so this may wait. In one statement with the thumbnails it would then still
    // see those of before the wait: hence two.
    let the_video = diesel::update(file_metadata::table)
        .filter(file_metadata::id.eq(id))
        .filter(file_metadata::user_id.is_not_distinct_from(owner))
        .filter(file_metadata::file_type.eq(FileType::Video))
        .filter(not(file_metadata::is_deleted))
        .set((file_metadata::is_deleted.eq(true), file_metadata::deleted_at.eq(now)));
    // The thumbnails only go after their video: one that shows somebody else's is not touched.
    let video = diesel::alias!(file_metadata as the_video);
    let is_gone = || {
        exists(
            video
                .filter(video.field(file_metadata::id).eq(id))
                .filter(video.field(file_metadata::user_id).is_not_distinct_from(owner))
                .filter(video.field(file_metadata::file_type).eq(FileType::Video))
                .filter(video.field(file_metadata::is_deleted)),
        )
    };
    let its_thumbnails = || {
        diesel::update(file_metadata::table)
            .filter(file_metadata::video_id.eq(id.to_string()))
            .filter(file_metadata::user_id.is_not_distinct_from(owner))
            .filter(file_metadata::file_type.eq(FileType::Thumbnail))
            .filter(not(file_metadata::is_deleted))
            .filter(is_gone())
            .set((file_metadata::is_deleted.eq(true), file_metadata::deleted_at.eq(now)))
    };
    let (mut one, mut other) = (&*conn, &*conn);
    let (gone, thumbnails) = try_join!(the_video.execute(&mut one), its_thumbnails().execute(&mut other))?;
    match (gone, thumbnails) {
        (0, _) => Err(NOT_FOUND),
        // A statement that is prepared already overtakes one that is not: it found the video still there.
        (_, 0) => Ok(its_thumbnails().execute(conn).await?),
        (_, thumbnails) => Ok(thumbnails),
    }
}

pub(super) fn at_most(field: &'static str, count: usize) -> Result<()> {
    if count > MOST_IDS {
        let allowed = format!("at most {MOST_IDS} at once").into();
        return Err(Error::Invalid { field, value: count.to_string(), allowed });
    }
    Ok(())
}
