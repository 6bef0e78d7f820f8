//! A caller's program, written as DESIGN.md section 2 writes the contract. What it shows first is that it compiles: every
//! name is there, every signature fits, and every future can be spawned and used in an axum handler.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use diesel::prelude::*;
use diesel_async::{AsyncConnection, RunQueryDsl};
use futures_util::try_join;
use t2m_db::{
    Checkout, CloseReport, CommitOutcome, Config, Connection, Database, Error, Health, HealthStatus, Isolation,
    PoolStats, Retry, Transaction,
};
use tower::ServiceExt;

use crate::support::{LONG, notes, setup, setup_with};

/// A backend's own error, in which ours and diesel's are two of several.
#[derive(Debug)]
enum AppError {
    Database(Error),
    Query(diesel::result::Error),
    OutOfStock,
}

impl From<Error> for AppError {
    fn from(error: Error) -> Self {
        Self::Database(error)
    }
}

impl From<diesel::result::Error> for AppError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Query(error)
    }
}

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        match self {
            Self::OutOfStock => StatusCode::CONFLICT,
            Self::Database(error) if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
            Self::Query(diesel::result::Error::NotFound) => StatusCode::NOT_FOUND,
            Self::Database(_) | Self::Query(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
        .into_response()
    }
}

/// A row of a caller's own.
#[derive(Debug, Queryable)]
struct Note {
    text: String,
    seen: i64,
}

async fn store(tx: &mut Transaction, text: &str) -> Result<i64, diesel::result::Error> {
    diesel::insert_into(notes::table).values(notes::text.eq(text)).returning(notes::id).get_result(tx).await
}

/// A function of a domain: any connection will do.
async fn count(conn: &mut impl AsyncConnection<Backend = diesel::pg::Pg>) -> Result<i64, diesel::result::Error> {
    notes::table.count().get_result(conn).await
}

