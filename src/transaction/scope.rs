//! A connection with a scope around it: every statement passes through here.
//!
//! The first statement of a transaction carries BEGIN in its flight. When that flight is lost with its connection it is
//! sent again on another one: the body has seen nothing of it, and whatever it did is gone with a transaction that was
//! not committed. So the body does not notice.
//!
//! BEGIN with the first statement is safe because sessions are read-only by default: should BEGIN itself fail (an
//! administrator's cancel can hit it), the statement behind it runs outside a transaction, where the server refuses
//! every write; and its result is never handed out.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering::SeqCst};

use diesel::QueryResult;
use diesel::result::Error as Diesel;
use futures_util::future::join;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::savepoint::Nest;
use super::xid::{Ask, followed_by};
use crate::error::{
    AbortReason, Annotation, CommitOutcome, Error, annotate, connection_lost, is_consequence, is_stale_plan, refusal,
};
use crate::pool::{Lease, ScopeName, Session, add};
use crate::statement::{Kind, Text};

/// What a scope is for.
#[derive(Debug)]
pub(crate) enum Mode {
    /// Reads, each in a transaction of its own.
    Read,
    /// One transaction.
    Transaction {
        /// The message that opens it: BEGIN and what rides with it.
        begin: Cow<'static, str>,
        /// How many `SET` tags that message causes.
        sets: u32,
        read_only: bool,
    },
}

/// What became of a transaction that `commit_with` took away from its body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum After {
    Committed,
    RolledBack {
        /// What another attempt may mend.
        mendable: Option<String>,
    },
    /// COMMIT was sent and its outcome is not known, or not known here.
    Unknown,
}

/// What runs when the transaction is committed.
pub(crate) type Hook = Box<dyn FnOnce(&super::Committed) + Send>;

/// A text that was sent, and when.
pub(crate) type Sent = (std::time::Instant, Arc<Text>);

/// How much of a transaction is remembered for the log of slow ones.
const REMEMBERED: usize = 32;

pub(crate) struct Scope {
    /// Gone when the transaction was ended by `commit_with`.
    pub(super) lease: Option<Lease>,
    pub(super) mode: Mode,
    pub(super) nest: Nest,
    pub(super) hooks: Mutex<Vec<Hook>>,
    pub(super) keep_statements: AtomicBool,
    /// Something that may have written was sent.
    pub(super) wrote: AtomicBool,
    pub(super) statements: Mutex<Vec<Sent>>,
    name: ScopeName,
    /// BEGIN was sent on this slot, counted from one.
    pub(super) begun_on: AtomicU8,
    /// The body was told an answer, or an error: the first flight is over.
    pub(super) told: AtomicBool,
    /// On slots below this one the transaction was lost before the body was told anything.
    pub(super) abandoned: AtomicUsize,
    /// How often the transaction's id was asked for on the connection in use.
    pub(super) asked_for_xid: AtomicU32,
    doomed: Mutex<Option<AbortReason>>,
    pub(super) replacing: tokio::sync::Mutex<()>,
    pub(super) until: Option<Instant>,
    /// Of interest when the lease is gone.
    pub(super) after: After,
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("name", &self.name).field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// A statement that failed.
pub(super) struct Failed {
    pub(super) error: Diesel,
    pub(super) in_begin: bool,
}

impl Scope {
    pub(crate) fn new(lease: Lease, mode: Mode, until: Option<Instant>) -> Box<Self> {
        Self::with(lease.holder.scope, Some(lease), mode, until)
    }

    /// A scope whose transaction was taken away from it.
    pub(super) fn ended(name: ScopeName) -> Box<Self> {
        Self::with(name, None, Mode::Read, None)
    }

    /// Boxed, since it is handed on from part to part.
    fn with(name: ScopeName, lease: Option<Lease>, mode: Mode, until: Option<Instant>) -> Box<Self> {
        Box::new(Self {
            name,
            lease,
            mode,
            nest: Nest::default(),
            hooks: Mutex::default(),
            keep_statements: AtomicBool::new(true),
            wrote: AtomicBool::new(false),
            statements: Mutex::default(),
            begun_on: AtomicU8::new(0),
            told: AtomicBool::new(false),
            abandoned: AtomicUsize::new(0),
            asked_for_xid: AtomicU32::new(0),
            doomed: Mutex::new(None),
            replacing: tokio::sync::Mutex::new(()),
            until,
            after: After::Unknown,
        })
    }

    pub(crate) fn name(&self) -> ScopeName {
        self.name
    }

    /// The lease, unless the transaction is over or can only be rolled back.
    pub(super) fn usable(&self) -> QueryResult<&Lease> {
        let Some(lease) = &self.lease else { return Err(refusal(self.over())) };
        match &*self.doomed.lock() {
            None => Ok(lease),
            Some(reason) => Err(refusal(Error::Aborted { scope: self.name.to_string(), reason: reason.clone() })),
        }
    }

