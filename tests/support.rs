//! What most tests of the core start with: a database with one table, a handle, and a client past everything under test.

use std::time::Duration;

use diesel_async::SimpleAsyncConnection;
use t2m_db::testing::TestDatabase;
use t2m_db::{AbortReason, Config, Database, Error, Transaction};

diesel::table! {
    notes (id) {
        id -> BigInt,
        text -> Text,
        seen -> BigInt,
    }
}

/// Longer than anything here takes; a test that hangs fails with it.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) struct Setup {
    pub(crate) db: Database,
    pub(crate) client: tokio_postgres::Client,
    pub(crate) database: TestDatabase,
}

/// A pool of `max_size` on a database of its own.
pub(crate) async fn setup(max_size: u32) -> Setup {
    setup_with(|config| config.max_size(max_size)).await
}

pub(crate) async fn setup_with(settings: impl FnOnce(Config) -> Config) -> Setup {
    let (database, client) = table().await;
    let config = settings(Config::from_url(&database.url()).unwrap().min_idle(0).max_size(4));
    let db = Database::connect(config).await.unwrap();
    Setup { db, client, database }
}

/// The table, without a pool.
pub(crate) async fn table() -> (TestDatabase, tokio_postgres::Client) {
    table_in(t2m_db::testing::empty_database().await).await
}

/// The table in this database.
pub(crate) async fn table_in(database: TestDatabase) -> (TestDatabase, tokio_postgres::Client) {
    let client = database.client().await.unwrap();
    let sql =
        "CREATE TABLE notes (id bigserial PRIMARY KEY, text text NOT NULL UNIQUE, seen bigint NOT NULL DEFAULT 0)";
    client.batch_execute(sql).await.unwrap();
    (database, client)
}

impl Setup {
    /// The texts that are stored, in order.
    pub(crate) async fn stored(&self) -> Vec<String> {
        let rows = self.client.query("SELECT text FROM notes ORDER BY id", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// What the pool's own sessions are doing, as the server sees it.
    pub(crate) async fn states(&self) -> Vec<String> {
        let sql = "SELECT coalesce(state, '') FROM pg_stat_activity \
                   WHERE datname = current_database() AND application_name = 't2m-db'";
        self.client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// The server processes of the pool.
    pub(crate) async fn pids(&self) -> Vec<i32> {
        let sql = "SELECT pid FROM pg_stat_activity \
                   WHERE datname = current_database() AND application_name = 't2m-db' ORDER BY pid";
        self.client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// Waits until every connection is back. Clean-ups run in tasks of their own when a scope's future is dropped.
    pub(crate) async fn all_back(&self) {
        let back = async {
            while self.db.stats().checked_out > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, back).await.unwrap_or_else(|_| panic!("still out: {:?}", self.db.checkouts()));
    }

    /// Waits until the server sees a session of the pool in a statement like `pattern`.
    pub(crate) async fn until_running(&self, pattern: &str) {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                   AND application_name = 't2m-db' AND state = 'active' AND query LIKE $1";
        let running = async { while self.client.query_one(sql, &[&pattern]).await.unwrap().get::<_, i64>(0) == 0 {} };
        tokio::time::timeout(LONG, running).await.unwrap();
    }
}

/// Stores one note.
pub(crate) async fn note(tx: &mut Transaction, text: &str) -> Result<i64, Error> {
    use diesel::ExpressionMethods;
    use diesel_async::RunQueryDsl;
    let insert = diesel::insert_into(notes::table).values(notes::text.eq(text)).returning(notes::id);
    Ok(insert.get_result(tx).await?)
}

/// Runs a batch and has errors of the library's type.
pub(crate) async fn batch(tx: &mut Transaction, sql: &str) -> Result<(), Error> {
    Ok(tx.batch_execute(sql).await?)
}

/// Why a scope was not committed.
#[track_caller]
pub(crate) fn reason(error: &Error) -> &AbortReason {
    match error {
        Error::Aborted { reason, .. } => reason,
        other => panic!("not aborted: {other:?}"),
    }
}

/// The pool has one connection, the first one, and the server sees it idle.
pub(crate) async fn one_connection_is_idle(setup: &Setup) {
    let stats = setup.db.stats();
    assert_eq!((stats.checked_out, stats.idle, stats.opened), (0, 1, 1), "{stats:#?}");
    assert_eq!(setup.states().await, ["idle"]);
}

/// How often a test repeats: `usually`, times `T2M_DB_TEST_ROUNDS` for the long version.
pub(crate) fn rounds(usually: u32) -> u32 {
    let times = std::env::var("T2M_DB_TEST_ROUNDS").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    usually * times
}
