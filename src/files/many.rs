//! Storing files by the thousand, each chunk in one statement that stays prepared.

use std::collections::HashSet;

use diesel::dsl::{exists, not};
use diesel::prelude::*;
use diesel::sql_types::{Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::videos::NOT_FOUND;
use super::{NewThumbnail, NewVideo, Stored, Thumbnail};
use crate::bulk::{Json, Named, With, check_each, chunk, incoming, length};
use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::schema::{file_metadata, jobs, users};
use crate::types::{FileId, FileType, UserId};

diesel::table! {
    new_files (id) {
        id -> Uuid,
        parent -> Nullable<Uuid>,
        original_filename -> Text,
        stored_filename -> Text,
        s3_bucket -> Text,
        s3_key -> Text,
        s3_version_id -> Nullable<Text>,
        file_size -> BigInt,
        content_type -> Text,
        checksum -> Nullable<Text>,
        details -> Jsonb,
        description -> Nullable<Text>,
        tags -> Jsonb,
    }
}

diesel::table! {
    held_videos (id) {
        id -> Uuid,
        job_id -> Nullable<Uuid>,
    }
}

diesel::allow_tables_to_appear_in_same_query!(new_files, held_videos);
diesel::allow_tables_to_appear_in_same_query!(new_files, jobs);
diesel::allow_tables_to_appear_in_same_query!(new_files, users);

incoming! {
    /// Files of a chunk; the parent of a video is its job, that of a thumbnail its video.
    struct Rows<'a> for new_files {
        id: FileId,
        parent: Option<Uuid>,
        original_filename: &'a str,
        stored_filename: &'a str,
        s3_bucket: &'a str,
        s3_key: &'a str,
        s3_version_id: Option<&'a str>,
        file_size: i64,
        content_type: &'a str,
        checksum: Option<&'a str>,
        details: Json,
        description: Option<&'a str>,
        tags: Json,
    }
}

impl<'a> Rows<'a> {
    /// Adds a file and returns its bytes.
    fn push(
        &mut self,
        parent: Option<Uuid>,
        stored: &'a Stored,
        details: Json,
        description: Option<&'a str>,
        tags: Json,
    ) -> usize {
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
        let (version, sum) = (s3_version_id.as_deref(), checksum.as_deref());
        let texts = [original_filename, stored_filename, s3_bucket, s3_key, content_type].map(|text| Some(&**text));
        // Ids, the size, and four bytes of length for each of 13 values.
        let bytes = 92 + length(texts) + length([version, sum, description]) + details.len() + tags.len();
        self.id.push(FileId::random());
        self.parent.push(parent);
        self.original_filename.push(original_filename);
        self.stored_filename.push(stored_filename);
        self.s3_bucket.push(s3_bucket);
        self.s3_key.push(s3_key);
        self.s3_version_id.push(version);
        self.file_size.push(*file_size);
        self.content_type.push(content_type);
        self.checksum.push(sum);
        self.details.push(details);
        self.description.push(description);
        self.tags.push(tags);
        bytes
    }

    fn push_thumbnail(&mut self, thumbnail: &'a NewThumbnail) -> Result<usize> {
        let details = Json::of(&thumbnail.document())?;
        Ok(self.push(Some(thumbnail.video.into()), &thumbnail.stored, details, None, Json::of(&[(); 0])?))
    }

    /// Every parent once, and how many there are.
    fn parents(&self) -> (Vec<Uuid>, i64) {
        let parents: HashSet<Uuid> = self.parent.iter().copied().flatten().collect();
        let count = i64::try_from(parents.len()).unwrap_or(i64::MAX);
        (parents.into_iter().collect(), count)
    }
}

/// Stores rendered scenes and returns their ids in the order given.
///
/// Each 4 MiB of them, some 10,000, take one round trip: run it in a transaction. By the primary keys. The owner must exist,
/// and every job be the same owner's: the INSERT itself looks.
///
/// # Errors
///
/// [`Error::NotFound`] for the user. [`Error::Row`] names the first video that does not fit, before anything is sent, or
/// whose job is not the owner's. Its chunk is not stored then, and nothing is if the transaction ends with that error.
pub async fn video_store_many(conn: &mut impl Executor, owner: UserId, videos: &[NewVideo]) -> Result<Vec<FileId>> {
    check_each(videos, NewVideo::check)?;
    let (mut ids, mut rest) = (Vec::with_capacity(videos.len()), videos);
    while !rest.is_empty() {
        let rows = chunk(&mut rest, |rows: &mut Rows<'_>, video: &NewVideo| {
            let NewVideo { job, stored, details, description, tags } = video;
            let (details, tags) = (Json::of(details)?, Json::of(tags)?);
            Ok(rows.push(job.map(Uuid::from), stored, details, description.as_deref(), tags))
        })?;
        insert_videos(conn, owner, &rows, ids.len()).await?;
        ids.extend(rows.id);
    }
    Ok(ids)
}

