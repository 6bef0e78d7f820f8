//! Passwords that are asked for when they are needed.

use std::error::Error;
use std::future::Future;

use futures_util::future::BoxFuture;

/// Knows the password of the next connection. For credentials that expire or rotate.
///
/// Called once for each connection that is opened, within `connect_timeout`. What it returns is used for that login and
/// dropped; it is never logged. Its error, with its sources, becomes part of the connection error's text, which is logged and
/// shown by health checks: it must not hold a secret.
///
/// Every function or closure that returns a future of a `Result<String, _>` is one:
///
/// ```
/// # fn main() -> t2m_db::Result<()> {
/// let config = t2m_db::Config::from_url("postgres://app@db.internal/t2m")?
///     .password_provider(|| async { std::fs::read_to_string("/run/secrets/db").map(|text| text.trim().to_owned()) });
/// # let _ = config;
/// # Ok(())
/// # }
/// ```
pub trait PasswordProvider: Send + Sync + 'static {
    /// The password to log in with now.
    ///
    /// # Errors
    ///
    /// Whatever kept it from being found. The attempt to connect fails with it and may be repeated.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped when `connect_timeout` has passed.
    fn password(&self) -> BoxFuture<'_, Result<String, Box<dyn Error + Send + Sync>>>;
}

impl<F, Fut, E> PasswordProvider for F
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<String, E>> + Send + 'static,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    fn password(&self) -> BoxFuture<'_, Result<String, Box<dyn Error + Send + Sync>>> {
        let asked = self();
        Box::pin(async move { asked.await.map_err(Into::into) })
    }
}
