//! The cut-point sweep: every kind of body is dropped after its first poll, after its second, and so on until it
//! completes; once right after the poll, once when it would have been polled again. At every cut the truth must hold.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use futures_util::FutureExt;
use t2m_db::testing::{Moment, PollLimit, Polled, Proxy, Server, TestDatabase, Tls, When};
use t2m_db::{Config, Database, Error};
use tokio::time::timeout;

use crate::support::{LONG, Setup, batch, note, notes, table, table_in};

/// What the scope does, and what it stores if it is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    TwoStatements,
    LongStatement,
    LockWait,
    Nested,
    NestedTwice,
    CancelledInner,
    Pipelined,
    Panic,
    Failure,
    CommitWith,
    AfterCommit,
    Autocommit,
}

impl Kind {
    const ALL: [Self; 14] = [
        Self::Read,
        Self::Write,
        Self::TwoStatements,
        Self::LongStatement,
        Self::LockWait,
        Self::Nested,
        Self::NestedTwice,
        Self::CancelledInner,
        Self::Pipelined,
        Self::Panic,
        Self::Failure,
        Self::CommitWith,
        Self::AfterCommit,
        Self::Autocommit,
    ];

    fn stores(self) -> &'static [&'static str] {
        match self {
            Self::Read | Self::LockWait | Self::Panic | Self::Failure | Self::Autocommit => &[],
            Self::Write | Self::LongStatement | Self::AfterCommit => &["a"],
            Self::TwoStatements | Self::CancelledInner | Self::Pipelined | Self::CommitWith | Self::Nested => {
                &["a", "b"]
            }
            Self::NestedTwice => &["a", "b", "c"],
        }
    }
}

async fn scope(db: &Database, kind: Kind, hooks: Arc<AtomicU32>) -> Result<(), Error> {
    let insert = |text: &'static str| diesel::insert_into(notes::table).values(notes::text.eq(text));
    if kind == Kind::Autocommit {
        return db
            .with_connection(async |conn| {
                notes::table.count().get_result::<i64>(conn).await?;
                conn.batch_execute("SELECT pg_sleep(0.02)").await?;
                Ok(())
            })
            .await;
    }
    db.with_transaction(async |tx| {
        match kind {
            Kind::Read => drop(notes::table.select(notes::text).load::<String>(tx).await?),
            Kind::Write => drop(note(tx, "a").await?),
            Kind::TwoStatements => {
                note(tx, "a").await?;
                diesel::update(notes::table).set(notes::seen.eq(notes::seen + 1)).execute(tx).await?;
                note(tx, "b").await?;
            }
            Kind::LongStatement => {
                note(tx, "a").await?;
                batch(tx, "SELECT pg_sleep(0.05)").await?;
            }
            Kind::LockWait => {
                note(tx, "a").await?;
                batch(tx, "SET LOCAL lock_timeout = '30ms'; LOCK TABLE locked").await?;
            }
            Kind::Nested => {
                note(tx, "a").await?;
                tx.savepoint(async |tx| note(tx, "b").await).await?;
            }
            Kind::NestedTwice => {
                note(tx, "a").await?;
                tx.savepoint(async |tx| {
                    note(tx, "b").await?;
                    tx.savepoint(async |tx| note(tx, "c").await).await
                })
                .await?;
            }
            Kind::CancelledInner => {
                note(tx, "a").await?;
                let inner = tx.savepoint(async |tx| {
                    note(tx, "undone").await?;
                    batch(tx, "SELECT pg_sleep(30)").await
                });
                let cut_off = timeout(Duration::from_millis(15), inner).await;
                assert!(cut_off.is_err(), "{cut_off:?}");
                note(tx, "b").await?;
            }
            Kind::Pipelined => {
                let tx = &*tx;
                let (a, b) = (insert("a").execute(&mut &*tx), insert("b").execute(&mut &*tx));
                futures_util::try_join!(a, b).map_err(Error::from).map(drop)?;
            }
            Kind::Panic => {
                note(tx, "a").await?;
                panic!("on purpose");
            }
            Kind::Failure => {
                note(tx, "a").await?;
                return Err(Error::NotFound { entity: "proof" });
            }
            Kind::CommitWith => {
                note(tx, "a").await?;
                tx.commit_with(insert("b")).await?;
            }
            Kind::AfterCommit => {
                tx.after_commit(move |_| {
                    hooks.fetch_add(1, SeqCst);
                });
                note(tx, "a").await?;
            }
            Kind::Autocommit => unreachable!(),
        }
        Ok(())
    })
    .await
}

