//! Migrations: the same schema from wherever one starts, no row lost, nobody kept waiting.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use diesel_migrations::MigrationHarness;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::domain_support::{MIGRATIONS, empty, fresh, migrate, with_harness};

const PYTHON: &str = include_str!("fixtures/python_layer.sql");

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn lines(client: &Client, sql: &str) -> BTreeSet<String> {
    let messages = client.simple_query(sql).await.unwrap();
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

/// Everything about the schema that is not a matter of taste: the order of columns is.
async fn schema(url: &str) -> BTreeSet<String> {
    lines(
        &connect(url).await,
        "SELECT concat_ws(' ', 'column', attrelid::regclass, attname, format_type(atttypid, atttypmod),
                CASE WHEN attnotnull THEN 'not null' END, pg_get_expr(adbin, adrelid), col_description(attrelid, attnum))
            FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
            WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
        UNION ALL SELECT concat_ws(' ', 'table', oid::regclass, relrowsecurity, obj_description(oid)) FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
        UNION ALL SELECT concat_ws(' ', 'constraint', conrelid::regclass, conname, convalidated, pg_get_constraintdef(oid))
            FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT concat_ws(' ', 'index', indisvalid, pg_get_indexdef(indexrelid)) FROM pg_index
            JOIN pg_class ON pg_class.oid = indexrelid WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT concat_ws(' ', 'trigger', pg_get_triggerdef(oid)) FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT concat_ws(' ', 'function', pg_get_functiondef(oid), obj_description(oid)) FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace
              AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')
        UNION ALL SELECT concat_ws(' ', 'policy', tablename, policyname, qual, with_check) FROM pg_policies",
    )
    .await
}

/// Every row with every value that was there before; a NULL may have become a default.
async fn rows(url: &str) -> BTreeSet<String> {
    lines(
        &connect(url).await,
        "SET TimeZone = 'UTC';
         SELECT 'user ' || id || clerk_user_id || coalesce(updated_at::timestamp::text, '') || primary_email FROM users
         UNION ALL SELECT 'job ' || id || user_id || configuration || coalesce(status, 'queued') || coalesce(priority, 'normal') FROM jobs
         UNION ALL SELECT 'entry ' || id || job_id || CASE WHEN queued_at < now() - interval '12 hours' THEN queued_at::timestamp::text ELSE 'lately' END FROM job_queue
         UNION ALL SELECT 'file ' || id || user_id || job_id || file_type || coalesce(file_metadata, '{}')::text FROM file_metadata
         UNION ALL SELECT 'log ' || version FROM migration_log",
    )
    .await
}

fn difference(one: &BTreeSet<String>, other: &BTreeSet<String>) -> Vec<String> {
    one.symmetric_difference(other).cloned().collect()
}

fn without_result_url() -> String {
    PYTHON.replace("    result_url varchar(500),\n", "")
}

#[tokio::test]
async fn a_database_of_python_ends_with_the_schema_of_a_fresh_one_and_loses_no_row() {
    let wanted = schema(&fresh().await.url).await;
    assert_ne!(without_result_url(), PYTHON);
    for python in [PYTHON.to_owned(), without_result_url()] {
        let mut db = empty().await;
        db.conn.batch_execute(&python).await.unwrap();
        db.conn.batch_execute("UPDATE job_queue SET queued_at = queued_at - interval '1 day'").await.unwrap();
        let before = rows(&db.url).await;
        assert!(before.len() > 900, "{}", before.len());
        migrate(&db.url).await;
        assert_eq!(difference(&schema(&db.url).await, &wanted), Vec::<String>::new());
        assert_eq!(difference(&rows(&db.url).await, &before), Vec::<String>::new());
    }
}

