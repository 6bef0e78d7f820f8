//! T2M's main job, end to end: customers sign in and order videos, workers claim the jobs, make the films and store what
//! they are made of. Some fail, some are called off half-way, some panic, and with `--processes` some workers are killed.
//! At the end it counts what is there and exits with 0 only if all of it fits together and every connection is back.
//!
//! ```text
//! cargo run --example video_generation
//! cargo run --example video_generation -- --videos 500 --workers 32 --fail-rate 0.2 --cancel-rate 0.3
//! cargo run --example video_generation -- --processes 4 --kill-rate 0.2
//! ```

mod crew;
mod customers;
mod film;
mod invariants;
mod options;
mod progress;
mod report;
mod worker;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use t2m_db::schema::{job_queue, jobs};
use t2m_db::testing::{Server, TestDatabase};
use t2m_db::types::QueueStatus;
use t2m_db::{Config, Database, Error, HealthStatus};
use tokio::time::{interval, sleep};
use uuid::Uuid;

use crate::crew::Crew;
use crate::invariants::{Invariant, Reached};
use crate::options::{Command, Options};
use crate::progress::{Counts, Progress};
use crate::report::Numbers;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What is left may take so long to end when we close.
const GRACE: Duration = Duration::from_secs(5);
/// As a shell tells that a program was interrupted.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "t2m_db=error".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    say_only_unexpected_panics();
    let ended = match &options.command {
        Some(Command::Worker(worker)) => {
            crew::worker_process(worker, Duration::from_secs(1)).await.map(|()| ExitCode::SUCCESS)
        }
        None => generate(&options).await,
    };
    ended.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        let mut source = error.source();
        while let Some(error) = source {
            eprintln!("  because: {error}");
            source = error.source();
        }
        ExitCode::FAILURE
    })
}

async fn generate(options: &Options) -> Result<ExitCode, Failure> {
    let began = Instant::now();
    let run = Uuid::new_v4();
    let name = format!("t2m-example-{}", &run.simple().to_string()[..8]);
    let (config, url, _private) = database(options).await?;
    let db = Database::connect(config.clone().max_size(options.max_size).application_name(&name)).await?;
    // Looks on from outside, with sessions under another name.
    let auditor = Database::connect(config.max_size(2).application_name(format!("{name}-audit"))).await?;
    prepare(&db).await?;
    println!("run {run}: {} videos about {:?}", options.videos, options.topic);

    let before = Numbers::from(db.stats());
    let started = Instant::now();
    let mut crew = Crew::start(options, &db, &name, &url)?;
    let (settled, interrupted) = drive(options, &db, &auditor, &mut crew, run).await?;
    let took = started.elapsed();

    let killed = crew.summary();
    let others = crew.stop().await?;
    await_returns(&db).await;
    let stats = db.stats();
    let mut after = Numbers::from(stats);
    after.add(&others);
    let open = sessions(&auditor, &name).await?;
    let closing = Instant::now();
    let closed = db.close(GRACE).await;
    let closing = closing.elapsed();
    let left = await_no_sessions(&auditor, &name).await?;

    let reached = match (interrupted, options.processes) {
        (false, _) => Reached::End,
        (true, None) => Reached::GivenBack,
        (true, Some(_)) => Reached::Somewhere,
    };
    let mut invariants = invariants::check(&auditor, run, reached).await?;
    invariants.push(Invariant::holds("nothing is checked out", after.get("checked out") == 0));
    invariants.push(Invariant::holds("nobody waits for a connection", after.get("waiting") == 0));
    let in_transaction = open.iter().filter(|(state, _)| state != "idle").map(|(_, count)| count).sum();
    invariants.push(Invariant::new("no session was left in a transaction", in_transaction));
    let given_back = closed.cancelled.is_empty() && closed.leaked.is_empty();
    invariants.push(Invariant::holds("closing found nothing to cancel", given_back));
    invariants.push(Invariant::new("no session is left", left.iter().map(|(_, count)| count).sum()));

    report::print_rows(&report::rows(&auditor, run).await?);
    report::print_numbers(&before, &after);
    report::print_times(&stats);
    println!("\nsessions, says pg_stat_activity");
    report::print_sessions("when the work was done", &open);
    report::print_sessions("when closed", &left);
    report::print_close(&closed, closing);
    let all_hold = report::print_invariants(&invariants);
    if let Some(killed) = killed {
        println!("\n{killed}");
    }
    let all = options.videos;
    println!("\n{settled} of {all} videos in {took:.2?}, {:.2?} with everything around it", began.elapsed());
    auditor.close(GRACE).await;
    Ok(match (all_hold, interrupted) {
        (false, _) => ExitCode::FAILURE,
        (true, true) => ExitCode::from(INTERRUPTED),
        (true, false) => ExitCode::SUCCESS,
    })
}

