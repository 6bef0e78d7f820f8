//! Rounds: every peer does the same work in turn, in an order that moves on each round, and is compared with the others of
//! its round. What else the machine does then hits all of them alike.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use t2m_db::testing::{Proxy, Server};
use tokio::runtime::Runtime;
use tokio_postgres::Client;

use crate::drive::{POOL, Sample};
use crate::peer::{AFRESH, ITEMS, Result, Work};

/// t2m-db first: the others are compared with it.
pub const PEERS: [&str; 10] = [
    OURS,
    "t2m-db commit_with",
    "diesel+bb8",
    "diesel+deadpool",
    "tokio-postgres+deadpool",
    "sqlx",
    "sea-orm",
    "sqlalchemy",
    "pgbench prepared",
    "pgbench pipeline",
];
pub const OURS: &str = "t2m-db";
/// One client without a pool: its read is one round trip, and done beside all that is measured from a distance.
pub const YARDSTICK: &str = "tokio-postgres";
pub const TASKS: [u32; 3] = [1, 8, 32];
pub const CHECKOUTS: [u32; 5] = [1, 4, 16, 64, 256];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Client and server share one core.
    Pinned,
    Unpinned,
    /// Unpinned, 1 ms each way.
    Distant,
}

impl Place {
    pub const ALL: [Self; 3] = [Self::Pinned, Self::Unpinned, Self::Distant];

    pub fn title(self) -> &'static str {
        match self {
            Self::Pinned => "one core for client and server, loopback",
            Self::Unpinned => "all cores, loopback",
            Self::Distant => "all cores, 1 ms each way",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub name: &'static str,
    pub rounds: usize,
    pub time: Duration,
    /// Results, plots and README are written.
    pub kept: bool,
}

pub const QUICK: Effort = Effort { name: "--quick", rounds: 5, time: Duration::from_millis(200), kept: true };
pub const FULL: Effort = Effort { name: "full", rounds: 9, time: Duration::from_secs(2), kept: true };
/// Whether everything works, not how quickly.
pub const SMOKE: Effort = Effort { name: "--smoke", rounds: 1, time: Duration::from_millis(10), kept: false };

/// One measurement of every peer that takes part: a sample for each round, in the same order for all.
#[derive(Debug)]
pub struct Cell {
    pub place: Place,
    pub work: Work,
    pub tasks: u32,
    pub samples: Vec<(&'static str, Vec<Sample>)>,
}

pub fn takes_part(peer: &str, work: Work) -> bool {
    match peer {
        "t2m-db commit_with" => matches!(work, Work::W1 | Work::W2),
        "sea-orm" => work != Work::Checkout, // the pool is sqlx's
        name if name.starts_with("pgbench") => matches!(work, Work::W1 | Work::W2 | Work::W3),
        _ => true,
    }
}

pub struct Bench {
    pub runtime: Runtime,
    pub server: Server,
    pub url: String,
    pub client: Client,
    pub effort: Effort,
    /// Where `Cargo.toml` is.
    pub home: PathBuf,
    /// All of [`PEERS`], unless a few were asked for.
    pub peers: Vec<&'static str>,
}

impl Bench {
    pub fn run(&self) -> Result<Vec<Cell>> {
        let mut cells = Vec::new();
        for place in Place::ALL {
            let proxy = match place {
                Place::Distant => Some(self.runtime.block_on(Proxy::start(&self.url))?),
                _ => None,
            };
            if let Some(proxy) = &proxy {
                proxy.delay(Duration::from_millis(1));
            }
            let url = proxy.as_ref().map_or(self.url.clone(), Proxy::url);
            let cores = if place == Place::Pinned { cores().1 } else { cores().0 };
            pin(&self.server, &cores)?;
            let mut peers = self.peers.clone();
            if place == Place::Distant {
                peers.push(YARDSTICK);
            }
            let mut started = Vec::new();
            for peer in peers {
                started.push(Running::start(peer, &url, &cores, &self.home)?);
            }
            for work in Work::UNITS {
                for tasks in TASKS {
                    cells.push(self.cell(&mut started, place, work, tasks)?);
                }
            }
            if place == Place::Unpinned {
                for tasks in CHECKOUTS {
                    cells.push(self.cell(&mut started, place, Work::Checkout, tasks)?);
                }
            }
        }
        Ok(cells)
    }

