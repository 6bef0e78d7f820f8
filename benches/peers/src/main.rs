//! The same five workloads on t2m-db and on what else there is; see `benches/README.md`.

mod count;
mod drive;
mod peer;
mod peers;
mod plot;
mod report;
mod rounds;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, thread};

use t2m_db::testing::Server;
use tokio::runtime::Runtime;

use crate::peer::{AFRESH, Result, SEED};
use crate::report::Report;
use crate::rounds::{Bench, Effort, FULL, PEERS, QUICK, SMOKE};

const USAGE: &str = "cargo run --release -- ...
    [--quick]                         all measurements: benches/RESULTS.md, benches/plots, the numbers in README.md
    --smoke                           all of them for a moment each, to see that they work; nothing is written
    --count-all [<peer> ..]           instructions and system calls, as tables; all of them: benches/COUNTS.md
    --count <work> <peer> <units>     exactly so many units, in the database DATABASE_URL
    --server                          a seeded server for that, until stdin ends";

/// Where `Cargo.toml` is.
const HOME: &str = env!("CARGO_MANIFEST_DIR");

/// Calls a generic function for the peer of this name.
macro_rules! with_peer {
    ($name:expr, $module:ident::$function:ident $(, $argument:expr)*) => {
        match $name {
            "t2m-db" => $module::$function::<peers::T2m<false>>($($argument),*),
            "t2m-db commit_with" => $module::$function::<peers::T2m<true>>($($argument),*),
            "diesel" => $module::$function::<peers::Alone>($($argument),*),
            "diesel+bb8" => $module::$function::<peers::Bb8>($($argument),*),
            "diesel+deadpool" => $module::$function::<peers::Deadpool>($($argument),*),
            "tokio-postgres+deadpool" => $module::$function::<peers::TokioPostgres>($($argument),*),
            "tokio-postgres" => $module::$function::<peers::Bare>($($argument),*),
            #[cfg(feature = "orms")]
            "sqlx" => $module::$function::<peers::Sqlx>($($argument),*),
            #[cfg(feature = "orms")]
            "sea-orm" => $module::$function::<peers::SeaOrm>($($argument),*),
            other => Err(format!("no peer {other}").into()),
        }
    };
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => compare(FULL),
        ["--quick"] => compare(QUICK),
        ["--smoke"] => compare(SMOKE),
        ["--serve", "pgbench prepared", url] => peers::pgbench(url, false),
        ["--serve", "pgbench pipeline", url] => peers::pgbench(url, true),
        ["--serve", peer, url] => with_peer!(peer, drive::serve, url),
        ["--count", work, peer, units] => {
            let url = env::var("DATABASE_URL").map_err(|_| "DATABASE_URL: the url that --server prints")?;
            with_peer!(peer, count::run, &url, work.parse()?, units.parse()?)
        }
        ["--count-all", ref only @ ..] => {
            let (_runtime, _server, url) = server()?;
            let tables = count::tables(&url, only)?;
            if only.is_empty() {
                fs::write(Path::new(HOME).join("../COUNTS.md"), &tables)?;
            }
            println!("{tables}");
            Ok(())
        }
        ["--server"] => {
            let (_runtime, _server, url) = server()?;
            println!("{url}");
            std::io::stdin().read_to_end(&mut Vec::new())?;
            Ok(())
        }
        _ => Err(USAGE.into()),
    }
}

fn compare(effort: Effort) -> Result<()> {
    let home = PathBuf::from(HOME);
    let has_python = virtual_environment(&home);
    let mut peers = PEERS.to_vec();
    peers.retain(|peer| match *peer {
        "sqlalchemy" => has_python,
        "sqlx" | "sea-orm" => cfg!(feature = "orms"),
        _ => true,
    });
    let setting = setting(&home);
    let (runtime, server, url) = server()?;
    let client = runtime.block_on(server.client("postgres"))?;
    let bench = Bench { runtime, server, url, client, effort, home, peers };
    let cells = bench.run()?;
    let report = Report { cells: &cells, bench: &bench, setting: &setting };
    println!("{}", report.results());
    if effort.kept { report.write() } else { Ok(()) }
}

/// A private server, seeded, and the URL of its database over TCP.
///
/// It does not wait for the disk (`fsync` off, in memory if there is room) and does not vacuum meanwhile: the client is measured.
fn server() -> Result<(Runtime, Server, String)> {
    let runtime = Runtime::new()?;
    let (server, url) = runtime.block_on(async {
        let server = Server::builder().tcp().setting("autovacuum", "off").start().await?;
        let client = server.client("postgres").await?;
        client.batch_execute(SEED).await?;
        client.batch_execute(AFRESH).await?;
        let url = server.tcp_url("postgres")?;
        Result::<_>::Ok((server, url))
    })?;
    Ok((runtime, server, url))
}

/// Makes `.venv` with what `sqlalchemy_peer.py` needs; without it that peer is left out.
fn virtual_environment(home: &Path) -> bool {
    let (venv, requirements) = (home.join(".venv"), home.join("requirements.txt"));
    let pip = venv.join("bin/pip");
    let run = |program: &Path, arguments: &[&str], path: &Path| {
        Command::new(program).args(arguments).arg(path).status().is_ok_and(|status| status.success())
    };
    let made = (pip.exists() || run(Path::new("python3"), &["-m", "venv"], &venv))
        && run(&pip, &["install", "--quiet", "--requirement"], &requirements);
    if !made {
        eprintln!("no Python with SQLAlchemy and asyncpg: that peer is left out");
    }
    made
}

/// What the numbers depend on.
fn setting(home: &Path) -> String {
    let told = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(home).output().ok();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().replace('\n', ", ")).unwrap_or_default()
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = thread::available_parallelism().map_or(0, usize::from);
    format!(
        "- Machine: {cores} cores of {}, Linux {}\n- {}; {}; {}\n- t2m-db {}, {}\n- Python: {}\n- Load before it began: {}\n",
        cpu.trim_start_matches([' ', '\t', ':']),
        told("uname", &["-r"]),
        told("pgbench", &["--version"]),
        told("rustc", &["--version"]),
        "server private, `fsync` and autovacuum off, TCP on loopback",
        told("git", &["describe", "--always", "--dirty"]),
        told("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        told(".venv/bin/pip", &["freeze"]),
        fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
    )
}
