//! Blocking round trips of every function of the domain on a warm connection, counted by a proxy: any increase fails.
//!
//! What changes something runs in a transaction of its own: BEGIN rides with the first statement, COMMIT is one of those counted.

use std::time::Duration;

use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use t2m_db::files::{self, NewThumbnail, ThumbnailDetails, VideoDetails};
use t2m_db::jobs::{self, Completion, ErrorInfo, NewJob};
use t2m_db::queue::{self, Backoff, BatchSize, Lease, Worker};
use t2m_db::testing::{Proxy, TestDatabase};
use t2m_db::types::{JobId, JobStatus, OperationId, PageSize, Percentage, Priority, UserId};
use t2m_db::users::{self, NewUser, UserChanges};
use t2m_db::{Config, Database, Error, operations};
use uuid::Uuid;

use crate::domain_support::{job, scene, stored};

const LEASE: Duration = Duration::from_secs(60);

/// What each is measured on, made anew past the proxy.
struct Given {
    owner: UserId,
    clerk_id: String,
    queued: JobId,
    created: JobId,
    lease: Lease,
    worker: Worker,
    still: NewThumbnail,
}

async fn given(conn: &mut AsyncPgConnection) -> Given {
    conn.batch_execute("DELETE FROM job_queue").await.unwrap(); // what is claimed is what is ordered here
    let clerk_id = OperationId::random().to_string();
    let owner = users::upsert(conn, &NewUser::new(&clerk_id)).await.unwrap().id;
    let queued = NewJob { priority: Priority::Low, ..job("a") };
    jobs::create_and_enqueue(conn, owner, &queued).await.unwrap();
    jobs::create_and_enqueue(conn, owner, &NewJob { priority: Priority::Urgent, ..job("a") }).await.unwrap();
    let created = jobs::create_and_enqueue(conn, owner, &job("a")).await.unwrap().id;
    let left = format!(
        "UPDATE jobs SET status = 'created' WHERE id = '{created}'; DELETE FROM job_queue WHERE job_id = '{created}'"
    );
    conn.batch_execute(&left).await.unwrap(); // as Python leaves one
    let worker = Worker::new(&clerk_id, None).unwrap();
    let lease = queue::claim(conn, &worker, BatchSize::ONE, LEASE).await.unwrap().pop().unwrap().lease;
    assert_eq!(lease.owner(), owner);
    let video = files::video_store(conn, owner, &scene(1)).await.unwrap().id;
    let still = NewThumbnail { video, stored: stored("t", 1), details: ThumbnailDetails::default() };
    files::thumbnail_store(conn, owner, &still).await.unwrap();
    Given { owner, clerk_id, queued: queued.id, created, lease, worker, still }
}

struct Bench {
    direct: AsyncPgConnection,
    proxy: Proxy,
    db: Database,
    over: Vec<String>,
    _database: TestDatabase,
}

impl Bench {
    async fn start() -> Self {
        let database = t2m_db::testing::database().await;
        let proxy = Proxy::start_unix(&database.url()).await.unwrap();
        let config = Config::from_url(&proxy.url()).unwrap().max_size(1).min_idle(0).health_interval(None);
        let db = Database::connect(config).await.unwrap();
        let direct = AsyncPgConnection::establish(&database.url()).await.unwrap();
        Self { direct, proxy, db, over: Vec::new(), _database: database }
    }

    fn spent(&mut self, name: &str, budget: u64) {
        let spent = self.proxy.round_trips();
        if spent > budget {
            self.over.push(format!("{name}: {spent} instead of {budget}: {:#?}", self.proxy.statements()));
        }
    }
}

/// `budget, name: work` for each function; the fourth time counts, when everything is prepared.
macro_rules! costs {
    ($bench:ident.$scope:ident, |$conn:ident, $given:ident| { $($budget:literal, $name:literal: $work:expr;)+ }) => { $({
        for _ in 0..4 {
            #[allow(unused_variables, unused_mut, reason = "not every function needs what there is")]
            let mut $given = given(&mut $bench.direct).await;
            $bench.proxy.reset_counts();
            let done = $bench.db.$scope(async |$conn| $work.await.map(drop).map_err(Error::from)).await;
            done.unwrap_or_else(|error| panic!("{}: {error}", $name));
        }
        $bench.spent($name, $budget);
    })+ };
}