/// One cut. Returns whether the scope came to its end before it.
///
/// The proxy sees whether COMMIT was sent. Over TLS nobody does, and what is seen is that all is stored or nothing.
async fn cut(setup: &Setup, proxy: Option<&Proxy>, kind: Kind, polls: usize, moment: Moment) -> bool {
    let what = format!("{kind:?}, {polls} polls, {moment:?}");
    setup.client.batch_execute("TRUNCATE notes RESTART IDENTITY").await.unwrap();
    let pids = setup.pids().await;
    if let Some(proxy) = proxy {
        proxy.reset_counts();
    }
    let hooks = Arc::new(AtomicU32::new(0));
    let run = AssertUnwindSafe(scope(&setup.db, kind, Arc::clone(&hooks))).catch_unwind();
    let ended = timeout(LONG, PollLimit::new(run, polls, moment)).await.unwrap_or_else(|_| panic!("{what} hangs"));
    setup.all_back().await;

    let stored = setup.stored().await;
    let committed = match proxy {
        Some(proxy) => proxy.statements().iter().any(|message| &*message.text == "COMMIT"),
        None => stored == kind.stores() && !matches!(kind, Kind::Failure | Kind::LockWait | Kind::Panic),
    };
    let expected: &[&str] = if committed { kind.stores() } else { &[] };
    assert_eq!(stored, expected, "{what}: committed exactly if COMMIT was sent");
    let ran = u32::from(committed && kind == Kind::AfterCommit);
    assert_eq!(AtomicU32::load(&hooks, SeqCst), ran, "{what}: hooks run after a real commit, once");
    if let Polled::Completed { output, .. } = &ended {
        match output {
            Ok(Ok(())) => assert!(committed || kind == Kind::Autocommit, "{what}: no false Ok"),
            Ok(Err(_)) => assert!(!committed && matches!(kind, Kind::Failure | Kind::LockWait), "{what}: {output:?}"),
            Err(_) => assert!(kind == Kind::Panic, "{what}: {output:?}"),
        }
    }
    let stats = setup.db.stats();
    assert_eq!((stats.checked_out, stats.discarded, stats.opened), (0, 0, 1), "{what}: {stats:#?}");
    assert_eq!(setup.pids().await, pids, "{what}: the same server process is back");
    assert_eq!(setup.states().await, ["idle"], "{what}");
    // A dirty hand-out would show here: the next borrower reads in no transaction, and writes its own.
    let count = setup.db.with_connection(async |conn| Ok::<i64, Error>(notes::table.count().get_result(conn).await?));
    let count = timeout(LONG, count).await.unwrap().unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(count, i64::try_from(expected.len()).unwrap(), "{what}");
    matches!(ended, Polled::Completed { .. })
}

/// Every cut of every body; each has more than `least`.
async fn sweep(least: usize) {
    let (database, client) = table().await;
    let proxy = Proxy::start_unix(&database.url()).await.unwrap();
    sweep_on(&proxy.url(), Some(&proxy), (database, client), least).await;
}

