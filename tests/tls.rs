//! TLS: each `sslmode` with each certificate that it must accept or refuse, by libpq's rules.
//!
//! With a worker thread, so that an attempt in the background goes on while the server's end is waited for: the server waits
//! a minute for a client that was promised TLS and stays silent.

use std::time::Duration;

use diesel::sql_types::Text;
use diesel::{QueryableByName, sql_query};
use diesel_async::RunQueryDsl;
use t2m_db::testing::{Server, Stop, Tls};
use t2m_db::{Config, ConnectError, ConnectPhase, Database, Error};

use crate::pool_support::{Log, hold, quiet};

/// A host that the good certificate is for: by name and by address.
const HOSTS: [&str; 2] = ["localhost", "127.0.0.1"];

#[derive(QueryableByName)]
struct Seen {
    #[diesel(sql_type = Text)]
    encryption: String,
}

async fn server(tls: Tls) -> Server {
    Server::builder().tls(tls).start().await.expect("a server with TLS")
}

/// `parameters` with the server's own files in place of `<ca>`, `<cert>` and `<key>`.
fn url(server: &Server, login: &str, host: &str, parameters: &str) -> String {
    let files = server.certificates().expect("a server with TLS");
    let parameters = [("<ca>", &files.authority), ("<cert>", &files.client_certificate), ("<key>", &files.client_key)]
        .into_iter()
        .fold(parameters.to_owned(), |text, (name, file)| text.replace(name, &file.to_string_lossy()));
    format!("postgres://{login}@{host}:{}/postgres?{parameters}", server.port().expect("a private server"))
}

/// What the server says of the session's encryption, or why there is no session.
async fn opened(url: &str) -> Result<String, ConnectError> {
    let db = match Database::connect(Config::from_url(url).expect("a URL")).await {
        Ok(db) => db,
        Err(Error::Connect(error)) => {
            return Err(error.downcast_ref::<ConnectError>().expect("what opening says").clone());
        }
        Err(error) => panic!("{url}: {error}"),
    };
    let seen: Result<Seen, Error> = db
        .with_connection(async |conn| {
            let sql = "SELECT coalesce(version, 'none') AS encryption FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
            Ok(sql_query(sql).get_result(conn).await?)
        })
        .await;
    db.close(Duration::from_secs(5)).await;
    Ok(seen.expect("a row of pg_stat_ssl").encryption)
}

async fn outcome(server: &Server, host: &str, parameters: &str) -> Result<String, ConnectError> {
    opened(&url(server, "postgres", host, parameters)).await
}

