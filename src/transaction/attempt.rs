//! One attempt: a connection, the body under guard, and the end.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::OptionFuture;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::Instrument;

use super::body::Body;
use super::commit::{Limit, Settling};
use super::connection::{Connection, Transaction};
use super::options::TransactionBuilder;
use super::scope::{After, Mode, Scope};
use crate::error::{AbortReason, CommitOutcome, CommitUnknown, Error, is_consequence, is_timeout};
use crate::pool::{Counters, Holder, Pool, ScopeName, Why, add, inside, later};
use crate::wire::Status;

/// The time that a scope has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) began: Instant,
    pub(super) whole: Option<Duration>,
}

impl Budget {
    pub(super) fn new(whole: Option<Duration>) -> Self {
        Self { began: Instant::now(), whole }
    }

    pub(super) fn until(&self) -> Option<Instant> {
        self.whole.map(|whole| later(self.began, whole))
    }

    fn limit_of_commit(self) -> Option<Limit> {
        self.until().map(|until| Limit { at: until.max(Instant::now() + LAST_CHANCE), budget: self })
    }

    pub(super) fn passed_before_commit(&self, scope: ScopeName) -> Error {
        self.passed(scope, "preparing COMMIT", CommitOutcome::NotCommitted)
    }

    fn passed(&self, scope: ScopeName, phase: &'static str, outcome: CommitOutcome) -> Error {
        let (budget, after) = (self.whole.unwrap_or_default(), self.began.elapsed());
        Error::Deadline { scope: scope.to_string(), budget, after, phase, outcome }
    }
}

/// Why an attempt failed, and whether another may succeed.
pub(super) struct Failure<E> {
    pub(super) error: E,
    pub(super) again: Again,
}

/// Whether there may be another attempt, and what the last one failed with.
#[derive(Debug)]
pub(super) enum Again {
    Never,
    /// Nothing is stored, and another attempt may succeed.
    Mendable(String),
    /// It may be stored: only a body that finds that out by itself may run again.
    Unknown(String),
}

impl<E: From<Error>> From<Error> for Failure<E> {
    fn from(error: Error) -> Self {
        let again = match &error {
            Error::CommitUnknown(_) => Again::Unknown(error.to_string()),
            _ if error.is_retryable() => Again::Mendable(error.to_string()),
            _ => Again::Never,
        };
        Self { error: error.into(), again }
    }
}

/// How a body ended.
enum End<T> {
    Returned(T),
    Panicked(Box<dyn Any + Send>),
    Deadline,
    Stopped,
}

