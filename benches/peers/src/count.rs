//! What can be counted rather than timed: instructions and system calls of the client for one unit of work.
//!
//! Both are the difference of two runs on a warm connection, `FEW` and `MANY` units long, so that start and end cancel out.

use std::env;
use std::fs;
use std::process::{Command, Stdio};

use crate::peer::{Batch, Peer, Result, Work, unit};

const FEW: u64 = 200;
const MANY: u64 = 1200;
const WARM: u64 = 20;

const WORKS: [Work; 3] = [Work::W1, Work::W2, Work::W3];

/// The two without a pool before those with one.
const COUNTED: [&str; 7] = [
    "tokio-postgres",
    "diesel",
    "tokio-postgres+deadpool",
    "diesel+bb8",
    "diesel+deadpool",
    "t2m-db",
    "t2m-db commit_with",
];

type Measure = fn(&str, Work, &str, u64) -> Result<u64>;

/// Exactly `units` of them on one connection, and a few before to warm it up.
pub fn run<P: Peer>(url: &str, work: Work, units: u64) -> Result<()> {
    // One thread: what is counted is then the same each time.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (peer, batch) = (P::connect(url, 1).await?, Batch::new());
        for n in 0..WARM + units {
            unit(&peer, work, n, &batch).await?;
        }
        Ok(())
    })
}

/// Both tables, of these peers or of all; `url` is that of a seeded database.
pub fn tables(url: &str, only: &[&str]) -> Result<String> {
    let peers = if only.is_empty() { &COUNTED } else { only };
    let measures: [(&str, Measure); 2] = [("Instructions", instructions), ("System calls", syscalls)];
    let mut out = String::from("# Counts\n\nWritten by `cargo run --release -- --count-all` in `benches/peers`.\n");
    for (title, measure) in measures {
        out += &format!("\n## {title} of the client for one unit of work\n\nIn brackets: times the first row.\n\n");
        out += "| peer | W1 | W2 | W3 |\n|---|---|---|---|\n";
        let mut first = [None; WORKS.len()];
        for peer in peers {
            out += &format!("| {peer} |");
            for (work, first) in WORKS.into_iter().zip(&mut first) {
                let more = measure(url, work, peer, MANY)? as f64 - measure(url, work, peer, FEW)? as f64;
                let each = more / (MANY - FEW) as f64;
                let times = each / *first.get_or_insert(each);
                out += &match each {
                    each if each < 1000.0 => format!(" {each:.1} ({times:.2}) |"),
                    each => format!(" {:.1}k ({times:.2}) |", each / 1000.0),
                };
            }
            out += "\n";
        }
    }
    Ok(out)
}

fn instructions(url: &str, work: Work, peer: &str, units: u64) -> Result<u64> {
    let out = env::temp_dir().join(format!("callgrind.{}.{work:?}", std::process::id()));
    let mut tool = Command::new("valgrind");
    tool.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", out.display()));
    under(tool, url, work, peer, units)?;
    let profile = fs::read_to_string(&out)?;
    fs::remove_file(&out)?;
    let total = profile.lines().find_map(|line| line.strip_prefix("summary: ").or(line.strip_prefix("totals: ")));
    Ok(total.ok_or("callgrind told no total")?.trim().parse()?)
}

fn syscalls(url: &str, work: Work, peer: &str, units: u64) -> Result<u64> {
    let mut tool = Command::new("strace");
    tool.args(["-f", "-c", "-U", "calls,name"]);
    let told = under(tool, url, work, peer, units)?;
    let total = told.lines().rev().find(|line| line.trim_end().ends_with("total")).ok_or("strace told no total")?;
    Ok(total.split_whitespace().next().unwrap_or_default().parse()?)
}

fn under(mut tool: Command, url: &str, work: Work, peer: &str, units: u64) -> Result<String> {
    let run = tool.arg(env::current_exe()?).arg("--count").arg(format!("{work:?}")).arg(peer).arg(units.to_string());
    let output =
        run.env("DATABASE_URL", url).stdout(Stdio::null()).output().map_err(|error| format!("{tool:?}: {error}"))?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!("{tool:?}: {told}").into());
    }
    Ok(told)
}
