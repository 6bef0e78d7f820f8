//! Opening connections: as many at once as there is need while the server answers, one at a time while it does not.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admission::Permit;
use super::manager::Failed;
use super::{Held, Pool};
use crate::connect::ConnectError;

const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// Short enough that the first success follows within 150 ms of the server accepting connections again.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// How many of the last failures an error tells.
const REMEMBERED: usize = 3;

/// What is known of the server while it cannot be reached.
#[derive(Debug, Default)]
pub(super) struct Opening {
    down: AtomicBool,
    /// Whoever holds it probes a server that is down.
    probe: tokio::sync::Mutex<Pace>,
    failures: Mutex<Vec<(std::time::Instant, String)>>,
}

/// When a server that is down is probed next. It outlives the caller who probed last: those who lose patience one after the
/// other must not knock at that rate.
#[derive(Debug, Default)]
struct Pace {
    pause: Duration,
    next: Option<Instant>,
}

impl Pace {
    fn slow_down(&mut self) {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.next = Some(Instant::now() + jittered(self.pause));
    }
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

impl Opening {
    /// The last failed attempts, newest last, unless the server was reached since.
    pub(super) fn failures(&self) -> Vec<String> {
        self.failures.lock().iter().map(|(at, what)| format!("{:.1?} ago: {what}", at.elapsed())).collect()
    }

    fn failed(&self, error: &ConnectError) {
        let mut failures = self.failures.lock();
        if failures.len() == REMEMBERED {
            failures.remove(0);
        }
        failures.push((std::time::Instant::now(), error.to_string()));
        self.down.store(true, SeqCst);
    }

    fn succeeded(&self) {
        if self.down.swap(false, SeqCst) {
            self.failures.lock().clear();
        }
    }
}

/// A connection that was opened, with the permit that it runs on.
pub(super) type Opened = Result<(Held, Permit), ConnectError>;

/// Who a connection is opened for, and so when it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// Whoever waits for one: not once the pool is closed.
    Nobodys,
    /// A scope whose own is dead: `close` drains it, so it is served until it is dropped.
    Leases,
}

impl Pool {
    /// Opens a connection in a task of its own, until `deadline`. If nobody waits for it in the end it goes to the idle
    /// ones: a login is not wasted because its first user lost patience.
    ///
    /// # Cancel safety
    /// The permit stays with the task, so what is being opened keeps its place in `max_size`.
    pub(super) async fn open(self: &Arc<Self>, permit: Permit, deadline: Instant, whose: Whose) -> Opened {
        let (mut answer, result) = oneshot::channel();
        let pool = Arc::clone(self);
        let task = tokio::spawn(async move {
            let opened = {
                let nobody_cares = answer.closed().shared();
                let given_up = async {
                    if whose == Whose::Leases {
                        nobody_cares.clone().await;
                    }
                    pool.admission.closed().await;
                };
                tokio::select! {
                    opened = pool.open_until(deadline, nobody_cares.clone()) => opened,
                    // A session that is cut off by this is waited for by `close`.
                    () = given_up => Err(ConnectError::stopped(&"the pool was closed").into()),
                }
            };
            let opened = match opened {
                Ok(held) => Ok((held, permit)),
                Err(failed) => Err(pool.give_up(failed, permit)),
            };
            // Unsent, the pair is dropped in order: first the connection goes back to bb8, then the permit is free.
            drop(answer.send(opened));
        });
        match result.await {
            Ok(opened) => opened,
            Err(_) => Err(match task.await {
                Err(error) => ConnectError::stopped(&error),
                Ok(()) => ConnectError::stopped(&"nobody waited for it"),
            }),
        }
    }

    /// Gives the place of an attempt that failed away, as soon as nothing is left of it.
    pub(super) fn give_up(&self, failed: Failed, permit: Permit) -> ConnectError {
        let Failed { error, left } = failed;
        if let Some(ending) = left {
            drop(self.when_over(ending, permit));
        }
        error
    }

    /// Tries until `deadline`, or until nobody cares for the result any more. An attempt that has begun is finished.
    async fn open_until(&self, deadline: Instant, nobody_cares: impl Future<Output = ()>) -> Result<Held, Failed> {
        let mut nobody_cares = pin!(nobody_cares);
        loop {
            let mut probe = None;
            if self.opening.down.load(SeqCst) {
                let began = Instant::now();
                let turn = tokio::select! {
                    turn = tokio::time::timeout_at(deadline, self.opening.probe.lock()) => turn.ok(),
                    () = &mut nobody_cares => None,
                };
                let turn = turn.ok_or_else(|| ConnectError::timed_out(began.elapsed()))?;
                // If it came back while we waited, everybody may try.
                if self.opening.down.load(SeqCst) {
                    if let Some(next) = turn.next {
                        tokio::select! {
                            () = tokio::time::sleep_until(next.min(deadline)) => {}
                            () = &mut nobody_cares => return Err(ConnectError::timed_out(began.elapsed()).into()),
                        }
                        if next > deadline {
                            return Err(ConnectError::timed_out(began.elapsed()).into());
                        }
                    }
                    probe = Some(turn);
                }
            }
            let failed = match self.bb8.dedicated_connection().await {
                Ok(session) => {
                    self.opening.succeeded();
                    if let Some(pace) = &mut probe {
                        **pace = Pace::default();
                    }
                    return Ok(self.store_and_take(session));
                }
                Err(failed) => failed,
            };
            self.opening.failed(&failed.error);
            // One of those that did not know yet: it goes to the end of the line.
            let (next, pause) = if let Some(mut pace) = probe {
                pace.slow_down();
                (pace.next.unwrap_or(deadline), None)
            } else {
                let next = Instant::now() + jittered(FIRST_PAUSE);
                (next, Some(next))
            };
            if failed.error.is_fatal() || next >= deadline {
                return Err(failed);
            }
            // What is left of this attempt has the place until it is over. Others may probe meanwhile.
            let ready = async {
                if let Some(ending) = &failed.left {
                    ending.over().await;
                }
                if let Some(next) = pause {
                    tokio::time::sleep_until(next).await;
                }
            };
            tokio::select! {
                () = ready => {}
                () = &mut nobody_cares => return Err(failed),
            }
        }
    }
}
