//! What may be asked for on the command line.

use std::time::Duration;

use clap::{Parser, Subcommand};

/// Generates videos that nobody watches: every step is real but the rendering. At the end it says what is in the
/// database, whether all of it fits together, and where every connection went.
#[derive(Clone, Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    /// What the videos are about.
    #[arg(long, default_value = "Test Connection Management")]
    pub(crate) topic: String,
    /// How many videos are ordered.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) videos: u32,
    /// How many workers render them, in all.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) workers: u32,
    /// The share of videos that fail: a third for good, a third once, and a third because the order cannot be read.
    #[arg(long, default_value_t = 0.1, value_parser = share)]
    pub(crate) fail_rate: f64,
    /// The share of videos that are called off half-way.
    #[arg(long, default_value_t = 0.1, value_parser = share)]
    pub(crate) cancel_rate: f64,
    /// The share of videos whose renderer panics inside of its transaction, the first time.
    #[arg(long, default_value_t = 0.05, value_parser = share)]
    pub(crate) panic_rate: f64,
    /// Runs the workers in so many processes of their own, and kills some of them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) processes: Option<u32>,
    /// How many worker processes are killed with SIGKILL, as a share of the videos.
    #[arg(long, default_value_t = 0.1, value_parser = share)]
    pub(crate) kill_rate: f64,
    /// The most connections of one pool.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) max_size: u32,
    /// The database. Else the one in the environment's `DATABASE_URL`, which other users of this machine cannot read as
    /// they can read this line; else a private server that is gone afterwards.
    #[arg(long, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// One process of workers; started by `--processes`.
    #[command(hide = true)]
    Worker(WorkerOptions),
}

/// What a worker process is told. The database is in its environment; when its standard input ends, it does.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WorkerOptions {
    /// What its workers are called.
    #[arg(long)]
    pub(crate) name: String,
    #[arg(long)]
    pub(crate) workers: u32,
    #[arg(long)]
    pub(crate) max_size: u32,
    /// What the server calls its sessions.
    #[arg(long)]
    pub(crate) application_name: String,
}

impl Options {
    /// How long a job belongs to a worker that gives no sign of life. One that was killed holds its jobs for that long;
    /// one that is merely slow prolongs its lease three times as often.
    pub(crate) fn lease(&self) -> Duration {
        Duration::from_secs(if self.processes.is_some() { 1 } else { 30 })
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share is a number from 0 to 1".to_owned()),
    }
}
