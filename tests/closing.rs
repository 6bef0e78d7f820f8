//! The end of a pool: nobody waits for ever, nothing is left on the server, and the report tells the truth.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, poll_immediate};
use t2m_db::testing::Proxy;
use t2m_db::{Config, Database, Error, Transaction};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::pool_support::{MS, hold, ping, quiet, timed, until};
use crate::support::{LONG, Setup, batch, note, setup_with, table};

async fn setup(max_size: u32) -> Setup {
    setup_with(|config| config.max_size(max_size).health_interval(None).cleanup_timeout(500 * MS)).await
}

/// Closed, and the server knows of no session.
async fn nothing_is_left(setup: &Setup) {
    let stats = setup.db.stats();
    assert_eq!(
        (stats.size, stats.idle, stats.checked_out, stats.waiting, stats.reclaiming),
        (0, 0, 0, 0, 0),
        "{stats:#?}"
    );
    // A login that the close cut off is seen by the server a moment later.
    let gone = async { while !setup.pids().await.is_empty() {} };
    timeout(LONG, gone).await.expect("sessions are left");
    for _ in 0..2 {
        assert!(matches!(ping(&setup.db).await, Err(Error::Closed { .. })));
    }
    assert!(matches!(setup.db.migrate().await, Err(Error::Closed { .. })));
}

#[tokio::test]
async fn an_idle_pool_closes_at_once_and_again() {
    let setup = setup(3).await;
    let held = [hold(&setup.db, "one").await, hold(&setup.db, "two").await];
    for one in held {
        one.end().await.unwrap();
    }
    for _ in 0..2 {
        let (report, _) = timed(setup.db.close(Duration::from_secs(60))).await;
        assert_eq!((report.drained, report.cancelled.len(), report.leaked.len()), (0, 0, 0), "{report:?}");
    }
    assert_eq!(setup.db.stats().closed.shutdown, 2);
    nothing_is_left(&setup).await;
}

#[tokio::test]
async fn running_scopes_are_drained_and_waiters_told() {
    let setup = setup(2).await;
    let held = [hold(&setup.db, "one").await, hold(&setup.db, "two").await];
    let waiters: Vec<_> = (0..5)
        .map(|_| {
            let db = setup.db.clone();
            tokio::spawn(async move { ping(&db).await })
        })
        .collect();
    until("five wait", || setup.db.stats().waiting == 5).await;
    let closing = tokio::spawn({
        let db = setup.db.clone();
        async move { db.close(Duration::from_secs(60)).await }
    });
    for waiter in join_all(waiters).await {
        assert!(matches!(waiter.unwrap(), Err(Error::Closed { .. })));
    }
    assert!(!closing.is_finished(), "it drains");
    for one in held {
        one.end().await.unwrap();
    }
    let report = closing.await.unwrap();
    assert_eq!((report.drained, report.cancelled.len(), report.leaked.len()), (2, 0, 0), "{report:?}");
    nothing_is_left(&setup).await;
}

