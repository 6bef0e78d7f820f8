//! Everything at once: random drops, panics, errors, deadlines, killed and cancelled backends. What callers were told is
//! compared with a ledger that is written inside the transactions.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use diesel::{ExpressionMethods, QueryDsl};
use diesel_async::SimpleAsyncConnection;
use futures_util::FutureExt;
use t2m_db::testing::{Server, TestDatabase, Tls};
use t2m_db::{CommitOutcome, Config, Connection, Database, Error, Transaction};
use tokio::task::JoinSet;
use tokio::time::timeout;

diesel::table! {
    ledger (entry, part) {
        entry -> BigInt,
        part -> Integer,
    }
}

const TASKS: u64 = 48;
const CONNECTIONS: u32 = 8;
const LENGTH: Duration = Duration::from_secs(20);
/// So many that were committed, and that were not, make a test of it.
const ENOUGH: u32 = 100;

/// What a caller was told of one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Told {
    Committed,
    NotCommitted,
    /// The future was dropped, or the outcome could not be known: one or the other, but whole.
    Nothing,
}

async fn prepare(database: &TestDatabase, url: &str) -> Database {
    let client = database.client().await.unwrap();
    client.batch_execute("CREATE TABLE ledger (entry bigint, part int, PRIMARY KEY (entry, part))").await.unwrap();
    let config = Config::from_url(url).unwrap().max_size(CONNECTIONS).application_name("hammer");
    Database::connect(config).await.unwrap()
}

/// Two rows with something in between; `fate` decides what goes wrong.
async fn body(tx: &mut Transaction, entry: i64, fate: u64) -> Result<(), Error> {
    use diesel_async::RunQueryDsl; // here only: it has a `load` that hides the one of atomics
    let row = |part| diesel::insert_into(ledger::table).values((ledger::entry.eq(entry), ledger::part.eq(part)));
    row(1).execute(tx).await?;
    match fate {
        0 => tx.batch_execute("SELECT 1 / 0").await?,
        1 => std::panic::resume_unwind(Box::new("on purpose")), // no backtrace, unlike panic!
        2 => tx.batch_execute("SELECT pg_sleep(0.05)").await?,
        3 => {
            let nested = tx.savepoint(async |tx| {
                row(3).execute(tx).await?;
                tx.batch_execute("SELECT pg_sleep(0.02)").await?;
                Err::<(), Error>(diesel::result::Error::RollbackTransaction.into())
            });
            // Cancelled or rolled back: its row must not be there either way.
            let _ = timeout(Duration::from_millis(fastrand::u64(0..20)), nested).await;
        }
        4 => {
            row(2).execute(tx).await?;
            drop(row(2).execute(tx).await); // a swallowed error
            return Ok(());
        }
        5 => {
            tx.commit_with(row(2)).await?;
            return Ok(());
        }
        6 => {
            let tx = &*tx;
            let (second, third) = (row(2).execute(&mut &*tx), row(3).execute(&mut &*tx));
            futures_util::try_join!(second, third)?;
            diesel::delete(ledger::table.find((entry, 3))).execute(&mut &*tx).await?;
            return Ok(());
        }
        _ => {}
    }
    row(2).execute(tx).await?;
    Ok(())
}

/// A read of an entry that nobody wrote: an `Ok` would be a lie.
async fn nothing_of(conn: &mut Connection, entry: i64) -> Result<(), Error> {
    use diesel_async::RunQueryDsl;
    let parts: i64 = ledger::table.filter(ledger::entry.eq(entry)).count().get_result(conn).await?;
    if parts > 0 { Ok(()) } else { Err(Error::NotFound { entity: "entry" }) }
}

fn told(result: Result<(), Error>) -> Told {
    match result {
        Ok(()) => Told::Committed,
        Err(error) => match error.commit_outcome() {
            CommitOutcome::NotCommitted => Told::NotCommitted,
            CommitOutcome::Committed => Told::Committed,
            _ => Told::Nothing,
        },
    }
}

async fn one(db: &Database, entry: i64) -> Told {
    let fate = fastrand::u64(0..14);
    let scope = db.transaction("hammer");
    let scope =
        if fastrand::u8(0..4) == 0 { scope.deadline(Duration::from_millis(fastrand::u64(1..40))) } else { scope };
    let run = async {
        match fate {
            7 => scope.run_retrying(async move |tx| body(tx, entry, fate).await).await,
            8 => db.with_connection(async move |conn| nothing_of(conn, entry).await).await,
            _ => scope.run(async move |tx| body(tx, entry, fate).await).await,
        }
    };
    let run = AssertUnwindSafe(run).catch_unwind();
    let told = if fastrand::u8(0..4) == 0 {
        match timeout(Duration::from_micros(fastrand::u64(0..30_000)), run).await {
            Ok(ended) => ended.map(told),
            Err(_) => return Told::Nothing,
        }
    } else {
        run.await.map(told)
    };
    told.unwrap_or(Told::NotCommitted) // it panicked
}

