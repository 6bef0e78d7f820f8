//! A backend is killed with SIGKILL and the server recovers, again and again, under load. What callers are told is compared
//! with what is stored in the end.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime};

use diesel::ExpressionMethods;
use t2m_db::testing::Server;
use t2m_db::{CommitOutcome, Config, Database, Error};
use tokio::task::JoinSet;

use crate::pool_support::until;
use crate::support::rounds;

diesel::table! {
    ledger (id) {
        id -> BigInt,
    }
}

/// What a caller was told of one entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) id: i64,
    pub(crate) outcome: CommitOutcome,
    /// When the COMMIT was sent that is unknown.
    pub(crate) unknown: Option<SystemTime>,
    pub(crate) at: Instant,
}

/// Tasks that store one entry after the other until they are told to stop.
#[derive(Debug)]
pub(crate) struct Load {
    tasks: JoinSet<Vec<Told>>,
    stop: Arc<AtomicBool>,
    /// How many were committed so far.
    pub(crate) committed: Arc<AtomicI64>,
}

impl Load {
    pub(crate) fn start(db: &Database, width: usize) -> Self {
        let (stop, committed, next) = (Arc::default(), Arc::<AtomicI64>::default(), Arc::new(AtomicI64::new(1)));
        let mut load = Self { tasks: JoinSet::new(), stop, committed };
        for _ in 0..width {
            let (db, stop) = (db.clone(), Arc::clone(&load.stop));
            let (next, committed) = (Arc::clone(&next), Arc::clone(&load.committed));
            load.tasks.spawn(async move {
                let mut told = Vec::new();
                while !stop.load(SeqCst) {
                    let id = next.fetch_add(1, SeqCst);
                    let one = one(&db, id).await;
                    committed.fetch_add(i64::from(one.outcome == CommitOutcome::Committed), SeqCst);
                    told.push(one);
                }
                told
            });
        }
        load
    }

    pub(crate) async fn end(self) -> Vec<Told> {
        self.stop.store(true, SeqCst);
        self.tasks.join_all().await.into_iter().flatten().collect()
    }
}

async fn one(db: &Database, id: i64) -> Told {
    let insert = diesel::insert_into(ledger::table).values(ledger::id.eq(id));
    let result = db.transaction("entry").run(async |tx| {
        use diesel_async::RunQueryDsl; // here only: it has a `load` that hides the one of atomics
        Ok::<_, Error>(insert.execute(tx).await?)
    });
    let result = result.await;
    let unknown = match &result {
        Err(Error::CommitUnknown(unknown)) => {
            assert!(unknown.xid.is_some() && unknown.why.contains("server"), "{unknown}");
            Some(unknown.sent_at)
        }
        _ => None,
    };
    let outcome = result.as_ref().err().map_or(CommitOutcome::Committed, Error::commit_outcome);
    Told { id, outcome, unknown, at: Instant::now() }
}

/// Compares with the ledger; returns how often what was told, and how many were committed and are not there.
pub(crate) async fn compare(client: &tokio_postgres::Client, told: &[Told]) -> (HashMap<String, u32>, u32) {
    let rows = client.query("SELECT id FROM ledger", &[]).await.unwrap();
    let stored: HashSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    let (mut counts, mut lost) = (HashMap::new(), 0);
    for one in told {
        *counts.entry(format!("{:?}", one.outcome)).or_default() += 1;
        match (one.outcome, stored.contains(&one.id)) {
            (CommitOutcome::Committed, false) => lost += 1,
            (CommitOutcome::NotCommitted, true) => panic!("{one:?} is stored"),
            _ => {}
        }
    }
    (counts, lost)
}

/// Crashes the server so many times under load; returns how many committed entries were lost.
async fn crashes(server: &Server, times: u32) -> u32 {
    let database = server.empty_database().await.unwrap();
    // Whatever else is committed asynchronously, the table is there after a crash.
    let table = "SET synchronous_commit = on; CREATE TABLE ledger (id bigint PRIMARY KEY)";
    database.client().await.unwrap().batch_execute(table).await.unwrap();
    let config = Config::from_url(&database.url()).unwrap().max_size(6).health_interval(None);
    let db = Database::connect(config).await.unwrap();
    let load = Load::start(&db, 8);
    let mut windows = Vec::new();
    while windows.len() < times as usize {
        let before = load.committed.load(SeqCst);
        // At a random moment, once it works again.
        until("the load is served again", || load.committed.load(SeqCst) >= before + 8).await;
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..20_000))).await;
        let client = database.client().await.unwrap();
        let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 't2m-db' ORDER BY random() LIMIT 1";
        let Some(row) = client.query_opt(sql, &[]).await.unwrap() else { continue };
        let began = SystemTime::now();
        if server.kill_backend(row.get(0)).await.is_err() {
            continue; // it had just ended
        }
        server.until_ready().await.unwrap();
        windows.push((began, SystemTime::now()));
    }
    let told = load.end().await;
    let (counts, lost) = compare(&database.client().await.unwrap(), &told).await;
    println!("{times} crashes: {counts:?}, {lost} committed ones lost");
    for at in told.iter().filter_map(|one| one.unknown) {
        // The reply that was lost may have been to a COMMIT that was sent a little before.
        let near = |(began, ended): &(SystemTime, SystemTime)| at + Duration::from_secs(1) > *began && at < *ended;
        assert!(windows.iter().any(near), "unknown at {at:?}, no crash near it");
    }
    lost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_loses_nothing_that_was_told_committed() {
    let server = Server::builder().durable().start().await.unwrap();
    assert_eq!(crashes(&server, rounds(8)).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_with_asynchronous_commit_stores_nothing_that_was_told_not_committed() {
    let server = Server::builder().durable().setting("synchronous_commit", "off").start().await.unwrap();
    crashes(&server, rounds(8)).await;
}
