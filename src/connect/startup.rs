//! What the first message of a session says: who we are and how the session shall be.
//!
//! Everything that a session needs is part of that message, so no round trip follows it, and `RESET ALL` restores exactly
//! this.

use std::fmt::Write as _;
use std::time::Duration;

use super::Driver;
use super::error::{Phase, Problem};
use crate::config::{ChannelBinding, Config};

/// All but the password of a provider.
pub(super) fn parameters(config: &Config) -> tokio_postgres::Config {
    let target = &config.target;
    let mut startup = tokio_postgres::Config::new();
    // TLS is negotiated before: what is left is to take the stream as it is, with its channel binding (see `transport`).
    startup
        .ssl_mode(tokio_postgres::config::SslMode::Require)
        .ssl_negotiation(tokio_postgres::config::SslNegotiation::Direct)
        .channel_binding(match target.channel_binding {
            ChannelBinding::Disable => tokio_postgres::config::ChannelBinding::Disable,
            ChannelBinding::Prefer => tokio_postgres::config::ChannelBinding::Prefer,
            ChannelBinding::Require => tokio_postgres::config::ChannelBinding::Require,
        })
        .application_name(&config.application_name)
        .options(options(config));
    if let Some(user) = &target.user {
        startup.user(user);
    }
    if let Some(database) = &target.database {
        startup.dbname(database);
    }
    if let Some(password) = &target.password {
        startup.password(password.expose());
    }
    startup
}

/// The caller's options, then ours.
///
/// - `default_transaction_read_only`: a write outside a transaction scope is refused by the server (`DESIGN.md`, BEGIN rides
///   with the first statement).
/// - `TimeZone`: what diesel-async would set by a statement, which `RESET ALL` would undo.
fn options(config: &Config) -> String {
    let mut options = config.target.options.as_deref().map_or_else(String::new, closed).trim().to_owned();
    if !options.is_empty() {
        options.push(' ');
    }
    options.push_str("-c default_transaction_read_only=on -c TimeZone=UTC");
    let spans = [
        ("client_connection_check_interval", config.client_connection_check_interval),
        ("idle_in_transaction_session_timeout", config.idle_in_transaction_timeout),
    ];
    for (name, span) in spans {
        if let Some(millis) = span.as_ref().map(Duration::as_millis) {
            // Writing to a string cannot fail.
            let _ = write!(options, " -c {name}={millis}");
        }
    }
    options
}

/// Whether the session is as it was asked to be, by what the server reports: since PostgreSQL 14 that is part of the login.
///
/// A pooler may drop start-up options without a word. Outside of a read-only session a statement whose BEGIN failed would
/// be stored, so there is no working without them.
pub(super) fn check(driver: &Driver) -> Result<(), Problem> {
    if driver.parameter("default_transaction_read_only") == Some("on") {
        return Ok(());
    }
    let detail =
        "the session is not read-only by default, although default_transaction_read_only=on was asked for in `options`";
    let hint = "a pooler on the way drops start-up options: connect to the server itself, or have the pooler pass this one on \
                (PgBouncer: into track_extra_parameters, and `options` out of ignore_startup_parameters)";
    Err(Problem::new(Phase::Startup, detail).hint(hint).fatal())
}

/// Without a backslash at the end that would escape the space which follows. The server itself ignores such a one.
fn closed(options: &str) -> String {
    let backslashes = options.bytes().rev().take_while(|byte| *byte == b'\\').count();
    options[..options.len() - backslashes % 2].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options_of(url: &str) -> String {
        options(&Config::from_url(url).unwrap().client_connection_check_interval(None))
    }

    const OURS: &str =
        "-c default_transaction_read_only=on -c TimeZone=UTC -c idle_in_transaction_session_timeout=60000";

    #[test]
    fn ours_come_last() {
        assert_eq!(options_of("postgres://h"), OURS);
        assert_eq!(options_of("postgres://h?options=-c%20work_mem=8MB%20"), format!("-c work_mem=8MB {OURS}"));
    }

    #[test]
    fn an_open_escape_does_not_swallow_them() {
        assert_eq!(options_of(r"postgres://h?options=-c%20a.b=x\"), format!("-c a.b=x {OURS}"));
        assert_eq!(options_of(r"postgres://h?options=-c%20a.b=x\\"), format!(r"-c a.b=x\\ {OURS}"));
        assert_eq!(options_of(r"postgres://h?options=-c%20a.b=x\\\"), format!(r"-c a.b=x\\ {OURS}"));
    }

    #[test]
    fn spans_are_milliseconds() {
        let config = Config::from_url("postgres://h").unwrap();
        let config =
            config.client_connection_check_interval(Duration::from_millis(1_500)).idle_in_transaction_timeout(None);
        assert!(options(&config).ends_with("TimeZone=UTC -c client_connection_check_interval=1500"));
    }
}
