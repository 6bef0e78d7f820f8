//! What a proxy knows and what it was told, in one place under one lock; the tasks that move bytes ask here.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::time::Duration;

use super::message::{Frontend, Match, Message};

/// How many statements are remembered.
const REMEMBERED: usize = 10_000;

/// When a connection is cut, seen from the message that was named.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum When {
    /// The server never sees the message. It sees the connection end.
    BeforeForward,
    /// The server has the message, with all that belongs to its request; the client never sees an answer.
    AfterForward,
    /// The server has answered, so it is done; the client never sees it.
    AfterReply,
}

/// What went through a proxy since it was started or [reset](super::Proxy::reset_counts).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Counts {
    /// How often a client that had nothing outstanding sent something that it then waits for. Nobody waits for the `Close`
    /// of a statement, so it costs nothing.
    ///
    /// What is sent while an answer is still on its way to the client costs no further round trip, though the server may
    /// have answered already: with a [delay](super::Proxy::delay) pipelining shows even if the client writes twice.
    pub round_trips: u64,
    /// Connections that clients opened, those for a cancel request not counted.
    pub connections: u64,
    /// Messages of clients, by kind. A cancel request is one of them.
    pub sent: BTreeMap<Frontend, u64>,
    /// Messages of the server, by their letter; `'\0'` for pieces of an encrypted stream.
    pub received: BTreeMap<char, u64>,
}

/// What is to be done with a message of the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Gate {
    Deliver,
    Wait,
    Discard,
    Cut,
}

/// One message of the server, as it is queued for the client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply {
    pub(super) letter: char,
    /// To which request it belongs: 1 for the start-up packet.
    pub(super) request: u64,
    /// Which turn of the conversation it is in: a turn ends where the server waits for the client.
    pub(super) turn: u64,
    /// Whether it ends the turn.
    pub(super) last: bool,
}

/// What is known of one connection.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Link {
    pub(super) cut: bool,
    pub(super) silent: bool,
    pub(super) encrypted: bool,
    /// A request for encryption waits for its one letter.
    pub(super) letter_due: bool,
    cancels: bool,
    /// Requests that the client sent and that end in a `ReadyForQuery`; received and delivered ones.
    asked: u64,
    received: u64,
    delivered: u64,
    /// The client waits for an answer, as far as one can see from here.
    in_flight: bool,
    /// The last request that a client waits for: nobody waits for a `Close`.
    awaited: u64,
    /// Parts of a request went out, its `Sync` did not.
    unsynced: bool,
    /// They are more than `Close`.
    works: bool,
    /// The server reads the data of a COPY.
    copying: bool,
    /// The last request was ended by a `Sync`.
    by_sync: bool,
    /// What went out was to be answered at once, without a `Sync`.
    flushed: bool,
    turn: u64,
    /// Whole turns in the queue to the client.
    queued: u64,
    /// A turn that may pass although replies are held.
    released: Option<u64>,
    /// Replies to this request and later ones are held.
    hold_from: Option<u64>,
    waiting: bool,
    /// Cut as soon as the request under way is forwarded in full.
    cut_when_forwarded: bool,
    /// Cut when this request is answered.
    cut_when_answered: Option<u64>,
    /// The rule that says so.
    cut_by: u64,
}

#[derive(Debug)]
struct Rule {
    when: When,
    matcher: Match,
    number: u64,
}

/// The whole state of a proxy.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct State {
    /// Something happened that somebody may be waiting for.
    pub(super) changed: bool,
    pub(super) closed: bool,
    pub(super) refusing: bool,
    pub(super) listening: bool,
    pub(super) silent: bool,
    pub(super) delay: Duration,
    pub(super) counts: Counts,
    pub(super) statements: VecDeque<Message>,
    pub(super) links: BTreeMap<u64, Link>,
    hold: bool,
    hold_match: Option<Match>,
    permits: u64,
    rules: Vec<Rule>,
    expected: Vec<(u64, Match)>,
    numbers: u64,
    opened: u64,
}

impl State {
    pub(super) fn open(&mut self) -> u64 {
        self.opened += 1;
        self.links.insert(self.opened, Link { silent: self.silent, ..Link::default() });
        self.opened
    }

