//! The last statement and COMMIT in one flight.
//!
//! Only when the statement is prepared on this connection already: otherwise COMMIT would overtake its execution, and
//! the two go one after the other. BEGIN rides along too if nothing was sent before, but only on a connection that was
//! heard of a moment ago: a flight that ends in COMMIT cannot be sent again when it meets a dead one.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Instant, SystemTime};

use diesel::QueryResult;
use diesel::deserialize::FromSqlRow;
use diesel::pg::Pg;
use diesel::query_builder::{AsQuery, QueryFragment, QueryId};
use diesel::query_dsl::CompatibleType;
use diesel::result::Error as Diesel;
use futures_util::future::{BoxFuture, OptionFuture, join3};
use futures_util::{FutureExt, TryStreamExt};
use tokio::task::coop::unconstrained;

use super::commit::Settling;
use super::connection::Transaction;
use super::rows::Row;
use super::scope::{After, Scope};
use super::xid::{Ask, followed_by};
use crate::error::{AbortReason, Error, Result, connection_lost};
use crate::pool::Session;
use crate::statement::{Kind, Rendered, render};

/// Sends a rendered statement and waits for all of its answer.
type Send<R> = for<'s> fn(&'s Session, &'s Rendered, bool) -> BoxFuture<'s, QueryResult<R>>;

impl Transaction {
    /// Runs `statement` as the last of this transaction and commits, in one round trip where the statement is prepared
    /// already. Returns the number of rows that it affected.
    ///
    /// The transaction is over then, and [`after_commit`](Self::after_commit) hooks have run: using it again is an error.
    ///
    /// # Errors
    /// The statement's; or whatever stood against COMMIT, as for
    /// [`TransactionBuilder::run`](crate::TransactionBuilder::run). Nothing is stored then, unless it is
    /// [`Error::CommitUnknown`], or [`Error::AnswerLost`]: committed, but the number of rows was lost with the connection.
    ///
    /// A transaction that is one flight from BEGIN to COMMIT, because nothing was sent before, gets the id by which its
    /// outcome could be found out in the same flight: if the connection is lost under it, that is `CommitUnknown`. Where
    /// that matters more than a round trip, execute the statement and return `Ok`.
    ///
    /// # Cancel safety
    /// Dropped once COMMIT is on the way, it runs to its end; before, the transaction is rolled back.
    pub fn commit_with(&mut self, statement: impl QueryFragment<Pg> + QueryId) -> BoxFuture<'_, Result<usize>> {
        // Rendered here, so that the future knows nothing of the statement's type.
        let rendered = rendered(&statement);
        self.finish(rendered, |session, rendered, keep| rendered.execute(&session.conn, keep)).boxed()
    }

    /// As [`commit_with`](Self::commit_with), for a statement that returns one row.
    ///
    /// # Errors
    /// As [`commit_with`](Self::commit_with). A statement that returned no row, or one that cannot be read, is committed
    /// nevertheless, and the error is [`Error::AnswerLost`].
    ///
    /// # Cancel safety
    /// As [`commit_with`](Self::commit_with).
    pub fn commit_returning<'t, U>(&'t mut self, statement: impl Returning<U>) -> BoxFuture<'t, Result<U>>
    where
        U: 't,
    {
        let private::Parts { rendered, read } = statement.into_parts();
        let scope = self.scope.name();
        let row = self.finish::<Option<Row>>(rendered, |session, rendered, keep| {
            let rows = rendered.load(&session.conn, keep);
            async move {
                // All of them are read: COMMIT's reply comes behind the last.
                let rows: Vec<Row> = rows.await?.try_collect().await?;
                Ok(rows.into_iter().next())
            }
            .boxed()
        });
        async move {
            let row = row.await?.ok_or(Diesel::NotFound);
            row.and_then(|row| read(&row)).map_err(|source| Error::AnswerLost { scope: scope.to_string(), source })
        }
        .boxed()
    }

    async fn finish<R: std::marker::Send + 'static>(
        &mut self,
        rendered: QueryResult<Rendered>,
        send: Send<R>,
    ) -> Result<R> {
        let rendered = rendered?;
        // From here on the body's handle is over; what becomes of the transaction is told to it at the end.
        let ended = Scope::ended(self.scope.name());
        let scope = mem::replace(&mut self.scope, ended);
        let result = scope.finish(rendered, send).await;
        self.scope.after = match &result {
            Ok(_) | Err(Error::AnswerLost { .. }) => After::Committed,
            Err(Error::CommitUnknown(_)) => After::Unknown,
            Err(error) => After::RolledBack { mendable: error.is_retryable().then(|| error.to_string()) },
        };
        result
    }
}

/// A query that returns rows which `U` can be read from. Implemented for everything that fits.
pub trait Returning<U>: private::Sealed<U> {}

impl<T: private::Sealed<U>, U> Returning<U> for T {}

mod private {
    use super::{
        AsQuery, CompatibleType, Diesel, FromSqlRow, Pg, QueryFragment, QueryId, QueryResult, Rendered, Row, rendered,
    };

