//! Drops a future at a chosen point of its life, for sweeps over every point there is.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Where a future is dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Moment {
    /// As soon as its n-th poll returned: what it queued then may not even be written.
    AtOnce,
    /// When it would have been polled once more: what it waited for is there, and it never learns.
    OnWake,
}

/// How a future with a limit ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Polled<T> {
    /// It came to its end.
    Completed {
        /// What it returned.
        output: T,
        /// Polls that it took.
        polls: usize,
    },
    /// It was dropped.
    Dropped {
        /// Polls that it was given.
        polls: usize,
    },
}

impl<T> Polled<T> {
    /// What the future returned, if it came to its end.
    pub fn completed(self) -> Option<T> {
        match self {
            Self::Completed { output, .. } => Some(output),
            Self::Dropped { .. } => None,
        }
    }
}

/// Polls a future a limited number of times, then drops it.
///
/// ```
/// use t2m_db::testing::{Moment, PollLimit, Polled};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let work = async || tokio::task::yield_now().await;
/// assert_eq!(PollLimit::new(work(), 1, Moment::AtOnce).await, Polled::Dropped { polls: 1 });
/// assert_eq!(PollLimit::new(work(), 2, Moment::AtOnce).await, Polled::Completed { output: (), polls: 2 });
/// # }
/// ```
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct PollLimit<F> {
    future: Option<Pin<Box<F>>>,
    limit: usize,
    polls: usize,
    moment: Moment,
}

impl<F: Future> PollLimit<F> {
    /// Gives `future` at most `limit` polls; with 0 it is dropped without having been polled.
    pub fn new(future: F, limit: usize, moment: Moment) -> Self {
        Self { future: Some(Box::pin(future)), limit, polls: 0, moment }
    }
}

impl<F: Future> Future for PollLimit<F> {
    type Output = Polled<F::Output>;

    /// # Panics
    /// If polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(future) = this.future.as_mut() else { panic!("`PollLimit` polled after it was ready") };
        if this.polls < this.limit {
            this.polls += 1;
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                this.future = None;
                return Poll::Ready(Polled::Completed { output, polls: this.polls });
            }
            if this.polls < this.limit || this.moment == Moment::OnWake {
                return Poll::Pending;
            }
        }
        this.future = None; // dropped here and now, before anybody hears of it
        Poll::Ready(Polled::Dropped { polls: this.polls })
    }
}
