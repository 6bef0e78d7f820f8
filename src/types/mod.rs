//! The words of the domain: ids, text values, documents, pages.
//!
//! They turn the loose types of the tables (`uuid`, `varchar`, `jsonb`) into types that cannot be mixed up, and they never
//! make a row unreadable: a text or a document that nobody here knows is kept as it is, because the Python layer may have
//! had its reasons.
//!
//! **Architecture invariant:** this module knows no query and no connection.

mod document;
mod id;
mod json;
mod limit;
mod page;
mod text;

pub(crate) mod sql;
pub(crate) mod time;

pub use document::{Broken, Document, Extra};
pub use id::{FileId, JobId, OperationId, QueueId, UserId};
pub(crate) use json::{document, write_json, write_json_lossy};
pub use limit::{Percentage, Seconds};
pub(crate) use limit::{bytes, finite, number, seconds, text, text_opt};
pub use page::{Cursor, Page, PageSize};
pub(crate) use page::{List, page_of};
pub use text::{FileType, JobStatus, JobType, Priority, QueueStatus, Unlisted, UserRole, UserStatus};
