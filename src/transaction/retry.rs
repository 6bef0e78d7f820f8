//! Attempts after the first: only where another may succeed, and only as many as the system can bear.

use tokio::time::{Instant, sleep};

use super::attempt::{Again, Budget, attempt};
use super::body::Body;
use super::connection::Transaction;
use super::options::TransactionBuilder;
use super::scope::{After, Scope};
use crate::config::Retry;
use crate::error::{Error, RetriesExhausted, SqlState, is_consequence};
use crate::pool::add;

/// Runs `body` until it succeeds, fails for good, or may not be tried again.
pub(super) async fn run<F, R, E>(wanted: &TransactionBuilder<'_>, budget: Budget, body: F) -> Result<R, E>
where
    for<'r> F: AsyncFnOnce(&'r mut Transaction) -> Result<R, E>
        + Body<&'r mut Transaction, Result<R, E>, Fut: Send>
        + Clone
        + Send,
    E: From<Error>,
{
    let bucket = &wanted.pool.retries;
    let mut history = Vec::new();
    // Of an attempt that may be committed. Whatever comes after it, this is what is known then.
    let mut unknown = None;
    loop {
        let failure = match attempt(wanted, budget, body.clone()).await {
            Ok(value) => {
                if history.is_empty() {
                    bucket.put_back();
                }
                return Ok(value);
            }
            Err(failure) => failure,
        };
        match failure.again {
            Again::Mendable(what) => history.push(what),
            Again::Unknown(what) if wanted.idempotent => {
                history.push(what);
                unknown.get_or_insert(failure.error);
            }
            Again::Never | Again::Unknown(_) => return Err(unknown.unwrap_or(failure.error)),
        }
        let tried = u32::try_from(history.len()).unwrap_or(u32::MAX);
        let pause = wanted.retry.backoff(tried - 1);
        let stopped_by = if tried >= wanted.retry.attempts {
            "it may be tried no more often"
        } else if budget.until().is_some_and(|until| Instant::now() + pause >= until) {
            "its deadline is too near"
        } else if !bucket.take() {
            "the retry budget of the handle is used up: too much fails at once"
        } else {
            add(&wanted.pool.counters.retries);
            tracing::debug!(scope = %wanted.scope, attempt = tried, ?pause, failed = history.last(), "tried again");
            sleep(pause).await;
            continue;
        };
        if let Some(unknown) = unknown {
            tracing::debug!(scope = %wanted.scope, stopped_by, ?history, "not tried again after an unknown commit");
            return Err(unknown);
        }
        return Err(Error::SerializationRetriesExhausted(Box::new(RetriesExhausted {
            scope: wanted.scope.to_string(),
            attempts: tried,
            elapsed: budget.began.elapsed(),
            stopped_by,
            history,
        }))
        .into());
    }
}

impl Scope {
    /// What went wrong in this transaction that another attempt may mend, as the server told it. The body's own error
    /// cannot be asked: its type is the caller's.
    pub(super) fn again(&self, retry: &Retry) -> Again {
        let session = match (&self.lease, &self.after) {
            (Some(lease), _) => lease.session(),
            (None, After::RolledBack { mendable }) => return mendable.clone().map_or(Again::Never, Again::Mendable),
            (None, After::Committed) => return Again::Never,
            (None, After::Unknown) => return Again::Unknown("the outcome of commit_with is unknown".to_owned()),
        };
        let Some(lease) = &self.lease else { return Again::Never };
        if lease.session().wire.tags().commits > 0 {
            return Again::Never; // the body has stored something
        }
        if session.is_dead() && lease.may_have_ended() {
            return Again::Unknown("the body sent a text that may have committed by itself".to_owned());
        }
        if session.is_dead() {
            return Again::Mendable(session.last_words().unwrap_or_else(|| "connection lost".to_owned()));
        }
        // An earlier one was handled, in a savepoint.
        let Some(last) = session.wire.latest_error(|sqlstate| !is_consequence(sqlstate)) else { return Again::Never };
        let lock = retry.on_lock_timeout && last.sqlstate == *SqlState::LOCK_NOT_AVAILABLE.as_bytes();
        if lock || SqlState::new(last.sqlstate).is_retryable() || last.stale_plan {
            Again::Mendable(format!("{} (SQLSTATE {})", last.message, last.sqlstate()))
        } else {
            Again::Never
        }
    }
}
