//! Scoped transactions for PostgreSQL in async Rust, and the video metadata of T2M on top of them.
//!
//! Work runs in a scope. When the scope ends, however it ends (it returns, fails, panics, is dropped or passes its deadline),
//! the transaction is committed or rolled back, the caller is told the truth about which, and the connection is back in the
//! pool, clean.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use diesel::prelude::*;
//! use diesel_async::RunQueryDsl;
//! use t2m_db::{Config, Database, Error};
//!
//! diesel::table! { accounts (id) { id -> BigInt, balance -> BigInt } }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Error> {
//!     let db = Database::connect(Config::from_env()?).await?; // DATABASE_URL, T2M_DB_*
//!     let left: i64 = db
//!         .transaction("transfer")
//!         .deadline(Duration::from_secs(5)) // waiting, BEGIN, body, COMMIT and retries, on both sides of the wire
//!         .run_retrying(async |tx| {
//!             let paid = diesel::update(accounts::table.find(1)).set(accounts::balance.eq(accounts::balance - 10));
//!             let left = paid.returning(accounts::balance).get_result(tx).await?;
//!             let got = diesel::update(accounts::table.find(2)).set(accounts::balance.eq(accounts::balance + 10));
//!             got.execute(tx).await?;
//!             tx.after_commit(|_| println!("paid"));
//!             Ok::<_, Error>(left)
//!         })
//!         .await?; // Ok: committed. Err: not, unless `commit_outcome()` says otherwise.
//!     let all: Vec<i64> = db
//!         .with_connection(async |conn| Ok::<_, Error>(accounts::table.select(accounts::balance).load(conn).await?))
//!         .await?; // no transaction, one round trip
//!     println!("{left} left, {all:?} in all");
//!     println!("{:?}", db.close(Duration::from_secs(10)).await);
//!     Ok(())
//! }
//! ```
//!
//! # In reading order
//!
//! - [`Config`]: how to reach the server and how to keep connections to it.
//! - [`Database`]: the handle; scopes, statistics, health, migrations, the end.
//! - [`TransactionBuilder`], [`Transaction`], [`Connection`]: what a scope may be, and what its body gets.
//! - [`Error`]: what can go wrong, and what to do then.
//! - [`users`], [`jobs`], [`queue`], [`files`]: T2M's data, as functions on any [`Executor`]; [`types`] and [`schema`] are their words.
//! - `testing`, with the feature of that name: a PostgreSQL that starts itself and a database for each test.

mod error;

mod config;
mod wire;

mod connect;
mod statement;

mod pool;

mod transaction;

mod health;
mod listen;

mod bulk;
mod database;
mod executor;
mod migrate;

/// The tables, as `diesel print-schema` prints them.
#[expect(clippy::doc_markdown, reason = "generated from the comments of the database")]
pub mod schema;
pub mod types;

pub mod files;
pub mod jobs;
pub mod operations;
pub mod queue;
pub mod users;

#[cfg(feature = "testing")]
pub mod testing;

pub use config::{CommitResolution, Config, PasswordProvider, Retry, SessionReset};
pub use connect::{ConnectError, Phase as ConnectPhase};
pub use database::Database;
pub use error::{
    AbortReason, CheckoutTimeout, CommitOutcome, CommitUnknown, ConstraintKind, Error, Overloaded, Result,
    RetriesExhausted, SqlState,
};
pub use executor::Executor;
pub use health::{Health, HealthStatus};
pub use listen::{Listener, Wake};
pub use pool::{Checkout, CloseReport, Closed, Distribution, Phase, PoolStats};
pub use transaction::{Body, Committed, Connection, Isolation, Returning, Transaction, TransactionBuilder};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
