//! A proxy between client and server that a test holds in its hand.
//!
//! It understands the protocol's messages in both directions, so a test can say "when COMMIT has been forwarded" and need
//! not guess a time. It runs on a thread of its own: it goes on while a test blocks its runtime or pauses its clock.
//! Connections for a cancel request pass through like any other, and are never held. Once a client and the server agree on
//! encryption, messages cannot be told apart: bytes are passed on, [held](Proxy::hold_replies), delayed and cut as pieces.
//!
//! What it promises: a method that returns has taken effect for every message that is forwarded from then on.

mod link;
mod listen;
mod message;
mod state;

use std::future::{Future, pending};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{env, fmt, fs, process};

use tokio::sync::watch;
use tokio::time::timeout;

use self::link::Shared;
use self::listen::{Address, Upstream};
use self::state::State;
use super::error::{Error, Result};
use super::url;

pub use message::{Frontend, Match, Message};
pub use state::{Counts, When};

/// How long a test may wait for something to happen before it is told that it does not: see [`Gate`].
const PATIENCE: Duration = Duration::from_secs(60);

/// A proxy in front of a server. When it is dropped its connections are cut, and its address is gone.
#[derive(Debug)]
pub struct Proxy {
    shared: Shared,
    url: String,
}

impl Proxy {
    /// A proxy on a free port of 127.0.0.1 in front of the server of `url`.
    ///
    /// # Errors
    /// If the URL names no host.
    ///
    /// # Cancel safety
    /// Yes.
    pub async fn start(url: &str) -> Result<Self> {
        Self::launch(url, Address::tcp).await
    }

    /// A proxy on a Unix socket in front of the server of `url`.
    ///
    /// # Errors
    /// If the URL names no host, or the socket's folder cannot be made.
    ///
    /// # Cancel safety
    /// Yes.
    pub async fn start_unix(url: &str) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("t2m-proxy-{}-{}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let folder: PathBuf = env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(Error::io("make", &folder))?;
        Self::launch(url, || Ok(Address::unix(folder))).await
    }

    async fn launch(url: &str, address: impl FnOnce() -> std::io::Result<Address>) -> Result<Self> {
        let failed = || Error::io("start a proxy in front of", "the server");
        let upstream = Upstream::of(url).map_err(failed())?;
        let address = address().map_err(failed())?;
        let shared: Shared = Arc::new(watch::Sender::new(State::default()));
        let proxy = Self { shared: shared.clone(), url: url::with_host(url, &address.host()) };
        let runtime = listen::runtime().map_err(failed())?;
        let listener = {
            let _inside = runtime.enter();
            address.listen().map_err(failed())?
        };
        runtime.spawn(listen::serve(shared, address, listener, upstream));
        proxy.until(|state| state.listening).await; // a method that returns has taken effect
        Ok(proxy)
    }

    /// The URL it was started with, through the proxy.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The URL of another database of that server, through the proxy.
    pub fn url_of(&self, database: &str) -> String {
        url::with_database(&self.url, database)
    }

    /// What has gone through.
    pub fn counts(&self) -> Counts {
        self.shared.borrow().counts.clone()
    }

    /// Counts from zero again, and forgets the [statements](Self::statements).
    pub fn reset_counts(&self) {
        self.shared.send_modify(|state| {
            state.counts = Counts::default();
            state.statements.clear();
        });
    }

    /// How many [round trips](Counts::round_trips) there were.
    pub fn round_trips(&self) -> u64 {
        self.shared.borrow().counts.round_trips
    }

    /// What the server was told to run, in order: the last 10,000 of them.
    pub fn statements(&self) -> Vec<Message> {
        self.shared.borrow().statements.iter().cloned().collect()
    }

    /// How many connections are open: those of clients that are gone are counted until the server has noticed.
    pub fn connections(&self) -> usize {
        self.shared.borrow().links.len()
    }

    /// Waits until exactly `count` connections are open.
    pub async fn until_connections(&self, count: usize) {
        self.until(move |state| state.links.len() == count).await;
    }

    /// Holds every reply back from now on.
    pub fn hold_replies(&self) {
        self.shared.send_modify(|state| state.hold(None));
    }

