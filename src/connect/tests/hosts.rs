//! The list of hosts, its bounds in time, and what is said to each.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use super::fake::{Fake, Mood};
use super::*;

/// A port where nobody listens.
async fn nobody() -> u16 {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

fn url(ports: &[u16], rest: &str) -> String {
    let hosts: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("postgres://app@{}/t2m{rest}", hosts.join(","))
}

#[tokio::test]
async fn hosts_are_tried_in_turn() {
    let (dead, starting) =
        (nobody().await, Fake::start(Mood::Refuses("57P03", "the database system is starting up")).await);
    let good = Fake::start(Mood::Primary).await;
    let opened = connector(&url(&[dead, starting.port, good.port], "")).connect().await.unwrap();
    assert_eq!(opened.endpoint, format!("127.0.0.1:{}", good.port));
    assert_eq!(opened.driver.parameter("server_version"), Some("15.99 (Fake)"));
}

#[tokio::test]
async fn a_host_that_hangs_leaves_time_for_the_next() {
    let (silent, good) = (Fake::start(Mood::Silent).await, Fake::start(Mood::Primary).await);
    let config = Config::from_url(&url(&[silent.port, good.port], "")).unwrap();
    let connector = Connector::new(&config.connect_timeout(Duration::from_secs(2))).unwrap();
    let begun = Instant::now();
    let opened = connector.connect().await.unwrap();
    assert_eq!(opened.endpoint, format!("127.0.0.1:{}", good.port));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn the_whole_is_bounded() {
    let (one, two) = (Fake::start(Mood::Silent).await, Fake::start(Mood::Silent).await);
    let config = Config::from_url(&url(&[one.port, two.port], "?sslmode=disable")).unwrap();
    let connector = Connector::new(&config.connect_timeout(Duration::from_millis(200))).unwrap();
    let begun = Instant::now();
    let error = failure(&connector).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(error.phase(), Phase::Timeout);
    assert!(!error.is_fatal());
    assert!(error.to_string().contains("waiting for the server to start the session"), "{error}");
    assert_eq!(error.endpoints().count(), 2);
}

#[tokio::test]
async fn a_wrong_password_ends_the_list() {
    let strict = Fake::start(Mood::Refuses("28P01", "password authentication failed for user \"app\"")).await;
    let other = Fake::start(Mood::Primary).await;
    let error = failure(&connector(&url(&[strict.port, other.port], ""))).await;
    assert!(error.is_fatal());
    assert_eq!((error.phase(), error.sqlstate()), (Phase::Authenticate, Some("28P01")));
    assert_eq!(other.startups().len(), 0, "a second server was bothered with the same password");
}

#[tokio::test]
async fn session_attributes_choose_the_server() {
    let (primary, standby, proxy) =
        (Fake::start(Mood::Primary).await, Fake::start(Mood::Standby).await, Fake::start(Mood::Proxy).await);
    let (p, s, x) = (primary.port, standby.port, proxy.port);
    let cases: [(&[u16], &str, Option<u16>); 13] = [
        (&[s, p], "any", Some(s)),
        (&[x], "any", Some(x)),
        (&[s, p], "primary", Some(p)),
        (&[s, p], "read-write", Some(p)),
        (&[p, s], "standby", Some(s)),
        (&[p, s], "read-only", Some(s)),
        (&[p, s], "prefer-standby", Some(s)),
        (&[p], "prefer-standby", Some(p)),
        (&[x, s], "prefer-standby", Some(s)),
        (&[x], "prefer-standby", Some(x)),
        (&[s, x], "primary", None),
        (&[p], "standby", None),
        (&[x], "read-only", None),
    ];
    for (ports, wanted, expected) in cases {
        let connector = connector(&url(ports, &format!("?target_session_attrs={wanted}")));
        let chosen = connector.connect().await.ok().map(|opened| opened.endpoint);
        assert_eq!(chosen, expected.map(|port| format!("127.0.0.1:{port}")), "{wanted} of {ports:?}");
    }
    let error = failure(&connector(&url(&[s], "?target_session_attrs=primary"))).await;
    assert_eq!(error.phase(), Phase::SessionAttributes);
    assert!(!error.is_fatal(), "a standby may be promoted");
}

#[tokio::test]
async fn a_silent_host_leaves_time_for_the_spare_one() {
    let (primary, silent) = (Fake::start(Mood::Primary).await, Fake::start(Mood::Silent).await);
    let config = Config::from_url(&url(&[primary.port, silent.port], "?target_session_attrs=prefer-standby")).unwrap();
    let connector = Connector::new(&config.connect_timeout(Duration::from_secs(2))).unwrap();
    let begun = Instant::now();
    let opened = connector.connect().await.unwrap();
    assert_eq!(opened.endpoint, format!("127.0.0.1:{}", primary.port));
    assert!(begun.elapsed() < Duration::from_millis(1_700), "none is left to set it up: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_session_that_is_not_read_only_by_default_is_refused() {
    let (forgetful, other) = (Fake::start(Mood::Forgetful).await, Fake::start(Mood::Primary).await);
    let error = failure(&connector(&url(&[forgetful.port, other.port], ""))).await;
    assert_eq!((error.phase(), error.is_fatal()), (Phase::Startup, true));
    let told = error.to_string();
    assert!(told.contains("default_transaction_read_only") && told.contains("ignore_startup_parameters"), "{told}");
}

#[tokio::test]
async fn random_order_reaches_every_host() {
    let (one, two) = (Fake::start(Mood::Primary).await, Fake::start(Mood::Primary).await);
    let connector = connector(&url(&[one.port, two.port], "?load_balance_hosts=random"));
    for _ in 0..64 {
        connector.connect().await.unwrap();
    }
    assert!(!one.startups().is_empty() && !two.startups().is_empty());
}

#[tokio::test]
async fn the_first_message_says_it_all() {
    let fake = Fake::start(Mood::Primary).await;
    let config = Config::from_url(&url(&[fake.port], "?options=-c%20work_mem%3D8MB")).unwrap();
    let connector = Connector::new(&config.application_name("shop")).unwrap();
    connector.connect().await.unwrap();
    let startup = &fake.startups()[0];
    assert_eq!(startup["user"], "app");
    assert_eq!(startup["database"], "t2m");
    assert_eq!(startup["application_name"], "shop");
    assert_eq!(startup["client_encoding"], "UTF8");
    assert_eq!(
        startup["options"],
        "-c work_mem=8MB -c default_transaction_read_only=on -c TimeZone=UTC \
         -c client_connection_check_interval=1000 -c idle_in_transaction_session_timeout=60000"
    );
}

#[tokio::test]
async fn each_connection_asks_for_its_password() {
    let fake = Fake::start(Mood::Primary).await;
    let asked = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&asked);
    let config = Config::from_url(&url(&[fake.port], "")).unwrap().password_provider(move || {
        counter.fetch_add(1, Relaxed);
        async { Ok::<_, io::Error>("hunter2".to_owned()) }
    });
    assert!(!format!("{config:?}").contains("hunter2"));
    let connector = Connector::new(&config).unwrap();
    for _ in 0..3 {
        connector.connect().await.unwrap();
    }
    assert_eq!(asked.load(Relaxed), 3);
}

/// An error whose reason is in its source.
#[derive(Debug, thiserror::Error)]
#[error("the vault is sealed")]
struct Sealed(#[source] io::Error);

#[tokio::test]
async fn a_provider_that_fails_or_hangs_is_named() {
    let fake = Fake::start(Mood::Primary).await;
    let config = || Config::from_url(&url(&[fake.port], "")).unwrap().connect_timeout(Duration::from_millis(100));
    let fails = config().password_provider(async || Err::<String, _>(Sealed(io::Error::other("the seal is broken"))));
    let error = failure(&Connector::new(&fails).unwrap()).await;
    assert_eq!((error.phase(), error.is_fatal()), (Phase::PasswordProvider, false));
    let told = error.to_string();
    assert!(told.ends_with("the password provider failed: the vault is sealed: the seal is broken"), "{told}");
    assert!(std::error::Error::source(&error).is_none(), "it would be told twice");

    let hangs = config().password_provider(std::future::pending::<Result<String, io::Error>>);
    let error = failure(&Connector::new(&hangs).unwrap()).await;
    assert_eq!(error.phase(), Phase::Timeout);
    assert!(error.to_string().contains("asking the password provider"), "{error}");
    assert_eq!(fake.startups().len(), 0);
}

#[tokio::test]
async fn a_cancel_ends_when_the_server_has_sent_the_signal() {
    let fake = Fake::start(Mood::Primary).await;
    let opened = connector(&url(&[fake.port], "")).connect().await.unwrap();
    let canceller = opened.canceller.clone();
    let cancelling = tokio::spawn(async move { canceller.cancel().await });
    assert_eq!(fake.cancelled().await, (7, 9));
    // Whatever it could do without the server's answer it has done by now.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!cancelling.is_finished(), "the signal may still hit a later statement");
    fake.answer_cancel();
    cancelling.await.unwrap().unwrap();
}
