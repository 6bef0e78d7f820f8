//! Bad input: a typed error that names the field and what is allowed, and nothing is stored.

use std::error::Error as _;
use std::fmt::{Debug, Write};
use std::time::Duration;

use diesel_async::{AsyncConnection, AsyncPgConnection};
use serde_json::{Value, json};
use t2m_db::files::{self, NewThumbnail, NewVideo, Stored, ThumbnailDetails, VideoDetails};
use t2m_db::jobs::{self, Completion, ErrorInfo, Metrics, NewJob, Stage};
use t2m_db::queue::{self, Backoff, BatchSize, Worker};
use t2m_db::types::{Cursor, Document, FileId, JobId, JobStatus, PageSize, Percentage, UserId};
use t2m_db::users::{self, NewUser, UserChanges};
use t2m_db::{Error, Result};
use tokio_postgres::NoTls;
use uuid::Uuid;

use crate::domain_support::{fresh, job, scene, stored, user};

/// What was refused, and how.
#[derive(Default)]
struct Refused(String);

impl Refused {
    fn add<T: Debug>(&mut self, what: &str, result: Result<T>) {
        let error = result.expect_err(what);
        let typed = matches!(
            error,
            Error::Invalid { .. } | Error::NotFound { .. } | Error::Transition { .. } | Error::Row { .. }
        );
        assert!(typed, "{what}: {error:?}");
        let why = error.source().map(|source| format!(": {source}")).unwrap_or_default();
        writeln!(self.0, "{what}: {error}{why}").unwrap();
    }
}

const LEASE: Duration = Duration::from_secs(60);

fn long() -> String {
    "x".repeat(600)
}

/// What an id may be that is not the caller's.
struct Ids {
    owner: UserId,
    job: JobId,
    video: FileId,
}

#[tokio::test]
async fn bad_input_is_refused_by_name_and_changes_nothing() {
    let mut db = fresh().await;
    let (client, connection) = tokio_postgres::connect(&db.url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let conn = &mut db.conn;
    let (owner, other) = (user(conn, "taken").await, user(conn, "other").await);
    let theirs = jobs::create_and_enqueue(conn, other, &job("theirs")).await.unwrap().id;
    let video = files::video_store(conn, other, &scene(1)).await.unwrap().id;
    let queued = jobs::create_and_enqueue(conn, owner, &job("mine")).await.unwrap().id;
    let running = jobs::create_and_enqueue(conn, owner, &job("mine")).await.unwrap().id;
    jobs::start(conn, owner, running).await.unwrap();
    let done = jobs::create_and_enqueue(conn, owner, &job("mine")).await.unwrap().id;
    jobs::cancel(conn, owner, done).await.unwrap();
    let everything = "SELECT md5(string_agg(line, '' ORDER BY line)) FROM (
        SELECT users::text AS line FROM users UNION ALL SELECT jobs::text FROM jobs
        UNION ALL SELECT job_queue::text FROM job_queue UNION ALL SELECT file_metadata::text FROM file_metadata) AS lines";
    let before: String = client.query_one(everything, &[]).await.unwrap().get(0);

    let mut refused = Refused::default();
    of_values(&mut refused);
    of_users(conn, owner, &mut refused).await;
    of_jobs(conn, owner, [queued, running, done], &mut refused).await;
    of_files(conn, owner, &mut refused).await;
    let foreign = Ids { owner, job: theirs, video };
    let unknown = Ids { owner, job: JobId::random(), video: FileId::random() };
    let mut of_others = [Refused::default(), Refused::default()];
    for (ids, refused) in [foreign, unknown].iter().zip(&mut of_others) {
        of_ids(conn, ids, refused).await;
    }
    assert_eq!(of_others[0].0, of_others[1].0, "somebody else's row looks like none");
    refused.0 += &of_others[0].0;
    let after: String = client.query_one(everything, &[]).await.unwrap().get(0);
    assert_eq!(after, before, "nothing was stored");
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("bad_input", refused.0);
    });
}

