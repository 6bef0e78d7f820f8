//! What a scope is told that gets no connection.

use tokio::time::Instant;

use super::admission::Refused;
use super::{Limit, Pool, ScopeName, add, session};
use crate::error::{CheckoutTimeout, Error, Overloaded};

impl Pool {
    pub(super) fn refusal(&self, refused: &Refused, scope: ScopeName, limit: Limit, began: Instant) -> Error {
        let count = |counter| {
            if !scope.ours {
                add(counter);
            }
        };
        match refused {
            Refused::Closed => Error::Closed { scope: scope.to_string() },
            Refused::TimedOut => {
                count(&self.counters.timeouts);
                Error::CheckoutTimeout(Box::new(self.checkout_timeout(scope, limit, began)))
            }
            Refused::QueueFull => {
                count(&self.counters.shed);
                let reason = "as many others wait as `max_waiting` allows";
                Error::Overloaded(Box::new(self.overloaded(scope, began, reason, "max_waiting")))
            }
            Refused::Shed => {
                count(&self.counters.shed);
                let reason = "every wait of the last `queue_interval` was longer than `queue_target`";
                Error::Overloaded(Box::new(self.overloaded(scope, began, reason, "queue_target")))
            }
        }
    }

    fn checkout_timeout(&self, scope: ScopeName, limit: Limit, began: Instant) -> CheckoutTimeout {
        CheckoutTimeout {
            scope: scope.to_string(),
            waited: began.elapsed(),
            limit: limit.set_by,
            size: session::count(&self.open),
            max_size: self.config.max_size as usize,
            waiting: self.admission.waiting(),
            holders: self.registry.checkouts().iter().map(ToString::to_string).collect(),
            connect_failures: self.opening.failures(),
        }
    }

    fn overloaded(&self, scope: ScopeName, began: Instant, reason: &'static str, setting: &'static str) -> Overloaded {
        let holders = self.registry.checkouts();
        Overloaded {
            scope: scope.to_string(),
            waited: began.elapsed(),
            reason,
            setting,
            max_size: self.config.max_size as usize,
            out: holders.len(),
            waiting: self.admission.waiting(),
            // A no has to be quick when thousands are told it.
            longest: holders.iter().take(Overloaded::SHOWN).map(ToString::to_string).collect(),
        }
    }
}
