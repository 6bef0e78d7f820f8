//! Being woken: at once, by what was committed, past a restart, and for as long as somebody wants to know.

use std::time::{Duration, Instant};

use t2m_db::testing::{Server, Stop};
use t2m_db::{Config, Database, Error, Wake, jobs, queue};

use crate::domain_support::job;
use crate::support::{LONG, setup};

const LISTENERS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'";

async fn listeners(client: &tokio_postgres::Client) -> i64 {
    client.query_one(LISTENERS, &[]).await.unwrap().get(0)
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.unwrap()
}

#[tokio::test]
async fn what_is_committed_wakes_with_its_words_and_what_is_rolled_back_does_not() {
    let setup = setup(1).await;
    let channel = "a \"channel\"";
    let mut listener = setup.db.listen(channel).await.unwrap();
    setup.client.batch_execute(r#"BEGIN; NOTIFY "a ""channel""", 'undone'; ROLLBACK"#).await.unwrap();
    setup.client.batch_execute(r#"NOTIFY "another", 'elsewhere'; NOTIFY "a ""channel""", 'done'"#).await.unwrap();
    assert_eq!(within(listener.next()).await, Some(Wake::Notified { payload: "done".into() }));
    // It stands beside the pool: the only place is free.
    setup.db.with_connection(async |_| Ok::<_, Error>(())).await.unwrap();
    for bad in ["", &"x".repeat(64), "a\0b"] {
        assert!(matches!(setup.db.listen(bad).await, Err(Error::Invalid { field: "channel", .. })));
    }
}

#[tokio::test]
async fn its_session_goes_with_it_and_with_the_database() {
    let setup = setup(1).await;
    let (dropped, mut kept) = (setup.db.listen("a").await.unwrap(), setup.db.listen("a").await.unwrap());
    assert_eq!(listeners(&setup.client).await, 2);
    drop(dropped);
    within(async { while listeners(&setup.client).await > 1 {} }).await;
    setup.db.close(Duration::ZERO).await;
    assert_eq!(listeners(&setup.client).await, 0, "close waits for it");
    assert_eq!(within(kept.next()).await, None);
    assert!(matches!(setup.db.listen("a").await, Err(Error::Closed { .. })));
}

#[tokio::test]
async fn one_that_does_not_fetch_is_told_that_it_missed_something() {
    let setup = setup(1).await;
    let mut listener = setup.db.listen("a").await.unwrap();
    setup.client.batch_execute("SELECT pg_notify('a', n::text) FROM generate_series(1, 2000) n").await.unwrap();
    setup.client.batch_execute("NOTIFY a, 'last'").await.unwrap();
    let mut wakes = 0;
    within(async {
        while let Some(Wake::Notified { .. }) = listener.next().await {
            wakes += 1;
        }
    })
    .await;
    assert!((1..2_001).contains(&wakes), "{wakes}, then Resumed");
}

#[tokio::test]
async fn a_lost_session_is_opened_anew_and_wakes_once_by_itself() {
    let server = Server::start().await.unwrap();
    let database = server.empty_database().await.unwrap();
    let db = Database::connect(Config::from_url(&database.url()).unwrap().max_size(1).min_idle(0)).await.unwrap();
    let mut listener = db.listen("a").await.unwrap();
    server.restart(Stop::Immediate).await.unwrap();
    assert_eq!(within(listener.next()).await, Some(Wake::Resumed));
    let client = database.client().await.unwrap();
    client.batch_execute("NOTIFY a, 'again'").await.unwrap();
    assert_eq!(within(listener.next()).await, Some(Wake::Notified { payload: "again".into() }));
}

#[tokio::test]
async fn an_idle_worker_reacts_at_once_and_sleeps_until_something_is_due() {
    let database = t2m_db::testing::database().await;
    let db = Database::connect(Config::from_url(&database.url()).unwrap().min_idle(0)).await.unwrap();
    let new = t2m_db::users::NewUser::new("c1");
    let owner = db.with_transaction(async |tx| t2m_db::users::create(tx, &new).await).await.unwrap().id;
    let due = async || db.with_connection(async |conn| queue::due_in(conn).await).await.unwrap();
    let mut listener = db.listen(queue::CHANNEL).await.unwrap();
    assert_eq!(due().await, None);
    let (worker, lease) = (queue::Worker::new("w", None).unwrap(), Duration::from_secs(60));
    let mut quickest = Duration::MAX;
    for n in 0..5 {
        db.with_transaction(async |tx| jobs::create_and_enqueue(tx, owner, &job("a")).await).await.unwrap();
        let committed = Instant::now();
        assert!(within(listener.next()).await.is_some());
        quickest = quickest.min(committed.elapsed());
        assert_eq!(due().await, Some(Duration::ZERO), "{n}");
        let claims = db
            .with_transaction(async |tx| queue::claim(tx, &worker, queue::BatchSize::ONE, lease).await)
            .await
            .unwrap();
        assert_eq!(claims.len(), 1);
        let wait = due().await.unwrap();
        assert!(wait > lease / 2 && wait <= lease, "{wait:?}");
    }
    assert!(quickest < Duration::from_millis(50), "{quickest:?}");
}
