//! Blocking round trips of one unit of work on a warm connection, counted by a proxy. Upper bounds: an increase fails.

use std::io::Write;

use diesel::deserialize::FromSql;
use diesel::pg::{Pg, PgValue};
use diesel::prelude::*;
use diesel::serialize::{IsNull, Output, ToSql};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use t2m_db::testing::Proxy;
use t2m_db::{Config, Database, Error};

use crate::support::{note, notes, table};

/// What W1 to W5 of the design may cost; and what else must not cost more than it does.
const BUDGET: &[(&str, u64)] = &[
    ("W1 a transaction with one SELECT", 2),
    ("W1 with commit_returning", 1),
    ("W2 INSERT .. RETURNING, then UPDATE", 3),
    ("W2 with commit_with", 2),
    ("W3 one SELECT, no transaction", 1),
    ("W4 a page of 20 rows, no transaction", 1),
    ("a transaction with a deadline and an isolation level", 2),
    ("an empty transaction", 0),
    ("three independent statements with try_join", 2),
    ("a savepoint around an INSERT", 4),
    ("a rollback", 2),
    ("a cancelled scope that ran nothing", 0),
];

async fn work(db: &Database, what: &str) -> Result<(), Error> {
    let one = || notes::table.find(1).select(notes::text);
    let text = || format!("note {}", fastrand::u64(..));
    match what {
        "W1 a transaction with one SELECT" => {
            db.with_transaction(async |tx| Ok::<String, Error>(one().get_result(tx).await?)).await.map(drop)
        }
        "W1 with commit_returning" => {
            db.with_transaction(async |tx| tx.commit_returning::<String>(one()).await).await.map(drop)
        }
        "W2 INSERT .. RETURNING, then UPDATE" => {
            db.with_transaction(async |tx| {
                let id = note(tx, &text()).await?;
                diesel::update(notes::table.find(id)).set(notes::seen.eq(notes::seen + 1)).execute(tx).await?;
                Ok(())
            })
            .await
        }
        "W2 with commit_with" => db
            .with_transaction(async |tx| {
                let id = note(tx, &text()).await?;
                tx.commit_with(diesel::update(notes::table.find(id)).set(notes::seen.eq(notes::seen + 1))).await
            })
            .await
            .map(drop),
        "W3 one SELECT, no transaction" => {
            db.with_connection(async |conn| Ok::<String, Error>(one().get_result(conn).await?)).await.map(drop)
        }
        "W4 a page of 20 rows, no transaction" => {
            let page = notes::table.filter(notes::id.gt(10)).order(notes::id).limit(20).select(notes::text);
            let texts = db.with_connection(async |conn| Ok::<Vec<String>, Error>(page.load(conn).await?)).await?;
            assert_eq!(texts.len(), 20);
            Ok(())
        }
        "a transaction with a deadline and an isolation level" => {
            let strict = db.transaction("strict").isolation(t2m_db::Isolation::Serializable);
            let strict = strict.deadline(std::time::Duration::from_secs(60));
            strict.run(async |tx| Ok::<String, Error>(one().get_result(tx).await?)).await.map(drop)
        }
        "an empty transaction" => db.with_transaction(async |_| Ok(())).await,
        "three independent statements with try_join" => {
            db.with_transaction(async |tx| {
                let tx = &*tx;
                let (a, b) = (one().get_result::<String>(&mut &*tx), one().get_result::<String>(&mut &*tx));
                let count = notes::table.count().get_result::<i64>(&mut &*tx);
                futures_util::try_join!(a, b, count).map_err(Error::from).map(drop)
            })
            .await
        }
        "a savepoint around an INSERT" => {
            db.with_transaction(async |tx| tx.savepoint(async |tx| note(tx, &text()).await).await).await.map(drop)
        }
        "a rollback" => {
            let error = db.with_transaction(async |tx| {
                note(tx, &text()).await?;
                Err::<(), _>(Error::NotFound { entity: "proof" })
            });
            assert!(matches!(error.await, Err(Error::NotFound { .. })));
            Ok(())
        }
        "a cancelled scope that ran nothing" => {
            let idle = db.with_transaction(async |_| std::future::pending::<Result<(), Error>>().await);
            assert!(futures_util::FutureExt::now_or_never(idle).is_none());
            Ok(())
        }
        other => unreachable!("{other}"),
    }
}

