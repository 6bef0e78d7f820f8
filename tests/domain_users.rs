//! Users: sign-in, changes, deletion, statistics.

use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use serde_json::{Value, json};
use t2m_db::schema;
use t2m_db::types::{Cursor, Document, FileType, JobStatus, PageSize, UserId, UserStatus};
use t2m_db::users::{self, NewUser, UserChanges};
use t2m_db::{Error, files, jobs};

use crate::domain_support::{fresh, job, scene, somebody_waits, user};

#[tokio::test]
async fn a_second_sign_in_updates_what_clerk_says_and_keeps_what_it_does_not() {
    let mut db = fresh().await;
    let first = NewUser {
        username: Some("ada".into()),
        primary_email: Some("ada@example.org".into()),
        ..NewUser::new("clerk_1")
    };
    let stored = users::upsert(&mut db.conn, &first).await.unwrap();
    assert_eq!(stored.status, UserStatus::Active);
    let again = NewUser { username: Some("ada l".into()), ..NewUser::new("clerk_1") };
    let updated = users::upsert(&mut db.conn, &again).await.unwrap();
    assert_eq!(updated.id, stored.id);
    assert_eq!(updated.username.as_deref(), Some("ada l"));
    assert_eq!(updated.primary_email.as_deref(), Some("ada@example.org"));
    assert!(updated.last_sign_in_at > stored.last_sign_in_at);
    for found in [
        users::find(&mut db.conn, stored.id).await.unwrap(),
        users::find_by_clerk_id(&mut db.conn, "clerk_1").await.unwrap(),
        users::find_by_email(&mut db.conn, "ada@example.org").await.unwrap(),
    ] {
        assert_eq!(found.as_ref(), Some(&updated));
    }
}

#[tokio::test]
async fn a_taken_clerk_id_is_named_and_does_not_abort_the_transaction() {
    let mut db = fresh().await;
    db.conn
        .transaction(async |conn| {
            users::create(conn, &NewUser::new("clerk_1")).await?;
            let error = users::create(conn, &NewUser::new("clerk_1")).await.unwrap_err();
            assert!(matches!(error, Error::Invalid { field: "user.clerk_user_id", .. }), "{error}");
            users::create(conn, &NewUser::new("clerk_2")).await
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn what_does_not_fit_is_refused_by_name_before_it_is_sent() {
    let mut db = fresh().await;
    let id = user(&mut db.conn, "clerk_1").await;
    let long = || Some("x".repeat(256));
    let error = users::upsert(&mut db.conn, &NewUser { username: long(), ..NewUser::new("c") }).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("`user.username` is \"{}\"... of 256 characters, allowed is at most 255 characters", "x".repeat(40))
    );
    let changes = UserChanges { primary_phone: Some(long()), ..UserChanges::default() };
    let error = users::update(&mut db.conn, id, &changes).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { field: "user.primary_phone", .. }), "{error}");
    assert!(users::find_by_clerk_id(&mut db.conn, "c\0d").await.unwrap_err().to_string().contains("NUL"));
    assert!(users::find_by_clerk_id(&mut db.conn, "c").await.unwrap().is_none());
}

#[tokio::test]
async fn a_change_changes_what_it_names_and_nothing_else() {
    let mut db = fresh().await;
    let before =
        users::upsert(&mut db.conn, &NewUser { first_name: Some("A".into()), ..NewUser::new("c") }).await.unwrap();
    let changes = UserChanges { first_name: Some(None), status: Some("paused".into()), ..UserChanges::default() };
    let after = users::update(&mut db.conn, before.id, &changes).await.unwrap();
    assert_eq!(after.first_name, None);
    assert_eq!(after.status.as_str(), "paused");
    assert!(after.updated_at > before.updated_at);
    let same = users::update(&mut db.conn, before.id, &UserChanges::default()).await.unwrap();
    assert_eq!(same.status.as_str(), "paused");
    let nobody = users::update(&mut db.conn, UserId::random(), &changes).await;
    assert!(matches!(nobody, Err(Error::NotFound { entity: "user" })));
}

