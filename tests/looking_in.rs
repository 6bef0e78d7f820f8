//! What an operator sees: who holds what and does what, what was logged, what an error says; and never a password.

use std::time::Duration;

use diesel_async::SimpleAsyncConnection;
use t2m_db::testing::{Replication, Server};
use t2m_db::{Checkout, Config, Database, Error, HealthStatus, Phase};

use crate::pool_support::{Log, MS, hold, ping, quiet, read, still, through_a_proxy, timed, until};
use crate::support::{batch, note, setup_with};

/// The only connection that is out.
fn only(db: &Database) -> Checkout {
    let mut all = db.checkouts();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[tokio::test]
async fn checkouts_tell_who_where_since_when_and_what() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(1)).await;
    assert!(setup.db.checkouts().is_empty());
    let line = line!() + 1;
    let scope = setup.db.transaction("store video").run(async |tx| {
        let out = only(&setup.db);
        assert_eq!((out.name, out.phase, out.statements), ("store video", Phase::Idle, 0), "nothing was sent yet");
        note(tx, "one").await?;
        note(tx, "two").await?;
        let out = only(&setup.db);
        assert_eq!((out.phase, out.statements), (Phase::IdleInTransaction, 2));
        assert_eq!((out.caller.file(), out.caller.line()), (file!(), line));
        assert_eq!(vec![out.backend_pid], setup.pids().await);
        let since = out.held_for;
        proxy.hold_replies_to("SELECT 3");
        let held = proxy.until_held(1);
        let look = async {
            held.await;
            let out = only(&setup.db);
            assert_eq!((out.phase, out.statements), (Phase::Running, 3));
            assert!(out.held_for > since);
            proxy.release_all();
        };
        let (told, ()) = tokio::join!(batch(tx, "SELECT 3"), look);
        told?;
        proxy.hold_replies_to("COMMIT");
        Ok::<_, Error>(())
    });
    let sent = proxy.until_sent("COMMIT");
    let look = async {
        sent.await;
        proxy.until_held(1).await;
        assert_eq!(only(&setup.db).phase, Phase::Committing);
        proxy.release_all();
    };
    let (told, ()) = tokio::join!(scope, look);
    told.unwrap();

    let held = hold(&setup.db, "dropped").await;
    proxy.hold_replies_to("ROLLBACK");
    held.task.abort();
    proxy.until_held(1).await;
    let out = only(&setup.db);
    assert_eq!((out.name, out.phase), ("dropped", Phase::Reclaiming));
    assert_eq!(setup.db.stats().reclaiming, 1);
    proxy.release_all();
    setup.all_back().await;

    let reading = setup.db.with_connection(async |conn| {
        conn.batch_execute("SELECT 1").await?;
        Ok::<_, Error>(only(&setup.db))
    });
    let out = reading.await.unwrap();
    assert_eq!((out.name, out.phase, out.caller.file()), ("with_connection", Phase::Idle, file!()));
}

