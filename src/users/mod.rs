//! Users: who signed in through Clerk.
//!
//! A user is the owner of everything else, so its own id is the owner check of most functions here. Looking one up by Clerk
//! id or e-mail is how a request finds out who is asking; listing and counting all of them is for operators.
//!
//! Signing in comes before anybody is known to ask, so [`upsert`], [`create`] and [`create_many`] run without
//! [`as_user`](crate::TransactionBuilder::as_user): its policy refuses the row of a user who is not there yet.
//!
//! A deleted user is not found by anything but [`upsert`], which brings the account back when Clerk lets them in again;
//! their jobs and files stay deleted.

mod many;
mod queries;
mod row;
mod statistics;

pub use many::create_many;
pub use queries::{create, find, find_by_clerk_id, find_by_email, list_active, soft_delete, update, upsert};
pub use row::{NewUser, User, UserChanges, UserRemoved};
pub use statistics::{SystemStatistics, Tally, UserStatistics, statistics, system_statistics};
