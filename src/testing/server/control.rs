//! Ways to break a private server, and to mend it again. Each returns when it has happened.

use std::thread;
use std::time::{Duration, Instant};

use super::postmaster::is_alive;
use super::{Kind, PATIENCE, Private, Server, blocking, connect, processes};
use crate::testing::error::{Error, Result};

/// How a server is stopped (`pg_ctl stop -m ...`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// Sessions are told 57P01 and ended, running transactions rolled back, the data written out.
    Fast,
    /// Sessions are told 57P02 and ended where they are; the next start recovers as after a crash.
    Immediate,
}

impl Server {
    /// Stops the server; its address stays the same for the next [`resume`](Self::resume).
    ///
    /// # Errors
    /// [`Error::NotPrivate`], or if it does not end within a minute.
    ///
    /// # Cancel safety
    /// The stop goes on in the background. So it is with the other controls.
    pub async fn stop(&self, how: Stop) -> Result<()> {
        let signal = if how == Stop::Fast { "INT" } else { "QUIT" };
        self.control("stop", move |private| private.stop(signal)).await
    }

    /// Kills the whole server with SIGKILL, as a power cut would: nobody is told anything.
    ///
    /// # Errors
    /// [`Error::NotPrivate`], or if its processes do not end within a minute.
    pub async fn kill(&self) -> Result<()> {
        self.control("kill", Private::kill).await
    }

    /// Starts a stopped or killed server again; after a kill, recovery is included.
    ///
    /// # Errors
    /// [`Error::NotPrivate`], or the end of the log if the server does not come up.
    pub async fn resume(&self) -> Result<()> {
        self.control("start", Private::start_postmaster).await
    }

    /// [`stop`](Self::stop), then [`resume`](Self::resume).
    ///
    /// # Errors
    /// As these.
    pub async fn restart(&self, how: Stop) -> Result<()> {
        self.stop(how).await?;
        self.resume().await
    }

    /// Kills one backend with SIGKILL. The server then ends every session and recovers (a crash restart): when this
    /// returns it has noticed, and [`until_ready`](Self::until_ready) tells when it is over.
    ///
    /// # Errors
    /// [`Error::NotPrivate`], or if `pid` is no process of this server.
    pub async fn kill_backend(&self, pid: i32) -> Result<()> {
        self.control("kill a backend of", move |private| private.kill_backend(pid)).await
    }

    /// Waits until the server accepts connections.
    ///
    /// # Errors
    /// What the last attempt said, if that takes more than a minute.
    pub async fn until_ready(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            match connect(&self.maintenance_url()).await {
                Ok(_) => return Ok(()),
                Err(error) if began.elapsed() > PATIENCE => return Err(error),
                Err(_) => pause().await,
            }
        }
    }

    /// Ends every session on `database` (`pg_terminate_backend`); returns how many there were.
    ///
    /// # Errors
    /// [`Error::Postgres`].
    pub async fn terminate_backends(&self, database: &str) -> Result<u64> {
        self.signal("pg_terminate_backend", database).await
    }

    /// Cancels what every session on `database` is running (`pg_cancel_backend`); returns how many sessions there were.
    ///
    /// # Errors
    /// [`Error::Postgres`].
    pub async fn cancel_backends(&self, database: &str) -> Result<u64> {
        self.signal("pg_cancel_backend", database).await
    }

    /// Sets a parameter for the whole server (`ALTER SYSTEM`) and reloads; when this returns new sessions have it.
    /// Parameters that need a restart have it after [`restart`](Self::restart).
    ///
    /// # Errors
    /// [`Error::Postgres`] if there is no such parameter or it does not take the value.
    pub async fn set(&self, parameter: &str, value: &str) -> Result<()> {
        self.private("configure")?;
        let client = connect(&self.maintenance_url()).await?;
        let set = format!("ALTER SYSTEM SET {parameter} TO '{}'", value.replace('\'', "''"));
        client.batch_execute(&set).await.map_err(Error::postgres(format!("set {parameter}")))?;
        self.reload().await
    }

    /// Has the server read its configuration again; when this returns new sessions see it.
    ///
    /// # Errors
    /// [`Error::Postgres`].
    pub async fn reload(&self) -> Result<()> {
        const LOADED: &str = "SELECT extract(epoch FROM pg_conf_load_time())::float8 FROM pg_reload_conf()";
        const LOOK: &str = "SELECT extract(epoch FROM pg_conf_load_time())::float8";
        self.private("configure")?;
        let loaded = async |query| {
            let client = connect(&self.maintenance_url()).await?;
            let row = client.query_one(query, &[]).await.map_err(Error::postgres("reload the configuration"))?;
            Ok::<f64, Error>(row.get(0))
        };
        let before = loaded(LOADED).await?;
        while loaded(LOOK).await? <= before {
            pause().await;
        }
        Ok(())
    }

    async fn signal(&self, function: &str, database: &str) -> Result<u64> {
        let client = connect(&self.maintenance_url()).await?;
        let query = format!(
            "SELECT {function}(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid() \
             AND backend_type = 'client backend'"
        );
        let rows = client.query(&query, &[&database]).await.map_err(Error::postgres(function))?;
        Ok(rows.len() as u64)
    }

    /// Runs `work` where it may block.
    pub(super) async fn control<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Private) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.private(action)?;
        let server = self.clone();
        let run = move || match &server.inner.kind {
            Kind::Private(private) => work(private),
            Kind::External(_) => Err(Error::NotPrivate { action }),
        };
        blocking(run).await
    }
}

