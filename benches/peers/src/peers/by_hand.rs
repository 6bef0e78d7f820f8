//! tokio-postgres, SQL by hand: under deadpool-postgres with its statement cache, and one bare client.

use std::str::FromStr;
use std::sync::Arc;

use deadpool_postgres::{GenericClient, Manager, Pool};
use tokio_postgres::{Client, NoTls, Row, Statement};

use crate::peer::{Batch, Fault, Item, Peer, Result, turn};

pub const ITEM: &str = "SELECT id, name, size FROM items WHERE id = $1";
pub const PAGE: &str = "SELECT id, name, size FROM items WHERE id > $1 ORDER BY id LIMIT 20";
pub const INSERT: &str = "INSERT INTO entries (name) VALUES ($1) RETURNING id";
pub const TOUCH: &str = "UPDATE entries SET seen = seen + 1 WHERE id = $1";
pub const MANY: &str = "INSERT INTO entries (name, size) SELECT * FROM unnest($1::text[], $2::int8[])";

fn item(row: &Row) -> Item {
    (row.get(0), row.get(1), row.get(2))
}

async fn read(client: &impl GenericClient, id: i64) -> Result<Item> {
    let statement = client.prepare_cached(ITEM).await?;
    Ok(item(&client.query_one(&statement, &[&id]).await?))
}

#[derive(Clone)]
pub struct TokioPostgres(Pool);

impl Peer for TokioPostgres {
    async fn connect(url: &str, size: u32) -> Result<Self> {
        let manager = Manager::new(tokio_postgres::Config::from_str(url)?, NoTls);
        Ok(Self(Pool::builder(manager).max_size(size as usize).build()?))
    }

    async fn checkout(&self) -> Result<()> {
        let _client = self.0.get().await?;
        turn().await
    }

    async fn read_in_transaction(&self, id: i64) -> Result<Item> {
        let mut client = self.0.get().await?;
        let tx = client.transaction().await?;
        let item = read(&tx, id).await?;
        tx.commit().await?;
        Ok(item)
    }

    async fn insert_and_update(&self, name: &str) -> Result<()> {
        let mut client = self.0.get().await?;
        let tx = client.transaction().await?;
        let id: i64 = tx.query_one(&tx.prepare_cached(INSERT).await?, &[&name]).await?.get(0);
        assert_eq!(tx.execute(&tx.prepare_cached(TOUCH).await?, &[&id]).await?, 1);
        Ok(tx.commit().await?)
    }

    async fn read(&self, id: i64) -> Result<Item> {
        read(&self.0.get().await?, id).await
    }

    async fn page(&self, after: i64) -> Result<Vec<Item>> {
        let client = self.0.get().await?;
        let rows = client.query(&client.prepare_cached(PAGE).await?, &[&after]).await?;
        Ok(rows.iter().map(item).collect())
    }

    async fn insert_many(&self, rows: &Batch) -> Result<()> {
        let mut client = self.0.get().await?;
        let tx = client.transaction().await?;
        let statement = tx.prepare_cached(MANY).await?;
        assert_eq!(tx.execute(&statement, &[&rows.names, &rows.sizes]).await?, rows.names.len() as u64);
        Ok(tx.commit().await?)
    }
}

/// One client without a pool, its statements prepared beforehand: the least that this driver can do. Counted, not timed.
#[derive(Clone)]
pub struct Bare {
    client: Arc<Client>,
    statements: Arc<[Statement; 5]>,
}

impl Bare {
    async fn in_transaction<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.client.batch_execute("BEGIN").await?;
        let done = work.await?;
        self.client.batch_execute("COMMIT").await?;
        Ok(done)
    }
}

impl Peer for Bare {
    async fn connect(url: &str, _: u32) -> Result<Self> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        let mut statements = Vec::new();
        for text in [ITEM, PAGE, INSERT, TOUCH, MANY] {
            statements.push(client.prepare(text).await?);
        }
        let statements = statements.try_into().map_err(|_| Fault::from("five statements"))?;
        Ok(Self { client: Arc::new(client), statements: Arc::new(statements) })
    }

    async fn checkout(&self) -> Result<()> {
        turn().await
    }

    async fn read_in_transaction(&self, id: i64) -> Result<Item> {
        self.in_transaction(self.read(id)).await
    }

    async fn insert_and_update(&self, name: &str) -> Result<()> {
        self.in_transaction(async {
            let id: i64 = self.client.query_one(&self.statements[2], &[&name]).await?.get(0);
            assert_eq!(self.client.execute(&self.statements[3], &[&id]).await?, 1);
            Ok(())
        })
        .await
    }

    async fn read(&self, id: i64) -> Result<Item> {
        Ok(item(&self.client.query_one(&self.statements[0], &[&id]).await?))
    }

    async fn page(&self, after: i64) -> Result<Vec<Item>> {
        Ok(self.client.query(&self.statements[1], &[&after]).await?.iter().map(item).collect())
    }

    async fn insert_many(&self, rows: &Batch) -> Result<()> {
        self.in_transaction(async {
            self.client.execute(&self.statements[4], &[&rows.names, &rows.sizes]).await?;
            Ok(())
        })
        .await
    }
}
