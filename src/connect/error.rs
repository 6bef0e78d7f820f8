//! Why no session could be opened, told so that the reader knows what to look at.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Why no session could be opened: for every address that was tried, how far the attempt got and what was said.
///
/// Cheap to clone. Whatever was said is part of `Display`, by the server as by a [`PasswordProvider`](crate::PasswordProvider)
/// that failed, so there is no [`source`](Error::source).
#[derive(Clone)]
pub struct ConnectError(Arc<Inner>);

struct Inner {
    /// `user app, database t2m`
    login: String,
    attempts: Vec<Attempt>,
    fatal: bool,
}

/// What happened at one address.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) endpoint: String,
    pub(super) problem: Problem,
}

/// How far an attempt to connect got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// The password was asked of its provider.
    PasswordProvider,
    /// The host's name was looked up.
    Resolve,
    /// The socket was being connected.
    Connect,
    /// TLS was negotiated and the server's certificate verified.
    Tls,
    /// The server checked who we are.
    Authenticate,
    /// The server was setting the session up.
    Startup,
    /// The session was there, but not on a server of the kind that `target_session_attrs` asks for.
    SessionAttributes,
    /// The time for the attempt was over.
    Timeout,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PasswordProvider => "the password provider failed",
            Self::Resolve => "the name was not resolved",
            Self::Connect => "no connection",
            Self::Tls => "no TLS",
            Self::Authenticate => "login refused",
            Self::Startup => "no session",
            Self::SessionAttributes => "not the server that is asked for",
            Self::Timeout => "timed out",
        })
    }
}

/// What went wrong, without where.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) phase: Phase,
    pub(super) detail: String,
    pub(super) sqlstate: Option<String>,
    pub(super) hint: Option<&'static str>,
    /// Trying again, here or elsewhere, would not help or would do harm.
    pub(super) fatal: bool,
}

impl Problem {
    pub(super) fn new(phase: Phase, detail: impl Into<String>) -> Self {
        Self { phase, detail: detail.into(), sqlstate: None, hint: None, fatal: false }
    }

    pub(super) fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }

    pub(super) fn fatal(mut self) -> Self {
        self.fatal = true;
        self
    }

    pub(super) fn timeout(during: Phase, after: Duration) -> Self {
        let doing = match during {
            Phase::PasswordProvider => "asking the password provider",
            Phase::Resolve => "looking the name up",
            Phase::Connect => "waiting for the connection to be accepted",
            Phase::Tls => "negotiating TLS",
            _ => "waiting for the server to start the session",
        };
        let after =
            humantime::format_duration(Duration::from_millis(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)));
        Self::new(Phase::Timeout, format!("after {after} {doing}"))
            .hint("look for a firewall that drops packets or a server that is overloaded; connect_timeout is the bound")
    }

    /// In the provider's words, those of the error's sources too: logs, health and most callers show no more than a text.
    pub(super) fn provider(error: &(dyn Error + 'static)) -> Self {
        let mut detail = error.to_string();
        let mut next = error.source();
        while let Some(source) = next {
            let said = source.to_string();
            // Some say their source's words themselves.
            if !detail.ends_with(&said) {
                detail = format!("{detail}: {said}");
            }
            next = source.source();
        }
        Self::new(Phase::PasswordProvider, detail)
    }

    /// Both attempts of `sslmode=prefer` failed: the words of the one that got further, or of both.
    pub(super) fn after_encrypted(self, encrypted: Self) -> Self {
        if encrypted.phase != Phase::Tls {
            return encrypted; // the server spoke of the login; without TLS it would only add that it wants TLS
        }
        let detail = format!("{}; before that, encrypted: {}", self.detail, encrypted.detail);
        Self { detail, ..self }
    }

    /// Nothing can be won at the next host either: the login was decided, or it never started.
    pub(super) fn ends_the_list(&self) -> bool {
        self.fatal && matches!(self.phase, Phase::Authenticate | Phase::Startup)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.phase)?;
        if !self.detail.is_empty() {
            let separator = if self.phase == Phase::Timeout { " " } else { ": " };
            write!(f, "{separator}{}", self.detail)?;
        }
        if let Some(code) = &self.sqlstate {
            write!(f, " ({code})")?;
        }
        Ok(())
    }
}

impl ConnectError {
    pub(super) fn new(login: String, attempts: Vec<Attempt>) -> Self {
        let stopped = attempts.last().is_some_and(|last| last.problem.ends_the_list());
        let fatal = stopped || (!attempts.is_empty() && attempts.iter().all(|attempt| attempt.problem.fatal));
        Self(Arc::new(Inner { login, attempts, fatal }))
    }

    /// Trying again would fail in the same way: a wrong password, no such role or database, TLS refused or not trusted.
    ///
    /// Everything else may pass: refused, unreachable, timed out, starting up, too many connections, not the primary yet.
    pub fn is_fatal(&self) -> bool {
        self.0.fatal
    }

    /// How far the last attempt got.
    pub fn phase(&self) -> Phase {
        self.0.attempts.last().map_or(Phase::Connect, |attempt| attempt.problem.phase)
    }

    /// The SQLSTATE with which a server refused the session, if one did; the last one if several did.
    pub fn sqlstate(&self) -> Option<&str> {
        self.0.attempts.iter().rev().find_map(|attempt| attempt.problem.sqlstate.as_deref())
    }

    /// Where it was tried, in order: `host:port`, with the address where a name was looked up, or a socket's path.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.0.attempts.iter().map(|attempt| attempt.endpoint.as_str())
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { login, attempts, .. } = &*self.0;
        match attempts.as_slice() {
            [Attempt { endpoint, problem }] => write!(f, "cannot connect to {endpoint} ({login}): {problem}")?,
            attempts => {
                write!(f, "cannot connect to any of {} addresses ({login}): ", attempts.len())?;
                for (index, Attempt { endpoint, problem }) in attempts.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "; " };
                    write!(f, "{separator}{endpoint}: {problem}")?;
                }
            }
        }
        if let Some(hint) = attempts.iter().rev().find_map(|attempt| attempt.problem.hint) {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

/// As `Display`: there is nothing more to see.
impl fmt::Debug for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectError(\"{self}\")")
    }
}

impl Error for ConnectError {}

/// For what goes wrong around the opening of a session, at no address in particular.
impl ConnectError {
    fn of(endpoint: &str, problem: Problem) -> Self {
        Self::new("after login".to_owned(), vec![Attempt { endpoint: endpoint.to_owned(), problem }])
    }

    /// The session was there, but its first statements failed.
    pub(crate) fn setup(endpoint: &str, error: &dyn Error) -> Self {
        Self::of(endpoint, Problem::new(Phase::Startup, format!("setting the session up failed: {error}")))
    }

    /// The whole of it took longer than `connect_timeout`.
    pub(crate) fn timed_out(after: Duration) -> Self {
        Self::of("the server", Problem::timeout(Phase::Startup, after))
    }

    /// The same, when the login had gone through.
    pub(crate) fn timed_out_at(endpoint: &str, after: Duration) -> Self {
        Self::of(endpoint, Problem::timeout(Phase::Startup, after))
    }

    /// The attempt panicked, or its task was stopped with the runtime.
    pub(crate) fn stopped(why: &dyn fmt::Display) -> Self {
        Self::of("the server", Problem::new(Phase::Connect, format!("the attempt was stopped: {why}")))
    }
}
