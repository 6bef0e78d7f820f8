//! What only this module can show: who migrates when many start at once, and what an interrupted one leaves.

use diesel_async::AsyncConnection;

use super::*;

/// A session as the pool opens them.
async fn session(url: &str) -> AsyncPgConnection {
    let mut conn = AsyncPgConnection::establish(url).await.unwrap();
    conn.batch_execute("SET default_transaction_read_only = on").await.unwrap();
    conn
}

fn count() -> usize {
    MigrationSource::<Pg>::migrations(&MIGRATIONS).unwrap().len()
}

#[tokio::test]
async fn ten_that_start_at_once_migrate_once() {
    let database = crate::testing::empty_database().await;
    let url = database.url();
    let mut starting = Vec::new();
    for _ in 0..10 {
        let url = url.clone();
        starting.push(tokio::spawn(async move { run(session(&url).await, ()).await }));
    }
    let mut applied = Vec::new();
    for one in starting {
        applied.push(one.await.unwrap().unwrap().len());
    }
    applied.sort_unstable();
    assert_eq!((applied[9], applied[8]), (count(), 0));
    assert!(pending(&mut session(&url).await).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pending_is_known_before_and_after() {
    let database = crate::testing::empty_database().await;
    let url = database.url();
    let mut conn = session(&url).await;
    let before = pending(&mut conn).await.unwrap();
    assert_eq!(before.len(), count());
    assert!(before[0].ends_with("_baseline") && before.is_sorted());
    assert_eq!(run(session(&url).await, ()).await.unwrap(), before);
    assert!(pending(&mut conn).await.unwrap().is_empty());
    assert!(run(session(&url).await, ()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_failure_names_its_migration_keeps_those_before_and_gives_the_lock_back() {
    let database = crate::testing::empty_database().await;
    let url = database.url();
    let mut conn = AsyncPgConnection::establish(&url).await.unwrap();
    conn.batch_execute("CREATE FUNCTION t2m_priority_rank(priority text) RETURNS text LANGUAGE sql RETURN priority")
        .await
        .unwrap();
    match run(session(&url).await, ()).await.unwrap_err() {
        Error::Migrate { migration, source } => {
            assert!(migration.ends_with("_harden_functions"), "{migration}");
            assert!(source.to_string().contains("t2m_priority_rank"), "{source}");
        }
        other => panic!("{other}"),
    }
    assert_eq!(pending(&mut conn).await.unwrap().len(), count() - 1);
    conn.batch_execute("DROP FUNCTION t2m_priority_rank(text)").await.unwrap();
    assert_eq!(run(session(&url).await, ()).await.unwrap().len(), count() - 1);
}

#[tokio::test]
async fn an_index_whose_building_was_cut_off_is_built_again() {
    let database = crate::testing::empty_database().await;
    let url = database.url();
    let mut conn = AsyncPgConnection::establish(&url).await.unwrap();
    run(session(&url).await, ()).await.unwrap();
    // What a cut-off leaves: the index there but not valid, and no record of it.
    conn.batch_execute(
        "DELETE FROM __diesel_schema_migrations WHERE version = '20261123082000';
         UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'users_email_idx'::regclass",
    )
    .await
    .unwrap();
    assert!(run(session(&url).await, ()).await.unwrap()[0].ends_with("_index_users_email"));
    let broken = diesel::dsl::exists(pg_index::table.filter(diesel::dsl::not(pg_index::indisvalid)));
    assert!(!diesel::select(broken).get_result::<bool>(&mut conn).await.unwrap());
}

diesel::table! {
    pg_index (indexrelid) {
        indexrelid -> Oid,
        indisvalid -> Bool,
    }
}
