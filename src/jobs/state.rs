//! Which state may follow which.

use crate::types::JobStatus::{self, Cancelled, Completed, Created, Failed, Processing, Queued};

/// The states from which a job may go to `to`; empty if nothing leads there.
pub(super) fn before(to: &JobStatus) -> &'static [JobStatus] {
    match to {
        Queued => &[Created, Processing],
        Processing => &[Created, Queued],
        Completed => &[Processing],
        Failed => &[Queued, Processing],
        Cancelled => &[Created, Queued, Processing],
        JobStatus::Archived => &[Completed, Failed, Cancelled],
        Created | JobStatus::Other(_) => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_out_of_a_finished_job_but_the_archive() {
        for end in [Completed, Failed, Cancelled] {
            for to in JobStatus::LISTED {
                assert_eq!(before(to).contains(&end), *to == JobStatus::Archived, "{end} to {to}");
            }
        }
        assert!(JobStatus::LISTED.iter().all(|to| !before(to).contains(&JobStatus::Archived)));
    }
}