#[track_caller]
fn refused(outcome: Result<String, ConnectError>, said: &str) {
    let error = outcome.expect_err("a session on a server that is not to be trusted");
    assert_eq!((error.phase(), error.is_fatal()), (ConnectPhase::Tls, true), "{error}");
    assert!(error.to_string().contains(said), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_good_certificate_is_accepted_in_every_mode() {
    let server = server(Tls::good()).await;
    for host in HOSTS {
        for parameters in [
            "", // prefer
            "sslmode=prefer",
            "sslmode=prefer&sslrootcert=<ca>",
            "sslmode=require",
            "sslmode=require&sslrootcert=<ca>",
            "sslmode=verify-ca&sslrootcert=<ca>",
            "sslmode=verify-full&sslrootcert=<ca>",
        ] {
            assert_eq!(outcome(&server, host, parameters).await.unwrap(), "TLSv1.3", "{host} {parameters}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_certificate_for_another_name_is_refused_by_verify_full_only() {
    let server = server(Tls::wrong_name()).await;
    for host in HOSTS {
        for parameters in ["sslmode=require", "sslmode=require&sslrootcert=<ca>", "sslmode=verify-ca&sslrootcert=<ca>"]
        {
            assert_eq!(outcome(&server, host, parameters).await.unwrap(), "TLSv1.3", "{host} {parameters}");
        }
        let full = outcome(&server, host, "sslmode=verify-full&sslrootcert=<ca>").await;
        refused(full, &format!("the server's certificate is not for the name {host} but for "));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_certificate_of_an_unknown_issuer_is_refused_wherever_there_are_roots() {
    let server = server(Tls::unknown_issuer()).await;
    assert_eq!(outcome(&server, "localhost", "sslmode=require").await.unwrap(), "TLSv1.3");
    for mode in ["require", "verify-ca", "verify-full"] {
        let outcome = outcome(&server, "localhost", &format!("sslmode={mode}&sslrootcert=<ca>")).await;
        refused(outcome, "the server's certificate is not issued by a CA of sslrootcert");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_expired_certificate_is_refused_wherever_there_are_roots() {
    let server = server(Tls::expired()).await;
    assert_eq!(outcome(&server, "localhost", "sslmode=require").await.unwrap(), "TLSv1.3");
    for mode in ["require", "verify-ca", "verify-full"] {
        let outcome = outcome(&server, "localhost", &format!("sslmode={mode}&sslrootcert=<ca>")).await;
        refused(outcome, "the server's certificate has expired");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_systems_roots_know_nothing_of_our_ca() {
    let server = server(Tls::good()).await;
    let url = url(&server, "postgres", "localhost", "sslrootcert=system");
    match Database::connect(Config::from_url(&url).unwrap()).await.unwrap_err() {
        Error::Connect(error) => assert!(error.to_string().contains("not issued by a CA of sslrootcert"), "{error}"),
        error => assert!(error.to_string().contains("this system has no roots"), "{error}"),
    }
}

/// The child of the test below: which roots are the system's is said by its environment.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "run by the_systems_roots_are_trusted"]
async fn child_that_trusts_its_system() {
    println!("{:?}", opened(&std::env::var("TRUSTED_URL").unwrap()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_systems_roots_are_trusted() {
    for (tls, told) in [(Tls::good(), "Ok(\"TLSv1.3\")"), (Tls::wrong_name(), "not for the name localhost")] {
        let server = server(tls).await;
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["tls::child_that_trusts_its_system", "--exact", "--ignored", "--nocapture"]);
        child.env("SSL_CERT_FILE", &server.certificates().unwrap().authority).env_remove("SSL_CERT_DIR");
        child.env("TRUSTED_URL", url(&server, "postgres", "localhost", "sslrootcert=system"));
        let output = tokio::task::spawn_blocking(move || child.output().unwrap()).await.unwrap();
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.contains(told), "{output}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_certificate_is_shown_when_there_is_one() {
    let server = server(Tls::good().with_client_certificates()).await;
    let with = "sslmode=verify-full&sslrootcert=<ca>&sslcert=<cert>&sslkey=<key>";
    assert_eq!(outcome(&server, "localhost", with).await.unwrap(), "TLSv1.3");
    let error = outcome(&server, "localhost", "sslmode=verify-full&sslrootcert=<ca>").await.unwrap_err();
    assert!(error.is_fatal() && error.to_string().contains("client certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_key_that_is_not_the_certificates_is_found_before_anything_is_sent() {
    let server = server(Tls::good()).await;
    for (parameters, said) in [
        ("sslmode=require&sslcert=<ca>&sslkey=<key>", "the key of the certificate in sslcert"),
        ("sslmode=require&sslcert=<cert>&sslkey=<cert>", "a PEM file with an unencrypted private key: it has none"),
        ("sslmode=require&sslcert=<cert>&sslkey=<key>x", "No such file"),
    ] {
        let url = url(&server, "postgres", "localhost", parameters);
        let error = Database::connect(Config::from_url(&url).unwrap()).await.unwrap_err();
        assert!(matches!(&error, Error::Config { setting, .. } if setting == "sslkey"), "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_password_is_bound_to_the_channel() {
    let server = Server::builder().tls(Tls::good()).password("app", "secret").start().await.unwrap();
    for binding in ["require", "prefer", "disable"] {
        let parameters = format!("sslmode=require&channel_binding={binding}");
        opened(&url(&server, "app:secret", "localhost", &parameters)).await.unwrap();
    }
    // The superuser comes in without a password, and so without a binding.
    let error = outcome(&server, "localhost", "sslmode=require&channel_binding=require").await.unwrap_err();
    assert_eq!((error.phase(), error.is_fatal()), (ConnectPhase::Authenticate, true));
    let said = "the server did not use channel binding but channel_binding=require";
    assert!(error.to_string().contains(said), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_that_insists_on_tls_refuses_a_plain_session() {
    let server = server(Tls::good()).await;
    let error = outcome(&server, "127.0.0.1", "sslmode=disable").await.unwrap_err();
    assert_eq!((error.sqlstate(), error.is_fatal()), (Some("28000"), true), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn prefer_tells_what_the_encrypted_attempt_was_told() {
    // Not that the plain one, which came second, was refused for being plain.
    let server = server(Tls::good()).await;
    let error = opened(&url(&server, "stranger", "127.0.0.1", "sslmode=prefer")).await.unwrap_err();
    assert!(error.to_string().contains("role \"stranger\" does not exist (28000)"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn prefer_without_trust_goes_plain_and_says_both_when_that_fails_too() {
    let server = server(Tls::unknown_issuer()).await;
    let error = outcome(&server, "localhost", "sslmode=prefer&sslrootcert=<ca>").await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("no encryption; before that, encrypted: the server's certificate is not issued"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_without_tls_is_good_enough_for_prefer_and_too_little_for_require() {
    let server = Server::builder().tcp().start().await.unwrap();
    let url = server.tcp_url("postgres").unwrap();
    assert_eq!(opened(&url).await.unwrap(), "none");
    refused(opened(&format!("{url}?sslmode=require")).await, "the server does not support TLS but sslmode=require");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_unix_socket_is_never_encrypted() {
    let server = server(Tls::good()).await;
    let authority = server.certificates().unwrap().authority.display().to_string();
    for parameters in ["sslmode=prefer", "sslmode=require", "sslmode=verify-full&sslrootcert=<ca>"] {
        let url = format!("{}?{}", server.url("postgres"), parameters.replace("<ca>", &authority));
        assert_eq!(opened(&url).await.unwrap(), "none", "{parameters}");
    }
}

/// The server's address as one that is not this machine's own for all we know; the system takes it there nevertheless.
const ELSEWHERE: &str = "0.0.0.0";

#[tokio::test]
async fn a_password_that_crosses_a_network_in_clear_text_is_warned_of_once() {
    let server = Server::builder().tls(Tls::good()).password("app", "s3cret").start().await.unwrap();
    for method in ["password", "scram-sha-256"] {
        let rules = format!("local all all trust\nhost all all 127.0.0.1/32 {method}\n");
        std::fs::write(server.directory().unwrap().join("data/pg_hba.conf"), rules).unwrap();
        server.stop(Stop::Fast).await.unwrap();
        server.resume().await.unwrap();
        for (host, parameters, crosses) in [
            (ELSEWHERE, "sslmode=disable", true),
            (ELSEWHERE, "sslmode=require", false),
            ("127.0.0.1", "sslmode=disable", false),
        ] {
            let (log, _listening) = Log::listen();
            let url = url(&server, "app:s3cret", host, parameters);
            let db = Database::connect(quiet(&url).max_size(2)).await.unwrap();
            let two = [hold(&db, "one").await, hold(&db, "two").await];
            let warnings = log.lines("asked for the password in clear text");
            let expected = usize::from(crosses && method == "password");
            assert_eq!(warnings.len(), expected, "{method} {host} {parameters}: {warnings:?}");
            assert!(warnings.iter().all(|one| one.contains(ELSEWHERE)), "{warnings:?}");
            assert!(!log.text().contains("s3cret"), "{}", log.text());
            for one in two {
                one.end().await.unwrap();
            }
        }
    }
}
