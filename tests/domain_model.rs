//! Any sequence of operations of two users agrees with a model in memory, and neither sees or changes what the other owns:
//! with row-level security and without.

use std::collections::BTreeMap;

use diesel_async::{AsyncConnection, AsyncPgConnection};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use t2m_db::files::{self, NewThumbnail, NewVideo, ThumbnailDetails};
use t2m_db::jobs::{self, Completion, ErrorInfo, Job};
use t2m_db::types::{FileId, FileType, JobId, JobStatus, PageSize, UserId};
use t2m_db::{Error, users};

use crate::domain_rls::{act_for, become_app_role};
use crate::domain_support::{fresh, job, scene, stored, user};

#[derive(Debug, Clone, Copy)]
enum Act {
    CreateJob,
    Start,
    Complete,
    Fail,
    Cancel,
    DeleteJob,
    StoreVideo,
    StoreVideoOfJob,
    StoreThumbnail,
    View,
    Download,
    DeleteVideo,
    DeleteThumbnails,
    DeleteUser,
}

/// Who does what, and to which of all jobs or videos so far, whoever owns them.
type Step = (usize, Act, usize);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let act = prop_oneof![
        6 => Just(Act::CreateJob),
        4 => Just(Act::Start),
        3 => Just(Act::Complete),
        2 => Just(Act::Fail),
        2 => Just(Act::Cancel),
        1 => Just(Act::DeleteJob),
        5 => Just(Act::StoreVideo),
        3 => Just(Act::StoreVideoOfJob),
        5 => Just(Act::StoreThumbnail),
        5 => Just(Act::View),
        3 => Just(Act::Download),
        2 => Just(Act::DeleteVideo),
        1 => Just(Act::DeleteThumbnails),
        1 => Just(Act::DeleteUser),
    ];
    prop::collection::vec((0..2usize, act, 0..64usize), 1..60)
}

struct ModelJob {
    owner: usize,
    status: JobStatus,
    deleted: bool,
}

struct ModelVideo {
    owner: usize,
    views: i64,
    downloads: i64,
    thumbnails: i64,
    deleted: bool,
}

#[derive(Default)]
struct Model {
    jobs: Vec<(JobId, ModelJob)>,
    videos: Vec<(FileId, ModelVideo)>,
    gone: [bool; 2],
}

/// What an operation should answer.
#[derive(Debug, PartialEq)]
enum Answer {
    Done,
    NotFound,
    Transition,
}

fn answer<T>(result: &Result<T, Error>) -> Answer {
    match result {
        Ok(_) => Answer::Done,
        Err(Error::NotFound { .. }) => Answer::NotFound,
        Err(Error::Transition { .. }) => Answer::Transition,
        Err(other) => panic!("{other}"),
    }
}

impl Model {
    fn job(&mut self, pick: usize) -> Option<&mut (JobId, ModelJob)> {
        let count = self.jobs.len();
        self.jobs.get_mut(pick % count.max(1))
    }

    fn video(&mut self, pick: usize) -> Option<&mut (FileId, ModelVideo)> {
        let count = self.videos.len();
        self.videos.get_mut(pick % count.max(1))
    }

    async fn step(&mut self, conn: &mut AsyncPgConnection, ids: [UserId; 2], (who, act, pick): Step) {
        let owner = ids[who];
        match act {
            Act::CreateJob => {
                let stored = jobs::create_and_enqueue(conn, owner, &job("a")).await;
                let wanted = if self.gone[who] { Answer::NotFound } else { Answer::Done };
                assert_eq!(answer(&stored), wanted);
                if let Ok(stored) = stored {
                    self.jobs.push((stored.id, ModelJob { owner: who, status: JobStatus::Queued, deleted: false }));
                }
            }
            Act::Start | Act::Complete | Act::Fail | Act::Cancel | Act::DeleteJob => {
                self.job_step(conn, owner, (who, act, pick)).await;
            }
            Act::DeleteUser => {
                // Rarely, so that there is something to see before.
                if pick % 4 == 0 {
                    let gone = users::soft_delete(conn, owner).await;
                    assert_eq!(answer(&gone), if self.gone[who] { Answer::NotFound } else { Answer::Done });
                    self.gone[who] = true;
                    self.jobs.iter_mut().filter(|(_, job)| job.owner == who).for_each(|(_, job)| job.deleted = true);
                    self.videos.iter_mut().filter(|(_, video)| video.owner == who).for_each(|(_, video)| {
                        video.deleted = true;
                    });
                }
            }
            _ => self.video_step(conn, owner, (who, act, pick)).await,
        }
    }

