//! Scopes inside a transaction: undone or kept, dropped at any time, and what of that the outer one is told.

use std::pin::pin;
use std::time::Duration;

use diesel_async::AsyncConnection;
use futures_util::future::{Either, poll_immediate, select};
use t2m_db::{AbortReason, Error, Transaction};
use tokio::time::timeout;

use crate::pool_support::through_a_proxy;
use crate::support::{LONG, batch, note, one_connection_is_idle, reason, setup};

#[tokio::test]
async fn nested_scopes_keep_undo_and_survive_being_cancelled() {
    let setup = setup(1).await;
    setup
        .db
        .with_transaction(async |tx| {
            note(tx, "outer").await?;
            tx.savepoint(async |tx| note(tx, "kept").await).await?;
            let undone = tx
                .savepoint(async |tx| {
                    note(tx, "undone").await?;
                    Err::<(), _>(Error::NotFound { entity: "proof" })
                })
                .await;
            assert!(matches!(undone, Err(Error::NotFound { .. })));
            // diesel's own nesting, and two levels.
            tx.transaction(async |tx| {
                note(tx, "level one").await?;
                let inner = tx
                    .transaction(async |tx| {
                        note(tx, "level two").await?;
                        Err::<(), Error>(diesel::result::Error::RollbackTransaction.into())
                    })
                    .await;
                assert!(inner.is_err());
                Ok::<_, Error>(())
            })
            .await?;
            // A statement fails inside: the outer one goes on.
            let failed = tx.savepoint(async |tx| note(tx, "outer").await).await.unwrap_err();
            assert!(failed.is_unique_violation());
            // One that swallows it is told.
            let swallowed = tx
                .savepoint(async |tx| {
                    drop(note(tx, "outer").await);
                    Ok::<_, Error>(())
                })
                .await
                .unwrap_err();
            assert!(matches!(reason(&swallowed), AbortReason::StatementFailed { .. }));
            // Cancelled while its statement runs.
            let slow = tx.savepoint(async |tx| {
                note(tx, "cancelled").await?;
                batch(tx, "SELECT pg_sleep(30)").await
            });
            assert!(timeout(Duration::from_millis(50), slow).await.is_err());
            note(tx, "after").await
        })
        .await
        .unwrap();
    assert_eq!(setup.stored().await, ["outer", "kept", "level one", "after"]);
    one_connection_is_idle(&setup).await;
}

#[tokio::test]
async fn a_statement_that_was_begun_and_dropped_is_not_waited_for() {
    let setup = setup(1).await;
    // Polled once: it is on its way, or still in the client, and nobody waits for it.
    let begun = async |tx: &mut Transaction| poll_immediate(pin!(batch(tx, "SELECT pg_sleep(600)"))).await.is_none();
    let outer = setup.db.with_transaction(async |tx| {
        note(tx, "lost").await?;
        assert!(begun(tx).await);
        Ok::<_, Error>(())
    });
    let error = timeout(LONG, outer).await.unwrap().unwrap_err();
    assert!(
        matches!(reason(&error), AbortReason::StatementFailed { sqlstate, .. } if sqlstate == "57014"),
        "{error:?}"
    );
    let nested = setup.db.with_transaction(async |tx| {
        let undone = tx.savepoint(async |tx| {
            assert!(begun(tx).await);
            Err::<(), _>(Error::NotFound { entity: "proof" })
        });
        assert!(matches!(undone.await, Err(Error::NotFound { .. })));
        note(tx, "kept").await
    });
    timeout(LONG, nested).await.unwrap().unwrap();
    assert_eq!(setup.stored().await, ["kept"]);
    one_connection_is_idle(&setup).await;
}

#[tokio::test]
async fn an_unfinished_savepoint_is_not_ok() {
    use diesel_async::TransactionManager;
    type Manager = <t2m_db::Transaction as AsyncConnection>::TransactionManager;
    let setup = setup(1).await;
    let error = setup
        .db
        .with_transaction(async |tx| {
            note(tx, "undone").await?;
            Manager::begin_transaction(tx).await?;
            Ok::<_, Error>(())
        })
        .await
        .unwrap_err();
    assert_eq!(reason(&error), &AbortReason::UnfinishedNested { depth: 1 });
    assert_eq!(setup.stored().await, [""; 0]);
}

#[tokio::test]
async fn a_nested_scope_dropped_while_its_release_is_on_the_way_fails_the_outer_one() {
    for goes_on in [false, true] {
        let (setup, proxy) = through_a_proxy(|config| config.max_size(1)).await;
        let outer = setup.db.with_transaction(async |tx| {
            note(tx, "outer").await?;
            proxy.hold_replies_to("RELEASE");
            {
                let nested = pin!(tx.savepoint(async |tx| note(tx, "nested").await));
                assert!(matches!(select(nested, pin!(proxy.until_held(1))).await, Either::Right(_)));
            }
            proxy.release_all();
            if goes_on {
                let refused = note(tx, "after").await.unwrap_err();
                assert_eq!(reason(&refused), &AbortReason::NestedUnknown, "{refused}");
            }
            Ok::<_, Error>(())
        });
        let error = timeout(LONG, outer).await.unwrap().unwrap_err();
        assert_eq!(reason(&error), &AbortReason::NestedUnknown, "{error}");
        setup.all_back().await;
        assert_eq!(setup.stored().await, [""; 0]);
        one_connection_is_idle(&setup).await;
    }
}
