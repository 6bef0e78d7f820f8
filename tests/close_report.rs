//! What closing says of each scope is what became of it.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

use t2m_db::{Error, Phase};

use crate::pool_support::{MS, hold, ping, through_a_proxy, timed, until};
use crate::support::{batch, note, setup_with};

#[tokio::test]
async fn a_scope_that_commits_as_it_is_told_to_stop_is_not_called_cancelled() {
    let setup = setup_with(|config| config.max_size(1).health_interval(None)).await;
    let done = Arc::new(AtomicBool::new(false));
    let scope = tokio::spawn({
        let (db, done) = (setup.db.clone(), Arc::clone(&done));
        async move {
            let scope = db.transaction("just about to commit").run(async |tx| {
                note(tx, "kept").await?;
                // Nothing wakes it but being told to stop.
                poll_fn(|_| if done.load(SeqCst) { Poll::Ready(()) } else { Poll::Pending }).await;
                Ok::<_, Error>(())
            });
            scope.await
        }
    });
    let waits = || setup.db.checkouts().iter().any(|out| out.phase == Phase::IdleInTransaction);
    until("it has written", waits).await;
    done.store(true, SeqCst);
    let (report, _) = timed(setup.db.close(20 * MS)).await;
    scope.await.unwrap().unwrap();
    assert_eq!((report.drained, report.cancelled.len(), report.leaked.len()), (1, 0, 0), "{report:?}");
    assert_eq!(setup.stored().await, ["kept"]);
}

#[tokio::test]
async fn a_health_check_is_no_scope_that_was_drained() {
    for grace in [Duration::ZERO, Duration::from_secs(60)] {
        let (setup, proxy) = through_a_proxy(|config| config.max_size(2).cleanup_timeout(200 * MS)).await;
        proxy.hold_replies_to("pg_is_in_recovery");
        let check = tokio::spawn({
            let db = setup.db.clone();
            async move { db.health().await }
        });
        proxy.until_held(1).await;
        let held = hold(&setup.db, "a scope").await;
        let closing = tokio::spawn({
            let db = setup.db.clone();
            async move { db.close(grace).await }
        });
        until("it is closing", || futures_util::FutureExt::now_or_never(ping(&setup.db)).is_some()).await;
        if !grace.is_zero() {
            proxy.release_all();
            held.end().await.unwrap();
        }
        let report = closing.await.unwrap();
        let cancelled: Vec<_> = report.cancelled.iter().map(|one| one.name).collect();
        let expected = if grace.is_zero() { (0, vec!["a scope"]) } else { (1, vec![]) };
        assert_eq!((report.drained, cancelled), expected, "{grace:?}: {report:?}");
        check.await.unwrap();
    }
}

#[tokio::test]
async fn the_longest_duration_there_is_means_for_ever() {
    let setup = setup_with(|config| config.max_size(1).health_interval(None)).await;
    let scope = setup.db.transaction("unhurried").deadline(Duration::MAX).run(async |tx| batch(tx, "SELECT 1").await);
    scope.await.unwrap();
    let held = hold(&setup.db, "takes its time").await;
    let closing = tokio::spawn({
        let db = setup.db.clone();
        async move { db.close(Duration::MAX).await }
    });
    until("it is closing", || futures_util::FutureExt::now_or_never(ping(&setup.db)).is_some()).await;
    assert!(!closing.is_finished());
    held.end().await.unwrap();
    assert_eq!(timed(closing).await.0.unwrap().drained, 1);
}
