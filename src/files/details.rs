//! The document of a file, by type of file. Every key is optional and unknown ones are kept: Python writes them too.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::types::{Extra, FileId, document, finite};

/// What is known of a video.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VideoDetails {
    /// Which scene of its job, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scene_number: Option<i32>,
    /// How long it runs, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<f64>,
    /// Width in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<i32>,
    /// Height in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<i32>,
    /// Frames a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame_rate: Option<f64>,
    /// A hash of its content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_hash: Option<String>,
    /// How long its upload took, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_duration_seconds: Option<f64>,
    /// How often it was viewed. Counted by [`video_count_view`](super::video_count_view) only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub view_count: Option<i64>,
    /// How often it was downloaded. Counted by [`video_count_download`](super::video_count_download) only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download_count: Option<i64>,
    /// When it was last viewed or downloaded. Set with the counters only.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::types::time")]
    pub last_accessed: Option<DateTime<Utc>>,
    /// Whatever else is known.
    #[serde(flatten)]
    pub extra: Extra,
}

impl VideoDetails {
    pub(super) fn check(&self) -> Result<()> {
        finite("video.duration_seconds", self.duration_seconds)?;
        finite("video.frame_rate", self.frame_rate)?;
        finite("video.upload_duration_seconds", self.upload_duration_seconds)?;
        not_negative("video.scene_number", self.scene_number)?;
        not_negative("video.width", self.width)?;
        not_negative("video.height", self.height)?;
        not_negative("video.view_count", self.view_count)?;
        not_negative("video.download_count", self.download_count)?;
        document("video.details", self)
    }

    /// What may be set: a count that was read is out of date when it is written back.
    pub(super) fn without_counts(&self) -> Self {
        let mut extra = self.extra.clone();
        extra.retain(|key, _| !["view_count", "download_count", "last_accessed"].contains(&key.as_str()));
        Self { view_count: None, download_count: None, last_accessed: None, extra, ..self.clone() }
    }
}

/// What is known of a thumbnail.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ThumbnailDetails {
    /// The video that it shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub video_id: Option<FileId>,
    /// Width in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<i32>,
    /// Height in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<i32>,
    /// Where in the video it was taken, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp_seconds: Option<f64>,
    /// Whatever else is known.
    #[serde(flatten)]
    pub extra: Extra,
}

impl ThumbnailDetails {
    pub(super) fn check(&self) -> Result<()> {
        finite("thumbnail.timestamp_seconds", self.timestamp_seconds)?;
        not_negative("thumbnail.width", self.width)?;
        not_negative("thumbnail.height", self.height)?;
        document("thumbnail.details", self)
    }
}

fn not_negative<N: Into<i64> + Copy>(field: &'static str, value: Option<N>) -> Result<()> {
    match value.map(Into::into) {
        Some(value) if value < 0 => {
            Err(Error::Invalid { field, value: value.to_string(), allowed: "0 or more".into() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negative_measure_is_refused_by_name() {
        let details = VideoDetails { duration_seconds: Some(-1.0), ..VideoDetails::default() };
        assert!(details.check().unwrap_err().to_string().contains("video.duration_seconds"));
        let details = ThumbnailDetails { width: Some(-1), ..ThumbnailDetails::default() };
        assert!(details.check().unwrap_err().to_string().contains("thumbnail.width"));
    }
}
