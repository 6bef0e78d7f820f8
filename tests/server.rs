//! The private server keeps its promises: it starts, gives every test a database of its own, can be broken and mended,
//! and leaves nothing behind.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use futures_util::future::try_join_all;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use t2m_db::testing::{self, Proxy, Replication, Server, Stop, TestDatabase, Tls};
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;
use tokio_postgres_rustls::MakeRustlsConnect;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Set for the child process of `a_server_goes_with_its_owner`: how it is to end.
const OWNER: &str = "T2M_DB_TEST_OWNER";

#[tokio::test]
async fn ten_tests_have_ten_databases() -> Outcome {
    let databases = try_join_all((0..10).map(async |number| {
        let database = testing::database().await;
        let client = database.client().await?;
        client.batch_execute(&format!("CREATE TABLE mine AS SELECT {number} AS number")).await?;
        let row = client.query_one("SELECT count(*), max(number) FROM mine", &[]).await?;
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i32>(1)), (1, number), "somebody else's table");
        Ok::<_, Box<dyn std::error::Error>>(database)
    }))
    .await?;
    assert_eq!(databases.iter().map(TestDatabase::name).collect::<HashSet<_>>().len(), 10);
    Ok(())
}

#[tokio::test]
async fn a_database_is_dropped_with_its_sessions() -> Outcome {
    let server = Server::start().await?;
    let database = server.database().await?;
    let name = database.name().to_owned();
    let session = database.client().await?;
    drop(database);
    let client = server.client("postgres").await?;
    until(async || {
        let row = client.query_one("SELECT count(*) FROM pg_database WHERE datname = $1", &[&name]).await.unwrap();
        row.get::<_, i64>(0) == 0
    })
    .await;
    assert!(session.batch_execute("SELECT").await.is_err(), "a session on a dropped database lives on");
    Ok(())
}

/// The child process of the next test; does nothing in a usual run.
#[tokio::test]
async fn owner() -> Outcome {
    let Ok(end) = env::var(OWNER) else { return Ok(()) };
    let server = Server::start().await?;
    let pid = std::fs::read_to_string(server.directory()?.join("data/postmaster.pid"))?;
    println!("\nOWNS {} {}", pid.lines().next().unwrap_or_default(), server.directory()?.display());
    match end.as_str() {
        "return" => Ok(()),
        "panic" => panic!("on purpose"),
        "exit" => std::process::exit(3), // no destructor runs
        _ => std::future::pending().await,
    }
}

