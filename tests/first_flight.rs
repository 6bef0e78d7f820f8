//! A first flight that is lost with its connection: sent again where the body has seen nothing and nothing can be stored, and
//! only there.

use std::pin::pin;
use std::time::Duration;

use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use futures_util::future::poll_immediate;
use t2m_db::testing::{Proxy, Replication, Server, When};
use t2m_db::{Config, Database, Error, Phase, Transaction};

use tokio::time::timeout;

use crate::pool_support::{hold, ping, pipelined, quiet, read, through_a_proxy, timed, until};
use crate::support::{LONG, Setup, batch, note, notes};

/// Opens `count` connections, all idle afterwards.
async fn warm(setup: &Setup, count: usize) {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(hold(&setup.db, "warm").await);
    }
    for one in held {
        one.end().await.unwrap();
    }
    assert_eq!(setup.db.stats().idle, count);
}

#[tokio::test]
async fn terminated_idle_connections_are_noticed_by_nobody() {
    for unseen in [false, true] {
        for kind in ["transaction", "read", "pipelined"] {
            let (setup, proxy) = through_a_proxy(|config| config.max_size(3)).await;
            warm(&setup, 3).await;
            if unseen {
                // No task of this runtime runs between here and the scope's first flight.
                proxy.cut_all();
            } else {
                assert_eq!(setup.database.terminate_backends().await.unwrap(), 4, "with the looker");
                until("the end is seen", || setup.db.stats().size == 0).await;
            }
            match kind {
                "transaction" => {
                    setup.db.with_transaction(async |tx| batch(tx, "SELECT 1").await).await.unwrap();
                }
                "read" => drop(read(&setup.db).await.unwrap()),
                _ => {
                    let (one, other) = setup.db.with_transaction(async |tx| pipelined(tx).await).await.unwrap();
                    assert_eq!(one, other, "in one transaction");
                }
            }
            let stats = setup.db.stats();
            println!("{kind}, unseen {unseen}: resent {}, opened {}", stats.resent, stats.opened);
            assert_eq!(stats.resent > 0, unseen, "{kind}: {stats:#?}");
            assert!(stats.resent <= 2 && stats.opened == 4, "{kind}: {stats:#?}");
        }
    }
}

/// What a scope sends first, and whose loss is not noticed.
async fn first_flight(setup: &Setup, kind: &str) -> Result<(), Error> {
    let scope = setup.db.transaction("first flight");
    match kind {
        "plain" => scope.run(async |tx| note(tx, "once").await).await.map(drop),
        "deadline" => scope.deadline(LONG).run(async |tx| note(tx, "once").await).await.map(drop),
        "savepoint" => scope.run(async |tx| tx.savepoint(async |tx| note(tx, "once").await).await).await.map(drop),
        "commit_with" => scope.run(async |tx| Ok::<_, Error>(tx.commit_with(insert("once")).await?)).await.map(drop),
        "raw" => {
            let body = scope.run(async |tx| {
                Ok::<_, Error>(tx.raw().await?.batch_execute("INSERT INTO notes (text) VALUES ('once')").await?)
            });
            body.await
        }
        _ => {
            let body = scope.run(async |tx| {
                let tx = &*tx;
                futures_util::try_join!(insert("once").execute(&mut &*tx), insert("twice").execute(&mut &*tx))?;
                Ok::<_, Error>(())
            });
            body.await
        }
    }
}

fn insert(
    text: &'static str,
) -> impl diesel::query_builder::QueryFragment<diesel::pg::Pg> + diesel::query_builder::QueryId {
    use diesel::ExpressionMethods;
    diesel::insert_into(notes::table).values(notes::text.eq(text))
}

