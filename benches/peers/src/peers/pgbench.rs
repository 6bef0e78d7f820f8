//! pgbench, the client that comes with PostgreSQL, written in C: with prepared statements, one by one or as a pipeline.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::resource::{UsageWho, getrusage};

use super::by_hand::{INSERT, ITEM, TOUCH};
use crate::drive::{Order, POOL, Sample, answer, cpu};
use crate::peer::{ITEMS, Result, Work};

struct Pgbench<'a> {
    url: &'a str,
    pipeline: bool,
    folder: PathBuf,
    /// For each work and number of clients: units a second, and the CPU time that only starting takes.
    known: HashMap<(String, u32), (f64, f64)>,
}

struct Run {
    units: f64,
    per_second: f64,
    latencies: Vec<u32>,
    cpu: f64,
}

pub fn serve(url: &str, pipeline: bool) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("peers-pgbench-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let mut pgbench = Pgbench { url, pipeline, folder: folder.clone(), known: HashMap::new() };
    let done = answer(|order| pgbench.measure(order));
    fs::remove_dir_all(folder)?;
    done
}

impl Pgbench<'_> {
    fn measure(&mut self, Order { work, tasks, time, .. }: Order) -> Result<Sample> {
        let clients = tasks.min(POOL);
        let key = (format!("{work:?}"), clients);
        if !self.known.contains_key(&key) {
            let start = self.run(work, clients, 1)?.cpu;
            let rate = self.run(work, clients, 20 + 400 / clients)?.per_second;
            self.known.insert(key.clone(), (rate, start));
        }
        let (rate, start) = self.known[&key];
        let each = (rate * time.as_secs_f64() / f64::from(clients)).ceil() as u32;
        let run = self.run(work, clients, each)?;
        let memory = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss() as f64 / 1024.0;
        let seconds = run.units / run.per_second; // as it says itself: without connecting
        Ok(Sample::new(run.units, seconds, run.latencies, (run.cpu - start).max(0.0), memory))
    }

    fn run(&self, work: Work, clients: u32, each: u32) -> Result<Run> {
        let (script, log) = (self.folder.join("script"), self.folder.join("log"));
        fs::write(&script, self.script(work)?)?;
        let before = cpu(UsageWho::RUSAGE_CHILDREN)?;
        let mut command = Command::new("pgbench");
        command.args(["-n", "-M", "prepared", "-j", "1", "-c", &clients.to_string(), "-t", &each.to_string()]);
        command.arg("-f").arg(&script).arg("-l").arg("--log-prefix").arg(&log).arg(self.url);
        let output = command.output()?;
        let cpu = cpu(UsageWho::RUSAGE_CHILDREN)? - before;
        let told = String::from_utf8_lossy(&output.stdout);
        let number = |label: &str| {
            told.lines().find_map(|line| line.strip_prefix(label)?.split([' ', '/']).next()?.parse().ok())
        };
        let (units, rate) = (number("number of transactions actually processed: "), number("tps = "));
        let (Some(units), Some(per_second), true) = (units, rate, output.status.success()) else {
            return Err(format!("{command:?}: {told} {}", String::from_utf8_lossy(&output.stderr)).into());
        };
        Ok(Run { units, per_second, latencies: latencies(&self.folder)?, cpu })
    }

    /// The same texts, `:id` for `$1`.
    fn script(&self, work: Work) -> Result<String> {
        let with = |text: &str, value: &str| text.replace("$1", value);
        let (read, insert) = (with(ITEM, ":id"), with(INSERT, "'an entry'"));
        let lines = match (work, self.pipeline) {
            (Work::W1, _) => format!("BEGIN;\n{read};\nCOMMIT;"),
            (Work::W2, false) => format!("BEGIN;\n{insert} \\gset\n{};\nCOMMIT;", with(TOUCH, ":id")),
            // A pipeline cannot read the id that came back, so the server looks it up.
            (Work::W2, true) => format!("BEGIN;\n{insert};\n{};\nCOMMIT;", with(TOUCH, "(SELECT lastval())")),
            (Work::W3, _) => format!("{read};"),
            (other, _) => return Err(format!("no script for {other:?}").into()),
        };
        let id = format!("\\set id random(1, {ITEMS})\n");
        Ok(match self.pipeline {
            true => format!("{id}\\startpipeline\n{lines}\n\\endpipeline\n"),
            false => format!("{id}{lines}\n"),
        })
    }
}

/// Reads and removes the logs: the third column is the latency of one unit, in microseconds.
fn latencies(folder: &Path) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log")) {
            let log = fs::read_to_string(&path)?;
            all.extend(
                log.lines().filter_map(|line| Some(line.split(' ').nth(2)?.parse::<u32>().ok()?.saturating_mul(1000))),
            );
            fs::remove_file(path)?;
        }
    }
    Ok(all)
}
