//! What happens to connections while nobody looks: warmed up, retired, kept alive, replaced; and nothing without a reason.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use t2m_db::testing::{Match, Proxy, Server, When};
use t2m_db::{Database, Error};

use crate::pool_support::{MS, hold, ping, quiet, read, through_a_proxy, timed, until};
use crate::support::{Setup, setup_with, table};

/// Opens `count` connections, all idle afterwards.
async fn warm(db: &Database, count: usize) {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(hold(db, "warm").await);
    }
    for one in held {
        one.end().await.unwrap();
    }
}

#[tokio::test]
async fn a_pool_is_warmed_up_to_min_idle_and_then_opens_nothing() {
    let idle = 100 * MS;
    let settings = |config: t2m_db::Config| {
        config.max_size(6).min_idle(3).idle_timeout(idle).keepalive(None).health_interval(None)
    };
    let setup = setup_with(settings).await;
    until("warm", || setup.db.stats().idle == 3).await;
    assert_eq!(setup.db.stats().opened, 3);
    let alone = Database::connect(quiet(&setup.database.url()).max_size(6).min_idle(1)).await.unwrap();
    assert_eq!(alone.stats().idle, 1);
    alone.close(Duration::ZERO).await;
    assert_eq!(alone.stats().opened, 1, "the keeper opened one beside the first");
    // A peak goes, down to min_idle, and what stays is not churned.
    warm(&setup.db, 6).await;
    assert_eq!(setup.db.stats().opened, 6);
    until("the peak is gone", || setup.db.stats().size == 3).await;
    let pids = setup.pids().await;
    assert_eq!(pids.len(), 3);
    // Twenty ticks of the keeper and six times the idle timeout.
    let _ = tokio::time::timeout(600 * MS, std::future::pending::<()>()).await;
    let stats = setup.db.stats();
    assert_eq!((stats.opened, stats.closed.idle, stats.closed.total(), stats.idle), (6, 3, 3, 3), "{stats:#?}");
    assert_eq!(setup.pids().await, pids, "the same three");
}

#[tokio::test]
async fn a_spike_opens_max_size_connections_and_everybody_is_served() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(4)).await;
    proxy.delay(5 * MS); // a login takes as long as several scopes
    let scopes = (0..64).map(|_| ping(&setup.db));
    for told in timed(futures_util::future::join_all(scopes)).await.0 {
        told.unwrap();
    }
    let stats = setup.db.stats();
    assert!(stats.opened <= 4 && stats.size == stats.idle, "{stats:#?}");
    assert_eq!((stats.commits, stats.timeouts, stats.closed.total()), (64, 0, 0), "{stats:#?}");
}

#[tokio::test]
async fn a_connection_opened_for_one_who_left_is_kept_for_the_next() {
    let (database, _client) = table().await;
    let proxy = Proxy::start(&database.url()).await.unwrap();
    let db = Database::connect_lazy(quiet(&format!("{}?sslmode=disable", proxy.url())).max_size(1)).unwrap();
    proxy.hold_replies();
    for turn in 0..5 {
        let scope = tokio::spawn({
            let db = db.clone();
            async move { ping(&db).await }
        });
        // The first has it opened, the others wait for its place.
        proxy.until_held(1).await;
        until("it waits", || db.stats().waiting == 1).await;
        scope.abort();
        assert!(scope.await.unwrap_err().is_cancelled());
        assert_eq!((db.stats().waiting, db.stats().checked_out, proxy.connections()), (0, 0, 1), "turn {turn}");
    }
    proxy.release_all();
    until("it is there", || db.stats().idle == 1).await;
    ping(&db).await.unwrap();
    let stats = db.stats();
    assert_eq!((stats.opened, stats.checkouts, stats.closed.total()), (1, 1, 0), "{stats:#?}");
}

