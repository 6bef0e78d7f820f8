//! sqlx: SQL by hand, prepared and kept by it, a ping at each checkout by default.

use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{query, query_as, query_scalar};

use super::by_hand::{INSERT, ITEM, MANY, PAGE, TOUCH};
use crate::peer::{Batch, Item, Peer, Result, turn};

#[derive(Clone)]
pub struct Sqlx(PgPool);

impl Peer for Sqlx {
    async fn connect(url: &str, size: u32) -> Result<Self> {
        Ok(Self(PgPoolOptions::new().max_connections(size).min_connections(size).connect(url).await?))
    }

    async fn checkout(&self) -> Result<()> {
        let _conn = self.0.acquire().await?;
        turn().await
    }

    async fn read_in_transaction(&self, id: i64) -> Result<Item> {
        let mut tx = self.0.begin().await?;
        let item = query_as(ITEM).bind(id).fetch_one(&mut *tx).await?;
        tx.commit().await?;
        Ok(item)
    }

    async fn insert_and_update(&self, name: &str) -> Result<()> {
        let mut tx = self.0.begin().await?;
        let id: i64 = query_scalar(INSERT).bind(name).fetch_one(&mut *tx).await?;
        assert_eq!(query(TOUCH).bind(id).execute(&mut *tx).await?.rows_affected(), 1);
        Ok(tx.commit().await?)
    }

    async fn read(&self, id: i64) -> Result<Item> {
        Ok(query_as(ITEM).bind(id).fetch_one(&self.0).await?)
    }

    async fn page(&self, after: i64) -> Result<Vec<Item>> {
        Ok(query_as(PAGE).bind(after).fetch_all(&self.0).await?)
    }

    async fn insert_many(&self, rows: &Batch) -> Result<()> {
        let mut tx = self.0.begin().await?;
        let done = query(MANY).bind(&rows.names).bind(&rows.sizes).execute(&mut *tx).await?;
        assert_eq!(done.rows_affected(), rows.names.len() as u64);
        Ok(tx.commit().await?)
    }
}
