//! The document of a file, by type of file. Every key is optional and unknown ones are kept: Python writes them too.

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};
use crate::types::{Extra, FileId, finite};

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
    /// When it was last viewed or downloaded.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "lenient_time", default)]
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
        not_negative("video.download_count", self.download_count)
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
        not_negative("thumbnail.height", self.height)
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

/// A time as Python's `isoformat` writes it: with an offset, or without one and then in UTC.
fn lenient_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let parsed = DateTime::parse_from_rfc3339(&text)
        .map(|time| time.to_utc())
        .or_else(|_| NaiveDateTime::parse_from_str(&text, "%Y-%m-%dT%H:%M:%S%.f").map(|time| time.and_utc()))
        .or_else(|_| NaiveDateTime::parse_from_str(&text, "%Y-%m-%d %H:%M:%S%.f").map(|time| time.and_utc()));
    parsed.map(Some).map_err(|_| serde::de::Error::custom(format!("{text:?} is no time")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_time_of_either_side_is_read() {
        for text in [
            "2024-05-01T12:00:00.5",
            "2024-05-01T12:00:00.5+00:00",
            "2024-05-01 12:00:00.5",
            "2024-05-01T14:00:00.5+02:00",
        ] {
            let details: VideoDetails = serde_json::from_value(json!({"last_accessed": text})).unwrap();
            assert_eq!(details.last_accessed.unwrap().timestamp_millis(), 1_714_564_800_500, "{text}");
        }
    }

    #[test]
    fn a_negative_measure_is_refused_by_name() {
        let details = VideoDetails { duration_seconds: Some(-1.0), ..VideoDetails::default() };
        assert!(details.check().unwrap_err().to_string().contains("video.duration_seconds"));
        let details = ThumbnailDetails { width: Some(-1), ..ThumbnailDetails::default() };
        assert!(details.check().unwrap_err().to_string().contains("thumbnail.width"));
    }
}
