//! A PostgreSQL that starts itself and takes its directory along when its owner goes.

mod account;
mod binaries;
mod cache;
mod cluster;
mod control;
mod fetch;
mod options;
mod postmaster;
mod processes;
mod standby;
mod tls;
mod warden;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs, panic, thread};

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

use self::binaries::Binaries;
use self::cluster::Medium;
use self::warden::Warden;
use super::error::{Error, Result};
use super::url;

pub(in crate::testing) use cache::fingerprint;
pub use control::Stop;
pub use options::ServerBuilder;
pub use standby::Replication;
pub use tls::{CertificateFiles, Tls};

/// How long a server may take to come up or go down: recovery after a crash included.
const PATIENCE: Duration = Duration::from_secs(60);

/// A PostgreSQL server for tests. Cheap to clone; a private one is removed when the last handle is dropped, or when the
/// process ends, however it ends.
#[derive(Clone, Debug)]
pub struct Server {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: Kind,
    /// The name of the migrated template database, once it is there.
    template: OnceCell<String>,
}

#[derive(Debug)]
enum Kind {
    Private(Box<Private>),
    /// Somebody else's, by its URL. Databases are made on it; it is never stopped.
    External(String),
}

#[derive(Debug)]
struct Private {
    /// Never locked across an `.await`: everything done with it blocks, and runs on a blocking thread.
    warden: Mutex<Warden>,
    directory: PathBuf,
    port: u16,
    tcp: bool,
    medium: Medium,
    certificates: Option<CertificateFiles>,
    binaries: Binaries,
}

impl Server {
    /// The server of this process: that of `DATABASE_URL` if it is set, else a private one, started by the first caller.
    ///
    /// # Errors
    /// As [`ServerBuilder::start`]; the next caller tries again.
    ///
    /// # Cancel safety
    /// Yes.
    pub async fn shared() -> Result<Self> {
        static SHARED: OnceCell<Server> = OnceCell::const_new();
        let start = || async {
            match env::var("DATABASE_URL").ok().filter(|url| !url.is_empty()) {
                Some(url) => Self::external(&url),
                None => Self::start().await,
            }
        };
        SHARED.get_or_try_init(start).await.cloned()
    }

    /// Starts a private server with the default options, `DATABASE_URL` or not: for tests that break it.
    ///
    /// # Errors
    /// As [`ServerBuilder::start`].
    ///
    /// # Cancel safety
    /// As [`ServerBuilder::start`].
    pub async fn start() -> Result<Self> {
        Self::builder().start().await
    }

    /// A private server with options.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    /// Uses a server that is already there; `url` names a user who may create databases, and a database to connect to
    /// for that.
    ///
    /// # Errors
    /// [`Error::Variable`] if the URL cannot be read.
    pub fn external(url: &str) -> Result<Self> {
        url.parse::<tokio_postgres::Config>().map_err(|error| Error::Variable {
            variable: "DATABASE_URL",
            value: "***".into(),
            allowed: format!("a connection URL ({error})"),
        })?;
        Ok(Self::from(Kind::External(url.to_owned())))
    }

    /// The URL of a database on this server: over the Unix socket if the server is a private one.
    pub fn url(&self, database: &str) -> String {
        match &self.inner.kind {
            Kind::Private(private) => {
                let host = url::encode(&private.directory.to_string_lossy());
                format!("postgres://postgres@{host}:{}/{}", private.port, url::encode(database))
            }
            Kind::External(url) => url::with_database(url, database),
        }
    }

    /// The URL of a database over TCP; the superuser, no TLS parameters.
    ///
    /// # Errors
    /// If the server does not listen on TCP.
    pub fn tcp_url(&self, database: &str) -> Result<String> {
        match &self.inner.kind {
            Kind::Private(private) if private.tcp => {
                Ok(format!("postgres://postgres@127.0.0.1:{}/{}", private.port, url::encode(database)))
            }
            Kind::Private(_) => Err(Error::Program {
                what: "this server has no TCP address".into(),
                output: "start it with `Server::builder().tcp()`".into(),
            }),
            Kind::External(_) => Ok(self.url(database)),
        }
    }

    /// The port of a private server, on TCP and in the name of its Unix socket.
    ///
    /// # Errors
    /// [`Error::NotPrivate`].
    pub fn port(&self) -> Result<u16> {
        Ok(self.private("tell the port of")?.port)
    }

