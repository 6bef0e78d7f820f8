//! One connection through a proxy: what the client sends goes to the server and back, as far as the [`State`] allows.
//!
//! Each direction is read and written by two loops with a queue between them, so that a message that is held back or
//! delayed never keeps the proxy from seeing the next one. What is read carries the time, so a delay is a matter of the
//! network and not of bandwidth.

use std::future::pending;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::timeout;

use super::message::{FromClient, FromServer, Message};
use super::state::{Gate, Reply, State};

/// A TCP or Unix stream.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

pub(super) type Stream = Box<dyn Socket>;
pub(super) type Shared = Arc<watch::Sender<State>>;

/// How much is read at once.
const CHUNK: usize = 64 * 1024;
/// How long a server may take to notice that its client has gone.
const FAREWELL: Duration = Duration::from_secs(60);

/// Something on its way, and when it came; `None` stands for the end of the stream.
type Item<T> = (Instant, Option<(T, Bytes)>);

/// Moves bytes until either side ends, or the connection is cut.
pub(super) async fn run(shared: Shared, connection: u64, client: Stream, server: Stream) {
    let (client_read, client_write) = tokio::io::split(client);
    let (mut server_read, mut server_write) = tokio::io::split(server);
    let (to_server, from_client) = unbounded_channel();
    let (to_client, from_server) = unbounded_channel();
    let link = LinkTo { shared: &shared, connection };
    // All in one task: what one loop does to the state is seen by the others in that order.
    let moves = async {
        tokio::join!(
            link.read_client(client_read, to_server),
            link.write_server(Queue { items: from_client, next: None }, &mut server_write),
            link.read_server(&mut server_read, to_client),
            link.write_client(Queue { items: from_server, next: None }, client_write),
        )
    };
    tokio::select! {
        biased;
        () = link.cut() => {} // drops both halves to the client
        _ = moves => {}
    }
    // What was forwarded is to be executed: the stream ends in good order, and is read to its end.
    let _ = server_write.shutdown().await;
    let farewell = async { while server_read.read_u8().await.is_ok() {} };
    let _ = timeout(FAREWELL, farewell).await;
    shared.send_modify(|state| state.close(connection));
}

/// The connection's hold on the state.
#[derive(Clone, Copy)]
struct LinkTo<'a> {
    shared: &'a Shared,
    connection: u64,
}

