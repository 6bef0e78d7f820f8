//! The ways back: what they must not take away, and what they leave for the way forth.

use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel_async::SimpleAsyncConnection;
use diesel_migrations::MigrationHarness;
use t2m_db::Error;
use t2m_db::jobs::Completion;
use t2m_db::operations;
use t2m_db::queue;
use t2m_db::types::{OperationId, Priority};

use crate::domain_queue::{claim_one, enqueue};
use crate::domain_support::{Fresh, MIGRATIONS, fresh, migrate, user, with_harness};

/// Reverts down to, and with, the migration whose name ends like this; the error of the first that fails.
async fn revert_with(db: &Fresh, last: &str) -> Result<(), String> {
    let all = MigrationSource::<Pg>::migrations(&MIGRATIONS).unwrap();
    let last = all.iter().find(|migration| migration.name().to_string().ends_with(last)).unwrap();
    let last = last.name().version().to_string();
    with_harness(&db.url, move |conn| {
        loop {
            let reverted = conn.revert_last_migration(MIGRATIONS).map_err(|error| error.to_string())?;
            if reverted.to_string() == last {
                return Ok(());
            }
        }
    })
    .await
}

#[tokio::test]
async fn no_table_goes_while_another_has_rows() {
    let mut db = fresh().await;
    user(&mut db.conn, "c1").await;
    revert_with(&db, "baseline").await.unwrap();
    // Python goes on with all of its tables, the empty ones too.
    let python = "UPDATE users SET username = 'u';
        INSERT INTO jobs (user_id, configuration) SELECT id, '{}' FROM users;
        INSERT INTO job_queue (job_id) SELECT id FROM jobs;
        INSERT INTO migration_log (version) VALUES ('002');
        SELECT FROM file_metadata";
    db.conn.batch_execute(python).await.unwrap();
    migrate(&db.url).await;
}

#[tokio::test]
async fn a_lease_from_before_the_way_back_is_none_after_the_way_forth() {
    let mut db = fresh().await;
    let owner = user(&mut db.conn, "c1").await;
    enqueue(&mut db.conn, owner, Priority::Normal).await;
    let old = claim_one(&mut db.conn, "w").await.unwrap().lease;
    revert_with(&db, "harden_types").await.unwrap();
    migrate(&db.url).await;
    let mut conn = db.another().await;
    conn.batch_execute("UPDATE job_queue SET queue_status = 'queued'; UPDATE jobs SET status = 'queued'")
        .await
        .unwrap();
    let new = claim_one(&mut conn, "w").await.unwrap().lease;
    let late = queue::complete(&mut conn, &old, &Completion::default()).await;
    assert!(matches!(late, Err(Error::LeaseLost { .. })), "{late:?}");
    queue::complete(&mut conn, &new, &Completion::default()).await.unwrap();
}

/// They answer whether something was done: without them a caller who asks again does it twice.
#[tokio::test]
async fn operations_that_were_done_are_not_forgotten_by_a_way_back() {
    let mut db = fresh().await;
    let id = OperationId::random();
    assert_eq!(operations::claim(&mut db.conn, id).await.unwrap(), operations::Claim::Ours);
    let refused = revert_with(&db, "operations").await.unwrap_err();
    assert!(refused.contains("operations"), "{refused}");
    db.conn.batch_execute("DELETE FROM operations").await.unwrap();
    revert_with(&db, "operations").await.unwrap();
}
