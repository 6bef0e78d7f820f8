//! Which scope the current task is inside of, so that a scope that would wait for itself is told so at once.

use std::future::Future;
use std::sync::Arc;

use super::{Pool, ScopeName};
use crate::error::{Error, Result};

tokio::task_local! {
    static INSIDE: Arc<Inside>;
}

/// The scopes around the code that is being polled, innermost first; of any pool.
#[derive(Debug)]
pub(crate) struct Inside {
    pool: usize,
    scope: ScopeName,
    outer: Option<Arc<Inside>>,
}

/// Marks `body` as running inside of `scope`. A task that the body spawns is not inside: it may wait.
pub(crate) fn inside<F: Future>(pool: &Arc<Pool>, scope: ScopeName, body: F) -> impl Future<Output = F::Output> {
    let outer = INSIDE.try_with(Arc::clone).ok();
    INSIDE.scope(Arc::new(Inside { pool: id(pool), scope, outer }), body)
}

/// Refuses `scope` if the code that opens it is inside another scope of the same pool. Called when it would have to wait.
///
/// It may wait for a health check or the like: that ends by itself. Whoever gets that permit first ends too, since a
/// scope that is opened inside of *it* is refused here.
pub(super) fn check(pool: &Arc<Pool>, scope: ScopeName) -> Result<()> {
    if pool.admission.is_any_in_background() {
        return Ok(());
    }
    let innermost = INSIDE.try_with(Arc::clone).ok();
    let mut around = innermost.as_deref();
    while let Some(inside) = around {
        if inside.pool == id(pool) {
            return Err(Error::NestedCheckout {
                inner: scope.to_string(),
                outer: inside.scope.to_string(),
                max_size: pool.config.max_size,
            });
        }
        around = inside.outer.as_deref();
    }
    Ok(())
}

fn id(pool: &Arc<Pool>) -> usize {
    Arc::as_ptr(pool).addr()
}
