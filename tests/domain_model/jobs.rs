//! Jobs and their queue in the model.

use std::time::Duration;

use bigdecimal::BigDecimal;
use diesel_async::AsyncPgConnection;
use proptest::prelude::*;
use t2m_db::Error;
use t2m_db::jobs::{self, Completion, ErrorInfo, Job, NewJob};
use t2m_db::queue::{self, Backoff, BatchSize, Failure, Lease, PutBack, Worker};
use t2m_db::types::JobStatus::{self, Cancelled, Completed, Failed, Processing, Queued};
use t2m_db::types::{JobId, PageSize, Percentage, QueueStatus};

use super::{Answer, Model, answer, if_there};
use crate::domain_support::job;

/// What an owner does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    Create,
    CreatePart,
    CreateMany,
    Start,
    Progress,
    Complete,
    Fail,
    Cancel,
    Delete,
}

pub(super) fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => Just(Act::Create),
        1 => Just(Act::CreatePart),
        2 => Just(Act::CreateMany),
        2 => Just(Act::Start),
        2 => Just(Act::Progress),
        2 => Just(Act::Complete),
        1 => Just(Act::Fail),
        2 => Just(Act::Cancel),
        1 => Just(Act::Delete),
    ]
}

/// What a worker does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    Claim,
    Heartbeat,
    Progress,
    Complete,
    Fail,
    Release,
    PutBack,
}

pub(super) fn works() -> impl Strategy<Value = Work> {
    prop_oneof![
        8 => Just(Work::Claim),
        1 => Just(Work::Heartbeat),
        3 => Just(Work::Progress),
        3 => Just(Work::Complete),
        4 => Just(Work::Fail),
        1 => Just(Work::Release),
        1 => Just(Work::PutBack),
    ]
}

const RETRIES: i32 = 2;
const LEASE: Duration = Duration::from_secs(60);
const AT_ONCE: Backoff = Backoff { first: Duration::ZERO, max: Duration::ZERO };

pub(super) struct ModelJob {
    pub(super) owner: usize,
    pub(super) status: JobStatus,
    pub(super) deleted: bool,
    progress: usize,
    batched: bool,
    entry: QueueStatus,
    /// The step in which it came to the queue.
    since: usize,
    retries: i32,
    /// The last that was given for it, held or not.
    lease: Option<Lease>,
}

impl ModelJob {
    /// What the owner does to it closes its entry in the queue.
    fn become_(&mut self, status: JobStatus) {
        if [QueueStatus::Queued, QueueStatus::Processing].contains(&self.entry) {
            self.entry = match status {
                Completed => QueueStatus::Completed,
                Failed => QueueStatus::Failed,
                _ => QueueStatus::Cancelled,
            };
        }
        self.status = status;
    }

    pub(super) fn delete(&mut self) {
        if !self.deleted {
            let finished = [Completed, Failed, Cancelled].contains(&self.status);
            self.become_(if finished { self.status.clone() } else { Cancelled });
            self.deleted = true;
        }
    }

    /// What the worker's failure, or its loss, makes of it.
    fn fail(&mut self) {
        let again = self.retries < RETRIES;
        (self.entry, self.status) = if again { (QueueStatus::Queued, Queued) } else { (QueueStatus::Failed, Failed) };
        self.retries += 1;
    }
}

impl Model {
    fn ordered(&mut self, id: JobId, owner: usize, batched: bool) {
        let (status, entry, since) = (Queued, QueueStatus::Queued, self.now);
        let job =
            ModelJob { owner, status, deleted: false, progress: 0, batched, entry, since, retries: 0, lease: None };
        self.jobs.push((id, job));
    }

