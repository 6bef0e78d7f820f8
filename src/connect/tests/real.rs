//! Against PostgreSQL itself: what a session is like, and what a cancel request does.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::*;
use crate::testing::{Server, Tls};

/// A session whose bytes move.
struct Session {
    client: Client,
    canceller: Canceller,
    backend_pid: i32,
}

fn run(opened: Opened) -> Session {
    let Opened { client, mut driver, canceller, wire, .. } = opened;
    tokio::spawn(async move {
        while let ControlFlow::Continue(()) = poll_fn(|cx| {
            driver.poll_message(cx).map(|next| match next {
                Some(Ok(_)) => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            })
        })
        .await
        {}
    });
    Session { client, canceller, backend_pid: wire.backend_pid() }
}

impl Session {
    async fn text(&self, sql: &str) -> String {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }
}

#[tokio::test]
async fn a_session_is_as_it_was_asked_to_be_and_reset_all_keeps_it_so() {
    let server = Server::builder().tcp().start().await.unwrap();
    for url in [server.url("postgres"), server.tcp_url("postgres").unwrap()] {
        let config = Config::from_url(&format!("{url}?options=-c%20work_mem%3D8MB")).unwrap().application_name("shop");
        let config = config.client_connection_check_interval(Duration::from_millis(1_500));
        let opened = Connector::new(&config).unwrap().connect().await.unwrap();
        assert_eq!(opened.driver.parameter("in_hot_standby"), Some("off"));
        let session = run(opened);
        let pid: i32 = session.client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        assert_eq!(session.backend_pid, pid);
        let show = async || {
            session
                .text(
                    "SELECT string_agg(current_setting(name), ' ') FROM unnest(ARRAY['default_transaction_read_only', \
                     'TimeZone', 'client_connection_check_interval', 'idle_in_transaction_session_timeout', 'work_mem', \
                     'application_name', 'client_encoding']) AS name",
                )
                .await
        };
        let expected = "on UTC 1500ms 1min 8MB shop UTF8";
        assert_eq!(show().await, expected);
        session.client.batch_execute("SET TimeZone = 'Europe/Rome'; SET work_mem = '1MB'; RESET ALL").await.unwrap();
        assert_eq!(show().await, expected, "after RESET ALL");
    }
}

#[tokio::test]
async fn only_a_transaction_that_says_so_can_write() {
    let server = Server::start().await.unwrap();
    let session = run(connector(&server.url("postgres")).connect().await.unwrap());
    let refused = session.client.batch_execute("CREATE TABLE t ()").await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::READ_ONLY_SQL_TRANSACTION));
    session.client.batch_execute("BEGIN READ WRITE; CREATE TABLE t (); COMMIT").await.unwrap();
}

#[tokio::test]
async fn a_cancel_hits_what_runs_and_nothing_later() {
    // By TCP it is TLS; the server would refuse anything else.
    let server = Server::builder().tls(Tls::good()).start().await.unwrap();
    for url in [server.url("postgres"), server.tcp_url("postgres").unwrap()] {
        let session = run(connector(&url).connect().await.unwrap());
        let begun = Instant::now();
        let (slept, cancelled) = tokio::join!(session.client.batch_execute("SELECT pg_sleep(60)"), async {
            // The statement must be with the server; an own session sees it.
            let witness = run(connector(&url).connect().await.unwrap());
            let running = format!(
                "SELECT count(*)::text FROM pg_stat_activity WHERE pid = {} AND state = 'active'",
                session.backend_pid
            );
            while witness.text(&running).await == "0" {
                tokio::task::yield_now().await;
            }
            session.canceller.cancel().await
        });
        cancelled.unwrap();
        assert_eq!(slept.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
        assert!(begun.elapsed() < Duration::from_secs(30));
        for _ in 0..200 {
            session.canceller.cancel().await.unwrap();
            session.client.batch_execute("SELECT 1").await.unwrap();
        }
    }
}

#[tokio::test]
async fn the_real_servers_refusals_are_fatal() {
    let server = Server::builder().tcp().password("app", "secret").start().await.unwrap();
    let port = server.port().unwrap();
    let error = async |login: &str, database: &str| {
        failure(&connector(&format!("postgres://{login}@127.0.0.1:{port}/{database}"))).await
    };
    let wrong = error("app:hunter2", "postgres").await;
    assert_eq!((wrong.sqlstate(), wrong.is_fatal(), wrong.phase()), (Some("28P01"), true, Phase::Authenticate));
    assert!(!format!("{wrong} {wrong:?}").contains("hunter2"));
    let missing = error("app:secret", "nowhere").await;
    assert_eq!((missing.sqlstate(), missing.is_fatal(), missing.phase()), (Some("3D000"), true, Phase::Startup));
    let none = error("app", "postgres").await;
    assert_eq!((none.sqlstate(), none.is_fatal()), (None, true));
    let stranger = error("nobody:x", "postgres").await;
    assert_eq!((stranger.sqlstate(), stranger.is_fatal()), (Some("28P01"), true));
    connector(&format!("postgres://app:secret@127.0.0.1:{port}/postgres")).connect().await.unwrap();
}