fn of_values(refused: &mut Refused) {
    for size in [-1, 0, 101] {
        refused.add("page size", PageSize::new(size));
        refused.add("batch size", BatchSize::new(if size == 101 { 1_001 } else { size }));
    }
    refused.add("forged cursor", "bm90IGEgY3Vyc29y".parse::<Cursor>());
    refused.add("long cursor", "A".repeat(1_000_000).parse::<Cursor>());
    refused.add("progress", Percentage::new(-0.5));
    refused.add("progress", Percentage::new(100.5));
    refused.add("worker", Worker::new("", None));
    refused.add("worker", Worker::new(long(), None));
    refused.add("node", Worker::new("w", Some(long())));
}

async fn of_users(conn: &mut AsyncPgConnection, owner: UserId, refused: &mut Refused) {
    let new = || NewUser::new("new");
    for bad in [
        NewUser::new(""),
        NewUser::new(long()),
        NewUser { username: Some(long()), ..new() },
        NewUser { first_name: Some(long()), ..new() },
        NewUser { last_name: Some(long()), ..new() },
        NewUser { primary_email: Some(long()), ..new() },
        NewUser { primary_phone: Some("0".repeat(51)), ..new() },
        NewUser { image_url: Some("a\0".into()), ..new() },
    ] {
        refused.add("sign-in", users::upsert(conn, &bad).await);
    }
    refused.add("second user of a Clerk id", users::create(conn, &NewUser::new("taken")).await);
    refused.add("second user of a Clerk id, in bulk", users::create_many(conn, &[new(), NewUser::new("taken")]).await);
    refused.add("the same Clerk id twice", users::create_many(conn, &[new(), new()]).await);
    let none = UserChanges::default();
    for bad in [
        UserChanges { username: Some(Some(long())), ..none.clone() },
        UserChanges { role: Some(long().into()), ..none.clone() },
        UserChanges { status: Some(long().into()), ..none.clone() },
    ] {
        refused.add("change of a user", users::update(conn, owner, &bad).await);
    }
    let lists = || Some(Document::new(vec![json!({"email_address": "a\0"})]));
    let metadata = |value| Some(Document::from_value(value));
    for bad in [
        UserChanges { email_addresses: lists(), ..none.clone() },
        UserChanges { phone_numbers: lists(), ..none.clone() },
        UserChanges { user_metadata: metadata(json!({"a": {"b": "\0"}})), ..none.clone() },
        UserChanges { user_metadata: metadata(json!({"a\0": 1})), ..none.clone() },
        UserChanges { user_metadata: metadata(json!([1])), ..none.clone() },
    ] {
        refused.add("document of a user", users::update(conn, owner, &bad).await);
    }
    for bad in [NewUser { email_addresses: lists(), ..new() }, NewUser { phone_numbers: lists(), ..new() }] {
        refused.add("document of a new user", users::create(conn, &bad).await);
        refused.add("document of a new user, at sign-in", users::upsert(conn, &bad).await);
        refused.add("document of a new user, in bulk", users::create_many(conn, &[new(), bad]).await);
    }
    refused.add("change of nobody", users::update(conn, UserId::random(), &none).await);
    refused.add("deletion of nobody", users::soft_delete(conn, UserId::random()).await);
    refused.add("statistics of nobody", users::statistics(conn, UserId::random()).await);
}

