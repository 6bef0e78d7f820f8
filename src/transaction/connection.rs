//! What a body gets: diesel-async connections that cannot leave their scope dirty.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use diesel::connection::{CacheSize, Instrumentation, InstrumentationEvent, TransactionManagerStatus};
use diesel::pg::Pg;
use diesel::query_builder::{AsQuery, QueryFragment, QueryId};
use diesel::result::Error as Diesel;
use diesel::{ConnectionError, ConnectionResult, QueryResult};
use diesel_async::{
    AsyncConnection, AsyncConnectionCore, AsyncPgConnection, SimpleAsyncConnection, TransactionManager,
};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use super::body::Body;
use super::commit::Committed;
use super::managers::{NoTransactions, Savepoints};
use super::rows::{Row, Rows};
use super::savepoint::nested;
use super::scope::Scope;
use crate::error::{AbortReason, Error, Result};
use crate::pool::{Lease, Session};
use crate::statement::{Admitted, Key, Rendered, RowStream, Text, render};

/// One transaction. diesel's typed queries run on it, through `&mut` as usual, or several at once through `&`.
///
/// It is committed when the body that got it returns `Ok`, and rolled back otherwise.
///
/// # Pipelining
///
/// Independent statements travel in one flight when their futures are polled together:
///
/// ```no_run
/// # use diesel::prelude::*;
/// # use diesel_async::RunQueryDsl;
/// # diesel::table! { videos (id) { id -> BigInt, title -> Text } }
/// # async fn example(tx: &mut t2m_db::Transaction) -> t2m_db::Result<()> {
/// let tx = &*tx;
/// let (count, titles) = futures_util::try_join!(
///     videos::table.count().get_result::<i64>(&mut &*tx),
///     videos::table.select(videos::title).load::<String>(&mut &*tx),
/// )?;
/// # Ok(()) }
/// ```
pub struct Transaction {
    pub(super) scope: Box<Scope>,
    pub(super) status: TransactionManagerStatus,
    nobody: Nobody,
}

/// A connection outside of a transaction, for reads: each statement is on its own and costs one round trip.
///
/// A write is refused by the server (SQLSTATE 25006) with a hint at
/// [`Database::with_transaction`](crate::Database::with_transaction). Pipelines like [`Transaction`].
pub struct Connection {
    pub(super) scope: Box<Scope>,
    pub(super) status: TransactionManagerStatus,
    nobody: Nobody,
}

impl Transaction {
    pub(super) fn new(scope: Box<Scope>) -> Self {
        Self { scope, status: TransactionManagerStatus::default(), nobody: Nobody }
    }

    /// Runs `body` inside a savepoint: its work is kept if it returns `Ok` and undone if not; the transaction goes on.
    ///
    /// # Errors
    /// The body's own. [`Error::Aborted`](crate::Error::Aborted) if the body returned `Ok` although a statement in it had
    /// failed: its work is undone then.
    ///
    /// # Cancel safety
    /// Dropped at any point, its work is undone before the next statement of the transaction. Only if it was dropped
    /// while RELEASE was on the way, the whole transaction fails: whether the work belongs to it cannot be known.
    pub fn savepoint<'a, F, R, E>(&'a mut self, body: F) -> impl Future<Output = Result<R, E>> + Send + 'a
    where
        for<'r> F: AsyncFnOnce(&'r mut Self) -> Result<R, E> + Body<&'r mut Self, Result<R, E>, Fut: Send> + Send + 'a,
        R: Send + 'a,
        E: From<Error> + Send + 'a,
    {
        nested(self, body, |error| E::from(Error::from(error)))
    }

    /// Runs `hook` once the transaction is committed: after the real COMMIT, never after a rollback, never twice.
    ///
    /// Hooks run in the order in which they were added. One added in a nested scope that is rolled back stays.
    ///
    /// # Panics
    /// A panic in a hook is logged and goes no further: the transaction is committed already.
    pub fn after_commit(&mut self, hook: impl FnOnce(&Committed) + Send + 'static) {
        self.scope.hooks.get_mut().push(Box::new(hook));
    }

    /// Lends the bare connection to code that wants an [`AsyncPgConnection`]. `transaction` on it nests in this one.
    ///
    /// What is done to it is noticed: its texts are read on their way, the session is reset afterwards, its statements are
    /// prepared anew, and a COMMIT or ROLLBACK sent on it, or a `transaction` that was dropped half-way, makes this transaction
    /// an error. Costs the round trip of BEGIN if nothing was sent yet. What only it has written is not seen: if COMMIT's
    /// reply is lost the outcome is unknown, unless a statement of this transaction's own wrote too.
    ///
    /// # Errors
    /// BEGIN failed; [`Error::Aborted`](crate::Error::Aborted) if it was lent before and a `transaction` on it was dropped.
    pub async fn raw(&mut self) -> Result<&mut AsyncPgConnection> {
        self.scope.ensure_begun().await?;
        self.scope.lend_raw(true)
    }
}