#[tokio::test]
async fn metadata_is_merged_with_what_python_wrote_meanwhile() {
    let mut db = fresh().await;
    let id = user(&mut db.conn, "c").await;
    let metadata =
        |value: Value| UserChanges { user_metadata: Some(Document::from_value(value)), ..UserChanges::default() };
    users::update(&mut db.conn, id, &metadata(json!({"plan": "free", "theme": "dark"}))).await.unwrap();
    db.conn.batch_execute("UPDATE users SET user_metadata = user_metadata || '{\"beta\": true}'").await.unwrap();
    let after = users::update(&mut db.conn, id, &metadata(json!({"plan": "pro"}))).await.unwrap();
    let wanted = json!({"plan": "pro", "theme": "dark", "beta": true});
    assert_eq!(serde_json::to_value(&after.user_metadata).unwrap(), wanted);
    let same = users::update(&mut db.conn, id, &UserChanges::default()).await.unwrap();
    assert_eq!(same.user_metadata, after.user_metadata);
    // JSON's null is what SQLAlchemy stores for None.
    db.conn.batch_execute("UPDATE users SET user_metadata = 'null'").await.unwrap();
    let after = users::update(&mut db.conn, id, &metadata(json!({"plan": "pro"}))).await.unwrap();
    assert_eq!(serde_json::to_value(&after.user_metadata).unwrap(), json!({"plan": "pro"}));
}