#[test]
fn a_server_goes_with_its_owner() -> Outcome {
    // What a shell without job control starts in the background ignores SIGINT, and so does all that it starts.
    let ends = ["return", "panic", "exit", "INT", "TERM", "KILL"]
        .into_iter()
        .filter(|end| *end != "INT" || !ignores_interrupts());
    for end in ends {
        let mut owner = Command::new(env::current_exe()?);
        owner
            .args(["--exact", "server::owner", "--nocapture"])
            .env(OWNER, end)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut owner = owner.spawn()?;
        let lines = BufReader::new(owner.stdout.take().ok_or("no output")?).lines();
        let line =
            lines.map_while(Result::ok).find(|line| line.starts_with("OWNS ")).ok_or("the owner has no server")?;
        let mut words = line.split(' ').skip(1);
        let (pid, directory) = (words.next().ok_or("no pid")?, words.next().ok_or("no directory")?.to_owned());
        if end.chars().all(char::is_uppercase) {
            assert!(Path::new(&directory).exists() && runs(pid), "{end}: the server is not there to begin with");
            assert!(Command::new("kill").args(["-s", end, &owner.id().to_string()]).status()?.success());
        }
        let status = owner.wait()?;
        match end {
            "INT" => assert_eq!(status.signal(), Some(2)),
            "KILL" => assert_eq!(status.signal(), Some(9)),
            _ => {}
        }
        let began = Instant::now();
        while runs(pid) || Path::new(&directory).exists() {
            assert!(began.elapsed() < Duration::from_secs(10), "{end}: postmaster {pid} or {directory} is left behind");
            thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

fn ignores_interrupts() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 0b10 != 0)
}

#[tokio::test]
async fn a_stopped_or_killed_server_comes_back_where_it_was() -> Outcome {
    let server = Server::builder().durable().start().await?;
    let database = server.empty_database().await?;
    for round in 0..3 {
        let client = database.client().await?;
        client.batch_execute(&format!("CREATE TABLE round{round} ()")).await?;
        match round {
            0 => server.stop(Stop::Fast).await?,
            1 => server.stop(Stop::Immediate).await?,
            _ => server.kill().await?,
        }
        assert!(client.batch_execute("SELECT").await.is_err(), "a session outlived its server");
        assert!(database.client().await.is_err(), "a stopped server accepts connections");
        server.resume().await?;
        database.client().await?.batch_execute(&format!("SELECT FROM round{round}")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_killed_backend_takes_every_session_along() -> Outcome {
    let server = Server::start().await?;
    let (victim, other) = (server.client("postgres").await?, server.client("postgres").await?);
    let pid: i32 = victim.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    assert!(server.kill_backend(1).await.is_err(), "kills what is not its own");
    server.kill_backend(pid).await?;
    let error = other.batch_execute("SELECT").await.expect_err("the other session lives");
    assert!(error.is_closed() || error.code() == Some(&SqlState::CRASH_SHUTDOWN), "{error:?}");
    server.until_ready().await?;
    server.client("postgres").await?.batch_execute("SELECT").await?;
    Ok(())
}

#[tokio::test]
async fn a_setting_is_there_for_the_next_session() -> Outcome {
    let server = Server::builder().setting("work_mem", "5MB").start().await?;
    let show = async || {
        server
            .client("postgres")
            .await?
            .query_one("SHOW work_mem", &[])
            .await
            .map(|row| row.get::<_, String>(0))
            .map_err(Box::<dyn std::error::Error>::from)
    };
    assert_eq!(show().await?, "5MB");
    server.set("work_mem", "7MB").await?;
    assert_eq!(show().await?, "7MB");
    assert!(server.set("no_such_setting", "1").await.is_err());
    Ok(())
}

#[tokio::test]
async fn sessions_are_terminated_by_database() -> Outcome {
    let one = testing::empty_database().await;
    let other = testing::empty_database().await;
    let (mine, theirs) = (one.client().await?, other.client().await?);
    assert_eq!(one.terminate_backends().await?, 1);
    assert!(mine.batch_execute("SELECT").await.is_err());
    theirs.batch_execute("SELECT").await?;
    Ok(())
}

#[tokio::test]
async fn a_synchronous_standby_takes_over_with_everything_acknowledged() -> Outcome {
    let primary = Server::builder().durable().start().await?;
    let database = primary.empty_database().await?;
    let standby = primary.standby(Replication::Synchronous).await?;
    database.client().await?.batch_execute("CREATE TABLE acknowledged ()").await?;
    let reader = standby.client(database.name()).await?;
    let refused = reader.batch_execute("CREATE TABLE t ()").await.expect_err("a standby accepts writes");
    assert_eq!(refused.code(), Some(&SqlState::READ_ONLY_SQL_TRANSACTION));
    primary.kill().await?;
    standby.promote().await?;
    let writer = standby.client(database.name()).await?;
    writer.batch_execute("INSERT INTO acknowledged DEFAULT VALUES").await?;
    Ok(())
}

#[tokio::test]
async fn a_role_with_a_password_has_to_give_it() -> Outcome {
    let server = Server::builder().tcp().password("app", "it's secret").start().await?;
    let at = |password: &str| format!("postgres://app:{password}@127.0.0.1:{}/postgres", server.port().unwrap());
    let refused =
        tokio_postgres::connect(&at("wrong"), tokio_postgres::NoTls).await.err().ok_or("any password will do")?;
    assert_eq!(refused.code(), Some(&SqlState::INVALID_PASSWORD));
    drop(tokio_postgres::connect(&at("it%27s%20secret"), tokio_postgres::NoTls).await?);
    Ok(())
}

#[tokio::test]
async fn only_a_good_certificate_is_one_that_clients_accept() -> Outcome {
    for (name, tls, accepted) in [
        ("good", Tls::good(), true),
        ("wrong name", Tls::wrong_name(), false),
        ("expired", Tls::expired(), false),
        ("unknown issuer", Tls::unknown_issuer(), false),
        ("client without a certificate", Tls::good().with_client_certificates(), false),
    ] {
        let server = Server::builder().tls(tls).start().await?;
        let files = server.certificates().ok_or("no certificates")?;
        let plain = tokio_postgres::connect(&format!("{}?sslmode=disable", server.tcp_url("postgres")?), NoTls).await;
        assert!(plain.is_err(), "{name}: TCP without TLS is accepted");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&files.authority)?)?;
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let client = client.with_root_certificates(roots).with_no_client_auth();
        for port in [server.port()?, through(&server).await?.1] {
            let url = format!("postgres://postgres@localhost:{port}/postgres?sslmode=require");
            let connected = tokio_postgres::connect(&url, MakeRustlsConnect::new(client.clone())).await;
            // With TLS 1.3 a client learns that its certificate is missed from the first answer.
            assert_eq!(connected.is_ok(), accepted, "{name}: {:?}", connected.err());
        }
    }
    Ok(())
}

/// A proxy that is kept for ever, and its port.
async fn through(server: &Server) -> Result<(&'static Proxy, u16), Box<dyn std::error::Error>> {
    let proxy = Box::leak(Box::new(Proxy::start(&server.tcp_url("postgres")?).await?));
    let port = proxy.url().rsplit(':').next().and_then(|tail| tail.split('/').next()).ok_or("no port")?.parse()?;
    Ok((proxy, port))
}

#[tokio::test]
async fn a_server_goes_at_once_although_a_client_is_silent() -> Outcome {
    use std::io::{Read, Write};
    let server = Server::builder().tls(Tls::good()).start().await?;
    let pause = || std::net::TcpStream::connect(("127.0.0.1", server.port().unwrap()));
    let (silent, mut promised) = (pause()?, pause()?);
    promised.write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f])?; // asks for TLS
    promised.read_exact(&mut [0])?; // is promised it, and says nothing more
    let began = Instant::now();
    drop(server);
    println!("gone after {:.1?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    drop((silent, promised));
    Ok(())
}

#[tokio::test]
async fn a_server_of_somebody_else_is_used_but_never_broken() -> Outcome {
    let theirs = Server::builder().tcp().start().await?;
    let ours = Server::external(&theirs.tcp_url("postgres")?)?;
    let databases = try_join_all((0..4).map(async |_| ours.database().await)).await?;
    for database in &databases {
        database.client().await?.batch_execute("CREATE TABLE mine ()").await?;
    }
    assert!(ours.stop(Stop::Fast).await.unwrap_err().to_string().contains("DATABASE_URL"));
    drop(databases); // waits: nothing of ours is left when the process ends
    let client = theirs.client("postgres").await?;
    let row = client.query_one("SELECT count(*) FROM pg_database WHERE datname LIKE 't2m\\_test\\_%'", &[]).await?;
    assert_eq!(row.get::<_, i64>(0), 0);
    Ok(())
}

/// Not a promise, a measurement: `cargo test server::times -- --nocapture`.
#[tokio::test]
async fn times() -> Outcome {
    let began = Instant::now();
    let server = Server::start().await?;
    let start = began.elapsed();
    let began = Instant::now();
    drop(server.database().await?);
    let template = began.elapsed();
    let began = Instant::now();
    for _ in 0..20 {
        server.database().await?;
    }
    let each = began.elapsed() / 20;
    let began = Instant::now();
    drop(server);
    println!("start {start:.0?}, template {template:.0?}, each database {each:.1?}, removal {:.0?}", began.elapsed());
    Ok(())
}

fn runs(pid: &str) -> bool {
    Command::new("kill").args(["-s", "0", pid]).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Polls another process's progress, bounded.
async fn until(mut done: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !done().await {
        assert!(began.elapsed() < Duration::from_secs(20), "does not happen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