/// Kills or cancels a random session of ours every few milliseconds.
async fn trouble(database: &TestDatabase, statement: &str, stop: Arc<AtomicBool>, pause: Duration) {
    let client = database.client().await.unwrap();
    let victim = format!(
        "SELECT {statement}(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND application_name = 'hammer' ORDER BY random() LIMIT 1"
    );
    while !stop.load(SeqCst) {
        client.batch_execute(&victim).await.unwrap();
        tokio::time::sleep(pause).await; // the rate of the storm, nothing waits for it to settle
    }
}

/// The most sessions of ours that the server ever had at once.
async fn watch_sessions(database: &TestDatabase, most: Arc<AtomicU32>, stop: Arc<AtomicBool>) {
    let client = database.client().await.unwrap();
    let count =
        "SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'hammer'";
    while !stop.load(SeqCst) {
        let now: i32 = client.query_one(count, &[]).await.unwrap().get(0);
        most.fetch_max(u32::try_from(now).unwrap(), SeqCst);
        tokio::task::yield_now().await;
    }
}

async fn hammer(kills: bool, length: Duration) {
    let database = t2m_db::testing::database().await;
    let url = database.url();
    hammer_on(database, &url, kills, length).await;
}

async fn hammer_on(database: TestDatabase, url: &str, kills: bool, length: Duration) {
    let database = Arc::new(database);
    let db = prepare(&database, url).await;
    let (stop, most, next) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU64::new(0)));
    let mut storm = JoinSet::new();
    {
        let (database, stop, most) = (Arc::clone(&database), Arc::clone(&stop), Arc::clone(&most));
        storm.spawn(async move { watch_sessions(&database, most, stop).await });
    }
    let troubles: &[(&str, u64)] = if kills { &[("pg_terminate_backend", 40), ("pg_cancel_backend", 3)] } else { &[] };
    for (statement, pause) in troubles {
        let (database, stop) = (Arc::clone(&database), Arc::clone(&stop));
        storm.spawn(async move { trouble(&database, statement, stop, Duration::from_millis(*pause)).await });
    }
    let end = Instant::now() + length;
    let mut tasks = JoinSet::new();
    let enough = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
    for _ in 0..TASKS {
        let (db, next, enough) = (db.clone(), Arc::clone(&next), Arc::clone(&enough));
        tasks.spawn(async move {
            let mut told = Vec::new();
            // On a busy machine it takes longer to see enough of both.
            let goes_on = || {
                let now = Instant::now();
                now < end || enough.iter().any(|seen| seen.load(SeqCst) <= ENOUGH) && now < end + 3 * LENGTH
            };
            while goes_on() {
                let entry = i64::try_from(next.fetch_add(1, SeqCst)).unwrap();
                let heard = one(&db, entry).await;
                match heard {
                    Told::Committed => enough[0].fetch_add(1, SeqCst),
                    Told::NotCommitted => enough[1].fetch_add(1, SeqCst),
                    Told::Nothing => 0,
                };
                told.push((entry, heard));
            }
            told
        });
    }
    let told: HashMap<i64, Told> = tasks.join_all().await.into_iter().flatten().collect();
    stop.store(true, SeqCst);
    storm.join_all().await;
    let report = db.close(Duration::from_secs(5)).await;
    assert!(report.cancelled.is_empty() && report.leaked.is_empty(), "{report:?}");
    let stats = db.stats();
    assert_eq!((stats.checked_out, stats.size), (0, 0), "{stats:#?}");

    let client = database.client().await.unwrap();
    let mut stored: HashMap<i64, HashSet<i32>> = HashMap::new();
    for row in client.query("SELECT entry, part FROM ledger", &[]).await.unwrap() {
        stored.entry(row.get(0)).or_default().insert(row.get(1));
    }
    let whole = HashSet::from([1, 2]);
    let mut counts: HashMap<Told, u32> = HashMap::new();
    for (entry, told) in &told {
        *counts.entry(*told).or_default() += 1;
        match (told, stored.get(entry)) {
            (Told::Committed | Told::Nothing, Some(parts)) if *parts == whole => {}
            (Told::NotCommitted | Told::Nothing, None) => {}
            (told, parts) => panic!("entry {entry}: told {told:?}, stored {parts:?}"),
        }
    }
    println!("{counts:?}\n{stats:#?}");
    assert!(most.load(SeqCst) <= CONNECTIONS, "{} sessions", most.load(SeqCst));
    assert!(counts[&Told::Committed] > ENOUGH && counts[&Told::NotCommitted] > ENOUGH, "{counts:?}");
    if !kills {
        assert!(stats.opened <= u64::from(CONNECTIONS), "{stats:#?}");
        assert_eq!(stats.discarded, 0, "{stats:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_caller_is_told_the_truth_in_a_storm_of_kills_and_cancels() {
    hammer(true, LENGTH).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_and_failed_scopes_cost_no_connection() {
    hammer(false, LENGTH / 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_caller_is_told_the_truth_over_tls() {
    let server = Server::builder().tls(Tls::good()).start().await.unwrap();
    let database = server.database().await.unwrap();
    let authority = server.certificates().unwrap().authority.display();
    let (port, name) = (server.port().unwrap(), database.name());
    let url = format!("postgres://postgres@localhost:{port}/{name}?sslmode=verify-full&sslrootcert={authority}");
    hammer_on(database, &url, true, LENGTH / 4).await;
}