#[tokio::test]
async fn a_leak_is_logged_once_with_its_place_and_again_when_it_comes_back() {
    let (log, _listening) = Log::listen();
    let setup = setup_with(|config| config.max_size(2).leak_threshold(300 * MS).health_interval(None)).await;
    let held = hold(&setup.db, "forgets itself").await;
    until("it is told", || setup.db.stats().leaks == 1).await;
    // Several ticks of the keeper later it is not told again.
    let _ = tokio::time::timeout(400 * MS, std::future::pending::<()>()).await;
    let told = log.lines("leak_threshold");
    assert_eq!(told.len(), 1, "{told:?}");
    let told = &told[0];
    for words in
        ["WARN", "\"forgets itself\" (tests/pool_support.rs:", "held_for=", "idle in transaction", "statements=1"]
    {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(log.lines("came back").is_empty());
    held.end().await.unwrap();
    let back = log.lines("leaked connection came back");
    assert!(back.len() == 1 && back[0].contains("\"forgets itself\""), "{back:?}");
    assert_eq!(setup.db.stats().leaks, 1);
}

#[tokio::test]
async fn a_slow_transaction_is_logged_with_its_statements() {
    let (log, _listening) = Log::listen();
    let setup = setup_with(|config| config.max_size(1).slow_threshold(500 * MS).health_interval(None)).await;
    ping(&setup.db).await.unwrap();
    let slow = setup.db.transaction("takes its time").run(async |tx| {
        note(tx, "hidden value").await?;
        batch(tx, "SELECT pg_sleep(0.6)").await
    });
    slow.await.unwrap();
    assert_eq!(setup.db.stats().slow, 1);
    let text = log.text();
    let told: Vec<_> = text.lines().filter(|line| line.contains("takes its time") && line.contains("WARN")).collect();
    assert_eq!(told.len(), 1, "{text}");
    for words in ["INSERT INTO", "SELECT pg_sleep(0.6)", "tests/looking_in.rs:"] {
        assert!(text[text.find("WARN").unwrap()..].contains(words), "{words}: {text}");
    }
    assert!(!text.contains("hidden value"), "values are not logged");
}

#[tokio::test]
async fn a_checkout_timeout_says_who_holds_what_and_what_to_try() {
    let setup =
        setup_with(|config| config.max_size(2).checkout_timeout(Duration::from_secs(1)).health_interval(None)).await;
    let held = [hold(&setup.db, "encode").await, hold(&setup.db, "upload").await];
    let error = ping(&setup.db).await.unwrap_err();
    insta::assert_snapshot!(still(&error.to_string()), @r#"
    "ping" (tests/pool_support.rs:[line]) got no connection within [time] (`checkout_timeout`): 2 of 2 are out, 2 open, 0 others wait
      held by "encode" (tests/pool_support.rs:[line]) for [time], idle in transaction, 1 statements, backend [pid]
      held by "upload" (tests/pool_support.rs:[line]) for [time], idle in transaction, 1 statements, backend [pid]
      try: end the longest holders (an "idle in transaction" one waits for something that is not the database), or raise `max_size`
    "#);
    let hurried = setup.db.transaction("hurried").deadline(20 * MS).run(async |tx| batch(tx, "").await);
    assert!(matches!(hurried.await, Err(Error::Deadline { phase: "waiting for a connection", .. })));
    assert_eq!(setup.db.stats().timeouts, 2);
    for one in held {
        one.end().await.unwrap();
    }
}

#[tokio::test]
async fn the_pools_own_work_is_in_no_total() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(2).keepalive(20 * MS)).await;
    ping(&setup.db).await.unwrap();
    let totals = || {
        let stats = setup.db.stats();
        (stats.checkouts, stats.wait.count, stats.hold.count, stats.cancelled, stats.timeouts, stats.shed)
    };
    let before = totals();
    let trips = proxy.round_trips();
    until("it is kept alive", || proxy.round_trips() >= trips + 3).await;
    for _ in 0..3 {
        assert_eq!(setup.db.health().await.status, HealthStatus::Healthy);
    }
    setup.all_back().await;
    assert_eq!(totals(), before);
    assert_eq!(before, (1, 1, 1, 0, 0, 0));
    assert_eq!(setup.db.stats().transaction.count, 1);
}

#[tokio::test]
async fn a_scope_inside_a_scope_is_told_so_instead_of_waiting() {
    let setup = setup_with(|config| config.max_size(1).health_interval(None)).await;
    let nested = setup.db.transaction("outer").run(async |tx| {
        batch(tx, "SELECT 1").await?;
        ping(&setup.db).await
    });
    let error = nested.await.unwrap_err();
    assert!(matches!(error, Error::NestedCheckout { .. }), "{error:?}");
    insta::assert_snapshot!(still(&error.to_string()), @r#""ping" (tests/pool_support.rs:[line]) was opened inside "outer" (tests/looking_in.rs:[line]) and all 1 connections are out: it would wait for itself; pass `tx` on instead of opening a second scope, or raise `max_size`"#);
    setup.all_back().await;
    ping(&setup.db).await.unwrap();
}

#[tokio::test]
async fn no_password_is_shown_anywhere() {
    let (log, _listening) = Log::listen();
    let server = Server::builder().password("app", "s3cret/@:?").start().await.unwrap();
    let database = server.empty_database().await.unwrap();
    let url = |password: &str| database.url().replace("postgres@", &format!("app:{password}@"));
    let right = Config::from_url(&url("s3cret%2F%40%3A%3F")).unwrap();
    let wrong = Config::from_url(&url("wr0ng%2F%40")).unwrap();
    let db = Database::connect(right.clone().max_size(1).checkout_timeout(30 * MS)).await.unwrap();
    let held = hold(&db, "holder").await;
    let timeout = ping(&db).await.unwrap_err();
    held.end().await.unwrap();
    let refused = Database::connect(wrong.clone()).await.map(drop).unwrap_err();
    let lazy = Database::connect_lazy(wrong.clone()).unwrap();
    let later = ping(&lazy).await.unwrap_err();
    let unhealthy = lazy.health().await;
    let closed = db.close(Duration::ZERO).await;
    let shown = format!(
        "{right:?} {wrong:?} {db:?} {timeout} {timeout:?} {refused} {refused:?} {later} {later:?} {unhealthy:?} {closed:?} \
         {:?} {:#?} {}",
        db.stats(),
        db,
        log.text()
    );
    for part in ["s3cret", "wr0ng"] {
        let at = shown.find(part).map(|at| &shown[at.saturating_sub(200)..]);
        assert!(at.is_none(), "{at:?}");
    }
    assert!(shown.contains("28P01"), "the wrong one was tried");
}

/// What is shown of a login that fails: the error, its `Debug`, the panic of whoever unwraps it, and the log.
async fn shown(url: &str, log: &Log) -> String {
    let config = match Config::from_url(url) {
        Ok(config) => config,
        Err(error) => return format!("{error} {error:?}"),
    };
    let told = Database::connect(config.clone()).await.map(drop);
    let error = told.as_ref().unwrap_err();
    let shown = format!("{config:?} {error} {error:?} {}", log.text());
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| told.unwrap())).unwrap_err();
    format!("{shown} {}", panic.downcast_ref::<String>().unwrap())
}

