//! Many rows at once: what they cost, which row is to blame, and that nothing of the others stays.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use t2m_db::files::{self, NewThumbnail, NewVideo, ThumbnailDetails, VideoDetails};
use t2m_db::jobs::{self, NewJob};
use t2m_db::testing::{Frontend, Match, Proxy, TestDatabase};
use t2m_db::types::{FileId, JobId, Priority, UserId};
use t2m_db::users::{self, NewUser};
use t2m_db::{Config, Database, Error, Transaction, schema};

use crate::domain_support::{job, scene, stored};
use crate::support::LONG;

struct Setup {
    db: Database,
    owner: UserId,
    other: UserId,
    proxy: Proxy,
    _database: TestDatabase,
}

async fn setup() -> Setup {
    let database = t2m_db::testing::database().await;
    let proxy = Proxy::start_unix(&database.url()).await.unwrap();
    let config = Config::from_url(&proxy.url()).unwrap().max_size(1).min_idle(0).health_interval(None);
    let config = config.checkout_timeout(3 * LONG); // replies are held back, and that is not to pass for silence
    let db = Database::connect(config).await.unwrap();
    let [owner, other] = <[UserId; 2]>::try_from(
        db.with_transaction(async |tx| users::create_many(tx, &[NewUser::new("c1"), NewUser::new("c2")]).await)
            .await
            .unwrap(),
    )
    .unwrap();
    Setup { db, owner, other, proxy, _database: database }
}

fn still(video: FileId) -> NewThumbnail {
    NewThumbnail { video, stored: stored("t.png", 1), details: ThumbnailDetails::default() }
}

/// Rows of jobs, queue entries and files.
async fn counts(tx: &mut Transaction) -> Result<[i64; 3], Error> {
    Ok([
        schema::jobs::table.count().get_result(tx).await?,
        schema::job_queue::table.count().get_result(tx).await?,
        schema::file_metadata::table.count().get_result(tx).await?,
    ])
}

#[tokio::test]
async fn a_thousand_rows_cost_two_round_trips_with_their_transaction() {
    let setup = setup().await;
    let Setup { ref db, owner, ref proxy, .. } = setup;
    let video = db.with_transaction(async |tx| files::video_store(tx, owner, &scene(1)).await).await.unwrap().id;
    let work = async |what: &str, rows: usize| match what {
        "videos" => {
            let videos: Vec<_> = (0..rows).map(|n| scene(i32::try_from(n).unwrap())).collect();
            db.with_transaction(async |tx| files::video_store_many(tx, owner, &videos).await.map(drop)).await
        }
        "thumbnails" => {
            let stills = vec![still(video); rows];
            db.with_transaction(async |tx| files::thumbnail_store_many(tx, owner, &stills).await.map(drop)).await
        }
        "users" => {
            let new: Vec<_> = (0..rows).map(|_| NewUser::new(JobId::random().to_string())).collect();
            db.with_transaction(async |tx| users::create_many(tx, &new).await.map(drop)).await
        }
        _ => {
            let new: Vec<_> = (0..rows).map(|_| job("a")).collect();
            db.with_transaction(async |tx| jobs::create_and_enqueue_many(tx, owner, &new).await).await
        }
    };
    // Jobs are two tables. What a policy says of a queue entry must see its job: so one statement for each.
    for (what, budget) in [("videos", 2), ("thumbnails", 2), ("users", 2), ("jobs", 3)] {
        for rows in [1, 2, 3] {
            work(what, rows).await.unwrap(); // any number of rows is the same statement
        }
        // A long message takes several writes: the answer to BEGIN must not overtake the end of it.
        proxy.hold_replies();
        let whole_flight = proxy.until_sent(Match::new(|message| message.kind == Frontend::Sync));
        proxy.reset_counts();
        let (done, ()) = tokio::join!(work(what, 1_000), async {
            whole_flight.await;
            proxy.release_all();
        });
        done.unwrap();
        assert!(proxy.round_trips() <= budget, "{what}: {} {:#?}", proxy.round_trips(), proxy.statements());
    }
    let stored = db.with_transaction(counts).await.unwrap();
    assert_eq!(stored, [1_006, 1_006, 2_013]);
}

