//! See `benches/README.md`.

mod count;
mod peer;
mod peers;

use std::env;
use std::io::Read;

use t2m_db::testing::Server;

use crate::peer::{Result, SEED};

const USAGE: &str = "cargo run --release -- ...
    --count-all                       instructions and system calls, as tables
    --count <work> <peer> <units>     exactly so many units, in the database DATABASE_URL
    --server                          a seeded server for that, until stdin ends";

/// Calls a generic function for the peer of this name.
macro_rules! with_peer {
    ($name:expr, $module:ident::$function:ident $(, $argument:expr)*) => {
        match $name {
            "t2m-db" => $module::$function::<peers::T2m<false>>($($argument),*),
            "t2m-db commit_with" => $module::$function::<peers::T2m<true>>($($argument),*),
            "diesel+bb8" => $module::$function::<peers::Bb8>($($argument),*),
            "diesel+deadpool" => $module::$function::<peers::Deadpool>($($argument),*),
            "tokio-postgres+deadpool" => $module::$function::<peers::TokioPostgres>($($argument),*),
            "tokio-postgres" => $module::$function::<peers::Bare>($($argument),*),
            other => Err(format!("no peer {other}").into()),
        }
    };
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["--count", work, peer, units] => {
            let url = env::var("DATABASE_URL").map_err(|_| "DATABASE_URL: the url that --server prints")?;
            with_peer!(peer, count::run, &url, work.parse()?, units.parse()?)
        }
        ["--count-all"] => {
            let (_server, url) = server()?;
            Ok(println!("{}", count::tables(&url)?))
        }
        ["--server"] => {
            let (_server, url) = server()?;
            println!("{url}");
            std::io::stdin().read_to_end(&mut Vec::new())?;
            Ok(())
        }
        _ => Err(USAGE.into()),
    }
}

/// A private server, seeded, and the URL of its database over TCP.
///
/// It does not wait for the disk (`fsync` off, in memory if there is room) and does not vacuum meanwhile: the client is measured.
fn server() -> Result<(Server, String)> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let server = Server::builder().tcp().setting("autovacuum", "off").start().await?;
        server.client("postgres").await?.batch_execute(SEED).await?;
        let url = server.tcp_url("postgres")?;
        Ok((server, url))
    })
}