#[tokio::test]
async fn a_first_flight_is_lost_at_any_point_and_the_body_does_not_notice() {
    for kind in ["plain", "deadline", "savepoint", "commit_with", "raw", "pipelined"] {
        for prepared in [false, true] {
            for when in [When::BeforeForward, When::AfterForward, When::AfterReply] {
                for message in ["BEGIN", if kind == "savepoint" { "SAVEPOINT" } else { "INSERT" }] {
                    // The bare connection is the body's: BEGIN was answered before it gets it.
                    if kind == "raw" && message == "INSERT" {
                        continue;
                    }
                    let what = format!("{kind}, prepared {prepared}, cut {when:?} {message}");
                    let (setup, proxy) = through_a_proxy(|config| config.max_size(1)).await;
                    ping(&setup.db).await.unwrap();
                    for _ in 0..if prepared { 3 } else { 0 } {
                        first_flight(&setup, kind).await.unwrap();
                        setup.client.batch_execute("TRUNCATE notes").await.unwrap();
                    }
                    // A flight from BEGIN to COMMIT is not sent again, so it is only made on a connection heard of lately.
                    if prepared && kind == "commit_with" {
                        continue;
                    }
                    let cut = proxy.cut(when, message);
                    first_flight(&setup, kind).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
                    cut.await;
                    let stored = if kind == "pipelined" { &["once", "twice"][..] } else { &["once"] };
                    assert_eq!(setup.stored().await, stored, "{what}");
                    let stats = setup.db.stats();
                    assert_eq!(
                        (stats.resent, stats.opened, stats.commits),
                        (1, 2, if prepared { 5 } else { 2 }),
                        "{what}"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn what_the_body_has_seen_or_may_have_stored_is_not_sent_again() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(2)).await;
    ping(&setup.db).await.unwrap();
    // It ends its transaction by itself, so it may be stored although no answer came: not even that of BEGIN.
    for (number, when) in [When::AfterForward, When::AfterReply].into_iter().enumerate() {
        for (who, before) in [("tx", ""), ("conn", "BEGIN READ WRITE; ")] {
            let what = format!("{who}{number}");
            let _cut = proxy.cut(when, "COMMIT");
            let sql = format!("{before}INSERT INTO notes (text) VALUES ('{what}'); COMMIT");
            let told = match who {
                "tx" => setup.db.with_transaction(async |tx| batch(tx, &sql).await).await,
                _ => setup.db.with_connection(async |conn| Ok(conn.batch_execute(&sql).await?)).await,
            };
            assert!(told.unwrap_err().is_connection_lost(), "{what}");
            assert_eq!(setup.db.stats().resent, 0, "{what}");
            if when == When::AfterReply {
                assert!(setup.stored().await.contains(&what));
            }
        }
    }
    // An error is an answer.
    let scope = setup.db.with_transaction(async |tx| {
        assert!(note(tx, "tx1").await.unwrap_err().is_unique_violation());
        let _cut = proxy.cut(When::AfterForward, "SELECT 2");
        batch(tx, "SELECT 2").await
    });
    assert!(scope.await.unwrap_err().is_connection_lost());
    assert_eq!(setup.db.stats().resent, 0);
}

/// The answer of one statement was there when the other one's connection was lost. Both are done again, in one transaction.
#[tokio::test]
async fn an_answer_out_of_a_transaction_that_was_lost_is_not_handed_out() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(1)).await;
    let kept = async |tx: &Transaction| Ok::<_, Error>(insert("kept prepared").execute(&mut &*tx).await?);
    for _ in 0..3 {
        setup.db.with_transaction(async |tx| kept(tx).await).await.unwrap();
        setup.client.batch_execute("TRUNCATE notes").await.unwrap();
    }
    let anew = diesel::sql_query("INSERT INTO notes (text) VALUES ('prepared anew')");
    let mut scope = pin!(setup.db.with_transaction(async |tx| {
        let tx = &*tx;
        let (_, _) = futures_util::try_join!(async { Ok(anew.execute(&mut &*tx).await?) }, kept(tx))?;
        Ok::<_, Error>(())
    }));
    // BEGIN, Parse of the one, all of the other. Then it is not polled until the connection has ended.
    assert!(poll_immediate(&mut scope).await.is_none());
    until("all is answered", || setup.db.checkouts()[0].phase == Phase::IdleInTransaction).await;
    proxy.cut_all();
    until("the end is seen", || setup.db.stats().size == 0).await;
    timeout(LONG, scope).await.unwrap().unwrap();
    let mut stored = setup.stored().await;
    stored.sort();
    assert_eq!(stored, ["kept prepared", "prepared anew"]);
    assert_eq!(setup.db.stats().resent, 1);
}

#[tokio::test]
async fn what_a_scope_changed_in_its_second_session_is_seen_although_begin_went_twice() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(1)).await;
    ping(&setup.db).await.unwrap();
    let _cut = proxy.cut(When::AfterForward, "SELECT 1");
    let scope = setup.db.transaction("dirty").deadline(LONG).run(async |tx| {
        batch(tx, "SELECT 1").await?;
        batch(tx, "SET work_mem = '5MB'").await
    });
    scope.await.unwrap();
    assert_eq!((setup.db.stats().resent, setup.db.stats().reset), (1, 1));
}

