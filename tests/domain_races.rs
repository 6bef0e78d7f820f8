//! A video that is deleted while a thumbnail of it is being stored.

use std::sync::atomic::{AtomicUsize, Ordering};

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AsQuery, QueryFragment, QueryId};
use diesel_async::{AsyncConnectionCore, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use t2m_db::files::{self, NewThumbnail, ThumbnailDetails};
use t2m_db::types::{FileId, UserId};
use tokio::sync::Notify;

use crate::domain_support::{fresh, scene, stored, user};

fn still(video: FileId) -> NewThumbnail {
    NewThumbnail { video, stored: stored("t.png", 10), details: ThumbnailDetails::default() }
}

/// The one that stores holds the video; the one that deletes waits for it, and must not have looked for thumbnails before.
#[tokio::test]
async fn a_video_that_is_deleted_takes_the_thumbnail_with_it_that_was_just_being_stored() {
    let mut db = fresh().await;
    let owner = user(&mut db.conn, "c1").await;
    let video = files::video_store(&mut db.conn, owner, &scene(1)).await.unwrap().id;
    files::thumbnail_store(&mut db.conn, owner, &still(video)).await.unwrap();
    let (mut deleting, mut observer) = (db.another().await, db.another().await);
    db.conn.batch_execute("BEGIN").await.unwrap();
    files::thumbnail_store(&mut db.conn, owner, &still(video)).await.unwrap();
    deleting.batch_execute("BEGIN").await.unwrap();
    let storing = async {
        diesel::table! { pg_locks (pid) { pid -> Int4, granted -> Bool } }
        let waiting = pg_locks::table.filter(pg_locks::granted.eq(false)).count();
        while waiting.get_result::<i64>(&mut observer).await.unwrap() == 0 {}
        db.conn.batch_execute("COMMIT").await.unwrap();
    };
    let (gone, ()) = tokio::join!(files::video_delete(&mut deleting, owner, video), storing);
    deleting.batch_execute("COMMIT").await.unwrap();
    assert_eq!(gone.unwrap(), 2);
    assert!(files::thumbnail_list(&mut observer, owner, video).await.unwrap().is_empty());
}

/// Two statements that are sent together are executed in that order only if both are prepared, or neither is.
#[tokio::test]
async fn thumbnails_go_with_their_video_although_their_statement_overtakes_that_of_the_video() {
    let mut db = fresh().await;
    let owner = user(&mut db.conn, "c1").await;
    let video = files::video_store(&mut db.conn, owner, &scene(1)).await.unwrap().id;
    files::thumbnail_store_many(&mut db.conn, owner, &[still(video), still(video)]).await.unwrap();
    let mut conn = Overtaken { conn: db.another().await, sent: AtomicUsize::new(0), second_done: Notify::new() };
    let deleted = tokio::time::timeout(crate::support::LONG, files::video_delete(&mut conn, owner, video)).await;
    assert_eq!(deleted.expect("they are sent together").unwrap(), 2);
    assert!(conn.sent.into_inner() >= 2);
    assert!(files::thumbnail_list(&mut db.conn, owner, video).await.unwrap().is_empty());
    not_found_changes_nothing(&mut db.conn, owner).await;
}

async fn not_found_changes_nothing(conn: &mut AsyncPgConnection, owner: UserId) {
    let other = user(conn, "c2").await;
    let video = files::video_store(conn, other, &scene(1)).await.unwrap().id;
    let theirs = files::video_store(conn, owner, &scene(2)).await.unwrap().id;
    let thumbnail = files::thumbnail_store(conn, owner, &still(theirs)).await.unwrap().id;
    // As Python may have written it: it shows what belongs to somebody else.
    let sql = format!(
        "UPDATE file_metadata SET file_metadata = jsonb_build_object('video_id', '{video}') WHERE id = '{thumbnail}'"
    );
    conn.batch_execute(&sql).await.unwrap();
    assert!(files::video_delete(conn, owner, video).await.is_err());
    assert_eq!(files::thumbnail_list(conn, owner, video).await.unwrap().len(), 1);
}

/// Executes the second of its statements before the first.
struct Overtaken {
    conn: AsyncPgConnection,
    sent: AtomicUsize,
    second_done: Notify,
}

impl Overtaken {
    fn run<T>(&self, source: T) -> BoxFuture<'_, QueryResult<usize>>
    where
        T: QueryFragment<Pg> + QueryId,
    {
        let mut conn = &self.conn;
        let work = conn.execute_returning_count(source);
        match self.sent.fetch_add(1, Ordering::Relaxed) {
            0 => self.second_done.notified().then(|()| work).boxed(),
            _ => work.inspect(|_| self.second_done.notify_one()).boxed(),
        }
    }
}

macro_rules! executes {
    ($type:ty $(, $life:lifetime)?) => {
        impl$(<$life>)? SimpleAsyncConnection for $type {
            async fn batch_execute(&mut self, query: &str) -> QueryResult<()> {
                (&self.conn).batch_execute(query).await
            }
        }

        impl$(<$life>)? AsyncConnectionCore for $type {
            type LoadFuture<'conn, 'query> = <AsyncPgConnection as AsyncConnectionCore>::LoadFuture<'conn, 'query>;
            type ExecuteFuture<'conn, 'query> = BoxFuture<'conn, QueryResult<usize>>;
            type Stream<'conn, 'query> = <AsyncPgConnection as AsyncConnectionCore>::Stream<'conn, 'query>;
            type Row<'conn, 'query> = <AsyncPgConnection as AsyncConnectionCore>::Row<'conn, 'query>;
            type Backend = Pg;

            fn load<'conn, 'query, T>(&'conn mut self, _: T) -> Self::LoadFuture<'conn, 'query>
            where
                T: AsQuery + 'query,
                T::Query: QueryFragment<Pg> + QueryId + 'query,
            {
                unreachable!("nothing is read here")
            }

            fn execute_returning_count<'conn, 'query, T>(&'conn mut self, source: T) -> Self::ExecuteFuture<'conn, 'query>
            where
                T: QueryFragment<Pg> + QueryId + 'query,
            {
                self.run(source)
            }
        }
    };
}
executes!(Overtaken);
executes!(&'a Overtaken, 'a);
