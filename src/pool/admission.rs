//! Who may have a connection, and when: first come, first served.
//!
//! One permit stands for one server session that a scope may use. It is held until clean-up has ended, and past the
//! closing of a session until the server has closed it too, so that sessions never exceed `max_size`.
//!
//! Under sustained overload the queue is shortened as CoDel does, measured on time spent in it: when even the
//! *shortest* wait of an interval was above the target, then those that waited more than twice the target are
//! refused. A burst that drains within the interval is served whole.
//!
//! **Promise**: a waiter whose future is dropped leaves no trace in any counter.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The right to use one server session.
pub(crate) type Permit = OwnedSemaphorePermit;

/// Why no permit was given.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Closed,
    TimedOut,
    /// `max_waiting` others wait already.
    QueueFull,
    /// Waited longer than an overloaded pool lets anyone wait.
    Shed,
}

#[derive(Debug)]
pub(crate) struct Admission {
    permits: Arc<Semaphore>,
    max_size: usize,
    closed: Notify,
    waiting: AtomicUsize,
    /// Permits held by work of our own that ends soon by itself and waits for nobody.
    background: AtomicUsize,
    max_waiting: usize,
    shedding: Option<Mutex<Shedding>>,
}

impl Admission {
    pub(crate) fn new(max_size: usize, max_waiting: Option<usize>, shed: Option<(Duration, Duration)>) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(max_size)),
            max_size,
            closed: Notify::new(),
            waiting: AtomicUsize::new(0),
            background: AtomicUsize::new(0),
            max_waiting: max_waiting.unwrap_or(usize::MAX),
            shedding: shed.map(|(target, interval)| Mutex::new(Shedding::new(target, interval))),
        }
    }

    /// A permit, if one is to be had without overtaking anyone.
    pub(crate) fn try_admit(&self) -> Result<Option<Permit>, Refused> {
        match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => {
                self.waited(Duration::ZERO);
                Ok(Some(permit))
            }
            Err(tokio::sync::TryAcquireError::Closed) => Err(Refused::Closed),
            Err(tokio::sync::TryAcquireError::NoPermits) => Ok(None),
        }
    }

    /// Waits in line until `deadline`.
    ///
    /// # Cancel safety
    /// A dropped wait gives its place in the queue away and is not counted as waiting any more.
    pub(crate) async fn admit(&self, deadline: Instant) -> Result<Permit, Refused> {
        let began = Instant::now();
        let _waiting = self.wait_in_line().ok_or(Refused::QueueFull)?;
        let mut turn = pin!(Arc::clone(&self.permits).acquire_owned());
        // Whoever has waited too long for the load leaves by himself: a permit need not go through his hands first.
        let mut doubts = self.shedding.as_ref().map(|shedding| began + shedding.lock().target * 2);
        loop {
            let until = doubts.map_or(deadline, |doubts| doubts.min(deadline));
            return match tokio::time::timeout_at(until, &mut turn).await {
                Ok(Ok(permit)) if self.waited(began.elapsed()) => Ok(permit),
                Ok(Ok(_)) => Err(Refused::Shed),
                Ok(Err(_)) => Err(Refused::Closed),
                Err(_) if until == deadline => Err(Refused::TimedOut),
                Err(_) => match self.next_doubts() {
                    None => Err(Refused::Shed),
                    next => {
                        doubts = next;
                        continue;
                    }
                },
            };
        }
    }

    /// Counts one more that waits, until the guard is dropped; `None` when `max_waiting` is reached.
    pub(crate) fn wait_in_line(&self) -> Option<Waiting<'_>> {
        let before = self.waiting.fetch_add(1, SeqCst);
        let guard = Waiting(&self.waiting);
        (before < self.max_waiting).then_some(guard)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    /// Marks a piece of work of our own until the guard is dropped.
    pub(crate) fn in_background(&self) -> Waiting<'_> {
        self.background.fetch_add(1, SeqCst);
        Waiting(&self.background)
    }

    /// A permit may be out for such a piece of work, and so come back without anybody's help.
    pub(crate) fn is_any_in_background(&self) -> bool {
        self.background.load(SeqCst) > 0
    }

    /// No permit is given any more; those who wait are told.
    pub(crate) fn close(&self) {
        self.permits.close();
        self.closed.notify_waiters();
    }

    /// Waits for that.
    pub(crate) async fn closed(&self) {
        let mut told = pin!(self.closed.notified());
        told.as_mut().enable();
        if !self.is_closed() {
            told.await;
        }
    }

    /// How many permits are out.
    pub(crate) fn out(&self) -> usize {
        self.max_size.saturating_sub(self.permits.available_permits())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.permits.is_closed()
    }

    /// When a wait that is too long under overload is to be looked at again; `None` if there is one now.
    fn next_doubts(&self) -> Option<Instant> {
        let shedding = self.shedding.as_ref()?.lock();
        (!shedding.overloaded).then(|| Instant::now() + shedding.target)
    }

    /// Notes a wait that has ended; `false` if it was too long for the load that we are under.
    fn waited(&self, wait: Duration) -> bool {
        self.shedding.as_ref().is_none_or(|shedding| shedding.lock().admits(wait, Instant::now()))
    }
}

