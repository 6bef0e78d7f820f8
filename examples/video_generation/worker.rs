//! A worker: claims a job, makes the film, stores it, and gives account of it whatever happens.
//!
//! The film is made in a task of its own, so that a panic in it is not the worker's end, and so that it can be dropped at
//! any point: because the customer called it off, because the job is somebody else's by now, or because the worker is to
//! stop. What that does to a transaction is the library's business; nothing here cleans up after one.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use t2m_db::jobs::{self, Completion, ErrorInfo, Metrics, Stage};
use t2m_db::queue::{self, Backoff, BatchSize, Claim, Lease, Worker};
use t2m_db::types::Percentage;
use t2m_db::{CommitOutcome, Database, Error, files};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{interval, sleep};

use crate::film::{self, Fate, SCENES, STAGES, THUMBNAILS};

/// How soon a worker looks again after an error, or when all that is due is just being claimed by others.
const PAUSE: Duration = Duration::from_millis(25);
/// Nobody waits for a better day here.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(50), max: Duration::from_millis(200) };
/// How long a film may take to be stored.
const DEADLINE: Duration = Duration::from_secs(10);
/// What the panics say that were asked for.
pub(crate) const CRASH: &str = "the renderer crashed, as it was asked to";

/// What all workers of a process share.
#[derive(Clone, Debug)]
pub(crate) struct Workshop {
    pub(crate) db: Database,
    pub(crate) lease: Duration,
    /// Turns true when the workers are to stop.
    pub(crate) stop: watch::Receiver<bool>,
}

