//! How a scope can end, one by one: what the caller is told, what is stored, and where the connection is afterwards.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use futures_util::FutureExt;
use t2m_db::{AbortReason, CommitOutcome, Error, Isolation};
use tokio::time::timeout;

use crate::support::{LONG, Setup, batch, note, notes, one_connection_is_idle, reason, setup};

#[tokio::test]
async fn ok_commits_and_err_rolls_back() {
    let setup = setup(1).await;
    let id = setup.db.with_transaction(async |tx| note(tx, "kept").await).await.unwrap();
    assert_eq!(id, 1);
    let error = setup.db.with_transaction(async |tx| {
        note(tx, "undone").await?;
        Err::<(), _>(Error::NotFound { entity: "proof" })
    });
    assert!(matches!(error.await, Err(Error::NotFound { entity: "proof" })), "the body's own error");
    assert_eq!(setup.stored().await, ["kept"]);
    one_connection_is_idle(&setup).await;
}

#[tokio::test]
async fn a_swallowed_error_is_not_ok() {
    let setup = setup(1).await;
    let error = setup.db.with_transaction(async |tx| {
        note(tx, "twice").await?;
        drop(note(tx, "twice").await);
        Ok::<_, Error>(())
    });
    let error = error.await.unwrap_err();
    assert!(matches!(reason(&error), AbortReason::StatementFailed { sqlstate, .. } if sqlstate == "23505"), "{error}");
    assert_eq!(error.commit_outcome(), CommitOutcome::NotCommitted);
    assert_eq!(setup.stored().await, [""; 0]);
    one_connection_is_idle(&setup).await;
}

#[tokio::test]
async fn a_body_that_ends_the_transaction_itself_is_told_so() {
    let setup = setup(1).await;
    for (sql, expected, outcome) in [
        ("COMMIT", AbortReason::BodyCommitted, CommitOutcome::InPart),
        ("COMMIT AND CHAIN", AbortReason::BodyCommitted, CommitOutcome::InPart),
        ("ROLLBACK", AbortReason::BodyRolledBack, CommitOutcome::NotCommitted),
        ("ROLLBACK AND CHAIN", AbortReason::BodyRolledBack, CommitOutcome::NotCommitted),
        ("BEGIN", AbortReason::BodyBegan, CommitOutcome::NotCommitted),
    ] {
        let error = setup.db.with_transaction(async |tx| {
            note(tx, sql).await?;
            batch(tx, sql).await
        });
        let error = error.await.unwrap_err();
        assert_eq!((reason(&error), error.commit_outcome()), (&expected, outcome), "{sql}");
        one_connection_is_idle(&setup).await;
    }
    assert_eq!(setup.stored().await, ["COMMIT", "COMMIT AND CHAIN"], "what it committed itself, and nothing else");
}

#[tokio::test]
async fn a_deferred_constraint_fails_the_commit() {
    let setup = setup(1).await;
    let constraint = "ALTER TABLE notes ADD CONSTRAINT later UNIQUE (seen) DEFERRABLE INITIALLY DEFERRED";
    setup.client.batch_execute(constraint).await.unwrap();
    let error = setup.db.with_transaction(async |tx| {
        note(tx, "one").await?;
        note(tx, "two").await
    });
    let error = error.await.unwrap_err();
    assert!(error.is_unique_violation(), "{error}");
    assert_eq!(error.constraint(), Some("later"));
    assert_eq!(setup.stored().await, [""; 0]);
    one_connection_is_idle(&setup).await;
}

#[tokio::test]
async fn a_panic_goes_on_after_rollback_and_costs_no_connection() {
    let setup = setup(1).await;
    for _ in 0..3 {
        let scope = setup.db.with_transaction(async |tx| {
            note(tx, "undone").await?;
            panic!("on purpose");
            #[expect(unreachable_code, reason = "the type of the body")]
            Ok::<(), Error>(())
        });
        let panic = AssertUnwindSafe(scope).catch_unwind().await.unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
        one_connection_is_idle(&setup).await;
    }
    assert_eq!(setup.stored().await, [""; 0]);
    assert_eq!(setup.db.stats().panicked, 3);
}