    /// Holds the reply to a message back, and all that come after it on its connection, from the next such message on.
    pub fn hold_replies_to(&self, message: impl Into<Match>) {
        let message = message.into();
        self.shared.send_modify(|state| state.hold(Some(message)));
    }

    /// Lets one held reply go, or the next one that comes if none is held yet. A reply reaches up to where the server
    /// waits for the client again: to `ReadyForQuery`, a question for the password, or the begin of a COPY.
    pub fn release_one(&self) {
        self.shared.send_modify(State::release_one);
    }

    /// Lets every reply go, and holds none any more.
    pub fn release_all(&self) {
        self.shared.send_modify(State::release_all);
    }

    /// Waits until `count` replies or more are held.
    pub async fn until_held(&self, count: u64) {
        self.until(move |state| state.held() >= count).await;
    }

    /// Passes when such a message has been forwarded to the server; one that was forwarded before this call does not
    /// count, however late the gate is first polled.
    pub fn until_sent(&self, message: impl Into<Match>) -> Gate {
        let mut number = 0;
        let message = message.into();
        self.shared.send_modify(|state| number = state.expect(message));
        self.gate(move |state| !state.is_expected(number))
    }

    /// Cuts the connection of the next such message, once. The gate passes when it is cut; it need not be waited for.
    pub fn cut(&self, when: When, message: impl Into<Match>) -> Gate {
        let mut number = 0;
        let message = message.into();
        self.shared.send_modify(|state| number = state.add_cut(when, message));
        self.gate(move |state| !state.is_cut_pending(number))
    }

    /// Cuts every connection, now.
    pub fn cut_all(&self) {
        self.shared.send_modify(|state| state.links.values_mut().for_each(|link| link.cut = true));
    }

    /// Swallows everything from now on, both ways, the end of a connection included; keeps every socket open, and takes
    /// new connections. What a network does when it drops packets, except that the system still acknowledges them.
    pub fn go_silent(&self) {
        self.shared.send_modify(|state| {
            state.silent = true;
            state.links.values_mut().for_each(|link| link.silent = true);
        });
    }

    /// Ends the silence for new connections. Those that lost something stay silent.
    pub fn speak(&self) {
        self.shared.send_modify(|state| state.silent = false);
    }

    /// Delays what goes to the server and what comes from it by this much, each way.
    pub fn delay(&self, each_way: Duration) {
        self.shared.send_modify(|state| state.delay = each_way);
    }

    /// Refuses new connections, as a host does on which nobody listens.
    pub async fn refuse(&self) {
        self.shared.send_modify(|state| state.refusing = true);
        self.until(|state| !state.listening).await;
    }

    /// Takes new connections again.
    pub async fn accept(&self) {
        self.shared.send_modify(|state| state.refusing = false);
        self.until(|state| state.listening).await;
    }

    async fn until(&self, happened: impl FnMut(&State) -> bool + Send + 'static) {
        self.gate(happened).await;
    }

    fn gate(&self, happened: impl FnMut(&State) -> bool + Send + 'static) -> Gate {
        Gate(Box::pin(wait(self.shared.subscribe(), happened)))
    }
}

/// Waits in the proxies' runtime, whose clock nobody pauses.
async fn wait(mut changes: watch::Receiver<State>, happened: impl FnMut(&State) -> bool + Send + 'static) {
    let Ok(runtime) = listen::runtime() else { unreachable!("the proxy runs in it") };
    let waiting = runtime.spawn(async move {
        let waited = timeout(PATIENCE, changes.wait_for(happened)).await.map(|found| found.is_ok());
        waited.map_err(|_| format!("{:?}", *changes.borrow()))
    });
    match waiting.await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => pending().await, // the proxy is gone: it will not happen
        Ok(Err(state)) => panic!("what a test waits for has not happened in {PATIENCE:?}; the proxy: {state}"),
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.send_modify(|state| state.closed = true);
    }
}

/// Something that is going to happen in a [`Proxy`]; await it. Dropping it changes nothing.
///
/// # Panics
/// After a minute, with what the proxy knows: a test that waits for what never comes has failed. So it is with the methods
/// of [`Proxy`] that wait.
pub struct Gate(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Future for Gate {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}
