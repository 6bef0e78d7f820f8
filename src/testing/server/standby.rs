//! A streaming standby of a private server, for failover.

use std::time::Instant;

use parking_lot::Mutex;

use super::control::pause;
use super::warden::{Warden, quote};
use super::{Kind, PATIENCE, Private, Server, blocking, cluster, connect};
use crate::testing::error::{Error, Result};

/// Whether a COMMIT on the primary waits for the standby.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Replication {
    /// It does not: what was acknowledged can be lost by a failover.
    Asynchronous,
    /// It waits until the standby has it on disk (`synchronous_commit = on`, `synchronous_standby_names`).
    Synchronous,
}

impl Server {
    /// Makes a standby (`pg_basebackup`) that streams from this server and accepts reads. It listens as this server does,
    /// in a directory of its own, and must be dropped before it only by choice: each is removed by itself.
    ///
    /// # Errors
    /// [`Error::NotPrivate`], or what `pg_basebackup` or the standby's log said.
    ///
    /// # Cancel safety
    /// As [`ServerBuilder::start`](super::ServerBuilder::start).
    pub async fn standby(&self, replication: Replication) -> Result<Self> {
        self.private("make a standby of")?;
        let primary = self.clone();
        let standby = blocking(move || primary.launch_standby()).await?;
        let name = standby.standby_name()?;
        if replication == Replication::Synchronous {
            self.set("synchronous_standby_names", &format!("\"{name}\"")).await?;
            self.set("synchronous_commit", "on").await?;
        }
        self.until_streams(&name, replication).await?;
        Ok(standby)
    }

    /// Makes a standby the primary (`pg_promote`); when this returns it accepts writes. The old primary goes on as it is:
    /// stop or kill it first, as whoever fails over has to.
    ///
    /// # Errors
    /// [`Error::Postgres`] if this server is no standby.
    pub async fn promote(&self) -> Result<()> {
        self.private("promote")?;
        let client = connect(&self.maintenance_url()).await?;
        let promoted = client.query_one("SELECT pg_promote(true, 60)", &[]).await;
        let promoted: bool = promoted.map_err(Error::postgres("promote a standby"))?.get(0);
        if !promoted {
            return Err(Error::Program { what: "the standby did not promote".into(), output: self.log()? });
        }
        // It is still its own synchronous standby's primary by configuration copied from the old one.
        self.set("synchronous_standby_names", "").await
    }

    /// The end of a private server's log.
    ///
    /// # Errors
    /// [`Error::NotPrivate`].
    pub fn log(&self) -> Result<String> {
        Ok(self.private("read the log of")?.log_tail())
    }

    /// By what the primary knows the standby: the name of its directory.
    fn standby_name(&self) -> Result<String> {
        let directory = self.directory()?;
        Ok(directory.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    fn launch_standby(&self) -> Result<Self> {
        let primary = self.private("make a standby of")?;
        let (directory, account) = cluster::directory(primary.medium)?;
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut warden = Warden::guard(&directory, &account)?;
        warden.export(&primary.binaries.environment())?;
        let source =
            format!("host={} port={} user=postgres application_name={name}", primary.directory.display(), primary.port);
        let copy = format!(
            "{} -D data -R -X stream --checkpoint=fast --no-sync -d {}",
            quote(primary.binaries.program("pg_basebackup")),
            quote(&source)
        );
        warden.run("copy the primary", &copy)?;
        let private = Private {
            warden: Mutex::new(warden),
            directory,
            port: primary.port,
            tcp: primary.tcp,
            medium: primary.medium,
            certificates: primary.certificates.clone(),
            binaries: primary.binaries.clone(),
        };
        Ok(Self::from(Kind::Private(Box::new(private.listen_and_start()?))))
    }

    async fn until_streams(&self, name: &str, replication: Replication) -> Result<()> {
        const QUERY: &str =
            "SELECT sync_state FROM pg_stat_replication WHERE application_name = $1 AND state = 'streaming'";
        let client = connect(&self.maintenance_url()).await?;
        let began = Instant::now();
        loop {
            let row = client.query_opt(QUERY, &[&name]).await.map_err(Error::postgres("look at the replication"))?;
            let state: Option<String> = row.map(|row| row.get(0));
            let enough = match replication {
                Replication::Asynchronous => state.is_some(),
                Replication::Synchronous => state.as_deref() == Some("sync"),
            };
            if enough {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(Error::Program { what: "the standby does not stream".into(), output: self.log()? });
            }
            pause().await;
        }
    }
}