#[tokio::test]
async fn after_commit_runs_once_after_a_real_commit_and_never_else() {
    let setup = setup(1).await;
    let ran = Arc::new(AtomicU32::new(0));
    let hook = |ran: &Arc<AtomicU32>| {
        let ran = Arc::clone(ran);
        move |committed: &t2m_db::Committed| {
            assert!(committed.xid.is_some() && !committed.resolved);
            AtomicU32::fetch_add(&ran, 1, SeqCst);
        }
    };
    setup
        .db
        .with_transaction(async |tx| {
            tx.after_commit(|_| panic!("on purpose: it is logged and goes no further"));
            tx.after_commit(hook(&ran));
            note(tx, "kept").await
        })
        .await
        .unwrap();
    assert_eq!(AtomicU32::load(&ran, SeqCst), 1);
    drop(
        setup
            .db
            .with_transaction(async |tx| {
                tx.after_commit(hook(&ran));
                note(tx, "kept").await // a duplicate
            })
            .await
            .unwrap_err(),
    );
    drop(
        setup
            .db
            .with_transaction(async |tx| {
                tx.after_commit(hook(&ran));
                drop(note(tx, "kept").await);
                Ok::<_, Error>(())
            })
            .await
            .unwrap_err(),
    );
    assert_eq!(AtomicU32::load(&ran, SeqCst), 1);
}

#[tokio::test]
async fn options_reach_the_server() {
    let setup = setup(1).await;
    let scope = setup.db.transaction("strict").isolation(Isolation::Serializable).read_only().deferrable();
    let seen: (String, String, String) = scope
        .run(async |tx| {
            let mut seen = Vec::new();
            for name in ["transaction_isolation", "transaction_read_only", "transaction_deferrable"] {
                let show = diesel::select(current_setting(name));
                seen.push(show.get_result::<String>(tx).await?);
            }
            Ok::<_, Error>((seen.remove(0), seen.remove(0), seen.remove(0)))
        })
        .await
        .unwrap();
    assert_eq!(seen, ("serializable".into(), "on".into(), "on".into()));
    let written = setup.db.transaction("reader").read_only().run(async |tx| note(tx, "no").await);
    assert_eq!(written.await.unwrap_err().sqlstate().unwrap().as_str(), "25006");
    let left: String = setup
        .db
        .with_connection(async |conn| {
            Ok::<_, Error>(diesel::select(current_setting("transaction_isolation")).get_result(conn).await?)
        })
        .await
        .unwrap();
    assert_eq!(left, "read committed", "the next borrower finds the default");
    assert_eq!(setup.db.stats().reset, 0, "and it cost nothing");
}

#[diesel::declare_sql_function]
extern "SQL" {
    fn current_setting(name: diesel::sql_types::Text) -> diesel::sql_types::Text;
    fn pg_backend_pid() -> diesel::sql_types::Integer;
}

