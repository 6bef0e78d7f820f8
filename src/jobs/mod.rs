//! Jobs: what a user asked for, from the request to its result.
//!
//! A job moves only along these lines; each move is checked by the UPDATE that makes it:
//!
//! ```text
//! created ─> queued ─> processing ─> completed ─┐
//!    │         │ ^         │  │                 ├─> archived, by clean-up
//!    │         │ └─────────┘  ├───> failed ─────┤
//!    └─────────┴──────────────┴───> cancelled ──┘
//! ```
//!
//! From `processing` back to `queued` leads a failure that may be retried. `created` are jobs that Python stored and did not
//! enqueue: [`enqueue`] does. A worker goes through [`queue`](crate::queue),
//! which moves the job along with its queue entry; the functions here are for whoever acts for the owner.
//!
//! **Architecture invariant:** a transaction that changes both locks the queue entry first, then the job. Two that meet then
//! wait for each other instead of deadlocking.

mod documents;
mod many;
mod queries;
mod row;
mod state;
mod transitions;

pub use documents::{Configuration, ErrorInfo, Metrics, Stage, StageDetail};
pub use many::create_and_enqueue_many;
pub use queries::{active, batch, create_and_enqueue, enqueue, find, list, list_by_status};
pub use row::{Completion, Job, NewJob};
pub(crate) use transitions::finish_job;
pub use transitions::{cancel, cleanup, complete, fail, set_progress, soft_delete, start};