    /// The directory of a private server: its socket, its `log`, its `data`.
    ///
    /// # Errors
    /// [`Error::NotPrivate`].
    pub fn directory(&self) -> Result<&Path> {
        Ok(&self.private("look into")?.directory)
    }

    /// What clients need to trust a server with [`Tls`], and to be trusted by it.
    pub fn certificates(&self) -> Option<&CertificateFiles> {
        match &self.inner.kind {
            Kind::Private(private) => private.certificates.as_ref(),
            Kind::External(_) => None,
        }
    }

    /// A connection of its own to look at a database with, past anything that is under test.
    ///
    /// # Errors
    /// [`Error::Postgres`] with the server's words.
    ///
    /// # Cancel safety
    /// Yes.
    pub async fn client(&self, database: &str) -> Result<Client> {
        connect(&self.url(database)).await
    }

    fn private(&self, action: &'static str) -> Result<&Private> {
        match &self.inner.kind {
            Kind::Private(private) => Ok(private),
            Kind::External(_) => Err(Error::NotPrivate { action }),
        }
    }

    pub(in crate::testing) fn is_private(&self) -> bool {
        matches!(self.inner.kind, Kind::Private(_))
    }

    pub(in crate::testing) fn template_cell(&self) -> &OnceCell<String> {
        &self.inner.template
    }

    /// The URL of the database that administration goes through.
    pub(in crate::testing) fn maintenance_url(&self) -> String {
        match &self.inner.kind {
            Kind::Private(_) => self.url("postgres"),
            Kind::External(url) => url.clone(),
        }
    }

    /// Blocks until a private server is up.
    fn launch(options: &ServerBuilder) -> Result<Self> {
        let medium = if options.durable { Medium::Disk } else { Medium::Quick };
        let (directory, account) = cluster::directory(medium)?;
        let mut warden = Warden::guard(&directory, &account)?; // from here on it removes the directory
        let binaries = Binaries::find(&account)?;
        warden.export(&binaries.environment())?;
        cluster::initialise(&mut warden, &binaries, &account)?;
        let data = directory.join("data");
        cluster::configure(&data, &options.configuration())?;
        let hba = data.join("pg_hba.conf");
        fs::write(&hba, options.authentication()).map_err(Error::io("write", hba))?;
        let certificates = options.tls.as_ref().map(|tls| tls.write(&data, &directory, &account)).transpose()?;
        let private = Private {
            warden: Mutex::new(warden),
            directory,
            port: 5432,
            tcp: options.tcp,
            medium,
            certificates,
            binaries,
        };
        let server = Self::from(Kind::Private(Box::new(private.listen_and_start()?)));
        if let Some((role, password)) = &options.role {
            server.make_role(role, password)?;
        }
        Ok(server)
    }

    fn make_role(&self, role: &str, password: &str) -> Result<()> {
        let (role, password) = (role.replace('"', "\"\""), password.replace('\'', "''"));
        let make = format!(
            "CREATE ROLE \"{role}\" LOGIN CREATEDB PASSWORD '{password}'; \
             GRANT pg_read_all_data, pg_write_all_data TO \"{role}\""
        );
        let url = self.maintenance_url();
        aside(async move {
            connect(&url).await?.batch_execute(&make).await.map_err(Error::postgres("make a role with a password"))
        })
    }
}

impl From<Kind> for Server {
    fn from(kind: Kind) -> Self {
        Self { inner: Arc::new(Inner { kind, template: OnceCell::new() }) }
    }
}

/// Connects and drives the connection on the current runtime.
pub(in crate::testing) async fn connect(url: &str) -> Result<Client> {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.map_err(Error::postgres("connect to the test server"))?;
    tokio::spawn(connection); // ends with the client; what goes wrong is told to the client
    Ok(client)
}

/// Runs what blocks where it may.
pub(in crate::testing) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => panic::resume_unwind(error.into_panic()),
    }
}

/// Runs a future to its end on a thread and a runtime of its own, and waits: for where there is no `.await`.
pub(in crate::testing) fn aside<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(Error::io("make a runtime in", "a thread"))?.block_on(work)
    };
    match thread::spawn(run).join() {
        Ok(result) => result,
        Err(panicked) => panic::resume_unwind(panicked),
    }
}
