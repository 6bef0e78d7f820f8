//! The bound on what a scope runs.

use std::future::Future;

/// An async closure or function whose future is `Send`.
///
/// Implemented for everything that fits; there is no need to name it. It exists because `AsyncFnOnce` alone cannot say
/// that its future is [`Send`], and a scope that runs in `tokio::spawn` or an axum handler must be.
pub trait Body<T, R>: AsyncFnOnce(T) -> R + FnOnce(T) -> <Self as Body<T, R>>::Fut {
    /// What calling it returns.
    type Fut: Future<Output = R>;
}

impl<F, T, Fut, R> Body<T, R> for F
where
    F: AsyncFnOnce(T) -> R + FnOnce(T) -> Fut,
    Fut: Future<Output = R>,
{
    type Fut = Fut;
}
