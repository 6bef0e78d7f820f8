//! What a function promises of its cost: how many round trips, by which index, without a sort, the same at any depth.
//!
//! The statements are those that diesel sent, seen through its instrumentation; the plans are generic ones, as a prepared
//! statement gets them that knows no values yet. There a partial index counts only if its predicate is proved without any.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel::connection::InstrumentationEvent;
use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use t2m_db::files::{self, NewThumbnail, ThumbnailDetails, VideoDetails};
use t2m_db::jobs::{self, Completion, ErrorInfo};
use t2m_db::operations;
use t2m_db::queue::{self, Backoff, BatchSize, Worker};
use t2m_db::testing::Dataset;
use t2m_db::types::{FileId, JobId, JobStatus, OperationId, PageSize, Percentage, UserId};
use t2m_db::users::{self, NewUser, UserChanges};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use uuid::Uuid;

use crate::domain_rls::{act_for, become_app_role};
use crate::domain_support::{Fresh, fresh, job, scene, stored};
use crate::sql_text::{paths, readable, split};

/// Enough that an index is worth it; most users have little, and one has a third of all. `T2M_DB_TEST_FILES=1000000` asks
/// the same of a million.
const FILES: u32 = 40_000;

/// The major version of the server that the snapshots are of: the oldest that is supported.
const SNAPSHOT_VERSION: i32 = 15;

fn dataset() -> Dataset {
    let files = std::env::var("T2M_DB_TEST_FILES").ok().and_then(|files| files.parse().ok()).unwrap_or(FILES);
    Dataset { users: (files / 100).max(2_000), files }
}

struct Bench {
    db: Fresh,
    client: Client,
    seen: Arc<Mutex<Vec<String>>>,
    owner: UserId,
    /// What is snapshotted: each query's text and how it gets at its rows.
    told: String,
}

async fn bench() -> Bench {
    let mut db = fresh().await;
    // VACUUM marks a page as visible to all only once the commit of its rows is on disk: what asynchronous commits put off.
    db.conn.batch_execute("SET synchronous_commit = on").await.unwrap();
    for table in ["users", "jobs", "job_queue", "file_metadata"] {
        // An automatic ANALYZE meanwhile would hold a snapshot, and VACUUM could not mark pages as visible to all.
        let sql = format!("ALTER TABLE {table} SET (autovacuum_enabled = false)");
        db.conn.batch_execute(&sql).await.unwrap();
    }
    db.conn.batch_execute(&dataset().sql()).await.unwrap();
    db.conn.batch_execute("VACUUM ANALYZE").await.unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    db.conn.set_instrumentation(move |event: InstrumentationEvent<'_>| {
        if let InstrumentationEvent::StartQuery { query, .. } = event {
            log.lock().unwrap().push(query.to_string());
        }
    });
    let (client, connection) = tokio_postgres::connect(&db.url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("SET plan_cache_mode = force_generic_plan").await.unwrap();
    Bench { db, client, seen, owner: Uuid::from_u128(1).into(), told: String::new() }
}

impl Bench {
    fn conn(&mut self) -> &mut AsyncPgConnection {
        self.seen.lock().unwrap().clear();
        &mut self.db.conn
    }

    /// The generic plans of the statements since [`Self::conn`], and how many there must be.
    async fn plans(&mut self, name: &str, statements: usize) -> Vec<String> {
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        assert_eq!(seen.len(), statements, "{name}: {seen:#?}");
        writeln!(self.told, "{name}").unwrap();
        let mut plans = Vec::new();
        for statement in seen {
            let plan = self.plan(&statement).await;
            write!(self.told, "{}\n{}", readable(&statement), paths(&plan)).unwrap();
            plans.push(plan);
        }
        self.told.push('\n');
        plans
    }

