//! The pass-through stream, above TLS where there is TLS. It changes no byte; it delays one thing, the end: see [`AsyncWrite::poll_shutdown`].

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::Frames;
use super::report::Report;
use super::{Wire, XID_COLUMN, bump};

/// A stream that tells a [`Wire`] what passes through.
#[derive(Debug)]
pub(crate) struct Tap<S> {
    stream: S,
    wire: Arc<Wire>,
    up: Frames,
    down: Frames,
    /// Requests without an answer, oldest first: `true` where the answer matters.
    requests: VecDeque<bool>,
    /// The request being written holds more than the closing of a statement.
    matters: bool,
    /// The next row holds a transaction id.
    xid_next: bool,
    /// A `ROLLBACK` tag came since the last `ReadyForQuery`.
    rolled_back: bool,
}

impl<S> Tap<S> {
    pub(crate) fn new(stream: S, wire: Arc<Wire>) -> Self {
        Self {
            stream,
            wire,
            up: Frames::new(true),
            down: Frames::new(false),
            requests: VecDeque::new(),
            matters: false,
            xid_next: false,
            rolled_back: false,
        }
    }

    fn passed_up(&mut self, chunk: &[u8]) {
        let Self { wire, up, requests, matters, .. } = self;
        let reading = wire.reading.load(Relaxed);
        up.feed(
            chunk,
            |kind| if reading && matches!(kind, b'Q' | b'P') { usize::MAX } else { 0 },
            |kind, body| match kind {
                // The start-up packet is answered by the login's ReadyForQuery.
                0 | b'Q' => {
                    wire.passed_text(body);
                    requests.push_back(true);
                    wire.sent();
                }
                b'S' => {
                    requests.push_back(*matters);
                    if std::mem::take(matters) {
                        wire.sent();
                    }
                }
                b'C' => {
                    wire.statements.fetch_sub(1, Relaxed);
                }
                b'P' => {
                    // Behind the statement's name.
                    wire.passed_text(body.splitn(2, |byte| *byte == 0).nth(1).unwrap_or_default());
                    wire.statements.fetch_add(1, Relaxed);
                    *matters = true;
                }
                _ => *matters = true,
            },
        );
    }

    fn passed_down(&mut self, chunk: &[u8]) {
        let Self { wire, down, requests, xid_next, rolled_back, matters, .. } = self;
        down.feed(chunk, want_down, |kind, body| match kind {
            b'Z' => {
                let status = body.first().copied().unwrap_or(b'E');
                wire.ready(status);
                if std::mem::take(rolled_back) && status == b'I' {
                    bump(&wire.rollbacks);
                }
                if requests.pop_front() == Some(true) {
                    wire.answered();
                }
            }
            b'C' => {
                let tag = body.split(|byte| *byte == 0).next().unwrap_or_default();
                *rolled_back |= tag.starts_with(b"ROLLBACK");
                wire.completed(tag);
            }
            b'T' => *xid_next = body.get(2..).is_some_and(|name| name.starts_with(XID_COLUMN.as_bytes())),
            b'D' if std::mem::take(xid_next) => {
                if let Some(xid) = body.get(6..).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok()) {
                    wire.xid.store(xid, SeqCst);
                }
                bump(&wire.xid_answers);
            }
            b'N' => passed_notice(wire, Report::parse(body)),
            b'E' => {
                *xid_next = false;
                wire.reports.lock().push(Report::parse(body));
            }
            b'K' => {
                if let Some(pid) = body.first_chunk() {
                    wire.backend_pid.store(i32::from_be_bytes(*pid), Relaxed);
                }
            }
            // 3: clear text, 5: MD5. What follows from the client in answer is no request.
            b'R' => {
                *matters = false;
                if matches!(body.first_chunk(), Some([0, 0, 0, 3 | 5])) {
                    wire.plain_password.store(true, Relaxed);
                }
            }
            _ => {}
        });
    }
}

/// A server that stops at once, or after a crash, says so in a warning, and ends the session without another word. The
/// same warning ends the wait for a synchronous standby (manual, "Synchronous Replication").
fn passed_notice(wire: &Wire, mut notice: Report) {
    if matches!(&notice.sqlstate, b"57P01" | b"57P02") {
        wire.left_standby.store(notice.sqlstate == *b"57P01", SeqCst);
        notice.fatal = true;
        wire.reports.lock().push(notice);
    }
}

fn want_down(kind: u8) -> usize {
    match kind {
        b'Z' => 1,
        b'R' => 4,
        b'K' => 8,
        b'C' | b'T' | b'D' => 32,
        b'E' | b'N' => usize::MAX,
        _ => 0,
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.passed_down(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.passed_up(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Ends only when the server has closed its side too: its session is gone then, and the place that it held in
    /// `max_size` can be given away. The driver's task bounds the wait.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        let mut bytes = [0; 512];
        loop {
            let mut rest = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut rest)) {
                Ok(()) if !rest.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}
