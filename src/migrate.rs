//! Embedded migrations: applied once, however many processes start at once.
//!
//! Whoever comes first holds an advisory lock; the others ask for it again and again. They must never *wait* for it inside
//! of a statement: the snapshot of a waiting statement holds up `CREATE INDEX CONCURRENTLY`, and so the very process that
//! they wait for.

use std::time::Duration;

use diesel::expression::functions::declare_sql_function;
use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::error::{Error, Result};
use crate::executor::Executor;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// Key of the advisory lock: the ASCII letters `t2m-db`, so that `pg_locks` can be read.
const LOCK: i64 = 0x0074_326d_2d64_6200;

diesel::table! {
    __diesel_schema_migrations (version) {
        version -> Text,
        run_on -> Timestamp,
    }
}

#[declare_sql_function]
extern "SQL" {
    fn pg_try_advisory_lock(key: BigInt) -> Bool;
    fn pg_advisory_unlock(key: BigInt) -> Bool;
    fn to_regclass(name: Text) -> Nullable<Oid>;
}

/// Applies what is pending and returns the names of the migrations that it applied, in order.
///
/// Takes a connection of its own and closes it: the session is made writable, and holds the lock. `place` is dropped when
/// the connection is.
///
/// # Errors
///
/// [`Error::Migrate`] names the migration that failed; the ones before it stay applied.
///
/// # Cancel safety
///
/// Safe at any point. Until the lock is held nothing has happened; from then on the migrations run to their end on a
/// thread of their own, although nobody waits for them.
pub(crate) async fn run(mut conn: AsyncPgConnection, place: impl Send + 'static) -> Result<Vec<String>> {
    conn.batch_execute("SET default_transaction_read_only = off").await?;
    while !diesel::select(pg_try_advisory_lock(LOCK)).get_result(&mut conn).await? {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(20..100))).await;
    }
    let applying = tokio::task::spawn_blocking(move || {
        let applied = apply(conn);
        drop(place);
        applied
    });
    applying.await.unwrap_or_else(|join| match join.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(cancelled) => Err(failed("(not begun)", cancelled.into())),
    })
}

/// The names of the migrations that this database still lacks, in order. Two round trips; changes nothing.
pub(crate) async fn pending(conn: &mut impl Executor) -> Result<Vec<String>> {
    let exists = diesel::select(to_regclass("__diesel_schema_migrations").is_not_null());
    let applied: Vec<String> = if exists.get_result(conn).await? {
        __diesel_schema_migrations::table.select(__diesel_schema_migrations::version).load(conn).await?
    } else {
        Vec::new()
    };
    let mut all = MigrationSource::<Pg>::migrations(&MIGRATIONS).map_err(|source| failed("(embedded)", source))?;
    all.sort_by(|one, other| one.name().version().cmp(&other.name().version()));
    all.retain(|migration| !applied.contains(&migration.name().version().to_string()));
    Ok(all.iter().map(|migration| migration.name().to_string()).collect())
}

/// diesel's migrations are synchronous; this runs on a blocking thread, so it works on every kind of runtime.
fn apply(conn: AsyncPgConnection) -> Result<Vec<String>> {
    let mut conn: AsyncConnectionWrapper<AsyncPgConnection> = conn.into();
    let mut applied = Vec::new();
    let pending = conn.pending_migrations(MIGRATIONS).map_err(|source| failed("(list)", source))?;
    for migration in pending {
        let name = migration.name().to_string();
        apply_one(&mut conn, &*migration).map_err(|source| failed(&name, source))?;
        applied.push(name);
    }
    // Given back by hand: closing the connection would do it too, but a little later than our caller goes on.
    diesel::RunQueryDsl::execute(diesel::select(pg_advisory_unlock(LOCK)), &mut conn)?;
    Ok(applied)
}

fn apply_one(
    conn: &mut AsyncConnectionWrapper<AsyncPgConnection>,
    migration: &dyn Migration<Pg>,
) -> diesel::migration::Result<()> {
    if !migration.metadata().run_in_transaction() {
        // An earlier try may have been cut off and left half of it, such as an index that is not valid. The way back of
        // such a migration is written so that it can always be gone.
        migration.revert(conn)?;
    }
    conn.run_migration(migration)?;
    Ok(())
}

fn failed(migration: &str, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::Migrate { migration: migration.to_owned(), source }
}

#[cfg(test)]
mod tests;
