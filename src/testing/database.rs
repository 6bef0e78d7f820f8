//! A database for one test: copied from a migrated template in a few milliseconds, dropped at the end.
//!
//! The template is made once per server, by whoever comes first, under an advisory lock, and renamed to its final name
//! when it is complete: any number of test processes may share a server. Nobody can connect to it, so it never changes and
//! can always be copied. Its name carries a hash of the migrations.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{process, thread};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::error::{Error, Result};
use super::migrations;
use super::server::{Server, aside, blocking, connect};

/// What every database of a test is called; then come its birth in seconds, the process and a number.
const PREFIX: &str = "t2m_test_";
/// A database of a test process that was killed is dropped when it is older than any test.
const OLDEST: f64 = 6.0 * 60.0 * 60.0;

/// A database of one test's own. Dropped, sessions on it included, when this is.
#[derive(Debug)]
pub struct TestDatabase {
    server: Server,
    name: String,
}

impl TestDatabase {
    /// Its URL.
    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The server it is on.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// A connection past everything that is under test, to look with or to interfere with.
    ///
    /// # Errors
    /// [`Error::Postgres`].
    pub async fn client(&self) -> Result<Client> {
        self.server.client(&self.name).await
    }

    /// Ends every session on it; returns how many there were.
    ///
    /// # Errors
    /// [`Error::Postgres`].
    pub async fn terminate_backends(&self) -> Result<u64> {
        self.server.terminate_backends(&self.name).await
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let url = self.server.maintenance_url();
        let drop = format!("DROP DATABASE IF EXISTS \"{}\" WITH (FORCE)", self.name);
        let work =
            async move { connect(&url).await?.batch_execute(&drop).await.map_err(Error::postgres("drop a database")) };
        // Whatever goes wrong, the next test process sweeps up. A private server goes by itself, so nobody waits there.
        if self.server.is_private() {
            thread::spawn(move || aside(work));
        } else {
            let _ = aside(work);
        }
    }
}

impl Server {
    /// A new database with every migration applied.
    ///
    /// # Errors
    /// [`Error::Migration`] if a migration fails, else [`Error::Postgres`].
    ///
    /// # Cancel safety
    /// Nothing is left behind.
    pub async fn database(&self) -> Result<TestDatabase> {
        let template = self.template_cell().get_or_try_init(|| self.make_template()).await?;
        self.copy_of(template).await
    }

    /// A new database with nothing in it.
    ///
    /// # Errors
    /// [`Error::Postgres`].
    ///
    /// # Cancel safety
    /// Nothing is left behind.
    pub async fn empty_database(&self) -> Result<TestDatabase> {
        self.copy_of("template0").await
    }

    async fn copy_of(&self, template: &str) -> Result<TestDatabase> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let name = format!("{PREFIX}{now}_{}_{number}_{:04x}", process::id(), fastrand::u16(..));
        let client = connect(&self.maintenance_url()).await?;
        // Copying files is twice as quick as writing them to the log, if no other data waits to be flushed.
        let how = if self.is_private() { " STRATEGY file_copy" } else { "" };
        let create = format!("CREATE DATABASE \"{name}\" TEMPLATE \"{template}\"{how}");
        // From here on there may be a database: the guard comes before the statement.
        let database = TestDatabase { server: self.clone(), name };
        retrying(&client, &create).await?;
        Ok(database)
    }

    async fn make_template(&self) -> Result<String> {
        let version = migrations::version();
        let name = format!("t2m_template_{version}");
        let failed = || Error::postgres("make the template database");
        let client = connect(&self.maintenance_url()).await?;
        // Held until this session ends. Templates of all versions wait for each other: `template1` can be copied by one only.
        client.batch_execute("SELECT pg_advisory_lock(hashtext('t2m_template'))").await.map_err(failed())?;
        sweep(&client).await.map_err(failed())?;
        let there = client.query_opt("SELECT FROM pg_database WHERE datname = $1", &[&name]).await.map_err(failed())?;
        if there.is_some() {
            return Ok(name);
        }
        let making = format!("{name}_making");
        retrying(&client, &format!("DROP DATABASE IF EXISTS \"{making}\" WITH (FORCE)")).await?;
        retrying(&client, &format!("CREATE DATABASE \"{making}\" TEMPLATE template0")).await?;
        migrations::apply(&self.url(&making)).await?;
        client.batch_execute(&format!("ALTER DATABASE \"{making}\" ALLOW_CONNECTIONS false")).await.map_err(failed())?;
        retrying(&client, &format!("ALTER DATABASE \"{making}\" RENAME TO \"{name}\"")).await?;
        Ok(name)
    }
}

/// Runs a statement that needs a database to itself again until the last session has left it.
async fn retrying(client: &Client, statement: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        match client.batch_execute(statement).await {
            Ok(()) => return Ok(()),
            Err(error)
                if error.code() == Some(&SqlState::OBJECT_IN_USE) && began.elapsed() < Duration::from_secs(30) =>
            {
                blocking(|| thread::sleep(Duration::from_millis(5))).await;
            }
            Err(error) => return Err(Error::postgres(format!("run `{statement}`"))(error)),
        }
    }
}

/// Drops what test processes left behind that were killed.
async fn sweep(client: &Client) -> Result<(), tokio_postgres::Error> {
    let query = "SELECT datname FROM pg_database WHERE datname LIKE 't2m\\_test\\_%' \
                 AND to_timestamp(substring(datname FROM '^t2m_test_([0-9]+)_')::float8) < now() - $1::float8 * interval '1s'";
    for row in client.query(query, &[&OLDEST]).await? {
        let name: String = row.get(0);
        client.batch_execute(&format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)")).await?;
    }
    Ok(())
}