#[tokio::test]
async fn what_was_given_is_what_is_stored_in_that_order() {
    let setup = setup().await;
    let Setup { ref db, owner, .. } = setup;
    let parent = NewJob { priority: Priority::High, max_retries: 7, ..job("film") };
    let part = NewJob { parent_job_id: Some(parent.id), batch_id: Some(parent.id.into()), ..job("part") };
    let full = NewVideo {
        job: Some(part.id),
        description: Some("with \"quotes\", {braces}, NULL and é".into()),
        tags: vec!["a".into(), "b,c".into()],
        details: VideoDetails { frame_rate: Some(29.97), ..scene(7).details },
        ..scene(7)
    };
    let given = [scene(1), full.clone(), scene(3)];
    let (ids, stills) = db
        .with_transaction(async |tx| {
            jobs::create_and_enqueue_many(tx, owner, &[part.clone(), parent.clone()]).await?;
            let ids = files::video_store_many(tx, owner, &given).await?;
            let stills = files::thumbnail_store_many(tx, owner, &[still(ids[1]), still(ids[0])]).await?;
            Ok::<_, Error>((ids, stills))
        })
        .await
        .unwrap();
    db.with_connection(async |conn| {
        for (id, given) in ids.iter().zip(&given) {
            let video = files::video_find(conn, owner, *id).await?.unwrap();
            assert_eq!((video.details()?, &video.description), (&given.details, &given.description));
            assert_eq!((video.tags.get(), video.job_id), (Ok(&given.tags), given.job));
            assert_eq!(video.checksum, given.stored.checksum);
        }
        let thumbnails = files::thumbnail_list(conn, owner, ids[1]).await?;
        assert_eq!((thumbnails[0].id, thumbnails[0].job_id), (stills[0], Some(part.id)));
        let stored = jobs::find(conn, owner, part.id).await?.unwrap();
        assert_eq!((stored.parent_job_id, stored.batch_id), (Some(parent.id), part.batch_id));
        let stored = jobs::find(conn, owner, parent.id).await?.unwrap();
        assert_eq!(stored.priority, Priority::High);
        let entry = schema::job_queue::table.filter(schema::job_queue::job_id.eq(parent.id));
        let entry = entry.select((schema::job_queue::priority, schema::job_queue::max_retries));
        assert_eq!(entry.get_result::<(String, i32)>(conn).await?, ("high".into(), 7));
        let user = users::find_by_clerk_id(conn, "c1").await?.unwrap();
        assert!(user.email_addresses.get().unwrap().is_empty() && !user.email_verified);
        Ok::<_, Error>(())
    })
    .await
    .unwrap();
}

/// The row that an error names, and why it was refused.
fn row(error: Error) -> (usize, String) {
    match error {
        Error::Row { index, source } => (index, source.to_string()),
        other => panic!("names no row: {other}"),
    }
}

#[tokio::test]
async fn the_row_that_is_to_blame_is_named_and_nothing_is_stored() {
    let setup = setup().await;
    let Setup { ref db, owner, other, .. } = setup;
    let (foreign, mine) = (job("theirs"), job("mine"));
    let (foreign_video, before) = db
        .with_transaction(async |tx| {
            jobs::create_and_enqueue_many(tx, other, std::slice::from_ref(&foreign)).await?;
            jobs::create_and_enqueue_many(tx, owner, std::slice::from_ref(&mine)).await?;
            let video = files::video_store(tx, other, &scene(1)).await?.id;
            Ok::<_, Error>((video, counts(tx).await?))
        })
        .await
        .unwrap();

    let videos = async |bad: NewVideo| {
        let videos = [scene(1), NewVideo { job: Some(mine.id), ..scene(2) }, bad, scene(4)];
        db.with_transaction(async |tx| files::video_store_many(tx, owner, &videos).await).await.unwrap_err()
    };
    let (index, why) = row(videos(NewVideo { stored: stored("big", -1), ..scene(3) }).await);
    assert!(index == 2 && why.contains("file.file_size"), "{why}");
    assert_eq!(row(videos(NewVideo { job: Some(foreign.id), ..scene(3) }).await).1, "no such job for this owner");

    let new = async |bad: NewJob| {
        let new = [job("a"), bad, job("b")];
        db.with_transaction(async |tx| jobs::create_and_enqueue_many(tx, owner, &new).await).await.unwrap_err()
    };
    assert!(row(new(NewJob { max_retries: -1, ..job("c") }).await).1.contains("job.max_retries"));
    assert!(row(new(mine.clone()).await).1.contains("job.id"));
    assert_eq!(row(new(NewJob { parent_job_id: Some(foreign.id), ..job("c") }).await).0, 1);
    let twice = [job("a"), mine.clone(), job("b"), mine.clone()];
    let error = db.with_transaction(async |tx| jobs::create_and_enqueue_many(tx, owner, &twice).await).await;
    assert_eq!(row(error.unwrap_err()).0, 3);

    let stills = async |stills: [NewThumbnail; 2]| {
        db.with_transaction(async |tx| files::thumbnail_store_many(tx, owner, &stills).await).await.unwrap_err()
    };
    let own = db.with_transaction(async |tx| files::video_store(tx, owner, &scene(1)).await).await.unwrap().id;
    assert_eq!(row(stills([still(own), still(foreign_video)]).await), (1, "no such video for this owner".into()));

    let clerk = [NewUser::new("c9"), NewUser::new("c2")];
    let error = db.with_transaction(async |tx| users::create_many(tx, &clerk).await).await.unwrap_err();
    let (index, why) = row(error);
    assert!(index == 1 && why.contains("\"c2\""), "{why}");

    let nobody = db.with_transaction(async |tx| files::video_store_many(tx, UserId::random(), &[scene(1)]).await).await;
    assert!(matches!(nobody, Err(Error::NotFound { entity: "user" })));
    let after = db.with_transaction(counts).await.unwrap();
    assert_eq!([after[0], after[1], after[2] - 1], before);
}

