//! Jobs: owners, lists, and which state may follow which.

use std::time::Duration;

use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use serde_json::json;
use t2m_db::jobs::{self, Completion, Configuration, ErrorInfo, Job, Metrics, NewJob, Stage};
use t2m_db::types::{JobId, JobStatus, JobType, PageSize, Percentage, Priority, QueueStatus, UserId};
use t2m_db::{Error, queue, schema};
use uuid::Uuid;

use crate::domain_support::{fresh, job, user};

/// A job in the state that its name says.
async fn job_in(conn: &mut AsyncPgConnection, owner: UserId, status: &JobStatus) -> JobId {
    let id = jobs::create_and_enqueue(conn, owner, &job("a")).await.unwrap().id;
    if [JobStatus::Processing, JobStatus::Completed].contains(status) {
        jobs::start(conn, owner, id).await.unwrap();
    }
    match status {
        JobStatus::Completed => drop(jobs::complete(conn, owner, id, &Completion::default()).await.unwrap()),
        JobStatus::Failed => drop(jobs::fail(conn, owner, id, &ErrorInfo::new("x")).await.unwrap()),
        JobStatus::Cancelled => drop(jobs::cancel(conn, owner, id).await.unwrap()),
        _ => {}
    }
    id
}

async fn status(conn: &mut AsyncPgConnection, owner: UserId, id: JobId) -> (JobStatus, QueueStatus) {
    let job = jobs::find(conn, owner, id).await.unwrap().unwrap();
    (job.status, queue::entry(conn, owner, id).await.unwrap().unwrap().0)
}

#[tokio::test]
async fn a_job_goes_from_request_to_result() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let configuration: Configuration =
        serde_json::from_value(json!({"topic": "tides", "voice": {"name": "x"}})).unwrap();
    let new = NewJob { priority: Priority::High, ..NewJob::video(configuration.clone()) };
    let stored = jobs::create_and_enqueue(conn, owner, &new).await.unwrap();
    assert_eq!((stored.id, &stored.status, &stored.priority), (new.id, &JobStatus::Queued, &Priority::High));
    assert_eq!(stored.configuration().unwrap(), &configuration);
    assert_eq!(jobs::find(conn, owner, new.id).await.unwrap(), Some(stored));

    jobs::start(conn, owner, new.id).await.unwrap();
    let half = Percentage::new(50.0).unwrap();
    jobs::set_progress(conn, owner, new.id, &half, "render", Some(&Stage::Name("script".into()))).await.unwrap();
    let further = Percentage::new(75.5).unwrap();
    let job =
        jobs::set_progress(conn, owner, new.id, &further, "upload", Some(&Stage::Name("render".into()))).await.unwrap();
    assert_eq!(job.progress_percentage.to_string(), "75.50");
    assert_eq!(job.current_stage.as_deref(), Some("upload"));
    let stages: Vec<_> = job.stages_completed.get().unwrap().iter().filter_map(Stage::name).collect();
    assert_eq!(stages, ["script", "render"]);

    let result = Completion {
        result_url: Some("https://example.org/v.mp4".into()),
        metrics: Some(Metrics { scenes_rendered: Some(3), ..Metrics::default() }),
        processing_time: Some(Duration::from_millis(1_234)),
    };
    let done = jobs::complete(conn, owner, new.id, &result).await.unwrap();
    let shown = serde_json::to_value(&done).unwrap();
    assert_eq!((&shown["progress_percentage"], &shown["processing_time_seconds"]), (&json!(100.0), &json!(1.23)));
    assert_eq!(done.status, JobStatus::Completed);
    assert_eq!(done.progress_percentage.to_string(), "100.00");
    assert_eq!(done.processing_time_seconds.unwrap().to_string(), "1.23");
    assert_eq!(done.metrics.unwrap().get().unwrap().scenes_rendered, Some(3));
    assert!(done.completed_at >= done.started_at && done.started_at.is_some());
}