    async fn job_step(&mut self, conn: &mut AsyncPgConnection, owner: UserId, (who, act, pick): Step) {
        use JobStatus::{Cancelled, Completed, Failed, Processing, Queued};
        let Some((id, model)) = self.job(pick) else { return };
        let id = *id;
        let (to, from, done): (_, &[JobStatus], Result<Option<Job>, Error>) = match act {
            Act::Start => (Processing, &[Queued], jobs::start(conn, owner, id).await.map(Some)),
            Act::Complete => {
                (Completed, &[Processing], jobs::complete(conn, owner, id, &Completion::default()).await.map(Some))
            }
            Act::Fail => {
                (Failed, &[Queued, Processing], jobs::fail(conn, owner, id, &ErrorInfo::new("x")).await.map(Some))
            }
            Act::Cancel => (Cancelled, &[Queued, Processing], jobs::cancel(conn, owner, id).await.map(Some)),
            _ => (Cancelled, JobStatus::LISTED, jobs::soft_delete(conn, owner, id).await.map(|()| None)),
        };
        let wanted = if model.owner != who || model.deleted {
            Answer::NotFound
        } else if from.contains(&model.status) {
            Answer::Done
        } else {
            Answer::Transition
        };
        assert_eq!(answer(&done), wanted, "{act:?}");
        if wanted == Answer::Done {
            model.deleted = matches!(act, Act::DeleteJob);
            model.status = to;
        }
    }

    async fn video_step(&mut self, conn: &mut AsyncPgConnection, owner: UserId, (who, act, pick): Step) {
        if matches!(act, Act::StoreVideo | Act::StoreVideoOfJob) {
            let job = if matches!(act, Act::StoreVideo) { None } else { self.job(pick).map(|(id, job)| (*id, job)) };
            let theirs = job.as_ref().is_none_or(|(_, job)| job.owner == who && !job.deleted);
            let new = NewVideo { job: job.map(|(id, _)| id), ..scene(1) };
            let stored = files::video_store(conn, owner, &new).await;
            assert_eq!(answer(&stored), if theirs && !self.gone[who] { Answer::Done } else { Answer::NotFound });
            if let Ok(stored) = stored {
                let video = ModelVideo { owner: who, views: 0, downloads: 0, thumbnails: 0, deleted: false };
                self.videos.push((stored.id, video));
            }
            return;
        }
        let Some((id, model)) = self.video(pick) else { return };
        let id = *id;
        let theirs = model.owner == who && !model.deleted;
        let done = match act {
            Act::View => files::video_count_view(conn, owner, id).await.map(drop),
            Act::Download => files::video_count_download(conn, owner, id).await.map(drop),
            Act::DeleteVideo => files::video_delete(conn, owner, id).await.map(|stills| {
                assert_eq!(i64::try_from(stills).unwrap(), model.thumbnails);
            }),
            Act::DeleteThumbnails => {
                let count = files::thumbnail_delete(conn, owner, id).await.unwrap();
                assert_eq!(i64::try_from(count).unwrap(), if theirs { model.thumbnails } else { 0 });
                if theirs { Ok(()) } else { Err(Error::NotFound { entity: "video" }) }
            }
            _ => {
                let still = NewThumbnail { video: id, stored: stored("t", 1), details: ThumbnailDetails::default() };
                files::thumbnail_store(conn, owner, &still).await.map(drop)
            }
        };
        assert_eq!(answer(&done), if theirs { Answer::Done } else { Answer::NotFound }, "{act:?}");
        if theirs {
            match act {
                Act::View => model.views += 1,
                Act::Download => model.downloads += 1,
                Act::DeleteVideo => model.deleted = true,
                Act::DeleteThumbnails => model.thumbnails = 0,
                _ => model.thumbnails += 1,
            }
        }
    }