async fn of_jobs(conn: &mut AsyncPgConnection, owner: UserId, jobs: [JobId; 3], refused: &mut Refused) {
    let [queued, running, finished] = jobs;
    for bad in [
        NewJob { job_type: "dance".into(), ..job("a") },
        NewJob { priority: "soon".into(), ..job("a") },
        NewJob { max_retries: -1, ..job("a") },
        job("\0"),
    ] {
        refused.add("order", jobs::create_and_enqueue(conn, owner, &bad).await);
        refused.add("order, in bulk", jobs::create_and_enqueue_many(conn, owner, &[job("a"), bad]).await);
    }
    let nul = Stage::Name("a\0".into());
    let nowhere = JobStatus::from("a\0");
    refused.add("list", jobs::list_by_status(conn, owner, &nowhere, PageSize::default(), None).await);
    refused.add("age", jobs::cleanup(conn, Duration::MAX).await);
    refused.add("order of nobody", jobs::create_and_enqueue(conn, UserId::random(), &job("a")).await);
    let (half, done, why) = (Percentage::new(50.0).unwrap(), Completion::default(), ErrorInfo::new("x"));
    refused.add("stage", jobs::set_progress(conn, owner, running, &half, &long(), None).await);
    let metrics = |render_seconds| Some(Metrics { render_seconds: Some(render_seconds), ..Metrics::default() });
    for bad in [
        Completion { result_url: Some(long()), ..Completion::default() },
        Completion { metrics: metrics(-1.0), ..Completion::default() },
        Completion { metrics: Some(Metrics { total_bytes: Some(-1), ..Metrics::default() }), ..Completion::default() },
        Completion { metrics: Some(nul_in_metrics()), ..Completion::default() },
        Completion { processing_time: Some(Duration::from_secs(100_000_000)), ..Completion::default() },
    ] {
        refused.add("completion", jobs::complete(conn, owner, running, &bad).await);
    }
    refused.add("stage that is done", jobs::set_progress(conn, owner, running, &half, "a", Some(&nul)).await);
    refused.add("progress of one that waits", jobs::set_progress(conn, owner, queued, &half, "a", None).await);
    refused.add("completion of one that waits", jobs::complete(conn, owner, queued, &done).await);
    refused.add("start of one that runs", jobs::start(conn, owner, running).await);
    for (what, result) in [
        ("start of one that was called off", jobs::start(conn, owner, finished).await),
        ("completion of one that was called off", jobs::complete(conn, owner, finished, &done).await),
        ("failure of one that was called off", jobs::fail(conn, owner, finished, &why).await),
        ("calling off twice", jobs::cancel(conn, owner, finished).await),
    ] {
        refused.add(what, result);
    }
    let worker = Worker::new("w", None).unwrap();
    for lease in [Duration::ZERO, Duration::from_secs(86_401)] {
        refused.add("lease", queue::claim(conn, &worker, BatchSize::ONE, lease).await);
    }
    // Claimed and rolled back: what a worker sends is checked before its lease is.
    let rolled_back: Result<()> = conn
        .transaction(async |conn| {
            let mut lease = queue::claim(conn, &worker, BatchSize::ONE, LEASE).await?.remove(0).lease;
            refused.add("heartbeat", queue::heartbeat(conn, &mut lease, Duration::ZERO).await);
            refused.add("stage of a worker", queue::progress(conn, &mut lease, LEASE, &half, &long(), None).await);
            let done = queue::progress(conn, &mut lease, LEASE, &half, "a", Some(&nul)).await;
            refused.add("stage that is done of a worker", done);
            for bad in [
                Completion { result_url: Some(long()), ..Completion::default() },
                Completion { metrics: Some(nul_in_metrics()), ..Completion::default() },
            ] {
                refused.add("completion of a worker", queue::complete(conn, &lease, &bad).await);
            }
            let endless = Backoff { max: Duration::MAX, ..Backoff::default() };
            refused.add("backoff", queue::fail(conn, &lease, &why, endless).await);
            queue::fail(conn, &lease, &why, Backoff::default()).await?;
            Err(Error::NotFound { entity: "reason to keep this" })
        })
        .await;
    assert!(matches!(rolled_back, Err(Error::NotFound { .. })), "{rolled_back:?}");
}