/// Somebody else's row comes between our look and our INSERT: only the server can know.
#[tokio::test]
async fn a_row_that_loses_a_race_is_named_as_well() {
    let setup = setup().await;
    let Setup { ref db, owner, other, _database: ref database, .. } = setup;
    let contested = job("a");
    let rival = database.client().await.unwrap();
    let insert = format!(
        "BEGIN; INSERT INTO jobs (id, user_id, configuration) VALUES ('{}', '{}', '{{}}')",
        contested.id,
        other.as_uuid()
    );
    rival.batch_execute(&insert).await.unwrap();
    let new = [job("b"), job("c"), contested];
    let ours = db.with_transaction(async |tx| jobs::create_and_enqueue_many(tx, owner, &new).await);
    let theirs = async {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let blocked = async { while rival.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {} };
        tokio::time::timeout(crate::support::LONG, blocked).await.unwrap();
        rival.batch_execute("COMMIT").await.unwrap();
    };
    let (ours, ()) = tokio::join!(ours, theirs);
    let error = ours.unwrap_err();
    assert!(error.is_unique_violation(), "{error}");
    assert_eq!(error.constraint(), Some("jobs_pkey"));
    assert_eq!(row(error).0, 2);
}

#[tokio::test]
async fn more_than_fits_goes_in_chunks_and_an_error_in_the_last_undoes_the_first() {
    let setup = setup().await;
    let Setup { ref db, owner, ref proxy, .. } = setup;
    let long = NewVideo { description: Some("x".repeat(20_000)), ..scene(1) };
    let mut videos = vec![long; 1_000];
    proxy.reset_counts();
    let ids = db.with_transaction(async |tx| files::video_store_many(tx, owner, &videos).await).await.unwrap();
    let inserts = proxy.statements().iter().filter(|message| message.runs() && message.text.contains("INSERT")).count();
    assert_eq!((ids.len(), inserts), (1_000, 5), "20 MB by 4 MiB");
    videos[900].job = Some(JobId::random());
    let error = db.with_transaction(async |tx| files::video_store_many(tx, owner, &videos).await).await.unwrap_err();
    assert_eq!(row(error).0, 900);
    assert_eq!(db.with_transaction(counts).await.unwrap()[2], 1_000);
}

/// What was measured in a process of its own: beside other tests the memory of this one says nothing.
const CHILD: &str = "T2M_DB_TEST_BULK_URL";

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_hundred_thousand_rows_need_the_memory_of_some_chunks() {
    const ROWS: usize = 100_000;
    const NAME: &str = "domain_bulk::a_hundred_thousand_rows_need_the_memory_of_some_chunks";
    let Ok(url) = std::env::var(CHILD) else {
        let database = t2m_db::testing::database().await;
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
        child.args([NAME, "--exact", "--nocapture"]).env(CHILD, database.url());
        let output = child.output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        println!("{said}");
        return;
    };
    let db = Database::connect(Config::from_url(&url).unwrap().max_size(1).min_idle(0)).await.unwrap();
    let owner = db.with_transaction(async |tx| users::create(tx, &NewUser::new("c1")).await).await.unwrap().id;
    let videos = vec![NewVideo { description: Some("x".repeat(1_500)), ..scene(1) }; ROWS];
    std::fs::write("/proc/self/clear_refs", "5").unwrap(); // the peak is counted from here
    let kilobytes = |name: &str| -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok()).unwrap()
    };
    let before = kilobytes("VmRSS:");
    let ids = db.with_transaction(async |tx| files::video_store_many(tx, owner, &videos).await).await.unwrap();
    let peak = (kilobytes("VmHWM:") - before) >> 10;
    println!("{} rows of 1.5 kB, {} MiB, stored with {peak} MiB more than they take", ids.len(), (ROWS * 1_500) >> 20);
    assert!(ids.len() == ROWS && peak < 48, "{peak} MiB");
}