impl Connection {
    pub(super) fn new(scope: Box<Scope>) -> Self {
        Self { scope, status: TransactionManagerStatus::default(), nobody: Nobody }
    }

    /// Lends the bare connection to code that wants an [`AsyncPgConnection`]. What it leaves behind is cleaned up.
    ///
    /// # Errors
    /// None today; the signature is that of [`Transaction::raw`].
    #[expect(clippy::unused_async, reason = "reads like Transaction::raw")]
    pub async fn raw(&mut self) -> Result<&mut AsyncPgConnection> {
        self.scope.lend_raw(false)
    }
}

impl Scope {
    /// Sends `sql` as one message; it may hold several statements.
    pub(super) async fn batch(&self, sql: &str) -> QueryResult<()> {
        let text = Arc::new(Text::new(sql.to_owned()));
        self.run(&text, |_| true, |_, session| Some(session.batch(&text.sql))).await
    }

    fn load<T>(&self, source: T) -> BoxFuture<'_, QueryResult<Rows>>
    where
        T: AsQuery,
        T::Query: QueryFragment<Pg> + QueryId,
    {
        let query = source.as_query();
        match render(&query) {
            Ok(Some(rendered)) => self.load_rendered(rendered).boxed(),
            Ok(None) => match self.usable() {
                Ok(lease) => {
                    let session = lease.session();
                    self.load_once(AsyncConnectionCore::load(&mut &session.conn, query), session).boxed()
                }
                Err(error) => ready(Err(error)).boxed(),
            },
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    async fn load_rendered(&self, rendered: Rendered) -> QueryResult<Rows> {
        let mut news = false;
        let rows = self
            .run(
                &rendered.text,
                |session| session.kept.is_prepared(rendered.key),
                |lease, session| {
                    let keep = self.keeps(lease, session, rendered.key, &mut news);
                    let rows = rendered.load(&session.conn, keep);
                    Some(async move { Ok(Rows::new(rows.await?, Arc::clone(&session.wire))) })
                },
            )
            .await?;
        if news {
            self.is_prepared(rendered.key);
        }
        Ok(rows)
    }

    /// For a query that needs a type looked up: diesel-async does that, and it cannot be sent twice.
    async fn load_once<'a>(
        &'a self,
        rows: BoxFuture<'a, QueryResult<RowStream>>,
        session: &'a Session,
    ) -> QueryResult<Rows> {
        let (unknown, mut rows) = (Arc::new(Text::new("WITH".to_owned())), Some(rows));
        let rows = self.run(&unknown, |_| false, |_, _| rows.take()).await?;
        Ok(Rows::new(rows, Arc::clone(&session.wire)))
    }

    fn execute<T>(&self, query: T) -> BoxFuture<'_, QueryResult<usize>>
    where
        T: QueryFragment<Pg> + QueryId,
    {
        match render(&query) {
            Ok(Some(rendered)) => self.execute_rendered(rendered).boxed(),
            Ok(None) => match self.usable() {
                Ok(lease) => {
                    let count = AsyncConnectionCore::execute_returning_count(&mut &lease.session().conn, query);
                    self.execute_once(count).boxed()
                }
                Err(error) => ready(Err(error)).boxed(),
            },
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    async fn execute_rendered(&self, rendered: Rendered) -> QueryResult<usize> {
        let mut news = false;
        let count = self
            .run(
                &rendered.text,
                |session| session.kept.is_prepared(rendered.key),
                |lease, session| {
                    let keep = self.keeps(lease, session, rendered.key, &mut news);
                    Some(rendered.execute(&session.conn, keep))
                },
            )
            .await?;
        if news {
            self.is_prepared(rendered.key);
        }
        Ok(count)
    }

    async fn execute_once<'a>(&'a self, count: BoxFuture<'a, QueryResult<usize>>) -> QueryResult<usize> {
        let (unknown, mut count) = (Arc::new(Text::new("WITH".to_owned())), Some(count));
        self.run(&unknown, |_| false, |_, _| count.take()).await
    }

    /// Whether a statement is to stay prepared; `news`: it was not before.
    pub(super) fn keeps(&self, lease: &Lease, session: &Session, key: Key, news: &mut bool) -> bool {
        if !self.keep_statements.load(SeqCst) {
            return false;
        }
        let admitted = session.kept.admit(key, &lease.pool.doorkeeper);
        *news = admitted == Admitted::Yes;
        admitted != Admitted::No
    }

    pub(super) fn is_prepared(&self, key: Key) {
        if let Some(lease) = &self.lease {
            lease.session().kept.prepared(key);
        }
    }

    fn lend_raw(&mut self, in_transaction: bool) -> Result<&mut AsyncPgConnection> {
        self.usable()?;
        self.wrote.store(true, SeqCst);
        self.is_told();
        let Some(lease) = &mut self.lease else { unreachable!("usable() has just seen it") };
        let depth = lease.session_mut().left_nested();
        if in_transaction && depth > 0 {
            self.doom(AbortReason::UnfinishedNested { depth });
            self.usable()?;
        }
        let Some(lease) = &mut self.lease else { unreachable!("usable() has just seen it") };
        lease.note_raw();
        // What is begun and dropped on the bare connection is not seen: from here on only the server's reply proves an end.
        lease.holder.started.fetch_add(1, SeqCst);
        Ok(lease.session_mut().lend(in_transaction)?)
    }
}

/// What instruments a transaction that is over.
struct Nobody;

impl Instrumentation for Nobody {
    fn on_connection_event(&mut self, _: InstrumentationEvent<'_>) {}
}

macro_rules! connection {
    ($type:ident, $manager:ident) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($type)).field(&self.scope.name()).finish()
            }
        }

