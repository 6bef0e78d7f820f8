//! Opening connections: what an attempt that is given up leaves behind, and what is said of one that fails.

use std::time::Duration;

use t2m_db::testing::Proxy;
use t2m_db::{Config, Database, Error};

use crate::pool_support::{MS, ping, quiet, served, timed, until};
use crate::support::table;

/// The first question after the login.
const QUESTION: &str = "SELECT system_identifier";

fn through(proxy: &Proxy) -> Config {
    quiet(&format!("{}?sslmode=disable", proxy.url())).max_size(1).cleanup_timeout(200 * MS)
}

#[tokio::test]
async fn an_attempt_given_up_after_the_login_keeps_its_place_until_its_session_is_over() {
    let (database, _client) = table().await;
    let proxy = Proxy::start(&database.url()).await.unwrap();
    let config = through(&proxy).connect_timeout(500 * MS).checkout_timeout(Duration::from_secs(2));
    let db = Database::connect_lazy(config).unwrap();
    proxy.hold_replies_to(QUESTION);
    let scope = tokio::spawn({
        let db = db.clone();
        async move { ping(&db).await }
    });
    let look = until("it gives up", || {
        assert!(db.stats().size <= 1, "more sessions than `max_size`");
        scope.is_finished()
    });
    look.await;
    let error = scope.await.unwrap().unwrap_err();
    let Error::CheckoutTimeout(told) = &error else { panic!("{error:?}") };
    let endpoint = proxy.url();
    let endpoint = endpoint.split(['@', '/']).find(|part| part.starts_with("127.0.0.1:")).unwrap();
    assert!(told.connect_failures.iter().all(|one| one.contains(endpoint)), "it names the host: {told:?}");
    until("its session is over", || db.stats().size == 0).await;
    proxy.release_all();
    served(&db).await;
    assert_eq!((db.stats().opened, db.stats().size), (1, 1));
}

#[tokio::test]
async fn closing_ends_an_attempt_that_waits_for_its_first_answer() {
    let (database, _client) = table().await;
    let proxy = Proxy::start(&database.url()).await.unwrap();
    let db = Database::connect_lazy(through(&proxy).connect_timeout(Duration::from_secs(60))).unwrap();
    proxy.hold_replies_to(QUESTION);
    let scope = tokio::spawn({
        let db = db.clone();
        async move { ping(&db).await }
    });
    proxy.until_held(1).await;
    proxy.go_silent();
    assert_eq!(db.stats().size, 1);
    timed(db.close(Duration::ZERO)).await;
    until("its session is over", || db.stats().size == 0).await;
    assert!(matches!(scope.await.unwrap(), Err(Error::Closed { .. })));
}

#[tokio::test]
async fn the_first_scope_of_a_lazy_pool_opens_the_one_connection_that_is_kept() {
    let (database, _client) = table().await;
    let proxy = Proxy::start(&database.url()).await.unwrap();
    // The keeper looks every ten milliseconds.
    let db = Database::connect_lazy(through(&proxy).max_size(4).min_idle(1).leak_threshold(40 * MS)).unwrap();
    proxy.hold_replies();
    let scope = tokio::spawn({
        let db = db.clone();
        async move { ping(&db).await }
    });
    proxy.until_held(1).await;
    let _ = tokio::time::timeout(100 * MS, std::future::pending::<()>()).await;
    assert_eq!(proxy.counts().connections, 1, "the keeper opens one beside the scope's");
    proxy.release_all();
    scope.await.unwrap().unwrap();
    assert_eq!(db.stats().opened, 1);
}

#[tokio::test]
async fn what_a_password_provider_says_is_told_wherever_connecting_is() {
    let database = t2m_db::testing::empty_database().await;
    let provider = || async { Err::<String, _>("the vault is sealed") };
    let config = quiet(&database.url()).checkout_timeout(Duration::from_secs(1)).password_provider(provider);
    let refused = Database::connect(config.clone()).await.map(drop).unwrap_err();
    let db = Database::connect_lazy(config).unwrap();
    let later = ping(&db).await.unwrap_err();
    let health = db.health().await.reason.unwrap();
    for told in [refused.to_string(), later.to_string(), health] {
        assert!(told.contains("the password provider failed: the vault is sealed"), "{told}");
    }
}