async fn insert_videos(conn: &mut impl Executor, owner: UserId, rows: &Rows<'_>, first: usize) -> Result<()> {
    let (wanted, count) = rows.parents();
    let theirs = jobs::table
        .filter(jobs::id.eq_any(&wanted))
        .filter(jobs::user_id.is_not_distinct_from(owner))
        .filter(not(jobs::is_deleted))
        .select(diesel::dsl::count_star());
    // An owner who is just being deleted is waited for.
    let there = users::table.filter(users::id.eq(owner)).filter(not(users::is_deleted)).for_key_share();
    let query = diesel::insert_into(file_metadata::table)
        .values(new_files::table.filter(exists(there)).filter(theirs.single_value().eq(count)).select((
            new_files::id,
            owner.into_sql::<SqlUuid>(),
            new_files::parent,
            FileType::Video.into_sql::<Text>(),
            new_files::original_filename,
            new_files::stored_filename,
            new_files::s3_bucket,
            new_files::s3_key,
            new_files::s3_version_id,
            new_files::file_size,
            new_files::content_type,
            new_files::checksum,
            new_files::details,
            new_files::description,
            new_files::tags,
        )))
        .into_columns((
            file_metadata::id,
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
        ));
    if (With { rows, query }).execute(conn).await? == rows.id.len() {
        return Ok(());
    }
    let theirs: Vec<Uuid> = jobs::table
        .filter(jobs::id.eq_any(&wanted))
        .filter(jobs::user_id.is_not_distinct_from(owner))
        .filter(not(jobs::is_deleted))
        .select(jobs::id)
        .load(conn)
        .await?;
    let stray = rows.parent.iter().position(|job| job.is_some_and(|job| !theirs.contains(&job)));
    Err(match stray {
        Some(index) => Error::NotFound { entity: "job" }.of_row(first + index),
        None => Error::NotFound { entity: "user" },
    })
}

/// Stores a thumbnail, with the job of its video.
///
/// One round trip, by primary key. It holds the video, so that that is not deleted before its thumbnail is there.
///
/// # Errors
///
/// [`Error::NotFound`] unless the video is the owner's; [`Error::Invalid`] names what does not fit. Nothing is stored then.
pub async fn thumbnail_store(conn: &mut impl Executor, owner: UserId, thumbnail: &NewThumbnail) -> Result<Thumbnail> {
    thumbnail.check()?;
    let mut rows = Rows::default();
    rows.push_thumbnail(thumbnail)?;
    insert_thumbnails(conn, owner, &rows).await?.pop().ok_or(NOT_FOUND)
}

/// Stores thumbnails, with the job of their video, and returns their ids in the order given.
///
/// Each 4 MiB of them, some 10,000, take one round trip: run it in a transaction. By primary key. It holds the videos, so
/// that none is deleted before its thumbnails are there.
///
/// # Errors
///
/// [`Error::Row`] names the first thumbnail that does not fit, before anything is sent, or whose video is not the owner's.
/// Its chunk is not stored then, and nothing is if the transaction ends with that error.
pub async fn thumbnail_store_many(
    conn: &mut impl Executor,
    owner: UserId,
    thumbnails: &[NewThumbnail],
) -> Result<Vec<FileId>> {
    check_each(thumbnails, NewThumbnail::check)?;
    let (mut ids, mut rest) = (Vec::with_capacity(thumbnails.len()), thumbnails);
    while !rest.is_empty() {
        let rows = chunk(&mut rest, Rows::push_thumbnail)?;
        if insert_thumbnails(conn, owner, &rows).await?.is_empty() {
            let (wanted, _) = rows.parents();
            let theirs: HashSet<Uuid> = file_metadata::table
                .filter(file_metadata::id.eq_any(wanted))
                .filter(file_metadata::user_id.is_not_distinct_from(owner))
                .filter(file_metadata::file_type.eq(FileType::Video))
                .filter(not(file_metadata::is_deleted))
                .select(file_metadata::id)
                .load(conn)
                .await?
                .into_iter()
                .collect();
            let stray = rows.parent.iter().position(|video| video.is_none_or(|video| !theirs.contains(&video)));
            return Err(NOT_FOUND.of_row(ids.len() + stray.unwrap_or(0)));
        }
        ids.extend(rows.id);
    }
    Ok(ids)
}

async fn insert_thumbnails(conn: &mut impl Executor, owner: UserId, rows: &Rows<'_>) -> Result<Vec<Thumbnail>> {
    let (wanted, count) = rows.parents();
    let held = file_metadata::table
        .filter(file_metadata::id.eq_any(&wanted))
        .filter(file_metadata::user_id.is_not_distinct_from(owner))
        .filter(file_metadata::file_type.eq(FileType::Video))
        .filter(not(file_metadata::is_deleted))
        .select((file_metadata::id, file_metadata::job_id))
        .order(file_metadata::id) // locked in one order by everybody
        .for_share();
    let all_held = diesel::alias!(held_videos as all_held);
    let query = diesel::insert_into(file_metadata::table)
        .values(
            new_files::table
                .inner_join(held_videos::table.on(new_files::parent.eq(held_videos::id.nullable())))
                .filter(all_held.select(diesel::dsl::count_star()).single_value().eq(count))
                .select((
                    new_files::id,
                    owner.into_sql::<SqlUuid>(),
                    held_videos::job_id,
                    FileType::Thumbnail.into_sql::<Text>(),
                    new_files::original_filename,
                    new_files::stored_filename,
                    new_files::s3_bucket,
                    new_files::s3_key,
                    new_files::s3_version_id,
                    new_files::file_size,
                    new_files::content_type,
                    new_files::checksum,
                    new_files::details,
                )),
        )
        .into_columns((
            file_metadata::id,
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
        ))
        .returning(Thumbnail::as_returning());
    Ok(With { rows: (rows, Named("held_videos", held)), query }.get_results(conn).await?)
}
