//! Paths on which nothing comes back, although what is sent is acknowledged: noticed by the first flight, within
//! `checkout_timeout`. Where packets are dropped: `silent_network`.

use std::time::Duration;

use diesel_async::SimpleAsyncConnection;
use t2m_db::testing::{Server, Tls};
use t2m_db::{Database, Error};

use crate::pool_support::{MS, ping, quiet, through_a_proxy, timed};
use crate::support::setup_with;

/// Longer than a connection is taken for alive without being asked.
const QUIET: Duration = Duration::from_millis(1_100);

async fn read(db: &Database, sql: &str) -> Result<(), Error> {
    db.with_connection(async |conn| Ok(conn.batch_execute(sql).await?)).await
}

#[tokio::test]
async fn a_first_flight_on_a_silent_path_goes_again_on_another() {
    let (patience, slack) = (Duration::from_secs(4), Duration::from_secs(2));
    for reads in [false, true] {
        let (setup, proxy) = through_a_proxy(|config| config.max_size(2).checkout_timeout(patience)).await;
        ping(&setup.db).await.unwrap();
        if reads {
            tokio::time::sleep(QUIET).await; // the time is what is tested
        }
        proxy.go_silent();
        proxy.speak();
        let (told, took) =
            timed(async { if reads { read(&setup.db, "SELECT 1").await } else { ping(&setup.db).await } }).await;
        told.unwrap();
        assert!(took < patience + slack, "{took:?}");
        let stats = setup.db.stats();
        assert_eq!((stats.resent, stats.opened, stats.closed.unresponsive), (1, 2, 1), "{stats:#?}");
    }
}

#[tokio::test]
async fn one_silent_path_is_enough_to_doubt_all_that_are_as_old() {
    let (setup, proxy) =
        through_a_proxy(|config| config.max_size(4).min_idle(4).checkout_timeout(Duration::from_secs(4))).await;
    crate::pool_support::until("warm", || setup.db.stats().idle == 4).await;
    proxy.go_silent();
    proxy.speak();
    for _ in 0..4 {
        timed(ping(&setup.db)).await.0.unwrap();
    }
    assert_eq!(setup.db.stats().resent, 1, "the others were not even tried");
}

#[tokio::test]
async fn where_nothing_comes_back_at_all_a_borrower_is_told_in_time() {
    let (patience, slack) = (600 * MS, Duration::from_secs(2));
    for reads in [false, true] {
        let (setup, proxy) = through_a_proxy(|config| config.max_size(1).checkout_timeout(patience)).await;
        ping(&setup.db).await.unwrap();
        proxy.go_silent();
        let (told, took) =
            timed(async { if reads { read(&setup.db, "SELECT 1").await } else { ping(&setup.db).await } }).await;
        let error = told.unwrap_err();
        assert!(error.is_connection_lost() && error.is_retryable(), "{error:?}");
        assert!(error.to_string().contains("no word from the server for"), "{error}");
        assert!(took < patience + slack, "{took:?}");
    }
}

#[tokio::test]
async fn a_process_that_stood_still_blames_nobody_else() {
    let patience = 200 * MS;
    let (setup, proxy) = through_a_proxy(|config| config.max_size(1).checkout_timeout(patience)).await;
    ping(&setup.db).await.unwrap();
    proxy.hold_replies();
    let sent = proxy.until_sent("BEGIN");
    let (told, ()) = tokio::join!(ping(&setup.db), async {
        sent.await;
        for _ in 0..2 {
            std::thread::sleep(patience); // nothing of this runtime runs
            tokio::time::sleep(MS).await; // what is due is done, once
        }
        proxy.release_all();
    });
    told.unwrap();
    assert_eq!(setup.db.stats().resent, 0);
}

/// On a socket, over TCP and over TLS: a server that is asked whether it is there answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_slow_first_statement_is_not_taken_for_silence() {
    let patience = Duration::from_secs(2);
    let tls = Server::builder().tls(Tls::good()).start().await.unwrap();
    let encrypted = format!("postgres://postgres@localhost:{}/postgres?sslmode=require", tls.port().unwrap());
    let encrypted = Database::connect(quiet(&encrypted).max_size(1).checkout_timeout(patience)).await.unwrap();
    let (plain, _proxy) = through_a_proxy(|config| config.max_size(1).checkout_timeout(patience)).await;
    let local = setup_with(|config| config.max_size(1).checkout_timeout(patience)).await;
    let slow = "SELECT pg_sleep(2)";
    let checks = [&encrypted, &plain.db, &local.db].map(async |db| {
        ping(db).await.unwrap();
        read(db, slow).await.unwrap();
        db.with_transaction(async |tx| Ok::<_, Error>(tx.batch_execute(slow).await?)).await.unwrap();
        tokio::time::sleep(QUIET).await; // the time is what is tested
        read(db, slow).await.unwrap();
        let stats = db.stats();
        assert_eq!((stats.resent, stats.opened, stats.closed.total()), (0, 1, 0), "{stats:#?}");
    });
    futures_util::future::join_all(checks).await;
}