/// The database that was asked for, or one on a private server that goes with the last value.
async fn database(options: &Options) -> Result<(Config, String, Option<TestDatabase>), Failure> {
    if let Some(url) = &options.database_url {
        return Ok((Config::from_url(url)?, url.clone(), None));
    }
    if let Some(url) = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty()) {
        return Ok((Config::from_env()?, url, None));
    }
    let private = Server::start().await?.empty_database().await?;
    Ok((Config::from_url(&private.url())?, private.url(), Some(private)))
}

/// Migrates, and sees that there is nothing to do but what is ordered here.
async fn prepare(db: &Database) -> Result<(), Failure> {
    let migrating = Instant::now();
    let applied = db.migrate().await?;
    println!("{} migrations applied in {:.1?}", applied.len(), migrating.elapsed());
    let health = db.health().await;
    match (health.status, health.reason) {
        (HealthStatus::Unhealthy, reason) => return Err(reason.unwrap_or_default().into()),
        (status, reason) => println!(
            "PostgreSQL {}: {status:?} {}",
            health.server_version.unwrap_or_default(),
            reason.unwrap_or_default()
        ),
    }
    let strangers = job_queue::table
        .inner_join(jobs::table)
        .filter(job_queue::queue_status.eq_any([QueueStatus::Queued, QueueStatus::Processing]))
        .filter(jobs::configuration.retrieve_as_text(film::FATE).is_null())
        .count();
    let strangers: i64 = db.with_connection(async |conn| Ok::<_, Error>(strangers.get_result(conn).await?)).await?;
    if strangers > 0 {
        return Err(format!(
            "the queue of this database holds {strangers} jobs of somebody else, and workers take whatever is there: \
            give this example a database of its own"
        )
        .into());
    }
    Ok(())
}

/// Orders, and watches until all is done. Returns how many videos came to their end, and whether it was interrupted.
async fn drive(
    options: &Options,
    db: &Database,
    auditor: &Database,
    crew: &mut Crew,
    run: Uuid,
) -> Result<(i64, bool), Failure> {
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    let mut ordering = std::pin::pin!(customers::order_all(db, options, run));
    let (mut ordered, mut settled) = (false, 0);
    let mut progress = Progress::new(options.videos);
    let mut ticks = interval(progress::PERIOD);
    let interrupted = loop {
        tokio::select! {
            done = &mut ordering, if !ordered => {
                done?;
                ordered = true;
            }
            _ = ticks.tick() => {
                let counts = Counts::read(auditor, run).await?;
                settled = counts.settled();
                if progress.show(&counts)? {
                    break false;
                }
                crew.look_after(auditor, run, settled).await?;
            }
            _ = &mut interrupt => break true,
        }
    };
    progress.end();
    if interrupted {
        println!("interrupted: stopping the workers; once more to stop at once");
        tokio::spawn(async {
            let _ = tokio::signal::ctrl_c().await;
            std::process::exit(INTERRUPTED.into());
        });
    }
    Ok((settled, interrupted))
}

/// Waits for the clean-up after scopes that were dropped, which goes on behind their callers' backs.
async fn await_returns(db: &Database) {
    let until = Instant::now() + GRACE;
    while db.stats().checked_out > 0 && Instant::now() < until {
        sleep(Duration::from_millis(1)).await;
    }
}

/// Waits for the server to notice that its clients are gone, the killed ones too.
async fn await_no_sessions(auditor: &Database, name: &str) -> Result<Vec<(String, i64)>, Error> {
    let until = Instant::now() + GRACE;
    loop {
        let left = sessions(auditor, name).await?;
        if left.is_empty() || Instant::now() > until {
            return Ok(left);
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn sessions(auditor: &Database, name: &str) -> Result<Vec<(String, i64)>, Error> {
    auditor.with_connection(async |conn| invariants::sessions(conn, name).await).await
}

/// The panics that were asked for are counted, not shown.
fn say_only_unexpected_panics() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        if text != Some(worker::CRASH) {
            say(panic);
        }
    }));
}
