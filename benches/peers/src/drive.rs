//! A child process that does one peer's work, so that CPU and memory are its own.
//!
//! It reads lines `<work> <tasks> <units to warm up> <seconds>` and answers each with a [`Sample`] in a line.

use std::fs;
use std::io::{BufRead, Write, stdin, stdout};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use crate::peer::{Batch, Peer, Result, Work, unit};

/// Connections of every pool, and of pgbench.
pub const POOL: u32 = 10;

/// What is told of one measurement. Latencies in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub per_second: f64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub longest: f64,
    /// Client CPU for one unit, in microseconds.
    pub cpu: f64,
    /// The most memory that the process had, in megabytes.
    pub memory: f64,
}

impl Sample {
    pub fn new(units: f64, seconds: f64, mut latencies: Vec<u32>, cpu: f64, memory: f64) -> Self {
        latencies.sort_unstable();
        let at = |part: f64| {
            let last = latencies.len().saturating_sub(1);
            latencies.get(((last as f64) * part).round() as usize).map_or(f64::NAN, |nanos| f64::from(*nanos) / 1e6)
        };
        let (per_second, cpu) = (units / seconds, cpu / units * 1e6);
        Self { per_second, p50: at(0.5), p99: at(0.99), p999: at(0.999), longest: at(1.0), cpu, memory }
    }

    pub fn to_line(self) -> String {
        let Self { per_second, p50, p99, p999, longest, cpu, memory } = self;
        format!("{per_second} {p50} {p99} {p999} {longest} {cpu} {memory}")
    }

    pub fn from_line(line: &str) -> Result<Self> {
        let numbers: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [per_second, p50, p99, p999, longest, cpu, memory] = numbers[..] else {
            return Err(format!("not a sample: {line:?}").into());
        };
        Ok(Self { per_second, p50, p99, p999, longest, cpu, memory })
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Order {
    pub work: Work,
    pub tasks: u32,
    pub warm: u64,
    pub time: Duration,
}

/// Answers orders until stdin ends.
pub fn answer(mut measure: impl FnMut(Order) -> Result<Sample>) -> Result<()> {
    println!("ready");
    for line in stdin().lock().lines() {
        let line = line?;
        let [work, tasks, warm, seconds] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            return Err(format!("not an order: {line:?}").into());
        };
        let time = Duration::from_secs_f64(seconds.parse()?);
        let sample = measure(Order { work: work.parse()?, tasks: tasks.parse()?, warm: warm.parse()?, time })?;
        writeln!(stdout(), "{}", sample.to_line())?;
    }
    Ok(())
}

pub fn serve<P: Peer>(url: &str) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?; // as #[tokio::main]: a worker for each core that it may use
    let (peer, batch) = (runtime.block_on(P::connect(url, POOL))?, Batch::new());
    answer(|order| {
        runtime.block_on(load(&peer, order.work, order.tasks, order.warm, Duration::ZERO, &batch))?;
        fs::write("/proc/self/clear_refs", "5")?; // the peak of memory starts anew
        let (began, cpu_before) = (Instant::now(), cpu(UsageWho::RUSAGE_SELF)?);
        let latencies = runtime.block_on(load(&peer, order.work, order.tasks, 1, order.time, &batch))?;
        let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu(UsageWho::RUSAGE_SELF)? - cpu_before);
        Ok(Sample::new(latencies.len() as f64, seconds, latencies, cpu, peak()?))
    })
}

/// Tasks that work side by side, for so many units and so long; the time that each unit took, in nanoseconds.
async fn load<P: Peer>(
    peer: &P,
    work: Work,
    tasks: u32,
    units: u64,
    time: Duration,
    batch: &Arc<Batch>,
) -> Result<Vec<u32>> {
    let end = Instant::now() + time;
    let least = units.div_ceil(u64::from(tasks));
    let each = |task: u64| {
        let (peer, batch) = (peer.clone(), Arc::clone(batch));
        tokio::spawn(async move {
            let (mut latencies, mut before) = (Vec::new(), Instant::now());
            let mut n = 0;
            while n < least || before < end {
                unit(&peer, work, n + task * 1000, &batch).await?;
                let now = Instant::now();
                latencies.push(u32::try_from((now - before).as_nanos()).unwrap_or(u32::MAX));
                (before, n) = (now, n + 1);
            }
            Result::<_>::Ok(latencies)
        })
    };
    let mut all = Vec::new();
    for task in (0..u64::from(tasks)).map(each).collect::<Vec<_>>() {
        all.extend(task.await??);
    }
    Ok(all)
}

/// User and system time so far, in seconds.
pub fn cpu(who: UsageWho) -> Result<f64> {
    let usage = getrusage(who)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn peak() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
