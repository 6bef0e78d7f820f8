//! The bare connection, `raw()`: whatever is done to it, an Ok is true and the next borrower finds nothing of it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use diesel::connection::{CacheSize, InstrumentationEvent};
use diesel::prelude::*;
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use futures_util::future::{Either, poll_immediate, select};
use t2m_db::testing::When;
use t2m_db::{AbortReason, CommitOutcome, Error, Transaction};
use tokio::sync::oneshot;

use crate::pool_support::{ping, through_a_proxy, until};
use crate::support::{batch, note, notes, one_connection_is_idle, setup};

/// The error of a scope that was not committed.
fn reason(told: Result<(), Error>) -> AbortReason {
    match told {
        Err(Error::Aborted { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

/// A nested scope that has stored a note, and is dropped.
async fn dropped_savepoint(tx: &mut Transaction) {
    let (arrived, here) = oneshot::channel();
    let nested = tx.savepoint(async move |tx| {
        note(tx, "dropped").await?;
        arrived.send(()).unwrap();
        std::future::pending::<Result<(), Error>>().await
    });
    assert!(matches!(select(pin!(nested), here).await, Either::Right(_)));
}

#[tokio::test]
async fn the_bare_connection_nests_and_is_watched() {
    let setup = setup(1).await;
    setup
        .db
        .with_transaction(async |tx| {
            let raw = tx.raw().await?;
            raw.transaction(async |raw| {
                diesel::insert_into(notes::table).values(notes::text.eq("raw")).execute(raw).await
            })
            .await?;
            Ok::<_, Error>(())
        })
        .await
        .unwrap();
    let scope = setup.db.with_transaction(async |tx| {
        note(tx, "undone").await?;
        Ok(tx.raw().await?.batch_execute("ROLLBACK").await?)
    });
    assert_eq!(reason(scope.await), AbortReason::BodyRolledBack);
    assert_eq!(setup.stored().await, ["raw"]);
    one_connection_is_idle(&setup).await;
}

#[tokio::test]
async fn it_is_lent_with_dropped_savepoints_undone() {
    let setup = setup(1).await;
    let scope = setup.db.with_transaction(async |tx| {
        dropped_savepoint(tx).await;
        Ok::<_, Error>(tx.raw().await?.batch_execute("INSERT INTO notes (text) VALUES ('kept')").await?)
    });
    scope.await.unwrap();
    assert_eq!(setup.stored().await, ["kept"]);
}

#[tokio::test]
async fn a_nested_transaction_dropped_on_it_is_not_committed_by_halves() {
    for again in [false, true] {
        let setup = setup(1).await;
        let scope = setup.db.with_transaction(async |tx| {
            note(tx, "before").await?;
            let raw = tx.raw().await?;
            let (arrived, here) = oneshot::channel();
            let nested = raw.transaction(async move |conn| {
                conn.batch_execute("INSERT INTO notes (text) VALUES ('half')").await?;
                arrived.send(()).unwrap();
                std::future::pending::<Result<(), Error>>().await
            });
            assert!(matches!(select(pin!(nested), here).await, Either::Right(_)));
            if again {
                // Lent once more, diesel's own count of the depth starts anew: ours must not.
                tx.raw().await?.batch_execute("SELECT 1").await?;
            }
            Ok(())
        });
        assert_eq!(reason(scope.await), AbortReason::UnfinishedNested { depth: 1 });
        assert_eq!(setup.stored().await, Vec::<String>::new());
        ping(&setup.db).await.unwrap();
        assert_eq!(setup.db.stats().opened, 1);
    }
}

#[tokio::test]
async fn a_chained_rollback_is_seen() {
    let setup = setup(1).await;
    for sql in ["ROLLBACK AND CHAIN", "/* c */ rollback\nand chain"] {
        let scope = setup.db.with_transaction(async |tx| {
            note(tx, "lost").await?;
            tx.raw().await?.batch_execute(sql).await?;
            note(tx, "stored?").await?;
            Ok(())
        });
        assert_eq!(reason(scope.await), AbortReason::BodyRolledBack, "{sql}");
        assert_eq!(setup.stored().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn what_was_set_on_the_client_is_undone_too() {
    let setup = setup(1).await;
    let seen = Arc::new(AtomicUsize::new(0));
    let noted = |text: &'static str| setup.db.with_transaction(async move |tx| note(tx, text).await.map(drop));
    let last = |text: &'static str| {
        let insert = diesel::insert_into(notes::table).values(notes::text.eq(text));
        setup.db.with_transaction(async move |tx| {
            note(tx, &format!("{text} first")).await?;
            tx.commit_with(insert).await
        })
    };
    for text in ["one", "two", "three"] {
        last(text).await.unwrap(); // kept prepared from the second on
    }
    let counter = Arc::clone(&seen);
    let scope = setup.db.with_transaction(async move |tx| {
        let raw = tx.raw().await?;
        raw.set_prepared_statement_cache_size(CacheSize::Disabled);
        raw.set_instrumentation(move |_: InstrumentationEvent<'_>| {
            AtomicUsize::fetch_add(&counter, 1, SeqCst);
        });
        raw.batch_execute("SELECT 1").await?;
        Ok::<_, Error>(())
    });
    scope.await.unwrap();
    let before = AtomicUsize::load(&seen, SeqCst);
    assert!(before > 0);
    noted("next").await.unwrap();
    assert_eq!(AtomicUsize::load(&seen, SeqCst), before, "the next borrower is not watched");
    // Were the statement still taken for prepared, COMMIT would overtake it.
    assert_eq!(last("four").await.unwrap(), 1);
    assert_eq!(setup.stored().await.len(), 4 * 2 + 1);
    assert_eq!(setup.db.stats().opened, 1);
}

#[tokio::test]
async fn nothing_is_sent_again_once_it_was_lent() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(1)).await;
    ping(&setup.db).await.unwrap();
    let scope = setup.db.with_transaction(async |tx| {
        // Polled once and dropped: nobody was told an answer of it.
        assert!(poll_immediate(pin!(notes::table.count().get_result::<i64>(&mut &*tx))).await.is_none());
        tx.raw().await?.batch_execute("INSERT INTO notes (text) VALUES ('lost')").await?;
        proxy.cut_all();
        until("its end is seen", || setup.db.stats().size == 0).await;
        note(tx, "alone").await.map(drop)
    });
    let error = scope.await.unwrap_err();
    assert!(error.is_connection_lost(), "{error:?}");
    assert_eq!((setup.stored().await, setup.db.stats().resent), (vec![], 0));
}

#[tokio::test]
async fn a_transaction_left_open_on_a_read_connection_is_not_ok() {
    let setup = setup(1).await;
    let scope = setup.db.with_connection(async |conn| {
        conn.batch_execute("BEGIN READ WRITE; INSERT INTO notes (text) VALUES ('lost')").await?;
        Ok(())
    });
    assert_eq!(reason(scope.await), AbortReason::BodyBegan);
    assert_eq!(setup.stored().await, Vec::<String>::new());
    ping(&setup.db).await.unwrap();
}

#[tokio::test]
async fn one_that_may_have_committed_by_itself_is_not_retried() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(2)).await;
    ping(&setup.db).await.unwrap();
    let attempts = Arc::new(AtomicUsize::new(0));
    let (count, cutter) = (Arc::clone(&attempts), &proxy);
    let scope = setup.db.transaction("twice?").run_retrying(async move |tx| {
        AtomicUsize::fetch_add(&count, 1, SeqCst);
        batch(tx, "SELECT 1").await?;
        let _cut = cutter.cut(When::AfterReply, "COMMIT");
        batch(tx, "INSERT INTO notes (text) VALUES ('once'); COMMIT").await
    });
    assert!(scope.await.is_err());
    assert_eq!((AtomicUsize::load(&attempts, SeqCst), setup.stored().await), (1, vec!["once".to_owned()]));
    // The error that it swallows is not taken for a harmless one either.
    let scope = setup.db.with_transaction(async |tx| {
        batch(tx, "SELECT 1").await?;
        let _cut = proxy.cut(When::AfterReply, "COMMIT");
        let _ = batch(tx, "INSERT INTO notes (text) VALUES ('twice'); COMMIT").await;
        Ok::<_, Error>(())
    });
    assert_eq!(scope.await.unwrap_err().commit_outcome(), CommitOutcome::Unknown);
}