    /// A change of any query, or of how it gets at its rows, is seen in review. How it sorts a few rows depends on the size,
    /// and which of two indexes that serve equally well is taken on the server's version; the texts depend on neither.
    async fn snapshot(&self, module: &str) {
        let version = "SELECT current_setting('server_version_num')::int / 10000";
        let version: i32 = self.client.query_one(version, &[]).await.unwrap().get(0);
        if dataset().files != FILES || version != SNAPSHOT_VERSION {
            let kept = format!("{}/tests/snapshots/sql_of_{module}.snap", env!("CARGO_MANIFEST_DIR"));
            let kept = std::fs::read_to_string(kept).unwrap();
            let kept = kept.splitn(3, "---\n").nth(2).unwrap();
            return assert_eq!(without_paths(&self.told), without_paths(kept), "PostgreSQL {version}, {module}");
        }
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(format!("sql_of_{module}"), self.told);
        });
    }

    async fn plan(&self, statement: &str) -> String {
        let (sql, binds) = statement.split_once(" -- binds: ").unwrap();
        let binds = split(binds);
        // The server infers most types; where it cannot, a number is an integer and a NULL one of a sum.
        let typed = |null: &'static str| {
            let of = |bind: &String| match bind.parse::<i64>() {
                Ok(_) => "integer",
                Err(_) if bind == "None" => null,
                Err(_) => "unknown",
            };
            binds.iter().map(of).collect::<Vec<_>>().join(", ")
        };
        let list = |inner: String| if inner.is_empty() { inner } else { format!("({inner})") };
        let mut prepared = self.client.batch_execute(&format!("PREPARE it {} AS {sql}", list(typed("unknown")))).await;
        if prepared.is_err() {
            prepared = self.client.batch_execute(&format!("PREPARE it {} AS {sql}", list(typed("numeric")))).await;
        }
        prepared.unwrap_or_else(|error| panic!("{statement}: {error}"));
        let nulls = list(vec!["NULL"; binds.len()].join(", "));
        let messages = self.client.simple_query(&format!("EXPLAIN (COSTS OFF) EXECUTE it{nulls}")).await.unwrap();
        self.client.batch_execute("DEALLOCATE it").await.unwrap();
        let lines = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Every statement goes by the index named for it, and reads no table whole.
    async fn goes_by(&mut self, name: &str, indexes: &[&str]) -> Vec<String> {
        let plans = self.plans(name, indexes.len()).await;
        for (plan, index) in plans.iter().zip(indexes) {
            assert!(plan.contains(index), "{name} is not by {index}:\n{plan}");
            assert!(!plan.contains("Seq Scan"), "{name} reads a table whole:\n{plan}");
        }
        plans
    }

    async fn goes_by_in_order(&mut self, name: &str, index: &str) {
        let plans = self.goes_by(name, &[index]).await;
        assert!(!plans[0].contains("Sort"), "{name} sorts:\n{}", plans[0]);
        let bounded =
            plans[0].lines().any(|line| line.contains("Index Cond") && line.contains("ROW(created_at, id) <"));
        assert!(bounded, "{name} does not begin at its cursor:\n{}", plans[0]);
    }
}

