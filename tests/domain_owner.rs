//! `as_user`: row-level security through the handle, in the flight of BEGIN, and gone with its transaction.

use std::time::Duration;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use t2m_db::queue::{self, BatchSize, Worker};
use t2m_db::testing::Proxy;
use t2m_db::types::{OperationId, PageSize};
use t2m_db::users::{self, NewUser};
use t2m_db::{Config, Database, Error, Transaction, files, jobs, operations, schema};

use crate::domain_rls::become_app_role;
use crate::domain_support::{fresh, job, scene};

async fn visible(tx: &mut Transaction) -> Result<[i64; 3], Error> {
    Ok([
        schema::users::table.count().get_result(tx).await?,
        schema::jobs::table.count().get_result(tx).await?,
        schema::file_metadata::table.count().get_result(tx).await?,
    ])
}

#[tokio::test]
async fn as_user_hides_the_rows_of_others_at_no_cost_and_only_for_its_transaction() {
    let mut fresh = fresh().await;
    become_app_role(&mut fresh.conn).await;
    let proxy = Proxy::start_unix(&fresh.url).await.unwrap();
    let url = proxy.url();
    let url = format!("{url}{}options=-c%20role%3Dt2m_test_app", if url.contains('?') { '&' } else { '?' });
    let db = Database::connect(Config::from_url(&url).unwrap().max_size(1).min_idle(0)).await.unwrap();
    assert_eq!(db.pending_migrations().await.unwrap(), [""; 0]);
    let both = [NewUser::new("c1"), NewUser::new("c2")];
    let ids = db.with_transaction(async |tx| users::create_many(tx, &both).await).await.unwrap();
    // The domain itself works under it, bulk included.
    for owner in ids.iter().copied() {
        db.transaction("store")
            .as_user(owner)
            .run(async |tx| {
                let new = [job("a"), job("b")];
                jobs::create_and_enqueue_many(tx, owner, &new).await?;
                let videos = [scene(1), files::NewVideo { job: Some(new[1].id), ..scene(2) }];
                let stored = files::video_store_many(tx, owner, &videos).await?;
                let details = files::ThumbnailDetails::default();
                let stills = stored.iter().map(|video| files::NewThumbnail {
                    video: *video,
                    stored: crate::domain_support::stored("t", 1),
                    details: details.clone(),
                });
                files::thumbnail_store_many(tx, owner, &stills.collect::<Vec<_>>()).await?;
                assert_eq!(files::video_list(tx, owner, PageSize::default(), None).await?.items.len(), 2);
                jobs::cancel(tx, owner, new[0].id).await?;
                users::statistics(tx, owner).await.map(drop)
            })
            .await
            .unwrap();
    }
    // And what is asked for nobody in particular.
    db.with_transaction(async |tx| {
        assert_eq!(operations::claim(tx, OperationId::random()).await?, operations::Claim::Ours);
        let worker = Worker::new("w", None)?;
        let claims = queue::claim(tx, &worker, BatchSize::new(9)?, Duration::from_secs(60)).await?;
        assert_eq!(claims.len(), 2, "one of each owner; the others are called off");
        queue::put_back_worker(tx, &worker).await?;
        users::list_active(tx, PageSize::default(), None).await?;
        Ok::<_, Error>(())
    })
    .await
    .unwrap();
    let (one, other) = (ids[0], ids[1]);
    assert_eq!(db.transaction("mine").as_user(one).run(visible).await.unwrap(), [1, 2, 4], "a query without an owner");
    let stolen = db.transaction("theirs").as_user(one).run(async |tx| {
        diesel::update(schema::file_metadata::table.filter(schema::file_metadata::user_id.eq(other)))
            .set(schema::file_metadata::description.eq("mine"))
            .execute(tx)
            .await
            .map_err(Error::from)
    });
    assert_eq!(stolen.await.unwrap(), 0);
    let planted = db.transaction("plant").as_user(one).run(async |tx| files::video_store(tx, other, &scene(3)).await);
    assert!(planted.await.is_err());
    let all = async |tx: &mut Transaction| visible(tx).await;
    assert_eq!(db.with_transaction(all).await.unwrap(), [2, 4, 8], "gone for the next borrower");
    let count =
        async |tx: &mut Transaction| -> Result<i64, Error> { Ok(schema::jobs::table.count().get_result(tx).await?) };
    db.transaction("warm").as_user(one).run(count).await.unwrap();
    proxy.reset_counts();
    db.transaction("count").as_user(one).run(count).await.unwrap();
    assert_eq!(proxy.round_trips(), 2, "{:#?}", proxy.statements());
}
