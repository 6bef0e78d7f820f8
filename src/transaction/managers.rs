//! What diesel-async asks of a connection that nests: on a transaction of ours it nests by savepoints, on a read connection
//! not at all.

use diesel::QueryResult;
use diesel::connection::TransactionManagerStatus;
use diesel::result::Error as Diesel;
use diesel_async::TransactionManager;

use super::body::Body;
use super::connection::{Connection, Transaction};
use super::savepoint::nested;
use crate::error::CommitOutcome;

/// The transaction manager of [`Transaction`]: the transaction itself belongs to its scope, everything else nests.
#[derive(Debug)]
pub struct Savepoints;

impl TransactionManager<Transaction> for Savepoints {
    type TransactionStateData = TransactionManagerStatus;

    async fn begin_transaction(tx: &mut Transaction) -> QueryResult<()> {
        tx.scope.push_savepoint().await
    }

    async fn rollback_transaction(tx: &mut Transaction) -> QueryResult<()> {
        tx.scope.pop_savepoint(false).await
    }

    async fn commit_transaction(tx: &mut Transaction) -> QueryResult<()> {
        tx.scope.pop_savepoint(true).await
    }

    fn transaction_manager_status_mut(tx: &mut Transaction) -> &mut TransactionManagerStatus {
        &mut tx.status
    }

    #[expect(clippy::manual_async_fn, reason = "as the trait has it")]
    fn transaction<'a, 'conn, F, R, E>(
        tx: &'conn mut Transaction,
        callback: F,
    ) -> impl Future<Output = std::result::Result<R, E>> + Send + 'conn
    where
        for<'r> F: AsyncFnOnce(&'r mut Transaction) -> std::result::Result<R, E>
            + Body<&'r mut Transaction, std::result::Result<R, E>, Fut: Send>
            + Send
            + 'a,
        E: From<Diesel> + Send,
        R: Send,
        'a: 'conn,
    {
        async move { nested(tx, callback, E::from).await }
    }
}

/// The transaction manager of [`Connection`]: there are none.
#[derive(Debug)]
pub struct NoTransactions;

impl NoTransactions {
    fn refuse(conn: &Connection) -> Diesel {
        let reason = "it is a read connection; open the transaction with Database::with_transaction".into();
        let scope = conn.scope.name().to_string();
        crate::error::refusal(crate::Error::Over { scope, reason, outcome: CommitOutcome::NotCommitted })
    }
}

impl TransactionManager<Connection> for NoTransactions {
    type TransactionStateData = TransactionManagerStatus;

    async fn begin_transaction(conn: &mut Connection) -> QueryResult<()> {
        Err(Self::refuse(conn))
    }

    async fn rollback_transaction(conn: &mut Connection) -> QueryResult<()> {
        Err(Self::refuse(conn))
    }

    async fn commit_transaction(conn: &mut Connection) -> QueryResult<()> {
        Err(Self::refuse(conn))
    }

    fn transaction_manager_status_mut(conn: &mut Connection) -> &mut TransactionManagerStatus {
        &mut conn.status
    }
}
