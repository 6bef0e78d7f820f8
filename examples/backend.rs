//! T2M's video endpoints as an axum service: what a backend on top of `t2m-db` looks like. Copy it and cut it to size.
//!
//! ```text
//! cargo run --example backend                    # on a private PostgreSQL that is gone afterwards
//! DATABASE_URL=postgres://... cargo run --example backend
//!
//! curl -X POST localhost:3000/session -H 'x-user-id: user_1'
//! curl -X POST localhost:3000/videos  -H 'x-user-id: user_1' -H 'content-type: application/json' -d '{"topic":"Bees"}'
//! curl localhost:3000/jobs            -H 'x-user-id: user_1'
//! ```
//!
//! The parts that matter, in the order in which a request meets them: [`Owner`] says who asks, [`Deadline`] until when the
//! answer is of use, a handler opens one scope and calls functions of the domain in it, [`Problem`] turns what went wrong
//! into a status. No handler ever holds a connection: it has one inside of a scope, and nowhere else.

#[path = "backend/problem.rs"]
mod problem;
#[path = "backend/request.rs"]
mod request;

use std::future::{Future, IntoFuture, pending};
use std::io;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use t2m_db::files::{self, Analytics, Playlist, Thumbnail, Video};
use t2m_db::jobs::{self, Configuration, Job, NewJob};
use t2m_db::testing::{Server, TestDatabase};
use t2m_db::types::{FileId, JobId, Page, PageSize};
use t2m_db::users::{self, NewUser, User};
use t2m_db::{CloseReport, Config, Database, Error, HealthStatus};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

pub(crate) use problem::Problem;
use request::{ClerkId, Deadline, Owner, Path, Query, Sent};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Requests that run when we are told to stop may take so long to end; then they are cancelled, and rolled back.
const GRACE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt().with_env_filter("info").init();
    let (config, _private) = configuration().await?;
    let db = Database::connect(config).await?;
    db.migrate().await?;

    let listener = TcpListener::bind(std::env::var("LISTEN").as_deref().unwrap_or("127.0.0.1:3000")).await?;
    tracing::info!("listening on http://{}", listener.local_addr()?);
    let report = serve(listener, db, told_to_stop(), GRACE).await?;
    tracing::info!(drained = report.drained, cancelled = report.cancelled.len(), "database closed");
    Ok(())
}

/// Serves until `told`. From then on no connection is taken, and requests that run have `grace` to end, all together: axum by
/// itself would wait for the slowest client, and the database would be closed only after it.
pub(crate) async fn serve(
    listener: TcpListener,
    db: Database,
    told: impl Future<Output = ()> + Send + 'static,
    grace: Duration,
) -> io::Result<CloseReport> {
    let (tell, heard) = oneshot::channel();
    let told = async move {
        told.await;
        let _ = tell.send(Instant::now() + grace);
    };
    let serving = axum::serve(listener, router(db.clone())).with_graceful_shutdown(told).into_future();
    let mut until = None;
    let overdue = async {
        match heard.await {
            Ok(end) => sleep_until(*until.insert(end)).await,
            Err(_) => pending().await,
        }
    };
    tokio::select! {
        ended = serving => ended?,
        () = overdue => tracing::warn!("some requests did not end in time"),
    }
    // What still holds a connection has what is left of the grace, and is then cancelled and rolled back.
    Ok(db.close(until.map_or(grace, |end| end.saturating_duration_since(Instant::now()))).await)
}

/// `DATABASE_URL` and `T2M_DB_*`, or else a PostgreSQL of our own, for trying things out.
async fn configuration() -> Result<(Config, Option<TestDatabase>), Failure> {
    if std::env::var_os("DATABASE_URL").is_some() {
        return Ok((Config::from_env()?.application_name("t2m-backend"), None));
    }
    let private = Server::start().await?.empty_database().await?;
    tracing::info!(url = private.url(), "no DATABASE_URL: started a private PostgreSQL");
    Ok((Config::from_url(&private.url())?, Some(private)))
}