    /// What this user sees is what the model says, in the same order.
    async fn agrees(&self, conn: &mut AsyncPgConnection, owner: UserId, who: usize) {
        let all = PageSize::new(100).unwrap();
        let videos = files::video_list(conn, owner, all, None).await.unwrap().items;
        let wanted: Vec<_> =
            self.videos.iter().rev().filter(|(_, video)| video.owner == who && !video.deleted).collect();
        assert_eq!(
            videos.iter().map(|video| video.id).collect::<Vec<_>>(),
            wanted.iter().map(|(id, _)| *id).collect::<Vec<_>>()
        );
        let ids: Vec<FileId> = self.videos.iter().map(|(id, _)| *id).collect();
        let playlist = files::video_playlist(conn, owner, &ids).await.unwrap();
        assert_eq!(playlist.entries.len(), wanted.len());
        for entry in playlist.entries {
            let (_, model) = self.videos.iter().find(|(id, _)| *id == entry.video.id).unwrap();
            let details = entry.video.details().unwrap();
            assert_eq!(
                (details.view_count.unwrap_or(0), details.download_count.unwrap_or(0)),
                (model.views, model.downloads)
            );
            assert_eq!(i64::try_from(entry.thumbnails.len()).unwrap(), model.thumbnails);
        }
        let found = jobs::list(conn, owner, all, None).await.unwrap().items;
        let wanted: Vec<_> = self.jobs.iter().rev().filter(|(_, job)| job.owner == who && !job.deleted).collect();
        assert_eq!(
            found.iter().map(|job| (job.id, &job.status)).collect::<Vec<_>>(),
            wanted.iter().map(|(id, job)| (*id, &job.status)).collect::<Vec<_>>()
        );
        let statistics = users::statistics(conn, owner).await;
        if self.gone[who] {
            assert_eq!(answer(&statistics), Answer::NotFound);
            return;
        }
        let statistics = statistics.unwrap();
        let mut by_status: BTreeMap<JobStatus, i64> = BTreeMap::new();
        for (_, job) in wanted {
            *by_status.entry(job.status.clone()).or_default() += 1;
        }
        assert_eq!(statistics.jobs, by_status);
        assert_eq!(
            statistics.files.get(&FileType::Video).map_or(0, |tally| tally.count),
            i64::try_from(videos.len()).unwrap()
        );
    }
}

async fn run(conn: &mut AsyncPgConnection, ids: [UserId; 2], steps: Vec<Step>, secured: bool) {
    let mut model = Model::default();
    for step in steps {
        if secured {
            act_for(conn, ids[step.0]).await;
        }
        // One transaction a step, as the functions ask for; a refused one leaves nothing behind.
        let model = &mut model;
        conn.transaction(async |conn| {
            model.step(conn, ids, step).await;
            Ok::<_, Error>(())
        })
        .await
        .unwrap();
    }
    for who in [0, 1] {
        if secured {
            act_for(conn, ids[who]).await;
        }
        model.agrees(conn, ids[who], who).await;
    }
}

#[test]
fn two_users_agree_with_the_model_whatever_they_do() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (plain, secured) = runtime.block_on(async { (fresh().await, fresh().await) });
    let number = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    runner
        .run(&steps(), |steps| {
            number.set(number.get() + 1);
            runtime.block_on(async {
                for (db, is_secured) in [(&plain, false), (&secured, true)] {
                    // Of its own: a case that failed leaves its connection in whatever state.
                    let mut conn = db.another().await;
                    let one = user(&mut conn, &format!("one_{}", number.get())).await;
                    let other = user(&mut conn, &format!("other_{}", number.get())).await;
                    if is_secured {
                        become_app_role(&mut conn).await;
                    }
                    run(&mut conn, [one, other], steps.clone(), is_secured).await;
                }
            });
            Ok(())
        })
        .unwrap();
}
