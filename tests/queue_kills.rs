//! The queue while workers die and sessions are killed: each job completed once, none lost. And how quickly it claims.
//!
//! graphile-worker publishes about 183,000 jobs executed a second, with 24 at a time, 500 fetched ahead and completion in
//! batches (<https://worker.graphile.org/docs/performance>): on other hardware, jobs that do nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use t2m_db::jobs::{Completion, NewJob};
use t2m_db::queue::{self, BatchSize, Claim, Worker};
use t2m_db::testing::TestDatabase;
use t2m_db::types::{JobStatus, Priority, UserId};
use t2m_db::users::{self, NewUser};
use t2m_db::{Config, Database, Error, Transaction, files, jobs};

use crate::domain_queue::{claim_one, enqueue, let_leases_run_out};
use crate::domain_support::{fresh, job, scene, user};
use crate::support::LONG;

const WORKERS: usize = 8;

/// How much more than the default to do.
fn rounds() -> usize {
    std::env::var("T2M_DB_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1)
}

async fn queue_of(count: usize) -> (TestDatabase, Database, UserId) {
    let database = t2m_db::testing::database().await;
    let config = Config::from_url(&database.url()).unwrap().max_size(10).min_idle(0);
    let db = Database::connect(config).await.unwrap();
    let owner = db.with_transaction(async |tx| users::create(tx, &NewUser::new("c1")).await).await.unwrap().id;
    let all: Vec<_> = (0..count)
        .map(|n| NewJob { priority: Priority::LISTED[n % 4].clone(), max_retries: 100, ..job("a") })
        .collect();
    // Of ten ages.
    for some in all.chunks(count.div_ceil(10)) {
        db.with_transaction(async |tx| jobs::create_and_enqueue_many(tx, owner, some).await).await.unwrap();
    }
    database.client().await.unwrap().batch_execute("ANALYZE").await.unwrap(); // the private server does not do it by itself
    (database, db, owner)
}

fn rank(priority: &Priority) -> usize {
    Priority::LISTED.iter().rev().position(|one| one == priority).unwrap()
}

/// Claims, completes what it claimed and stores a file with each; now and then it forgets what it holds, as if it had died.
async fn work(db: Database, name: String, completed: Arc<AtomicUsize>, all: usize) {
    let worker = Worker::new(name, None).unwrap();
    let (batch, lease) = (BatchSize::new(10).unwrap(), Duration::from_secs(1));
    while completed.load(Relaxed) < all {
        let claims = db.with_transaction(async |tx| queue::claim(tx, &worker, batch, lease).await).await;
        let Ok(claims) = claims else { continue }; // its session was killed
        if claims.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let order = |claim: &Claim| (rank(&claim.job.priority), claim.job.created_at);
        assert!(claims.is_sorted_by_key(order), "the most pressing first, then the oldest");
        for claim in claims {
            if fastrand::u8(..) < 8 {
                break;
            }
            let lease = &claim.lease;
            let done = db.with_transaction(async |tx| {
                let video = files::NewVideo { job: Some(lease.job()), ..scene(1) };
                queue::complete(tx, lease, &Completion::default()).await?;
                files::video_store(tx, lease.owner(), &video).await?;
                Ok::<_, Error>(())
            });
            if done.await.is_ok() {
                completed.fetch_add(1, Relaxed);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_job_is_completed_once_while_workers_die_and_sessions_are_killed() {
    let all = 1_000 * rounds();
    let (database, db, _) = queue_of(all).await;
    let counted = |client: Arc<tokio_postgres::Client>| async move {
        let sql = "SELECT count(*) FROM job_queue WHERE queue_status = 'completed'";
        usize::try_from(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)).unwrap()
    };
    let client = Arc::new(database.client().await.unwrap());
    let completed = Arc::new(AtomicUsize::new(0));
    let start =
        |n: usize, life: usize| tokio::spawn(work(db.clone(), format!("w{n}.{life}"), Arc::clone(&completed), all));
    let mut workers: Vec<_> = (0..WORKERS).map(|n| start(n, 0)).collect();
    let (mut killed, mut dropped, began) = (0_u64, 0, Instant::now());
    let (mut reached, mut advanced) = (0, began);
    // A commit whose answer was lost may count as failed to its worker: the table says when all are done.
    while reached < all {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let done = counted(Arc::clone(&client)).await;
        // On a busy machine workers that live for a fixed time only would get nothing done.
        if done < all.min(reached + 3) {
            assert!(advanced.elapsed() < LONG, "no further than {done} of {all}");
            continue;
        }
        (reached, advanced) = (done, Instant::now());
        let n = fastrand::usize(..WORKERS);
        workers[n].abort();
        let ended = std::mem::replace(&mut workers[n], start(n, dropped + 1)).await;
        assert!(ended.as_ref().is_ok() || ended.as_ref().is_err_and(tokio::task::JoinError::is_cancelled), "{ended:?}");
        dropped += 1;
        let kill = "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity \
                    WHERE datname = current_database() AND application_name = 't2m-db' ORDER BY random() LIMIT 1) AS one";
        killed += u64::try_from(client.query_one(kill, &[]).await.unwrap().get::<_, i64>(0)).unwrap();
    }
    for worker in workers {
        worker.abort();
    }
    let done = "SELECT count(*) FROM jobs JOIN job_queue ON job_queue.job_id = jobs.id \
                WHERE jobs.status = 'completed' AND queue_status = 'completed'";
    let expected = i64::try_from(all).unwrap();
    assert_eq!(client.query_one(done, &[]).await.unwrap().get::<_, i64>(0), expected, "none lost");
    let twice = "SELECT count(*), count(DISTINCT job_id) FROM file_metadata";
    let row = client.query_one(twice, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (expected, expected), "each once");
    println!("{all} jobs in {:?}: {dropped} workers dropped, {killed} sessions killed", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_are_counted_beside_a_plain_loop() {
    let all = 400 * rounds();
    let (database, db, _) = queue_of(4 * all).await;
    let lease = Duration::from_secs(600);
    // All that there is a share of, by so many workers at once. What is claimed is completed, one by one.
    let work = async |workers: usize, batch: usize| {
        let began = Instant::now();
        let shares = (0..workers).map(async |n| {
            let worker = Worker::new(format!("w{n}"), None).unwrap();
            let size = BatchSize::new(i64::try_from(batch).unwrap()).unwrap();
            for _ in 0..all / workers / batch {
                let claimed =
                    db.with_transaction(async |tx| queue::claim(tx, &worker, size, lease).await).await.unwrap();
                assert_eq!(claimed.len(), batch);
                for claim in claimed {
                    let done = async |tx: &mut Transaction| {
                        queue::complete(tx, &claim.lease, &Completion::default()).await.map(drop)
                    };
                    db.with_transaction(done).await.unwrap();
                }
            }
        });
        futures_util::future::join_all(shares).await;
        rate(all, began)
    };
    let (ours, eight, batches) = (work(1, 1).await, work(8, 1).await, work(1, 100).await);
    let client = database.client().await.unwrap();
    let claim = "UPDATE job_queue SET queue_status = 'processing' WHERE id = (SELECT id FROM job_queue \
                 WHERE t2m_queue_is_open(queue_status) AND queue_status = 'queued' \
                 ORDER BY t2m_priority_rank(priority), queued_at, id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id::text";
    let complete = "WITH closed AS (UPDATE job_queue SET queue_status = 'completed' WHERE id = $1::text::uuid RETURNING job_id) \
                    UPDATE jobs SET status = 'completed' FROM closed WHERE jobs.id = closed.job_id";
    // It knows no token, and is not to pay for one.
    client.batch_execute("ALTER TABLE job_queue DISABLE TRIGGER t2m_overtake").await.unwrap();
    let (claim, complete) = (client.prepare(claim).await.unwrap(), client.prepare(complete).await.unwrap());
    let began = Instant::now();
    for _ in 0..all {
        let id: String = client.query_one(&claim, &[]).await.unwrap().get(0);
        client.execute(&complete, &[&id]).await.unwrap();
    }
    let theirs = rate(all, began);
    println!(
        "jobs claimed and completed a second, {all} of them: {ours:.0} by one worker, {eight:.0} by eight, {batches:.0} in \
         batches of 100; a plain SKIP LOCKED loop: {theirs:.0}"
    );
}

fn rate(jobs: usize, began: Instant) -> f64 {
    f64::from(u32::try_from(jobs).unwrap()) / began.elapsed().as_secs_f64()
}

/// However many there are, a claim is not kept from what there is to do.
#[tokio::test]
async fn a_claim_gives_up_what_was_lost_too_often_beside_what_it_takes() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let mut lost = Vec::new();
    for _ in 0..3 {
        lost.push(jobs::create_and_enqueue(conn, owner, &NewJob { max_retries: 0, ..job("a") }).await.unwrap().id);
        claim_one(conn, "dies").await.unwrap();
    }
    assert!(queue::due_in(conn).await.unwrap().unwrap() > Duration::ZERO, "an idle worker wakes for them");
    let_leases_run_out(conn).await;
    assert_eq!(queue::due_in(conn).await.unwrap(), Some(Duration::ZERO));
    let waits = enqueue(conn, owner, Priority::Low).await;
    assert_eq!(claim_one(conn, "w").await.unwrap().job.id, waits);
    for id in lost {
        let job = jobs::find(conn, owner, id).await.unwrap().unwrap();
        assert_eq!((&job.status, job.completed_at.is_some()), (&JobStatus::Failed, true));
        assert!(job.error_info.unwrap().get().unwrap().message.as_ref().unwrap().contains("lease ran out"));
    }
}