#[tokio::test]
async fn a_session_that_the_server_ended_retires_its_siblings_whenever_that_was() {
    let setup = crate::support::setup(2).await;
    warm(&setup, 2).await;
    let held = hold(&setup.db, "in the middle").await;
    let terminate = format!("SELECT pg_terminate_backend({})", setup.db.checkouts()[0].backend_pid);
    setup.client.batch_execute(&terminate).await.unwrap();
    until("its end is seen", || setup.db.stats().size == 1).await;
    assert!(held.end().await.unwrap_err().is_retryable());
    ping(&setup.db).await.unwrap();
    let stats = setup.db.stats();
    assert_eq!((stats.opened, stats.closed.broken, stats.closed.outdated), (3, 1, 1), "{stats:#?}");
}

#[tokio::test]
async fn a_demoted_primary_retires_its_siblings_and_nobody_is_told() {
    // What is left of a failover behind one name: sessions on what is a standby now, and new ones go to the primary.
    let primary = Server::builder().tcp().start().await.unwrap();
    let client = primary.client("postgres").await.unwrap();
    client.batch_execute("CREATE TABLE notes (id bigserial PRIMARY KEY, text text)").await.unwrap();
    let standby = primary.standby(Replication::Asynchronous).await.unwrap();
    let front = Proxy::start(&standby.tcp_url("postgres").unwrap()).await.unwrap();
    let host = |url: &str| url.split_once('@').unwrap().1.split_once('/').unwrap().0.to_owned();
    let hosts = format!("{},{}", host(&front.url()), host(&primary.tcp_url("postgres").unwrap()));
    let db = Database::connect(quiet(&format!("postgres://postgres@{hosts}/postgres")).max_size(3)).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(db.with_connection(async |conn| Ok::<_, Error>(conn.batch_execute("SELECT 1").await?)));
    }
    futures_util::future::try_join_all(held).await.unwrap();
    assert_eq!((front.connections(), db.stats().idle), (3, 3));
    front.refuse().await;
    db.with_transaction(async |tx| batch(tx, "INSERT INTO notes (text) VALUES ('there')").await).await.unwrap();
    until("its siblings are closed", || db.stats().size == 1).await;
    let stats = db.stats();
    assert_eq!((stats.resent, stats.opened, stats.idle), (1, 4, 1), "one found out, for all of them: {stats:#?}");
    assert_eq!(client.query_one("SELECT text FROM notes", &[]).await.unwrap().get::<_, String>(0), "there");
    // Where there is no primary it is an error that says why.
    front.accept().await;
    let db = Database::connect(quiet(&format!("{}?sslmode=disable", front.url())).max_size(1)).await.unwrap();
    let error = ping(&db).await.unwrap_err();
    assert!(error.to_string().contains("during recovery"), "{error}");
    assert!(db.stats().resent <= 2);
    // Of two statements in one flight neither is answered: the second ran, but in no transaction.
    let seen = db.with_transaction(async |tx| {
        let tx = &*tx;
        let (one, other) = futures_util::join!(pipelined(tx), pipelined(tx));
        assert!(one.is_err() && other.is_err(), "{one:?} {other:?}");
        Ok::<_, Error>(())
    });
    assert!(matches!(seen.await, Err(Error::Aborted { .. })));
}