        impl SimpleAsyncConnection for $type {
            async fn batch_execute(&mut self, query: &str) -> QueryResult<()> {
                self.scope.batch(query).await
            }
        }

        impl SimpleAsyncConnection for &$type {
            async fn batch_execute(&mut self, query: &str) -> QueryResult<()> {
                self.scope.batch(query).await
            }
        }

        impl AsyncConnectionCore for $type {
            type LoadFuture<'conn, 'query> = BoxFuture<'conn, QueryResult<Rows>>;
            type ExecuteFuture<'conn, 'query> = BoxFuture<'conn, QueryResult<usize>>;
            type Stream<'conn, 'query> = Rows;
            type Row<'conn, 'query> = Row;
            type Backend = Pg;

            fn load<'conn, 'query, T>(&'conn mut self, source: T) -> Self::LoadFuture<'conn, 'query>
            where
                T: AsQuery + 'query,
                T::Query: QueryFragment<Pg> + QueryId + 'query,
            {
                self.scope.load(source)
            }

            fn execute_returning_count<'conn, 'query, T>(
                &'conn mut self,
                source: T,
            ) -> Self::ExecuteFuture<'conn, 'query>
            where
                T: QueryFragment<Pg> + QueryId + 'query,
            {
                self.scope.execute(source)
            }
        }

        impl<'a> AsyncConnectionCore for &'a $type {
            type LoadFuture<'conn, 'query> = BoxFuture<'a, QueryResult<Rows>>;
            type ExecuteFuture<'conn, 'query> = BoxFuture<'a, QueryResult<usize>>;
            type Stream<'conn, 'query> = Rows;
            type Row<'conn, 'query> = Row;
            type Backend = Pg;

            fn load<'conn, 'query, T>(&'conn mut self, source: T) -> Self::LoadFuture<'conn, 'query>
            where
                T: AsQuery + 'query,
                T::Query: QueryFragment<Pg> + QueryId + 'query,
            {
                let this: &'a $type = self;
                this.scope.load(source)
            }

            fn execute_returning_count<'conn, 'query, T>(
                &'conn mut self,
                source: T,
            ) -> Self::ExecuteFuture<'conn, 'query>
            where
                T: QueryFragment<Pg> + QueryId + 'query,
            {
                let this: &'a $type = self;
                this.scope.execute(source)
            }
        }

        impl AsyncConnection for $type {
            type TransactionManager = $manager;

            /// Never: a connection of this type exists only inside a scope of a [`Database`](crate::Database).
            async fn establish(_: &str) -> ConnectionResult<Self> {
                Err(ConnectionError::BadConnection("open a scope of t2m_db::Database instead".to_owned()))
            }

            /// As [`Transaction::savepoint`]: a nested scope that is safe to drop.
            fn transaction<'a, 'conn, R, E, F>(
                &'conn mut self,
                callback: F,
            ) -> impl Future<Output = std::result::Result<R, E>> + Send + 'conn
            where
                for<'r> F: AsyncFnOnce(&'r mut Self) -> std::result::Result<R, E>
                    + Body<&'r mut Self, std::result::Result<R, E>, Fut: Send>
                    + Send
                    + 'a,
                E: From<Diesel> + Send + 'a,
                R: Send + 'a,
                'a: 'conn,
            {
                <$manager as TransactionManager<Self>>::transaction(self, callback)
            }

            fn transaction_state(&mut self) -> &mut TransactionManagerStatus {
                &mut self.status
            }

            fn instrumentation(&mut self) -> &mut dyn Instrumentation {
                match &mut self.scope.lease {
                    Some(lease) => lease.session_mut().conn.instrumentation(),
                    None => &mut self.nobody,
                }
            }

            /// For the rest of the scope; the next one finds the default again.
            fn set_instrumentation(&mut self, instrumentation: impl Instrumentation) {
                if let Some(lease) = &mut self.scope.lease {
                    lease.session_mut().instrument(instrumentation);
                }
            }

            /// For the rest of the scope: [`CacheSize::Disabled`] keeps no new statement prepared.
            fn set_prepared_statement_cache_size(&mut self, size: CacheSize) {
                self.scope.keep_statements.store(matches!(size, CacheSize::Unbounded), SeqCst);
            }
        }
    };
}

connection!(Transaction, Savepoints);
connection!(Connection, NoTransactions);