#[tokio::test]
async fn every_way_back_works_and_the_way_forth_again() {
    let db = fresh().await;
    let wanted = schema(&db.url).await;
    let url = db.url.clone();
    with_harness(&url, |conn| {
        let count = conn.revert_all_migrations(MIGRATIONS).unwrap().len();
        assert_eq!(conn.run_pending_migrations(MIGRATIONS).unwrap().len(), count);
        // Each alone, from the last to the first and back: a way back may not lean on a later one.
        for steps in 1..=count {
            for _ in 0..steps {
                conn.revert_last_migration(MIGRATIONS).unwrap();
            }
            conn.run_pending_migrations(MIGRATIONS).unwrap();
        }
    })
    .await;
    assert_eq!(difference(&schema(&db.url).await, &wanted), Vec::<String>::new());
}

#[tokio::test]
async fn reverting_everything_gives_python_its_schema_back_and_keeps_its_rows() {
    let mut db = empty().await;
    db.conn.batch_execute(PYTHON).await.unwrap();
    migrate(&db.url).await;
    let before = rows(&db.url).await;
    let reverted = async |url: &str| {
        with_harness(url, |conn| {
            conn.revert_all_migrations(MIGRATIONS).unwrap();
        })
        .await;
    };
    reverted(&db.url).await;
    assert_eq!(difference(&rows(&db.url).await, &before), Vec::<String>::new());
    let columns = "SELECT concat_ws(' ', table_name, column_name, data_type, is_nullable, character_maximum_length, numeric_precision)
        FROM information_schema.columns WHERE table_schema = 'public' AND table_name NOT LIKE '\\_\\_diesel%'";
    let python = empty().await;
    connect(&python.url).await.batch_execute(PYTHON).await.unwrap();
    let theirs = lines(&connect(&python.url).await, columns).await;
    assert_eq!(difference(&lines(&connect(&db.url).await, columns).await, &theirs), Vec::<String>::new());
    let wanted = schema(&fresh().await.url).await;
    migrate(&db.url).await;
    assert_eq!(difference(&schema(&db.url).await, &wanted), Vec::<String>::new());
    // Without rows nothing is left but the extension.
    let bare = fresh().await;
    reverted(&bare.url).await;
    let left = lines(
        &connect(&bare.url).await,
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'",
    )
    .await;
    assert_eq!(left, ["__diesel_schema_migrations".to_owned()].into());
}

#[tokio::test]
async fn a_trigger_of_python_that_does_more_than_set_updated_at_stays() {
    let mut db = empty().await;
    db.conn.batch_execute(PYTHON).await.unwrap();
    // One has the name that ours would have, too.
    let more = "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.updated_at = now();
            PERFORM pg_notify('told', NEW.id::text);
            RETURN NEW;
        END $$;
        CREATE TRIGGER users_tell BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION tell();
        CREATE TRIGGER update_jobs_updated_at BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION tell()";
    db.conn.batch_execute(more).await.unwrap();
    migrate(&db.url).await;
    let triggers = "SELECT tgrelid::regclass || ' ' || tgname || ' ' || tgfoid::regproc FROM pg_trigger
        WHERE tgname ~ '_tell$|_touch$|updated_at$'";
    let wanted = [
        "users users_tell tell",
        "users update_users_updated_at update_updated_at_column",
        "jobs update_jobs_updated_at tell",
        "file_metadata update_file_metadata_updated_at update_updated_at_column",
    ];
    assert_eq!(lines(&connect(&db.url).await, triggers).await, wanted.map(str::to_owned).into());
}

#[tokio::test]
async fn no_table_is_rewritten() {
    let mut db = empty().await;
    db.conn.batch_execute(PYTHON).await.unwrap();
    let files = "SELECT relname || ' ' || relfilenode FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname NOT LIKE '\\_\\_diesel%' AND relname <> 'operations'";
    let before = lines(&connect(&db.url).await, files).await;
    migrate(&db.url).await;
    assert_eq!(lines(&connect(&db.url).await, files).await, before);
}

