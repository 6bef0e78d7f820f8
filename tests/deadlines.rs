//! A deadline bounds the whole scope, on both sides of the wire, and says what it was doing.

use std::time::Duration;

use t2m_db::{CommitOutcome, Error, Transaction};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::pool_support::{ping, through_a_proxy};
use crate::support::{LONG, batch, note, one_connection_is_idle, setup};

#[tokio::test]
async fn a_deadline_is_told_as_one_when_the_servers_own_clock_was_quicker() {
    let setup = setup(1).await;
    let db = setup.db.clone();
    let scope = tokio::spawn(async move {
        let scope = db.transaction("slow").deadline(Duration::from_millis(300));
        scope.run(async |tx| batch(tx, "SELECT pg_sleep(30)").await).await
    });
    setup.until_running("%pg_sleep(30)%").await;
    // A thread that gets no processor: when it goes on, the server has given up already, and that is read first.
    std::thread::sleep(Duration::from_millis(700));
    let told = scope.await.unwrap();
    let error = told.unwrap_err();
    assert!(matches!(&error, Error::Deadline { phase: "running its body", .. }), "{error:?}");
    setup.all_back().await;
    one_connection_is_idle(&setup).await;
}

#[tokio::test]
async fn a_process_that_stood_still_past_its_deadline_keeps_its_session() {
    let setup = setup(1).await;
    let scope = setup.db.transaction("idle").deadline(Duration::from_millis(100));
    let body = async |tx: &mut Transaction| {
        note(tx, "undone").await?;
        std::thread::sleep(Duration::from_millis(300)); // a thread that gets no processor
        std::future::pending::<Result<(), Error>>().await
    };
    let error = timeout(LONG, scope.run(body)).await.expect("hangs").unwrap_err();
    assert!(matches!(&error, Error::Deadline { phase: "running its body", .. }), "{error:?}");
    setup.all_back().await;
    one_connection_is_idle(&setup).await;
    assert_eq!(setup.db.stats().discarded, 0);
}

#[tokio::test]
async fn a_deadline_stops_the_body_and_the_server() {
    let setup = setup(1).await;
    let scope = setup.db.transaction("slow").deadline(Duration::from_millis(100));
    let error = scope
        .run(async |tx| {
            note(tx, "undone").await?;
            batch(tx, "SELECT pg_sleep(30)").await
        })
        .await
        .unwrap_err();
    let Error::Deadline { phase, budget, .. } = &error else { panic!("{error:?}") };
    assert_eq!((*phase, *budget), ("running its body", Duration::from_millis(100)));
    setup.all_back().await;
    one_connection_is_idle(&setup).await;
    assert_eq!(setup.stored().await, [""; 0]);
    // Waiting for a connection counts too.
    let (enter, entered) = oneshot::channel();
    let db = setup.db.clone();
    let holder = tokio::spawn(async move {
        let run = db.with_transaction(async |tx| {
            note(tx, "held").await?;
            let _ = enter.send(());
            std::future::pending::<Result<(), Error>>().await
        });
        run.await
    });
    entered.await.unwrap();
    let scope = setup.db.transaction("late").deadline(Duration::from_millis(50));
    let error = scope.run(async |tx| note(tx, "never").await).await.unwrap_err();
    assert!(matches!(&error, Error::Deadline { phase: "waiting for a connection", .. }), "{error}");
    holder.abort();
}

#[tokio::test]
async fn a_deadline_bounds_begin() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(1)).await;
    proxy.hold_replies_to("BEGIN");
    let scope = setup.db.transaction("held up").deadline(Duration::from_millis(100));
    let error = timeout(LONG, scope.run(async |tx| note(tx, "undone").await)).await.unwrap().unwrap_err();
    assert!(
        matches!(&error, Error::Deadline { phase: "running its body", outcome: CommitOutcome::NotCommitted, .. }),
        "{error:?}"
    );
    proxy.release_all();
    setup.all_back().await;
    assert_eq!(setup.stored().await, [""; 0]);
    ping(&setup.db).await.unwrap();
}

#[tokio::test]
async fn a_deadline_bounds_the_wait_for_commit_and_not_commit() {
    let (setup, proxy) = through_a_proxy(|config| config.max_size(1)).await;
    proxy.hold_replies_to("COMMIT");
    let scope = setup.db.transaction("held up").deadline(Duration::from_millis(200));
    let error = timeout(LONG, scope.run(async |tx| note(tx, "stored").await)).await.unwrap().unwrap_err();
    assert_eq!(error.commit_outcome(), CommitOutcome::Unknown, "{error:?}");
    assert!(error.to_string().contains("the deadline of 200ms passed before the server answered"), "{error}");
    assert_eq!(setup.db.stats().checked_out, 1, "COMMIT goes on alone");
    proxy.release_all();
    setup.all_back().await;
    assert_eq!(setup.stored().await, ["stored"]);
    one_connection_is_idle(&setup).await;
}
