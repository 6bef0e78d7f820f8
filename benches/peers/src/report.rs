//! The tables and the plots.

use std::fmt::Write;
use std::fs;

use crate::drive::{POOL, Sample};
use crate::peer::{Result, Work};
use crate::plot::{Plot, Series};
use crate::rounds::{Bench, CHECKOUTS, Cell, OURS, PEERS, Place, TASKS, YARDSTICK};

const RIDING: &str = "t2m-db commit_with";

/// What issue 5 asks for: t2m-db's throughput over that of the peer, on one core.
const BARS: [(Work, &str, f64); 14] = [
    (Work::W1, "diesel+bb8", 1.9),
    (Work::W2, "diesel+bb8", 2.8),
    (Work::W3, "diesel+bb8", 1.7),
    (Work::W1, "sqlx", 1.8),
    (Work::W2, "sqlx", 1.2),
    (Work::W3, "sqlx", 1.7),
    (Work::W1, "sqlalchemy", 15.0),
    (Work::W2, "sqlalchemy", 15.0),
    (Work::W3, "sqlalchemy", 15.0),
    (Work::W4, "sqlalchemy", 15.0),
    (Work::W5, "sqlalchemy", 15.0),
    (Work::W1, "pgbench prepared", 1.2),
    (Work::W2, "pgbench prepared", 0.9),
    (Work::W3, "pgbench prepared", 1.0),
];

/// The blocking round trips of t2m-db, as `tests/round_trips.rs` counts them.
const TRIPS: [(Work, &str, u32); 7] = [
    (Work::W1, OURS, 2),
    (Work::W1, RIDING, 1),
    (Work::W2, OURS, 3),
    (Work::W2, RIDING, 2),
    (Work::W3, OURS, 1),
    (Work::W4, OURS, 1),
    (Work::W5, OURS, 2),
];

pub struct Report<'a> {
    pub cells: &'a [Cell],
    pub bench: &'a Bench,
    /// The machine and the versions, a line each.
    pub setting: &'a str,
}

