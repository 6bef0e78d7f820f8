//! A migrated database for one test.

use diesel::prelude::*;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use t2m_db::files::{NewVideo, Stored, VideoDetails};
use t2m_db::jobs::{Configuration, NewJob};
use t2m_db::testing::TestDatabase;
use t2m_db::types::UserId;
use t2m_db::users::{self, NewUser};

use crate::support::LONG;

pub(crate) const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// A database of its own, and a connection to it.
pub(crate) struct Fresh {
    pub(crate) url: String,
    pub(crate) conn: AsyncPgConnection,
    _database: TestDatabase,
}

impl Fresh {
    pub(crate) async fn another(&self) -> AsyncPgConnection {
        AsyncPgConnection::establish(&self.url).await.unwrap()
    }
}

/// A migrated database.
pub(crate) async fn fresh() -> Fresh {
    open(t2m_db::testing::database().await).await
}

/// A database without anything in it.
pub(crate) async fn empty() -> Fresh {
    open(t2m_db::testing::empty_database().await).await
}

async fn open(database: TestDatabase) -> Fresh {
    let url = database.url();
    let conn = AsyncPgConnection::establish(&url).await.unwrap();
    Fresh { url, conn, _database: database }
}

/// Applies every migration, as the diesel CLI would.
pub(crate) async fn migrate(url: &str) {
    with_harness(url, |conn| {
        conn.run_pending_migrations(MIGRATIONS).unwrap();
    })
    .await;
}

/// Runs diesel's own, synchronous, migration functions.
pub(crate) async fn with_harness<R: Send + 'static>(
    url: &str,
    body: impl FnOnce(&mut AsyncConnectionWrapper<AsyncPgConnection>) -> R + Send + 'static,
) -> R {
    let conn = AsyncPgConnection::establish(url).await.unwrap();
    tokio::task::spawn_blocking(move || body(&mut conn.into())).await.unwrap()
}

/// A user who signed in.
pub(crate) async fn user(conn: &mut AsyncPgConnection, clerk_id: &str) -> UserId {
    users::upsert(conn, &NewUser::new(clerk_id)).await.unwrap().id
}

pub(crate) fn job(topic: &str) -> NewJob {
    NewJob::video(Configuration { topic: Some(topic.into()), ..Configuration::default() })
}

pub(crate) fn stored(name: &str, file_size: i64) -> Stored {
    Stored {
        original_filename: name.into(),
        stored_filename: name.into(),
        s3_bucket: "bucket".into(),
        s3_key: format!("videos/{name}"),
        file_size,
        content_type: "video/mp4".into(),
        checksum: Some("0f".repeat(32)),
        ..Stored::default()
    }
}

pub(crate) fn scene(number: i32) -> NewVideo {
    NewVideo {
        stored: stored(&format!("scene-{number}.mp4"), 1_000),
        details: VideoDetails { scene_number: Some(number), duration_seconds: Some(2.5), ..VideoDetails::default() },
        ..NewVideo::default()
    }
}

/// Until a statement waits for a lock.
pub(crate) async fn somebody_waits(observer: &mut AsyncPgConnection) {
    diesel::table! { pg_stat_activity (pid) { pid -> Int4, wait_event_type -> Nullable<Text>, datname -> Nullable<Text> } }
    diesel::define_sql_function! { fn current_database() -> Text }
    let waiting = pg_stat_activity::table
        .filter(pg_stat_activity::wait_event_type.eq("Lock"))
        .filter(pg_stat_activity::datname.eq(current_database().nullable()))
        .count();
    tokio::time::timeout(LONG, async { while waiting.get_result::<i64>(observer).await.unwrap() == 0 {} })
        .await
        .expect("nobody waits");
}