#[tokio::test]
async fn a_time_in_a_document_is_read_from_python_and_written_for_it() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let id = job_in(conn, owner, &JobStatus::Queued).await;
    // `datetime.utcnow().isoformat()` has no offset.
    let python =
        format!("UPDATE jobs SET error_info = '{{\"failed_at\": \"2024-05-01T12:00:00.5\"}}' WHERE id = '{id}'");
    conn.batch_execute(&python).await.unwrap();
    let job = jobs::find(conn, owner, id).await.unwrap().unwrap();
    let failed_at = job.error_info.unwrap().get().unwrap().failed_at;
    assert_eq!(failed_at.unwrap().timestamp_millis(), 1_714_564_800_500);
    jobs::fail(conn, owner, id, &ErrorInfo { failed_at, ..ErrorInfo::new("x") }).await.unwrap();
    let stored = schema::jobs::table.find(id).select(schema::jobs::error_info.retrieve_as_text("failed_at"));
    let stored: Option<String> = stored.get_result(conn).await.unwrap();
    assert_eq!(stored.as_deref(), Some("2024-05-01T12:00:00.500000+00:00"), "Python before 3.11 reads no `Z`");
}

#[tokio::test]
async fn every_transition_is_allowed_or_refused_as_the_module_says_and_a_refused_one_changes_nothing() {
    use JobStatus::{Cancelled, Completed, Failed, Processing, Queued};
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let allowed = [
        (Queued, Processing),
        (Queued, Failed),
        (Queued, Cancelled),
        (Processing, Completed),
        (Processing, Failed),
        (Processing, Cancelled),
    ];
    for from in [Queued, Processing, Completed, Failed, Cancelled] {
        for to in [Processing, Completed, Failed, Cancelled] {
            let id = job_in(conn, owner, &from).await;
            let before = status(conn, owner, id).await;
            let moved: Result<Job, Error> = match to {
                Processing => jobs::start(conn, owner, id).await,
                Completed => jobs::complete(conn, owner, id, &Completion::default()).await,
                Failed => jobs::fail(conn, owner, id, &ErrorInfo::new("x")).await,
                _ => jobs::cancel(conn, owner, id).await,
            };
            if allowed.contains(&(from.clone(), to.clone())) {
                assert_eq!(moved.unwrap().status, to);
            } else {
                match moved.unwrap_err() {
                    Error::Transition { entity: "job", from: told, to: wanted } => {
                        assert_eq!((told.as_str(), wanted), (from.as_str(), to.as_str()));
                    }
                    other => panic!("{from} to {to}: {other}"),
                }
                assert_eq!(status(conn, owner, id).await, before, "{from} to {to}");
            }
        }
    }
    let queued = job_in(conn, owner, &Queued).await;
    let early = jobs::set_progress(conn, owner, queued, &Percentage::new(1.0).unwrap(), "a", None).await;
    assert!(matches!(early, Err(Error::Transition { .. })), "{early:?}");
}

#[tokio::test]
async fn a_job_of_somebody_else_looks_like_none() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let (owner, other) = (user(conn, "c1").await, user(conn, "c2").await);
    let id = job_in(conn, owner, &JobStatus::Processing).await;
    let before = jobs::find(conn, owner, id).await.unwrap();
    assert!(jobs::find(conn, other, id).await.unwrap().is_none());
    assert!(queue::entry(conn, other, id).await.unwrap().is_none());
    assert!(jobs::active(conn, other).await.unwrap().is_empty());
    let progress = Percentage::new(1.0).unwrap();
    let refused = [
        jobs::start(conn, other, id).await.map(drop),
        jobs::set_progress(conn, other, id, &progress, "a", None).await.map(drop),
        jobs::complete(conn, other, id, &Completion::default()).await.map(drop),
        jobs::fail(conn, other, id, &ErrorInfo::new("x")).await.map(drop),
        jobs::cancel(conn, other, id).await.map(drop),
        jobs::soft_delete(conn, other, id).await,
    ];
    for result in refused {
        assert!(matches!(result, Err(Error::NotFound { entity: "job" })), "{result:?}");
    }
    assert_eq!(jobs::find(conn, owner, id).await.unwrap(), before);
    let child = NewJob { parent_job_id: Some(id), ..job("child") };
    assert!(matches!(jobs::create_and_enqueue(conn, other, &child).await, Err(Error::NotFound { .. })));
    assert_eq!(jobs::create_and_enqueue(conn, owner, &child).await.unwrap().parent_job_id, Some(id));
    let nobody = jobs::create_and_enqueue(conn, UserId::random(), &job("a")).await;
    assert!(matches!(nobody, Err(Error::NotFound { entity: "user" })));
}

