//! What is tried again, how often, and what is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use diesel::{ExpressionMethods, QueryDsl};
use t2m_db::testing::{Proxy, When};
use t2m_db::{
    CommitOutcome, CommitResolution, Config, Database, Error, Isolation, RetriesExhausted, Retry, Transaction,
};
use tokio::sync::{Barrier, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{LONG, batch, note, notes, rounds, setup_with, table};

diesel::table! {
    accounts (id) {
        id -> Integer,
        balance -> BigInt,
    }
}

const ACCOUNTS: i32 = 20;
const FAIL: &str = "DO $$ BEGIN RAISE serialization_failure; END $$";

/// Often, soon, and without end to the bucket: for workloads that collide all the time.
fn persistent() -> Retry {
    Retry::serialization(1_000).backoff_between(Duration::from_millis(1), Duration::from_millis(20)).budget(1_000_000)
}

fn exhausted(error: &Error) -> &RetriesExhausted {
    match error {
        Error::SerializationRetriesExhausted(exhausted) => exhausted,
        other => panic!("not exhausted: {other:?}"),
    }
}

async fn transfer(tx: &mut Transaction, from: i32, to: i32) -> Result<(), Error> {
    use diesel_async::RunQueryDsl; // here only: it has a `load` that hides the one of atomics
    let balance = |id: i32| accounts::table.find(id).select(accounts::balance);
    let rich: i64 = balance(from).get_result(tx).await?;
    let poor: i64 = balance(to).get_result(tx).await?;
    let set = |id: i32, to: i64| diesel::update(accounts::table.find(id)).set(accounts::balance.eq(to));
    set(from, rich - 1).execute(tx).await?;
    set(to, poor + 1).execute(tx).await?;
    Ok(())
}

/// How many transfers 16 tasks get done in `time`.
async fn transfers(db: &Database, by_hand: bool, time: Duration) -> u64 {
    let (done, end) = (Arc::new(AtomicU64::new(0)), Instant::now() + time);
    let mut tasks = JoinSet::new();
    for _ in 0..16 {
        let (db, done) = (db.clone(), Arc::clone(&done));
        tasks.spawn(async move {
            while Instant::now() < end {
                let from = fastrand::i32(0..ACCOUNTS);
                let to = (from + fastrand::i32(1..ACCOUNTS)) % ACCOUNTS;
                let scope = || db.transaction("transfer").isolation(Isolation::Serializable);
                let body = async move |tx: &mut Transaction| transfer(tx, from, to).await;
                if by_hand {
                    while let Err(error) = scope().run(body).await {
                        assert!(error.is_retryable(), "{error:?}");
                    }
                } else {
                    scope().run_retrying(body).await.unwrap();
                }
                done.fetch_add(1, SeqCst);
            }
        });
    }
    tasks.join_all().await;
    done.load(SeqCst)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_is_neither_made_nor_lost_in_serializable_transfers() {
    let setup = setup_with(|config| config.max_size(16).retry(persistent())).await;
    let sql = "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL); \
               INSERT INTO accounts SELECT id, 100 FROM generate_series(0, 19) AS id";
    setup.client.batch_execute(sql).await.unwrap();
    let (mut retried, mut by_hand) = (0, 0);
    for _ in 0..rounds(8) {
        by_hand += transfers(&setup.db, true, Duration::from_millis(300)).await;
        retried += transfers(&setup.db, false, Duration::from_millis(300)).await;
    }
    let sum: i64 = setup.client.query_one("SELECT sum(balance)::bigint FROM accounts", &[]).await.unwrap().get(0);
    assert_eq!(sum, 100 * i64::from(ACCOUNTS));
    let (stats, ratio) = (setup.db.stats(), retried as f64 / by_hand as f64);
    println!("{retried} with run_retrying ({} retries), {by_hand} by hand: {ratio:.2}", stats.retries);
    assert!(stats.retries > 0 && ratio > 0.4, "{ratio:.2}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlocks_always_end() {
    let setup = setup_with(|config| config.max_size(8).retry(persistent())).await;
    setup.client.batch_execute("INSERT INTO notes (text) VALUES ('a'), ('b')").await.unwrap();
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let db = setup.db.clone();
        tasks.spawn(async move {
            for _ in 0..10 {
                let ids = if task % 2 == 0 { [1_i64, 2] } else { [2, 1] };
                let both = db.transaction("both").run_retrying(async move |tx| {
                    use diesel_async::RunQueryDsl;
                    batch(tx, "SET LOCAL deadlock_timeout = '5ms'").await?;
                    for id in ids {
                        diesel::update(notes::table.find(id)).set(notes::seen.eq(notes::seen + 1)).execute(tx).await?;
                    }
                    Ok::<_, Error>(())
                });
                both.await.unwrap();
            }
        });
    }
    timeout(LONG, tasks.join_all()).await.unwrap();
    let seen: i64 = setup.client.query_one("SELECT sum(seen)::bigint FROM notes", &[]).await.unwrap().get(0);
    assert_eq!(seen, 8 * 10 * 2);
    assert!(setup.db.stats().retries > 0, "no deadlock at all");
}

/// Write skew: both read everything, each writes a row of its own. The second COMMIT fails.
#[tokio::test]
async fn a_serialization_failure_of_commit_itself_is_retried() {
    let setup = setup_with(|config| config.max_size(2)).await;
    for retrying in [false, true] {
        setup.client.batch_execute("TRUNCATE notes").await.unwrap();
        let (written, both) = (Arc::new(Barrier::new(2)), Arc::new(AtomicU32::new(0)));
        let (committed, first_is) = oneshot::channel::<()>();
        let first = {
            let (db, written) = (setup.db.clone(), Arc::clone(&written));
            tokio::spawn(async move {
                let run = db.transaction("first").isolation(Isolation::Serializable).run(async |tx| {
                    use diesel_async::RunQueryDsl;
                    notes::table.count().get_result::<i64>(tx).await?;
                    note(tx, "first").await?;
                    written.wait().await;
                    Ok::<_, Error>(())
                });
                run.await.unwrap();
                committed.send(()).unwrap();
            })
        };
        let first_is = Arc::new(tokio::sync::Mutex::new(Some(first_is)));
        let body = {
            let attempts = Arc::clone(&both);
            async move |tx: &mut Transaction| {
                use diesel_async::RunQueryDsl;
                AtomicU32::fetch_add(&attempts, 1, SeqCst);
                notes::table.count().get_result::<i64>(tx).await?;
                note(tx, "second").await?;
                if let Some(first_is) = first_is.lock().await.take() {
                    written.wait().await;
                    first_is.await.unwrap();
                }
                Ok::<_, Error>(())
            }
        };
        let scope = setup.db.transaction("second").isolation(Isolation::Serializable);
        if retrying {
            scope.run_retrying(body).await.unwrap();
            assert_eq!((both.load(SeqCst), setup.db.stats().retries), (2, 1));
            assert_eq!(setup.stored().await, ["first", "second"]);
        } else {
            let error = scope.run(body).await.unwrap_err();
            assert_eq!(error.sqlstate().unwrap().as_str(), "40001");
            assert!(error.is_retryable() && error.commit_outcome() == CommitOutcome::NotCommitted);
            assert_eq!(setup.stored().await, ["first"]);
        }
        first.await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_lost_in_the_body_is_retried_on_another() {
    let (database, client) = table().await;
    let proxy = Proxy::start_unix(&database.url()).await.unwrap();
    let config = Config::from_url(&proxy.url()).unwrap().min_idle(0).max_size(2).health_interval(None);
    let db = Database::connect(config).await.unwrap();
    for (round, when) in [When::BeforeForward, When::AfterForward, When::AfterReply].into_iter().enumerate() {
        drop(proxy.cut(when, "UPDATE"));
        let attempts = AtomicU32::new(0);
        let pids = db.transaction("twice").run_retrying(async |tx| {
            use diesel_async::RunQueryDsl;
            AtomicU32::fetch_add(&attempts, 1, SeqCst);
            let id = note(tx, ["a", "b", "c"][round]).await?;
            let seen = diesel::update(notes::table.find(id)).set(notes::seen.eq(notes::seen + 1));
            Ok::<_, Error>(seen.execute(tx).await?)
        });
        assert_eq!(pids.await.unwrap(), 1);
        assert_eq!(attempts.load(SeqCst), 2, "{when:?}");
    }
    let rows = client.query("SELECT text, seen FROM notes ORDER BY text", &[]).await.unwrap();
    let rows: Vec<(&str, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(rows, [("a", 1), ("b", 1), ("c", 1)], "each once");
    assert_eq!(db.stats().checked_out, 0);
}

/// `get_result` reads one row; what fails behind it is told by the next statement, and decides.
#[tokio::test]
async fn an_error_behind_the_row_that_was_read_is_the_one_that_counts() {
    let setup = setup_with(|config| config.max_size(1)).await;
    let sql = "CREATE FUNCTION conflict(x int) RETURNS int LANGUAGE plpgsql AS \
               $$ BEGIN IF x = 3 THEN RAISE serialization_failure USING MESSAGE = 'too bad'; END IF; RETURN x; END $$";
    setup.client.batch_execute(sql).await.unwrap();
    let attempts = AtomicU32::new(0);
    let told = std::sync::Mutex::new(None);
    let both = setup.db.transaction("behind").run_retrying(async |tx| {
        use diesel_async::RunQueryDsl;
        let most = if AtomicU32::fetch_add(&attempts, 1, SeqCst) == 0 { 5 } else { 2 };
        let rows = format!("conflict(x) FROM generate_series(1, {most}) AS x");
        let first: i32 = diesel::select(diesel::dsl::sql::<diesel::sql_types::Integer>(&rows)).get_result(tx).await?;
        assert_eq!(first, 1);
        note(tx, "behind").await.inspect_err(|error| *told.lock().unwrap() = Some(error.to_string()))
    });
    both.await.unwrap();
    assert_eq!((attempts.load(SeqCst), setup.stored().await.len()), (2, 1));
    let told = told.into_inner().unwrap().unwrap();
    assert!(told.contains("transaction is aborted") && told.contains("too bad"), "{told}");
}

#[tokio::test]
async fn a_failure_behind_one_that_was_handled_is_retried() {
    let setup = setup_with(|config| config.max_size(1)).await;
    let attempts = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&attempts);
    let scope = setup.db.transaction("handled").run_retrying(async move |tx| {
        note(tx, "once").await?;
        assert!(tx.savepoint(async |tx| note(tx, "once").await).await.unwrap_err().is_unique_violation());
        if AtomicU32::fetch_add(&count, 1, SeqCst) == 0 {
            batch(tx, "DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$").await?;
        }
        Ok::<_, Error>(())
    });
    scope.await.unwrap();
    assert_eq!((attempts.load(SeqCst), setup.stored().await), (2, vec!["once".to_owned()]));
}

#[tokio::test]
async fn an_unknown_commit_is_never_retried() {
    let (database, client) = table().await;
    let proxy = Proxy::start_unix(&database.url()).await.unwrap();
    let config = Config::from_url(&proxy.url()).unwrap().max_size(2).commit_resolution(CommitResolution::Off);
    let db = Database::connect(config).await.unwrap();
    for text in ["plain", "commit_with"] {
        drop(proxy.cut(When::AfterReply, "COMMIT"));
        let attempts = AtomicU32::new(0);
        let error = db.transaction("once").run_retrying(async |tx| {
            AtomicU32::fetch_add(&attempts, 1, SeqCst);
            note(tx, text).await?;
            if text == "commit_with" {
                tx.commit_with(diesel::update(notes::table).set(notes::seen.eq(1))).await?;
            }
            Ok::<_, Error>(())
        });
        let error = error.await.unwrap_err();
        assert!(matches!(error, Error::CommitUnknown(_)), "{error:?}");
        assert_eq!(attempts.load(SeqCst), 1);
    }
    let count: i64 = client.query_one("SELECT count(*) FROM notes", &[]).await.unwrap().get(0);
    assert_eq!((count, db.stats().retries), (2, 0));
}

#[tokio::test]
async fn the_last_error_has_the_history() {
    let setup = setup_with(|config| config.max_size(1)).await;
    let retry = Retry::serialization(3).backoff_between(Duration::ZERO, Duration::ZERO);
    let error = setup.db.transaction("hopeless").retry(retry).run_retrying(async |tx| batch(tx, FAIL).await);
    let error = error.await.unwrap_err();
    let told = exhausted(&error);
    assert_eq!((told.attempts, told.history.len()), (3, 3));
    assert!(told.history.iter().all(|what| what.contains("40001")), "{told:?}");
    assert_eq!(told.stopped_by, "it may be tried no more often");
    assert!(error.to_string().contains("\"hopeless\" (tests/retries.rs:"), "{error}");
    assert_eq!((error.commit_outcome(), setup.db.stats().retries), (CommitOutcome::NotCommitted, 2));
}

/// Everything fails: 64 callers may run their bodies once each, and the bucket's worth more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_not_multiplied() {
    let retry =
        Retry::serialization(100).backoff_between(Duration::from_millis(1), Duration::from_millis(2)).budget(10);
    let setup = setup_with(|config| config.max_size(8).retry(retry)).await;
    let bodies = Arc::new(AtomicU32::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..64 {
        let (db, bodies) = (setup.db.clone(), Arc::clone(&bodies));
        tasks.spawn(async move {
            let run = db.transaction("fails").run_retrying(async move |tx| {
                AtomicU32::fetch_add(&bodies, 1, SeqCst);
                batch(tx, FAIL).await
            });
            run.await.unwrap_err()
        });
    }
    let errors = timeout(LONG, tasks.join_all()).await.unwrap();
    assert_eq!(bodies.load(SeqCst), 64 + 10);
    let empty = errors.iter().filter(|error| exhausted(error).stopped_by.contains("budget")).count();
    assert_eq!(empty, 64);
}

/// Nobody listens: the callers wait in line while one of them at a time knocks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_down_is_not_stormed() {
    let (database, _client) = table().await;
    let proxy = Proxy::start(&database.url()).await.unwrap();
    let config = Config::from_url(&proxy.url()).unwrap().min_idle(0).max_size(16).health_interval(None);
    let config = config.retry(Retry::default().budget(10)).checkout_timeout(Duration::from_secs(u64::from(rounds(3))));
    let db = Database::connect(config).await.unwrap();
    let (bodies, inside) = (Arc::new(AtomicU32::new(0)), Arc::new(Barrier::new(17)));
    let mut tasks = JoinSet::new();
    for caller in 0..64 {
        let (db, bodies, inside) = (db.clone(), Arc::clone(&bodies), Arc::clone(&inside));
        tasks.spawn(async move {
            let run = db.transaction("down").run_retrying(async move |tx| {
                let number = AtomicU32::fetch_add(&bodies, 1, SeqCst);
                note(tx, &format!("{caller} {number}")).await?;
                if number < 16 {
                    inside.wait().await; // until the server is down
                    inside.wait().await;
                }
                note(tx, &format!("{caller} {number} again")).await
            });
            run.await
        });
    }
    inside.wait().await;
    proxy.refuse().await;
    proxy.cut_all();
    proxy.until_connections(0).await;
    inside.wait().await;
    let results = timeout(LONG, tasks.join_all()).await.unwrap();
    assert!(results.iter().all(Result::is_err));
    let stats = db.stats();
    println!("{} bodies, {} connection attempts failed", bodies.load(SeqCst), stats.open_failures);
    assert!(bodies.load(SeqCst) <= 64 * 12 / 10 + 10, "{stats:#?}");
    // Every place of the pool once, the retries, and from then on one knock after the other, 50 ms apart or more.
    let most = 16 + 10 + 1 + u64::from(rounds(3)) * 1_000 / 50;
    assert!(stats.open_failures <= most, "{stats:#?}");
    assert_eq!(stats.retries, 10, "no more than the bucket held");
}

#[tokio::test]
async fn the_deadline_bounds_all_attempts_together() {
    let setup = setup_with(|config| config.max_size(1).retry(persistent())).await;
    // A busy machine may not come to a third attempt in so short a time: then it is given more.
    for millis in (0..).map(|doubled| 200 << doubled) {
        let attempts = AtomicU32::new(0);
        let scope = setup.db.transaction("hurry").deadline(Duration::from_millis(millis));
        let scope = scope.run_retrying(async |tx: &mut Transaction| {
            AtomicU32::fetch_add(&attempts, 1, SeqCst);
            batch(tx, FAIL).await
        });
        let error = timeout(LONG, scope).await.expect("hangs").unwrap_err();
        if !matches!(error, Error::Deadline { .. }) {
            assert_eq!(exhausted(&error).stopped_by, "its deadline is too near");
        }
        if attempts.load(SeqCst) > 2 {
            return;
        }
    }
}

#[tokio::test]
async fn a_lock_that_is_not_to_be_had_is_retried_only_when_asked_for() {
    let setup = setup_with(|config| config.max_size(1)).await;
    setup.client.batch_execute("BEGIN; LOCK TABLE notes").await.unwrap();
    let attempts = AtomicU32::new(0);
    let body = async |tx: &mut Transaction| {
        if AtomicU32::fetch_add(&attempts, 1, SeqCst) == 2 {
            setup.client.batch_execute("COMMIT").await.unwrap();
        }
        batch(tx, "LOCK TABLE notes NOWAIT").await
    };
    let error = setup.db.transaction("no").run_retrying(body).await.unwrap_err();
    assert_eq!((error.sqlstate().unwrap().as_str(), attempts.load(SeqCst)), ("55P03", 1));
    setup.db.transaction("yes").retry(Retry::default().on_lock_timeout()).run_retrying(body).await.unwrap();
    assert_eq!(attempts.load(SeqCst), 3);
}
