//! Those who work: tasks in this process, or processes of their own, some of which are killed.

use std::process::Stdio;
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use t2m_db::schema::{job_queue, jobs};
use t2m_db::{Config, Database, Error, queue};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use uuid::Uuid;

use crate::customers::part;
use crate::options::{Options, WorkerOptions};
use crate::report::Numbers;
use crate::worker::Workshop;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long those may take to stop that were asked to.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) enum Crew {
    Tasks { stop: watch::Sender<bool>, workers: JoinHandle<Result<(), Error>> },
    Processes(Processes),
}

impl Crew {
    pub(crate) fn start(options: &Options, db: &Database, name: &str, url: &str) -> Result<Self, Failure> {
        let Some(processes) = options.processes else {
            let (stop, listens) = watch::channel(false);
            let workshop = Workshop { db: db.clone(), lease: options.lease(), stop: listens };
            let (name, count) = (name.to_owned(), options.workers);
            return Ok(Self::Tasks { stop, workers: tokio::spawn(async move { workshop.run(&name, count).await }) });
        };
        Processes::start(options, processes, name, url).map(Self::Processes)
    }

    /// Looks after them while they work.
    pub(crate) async fn look_after(&mut self, auditor: &Database, run: Uuid, settled: i64) -> Result<(), Failure> {
        match self {
            Self::Tasks { workers, .. } if workers.is_finished() => {
                workers.await??;
                Err("the workers have stopped by themselves".into())
            }
            Self::Tasks { .. } => Ok(()),
            Self::Processes(processes) => processes.look_after(auditor, run, settled).await,
        }
    }

    /// Lets everybody stop, and returns the numbers of the pools in other processes.
    pub(crate) async fn stop(self) -> Result<Numbers, Failure> {
        match self {
            Self::Tasks { stop, workers } => {
                stop.send_replace(true);
                timeout(GRACE, workers).await.map_err(|_| "the workers do not stop")???;
                Ok(Numbers::default())
            }
            Self::Processes(processes) => processes.stop().await,
        }
    }

    pub(crate) fn summary(&self) -> Option<String> {
        let Self::Processes(processes) = self else { return None };
        let Processes { killed, orphans, .. } = processes;
        Some(format!("killed {killed} worker processes, which held {orphans} jobs"))
    }
}

/// Worker processes.
#[derive(Debug)]
pub(crate) struct Processes {
    children: Vec<(String, Child)>,
    plan: WorkerOptions,
    url: String,
    started: u32,
    /// How many jobs have to be settled before each killing that is still to come; the last is the next.
    killings: Vec<i64>,
    killed: usize,
    /// Jobs that were held by those that were killed.
    orphans: usize,
}

impl Processes {
    fn start(options: &Options, count: u32, name: &str, url: &str) -> Result<Self, Failure> {
        let plan = WorkerOptions {
            name: name.to_owned(),
            workers: options.workers.div_ceil(count),
            max_size: options.max_size,
            application_name: name.to_owned(),
        };
        let videos = options.videos as usize;
        let kills = part(videos, options.kill_rate);
        // Spread over the first four fifths, so that there is something left to kill for.
        let killings = (1..=kills).rev().map(|n| i64::try_from(videos * 4 * n / (5 * (kills + 1))).unwrap_or(0));
        let killings = killings.collect();
        let url = url.to_owned();
        let mut processes = Self { children: Vec::new(), plan, url, started: 0, killings, killed: 0, orphans: 0 };
        for _ in 0..count {
            processes.hire()?;
        }
        Ok(processes)
    }

    /// Starts one more, under a name that none had before.
    fn hire(&mut self) -> Result<(), Failure> {
        let WorkerOptions { name, workers, max_size, application_name } = &self.plan;
        self.started += 1;
        let name = format!("{name}/process-{}", self.started);
        let child = Command::new(std::env::current_exe()?)
            .args(["worker", "--name", &name, "--application-name", application_name])
            .args(["--workers", &workers.to_string(), "--max-size", &max_size.to_string()])
            .env("DATABASE_URL", &self.url) // not as an argument: those can be read by everybody
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        self.children.push((name, child));
        Ok(())
    }

    async fn look_after(&mut self, auditor: &Database, run: Uuid, settled: i64) -> Result<(), Failure> {
        for (name, child) in &mut self.children {
            if let Some(status) = child.try_wait()? {
                return Err(format!("{name} has ended by itself: {status}").into());
            }
        }
        // Lost too often is failed for good; nobody else would say so.
        auditor.transaction("put back expired").run(async |tx| queue::put_back_expired(tx).await).await?;
        if self.killings.last().is_some_and(|due| *due <= settled) {
            self.kill_one(auditor, run).await?;
        }
        Ok(())
    }

    /// Kills a process that is at work, and starts another in its place.
    async fn kill_one(&mut self, auditor: &Database, run: Uuid) -> Result<(), Failure> {
        let at_work = holders(auditor, run).await?;
        let victims = 0..self.children.len();
        let victims: Vec<_> = victims.filter(|n| held_by(&self.children[*n].0, &at_work) > 0).collect();
        let Some(victim) = fastrand::choice(victims) else { return Ok(()) }; // at the next look, then
        let (name, mut child) = self.children.swap_remove(victim);
        child.kill().await?;
        self.killings.pop();
        self.killed += 1;
        self.orphans += held_by(&name, &holders(auditor, run).await?);
        self.hire()
    }

    async fn stop(self) -> Result<Numbers, Failure> {
        let mut numbers = Numbers::default();
        let mut children = self.children;
        // All are told before any is waited for.
        for (_, child) in &mut children {
            drop(child.stdin.take());
        }
        for (name, child) in children {
            let output =
                timeout(GRACE, child.wait_with_output()).await.map_err(|_| format!("{name} does not stop"))??;
            if !output.status.success() {
                return Err(format!("{name} has failed: {}", output.status).into());
            }
            numbers.add(&serde_json::from_slice(&output.stdout)?);
        }
        Ok(numbers)
    }
}

/// The workers that hold a job of this run, one entry a job.
async fn holders(auditor: &Database, run: Uuid) -> Result<Vec<String>, Error> {
    let holders = job_queue::table
        .inner_join(jobs::table)
        .filter(jobs::batch_id.eq(run))
        .filter(job_queue::lease_expires_at.is_not_null())
        .select(job_queue::worker_id.assume_not_null());
    auditor.with_connection(async |conn| Ok(holders.load(conn).await?)).await
}

fn held_by(process: &str, holders: &[String]) -> usize {
    holders.iter().filter(|worker| worker.rsplit_once('/').is_some_and(|(of, _)| of == process)).count()
}

/// What a worker process does.
pub(crate) async fn worker_process(options: &WorkerOptions, lease: Duration) -> Result<(), Failure> {
    // An interrupt on the terminal reaches us too. Our parent tells us when to stop.
    tokio::spawn(async { while tokio::signal::ctrl_c().await.is_ok() {} });
    let (stop, told) = watch::channel(false);
    // A thread: a task that reads would keep the runtime from ending when we fail.
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        stop.send_replace(true);
    });
    let config = Config::from_env()?.max_size(options.max_size).application_name(&options.application_name);
    let db = Database::connect(config).await?;
    Workshop { db: db.clone(), lease, stop: told }.run(&options.name, options.workers).await?;
    let report = db.close(GRACE).await;
    if !report.cancelled.is_empty() || !report.leaked.is_empty() {
        return Err(format!("not everything was given back: {report:?}").into());
    }
    println!("{}", serde_json::to_string(&Numbers::from(db.stats()))?);
    Ok(())
}
