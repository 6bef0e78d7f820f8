//! How one session is opened, and how what it runs is cancelled.
//!
//! A [`Connector`] tries the hosts of the URL in turn, and each address of a name; dials, encrypts and logs in; and hands
//! out an [`Opened`]: the client, the driver that moves its bytes, the [`Wire`] that watches them, and a [`Canceller`].
//! Nothing is spawned here: the caller polls the driver.
//!
//! **Promises**: an attempt ends within `connect_timeout`, whatever hangs. A session is set up by its first message alone. A
//! failure says for each address how far it got ([`ConnectError`]), and whether trying again can help.
//!
//! **Must never**: show a password, or keep one that a provider told.

mod attempt;
mod cancel;
mod error;
mod hosts;
mod socket;
mod startup;
mod tls;
mod transport;
mod verdict;
mod verify;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;
use tokio_postgres::{AsyncMessage, Client, Connection};

use self::attempt::Shared;
use self::transport::{Bound, Transport};
use crate::config::Config;
use crate::wire::{Tap, Wire};

pub(crate) use cancel::Canceller;
pub use error::{ConnectError, Phase};

/// Opens sessions, all alike. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connector(Arc<Shared>);

/// A session that is ready for its first request.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) client: Client,
    pub(crate) driver: Driver,
    pub(crate) wire: Arc<Wire>,
    pub(crate) canceller: Canceller,
    /// `host:port`, or the path of the socket.
    pub(crate) endpoint: String,
}

/// Moves a session's bytes while it is polled, and is the first to learn why a session ended.
pub(crate) struct Driver(Connection<Tap<Transport>, Bound<Tap<Transport>>>);

impl Driver {
    /// The next notice or notification. `None` and `Some(Err(_))` are the end: the session is gone, and must not be polled again.
    pub(crate) fn poll_message(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<AsyncMessage, tokio_postgres::Error>>> {
        self.0.poll_message(cx)
    }

    /// The value of a parameter that the server reports by itself, as of the last message: `in_hot_standby`, ...
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.0.parameter(name)
    }
}

impl Connector {
    /// Checks `config` and reads the files that it names.
    ///
    /// # Errors
    ///
    /// [`Error::Config`](crate::Error::Config), the only error that no retry can mend without a restart.
    pub(crate) fn new(config: &Config) -> crate::Result<Self> {
        config.validate()?;
        Ok(Self(Arc::new(Shared::new(config)?)))
    }

    /// Opens a session on the first server that will have us.
    ///
    /// # Errors
    ///
    /// No server would; see [`ConnectError::is_fatal`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes whatever was being opened.
    pub(crate) async fn connect(&self) -> Result<Opened, ConnectError> {
        let deadline = Instant::now() + self.0.timeout;
        let mut attempts = Vec::new();
        match self.0.try_all(deadline, &mut attempts).await {
            Some(opened) => Ok(opened),
            None => Err(ConnectError::new(self.0.login.clone(), attempts)),
        }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<_> = self.0.places.iter().map(ToString::to_string).collect();
        f.debug_struct("Connector").field("places", &places).field("login", &self.0.login).finish_non_exhaustive()
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Driver")
    }
}
