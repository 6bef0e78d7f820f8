//! Row-level security: what a query sees that forgets to ask for its owner's rows.

use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use t2m_db::types::UserId;
use t2m_db::{files, jobs, queue, schema};

use crate::domain_support::{Fresh, fresh, job, scene, user};

/// A role that owns nothing, as the backend should have it, with what README.md grants it.
pub(crate) async fn become_app_role(conn: &mut AsyncPgConnection) {
    let grants = include_str!("../README.md").lines().filter(|line| line.starts_with("GRANT "));
    let grants: String = grants.map(|grant| grant.replace("t2m_app", "t2m_test_app") + "\n").collect();
    conn.batch_execute(&format!(
        "DO $$ BEGIN
             CREATE ROLE t2m_test_app NOLOGIN;
         EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
         END $$;
         {grants}
         SET ROLE t2m_test_app"
    ))
    .await
    .unwrap();
}

pub(crate) async fn act_for(conn: &mut AsyncPgConnection, owner: UserId) {
    conn.batch_execute(&format!("SET t2m.user_id = '{owner}'")).await.unwrap();
}

async fn two_owners() -> (Fresh, UserId, UserId) {
    let mut db = fresh().await;
    let (one, other) = (user(&mut db.conn, "c1").await, user(&mut db.conn, "c2").await);
    for owner in [one, other] {
        jobs::create_and_enqueue(&mut db.conn, owner, &job("a")).await.unwrap();
        files::video_store(&mut db.conn, owner, &scene(1)).await.unwrap();
    }
    become_app_role(&mut db.conn).await;
    (db, one, other)
}

/// Rows that a query sees which names no owner.
async fn visible(conn: &mut AsyncPgConnection) -> [i64; 4] {
    [
        schema::users::table.count().get_result(conn).await.unwrap(),
        schema::jobs::table.count().get_result(conn).await.unwrap(),
        schema::job_queue::table.count().get_result(conn).await.unwrap(),
        schema::file_metadata::table.count().get_result(conn).await.unwrap(),
    ]
}

#[tokio::test]
async fn a_query_that_forgets_its_owner_sees_and_changes_nothing_of_others() {
    let (mut db, one, other) = two_owners().await;
    let conn = &mut db.conn;
    act_for(conn, one).await;
    assert_eq!(visible(conn).await, [1, 1, 1, 1]);
    let changed = diesel::update(schema::file_metadata::table)
        .set(schema::file_metadata::description.eq("mine"))
        .execute(conn)
        .await
        .unwrap();
    assert_eq!(changed, 1);
    let stolen = diesel::update(schema::jobs::table).set(schema::jobs::user_id.eq(other.as_uuid())).execute(conn).await;
    assert!(stolen.unwrap_err().to_string().contains("row-level security"));
    let planted = diesel::insert_into(schema::jobs::table)
        .values((schema::jobs::user_id.eq(other.as_uuid()), schema::jobs::configuration.eq(serde_json::json!({}))))
        .execute(conn)
        .await;
    assert!(planted.unwrap_err().to_string().contains("row-level security"));
    act_for(conn, other).await;
    let kept: Vec<Option<String>> =
        schema::file_metadata::table.select(schema::file_metadata::description).load(conn).await.unwrap();
    assert_eq!(kept, [None]);
}

#[tokio::test]
async fn without_an_owner_everything_passes_and_with_a_malformed_one_nothing() {
    let (mut db, one, _) = two_owners().await;
    let conn = &mut db.conn;
    assert_eq!(visible(conn).await, [2, 2, 2, 2]);
    // As after a transaction that set it: the setting is empty then, not missing.
    conn.batch_execute(&format!("BEGIN; SET LOCAL t2m.user_id = '{one}'; COMMIT")).await.unwrap();
    assert_eq!(visible(conn).await, [2, 2, 2, 2]);
    let worker = queue::Worker::new("w", None).unwrap();
    let lease = std::time::Duration::from_secs(60);
    let claims = queue::claim(conn, &worker, queue::BatchSize::new(9).unwrap(), lease).await.unwrap();
    assert_eq!(claims.len(), 2);
    conn.batch_execute("SET t2m.user_id = 'nobody'").await.unwrap();
    assert!(schema::jobs::table.count().get_result::<i64>(conn).await.is_err());
}
