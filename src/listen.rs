//! Being woken by the server: `LISTEN` on a session of its own.
//!
//! A pooled connection that listens would leak its notifications to the next borrower, so a [`Listener`] has a session
//! **beside** `max_size`, one each, held by a task that reads it all the time: a session that listens and is not read keeps
//! the server's queue of notifications from being emptied. What the caller does not fetch in time is folded into one
//! [`Wake::Resumed`], so memory is bounded.
//!
//! **Promises**: once `listen` has returned, whatever is committed later wakes. When the session is lost another is opened,
//! however long it takes, and the caller is woken once, because something may have been missed meanwhile.

use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_postgres::AsyncMessage;

use crate::config::{Config, Retry};
use crate::connect::{ConnectError, Connector, Opened};
use crate::error::{Error, Result};
use crate::pool::Pool;

/// Notifications kept for a caller that does not fetch them.
const KEPT: usize = 256;

/// What woke a [`Listener`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wake {
    /// A transaction that notified the channel was committed.
    Notified {
        /// What `NOTIFY` said; often empty.
        payload: String,
    },
    /// Something may have been missed: the session was lost and opened anew, or more came than was fetched. Look again.
    Resumed,
}

/// Notifications of one channel; made by [`Database::listen`](crate::Database::listen). Dropped, its session is closed.
pub struct Listener {
    wakes: mpsc::Receiver<Wake>,
    channel: Arc<str>,
}

impl Listener {
    /// Waits for the next notification; `None` once the [`Database`](crate::Database) is closed or its last handle dropped.
    ///
    /// # Cancel safety
    /// Dropped while it waits, nothing is lost.
    pub async fn next(&mut self) -> Option<Wake> {
        self.wakes.recv().await
    }

    /// What it listens on.
    pub fn channel(&self) -> &str {
        &self.channel
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("channel", &self.channel).finish_non_exhaustive()
    }
}

/// Opens a session that listens on `channel`.
pub(crate) async fn listen(pool: &Arc<Pool>, channel: &str) -> Result<Listener> {
    // The server cuts a longer name of `LISTEN` off, and `pg_notify` refuses it.
    if !(1..=63).contains(&channel.len()) || channel.contains('\0') {
        let value = format!("{:?}", channel.chars().take(64).collect::<String>());
        return Err(Error::Invalid { field: "channel", value, allowed: "1 to 63 bytes without NUL".into() });
    }
    pool.start();
    // Before it is asked whether the pool is closed: whoever closes it after that waits for this listener.
    let closing = pool.until_closing();
    if pool.is_closed() {
        return Err(Error::Closed { scope: format!("listen({channel:?})") });
    }
    let (wakes, received) = mpsc::channel(KEPT);
    let mut listening = Listening {
        connector: pool.connector.clone(),
        config: pool.config.clone(),
        statement: format!("LISTEN \"{}\"", channel.replace('"', "\"\"")),
        channel: channel.into(),
        wakes,
        missed: false,
    };
    let session = listening.open().await.map_err(|error| Error::Connect(Box::new(error)))?;
    let channel = Arc::clone(&listening.channel);
    tokio::spawn(listening.run(session, closing));
    Ok(Listener { wakes: received, channel })
}

/// The task behind a [`Listener`].
struct Listening {
    connector: Connector,
    config: Config,
    statement: String,
    channel: Arc<str>,
    wakes: mpsc::Sender<Wake>,
    /// Something may have been, and the caller does not know yet.
    missed: bool,
}

impl Listening {
    async fn open(&mut self) -> Result<Opened, ConnectError> {
        let Opened { client, mut driver, wire, canceller, endpoint } = self.connector.connect().await?;
        let listened = {
            let mut listens = pin!(timeout(self.config.connect_timeout, client.batch_execute(&self.statement)));
            loop {
                tokio::select! {
                    answer = &mut listens => break answer,
                    message = poll_fn(|cx| driver.poll_message(cx)) => match message {
                        Some(Ok(_)) => self.missed = true,
                        Some(Err(error)) => break Ok(Err(error)),
                        None => return Err(ConnectError::setup(&endpoint, &Error::Connect("it was closed".into()))),
                    },
                }
            }
        };
        match listened {
            Ok(Ok(())) => Ok(Opened { client, driver, wire, canceller, endpoint }),
            Ok(Err(error)) => Err(ConnectError::setup(&endpoint, &error)),
            Err(_) => Err(ConnectError::timed_out_at(&endpoint, self.config.connect_timeout)),
        }
    }

    /// Until nobody wants to know any more. `closing` is held until the session is gone: that is what `close` waits for.
    async fn run(mut self, mut session: Opened, mut closing: watch::Receiver<bool>) {
        let patience = self.config.cleanup_timeout;
        while let Some(why) = self.serve(&mut session, &mut closing).await {
            tracing::warn!(channel = %self.channel, why, "listener lost its session");
            drop(session);
            self.missed = true;
            let nobody = self.wakes.clone();
            session = tokio::select! {
                session = self.reopen() => session,
                _ = closing.changed() => return,
                () = nobody.closed() => return,
            };
        }
        let Opened { client, mut driver, .. } = session;
        drop(client); // the driver says goodbye, and its stream ends when the server has closed
        let over = async { while let Some(Ok(_)) = poll_fn(|cx| driver.poll_message(cx)).await {} };
        let _ = timeout(patience, over).await;
    }

    async fn reopen(&mut self) -> Opened {
        let retry = Retry::default();
        for attempt in 0.. {
            sleep(retry.backoff(attempt)).await;
            match self.open().await {
                Ok(session) => return session,
                // Once for each outage.
                Err(error) if attempt == 0 => {
                    tracing::warn!(channel = %self.channel, %error, "listener cannot connect, tries on");
                }
                Err(error) => tracing::debug!(channel = %self.channel, %error, "listener cannot connect"),
            }
        }
        unreachable!("it tries for ever")
    }

    /// Passes on what comes until the session is lost, and says why; `None` when nobody wants to know any more.
    async fn serve(&mut self, session: &mut Opened, closing: &mut watch::Receiver<bool>) -> Option<String> {
        let Opened { client, driver, .. } = session;
        let (every, patience) = (self.config.keepalive, self.config.cleanup_timeout);
        let mut silent = pin!(silence(every, patience, || async { client.simple_query("").await.is_ok() }));
        loop {
            tokio::select! {
                _ = closing.changed() => return None,
                () = self.wakes.closed() => return None,
                room = self.wakes.reserve(), if self.missed => {
                    room.ok()?.send(Wake::Resumed);
                    self.missed = false;
                }
                message = poll_fn(|cx| driver.poll_message(cx)) => match message {
                    Some(Ok(AsyncMessage::Notification(one))) => {
                        let wake = Wake::Notified { payload: one.payload().to_owned() };
                        self.missed |= self.wakes.try_send(wake).is_err();
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Some(error.to_string()),
                    None => return Some("closed by the server".to_owned()),
                },
                () = &mut silent => return Some("no answer to a keepalive".to_owned()),
            }
        }
    }
}

/// Asks every now and then, and ends when there is no answer.
async fn silence<F: Future<Output = bool>>(every: Option<Duration>, patience: Duration, ask: impl Fn() -> F) {
    let Some(every) = every else { return pending().await };
    loop {
        sleep(every).await;
        if !timeout(patience, ask()).await.unwrap_or(false) {
            return;
        }
    }
}
