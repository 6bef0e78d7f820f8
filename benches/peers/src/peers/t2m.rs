//! t2m-db, plain and with the last statement of a transaction in the flight of COMMIT.

use diesel::sql_types::{Array, BigInt, Text};
use diesel_async::RunQueryDsl;
use t2m_db::{Config, Database};

use super::typed;
use crate::peer::{Batch, Fault, Item, Peer, Result, turn};

#[derive(Clone)]
pub struct T2m<const COMMIT_WITH: bool>(Database);

impl<const COMMIT_WITH: bool> Peer for T2m<COMMIT_WITH> {
    async fn connect(url: &str, size: u32) -> Result<Self> {
        Ok(Self(Database::connect(Config::from_url(url)?.max_size(size).min_idle(size)).await?))
    }

    async fn checkout(&self) -> Result<()> {
        self.0.with_connection(async |_| turn().await).await
    }

    async fn read_in_transaction(&self, id: i64) -> Result<Item> {
        if COMMIT_WITH {
            return self.0.with_transaction(async |tx| Ok(tx.commit_returning(typed::item(id)).await?)).await;
        }
        self.0.with_transaction(async |tx| Ok(typed::item(id).get_result(tx).await?)).await
    }

    async fn insert_and_update(&self, name: &str) -> Result<()> {
        let work = async |tx: &mut t2m_db::Transaction| {
            let id = typed::insert(typed::draft(name)).get_result(tx).await?;
            let changed = match COMMIT_WITH {
                true => tx.commit_with(typed::touch(id)).await?,
                false => typed::touch(id).execute(tx).await?,
            };
            assert_eq!(changed, 1);
            Ok::<_, Fault>(())
        };
        self.0.with_transaction(work).await
    }

    async fn read(&self, id: i64) -> Result<Item> {
        self.0.with_connection(async |conn| Ok(typed::item(id).get_result(conn).await?)).await
    }

    async fn page(&self, after: i64) -> Result<Vec<Item>> {
        self.0.with_connection(async |conn| Ok(typed::page(after).load(conn).await?)).await
    }

    /// As the domain's functions for many rows do it.
    async fn insert_many(&self, rows: &Batch) -> Result<()> {
        let work = async |tx: &mut t2m_db::Transaction| {
            let insert = diesel::sql_query("INSERT INTO entries (name, size) SELECT * FROM unnest($1, $2)")
                .bind::<Array<Text>, _>(&rows.names)
                .bind::<Array<BigInt>, _>(&rows.sizes);
            assert_eq!(insert.execute(tx).await?, rows.names.len());
            Ok::<_, Fault>(())
        };
        self.0.with_transaction(work).await
    }
}
