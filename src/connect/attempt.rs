//! Going through hosts and addresses until one has us.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use super::error::{Attempt, Phase, Problem};
use super::hosts::{Route, routes, share};
use super::socket::{Patience, Socket};
use super::tls::{Answer, Tls};
use super::transport::{Established, Transport};
use super::{Canceller, Driver, Opened, startup, verdict};
use crate::config::{Config, PasswordProvider, Place, SslMode, TargetSessionAttrs};
use crate::wire::{Tap, Wire};

/// All that an attempt needs to know, and what has been warned of.
pub(super) struct Shared {
    pub(super) places: Vec<Place>,
    shuffle: bool,
    session_attrs: TargetSessionAttrs,
    patience: Patience,
    pub(super) timeout: Duration,
    tls: Tls,
    startup: tokio_postgres::Config,
    provider: Option<Arc<dyn PasswordProvider>>,
    /// `user app, database t2m`, for errors.
    pub(super) login: String,
    warned_of_plain_password: AtomicBool,
    warned_of_plain_session: AtomicBool,
}

impl Shared {
    /// `config` has been validated.
    pub(super) fn new(config: &Config) -> crate::Result<Self> {
        let target = &config.target;
        let user = target.user.as_deref().unwrap_or("of this process");
        let login = match target.database.as_deref().or(target.user.as_deref()) {
            Some(database) => format!("user {user}, database {database}"),
            None => format!("user {user}"),
        };
        Ok(Self {
            places: target.places.clone(),
            shuffle: target.shuffle,
            session_attrs: target.session_attrs,
            patience: Patience { keepalive: target.keepalive, user_timeout: user_timeout(config) },
            timeout: config.connect_timeout,
            tls: Tls::load(target)?,
            startup: startup::parameters(config),
            provider: config.password_provider.clone(),
            login,
            warned_of_plain_password: AtomicBool::new(false),
            warned_of_plain_session: AtomicBool::new(false),
        })
    }

    /// Goes through hosts and addresses. `None`: `attempts` has the reasons.
    pub(super) async fn try_all(self: &Arc<Self>, deadline: Instant, attempts: &mut Vec<Attempt>) -> Option<Opened> {
        let startup = match self.with_password(deadline).await {
            Ok(startup) => startup,
            Err(problem) => {
                let everywhere = self.places.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                attempts.push(Attempt { endpoint: everywhere, problem });
                return None;
            }
        };
        let mut spare = None;
        let mut places: Vec<_> = self.places.iter().collect();
        self.order(&mut places);
        for (index, place) in places.iter().enumerate() {
            // A session that is spare has to be set up too, should nothing better come: it has a share of the time.
            let had_spare = spare.is_some();
            let deadline = share(deadline, places.len() - index + usize::from(had_spare));
            let mut routes = match routes(place, deadline).await {
                Ok(routes) => routes,
                Err(problem) => {
                    attempts.push(Attempt { endpoint: place.to_string(), problem });
                    continue;
                }
            };
            self.order(&mut routes);
            for (index, route) in routes.iter().enumerate() {
                let found_spare = spare.is_some() && !had_spare;
                let deadline = share(deadline, routes.len() - index + usize::from(found_spare));
                match self.attempt(route, &startup, deadline).await.and_then(|opened| self.suits(opened)) {
                    Ok(Suits::Well(opened)) => return Some(opened),
                    Ok(Suits::AtNeed(opened)) => spare = spare.or(Some(opened)),
                    Err(problem) => {
                        let end = problem.ends_the_list();
                        attempts.push(Attempt { endpoint: route.to_string(), problem });
                        if end {
                            return spare;
                        }
                    }
                }
            }
        }
        spare
    }

    fn order<T>(&self, items: &mut [T]) {
        if self.shuffle {
            fastrand::shuffle(items);
        }
    }