#[test]
fn a_configuration_is_built_and_read() {
    let second = Duration::from_secs(1);
    let config =
        Config::from_url("postgres://app:secret@one,two:5433/t2m?sslmode=prefer&target_session_attrs=read-write")
            .unwrap()
            .max_size(20)
            .min_idle(5)
            .checkout_timeout(second)
            .connect_timeout(second)
            .max_lifetime(second * 1_800)
            .idle_timeout(second * 600)
            .keepalive(second * 120)
            .leak_threshold(second * 30)
            .slow_threshold(second)
            .health_interval(second * 15)
            .cleanup_timeout(second * 5)
            .application_name("t2m")
            .retry(Retry::default())
            .password_provider(async || Ok::<_, Box<dyn std::error::Error + Send + Sync>>("secret".to_owned()));
    assert!(!format!("{config:?}").contains("secret"));
    // The environment is the process's own, so only its type is looked at.
    let _: fn() -> t2m_db::Result<Config> = Config::from_env;
    let read: Config = serde_json::from_str(r#"{"url": "postgres://u@h/d", "max_size": 20}"#).unwrap();
    assert!(format!("{read:?}").contains("max_size: 20"));
    let impossible = Database::connect_lazy(config.max_size(0)).unwrap_err();
    assert!(matches!(&impossible, Error::Config { setting, .. } if setting == "max_size"), "{impossible}");
}

#[tokio::test]
async fn scopes_are_written_as_the_contract_writes_them() {
    let setup = setup(4).await;
    let db = &setup.db;

    let id = db.with_transaction(async |tx| Ok::<_, AppError>(store(tx, "one").await?)).await.unwrap();
    assert_eq!(id, 1);

    // Everything that can be asked of a transaction, with something borrowed from outside.
    let text = String::from("two");
    let id = db
        .transaction("store note")
        .isolation(Isolation::Serializable)
        .deadline(LONG)
        .retry(Retry::serialization(5))
        .run(async |tx| {
            let id = store(tx, &text).await?;
            tx.savepoint(async |tx| {
                store(tx, "nested").await?;
                Err::<(), _>(AppError::OutOfStock)
            })
            .await
            .unwrap_err();
            AsyncConnection::transaction(tx, async |tx| store(tx, "three").await).await?;
            Ok::<_, AppError>(id)
        })
        .await
        .unwrap();
    assert_eq!(id, 2);
    let seen = db
        .transaction("count")
        .isolation(Isolation::Serializable)
        .read_only()
        .deferrable()
        .run_retrying(async |tx| count(tx).await.map_err(Error::from))
        .await
        .unwrap();
    assert_eq!(seen, 3);

    // Reads without a transaction; a write says where to write.
    let texts: Vec<String> = db
        .with_connection(async |conn| Ok::<_, Error>(notes::table.select(notes::text).load(conn).await?))
        .await
        .unwrap();
    assert_eq!(texts.len(), 3);
    let refused =
        db.with_connection(async |conn| Ok::<_, Error>(diesel::delete(notes::table).execute(conn).await?)).await;
    assert!(refused.unwrap_err().to_string().contains("with_transaction"));

    // The end of a transaction, in its last statement.
    let (told, hears) = std::sync::mpsc::channel();
    let changed = db
        .with_transaction(async |tx| {
            tx.after_commit(move |outcome| told.send(*outcome).unwrap());
            tx.commit_with(diesel::update(notes::table).set(notes::seen.eq(7))).await
        })
        .await
        .unwrap();
    assert_eq!((changed, hears.recv().unwrap().resolved), (3, false));
    let note = db
        .with_transaction(async |tx| {
            let statement =
                diesel::update(notes::table.find(1)).set(notes::seen.eq(8)).returning((notes::text, notes::seen));
            tx.commit_returning::<Note>(statement).await
        })
        .await
        .unwrap();
    assert_eq!((note.text.as_str(), note.seen), ("one", 8));

    // Two statements in one flight.
    let (all, first) = db
        .with_transaction(async |tx| {
            let tx = &*tx;
            try_join!(
                notes::table.count().get_result::<i64>(&mut &*tx),
                notes::table.find(1).select(notes::text).get_result::<String>(&mut &*tx),
            )
            .map_err(Error::from)
        })
        .await
        .unwrap();
    assert_eq!((all, first.as_str()), (3, "one"));
}

#[tokio::test]
async fn what_goes_on_can_be_looked_at_until_it_is_closed() {
    let setup = setup_with(|config| config.health_interval(None)).await; // it would be seen, too
    let db = setup.db.clone();
    let (checkouts, stats): (Vec<Checkout>, PoolStats) = db
        .with_transaction(async |tx| {
            store(tx, "one").await?;
            Ok::<_, Error>((db.checkouts(), db.stats()))
        })
        .await
        .unwrap();
    assert_eq!((checkouts[0].name, checkouts[0].statements, stats.checked_out), ("with_transaction", 1, 1));
    assert!(checkouts[0].caller.file().ends_with("contract.rs"), "{}", checkouts[0]);
    let health: Health = db.health().await;
    assert_eq!(health.status, HealthStatus::Healthy);
    let _: Option<Health> = db.last_health();
    let error = db.with_transaction(async |tx| {
        store(tx, "one").await?;
        Ok::<_, Error>(())
    });
    let error = error.await.unwrap_err();
    assert!(error.is_unique_violation() && !error.is_retryable() && !error.is_connection_lost());
    assert_eq!(error.sqlstate().map(|state| state.to_string()).as_deref(), Some("23505"));
    assert_eq!(error.commit_outcome(), CommitOutcome::NotCommitted);
    let report: CloseReport = db.close(Duration::from_secs(1)).await;
    assert!(report.cancelled.is_empty() && report.leaked.is_empty());
    let refused = setup.db.with_connection(async |conn| count(conn).await.map_err(Error::from)).await;
    assert!(matches!(refused, Err(Error::Closed { .. })));
}

#[tokio::test]
async fn futures_of_scopes_can_be_spawned() {
    let setup = setup_with(|config| config.health_interval(None)).await;
    let mut tasks = tokio::task::JoinSet::<Result<i64, AppError>>::new();
    for number in 0..4 {
        let db = setup.db.clone();
        let text = format!("note {number}");
        tasks.spawn(async move { db.with_transaction(async |tx| Ok(store(tx, &text).await?)).await });
        let db = setup.db.clone();
        tasks.spawn(async move { db.with_connection(async |conn| Ok(count(conn).await?)).await });
        let db = setup.db.clone();
        let text = format!("again {number}");
        tasks.spawn(async move { db.transaction("again").run_retrying(async |tx| Ok(store(tx, &text).await?)).await });
        let db = setup.db.clone();
        tasks.spawn(async move {
            let nested = async |tx: &mut Transaction| {
                tx.savepoint(async |tx: &mut Transaction| Ok::<_, AppError>(count(tx).await?)).await
            };
            db.transaction("nested").deadline(LONG).run(nested).await
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap().unwrap();
    }
    assert_eq!(setup.stored().await.len(), 8);
    assert_eq!(setup.db.stats().checked_out, 0);
}

/// A body may be a function.
async fn latest(conn: &mut Connection) -> Result<Option<String>, AppError> {
    Ok(notes::table.order(notes::id.desc()).select(notes::text).first(conn).await.optional()?)
}

async fn handler(State(db): State<Database>, text: String) -> Result<String, AppError> {
    let id = db
        .transaction("handler")
        .deadline(LONG)
        .run_retrying(async |tx| {
            if text.is_empty() {
                return Err(AppError::OutOfStock);
            }
            Ok(store(tx, &text).await?)
        })
        .await?;
    let latest = db.with_connection(latest).await?;
    Ok(format!("{id}: {}", latest.unwrap_or_default()))
}

#[tokio::test]
async fn futures_of_scopes_can_be_awaited_in_an_axum_handler() {
    let setup = setup_with(|config| config.max_size(2)).await;
    let service = Router::new().route("/", post(handler)).with_state(setup.db.clone());
    let call = async |text: &'static str| {
        let request = Request::post("/").body(Body::from(text)).unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        (response.status(), axum::body::to_bytes(response.into_body(), 1_000).await.unwrap())
    };
    assert_eq!(call("bees").await, (StatusCode::OK, "1: bees".into()));
    assert_eq!(call("").await.0, StatusCode::CONFLICT);
    assert_eq!(setup.stored().await, ["bees"]);
}
