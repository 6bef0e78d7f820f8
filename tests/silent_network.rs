//! Packets that are dropped: what only the kernel notices, by what it was told when the connection was opened.
//!
//! A proxy cannot show this, because the system goes on acknowledging. So this runs in a network namespace of its own, in
//! which `nft` drops packets. Opt in with `T2M_DB_TEST_NETNS=1`, as root, with `unshare`, `ip` and `nft` installed.

use std::process::Command;
use std::time::Duration;

use t2m_db::testing::Server;
use t2m_db::{Config, Database, Error};

use crate::pool_support::{MS, ping, quiet, timed, until};
use crate::support::batch;

#[test]
fn dropped_packets_are_noticed_in_bounded_time() {
    if std::env::var_os("T2M_DB_TEST_NETNS").is_none() {
        println!("skipped: it needs root, unshare, ip and nft; set T2M_DB_TEST_NETNS=1 where they are");
        return;
    }
    let mut child = Command::new("unshare");
    child.arg("--net").arg(std::env::current_exe().unwrap());
    child.args(["silent_network::child_in_a_namespace", "--exact", "--ignored", "--nocapture"]);
    let output = child.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    println!("{told}");
    assert!(output.status.success() && told.contains("1 passed"), "{told}{}", String::from_utf8_lossy(&output.stderr));
}

fn run(program: &str, arguments: &str) {
    let status = Command::new(program).args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "{program} {arguments}");
}

/// The kernel gives up a connection whose data is not acknowledged for so long.
const USER_TIMEOUT: Duration = Duration::from_millis(700);
/// A probe after one second of silence, and each second after it.
const KEEPALIVE: &str = "sslmode=disable&keepalives_idle=1&keepalives_interval=1&keepalives_count=2";

struct Network {
    server: Server,
    client: tokio_postgres::Client,
}

impl Network {
    async fn start() -> Self {
        run("ip", "link set lo up");
        run("nft", "add table inet silence");
        run("nft", "add chain inet silence input { type filter hook input priority 0 ; }");
        let server = Server::builder().tcp().start().await.unwrap();
        let client = server.client("postgres").await.unwrap(); // over the unix socket
        Self { server, client }
    }

    async fn pool(&self, settings: impl FnOnce(Config) -> Config) -> Database {
        let url = format!("{}?{KEEPALIVE}", self.server.tcp_url("postgres").unwrap());
        let config = quiet(&url).tcp_user_timeout(USER_TIMEOUT).connect_timeout(500 * MS);
        let db = Database::connect(settings(config)).await.unwrap();
        ping(&db).await.unwrap();
        db
    }

    /// Drops every packet of the sessions that there are, both ways; new ones are not touched.
    async fn drop_sessions(&self) {
        let ports = "SELECT client_port FROM pg_stat_activity WHERE client_port > 0 AND application_name = 't2m-db'";
        for row in self.client.query(ports, &[]).await.unwrap() {
            let port: i32 = row.get(0);
            run("nft", &format!("add rule inet silence input tcp sport {port} drop"));
            run("nft", &format!("add rule inet silence input tcp dport {port} drop"));
        }
    }

    fn drop_all(&self) {
        let port = self.server.port().unwrap();
        run("nft", &format!("add rule inet silence input tcp dport {port} drop"));
    }

    fn heal() {
        run("nft", "flush chain inet silence input");
    }
}

#[tokio::test]
#[ignore = "run by dropped_packets_are_noticed_in_bounded_time"]
async fn child_in_a_namespace() {
    let network = Network::start().await;
    let slack = Duration::from_secs(2);

    // A first flight meets one silent connection: sent again on another when the kernel gives up.
    let db = network.pool(|config| config.max_size(2)).await;
    network.drop_sessions().await;
    let (told, took) = timed(ping(&db)).await;
    told.unwrap();
    println!("a first flight on a silent connection took {took:.1?}");
    assert!(took < USER_TIMEOUT + slack, "{took:?}");
    assert_eq!((db.stats().resent, db.stats().opened), (1, 2));

    // In the middle of a transaction there is an error, as soon.
    let scope = db.with_transaction(async |tx| {
        batch(tx, "SELECT 1").await?;
        network.drop_sessions().await;
        let (told, took) = timed(batch(tx, "SELECT 2")).await;
        println!("a statement on a silent connection failed after {took:.1?}");
        assert!(took < USER_TIMEOUT + slack, "{took:?}");
        told
    });
    let error: Error = scope.await.unwrap_err();
    assert!(error.is_connection_lost() && error.is_retryable(), "{error:?}");
    Network::heal();
    ping(&db).await.unwrap();

    // An idle one is found by the kernel's own keepalive, although nobody speaks.
    network.drop_sessions().await;
    let (_, took) = timed(until("found", || db.stats().size == 0)).await;
    println!("a silent idle connection was gone after {took:.1?}");
    assert!(took < Duration::from_secs(3) + slack, "{took:?}");
    Network::heal();

    // Nothing gets through to the server at all: whoever wants a connection is told in time.
    let timeout = Duration::from_secs(1);
    let db = network.pool(|config| config.max_size(1).checkout_timeout(timeout)).await;
    network.drop_all();
    let (told, took) = timed(ping(&db)).await;
    assert!(told.unwrap_err().is_connection_lost());
    assert!(took < USER_TIMEOUT + timeout + slack, "{took:?}");
    let (told, took) = timed(ping(&db)).await;
    assert!(matches!(told, Err(Error::CheckoutTimeout(_))), "{told:?}");
    assert!(took < timeout + slack, "{took:?}");
    Network::heal();
    ping(&db).await.unwrap();
}