    pub(super) async fn job_step(&mut self, conn: &mut AsyncPgConnection, who: usize, act: Act, pick: usize) {
        let (owner, there) = (self.ids[who], !self.users[who].gone);
        let count = self.jobs.len();
        let new = NewJob { max_retries: RETRIES, ..job("a") };
        match act {
            Act::Create => {
                assert_eq!(answer(&jobs::create_and_enqueue(conn, owner, &new).await), if_there(there));
                if there {
                    self.ordered(new.id, who, false);
                }
                return;
            }
            Act::CreateMany => {
                let new = [(); 2].map(|()| NewJob { batch_id: Some(self.batch), max_retries: RETRIES, ..job("b") });
                assert_eq!(answer(&jobs::create_and_enqueue_many(conn, owner, &new).await), if_there(there));
                if there {
                    for new in new {
                        self.ordered(new.id, who, true);
                    }
                }
                return;
            }
            _ => {}
        }
        let Some((id, model)) = self.jobs.get_mut(pick % count.max(1)) else { return };
        let (id, theirs) = (*id, model.owner == who && !model.deleted);
        let (from, to, done): (&[JobStatus], JobStatus, Result<Option<Job>, Error>) = match act {
            Act::CreatePart => {
                let part = NewJob { parent_job_id: Some(id), ..new };
                assert_eq!(answer(&jobs::create_and_enqueue(conn, owner, &part).await), if_there(there && theirs));
                if there && theirs {
                    self.ordered(part.id, who, false);
                }
                return;
            }
            Act::Progress => {
                let percent = Percentage::new(f64::from(u32::try_from(pick).unwrap())).unwrap();
                let done = jobs::set_progress(conn, owner, id, &percent, "a", None).await;
                (&[Processing], Processing, done.map(Some))
            }
            Act::Start => (&[Queued], Processing, jobs::start(conn, owner, id).await.map(Some)),
            Act::Complete => {
                (&[Processing], Completed, jobs::complete(conn, owner, id, &Completion::default()).await.map(Some))
            }
            Act::Fail => {
                (&[Queued, Processing], Failed, jobs::fail(conn, owner, id, &ErrorInfo::new("x")).await.map(Some))
            }
            Act::Cancel => (&[Queued, Processing], Cancelled, jobs::cancel(conn, owner, id).await.map(Some)),
            _ => (JobStatus::LISTED, Cancelled, jobs::soft_delete(conn, owner, id).await.map(|()| None)),
        };
        let wanted = match theirs {
            false => Answer::NotFound,
            true if from.contains(&model.status) => Answer::Done,
            true => Answer::Transition,
        };
        assert_eq!(answer(&done), wanted, "{act:?}");
        match (wanted, act) {
            (Answer::Done, Act::Progress) => model.progress = pick,
            (Answer::Done, Act::Delete) => model.delete(),
            (Answer::Done, _) => {
                model.progress = if to == Completed { 100 } else { model.progress };
                model.become_(to);
            }
            _ => {}
        }
    }