fn nul_in_metrics() -> Metrics {
    let mut metrics = Metrics::default();
    metrics.extra.insert("gpu".into(), json!({"name": "a\0"}));
    metrics
}

async fn of_files(conn: &mut AsyncPgConnection, owner: UserId, refused: &mut Refused) {
    let wrong: [fn(&mut Stored); 9] = [
        |file| file.original_filename = long(),
        |file| file.stored_filename = long(),
        |file| file.s3_bucket = long(),
        |file| file.s3_key = long(),
        |file| file.s3_version_id = Some(long()),
        |file| file.content_type = long(),
        |file| file.checksum = Some("abc".into()),
        |file| file.file_size = -1,
        |file| file.s3_key = "a\0".into(),
    ];
    for wrong in wrong {
        let mut bad = scene(1);
        wrong(&mut bad.stored);
        refused.add("video", files::video_store(conn, owner, &bad).await);
    }
    let none = VideoDetails::default;
    for details in [
        VideoDetails { duration_seconds: Some(-0.1), ..none() },
        VideoDetails { duration_seconds: Some(f64::NAN), ..none() },
        VideoDetails { frame_rate: Some(-1.0), ..none() },
        VideoDetails { upload_duration_seconds: Some(f64::INFINITY), ..none() },
        VideoDetails { scene_number: Some(-1), ..none() },
        VideoDetails { width: Some(-1), ..none() },
        VideoDetails { height: Some(-1), ..none() },
        VideoDetails { view_count: Some(-1), ..none() },
        VideoDetails { download_count: Some(-1), ..none() },
        VideoDetails { file_hash: Some("a\0".into()), ..none() },
    ] {
        let bad = NewVideo { details, ..scene(1) };
        refused.add("video", files::video_store(conn, owner, &bad).await);
        refused.add("change", files::video_change_details(conn, owner, FileId::random(), &bad.details).await);
    }
    refused.add("tag", files::video_store(conn, owner, &NewVideo { tags: vec![long()], ..scene(1) }).await);
    let nul = NewVideo { details: VideoDetails { file_hash: Some("\0".into()), ..none() }, ..scene(1) };
    refused.add("videos", files::video_store_many(conn, owner, &[scene(1), nul]).await);
    let still = |timestamp_seconds| NewThumbnail {
        video: FileId::random(),
        stored: stored("t", 1),
        details: ThumbnailDetails { timestamp_seconds: Some(timestamp_seconds), ..ThumbnailDetails::default() },
    };
    refused.add("thumbnail", files::thumbnail_store(conn, owner, &still(-1.0)).await);
    refused.add("thumbnails", files::thumbnail_store_many(conn, owner, &[still(1.0), still(-1.0)]).await);
    refused.add("playlist", files::video_playlist(conn, owner, &vec![FileId::random(); 1_001]).await);
    refused.add("jobs", files::video_by_job(conn, owner, &vec![JobId::random(); 1_001]).await);
    let page = users::list_active(conn, PageSize::new(1).unwrap(), None).await.unwrap();
    let size = PageSize::default();
    // Which cursor it was depends on the time.
    for list in [
        files::video_list(conn, owner, size, page.next).await.map(drop),
        jobs::list(conn, owner, size, page.next).await.map(drop),
    ] {
        assert!(matches!(list, Err(Error::Invalid { field: "cursor", .. })), "{list:?}");
    }
}

