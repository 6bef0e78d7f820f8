//! The postmaster of a private server: started by the [`Warden`], ready when its own lock file says so.

use std::time::{Duration, Instant};
use std::{fs, net, thread};

use super::warden::{Warden, quote};
use super::{PATIENCE, Private, cluster};
use crate::testing::error::{Error, Result};

impl Private {
    /// The first start, which also settles where the server listens.
    pub(super) fn listen_and_start(mut self) -> Result<Self> {
        const ATTEMPTS: u32 = 5;
        for attempt in 1.. {
            if self.tcp {
                self.port = free_port()?;
            }
            let own = [
                ("port".to_owned(), self.port.to_string()),
                ("unix_socket_directories".to_owned(), self.directory.to_string_lossy().into_owned()),
            ];
            cluster::configure(&self.directory.join("data"), &own)?;
            match self.start_postmaster() {
                // Somebody took the port between our look and the server's.
                Err(Error::Program { output, .. }) if attempt < ATTEMPTS && output.contains("could not bind") => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        Ok(self)
    }

    /// Starts the postmaster and waits until it accepts connections.
    pub(super) fn start_postmaster(&self) -> Result<()> {
        let mut warden = self.warden.lock();
        let postgres = quote(self.binaries.program("postgres"));
        let id = warden.run("start the server", &format!("{postgres} -D data >>log 2>&1 & p=$!; echo $p"))?;
        let began = Instant::now();
        while !self.is_ready(id.trim()) {
            if !is_alive(&mut warden)? || began.elapsed() > PATIENCE {
                return Err(Error::Program { what: "the server did not start".into(), output: self.log_tail() });
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// The last line of `postmaster.pid` says when connections are accepted, the first one whose word that is.
    fn is_ready(&self, id: &str) -> bool {
        let text = fs::read_to_string(self.directory.join("data/postmaster.pid")).unwrap_or_default();
        let state = text.lines().nth(7).map(str::trim); // `standby`: accepts reads
        text.lines().next() == Some(id) && matches!(state, Some("ready" | "standby"))
    }

    pub(super) fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// Whether the postmaster runs. `jobs` makes the shell notice that it ended.
pub(super) fn is_alive(warden: &mut Warden) -> Result<bool> {
    let look = "jobs >/dev/null 2>&1; if [ -n \"$p\" ] && kill -s 0 $p 2>/dev/null; then echo alive; else p=; fi";
    Ok(warden.run("look after the server", look)?.trim() == "alive")
}

fn free_port() -> Result<u16> {
    let port = net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    Ok(port.map_err(Error::io("find a free port on", "127.0.0.1"))?.port())
}