    pub(super) async fn work_step(&mut self, conn: &mut AsyncPgConnection, work: Work, pick: usize) {
        let worker = Worker::new("w", None).unwrap();
        match work {
            Work::Claim => {
                let claim = queue::claim(conn, &worker, BatchSize::ONE, LEASE).await.unwrap().pop();
                let waiting = self.jobs.iter().filter(|(_, job)| job.entry == QueueStatus::Queued);
                let oldest = waiting.map(|(_, job)| job.since).min();
                let id = claim.as_ref().map(|claim| claim.job.id);
                let model = self.jobs.iter_mut().find(|(other, _)| Some(*other) == id).map(|(_, job)| job);
                assert_eq!(model.as_ref().map(|job| job.since), oldest, "the oldest that waits");
                if let (Some(model), Some(claim)) = (model, claim) {
                    assert_eq!((&model.entry, claim.retry_count), (&QueueStatus::Queued, model.retries));
                    assert_eq!(claim.lease.owner(), self.ids[model.owner]);
                    (model.entry, model.status, model.lease) = (QueueStatus::Processing, Processing, Some(claim.lease));
                }
                return;
            }
            Work::PutBack => {
                let mut wanted = PutBack::default();
                for (_, job) in self.jobs.iter_mut().filter(|(_, job)| job.entry == QueueStatus::Processing) {
                    job.fail();
                    if job.entry == QueueStatus::Queued { wanted.queued += 1 } else { wanted.failed += 1 }
                }
                assert_eq!(queue::put_back_worker(conn, &worker).await.unwrap(), wanted);
                return;
            }
            _ => {}
        }
        let leased = self.jobs.iter_mut().map(|(_, job)| job).filter(|job| job.lease.is_some());
        let mut leased: Vec<&mut ModelJob> = leased.collect();
        let count = leased.len();
        let Some(model) = leased.get_mut(pick % count.max(1)) else { return };
        let held = model.entry == QueueStatus::Processing;
        let lease = model.lease.as_mut().unwrap();
        let percent = Percentage::new(f64::from(u32::try_from(pick).unwrap())).unwrap();
        let done = match work {
            Work::Heartbeat => queue::heartbeat(conn, lease, LEASE).await,
            Work::Progress => queue::progress(conn, lease, LEASE, &percent, "a", None).await.map(drop),
            Work::Complete => queue::complete(conn, lease, &Completion::default()).await.map(drop),
            Work::Fail => queue::fail(conn, lease, &ErrorInfo::new("x"), AT_ONCE).await.map(|failure| {
                assert_eq!(failure == Failure::ForGood, model.retries >= RETRIES);
            }),
            _ => queue::release(conn, lease).await,
        };
        assert_eq!(answer(&done), if held { Answer::Done } else { Answer::LeaseLost }, "{work:?}");
        match work {
            _ if !held => {}
            Work::Heartbeat => {}
            Work::Progress => model.progress = pick,
            Work::Complete => {
                model.progress = 100;
                model.become_(Completed);
            }
            Work::Fail => model.fail(),
            _ => (model.entry, model.status) = (QueueStatus::Queued, Queued),
        }
    }

    pub(super) async fn jobs_agree(&self, conn: &mut AsyncPgConnection, who: usize) {
        let (owner, all) = (self.ids[who], PageSize::new(100).unwrap());
        // The newest first; those of one step share their time.
        let age = |id: JobId| self.jobs.iter().find(|(other, _)| *other == id).map_or(usize::MAX, |(_, job)| job.since);
        let sorted = |jobs: &[Job]| jobs.is_sorted_by_key(|job| std::cmp::Reverse(age(job.id)));
        let set = |jobs: &[Job]| {
            let mut ids: Vec<_> = jobs.iter().map(|job| (job.id, job.status.clone())).collect();
            ids.sort();
            ids
        };
        let wanted = |which: &dyn Fn(&ModelJob) -> bool| {
            let theirs = self.jobs.iter().filter(|(_, job)| job.owner == who && !job.deleted && which(job));
            let mut ids: Vec<_> = theirs.map(|(id, job)| (*id, job.status.clone())).collect();
            ids.sort();
            ids
        };
        let found = jobs::list(conn, owner, all, None).await.unwrap().items;
        assert!(sorted(&found));
        assert_eq!(set(&found), wanted(&|_| true));
        for status in [Queued, Processing, Completed, Failed, Cancelled] {
            let found = jobs::list_by_status(conn, owner, &status, all, None).await.unwrap().items;
            assert!(sorted(&found));
            assert_eq!(set(&found), wanted(&|job| job.status == status));
        }
        let active = jobs::active(conn, owner).await.unwrap();
        assert!(sorted(&active));
        assert_eq!(set(&active), wanted(&|job| [Queued, Processing].contains(&job.status)));
        assert_eq!(set(&jobs::batch(conn, owner, self.batch).await.unwrap()), wanted(&|job| job.batched));
        for (id, model) in &self.jobs {
            let theirs = model.owner == who && !model.deleted;
            let found = jobs::find(conn, owner, *id).await.unwrap();
            let percent = found.map(|job| job.progress_percentage);
            assert_eq!(percent, theirs.then(|| BigDecimal::from(u64::try_from(model.progress).unwrap())));
            let entry = queue::entry(conn, owner, *id).await.unwrap();
            assert_eq!(entry.map(|(status, _)| status), theirs.then(|| model.entry.clone()));
        }
    }
}
