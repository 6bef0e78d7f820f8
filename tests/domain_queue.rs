//! The queue: order, leases, fencing, retries, and workers that die.

use std::collections::HashSet;
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use t2m_db::jobs::{self, Completion, ErrorInfo, Job, NewJob, Stage};
use t2m_db::queue::{self, Backoff, BatchSize, Claim, Failure, PutBack, Worker};
use t2m_db::types::{JobId, JobStatus, Percentage, Priority, QueueStatus, UserId};
use t2m_db::{Error, schema};

use crate::domain_support::{fresh, job, user};

pub(crate) const LEASE: Duration = Duration::from_secs(60);

pub(crate) fn worker(name: &str) -> Worker {
    Worker::new(name, Some("node".into())).unwrap()
}

pub(crate) async fn enqueue(conn: &mut AsyncPgConnection, owner: UserId, priority: Priority) -> JobId {
    jobs::create_and_enqueue(conn, owner, &NewJob { priority, ..job("a") }).await.unwrap().id
}

pub(crate) async fn claim_one(conn: &mut AsyncPgConnection, name: &str) -> Option<Claim> {
    queue::claim(conn, &worker(name), BatchSize::ONE, LEASE).await.unwrap().pop()
}

pub(crate) async fn progress(
    conn: &mut AsyncPgConnection,
    claim: &mut Claim,
    stage: &str,
    done: Option<&str>,
) -> Result<Job, Error> {
    let done = done.map(|name| Stage::Name(name.into()));
    queue::progress(conn, &mut claim.lease, LEASE, &Percentage::new(50.0)?, stage, done.as_ref()).await
}

/// Time passes for every lease and every wait.
pub(crate) async fn let_leases_run_out(conn: &mut AsyncPgConnection) {
    conn.batch_execute(
        "UPDATE job_queue SET lease_expires_at = lease_expires_at - interval '1 day', next_retry_at = next_retry_at - interval '1 day'",
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn the_most_pressing_goes_first_then_the_oldest() {
    use Priority::{High, Low, Normal, Urgent};
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let mut ids = Vec::new();
    for priority in [Low, Normal, Urgent, High, Normal, Urgent] {
        ids.push(enqueue(conn, owner, priority).await);
    }
    let first = queue::claim(conn, &worker("w"), BatchSize::new(4).unwrap(), LEASE).await.unwrap();
    assert_eq!(first.iter().map(|claim| claim.job.id).collect::<Vec<_>>(), [ids[2], ids[5], ids[3], ids[1]]);
    assert!(first.iter().all(|claim| claim.job.status == JobStatus::Processing && claim.lease.owner() == owner));
    let rest = queue::claim(conn, &worker("w"), BatchSize::new(4).unwrap(), LEASE).await.unwrap();
    assert_eq!(rest.iter().map(|claim| claim.job.id).collect::<Vec<_>>(), [ids[4], ids[0]]);
    assert!(claim_one(conn, "w").await.is_none());
}

#[tokio::test]
async fn two_workers_at_once_never_get_the_same_job() {
    let mut db = fresh().await;
    let owner = user(&mut db.conn, "c1").await;
    for _ in 0..40 {
        enqueue(&mut db.conn, owner, Priority::Normal).await;
    }
    // One holds its claim open: the other passes over it instead of waiting.
    let mut other = db.another().await;
    let (mine, theirs) = db
        .conn
        .transaction(async |conn| {
            let mine = queue::claim(conn, &worker("a"), BatchSize::new(5)?, LEASE).await?;
            let claiming =
                other.transaction(async |conn| queue::claim(conn, &worker("b"), BatchSize::new(5)?, LEASE).await);
            let theirs = tokio::time::timeout(Duration::from_secs(10), claiming).await.expect("it waits")?;
            Ok::<_, Error>((mine, theirs))
        })
        .await
        .unwrap();
    let mut taken: Vec<JobId> = mine.iter().chain(&theirs).map(|claim| claim.job.id).collect();
    assert_eq!(taken.len(), 10);
    let mut workers = Vec::new();
    for number in 0..4 {
        let mut conn = db.another().await;
        workers.push(tokio::spawn(async move {
            let mut mine = Vec::new();
            loop {
                let name = worker(&format!("w{number}"));
                let claims = conn
                    .transaction(async |conn| queue::claim(conn, &name, BatchSize::new(3)?, LEASE).await)
                    .await
                    .unwrap();
                if claims.is_empty() {
                    return mine;
                }
                mine.extend(claims.into_iter().map(|claim| claim.job.id));
            }
        }));
    }
    for worker in workers {
        taken.extend(worker.await.unwrap());
    }
    assert_eq!(taken.len(), 40);
    assert_eq!(taken.iter().collect::<HashSet<_>>().len(), 40);
}

#[tokio::test]
async fn a_late_worker_cannot_finish_a_job_that_was_taken_over() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let id = enqueue(conn, owner, Priority::Normal).await;
    let mut late = claim_one(conn, "late").await.unwrap();
    assert!(claim_one(conn, "next").await.is_none(), "a lease that runs keeps others away");
    let_leases_run_out(conn).await;
    let next = claim_one(conn, "next").await.unwrap();
    assert_eq!((next.job.id, next.retry_count), (id, 1));
    assert!(next.lease.token() > late.lease.token());
    let done = Completion::default();
    let lost = [
        queue::heartbeat(conn, &mut late.lease, LEASE).await,
        progress(conn, &mut late, "late", None).await.map(drop),
        queue::complete(conn, &late.lease, &done).await.map(drop),
        queue::fail(conn, &late.lease, &ErrorInfo::new("x"), Backoff::default()).await.map(drop),
        queue::release(conn, &late.lease).await,
    ];
    for result in lost {
        assert!(matches!(result, Err(Error::LeaseLost { job, .. }) if job == id.as_uuid()), "{result:?}");
    }
    assert_eq!(jobs::find(conn, owner, id).await.unwrap().unwrap().current_stage, None);
    let job = queue::complete(conn, &next.lease, &done).await.unwrap();
    assert_eq!(job.status, JobStatus::Completed);
    assert!(matches!(queue::complete(conn, &next.lease, &done).await, Err(Error::LeaseLost { .. })));
    let (status, errors) = queue::entry(conn, owner, id).await.unwrap().unwrap();
    assert_eq!(status, QueueStatus::Completed);
    assert!(errors[0].message.as_ref().unwrap().contains("taken over by next"));
}

#[tokio::test]
async fn a_lease_that_ran_out_unnoticed_still_finishes_and_a_heartbeat_prolongs_it() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    enqueue(conn, owner, Priority::Normal).await;
    let mut claim = claim_one(conn, "w").await.unwrap();
    let_leases_run_out(conn).await;
    queue::heartbeat(conn, &mut claim.lease, LEASE).await.unwrap();
    assert!(claim.lease.expires_at() > chrono::Utc::now() + Duration::from_secs(50));
    assert!(claim_one(conn, "other").await.is_none());
    let_leases_run_out(conn).await;
    queue::complete(conn, &claim.lease, &Completion::default()).await.unwrap();
    let error = queue::heartbeat(conn, &mut claim.lease, Duration::from_millis(1)).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { field: "queue.lease", .. }));
}

