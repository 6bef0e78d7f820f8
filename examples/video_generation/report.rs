//! What is told at the end.

use std::time::Duration;

use diesel::dsl::{count, count_star, not};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::{Deserialize, Serialize};
use t2m_db::schema::{file_metadata, job_queue, jobs};
use t2m_db::types::{FileType, JobStatus, QueueStatus};
use t2m_db::{CloseReport, Database, Error, PoolStats, Result};
use uuid::Uuid;

use crate::invariants::Invariant;

/// The numbers of one pool, or of several together, by name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Numbers(Vec<(String, u64)>);

impl From<PoolStats> for Numbers {
    fn from(stats: PoolStats) -> Self {
        let now = [
            ("sessions", stats.size),
            ("checked out", stats.checked_out),
            ("idle", stats.idle),
            ("waiting", stats.waiting),
            ("reclaiming", stats.reclaiming),
        ];
        let totals = [
            ("checkouts", stats.checkouts),
            ("connections opened", stats.opened),
            ("connections closed", stats.closed.total()),
            ("commits", stats.commits),
            ("rollbacks", stats.rollbacks),
            ("futures dropped", stats.cancelled),
            ("panics", stats.panicked),
            ("connections salvaged", stats.salvaged),
            ("connections discarded", stats.discarded),
            ("checkout timeouts", stats.timeouts),
            ("retries", stats.retries),
        ];
        let now = now.iter().map(|(name, number)| ((*name).to_owned(), *number as u64));
        Self(now.chain(totals.iter().map(|(name, number)| ((*name).to_owned(), *number))).collect())
    }
}

impl Numbers {
    /// Adds those of another pool.
    pub(crate) fn add(&mut self, other: &Self) {
        for (name, number) in &other.0 {
            match self.0.iter_mut().find(|(mine, _)| mine == name) {
                Some((_, mine)) => *mine += number,
                None => self.0.push((name.clone(), *number)),
            }
        }
    }

    pub(crate) fn get(&self, name: &str) -> u64 {
        self.0.iter().find(|(mine, _)| mine == name).map_or(0, |(_, number)| *number)
    }
}

/// Rows of this run by kind.
pub(crate) async fn rows(db: &Database, run: Uuid) -> Result<Vec<(String, i64)>> {
    db.with_connection(async |conn| {
        let of_run = || jobs::table.filter(jobs::batch_id.eq(run));
        let users: i64 = of_run().select(count(jobs::user_id).aggregate_distinct()).get_result(conn).await?;
        let by_status: Vec<(JobStatus, i64)> =
            of_run().group_by(jobs::status).select((jobs::status, count_star())).load(conn).await?;
        let entries: Vec<(QueueStatus, i64)> = job_queue::table
            .inner_join(jobs::table)
            .filter(jobs::batch_id.eq(run))
            .group_by(job_queue::queue_status)
            .select((job_queue::queue_status, count_star()))
            .load(conn)
            .await?;
        let files: Vec<(FileType, i64)> = file_metadata::table
            .inner_join(jobs::table)
            .filter(jobs::batch_id.eq(run))
            .filter(not(file_metadata::is_deleted))
            .group_by(file_metadata::file_type)
            .select((file_metadata::file_type, count_star()))
            .load(conn)
            .await?;
        let mut rows = vec![("users who ordered".to_owned(), users)];
        rows.extend(by_status.into_iter().map(|(status, count)| (format!("jobs {status}"), count)));
        rows.extend(entries.into_iter().map(|(status, count)| (format!("queue entries {status}"), count)));
        rows.extend(files.into_iter().map(|(kind, count)| (format!("files: {kind}s"), count)));
        Ok::<_, Error>(rows)
    })
    .await
}

pub(crate) fn print_rows(rows: &[(String, i64)]) {
    println!("\nrows");
    for (kind, count) in rows {
        println!("  {kind:<28} {count:>8}");
    }
}

pub(crate) fn print_numbers(before: &Numbers, after: &Numbers) {
    println!("\n{:<30} {:>8} {:>8}", "pool", "before", "after");
    for (name, number) in &after.0 {
        println!("  {name:<28} {:>8} {number:>8}", before.get(name));
    }
}

/// How long scopes of this process waited, and had a connection.
pub(crate) fn print_times(stats: &PoolStats) {
    let line = |name: &str, times: t2m_db::Distribution| {
        println!("  {name:<28} p50 {:>9.1?}  p99 {:>9.1?}  longest {:>9.1?}", times.p50, times.p99, times.max);
    };
    println!("\nscopes of this process");
    line("waited for a connection", stats.wait);
    line("had it", stats.hold);
}

pub(crate) fn print_sessions(when: &str, sessions: &[(String, i64)]) {
    let told: Vec<_> = sessions.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let told = if told.is_empty() { "none".to_owned() } else { told.join(", ") };
    println!("  {when:<28} {told}");
}

pub(crate) fn print_close(report: &CloseReport, took: Duration) {
    let CloseReport { drained, cancelled, leaked, .. } = report;
    let (cancelled, leaked) = (cancelled.len(), leaked.len());
    println!("\nclosed in {took:.1?}: {drained} scopes drained, {cancelled} cancelled, {leaked} leaked");
    for holder in report.cancelled.iter().chain(&report.leaked) {
        println!("  {holder}");
    }
}

/// Prints them and returns whether all hold.
pub(crate) fn print_invariants(invariants: &[Invariant]) -> bool {
    println!("\ninvariants");
    for Invariant { what, broken } in invariants {
        match broken {
            0 => println!("  ok    {what}"),
            _ => println!("  FAIL  {what}: not so for {broken}"),
        }
    }
    invariants.iter().all(|invariant| invariant.broken == 0)
}
