//! SQL functions that queries use: those of the migrations, and PostgreSQL's own that diesel has no name for.

// The macro writes helper types that nobody documents and not everybody uses.
#![allow(missing_docs, unreachable_pub, dead_code)]

use diesel::expression::functions::declare_sql_function;
use diesel::sql_types::{Double, Jsonb, Nullable, Numeric, Text, Timestamptz};

#[declare_sql_function]
extern "SQL" {
    /// Order of a priority, the most pressing first.
    fn t2m_priority_rank(priority: Text) -> SmallInt;

    /// Whether a queue entry may still be claimed.
    fn t2m_queue_is_open(queue_status: Text) -> Bool;

    /// Whether a worker holds a queue entry.
    fn t2m_queue_is_held(queue_status: Text) -> Bool;

    /// Whether nothing more will happen to a job.
    fn t2m_job_is_finished(status: Text) -> Bool;

    /// Whether a user counts as active.
    fn t2m_user_is_active(status: Text) -> Bool;

    /// Where in its video a thumbnail was taken, in seconds.
    fn t2m_thumbnail_at(details: Jsonb) -> Nullable<Double>;

    /// The document with one counter raised by one.
    fn t2m_count(details: Jsonb, counter: Text, at: Timestamptz) -> Jsonb;

    /// Some seconds from the start of this transaction; before it, if negative.
    fn t2m_from_now(seconds: Double) -> Timestamptz;

    /// The first argument unless it is NULL.
    #[sql_name = "coalesce"]
    fn coalesce(value: Nullable<Timestamptz>, other: Nullable<Timestamptz>) -> Nullable<Timestamptz>;

    /// The first argument unless it is NULL.
    #[sql_name = "coalesce"]
    fn coalesce_text(value: Nullable<Text>, other: Nullable<Text>) -> Nullable<Text>;

    /// The first argument unless it is NULL.
    #[sql_name = "coalesce"]
    fn coalesce_numeric(value: Nullable<Numeric>, other: Nullable<Numeric>) -> Nullable<Numeric>;
}
