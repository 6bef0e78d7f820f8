//! A pool with no place free: what a health check says of it, and who may wait.

use std::time::Duration;

use futures_util::FutureExt;
use t2m_db::testing::Proxy;
use t2m_db::{Config, Database, Error, HealthStatus};
use tokio::task::JoinHandle;

use crate::pool_support::{Held, MS, hold, ping, quiet, still, through_a_proxy, timed, until};
use crate::support::{Setup, batch, setup_with, table};

type Settings = fn(Config) -> Config;

fn scope(db: &Database) -> JoinHandle<Result<(), Error>> {
    let db = db.clone();
    tokio::spawn(async move { ping(&db).await })
}

/// Of three places two are lent, and on the third a connection is being opened for a scope.
async fn crowded(settings: Settings) -> (Setup, Proxy, [Held; 2], JoinHandle<Result<(), Error>>) {
    let (setup, proxy) = through_a_proxy(|config| settings(config.max_size(3))).await;
    let held = [hold(&setup.db, "one").await, hold(&setup.db, "two").await];
    proxy.hold_replies();
    let third = scope(&setup.db);
    proxy.until_held(1).await;
    (setup, proxy, held, third)
}

#[tokio::test]
async fn a_health_check_that_gets_no_connection_of_a_full_pool_says_full() {
    let cases: [(&str, Settings); 3] = [
        ("waits as long as a check may", |config| config),
        ("waits as long as any scope may", |config| config.checkout_timeout(Duration::from_secs(1))),
        ("is refused", |config| config.max_waiting(0)),
    ];
    for (case, settings) in cases {
        let (setup, proxy, held, third) = crowded(settings).await;
        let (health, took) = timed(setup.db.health()).await;
        assert_eq!(health.status, HealthStatus::Degraded, "{case}: {health:?}");
        assert!(health.reason.as_ref().unwrap().contains("full"), "{case}: {health:?}");
        assert!(took < Duration::from_secs(4), "{case}: {took:?}");
        proxy.release_all();
        let _ = third.await.unwrap();
        for one in held {
            one.end().await.unwrap();
        }
        assert_eq!(setup.db.health().await.status, HealthStatus::Healthy, "{case}");
    }
}

#[tokio::test]
async fn a_scope_whose_connection_is_being_opened_takes_no_place_in_the_queue() {
    let (database, _client) = table().await;
    let proxy = Proxy::start(&database.url()).await.unwrap();
    let config = quiet(&format!("{}?sslmode=disable", proxy.url())).max_size(2).max_waiting(1);
    let db = Database::connect_lazy(config).unwrap();
    proxy.hold_replies();
    let opening = [scope(&db), scope(&db)];
    proxy.until_held(2).await;
    let third = scope(&db);
    until("the third waits too", || db.stats().waiting == 3).await;
    assert!(matches!(ping(&db).now_or_never(), Some(Err(Error::Overloaded { .. }))), "one may wait, not two");
    proxy.release_all();
    for scope in opening.into_iter().chain([third]) {
        scope.await.unwrap().unwrap();
    }
    assert_eq!((db.stats().shed, db.stats().waiting), (1, 0));
}

#[tokio::test]
async fn nobody_is_refused_for_a_connection_that_the_pool_looks_after() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(1).max_waiting(0).keepalive(20 * MS)).await;
    // Behind its answer nothing of the login is on its way any more.
    ping(&setup.db).await.unwrap();
    proxy.hold_replies();
    // To the keepalive's question.
    proxy.until_held(1).await;
    let first = scope(&setup.db);
    until("it waits", || setup.db.stats().waiting == 1 || first.is_finished()).await;
    // The place that comes back is the first one's.
    assert!(matches!(ping(&setup.db).now_or_never(), Some(Err(Error::Overloaded { .. }))));
    proxy.release_all();
    first.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_scope_inside_of_a_scope_is_told_so_although_a_health_check_stands_in_the_queue() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(2)).await;
    let nested = setup.db.transaction("outer").run(async |tx| {
        batch(tx, "SELECT 1").await?;
        proxy.hold_replies();
        let other = scope(&setup.db);
        proxy.until_held(1).await;
        let check = tokio::spawn({
            let db = setup.db.clone();
            async move { db.health().await }
        });
        until("the check stands in the queue", || setup.db.stats().waiting == 2).await;
        let told = ping(&setup.db).now_or_never();
        proxy.release_all();
        check.await.unwrap();
        other.await.unwrap()?;
        told.expect("it waits for itself")
    });
    let error = nested.await.unwrap_err();
    assert!(matches!(error, Error::NestedCheckout { .. }), "{error:?}");
}

#[tokio::test]
async fn a_refusal_says_who_holds_what_and_what_to_try() {
    let setup = setup_with(|config| config.max_size(1).max_waiting(0).health_interval(None)).await;
    let held = hold(&setup.db, "encode").await;
    let error = ping(&setup.db).await.unwrap_err();
    insta::assert_snapshot!(still(&error.to_string()), @r#"
    "ping" (tests/pool_support.rs:[line]) was refused a connection after [time], as many others wait as `max_waiting` allows: 1 of 1 are out, 0 others wait
      held by "encode" (tests/pool_support.rs:[line]) for [time], idle in transaction, 1 statements, backend [pid]
      try: answer "busy" and come again later; end the longest holders, raise `max_size`, or raise `max_waiting` if waiting is better than a no
    "#);
    held.end().await.unwrap();
}
