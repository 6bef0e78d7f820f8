//! Videos as they are watched: counters, analytics, playlists.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::dsl::{not, now};
use diesel::prelude::*;
use diesel::sql_types::Timestamptz;
use diesel_async::RunQueryDsl;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::videos::{NOT_FOUND, at_most};
use super::{File, Thumbnail, Video, video_find};
use crate::error::Result;
use crate::executor::Executor;
use crate::schema::file_metadata;
use crate::types::sql::t2m_count;
use crate::types::{FileId, FileType, UserId};

/// Counts a view of the owner's video, notes the access, and returns the video with the new count.
///
/// The server adds, so none is lost among many at once. One round trip, by primary key.
///
/// # Errors
///
/// [`Error::NotFound`](crate::Error::NotFound); [`Error::BrokenDocument`](crate::Error::BrokenDocument) if the document is no object, and then nothing is counted in it.
pub async fn video_count_view(conn: &mut impl Executor, owner: UserId, id: FileId) -> Result<Video> {
    count(conn, owner, id, "view_count").await
}

/// Counts a download of the owner's video, notes the access, and returns the video with the new count.
///
/// The server adds, so none is lost among many at once. One round trip, by primary key.
///
/// # Errors
///
/// [`Error::NotFound`](crate::Error::NotFound); [`Error::BrokenDocument`](crate::Error::BrokenDocument) if the document is no object, and then nothing is counted in it.
pub async fn video_count_download(conn: &mut impl Executor, owner: UserId, id: FileId) -> Result<Video> {
    count(conn, owner, id, "download_count").await
}

async fn count(conn: &mut impl Executor, owner: UserId, id: FileId, counter: &str) -> Result<Video> {
    let video: Video = diesel::update(file_metadata::table)
        .filter(file_metadata::id.eq(id))
        .filter(file_metadata::user_id.eq(owner))
        .filter(file_metadata::file_type.eq(FileType::Video))
        .filter(not(file_metadata::is_deleted))
        .set((
            file_metadata::file_metadata_.eq(t2m_count(
                file_metadata::file_metadata_,
                counter,
                now.into_sql::<Timestamptz>(),
            )),
            file_metadata::last_accessed_at.eq(now),
        ))
        .returning(Video::as_returning())
        .get_result(conn)
        .await
        .optional()?
        .ok_or(NOT_FOUND)?;
    video.is_object()?;
    Ok(video)
}

/// Notes that the owner's video was accessed without counting it. One round trip, by primary key.
///
/// # Errors
///
/// [`Error::NotFound`](crate::Error::NotFound).
pub async fn video_touch(conn: &mut impl Executor, owner: UserId, id: FileId) -> Result<()> {
    let touched = diesel::update(file_metadata::table)
        .filter(file_metadata::id.eq(id))
        .filter(file_metadata::user_id.eq(owner))
        .filter(file_metadata::file_type.eq(FileType::Video))
        .filter(not(file_metadata::is_deleted))
        .set(file_metadata::last_accessed_at.eq(now))
        .execute(conn)
        .await?;
    if touched == 0 { Err(NOT_FOUND) } else { Ok(()) }
}

/// How a video is used.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Analytics {
    /// The video.
    pub video: FileId,
    /// Views.
    pub view_count: i64,
    /// Downloads.
    pub download_count: i64,
    /// The last view or download.
    pub last_accessed_at: Option<DateTime<Utc>>,
    /// Since when it is there.
    pub created_at: DateTime<Utc>,
    /// Bytes.
    pub file_size: i64,
    /// How long it runs, in seconds.
    pub duration_seconds: Option<f64>,
}

/// How the owner's video is used. One round trip, by primary key.
///
/// # Errors
///
/// [`Error::BrokenDocument`](crate::Error::BrokenDocument): a counter that does not read is not shown as zero.
pub async fn video_analytics(conn: &mut impl Executor, owner: UserId, id: FileId) -> Result<Option<Analytics>> {
    let Some(video) = video_find(conn, owner, id).await? else { return Ok(None) };
    let details = video.details()?;
    Ok(Some(Analytics {
        video: id,
        view_count: details.view_count.unwrap_or(0),
        download_count: details.download_count.unwrap_or(0),
        last_accessed_at: video.last_accessed_at.max(details.last_accessed),
        created_at: video.created_at,
        file_size: video.file_size,
        duration_seconds: details.duration_seconds,
    }))
}

/// A video of a playlist.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlaylistEntry {
    /// The video.
    pub video: Video,
    /// Its thumbnails, by their time in the video.
    pub thumbnails: Vec<Thumbnail>,
}

/// Videos in the order in which they were asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Playlist {
    /// The videos that are there.
    pub entries: Vec<PlaylistEntry>,
    /// Those that are not, for this owner.
    pub missing: Vec<FileId>,
    /// How long all of them run, in seconds, as far as they say.
    pub duration_seconds: f64,
}

/// Many of the owner's videos with their thumbnails, in the order of `ids`; one asked for twice is there twice.
///
/// One round trip however many, by primary key and `file_metadata_video_idx`.
///
/// # Errors
///
/// [`Error::Invalid`](crate::Error::Invalid) for more than 1,000 ids. A document that does not fit is no error here.
pub async fn video_playlist(conn: &mut impl Executor, owner: UserId, ids: &[FileId]) -> Result<Playlist> {
    at_most("playlist", ids.len())?;
    let texts: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let is_video = file_metadata::id.eq_any(ids).and(file_metadata::file_type.eq(FileType::Video));
    let is_thumbnail =
        file_metadata::video_id.eq_any(texts).assume_not_null().and(file_metadata::file_type.eq(FileType::Thumbnail));
    let rows: Vec<File<Value>> = file_metadata::table
        .filter(file_metadata::user_id.is_not_distinct_from(owner))
        .filter(not(file_metadata::is_deleted))
        .filter(is_video.or(is_thumbnail))
        .select(File::<Value>::as_select())
        .load(conn)
        .await?;
    let mut videos: HashMap<FileId, PlaylistEntry> = HashMap::new();
    let (films, stills): (Vec<_>, Vec<_>) = rows.into_iter().partition(|file| file.file_type == FileType::Video);
    for film in films {
        videos.insert(film.id, PlaylistEntry { video: film.retyped(), thumbnails: Vec::new() });
    }
    for still in stills {
        // Read by itself, so that what else is wrong in the document does not take the thumbnail from its video.
        let shows =
            still.file_metadata.get().ok().and_then(|details| FileId::deserialize(details.get("video_id")?).ok());
        if let Some(entry) = shows.and_then(|video| videos.get_mut(&video)) {
            entry.thumbnails.push(still.retyped());
        }
    }
    for entry in videos.values_mut() {
        super::thumbnails::sort(&mut entry.thumbnails);
    }
    let mut playlist = Playlist::default();
    for id in ids {
        match videos.get(id) {
            Some(entry) => {
                let details = entry.video.details().ok();
                playlist.duration_seconds += details.and_then(|details| details.duration_seconds).unwrap_or(0.0);
                playlist.entries.push(entry.clone());
            }
            None => playlist.missing.push(*id),
        }
    }
    Ok(playlist)
}
