//! The primary goes away under load, its synchronous standby is promoted, and the pool finds it.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use t2m_db::testing::{Replication, Server, Stop};
use t2m_db::{Config, Database};
use tokio::time::timeout;

use crate::crash::{Load, compare};
use crate::support::{LONG, rounds};

/// `postgres://user@a,b/postgres`
fn both(primary: &Server, standby: &Server) -> String {
    let (first, second) = (primary.url("postgres"), standby.url("postgres"));
    let hosts = |url: &str| url.split_once('@').unwrap().1.split_once('/').unwrap().0.to_owned();
    let (login, _) = first.split_once('@').unwrap();
    format!("{login}@{},{}/postgres?target_session_attrs=read-write", hosts(&first), hosts(&second))
}

/// How the old primary goes.
#[derive(Clone, Copy, Debug)]
enum End {
    Killed,
    Stopped(Stop),
}

async fn promotion(how: End) -> Duration {
    let primary = Server::builder().tcp().start().await.unwrap();
    let client = primary.client("postgres").await.unwrap();
    client.batch_execute("CREATE TABLE ledger (id bigint PRIMARY KEY)").await.unwrap();
    let standby = primary.standby(Replication::Synchronous).await.unwrap();
    let config = Config::from_url(&both(&primary, &standby)).unwrap().max_size(6).health_interval(None);
    let db = Database::connect(config).await.unwrap();
    let load = Load::start(&db, 8);
    let reach = async |count: i64| {
        let reached = async {
            while load.committed.load(SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LONG, reached).await.unwrap_or_else(|_| panic!("no more commits: {:#?}", db.stats()));
    };
    reach(20).await;
    tokio::time::sleep(Duration::from_micros(fastrand::u64(0..200_000))).await; // the random moment
    match how {
        End::Killed => primary.kill().await.unwrap(),
        End::Stopped(how) => primary.stop(how).await.unwrap(),
    }
    standby.promote().await.unwrap();
    let promoted = Instant::now();
    reach(load.committed.load(SeqCst) + 40).await;
    let told = load.end().await;
    let client = standby.client("postgres").await.unwrap();
    let (counts, lost) = compare(&client, &told).await;
    let mut after: Vec<_> = told.iter().filter(|one| one.at > promoted).collect();
    after.sort_by_key(|one| one.at);
    let first = after.iter().find(|one| one.outcome == t2m_db::CommitOutcome::Committed).unwrap();
    let took = first.at - promoted;
    println!("{how:?}: {counts:?}, writing again after {took:.1?}");
    assert_eq!(lost, 0, "acknowledged and lost");
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_follows_a_promotion_and_loses_nothing() {
    let ends = [End::Killed, End::Stopped(Stop::Fast), End::Stopped(Stop::Immediate)];
    for how in ends.into_iter().cycle().take(rounds(3) as usize) {
        let took = promotion(how).await;
        assert!(took < Duration::from_secs(2), "{took:.1?}");
    }
}