    pub(super) fn over(&self) -> Error {
        let (reason, outcome) = match self.after {
            After::Committed => ("commit_with has committed it", CommitOutcome::Committed),
            After::RolledBack { .. } => ("commit_with failed and it was rolled back", CommitOutcome::NotCommitted),
            After::Unknown => ("commit_with has sent COMMIT", CommitOutcome::Unknown),
        };
        Error::Over { scope: self.name.to_string(), reason: reason.into(), outcome }
    }

    /// From here on the transaction can only be rolled back.
    pub(super) fn doom(&self, reason: AbortReason) {
        self.doomed.lock().get_or_insert(reason);
    }

    pub(super) fn doomed(&self) -> Option<AbortReason> {
        self.doomed.lock().clone()
    }

    /// BEGIN was sent.
    pub(super) fn is_begun(&self) -> bool {
        self.begun_on.load(SeqCst) != 0
    }

    /// What is said of a transaction that took too long.
    pub(super) fn remember(&self, lease: &Lease, text: &Arc<Text>) {
        if lease.pool.config.slow_threshold.is_some() && matches!(self.mode, Mode::Transaction { .. }) {
            let mut statements = self.statements.lock();
            if statements.len() < REMEMBERED {
                statements.push((std::time::Instant::now(), Arc::clone(text)));
            }
        }
    }

    /// Runs one statement of the scope. `send` makes its future on the session that it is given, `None` when it cannot
    /// be sent a second time. `at_once`: its first poll puts the whole of it on the way.
    pub(super) async fn run<'s, R, F>(
        &'s self,
        text: &Arc<Text>,
        at_once: impl Fn(&Session) -> bool,
        mut send: impl FnMut(&'s Lease, &'s Session) -> Option<F>,
    ) -> QueryResult<R>
    where
        F: Future<Output = QueryResult<R>>,
    {
        let lease = self.usable()?;
        if self.nest.is_unsettled() {
            Box::pin(self.settle_nested(lease)).await?;
        }
        lease.note(text.effects);
        self.remember(lease, text);
        if text.kind != Kind::Select {
            self.wrote.store(true, SeqCst);
        }
        let first_sent = (!self.told.load(SeqCst)).then(Instant::now);
        // What the statement failed with, and is sent again for.
        let mut failure = None;
        loop {
            let slot = lease.slot();
            let session = lease.session_in(slot);
            let Some(statement) = send(lease, session) else {
                self.told.store(true, SeqCst);
                return Err(failure.unwrap_or_else(|| self.lost(session)));
            };
            let takes_off = if slot == 0 { first_sent } else { first_sent.map(|_| Instant::now()) };
            let begin = self.opener(lease, session, slot, takes_off);
            let asks = self.asks_for_xid(lease, text);
            // An INSERT needs an id anyway: it is given one by the message that opens the transaction.
            let asks_at_begin = asks && begin.is_some() && text.kind == Kind::Insert;
            let ask = (asks && !asks_at_begin).then(|| Ask::behind(at_once(session)));
            // Counted before the first poll and after the last: a future dropped in between leaves them different.
            lease.holder.started.fetch_add(1, SeqCst);
            let statement = followed_by(statement, ask, session);
            let begin = match begin {
                Some(begin) if asks_at_begin => Some(Cow::Owned(format!("{begin}; {}", Ask::Assign.text()))),
                begin => begin.map(Cow::Borrowed),
            };
            let result = self.fly(lease, session, begin.as_deref(), statement).await;
            lease.holder.ended.fetch_add(1, SeqCst);
            if takes_off.is_some() {
                lease.holder.land();
            }
            let result = match result {
                // Another statement of its flight was lost, and with it the transaction that this one was answered in.
                _ if self.is_abandoned(slot) => Err(Failed { error: self.lost(session), in_begin: false }),
                result => result,
            };
            match result {
                Ok(answer) => {
                    lease.expect_sets(text.effects.local_sets.into());
                    self.told.store(true, SeqCst);
                    return Ok(answer);
                }
                Err(failed) if self.may_send_again(lease, slot, &failed) => {
                    if Box::pin(self.replace(lease, slot, first_sent)).await.is_err() {
                        return Err(self.given_up(session, failed.error));
                    }
                }
                Err(failed) if self.is_abandoned(slot) => return Err(self.given_up(session, failed.error)),
                Err(failed) => {
                    let error = self.explain(session, failed.error);
                    if is_stale_plan(&error) {
                        // Kept statements are not used from now on, so the same text is prepared anew.
                        session.kept.distrust();
                        if matches!(self.mode, Mode::Read) && failure.is_none() {
                            failure = Some(error);
                            continue;
                        }
                    }
                    self.told.store(true, SeqCst);
                    if failed.in_begin {
                        self.doom(AbortReason::NotBegun { message: error.to_string() });
                    }
                    return Err(error);
                }
            }
        }
    }

    /// What comes next is the body's own business on the bare connection: a flight that was lost is not sent again from now on.
    pub(super) fn is_told(&self) {
        self.told.store(true, SeqCst);
    }

    /// Sends BEGIN alone, for what must not ride with it, and undoes what a nested scope that was dropped left.
    pub(super) async fn ensure_begun(&self) -> QueryResult<()> {
        if matches!(self.mode, Mode::Read) || self.is_begun() && !self.nest.is_unsettled() {
            return self.usable().map(drop);
        }
        let nothing = Arc::new(Text::new(String::new()));
        self.run(&nothing, |_| true, |_, session| Some(session.batch(""))).await
    }

