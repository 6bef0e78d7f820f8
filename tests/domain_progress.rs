//! Progress that a worker reports under its lease, and what of it stays when the job is tried again.

use std::time::Duration;

use diesel::prelude::*;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use t2m_db::Error;
use t2m_db::jobs::{self, ErrorInfo, Job};
use t2m_db::queue::{self, Backoff};
use t2m_db::types::Priority;

use crate::domain_queue::{claim_one, enqueue, let_leases_run_out, progress};
use crate::domain_support::{fresh, user};

/// The late one comes while the job is being taken over: it waits, and is told so.
#[tokio::test]
async fn a_late_worker_does_not_overwrite_the_progress_of_the_one_that_is_just_taking_over() {
    let mut db = fresh().await;
    let owner = user(&mut db.conn, "c1").await;
    let id = enqueue(&mut db.conn, owner, Priority::Normal).await;
    let mut late = claim_one(&mut db.conn, "late").await.unwrap();
    let_leases_run_out(&mut db.conn).await;
    let (mut other, mut observer) = (db.another().await, db.another().await);
    db.conn.batch_execute("BEGIN").await.unwrap();
    let mut next = claim_one(&mut db.conn, "next").await.unwrap();
    let theirs = async {
        progress(&mut db.conn, &mut next, "render", None).await.unwrap();
        diesel::table! { pg_locks (pid) { pid -> Int4, granted -> Bool } }
        let waiting = pg_locks::table.filter(pg_locks::granted.eq(false)).count();
        while waiting.get_result::<i64>(&mut observer).await.unwrap() == 0 {}
        db.conn.batch_execute("COMMIT").await.unwrap();
    };
    let (lost, ()) = tokio::join!(progress(&mut other, &mut late, "late", Some("script")), theirs);
    assert!(matches!(lost, Err(Error::LeaseLost { .. })), "{lost:?}");
    let job = jobs::find(&mut observer, owner, id).await.unwrap().unwrap();
    assert_eq!((job.current_stage.as_deref(), job.stages_completed.get().unwrap().len()), (Some("render"), 0));
}

#[tokio::test]
async fn what_is_done_stays_done_when_a_job_is_tried_again_and_is_there_once() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let id = enqueue(conn, owner, Priority::Normal).await;
    let mut claim = claim_one(conn, "w").await.unwrap();
    progress(conn, &mut claim, "images", Some("script")).await.unwrap();
    let at_once = Backoff { first: Duration::ZERO, max: Duration::ZERO };
    queue::fail(conn, &claim.lease, &ErrorInfo::new("x"), at_once).await.unwrap();
    let mut again = claim_one(conn, "w").await.unwrap();
    let names = |job: &Job| -> Vec<String> {
        job.stages_completed.get().unwrap().iter().map(|stage| stage.name().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&again.job), ["script"], "it may go on from there");
    progress(conn, &mut again, "images", Some("script")).await.unwrap();
    assert_eq!(names(&progress(conn, &mut again, "render", Some("images")).await.unwrap()), ["script", "images"]);
    // JSON's null is what SQLAlchemy stores for None.
    conn.batch_execute(&format!("UPDATE jobs SET stages_completed = 'null' WHERE id = '{id}'")).await.unwrap();
    assert_eq!(names(&progress(conn, &mut again, "render", Some("images")).await.unwrap()), ["images"]);
}