#[tokio::test]
async fn an_empty_transaction_sends_nothing() {
    let setup = setup(1).await;
    let before = setup.db.stats().commits;
    setup.db.with_transaction(async |_| Ok::<_, Error>(())).await.unwrap();
    drop(setup.db.with_transaction(async |_| Err::<(), _>(Error::NotFound { entity: "proof" })).await);
    assert_eq!(setup.db.stats().commits, before);
    let last: String = setup
        .client
        .query_one(
            "SELECT query FROM pg_stat_activity WHERE application_name = 't2m-db' AND datname = current_database()",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert!(!last.contains("BEGIN") && !last.contains("ROLLBACK") && !last.contains("COMMIT"), "{last}");
}

#[tokio::test]
async fn a_scope_that_would_wait_for_itself_is_told_both_places() {
    let setup = setup(1).await;
    let error = timeout(
        LONG,
        setup.db.transaction("outer").run(async |tx| {
            note(tx, "outer").await?;
            setup.db.with_connection(async |conn| Ok::<i64, Error>(notes::table.count().get_result(conn).await?)).await
        }),
    )
    .await
    .unwrap()
    .unwrap_err();
    let Error::NestedCheckout { inner, outer, .. } = &error else { panic!("{error:?}") };
    assert!(inner.contains("with_connection") && inner.contains("tests/scopes.rs:"), "{inner}");
    assert!(outer.contains("\"outer\" (tests/scopes.rs:"), "{outer}");
    // With a second connection it is no deadlock, and allowed.
    let setup = crate::support::setup(2).await;
    let counted: i64 = setup
        .db
        .with_transaction(async |tx| {
            note(tx, "outer").await?;
            setup.db.with_connection(async |conn| Ok::<_, Error>(notes::table.count().get_result(conn).await?)).await
        })
        .await
        .unwrap();
    assert_eq!(counted, 0, "not committed yet");
}

#[tokio::test]
async fn commit_with_commits_and_is_the_end() {
    let setup = setup(1).await;
    let insert = |text: &'static str| diesel::insert_into(notes::table).values(notes::text.eq(text));
    for round in ["first", "again", "prepared"] {
        let count = setup.db.with_transaction(async |tx| tx.commit_with(insert(round)).await).await.unwrap();
        assert_eq!(count, 1);
    }
    let id: i64 = setup
        .db
        .with_transaction(async |tx| {
            note(tx, "before").await?;
            tx.commit_returning(insert("last").returning(notes::id)).await
        })
        .await
        .unwrap();
    assert_eq!(id, 5);
    let error = setup
        .db
        .with_transaction(async |tx| {
            tx.commit_with(insert("kept")).await?;
            note(tx, "too late").await
        })
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Over { .. }), "{error}");
    // A failing last statement takes everything with it, prepared or not, and cannot be swallowed.
    for _ in 0..3 {
        let error = setup
            .db
            .with_transaction(async |tx| {
                note(tx, "undone").await?;
                tx.commit_with(insert("kept")).await
            })
            .await
            .unwrap_err();
        assert!(error.is_unique_violation(), "{error}");
        let error = setup
            .db
            .with_transaction(async |tx| {
                drop(tx.commit_with(insert("kept")).await);
                Ok::<_, Error>(())
            })
            .await
            .unwrap_err();
        assert_eq!(reason(&error), &AbortReason::CommitWithFailed);
        one_connection_is_idle(&setup).await;
    }
    assert_eq!(setup.stored().await, ["first", "again", "prepared", "before", "last", "kept"]);
}

#[tokio::test]
async fn a_read_connection_refuses_writes_and_says_where_to_write() {
    let setup = setup(1).await;
    let error = setup
        .db
        .with_connection(async |conn| {
            let insert = diesel::insert_into(notes::table).values(notes::text.eq("no"));
            Ok::<_, Error>(insert.execute(conn).await?)
        })
        .await
        .unwrap_err();
    assert_eq!(error.sqlstate().unwrap().as_str(), "25006");
    assert!(error.to_string().contains("with_transaction"), "{error}");
    let error =
        setup.db.with_connection(async |conn| conn.transaction(async |_| Ok::<_, Error>(())).await).await.unwrap_err();
    assert!(error.to_string().contains("with_transaction"), "{error}");
    one_connection_is_idle(&setup).await;
}

