//! The watchdog: a shell that holds the server and outlives us by the moment it takes to clean up.
//!
//! It reads lines from a pipe whose other end only we hold, and runs each of them. End of file means that we are gone,
//! however we went (returned, panicked, interrupted, SIGKILL): it then ends the server and removes its directory. Whatever
//! touches the directory is run by this shell, one line after the other, so nothing can still be writing there when it is
//! removed. As it runs in a process group of its own, Ctrl-C in a terminal reaches us only.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::account::Account;
use crate::testing::error::{Error, Result};

/// `$p` is the postmaster. Ignored signals stay ignored in what the shell starts, except where a program asks for them,
/// as PostgreSQL does. QUIT is an immediate shutdown: the data is thrown away in any case.
const SCRIPT: &str = r#"
trap '' INT TERM HUP QUIT PIPE
p=
while IFS= read -r line; do eval "$line" </dev/null >out 2>&1; echo "$?"; done
if [ -n "$p" ]; then kill -s CONT "$p"; kill -s QUIT "$p"; wait "$p"; fi
cd /
for i in 1 2 3 4 5; do rm -rf "$T2M_DIRECTORY" && break; sleep 1; done
"#;

/// Owns a directory and the server in it. Dropping it removes both.
#[derive(Debug)]
pub(super) struct Warden {
    directory: PathBuf,
    shell: Child,
    lines: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
}

impl Warden {
    /// Takes `directory`, which must exist and belong to `account`, under its care.
    pub(super) fn guard(directory: &Path, account: &Account) -> Result<Self> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT]).current_dir(directory).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        for (name, _) in std::env::vars_os() {
            // PGPORT, PGDATA, PGHOST... are meant for another server.
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.env("T2M_DIRECTORY", directory).env("LC_ALL", "C");
        account.run(&mut command);
        let mut shell = command.spawn().map_err(Error::io("run", "/bin/sh"))?;
        let lines = shell.stdin.take();
        let Some(replies) = shell.stdout.take() else { unreachable!("stdout was piped") };
        Ok(Self { directory: directory.to_owned(), shell, lines, replies: BufReader::new(replies) })
    }

    /// Sets variables for everything that is run from now on.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(super) fn export(&mut self, variables: &[(String, String)]) -> Result<()> {
        for (name, value) in variables {
            self.run("set a variable", &format!("export {name}={}", quote(value)))?;
        }
        Ok(())
    }

    /// Runs a line of shell in the directory; returns what it printed.
    ///
    /// # Errors
    /// If it exits with anything but 0; `what` names it there.
    pub(super) fn run(&mut self, what: &str, line: &str) -> Result<String> {
        let lost = || Error::io("talk to the watchdog of", &self.directory);
        let lines = self.lines.as_mut().ok_or_else(|| Error::Program {
            what: format!("cannot {what}"),
            output: "the server is being removed".into(),
        })?;
        writeln!(lines, "{line}").and_then(|()| lines.flush()).map_err(lost())?;
        let mut status = String::new();
        self.replies.read_line(&mut status).map_err(lost())?;
        let output = self.directory.join("out");
        let output = fs::read_to_string(&output).map_err(Error::io("read", &output))?;
        if status.trim() == "0" {
            Ok(output)
        } else {
            Err(Error::Program { what: format!("cannot {what} (exit status {})", status.trim()), output })
        }
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        drop(self.lines.take());
        let _ = self.shell.wait();
        let _ = fs::remove_dir_all(&self.directory); // usually gone already
    }
}

/// `word` as the shell must be given it.
pub(super) fn quote(word: impl AsRef<Path>) -> String {
    format!("'{}'", word.as_ref().to_string_lossy().replace('\'', r"'\''"))
}
