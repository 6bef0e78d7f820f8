//! diesel-async with the pools that it comes with, bb8 and deadpool, and without one: only how a connection is taken differs.

use std::future::Future;
use std::ops::DerefMut;
use std::sync::Arc;

use diesel_async::pooled_connection::{AsyncDieselConnectionManager, bb8, deadpool};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use tokio::sync::Mutex;

use super::typed;
use crate::peer::{Batch, Fault, Item, Peer, Result, turn};

type Manager = AsyncDieselConnectionManager<AsyncPgConnection>;

pub trait Pool: Clone + Send + Sync + Sized + 'static {
    fn open(url: &str, size: u32) -> impl Future<Output = Result<Self>> + Send;
    fn take(&self) -> impl Future<Output = Result<impl DerefMut<Target = AsyncPgConnection> + Send>> + Send;
}

impl Pool for bb8::Pool<AsyncPgConnection> {
    async fn open(url: &str, size: u32) -> Result<Self> {
        Ok(Self::builder().max_size(size).min_idle(size).build(Manager::new(url)).await?)
    }

    #[expect(clippy::disallowed_methods, reason = "that is what is measured")]
    async fn take(&self) -> Result<impl DerefMut<Target = AsyncPgConnection> + Send> {
        Ok(self.get().await?)
    }
}

/// deadpool gives out a wrapper of its own around the connection.
impl Pool for deadpool::Pool<AsyncPgConnection> {
    async fn open(url: &str, size: u32) -> Result<Self> {
        Ok(Self::builder(Manager::new(url)).max_size(size as usize).build()?)
    }

    async fn take(&self) -> Result<impl DerefMut<Target = AsyncPgConnection> + Send> {
        Ok(self.get().await?)
    }
}

/// One bare connection, whatever the size: what the same statements cost without a pool and without a scope.
impl Pool for Arc<Mutex<AsyncPgConnection>> {
    async fn open(url: &str, _: u32) -> Result<Self> {
        Ok(Self::new(Mutex::new(AsyncPgConnection::establish(url).await?)))
    }

    async fn take(&self) -> Result<impl DerefMut<Target = AsyncPgConnection> + Send> {
        Ok(self.lock().await)
    }
}

#[derive(Clone)]
pub struct Stock<P>(P);

pub type Alone = Stock<Arc<Mutex<AsyncPgConnection>>>;
pub type Bb8 = Stock<bb8::Pool<AsyncPgConnection>>;
pub type Deadpool = Stock<deadpool::Pool<AsyncPgConnection>>;

impl<P: Pool> Peer for Stock<P> {
    async fn connect(url: &str, size: u32) -> Result<Self> {
        Ok(Self(P::open(url, size).await?))
    }

    async fn checkout(&self) -> Result<()> {
        let _conn = self.0.take().await?;
        turn().await
    }

    async fn read_in_transaction(&self, id: i64) -> Result<Item> {
        let mut conn = self.0.take().await?;
        let work = async |conn: &mut AsyncPgConnection| Ok(typed::item(id).get_result(conn).await?);
        AsyncPgConnection::transaction(&mut conn, work).await
    }

    async fn insert_and_update(&self, name: &str) -> Result<()> {
        let work = async |conn: &mut AsyncPgConnection| {
            let id = typed::insert(typed::draft(name)).get_result(conn).await?;
            assert_eq!(typed::touch(id).execute(conn).await?, 1);
            Ok::<_, Fault>(())
        };
        let mut conn = self.0.take().await?;
        AsyncPgConnection::transaction(&mut conn, work).await
    }

    async fn read(&self, id: i64) -> Result<Item> {
        let mut conn = self.0.take().await?;
        Ok(typed::item(id).get_result(&mut *conn).await?)
    }

    async fn page(&self, after: i64) -> Result<Vec<Item>> {
        let mut conn = self.0.take().await?;
        Ok(typed::page(after).load(&mut *conn).await?)
    }

    /// diesel's batch: one statement with a placeholder for each value.
    async fn insert_many(&self, rows: &Batch) -> Result<()> {
        let work = async |conn: &mut AsyncPgConnection| {
            let batch = typed::new_entries(rows);
            let insert = diesel::insert_into(typed::entries::table).values(batch);
            assert_eq!(insert.execute(conn).await?, rows.names.len());
            Ok::<_, Fault>(())
        };
        let mut conn = self.0.take().await?;
        AsyncPgConnection::transaction(&mut conn, work).await
    }
}