#[tokio::test]
async fn what_is_ordered_while_its_owner_is_deleted_is_refused_or_goes_too() {
    let mut db = fresh().await;
    let (mut other, mut observer) = (db.another().await, db.another().await);
    let order = async |conn: &mut AsyncPgConnection, owner, many| {
        if many {
            jobs::create_and_enqueue_many(conn, owner, &[job("a"), job("b")]).await
        } else {
            jobs::create_and_enqueue(conn, owner, &job("a")).await.map(drop)
        }
    };
    for many in [false, true] {
        // The deletion comes first: the order waits for its end and is refused.
        let owner = user(&mut db.conn, "c1").await;
        db.conn.batch_execute("BEGIN").await.unwrap();
        users::soft_delete(&mut db.conn, owner).await.unwrap();
        let deletes = async {
            somebody_waits(&mut observer).await;
            db.conn.batch_execute("COMMIT").await.unwrap();
        };
        let (refused, ()) = tokio::join!(order(&mut other, owner, many), deletes);
        assert!(matches!(refused, Err(Error::NotFound { entity: "user" })), "{refused:?}");
        // The order comes first: the deletion waits for its end and takes it along.
        let owner = user(&mut db.conn, "c1").await;
        other.batch_execute("BEGIN").await.unwrap();
        order(&mut other, owner, many).await.unwrap();
        let orders = async {
            somebody_waits(&mut observer).await;
            other.batch_execute("COMMIT").await.unwrap();
        };
        let gone = db.conn.transaction(async |conn| users::soft_delete(conn, owner).await);
        let (gone, ()) = tokio::join!(gone, orders);
        assert_eq!(gone.unwrap().jobs, if many { 2 } else { 1 });
        let left = schema::job_queue::table.filter(schema::job_queue::queue_status.eq("queued")).count();
        assert_eq!(left.get_result::<i64>(&mut db.conn).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn active_users_are_paged_without_a_gap_or_a_repetition() {
    let mut db = fresh().await;
    for number in 0..7 {
        user(&mut db.conn, &format!("c{number}")).await;
    }
    // Equal times: the id decides.
    db.conn
        .batch_execute("UPDATE users SET created_at = '2024-01-01' WHERE clerk_user_id IN ('c1','c2','c3','c4')")
        .await
        .unwrap();
    db.conn.batch_execute("UPDATE users SET status = 'suspended' WHERE clerk_user_id = 'c5'").await.unwrap();
    let mut seen = Vec::new();
    let mut cursor: Option<Cursor> = None;
    loop {
        let page = users::list_active(&mut db.conn, PageSize::new(2).unwrap(), cursor).await.unwrap();
        seen.extend(page.items.into_iter().map(|user| user.clerk_user_id));
        // As a client would: through text.
        cursor = page.next.map(|next| next.to_string().parse().unwrap());
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 6);
    assert_eq!(&seen[..2], ["c6", "c0"]);
    seen.sort();
    assert_eq!(seen, ["c0", "c1", "c2", "c3", "c4", "c6"]);
    let cursor = users::list_active(&mut db.conn, PageSize::new(2).unwrap(), None).await.unwrap().next;
    let owner = user(&mut db.conn, "c0").await;
    let error = files::video_list(&mut db.conn, owner, PageSize::default(), cursor).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { field: "cursor", .. }), "{error}");
}

#[tokio::test]
async fn a_deleted_user_takes_jobs_and_files_along_and_may_come_back_without_them() {
    let mut db = fresh().await;
    let (owner, other) = (user(&mut db.conn, "c1").await, user(&mut db.conn, "c2").await);
    for who in [owner, other] {
        jobs::create_and_enqueue(&mut db.conn, who, &job("a")).await.unwrap();
        files::video_store(&mut db.conn, who, &scene(1)).await.unwrap();
        files::video_store(&mut db.conn, who, &scene(2)).await.unwrap();
    }
    let gone = users::soft_delete(&mut db.conn, owner).await.unwrap();
    assert_eq!((gone.jobs, gone.files), (1, 2));
    assert!(users::find(&mut db.conn, owner).await.unwrap().is_none());
    assert!(users::find_by_clerk_id(&mut db.conn, "c1").await.unwrap().is_none());
    assert!(matches!(users::statistics(&mut db.conn, owner).await, Err(Error::NotFound { entity: "user" })));
    assert!(matches!(users::soft_delete(&mut db.conn, owner).await, Err(Error::NotFound { entity: "user" })));
    let refused = files::video_store(&mut db.conn, owner, &scene(3)).await;
    assert!(matches!(refused, Err(Error::NotFound { entity: "user" })));
    let queue: Vec<String> = schema::job_queue::table
        .order(schema::job_queue::queue_status)
        .select(schema::job_queue::queue_status)
        .load(&mut db.conn)
        .await
        .unwrap();
    assert_eq!(queue, ["cancelled", "queued"]);
    assert_eq!(user(&mut db.conn, "c1").await, owner);
    assert_eq!(users::statistics(&mut db.conn, owner).await.unwrap(), users::UserStatistics::default());
    assert_eq!(users::statistics(&mut db.conn, other).await.unwrap().total().count, 2);
}

#[tokio::test]
async fn statistics_count_what_is_there_by_kind() {
    let mut db = fresh().await;
    let (owner, other) = (user(&mut db.conn, "c1").await, user(&mut db.conn, "c2").await);
    let first = jobs::create_and_enqueue(&mut db.conn, owner, &job("a")).await.unwrap();
    jobs::create_and_enqueue(&mut db.conn, owner, &job("b")).await.unwrap();
    jobs::cancel(&mut db.conn, owner, first.id).await.unwrap();
    let video = files::video_store(&mut db.conn, owner, &scene(1)).await.unwrap();
    files::video_store(&mut db.conn, other, &scene(1)).await.unwrap();
    let thumbnail = files::NewThumbnail {
        video: video.id,
        stored: crate::domain_support::stored("t.png", 7),
        details: files::ThumbnailDetails::default(),
    };
    files::thumbnail_store_many(&mut db.conn, owner, &[thumbnail.clone(), thumbnail]).await.unwrap();
    let theirs = users::statistics(&mut db.conn, owner).await.unwrap();
    assert_eq!(theirs.jobs, [(JobStatus::Queued, 1), (JobStatus::Cancelled, 1)].into());
    assert_eq!(theirs.files[&FileType::Thumbnail], users::Tally { count: 2, bytes: 14 });
    assert_eq!(theirs.total(), users::Tally { count: 3, bytes: 1_014 });
    let all = users::system_statistics(&mut db.conn).await.unwrap();
    assert_eq!(all.users[&UserStatus::Active], 2);
    assert_eq!(all.jobs[&JobStatus::Queued], 1);
    assert_eq!(all.queue.values().sum::<i64>(), 2);
    assert_eq!(all.total(), users::Tally { count: 4, bytes: 2_014 });
}