/// Takes a count down again.
#[derive(Debug)]
pub(crate) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Controlled delay (Nichols and Jacobson, 2012), with the interval rule of Ecto's `DBConnection`.
#[derive(Debug)]
struct Shedding {
    target: Duration,
    interval: Duration,
    interval_end: Option<Instant>,
    shortest: Duration,
    overloaded: bool,
}

impl Shedding {
    fn new(target: Duration, interval: Duration) -> Self {
        Self { target, interval, interval_end: None, shortest: Duration::MAX, overloaded: false }
    }

    fn admits(&mut self, wait: Duration, now: Instant) -> bool {
        let end = *self.interval_end.get_or_insert(now + self.interval);
        if now >= end {
            self.overloaded = self.shortest > self.target;
            self.shortest = Duration::MAX;
            self.interval_end = Some(now + self.interval);
        }
        self.shortest = self.shortest.min(wait);
        // One short wait is enough to know that the queue is gone.
        self.overloaded &= wait > self.target;
        !(self.overloaded && wait > self.target * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_served_and_a_standing_queue_is_shed() {
        let mut shedding = Shedding::new(50 * MS, 1000 * MS);
        let start = Instant::now();
        for n in 0..100 {
            assert!(shedding.admits(n * 5 * MS, start + n * MS), "a burst within one interval");
        }
        let later = start + 1001 * MS;
        assert!(shedding.admits(80 * MS, later), "the first interval had a short wait");
        assert!(!shedding.admits(150 * MS, later + 1001 * MS), "a whole interval without one: over twice the target");
        assert!(shedding.admits(90 * MS, later + 1002 * MS), "under twice the target");
        assert!(shedding.admits(10 * MS, later + 1003 * MS));
        assert!(shedding.admits(150 * MS, later + 1004 * MS), "the queue was seen empty");
    }

    #[tokio::test(start_paused = true)]
    async fn first_come_first_served_and_a_cancelled_waiter_leaves_no_trace() {
        let admission = Arc::new(Admission::new(1, None, None));
        let held = admission.try_admit().unwrap().unwrap();
        let far = Instant::now() + Duration::from_secs(3600);
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for n in 0..8 {
            let (mine, order) = (Arc::clone(&admission), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let permit = mine.admit(far).await.unwrap();
                order.lock().push(n);
                drop(permit);
            }));
            // The current-thread runtime runs the new task up to its wait.
            tokio::task::yield_now().await;
            assert_eq!(admission.waiting(), tasks.len());
        }
        tasks[3].abort();
        tokio::task::yield_now().await;
        assert_eq!(admission.waiting(), 7);
        drop(held);
        for task in tasks {
            let _ = task.await;
        }
        assert_eq!(*order.lock(), [0, 1, 2, 4, 5, 6, 7]);
        assert_eq!(admission.waiting(), 0);
        assert!(admission.try_admit().unwrap().is_some(), "nobody overtakes, and nothing is lost");
    }

    #[tokio::test(start_paused = true)]
    async fn under_overload_a_waiter_leaves_after_twice_the_target_whoever_holds_the_permits() {
        let admission = Arc::new(Admission::new(1, None, Some((10 * MS, 100 * MS))));
        let mut held = admission.try_admit().unwrap();
        let far = Instant::now() + Duration::from_secs(3600);
        // Every wait of two intervals is 15 ms long, and nobody is refused.
        for _ in 0..14 {
            let next = tokio::spawn({
                let admission = Arc::clone(&admission);
                async move { admission.admit(far).await }
            });
            tokio::time::sleep(15 * MS).await;
            drop(held.take());
            held = Some(next.await.unwrap().unwrap());
        }
        let asked = Instant::now();
        assert_eq!(admission.admit(far).await.unwrap_err(), Refused::Shed);
        assert_eq!(asked.elapsed(), 20 * MS);
        assert_eq!(admission.waiting(), 0);
        // An uncontended checkout ends it.
        drop(held);
        let held = admission.try_admit().unwrap();
        assert_eq!(admission.admit(Instant::now() + 50 * MS).await.unwrap_err(), Refused::TimedOut);
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_say_which() {
        let admission = Admission::new(1, Some(0), None);
        let _held = admission.try_admit().unwrap().unwrap();
        let soon = Instant::now() + MS;
        assert_eq!(admission.admit(soon).await.unwrap_err(), Refused::QueueFull);
        let admission = Admission::new(0, None, None);
        assert_eq!(admission.admit(soon).await.unwrap_err(), Refused::TimedOut);
        admission.close();
        assert_eq!(admission.admit(soon).await.unwrap_err(), Refused::Closed);
    }
}
