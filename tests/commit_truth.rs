//! The reply to COMMIT is lost: before the server saw COMMIT, after, and when it had answered already. What the caller is
//! told is compared with what is stored.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use diesel::{ExpressionMethods, QueryDsl};
use t2m_db::testing::{Match, Proxy, TestDatabase, When};
use t2m_db::{CommitOutcome, CommitResolution, Committed, Config, Database, Error, Transaction};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{LONG, rounds};

diesel::table! {
    entries (id, part) {
        id -> BigInt,
        part -> Integer,
    }
}

/// What the transaction does. Every kind stores parts 1 and 2 of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    OneStatement,
    Several,
    Pipelined,
    Nested,
    ReadFirst,
    CommitWith,
    CommitReturning,
    /// Nothing was sent before: BEGIN, the statement and COMMIT share one flight once the statement is prepared.
    OneFlight,
}

const KNOWN: [Kind; 7] = [
    Kind::OneStatement,
    Kind::Several,
    Kind::Pipelined,
    Kind::Nested,
    Kind::ReadFirst,
    Kind::CommitWith,
    Kind::CommitReturning,
];
const WHEN: [When; 3] = [When::BeforeForward, When::AfterForward, When::AfterReply];

async fn body(tx: &mut Transaction, kind: Kind, id: i64) -> Result<i64, Error> {
    use diesel_async::RunQueryDsl; // here only: it has a `load` that hides the one of atomics
    let row = |part: i32| diesel::insert_into(entries::table).values((entries::id.eq(id), entries::part.eq(part)));
    let both = diesel::insert_into(entries::table)
        .values(vec![(entries::id.eq(id), entries::part.eq(1)), (entries::id.eq(id), entries::part.eq(2))]);
    match kind {
        Kind::OneStatement => drop(both.execute(tx).await?),
        Kind::Several => {
            row(1).execute(tx).await?;
            row(2).execute(tx).await?;
            diesel::update(entries::table.filter(entries::id.eq(id))).set(entries::id.eq(id)).execute(tx).await?;
        }
        Kind::Pipelined => {
            let tx = &*tx;
            futures_util::try_join!(row(1).execute(&mut &*tx), row(2).execute(&mut &*tx))?;
        }
        Kind::Nested => {
            tx.savepoint(async |tx| Ok::<_, Error>(row(1).execute(tx).await?)).await?;
            row(2).execute(tx).await?;
        }
        Kind::ReadFirst => {
            entries::table.filter(entries::id.eq(id)).count().get_result::<i64>(tx).await?;
            both.execute(tx).await?;
        }
        Kind::CommitWith => {
            row(1).execute(tx).await?;
            tx.commit_with(row(2)).await?;
        }
        Kind::CommitReturning => {
            row(1).execute(tx).await?;
            return tx.commit_returning(row(2).returning(entries::id)).await;
        }
        Kind::OneFlight => {
            assert_eq!(tx.commit_with(both).await?, 2);
        }
    }
    Ok(id)
}

/// What one caller was told, and how often its hook ran.
#[derive(Debug)]
struct Told {
    result: Result<i64, Error>,
    hooks: u32,
}

impl Told {
    fn outcome(&self) -> CommitOutcome {
        self.result.as_ref().err().map_or(CommitOutcome::Committed, Error::commit_outcome)
    }
}

async fn one(db: &Database, kind: Kind, id: i64) -> Told {
    let hooks = Arc::new(AtomicU32::new(0));
    let ran = Arc::clone(&hooks);
    let result = db
        .transaction("truth")
        .run(async move |tx| {
            tx.after_commit(move |_: &Committed| {
                ran.fetch_add(1, SeqCst);
            });
            body(tx, kind, id).await
        })
        .await;
    Told { result, hooks: hooks.load(SeqCst) }
}

fn commit() -> Match {
    Match::new(|message| message.runs() && &*message.text == "COMMIT")
}

async fn database(slow: Option<f64>) -> TestDatabase {
    let database = t2m_db::testing::empty_database().await;
    let client = database.client().await.unwrap();
    client.batch_execute("CREATE TABLE entries (id bigint, part int, PRIMARY KEY (id, part))").await.unwrap();
    if let Some(seconds) = slow {
        let trigger = format!(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END $$; \
             CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON entries DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW WHEN (NEW.part = 1) EXECUTE FUNCTION slow()"
        );
        client.batch_execute(&trigger).await.unwrap();
    }
    database
}

