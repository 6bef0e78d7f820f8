//! Python and Rust beside each other on one database, as they are while T2M moves over: each reads and changes what the
//! other wrote. Ends with an error at the first thing that is not as it should be.
//!
//! ```sh
//! cargo run --example beside_python -- PYTHON .ci/python/beside.py
//! ```
//!
//! `PYTHON` needs SQLAlchemy and asyncpg; `.ci/run python` makes one.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::process::Command;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use t2m_db::files::{self, NewThumbnail, NewVideo, Stored, ThumbnailDetails, VideoDetails};
use t2m_db::jobs::{self, Completion, Configuration, ErrorInfo, Metrics, NewJob, Stage};
use t2m_db::queue::{self, Backoff, BatchSize, Worker};
use t2m_db::testing::{Server, TestDatabase};
use t2m_db::types::{JobId, JobStatus, JobType, PageSize, Percentage, Priority};
use t2m_db::users::{self, NewUser, User};
use t2m_db::{Config, Database, Error};
use uuid::Uuid;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Where Python runs: not at UTC, where a naive time is right by accident. In this form it needs no list of zones.
const TIME_ZONE: &str = "NPT-5:45";
const LEASE: Duration = Duration::from_secs(60);

// The same in .ci/python/beside.py.
const THEN: &str = "2026-01-02T03:04:05.678901Z";
const JOB: Uuid = Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_00b0);
const WAITING: Uuid = Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_00b1);
const VIDEO: Uuid = Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_00b2);

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let words: Vec<_> = env::args_os().skip(1).collect();
    let [python, script] = words.as_slice() else { return Err("usage: beside_python PYTHON SCRIPT".into()) };
    let database = Server::shared().await?.empty_database().await?;
    let db = Database::connect(Config::from_url(&database.url())?).await?;
    db.migrate().await?;

    run(python, script, "write", &database)?;
    let ada = read(&db).await?;
    write(&db, &ada).await?;
    run(python, script, "answer", &database)?;
    read_again(&db, &ada).await?;
    println!("Python and Rust read what the other wrote");
    Ok(())
}

fn run(python: &OsString, script: &OsString, what: &str, database: &TestDatabase) -> Result<(), Failure> {
    let mut command = Command::new(python);
    let status = command.arg(script).arg(what).env("DATABASE_URL", database.url()).env("TZ", TIME_ZONE).status()?;
    if status.success() { Ok(()) } else { Err(format!("Python has failed to {what}: {status}").into()) }
}

/// What Python wrote, a row of every table.
async fn read(db: &Database) -> Result<User, Failure> {
    let then = Some(DateTime::parse_from_rfc3339(THEN)?.to_utc());
    let read = db.with_connection(async |conn| {
        let user = users::find_by_clerk_id(conn, "python").await?.ok_or(Error::NotFound { entity: "user" })?;
        let job = jobs::find(conn, user.id, JOB.into()).await?.ok_or(Error::NotFound { entity: "job" })?;
        let all = jobs::list(conn, user.id, PageSize::default(), None).await?.items;
        let videos = files::video_list(conn, user.id, PageSize::default(), None).await?.items;
        let stills = files::thumbnail_list(conn, user.id, VIDEO.into()).await?;
        Ok::<_, Error>((user, job, all, videos, stills))
    });
    let (user, job, all, videos, stills) = read.await?;

    assert_eq!((user.username.as_deref(), user.role.as_str(), user.status.as_str()), (Some("Ada"), "admin", "active"));
    assert_eq!(user.last_sign_in_at, then);
    assert_eq!(json!(user.email_addresses), json!([{"email": "ada@example.org"}]));
    assert_eq!(json!(user.user_metadata), json!({"plan": "pro"}));
    is_now(user.created_at);

    let wanted = job.configuration()?;
    assert_eq!((wanted.topic.as_deref(), wanted.scene_count), (Some("Bees"), Some(2)));
    assert_eq!(wanted.extra["style"], json!({"voice": "calm"}));
    assert_eq!((&job.status, &job.priority, job.started_at), (&JobStatus::Processing, &Priority::Urgent, then));
    assert_eq!(job.progress_percentage.to_string(), "45.50");
    assert_eq!(job.processing_time_seconds.as_ref().map(ToString::to_string).as_deref(), Some("1.25"));
    let stages = job.stages_completed.get().map_err(|broken| format!("{broken:?}"))?;
    assert_eq!(stages[0], Stage::Name("script".into()));
    assert!(matches!(&stages[1], Stage::Detail(images) if images.completed_at == then), "{stages:?}");
    let told = job.error_info.as_ref().and_then(|told| told.get().ok()).ok_or("no error_info")?;
    assert_eq!((told.failed_at, &told.extra["attempt"]), (then, &json!(1)));
    let metrics = job.metrics.as_ref().and_then(|metrics| metrics.get().ok()).ok_or("no metrics")?;
    assert_eq!((metrics.render_seconds, &metrics.extra["gpu"]), (Some(2.5), &json!("a")));

    assert!(all.iter().all(|job| job.broken_documents().is_empty()));
    let of = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    let all_of = |text: fn(&jobs::Job) -> &str| of(all.iter().map(text).collect());
    assert_eq!(all_of(|job| job.status.as_str()), of(JobStatus::LISTED.iter().map(JobStatus::as_str).collect()));
    assert_eq!(all_of(|job| job.priority.as_str()), of(Priority::LISTED.iter().map(Priority::as_str).collect()));
    assert_eq!(all_of(|job| job.job_type.as_str()), of(JobType::LISTED.iter().map(JobType::as_str).collect()));

    let [video] = videos.as_slice() else { return Err(format!("{} videos", videos.len()).into()) };
    let details = video.details()?;
    assert_eq!((video.id.as_uuid(), video.file_size, json!(video.tags)), (VIDEO, 4_000_000_000, json!(["bees"])));
    assert_eq!((details.duration_seconds, details.view_count, details.last_accessed), (Some(7.5), Some(3), then));
    let [still] = stills.as_slice() else { return Err(format!("{} thumbnails", stills.len()).into()) };
    assert_eq!((still.job_id, still.details()?.timestamp_seconds), (Some(JOB.into()), Some(2.5)));
    Ok(user)
}