impl Private {
    fn stop(&self, signal: &str) -> Result<()> {
        let mut warden = self.warden.lock();
        if !is_alive(&mut warden)? {
            return Ok(());
        }
        warden.run("stop the server", &format!("kill -s {signal} $p"))?;
        let began = Instant::now();
        while is_alive(&mut warden)? {
            if began.elapsed() > PATIENCE {
                return Err(Error::Program { what: "the server did not stop".into(), output: self.log_tail() });
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn kill(&self) -> Result<()> {
        let mut warden = self.warden.lock();
        if !is_alive(&mut warden)? {
            return Ok(());
        }
        let postmaster = warden.run("find the server", "echo $p")?.trim().parse().unwrap_or(0);
        let mut all = processes::children(postmaster);
        all.push(postmaster);
        let words: Vec<_> = all.iter().map(ToString::to_string).collect();
        // The postmaster is stopped first, so that it starts no further child, and cannot answer the death of one.
        let line = format!("kill -s STOP $p; kill -s KILL {}; :", words.join(" "));
        warden.run("kill the server", &line)?;
        gone(|process| all.contains(&process.id) && !process.ended, || is_alive(&mut warden).map(drop))
    }

    fn kill_backend(&self, pid: i32) -> Result<()> {
        let mut warden = self.warden.lock();
        let postmaster = warden.run("find the server", "echo $p")?.trim().parse().unwrap_or(0);
        let pid = u32::try_from(pid).unwrap_or(0);
        if !processes::children(postmaster).contains(&pid) {
            return Err(Error::Program {
                what: format!("cannot kill backend {pid}"),
                output: "it is no process of this server, or no longer".into(),
            });
        }
        warden.run("kill a backend", &format!("kill -s KILL {pid}"))?;
        // Not only dead: the postmaster has waited for it, and with that has begun the restart.
        gone(|process| process.id == pid, || Ok(()))
    }
}

/// Waits until there is no such process.
fn gone(such: impl Fn(&processes::Process) -> bool, mut meanwhile: impl FnMut() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    loop {
        meanwhile()?;
        let left: Vec<_> = processes::all().into_iter().filter(&such).collect();
        if left.is_empty() {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(Error::Program { what: "processes did not end".into(), output: format!("{left:?}") });
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Between two looks at something that another process does.
pub(super) async fn pause() {
    // A thread's sleep: tests pause tokio's clock.
    blocking(|| thread::sleep(Duration::from_millis(2))).await;
}
