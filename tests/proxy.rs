//! The proxy does what a test tells it, at the message that the test names, and counts right.

use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::SinkExt;
use futures_util::future::{join, poll_immediate, try_join};
use t2m_db::testing::{self, Frontend, Match, Moment, PollLimit, Polled, Proxy, TestDatabase, When};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

type Outcome = Result<(), Box<dyn std::error::Error>>;

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(&format!("{url}?sslmode=disable"), NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// A database with a table `rows`, a proxy in front of it, a client through it.
async fn scene() -> Result<(TestDatabase, Proxy, Client), Box<dyn std::error::Error>> {
    let database = testing::empty_database().await;
    let proxy = Proxy::start(&database.url()).await?;
    let client = connect(&proxy.url()).await?;
    client.batch_execute("CREATE TABLE rows (number int)").await?;
    proxy.reset_counts();
    Ok((database, proxy, client))
}

async fn rows(database: &TestDatabase) -> Result<i64, Box<dyn std::error::Error>> {
    Ok(database.client().await?.query_one("SELECT count(*) FROM rows", &[]).await?.get(0))
}

#[tokio::test]
async fn round_trips_are_counted_as_a_client_waits_for_them() -> Outcome {
    let database = testing::empty_database().await;
    let proxy = Proxy::start(&database.url()).await?;
    let client = connect(&proxy.url()).await?;
    assert_eq!((proxy.round_trips(), proxy.counts().connections), (1, 1), "a trusted login is one question");
    client.batch_execute("CREATE TEMP TABLE copied (number int)").await?;
    let trips = || proxy.round_trips();
    proxy.reset_counts();
    client.batch_execute("SELECT 1").await?;
    assert_eq!(trips(), 1);
    let statement = client.prepare("SELECT 1").await?;
    client.query_one(&statement, &[]).await?;
    assert_eq!(trips(), 1 + 2, "prepare, execute");
    let closed = proxy.until_sent(Frontend::Close);
    let synced = proxy.until_sent(Frontend::Sync);
    drop(statement);
    join(closed, synced).await;
    assert_eq!(trips(), 3, "nobody waits for a Close");
    try_join(client.batch_execute("BEGIN"), client.batch_execute("COMMIT")).await?;
    assert_eq!(trips(), 3 + 1, "sent together");
    let mut copy = pin!(client.copy_in("COPY copied FROM STDIN").await?);
    copy.send(Bytes::from_static(b"1\n2\n")).await?;
    assert_eq!(copy.finish().await?, 2);
    assert_eq!(trips(), 4 + 3, "prepare, begin to copy, end");
    client.batch_execute("SELECT 1").await?;
    assert_eq!(trips(), 7 + 1, "the COPY left the count askew");
    Ok(())
}

#[tokio::test]
async fn messages_are_counted_by_kind_and_prepared_statements_known_by_their_text() -> Outcome {
    let (_database, proxy, client) = scene().await?;
    let insert = client.prepare("INSERT INTO rows VALUES ($1)").await?;
    client.execute(&insert, &[&1]).await?;
    client.execute(&insert, &[&2]).await?;
    let counts = proxy.counts();
    let sent = |kind| counts.sent.get(&kind).copied().unwrap_or_default();
    assert_eq!(
        (sent(Frontend::Parse), sent(Frontend::Bind), sent(Frontend::Execute), sent(Frontend::Sync)),
        (1, 2, 2, 3)
    );
    assert_eq!(counts.received.get(&'Z'), Some(&3));
    assert_eq!(proxy.statements().iter().filter(|message| message.text.starts_with("INSERT")).count(), 2);
    Ok(())
}

#[tokio::test]
async fn held_replies_come_one_by_one() -> Outcome {
    let (_database, proxy, client) = scene().await?;
    proxy.hold_replies();
    let (mut one, mut two) = (pin!(client.batch_execute("SELECT 1")), pin!(client.batch_execute("SELECT 2")));
    assert!(poll_immediate(&mut one).await.is_none() && poll_immediate(&mut two).await.is_none());
    proxy.until_held(2).await;
    assert!(poll_immediate(&mut one).await.is_none(), "a held reply arrived");
    proxy.release_one();
    one.await?;
    proxy.until_held(1).await;
    assert!(poll_immediate(&mut two).await.is_none(), "one release let two replies go");
    proxy.release_all();
    two.await?;
    client.batch_execute("SELECT 3").await?;
    Ok(())
}

#[tokio::test]
async fn only_the_reply_that_was_named_is_held() -> Outcome {
    let (database, proxy, client) = scene().await?;
    proxy.hold_replies_to("commit");
    client.batch_execute("BEGIN").await?;
    client.batch_execute("INSERT INTO rows VALUES (1)").await?;
    let sent = proxy.until_sent("COMMIT");
    let mut commit = pin!(client.batch_execute("COMMIT"));
    join(async { assert!(poll_immediate(&mut commit).await.is_none()) }, sent).await;
    proxy.until_held(1).await;
    assert_eq!(rows(&database).await?, 1, "the server has not committed");
    assert!(poll_immediate(&mut commit).await.is_none());
    proxy.release_one();
    commit.await?;
    Ok(())
}

#[tokio::test]
async fn a_gate_is_passed_by_what_comes_after_it_was_made() -> Outcome {
    let (_database, proxy, client) = scene().await?;
    client.batch_execute("SELECT 'same'").await?;
    let mut gate = pin!(proxy.until_sent("same"));
    client.batch_execute("SELECT 'other'").await?;
    assert!(poll_immediate(&mut gate).await.is_none(), "passed by what came before it");
    client.batch_execute("SELECT 'same'").await?;
    gate.await;
    Ok(())
}

#[tokio::test]
async fn a_commit_is_cut_before_after_or_behind_the_server() -> Outcome {
    for (when, kept) in [(When::BeforeForward, 0), (When::AfterForward, 1), (When::AfterReply, 1)] {
        for delayed in [false, true] {
            let (database, proxy, client) = scene().await?;
            if delayed {
                let trigger = "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.1); RETURN NULL; END $$; \
                               CREATE CONSTRAINT TRIGGER late AFTER INSERT ON rows DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()";
                database.client().await?.batch_execute(trigger).await?;
            }
            client.batch_execute("BEGIN; INSERT INTO rows VALUES (1)").await?;
            let cut = proxy.cut(when, "COMMIT");
            let error = client.batch_execute("COMMIT").await.expect_err("an answer came through a cut connection");
            assert!(error.is_closed() || error.code().is_none(), "{error:?}");
            cut.await;
            proxy.until_connections(0).await;
            assert_eq!(rows(&database).await?, kept, "{when:?}, delayed: {delayed}");
            connect(&proxy.url()).await?.batch_execute("COMMIT").await?; // one cut only
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_prepared_statement_is_cut_with_its_whole_request() -> Outcome {
    for (when, kept) in [(When::BeforeForward, 0), (When::AfterForward, 1), (When::AfterReply, 1)] {
        let (database, proxy, client) = scene().await?;
        let insert = client.prepare("INSERT INTO rows VALUES (1)").await?;
        let cut = proxy.cut(when, "insert into rows");
        assert!(client.execute(&insert, &[]).await.is_err());
        cut.await;
        proxy.until_connections(0).await;
        assert_eq!(rows(&database).await?, kept, "{when:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_silent_network_keeps_even_the_end_to_itself() -> Outcome {
    let (database, proxy, client) = scene().await?;
    proxy.go_silent();
    assert_eq!(database.terminate_backends().await?, 1);
    let look = database.client().await?;
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    while look.query_one(others, &[]).await?.get::<_, i64>(0) > 0 {}
    let mut query = pin!(client.batch_execute("SELECT"));
    assert!(poll_immediate(&mut query).await.is_none());
    assert!(!client.is_closed(), "the end came through");
    proxy.speak();
    connect(&proxy.url()).await?.batch_execute("SELECT").await?;
    assert!(poll_immediate(&mut query).await.is_none(), "a connection that lost bytes went on");
    proxy.cut_all();
    assert!(query.await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_delay_is_paid_once_each_way_by_what_is_sent_together() -> Outcome {
    let (_database, proxy, client) = scene().await?;
    let delay = Duration::from_millis(20);
    proxy.delay(delay);
    let began = Instant::now();
    try_join(client.batch_execute("SELECT 1"), client.batch_execute("SELECT 2")).await?;
    let took = began.elapsed();
    assert!(took >= 2 * delay, "{took:?}");
    assert_eq!(proxy.round_trips(), 1);
    Ok(())
}

#[tokio::test]
async fn connections_are_refused_and_taken_again_at_the_same_address() -> Outcome {
    let (database, tcp, client) = scene().await?;
    for proxy in [tcp, Proxy::start_unix(&database.url()).await?] {
        for _ in 0..3 {
            proxy.refuse().await;
            assert!(connect(&proxy.url()).await.is_err());
            proxy.accept().await;
            connect(&proxy.url()).await?.batch_execute("SELECT").await?;
        }
        if !client.is_closed() {
            client.batch_execute("SELECT").await?; // refusing is about new ones
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_cancel_request_passes_though_replies_are_held() -> Outcome {
    let (_database, proxy, client) = scene().await?;
    proxy.hold_replies();
    let sent = proxy.until_sent("pg_sleep");
    let cancel = client.cancel_token();
    let interrupt = async {
        sent.await;
        // The signal can come before the statement has begun, and is lost then.
        let mut held = pin!(proxy.until_held(1));
        while poll_immediate(&mut held).await.is_none() {
            cancel.cancel_query(NoTls).await?;
        }
        proxy.release_all();
        Ok::<_, tokio_postgres::Error>(())
    };
    let (result, interrupted) = join(client.batch_execute("SELECT pg_sleep(600)"), interrupt).await;
    interrupted?;
    assert_eq!(result.expect_err("it slept").code(), Some(&SqlState::QUERY_CANCELED));
    assert!(proxy.counts().sent[&Frontend::CancelRequest] >= 1);
    Ok(())
}

#[tokio::test]
async fn any_message_can_be_named() -> Outcome {
    let (_database, proxy, client) = scene().await?;
    let second = proxy.until_sent(Match::new(|message| message.connection == 2 && message.kind == Frontend::Sync));
    let terminated = proxy.until_sent(Frontend::Terminate);
    let other = connect(&proxy.url()).await?;
    other.prepare("SELECT").await?;
    second.await;
    drop(other);
    terminated.await;
    proxy.until_connections(1).await;
    client.batch_execute("SELECT").await?;
    Ok(())
}

#[tokio::test]
async fn every_poll_of_a_future_is_a_point_to_drop_it_at() -> Outcome {
    let (_database, _proxy, client) = scene().await?;
    for moment in [Moment::AtOnce, Moment::OnWake] {
        for limit in 0.. {
            let work = async { client.query("SELECT 1", &[]).await };
            match PollLimit::new(work, limit, moment).await {
                Polled::Dropped { polls } => assert_eq!(polls, limit),
                Polled::Completed { output, polls } => {
                    assert!(polls > 1 && output?.len() == 1, "{polls} polls");
                    break;
                }
            }
        }
    }
    Ok(())
}
