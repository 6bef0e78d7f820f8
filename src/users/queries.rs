//! Queries on users.

use diesel::dsl::{array, case_when, jsonb_typeof, not, now};
use diesel::prelude::*;
use diesel::sql_types::{Jsonb, Record, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use futures_util::try_join;

use super::{NewUser, User, UserChanges, UserRemoved};
use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::schema::{file_metadata, job_queue, jobs, users};
use crate::types::sql::{t2m_job_is_finished, t2m_queue_is_open, t2m_user_is_active};
use crate::types::{Cursor, JobStatus, List, Page, PageSize, QueueStatus, UserId, page_of, text};

/// Signs a user in: stores a new one, or brings what Clerk says up to date; a deleted account comes back.
///
/// One round trip, by the unique index on the Clerk id. Two sign-ins at once end as one user.
///
/// # Errors
///
/// [`Error::Invalid`] names a field that does not fit.
pub async fn upsert(conn: &mut impl Executor, user: &NewUser) -> Result<User> {
    user.check()?;
    Ok(diesel::insert_into(users::table)
        .values((user, users::last_sign_in_at.eq(now), users::last_active_at.eq(now)))
        .on_conflict(users::clerk_user_id)
        .do_update()
        .set((
            user,
            users::last_sign_in_at.eq(now),
            users::last_active_at.eq(now),
            users::is_deleted.eq(false),
            users::deleted_at.eq(None::<chrono::DateTime<chrono::Utc>>),
        ))
        .returning(User::as_returning())
        .get_result(conn)
        .await?)
}

/// Stores a new user.
///
/// One round trip, by the unique index on the Clerk id. A Clerk id that is taken does not abort the transaction.
///
/// # Errors
///
/// [`Error::Invalid`] names a field that does not fit, or `user.clerk_user_id` if there is one with it, deleted ones included.
pub async fn create(conn: &mut impl Executor, user: &NewUser) -> Result<User> {
    user.check()?;
    diesel::insert_into(users::table)
        .values(user)
        .on_conflict(users::clerk_user_id)
        .do_nothing()
        .returning(User::as_returning())
        .get_result(conn)
        .await
        .optional()?
        .ok_or_else(|| Error::Invalid {
            field: "user.clerk_user_id",
            value: format!("{:?}", user.clerk_user_id),
            allowed: "a Clerk id that no user has".into(),
        })
}

/// The user with this id. One round trip, by primary key.
pub async fn find(conn: &mut impl Executor, id: UserId) -> Result<Option<User>> {
    let found = users::table.find(id).filter(not(users::is_deleted)).select(User::as_select());
    Ok(found.first(conn).await.optional()?)
}

/// The user whom Clerk knows by this id. One round trip, by the unique index.
pub async fn find_by_clerk_id(conn: &mut impl Executor, clerk_user_id: &str) -> Result<Option<User>> {
    text("user.clerk_user_id", clerk_user_id, 255)?;
    let found = users::table.filter(users::clerk_user_id.eq(clerk_user_id)).filter(not(users::is_deleted));
    Ok(found.select(User::as_select()).first(conn).await.optional()?)
}

/// The user with this primary e-mail address, letter by letter. One round trip, by `users_email_idx`.
///
/// Addresses are not unique: of several the one who verified it counts, then the newest.
pub async fn find_by_email(conn: &mut impl Executor, primary_email: &str) -> Result<Option<User>> {
    text("user.primary_email", primary_email, 255)?;
    let found = users::table
        .filter(users::primary_email.eq(primary_email))
        .filter(not(users::is_deleted))
        .order((users::email_verified.desc(), users::created_at.desc(), users::id.desc()))
        .select(User::as_select());
    Ok(found.first(conn).await.optional()?)
}

/// Changes of this user what [`UserChanges`] names; `user_metadata` is merged key by key. One round trip, by primary key.
///
/// # Errors
///
/// [`Error::NotFound`]; [`Error::Invalid`] names a field that does not fit.
pub async fn update(conn: &mut impl Executor, id: UserId, changes: &UserChanges) -> Result<User> {
    changes.check()?;
    let merged = changes.user_metadata.as_ref().map(|new| {
        users::user_metadata.eq(case_when(
            jsonb_typeof(users::user_metadata).eq("object"), // SQLAlchemy stores JSON's null for None
            users::user_metadata.concat(new),
        )
        .otherwise(new.into_sql::<Jsonb>()))
    });
    diesel::update(users::table.find(id).filter(not(users::is_deleted)))
        .set((changes, merged, users::updated_at.eq(now))) // also when there is nothing to change: an empty SET is no SQL
        .returning(User::as_returning())
        .get_result(conn)
        .await
        .optional()?
        .ok_or(Error::NotFound { entity: "user" })
}

/// Active users, the newest first; for operators. One round trip, by `users_active_idx`, the same at any depth.
///
/// # Errors
///
/// [`Error::Invalid`] for a cursor of another list.
pub async fn list_active(conn: &mut impl Executor, size: PageSize, after: Option<Cursor>) -> Result<Page<User>> {
    let below = Cursor::key(after, List::Users)?;
    let rows = users::table
        .filter(not(users::is_deleted))
        .filter(t2m_user_is_active(users::status))
        .filter((users::created_at, users::id).into_sql::<Record<(Timestamptz, SqlUuid)>>().lt(below))
        .order((users::created_at.desc(), users::id.desc()))
        .limit(size.get() + 1)
        .select(User::as_select())
        .load(conn)
        .await?;
    Ok(page_of(rows, size, |user: &User| Cursor::new(List::Users, user.created_at, user.id.as_uuid())))
}

/// Deletes a user together with all jobs and files; what waits in the queue or runs is called off.
///
/// What is being stored for this user at the same time is waited for and goes too, or is refused.
/// Three round trips, the files in the flight of the queue: run it in a transaction. By primary key, and by the indexes of
/// jobs and files that begin with their owner. A worker that is at one of the jobs learns of it at its next heartbeat.
///
/// # Errors
///
/// [`Error::NotFound`], before anything was changed.
pub async fn soft_delete<C: Executor>(conn: &mut C, id: UserId) -> Result<UserRemoved>
where
    for<'c> &'c C: Executor,
{
    // The UPDATE alone would not lock the key: who stores something for this user then neither sees it nor is seen.
    let locked = diesel::alias!(users as locked_users);
    let locked = locked.filter(locked.field(users::id).eq(id)).select(locked.field(users::id)).for_update();
    let gone = diesel::update(
        users::table.filter(users::id.eq_any(array::<SqlUuid, _>(locked))).filter(not(users::is_deleted)),
    )
    .set((users::is_deleted.eq(true), users::deleted_at.eq(now)))
    .execute(conn)
    .await?;
    if gone == 0 {
        return Err(Error::NotFound { entity: "user" });
    }
    // The queue before the jobs, as everywhere: two transactions that meet here wait, and do not deadlock.
    let theirs = jobs::table
        .filter(jobs::user_id.eq(id))
        .filter(not(jobs::is_deleted))
        .filter(jobs::status.eq_any([JobStatus::Created, JobStatus::Queued, JobStatus::Processing]))
        .select(jobs::id);
    let call_off = diesel::update(job_queue::table)
        .filter(job_queue::job_id.eq_any(array::<SqlUuid, _>(theirs))) // an array: by index, where a join would read the queue
        .filter(t2m_queue_is_open(job_queue::queue_status))
        .set((
            job_queue::queue_status.eq(QueueStatus::Cancelled),
            job_queue::completed_at.eq(now),
            job_queue::updated_at.eq(now),
            job_queue::lease_expires_at.eq(None::<chrono::DateTime<chrono::Utc>>),
        ));
    let files = diesel::update(file_metadata::table)
        .filter(file_metadata::user_id.eq(id))
        .filter(not(file_metadata::is_deleted))
        .set((file_metadata::is_deleted.eq(true), file_metadata::deleted_at.eq(now)));
    let (mut one, mut other) = (&*conn, &*conn);
    let (_, files) = try_join!(call_off.execute(&mut one), files.execute(&mut other))?;
    let jobs = diesel::update(jobs::table)
        .filter(jobs::user_id.eq(id))
        .filter(not(jobs::is_deleted))
        .set((
            jobs::is_deleted.eq(true),
            jobs::deleted_at.eq(now),
            jobs::status.eq(case_when(t2m_job_is_finished(jobs::status), jobs::status)
                .when(jobs::status.eq(JobStatus::Archived), jobs::status)
                .otherwise(JobStatus::Cancelled.into_sql::<diesel::sql_types::Text>())),
        ))
        .execute(conn)
        .await?;
    Ok(UserRemoved { jobs, files })
}