    fn cell(&self, peers: &mut [Running], place: Place, work: Work, tasks: u32) -> Result<Cell> {
        let began = Instant::now();
        // Long enough for a wait to become long.
        let time = if work == Work::Checkout { 3 * self.effort.time } else { self.effort.time };
        let mut samples: Vec<_> = peers.iter().map(|peer| (peer.name, Vec::new())).collect();
        for round in 0..self.effort.rounds {
            for turn in 0..peers.len() {
                let n = (turn + round) % peers.len();
                let yardstick = peers[n].name == YARDSTICK;
                if !takes_part(peers[n].name, work) || yardstick && tasks > 1 {
                    continue;
                }
                let work = if yardstick { Work::W3 } else { work };
                if work.writes() {
                    self.runtime.block_on(self.client.batch_execute(AFRESH))?;
                }
                // In the first round every connection has to see each statement; a pool may hand them out in turn.
                let warm = if round == 0 { 3 * POOL } else { POOL };
                samples[n].1.push(peers[n].measure(work, tasks, warm, time)?);
            }
        }
        samples.retain(|(_, samples)| !samples.is_empty());
        eprintln!("{place:?} {work:?} x{tasks}: {:.1} s", began.elapsed().as_secs_f64());
        Ok(Cell { place, work, tasks, samples })
    }
}

struct Running {
    name: &'static str,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    process: Child,
}

impl Running {
    fn start(name: &'static str, url: &str, cores: &str, home: &Path) -> Result<Self> {
        let mut command = Command::new("taskset");
        command.args(["-c", cores]);
        if name == "sqlalchemy" {
            let (python, script) = (home.join(".venv/bin/python"), home.join("sqlalchemy_peer.py"));
            command.arg(python).arg(script).args([url, &POOL.to_string(), &ITEMS.to_string()]);
        } else {
            command.arg(std::env::current_exe()?).args(["--serve", name, url]);
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(orders), Some(answers)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("no pipes".into());
        };
        let mut running = Self { name, orders: Some(orders), answers: BufReader::new(answers), process };
        match running.line()?.as_str() {
            "ready" => Ok(running),
            other => Err(format!("{name} is not ready: {other:?}").into()),
        }
    }

    fn measure(&mut self, work: Work, tasks: u32, warm: u32, time: Duration) -> Result<Sample> {
        let orders = self.orders.as_mut().ok_or("it has ended")?;
        writeln!(orders, "{work:?} {tasks} {warm} {}", time.as_secs_f64())?;
        let line = self.line()?;
        Sample::from_line(&line).map_err(|error| format!("{}, {work:?} x{tasks}: {error}", self.name).into())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.orders = None; // it ends with its stdin
        let _ = self.process.wait();
    }
}

/// The cores of this process, and one of them.
fn cores() -> (String, String) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or("0").trim().to_owned();
    let one = list.split([',', '-']).next().unwrap_or("0").to_owned();
    (list, one)
}

/// Binds every process of the server to these cores; sessions inherit it.
fn pin(server: &Server, cores: &str) -> Result<()> {
    let file = fs::read_to_string(server.directory()?.join("data/postmaster.pid"))?;
    let postmaster = file.lines().next().unwrap_or_default().trim().to_owned();
    let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"))?;
    for pid in children.split_whitespace().chain([postmaster.as_str()]) {
        // A process of the server may end meanwhile.
        Command::new("taskset").args(["-a", "-c", "-p", cores, pid]).stdout(Stdio::null()).status()?;
    }
    Ok(())
}
