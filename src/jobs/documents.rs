//! The JSON columns of a job. Every key is optional and unknown ones are kept: the Python layer writes them too.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::types::Extra;

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    /// What the video is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// What there is to know beyond the topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// How many scenes to render.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scene_count: Option<u32>,
    /// Whatever else was asked for.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Why a job failed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorInfo {
    /// What happened, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What happened, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// The stage that it happened in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// When it happened.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::types::time")]
    pub failed_at: Option<DateTime<Utc>>,
    /// Whatever else is known.
    #[serde(flatten)]
    pub extra: Extra,
}

impl ErrorInfo {
    /// A failure with a message, now.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: Some(message.into()), failed_at: Some(Utc::now()), ..Self::default() }
    }
}

/// What a job took.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Scenes rendered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scenes_rendered: Option<u32>,
    /// Bytes stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<i64>,
    /// Seconds spent rendering.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub render_seconds: Option<f64>,
    /// Whatever else was measured.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A stage that is done: its name, or more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Stage {
    /// Its name.
    Name(String),
    /// Its name and what else is known.
    Detail(StageDetail),
}

impl Stage {
    /// The stage's name, if it has one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Detail(detail) => detail.stage.as_deref(),
        }
    }
}

/// A stage that is done, at length.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StageDetail {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// When it was done.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::types::time")]
    pub completed_at: Option<DateTime<Utc>>,
    /// Whatever else is known.
    #[serde(flatten)]
    pub extra: Extra,
}