#[tokio::test]
async fn a_failure_is_retried_later_and_later_then_for_good_with_its_history() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let id = jobs::create_and_enqueue(conn, owner, &NewJob { max_retries: 2, ..job("a") }).await.unwrap().id;
    let backoff = Backoff { first: Duration::from_secs(100), max: Duration::from_secs(1_000) };
    for (try_number, least) in [(0, 100), (1, 200)] {
        let claim = claim_one(conn, "w").await.unwrap();
        assert_eq!((claim.retry_count, claim.max_retries), (try_number, 2));
        let error = ErrorInfo::new(format!("no. {try_number}"));
        let Failure::RetryAt(at) = queue::fail(conn, &claim.lease, &error, backoff).await.unwrap() else {
            panic!("it has tries left");
        };
        let wait = (at - chrono::Utc::now()).num_seconds();
        assert!((least - 5..=least * 5 / 4 + 5).contains(&wait), "{wait}");
        assert!(claim_one(conn, "w").await.is_none(), "not before its time");
        let job = jobs::find(conn, owner, id).await.unwrap().unwrap();
        assert_eq!(job.status, JobStatus::Queued);
        assert_eq!(
            job.error_info.unwrap().get().unwrap().message.as_deref(),
            Some(format!("no. {try_number}").as_str())
        );
        let_leases_run_out(conn).await;
    }
    let claim = claim_one(conn, "w").await.unwrap();
    let last = queue::fail(conn, &claim.lease, &ErrorInfo::new("no. 2"), backoff).await.unwrap();
    assert_eq!(last, Failure::ForGood);
    assert!(claim_one(conn, "w").await.is_none());
    let job = jobs::find(conn, owner, id).await.unwrap().unwrap();
    assert_eq!(job.status, JobStatus::Failed);
    assert!(job.completed_at.is_some());
    let (status, errors) = queue::entry(conn, owner, id).await.unwrap().unwrap();
    assert_eq!(status, QueueStatus::Failed);
    let messages: Vec<_> = errors.iter().map(|error| error.message.as_deref().unwrap()).collect();
    assert_eq!(messages, ["no. 0", "no. 1", "no. 2"]);
    let tokens: Vec<_> = errors.iter().map(|error| error.token.unwrap()).collect();
    assert_eq!(tokens, [1, 2, 3]);
}

