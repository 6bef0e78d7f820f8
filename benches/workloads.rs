//! W1 to W5 on the private server, one task: `cargo bench`. Beside other stacks: `benches/README.md`.

use std::convert::Infallible;
use std::error::Error;
use std::time::Duration;

use criterion::Criterion;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use t2m_db::files::{self, NewVideo, Stored};
use t2m_db::types::UserId;
use t2m_db::users::{self, NewUser};
use t2m_db::{Config, Database, Result};
use tokio::runtime::Runtime;

use self::tables::{entries, items};

mod tables {
    diesel::table! { items (id) { id -> BigInt, name -> Text } }
    diesel::table! { entries (id) { id -> BigInt, name -> Text, seen -> Integer } }
}

const TABLES: &str = "
    CREATE TABLE items (id bigint PRIMARY KEY, name text NOT NULL);
    INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, 10000) n;
    CREATE TABLE entries (id bigserial PRIMARY KEY, name text NOT NULL, seen int NOT NULL DEFAULT 0);
    INSERT INTO entries (name) SELECT 'an entry' FROM generate_series(1, 1000); -- plans for an empty table are poor
    ANALYZE;";

type Item = (i64, String);

/// What bb8 itself takes to lend something and to have it back, without a ping.
#[derive(Debug)]
struct Nothing;

impl bb8::ManageConnection for Nothing {
    type Connection = ();
    type Error = Infallible;

    async fn connect(&self) -> Result<(), Infallible> {
        Ok(())
    }

    async fn is_valid(&self, (): &mut ()) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, (): &mut ()) -> bool {
        false
    }
}

#[expect(clippy::disallowed_methods, reason = "it is what is measured")]
async fn bb8_alone(pool: &bb8::Pool<Nothing>) -> Result<(), bb8::RunError<Infallible>> {
    pool.get().await.map(drop)
}

async fn checkout(db: &Database) -> Result<()> {
    db.with_connection(async |_| Ok(())).await
}

async fn w1(db: &Database) -> Result<Item> {
    db.with_transaction(async |tx| Ok(items::table.find(4711).get_result(tx).await?)).await
}

async fn w1_commit_with(db: &Database) -> Result<Item> {
    db.with_transaction(async |tx| tx.commit_returning(items::table.find(4711)).await).await
}

async fn w2(db: &Database) -> Result<usize> {
    db.with_transaction(async |tx| {
        let insert = diesel::insert_into(entries::table).values(entries::name.eq("an entry"));
        let id: i64 = insert.returning(entries::id).get_result(tx).await?;
        Ok(diesel::update(entries::table.find(id)).set(entries::seen.eq(entries::seen + 1)).execute(tx).await?)
    })
    .await
}

async fn w2_commit_with(db: &Database) -> Result<usize> {
    db.with_transaction(async |tx| {
        let insert = diesel::insert_into(entries::table).values(entries::name.eq("an entry"));
        let id: i64 = insert.returning(entries::id).get_result(tx).await?;
        tx.commit_with(diesel::update(entries::table.find(id)).set(entries::seen.eq(entries::seen + 1))).await
    })
    .await
}

async fn w3(db: &Database) -> Result<Item> {
    db.with_connection(async |conn| Ok(items::table.find(4711).get_result(conn).await?)).await
}

async fn w4(db: &Database) -> Result<Vec<Item>> {
    let page = items::table.filter(items::id.gt(4711)).order(items::id).limit(20);
    db.with_connection(async |conn| Ok(page.load(conn).await?)).await
}

async fn w5(db: &Database, owner: UserId, videos: &[NewVideo]) -> Result<usize> {
    db.with_transaction(async |tx| Ok(files::video_store_many(tx, owner, videos).await?.len())).await
}

fn video(n: u32) -> NewVideo {
    let name = format!("scene-{n}.mp4");
    let stored = Stored {
        original_filename: name.clone(),
        stored_filename: name.clone(),
        s3_bucket: "bucket".into(),
        s3_key: format!("videos/{name}"),
        file_size: 1 << 20,
        content_type: "video/mp4".into(),
        ..Stored::default()
    };
    NewVideo { stored, ..NewVideo::default() }
}

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = Runtime::new()?;
    let database = runtime.block_on(t2m_db::testing::database());
    let config = Config::from_url(&database.url())?.max_size(1).min_idle(1);
    let db = runtime.block_on(Database::connect(config))?;
    let owner = runtime.block_on(async {
        database.client().await?.batch_execute(TABLES).await?;
        let owner = db.with_transaction(async |tx| users::upsert(tx, &NewUser::new("owner")).await).await?;
        Ok::<_, Box<dyn Error>>(owner.id)
    })?;
    let videos: Vec<NewVideo> = (0..1000).map(video).collect();

    let (warm_up, time) = (Duration::from_millis(300), Duration::from_secs(1));
    let criterion = Criterion::default().warm_up_time(warm_up).measurement_time(time).sample_size(20);
    let mut criterion = criterion.configure_from_args();
    macro_rules! bench {
        ($name:literal, $work:expr) => {
            criterion.bench_function($name, |bencher| {
                bencher.to_async(&runtime).iter(|| async { $work.await.expect($name) });
            });
        };
    }
    let bb8 = bb8::Pool::builder().max_size(1).test_on_check_out(false);
    let bb8 = runtime.block_on(bb8.build(Nothing))?;
    bench!("checkout and check-in", checkout(&db));
    bench!("checkout and check-in, bb8 alone", bb8_alone(&bb8));
    bench!("W1 a transaction with one SELECT", w1(&db));
    bench!("W1 with commit_returning", w1_commit_with(&db));
    bench!("W2 INSERT .. RETURNING, then UPDATE", w2(&db));
    bench!("W2 with commit_with", w2_commit_with(&db));
    bench!("W3 one SELECT, no transaction", w3(&db));
    bench!("W4 a page of 20 rows, no transaction", w4(&db));
    bench!("W5 1,000 rows in a transaction", w5(&db, owner, &videos));
    criterion.final_summary();
    runtime.block_on(db.close(Duration::from_secs(5)));
    Ok(())
}
