//! The one bound that the domain knows of the core: something that diesel's typed queries run on.

use diesel::pg::Pg;
use diesel_async::AsyncConnectionCore;

/// Anything that runs typed queries on PostgreSQL: a [`Transaction`](crate::Transaction), a
/// [`Connection`](crate::Connection), or a bare [`AsyncPgConnection`](diesel_async::AsyncPgConnection); and a shared reference to
/// one of them, so that independent calls travel in one flight: `try_join!(find(&mut &*tx, ..), list(&mut &*tx, ..))`.
///
/// A function of the domain that pipelines by itself asks for `&C: Executor` as well, and so for the connection, not for a
/// shared reference to it.
pub trait Executor: AsyncConnectionCore<Backend = Pg> {}

impl<C: AsyncConnectionCore<Backend = Pg>> Executor for C {}