#[tokio::test]
async fn a_scope_dropped_while_its_connection_is_replaced_leaves_its_place_to_the_new_one() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(1).connect_timeout(LONG)).await;
    ping(&setup.db).await.unwrap();
    proxy.cut_all();
    proxy.hold_replies();
    let scope = tokio::spawn({
        let db = setup.db.clone();
        async move { ping(&db).await }
    });
    proxy.until_held(1).await; // of the login that replaces it
    assert_eq!(setup.db.stats().resent, 0);
    scope.abort();
    assert!(scope.await.unwrap_err().is_cancelled());
    setup.all_back().await;
    let next = tokio::spawn({
        let db = setup.db.clone();
        async move { ping(&db).await }
    });
    until("it waits for its turn", || setup.db.stats().waiting == 1).await;
    // The one that was cut is counted until the server has noticed.
    timeout(LONG, proxy.until_connections(1)).await.expect("no second session for one place");
    proxy.release_all();
    next.await.unwrap().unwrap();
    assert_eq!((setup.db.stats().opened, setup.db.stats().size), (2, 1), "the one that was being opened is used");
    assert_eq!(proxy.counts().connections, 2, "and no other was begun");
}

#[tokio::test]
async fn a_write_is_sent_again_only_if_the_body_was_told_nothing() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(2)).await;
    warm(&setup, 2).await;
    proxy.cut_all();
    setup.db.with_transaction(async |tx| note(tx, "once").await).await.unwrap();
    assert!((1..=2).contains(&setup.db.stats().resent));
    // In the middle of a transaction there is nothing to be sent again.
    let scope = setup.db.with_transaction(async |tx| {
        note(tx, "gone").await?;
        proxy.cut_all();
        note(tx, "never").await
    });
    let error = scope.await.unwrap_err();
    assert!(error.is_connection_lost() && error.is_retryable(), "{error:?}");
    let rows = setup.client.query("SELECT text FROM notes", &[]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<String>>(), ["once"]);
}

#[tokio::test]
async fn a_query_that_kills_its_own_session_ends_with_an_error() {
    let (setup, _proxy) = through_a_proxy(|config| config.max_size(4)).await;
    let kill = "SELECT pg_terminate_backend(pg_backend_pid())";
    let (error, _) = timed(setup.db.with_transaction(async |tx| batch(tx, kill).await)).await;
    let error = error.unwrap_err();
    assert!(error.is_connection_lost(), "{error:?}");
    assert_eq!(
        (setup.db.stats().resent, setup.db.stats().opened),
        (1, 2),
        "BEGIN was answered: once more, and not again"
    );
    let read = setup.db.with_connection(async |conn| Ok::<_, Error>(conn.batch_execute(kill).await?));
    let (error, _) = timed(read).await;
    assert!(error.unwrap_err().is_connection_lost());
    let stats = setup.db.stats();
    assert!(stats.resent <= 3 && stats.opened <= 5, "it loops: {stats:#?}");
    ping(&setup.db).await.unwrap();
}

#[tokio::test]
async fn a_first_flight_is_not_sent_again_later_than_a_checkout_may_take() {
    let times =
        |config: Config| config.checkout_timeout(Duration::from_secs(1)).connect_timeout(Duration::from_secs(15));
    // One place goes on being used by the attempt that hangs, until `connect_timeout`.
    let (setup, proxy) = through_a_proxy(|config| times(config).max_size(2)).await;
    ping(&setup.db).await.unwrap();
    proxy.cut_all();
    proxy.go_silent();
    let (told, took) = timed(ping(&setup.db)).await;
    let error = told.unwrap_err();
    assert!(error.is_connection_lost() && error.is_retryable(), "{error:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!((setup.db.stats().waiting, setup.db.stats().checked_out), (0, 0));
    proxy.speak();
    ping(&setup.db).await.unwrap();
}
