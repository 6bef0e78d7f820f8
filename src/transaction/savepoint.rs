//! Scopes inside a transaction, safe to drop: a nested scope that is cancelled is rolled back before the next
//! statement of the outer one is sent, and what it left running on the server is cancelled.
//!
//! Where the outcome of a nested scope cannot be known (its RELEASE was on the way) the outer one fails.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use diesel::QueryResult;
use diesel::result::Error as Diesel;
use parking_lot::Mutex;

use super::body::Body;
use super::connection::Transaction;
use super::scope::Scope;
use crate::error::{AbortReason, Error, connection_lost, is_consequence, refusal};
use crate::pool::{Lease, Undone};
use crate::wire::Status;

/// The savepoints of one transaction.
#[derive(Debug, Default)]
pub(super) struct Nest {
    state: Mutex<State>,
    unsettled: AtomicBool,
    settling: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Numbers of the savepoints that are open, outermost first. No number is used twice.
    open: Vec<u32>,
    next: u32,
    /// Everything from this savepoint on belongs to a scope that was dropped.
    dropped_from: Option<u32>,
}

impl Nest {
    /// A nested scope was dropped and nothing has been done about it yet.
    pub(super) fn is_unsettled(&self) -> bool {
        self.unsettled.load(SeqCst)
    }

    /// How many savepoints are open.
    pub(super) fn depth(&self) -> usize {
        self.state.lock().open.len()
    }

    fn push(&self) -> u32 {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        state.open.push(number);
        number
    }

    /// `number` and everything inside it is closed.
    fn close(&self, number: u32) {
        self.state.lock().open.retain(|open| *open < number);
    }

    fn drop_from(&self, number: u32) {
        let mut state = self.state.lock();
        state.open.retain(|open| *open < number);
        state.dropped_from = Some(state.dropped_from.map_or(number, |other| other.min(number)));
        self.unsettled.store(true, SeqCst);
    }
}

/// What a nested scope has sent, and so what is to be done if it is dropped now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    Releasing,
    /// ROLLBACK TO is on the way and will be done before anything that is sent later; or all is done.
    Closed,
}

/// Notices that a nested scope was dropped.
struct Guard<'s> {
    scope: &'s Scope,
    number: u32,
    stage: Stage,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        match self.stage {
            Stage::Open => self.scope.nest.drop_from(self.number),
            Stage::Releasing => self.scope.doom(AbortReason::NestedUnknown),
            Stage::Closed => {}
        }
    }
}

impl Scope {
    /// Rolls back what dropped scopes left, so that the statement about to be sent finds the outer scope as it was.
    pub(super) async fn settle_nested(&self, lease: &Lease) -> QueryResult<()> {
        // Statements of one flight come here together; the first does the work.
        let _turn = self.nest.settling.lock().await;
        let Some(number) = self.nest.state.lock().dropped_from else { return Ok(()) };
        // Idempotent, so that being dropped here and coming again is harmless.
        match lease.undo(&format!("ROLLBACK TO SAVEPOINT t2m_{number}"), Status::Open).await {
            Undone::Clean => {
                self.nest.state.lock().dropped_from = None;
                self.nest.unsettled.store(false, SeqCst);
                Ok(())
            }
            Undone::Lost => Err(self.lost(lease.session())),
            Undone::Stuck => {
                self.doom(AbortReason::NestedUnknown);
                Err(self.aborted(AbortReason::NestedUnknown))
            }
        }
    }