async fn told_to_stop() {
    let interrupted = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let Ok(mut terminated) = signal(SignalKind::terminate()) else { return };
        tokio::select! {
            _ = interrupted => {}
            _ = terminated.recv() => {}
        }
    }
    #[cfg(not(unix))]
    let _ = interrupted.await;
}

/// The service. Its only state is the database handle, which is cheap to clone.
pub(crate) fn router(db: Database) -> Router {
    Router::new()
        .route("/session", post(sign_in))
        .route("/videos", post(order).get(video_list))
        .route("/videos/playlist", post(playlist))
        .route("/videos/{id}", get(video).merge(delete(video_delete)))
        .route("/videos/{id}/thumbnails", get(thumbnails))
        .route("/videos/{id}/analytics", get(analytics))
        .route("/videos/{id}/views", post(count_view))
        .route("/videos/{id}/downloads", post(count_download))
        .route("/jobs", get(job_list))
        .route("/jobs/{id}", get(job))
        .route("/jobs/{id}/videos", get(videos_of_job))
        .route("/jobs/{id}/cancel", post(cancel))
        .route("/health", get(health))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing here"))
        .method_not_allowed_fallback(async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "not with this method"))
        .with_state(db)
}

type Answer<T> = Result<Json<T>, Problem>;

// Users and jobs --------------------------------------------------------------------------------------------------------

async fn sign_in(State(db): State<Database>, ClerkId(clerk_id): ClerkId, deadline: Deadline) -> Answer<User> {
    let user = NewUser::new(clerk_id);
    let user = db
        .transaction("sign in")
        .deadline(deadline.left())
        .run_retrying(async |tx| users::upsert(tx, &user).await)
        .await?;
    Ok(Json(user))
}

/// What to make a video of.
#[derive(Deserialize)]
struct Order {
    topic: String,
    /// Chosen by a caller who wants to be able to ask twice.
    id: Option<Uuid>,
}

async fn order(
    State(db): State<Database>,
    Owner(owner): Owner,
    deadline: Deadline,
    Sent(order): Sent<Order>,
) -> Result<(StatusCode, Json<Job>), Problem> {
    let mut wanted = NewJob::video(Configuration { topic: Some(order.topic), ..Configuration::default() });
    if let Some(id) = order.id {
        wanted.id = id.into();
    }
    let job = db
        .transaction("order video")
        .deadline(deadline.left())
        .run_retrying(async |tx| jobs::create_and_enqueue(tx, owner, &wanted).await)
        .await?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

/// Which page of a list.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Paging {
    size: Option<i64>,
    after: Option<String>,
}

impl Paging {
    fn parsed(&self) -> Result<(PageSize, Option<t2m_db::types::Cursor>), Error> {
        let size = self.size.map(PageSize::new).transpose()?.unwrap_or_default();
        let after = self.after.as_deref().map(str::parse).transpose()?;
        Ok((size, after))
    }
}

async fn job_list(
    State(db): State<Database>,
    Owner(owner): Owner,
    deadline: Deadline,
    Query(paging): Query<Paging>,
) -> Answer<Page<Job>> {
    let (size, after) = paging.parsed()?;
    deadline.bound(db.with_connection(async |conn| jobs::list(conn, owner, size, after).await)).await.map(Json)
}

async fn job(
    State(db): State<Database>,
    Owner(owner): Owner,
    deadline: Deadline,
    Path(id): Path<JobId>,
) -> Answer<Job> {
    let job = deadline.bound(db.with_connection(async |conn| jobs::find(conn, owner, id).await)).await?;
    job.map(Json).ok_or(Error::NotFound { entity: "job" }.into())
}

async fn videos_of_job(
    State(db): State<Database>,
    Owner(owner): Owner,
    deadline: Deadline,
    Path(id): Path<JobId>,
) -> Answer<Vec<Video>> {
    let videos = db.with_connection(async |conn| files::video_by_job(conn, owner, &[id]).await);
    Ok(Json(deadline.bound(videos).await?.remove(&id).unwrap_or_default()))
}

