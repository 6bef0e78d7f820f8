//! Which scope the current task is inside of, so that a scope that would wait for itself is told so at once.

use std::future::Future;
use std::sync::Arc;

use super::{Holder, Pool, ScopeName};
use crate::error::{Error, Result};

tokio::task_local! {
    static INSIDE: Arc<Holder>;
}

/// The innermost scope around the code that is being polled; of any pool.
pub(super) fn around() -> Option<Arc<Holder>> {
    INSIDE.try_with(Arc::clone).ok()
}

/// Marks `body` as running inside of a scope. A task that the body spawns is not inside: it may wait.
pub(crate) fn inside<F: Future>(holder: &Arc<Holder>, body: F) -> impl Future<Output = F::Output> {
    INSIDE.scope(Arc::clone(holder), body)
}

/// Refuses `scope` if the code that opens it is inside another scope of the same pool. Called when it would have to wait.
///
/// It may wait for a place that comes without anybody's help, as that of a health check. Whoever gets that one first ends
/// too, since a scope that is opened inside of *it* is refused here.
pub(super) fn check(pool: &Arc<Pool>, scope: ScopeName) -> Result<()> {
    let innermost = around();
    let mut around = innermost.as_deref();
    while let Some(holder) = around {
        if holder.pool == id(pool) {
            if pool.coming() > 0 {
                return Ok(());
            }
            return Err(Error::NestedCheckout {
                inner: scope.to_string(),
                outer: holder.scope.to_string(),
                max_size: pool.config.max_size,
            });
        }
        around = holder.outer.as_deref();
    }
    Ok(())
}

pub(super) fn id(pool: &Arc<Pool>) -> usize {
    Arc::as_ptr(pool).addr()
}
