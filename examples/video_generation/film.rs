//! What is made here: films that are only metadata, and what is to happen while one is made.

use serde::{Deserialize, Serialize};
use serde_json::json;
use t2m_db::files::{NewThumbnail, NewVideo, Stored, ThumbnailDetails, VideoDetails};
use t2m_db::jobs::{Configuration, Job};
use t2m_db::types::{FileId, JobId};

/// Scenes of a film.
pub(crate) const SCENES: i32 = 3;
/// Thumbnails of a scene.
pub(crate) const THUMBNAILS: i32 = 2;
/// The stages before it is stored, and how far each brings a job.
pub(crate) const STAGES: [(&str, f64); 4] = [("script", 15.0), ("images", 45.0), ("narration", 65.0), ("render", 90.0)];

/// The key of a job's configuration that holds its [`Fate`].
pub(crate) const FATE: &str = "fate";

/// What is to happen to an order. It is a part of the job, so that it is the same for every worker that tries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fate {
    Completes,
    /// Fails at the first try.
    FailsOnce,
    Fails,
    /// Fails because its order cannot be read.
    Unreadable,
    Panics,
    Cancelled,
}

impl Fate {
    pub(crate) const ALL: [Self; 6] =
        [Self::Completes, Self::FailsOnce, Self::Fails, Self::Unreadable, Self::Panics, Self::Cancelled];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Completes => "completes",
            Self::FailsOnce => "fails_once",
            Self::Fails => "fails",
            Self::Unreadable => "unreadable",
            Self::Panics => "panics",
            Self::Cancelled => "cancelled",
        }
    }

    /// What a job was told; one that was told nothing completes.
    pub(crate) fn of(job: &Job) -> t2m_db::Result<Self> {
        let told = job.configuration()?.extra.get(FATE).and_then(|told| told.as_str());
        Ok(Self::ALL.into_iter().find(|fate| Some(fate.as_str()) == told).unwrap_or(Self::Completes))
    }
}

/// What is asked for.
pub(crate) fn configuration(topic: &str, fate: Fate) -> Configuration {
    let mut wanted = Configuration {
        topic: Some(topic.to_owned()),
        scene_count: u32::try_from(SCENES).ok(),
        extra: [(FATE.to_owned(), json!(fate))].into_iter().collect(),
        ..Configuration::default()
    };
    if fate == Fate::Unreadable {
        // As somebody else writes it who has other ideas of a number.
        wanted.scene_count = None;
        wanted.extra.insert("scene_count".to_owned(), json!("three"));
    }
    wanted
}

/// A scene of a job.
pub(crate) fn scene(job: JobId, number: i32) -> NewVideo {
    NewVideo {
        job: Some(job),
        stored: stored(
            format!("scene-{number}.mp4"),
            format!("videos/{job}/scene-{number}.mp4"),
            "video/mp4",
            4_000_000,
        ),
        details: VideoDetails {
            scene_number: Some(number),
            duration_seconds: Some(7.5),
            width: Some(1920),
            height: Some(1080),
            frame_rate: Some(30.0),
            ..VideoDetails::default()
        },
        description: Some(format!("scene {number}")),
        tags: vec!["example".to_owned()],
    }
}

/// The thumbnails of a scene.
pub(crate) fn thumbnails(job: JobId, scene: i32, video: FileId) -> Vec<NewThumbnail> {
    let thumbnail = |number: i32| NewThumbnail {
        video,
        stored: stored(
            format!("scene-{scene}-{number}.jpg"),
            format!("thumbnails/{job}/scene-{scene}-{number}.jpg"),
            "image/jpeg",
            40_000,
        ),
        details: ThumbnailDetails {
            width: Some(320),
            height: Some(180),
            timestamp_seconds: Some(f64::from(number) * 2.5),
            ..ThumbnailDetails::default()
        },
    };
    (1..=THUMBNAILS).map(thumbnail).collect()
}

fn stored(name: String, s3_key: String, content_type: &str, file_size: i64) -> Stored {
    Stored {
        original_filename: name.clone(),
        stored_filename: name,
        s3_bucket: "t2m-example".to_owned(),
        s3_key,
        file_size,
        content_type: content_type.to_owned(),
        checksum: Some("5e".repeat(32)),
        ..Stored::default()
    }
}