#[tokio::test]
async fn at_the_end_of_the_grace_scopes_are_cancelled_and_named() {
    let setup = setup(3).await;
    let idle = hold(&setup.db, "waits for something else").await;
    let busy = tokio::spawn({
        let db = setup.db.clone();

        async move {
            let scope = db.transaction("sleeps").run(async |tx| {
                note(tx, "undone").await?;
                batch(tx, "SELECT pg_sleep(60)").await
            });
            scope.await
        }
    });
    setup.until_running("%pg_sleep%").await;
    let (report, took) = timed(setup.db.close(50 * MS)).await;
    let mut names: Vec<_> = report.cancelled.iter().map(|one| one.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["sleeps", "waits for something else"]);
    assert_eq!((report.drained, report.leaked.len()), (0, 0), "{report:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(matches!(idle.task.await.unwrap(), Err(Error::Closed { .. })));
    assert!(matches!(busy.await.unwrap(), Err(Error::Closed { .. })));
    assert_eq!(setup.stored().await, [""; 0]);
    assert_eq!(setup.db.stats().cancelled, 2);
    nothing_is_left(&setup).await;
}

#[tokio::test]
async fn a_scope_that_nobody_polls_is_reported_leaked() {
    let setup = setup(2).await;
    let mut leaked = Box::pin(setup.db.transaction("forgotten").run(async |tx| {
        note(tx, "undone").await?;
        std::future::pending::<Result<(), Error>>().await
    }));
    while setup
        .db
        .checkouts()
        .first()
        .is_none_or(|out| out.statements == 0 || out.phase != t2m_db::Phase::IdleInTransaction)
    {
        assert!(poll_immediate(&mut leaked).await.is_none());
        tokio::time::sleep(MS).await;
    }
    let (report, took) = timed(setup.db.close(20 * MS)).await;
    assert_eq!(report.leaked.iter().map(|one| one.name).collect::<Vec<_>>(), ["forgotten"]);
    assert_eq!((report.drained, report.cancelled.len()), (0, 0), "{report:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    drop(leaked);
    until("its session is over", || setup.db.stats().size == 0).await;
    nothing_is_left(&setup).await;
    assert_eq!(setup.stored().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_may_close_at_once_under_load() {
    let setup = Arc::new(setup(4).await);
    let load: Vec<_> = (0..16)
        .map(|_| {
            let db = setup.db.clone();
            tokio::spawn(async move {
                loop {
                    match ping(&db).await {
                        Ok(()) => {}
                        Err(Error::Closed { .. }) => return,
                        Err(error) => panic!("{error:?}"),
                    }
                }
            })
        })
        .collect();
    until("load", || setup.db.stats().commits > 100).await;
    let reports = join_all((0..8).map(|_| {
        let db = setup.db.clone();
        tokio::spawn(async move {
            let report = db.close(Duration::from_secs(10)).await;
            (report, db.stats().size)
        })
    }));
    for told in timed(reports).await.0 {
        let (report, size) = told.unwrap();
        assert!(report.cancelled.is_empty() && report.leaked.is_empty() && report.drained <= 4, "{report:?}");
        assert_eq!(size, 0, "each returns when all is over");
    }
    for task in load {
        task.await.unwrap();
    }
    nothing_is_left(&setup).await;
}

#[tokio::test]
async fn a_close_that_was_dropped_half_way_is_taken_up_by_the_next() {
    let setup = setup(2).await;
    let held = hold(&setup.db, "one").await;
    {
        let mut closing = pin!(setup.db.close(Duration::from_secs(60)));
        assert!(poll_immediate(&mut closing).await.is_none());
    }
    assert!(matches!(ping(&setup.db).await, Err(Error::Closed { .. })));
    held.end().await.unwrap();
    setup.db.close(Duration::ZERO).await;
    nothing_is_left(&setup).await;
}

#[tokio::test]
async fn a_connection_being_opened_does_not_outlive_the_pool() {
    // The proxy holds the reply to the login, or swallows it; or nobody is there at all.
    for way in ["held", "silent", "refused"] {
        let (database, client) = table().await;
        let proxy = Proxy::start(&database.url()).await.unwrap();
        let config: Config = quiet(&format!("{}?sslmode=disable", proxy.url())).max_size(2);
        let db = Database::connect_lazy(config.connect_timeout(3 * LONG)).unwrap();
        match way {
            "held" => proxy.hold_replies(),
            "silent" => proxy.go_silent(),
            _ => proxy.refuse().await,
        }
        let scope = tokio::spawn({
            let db = db.clone();
            async move { db.transaction("late").run(async |tx| note(tx, "late").await).await }
        });
        match way {
            "held" => proxy.until_held(1).await,
            "silent" => proxy.until_connections(1).await,
            _ => until("a failure", || db.stats().open_failures > 0).await,
        }
        let (report, _) = timed(db.close(Duration::from_secs(60))).await;
        assert_eq!((report.drained, report.cancelled.len(), report.leaked.len()), (0, 0, 0), "{way}: {report:?}");
        proxy.release_all();
        assert!(matches!(timed(scope).await.0.unwrap(), Err(Error::Closed { .. })), "{way}");
        let setup = Setup { db, client, database };
        // The server may need a moment to see that a login was given up.
        timed(async { while !setup.pids().await.is_empty() {} }).await;
        nothing_is_left(&setup).await;
        assert_eq!(setup.stored().await, [""; 0], "{way}");
    }
}

#[tokio::test]
async fn a_connection_that_is_there_as_the_pool_closes_is_lent_to_nobody() {
    let (database, client) = table().await;
    let db = Database::connect_lazy(quiet(&database.url())).unwrap();
    let mut scope = Box::pin(db.transaction("late").run(async |tx| note(tx, "late").await));
    assert!(poll_immediate(&mut scope).await.is_none());
    // It is opened for the scope, which was not polled since.
    until("opened", || db.stats().opened == 1).await;
    let ((report, _), told) = futures_util::future::join(timed(db.close(Duration::from_secs(5))), scope).await;
    assert!(matches!(told, Err(Error::Closed { .. })), "{told:?}");
    assert_eq!((report.drained, report.cancelled.len(), report.leaked.len()), (0, 0, 0), "{report:?}");
    let setup = Setup { db: db.clone(), client, database };
    nothing_is_left(&setup).await;
    assert_eq!(setup.stored().await, [""; 0]);
}

#[tokio::test]
async fn a_commit_that_was_sent_is_not_called_cancelled() {
    for commit_with in [false, true] {
        a_commit_at_the_end_of_the_grace(commit_with).await;
    }
}

async fn a_commit_at_the_end_of_the_grace(commit_with: bool) {
    let (database, client) = table().await;
    let proxy = Proxy::start(&database.url()).await.unwrap();
    let db = Database::connect(quiet(&format!("{}?sslmode=disable", proxy.url()))).await.unwrap();
    proxy.hold_replies_to("COMMIT");
    let scope = tokio::spawn({
        let db = db.clone();
        let last = diesel::sql_query("INSERT INTO notes (text) VALUES ('kept')");
        async move {
            let body = async |tx: &mut Transaction| {
                if commit_with { tx.commit_with(last).await.map(drop) } else { note(tx, "kept").await.map(drop) }
            };
            db.transaction("committing").run(body).await
        }
    });
    proxy.until_held(1).await;
    let mut closing = tokio::spawn({
        let db = db.clone();
        async move { db.close(Duration::ZERO).await }
    });
    // Past the grace: the scope was told to stop, and goes on.
    assert!(timeout(100 * MS, &mut closing).await.is_err());
    proxy.release_all();
    let report = closing.await.unwrap();
    scope.await.unwrap().unwrap();
    assert_eq!((report.drained, report.cancelled.len(), report.leaked.len()), (1, 0, 0), "{report:?}");
    let setup = Setup { db, client, database };
    nothing_is_left(&setup).await;
    assert_eq!(setup.stored().await, ["kept"]);
}

/// Whether new scopes are refused.
fn poll_closed(db: &Database) -> bool {
    use futures_util::FutureExt;
    matches!(ping(db).now_or_never(), Some(Err(Error::Closed { .. })))
}

#[tokio::test]
async fn clean_ups_in_progress_are_waited_for() {
    let (database, client) = table().await;
    let proxy = Proxy::start(&database.url()).await.unwrap();
    let db = Database::connect(quiet(&format!("{}?sslmode=disable", proxy.url()))).await.unwrap();
    let (began, begins) = oneshot::channel();
    let scope = tokio::spawn({
        let db = db.clone();
        async move {
            let body = db.transaction("dropped").run(async move |tx| {
                note(tx, "undone").await?;
                let _ = began.send(());
                std::future::pending::<Result<(), Error>>().await
            });
            body.await
        }
    });
    begins.await.unwrap();
    proxy.hold_replies_to("ROLLBACK");
    scope.abort();
    proxy.until_held(1).await;
    assert_eq!(db.stats().reclaiming, 1);
    let closing = tokio::spawn({
        let db = db.clone();
        async move { db.close(Duration::from_secs(60)).await }
    });
    until("it is closing", || poll_closed(&db)).await;
    assert!(!closing.is_finished());
    proxy.release_all();
    let report = closing.await.unwrap();
    assert_eq!((report.cancelled.len(), report.leaked.len()), (0, 0), "{report:?}");
    let setup = Setup { db, client, database };
    nothing_is_left(&setup).await;
    assert_eq!(setup.db.stats().salvaged, 1);
}

/// Migrations that wait for a lock, and who holds it.
async fn migrating() -> (Setup, tokio::task::JoinHandle<Result<Vec<String>, Error>>, tokio_postgres::Client) {
    let database = t2m_db::testing::empty_database().await;
    let (client, locker) = (database.client().await.unwrap(), database.client().await.unwrap());
    locker.batch_execute("BEGIN; CREATE TABLE users ()").await.unwrap();
    let db = Database::connect(quiet(&database.url()).max_size(1)).await.unwrap();
    let task = tokio::spawn({
        let db = db.clone();
        async move { db.migrate().await }
    });
    let setup = Setup { db, client, database };
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    timed(async { while setup.client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0 {} }).await;
    assert_eq!(setup.db.checkouts().iter().map(|one| one.name).collect::<Vec<_>>(), ["migrate"]);
    (setup, task, locker)
}

#[tokio::test]
async fn migrations_are_drained_and_cut_off_at_the_end_of_the_grace() {
    let (setup, task, locker) = migrating().await;
    let closing = tokio::spawn({
        let db = setup.db.clone();
        async move { db.close(Duration::from_secs(60)).await }
    });
    until("it is closing", || poll_closed(&setup.db)).await;
    locker.batch_execute("ROLLBACK").await.unwrap();
    assert!(!timed(task).await.0.unwrap().unwrap().is_empty());
    let (report, _) = timed(closing).await;
    let report = report.unwrap();
    assert_eq!((report.drained, report.cancelled.len(), report.leaked.len()), (1, 0, 0), "{report:?}");
    nothing_is_left(&setup).await;

    for abandoned in [false, true] {
        let (setup, task, _locker) = migrating().await;
        if abandoned {
            // They go on, on a thread of their own.
            task.abort();
        }
        let (report, took) = timed(setup.db.close(50 * MS)).await;
        assert_eq!(report.cancelled.iter().map(|one| one.name).collect::<Vec<_>>(), ["migrate"], "{report:?}");
        assert_eq!((report.drained, report.leaked.len()), (0, 0), "{report:?}");
        assert!(took < Duration::from_secs(3), "{took:?}");
        nothing_is_left(&setup).await;
        match task.await {
            Ok(told) => assert!(matches!(told, Err(Error::Migrate { .. })), "{told:?}"),
            Err(aborted) => assert!(abandoned && aborted.is_cancelled()),
        }
    }
}

#[tokio::test]
async fn dropping_the_last_handle_leaves_no_session_and_no_task() {
    let (database, client) = table().await;
    let config = Config::from_url(&database.url()).unwrap().max_size(3).min_idle(3);
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = alive();
    let db = Database::connect(config.clone()).await.unwrap();
    let other = db.clone();
    until("warm", || db.stats().idle == 3 && db.last_health().is_some()).await;
    drop(db);
    ping(&other).await.unwrap();
    // A lease keeps the pool alive until it is cleaned up.
    let held = hold(&other, "last").await;
    drop(other);
    assert!(alive() > before);
    held.task.abort();
    let ((), took) = timed(until("no task", || alive() <= before)).await;
    println!("the last task ended {took:.1?} after the last handle");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let setup = Setup { db: Database::connect_lazy(config).unwrap(), client, database };
    timed(async { while !setup.pids().await.is_empty() {} }).await;
}
