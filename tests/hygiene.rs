//! No session state reaches the next borrower, a clean session pays nothing, and a dirty one is reported.

use std::process::Command;

use diesel::prelude::*;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use t2m_db::testing::{Frontend, Match, Message, Proxy, Server};
use t2m_db::{Config, Database, Error, SessionReset};
use tokio::time::timeout;

use crate::support::{LONG, batch, note, setup, setup_with};

/// What a session may be left with, and a query that shows it: `true` while it is there.
const STATES: &[(&str, &str)] = &[
    ("SET timezone = 'Asia/Tokyo'", "SELECT current_setting('TimeZone') <> 'UTC'"),
    ("SET default_transaction_read_only = off", "SELECT current_setting('default_transaction_read_only') <> 'on'"),
    ("SET ROLE pg_monitor", "SELECT current_user = 'pg_monitor'"),
    ("SET SESSION AUTHORIZATION pg_monitor", "SELECT session_user = 'pg_monitor'"),
    ("SELECT set_config('work_mem', '5MB', false)", "SELECT current_setting('work_mem') = '5MB'"),
    (
        "SELECT pg_advisory_lock(7)",
        "SELECT exists(SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())",
    ),
    (
        "SELECT pg_try_advisory_lock_shared(7)",
        "SELECT exists(SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())",
    ),
    ("LISTEN somewhere", "SELECT exists(SELECT pg_listening_channels())"),
    ("CREATE TEMP TABLE scratch (a int)", "SELECT to_regclass('pg_temp.scratch') IS NOT NULL"),
    ("SELECT 1 AS a INTO TEMPORARY scratch", "SELECT to_regclass('pg_temp.scratch') IS NOT NULL"),
    ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "SELECT exists(SELECT FROM pg_cursors WHERE name = 'c')"),
    ("PREPARE mine AS SELECT 1", "SELECT exists(SELECT FROM pg_prepared_statements WHERE name = 'mine')"),
    ("/* by hand */ DO $$ BEGIN SET work_mem = '5MB'; END $$", "SELECT current_setting('work_mem') = '5MB'"),
    (
        "DO $$ BEGIN EXECUTE 'PREPARE theirs AS SELECT 1'; END $$",
        "SELECT exists(SELECT FROM pg_prepared_statements WHERE name = 'theirs')",
    ),
];

#[derive(QueryableByName)]
struct Shown {
    #[diesel(sql_type = diesel::sql_types::Bool, column_name = "shown")]
    shown: bool,
}

async fn is_there(conn: &mut impl t2m_db::Executor, query: &str) -> Result<bool, Error> {
    let query = format!("SELECT ({query}) AS shown");
    Ok(diesel::sql_query(query).get_result::<Shown>(conn).await?.shown)
}

