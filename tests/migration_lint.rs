//! What a migration must not do to a database that is in use, and what a schema must tell about itself.

use std::collections::BTreeSet;
use std::fs;

struct Migration {
    name: String,
    /// One line, upper case, without comments.
    up: String,
    in_transaction: bool,
    has_down: bool,
}

fn migrations() -> Vec<Migration> {
    let mut all: Vec<_> = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations"))
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let text = |file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
            let code: Vec<_> = text("up.sql").lines().map(|line| line.split("--").next().unwrap().to_owned()).collect();
            Migration {
                name: path.file_name().unwrap().to_string_lossy().into_owned(),
                up: code.join(" ").split_whitespace().collect::<Vec<_>>().join(" ").to_uppercase(),
                in_transaction: !text("metadata.toml").contains("run_in_transaction = false"),
                has_down: !text("down.sql").trim().is_empty(),
            }
        })
        .collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    all
}

/// What is wrong with a migration. `made` are the tables that it makes itself: not IF NOT EXISTS, for those may be in use.
fn faults(migration: &Migration, validated_before: bool) -> Vec<&'static str> {
    let Migration { up, in_transaction, has_down, .. } = migration;
    let made: BTreeSet<_> = up.split("CREATE TABLE ").skip(1).filter_map(|rest| rest.split(' ').next()).collect();
    let of_others = |statement: &str, before_table: &str| {
        let table = statement.split_once(before_table).and_then(|(_, rest)| rest.split([' ', '(']).next());
        table.is_some_and(|table| !made.contains(table))
    };
    let statements: Vec<_> = up.split(';').map(str::trim).collect();
    let mut faults = Vec::new();
    let mut fault = |is: bool, what| {
        if is {
            faults.push(what);
        }
    };
    fault(!has_down, "has no down.sql");
    for statement in &statements {
        // Anywhere: it may be in a block, or the text of an EXECUTE.
        let index = statement.contains("CREATE INDEX ") || statement.contains("CREATE UNIQUE INDEX ");
        let concurrent =
            ["CREATE INDEX C", "CREATE UNIQUE INDEX C", "DROP INDEX C"].iter().any(|it| statement.starts_with(it))
                && statement.contains("INDEX CONCURRENTLY");
        fault(index && of_others(statement, " ON ") && !concurrent, "builds an index that blocks writers");
        fault(concurrent && *in_transaction, "CONCURRENTLY inside a transaction");
        let alters = statement.contains("ALTER TABLE ") && of_others(statement, "ALTER TABLE ");
        // VALIDATE stands in nobody's way.
        let locks = alters && !statement.contains(" VALIDATE CONSTRAINT");
        fault(locks && !up.contains("LOCK_TIMEOUT"), "alters a table without a lock_timeout");
        let triggers = statement.contains("CREATE TRIGGER ") && of_others(statement, " ON ");
        fault(triggers && !up.contains("LOCK_TIMEOUT"), "adds a trigger without a lock_timeout");
        let adds =
            statement.contains("ADD CONSTRAINT") && (statement.contains("CHECK (") || statement.contains("REFERENCES"));
        fault(
            alters && adds && !statement.contains("NOT VALID"),
            "adds a constraint that reads the table under its lock",
        );
        fault(
            alters && statement.contains("SET NOT NULL") && !validated_before,
            "SET NOT NULL without a validated check",
        );
    }
    fault(up.contains("NOT VALID") && up.contains("VALIDATE CONSTRAINT"), "validates in the migration that adds");
    faults
}

#[test]
fn no_migration_blocks_a_database_in_use() {
    let mut validated = false;
    let mut found = Vec::new();
    for migration in migrations() {
        found.extend(faults(&migration, validated).into_iter().map(|fault| format!("{}: {fault}", migration.name)));
        validated |= migration.up.contains("VALIDATE CONSTRAINT");
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_linter_finds_what_it_is_for() {
    let bad = |up: &str, in_transaction| {
        let migration = Migration { name: "m".into(), up: up.to_uppercase(), in_transaction, has_down: true };
        faults(&migration, false)
    };
    assert!(bad("create table t (id int); create index i on t (id)", true).is_empty());
    assert_eq!(bad("create index i on jobs (id)", true), ["builds an index that blocks writers"]);
    assert_eq!(bad("create index concurrently i on jobs (id)", true).len(), 1);
    assert!(bad("create index concurrently i on jobs (id)", false).is_empty());
    let in_block = "do $$ begin execute format('create index %i on %i (%s)', a, b, c); end $$";
    assert_eq!(bad(in_block, true), ["builds an index that blocks writers"]);
    let maybe_made = "create table if not exists jobs (id int); alter table jobs add column if not exists x int";
    assert_eq!(bad(maybe_made, true), ["alters a table without a lock_timeout"]);
    let trigger = "create trigger t before update on jobs for each row execute function f()";
    assert_eq!(bad(trigger, true), ["adds a trigger without a lock_timeout"]);
    assert_eq!(bad("alter table jobs add x int", true), ["alters a table without a lock_timeout"]);
    let timed = "set local lock_timeout = '1s'; alter table jobs ";
    assert!(bad(&format!("{timed} add constraint c check (x > 0) not valid"), true).is_empty());
    assert_eq!(bad(&format!("{timed} add constraint c check (x > 0)"), true).len(), 1);
    assert_eq!(bad(&format!("{timed} alter x set not null"), true).len(), 1);
    let both = format!("{timed} add constraint c check (x > 0) not valid; alter table jobs validate constraint c");
    assert_eq!(bad(&both, true), ["validates in the migration that adds"]);
}

/// Rules asked of the migrated database; each returns what breaks it.
const SCHEMA: &[(&str, &str)] = &[
    (
        "every table is commented",
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' \
         AND relname NOT LIKE '\\_\\_%' AND obj_description(oid, 'pg_class') IS NULL",
    ),
    (
        "every column is commented",
        "SELECT attrelid::regclass || '.' || attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid \
         WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname NOT LIKE '\\_\\_%' \
         AND attnum > 0 AND NOT attisdropped AND col_description(attrelid, attnum) IS NULL",
    ),
    (
        "every foreign key is indexed",
        "SELECT conname::text FROM pg_constraint WHERE contype = 'f' AND NOT EXISTS (SELECT FROM pg_index \
         WHERE indrelid = conrelid AND (indkey::int2[])[0:cardinality(conkey) - 1] @> conkey AND indisvalid)",
    ),
    ("every constraint is validated", "SELECT conname::text FROM pg_constraint WHERE NOT convalidated"),
    ("every index is valid", "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"),
    (
        "every time is in a time zone",
        "SELECT table_name || '.' || column_name FROM information_schema.columns WHERE table_schema = 'public' \
         AND data_type = 'timestamp without time zone' AND table_name NOT LIKE '\\_\\_%' AND table_name <> 'migration_log'",
    ),
];

#[tokio::test]
async fn the_migrated_schema_keeps_its_rules() {
    let database = t2m_db::testing::database().await;
    let client = database.client().await.unwrap();
    for (rule, query) in SCHEMA {
        let broken: Vec<String> = client.query(*query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert!(broken.is_empty(), "{rule}, but not {broken:?}");
    }
}