/// Works on what Python left, and writes rows of our own.
async fn write(db: &Database, ada: &User) -> Result<(), Failure> {
    let worker = Worker::new("rust-1", None)?;
    let (whole, failing) = (new_job("made by Rust"), new_job("broken by Rust"));
    db.with_transaction(async |tx| {
        files::video_count_view(tx, ada.id, VIDEO.into()).await?;
        // Of Python's two entries the one that waits, and not the one that its worker is at.
        let claims = queue::claim(tx, &worker, BatchSize::new(9)?, LEASE).await?;
        assert_eq!(claims.iter().map(|claim| claim.lease.job().as_uuid()).collect::<Vec<_>>(), [WAITING]);
        queue::release(tx, &claims[0].lease).await?;

        let user = users::upsert(tx, &NewUser::new("rust")).await?;
        jobs::create_and_enqueue_many(tx, user.id, &[whole.clone(), failing.clone()]).await?;
        let video = NewVideo {
            job: Some(whole.id),
            stored: stored("scene.mp4", "video/mp4"),
            details: VideoDetails { scene_number: Some(1), duration_seconds: Some(7.5), ..VideoDetails::default() },
            ..NewVideo::default()
        };
        let video = files::video_store(tx, user.id, &video).await?.id;
        let details = ThumbnailDetails::default();
        let still = NewThumbnail { video, stored: stored("still.jpg", "image/jpeg"), details };
        files::thumbnail_store(tx, user.id, &still).await.map(drop)
    })
    .await?;
    db.with_transaction(async |tx| {
        for claim in queue::claim(tx, &worker, BatchSize::new(2)?, LEASE).await? {
            let mut lease = claim.lease;
            if lease.job() == failing.id {
                queue::fail(tx, &lease, &ErrorInfo::new("no voice"), Backoff::default()).await?;
                continue;
            }
            assert_eq!(lease.job(), whole.id, "the pressing ones first, whoever wrote them");
            let done = Stage::Name("script".into());
            queue::progress(tx, &mut lease, LEASE, &Percentage::new(50.0)?, "render", Some(&done)).await?;
            let completion = Completion {
                metrics: Some(Metrics { scenes_rendered: Some(1), ..Metrics::default() }),
                processing_time: Some(Duration::from_millis(1_500)),
                ..Completion::default()
            };
            queue::complete(tx, &lease, &completion).await?;
        }
        Ok::<_, Error>(())
    })
    .await?;
    Ok(())
}

/// What Python changed of either's rows.
async fn read_again(db: &Database, before: &User) -> Result<(), Failure> {
    let read = db.with_connection(async |conn| {
        let ada = users::find(conn, before.id).await?.ok_or(Error::NotFound { entity: "user" })?;
        let video = files::video_find(conn, ada.id, VIDEO.into()).await?.ok_or(Error::NotFound { entity: "video" })?;
        let rust = users::find_by_clerk_id(conn, "rust").await?.ok_or(Error::NotFound { entity: "user" })?;
        let archived = jobs::list_by_status(conn, rust.id, &JobStatus::Archived, PageSize::default(), None).await?;
        Ok::<_, Error>((ada, video, archived.items))
    });
    let (ada, video, archived) = read.await?;
    assert_eq!(ada.username.as_deref(), Some("Ada L."));
    assert!(ada.updated_at > before.updated_at, "the trigger's, since Python does not set it");
    is_now(ada.updated_at);
    let details = video.details()?;
    assert_eq!((details.view_count, details.file_hash.as_deref()), (Some(4), Some("f")));
    assert_eq!(details.extra["mood"], json!("dark"));
    let [made] = archived.as_slice() else { return Err(format!("{} archived jobs", archived.len()).into()) };
    assert_eq!(made.result_url.as_deref(), Some("https://example.org/python"));

    // A worker of Python's holds no lease, so nobody takes its job over; it comes back when somebody says that it died.
    let worker = Worker::new("rust-2", None)?;
    db.with_transaction(async |tx| {
        assert!(queue::claim(tx, &worker, BatchSize::ONE, LEASE).await?.is_empty());
        assert_eq!(queue::put_back_worker(tx, &Worker::new("python-2", None)?).await?.queued, 1);
        let claims = queue::claim(tx, &worker, BatchSize::new(9)?, LEASE).await?;
        assert_eq!(claims.iter().map(|claim| claim.lease.job()).collect::<Vec<JobId>>(), [WAITING.into()]);
        Ok::<_, Error>(())
    })
    .await?;
    Ok(())
}

fn new_job(topic: &str) -> NewJob {
    let wanted = Configuration { topic: Some(topic.to_owned()), ..Configuration::default() };
    NewJob { priority: Priority::High, max_retries: 0, ..NewJob::video(wanted) }
}

fn stored(name: &str, content_type: &str) -> Stored {
    Stored {
        original_filename: name.to_owned(),
        stored_filename: name.to_owned(),
        s3_bucket: "b".to_owned(),
        s3_key: format!("rust/{name}"),
        file_size: 1,
        content_type: content_type.to_owned(),
        ..Stored::default()
    }
}

/// What was written just now; a wrong time zone is hours away.
fn is_now(then: DateTime<Utc>) {
    assert!((Utc::now() - then).abs() < chrono::Duration::minutes(5), "{then}");
}
