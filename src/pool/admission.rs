//! Who may have a connection, and when: first come, first served.
//!
//! One permit stands for one server session that a scope may use. It is held until clean-up has ended, and past the
//! closing of a session until the server has closed it too, so that sessions never exceed `max_size`.
//!
//! Under sustained overload the queue is shortened as CoDel does, measured on time spent in it: when even the
//! *shortest* wait of an interval was above the target, whoever waits longer than the target is refused, until a whole
//! interval has passed in which fewer than one in ten had to be. A burst that drains within the interval is served whole.
//! So with a target of what a scope takes, those who are served under overload take twice as long as without.
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
    /// Waited longer than `queue_target`, which an overloaded pool lets nobody do.
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
        let mut doubts = self.shedding.as_ref().map(|shedding| began + shedding.lock().target);
        loop {
            let until = doubts.map_or(deadline, |doubts| doubts.min(deadline));
            return match tokio::time::timeout_at(until, &mut turn).await {
                Ok(Ok(permit)) if self.waited(began.elapsed()) => Ok(permit),
                Ok(Ok(_)) => Err(Refused::Shed),
                Ok(Err(_)) => Err(Refused::Closed),
                Err(_) if until == deadline => Err(Refused::TimedOut),
                Err(_) => match self.next_doubts(began) {
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

    /// A piece of work of our own begins.
    pub(crate) fn begin_in_background(&self) {
        self.background.fetch_add(1, SeqCst);
    }

    /// It has ended.
    pub(crate) fn end_in_background(&self) {
        self.background.fetch_sub(1, SeqCst);
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

    /// When a wait that is longer than the target is to be looked at again; `None` if it ends now.
    fn next_doubts(&self, began: Instant) -> Option<Instant> {
        let mut shedding = self.shedding.as_ref()?.lock();
        let now = Instant::now();
        shedding.bears(now - began, now).then(|| now + shedding.target)
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
    /// Of the waits that ended in this interval.
    shortest: Duration,
    admitted: u64,
    refused: u64,
    overloaded: bool,
}

impl Shedding {
    fn new(target: Duration, interval: Duration) -> Self {
        let (shortest, interval_end) = (Duration::MAX, None);
        Self { target, interval, interval_end, shortest, admitted: 0, refused: 0, overloaded: false }
    }

    /// A wait of this length ends with a permit; `false` if it is refused instead.
    fn admits(&mut self, wait: Duration, now: Instant) -> bool {
        self.look(wait, now);
        self.shortest = self.shortest.min(wait);
        let admits = !self.overloaded || wait <= self.target;
        self.count(admits);
        admits
    }

    /// A wait that is longer than the target by now may go on.
    fn bears(&mut self, wait: Duration, now: Instant) -> bool {
        self.look(wait, now);
        if self.overloaded {
            self.count(false);
        }
        !self.overloaded
    }

    fn count(&mut self, admitted: bool) {
        *(if admitted { &mut self.admitted } else { &mut self.refused }) += 1;
    }

    /// Judges the interval if it is over. If no wait ended in it, that of whoever asks now tells how it was.
    fn look(&mut self, wait: Duration, now: Instant) {
        let end = *self.interval_end.get_or_insert(now + self.interval);
        if now < end {
            return;
        }
        let shortest = if self.shortest == Duration::MAX { wait } else { self.shortest };
        let quiet_since = now >= end + self.interval && wait < now - end;
        self.overloaded = !quiet_since
            && if self.overloaded { self.refused * 10 > self.admitted + self.refused } else { shortest > self.target };
        (self.shortest, self.admitted, self.refused) = (Duration::MAX, 0, 0);
        self.interval_end = Some(now + self.interval);
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
        let later = later + 1001 * MS;
        assert!(!shedding.admits(60 * MS, later), "a whole interval without one: longer than the target");
        assert!(shedding.admits(40 * MS, later + MS), "shorter");
        assert!(shedding.admits(Duration::ZERO, later + 2 * MS), "the queue is empty for a moment");
        assert!(!shedding.admits(60 * MS, later + 3 * MS), "that is not the end of it");
        let later = later + 1001 * MS;
        for n in 0..20 {
            assert!(shedding.admits(20 * MS, later + n * MS), "one interval with few refusals");
        }
        assert!(shedding.admits(60 * MS, later + 1001 * MS), "is");
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_after_a_quiet_time_is_served() {
        let mut shedding = Shedding::new(50 * MS, 1000 * MS);
        let start = Instant::now();
        for n in 0..3 {
            shedding.admits(90 * MS, start + n * 1001 * MS);
        }
        assert!(shedding.overloaded);
        assert!(shedding.admits(60 * MS, start + 5 * 1001 * MS), "nothing is known of the last two intervals");
    }

    /// The latencies of those who were served and of those who were not, once it is known to be an overload.
    async fn tenfold(service: Duration, target: Duration) -> (Vec<Duration>, Vec<Duration>) {
        const PERMITS: u32 = 4;
        let interval = 100 * MS;
        let admission = Arc::new(Admission::new(PERMITS as usize, None, Some((target, interval))));
        let (start, every) = (Instant::now(), service / PERMITS / 10);
        let scopes = (0..20_000_u32).map(|n| {
            let admission = Arc::clone(&admission);
            tokio::spawn(async move {
                let asked = start + every * n;
                tokio::time::sleep_until(asked).await;
                let permit = match admission.try_admit() {
                    Ok(Some(permit)) => Ok(permit),
                    _ => admission.admit(asked + Duration::from_secs(3600)).await,
                };
                if permit.is_ok() {
                    tokio::time::sleep(service).await;
                }
                (asked, permit.is_ok(), asked.elapsed())
            })
        });
        let all = futures_util::future::join_all(scopes.collect::<Vec<_>>()).await;
        let known = all.into_iter().map(Result::unwrap).filter(|(asked, ..)| *asked > start + 4 * interval);
        let (served, refused): (Vec<_>, Vec<_>) = known.partition(|(_, served, _)| *served);
        let latencies = |of: Vec<(_, _, Duration)>| {
            let mut all: Vec<_> = of.into_iter().map(|(.., latency)| latency).collect();
            all.sort_unstable();
            all
        };
        (latencies(served), latencies(refused))
    }

    #[tokio::test(start_paused = true)]
    async fn under_a_tenfold_overload_the_p99_of_those_served_is_at_most_twice_the_unloaded_one() {
        let service = 40 * MS;
        for target in [service / 4, service / 2, service] {
            let (served, refused) = tenfold(service, target).await;
            assert!(
                (served.len() * 8..served.len() * 11).contains(&refused.len()),
                "{} {}",
                served.len(),
                refused.len()
            );
            let p99 = served[served.len() * 99 / 100];
            assert!(p99 <= service + target + 2 * MS, "{target:?}: {p99:?}");
            assert!(p99 <= service * 2 + 2 * MS, "{target:?}: {p99:?}"); // the timer counts milliseconds
            assert!(refused[refused.len() - 1] <= target + 2 * MS, "a quick no: {:?}", refused[refused.len() - 1]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn when_nothing_comes_back_at_all_those_who_wait_are_refused_after_two_intervals() {
        let (target, interval) = (50 * MS, 1000 * MS);
        let admission = Admission::new(1, None, Some((target, interval)));
        let held = admission.try_admit().unwrap();
        let asked = Instant::now();
        let far = asked + Duration::from_secs(3600);
        assert_eq!(admission.admit(far).await.unwrap_err(), Refused::Shed);
        assert!(asked.elapsed() <= 2 * interval + 2 * target, "{:?}", asked.elapsed());
        let asked = Instant::now();
        assert_eq!(admission.admit(far).await.unwrap_err(), Refused::Shed);
        assert!(asked.elapsed() <= target + MS, "{:?}", asked.elapsed());
        drop(held);
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
    async fn under_overload_a_waiter_leaves_after_the_target_whoever_holds_the_permits() {
        let admission = Arc::new(Admission::new(1, None, Some((10 * MS, 100 * MS))));
        let mut held = admission.try_admit().unwrap();
        let far = Instant::now() + Duration::from_secs(3600);
        // Every wait of two intervals is 15 ms long, and nobody is refused.
        for _ in 0..13 {
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
        assert_eq!(asked.elapsed(), 10 * MS);
        assert_eq!(admission.waiting(), 0);
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