    pub(super) fn close(&mut self, connection: u64) {
        self.links.remove(&connection);
    }

    /// Registers a wait for a message; [expected](Self::is_expected) until it was forwarded.
    pub(super) fn expect(&mut self, matcher: Match) -> u64 {
        self.numbers += 1;
        self.expected.push((self.numbers, matcher));
        self.numbers
    }

    pub(super) fn add_cut(&mut self, when: When, matcher: Match) -> u64 {
        self.numbers += 1;
        self.rules.push(Rule { when, matcher, number: self.numbers });
        self.numbers
    }

    pub(super) fn is_expected(&self, number: u64) -> bool {
        self.expected.iter().any(|(expected, _)| *expected == number)
    }

    /// Whether a cut has been carried out: its rule is gone, and so is the connection that it hit.
    pub(super) fn is_cut_pending(&self, number: u64) -> bool {
        let armed = |link: &Link| !link.cut && link.cut_by == number;
        self.rules.iter().any(|rule| rule.number == number) || self.links.values().any(armed)
    }

    pub(super) fn hold(&mut self, matcher: Option<Match>) {
        (self.hold, self.hold_match) = (matcher.is_none(), matcher);
        self.permits = 0;
    }

    pub(super) fn release_one(&mut self) {
        self.permits += 1;
    }

    pub(super) fn release_all(&mut self) {
        (self.hold, self.hold_match, self.permits) = (false, None, 0);
        for link in self.links.values_mut() {
            link.hold_from = None;
        }
    }

    /// Whole replies that wait to be released.
    pub(super) fn held(&self) -> u64 {
        self.links.values().filter(|link| link.waiting && !link.cut).map(|link| link.queued).sum()
    }

    /// Whether what a connection waits with cannot go yet.
    pub(super) fn holds(&self, connection: u64) -> bool {
        let held = |link: &Link| !link.silent && (self.hold || link.hold_from.is_some());
        self.permits == 0 && self.links.get(&connection).is_some_and(held)
    }

    /// A message is about to be forwarded; `false` if the connection is to be cut instead.
    pub(super) fn before_forward(&mut self, message: &Message) -> bool {
        let rule = self.rules.iter().position(|rule| rule.matcher.fits(message));
        let rule = rule.map(|at| self.rules.remove(at));
        let Some(link) = self.links.get_mut(&message.connection) else { return false };
        let request = link.asked + 1;
        if let Some(Rule { when, number, .. }) = rule {
            self.changed = true;
            link.cut_by = number;
            match when {
                When::BeforeForward => link.cut = true,
                When::AfterForward => link.cut_when_forwarded = true,
                When::AfterReply => link.cut_when_answered = Some(request),
            }
        }
        if link.cut {
            return false;
        }
        if self.hold_match.as_ref().is_some_and(|matcher| matcher.fits(message)) {
            link.hold_from = Some(link.hold_from.unwrap_or(request).min(request));
        }
        self.counts.round_trips += link.sends(message.kind);
        *self.counts.sent.entry(message.kind).or_default() += 1;
        if message.kind == Frontend::Startup {
            self.counts.connections += 1;
        }
        if message.runs() {
            if self.statements.len() == REMEMBERED {
                self.statements.pop_front();
            }
            self.statements.push_back(message.clone());
        }
        true
    }

    /// A message has been written to the server.
    pub(super) fn after_forward(&mut self, message: &Message) {
        let before = self.expected.len();
        self.expected.retain(|(_, matcher)| !matcher.fits(message));
        self.changed |= self.expected.len() < before;
        if let Some(link) = self.links.get_mut(&message.connection) {
            link.cut |= link.cut_when_forwarded && !link.unsynced;
            self.changed |= link.cut;
        }
    }

    /// A message of the server has come; says to what it belongs.
    pub(super) fn received(&mut self, connection: u64, letter: char, code: u32) -> Reply {
        *self.counts.received.entry(letter).or_default() += 1;
        let Some(link) = self.links.get_mut(&connection) else {
            return Reply { letter, request: 0, turn: 0, last: true };
        };
        self.changed |= link.waiting;
        link.receives(letter, code)
    }