async fn pool(proxy: &Proxy, settings: impl FnOnce(Config) -> Config) -> Database {
    let config = Config::from_url(&proxy.url()).unwrap().min_idle(0).max_size(2).health_interval(None);
    Database::connect(settings(config)).await.unwrap()
}

/// The entries that are stored. Half an entry fails the test.
async fn stored(database: &TestDatabase) -> HashMap<i64, i64> {
    let sql = "SELECT id, count(*) FROM entries GROUP BY id";
    let rows = database.client().await.unwrap().query(sql, &[]).await.unwrap();
    let stored: HashMap<i64, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert!(stored.values().all(|parts| *parts == 2), "half a transaction: {stored:?}");
    stored
}

/// Cuts the connection of `rounds` transactions of every kind at every moment, each pair in a task of its own.
async fn cuts(kinds: &'static [Kind], rounds: u32, slow: Option<f64>) -> Vec<(Kind, When, i64, Told)> {
    let database = Arc::new(database(slow).await);
    let mut tasks = JoinSet::new();
    for (lane, (kind, when)) in (0..).zip(kinds.iter().flat_map(|kind| WHEN.map(|when| (*kind, when)))) {
        let database = Arc::clone(&database);
        tasks.spawn(async move {
            let proxy = Proxy::start_unix(&database.url()).await.unwrap();
            // Without the check a COMMIT that takes long goes on although its client is gone; with it, it is rolled back.
            let check = (lane % 2 == 0).then_some(Duration::from_millis(100));
            let db = pool(&proxy, |config| config.client_connection_check_interval(check)).await;
            let mut told = Vec::new();
            for round in 0..i64::from(rounds) {
                let id = lane * 1_000_000 + round * 10;
                // What is kept prepared differs from the first to the third time.
                if kind == Kind::OneFlight || round % 4 == 3 {
                    for warm in 1..4 {
                        assert_eq!(one(&db, kind, id + warm).await.result.unwrap(), id + warm);
                    }
                }
                let cut = proxy.cut(when, commit());
                told.push((kind, when, id, timeout(LONG, one(&db, kind, id)).await.unwrap()));
                timeout(LONG, cut).await.unwrap();
            }
            // None of it costs a connection for good.
            let stats = db.stats();
            assert_eq!((stats.checked_out, stats.reclaiming), (0, 0), "{stats:#?}");
            told
        });
    }
    let told: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    let stored = stored(&database).await;
    let mut seen: HashMap<_, u32> = HashMap::new();
    for (kind, when, id, told) in &told {
        *seen.entry(format!("{when:?}: {:?}", told.outcome())).or_default() += 1;
        let is_stored = stored.contains_key(id);
        match told.outcome() {
            CommitOutcome::Committed => assert!(is_stored, "{kind:?} {when:?} {told:?}"),
            CommitOutcome::NotCommitted => assert!(!is_stored, "{kind:?} {when:?} {told:?}"),
            _ => {}
        }
        let hooks = u32::from(told.outcome() == CommitOutcome::Committed);
        assert_eq!(told.hooks, hooks, "hooks of {kind:?} {when:?} {told:?}");
    }
    println!("{seen:?}");
    told
}

fn all_known(told: &[(Kind, When, i64, Told)]) {
    for (kind, when, id, told) in told {
        match &told.result {
            Ok(value) => assert_eq!(value, id),
            Err(error) if error.commit_outcome() == CommitOutcome::NotCommitted => {
                assert!(error.is_retryable() && error.is_connection_lost(), "{kind:?} {when:?} {error:?}");
            }
            // Committed, but what the statement answered was on the connection that was cut.
            Err(error) => {
                let rides = matches!(kind, Kind::CommitWith | Kind::CommitReturning);
                assert!(rides && matches!(error, Error::AnswerLost { .. }), "{kind:?} {when:?} {error:?}");
            }
        }
        if *when == When::BeforeForward {
            assert_eq!(told.outcome(), CommitOutcome::NotCommitted, "{kind:?}");
        }
        if *when == When::AfterReply {
            assert_eq!(told.outcome(), CommitOutcome::Committed, "{kind:?}");
        }
    }
}