#[tokio::test]
async fn what_does_not_fit_is_refused_by_name() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let bad = [
        ("job.priority", NewJob { priority: "soon".into(), ..job("a") }),
        ("job.job_type", NewJob { job_type: JobType::from("x".repeat(60)), ..job("a") }),
        ("job.max_retries", NewJob { max_retries: -1, ..job("a") }),
    ];
    for (name, new) in bad {
        match jobs::create_and_enqueue(conn, owner, &new).await {
            Err(Error::Invalid { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    let error =
        jobs::create_and_enqueue(conn, owner, &NewJob { priority: "soon".into(), ..job("a") }).await.unwrap_err();
    assert_eq!(error.to_string(), "`job.priority` is \"soon\", allowed is low, normal, high, urgent");
    let id = job_in(conn, owner, &JobStatus::Processing).await;
    let long = Completion { result_url: Some("u".repeat(501)), ..Completion::default() };
    assert!(matches!(
        jobs::complete(conn, owner, id, &long).await,
        Err(Error::Invalid { field: "job.result_url", .. })
    ));
    let percent = Percentage::new(1.0).unwrap();
    let stage = jobs::set_progress(conn, owner, id, &percent, &"s".repeat(101), None).await;
    assert!(matches!(stage, Err(Error::Invalid { field: "job.current_stage", .. })));
    assert_eq!(jobs::list(conn, owner, PageSize::default(), None).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn lists_show_what_they_say_newest_first() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let batch_id = Uuid::new_v4();
    let mut all = Vec::new();
    for number in 0..5 {
        let new = NewJob { batch_id: (number % 2 == 0).then_some(batch_id), ..job("a") };
        all.push(jobs::create_and_enqueue(conn, owner, &new).await.unwrap().id);
    }
    jobs::cancel(conn, owner, all[3]).await.unwrap();
    jobs::soft_delete(conn, owner, all[4]).await.unwrap();
    let ids = |jobs: Vec<Job>| jobs.into_iter().map(|job| job.id).collect::<Vec<_>>();
    assert_eq!(ids(jobs::batch(conn, owner, batch_id).await.unwrap()), [all[0], all[2]]);
    assert_eq!(ids(jobs::active(conn, owner).await.unwrap()), [all[2], all[1], all[0]]);
    let two = PageSize::new(2).unwrap();
    let first = jobs::list(conn, owner, two, None).await.unwrap();
    let second = jobs::list(conn, owner, two, first.next).await.unwrap();
    assert_eq!((ids(first.items), ids(second.items), second.next), (vec![all[3], all[2]], vec![all[1], all[0]], None));
    let queued = jobs::list_by_status(conn, owner, &JobStatus::Queued, two, None).await.unwrap();
    let rest = jobs::list_by_status(conn, owner, &JobStatus::Queued, two, queued.next).await.unwrap();
    assert_eq!((ids(queued.items), ids(rest.items)), (vec![all[2], all[1]], vec![all[0]]));
}

#[tokio::test]
async fn clean_up_takes_what_finished_long_ago_and_nothing_else() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let old_done = job_in(conn, owner, &JobStatus::Completed).await;
    let old_cancelled = job_in(conn, owner, &JobStatus::Cancelled).await;
    let new_done = job_in(conn, owner, &JobStatus::Completed).await;
    let old_running = job_in(conn, owner, &JobStatus::Processing).await;
    // Python may leave completed_at empty: then the last change counts, and the trigger has to be kept from being one.
    let sql = format!(
        "UPDATE jobs SET completed_at = now() - interval '31 days' WHERE id IN ('{old_done}', '{old_running}');
         ALTER TABLE jobs DISABLE TRIGGER USER;
         UPDATE jobs SET completed_at = NULL, updated_at = now() - interval '31 days' WHERE id = '{old_cancelled}';
         ALTER TABLE jobs ENABLE TRIGGER USER"
    );
    conn.batch_execute(&sql).await.unwrap();
    let month = Duration::from_secs(30 * 86_400);
    assert_eq!(jobs::cleanup(conn, month).await.unwrap(), 2);
    assert_eq!(jobs::cleanup(conn, month).await.unwrap(), 0);
    for gone in [old_done, old_cancelled] {
        assert!(jobs::find(conn, owner, gone).await.unwrap().is_none());
    }
    for there in [new_done, old_running] {
        assert!(jobs::find(conn, owner, there).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_row_of_python_is_read_whatever_it_holds() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let id = job_in(conn, owner, &JobStatus::Queued).await;
    // NULL by name where only a default guards; JSON null, as SQLAlchemy stores None; a stage as an object.
    let sql = format!(
        "UPDATE jobs SET priority = NULL, progress_percentage = NULL, configuration = 'null', error_info = 'null',
             stages_completed = '[\"a\", {{\"stage\": \"b\", \"seconds\": 3}}]', metrics = '[]' WHERE id = '{id}';
         UPDATE job_queue SET queue_status = 'paused' WHERE job_id = '{id}'"
    );
    conn.batch_execute(&sql).await.unwrap();
    let job = jobs::find(conn, owner, id).await.unwrap().unwrap();
    assert_eq!(job.priority, Priority::Normal);
    assert_eq!(job.configuration().unwrap(), &Configuration::default());
    assert_eq!(job.error_info.as_ref().unwrap().get().unwrap(), &ErrorInfo::default());
    let stages: Vec<_> = job.stages_completed.get().unwrap().iter().filter_map(Stage::name).collect();
    assert_eq!(stages, ["a", "b"]);
    let broken: Vec<String> = job.broken_documents().iter().map(ToString::to_string).collect();
    assert_eq!(broken.len(), 1);
    assert!(broken[0].contains(&format!("jobs of row {id}")) && broken[0].contains("`metrics`"), "{}", broken[0]);
    let (status, _) = queue::entry(conn, owner, id).await.unwrap().unwrap();
    assert_eq!(status.as_str(), "paused");
}

#[tokio::test]
async fn asking_twice_with_the_same_id_stores_one_job() {
    let mut db = fresh().await;
    let (owner, other) = (user(&mut db.conn, "c1").await, user(&mut db.conn, "c2").await);
    let (new, deleted) = (job("a"), job("b"));
    let twice: Result<(), Error> = db
        .conn
        .transaction(async |conn| {
            let first = jobs::create_and_enqueue(conn, owner, &new).await?;
            assert_eq!(jobs::create_and_enqueue(conn, owner, &new).await?, first);
            jobs::start(conn, owner, new.id).await?;
            let changed = NewJob { configuration: Configuration::default(), ..new.clone() };
            let later = jobs::create_and_enqueue(conn, owner, &changed).await?;
            assert_eq!((later.status, later.configuration), (JobStatus::Processing, first.configuration));
            jobs::create_and_enqueue(conn, owner, &deleted).await?;
            jobs::soft_delete(conn, owner, deleted.id).await?;
            // An id that is somebody else's, or gone, is told, and the transaction goes on.
            for (who, taken) in [(other, &new), (owner, &deleted)] {
                let error = jobs::create_and_enqueue(conn, who, taken).await.unwrap_err();
                assert!(matches!(error, Error::Invalid { field: "job.id", .. }), "{error}");
            }
            Ok(())
        })
        .await;
    twice.unwrap();
    let entries = schema::job_queue::table.count().get_result::<i64>(&mut db.conn).await.unwrap();
    let all = jobs::list(&mut db.conn, owner, PageSize::default(), None).await.unwrap().items.len();
    assert_eq!((entries, all), (2, 1));
}