/// Why a film was not made.
#[derive(Debug, thiserror::Error)]
enum FilmError {
    #[error("{0}")]
    Renderer(&'static str),
    #[error(transparent)]
    Database(#[from] Error),
}

/// How the making of a film ended.
#[derive(Debug)]
enum Ending {
    /// It is stored, or it failed, or it panicked; or it was not begun, since nobody can read what was asked for.
    Made(Result<Result<(), FilmError>, JoinError>),
    CalledOff,
    /// It is another worker's now.
    Lost,
    Stopped,
}

impl Workshop {
    /// Runs `count` workers until they are told to stop.
    pub(crate) async fn run(&self, name: &str, count: u32) -> Result<(), Error> {
        // One session listens for all of them.
        let mut listener = self.db.listen(queue::CHANNEL).await?;
        let (wake, woken) = watch::channel(());
        let mut workers = JoinSet::new();
        for number in 0..count {
            let worker = Worker::new(format!("{name}/{number}"), None)?;
            let (shop, woken) = (self.clone(), woken.clone());
            workers.spawn(async move { shop.work(&worker, woken).await });
        }
        drop(woken);
        let mut listening = JoinSet::new(); // ends with this function
        listening.spawn(async move {
            while listener.next().await.is_some() {
                wake.send_replace(());
            }
        });
        while let Some(ended) = workers.join_next().await {
            match ended {
                Ok(result) => result?,
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            }
        }
        Ok(())
    }

    async fn work(&self, worker: &Worker, mut woken: watch::Receiver<()>) -> Result<(), Error> {
        let mut stop = self.stop.clone();
        while !*stop.borrow() {
            woken.mark_unchanged(); // before it looks: what comes later wakes
            let claimed = self
                .db
                .transaction("claim")
                .run(async |tx| queue::claim(tx, worker, BatchSize::ONE, self.lease).await)
                .await;
            let served = match claimed.map(|mut claims| claims.pop()) {
                Ok(Some(claim)) => self.serve(claim).await,
                Ok(None) => self.idle(&mut stop, &mut woken).await,
                Err(error) => Err(error),
            };
            match served {
                // The job, if there was one and it is not settled, comes back when its lease ends.
                Err(error) if error.is_retryable() || error.commit_outcome() == CommitOutcome::Unknown => {
                    sleep(PAUSE).await;
                }
                served => served?,
            }
        }
        Ok(())
    }

    /// Until there may be something to do.
    async fn idle(&self, stop: &mut watch::Receiver<bool>, woken: &mut watch::Receiver<()>) -> Result<(), Error> {
        let due = self.db.with_connection(async |conn| queue::due_in(conn).await).await?;
        let due = async {
            match due {
                Some(due) => sleep(due.max(PAUSE)).await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = stop.changed() => {}
            Ok(()) = woken.changed() => {}
            () = due => {}
        }
        Ok(())
    }

    /// Takes one job to an end.
    async fn serve(&self, claim: Claim) -> Result<(), Error> {
        let lease = claim.lease.clone();
        let ending = self.make(claim).await?;
        let settled = match ending {
            Ending::Made(Ok(Ok(()))) | Ending::Lost => Ok(()),
            Ending::Made(Ok(Err(FilmError::Database(error @ Error::LeaseLost { .. })))) => Err(error),
            Ending::Made(Ok(Err(error))) => self.fail(&lease, error.to_string()).await,
            Ending::Made(Err(panic)) => self.fail(&lease, panic.to_string()).await,
            Ending::CalledOff => self.call_off(&lease).await,
            Ending::Stopped => self.db.transaction("release").run(async |tx| queue::release(tx, &lease).await).await,
        };
        match settled {
            // Whoever has it now does the rest.
            Err(Error::LeaseLost { .. }) => Ok(()),
            // Changed or deleted past the queue, as Python may. There is nothing left to give account of, and the next claim
            // closes the entry when its lease has run out.
            Err(error @ (Error::Transition { .. } | Error::NotFound { .. })) => {
                tracing::warn!(job = %lease.job(), %error, "left to whoever changed it");
                Ok(())
            }
            settled => settled,
        }
    }

    /// Makes the film while it is wanted and the job is ours.
    async fn make(&self, claim: Claim) -> Result<Ending, Error> {
        let mut lease = claim.lease.clone();
        let fate = match Fate::of(&claim.job) {
            Ok(fate) => fate,
            Err(unreadable) => return Ok(Ending::Made(Ok(Err(unreadable.into())))),
        };
        let storing = Arc::new(Notify::new());
        let patience = patience(fate, Arc::clone(&storing));
        let mut patience = std::pin::pin!(patience);
        let mut stop = self.stop.clone();
        let mut heart = interval(self.lease / 3);
        heart.tick().await; // the first is at once, and the lease is new
        let mut film = JoinSet::new();
        film.spawn(make_film(self.clone(), claim, fate, storing));
        let ending = loop {
            tokio::select! {
                Some(made) = film.join_next() => break Ending::Made(made),
                () = &mut patience => break Ending::CalledOff,
                _ = heart.tick() => match self.prolong(&mut lease).await {
                    Ok(()) => {}
                    Err(Error::LeaseLost { .. }) => break Ending::Lost,
                    Err(error) if error.is_retryable() => {} // there is time for another
                    Err(error) => return Err(error),
                },
                _ = stop.changed() => break Ending::Stopped,
            }
        };
        // Here the film's future is dropped, wherever it is.
        film.shutdown().await;
        Ok(ending)
    }

    async fn prolong(&self, lease: &mut Lease) -> Result<(), Error> {
        self.db.transaction("heartbeat").run(async |tx| queue::heartbeat(tx, lease, self.lease).await).await
    }

    async fn fail(&self, lease: &Lease, message: String) -> Result<(), Error> {
        let why = ErrorInfo::new(message);
        self.db.transaction("fail").run(async |tx| queue::fail(tx, lease, &why, BACKOFF).await).await.map(drop)
    }

    /// The customer's button.
    async fn call_off(&self, lease: &Lease) -> Result<(), Error> {
        let cancelled =
            self.db.transaction("call off").run(async |tx| jobs::cancel(tx, lease.owner(), lease.job()).await).await;
        match cancelled {
            // Too late: its COMMIT was on the way when the future was dropped, and so it is stored, whole.
            Err(Error::Transition { .. }) => Ok(()),
            cancelled => cancelled.map(drop),
        }
    }
}

/// Ends when the customer does not want the film any more: at any time, every other one while it is being stored.
async fn patience(fate: Fate, storing: Arc<Notify>) {
    if fate != Fate::Cancelled {
        return pending().await;
    }
    let most = if fastrand::bool() {
        storing.notified().await;
        Duration::from_millis(6)
    } else {
        Duration::from_millis(40)
    };
    sleep(most.mul_f64(fastrand::f64())).await;
}

/// The film itself: stage by stage, and then everything that it is made of in one transaction.
async fn make_film(shop: Workshop, claim: Claim, fate: Fate, storing: Arc<Notify>) -> Result<(), FilmError> {
    let Workshop { db, lease: prolong, .. } = shop;
    let mut lease = claim.lease.clone();
    let first_try = claim.retry_count == 0;
    let (owner, job) = (claim.lease.owner(), claim.lease.job());
    let mut done: Option<Stage> = None;
    for (stage, percent) in STAGES {
        let progress = Percentage::new(percent)?;
        db.transaction("progress")
            .run(async |tx| queue::progress(tx, &mut lease, prolong, &progress, stage, done.as_ref()).await)
            .await?;
        sleep(Duration::from_millis(fastrand::u64(2..10))).await; // the work that is not shown here
        if fate == Fate::Fails && stage == "render" || fate == Fate::FailsOnce && first_try && stage == "images" {
            return Err(FilmError::Renderer("the renderer gave up, as it was asked to"));
        }
        done = Some(Stage::Name(stage.to_owned()));
    }
    db.transaction("store film")
        .deadline(DEADLINE)
        .run(async |tx| {
            for number in 1..=SCENES {
                let video = files::video_store(tx, owner, &film::scene(job, number)).await?;
                storing.notify_one(); // from here on there is something to roll back
                files::thumbnail_store_many(tx, owner, &film::thumbnails(job, number, video.id)).await?;
                assert!(!(fate == Fate::Panics && first_try && number == SCENES), "{CRASH}");
            }
            let completion = Completion {
                result_url: Some(format!("https://example.com/videos/{job}")),
                metrics: Some(Metrics { scenes_rendered: u32::try_from(SCENES).ok(), ..Metrics::default() }),
                processing_time: None,
            };
            queue::complete(tx, &lease, &completion).await?;
            tx.after_commit(move |_| tracing::debug!(%job, files = SCENES * (1 + THUMBNAILS), "stored"));
            Ok(())
        })
        .await
}