#[tokio::test]
async fn a_job_that_kills_its_workers_is_given_up_and_the_others_come_back() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let poison = jobs::create_and_enqueue(conn, owner, &NewJob { max_retries: 1, ..job("a") }).await.unwrap().id;
    assert_eq!(claim_one(conn, "w1").await.unwrap().job.id, poison);
    assert_eq!(queue::put_back_expired(conn).await.unwrap(), PutBack::default(), "its lease runs");
    let_leases_run_out(conn).await;
    assert_eq!(claim_one(conn, "w2").await.unwrap().job.id, poison);
    let_leases_run_out(conn).await;
    assert!(claim_one(conn, "w3").await.is_none(), "it was lost too often");
    // The claim that found it so has settled it, and nobody has to call anything for that.
    assert_eq!(jobs::find(conn, owner, poison).await.unwrap().unwrap().status, JobStatus::Failed);
    let (status, errors) = queue::entry(conn, owner, poison).await.unwrap().unwrap();
    assert_eq!((status, errors.len()), (QueueStatus::Failed, 2));
    assert_eq!(errors[1].message.as_deref(), Some("the worker's lease ran out"));
    let given_up = jobs::create_and_enqueue(conn, owner, &NewJob { max_retries: 0, ..job("a") }).await.unwrap().id;
    assert_eq!(claim_one(conn, "w3").await.unwrap().job.id, given_up);
    let good = enqueue(conn, owner, Priority::Normal).await;
    let held = claim_one(conn, "w4").await.unwrap();
    let_leases_run_out(conn).await;
    assert_eq!(queue::put_back_expired(conn).await.unwrap(), PutBack { queued: 1, failed: 1 });
    assert_eq!(jobs::find(conn, owner, given_up).await.unwrap().unwrap().status, JobStatus::Failed);
    assert_eq!(jobs::find(conn, owner, good).await.unwrap().unwrap().status, JobStatus::Queued);
    assert!(matches!(queue::complete(conn, &held.lease, &Completion::default()).await, Err(Error::LeaseLost { .. })));
    assert_eq!(claim_one(conn, "w5").await.unwrap().job.id, good);
    assert_eq!(queue::put_back_worker(conn, &worker("w4")).await.unwrap(), PutBack::default());
    assert_eq!(queue::put_back_worker(conn, &worker("w5")).await.unwrap(), PutBack { queued: 1, failed: 0 });
}

#[tokio::test]
async fn a_job_that_was_called_off_is_neither_claimed_nor_finished() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let waiting = enqueue(conn, owner, Priority::Normal).await;
    jobs::cancel(conn, owner, waiting).await.unwrap();
    assert!(claim_one(conn, "w").await.is_none());
    let running = enqueue(conn, owner, Priority::Normal).await;
    let mut claim = claim_one(conn, "w").await.unwrap();
    jobs::cancel(conn, owner, running).await.unwrap();
    assert!(matches!(queue::heartbeat(conn, &mut claim.lease, LEASE).await, Err(Error::LeaseLost { .. })));
    assert!(matches!(queue::complete(conn, &claim.lease, &Completion::default()).await, Err(Error::LeaseLost { .. })));
    // Python cancels the job and leaves the queue as it is.
    let behind = enqueue(conn, owner, Priority::Normal).await;
    let good = enqueue(conn, owner, Priority::Normal).await;
    conn.batch_execute(&format!("UPDATE jobs SET status = 'cancelled' WHERE id = '{behind}'")).await.unwrap();
    let claims = queue::claim(conn, &worker("w"), BatchSize::new(10).unwrap(), LEASE).await.unwrap();
    assert_eq!(claims.iter().map(|claim| claim.job.id).collect::<Vec<_>>(), [good]);
    assert_eq!(queue::entry(conn, owner, behind).await.unwrap().unwrap().0, QueueStatus::Cancelled);
}

#[tokio::test]
async fn a_job_given_back_waits_where_it_waited() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let first = enqueue(conn, owner, Priority::Normal).await;
    enqueue(conn, owner, Priority::Normal).await;
    let claim = claim_one(conn, "w").await.unwrap();
    queue::release(conn, &claim.lease).await.unwrap();
    assert_eq!(jobs::find(conn, owner, first).await.unwrap().unwrap().status, JobStatus::Queued);
    let again = claim_one(conn, "w").await.unwrap();
    assert_eq!((again.job.id, again.retry_count), (first, 0));
}