    /// Whether the next message in the queue may go to the client now.
    pub(super) fn gate(&mut self, connection: u64, reply: &Reply) -> Gate {
        let Some(link) = self.links.get_mut(&connection) else { return Gate::Cut };
        if link.cut_when_answered == Some(reply.request) {
            link.cut |= reply.letter == 'Z' || link.encrypted;
            self.changed |= link.cut;
            return if link.cut { Gate::Cut } else { Gate::Discard };
        }
        let held = self.hold || link.hold_from.is_some_and(|from| reply.request >= from);
        if held && !link.cancels && link.released != Some(reply.turn) {
            if self.permits == 0 {
                link.waiting = true;
                self.changed = true;
                return Gate::Wait;
            }
            self.permits -= 1;
            link.released = Some(reply.turn);
        }
        link.waiting = false;
        link.delivers(reply);
        Gate::Deliver
    }
}

impl Link {
    /// Notes a message to the server; returns how many round trips it begins.
    fn sends(&mut self, kind: Frontend) -> u64 {
        match kind {
            Frontend::Terminate => return 0,
            Frontend::CancelRequest => {
                self.cancels = true;
                return 0;
            }
            Frontend::EncryptionRequest => self.letter_due = true,
            Frontend::Encrypted => self.encrypted = true,
            Frontend::Startup | Frontend::Query | Frontend::FunctionCall => {
                self.asked += 1;
                self.awaited = self.asked;
                self.by_sync = false;
            }
            Frontend::Parse | Frontend::Bind | Frontend::Describe | Frontend::Execute => {
                (self.unsynced, self.works) = (true, true);
            }
            Frontend::Close => {
                self.unsynced = true;
                return 0;
            }
            Frontend::Sync => {
                self.asked += 1;
                self.by_sync = true;
                let closes = mem::take(&mut self.unsynced) && !mem::take(&mut self.works);
                if closes {
                    return 0;
                }
                self.awaited = self.asked;
            }
            Frontend::Flush => (self.flushed, self.unsynced, self.works) = (true, false, false),
            // The server asked for it, and answers it before anything else.
            Frontend::Password => self.in_flight = false,
            Frontend::CopyData | Frontend::CopyDone | Frontend::CopyFail | Frontend::Unknown => {}
        }
        u64::from(!mem::replace(&mut self.in_flight, true))
    }

    fn receives(&mut self, letter: char, code: u32) -> Reply {
        let reply = Reply { letter, request: self.received + 1, turn: self.turn, last: self.ends_turn(letter, code) };
        if mem::take(&mut self.letter_due) && matches!(letter, 'S' | 'G') {
            self.encrypted = true;
        }
        match letter {
            'Z' => self.received += 1,
            // The Sync behind a COPY FROM STDIN is skipped by the server: it reads data by then.
            'G' if self.by_sync && self.asked > self.received => {
                self.asked -= 1;
                self.awaited = self.awaited.min(self.asked);
            }
            _ => {}
        }
        if reply.last {
            self.turn += 1;
            self.queued += 1;
        }
        reply
    }

    fn ends_turn(&self, letter: char, code: u32) -> bool {
        match letter {
            'Z' | 'G' | 'W' | '\0' => true,
            'R' => !matches!(code, 0 | 12), // every other kind of authentication asks for something
            _ => self.letter_due || self.encrypted,
        }
    }

    fn delivers(&mut self, reply: &Reply) {
        self.delivered += u64::from(reply.letter == 'Z');
        self.queued = self.queued.saturating_sub(u64::from(reply.last));
        let answered = self.delivered >= self.awaited && !self.works;
        let copied = matches!(reply.letter, 'C' | 'E') && mem::take(&mut self.copying); // clients wait for no more
        // 'G' and 'W' answer in the middle of a request; of what was flushed nothing tells the end.
        if matches!(reply.letter, 'G' | 'W' | '\0') || copied || (answered && (reply.last || self.flushed)) {
            (self.in_flight, self.flushed) = (false, false);
        }
        self.copying |= reply.letter == 'G';
    }
}
