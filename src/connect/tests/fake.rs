//! A server that speaks just enough of the protocol to say what a test wants it to say.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};

const SSL_REQUEST: i32 = 80_877_103;
const CANCEL_REQUEST: i32 = 80_877_102;

/// What the server is like.
#[derive(Clone, Copy)]
pub(super) enum Mood {
    /// `in_hot_standby` is `off`.
    Primary,
    /// `in_hot_standby` is `on`.
    Standby,
    /// Does not say what it is.
    Proxy,
    /// A pooler that drops the start-up options: the session is not read-only by default.
    Forgetful,
    /// Accepts, and says nothing more.
    Silent,
    /// Closes at once.
    Curt,
    /// Answers the first bytes with this one.
    Says(u8),
    /// Ends the login with this SQLSTATE and message.
    Refuses(&'static str, &'static str),
    /// Asks for authentication with these bytes, message `R`.
    Asks(&'static [u8]),
}

pub(super) struct Fake {
    pub(super) port: u16,
    seen: Arc<Seen>,
}

struct Seen {
    startups: Mutex<Vec<HashMap<String, String>>>,
    cancels: Mutex<Vec<(i32, i32)>>,
    cancelled: Notify,
    answer_cancels: Semaphore,
}

impl Fake {
    pub(super) async fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Seen {
            startups: Mutex::default(),
            cancels: Mutex::default(),
            cancelled: Notify::new(),
            answer_cancels: Semaphore::new(0),
        });
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, mood, Arc::clone(&shared)));
            }
        });
        Self { port, seen }
    }

    /// The parameters of every login so far.
    pub(super) fn startups(&self) -> Vec<HashMap<String, String>> {
        self.seen.startups.lock().clone()
    }

    /// Ends one cancel request, as a server does that has sent its signal.
    pub(super) fn answer_cancel(&self) {
        self.seen.answer_cancels.add_permits(1);
    }

    /// Waits for a cancel request, and tells its process id and key.
    pub(super) async fn cancelled(&self) -> (i32, i32) {
        self.seen.cancelled.notified().await;
        *self.seen.cancels.lock().last().unwrap()
    }
}

async fn serve(mut stream: TcpStream, mood: Mood, seen: Arc<Seen>) -> io::Result<()> {
    match mood {
        Mood::Silent => return std::future::pending().await,
        Mood::Curt => return Ok(()),
        Mood::Says(byte) => {
            stream.read_i32().await?;
            stream.write_u8(byte).await?;
            return std::future::pending().await;
        }
        _ => {}
    }
    let startup = loop {
        let length = usize::try_from(stream.read_i32().await?).unwrap();
        let mut body = vec![0; length - 4];
        stream.read_exact(&mut body).await?;
        let word = |at: usize| i32::from_be_bytes(body[at..at + 4].try_into().unwrap());
        match word(0) {
            SSL_REQUEST => stream.write_u8(b'N').await?,
            CANCEL_REQUEST => {
                seen.cancels.lock().push((word(4), word(8)));
                seen.cancelled.notify_one();
                seen.answer_cancels.acquire().await.unwrap().forget();
                return Ok(());
            }
            _ => break body,
        }
    };
    let words: Vec<_> =
        startup[4..].split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let pairs = words.chunks_exact(2).filter(|pair| !pair[0].is_empty());
    seen.startups.lock().push(pairs.map(|pair| (pair[0].clone(), pair[1].clone())).collect());
    stream.write_all(&answer(mood)).await?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await?;
    Ok(())
}

pub(super) fn answer(mood: Mood) -> Vec<u8> {
    let mut bytes = Vec::new();
    let status = match mood {
        Mood::Refuses(sqlstate, text) => {
            let fields = format!("SFATAL\0VFATAL\0C{sqlstate}\0M{text}\0\0");
            message(&mut bytes, b'E', fields.as_bytes());
            return bytes;
        }
        Mood::Asks(how) => {
            message(&mut bytes, b'R', how);
            return bytes;
        }
        Mood::Primary | Mood::Forgetful => Some("off"),
        Mood::Standby => Some("on"),
        _ => None,
    };
    message(&mut bytes, b'R', &[0, 0, 0, 0]);
    if let Some(status) = status {
        message(&mut bytes, b'S', format!("in_hot_standby\0{status}\0").as_bytes());
    }
    if !matches!(mood, Mood::Forgetful) {
        message(&mut bytes, b'S', b"default_transaction_read_only\0on\0");
    }
    message(&mut bytes, b'S', b"server_version\x0015.99 (Fake)\0");
    message(&mut bytes, b'K', &[0, 0, 0, 7, 0, 0, 0, 9]);
    message(&mut bytes, b'Z', b"I");
    bytes
}

fn message(to: &mut Vec<u8>, kind: u8, body: &[u8]) {
    to.push(kind);
    to.extend_from_slice(&i32::try_from(body.len() + 4).unwrap().to_be_bytes());
    to.extend_from_slice(body);
}
