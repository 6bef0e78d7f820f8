//! What a caller may set, what it is when nothing is set, and why.
//!
//! A [`Config`] is plain data. It comes from a URL ([`Config::from_url`]), from the environment ([`Config::from_env`]) or
//! from a file by serde; builder methods then override single settings. Each of the three sources knows every setting by
//! the same name, and refuses a name that it does not know by telling the closest one that it does.
//!
//! Nothing is checked until a connection is asked for: then all of it is, once, and the first impossible value becomes
//! [`Error::Config`](crate::Error::Config) with the setting, its value and what is allowed.
//!
//! **Invariant**: no `Debug` output and no error of this module holds a password or a part of one, whatever the URL looks
//! like. That is why URLs are parsed here and never handed to another parser, whose errors could quote them.

mod builder;
mod de;
mod env;
mod password;
mod retry;
mod session;
mod settings;
mod target;
mod text;
mod url;
mod validate;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use password::PasswordProvider;
pub use retry::Retry;
pub use session::{CommitResolution, SessionReset};
pub(crate) use target::{ChannelBinding, Host, Keepalive, Place, RootCert, SslMode, Target, TargetSessionAttrs, Trust};

/// How to reach PostgreSQL and how to keep connections to it.
///
/// ```
/// use std::time::Duration;
/// use t2m_db::Config;
///
/// # fn main() -> t2m_db::Result<()> {
/// let config = Config::from_url("postgres://app:secret@db.internal/t2m?sslmode=require")?
///     .max_size(20)
///     .min_idle(5)
///     .idle_timeout(None) // keep surplus connections until they are old
///     .checkout_timeout(Duration::from_secs(3));
/// assert!(!format!("{config:?}").contains("secret"));
/// # Ok(())
/// # }
/// ```
///
/// # From a file
///
/// `Config` is `serde::Deserialize`: a map with the key `url` and any of the builder methods' names. Durations are text such
/// as `"30s"` or `"1h 30m"`, a duration that can be switched off is `"off"` then, and [`Retry`] is spread over
/// `retry_attempts`, `retry_base`, `retry_cap`, `retry_budget` and `retry_on_lock_timeout`.
#[derive(Clone)]
#[must_use]
pub struct Config {
    pub(crate) target: Target,
    pub(crate) password_provider: Option<Arc<dyn PasswordProvider>>,

    pub(crate) max_size: u32,
    pub(crate) min_idle: u32,
    pub(crate) max_waiting: Option<usize>,
    pub(crate) checkout_timeout: Duration,
    pub(crate) queue_target: Option<Duration>,
    pub(crate) queue_interval: Duration,

    pub(crate) connect_timeout: Duration,
    pub(crate) application_name: String,
    pub(crate) tcp_user_timeout: Option<Duration>,
    pub(crate) client_connection_check_interval: Option<Duration>,
    pub(crate) idle_in_transaction_timeout: Option<Duration>,

    pub(crate) max_lifetime: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) keepalive: Option<Duration>,
    pub(crate) health_interval: Option<Duration>,

    pub(crate) cleanup_timeout: Duration,
    pub(crate) session_reset: SessionReset,
    pub(crate) commit_resolution: CommitResolution,
    pub(crate) statement_cache_size: usize,
    pub(crate) retry: Retry,

    pub(crate) leak_threshold: Option<Duration>,
    pub(crate) slow_threshold: Option<Duration>,
}

impl Config {
    /// Reads a `postgres://` or `postgresql://` URL as libpq does; everything else is at its default.
    ///
    /// The form is `postgres://user:password@host:port,host2:port2/database?parameter=value&...`. A host that is a
    /// percent-encoded absolute path (`%2Frun%2Fpostgresql`) is the directory of a unix socket. Characters `@ : / ? # %` in
    /// a user name or a password must be percent-encoded; an `@` elsewhere in the URL must be, too, because it nearly
    /// always is the end of a password that was not.
    ///
    /// # Parameters
    ///
    /// With the meaning that [libpq](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS) gives them:
    ///
    /// | parameter | values | default |
    /// |---|---|---|
    /// | `user`, `password`, `dbname`, `host`, `port` | override what the URL says before the `?` | the user of the process, none, the user's name, -, 5432 |
    /// | `hostaddr` | numeric addresses, one per host: skips the look-up, names stay for certificates | |
    /// | `sslmode` | `disable`, `prefer`, `require`, `verify-ca`, `verify-full` | `prefer`; with `sslrootcert=system` `verify-full` |
    /// | `sslrootcert` | PEM file, or `system` | none: `verify-ca` and `verify-full` need one |
    /// | `sslcert`, `sslkey` | PEM files, both or neither | none |
    /// | `sslnegotiation` | `postgres`, `direct` | `postgres` |
    /// | `channel_binding` | `disable`, `prefer`, `require` | `prefer` |
    /// | `target_session_attrs` | `any`, `read-write`, `read-only`, `primary`, `standby`, `prefer-standby` | `any` |
    /// | `load_balance_hosts` | `disable`, `random` | `disable` |
    /// | `options` | server options, as `-c name=value` | none |
    /// | `application_name` | as [`application_name`](Self::application_name) | `t2m-db` |
    /// | `connect_timeout` | seconds, as [`connect_timeout`](Self::connect_timeout) | 5 |
    /// | `tcp_user_timeout` | milliseconds, as [`tcp_user_timeout`](Self::tcp_user_timeout) | 30000 |
    /// | `keepalives`, `keepalives_idle`, `keepalives_interval`, `keepalives_count` | `0` or `1`, seconds, seconds, probes | 1, 30, 10, 3 |
    ///
    /// Sessions opened here are read-only outside of a transaction scope, so of `target_session_attrs` `read-write` means the
    /// same as `primary`, and `read-only` the same as `standby`. Files that libpq would look for by itself
    /// (`~/.postgresql/*`, `~/.pgpass`) and its `PG*` variables are not read: what a server connects to is what its URL says.
    ///
    /// # Errors
    ///
    /// [`Error::Config`](crate::Error::Config) with the setting `url` or the parameter's name. No part of a password is in it.
    pub fn from_url(url: &str) -> crate::Result<Self> {
        url::parse(url)
    }