impl Report<'_> {
    /// Writes `RESULTS.md`, the plots and the numbers in the crate's README.
    pub fn write(&self) -> Result<()> {
        let benches = self.bench.home.join("..");
        fs::write(benches.join("RESULTS.md"), self.results())?;
        fs::create_dir_all(benches.join("plots"))?;
        for (name, svg) in
            [("throughput", self.throughput()), ("distance", self.distance()), ("checkout", self.checkout())]
        {
            fs::write(benches.join(format!("plots/{name}.svg")), svg)?;
        }
        let path = benches.join("../README.md");
        let readme = fs::read_to_string(&path)?;
        let (begin, end) = ("<!-- numbers -->\n", "<!-- end of numbers -->");
        if let (Some(from), Some(to)) = (readme.find(begin), readme.find(end)) {
            fs::write(path, format!("{}{}{}", &readme[..from + begin.len()], self.short(), &readme[to..]))?;
        }
        Ok(())
    }

    pub fn results(&self) -> String {
        let effort = self.bench.effort;
        let mut out = format!(
            "# Results\n\nWritten by the command in [README.md](README.md): {}, {} rounds of {:?} for each peer.\n\n{}\n",
            effort.name, effort.rounds, effort.time, self.setting
        );
        out += "## Bars of issue 5\n\nThroughput of t2m-db over that of the peer, on one core; ";
        out += "the second three: of t2m-db with `commit_with`. **Bold**: the bar is missed.\n\n";
        out += &self.bars();
        out += "\n## Latency at 1 ms each way, one task\n\nTimes of the round trips: the p50 over round trips x the p50 of one, ";
        out += "which is a read of a bare tokio-postgres client in the same rounds.\n\n";
        out += &self.trips();
        out += "\n## Checkout alone\n\nThe connection is held for one turn of the scheduler. Checkouts a second, and the longest wait.\n\n";
        out += &table("peer, tasks", CHECKOUTS.map(|tasks| tasks.to_string()), |peer, n| {
            let cell = self.cell(Place::Unpinned, Work::Checkout, CHECKOUTS[n])?;
            let longest = samples(cell, peer)?.iter().map(|sample| sample.longest).fold(0.0, f64::max);
            Some(format!("{}, {} ms", short(median_of(cell, peer, |s| s.per_second)?), digits(longest)))
        });
        for place in Place::ALL {
            for tasks in TASKS {
                let heading = |what: &str| format!("\n### {what}: {}, {tasks} at once\n\n", place.title());
                out += &heading("Throughput");
                out += "t2m-db's over the peer's (and units a second).\n\n";
                out += &self.works(place, tasks, |cell, peer| {
                    let rate = median_of(cell, peer, |s| s.per_second)?;
                    Some(format!("{} ({})", digits(ratio(cell, OURS, peer)?), short(rate)))
                });
                out += &heading("p50 / p99 / p99.9 in ms");
                out += &self.works(place, tasks, |cell, peer| {
                    let at = |which: fn(&Sample) -> f64| median_of(cell, peer, which).map(digits);
                    Some(format!("{} / {} / {}", at(|s| s.p50)?, at(|s| s.p99)?, at(|s| s.p999)?))
                });
                if place == Place::Pinned {
                    out += &heading("Client CPU for one unit in µs");
                    out += &self.works(place, tasks, |cell, peer| Some(digits(median_of(cell, peer, |s| s.cpu)?)));
                    out += &heading("Most memory of the client in MB");
                    out += &self.works(place, tasks, |cell, peer| Some(digits(median_of(cell, peer, |s| s.memory)?)));
                }
            }
        }
        out
    }

    fn bars(&self) -> String {
        let mut out = String::from("| work | against | bar |");
        for tasks in TASKS.into_iter().chain(TASKS) {
            let _ = write!(out, " {tasks} at once |");
        }
        out += "\n|---|---|---|---|---|---|---|---|---|\n";
        for (work, peer, bar) in BARS {
            let _ = write!(out, "| {work:?} | {peer} | {bar} |");
            for (ours, tasks) in TASKS.map(|tasks| (OURS, tasks)).into_iter().chain(TASKS.map(|tasks| (RIDING, tasks)))
            {
                let reached = self.cell(Place::Pinned, work, tasks).and_then(|cell| ratio(cell, ours, peer));
                out += &match reached {
                    Some(reached) if reached < bar => format!(" **{reached:.2}** |"),
                    Some(reached) => format!(" {reached:.2} |"),
                    None => " |".into(),
                };
            }
            out += "\n";
        }
        out
    }

    fn trips(&self) -> String {
        let mut out =
            String::from("| work | | round trips | p50 in ms | one in ms | times |\n|---|---|---|---|---|---|\n");
        for (work, peer, trips) in TRIPS {
            let Some(cell) = self.cell(Place::Distant, work, 1) else { continue };
            let Some(over) = per_round(cell, peer, YARDSTICK, |a, b| a.p50 / b.p50 / f64::from(trips)) else {
                continue;
            };
            let p50 = |peer| median_of(cell, peer, |s| s.p50).map(digits).unwrap_or_default();
            let _ = writeln!(out, "| {work:?} | {peer} | {trips} | {} | {} | {over:.3} |", p50(peer), p50(YARDSTICK));
        }
        out
    }

    /// What the crate's README says.
    fn short(&self) -> String {
        let mut out =
            String::from("Throughput of t2m-db over that of others, one core for client and server, 8 tasks:\n\n");
        out += &self.works(Place::Pinned, 8, |cell, peer| (peer != OURS).then_some(digits(ratio(cell, OURS, peer)?)));
        out += "\n![throughput](benches/plots/throughput.svg)\n![latency at a distance](benches/plots/distance.svg)\n";
        out += "![longest wait for a connection](benches/plots/checkout.svg)\n\n";
        out
    }

    fn throughput(&self) -> String {
        let title = "Throughput over that of diesel-async + bb8";
        let unit = "one core for client and server, 8 tasks";
        self.by_work(title, unit, |cell, peer| ratio(cell, peer, "diesel+bb8"), Place::Pinned, 8).bars()
    }

    fn distance(&self) -> String {
        let works = [Work::W1, Work::W2, Work::W3, Work::W4];
        let p50 =
            |peer: &str, work| self.cell(Place::Distant, work, 1).and_then(|cell| median_of(cell, peer, |s| s.p50));
        let series = series(|peer| works.iter().map(|work| p50(peer, *work)).collect());
        let groups = works.map(|work| format!("{work:?}")).to_vec();
        Plot { title: "Latency at 1 ms each way", unit: "p50 in ms, one task", groups, series }.bars()
    }

    fn checkout(&self) -> String {
        let longest = |cell: &Cell, peer: &str| {
            let waits = samples(cell, peer)?.iter().map(|sample| sample.longest);
            waits.reduce(f64::max)
        };
        let at =
            |peer: &str, tasks| self.cell(Place::Unpinned, Work::Checkout, tasks).and_then(|cell| longest(cell, peer));
        let series = series(|peer| CHECKOUTS.iter().map(|tasks| at(peer, *tasks)).collect());
        let groups = CHECKOUTS.map(|tasks| tasks.to_string()).to_vec();
        let unit = format!("in ms, by tasks; checkout alone, {POOL} connections, all cores");
        Plot { title: "Longest wait for a connection", unit: &unit, groups, series }.lines()
    }

    fn by_work<'t>(
        &self,
        title: &'t str,
        unit: &'t str,
        value: impl Fn(&Cell, &str) -> Option<f64>,
        place: Place,
        tasks: u32,
    ) -> Plot<'t> {
        let at = |peer: &str, work| self.cell(place, work, tasks).and_then(|cell| value(cell, peer));
        let series = series(|peer| Work::UNITS.map(|work| at(peer, work)).to_vec());
        Plot { title, unit, groups: Work::UNITS.map(|work| format!("{work:?}")).to_vec(), series }
    }

    fn works(&self, place: Place, tasks: u32, entry: impl Fn(&Cell, &str) -> Option<String>) -> String {
        table("peer", Work::UNITS.map(|work| format!("{work:?}")), |peer, n| {
            entry(self.cell(place, Work::UNITS[n], tasks)?, peer)
        })
    }

    fn cell(&self, place: Place, work: Work, tasks: u32) -> Option<&Cell> {
        self.cells.iter().find(|cell| (cell.place, cell.work, cell.tasks) == (place, work, tasks))
    }
}