#[tokio::test]
async fn no_unit_of_work_costs_more_round_trips_than_it_may() {
    let (database, client) = table().await;
    client.batch_execute("INSERT INTO notes (text) SELECT 'n' || n FROM generate_series(1, 100) n").await.unwrap();
    let proxy = Proxy::start_unix(&database.url()).await.unwrap();
    let config = Config::from_url(&proxy.url()).unwrap().max_size(1).min_idle(0).health_interval(None);
    let db = Database::connect(config).await.unwrap();
    let mut over = Vec::new();
    for (what, budget) in BUDGET {
        for _ in 0..3 {
            work(&db, what).await.unwrap(); // texts that vary are kept prepared when they return
        }
        proxy.reset_counts();
        work(&db, what).await.unwrap();
        let spent = proxy.round_trips();
        if spent > *budget {
            over.push(format!("{what}: {spent} instead of {budget}: {:#?}", proxy.statements()));
        }
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
}

#[tokio::test]
async fn statements_that_vary_without_end_do_not_push_out_those_that_return() {
    let (database, _client) = table().await;
    let proxy = Proxy::start_unix(&database.url()).await.unwrap();
    let config = Config::from_url(&proxy.url()).unwrap().max_size(1).min_idle(0).statement_cache_size(8);
    let db = Database::connect(config).await.unwrap();
    let hot = || async {
        db.with_transaction(async |tx| {
            diesel::update(notes::table.find(1))
                .set(notes::seen.eq(notes::seen + 1))
                .execute(tx)
                .await
                .map_err(Error::from)
        })
        .await
    };
    for _ in 0..3 {
        hot().await.unwrap();
    }
    for length in 0..200 {
        db.with_connection(async |conn| {
            let varied = format!("SELECT id FROM notes WHERE id IN (0{})", ", 1".repeat(length));
            Ok::<_, Error>(diesel::sql_query(varied).execute(conn).await?)
        })
        .await
        .unwrap();
    }
    proxy.reset_counts();
    hot().await.unwrap();
    assert_eq!(proxy.round_trips(), 2, "UPDATE is still prepared: {:#?}", proxy.statements());
    let kept: i64 = db
        .with_connection(async |conn| {
            diesel::table! { pg_prepared_statements (name) { name -> Text } }
            Ok::<_, Error>(pg_prepared_statements::table.count().get_result(conn).await?)
        })
        .await
        .unwrap();
    assert!(kept <= 9, "{kept} statements on the server");
}

#[tokio::test]
async fn a_schema_that_changes_under_a_kept_statement_is_noticed() {
    let (database, client) = table().await;
    let db = Database::connect(Config::from_url(&database.url()).unwrap().max_size(1).min_idle(0)).await.unwrap();
    client.batch_execute("INSERT INTO notes (text) VALUES ('a')").await.unwrap();
    let all = async || {
        db.with_connection(async |conn| {
            diesel::sql_query("SELECT * FROM notes").execute(conn).await.map_err(Error::from)
        })
        .await
    };
    for _ in 0..3 {
        all().await.unwrap();
    }
    client.batch_execute("ALTER TABLE notes ADD extra int").await.unwrap();
    assert_eq!(all().await.unwrap(), 1, "outside of a transaction it is prepared again, unnoticed");
    for _ in 0..3 {
        all().await.unwrap();
    }
    client.batch_execute("ALTER TABLE notes ADD another int").await.unwrap();
    let in_transaction = async |tx: &mut t2m_db::Transaction| {
        note(tx, &format!("{}", fastrand::u64(..))).await?;
        diesel::sql_query("SELECT * FROM notes").execute(tx).await.map_err(Error::from)
    };
    let error = db.with_transaction(in_transaction).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    client.batch_execute("ALTER TABLE notes ADD a_third int").await.unwrap();
    db.transaction("again").run_retrying(in_transaction).await.unwrap();
}

#[derive(diesel::sql_types::SqlType, diesel::query_builder::QueryId)]
#[diesel(postgres_type(name = "mood"))]
struct MoodType;

/// A type of the database's own: its number is looked up by its name.
#[derive(Clone, Debug, PartialEq, diesel::expression::AsExpression, diesel::deserialize::FromSqlRow)]
#[diesel(sql_type = MoodType)]
struct Mood(String);

impl ToSql<MoodType, Pg> for Mood {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> diesel::serialize::Result {
        out.write_all(self.0.as_bytes())?;
        Ok(IsNull::No)
    }
}

impl FromSql<MoodType, Pg> for Mood {
    fn from_sql(bytes: PgValue<'_>) -> diesel::deserialize::Result<Self> {
        Ok(Self(String::from_utf8(bytes.as_bytes().to_vec())?))
    }
}

diesel::table! {
    pg_prepared_statements (name) {
        name -> Text,
        statement -> Text,
    }
}

#[tokio::test]
async fn a_cache_of_none_keeps_no_statement_not_even_one_whose_types_are_looked_up() {
    let (database, client) = table().await;
    client.batch_execute("CREATE TYPE mood AS ENUM ('calm')").await.unwrap();
    let config = Config::from_url(&database.url()).unwrap().max_size(1).min_idle(0).statement_cache_size(0);
    let db = Database::connect(config).await.unwrap();
    let kept = async || {
        let calm = Mood("calm".to_owned());
        for _ in 0..3 {
            let seen: Result<Mood, Error> = db
                .with_connection(async |conn| {
                    Ok(diesel::select(calm.clone().into_sql::<MoodType>()).get_result(conn).await?)
                })
                .await;
            assert_eq!(seen.unwrap(), calm);
            db.with_transaction(async |tx| {
                diesel::update(notes::table.find(1)).set(notes::seen.eq(1)).execute(tx).await.map_err(Error::from)
            })
            .await
            .unwrap();
        }
        let text = pg_prepared_statements::statement;
        // Not this one, and not the two questions about types that tokio-postgres asks and keeps itself.
        let others = text.not_like("%pg_prepared_statements%").and(text.not_like("%FROM pg_catalog.pg_%"));
        let all = pg_prepared_statements::table.select(text).filter(others);
        let kept = db.with_connection(async |conn| Ok::<Vec<String>, Error>(all.load(conn).await?)).await;
        kept.unwrap()
    };
    assert_eq!(kept().await, [""; 0]);
    // After this the cache is emptied, which must not switch it on.
    db.with_connection(async |conn| Ok::<_, Error>(conn.batch_execute("DEALLOCATE ALL").await?)).await.unwrap();
    assert_eq!(kept().await, [""; 0]);
}