#[tokio::test]
async fn a_cancelled_read_is_cancelled_on_the_server_and_the_next_borrower_does_not_wait() {
    let setup = setup(1).await;
    let pids = setup.pids().await;
    let read = setup.db.with_connection(async |conn| Ok::<_, Error>(conn.batch_execute("SELECT pg_sleep(30)").await?));
    assert!(timeout(Duration::from_millis(50), read).await.is_err());
    let next = setup
        .db
        .with_connection(async |conn| Ok::<i32, Error>(diesel::select(pg_backend_pid()).get_result(conn).await?));
    let pid = timeout(LONG, next).await.unwrap().unwrap();
    assert_eq!(pids, [pid], "the same server process");
    assert_eq!(setup.db.stats().salvaged, 1);
    one_connection_is_idle(&setup).await;
}

#[tokio::test]
async fn an_orphaned_lock_wait_is_ended() {
    let setup = setup(2).await;
    setup.db.with_transaction(async |tx| note(tx, "row").await).await.unwrap();
    // A client of its own: inside a transaction `pg_stat_activity` does not change.
    let holder = setup.database.client().await.unwrap();
    holder.batch_execute("BEGIN; UPDATE notes SET seen = 1").await.unwrap();
    let db = setup.db.clone();
    let waiter = tokio::spawn(async move {
        db.with_transaction(async |tx| batch(tx, "UPDATE notes SET seen = seen + 10").await).await
    });
    setup.until_running("%seen + 10%").await;
    waiter.abort();
    assert!(waiter.await.unwrap_err().is_cancelled());
    setup.all_back().await;
    holder.batch_execute("COMMIT").await.unwrap();
    let seen: i64 = setup.client.query_one("SELECT seen FROM notes", &[]).await.unwrap().get(0);
    assert_eq!(seen, 1, "the abandoned update did not take effect later");
}

#[tokio::test]
async fn errors_carry_what_the_server_said() {
    let setup = setup(1).await;
    setup.db.with_transaction(async |tx| note(tx, "twice").await).await.unwrap();
    let error = setup.db.with_transaction(async |tx| note(tx, "twice").await).await.unwrap_err();
    assert_eq!((error.constraint(), error.table()), (Some("notes_text_key"), Some("notes")));
    assert_eq!(error.sqlstate().unwrap().as_str(), "23505");
    assert!(!error.is_retryable() && !error.is_connection_lost());
    // An error that comes with the rows, after the first answer.
    let rows = setup.db.with_connection(async |conn| {
        let late = notes::id + 1.into_sql::<diesel::sql_types::BigInt>() / (notes::id - notes::id);
        Ok::<Vec<i64>, Error>(notes::table.select(late).load(conn).await?)
    });
    assert_eq!(rows.await.unwrap_err().sqlstate().unwrap().as_str(), "22012");
}

#[test]
fn a_scope_dropped_outside_of_its_runtime_neither_panics_nor_hangs() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let setup = runtime.block_on(setup(1));
    let mut scope = Box::pin(setup.db.with_transaction(async |tx| {
        note(tx, "undone").await?;
        std::future::pending::<Result<(), Error>>().await
    }));
    runtime.block_on(async {
        tokio::select! {
            _ = &mut scope => unreachable!(),
            () = setup.until_idle_in_transaction() => {}
        }
    });
    drop(scope); // here there is no runtime
    runtime.block_on(setup.all_back());
    assert_eq!(runtime.block_on(setup.stored()), [""; 0]);
    let left = Box::pin(setup.db.with_transaction(async |tx| {
        note(tx, "undone").await?;
        std::future::pending::<Result<(), Error>>().await
    }));
    let mut left = left;
    runtime.block_on(async {
        tokio::select! {
            _ = &mut left => unreachable!(),
            () = setup.until_idle_in_transaction() => {}
        }
    });
    runtime.shutdown_background();
    drop(left); // here there is not even a runtime to go back to
    assert_eq!(setup.db.stats().checked_out, 0);
}

impl Setup {
    async fn until_idle_in_transaction(&self) {
        while !self.states().await.iter().any(|state| state == "idle in transaction") {
            tokio::task::yield_now().await;
        }
    }
}
