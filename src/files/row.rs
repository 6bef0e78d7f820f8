//! A file as stored.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use serde::Serialize;

use super::{ThumbnailDetails, VideoDetails};
use crate::error::{Error, Result};
use crate::schema::file_metadata;
use crate::types::{Broken, Document, FileId, FileType, JobId, UserId};

/// A file that is not deleted, with a document of type `D`.
#[derive(Debug, Clone, PartialEq, Serialize, Queryable, Selectable)]
#[diesel(table_name = file_metadata, check_for_backend(diesel::pg::Pg))]
#[expect(missing_docs, reason = "the columns are documented in `schema`, and there only")]
pub struct File<D: FileDocument> {
    pub id: FileId,
    pub user_id: UserId,
    pub job_id: Option<JobId>,
    pub file_type: FileType,
    pub original_filename: String,
    pub stored_filename: String,
    pub s3_bucket: String,
    pub s3_key: String,
    pub s3_version_id: Option<String>,
    pub file_size: i64,
    pub content_type: String,
    pub checksum: Option<String>,
    #[diesel(column_name = file_metadata_)]
    pub file_metadata: Document<D>,
    pub description: Option<String>,
    pub tags: Document<Vec<String>>,
    pub last_accessed_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// A type of document that a file may have.
pub trait FileDocument: Clone + Default + std::fmt::Debug + serde::de::DeserializeOwned + Serialize + 'static {}

impl FileDocument for VideoDetails {}
impl FileDocument for ThumbnailDetails {}
/// Of a file that may be of any type.
impl FileDocument for serde_json::Value {}

/// A rendered scene or film.
pub type Video = File<VideoDetails>;

/// A still of a video.
pub type Thumbnail = File<ThumbnailDetails>;

impl<D: FileDocument> File<D> {
    /// What is known of it beyond its columns.
    ///
    /// # Errors
    ///
    /// [`Error::BrokenDocument`] with table, id and path. The rest of the row, and of its list, is not affected.
    pub fn details(&self) -> Result<&D> {
        self.file_metadata.get().map_err(|broken| self.broken("file_metadata", broken))
    }

    /// An error if the document is no object: nothing could be put into it.
    pub(super) fn is_object(&self) -> Result<()> {
        match self.file_metadata.broken() {
            Some(broken) if !broken.raw.is_object() => Err(self.broken("file_metadata", broken)),
            _ => Ok(()),
        }
    }

    /// Every document of this file that does not fit its type, as an error with table, id and path.
    pub fn broken_documents(&self) -> Vec<Error> {
        let documents = [("file_metadata", self.file_metadata.broken()), ("tags", self.tags.broken())];
        documents.into_iter().filter_map(|(column, broken)| Some(self.broken(column, broken?))).collect()
    }

    fn broken(&self, column: &str, broken: &Broken) -> Error {
        Error::BrokenDocument {
            table: "file_metadata",
            id: self.id.as_uuid(),
            path: [column, &broken.path].join(".").trim_end_matches('.').to_owned(),
            reason: broken.reason.clone(),
        }
    }

    /// The same file with its document read as another type.
    pub(super) fn retyped<E: FileDocument>(self) -> File<E> {
        let Self {
            id,
            user_id,
            job_id,
            file_type,
            original_filename,
            stored_filename,
            s3_bucket,
            s3_key,
            s3_version_id,
            file_size,
            content_type,
            checksum,
            file_metadata,
            description,
            tags,
            last_accessed_at,
            created_at,
            updated_at,
        } = self;
        let raw = match file_metadata.into_inner() {
            Ok(document) => serde_json::to_value(document).unwrap_or_default(),
            Err(broken) => broken.raw,
        };
        File {
            id,
            user_id,
            job_id,
            file_type,
            original_filename,
            stored_filename,
            s3_bucket,
            s3_key,
            s3_version_id,
            file_size,
            content_type,
            checksum,
            file_metadata: Document::from_value(raw),
            description,
            tags,
            last_accessed_at,
            created_at,
            updated_at,
        }
    }
}