#[test]
fn whatever_the_password_it_is_shown_nowhere() {
    use proptest::prelude::*;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(Server::builder().password("app", "right").start()).unwrap();
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(start in "[A-Z]{5}", middle in "[ -~]{0,9}", end in "[A-Z]{5}")| {
        let (log, _listening) = Log::listen();
        let secret = format!("{start}{middle}{end}");
        let encoded = secret.bytes().fold(String::new(), |text, byte| format!("{text}%{byte:02X}"));
        let url = |login: &str| server.url("postgres").replace("postgres@", login);
        let parameter = format!("{}?password={encoded}", url("app@"));
        for url in [url(&format!("app:{encoded}@")), url(&format!("app:{secret}@")), parameter] {
            let shown = runtime.block_on(shown(&url, &log));
            for part in [&start, &end] {
                prop_assert!(!shown.contains(part.as_str()), "{part}: {shown}");
            }
        }
    });
    runtime.block_on(async { drop(server) });
}

#[tokio::test]
async fn health_says_healthy_full_away_or_silent() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(1).cleanup_timeout(100 * MS)).await;
    let health = setup.db.health().await;
    assert_eq!((health.status, &health.reason), (HealthStatus::Healthy, &None), "{health:?}");
    assert!(health.latency.is_some() && health.server_version.is_some(), "{health:?}");

    // Cheap enough for a probe each second.
    setup.db.health().await;
    let before = proxy.round_trips();
    setup.db.health().await;
    assert_eq!(proxy.round_trips() - before, 1);

    let held = hold(&setup.db, "holder").await;
    let (health, took) = timed(setup.db.health()).await;
    assert_eq!(health.status, HealthStatus::Degraded);
    assert!(took < Duration::from_secs(2) && health.reason.unwrap().contains("full"), "{took:?}");
    held.end().await.unwrap();

    proxy.go_silent();
    let (health, took) = timed(setup.db.health()).await;
    assert_eq!(health.status, HealthStatus::Unhealthy, "{health:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    proxy.refuse().await;
    proxy.cut_all();
    setup.all_back().await;
    let (health, took) = timed(setup.db.health()).await;
    assert_eq!(health.status, HealthStatus::Unhealthy, "{health:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(health.reason.as_ref().unwrap().contains("Connection refused"), "{health:?}");
    proxy.speak();
    proxy.accept().await;
    assert_eq!(setup.db.health().await.status, HealthStatus::Healthy);
    assert_eq!(setup.db.stats().waiting, 0);

    setup.db.close(Duration::ZERO).await;
    let health = setup.db.health().await;
    assert_eq!(health.status, HealthStatus::Unhealthy);
    assert!(health.reason.unwrap().contains("closed"));
}

#[tokio::test]
async fn the_background_check_remembers_and_logs_a_change() {
    let (log, _listening) = Log::listen();
    let (setup, proxy) = through_a_proxy(|config| config.max_size(2).health_interval(20 * MS)).await;
    let status = || setup.db.last_health().map(|health| health.status);
    until("healthy", || status() == Some(HealthStatus::Healthy)).await;
    proxy.refuse().await;
    proxy.cut_all();
    until("unhealthy", || status() == Some(HealthStatus::Unhealthy)).await;
    proxy.accept().await;
    until("healthy again", || status() == Some(HealthStatus::Healthy)).await;
    assert_eq!(log.lines("database health changed").len(), 2, "{:?}", log.lines("health"));
}

#[tokio::test]
async fn a_standby_is_degraded() {
    let primary = Server::start().await.unwrap();
    let standby = primary.standby(Replication::Asynchronous).await.unwrap();
    let db = Database::connect(quiet(&standby.url("postgres"))).await.unwrap();
    let health = db.health().await;
    assert_eq!(health.status, HealthStatus::Degraded, "{health:?}");
    assert!(health.reason.unwrap().contains("standby"));
    read(&db).await.unwrap();
}