#[tokio::test]
async fn a_session_that_takes_long_to_close_is_not_counted_as_one_to_keep_or_to_spare() {
    let (database, client) = table().await;
    let proxy = Proxy::start(&database.url()).await.unwrap();
    let config = quiet(&format!("{}?sslmode=disable", proxy.url())).max_size(4).min_idle(2).idle_timeout(100 * MS);
    let db = Database::connect(config.cleanup_timeout(Duration::from_secs(1))).await.unwrap();
    let setup = Setup { db, client, database };
    until("warm", || setup.db.stats().idle == 2).await;
    warm(&setup.db, 4).await;
    assert_eq!(setup.db.stats().opened, 4);
    // The server's side of a goodbye comes late: many ticks of the keeper pass meanwhile.
    proxy.delay(100 * MS);
    until("the peak is gone", || setup.db.stats().size == 2).await;
    let stats = setup.db.stats();
    assert_eq!((stats.opened, stats.closed.idle, stats.idle), (4, 2, 2), "{stats:#?}");
}

#[tokio::test]
async fn a_connection_that_was_closed_is_replaced_down_to_min_idle() {
    let settings = |config: t2m_db::Config| config.max_size(4).min_idle(2).idle_timeout(400 * MS).keepalive(None);
    let setup = setup_with(|config| settings(config).health_interval(None)).await;
    until("warm", || setup.db.stats().idle == 2).await;
    let pids = setup.pids().await;
    for pid in &pids {
        setup.client.execute("SELECT pg_terminate_backend($1)", &[pid]).await.unwrap();
    }
    until("replaced", || setup.db.stats().opened == 4 && setup.db.stats().idle == 2).await;
    assert!(setup.pids().await.iter().all(|pid| !pids.contains(pid)));
    assert_eq!(setup.db.stats().closed.broken, 2);
}

#[tokio::test]
async fn connections_retire_at_max_lifetime_and_not_all_at_once() {
    let lifetime = Duration::from_secs(3);
    let settings = |config: t2m_db::Config| config.max_size(8).max_lifetime(lifetime).keepalive(None);
    let setup = setup_with(|config| settings(config).idle_timeout(None).health_interval(None)).await;
    // The keeper's tick is a quarter of it; those in use are retired as they come back.
    warm(&setup.db, 8).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(hold(&setup.db, "old").await);
    }
    assert_eq!(setup.db.stats().opened, 8);
    let old = setup.pids().await;
    let _ = tokio::time::timeout(lifetime + 10 * MS, std::future::pending::<()>()).await;
    assert_eq!(setup.pids().await, old, "in use, they stay");
    for one in held {
        one.end().await.unwrap();
    }
    until("all are retired", || setup.db.stats().closed.lifetime == 8 && setup.db.stats().size == 0).await;
    ping(&setup.db).await.unwrap();
    // With jitter: of those opened together some retire before the others.
    let mut seen = Vec::new();
    warm(&setup.db, 8).await;
    let opened = setup.db.stats().opened;
    while setup.db.stats().closed.lifetime < 16 {
        until("one more", || setup.db.stats().closed.lifetime > 8 + seen.len() as u64).await;
        let one = tokio::time::Instant::now();
        while (seen.len() as u64) < setup.db.stats().closed.lifetime - 8 {
            seen.push(one);
        }
        // Whoever comes now gets what is left, and brings back what is too old by then.
        ping(&setup.db).await.unwrap();
    }
    assert!(setup.db.stats().opened >= opened);
}

#[tokio::test]
async fn an_idle_connection_that_died_silently_is_found_by_keepalive() {
    let (database, client) = table().await;
    let proxy = Proxy::start(&database.url()).await.unwrap();
    let cleanup = Duration::from_secs(1);
    let config = quiet(&format!("{}?sslmode=disable", proxy.url())).max_size(4).keepalive(100 * MS);
    let db = Database::connect(config.cleanup_timeout(cleanup)).await.unwrap();
    let setup = Setup { db, client, database };
    warm(&setup.db, 4).await;
    // It speaks to them; and that is no use that keeps them from idle_timeout or counts as a scope.
    let before = proxy.round_trips();
    timed(async {
        while proxy.round_trips() < before + 8 {
            tokio::time::sleep(MS).await
        }
    })
    .await;
    assert_eq!((setup.db.stats().size, setup.db.stats().opened), (4, 4));
    proxy.go_silent();
    // Half of them each tick of the keeper, so that a borrower does not find all of them away, but none waits for another: each
    // within cleanup_timeout for the question, and another one for the goodbye.
    let (_, took) = timed(until("found", || setup.db.stats().size == 0)).await;
    println!("four silent connections were gone after {took:.1?}");
    assert!(took < 200 * MS + 2 * cleanup + Duration::from_secs(1), "{took:?}");
    assert_eq!(setup.db.stats().closed.unresponsive, 4);
    proxy.speak();
    ping(&setup.db).await.unwrap();
    assert_eq!(setup.db.stats().resent, 0, "no scope met one");
}