/// 203 runs at each of the three moments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_reply_to_commit_is_found_out_and_equals_the_ledger() {
    let began = Instant::now();
    let told = cuts(&KNOWN, rounds(29), None).await;
    all_known(&told);
    println!("{} runs in {:.1?}", told.len(), began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_takes_a_second_is_waited_for_and_equals_the_ledger() {
    let began = Instant::now();
    let told = cuts(&KNOWN, rounds(2), Some(1.0)).await;
    all_known(&told);
    println!("{} runs in {:.1?}", told.len(), began.elapsed());
}

/// The one limit: the transaction's id comes back in the flight that was lost, so there is nothing to ask with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_transaction_in_one_flight_is_told_truly_or_unknown() {
    let told = cuts(&[Kind::OneFlight], rounds(20), None).await;
    for (_, when, _, told) in &told {
        if let Err(error) = &told.result {
            let Error::CommitUnknown(unknown) = error else { panic!("{when:?} {error:?}") };
            assert_eq!(unknown.xid, None);
        }
    }
}

#[tokio::test]
async fn without_resolution_a_lost_reply_is_unknown_and_says_what_is_known() {
    let database = database(None).await;
    let proxy = Proxy::start_unix(&database.url()).await.unwrap();
    let db = pool(&proxy, |config| config.commit_resolution(CommitResolution::Off)).await;
    for (id, when) in (1..).zip(WHEN) {
        let before = std::time::SystemTime::now();
        drop(proxy.cut(when, commit()));
        let told = one(&db, Kind::OneStatement, id).await;
        let error = told.result.unwrap_err();
        assert!(!error.is_retryable() && error.commit_outcome() == CommitOutcome::Unknown && told.hooks == 0);
        let Error::CommitUnknown(unknown) = &error else { panic!("{error:?}") };
        assert!(unknown.sent_at >= before && unknown.sent_at <= std::time::SystemTime::now());
        assert_eq!(unknown.why, "commit_resolution is off");
        let text = error.to_string();
        assert!(text.contains("\"truth\" (tests/commit_truth.rs:") && text.contains("to find out:"), "{text}");
    }
    let stored = stored(&database).await;
    assert!(!stored.contains_key(&1) && stored.contains_key(&3), "{stored:?}");
    assert_eq!(db.stats().commit_unknown, 3);
}

/// Behind a write; an INSERT that comes first has it asked for with BEGIN.
fn question_for_the_id() -> Match {
    Match::new(|message| message.text.starts_with("SELECT pg_current_xact_id"))
}

#[tokio::test]
async fn a_connection_lost_before_commit_was_sent_is_not_committed() {
    let database = database(None).await;
    let proxy = Proxy::start_unix(&database.url()).await.unwrap();
    let db = pool(&proxy, |config| config).await;
    for (id, kind) in [(10, Kind::Nested), (20, Kind::ReadFirst)] {
        for warm in 1..4 {
            one(&db, kind, id + warm).await.result.unwrap();
        }
        let cut = proxy.cut(When::AfterReply, question_for_the_id());
        let error = one(&db, kind, id).await.result.unwrap_err();
        timeout(LONG, cut).await.unwrap();
        assert!(error.commit_outcome() == CommitOutcome::NotCommitted && error.is_retryable(), "{kind:?}: {error:?}");
    }
    assert!(stored(&database).await.keys().all(|id| id % 10 != 0));
}

#[tokio::test]
async fn the_last_flight_waits_for_the_id_instead_of_being_two() {
    use diesel_async::RunQueryDsl;
    let database = database(None).await;
    let proxy = Proxy::start_unix(&database.url()).await.unwrap();
    let db = pool(&proxy, |config| config.max_size(1)).await;
    for id in 1..4 {
        one(&db, Kind::CommitWith, id).await.result.unwrap();
    }
    proxy.hold_replies_to(question_for_the_id());
    let (before_last, reached) = tokio::sync::oneshot::channel();
    let release = async {
        reached.await.unwrap(); // and the last statement was polled since, in the same turn
        let commit_sent = proxy.until_sent(commit());
        proxy.release_one();
        timeout(LONG, commit_sent).await.expect("COMMIT is sent though the statement's reply is held back");
        proxy.release_all();
    };
    let scope = db.with_transaction(async |tx| {
        let row = |part: i32| diesel::insert_into(entries::table).values((entries::id.eq(9), entries::part.eq(part)));
        entries::table.count().get_result::<i64>(tx).await?;
        row(1).execute(tx).await?;
        before_last.send(()).unwrap();
        tx.commit_with(row(2)).await
    });
    let (stored, ()) = timeout(LONG, async { tokio::join!(scope, release) }).await.unwrap();
    assert_eq!(stored.unwrap(), 1);
}