    /// What goes before a statement and is answered at once, however long the statement takes; a first flight of which not
    /// even that is answered is on a silent path. It is the message that opens the transaction; or an empty one, for a read on
    /// a connection that was not heard of lately.
    fn opener(&self, lease: &Lease, session: &Session, slot: usize, takes_off: Option<Instant>) -> Option<&str> {
        let begin = self.begins_on(slot);
        let Some(now) = takes_off.map(Instant::into_std) else { return begin };
        let quiet = matches!(self.mode, Mode::Read) && !session.was_heard_of_lately(now);
        let first = lease.holder.take_off(now, begin.is_some() || quiet);
        begin.or((first && quiet).then_some(""))
    }

    /// The message that opens the transaction, if the statement about to be polled is the one to carry it. Decided at
    /// the first poll of its flight: whoever is polled first is also first on the wire.
    pub(super) fn begins_on(&self, slot: usize) -> Option<&str> {
        let Mode::Transaction { begin, .. } = &self.mode else { return None };
        let mark = u8::try_from(slot + 1).unwrap_or(u8::MAX);
        self.begun_on.compare_exchange(0, mark, SeqCst, SeqCst).is_ok().then_some(begin)
    }

    pub(super) fn note_begin(&self, lease: &Lease) {
        if let Mode::Transaction { sets, .. } = self.mode {
            lease.expect_sets(sets);
        }
    }

    /// Sends a statement, and before it what opens the flight if it is the one to carry it.
    async fn fly<R>(
        &self,
        lease: &Lease,
        session: &Session,
        begin: Option<&str>,
        statement: impl Future<Output = QueryResult<R>>,
    ) -> Result<R, Failed> {
        let Some(begin) = begin else { return self.inside(session, statement.await) };
        self.note_begin(lease);
        // `join` polls from left to right, and each is put on the way by its first poll. Boxed: most statements carry no BEGIN,
        // and a future is as large as its largest path.
        let (opened, answer) = join(Box::pin(session.batch(begin)), statement).await;
        match opened {
            Err(error) if !matches!(self.mode, Mode::Read) => Err(Failed { error, in_begin: true }),
            _ => answer.map_err(|error| Failed { error, in_begin: false }),
        }
    }

    /// What a statement that did not carry BEGIN was answered. Should BEGIN, which went before it, have failed, then it ran
    /// outside of the transaction.
    fn inside<R>(&self, session: &Session, answer: QueryResult<R>) -> Result<R, Failed> {
        let by_server = match &answer {
            Ok(_) => true,
            Err(error) => matches!(error, Diesel::DatabaseError(..)) && !connection_lost(error),
        };
        if !by_server || matches!(self.mode, Mode::Read) || session.wire.has_begun() {
            return answer.map_err(|error| Failed { error, in_begin: false });
        }
        let message = session.wire.first_error().map_or_else(String::new, |first| first.message);
        let error = Error::Aborted { scope: self.name.to_string(), reason: AbortReason::NotBegun { message } };
        Err(Failed { error: refusal(error), in_begin: true })
    }

    /// Adds what diesel left out of a server's error.
    pub(super) fn explain(&self, session: &Session, error: Diesel) -> Diesel {
        let Diesel::DatabaseError(kind, information) = &error else { return error };
        let write_refused =
            matches!(self.mode, Mode::Read) && matches!(kind, diesel::result::DatabaseErrorKind::ReadOnlyTransaction);
        let report = session.wire.error_with(information.message());
        let sqlstate = report.as_ref().map(|report| report.sqlstate);
        // What failed may be a statement whose rows were not read to their end, so nobody was told.
        let cause = sqlstate.filter(|sqlstate| is_consequence(*sqlstate));
        let cause = cause.and_then(|_| session.wire.latest_error(|sqlstate| !is_consequence(sqlstate)));
        let note = Annotation {
            sqlstate: cause.as_ref().map(|cause| cause.sqlstate).or(sqlstate),
            cause: cause.map(|cause| cause.message),
            last_words: session.last_words(),
            hint: write_refused.then_some(WRITE_HINT),
            stale_plan: report.is_some_and(|report| report.stale_plan),
        };
        annotate(error, &note)
    }

    /// The connection is gone, in the words of whoever ended it.
    pub(super) fn lost(&self, session: &Session) -> Diesel {
        let words = session.last_words().unwrap_or_else(|| "connection closed".to_owned());
        let error = Diesel::DatabaseError(diesel::result::DatabaseErrorKind::UnableToSendCommand, Box::new(words));
        self.explain(session, error)
    }
}

impl Drop for Scope {
    /// Counts a transaction that its lease is about to roll back by itself, and tells of a slow one.
    fn drop(&mut self) {
        if let Some(lease) = &self.lease
            && self.is_begun()
        {
            add(&lease.pool.counters.rollbacks);
            self.note_duration(lease, "cancelled");
        }
    }
}

const WRITE_HINT: &str = "with_connection is for reads; open a transaction with Database::with_transaction to write";