impl LinkTo<'_> {
    /// Changes the state; wakes those who wait for something if that has happened.
    fn change(self, work: impl FnOnce(&mut State)) {
        self.shared.send_if_modified(|state| {
            work(state);
            std::mem::take(&mut state.changed)
        });
    }

    async fn cut(self) {
        let gone = |state: &State| state.closed || state.links.get(&self.connection).is_none_or(|link| link.cut);
        let _ = self.shared.subscribe().wait_for(gone).await;
    }

    fn look<T: Default>(self, at: impl FnOnce(&super::state::Link) -> T) -> T {
        self.shared.borrow().links.get(&self.connection).map(at).unwrap_or_default()
    }

    async fn read_client(self, mut client: ReadHalf<Stream>, queue: UnboundedSender<Item<Message>>) {
        let mut messages = FromClient::default();
        let mut buffer = BytesMut::with_capacity(CHUNK);
        while receive(&mut client, &mut buffer).await {
            let now = Instant::now();
            while let Some((kind, text, bytes)) = messages.next(&mut buffer, self.look(|link| link.encrypted)) {
                let message = Message { kind, text, connection: self.connection };
                let _ = queue.send((now, Some((message, bytes))));
            }
        }
        let _ = queue.send((Instant::now(), None));
    }

    async fn write_server(self, mut queue: Queue<Message>, server: &mut WriteHalf<Stream>) {
        let mut batch = Vec::new();
        let mut out = BytesMut::new();
        let mut messages = Vec::new();
        loop {
            let end = queue.batch(&mut batch, || self.shared.borrow().delay).await;
            if self.look(|link| link.silent) {
                continue_silently(&mut batch, end).await;
                continue;
            }
            let mut cut = false;
            self.change(|state| {
                for (message, bytes) in batch.drain(..) {
                    cut = cut || !state.before_forward(&message);
                    if !cut {
                        out.extend_from_slice(&bytes);
                        messages.push(message);
                    }
                }
            });
            let written = server.write_all(&out).await;
            out.clear();
            self.change(|state| messages.drain(..).for_each(|message| state.after_forward(&message)));
            if end || cut || written.is_err() {
                let _ = server.shutdown().await;
                return;
            }
        }
    }

    async fn read_server(self, server: &mut ReadHalf<Stream>, queue: UnboundedSender<Item<Reply>>) {
        let mut buffer = BytesMut::with_capacity(CHUNK);
        while receive(server, &mut buffer).await {
            let now = Instant::now();
            self.change(|state| {
                loop {
                    let (lone, encrypted) = state
                        .links
                        .get(&self.connection)
                        .map_or((false, false), |link| (link.letter_due, link.encrypted));
                    let Some((letter, bytes)) = FromServer::next(&mut buffer, lone, encrypted) else { break };
                    let code = bytes.get(5..9).map_or(0, |mut code| code.get_u32());
                    let reply = state.received(self.connection, letter, code);
                    let _ = queue.send((now, Some((reply, bytes))));
                }
            });
        }
        let _ = queue.send((Instant::now(), None));
    }

    async fn write_client(self, mut queue: Queue<Reply>, mut client: WriteHalf<Stream>) {
        let mut batch = Vec::new();
        let mut out = BytesMut::new();
        loop {
            let end = queue.batch(&mut batch, || self.shared.borrow().delay).await;
            let mut rest = batch.drain(..).peekable();
            while rest.peek().is_some() {
                if self.look(|link| link.silent) {
                    rest.by_ref().for_each(drop);
                    break;
                }
                let mut wait = false;
                self.change(|state| {
                    while let Some((reply, bytes)) = rest.peek() {
                        match state.gate(self.connection, reply) {
                            Gate::Deliver => out.extend_from_slice(bytes),
                            Gate::Discard => {}
                            Gate::Wait => {
                                wait = true;
                                break;
                            }
                            Gate::Cut => break,
                        }
                        rest.next();
                    }
                });
                if client.write_all(&out).await.is_err() {
                    return;
                }
                out.clear();
                if wait {
                    let passes = |state: &State| !state.holds(self.connection);
                    let _ = self.shared.subscribe().wait_for(passes).await;
                } else if rest.peek().is_some() {
                    pending::<()>().await; // cut
                }
            }
            drop(rest);
            if end {
                if self.look(|link| link.silent) {
                    pending::<()>().await;
                }
                // The server has gone, so the connection is over both ways.
                self.change(|state| {
                    if let Some(link) = state.links.get_mut(&self.connection) {
                        link.cut = true;
                    }
                    state.changed = true;
                });
                return;
            }
        }
    }
}

/// Reads more into `buffer`; `false` at the end of the stream, however it ended.
async fn receive(stream: &mut ReadHalf<Stream>, buffer: &mut BytesMut) -> bool {
    buffer.reserve(CHUNK);
    matches!(stream.read_buf(buffer).await, Ok(1..))
}

/// What is on its way in one direction.
struct Queue<T> {
    items: UnboundedReceiver<Item<T>>,
    /// Taken out before it was due.
    next: Option<Item<T>>,
}

impl<T> Queue<T> {
    /// Waits for an item to be due, and takes all that are due by then into `batch`; returns whether the stream ends
    /// behind them.
    async fn batch(&mut self, batch: &mut Vec<(T, Bytes)>, delay: impl Fn() -> Duration) -> bool {
        let first = match self.next.take() {
            Some(item) => Some(item),
            None => self.items.recv().await,
        };
        let Some((came, mut item)) = first else { return true };
        let delay = delay();
        wait_until(came + delay).await;
        let now = Instant::now();
        while let Some(found) = item {
            batch.push(found);
            match self.items.try_recv() {
                Ok((came, next)) if came + delay <= now => item = next,
                Ok(early) => {
                    self.next = Some(early);
                    return false;
                }
                Err(_) => return false,
            }
        }
        true
    }
}

/// A silent network says nothing of an end either.
async fn continue_silently<T>(batch: &mut Vec<T>, end: bool) {
    batch.clear();
    if end {
        pending::<()>().await;
    }
}

/// A thread's sleep: tokio's clock counts in milliseconds, which is what is to be measured.
async fn wait_until(due: Instant) {
    let left = due.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        let _: Result<(), _> = tokio::task::spawn_blocking(move || thread::sleep(left)).await;
    }
}