#[tokio::test]
async fn what_reads_costs_one() {
    let (mut bench, size) = (Bench::start().await, PageSize::default());
    costs!(bench.with_connection, |conn, given| {
        1, "users::find": users::find(conn, given.owner);
        1, "users::find_by_clerk_id": users::find_by_clerk_id(conn, &given.clerk_id);
        1, "users::find_by_email": users::find_by_email(conn, "a@example.org");
        1, "users::list_active": users::list_active(conn, size, None);
        1, "users::statistics": users::statistics(conn, given.owner);
        1, "users::system_statistics": users::system_statistics(conn);
        1, "jobs::find": jobs::find(conn, given.owner, given.queued);
        1, "jobs::list": jobs::list(conn, given.owner, size, None);
        1, "jobs::list_by_status": jobs::list_by_status(conn, given.owner, &JobStatus::Queued, size, None);
        1, "jobs::active": jobs::active(conn, given.owner);
        1, "jobs::batch": jobs::batch(conn, given.owner, Uuid::new_v4());
        1, "queue::due_in": queue::due_in(conn);
        1, "queue::entry": queue::entry(conn, given.owner, given.queued);
        1, "files::video_find": files::video_find(conn, given.owner, given.still.video);
        1, "files::video_list": files::video_list(conn, given.owner, size, None);
        1, "files::video_by_job": files::video_by_job(conn, given.owner, &[given.queued]);
        1, "files::video_analytics": files::video_analytics(conn, given.owner, given.still.video);
        1, "files::video_playlist": files::video_playlist(conn, given.owner, &[given.still.video]);
        1, "files::thumbnail_list": files::thumbnail_list(conn, given.owner, given.still.video);
        1, "a job, its entry and its videos, pipelined": async {
            let (mut one, mut two, mut three) = (&*conn, &*conn, &*conn);
            futures_util::try_join!(
                jobs::find(&mut one, given.owner, given.queued),
                queue::entry(&mut two, given.owner, given.queued),
                files::video_by_job(&mut three, given.owner, std::slice::from_ref(&given.queued)),
            )
        };
    });
    assert!(bench.over.is_empty(), "{}", bench.over.join("\n"));
}

#[tokio::test]
async fn what_changes_users_and_files_costs_its_statements_and_commit() {
    let mut bench = Bench::start().await;
    let (new, no_changes) = (|| NewUser::new(OperationId::random().to_string()), UserChanges::default());
    costs!(bench.with_transaction, |tx, given| {
        2, "users::create": users::create(tx, &new());
        2, "users::create_many": users::create_many(tx, &[new(), new()]);
        2, "users::upsert": users::upsert(tx, &NewUser::new(&given.clerk_id));
        2, "users::update": users::update(tx, given.owner, &no_changes);
        4, "users::soft_delete": users::soft_delete(tx, given.owner);
        2, "files::video_store": files::video_store(tx, given.owner, &scene(2));
        2, "files::video_store_many": files::video_store_many(tx, given.owner, &[scene(2), scene(3)]);
        2, "files::thumbnail_store": files::thumbnail_store(tx, given.owner, &given.still);
        2, "files::thumbnail_store_many": files::thumbnail_store_many(tx, given.owner, std::slice::from_ref(&given.still));
        2, "files::video_change_details":
            files::video_change_details(tx, given.owner, given.still.video, &VideoDetails::default());
        2, "files::video_count_view": files::video_count_view(tx, given.owner, given.still.video);
        2, "files::video_count_download": files::video_count_download(tx, given.owner, given.still.video);
        2, "files::video_touch": files::video_touch(tx, given.owner, given.still.video);
        2, "files::video_delete": files::video_delete(tx, given.owner, given.still.video);
        2, "files::thumbnail_delete": files::thumbnail_delete(tx, given.owner, given.still.video);
        2, "operations::claim": operations::claim(tx, OperationId::random());
    });
    assert!(bench.over.is_empty(), "{}", bench.over.join("\n"));
}

#[tokio::test]
async fn what_changes_jobs_and_the_queue_costs_its_statements_and_commit() {
    let mut bench = Bench::start().await;
    let (half, why, done) = (Percentage::new(50.0).unwrap(), ErrorInfo::new("x"), Completion::default());
    costs!(bench.with_transaction, |tx, given| {
        3, "jobs::create_and_enqueue": jobs::create_and_enqueue(tx, given.owner, &job("a"));
        3, "jobs::create_and_enqueue_many": jobs::create_and_enqueue_many(tx, given.owner, &[job("a"), job("b")]);
        3, "jobs::create_and_enqueue, again": async {
            jobs::create_and_enqueue(tx, given.owner, &NewJob { id: given.queued, ..job("a") }).await
        };
        3, "jobs::enqueue": jobs::enqueue(tx, given.owner, given.created);
        3, "jobs::start": jobs::start(tx, given.owner, given.queued);
        2, "jobs::set_progress": jobs::set_progress(tx, given.owner, given.lease.job(), &half, "render", None);
        3, "jobs::complete": jobs::complete(tx, given.owner, given.lease.job(), &done);
        3, "jobs::fail": jobs::fail(tx, given.owner, given.queued, &why);
        3, "jobs::cancel": jobs::cancel(tx, given.owner, given.queued);
        3, "jobs::soft_delete": jobs::soft_delete(tx, given.owner, given.queued);
        2, "jobs::cleanup": jobs::cleanup(tx, LEASE);
        3, "queue::claim": queue::claim(tx, &given.worker, BatchSize::ONE, LEASE);
        2, "queue::heartbeat": queue::heartbeat(tx, &mut given.lease, LEASE);
        3, "queue::progress": queue::progress(tx, &mut given.lease, LEASE, &half, "render", None);
        3, "queue::complete": queue::complete(tx, &given.lease, &done);
        3, "queue::fail": queue::fail(tx, &given.lease, &why, Backoff::default());
        3, "queue::release": queue::release(tx, &given.lease);
        2, "queue::put_back_expired, nothing to do": queue::put_back_expired(tx);
        4, "queue::put_back_worker": queue::put_back_worker(tx, &given.worker);
    });
    assert!(bench.over.is_empty(), "{}", bench.over.join("\n"));
}
