//! SeaORM: entities, on sqlx's pool.

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectOptions, Database, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, Set, TransactionTrait,
};

use crate::peer::{Batch, Item, Peer, Result, turn};

mod items {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "items")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub name: String,
        pub size: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

mod entries {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "entries")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub name: String,
        pub size: i64,
        pub seen: i32,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

fn item(found: items::Model) -> Item {
    (found.id, found.name, found.size)
}

#[derive(Clone)]
pub struct SeaOrm(DatabaseConnection);

impl Peer for SeaOrm {
    async fn connect(url: &str, size: u32) -> Result<Self> {
        let mut options = ConnectOptions::new(url);
        options.max_connections(size).min_connections(size);
        Ok(Self(Database::connect(options).await?))
    }

    async fn checkout(&self) -> Result<()> {
        let _conn = self.0.get_postgres_connection_pool().acquire().await?;
        turn().await
    }

    async fn read_in_transaction(&self, id: i64) -> Result<Item> {
        let tx = self.0.begin().await?;
        let found = items::Entity::find_by_id(id).one(&tx).await?.ok_or("no such item")?;
        tx.commit().await?;
        Ok(item(found))
    }

    async fn insert_and_update(&self, name: &str) -> Result<()> {
        let tx = self.0.begin().await?;
        let entry = entries::ActiveModel { name: Set(name.into()), ..Default::default() }.insert(&tx).await?;
        let touch = entries::Entity::update_many()
            .col_expr(entries::Column::Seen, Expr::col(entries::Column::Seen).add(1))
            .filter(entries::Column::Id.eq(entry.id));
        assert_eq!(touch.exec(&tx).await?.rows_affected, 1);
        Ok(tx.commit().await?)
    }

    async fn read(&self, id: i64) -> Result<Item> {
        Ok(item(items::Entity::find_by_id(id).one(&self.0).await?.ok_or("no such item")?))
    }

    async fn page(&self, after: i64) -> Result<Vec<Item>> {
        let page = items::Entity::find().filter(items::Column::Id.gt(after)).order_by_asc(items::Column::Id).limit(20);
        Ok(page.all(&self.0).await?.into_iter().map(item).collect())
    }

    async fn insert_many(&self, rows: &Batch) -> Result<()> {
        let tx = self.0.begin().await?;
        let entry = |(name, size): (&String, &i64)| entries::ActiveModel {
            name: Set(name.clone()),
            size: Set(*size),
            ..Default::default()
        };
        let entries = rows.names.iter().zip(&rows.sizes).map(entry);
        let stored = entries::Entity::insert_many(entries).exec_without_returning(&tx).await?;
        assert_eq!(stored, rows.names.len() as u64);
        Ok(tx.commit().await?)
    }
}
