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

#[cfg(test)]
mod tests;

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
    /// `max_waiting` others wait in line already.
    QueueFull,
    /// Waited longer than `queue_target`, which an overloaded pool lets nobody do.
    Shed,
}

#[derive(Debug)]
pub(crate) struct Admission {
    permits: Arc<Semaphore>,
    max_size: usize,
    closed: Notify,
    /// Scopes that wait for a permit, and those that have one and wait for the server.
    in_line: AtomicUsize,
    logging_in: AtomicUsize,
    max_waiting: usize,
    shedding: Option<Mutex<Shedding>>,
}

impl Admission {
    pub(crate) fn new(max_size: usize, max_waiting: Option<usize>, shed: Option<(Duration, Duration)>) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(max_size)),
            max_size,
            closed: Notify::new(),
            in_line: AtomicUsize::new(0),
            logging_in: AtomicUsize::new(0),
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

    /// Waits in line until `deadline`. `coming` is how many permits come back without anybody's help: so many may wait
    /// for them, beside those that `max_waiting` allows.
    ///
    /// # Cancel safety
    /// A dropped wait gives its place in the queue away and is not counted as waiting any more.
    pub(crate) async fn admit(&self, deadline: Instant, coming: usize) -> Result<Permit, Refused> {
        let began = Instant::now();
        let _waiting = self.wait_in_line(coming).ok_or(Refused::QueueFull)?;
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

    fn wait_in_line(&self, coming: usize) -> Option<Waiting<'_>> {
        let before = self.in_line.fetch_add(1, SeqCst);
        let guard = Waiting(&self.in_line);
        (before < self.max_waiting.saturating_add(coming)).then_some(guard)
    }

    /// Counts one more that waits for its login, until the guard is dropped: it has its permit, and stands in nobody's way.
    pub(crate) fn wait_for_login(&self) -> Waiting<'_> {
        self.logging_in.fetch_add(1, SeqCst);
        Waiting(&self.logging_in)
    }

    pub(crate) fn logging_in(&self) -> usize {
        self.logging_in.load(SeqCst)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.in_line.load(SeqCst) + self.logging_in()
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