#[tokio::test]
async fn nothing_of_a_transaction_reaches_the_next_borrower() {
    let setup = setup(1).await;
    for (nth, (sql, query)) in (1..).zip(STATES) {
        setup
            .db
            .with_transaction(async |tx| {
                note(tx, sql).await?; // a read-write transaction, so that temporary tables are allowed
                // Neither of these makes up for a SET that stays.
                batch(tx, "SELECT 'SET LOCAL a'").await?;
                let refused = tx.savepoint(async |tx| batch(tx, "SET LOCAL nonsense = 1").await).await;
                assert!(refused.is_err());
                batch(tx, sql).await?;
                // LISTEN takes effect at COMMIT.
                assert!(sql.starts_with("LISTEN") || is_there(tx, query).await?, "the test must be able to see: {sql}");
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
        let left = setup.db.with_connection(async |conn| is_there(conn, query).await).await.unwrap();
        assert!(!left, "{sql}");
        assert_eq!(setup.db.stats().reset, nth, "{sql}");
    }
    assert_eq!(setup.db.stats().opened, 1, "and it is still the same connection");
    // Our own settings survive every reset.
    let ours = "SELECT current_setting('default_transaction_read_only') = 'on' AND current_setting('TimeZone') = 'UTC'";
    assert!(setup.db.with_connection(async |conn| is_there(conn, ours).await).await.unwrap());
}

#[tokio::test]
async fn nor_of_a_cancelled_one_nor_of_the_bare_connection() {
    let setup = setup(1).await;
    for (sql, query) in STATES {
        let cancelled = setup.db.with_transaction(async |tx| {
            tx.raw().await?.batch_execute(sql).await?;
            batch(tx, "SELECT pg_sleep(30)").await
        });
        assert!(tokio::time::timeout(std::time::Duration::from_millis(30), cancelled).await.is_err());
        let left = setup.db.with_connection(async |conn| is_there(conn, query).await).await.unwrap();
        assert!(!left, "{sql}");
    }
    assert_eq!((setup.db.stats().opened, setup.db.stats().discarded), (1, 0));
}

#[tokio::test]
async fn what_ends_with_the_transaction_costs_nothing() {
    let setup = setup(1).await;
    for sql in [
        "SET LOCAL work_mem = '5MB'",
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "SELECT pg_advisory_xact_lock(7)",
        "DECLARE c CURSOR FOR SELECT 1",
        "CREATE TABLE kept (temperature int); DROP TABLE kept",
        "SET CONSTRAINTS ALL DEFERRED",
    ] {
        setup.db.with_transaction(async |tx| batch(tx, sql).await).await.unwrap();
        assert_eq!(setup.db.stats().reset, 0, "{sql}");
    }
}

#[tokio::test]
async fn a_connection_whose_statements_were_forgotten_is_replaced() {
    let setup = setup(1).await;
    for sql in ["DISCARD ALL", "DEALLOCATE ALL"] {
        for _ in 0..3 {
            setup
                .db
                .with_transaction(async |tx| note(tx, &format!("{sql} {}", fastrand::u64(..))).await)
                .await
                .unwrap();
        }
        setup.db.with_connection(async |conn| Ok::<_, Error>(conn.batch_execute(sql).await?)).await.unwrap();
        setup.db.with_transaction(async |tx| note(tx, sql).await).await.unwrap();
    }
    assert_eq!((setup.db.stats().closed.worn, setup.db.stats().opened), (2, 3));
}

#[tokio::test]
async fn a_reset_after_every_scope_closes_what_cannot_be_seen() {
    let setup = setup_with(|config| config.max_size(1).session_reset(SessionReset::Always)).await;
    let hidden = "CREATE FUNCTION hidden() RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_lock(7) $$";
    setup.client.batch_execute(hidden).await.unwrap();
    setup.db.with_transaction(async |tx| batch(tx, "SELECT hidden()").await).await.unwrap();
    let (_, query) = STATES[5];
    assert!(!setup.db.with_connection(async |conn| is_there(conn, query).await).await.unwrap());
}

#[tokio::test]
async fn statements_cut_off_in_their_preparation_do_not_pile_up() {
    let setup = setup_with(|config| config.max_size(1).statement_cache_size(8)).await;
    for n in 0..300 {
        let read = setup.db.with_connection(async |conn| {
            Ok::<_, Error>(diesel::sql_query(format!("SELECT {n}")).execute(conn).await?)
        });
        // Dropped as soon as Parse is on the way.
        let _ = t2m_db::testing::PollLimit::new(read, 1, t2m_db::testing::Moment::OnWake).await;
        setup.all_back().await;
    }
    let closed = setup.db.stats().closed;
    assert_eq!((closed.worn, closed.total()), (1, 1), "{closed:?}");
}

/// The session's process is stopped when the cancel request comes, so it has not read the statement yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_that_comes_too_early_is_followed_by_another() {
    let server = Server::start().await.unwrap();
    let database = server.empty_database().await.unwrap();
    let proxy = Proxy::start_unix(&database.url()).await.unwrap();
    let config = Config::from_url(&proxy.url()).unwrap().max_size(1).health_interval(None);
    let db = Database::connect(config.cleanup_timeout(2 * LONG)).await.unwrap();
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 't2m-db'";
    let pid: i32 = database.client().await.unwrap().query_one(sql, &[]).await.unwrap().get(0);
    let signal = move |name: &str| {
        assert!(Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap().success());
    };
    let (asked, cancelled) = (proxy.until_sent("SELECT pg_sleep(60)"), proxy.until_sent(Match::new(is_cancel)));
    let scope = tokio::spawn({
        let db = db.clone();
        async move {
            db.with_transaction(async |tx| {
                batch(tx, "SELECT 1").await?;
                signal("STOP");
                batch(tx, "SELECT pg_sleep(60)").await
            })
            .await
        }
    });
    timeout(LONG, asked).await.unwrap();
    scope.abort();
    timeout(LONG, cancelled).await.unwrap();
    timeout(LONG, proxy.until_connections(1)).await.unwrap(); // the request is carried out
    signal("CONT");
    let back = async {
        while db.stats().checked_out > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, back).await.unwrap();
    assert_eq!((db.stats().salvaged, db.stats().discarded, db.stats().opened), (1, 0, 1));
}

fn is_cancel(message: &Message) -> bool {
    message.kind == Frontend::CancelRequest
}
