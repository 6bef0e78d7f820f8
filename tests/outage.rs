//! The server goes away, or the way to it: who notices, who is told, and how soon all is well again.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use t2m_db::testing::{Proxy, Server, Stop, TestDatabase};
use t2m_db::{CommitOutcome, Config, Database, Error};
use tokio::task::{JoinHandle, JoinSet};

use crate::pool_support::{MS, hold, ping, quiet, read, served, still, through_a_proxy, timed, until};
use crate::support::{LONG, batch, note, table};

/// How long it took from the moment when the server accepts.
#[derive(Debug)]
struct Recovery {
    first: Duration,
    whole: Duration,
    /// One connection without a pool, beside the same load.
    bare: Duration,
}

/// What 32 tasks on 8 connections are told while the server goes away and comes back.
async fn under_load(server: &Server, how: Option<Stop>) -> Recovery {
    const CONNECTIONS: usize = 8;
    let database = server.empty_database().await.unwrap();
    let sql = "CREATE TABLE notes (id bigserial PRIMARY KEY, text text NOT NULL, seen bigint NOT NULL DEFAULT 0)";
    let client = database.client().await.unwrap();
    client.batch_execute(sql).await.unwrap();
    client.batch_execute("CHECKPOINT").await.unwrap(); // the server is not durable: the table could be lost when it is killed
    let config = Config::from_url(&database.url()).unwrap().max_size(8).min_idle(0).health_interval(None);
    let db = Database::connect(config).await.unwrap();
    let (stop, stored) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut load = JoinSet::new();
    for _ in 0..32 {
        let (db, stop, stored) = (db.clone(), Arc::clone(&stop), Arc::clone(&stored));
        load.spawn(async move {
            let mut errors = Vec::new();
            while !stop.load(SeqCst) {
                let begun = AtomicBool::new(false);
                let scope = db.with_transaction(async |tx| {
                    batch(tx, "SELECT 1").await?;
                    begun.store(true, SeqCst);
                    note(tx, "some").await
                });
                match scope.await {
                    Ok(_) => drop(stored.fetch_add(1, SeqCst)),
                    Err(error) => errors.push((begun.load(SeqCst), error)),
                }
            }
            errors
        });
    }
    until("a warm pool under load", || stored.load(SeqCst) > 200 && db.stats().size == CONNECTIONS).await;
    match how {
        Some(how) => server.stop(how).await.unwrap(),
        None => server.kill().await.unwrap(),
    }
    until("everybody waits", || db.stats().waiting > 0).await;
    let before = stored.load(SeqCst);
    server.resume().await.unwrap();
    let back = Instant::now();
    until("a first success", || stored.load(SeqCst) > before).await;
    let first = back.elapsed();
    until("a whole pool", || db.stats().size == CONNECTIONS).await;
    let whole = back.elapsed();
    let bare = timed(database.client()).await.1;
    stop.store(true, SeqCst);
    let errors: Vec<_> = load.join_all().await.into_iter().flatten().collect();
    let unknown = errors.iter().filter(|(_, error)| error.commit_outcome() == CommitOutcome::Unknown).count();
    println!(
        "{how:?}: first success {first:.1?}, whole {whole:.1?}, a bare connect {bare:.1?}; {} errors, {unknown} unknown",
        errors.len()
    );
    // The others, 24 that waited and all that came while the server was away, see nothing.
    assert!(errors.len() <= CONNECTIONS, "only who had a connection is told: {errors:#?}");
    for (begun, error) in &errors {
        let honest = error.is_retryable() || error.commit_outcome() == CommitOutcome::Unknown;
        assert!(honest, "{error:?}");
        assert!(begun, "a body that has seen nothing yet is told nothing: {error:?}");
    }
    let stats = db.stats();
    assert_eq!((stats.checked_out, stats.waiting, stats.timeouts), (0, 0, 0), "{stats:#?}");
    db.close(Duration::ZERO).await;
    Recovery { first, whole, bare }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_load_is_told_only_to_scopes_that_had_begun() {
    let server = Server::start().await.unwrap();
    let mut took = Vec::new();
    for how in [Some(Stop::Fast), Some(Stop::Immediate), None] {
        took.push(under_load(&server, how).await);
    }
    // One of three is enough: a machine that is busy with something else makes any of them long.
    let soon =
        |one: &Recovery| one.first < 150 * MS + 10 * one.bare && one.whole < Duration::from_secs(1) + 20 * one.bare;
    assert!(took.iter().any(soon), "{took:?}");
}

#[tokio::test]
async fn a_scope_that_begins_while_the_server_is_away_waits_for_it() {
    let server = Server::start().await.unwrap();
    let database = server.empty_database().await.unwrap();
    let db = Database::connect(quiet(&database.url())).await.unwrap();
    server.stop(Stop::Fast).await.unwrap();
    let both = async { (ping(&db).await, read(&db).await) };
    let ((told, read), _) = tokio::join!(both, server.resume());
    told.unwrap();
    read.unwrap();
}

#[tokio::test]
async fn behind_a_silent_network_a_deadline_and_cleanup_timeout_are_bounds() {
    let cleanup = Duration::from_secs(1);
    let (setup, proxy) = through_a_proxy(|config| config.max_size(1).cleanup_timeout(cleanup)).await;
    ping(&setup.db).await.unwrap();
    proxy.go_silent();
    let scope = setup.db.transaction("bounded").deadline(100 * MS).run(async |tx| batch(tx, "SELECT 1").await);
    let (error, took) = timed(scope).await;
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
    assert_eq!(error.commit_outcome(), CommitOutcome::NotCommitted);
    assert!(took < 100 * MS + cleanup, "{took:?}");
    proxy.speak();
    // Its place is free after one cleanup_timeout for ROLLBACK and another for the goodbye.
    let (next, took) = timed(ping(&setup.db)).await;
    next.unwrap();
    println!("the place of a silent connection was free after {took:.1?}, cleanup_timeout is {cleanup:?}");
    assert!(took < 4 * cleanup, "{took:?}");
    let stats = setup.db.stats();
    assert_eq!((stats.closed.unresponsive, stats.discarded, stats.opened), (1, 1, 2), "{stats:#?}");
}

/// A server that takes connections and never says a word, `backlog` deep.
struct Mute {
    url: String,
    _listener: TcpListener,
}

fn mute() -> Mute {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://someone@{}/nowhere?sslmode=disable", listener.local_addr().unwrap());
    Mute { url, _listener: listener }
}

#[tokio::test]
async fn a_checkout_never_waits_longer_than_it_may_for_a_connection_being_opened() {
    let mute = mute();
    let timeout = 200 * MS;
    let config = quiet(&mute.url).max_size(2).checkout_timeout(timeout).connect_timeout(3 * LONG);
    let db = Database::connect_lazy(config).unwrap();
    let (told, took) = timed(ping(&db)).await;
    let error = told.unwrap_err();
    assert!(matches!(error, Error::CheckoutTimeout(_)), "{error:?}");
    assert!(took >= timeout, "{took:?}");
    let hurried = db.transaction("hurried").deadline(50 * MS).run(async |tx| batch(tx, "SELECT 1").await);
    let error = timed(hurried).await.0.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
    assert_eq!(db.stats().waiting, 0);
}

/// A scope on a lazy pool of two, whose attempt to connect hangs.
struct Hanging {
    db: Database,
    scope: JoinHandle<Result<(), Error>>,
    _way: (Proxy, TestDatabase),
}

async fn hanging(connect_timeout: Duration) -> Hanging {
    let (database, _client) = table().await;
    let proxy = Proxy::start(&database.url()).await.unwrap();
    let config = quiet(&format!("{}?sslmode=disable", proxy.url())).max_size(2).connect_timeout(connect_timeout);
    let db = Database::connect_lazy(config).unwrap();
    proxy.go_silent();
    let scope = tokio::spawn({
        let db = db.clone();
        async move { ping(&db).await }
    });
    proxy.until_connections(1).await;
    proxy.speak();
    Hanging { db, scope, _way: (proxy, database) }
}

#[tokio::test]
async fn a_hanging_attempt_to_connect_holds_nobody_else_up() {
    let hanging = hanging(3 * LONG).await;
    for _ in 0..10 {
        timed(ping(&hanging.db)).await.0.unwrap();
    }
    assert!(!hanging.scope.is_finished());
}

#[tokio::test]
async fn a_hanging_attempt_to_connect_costs_its_place_for_connect_timeout() {
    let connect = Duration::from_secs(1);
    let began = Instant::now();
    let Hanging { db, scope, _way } = hanging(connect).await;
    timed(scope).await.0.unwrap().unwrap();
    assert!(began.elapsed() >= connect);
    assert_eq!((db.stats().open_failures, db.stats().timeouts), (1, 0));
    // Both places are there.
    let held = [hold(&db, "one").await, hold(&db, "two").await];
    for one in held {
        one.end().await.unwrap();
    }
}

#[tokio::test]
async fn a_password_provider_that_panics_or_hangs_costs_one_attempt() {
    let database = t2m_db::testing::empty_database().await;
    for panics in [true, false] {
        let asked = Arc::new(AtomicU32::new(0));
        let provider = {
            let asked = Arc::clone(&asked);
            move || {
                let time = asked.fetch_add(1, SeqCst);
                async move {
                    match time {
                        1 | 2 if panics => panic!("hunter2"),
                        1 => std::future::pending().await,
                        _ => Ok::<_, Error>("unused".to_owned()),
                    }
                }
            }
        };
        let config =
            quiet(&database.url()).max_size(3).connect_timeout(Duration::from_secs(1)).password_provider(provider);
        let db = Database::connect(config).await.unwrap();
        let held = hold(&db, "first").await;
        timed(ping(&db)).await.0.unwrap();
        assert_eq!(db.stats().open_failures, if panics { 2 } else { 1 });
        // A first flight that is sent again opens its connection inside of the scope.
        if panics {
            asked.store(1, SeqCst);
            held.end().await.unwrap();
            database.terminate_backends().await.unwrap();
            ping(&db).await.unwrap();
        } else {
            held.end().await.unwrap();
        }
        assert_eq!(db.stats().waiting, 0);
    }
}

#[tokio::test]
async fn what_no_waiting_mends_is_told_at_once_in_the_servers_words() {
    let server = Server::builder().password("app", "secret-word").start().await.unwrap();
    let database = server.empty_database().await.unwrap();
    let url = |password: &str, name: &str| {
        database.url().replace("postgres@", &format!("app:{password}@")).replace(database.name(), name)
    };
    let connect = async |password: &str, name: &str| {
        let (told, took) = timed(Database::connect(quiet(&url(password, name)))).await;
        assert!(took < Duration::from_secs(5), "{took:?}");
        told.map(drop).unwrap_err()
    };
    let wrong = connect("wrong-word", database.name()).await;
    assert!(matches!(wrong, Error::Connect(_)), "{wrong:?}");
    assert!(wrong.to_string().contains("password authentication failed for user \"app\" (28P01)"), "{wrong}");
    assert!(!format!("{wrong} {wrong:?}").contains("wrong-word"));
    let missing = connect("secret-word", "nowhere").await;
    assert!(missing.to_string().contains("database \"nowhere\" does not exist (3D000)"), "{missing}");

    // The same at a later checkout: the password was changed meanwhile.
    let db = Database::connect(quiet(&url("secret-word", database.name())).max_size(2)).await.unwrap();
    let held = hold(&db, "first").await;
    let admin = server.client("postgres").await.unwrap();
    admin.batch_execute("ALTER ROLE app PASSWORD 'another'").await.unwrap();
    let (told, took) = timed(ping(&db)).await;
    let error = told.unwrap_err();
    assert!(matches!(error, Error::Connect(_)) && error.to_string().contains("28P01"), "{error:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    held.end().await.unwrap();
    ping(&db).await.unwrap();
}

#[tokio::test]
async fn a_checkout_that_times_out_without_a_server_lists_what_connecting_said() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(2).checkout_timeout(Duration::from_secs(1))).await;
    proxy.refuse().await;
    proxy.cut_all();
    until("the end is seen", || setup.db.stats().size == 0).await;
    let error = ping(&setup.db).await.unwrap_err();
    let Error::CheckoutTimeout(told) = &error else { panic!("{error:?}") };
    assert!((1..=3).contains(&told.connect_failures.len()), "{told:?}");
    let mut told = still(&error.to_string()).lines().map(str::to_owned).collect::<Vec<_>>();
    told.dedup();
    insta::assert_snapshot!(told.join("\n"), @r#"
    "ping" (tests/pool_support.rs:[line]) got no connection within [time] (`checkout_timeout`): 0 of 2 are out, 0 open, 0 others wait
      connect failed [time] ago: cannot connect to [address] (user postgres, database [database]): no connection: Connection refused (os error 111); is PostgreSQL running there, and do listen_addresses and port fit?
      try: see whether the server is up and reachable from here
    "#);
    proxy.accept().await;
    served(&setup.db).await;
}

#[tokio::test]
async fn connecting_to_a_server_that_is_away_says_so_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://someone:hunter2@{}/nowhere", listener.local_addr().unwrap());
    drop(listener);
    let (told, took) = timed(Database::connect(quiet(&url))).await;
    let error = told.map(drop).unwrap_err();
    assert!(matches!(error, Error::Connect(_)), "{error:?}");
    assert!(took < Duration::from_secs(8), "{took:?}"); // a scope would wait for 10 s
    insta::assert_snapshot!(still(&error.to_string()), @"cannot connect to [address] (user someone, database nowhere): no connection: Connection refused (os error 111); is PostgreSQL running there, and do listen_addresses and port fit?");
}
