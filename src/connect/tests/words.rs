//! What an error says, and whether it says to try again.

use std::cell::RefCell;
use std::io;
use std::sync::Once;

use super::fake::{Fake, Mood};
use super::*;
use crate::config::{Host, Place};

/// The error without what differs from run to run.
async fn said(mood: Mood, rest: &str) -> (String, bool) {
    let fake = Fake::start(mood).await;
    let connector = connector(&format!("postgres://app:hunter2@127.0.0.1:{}/t2m{rest}", fake.port));
    let error = failure(&connector).await;
    let text = error.to_string().replace(&fake.port.to_string(), "PORT");
    assert!(!format!("{error:?} {error} {connector:?}").contains("hunter2"));
    let text = text.strip_prefix("cannot connect to 127.0.0.1:PORT (user app, database t2m): ").unwrap_or(&text);
    (text.to_owned(), error.is_fatal())
}

#[tokio::test]
async fn refusals_have_the_servers_words_and_a_verdict() {
    let cases: [(&str, &str, &str, bool); 10] = [
        (
            "28P01",
            "password authentication failed",
            "login refused: password authentication failed (28P01); is the \
          password right, and for this user and server?",
            true,
        ),
        (
            "28000",
            "no pg_hba.conf entry",
            "login refused: no pg_hba.conf entry (28000); does the role exist, and does \
          pg_hba.conf let it in from here?",
            true,
        ),
        (
            "3D000",
            "database \"t2m\" does not exist",
            "no session: database \"t2m\" does not exist (3D000); create the \
          database, or correct its name in the URL",
            true,
        ),
        (
            "42501",
            "permission denied for database",
            "no session: permission denied for database (42501); may the role \
          CONNECT to that database?",
            true,
        ),
        (
            "22023",
            "invalid value for parameter",
            "no session: invalid value for parameter (22023); see `options` in the \
          URL, and client_connection_check_interval (off for a Windows server)",
            true,
        ),
        (
            "53300",
            "sorry, too many clients already",
            "no session: sorry, too many clients already (53300); \
          pg_stat_activity says who holds the connections; the limit is the server's or the role's",
            false,
        ),
        (
            "57P03",
            "the database system is starting up",
            "no session: the database system is starting up (57P03); the \
          server is starting or stopping",
            false,
        ),
        (
            "57P01",
            "terminating connection",
            "no session: terminating connection (57P01); the server is stopping",
            false,
        ),
        ("57P02", "crash", "no session: crash (57P02); the server is stopping", false),
        ("XX000", "cache lookup failed", "no session: cache lookup failed (XX000)", false),
    ];
    for (sqlstate, message, expected, fatal) in cases {
        assert_eq!(said(Mood::Refuses(sqlstate, message), "").await, (expected.to_owned(), fatal));
    }
}

#[tokio::test]
async fn servers_without_tls_are_told_apart() {
    let fatal = |text: &str| (text.to_owned(), true);
    let hint = "set ssl = on at the server, or sslmode=disable where the network is trusted";
    assert_eq!(
        said(Mood::Primary, "?sslmode=require").await,
        fatal(&format!("no TLS: the server does not support TLS but sslmode=require; {hint}"))
    );
    assert_eq!(
        said(Mood::Says(b'H'), "?sslmode=require").await,
        fatal("no TLS: what answers there does not speak PostgreSQL's protocol; is that port PostgreSQL's?")
    );
    let (text, fatal) = said(Mood::Says(b'E'), "?sslmode=require").await;
    assert!(text.starts_with("no TLS: the server answered the request for TLS with an error") && !fatal, "{text}");
    let (text, fatal) = said(Mood::Curt, "?sslmode=require").await;
    assert!(text.starts_with("no TLS: ") && !fatal, "{text}");
}

#[tokio::test]
async fn a_server_that_hangs_up_may_be_tried_again() {
    let (text, fatal) = said(Mood::Curt, "?sslmode=disable").await;
    assert!(text.starts_with("no session: ") && !fatal, "{text}");
}

#[tokio::test]
async fn logins_that_cannot_work_are_not_repeated() {
    let fake = Fake::start(Mood::Asks(&[0, 0, 0, 3])).await;
    let error = failure(&connector(&format!("postgres://app@127.0.0.1:{}", fake.port))).await;
    assert!(error.is_fatal());
    let text = error.to_string();
    assert!(
        text.contains(
            "(user app, database app): login refused: the server asks for a password and there is none; put one"
        ),
        "{text}"
    );

    let gss = said(Mood::Asks(&[0, 0, 0, 7]), "").await;
    assert_eq!(gss, ("login refused: unsupported authentication method".to_owned(), true));
}

#[tokio::test]
async fn nobody_there_is_told_with_what_to_look_at() {
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let error = failure(&connector(&format!("postgres://app@127.0.0.1:{port},%2Fnonexistent:7/t2m"))).await;
    assert_eq!(
        error.to_string().replace(&port.to_string(), "PORT"),
        "cannot connect to any of 2 addresses (user app, database t2m): 127.0.0.1:PORT: no connection: Connection refused \
         (os error 111); /nonexistent/.s.PGSQL.7: no connection: No such file or directory (os error 2); is PostgreSQL \
         running here, and does unix_socket_directories hold this one?"
    );
    assert!(!error.is_fatal());
    assert_eq!(error.phase(), Phase::Connect);
}

#[tokio::test]
async fn a_name_that_nobody_knows_may_be_known_later() {
    let error = failure(&connector("postgres://app@no-such-host.invalid/t2m")).await;
    assert_eq!((error.phase(), error.is_fatal()), (Phase::Resolve, false));
    assert!(
        error.to_string().contains("no-such-host.invalid:5432 (user app, database t2m): the name was not resolved: "),
        "{error}"
    );
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let refused = |url: &str| Connector::new(&Config::from_url(url).unwrap()).err().unwrap().to_string();
    assert_eq!(
        refused("postgres://h?sslmode=verify-full&sslrootcert=/nonexistent/ca.pem"),
        "setting `sslrootcert` is /nonexistent/ca.pem, allowed is a PEM file with a certificate: No such file or directory \
         (os error 2)"
    );
    assert_eq!(
        refused("postgres://h?sslmode=verify-full&sslrootcert=/dev/null"),
        "setting `sslrootcert` is /dev/null, allowed is a PEM file with a certificate: it has none"
    );
}

#[tokio::test]
async fn a_password_on_the_open_network_is_warned_of_once() {
    let connector = connector("postgres://app:hunter2@db.internal/t2m");
    let place = Place { host: Host::Tcp { name: "db.internal".into(), addr: Some([10, 1, 2, 3].into()) }, port: 5432 };
    let route = crate::connect::hosts::routes(&place, Instant::now()).await.unwrap().remove(0);
    // One for the process, each thread with a text of its own: of one for a single thread events are lost, because whether a
    // place in the code is of interest is remembered for all threads.
    LISTENS.call_once(|| {
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
    });
    LOG.take();
    connector.0.warn_of_plain_password(&route);
    connector.0.warn_of_plain_password(&route);
    let text = String::from_utf8(LOG.take()).unwrap();
    assert_eq!(text.matches(" WARN ").count(), 1, "{text}");
    assert!(text.contains("endpoint=db.internal:5432 (10.1.2.3)") && text.contains("unencrypted"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

thread_local! {
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// There is a subscriber.
static LISTENS: Once = Once::new();

struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.with_borrow_mut(|log| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
