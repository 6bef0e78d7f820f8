//! How much retrying a pool may do: a bucket that each retry takes a token from, and each success gives a tenth back to.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Tokens, counted in tenths.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    tenths: AtomicU32,
    full: u32,
}

impl RetryBudget {
    pub(super) fn new(tokens: u32) -> Self {
        let full = tokens.saturating_mul(10);
        Self { tenths: AtomicU32::new(full), full }
    }

    /// Takes one token; `false` if there is none.
    pub(crate) fn take(&self) -> bool {
        self.tenths.fetch_update(Relaxed, Relaxed, |tenths| tenths.checked_sub(10)).is_ok()
    }

    /// A tenth of a token.
    pub(crate) fn put_back(&self) {
        if self.tenths.load(Relaxed) < self.full {
            self.tenths.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_successes_pay_for_one_retry_and_the_bucket_does_not_overflow() {
        let budget = RetryBudget::new(2);
        budget.put_back();
        assert!(budget.take() && budget.take() && !budget.take());
        (0..9).for_each(|_| budget.put_back());
        assert!(!budget.take());
        budget.put_back();
        assert!(budget.take() && !budget.take());
    }
}