/// Peers down, `columns` across; who has no entry at all is left out.
fn table<const N: usize>(
    corner: &str,
    columns: [String; N],
    entry: impl Fn(&'static str, usize) -> Option<String>,
) -> String {
    let mut out = format!("| {corner} | {} |\n|{}\n", columns.join(" | "), "---|".repeat(N + 1));
    for peer in PEERS {
        let entries: Vec<_> = (0..N).map(|n| entry(peer, n)).collect();
        if entries.iter().any(Option::is_some) {
            let entries: Vec<_> = entries.into_iter().map(Option::unwrap_or_default).collect();
            let _ = writeln!(out, "| {peer} | {} |", entries.join(" | "));
        }
    }
    out
}

fn series(values: impl Fn(&str) -> Vec<Option<f64>>) -> Vec<Series<'static>> {
    let all = PEERS.into_iter().enumerate().map(|(colour, name)| Series { name, colour, values: values(name) });
    all.filter(|series| series.values.iter().any(Option::is_some)).collect()
}

fn samples<'a>(cell: &'a Cell, peer: &str) -> Option<&'a [Sample]> {
    cell.samples.iter().find(|(name, _)| *name == peer).map(|(_, samples)| samples.as_slice())
}

/// The median over rounds of what `peer` did.
fn median_of(cell: &Cell, peer: &str, value: fn(&Sample) -> f64) -> Option<f64> {
    median(samples(cell, peer)?.iter().map(value))
}

/// The median over rounds of one's throughput over the other's.
fn ratio(cell: &Cell, one: &str, other: &str) -> Option<f64> {
    per_round(cell, one, other, |a, b| a.per_second / b.per_second)
}

fn per_round(cell: &Cell, one: &str, other: &str, compare: impl Fn(&Sample, &Sample) -> f64) -> Option<f64> {
    let both = samples(cell, one)?.iter().zip(samples(cell, other)?);
    median(both.map(|(a, b)| compare(a, b)))
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 0 => Some(f64::midpoint(values[middle - 1], values[middle])),
        _ => Some(values[middle]),
    }
}

fn short(rate: f64) -> String {
    if rate < 1000.0 { digits(rate) } else { format!("{}k", digits(rate / 1000.0)) }
}

/// Three digits that say something.
fn digits(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
