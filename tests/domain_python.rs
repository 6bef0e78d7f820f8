//! The queue beside Python, which knows neither lease nor token, and ends a job without a look at its entry.

use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use serde_json::json;
use t2m_db::jobs::{self, Completion, ErrorInfo, Metrics};
use t2m_db::queue::{self, Backoff, Claim, Failure};
use t2m_db::types::{JobId, JobStatus, Priority, QueueStatus};
use t2m_db::{Error, schema};

use crate::domain_queue::{LEASE, claim_one, enqueue, let_leases_run_out, progress, worker};
use crate::domain_support::{fresh, somebody_waits, user};

/// What a worker may do with its lease.
#[derive(Debug, Clone, Copy)]
enum Act {
    Heartbeat,
    Progress,
    Complete,
    Fail,
    Release,
}

const ACTS: [Act; 5] = [Act::Heartbeat, Act::Progress, Act::Complete, Act::Fail, Act::Release];

impl Act {
    async fn on(self, conn: &mut AsyncPgConnection, claim: &mut Claim) -> Result<(), Error> {
        match self {
            Self::Heartbeat => queue::heartbeat(conn, &mut claim.lease, LEASE).await,
            Self::Progress => progress(conn, claim, "late", Some("script")).await.map(drop),
            Self::Complete => queue::complete(conn, &claim.lease, &Completion::default()).await.map(drop),
            Self::Fail => queue::fail(conn, &claim.lease, &ErrorInfo::new("x"), Backoff::default()).await.map(drop),
            Self::Release => queue::release(conn, &claim.lease).await,
        }
    }
}

fn lost(what: impl std::fmt::Debug, result: &Result<(), Error>) {
    assert!(matches!(result, Err(Error::LeaseLost { .. })), "{what:?}: {result:?}");
}

/// Every function is told, and none of them changes anything.
async fn lost_to_all(conn: &mut AsyncPgConnection, what: &str, claim: &mut Claim) {
    for act in ACTS {
        let before = entry(conn, claim.lease.job()).await;
        lost((what, act), &act.on(conn, claim).await);
        assert_eq!(entry(conn, claim.lease.job()).await, before, "{what}: {act:?}");
    }
}

type Entry = (QueueStatus, i64, Option<chrono::DateTime<chrono::Utc>>, chrono::DateTime<chrono::Utc>);

async fn entry(conn: &mut AsyncPgConnection, id: JobId) -> Entry {
    use schema::job_queue::dsl::{job_id, job_queue, lease_expires_at, lease_token, queue_status, updated_at};
    let columns = (queue_status, lease_token, lease_expires_at, updated_at);
    job_queue.filter(job_id.eq(id)).select(columns).first(conn).await.unwrap()
}

#[tokio::test]
async fn a_job_that_was_ended_behind_the_queue_is_a_lost_lease_to_every_function() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    for ended in ["status = 'cancelled'", "status = 'completed'", "is_deleted = true"] {
        let id = enqueue(conn, owner, Priority::Normal).await;
        let mut claim = claim_one(conn, "w").await.unwrap();
        conn.batch_execute(&format!("UPDATE jobs SET {ended} WHERE id = '{id}'")).await.unwrap();
        lost_to_all(conn, ended, &mut claim).await;
        let_leases_run_out(conn).await;
        assert!(claim_one(conn, "w").await.is_none());
        assert_eq!(entry(conn, id).await.0, QueueStatus::Cancelled, "{ended}: the next claim closes the entry");
    }
}

/// The job moves away between the look at the lease and the change of the job.
#[tokio::test]
async fn a_job_that_is_just_being_ended_is_a_lost_lease() {
    let mut db = fresh().await;
    let owner = user(&mut db.conn, "c1").await;
    let (mut python, mut observer) = (db.another().await, db.another().await);
    for act in [Act::Progress, Act::Complete, Act::Fail, Act::Release] {
        let id = enqueue(&mut db.conn, owner, Priority::Normal).await;
        let mut claim = claim_one(&mut db.conn, "w").await.unwrap();
        let cancel = format!("BEGIN; UPDATE jobs SET status = 'cancelled' WHERE id = '{id}'");
        python.batch_execute(&cancel).await.unwrap();
        let worker = db.conn.transaction(async |conn| act.on(conn, &mut claim).await);
        let theirs = async {
            somebody_waits(&mut observer).await;
            python.batch_execute("COMMIT").await.unwrap();
        };
        let (result, ()) = tokio::join!(worker, theirs);
        lost(act, &result);
        assert_eq!(entry(&mut db.conn, id).await.0, QueueStatus::Processing, "{act:?}");
    }
}

