//! Thumbnails of a video, once they are stored.

use diesel::dsl::{not, now};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde_json::Value;

use super::Thumbnail;
use crate::error::Result;
use crate::executor::Executor;
use crate::schema::file_metadata;
use crate::types::sql::t2m_thumbnail_at;
use crate::types::{FileId, FileType, UserId};

/// The first 1,000 thumbnails of the owner's video by their time in it; those without a time come last.
///
/// A video that may have more gives all of them in [`video_playlist`](super::video_playlist). One round trip, by
/// `file_metadata_video_idx`. A video of somebody else has none.
pub async fn thumbnail_list(conn: &mut impl Executor, owner: UserId, video: FileId) -> Result<Vec<Thumbnail>> {
    Ok(file_metadata::table
        .filter(file_metadata::video_id.eq(video.to_string()))
        .filter(file_metadata::user_id.eq(owner))
        .filter(file_metadata::file_type.eq(FileType::Thumbnail))
        .filter(not(file_metadata::is_deleted))
        .order((
            t2m_thumbnail_at(file_metadata::file_metadata_).asc().nulls_last(),
            file_metadata::created_at,
            file_metadata::id,
        ))
        .limit(1_000)
        .select(Thumbnail::as_select())
        .load(conn)
        .await?)
}

/// Deletes the thumbnails of the owner's video and returns how many there were. One round trip, by `file_metadata_video_idx`.
///
/// A video without any, and a video of somebody else, both have none to delete.
pub async fn thumbnail_delete(conn: &mut impl Executor, owner: UserId, video: FileId) -> Result<usize> {
    Ok(diesel::update(file_metadata::table)
        .filter(file_metadata::video_id.eq(video.to_string()))
        .filter(file_metadata::user_id.eq(owner))
        .filter(file_metadata::file_type.eq(FileType::Thumbnail))
        .filter(not(file_metadata::is_deleted))
        .set((file_metadata::is_deleted.eq(true), file_metadata::deleted_at.eq(now)))
        .execute(conn)
        .await?)
}

/// The order of [`thumbnail_list`], for thumbnails that came with others: there the server reads a broken document too.
pub(super) fn sort(thumbnails: &mut [Thumbnail]) {
    let at = |thumbnail: &Thumbnail| match thumbnail.file_metadata.broken() {
        Some(broken) => broken.raw.get("timestamp_seconds").and_then(Value::as_f64),
        None => thumbnail.details().ok().and_then(|details| details.timestamp_seconds),
    };
    thumbnails.sort_by(|one, other| {
        let time = |thumbnail| at(thumbnail).unwrap_or(f64::INFINITY);
        time(one).total_cmp(&time(other)).then(one.created_at.cmp(&other.created_at)).then(one.id.cmp(&other.id))
    });
}