    async fn open_savepoint(&self) -> QueryResult<Guard<'_>> {
        if self.nest.is_unsettled() {
            self.settle_nested(self.usable()?).await?;
        }
        let number = self.nest.push();
        // From here on a drop is noticed. SAVEPOINT is put on the way by the same poll.
        let guard = Guard { scope: self, number, stage: Stage::Open };
        match self.batch(&format!("SAVEPOINT t2m_{number}")).await {
            Ok(()) => Ok(guard),
            Err(error) => {
                self.nest.close(number);
                disarm(guard);
                Err(error)
            }
        }
    }

    /// RELEASE, or why the nested scope cannot be part of the outer one. Either way the outer one may go on.
    async fn release(&self, mut guard: Guard<'_>) -> QueryResult<()> {
        let lease = self.usable()?;
        let wire = &lease.session().wire;
        if self.nest.state.lock().open.last() != Some(&guard.number) {
            let depth = self.nest.depth();
            self.roll_back_to(guard).await?;
            return Err(self.aborted(AbortReason::UnfinishedNested { depth }));
        }
        guard.stage = Stage::Releasing;
        let released = self.batch(&format!("RELEASE SAVEPOINT t2m_{}", guard.number)).await;
        match released {
            Ok(()) => {
                self.nest.close(guard.number);
                disarm(guard);
                Ok(())
            }
            Err(error) if connection_lost(&error) || self.usable().is_err() => {
                disarm(guard);
                Err(error)
            }
            Err(error) => {
                // A statement inside had failed and the body said Ok.
                let cause = wire.latest_error(|sqlstate| !is_consequence(sqlstate));
                guard.stage = Stage::Open;
                self.roll_back_to(guard).await?;
                Err(cause.map_or(error, |cause| {
                    let sqlstate = cause.sqlstate().to_owned();
                    self.aborted(AbortReason::StatementFailed { sqlstate, message: cause.message })
                }))
            }
        }
    }

    async fn roll_back_to(&self, mut guard: Guard<'_>) -> QueryResult<()> {
        let number = guard.number;
        if self.nest.is_unsettled() {
            self.settle_nested(self.usable()?).await?;
        }
        guard.stage = Stage::Closed;
        self.nest.close(number);
        let undo = format!("ROLLBACK TO SAVEPOINT t2m_{number}; RELEASE SAVEPOINT t2m_{number}");
        match self.usable()? {
            // It would wait for a statement that nobody waits for any more.
            lease if lease.was_left_running() => match lease.undo(&undo, Status::Open).await {
                Undone::Clean => Ok(()),
                Undone::Lost => Err(self.lost(lease.session())),
                Undone::Stuck => Err(self.aborted(AbortReason::NestedUnknown)),
            },
            _ => self.batch(&undo).await,
        }
    }

    fn aborted(&self, reason: AbortReason) -> Diesel {
        refusal(Error::Aborted { scope: self.name().to_string(), reason })
    }

    /// For callers of the transaction manager, who promise to close what they open.
    pub(super) async fn push_savepoint(&self) -> QueryResult<()> {
        let guard = self.open_savepoint().await?;
        disarm(guard);
        Ok(())
    }

    /// Closes the innermost savepoint: released, or rolled back.
    pub(super) async fn pop_savepoint(&self, keep: bool) -> QueryResult<()> {
        let number = self.nest.state.lock().open.last().copied().ok_or(Diesel::NotInTransaction)?;
        let guard = Guard { scope: self, number, stage: Stage::Open };
        if keep { self.release(guard).await } else { self.roll_back_to(guard).await }
    }
}

fn disarm(mut guard: Guard<'_>) {
    guard.stage = Stage::Closed;
}

/// Runs `body` inside a savepoint of `tx`. `ours` makes an error of the caller's type of one of ours.
pub(super) async fn nested<F, R, E>(tx: &mut Transaction, body: F, ours: fn(Diesel) -> E) -> Result<R, E>
where
    for<'r> F: AsyncFnOnce(&'r mut Transaction) -> Result<R, E> + Body<&'r mut Transaction, Result<R, E>, Fut: Send>,
{
    let number = {
        let guard = tx.scope.open_savepoint().await.map_err(ours)?;
        let number = guard.number;
        disarm(guard);
        number
    };
    let mut dropped = Dropped { tx, number: Some(number) };
    let result = body(&mut *dropped.tx).await;
    dropped.number = None;
    let scope = &dropped.tx.scope;
    let guard = Guard { scope, number, stage: Stage::Open };
    match result {
        Ok(value) => scope.release(guard).await.map(|()| value).map_err(ours),
        Err(error) => {
            // If this fails the transaction is aborted or lost, and its end will say so; the body's own error says why.
            let _ = scope.roll_back_to(guard).await;
            Err(error)
        }
    }
}

/// Holds the transaction while the body of a nested scope has it, and notices if that is dropped.
struct Dropped<'t> {
    tx: &'t mut Transaction,
    number: Option<u32>,
}

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.tx.scope.nest.drop_from(number);
        }
    }
}