async fn of_ids(conn: &mut AsyncPgConnection, ids: &Ids, refused: &mut Refused) {
    let Ids { owner, job: id, video } = *ids;
    let (half, done, why) = (Percentage::new(50.0).unwrap(), Completion::default(), ErrorInfo::new("x"));
    refused.add("start", jobs::start(conn, owner, id).await);
    refused.add("progress", jobs::set_progress(conn, owner, id, &half, "a", None).await);
    refused.add("complete", jobs::complete(conn, owner, id, &done).await);
    refused.add("fail", jobs::fail(conn, owner, id, &why).await);
    refused.add("cancel", jobs::cancel(conn, owner, id).await);
    refused.add("delete", jobs::soft_delete(conn, owner, id).await);
    let part = NewJob { parent_job_id: Some(id), ..job("a") };
    refused.add("part", jobs::create_and_enqueue(conn, owner, &part).await);
    refused.add("enqueue", jobs::enqueue(conn, owner, id).await);
    refused.add("part, in bulk", jobs::create_and_enqueue_many(conn, owner, &[job("a"), part]).await);
    let scene = || NewVideo { job: Some(id), ..scene(1) };
    refused.add("scene", files::video_store(conn, owner, &scene()).await);
    refused.add("scenes", files::video_store_many(conn, owner, &[scene()]).await);
    refused.add("view", files::video_count_view(conn, owner, video).await);
    refused.add("download", files::video_count_download(conn, owner, video).await);
    refused.add("touch", files::video_touch(conn, owner, video).await);
    refused.add("change", files::video_change_details(conn, owner, video, &VideoDetails::default()).await);
    refused.add("delete", files::video_delete(conn, owner, video).await);
    let still = NewThumbnail { video, stored: stored("t", 1), details: ThumbnailDetails::default() };
    refused.add("thumbnail", files::thumbnail_store(conn, owner, &still).await);
    refused.add("thumbnails", files::thumbnail_store_many(conn, owner, &[still]).await);
    assert_eq!(jobs::find(conn, owner, id).await.unwrap(), None);
    assert_eq!(jobs::batch(conn, owner, Uuid::nil()).await.unwrap(), []);
    assert_eq!(files::video_find(conn, owner, video).await.unwrap(), None);
    assert_eq!(files::thumbnail_delete(conn, owner, video).await.unwrap(), 0);
}

/// What a renderer says may hold anything, and has to be recorded.
#[tokio::test]
async fn a_failure_is_recorded_whatever_it_says() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let mut why = ErrorInfo { stage: Some("a\0".into()), ..ErrorInfo::new("render\0er") };
    why.extra.insert("output\0".into(), json!(["\0", 1]));
    let wanted = json!({"message": "render\u{FFFD}er", "stage": "a\u{FFFD}", "output\u{FFFD}": ["\u{FFFD}", 1]});
    let worker = Worker::new("w", None).unwrap();
    for by_worker in [true, false] {
        let id = jobs::create_and_enqueue(conn, owner, &job("a")).await.unwrap().id;
        if by_worker {
            let claim = queue::claim(conn, &worker, BatchSize::ONE, LEASE).await.unwrap().remove(0);
            queue::fail(conn, &claim.lease, &why, Backoff::default()).await.unwrap();
            let (_, errors) = queue::entry(conn, owner, id).await.unwrap().unwrap();
            assert_eq!(errors[0].message.as_deref(), Some("render\u{FFFD}er"));
        } else {
            jobs::fail(conn, owner, id, &why).await.unwrap();
        }
        let stored = jobs::find(conn, owner, id).await.unwrap().unwrap();
        let mut stored = serde_json::to_value(stored.error_info).unwrap();
        stored.as_object_mut().unwrap().remove("failed_at").unwrap();
        assert_eq!(stored, wanted);
    }
}

/// A caller's own query on these tables is told as well.
#[tokio::test]
async fn a_document_that_nobody_checked_is_refused_before_it_is_sent() {
    use diesel::ExpressionMethods;
    use diesel_async::RunQueryDsl;
    use t2m_db::schema::users::{table, user_metadata};
    let mut db = fresh().await;
    let bad = Document::<Value>::new(json!({"a": "\0"}));
    let refused = diesel::update(table).set(user_metadata.eq(bad)).execute(&mut db.conn).await;
    let error = Error::from(refused.unwrap_err());
    assert_eq!(error.to_string(), r#"`document` is "\0" at `a`, allowed is text without NUL"#);
}