    /// The startup message's content for this attempt.
    async fn with_password(&self, deadline: Instant) -> Result<Cow<'_, tokio_postgres::Config>, Problem> {
        let Some(provider) = &self.provider else {
            return Ok(Cow::Borrowed(&self.startup));
        };
        let begun = Instant::now();
        match timeout_at(deadline, provider.password()).await {
            Ok(Ok(password)) => {
                let mut startup = self.startup.clone();
                startup.password(password);
                Ok(Cow::Owned(startup))
            }
            Ok(Err(error)) => Err(Problem::provider(&*error)),
            Err(_) => Err(Problem::timeout(Phase::PasswordProvider, begun.elapsed())),
        }
    }

    /// One address, by `deadline`.
    async fn attempt(
        self: &Arc<Self>,
        route: &Route,
        startup: &tokio_postgres::Config,
        deadline: Instant,
    ) -> Result<Opened, Problem> {
        let begun = Instant::now();
        let phase = Mutex::new(Phase::Connect);
        match timeout_at(deadline, self.open(route, startup, &phase)).await {
            Ok(opened) => opened,
            Err(_) => Err(Problem::timeout(*phase.lock(), begun.elapsed())),
        }
    }

    /// One address, encrypted as `sslmode` says. A session over a unix socket never is.
    async fn open(
        self: &Arc<Self>,
        route: &Route,
        startup: &tokio_postgres::Config,
        phase: &Mutex<Phase>,
    ) -> Result<Opened, Problem> {
        let socket = Socket::open(&route.peer, &self.patience).await;
        let socket = socket.map_err(|error| verdict::of_socket(&error, &route.peer))?;
        let Some(host) = route.host_name().filter(|_| self.tls.mode != SslMode::Disable) else {
            return self.log_in(route, Transport::Plain(socket), startup, phase).await;
        };
        *phase.lock() = Phase::Tls;
        let encrypted = match self.tls.negotiate(socket, host).await {
            Ok(Answer::Encrypted(transport)) => self.log_in(route, transport, startup, phase).await,
            Ok(Answer::Unable(socket)) => return self.log_in(route, Transport::Plain(socket), startup, phase).await,
            Err(problem) => Err(problem),
        };
        match encrypted {
            Err(problem) if self.tls.mode == SslMode::Prefer && verdict::is_about_encryption(&problem) => {
                *phase.lock() = Phase::Connect;
                match self.open_plain(route, startup, phase).await {
                    Ok(opened) => {
                        self.warn_of_plain_session(route, &problem);
                        Ok(opened)
                    }
                    Err(plain) => Err(plain.after_encrypted(problem)),
                }
            }
            other => other,
        }
    }

    async fn open_plain(
        self: &Arc<Self>,
        route: &Route,
        startup: &tokio_postgres::Config,
        phase: &Mutex<Phase>,
    ) -> Result<Opened, Problem> {
        let socket = Socket::open(&route.peer, &self.patience).await;
        let socket = socket.map_err(|error| verdict::of_socket(&error, &route.peer))?;
        self.log_in(route, Transport::Plain(socket), startup, phase).await
    }

    /// Starts the session on a stream with nothing left to negotiate.
    async fn log_in(
        self: &Arc<Self>,
        route: &Route,
        transport: Transport,
        startup: &tokio_postgres::Config,
        phase: &Mutex<Phase>,
    ) -> Result<Opened, Problem> {
        *phase.lock() = Phase::Startup;
        let encrypted = transport.is_encrypted();
        let established = Established { binding: transport.channel_binding() };
        let wire = Wire::new();
        let begun = startup.connect_raw(Tap::new(transport, Arc::clone(&wire)), established).await;
        if wire.asked_for_password() && !encrypted && route.peer.is_across_a_network() {
            self.warn_of_plain_password(route);
        }
        let (client, connection) = begun.map_err(|error| verdict::of_login(&error))?;
        let driver = Driver(connection);
        startup::check(&driver)?;
        Ok(Opened {
            canceller: Canceller {
                shared: Arc::clone(self),
                route: route.clone(),
                encrypted,
                token: client.cancel_token(),
            },
            endpoint: route.place.to_string(),
            client,
            driver,
            wire,
        })
    }

    fn suits(&self, opened: Opened) -> Result<Suits, Problem> {
        let standby = opened.driver.parameter("in_hot_standby").map(|word| word == "on");
        suits(self.session_attrs, standby).map(|well| if well { Suits::Well(opened) } else { Suits::AtNeed(opened) })
    }

    pub(super) fn warn_of_plain_password(&self, route: &Route) {
        if !self.warned_of_plain_password.swap(true, Relaxed) {
            tracing::warn!(
                endpoint = %route,
                "the server asked for the password in clear text or as MD5, and it went over the network unencrypted; \
                 use sslmode=verify-full, or scram-sha-256 at the server"
            );
        }
    }

    fn warn_of_plain_session(&self, route: &Route, why: &Problem) {
        if !self.warned_of_plain_session.swap(true, Relaxed) {
            tracing::warn!(endpoint = %route, %why, "sslmode=prefer: encryption failed, this session goes without");
        }
    }

    /// A socket to `route`, for [`Canceller`].
    pub(super) async fn dial(&self, route: &Route) -> io::Result<Socket> {
        Socket::open(&route.peer, &self.patience).await
    }

    /// TLS as for a session, for [`Canceller`].
    pub(super) async fn encrypt(&self, socket: Socket, host: &str) -> io::Result<Transport> {
        match self.tls.negotiate(socket, host).await {
            Ok(Answer::Encrypted(transport)) => Ok(transport),
            Ok(Answer::Unable(_)) => Err(io::Error::other("the server does not support TLS any more")),
            Err(problem) => Err(io::Error::other(problem.to_string())),
        }
    }
}

/// Whether a session is on a server of the kind that was asked for.
enum Suits {
    Well(Opened),
    /// Better than none: a primary where a standby is preferred.
    AtNeed(Opened),
}

/// `Ok(false)`: at need. `standby` is the server's own report, which PostgreSQL sends since version 14; whether sessions are
/// read-only by default says nothing, since ours all are.
fn suits(wanted: TargetSessionAttrs, standby: Option<bool>) -> Result<bool, Problem> {
    let not = |said: &str| Err(Problem::new(Phase::SessionAttributes, said));
    match (wanted, standby) {
        (TargetSessionAttrs::Any, _)
        | (TargetSessionAttrs::Primary, Some(false))
        | (TargetSessionAttrs::Standby | TargetSessionAttrs::PreferStandby, Some(true)) => Ok(true),
        (TargetSessionAttrs::PreferStandby, _) => Ok(false),
        (TargetSessionAttrs::Primary, Some(true)) => not("it is a standby"),
        (TargetSessionAttrs::Standby, Some(false)) => not("it is a primary"),
        (TargetSessionAttrs::Primary | TargetSessionAttrs::Standby, None) => {
            not("it does not say whether it is a standby (PostgreSQL does; is it a proxy?)")
        }
    }
}

/// Half of what a checkout may take, so that the other half is left to send a first flight again.
fn user_timeout(config: &Config) -> Option<Duration> {
    config.tcp_user_timeout.map(|timeout| timeout.min(config.checkout_timeout / 2).max(Duration::from_millis(1)))
}