#[tokio::test]
async fn what_python_holds_is_left_to_python() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let id = enqueue(conn, owner, Priority::Normal).await;
    conn.batch_execute(&format!(
        "UPDATE job_queue SET queue_status = 'processing', worker_id = 'py', processing_started_at = now() - interval '1 year'
         WHERE job_id = '{id}'"
    ))
    .await
    .unwrap();
    assert!(claim_one(conn, "w").await.is_none());
    assert_eq!(queue::put_back_expired(conn).await.unwrap(), PutBack::default());
    assert_eq!(queue::put_back_worker(conn, &worker("py")).await.unwrap(), PutBack { queued: 1, failed: 0 });
    assert!(claim_one(conn, "w").await.is_some());
    // A row that Python inserts, in its own words only.
    let other = enqueue(conn, owner, Priority::Low).await;
    conn.batch_execute(&format!(
        "DELETE FROM job_queue WHERE job_id = '{other}'; INSERT INTO job_queue (job_id, priority, queue_status) VALUES ('{other}', NULL, 'queued')"
    ))
    .await
    .unwrap();
    assert_eq!(claim_one(conn, "w").await.unwrap().job.id, other);
}

#[tokio::test]
async fn whoever_listens_is_woken_when_the_transaction_commits() {
    let mut db = fresh().await;
    let owner = user(&mut db.conn, "c1").await;
    let (client, mut connection) = tokio_postgres::connect(&db.url, tokio_postgres::NoTls).await.unwrap();
    let (sender, mut notified) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        use futures_util::StreamExt;
        let mut messages = futures_util::stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            if let tokio_postgres::AsyncMessage::Notification(notification) = message {
                sender.send(notification.channel().to_owned()).unwrap();
            }
        }
    });
    client.batch_execute(&format!("LISTEN {}", queue::CHANNEL)).await.unwrap();
    db.conn
        .transaction(async |conn| {
            enqueue(conn, owner, Priority::Normal).await;
            enqueue(conn, owner, Priority::Normal).await;
            client.simple_query("SELECT 1").await.unwrap();
            assert!(notified.try_recv().is_err(), "nothing to claim yet");
            Ok::<_, Error>(())
        })
        .await
        .unwrap();
    assert_eq!(notified.recv().await.unwrap(), queue::CHANNEL);
    let claim = claim_one(&mut db.conn, "w").await.unwrap();
    queue::release(&mut db.conn, &claim.lease).await.unwrap();
    assert_eq!(notified.recv().await.unwrap(), queue::CHANNEL);
    client.simple_query("SELECT 1").await.unwrap();
    assert!(notified.try_recv().is_err(), "one a transaction");
}

#[tokio::test]
async fn workers_and_owners_at_once_end_with_every_job_settled_once() {
    let mut db = fresh().await;
    let owner = user(&mut db.conn, "c1").await;
    let mut ids = Vec::new();
    for _ in 0..60 {
        ids.push(enqueue(&mut db.conn, owner, Priority::Normal).await);
    }
    let mut tasks = Vec::new();
    for number in 0..4u64 {
        let mut conn = db.another().await;
        tasks.push(tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(number);
            let me = worker(&format!("w{number}"));
            loop {
                let claims = conn
                    .transaction(async |conn| queue::claim(conn, &me, BatchSize::new(3)?, LEASE).await)
                    .await
                    .unwrap();
                if claims.is_empty() {
                    return;
                }
                for claim in claims {
                    let fails = random.u8(..) < 60;
                    let settled: Result<(), Error> = conn
                        .transaction(async |conn| {
                            if fails {
                                let soon = Backoff { first: Duration::ZERO, max: Duration::ZERO };
                                queue::fail(conn, &claim.lease, &ErrorInfo::new("x"), soon).await.map(drop)
                            } else {
                                queue::complete(conn, &claim.lease, &Completion::default()).await.map(drop)
                            }
                        })
                        .await;
                    assert!(matches!(settled, Ok(()) | Err(Error::LeaseLost { .. })), "{settled:?}");
                }
            }
        }));
    }
    // The owner calls some off meanwhile: never a deadlock.
    for id in ids.iter().step_by(7) {
        let called_off: Result<(), Error> =
            db.conn.transaction(async |conn| jobs::cancel(conn, owner, *id).await.map(drop)).await;
        assert!(matches!(called_off, Ok(()) | Err(Error::Transition { .. })), "{called_off:?}");
    }
    for task in tasks {
        task.await.unwrap();
    }
    let pairs: Vec<(JobStatus, QueueStatus)> = schema::jobs::table
        .inner_join(schema::job_queue::table)
        .select((schema::jobs::status, schema::job_queue::queue_status))
        .load(&mut db.conn)
        .await
        .unwrap();
    assert_eq!(pairs.len(), 60);
    for (job, entry) in pairs {
        assert!([JobStatus::Completed, JobStatus::Failed, JobStatus::Cancelled].contains(&job), "{job}");
        assert_eq!(job.as_str(), entry.as_str());
    }
}