#[tokio::test]
async fn an_entry_that_python_takes_from_a_lease_is_python_s() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    for claims in [
        "queue_status = 'processing', worker_id = 'py', processing_started_at = clock_timestamp()",
        "queue_status = 'processing', worker_id = 'py'",
        "queue_status = 'processing', processing_started_at = clock_timestamp()",
    ] {
        let id = enqueue(conn, owner, Priority::Normal).await;
        let mut late = claim_one(conn, "late").await.unwrap();
        conn.batch_execute(&format!("UPDATE job_queue SET {claims} WHERE job_id = '{id}'")).await.unwrap();
        lost_to_all(conn, claims, &mut late).await;
        let_leases_run_out(conn).await;
        assert!(claim_one(conn, "other").await.is_none(), "{claims}: its worker is alive");
        let ends = format!(
            "UPDATE jobs SET status = 'completed' WHERE id = '{id}'; UPDATE job_queue SET queue_status = 'completed' WHERE job_id = '{id}'"
        );
        conn.batch_execute(&ends).await.unwrap();
        lost_to_all(conn, "completed by Python", &mut late).await;
    }
}

#[tokio::test]
async fn an_entry_that_python_requeues_or_ends_is_lost_to_its_worker() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    for requeues in ["queue_status = 'queued', worker_id = NULL", "queue_status = 'queued'", "queue_status = NULL"] {
        let id = enqueue(conn, owner, Priority::Normal).await;
        let mut late = claim_one(conn, "late").await.unwrap();
        conn.batch_execute(&format!("UPDATE job_queue SET {requeues} WHERE job_id = '{id}'")).await.unwrap();
        lost_to_all(conn, requeues, &mut late).await;
        let next = claim_one(conn, "next").await.unwrap();
        assert_eq!((next.job.id, next.retry_count), (id, 0), "{requeues}");
        lost_to_all(conn, requeues, &mut late).await;
        queue::complete(conn, &next.lease, &Completion::default()).await.unwrap();
    }
    let id = enqueue(conn, owner, Priority::Normal).await;
    let mut late = claim_one(conn, "late").await.unwrap();
    conn.batch_execute(&format!("UPDATE job_queue SET queue_status = 'failed' WHERE job_id = '{id}'")).await.unwrap();
    lost_to_all(conn, "failed by Python", &mut late).await;
    assert_eq!(entry(conn, id).await.2, None, "nobody holds it");
}

#[tokio::test]
async fn an_entry_that_python_takes_after_us_is_not_ours_again() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let id = enqueue(conn, owner, Priority::Normal).await;
    let mut before = claim_one(conn, "w").await.unwrap();
    queue::release(conn, &before.lease).await.unwrap();
    let claims = format!(
        "UPDATE job_queue SET queue_status = 'processing', worker_id = 'py' WHERE job_id = '{id}';
         UPDATE jobs SET status = 'processing' WHERE id = '{id}'"
    );
    conn.batch_execute(&claims).await.unwrap();
    lost_to_all(conn, "claimed by Python", &mut before).await;
}

#[tokio::test]
async fn what_we_do_ourselves_raises_the_token_with_a_claim_and_a_loss_only() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let id = enqueue(conn, owner, Priority::Normal).await;
    let at_once = Backoff { first: std::time::Duration::ZERO, max: std::time::Duration::ZERO };
    let mut claim = claim_one(conn, "w").await.unwrap();
    queue::heartbeat(conn, &mut claim.lease, LEASE).await.unwrap();
    progress(conn, &mut claim, "render", None).await.unwrap();
    queue::fail(conn, &claim.lease, &ErrorInfo::new("x"), at_once).await.unwrap();
    assert_eq!(entry(conn, id).await.1, 1);
    let claim = claim_one(conn, "w").await.unwrap();
    queue::release(conn, &claim.lease).await.unwrap();
    assert_eq!(entry(conn, id).await.1, 2);
    claim_one(conn, "w").await.unwrap();
    queue::put_back_worker(conn, &worker("w")).await.unwrap();
    assert_eq!(entry(conn, id).await.1, 4);
    let claim = claim_one(conn, "w").await.unwrap();
    queue::complete(conn, &claim.lease, &Completion::default()).await.unwrap();
    assert_eq!(entry(conn, id).await.1, 5);
    for called_off in [true, false] {
        let id = enqueue(conn, owner, Priority::Normal).await;
        claim_one(conn, "w").await.unwrap();
        if called_off {
            jobs::cancel(conn, owner, id).await.unwrap();
        } else {
            jobs::soft_delete(conn, owner, id).await.unwrap();
        }
        assert_eq!((entry(conn, id).await.1, entry(conn, id).await.2), (1, None));
    }
}

#[tokio::test]
async fn a_closed_entry_says_when() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let cancelled = enqueue(conn, owner, Priority::Normal).await;
    let before = entry(conn, cancelled).await.3;
    jobs::cancel(conn, owner, cancelled).await.unwrap();
    assert!(entry(conn, cancelled).await.3 > before);
    let waiting = enqueue(conn, owner, Priority::Normal).await;
    let before = entry(conn, waiting).await.3;
    t2m_db::users::soft_delete(conn, owner).await.unwrap();
    assert!(entry(conn, waiting).await.3 > before);
}

