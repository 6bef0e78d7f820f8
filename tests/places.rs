//! Migrations take one of the pool's places, as any scope does, and give it back when their session is over.

use std::time::Duration;

use t2m_db::testing::Proxy;
use t2m_db::{Config, Database, Error};

use crate::pool_support::{ping, quiet, timed, until};
use crate::support::{batch, table};

async fn migrated(settings: impl FnOnce(Config) -> Config) -> (Database, t2m_db::testing::TestDatabase) {
    let database = t2m_db::testing::database().await;
    let db = Database::connect(settings(quiet(&database.url()))).await.unwrap();
    (db, database)
}

#[tokio::test]
async fn migrations_are_not_refused_where_nobody_waits_and_their_session_is_counted() {
    let (db, _database) = migrated(|config| config.max_size(2).max_waiting(0)).await;
    for _ in 0..2 {
        assert_eq!(db.migrate().await.unwrap(), [""; 0]);
    }
    until("all over", || db.stats().size == db.stats().idle).await;
    let stats = db.stats();
    assert_eq!(stats.opened, stats.closed.total() + stats.size as u64, "{stats:#?}");
}

#[tokio::test]
async fn migrations_inside_of_a_scope_on_a_full_pool_are_told_so() {
    let (db, _database) = migrated(|config| config.max_size(1).checkout_timeout(Duration::from_secs(5))).await;
    let scope = db.transaction("outer").run(async |tx| {
        batch(tx, "SELECT 1").await?;
        db.migrate().await
    });
    let error = scope.await.unwrap_err();
    assert!(matches!(error, Error::NestedCheckout { .. }), "{error:?}");
    db.migrate().await.unwrap();
}

#[tokio::test]
async fn migrations_dropped_as_they_connect_keep_their_place_until_the_session_is_over() {
    let (database, _client) = table().await;
    let proxy = Proxy::start(&database.url()).await.unwrap();
    let db = Database::connect_lazy(quiet(&format!("{}?sslmode=disable", proxy.url())).max_size(1)).unwrap();
    proxy.hold_replies();
    let migrating = tokio::spawn({
        let db = db.clone();
        async move { db.migrate().await }
    });
    proxy.until_held(1).await;
    migrating.abort();
    assert!(migrating.await.unwrap_err().is_cancelled());
    let scope = tokio::spawn({
        let db = db.clone();
        async move { ping(&db).await }
    });
    until("it waits", || db.stats().waiting == 1).await;
    assert_eq!(proxy.counts().connections, 1);
    proxy.release_all();
    timed(scope).await.0.unwrap().unwrap();
    let stats = db.stats();
    assert_eq!((stats.opened, stats.closed.total(), stats.size), (2, 1, 1), "{stats:#?}");
    db.close(Duration::ZERO).await;
}