#[tokio::test]
async fn keepalive_speaks_to_every_idle_connection_however_many_there_are() {
    const MANY: usize = 9;
    let (setup, proxy) = through_a_proxy(|config| config.max_size(MANY as u32).keepalive(200 * MS)).await;
    warm(&setup.db, MANY).await;
    proxy.reset_counts();
    let spoken_to = || {
        let told = proxy.statements();
        told.iter().filter(|told| told.text.is_empty()).map(|told| told.connection).collect::<HashSet<_>>().len()
    };
    until("all are spoken to", || spoken_to() == MANY).await;
    let stats = setup.db.stats();
    assert_eq!((stats.opened, stats.closed.total()), (MANY as u64, 0), "{stats:#?}");
}

#[tokio::test]
async fn a_connection_that_is_lost_as_it_is_spoken_to_is_called_broken() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(1).keepalive(20 * MS)).await;
    let question = Match::new(|message| message.runs() && message.text.is_empty());
    proxy.cut(When::AfterForward, question).await;
    until("it is closed", || setup.db.stats().closed.total() == 1).await;
    assert_eq!(setup.db.stats().closed.broken, 1, "not unresponsive: {:#?}", setup.db.stats());
}

#[tokio::test]
async fn after_a_rotation_new_connections_log_in_anew_and_old_ones_are_drained() {
    let server = Server::builder().password("app", "first").start().await.unwrap();
    let database = server.empty_database().await.unwrap();
    let url = database.url().replace("postgres@", "app@");
    let (password, asked) = (Arc::new(Mutex::new("first")), Arc::new(AtomicU32::new(0)));
    let provider = {
        let (password, asked) = (Arc::clone(&password), Arc::clone(&asked));
        move || {
            asked.fetch_add(1, SeqCst);
            let password = *password.lock().unwrap();
            async move { Ok::<_, Error>(password.to_owned()) }
        }
    };
    let db = Database::connect(quiet(&url).max_size(3).password_provider(provider)).await.unwrap();
    warm(&db, 2).await;
    let held = hold(&db, "across the rotation").await;
    let old = read(&db).await.unwrap();
    let admin = server.client("postgres").await.unwrap();
    admin.batch_execute("ALTER ROLE app PASSWORD 'second'").await.unwrap();
    *password.lock().unwrap() = "second";
    db.retire_connections();
    // The idle one is closed, the one in use goes on.
    assert_ne!(read(&db).await.unwrap(), old, "an old one was lent");
    until("the idle one is closed", || db.stats().closed.outdated == 1).await;
    held.end().await.unwrap();
    until("the other is drained", || db.stats().closed.outdated == 2).await;
    warm(&db, 3).await;
    let stats = db.stats();
    assert_eq!((stats.opened, stats.open_failures, u64::from(asked.load(SeqCst))), (5, 0, 5), "{stats:#?}");
    let logged = format!("{db:?} {stats:?}");
    assert!(!logged.contains("second") && !logged.contains("first"), "{logged}");
}

#[tokio::test]
async fn warming_up_does_not_hurry_a_server_that_is_away_and_goes_on_when_it_is_back() {
    let (database, client) = table().await;
    let proxy = Proxy::start(&database.url()).await.unwrap();
    let config = quiet(&format!("{}?sslmode=disable", proxy.url())).max_size(4).min_idle(2);
    let db = Database::connect(config.leak_threshold(80 * MS)).await.unwrap();
    let setup = Setup { db, client, database };
    until("warm", || setup.db.stats().idle == 2).await;
    proxy.refuse().await;
    proxy.cut_all();
    until("attempts", || setup.db.stats().open_failures >= 3).await;
    assert_eq!(setup.db.stats().checked_out, 0);
    proxy.accept().await;
    until("warm again", || setup.db.stats().idle == 2).await;
    let failures = setup.db.stats().open_failures;
    ping(&setup.db).await.unwrap();
    assert_eq!(setup.db.stats().open_failures, failures);
}