/// Python, writing as it does, until told to stop; returns the longest that one statement took, and how many there were.
async fn write(url: String, stop: Arc<AtomicBool>, sql: [&'static str; 4]) -> (Duration, usize) {
    let client = connect(&url).await;
    client.batch_execute("SET TimeZone = 'UTC'").await.unwrap();
    let (mut longest, mut count) = (Duration::ZERO, 0);
    while !stop.load(Ordering::Relaxed) {
        for sql in sql {
            let begun = Instant::now();
            client.batch_execute(sql).await.unwrap();
            longest = longest.max(begun.elapsed());
            count += 1;
        }
    }
    (longest, count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_goes_on_writing_while_its_database_is_migrated() {
    for python in [PYTHON.to_owned(), without_result_url()] {
        goes_on_writing_while_it_is_migrated(&python).await;
    }
}

async fn goes_on_writing_while_it_is_migrated(python: &str) {
    let mut db = empty().await;
    db.conn.batch_execute(python).await.unwrap();
    db.conn
        .batch_execute(
            "INSERT INTO file_metadata (user_id, file_type, original_filename, stored_filename, s3_bucket, s3_key, file_size, content_type, tags)
             SELECT id, 'video', 'o', 's', 'b', 'k', 1, 'c', NULL FROM users, generate_series(1, 1000)",
        )
        .await
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers = [
        [
            "INSERT INTO users (clerk_user_id, is_deleted, role) VALUES ('py_' || gen_random_uuid(), NULL, NULL)",
            "UPDATE users SET last_active_at = now() WHERE clerk_user_id = 'clerk_1'",
            "UPDATE users SET status = NULL WHERE clerk_user_id = 'clerk_2'",
            "SELECT count(*) FROM users WHERE is_deleted = false AND status = 'active'",
        ],
        [
            "INSERT INTO jobs (user_id, configuration, priority) SELECT id, '{}', NULL FROM users WHERE clerk_user_id = 'clerk_1'",
            "INSERT INTO job_queue (job_id, retry_count) SELECT id, NULL FROM jobs WHERE NOT EXISTS (SELECT FROM job_queue WHERE job_id = jobs.id) LIMIT 1",
            "UPDATE jobs SET progress_percentage = 50, stages_completed = NULL WHERE user_id = (SELECT id FROM users WHERE clerk_user_id = 'clerk_3')",
            "INSERT INTO file_metadata (user_id, file_type, original_filename, stored_filename, s3_bucket, s3_key, file_size, content_type, is_deleted)
             SELECT id, 'video', 'o', 's', 'b', 'k', 1, 'c', NULL FROM users WHERE clerk_user_id = 'clerk_4'",
        ],
    ];
    let tasks = writers.map(|sql| tokio::spawn(write(db.url.clone(), stop.clone(), sql)));
    // Somebody holds a transaction open on the tables that the first steps want.
    let holder = connect(&db.url).await;
    holder.batch_execute("BEGIN; SELECT FROM users LIMIT 1; SELECT FROM jobs LIMIT 1").await.unwrap();
    let url = db.url.clone();
    let migrating = tokio::spawn(async move { migrate(&url).await });
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(!migrating.is_finished());
    holder.batch_execute("COMMIT").await.unwrap();
    migrating.await.unwrap();
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        let (longest, count) = task.await.unwrap();
        assert!(count > 100, "{count}");
        // 200 ms is what one try for its locks may hold up others; the rest is a slow machine's.
        assert!(longest < Duration::from_millis(900), "{longest:?} in {count} statements");
    }
    assert_eq!(difference(&schema(&db.url).await, &schema(&fresh().await.url).await), Vec::<String>::new());
}

#[tokio::test]
async fn the_schema_keeps_its_own_rules() {
    let db = fresh().await;
    let client = connect(&db.url).await;
    let none = async |rule: &str, sql: &str| {
        assert_eq!(lines(&client, sql).await, BTreeSet::new(), "{rule}");
    };
    none(
        "every table is commented",
        "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
             AND relname NOT LIKE '\\_\\_diesel%' AND obj_description(oid) IS NULL",
    )
    .await;
    none(
        "every column is commented",
        "SELECT attrelid::regclass || '.' || attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
             WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname NOT LIKE '\\_\\_diesel%'
             AND attnum > 0 AND NOT attisdropped AND col_description(attrelid, attnum) IS NULL",
    )
    .await;
    none(
        "every foreign key is the first of an index that has every row with a key",
        "SELECT conrelid::regclass || ' ' || conname FROM pg_constraint WHERE contype = 'f' AND NOT EXISTS (
             SELECT FROM pg_index WHERE indrelid = conrelid AND indkey[0] = conkey[1]
             AND (indpred IS NULL OR pg_get_expr(indpred, indrelid) = (SELECT '(' || attname || ' IS NOT NULL)'
                 FROM pg_attribute WHERE attrelid = conrelid AND attnum = conkey[1])))",
    )
    .await;
    none(
        "every time has a zone",
        "SELECT table_name || '.' || column_name FROM information_schema.columns WHERE table_schema = 'public'
             AND data_type = 'timestamp without time zone' AND table_name NOT IN ('__diesel_schema_migrations', 'migration_log')",
    )
    .await;
    none(
        "what has a default is never NULL",
        "SELECT table_name || '.' || column_name FROM information_schema.columns WHERE table_schema = 'public'
             AND column_default IS NOT NULL AND is_nullable = 'YES' AND table_name <> 'migration_log'",
    )
    .await;
    none("every constraint is proved", "SELECT conname FROM pg_constraint WHERE NOT convalidated").await;
    none("every index is whole", "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid").await;
    let settings = "SELECT unnest(setconfig) FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase WHERE datname = current_database()";
    let mut python = empty().await;
    python.conn.batch_execute(PYTHON).await.unwrap();
    migrate(&python.url).await;
    assert_eq!(lines(&connect(&python.url).await, settings).await, ["TimeZone=UTC".to_owned()].into());
}

#[tokio::test]
async fn the_table_itself_refuses_what_is_not_listed() {
    let mut db = fresh().await;
    let good = "INSERT INTO users (clerk_user_id) VALUES ('c');
        INSERT INTO jobs (user_id, configuration) SELECT id, '{}' FROM users;
        INSERT INTO job_queue (job_id) SELECT id FROM jobs;
        INSERT INTO file_metadata (user_id, file_type, original_filename, stored_filename, s3_bucket, s3_key, file_size, content_type)
            SELECT id, 'audio', '', '', '', '', 0, '' FROM users";
    db.conn.batch_execute(good).await.unwrap();
    let bad = [
        ("UPDATE jobs SET status = 'Queued'", "jobs_status_check"),
        ("UPDATE jobs SET priority = 'soon'", "jobs_priority_check"),
        ("UPDATE jobs SET job_type = ''", "jobs_job_type_check"),
        ("UPDATE job_queue SET priority = 'soon'", "job_queue_priority_check"),
        ("UPDATE file_metadata SET file_size = -1", "file_metadata_file_size_check"),
    ];
    for (sql, constraint) in bad {
        let error = db.conn.batch_execute(sql).await.unwrap_err().to_string();
        assert!(error.contains(constraint), "{error}");
    }
    refuses_nothing_that_python_writes(&mut db.conn).await;
}

async fn refuses_nothing_that_python_writes(conn: &mut AsyncPgConnection) {
    conn.batch_execute(
        "UPDATE users SET role = 'moderator', status = 'banned', is_deleted = NULL;
         UPDATE job_queue SET queue_status = 'paused', retry_count = NULL;
         UPDATE file_metadata SET file_type = 'subtitle', tags = NULL;
         UPDATE jobs SET priority = NULL, status = NULL, created_at = NULL",
    )
    .await
    .unwrap();
}