/// What is snapshotted, without how the queries get at their rows.
fn without_paths(told: &str) -> String {
    told.trim_end().lines().filter(|line| !line.starts_with("  -- ")).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_deep_page_costs_what_the_first_one_costs() {
    let mut bench = bench().await;
    let owner = bench.owner;
    let read = async |client: &Client| {
        let sql = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'file_metadata_owner_idx'";
        client.batch_execute("SELECT pg_stat_clear_snapshot()").await.unwrap();
        client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    let flush = "SELECT pg_stat_force_next_flush()";
    let mut cursor = None;
    let mut costs = Vec::new();
    for page in 0..120 {
        let before = read(&bench.client).await;
        cursor = files::video_list(bench.conn(), owner, PageSize::new(50).unwrap(), cursor).await.unwrap().next;
        bench.db.conn.batch_execute(flush).await.unwrap();
        if page % 30 == 0 {
            costs.push(read(&bench.client).await - before);
        }
    }
    assert!(cursor.is_some());
    assert!(costs.iter().all(|cost| (51..=53).contains(cost)), "{costs:?}");

    // The same in pages of the disk: of the first list page, and of one in the middle of what the owner has.
    files::video_list(bench.conn(), owner, PageSize::new(50).unwrap(), None).await.unwrap();
    let sql = std::mem::take(&mut *bench.seen.lock().unwrap()).remove(0);
    let sql = sql.split_once(" -- binds: ").unwrap().0.to_owned();
    bench.client.batch_execute(&format!("PREPARE page AS {sql}")).await.unwrap();
    let middle = "SELECT created_at::text, id::text FROM file_metadata WHERE user_id = '00000000-0000-0000-0000-000000000001' \
                  AND file_type = 'video' ORDER BY created_at OFFSET 3000 LIMIT 1";
    let middle = bench.client.query_one(middle, &[]).await.unwrap();
    let ends = "9999-12-31 00:00Z', 'ffffffff-ffff-ffff-ffff-ffffffffffff".to_owned();
    let mut buffers = Vec::new();
    for key in [ends, format!("{}', '{}", middle.get::<_, &str>(0), middle.get::<_, &str>(1))] {
        let explain =
            format!("EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) EXECUTE page('{}', 'video', '{key}', 51)", owner.as_uuid());
        let mut read = None;
        for _ in 0..2 {
            // The second time nothing has to be looked up in the catalogs.
            let rows = bench.client.simple_query(&explain).await.unwrap();
            read = rows.iter().find_map(|row| match row {
                SimpleQueryMessage::Row(row) => {
                    row.get(0)?.split("shared hit=").nth(1)?.split_whitespace().next()?.parse().ok()
                }
                _ => None,
            });
        }
        buffers.push(read.unwrap());
    }
    let (first, deep): (u32, u32) = (buffers[0], buffers[1]);
    println!("{:?}: {first} buffers for the first page of 50, {deep} for one 3,000 from the end", dataset());
    assert!(first.abs_diff(deep) <= 50, "{first}, {deep}");
}

#[tokio::test]
async fn users_cost_what_they_promise() {
    let mut bench = bench().await;
    let owner = bench.owner;
    users::find(bench.conn(), owner).await.unwrap().unwrap();
    bench.goes_by("find", &["users_pkey"]).await;
    users::find_by_clerk_id(bench.conn(), "c1").await.unwrap().unwrap();
    bench.goes_by("find_by_clerk_id", &["users_clerk_user_id_key"]).await;
    users::find_by_email(bench.conn(), "u1@example.org").await.unwrap().unwrap();
    bench.goes_by("find_by_email", &["users_email_idx"]).await;
    users::list_active(bench.conn(), PageSize::default(), None).await.unwrap();
    bench.goes_by_in_order("list_active", "users_active_idx").await;
    users::create(bench.conn(), &NewUser::new("newer")).await.unwrap();
    bench.goes_by("create", &["users_clerk_user_id_key"]).await;
    users::update(bench.conn(), owner, &UserChanges::default()).await.unwrap();
    bench.goes_by("update", &["users_pkey"]).await;
    users::upsert(bench.conn(), &NewUser::new("c1")).await.unwrap();
    bench.goes_by("upsert", &["users_clerk_user_id_key"]).await;
    users::create_many(bench.conn(), &[NewUser::new("new")]).await.unwrap();
    bench.goes_by("create_many", &["users_clerk_user_id_key"]).await;
    users::statistics(bench.conn(), owner).await.unwrap();
    let plans = bench.goes_by("statistics", &["Index Only Scan using jobs_owner_status_idx"]).await;
    assert!(plans[0].contains("Index Only Scan using file_metadata_usage_idx"), "{}", plans[0]);
    users::system_statistics(bench.conn()).await.unwrap();
    bench.plans("system_statistics", 1).await;
    users::soft_delete(bench.conn(), Uuid::from_u128(7).into()).await.unwrap();
    bench.goes_by("soft_delete", &["users_pkey", "jobs_owner", "file_metadata", "jobs_owner"]).await;
    let _claim = operations::claim(bench.conn(), OperationId::random()).await.unwrap();
    bench.goes_by("operations::claim", &["operations"]).await;
    bench.snapshot("users").await;
}

#[tokio::test]
async fn jobs_cost_what_they_promise() {
    let mut bench = bench().await;
    let (owner, size) = (bench.owner, PageSize::default());
    let new = job("a");
    jobs::create_and_enqueue(bench.conn(), owner, &new).await.unwrap();
    bench.goes_by("create_and_enqueue", &["users_pkey", "Insert on job_queue"]).await;
    jobs::create_and_enqueue_many(bench.conn(), owner, &[job("a"), job("b")]).await.unwrap();
    bench.goes_by("create_and_enqueue_many", &["jobs_pkey", "Insert on job_queue"]).await;
    jobs::find(bench.conn(), owner, new.id).await.unwrap();
    bench.goes_by("find", &["jobs_pkey"]).await;
    jobs::list(bench.conn(), owner, size, None).await.unwrap();
    bench.goes_by_in_order("list", "jobs_owner_idx").await;
    jobs::list_by_status(bench.conn(), owner, &JobStatus::Queued, size, None).await.unwrap();
    bench.goes_by_in_order("list_by_status", "jobs_owner_status_idx").await;
    jobs::active(bench.conn(), owner).await.unwrap();
    // 15 takes jobs_owner_status_idx, as the snapshot has it; 17 takes jobs_owner_idx for its generic plan.
    bench.goes_by("active", &["jobs_owner_"]).await;
    jobs::batch(bench.conn(), owner, Uuid::from_u128(1)).await.unwrap();
    bench.goes_by("batch", &["jobs_batch_idx"]).await;
    jobs::cleanup(bench.conn(), Duration::from_secs(86_400 * 10)).await.unwrap();
    let plans = bench.goes_by("cleanup", &["jobs_finished_idx"]).await;
    assert!(!plans[0].contains("Sort"), "{}", plans[0]);

    let by_key = ["job_queue_job_id_key", "jobs_pkey"];
    let (started, failed, called_off, deleted) = (job("a"), job("a"), job("a"), job("a"));
    for new in [&started, &failed, &called_off, &deleted] {
        jobs::create_and_enqueue(bench.conn(), owner, new).await.unwrap();
    }
    let left = format!("UPDATE jobs SET status = 'created' WHERE id = '{}'", new.id);
    bench.conn().batch_execute(&left).await.unwrap();
    jobs::enqueue(bench.conn(), owner, new.id).await.unwrap();
    bench.goes_by("enqueue", &["jobs_pkey", "jobs_pkey"]).await;
    jobs::start(bench.conn(), owner, started.id).await.unwrap();
    bench.goes_by("start", &by_key).await;
    let half = Percentage::new(50.0).unwrap();
    jobs::set_progress(bench.conn(), owner, started.id, &half, "render", None).await.unwrap();
    bench.goes_by("set_progress", &["jobs_pkey"]).await;
    jobs::complete(bench.conn(), owner, started.id, &Completion::default()).await.unwrap();
    bench.goes_by("complete", &by_key).await;
    jobs::fail(bench.conn(), owner, failed.id, &ErrorInfo::new("x")).await.unwrap();
    bench.goes_by("fail", &by_key).await;
    jobs::cancel(bench.conn(), owner, called_off.id).await.unwrap();
    bench.goes_by("cancel", &by_key).await;
    jobs::soft_delete(bench.conn(), owner, deleted.id).await.unwrap();
    bench.goes_by("soft_delete", &by_key).await;
    bench.snapshot("jobs").await;
}

#[tokio::test]
async fn the_queue_costs_what_it_promises() {
    let mut bench = bench().await;
    let owner = bench.owner;
    let worker = Worker::new("w", None).unwrap();
    let claim = async |bench: &mut Bench| {
        let claims = queue::claim(bench.conn(), &worker, BatchSize::ONE, Duration::from_secs(60)).await.unwrap();
        claims.into_iter().next().unwrap().lease
    };
    let mut lease = claim(&mut bench).await;
    let plans = bench.goes_by("claim", &["job_queue_claim_idx", "jobs_pkey"]).await;
    assert!(!plans[0].contains("Sort"), "{}", plans[0]);
    queue::heartbeat(bench.conn(), &mut lease, Duration::from_secs(60)).await.unwrap();
    bench.goes_by("heartbeat", &["job_queue_job_id_key"]).await;
    let half = Percentage::new(50.0).unwrap();
    let minute = Duration::from_secs(60);
    queue::progress(bench.conn(), &mut lease, minute, &half, "render", None).await.unwrap();
    bench.goes_by("progress", &["job_queue_job_id_key", "jobs_pkey"]).await;
    queue::complete(bench.conn(), &lease, &Completion::default()).await.unwrap();
    bench.goes_by("complete", &["job_queue_job_id_key", "jobs_pkey"]).await;
    let lease = claim(&mut bench).await;
    queue::fail(bench.conn(), &lease, &ErrorInfo::new("x"), Backoff::default()).await.unwrap();
    bench.goes_by("fail", &["job_queue_job_id_key", "jobs_pkey"]).await;
    let lease = claim(&mut bench).await;
    queue::release(bench.conn(), &lease).await.unwrap();
    bench.goes_by("release", &["job_queue_job_id_key", "jobs_pkey"]).await;
    queue::entry(bench.conn(), owner, lease.job()).await.unwrap();
    bench.goes_by("entry", &["job_queue_job_id_key"]).await;
    queue::put_back_expired(bench.conn()).await.unwrap();
    bench.goes_by("put_back_expired", &["job_queue_lease_idx"]).await;
    queue::put_back_worker(bench.conn(), &worker).await.unwrap();
    bench.goes_by("put_back_worker", &["job_queue_lease_idx"]).await;
    claim(&mut bench).await;
    queue::put_back_worker(bench.conn(), &worker).await.unwrap();
    let put_back = ["job_queue_lease_idx", "job_queue_pkey", "jobs_pkey", "jobs_pkey"];
    bench.goes_by("put_back_worker, which held one", &put_back).await;
    // Asked when a claim found nothing, so of a queue that holds little but what waits.
    let idle = "UPDATE job_queue SET queue_status = 'completed' WHERE queue_status = 'queued'; ANALYZE job_queue";
    bench.db.conn.batch_execute(idle).await.unwrap();
    queue::due_in(bench.conn()).await.unwrap();
    bench.goes_by("due_in", &["job_queue_claim_idx"]).await;
    bench.snapshot("queue").await;
}

#[tokio::test]
async fn files_cost_what_they_promise() {
    let mut bench = bench().await;
    let owner = bench.owner;
    let video = files::video_store(bench.conn(), owner, &scene(1)).await.unwrap().id;
    let plans = bench.goes_by("video_store", &["users_pkey"]).await;
    assert!(!plans[0].contains("owner_idx"), "it would go through all that the owner has:\n{}", plans[0]);
    let still = NewThumbnail { video, stored: stored("t", 1), details: ThumbnailDetails::default() };
    files::thumbnail_store(bench.conn(), owner, &still).await.unwrap();
    bench.goes_by("thumbnail_store", &["file_metadata_pkey"]).await;
    files::thumbnail_store_many(bench.conn(), owner, &[still.clone(), still.clone()]).await.unwrap();
    bench.goes_by("thumbnail_store_many", &["file_metadata_pkey"]).await;
    files::video_store_many(bench.conn(), owner, &[scene(1), scene(2)]).await.unwrap();
    bench.goes_by("video_store_many", &["users_pkey"]).await;
    files::video_list(bench.conn(), owner, PageSize::default(), None).await.unwrap();
    bench.goes_by_in_order("video_list", "file_metadata_owner_idx").await;
    let by_key = ["file_metadata_pkey"];
    files::video_find(bench.conn(), owner, video).await.unwrap().unwrap();
    bench.goes_by("video_find", &by_key).await;
    files::video_count_view(bench.conn(), owner, video).await.unwrap();
    bench.goes_by("video_count_view", &by_key).await;
    files::video_count_download(bench.conn(), owner, video).await.unwrap();
    bench.goes_by("video_count_download", &by_key).await;
    files::video_touch(bench.conn(), owner, video).await.unwrap();
    bench.goes_by("video_touch", &by_key).await;
    files::video_analytics(bench.conn(), owner, video).await.unwrap().unwrap();
    bench.goes_by("video_analytics", &by_key).await;
    files::video_change_details(bench.conn(), owner, video, &VideoDetails::default()).await.unwrap();
    bench.goes_by("video_change_details", &by_key).await;
    files::thumbnail_list(bench.conn(), owner, video).await.unwrap();
    bench.goes_by("thumbnail_list", &["file_metadata_video_idx"]).await;
    files::thumbnail_delete(bench.conn(), owner, video).await.unwrap();
    bench.goes_by("thumbnail_delete", &["file_metadata_video_idx"]).await;
    files::video_playlist(bench.conn(), owner, &[video, FileId::random()]).await.unwrap();
    let plans = bench.goes_by("video_playlist", &by_key).await;
    assert!(plans[0].contains("file_metadata_video_idx"), "{}", plans[0]);
    files::video_by_job(bench.conn(), owner, &[JobId::random(), JobId::random()]).await.unwrap();
    bench.goes_by("video_by_job", &["file_metadata_job_idx"]).await;
    files::thumbnail_store(bench.conn(), owner, &still).await.unwrap();
    files::video_delete(bench.conn(), owner, video).await.unwrap();
    let plans = bench.goes_by("video_delete", &["file_metadata_pkey", "file_metadata_video_idx"]).await;
    assert!(!plans.concat().contains("owner_idx"), "{}", plans[1]);
    bench.snapshot("files").await;
}

/// There a condition that might tell of a row, as one on JSON might, is asked after the policy: no index answers it.
#[tokio::test]
async fn files_go_by_the_same_indexes_under_row_level_security() {
    let mut bench = bench().await;
    let owner = bench.owner;
    let video = files::video_store(bench.conn(), owner, &scene(1)).await.unwrap().id;
    let still = NewThumbnail { video, stored: stored("t", 1), details: ThumbnailDetails::default() };
    become_app_role(&mut bench.db.conn).await;
    act_for(&mut bench.db.conn, owner).await;
    let as_app = format!("SET ROLE t2m_test_app; SET t2m.user_id = '{owner}'");
    bench.client.batch_execute(&as_app).await.unwrap();

    files::thumbnail_store(bench.conn(), owner, &still).await.unwrap();
    bench.goes_by("thumbnail_store", &["file_metadata_pkey"]).await;
    files::video_list(bench.conn(), owner, PageSize::default(), None).await.unwrap();
    bench.goes_by("video_list", &["file_metadata_owner_idx"]).await;
    files::video_by_job(bench.conn(), owner, &[JobId::random(), JobId::random()]).await.unwrap();
    bench.goes_by("video_by_job", &["file_metadata_job_idx"]).await;
    files::thumbnail_list(bench.conn(), owner, video).await.unwrap();
    bench.goes_by("thumbnail_list", &["file_metadata_video_idx"]).await;
    files::video_playlist(bench.conn(), owner, &[video, FileId::random()]).await.unwrap();
    let plans = bench.goes_by("video_playlist", &["file_metadata_pkey"]).await;
    assert!(plans[0].contains("file_metadata_video_idx"), "{}", plans[0]);
    files::video_delete(bench.conn(), owner, video).await.unwrap();
    bench.goes_by("video_delete", &["file_metadata_pkey", "file_metadata_video_idx"]).await;
    files::thumbnail_delete(bench.conn(), owner, video).await.unwrap();
    bench.goes_by("thumbnail_delete", &["file_metadata_video_idx"]).await;
}
