//! Videos and thumbnails: owners, pages, counters, documents.

use diesel_async::{AsyncConnection, SimpleAsyncConnection};
use serde_json::json;
use t2m_db::files::{self, NewThumbnail, NewVideo, Stored, ThumbnailDetails, VideoDetails};
use t2m_db::types::{FileId, JobId, PageSize, UserId};
use t2m_db::{Error, jobs};

use crate::domain_support::{fresh, job, scene, stored, user};

fn still(video: FileId, seconds: f64) -> NewThumbnail {
    let details = ThumbnailDetails { timestamp_seconds: Some(seconds), ..ThumbnailDetails::default() };
    NewThumbnail { video, stored: stored("t.png", 10), details }
}

#[tokio::test]
async fn a_stored_video_is_found_by_its_owner_only() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let (owner, other) = (user(conn, "c1").await, user(conn, "c2").await);
    let work = jobs::create_and_enqueue(conn, owner, &job("a")).await.unwrap();
    let new = NewVideo { job: Some(work.id), tags: vec!["a".into()], description: Some("d".into()), ..scene(1) };
    let video = files::video_store(conn, owner, &new).await.unwrap();
    assert_eq!(video.details().unwrap(), &new.details);
    assert_eq!(video.tags.get().unwrap(), &new.tags);
    assert_eq!(files::video_find(conn, owner, video.id).await.unwrap().as_ref(), Some(&video));

    files::thumbnail_store(conn, owner, &still(video.id, 0.5)).await.unwrap();
    assert!(files::video_find(conn, other, video.id).await.unwrap().is_none());
    assert!(files::video_analytics(conn, other, video.id).await.unwrap().is_none());
    assert!(files::thumbnail_list(conn, other, video.id).await.unwrap().is_empty());
    assert!(files::video_by_job(conn, other, &[work.id]).await.unwrap().is_empty());
    assert_eq!(files::video_playlist(conn, other, &[video.id]).await.unwrap().missing, [video.id]);
    assert_eq!(files::thumbnail_delete(conn, other, video.id).await.unwrap(), 0);
    let foreign_job = files::video_store(conn, other, &new).await;
    let refused = [
        foreign_job.map(drop),
        files::video_count_view(conn, other, video.id).await.map(drop),
        files::video_count_download(conn, other, video.id).await.map(drop),
        files::video_touch(conn, other, video.id).await,
        files::video_change_details(conn, other, video.id, &VideoDetails::default()).await.map(drop),
        files::video_delete(conn, other, video.id).await.map(drop),
        files::thumbnail_store(conn, other, &still(video.id, 1.0)).await.map(drop),
    ];
    for result in refused {
        assert!(matches!(result, Err(Error::NotFound { .. })), "{result:?}");
    }
    // The answer for a row of somebody else is the answer for no row at all.
    let foreign = files::video_delete(conn, other, video.id).await.unwrap_err().to_string();
    assert_eq!(foreign, files::video_delete(conn, other, FileId::random()).await.unwrap_err().to_string());
    assert_eq!(files::video_find(conn, owner, video.id).await.unwrap().as_ref(), Some(&video));
    assert_eq!(files::thumbnail_list(conn, owner, video.id).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_by_name_and_nothing_is_stored() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let good = scene(1);
    let with = |change: fn(&mut Stored)| {
        let mut video = good.clone();
        change(&mut video.stored);
        video
    };
    let details = |details| NewVideo { details, ..good.clone() };
    let bad = [
        ("file.file_size", with(|stored| stored.file_size = -1)),
        ("file.original_filename", with(|stored| stored.original_filename = "é".repeat(256))),
        ("file.s3_key", with(|stored| stored.s3_key = "k".repeat(501))),
        ("file.content_type", with(|stored| stored.content_type = "k".repeat(101))),
        ("file.checksum", with(|stored| stored.checksum = Some("abc".into()))),
        ("file.s3_bucket", with(|stored| stored.s3_bucket = "a\0".into())),
        ("video.duration_seconds", details(VideoDetails { duration_seconds: Some(-0.1), ..VideoDetails::default() })),
        (
            "video.duration_seconds",
            details(VideoDetails { duration_seconds: Some(f64::NAN), ..VideoDetails::default() }),
        ),
        ("video.width", details(VideoDetails { width: Some(-1), ..VideoDetails::default() })),
    ];
    for (name, video) in bad {
        match files::video_store(conn, owner, &video).await {
            Err(Error::Invalid { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    let nobody = files::video_store(conn, UserId::random(), &good).await;
    assert!(matches!(nobody, Err(Error::NotFound { entity: "user" })));
    let no_job = files::video_store(conn, owner, &NewVideo { job: Some(JobId::random()), ..good }).await;
    assert!(matches!(no_job, Err(Error::NotFound { entity: "user or job" })));
    assert!(files::video_list(conn, owner, PageSize::default(), None).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn videos_are_paged_newest_first_while_others_come_and_go() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let (owner, other) = (user(conn, "c1").await, user(conn, "c2").await);
    let mut expected = Vec::new();
    for number in 0..9 {
        expected.insert(0, files::video_store(conn, owner, &scene(number)).await.unwrap().id);
        files::video_store(conn, other, &scene(number)).await.unwrap();
    }
    files::thumbnail_store(conn, owner, &still(expected[0], 0.0)).await.unwrap();
    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let page = files::video_list(conn, owner, PageSize::new(4).unwrap(), cursor).await.unwrap();
        seen.extend(page.items.iter().map(|video| video.id));
        if cursor.is_none() {
            // Neither of these may move what the next page shows.
            files::video_store(conn, owner, &scene(100)).await.unwrap();
            files::video_delete(conn, owner, expected[0]).await.unwrap();
        }
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_video_is_deleted_with_its_thumbnails_and_only_with_them() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let one = files::video_store(conn, owner, &scene(1)).await.unwrap().id;
    let two = files::video_store(conn, owner, &scene(2)).await.unwrap().id;
    let stills = [still(one, 2.0), still(one, 1.0), still(two, 0.5)];
    let stored = files::thumbnail_store_many(conn, owner, &stills).await.unwrap();
    assert_eq!(files::thumbnail_list(conn, owner, two).await.unwrap()[0].id, stored[2]);
    let times = |list: Vec<files::Thumbnail>| {
        list.iter().map(|still| still.details().unwrap().timestamp_seconds.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(times(files::thumbnail_list(conn, owner, one).await.unwrap()), [1.0, 2.0]);
    // A thumbnail is no video.
    assert!(matches!(files::video_delete(conn, owner, stored[0]).await, Err(Error::NotFound { entity: "video" })));
    assert_eq!(files::video_delete(conn, owner, one).await.unwrap(), 2);
    assert!(files::thumbnail_list(conn, owner, one).await.unwrap().is_empty());
    assert!(matches!(files::video_delete(conn, owner, one).await, Err(Error::NotFound { entity: "video" })));
    assert!(matches!(files::thumbnail_store(conn, owner, &still(one, 0.0)).await, Err(Error::NotFound { .. })));
    assert_eq!(times(files::thumbnail_list(conn, owner, two).await.unwrap()), [0.5]);
    assert_eq!(files::thumbnail_delete(conn, owner, two).await.unwrap(), 1);
    assert!(files::video_find(conn, owner, two).await.unwrap().is_some());
}

#[tokio::test]
async fn concurrent_views_are_all_counted_and_unknown_keys_survive() {
    let mut db = fresh().await;
    let owner = user(&mut db.conn, "c1").await;
    let details: VideoDetails =
        serde_json::from_value(json!({"scene_number": 1, "codec": "av1", "nested": {"kept": [1, 2]}})).unwrap();
    let new = NewVideo { details, ..scene(1) };
    let id = files::video_store(&mut db.conn, owner, &new).await.unwrap().id;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let mut conn = db.another().await;
        tasks.push(tokio::spawn(async move {
            for _ in 0..10 {
                files::video_count_view(&mut conn, owner, id).await.unwrap();
                files::video_count_download(&mut conn, owner, id).await.unwrap();
            }
        }));
    }
    let widen = VideoDetails { width: Some(1920), ..VideoDetails::default() };
    files::video_change_details(&mut db.conn, owner, id, &widen).await.unwrap();
    for task in tasks {
        task.await.unwrap();
    }
    let analytics = files::video_analytics(&mut db.conn, owner, id).await.unwrap().unwrap();
    assert_eq!((analytics.view_count, analytics.download_count), (80, 80));
    let video = files::video_find(&mut db.conn, owner, id).await.unwrap().unwrap();
    let details = video.details().unwrap();
    assert_eq!(details.width, Some(1920));
    assert_eq!(details.extra["codec"], "av1");
    assert_eq!(details.extra["nested"], json!({"kept": [1, 2]}));
    // The column and the document tell the same time, to the microsecond.
    assert_eq!(details.last_accessed, video.last_accessed_at);
}

/// What a service does that lets a user edit a video: read, change a field, send it back; meanwhile others watch.
#[tokio::test]
async fn details_that_were_read_and_sent_back_overwrite_no_count() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let id = files::video_store(conn, owner, &scene(1)).await.unwrap().id;
    let read = files::video_count_view(conn, owner, id).await.unwrap();
    let mut details = read.details().unwrap().clone();
    files::video_count_view(conn, owner, id).await.unwrap();
    let counted = files::video_count_download(conn, owner, id).await.unwrap();
    details.width = Some(1920);
    details.extra.insert("codec".into(), json!("av1"));
    // By hand they come no further than by name.
    details.extra.insert("download_count".into(), json!(9));
    let changed = files::video_change_details(conn, owner, id, &details).await.unwrap();
    let (changed, counted) = (changed.details().unwrap(), counted.details().unwrap());
    assert_eq!((changed.view_count, changed.download_count), (Some(2), Some(1)));
    assert_eq!(changed.last_accessed, counted.last_accessed);
    assert_eq!((changed.width, &changed.extra["codec"]), (Some(1920), &json!("av1")));
}

#[tokio::test]
async fn a_broken_document_is_reported_and_the_rest_of_the_list_delivered() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let mut ids = Vec::new();
    for number in 0..3 {
        ids.push(files::video_store(conn, owner, &scene(number)).await.unwrap().id);
    }
    let sql = format!(
        "UPDATE file_metadata SET file_metadata = '{{\"duration_seconds\": \"long\", \"view_count\": 4}}' WHERE id = '{}'",
        ids[1]
    );
    conn.batch_execute(&sql).await.unwrap();
    let page = files::video_list(conn, owner, PageSize::default(), None).await.unwrap();
    assert_eq!(page.items.len(), 3);
    let errors: Vec<Error> = page.items.iter().flat_map(files::Video::broken_documents).collect();
    match &errors[..] {
        [Error::BrokenDocument { table: "file_metadata", id, path, .. }] => {
            assert_eq!((*id, path.as_str()), (ids[1].as_uuid(), "file_metadata.duration_seconds"));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(files::video_analytics(conn, owner, ids[1]).await, Err(Error::BrokenDocument { .. })));
    // Counting does not make it worse.
    let counted = files::video_count_view(conn, owner, ids[1]).await.unwrap();
    let raw = serde_json::to_value(&counted.file_metadata).unwrap();
    assert_eq!((&raw["duration_seconds"], &raw["view_count"]), (&json!("long"), &json!(5)));
    // JSON's null is what SQLAlchemy stores for None; an array is nothing that could be counted in.
    conn.batch_execute(&format!("UPDATE file_metadata SET file_metadata = 'null' WHERE id = '{}'", ids[0]))
        .await
        .unwrap();
    assert_eq!(files::video_count_view(conn, owner, ids[0]).await.unwrap().details().unwrap().view_count, Some(1));
    conn.batch_execute(&format!("UPDATE file_metadata SET file_metadata = '[1]' WHERE id = '{}'", ids[2]))
        .await
        .unwrap();
    assert!(matches!(files::video_count_view(conn, owner, ids[2]).await, Err(Error::BrokenDocument { .. })));
    let wide = VideoDetails { width: Some(1920), ..VideoDetails::default() };
    let changed = files::video_change_details(conn, owner, ids[2], &wide).await;
    assert!(matches!(changed, Err(Error::BrokenDocument { .. })), "{changed:?}");
    conn.batch_execute(&format!("UPDATE file_metadata SET file_metadata = 'null' WHERE id = '{}'", ids[0]))
        .await
        .unwrap();
    let changed = files::video_change_details(conn, owner, ids[0], &wide).await.unwrap();
    assert_eq!(changed.details().unwrap(), &wide);
    let kept = files::video_find(conn, owner, ids[2]).await.unwrap().unwrap();
    assert_eq!(serde_json::to_value(&kept.file_metadata).unwrap(), json!([1]));
}

#[tokio::test]
async fn a_playlist_keeps_the_order_asked_for_and_names_what_is_missing() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let (owner, other) = (user(conn, "c1").await, user(conn, "c2").await);
    let work = jobs::create_and_enqueue(conn, owner, &job("a")).await.unwrap().id;
    let mut ids = Vec::new();
    for number in [3, 1, 2] {
        ids.push(files::video_store(conn, owner, &NewVideo { job: Some(work), ..scene(number) }).await.unwrap().id);
    }
    let foreign = files::video_store(conn, other, &scene(9)).await.unwrap().id;
    files::thumbnail_store_many(conn, owner, &[still(ids[0], 2.0), still(ids[0], 1.0)]).await.unwrap();
    let asked = [ids[2], foreign, ids[0], ids[2]];
    let playlist = files::video_playlist(conn, owner, &asked).await.unwrap();
    assert_eq!(playlist.entries.iter().map(|entry| entry.video.id).collect::<Vec<_>>(), [ids[2], ids[0], ids[2]]);
    assert_eq!(playlist.missing, [foreign]);
    assert!((playlist.duration_seconds - 7.5).abs() < 1e-9);
    let times: Vec<_> =
        playlist.entries[1].thumbnails.iter().map(|still| still.details().unwrap().timestamp_seconds).collect();
    assert_eq!(times, [Some(1.0), Some(2.0)]);
    let by_job = files::video_by_job(conn, owner, &[work, JobId::random()]).await.unwrap();
    assert_eq!(by_job.len(), 1);
    assert_eq!(by_job[&work].iter().map(|video| video.id).collect::<Vec<_>>(), [ids[1], ids[2], ids[0]]);
}

#[tokio::test]
async fn a_thumbnail_with_a_broken_document_stays_with_its_video_and_is_reported() {
    let mut db = fresh().await;
    let conn = &mut db.conn;
    let owner = user(conn, "c1").await;
    let video = files::video_store(conn, owner, &scene(1)).await.unwrap().id;
    let stills = [still(video, 3.0), still(video, 1.0), still(video, 2.0)];
    let stored = files::thumbnail_store_many(conn, owner, &stills).await.unwrap();
    let sql = format!(
        "UPDATE file_metadata SET file_metadata = file_metadata || '{{\"width\": \"wide\"}}' WHERE id = '{}'",
        stored[2]
    );
    conn.batch_execute(&sql).await.unwrap();
    let mut playlist = files::video_playlist(conn, owner, &[video]).await.unwrap();
    let thumbnails = playlist.entries.remove(0).thumbnails;
    assert_eq!(thumbnails.iter().map(|still| still.id).collect::<Vec<_>>(), [stored[1], stored[2], stored[0]]);
    let errors: Vec<Error> = thumbnails.iter().flat_map(files::Thumbnail::broken_documents).collect();
    match &errors[..] {
        [Error::BrokenDocument { table: "file_metadata", id, path, .. }] => {
            assert_eq!((*id, path.as_str()), (stored[2].as_uuid(), "file_metadata.width"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(files::thumbnail_list(conn, owner, video).await.unwrap(), thumbnails);
}

#[tokio::test]
async fn the_main_job_fits_into_one_transaction() {
    let mut db = fresh().await;
    let owner = user(&mut db.conn, "c1").await;
    let failed: Result<(), Error> = db
        .conn
        .transaction(async |conn| {
            let video = files::video_store(conn, owner, &scene(1)).await?;
            files::thumbnail_store(conn, owner, &still(video.id, 0.0)).await?;
            files::video_delete(conn, owner, FileId::random()).await?;
            Ok(())
        })
        .await;
    assert!(matches!(failed, Err(Error::NotFound { entity: "video" })));
    assert!(files::video_list(&mut db.conn, owner, PageSize::default(), None).await.unwrap().items.is_empty());
}
