//! Scopes: work that begins, runs, and ends one way or the other.
//!
//! Top to bottom: [`options`] says what is wanted, [`attempt`] runs the body once, [`retry`] again where that is safe,
//! [`commit`] ends it and tells the truth. Inside a scope, [`Transaction`] and [`Connection`] are diesel-async
//! connections of ours; every statement passes through [`scope`].

mod attempt;
mod body;
mod commit;
mod commit_with;
mod connection;
mod managers;
mod options;
mod resend;
mod resolve;
mod retry;
mod rows;
mod savepoint;
mod scope;
mod xid;

pub(crate) use attempt::read;
pub use body::Body;
pub use commit::Committed;
pub use commit_with::Returning;
pub use connection::{Connection, Transaction};
pub use options::{Isolation, TransactionBuilder};
