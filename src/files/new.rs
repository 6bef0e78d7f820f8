//! Files to store, checked before anything is sent.

use super::{ThumbnailDetails, VideoDetails};
use crate::error::{Error, Result};
use crate::types::{FileId, JobId, bytes, text, text_opt};

/// Where a file lies and what it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// Its name as the user knows it; at most 255 characters.
    pub original_filename: String,
    /// Its name as it is stored; at most 255 characters.
    pub stored_filename: String,
    /// Bucket; at most 255 characters.
    pub s3_bucket: String,
    /// Key in the bucket; at most 500 characters.
    pub s3_key: String,
    /// Version of the object, if the bucket keeps them; at most 255 characters.
    pub s3_version_id: Option<String>,
    /// Bytes; 0 or more.
    pub file_size: i64,
    /// MIME type; at most 100 characters.
    pub content_type: String,
    /// SHA-256 in 64 hexadecimal digits.
    pub checksum: Option<String>,
}

impl Stored {
    fn check(&self) -> Result<()> {
        let Self {
            original_filename,
            stored_filename,
            s3_bucket,
            s3_key,
            s3_version_id,
            file_size,
            content_type,
            checksum,
        } = self;
        text("file.original_filename", original_filename, 255)?;
        text("file.stored_filename", stored_filename, 255)?;
        text("file.s3_bucket", s3_bucket, 255)?;
        text("file.s3_key", s3_key, 500)?;
        text_opt("file.s3_version_id", s3_version_id.as_deref(), 255)?;
        bytes("file.file_size", *file_size)?;
        text("file.content_type", content_type, 100)?;
        match checksum.as_deref() {
            Some(sum) if sum.len() != 64 || !sum.bytes().all(|byte| byte.is_ascii_hexdigit()) => Err(Error::Invalid {
                field: "file.checksum",
                value: format!("{:?}", sum.chars().take(64).collect::<String>()),
                allowed: "64 hexadecimal digits".into(),
            }),
            _ => Ok(()),
        }
    }
}

/// A video to store.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NewVideo {
    /// The job that made it; the same owner's.
    pub job: Option<JobId>,
    /// Where it lies.
    pub stored: Stored,
    /// What is known of it.
    pub details: VideoDetails,
    /// Text for people.
    pub description: Option<String>,
    /// Words to find it by.
    pub tags: Vec<String>,
}

impl NewVideo {
    pub(super) fn check(&self) -> Result<()> {
        self.stored.check()?;
        self.details.check()?;
        text_opt("file.description", self.description.as_deref(), usize::MAX)?;
        self.tags.iter().try_for_each(|tag| text("file.tags", tag, 255))
    }
}

/// A thumbnail to store.
#[derive(Debug, Clone, PartialEq)]
pub struct NewThumbnail {
    /// The video that it shows; the same owner's.
    pub video: FileId,
    /// Where it lies.
    pub stored: Stored,
    /// What is known of it; its `video_id` is set to `video`.
    pub details: ThumbnailDetails,
}

impl NewThumbnail {
    pub(super) fn check(&self) -> Result<()> {
        self.stored.check()?;
        self.details.check()
    }

    /// Its document, naming the video.
    pub(super) fn document(&self) -> ThumbnailDetails {
        ThumbnailDetails { video_id: Some(self.video), ..self.details.clone() }
    }
}
