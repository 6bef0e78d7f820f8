//! Waiting for the end, and showing how far it is: a bar on a terminal, a line now and then elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use diesel::dsl::count_star;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use indicatif::{ProgressBar, ProgressStyle};
use t2m_db::schema::jobs;
use t2m_db::types::JobStatus;
use t2m_db::{Database, Error, Result};
use uuid::Uuid;

/// How often the database is asked.
pub(crate) const PERIOD: Duration = Duration::from_millis(50);
/// Nothing here takes that long: if no job ends for so long, something is stuck.
const STUCK: Duration = Duration::from_secs(60);
/// Plain lines are at least so far apart.
const LINES: Duration = Duration::from_secs(1);

/// How many jobs are how far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts(BTreeMap<JobStatus, i64>);

impl Counts {
    /// Reads them: one round trip, no transaction.
    pub(crate) async fn read(db: &Database, run: Uuid) -> Result<Self> {
        let rows: Vec<(JobStatus, i64)> = db
            .with_connection(async |conn| {
                let counts = jobs::table.filter(jobs::batch_id.eq(run)).group_by(jobs::status);
                Ok::<_, Error>(counts.select((jobs::status, count_star())).load(conn).await?)
            })
            .await?;
        Ok(Self(rows.into_iter().collect()))
    }

    pub(crate) fn of(&self, status: &JobStatus) -> i64 {
        self.0.get(status).copied().unwrap_or(0)
    }

    /// How many are at their end.
    pub(crate) fn settled(&self) -> i64 {
        [JobStatus::Completed, JobStatus::Failed, JobStatus::Cancelled].iter().map(|status| self.of(status)).sum()
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = [JobStatus::Completed, JobStatus::Failed, JobStatus::Cancelled, JobStatus::Processing];
        let shown: Vec<_> = shown.iter().map(|status| format!("{} {status}", self.of(status))).collect();
        f.write_str(&shown.join(", "))
    }
}

/// Where the run stands.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    all: i64,
    settled: i64,
    moved: Instant,
    told: Instant,
}

impl Progress {
    pub(crate) fn new(all: u32) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {pos}/{len} videos, {elapsed}  {msg}");
            ProgressBar::new(all.into()).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar, all: all.into(), settled: 0, moved: Instant::now(), told: Instant::now() }
    }

    /// Shows `counts` and returns whether all is done.
    ///
    /// # Errors
    ///
    /// If no job has ended for too long.
    pub(crate) fn show(&mut self, counts: &Counts) -> Result<bool, String> {
        let settled = counts.settled();
        if settled != self.settled {
            (self.settled, self.moved) = (settled, Instant::now());
        }
        let done = settled >= self.all;
        match &self.bar {
            Some(bar) => {
                bar.set_position(u64::try_from(settled).unwrap_or(0));
                bar.set_message(counts.to_string());
            }
            None if done || self.told.elapsed() > LINES => {
                self.told = Instant::now();
                println!("  {settled} of {} videos: {counts}", self.all);
            }
            None => {}
        }
        if !done && self.moved.elapsed() > STUCK {
            return Err(format!("no job has ended for {STUCK:?}: {counts}"));
        }
        Ok(done)
    }

    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