async fn cancel(
    State(db): State<Database>,
    Owner(owner): Owner,
    deadline: Deadline,
    Path(id): Path<JobId>,
) -> Answer<Job> {
    let job = db
        .transaction("cancel job")
        .deadline(deadline.left())
        .run_retrying(async |tx| jobs::cancel(tx, owner, id).await)
        .await?;
    Ok(Json(job))
}

// Videos ----------------------------------------------------------------------------------------------------------------

async fn video_list(
    State(db): State<Database>,
    Owner(owner): Owner,
    deadline: Deadline,
    Query(paging): Query<Paging>,
) -> Answer<Page<Video>> {
    let (size, after) = paging.parsed()?;
    deadline.bound(db.with_connection(async |conn| files::video_list(conn, owner, size, after).await)).await.map(Json)
}

async fn video(
    State(db): State<Database>,
    Owner(owner): Owner,
    deadline: Deadline,
    Path(id): Path<FileId>,
) -> Answer<Video> {
    let video = deadline.bound(db.with_connection(async |conn| files::video_find(conn, owner, id).await)).await?;
    video.map(Json).ok_or(Error::NotFound { entity: "video" }.into())
}

async fn video_delete(
    State(db): State<Database>,
    Owner(owner): Owner,
    deadline: Deadline,
    Path(id): Path<FileId>,
) -> Result<StatusCode, Problem> {
    db.transaction("delete video")
        .deadline(deadline.left())
        .run_retrying(async |tx| files::video_delete(tx, owner, id).await)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn thumbnails(
    State(db): State<Database>,
    Owner(owner): Owner,
    deadline: Deadline,
    Path(id): Path<FileId>,
) -> Answer<Vec<Thumbnail>> {
    deadline.bound(db.with_connection(async |conn| files::thumbnail_list(conn, owner, id).await)).await.map(Json)
}

async fn analytics(
    State(db): State<Database>,
    Owner(owner): Owner,
    deadline: Deadline,
    Path(id): Path<FileId>,
) -> Answer<Analytics> {
    let told = deadline.bound(db.with_connection(async |conn| files::video_analytics(conn, owner, id).await)).await?;
    told.map(Json).ok_or(Error::NotFound { entity: "video" }.into())
}

/// The videos of a playlist.
#[derive(Deserialize)]
struct Wanted {
    ids: Vec<FileId>,
}

async fn playlist(
    State(db): State<Database>,
    Owner(owner): Owner,
    deadline: Deadline,
    Sent(wanted): Sent<Wanted>,
) -> Answer<Playlist> {
    let playlist = db.with_connection(async |conn| files::video_playlist(conn, owner, &wanted.ids).await);
    deadline.bound(playlist).await.map(Json)
}

async fn count_view(
    State(db): State<Database>,
    Owner(owner): Owner,
    deadline: Deadline,
    Path(id): Path<FileId>,
) -> Answer<Video> {
    let counted = db.transaction("count view").deadline(deadline.left());
    Ok(Json(counted.run(async |tx| files::video_count_view(tx, owner, id).await).await?))
}

async fn count_download(
    State(db): State<Database>,
    Owner(owner): Owner,
    deadline: Deadline,
    Path(id): Path<FileId>,
) -> Answer<Video> {
    let counted = db.transaction("count download").deadline(deadline.left());
    Ok(Json(counted.run(async |tx| files::video_count_download(tx, owner, id).await).await?))
}

// How we are ------------------------------------------------------------------------------------------------------------

/// For the load balancer: it never hangs, and it is unhealthy only when nothing goes through.
async fn health(State(db): State<Database>) -> (StatusCode, Json<Value>) {
    let health = db.health().await;
    let stats = db.stats();
    let code = match health.status {
        HealthStatus::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    let told = json!({
        "status": format!("{:?}", health.status),
        "reason": health.reason,
        "server": health.server_version,
        "latency_ms": health.latency.map(|latency| latency.as_secs_f64() * 1_000.0),
        "pool": {
            "sessions": stats.size,
            "max_size": stats.max_size,
            "checked_out": stats.checked_out,
            "waiting": stats.waiting,
        },
    });
    (code, Json(told))
}
