//! Exactly once, although the reply to COMMIT is lost and nobody finds out what became of it.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use diesel::ExpressionMethods;
use t2m_db::operations::{self, Claim};
use t2m_db::testing::{Proxy, TestDatabase, When};
use t2m_db::types::OperationId;
use t2m_db::{CommitOutcome, CommitResolution, Config, Database, Error, Isolation, Retry, Transaction};
use tokio::task::JoinSet;

use crate::support::rounds;

diesel::table! {
    works (id) {
        id -> Uuid,
    }
}

/// A table without a key of its own, behind a proxy, by a pool that does not look up what became of a COMMIT.
async fn scene() -> (TestDatabase, Proxy, Database) {
    let database = t2m_db::testing::database().await;
    database.client().await.unwrap().batch_execute("CREATE TABLE works (id uuid)").await.unwrap();
    let proxy = Proxy::start_unix(&database.url()).await.unwrap();
    let config = Config::from_url(&proxy.url()).unwrap().min_idle(0).max_size(4).health_interval(None);
    let config = config.commit_resolution(CommitResolution::Off).retry(Retry::default().budget(1_000_000));
    let db = Database::connect(config).await.unwrap();
    (database, proxy, db)
}

/// The work, once. `with`: by `commit_with`.
async fn work(tx: &mut Transaction, id: OperationId, with: bool) -> Result<Claim, Error> {
    use diesel_async::RunQueryDsl; // here only: it has a `load` that hides the one of atomics
    let claim = operations::claim(tx, id).await?;
    if claim == Claim::Ours {
        let insert = diesel::insert_into(works::table).values(works::id.eq(id.as_uuid()));
        if with {
            tx.commit_with(insert).await?;
        } else {
            insert.execute(tx).await?;
        }
    }
    Ok(claim)
}

async fn counts(database: &TestDatabase) -> (i64, i64) {
    let sql = "SELECT count(*), count(DISTINCT id) FROM works";
    let row = database.client().await.unwrap().query_one(sql, &[]).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn a_lost_commit_is_done_exactly_once() {
    let (database, proxy, db) = scene().await;
    let runs = rounds(120);
    let mut done_before = 0;
    for run in 0..runs {
        let id = OperationId::random();
        let when = [When::BeforeForward, When::AfterForward, When::AfterReply][run as usize % 3];
        drop(proxy.cut(when, "COMMIT"));
        let scope = db.transaction("once").idempotent();
        let scope = if run % 4 == 0 { scope.isolation(Isolation::Serializable) } else { scope };
        let claim = scope.run_retrying(async |tx| work(tx, id, run % 2 == 0).await).await.unwrap();
        // With `Done` the work is stored, but not by the attempt that says so.
        assert!(when != When::AfterReply || claim == Claim::Done);
        assert!(when != When::BeforeForward || claim == Claim::Ours);
        done_before += u32::from(claim == Claim::Done);
    }
    assert_eq!(counts(&database).await, (i64::from(runs), i64::from(runs)));
    assert_eq!(db.stats().commit_unknown, u64::from(runs));
    println!("{runs} unknown commits, {done_before} of them were committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_come_with_the_same_id_one_does_the_work() {
    let (database, _proxy, db) = scene().await;
    for isolation in [Isolation::ReadCommitted, Isolation::Serializable] {
        let (id, mut tasks) = (OperationId::random(), JoinSet::new());
        for _ in 0..8 {
            let db = db.clone();
            tasks.spawn(async move {
                let scope = db.transaction("same").isolation(isolation).idempotent();
                scope.run_retrying(async move |tx| work(tx, id, false).await).await.unwrap()
            });
        }
        let claims = tasks.join_all().await;
        assert_eq!(claims.iter().filter(|claim| **claim == Claim::Ours).count(), 1, "{claims:?}");
    }
    assert_eq!(counts(&database).await, (2, 2));
}

#[tokio::test]
async fn a_failed_operation_is_still_to_be_done() {
    let (database, _proxy, db) = scene().await;
    let id = OperationId::random();
    let failed = db.with_transaction(async |tx| {
        assert_eq!(work(tx, id, false).await?, Claim::Ours);
        Err::<(), _>(Error::NotFound { entity: "proof" })
    });
    failed.await.unwrap_err();
    assert_eq!(db.with_transaction(async |tx| work(tx, id, false).await).await.unwrap(), Claim::Ours);
    assert_eq!(db.with_transaction(async |tx| work(tx, id, false).await).await.unwrap(), Claim::Done);
    assert_eq!(counts(&database).await, (1, 1));
}

/// Whatever ends the attempts after an unknown commit, that commit stays unknown.
#[tokio::test]
async fn a_later_failure_does_not_hide_an_unknown_commit() {
    let (_database, proxy, db) = scene().await;
    drop(proxy.cut(When::AfterReply, "COMMIT"));
    let attempts = AtomicU32::new(0);
    let error = db.transaction("hides").idempotent().run_retrying(async |tx| {
        if AtomicU32::fetch_add(&attempts, 1, SeqCst) == 1 {
            return Err(Error::NotFound { entity: "proof" });
        }
        work(tx, OperationId::random(), false).await
    });
    let error = error.await.unwrap_err();
    assert_eq!((error.commit_outcome(), attempts.load(SeqCst)), (CommitOutcome::Unknown, 2), "{error:?}");
}