#[tokio::test]
async fn what_python_wrote_of_a_job_is_kept_when_we_complete_it() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let measured = |scenes_rendered| Completion {
        metrics: Some(Metrics { scenes_rendered: Some(scenes_rendered), ..Metrics::default() }),
        ..Completion::default()
    };
    for (metrics, completion, wanted) in [
        ("'{\"gpu\": 2}'", Completion::default(), json!({"gpu": 2})),
        ("'{\"gpu\": 2, \"scenes_rendered\": 1}'", measured(3), json!({"gpu": 2, "scenes_rendered": 3})),
        ("'null'", measured(3), json!({"scenes_rendered": 3})),
        ("NULL", measured(3), json!({"scenes_rendered": 3})),
        ("'[]'", measured(3), json!({"scenes_rendered": 3})),
        ("NULL", Completion::default(), json!(null)),
    ] {
        let id = enqueue(conn, owner, Priority::Normal).await;
        let claim = claim_one(conn, "w").await.unwrap();
        let python = format!(
            "UPDATE jobs SET metrics = {metrics}, result_url = 's3://theirs', processing_time_seconds = 1.5 WHERE id = '{id}'"
        );
        conn.batch_execute(&python).await.unwrap();
        let done = queue::complete(conn, &claim.lease, &completion).await.unwrap();
        assert_eq!(serde_json::to_value(&done.metrics).unwrap(), wanted, "{metrics}");
        assert_eq!(done.result_url.as_deref(), Some("s3://theirs"));
        assert_eq!(done.processing_time_seconds.unwrap().to_string(), "1.50");
    }
    let id = enqueue(conn, owner, Priority::Normal).await;
    let claim = claim_one(conn, "w").await.unwrap();
    conn.batch_execute(&format!("UPDATE jobs SET result_url = 's3://theirs' WHERE id = '{id}'")).await.unwrap();
    let ours = Completion { result_url: Some("s3://ours".into()), ..Completion::default() };
    assert_eq!(queue::complete(conn, &claim.lease, &ours).await.unwrap().result_url, ours.result_url);
}

/// One that Python stored, and either did not enqueue or closed in the queue.
#[tokio::test]
async fn a_job_that_python_left_created_is_enqueued() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    for entry in [
        "DELETE FROM job_queue",
        "UPDATE job_queue SET queue_status = 'failed', retry_count = 9, next_retry_at = 'infinity'",
        "",
    ] {
        let id = enqueue(conn, owner, Priority::High).await;
        let left = format!("UPDATE jobs SET status = 'created' WHERE id = '{id}'");
        let sql = if entry.is_empty() { left } else { format!("{left}; {entry} WHERE job_id = '{id}'") };
        conn.batch_execute(&sql).await.unwrap();
        assert_eq!(jobs::enqueue(conn, owner, id).await.unwrap().status, JobStatus::Queued);
        let twice = jobs::enqueue(conn, owner, id).await;
        assert!(matches!(twice, Err(Error::Transition { to: "queued", .. })), "{twice:?}");
        let claim = claim_one(conn, "w").await.unwrap();
        assert_eq!((claim.job.id, claim.retry_count), (id, 0), "{entry}");
        let twice = jobs::enqueue(conn, owner, id).await;
        assert!(matches!(twice, Err(Error::Transition { .. })), "{twice:?}");
        queue::complete(conn, &claim.lease, &Completion::default()).await.unwrap();
    }
    let nobodys = jobs::enqueue(conn, owner, JobId::random()).await;
    assert!(matches!(nobodys, Err(Error::NotFound { entity: "job" })), "{nobodys:?}");
}

#[tokio::test]
async fn a_job_ends_for_good_at_the_time_of_the_server() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let id = enqueue(conn, owner, Priority::Normal).await;
    conn.batch_execute("UPDATE job_queue SET max_retries = 0").await.unwrap();
    let claim = claim_one(conn, "w").await.unwrap();
    let failed = queue::fail(conn, &claim.lease, &ErrorInfo::new("x"), Backoff::default()).await.unwrap();
    assert_eq!(failed, Failure::ForGood);
    let completed_at: Option<chrono::DateTime<chrono::Utc>> = schema::job_queue::table
        .filter(schema::job_queue::job_id.eq(id))
        .select(schema::job_queue::completed_at)
        .first(conn)
        .await
        .unwrap();
    let job = jobs::find(conn, owner, id).await.unwrap().unwrap();
    // Each in a transaction of its own here, so some milliseconds apart; what the server stores has the microseconds of its clock.
    assert!(completed_at.is_some() && job.completed_at >= completed_at && job.completed_at == Some(job.updated_at));
}