#[tokio::test]
async fn a_read_only_transaction_is_never_unknown() {
    use diesel_async::RunQueryDsl;
    let database = database(None).await;
    let proxy = Proxy::start_unix(&database.url()).await.unwrap();
    let db = pool(&proxy, |config| config).await;
    let count = async |tx: &mut Transaction| Ok::<i64, Error>(entries::table.count().get_result(tx).await?);
    for when in WHEN {
        drop(proxy.cut(when, commit()));
        let error = db.transaction("reader").read_only().run(count).await.unwrap_err();
        assert!(error.is_retryable() && error.is_connection_lost(), "{error:?}");
        // So the attempt after it succeeds.
        drop(proxy.cut(when, commit()));
        assert_eq!(db.transaction("reader").read_only().run_retrying(count).await.unwrap(), 0);
        // Not said to be read-only, it may have written inside of a function that its SELECT called.
        drop(proxy.cut(when, commit()));
        let error = db.transaction("reader").run(count).await.unwrap_err();
        assert!(error.to_string().contains("read_only()"), "{error}");
        assert_eq!(error.commit_outcome(), CommitOutcome::Unknown);
    }
}

#[tokio::test]
async fn a_refused_last_statement_is_not_committed_although_the_reply_to_commit_is_lost() {
    use diesel_async::RunQueryDsl;
    let database = database(None).await;
    let proxy = Proxy::start_unix(&database.url()).await.unwrap();
    let db = pool(&proxy, |config| config).await;
    for id in 1..4 {
        one(&db, Kind::CommitWith, id).await.result.unwrap();
    }
    for when in [When::BeforeForward, When::AfterReply] {
        drop(proxy.cut(when, commit()));
        let twice = db.transaction("twice").run(async |tx| {
            let row = |id: i64| diesel::insert_into(entries::table).values((entries::id.eq(id), entries::part.eq(2)));
            diesel::insert_into(entries::table).values((entries::id.eq(9), entries::part.eq(1))).execute(tx).await?;
            tx.commit_with(row(3)).await
        });
        let error = twice.await.unwrap_err();
        // Before: the server may have been cut off before it had refused anything.
        assert!(error.is_unique_violation() || when == When::BeforeForward && error.is_connection_lost(), "{error:?}");
        assert_eq!(error.commit_outcome(), CommitOutcome::NotCommitted);
        for id in [100, 200, 300] {
            let id = id + i64::from(when == When::AfterReply);
            one(&db, Kind::CommitWith, id).await.result.unwrap();
        }
    }
    assert_eq!(stored(&database).await.len(), 9);
}

#[tokio::test]
async fn what_fails_after_commit_with_says_that_it_is_committed() {
    use diesel_async::RunQueryDsl;
    let database = database(None).await;
    let db = Database::connect(Config::from_url(&database.url()).unwrap().max_size(1)).await.unwrap();
    for id in 1..5 {
        let row = |part: i32| diesel::insert_into(entries::table).values((entries::id.eq(id), entries::part.eq(part)));
        let error = db.with_transaction(async |tx| {
            row(1).execute(tx).await?;
            tx.commit_with(row(2)).await?;
            Ok::<_, Error>(row(3).execute(tx).await?)
        });
        assert_eq!(error.await.unwrap_err().commit_outcome(), CommitOutcome::Committed);
        let error = db.with_transaction(async |tx| {
            let nothing = diesel::update(entries::table.filter(entries::id.eq(-id))).set(entries::part.eq(0));
            tx.commit_returning(nothing.returning(entries::id)).await
        });
        let error: Error = error.await.map(|_: i64| ()).unwrap_err();
        assert!(matches!(&error, Error::AnswerLost { source: diesel::result::Error::NotFound, .. }), "{error:?}");
        assert_eq!(error.commit_outcome(), CommitOutcome::Committed);
    }
    assert_eq!(stored(&database).await.len(), 4);
}