    /// Reads `DATABASE_URL` (as [`from_url`](Self::from_url)) and then `T2M_DB_<SETTING>` for every builder method:
    /// `T2M_DB_MAX_SIZE=20`, `T2M_DB_CHECKOUT_TIMEOUT=3s`, `T2M_DB_IDLE_TIMEOUT=off`, ...
    ///
    /// Durations are a number with a unit, as `30s`, `250ms` or `1h 30m`. [`Retry`] is spread over `T2M_DB_RETRY_ATTEMPTS`,
    /// `_BASE`, `_CAP`, `_BUDGET` and `_ON_LOCK_TIMEOUT`. A variable that is set but empty counts as not set, and
    /// `T2M_DB_TEST_*` belong to `t2m_db::testing`.
    ///
    /// # Errors
    ///
    /// [`Error::Config`](crate::Error::Config) when `DATABASE_URL` is missing or malformed, when a value cannot be read, and when
    /// there is a `T2M_DB_*` variable that is no setting: it names the closest one, since a misspelt setting that is
    /// silently ignored is found out in an incident.
    pub fn from_env() -> crate::Result<Self> {
        env::from_vars(std::env::vars_os())
    }

    /// The defaults, for `target`. Their reasons stand at the builder methods.
    fn for_target(target: Target) -> Self {
        const fn secs(n: u64) -> Duration {
            Duration::from_secs(n)
        }
        Self {
            target,
            password_provider: None,
            max_size: 10,
            min_idle: 1,
            max_waiting: None,
            checkout_timeout: secs(10),
            queue_target: None,
            queue_interval: secs(1),
            connect_timeout: secs(5),
            application_name: "t2m-db".into(),
            tcp_user_timeout: Some(secs(30)),
            client_connection_check_interval: Some(secs(1)),
            idle_in_transaction_timeout: Some(secs(60)),
            max_lifetime: Some(secs(30 * 60)),
            idle_timeout: Some(secs(10 * 60)),
            keepalive: Some(Self::DEFAULT_KEEPALIVE),
            health_interval: Some(secs(15)),
            cleanup_timeout: secs(5),
            session_reset: SessionReset::WhenDirty,
            commit_resolution: CommitResolution::On,
            statement_cache_size: 256,
            retry: Retry::default(),
            leak_threshold: Some(secs(30)),
            slow_threshold: Some(secs(1)),
        }
    }

    const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(120);
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Destructured so that a new field has to be thought of here.
        let Self {
            target,
            password_provider,
            max_size,
            min_idle,
            max_waiting,
            checkout_timeout,
            queue_target,
            queue_interval,
            connect_timeout,
            application_name,
            tcp_user_timeout,
            client_connection_check_interval,
            idle_in_transaction_timeout,
            max_lifetime,
            idle_timeout,
            keepalive,
            health_interval,
            cleanup_timeout,
            session_reset,
            commit_resolution,
            statement_cache_size,
            retry,
            leak_threshold,
            slow_threshold,
        } = self;
        f.debug_struct("Config")
            .field("target", target)
            .field("password_provider", &password_provider.as_ref().map(|_| "***"))
            .field("max_size", max_size)
            .field("min_idle", min_idle)
            .field("max_waiting", max_waiting)
            .field("checkout_timeout", checkout_timeout)
            .field("queue_target", queue_target)
            .field("queue_interval", queue_interval)
            .field("connect_timeout", connect_timeout)
            .field("application_name", application_name)
            .field("tcp_user_timeout", tcp_user_timeout)
            .field("client_connection_check_interval", client_connection_check_interval)
            .field("idle_in_transaction_timeout", idle_in_transaction_timeout)
            .field("max_lifetime", max_lifetime)
            .field("idle_timeout", idle_timeout)
            .field("keepalive", keepalive)
            .field("health_interval", health_interval)
            .field("cleanup_timeout", cleanup_timeout)
            .field("session_reset", session_reset)
            .field("commit_resolution", commit_resolution)
            .field("statement_cache_size", statement_cache_size)
            .field("retry", retry)
            .field("leak_threshold", leak_threshold)
            .field("slow_threshold", slow_threshold)
            .finish()
    }
}
