//! Asking the server to end the statement that a session is running.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tokio_postgres::CancelToken;
use tokio_postgres::tls::ChannelBinding;

use super::attempt::Shared;
use super::hosts::Route;
use super::tls;
use super::transport::{Established, Transport};

/// Cancels what one session is running, over a socket of its own to the same address.
#[derive(Clone)]
pub(crate) struct Canceller {
    pub(super) shared: Arc<Shared>,
    pub(super) route: Route,
    /// The request travels as protected as the session does.
    pub(super) encrypted: bool,
    pub(super) token: CancelToken,
}

impl Canceller {
    /// Has the server signal the session, and returns when it has.
    ///
    /// The server closes the socket after it has sent the signal, so once this has returned the signal cannot hit a
    /// statement that is sent later. It may still have come too late for the one it was meant for: the session's own reply tells.
    ///
    /// # Cancel safety
    ///
    /// Dropped before the end, the request may or may not be carried out, and may be carried out later.
    ///
    /// # Errors
    ///
    /// The address could not be reached, or TLS could not be negotiated with it; or it did not answer in `connect_timeout`.
    pub(crate) async fn cancel(&self) -> io::Result<()> {
        timeout(self.shared.timeout, self.request()).await?
    }

    /// Whether nothing comes back from the session's address either, for so long: whatever comes, a refusal included, is no
    /// silence. The server is asked for TLS, which it answers before there is a session.
    pub(crate) async fn is_silent(&self, patience: Duration) -> bool {
        let answer = async {
            match self.reach().await? {
                Transport::Plain(mut socket) => drop(tls::ask(&mut socket).await),
                Transport::Tls(_) => {}
            }
            io::Result::Ok(())
        };
        timeout(patience, answer).await.is_err()
    }

    /// A socket to the session's address, with nothing left to negotiate.
    async fn reach(&self) -> io::Result<Transport> {
        let socket = self.shared.dial(&self.route).await?;
        match self.route.host_name() {
            Some(host) if self.encrypted => self.shared.encrypt(socket, host).await,
            _ => Ok(Transport::Plain(socket)),
        }
    }

    async fn request(&self) -> io::Result<()> {
        let mut transport = self.reach().await?;
        let nothing_to_negotiate = Established { binding: ChannelBinding::none() };
        self.token.cancel_query_raw(&mut transport, nothing_to_negotiate).await.map_err(io::Error::other)?;
        let mut rest = [0; 64];
        loop {
            match transport.read(&mut rest).await {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                // The server need not end TLS, or the socket, politely.
                Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Canceller({})", self.route)
    }
}