/// Runs `body` in one transaction.
pub(super) async fn attempt<F, R, E>(wanted: &TransactionBuilder<'_>, budget: Budget, body: F) -> Result<R, Failure<E>>
where
    for<'r> F:
        AsyncFnOnce(&'r mut Transaction) -> Result<R, E> + Body<&'r mut Transaction, Result<R, E>, Fut: Send> + Send,
    E: From<Error>,
{
    let (pool, scope, until) = (wanted.pool, wanted.scope, budget.until());
    let lease = match pool.checkout(scope, until).await {
        Err(Error::CheckoutTimeout(_)) if until.is_some_and(|until| until <= Instant::now()) => {
            return Err(unmendable(budget.passed(scope, "waiting for a connection", CommitOutcome::NotCommitted)));
        }
        Err(error) => return Err(unmendable(error)),
        Ok(lease) => lease,
    };
    let holder = Arc::clone(&lease.holder);
    let mut unfinished = Unfinished { counters: &pool.counters, armed: true };
    let mut tx = Transaction::new(Scope::new(lease, wanted.mode(until), until));
    let end = {
        let span = tracing::debug_span!("transaction", name = scope.name, place = %scope.place);
        let body = async { body(&mut tx).await };
        guarded(inside(&holder, body.instrument(span)), &holder, until).await
    };
    unfinished.armed = matches!(end, End::Deadline | End::Stopped);
    match end {
        End::Returned(Ok(value)) => {
            let limit = budget.limit_of_commit();
            let commit = Settling::new(pool, tx.scope.commit(limit));
            bounded(commit, &holder, limit).await?;
            Ok(value)
        }
        // Our own timer was late, and the server's backstop quicker.
        End::Returned(Err(_)) if until.is_some_and(|until| until <= Instant::now()) && tx.scope.was_timed_out() => {
            Settling::new(pool, tx.scope.roll_back()).await;
            Err(unmendable(budget.passed(scope, "running its body", CommitOutcome::NotCommitted)))
        }
        End::Returned(Err(error)) => {
            let again = tx.scope.again(&wanted.retry);
            Settling::new(pool, tx.scope.roll_back()).await;
            Err(Failure { error, again })
        }
        End::Panicked(panic) => {
            add(&pool.counters.panicked);
            Settling::new(pool, tx.scope.roll_back()).await;
            resume_unwind(panic)
        }
        // The transaction is dropped here, and its lease cleans up by itself.
        End::Deadline => Err(unmendable(budget.passed(scope, "running its body", tx.scope.outcome()))),
        End::Stopped => Err(unmendable(Error::Closed { scope: scope.to_string() })),
    }
}

/// Runs `body` on a connection without a transaction.
pub(crate) async fn read<F, R, E>(pool: &Arc<Pool>, scope: ScopeName, body: F) -> Result<R, E>
where
    for<'r> F:
        AsyncFnOnce(&'r mut Connection) -> Result<R, E> + Body<&'r mut Connection, Result<R, E>, Fut: Send> + Send,
    E: From<Error>,
{
    let lease = pool.checkout(scope, None).await?;
    let holder = Arc::clone(&lease.holder);
    let mut unfinished = Unfinished { counters: &pool.counters, armed: !scope.ours };
    let mut conn = Connection::new(Scope::new(lease, Mode::Read, None));
    let end = {
        let span = tracing::debug_span!("connection", name = scope.name, place = %scope.place);
        let body = async { body(&mut conn).await };
        guarded(inside(&holder, body.instrument(span)), &holder, None).await
    };
    unfinished.armed &= matches!(end, End::Deadline | End::Stopped);
    match end {
        End::Returned(result) => {
            let left_open = conn.scope.hand_back().await;
            match result {
                // What it did in a transaction of its own is rolled back.
                Ok(_) if left_open => {
                    Err(Error::Aborted { scope: scope.to_string(), reason: AbortReason::BodyBegan }.into())
                }
                result => result,
            }
        }
        End::Panicked(panic) => {
            add(&pool.counters.panicked);
            conn.scope.hand_back().await;
            resume_unwind(panic)
        }
        End::Deadline | End::Stopped => Err(Error::Closed { scope: scope.to_string() }.into()),
    }
}

fn unmendable<E: From<Error>>(error: Error) -> Failure<E> {
    Failure { error: error.into(), again: Again::Never }
}

/// Counts a scope whose future was dropped, or that was stopped.
struct Unfinished<'p> {
    counters: &'p Counters,
    armed: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.armed {
            add(&self.counters.cancelled);
        }
    }
}

/// Polls `body` until it ends, the deadline passes, or the pool wants the scope to stop.
async fn guarded<T>(body: impl Future<Output = T>, holder: &Holder, until: Option<Instant>) -> End<T> {
    let mut body = pin!(AssertUnwindSafe(body).catch_unwind());
    let mut timer = pin!(OptionFuture::from(until.map(sleep_until)));
    poll_fn(|cx| {
        if let Poll::Ready(result) = body.as_mut().poll(cx) {
            return Poll::Ready(result.map_or_else(End::Panicked, End::Returned));
        }
        // A COMMIT that `commit_with` sent is not called back.
        if holder.is_told_to_stop(cx.waker()) && !holder.is_committing() {
            holder.note_stopped();
            return Poll::Ready(End::Stopped);
        }
        if until.is_some() && timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Deadline);
        }
        Poll::Pending
    })
    .await
}

/// Waits for COMMIT until the deadline; past it COMMIT goes on alone, and its outcome is not known here.
async fn bounded(commit: Settling<Result<(), Error>>, holder: &Holder, limit: Option<Limit>) -> Result<(), Error> {
    let Some(limit) = limit else { return commit.await };
    let sent_at = std::time::SystemTime::now();
    match timeout_at(limit.at, commit).await {
        Ok(outcome) => outcome,
        // What is not sent by now will not be.
        Err(_) if !holder.is_committing() => Err(limit.budget.passed_before_commit(holder.scope)),
        Err(_) => Err(Error::CommitUnknown(Box::new(CommitUnknown {
            scope: holder.scope.to_string(),
            xid: holder.xid(),
            sent_at,
            why: format!(
                "the deadline of {:?} passed before the server answered",
                limit.budget.whole.unwrap_or_default()
            ),
        }))),
    }
}

/// What COMMIT is given when the body used the deadline up: one that is about to be answered is worth more than a deadline
/// kept to the millisecond.
const LAST_CHANCE: Duration = Duration::from_millis(20);

impl Scope {
    /// The server ended a statement, or the session, because of a time that rode with BEGIN.
    fn was_timed_out(&self) -> bool {
        let Some(lease) = &self.lease else { return false };
        let cause = lease.session().wire.latest_error(|sqlstate| !is_consequence(sqlstate));
        cause.is_some_and(|error| is_timeout(error.sqlstate))
    }

    /// Whether the work of a body that is being stopped is stored.
    fn outcome(&self) -> CommitOutcome {
        match (&self.lease, &self.after) {
            (Some(_), _) | (None, After::RolledBack { .. }) => CommitOutcome::NotCommitted,
            (None, After::Committed) => CommitOutcome::Committed,
            (None, After::Unknown) => CommitOutcome::Unknown,
        }
    }

    /// Checks the connection of a read scope in; whether its body left a transaction open.
    async fn hand_back(mut self: Box<Self>) -> bool {
        let Some(lease) = self.lease.take() else { return false };
        if lease.is_clean() {
            lease.check_in();
            return false;
        }
        let left_open = lease.session().wire.status() != Status::Idle;
        let pool = Arc::clone(&lease.pool);
        Settling::new(&pool, lease.reclaim(Why::TidyUp)).await;
        left_open
    }
}
