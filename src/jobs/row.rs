//! A job as stored, as asked for, and as completed.

use std::time::Duration;

use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use serde::Serialize;
use uuid::Uuid;

use super::{Configuration, ErrorInfo, Metrics, Stage};
use crate::error::{Error, Result};
use crate::schema::jobs;
use crate::types::{
    Broken, Document, JobId, JobStatus, JobType, Priority, Seconds, UserId, bytes, document, finite, number, text_opt,
};

/// A job that is not deleted.
#[derive(Debug, Clone, PartialEq, Serialize, Queryable, Selectable)]
#[diesel(table_name = jobs, check_for_backend(diesel::pg::Pg))]
#[expect(missing_docs, reason = "the columns are documented in `schema`, and there only")]
pub struct Job {
    pub id: JobId,
    pub user_id: UserId,
    pub job_type: JobType,
    pub priority: Priority,
    pub configuration: Document<Configuration>,
    pub status: JobStatus,
    #[serde(serialize_with = "number")]
    pub progress_percentage: BigDecimal,
    pub current_stage: Option<String>,
    pub stages_completed: Document<Vec<Stage>>,
    pub estimated_completion: Option<DateTime<Utc>>,
    #[serde(serialize_with = "number")]
    pub processing_time_seconds: Option<BigDecimal>,
    pub error_info: Option<Document<ErrorInfo>>,
    pub metrics: Option<Document<Metrics>>,
    pub result_url: Option<String>,
    pub started_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
    pub batch_id: Option<Uuid>,
    pub parent_job_id: Option<JobId>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Job {
    /// What was asked for.
    ///
    /// # Errors
    ///
    /// [`Error::BrokenDocument`] with table, id and path.
    pub fn configuration(&self) -> Result<&Configuration> {
        self.configuration.get().map_err(|broken| self.broken("configuration", broken))
    }

    /// Every document of this job that does not fit its type, as an error with table, id and path.
    pub fn broken_documents(&self) -> Vec<Error> {
        let documents = [
            ("configuration", self.configuration.broken()),
            ("stages_completed", self.stages_completed.broken()),
            ("error_info", self.error_info.as_ref().and_then(Document::broken)),
            ("metrics", self.metrics.as_ref().and_then(Document::broken)),
        ];
        documents.into_iter().filter_map(|(column, broken)| Some(self.broken(column, broken?))).collect()
    }

    fn broken(&self, column: &str, broken: &Broken) -> Error {
        Error::BrokenDocument {
            table: "jobs",
            id: self.id.as_uuid(),
            path: [column, &broken.path].join(".").trim_end_matches('.').to_owned(),
            reason: broken.reason.clone(),
        }
    }
}

/// What to do, and for how pressing it is.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Chosen by the caller before the first try, and the same at every further one: asking twice stores one job.
    pub id: JobId,
    /// What kind of work.
    pub job_type: JobType,
    /// How pressing.
    pub priority: Priority,
    /// What to make.
    pub configuration: Configuration,
    /// The batch that it belongs to.
    pub batch_id: Option<Uuid>,
    /// The job that it is a part of; the same owner's.
    pub parent_job_id: Option<JobId>,
    /// How often it may be tried again after a failure: 0 to 100.
    pub max_retries: i32,
}

impl NewJob {
    /// One video of normal priority with three retries.
    pub fn video(configuration: Configuration) -> Self {
        Self {
            id: JobId::random(),
            job_type: JobType::VideoGeneration,
            priority: Priority::Normal,
            configuration,
            batch_id: None,
            parent_job_id: None,
            max_retries: 3,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        listed("job.job_type", &self.job_type, JobType::LISTED, JobType::as_str)?;
        listed("job.priority", &self.priority, Priority::LISTED, Priority::as_str)?;
        if !(0..=100).contains(&self.max_retries) {
            let value = self.max_retries.to_string();
            return Err(Error::Invalid { field: "job.max_retries", value, allowed: "0 to 100".into() });
        }
        document("job.configuration", &self.configuration)
    }
}

/// The table refuses what is not listed; we say so first, and say what is.
fn listed<T: PartialEq>(field: &'static str, value: &T, list: &[T], text: fn(&T) -> &str) -> Result<()> {
    if list.contains(value) {
        return Ok(());
    }
    let value: String = text(value).chars().take(40).collect();
    let allowed = list.iter().map(text).collect::<Vec<_>>().join(", ");
    Err(Error::Invalid { field, value: format!("{value:?}"), allowed: allowed.into() })
}

/// What came of a job. What is `None` stays as it is stored: Python may have written it while the job ran.
#[derive(Debug, Clone, Default)]
pub struct Completion {
    /// Where the result is; at most 500 characters.
    pub result_url: Option<String>,
    /// What it took; merged into what is stored, key by key.
    pub metrics: Option<Metrics>,
    /// How long it took.
    pub processing_time: Option<Duration>,
}

impl Completion {
    pub(crate) fn check(&self) -> Result<Option<Seconds>> {
        text_opt("job.result_url", self.result_url.as_deref(), 500)?;
        if let Some(metrics) = &self.metrics {
            finite("job.metrics.render_seconds", metrics.render_seconds)?;
            bytes("job.metrics.total_bytes", metrics.total_bytes.unwrap_or(0))?;
            document("job.metrics", metrics)?;
        }
        self.processing_time.map(Seconds::new).transpose()
    }
}
