//! The messages of PostgreSQL's protocol, as far as a test wants to tell them apart.
//!
//! Framing is that of the manual, "Message Formats" (chapter 55.7): a letter and a length, except for what comes before
//! the start-up packet, which has no letter, and the answer to a request for encryption, which is a letter alone.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

/// A kind of message that clients send.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
#[allow(missing_docs)] // the names are the manual's
pub enum Frontend {
    Startup,
    /// `SSLRequest` or `GSSENCRequest`.
    EncryptionRequest,
    CancelRequest,
    Query,
    Parse,
    Bind,
    Describe,
    Execute,
    Sync,
    Flush,
    Close,
    CopyData,
    CopyDone,
    CopyFail,
    FunctionCall,
    /// `PasswordMessage` and the messages of SASL.
    Password,
    Terminate,
    /// Bytes of an encrypted connection: messages cannot be told apart.
    Encrypted,
    /// A letter that the manual does not know.
    Unknown,
}

/// A message that a client sent.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Message {
    /// Its kind.
    pub kind: Frontend,
    /// The SQL that it is about, empty if none: for `Bind`, `Describe`, `Execute` and `Close` that of the statement that
    /// was prepared under the name.
    pub text: Arc<str>,
    /// The connection it came on: 1 for the first one through this proxy, and so on.
    pub connection: u64,
}

impl Message {
    /// Whether it has the server run a statement: `Query` or `Execute`.
    pub fn runs(&self) -> bool {
        matches!(self.kind, Frontend::Query | Frontend::Execute)
    }
}

/// Which message of a client is meant.
///
/// Made from a `&str`: a statement that the server is told to run (`Query` or `Execute`) and whose text contains it, upper
/// or lower case. From a [`Frontend`]: any message of that kind. Else by [`Match::new`].
#[derive(Clone)]
pub struct Match(Arc<dyn Fn(&Message) -> bool + Send + Sync>);

impl Match {
    /// The messages for which `fits` says so.
    pub fn new(fits: impl Fn(&Message) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(fits))
    }

    /// Every message.
    pub fn any() -> Self {
        Self::new(|_| true)
    }

    pub(super) fn fits(&self, message: &Message) -> bool {
        (self.0)(message)
    }
}

impl fmt::Debug for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Match")
    }
}

impl From<&str> for Match {
    fn from(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        Self::new(move |message| message.runs() && message.text.to_ascii_lowercase().contains(&text))
    }
}

impl From<Frontend> for Match {
    fn from(kind: Frontend) -> Self {
        Self::new(move |message| message.kind == kind)
    }
}

/// Cuts what a client sends into messages, and remembers what it prepared.
#[derive(Debug, Default)]
pub(super) struct FromClient {
    started: bool,
    encrypted: bool,
    statements: HashMap<Bytes, Arc<str>>,
    portals: HashMap<Bytes, Arc<str>>,
}

/// Cuts what a server sends into messages.
#[derive(Debug, Default)]
pub(super) struct FromServer;

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;
/// The first byte of a TLS handshake, for clients that do without the `SSLRequest`.
const HANDSHAKE: u8 = 0x16;

impl FromClient {
    /// The next whole message in `buffer`: kind, text, bytes.
    pub(super) fn next(&mut self, buffer: &mut BytesMut, encrypted: bool) -> Option<(Frontend, Arc<str>, Bytes)> {
        let first = *buffer.first()?;
        self.encrypted |= encrypted || (!self.started && first == HANDSHAKE);
        if self.encrypted {
            return Some((Frontend::Encrypted, "".into(), buffer.split().freeze()));
        }
        if !self.started {
            let bytes = whole(buffer, 0)?;
            let kind = match bytes.get(4..8).map(|mut code| code.get_u32()) {
                Some(CANCEL) => Frontend::CancelRequest,
                Some(SSL | GSS) => Frontend::EncryptionRequest,
                _ => Frontend::Startup,
            };
            self.started = kind == Frontend::Startup;
            return Some((kind, "".into(), bytes));
        }
        let bytes = whole(buffer, 1)?;
        let kind = kind(first);
        let text = self.text(kind, bytes.slice(5.min(bytes.len())..));
        Some((kind, text, bytes))
    }

    fn text(&mut self, kind: Frontend, mut body: Bytes) -> Arc<str> {
        match kind {
            Frontend::Query => string(&string_bytes(&mut body)),
            Frontend::Parse => {
                let name = string_bytes(&mut body);
                let text = string(&string_bytes(&mut body));
                self.statements.insert(name, text.clone());
                text
            }
            Frontend::Bind => {
                let portal = string_bytes(&mut body);
                let text = self.statements.get(&string_bytes(&mut body)).cloned().unwrap_or_default();
                self.portals.insert(portal, text.clone());
                text
            }
            Frontend::Execute => self.portals.get(&string_bytes(&mut body)).cloned().unwrap_or_default(),
            Frontend::Describe | Frontend::Close if !body.is_empty() => {
                let named = if body.get_u8() == b'S' { &self.statements } else { &self.portals };
                named.get(&string_bytes(&mut body)).cloned().unwrap_or_default()
            }
            _ => "".into(),
        }
    }
}

impl FromServer {
    /// The next whole message in `buffer`: its letter and its bytes. `lone`: an answer of one letter is due.
    pub(super) fn next(buffer: &mut BytesMut, lone: bool, encrypted: bool) -> Option<(char, Bytes)> {
        let first = *buffer.first()?;
        if encrypted {
            return Some(('\0', buffer.split().freeze()));
        }
        if lone && first != b'E' {
            return Some((char::from(first), buffer.split_to(1).freeze()));
        }
        Some((char::from(first), whole(buffer, 1)?))
    }
}

/// Splits off a message whose length, which counts itself, stands after `letters` bytes.
fn whole(buffer: &mut BytesMut, letters: usize) -> Option<Bytes> {
    let length = buffer.get(letters..letters + 4)?.get_u32();
    let length = letters + usize::try_from(length).ok()?.max(4);
    (buffer.len() >= length).then(|| buffer.split_to(length).freeze())
}

/// Splits off a string that ends with a zero.
fn string_bytes(body: &mut Bytes) -> Bytes {
    let end = body.iter().position(|byte| *byte == 0).unwrap_or(body.len());
    let text = body.split_to(end);
    body.advance(1.min(body.len()));
    text
}

fn string(bytes: &[u8]) -> Arc<str> {
    String::from_utf8_lossy(bytes).into()
}

fn kind(letter: u8) -> Frontend {
    match letter {
        b'Q' => Frontend::Query,
        b'P' => Frontend::Parse,
        b'B' => Frontend::Bind,
        b'D' => Frontend::Describe,
        b'E' => Frontend::Execute,
        b'S' => Frontend::Sync,
        b'H' => Frontend::Flush,
        b'C' => Frontend::Close,
        b'd' => Frontend::CopyData,
        b'c' => Frontend::CopyDone,
        b'f' => Frontend::CopyFail,
        b'F' => Frontend::FunctionCall,
        b'p' => Frontend::Password,
        b'X' => Frontend::Terminate,
        _ => Frontend::Unknown,
    }
}