    /// A query taken apart: what is sent, and how a row of its answer is read.
    #[expect(missing_debug_implementations, reason = "never seen by a caller")]
    pub struct Parts<U> {
        pub(super) rendered: QueryResult<Rendered>,
        pub(super) read: fn(&Row) -> QueryResult<U>,
    }

    pub trait Sealed<U> {
        fn into_parts(self) -> Parts<U>;
    }

    impl<T, U, ST> Sealed<U> for T
    where
        T: AsQuery,
        T::Query: QueryFragment<Pg> + QueryId,
        T::SqlType: CompatibleType<U, Pg, SqlType = ST>,
        U: FromSqlRow<ST, Pg>,
    {
        fn into_parts(self) -> Parts<U> {
            let rendered = rendered(&self.as_query());
            Parts { rendered, read: |row| U::build_from_row(row).map_err(Diesel::DeserializationError) }
        }
    }
}

fn rendered(statement: &(impl QueryFragment<Pg> + QueryId)) -> QueryResult<Rendered> {
    let lookup = "commit_with cannot send a query that needs a custom type looked up; execute it and return Ok instead";
    render(statement)?.ok_or_else(|| Diesel::QueryBuilderError(lookup.into()))
}

impl Scope {
    /// The statement and COMMIT: in one flight where that is safe, else one after the other.
    async fn finish<R: std::marker::Send + 'static>(self: Box<Self>, rendered: Rendered, send: Send<R>) -> Result<R> {
        let lease = self.usable()?;
        let pool = Arc::clone(&lease.pool);
        let kept = &lease.session().kept;
        let keep = self.keep_statements.load(SeqCst);
        let prepared = keep && kept.is_prepared(rendered.key);
        let safe = self.is_begun() || lease.session().was_heard_of_lately(Instant::now());
        let nested = self.nest.depth() > 0 || self.nest.is_unsettled();
        if prepared && self.expects_xid() && !lease.was_left_running() {
            // The answer for the id is right behind the last statement's.
            self.await_xid(lease.session()).await;
        }
        if prepared && safe && !nested && lease.is_answered() {
            return Settling::new(&pool, self.last_flight(rendered, send)).await;
        }
        let mut news = false;
        let answer = self
            .run(
                &rendered.text,
                |_| false,
                |lease, session| {
                    let keep = self.keeps(lease, session, rendered.key, &mut news);
                    Some(send(session, &rendered, keep))
                },
            )
            .await;
        match answer {
            Ok(answer) => {
                if news {
                    self.is_prepared(rendered.key);
                }
                Settling::new(&pool, self.commit(None)).await?;
                Ok(answer)
            }
            Err(error) => {
                Settling::new(&pool, self.roll_back()).await;
                Err(error.into())
            }
        }
    }

    /// BEGIN if it is still due, the statement, the question for the id, and COMMIT: sent together, answered in order.
    async fn last_flight<R>(mut self: Box<Self>, rendered: Rendered, send: Send<R>) -> Result<R> {
        let Some(lease) = self.lease.take() else { return Err(self.over()) };
        let text = &rendered.text;
        lease.note(text.effects);
        self.remember(&lease, text);
        if text.kind != Kind::Select {
            self.wrote.store(true, SeqCst);
        }
        let sent_at = SystemTime::now();
        let (opened, answer, committed) = {
            let session = lease.session();
            if let Some(reason) = super::commit::what_the_body_did(&session.wire, lease.effects()) {
                self.lease = Some(lease);
                return Err(self.abort(reason).await);
            }
            let begin = self.begins_on(lease.slot());
            if begin.is_some() {
                self.note_begin(&lease);
            }
            let begin = begin.map(str::to_owned);
            let ask = self.asks_for_xid(&lease, text).then_some(Ask::Assigned);
            lease.holder.started.fetch_add(1, SeqCst);
            lease.holder.committing();
            let opening = OptionFuture::from(begin.as_deref().map(|begin| session.batch(begin)));
            // Unconstrained: its first poll must put it on the way before COMMIT, whatever the task has used up.
            let statement = unconstrained(followed_by(send(session, &rendered, true), ask, session));
            join3(opening, statement, session.batch("COMMIT")).await
        };
        if let Some(Err(error)) = opened
            && !connection_lost(&error)
        {
            let message = self.explain(lease.session(), error).to_string();
            lease.all_ended();
            self.lease = Some(lease);
            return Err(self.abort(AbortReason::NotBegun { message }).await);
        }
        match answer {
            Ok(answer) => {
                lease.expect_sets(text.effects.local_sets.into());
                self.judge(lease, committed, sent_at, None).await?;
                Ok(answer)
            }
            Err(error) => {
                let error = self.explain(lease.session(), error);
                let refused = matches!(error, Diesel::DatabaseError(..)) && !connection_lost(&error);
                let ended = committed.is_ok();
                // A statement that the server refused makes a ROLLBACK of COMMIT, whether its reply came or not.
                if (refused || ended) && lease.session().wire.tags().commits == 0 {
                    if ended {
                        lease.all_ended();
                    }
                    self.lease = Some(lease);
                    self.roll_back().await;
                    return Err(error.into());
                }
                let scope = self.name().to_string();
                self.judge(lease, committed, sent_at, None).await?;
                Err(Error::AnswerLost { scope, source: error })
            }
        }
    }
}