async fn sweep_on(url: &str, proxy: Option<&Proxy>, table: (TestDatabase, tokio_postgres::Client), least: usize) {
    let (database, client) = table;
    let lock = database.client().await.unwrap();
    client.batch_execute("CREATE TABLE locked ()").await.unwrap();
    lock.batch_execute("BEGIN; LOCK TABLE locked").await.unwrap();
    let config = Config::from_url(url).unwrap().min_idle(0).max_size(1).health_interval(None);
    let setup = Setup { db: Database::connect(config).await.unwrap(), client, database };
    for kind in Kind::ALL {
        for moment in [Moment::AtOnce, Moment::OnWake] {
            // Twice before: statements that vary are kept prepared when they return.
            for _ in 0..3 {
                assert!(cut(&setup, proxy, kind, usize::MAX, moment).await);
            }
            let mut polls = 1;
            while !cut(&setup, proxy, kind, polls, moment).await {
                polls += 1;
            }
            assert!(polls > least, "{kind:?} was never cut");
        }
    }
}

#[tokio::test]
async fn every_cut_of_every_body_on_one_thread() {
    sweep(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cut_of_every_body_on_several_threads() {
    // A poll may find each answer there already, as the other thread has just read it.
    sweep(0).await;
}

#[tokio::test]
async fn every_cut_of_every_body_over_tls() {
    let server = Server::builder().tls(Tls::good()).start().await.unwrap();
    let table = table_in(server.empty_database().await.unwrap()).await;
    let (port, name) = (server.port().unwrap(), table.0.name());
    let authority = server.certificates().unwrap().authority.display();
    let url = format!("postgres://postgres@localhost:{port}/{name}?sslmode=verify-full&sslrootcert={authority}");
    sweep_on(&url, None, table, 1).await;
}

const SESSIONS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 't2m-db'";

/// A write whose first answer is lost, so that it is sent again on another connection; cut like the others. At no moment
/// does the server know more than one session for the one place of the pool.
#[tokio::test]
async fn every_cut_of_a_body_whose_first_flight_is_sent_again() {
    let (database, client) = table().await;
    for when in [When::AfterForward, When::AfterReply] {
        for moment in [Moment::AtOnce, Moment::OnWake] {
            for polls in 1.. {
                let what = format!("{when:?}, {polls} polls, {moment:?}");
                client.batch_execute("TRUNCATE notes").await.unwrap();
                let proxy = Proxy::start_unix(&database.url()).await.unwrap();
                let config = Config::from_url(&proxy.url()).unwrap().min_idle(0).max_size(1).health_interval(None);
                let db = Database::connect(config).await.unwrap();
                let _cut = proxy.cut(when, "INSERT");
                let run = AssertUnwindSafe(scope(&db, Kind::Write, Arc::default()));
                let ended =
                    timeout(LONG, PollLimit::new(run, polls, moment)).await.unwrap_or_else(|_| panic!("{what} hangs"));
                let began = std::time::Instant::now();
                while db.stats().checked_out > 0 {
                    // The one that was cut may be on its way out. The proxy's count would have cancel requests in it.
                    let sessions: i64 = client.query_one(SESSIONS, &[]).await.unwrap().get(0);
                    assert!(db.stats().size <= 1 && sessions <= 2, "{what}: {sessions} sessions, {:#?}", db.stats());
                    assert!(began.elapsed() < LONG, "{what}: still out");
                }
                // The next one gets what is there, or what is being opened still.
                timeout(LONG, db.with_transaction(async |tx| batch(tx, "SELECT 1").await)).await.unwrap().unwrap();
                let rows = client.query("SELECT text FROM notes", &[]).await.unwrap();
                let stored = rows.iter().map(|row| row.get(0)).collect::<Vec<String>>();
                let done = matches!(&ended, Polled::Completed { output, .. } if output.is_ok());
                assert!(stored.len() <= 1 && (!done || stored == ["a"]), "{what}: {stored:?}");
                let stats = db.stats();
                assert!(
                    (stats.size, stats.idle, stats.checked_out) == (1, 1, 0) && stats.opened <= 3,
                    "{what}: {stats:#?}"
                );
                db.close(Duration::ZERO).await;
                if matches!(ended, Polled::Completed { .. }) {
                    assert!(done && polls > 1 && stats.resent == 1, "{what}: {stats:#?}");
                    break;
                }
            }
        }
    }
}
