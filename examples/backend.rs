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

use std::future::Future;
use std::time::Duration;

use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use t2m_db::files::{self, Analytics, Playlist, Thumbnail, Video};
use t2m_db::jobs::{self, Configuration, Job, NewJob};
use t2m_db::testing::{Server, TestDatabase};
use t2m_db::types::{FileId, JobId, Page, PageSize, UserId};
use t2m_db::users::{self, NewUser, User};
use t2m_db::{CommitOutcome, Config, Database, Error, HealthStatus};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

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
    axum::serve(listener, router(db.clone())).with_graceful_shutdown(told_to_stop()).await?;

    // The listener is closed and its requests are done. What is left are tasks that somebody spawned.
    let report = db.close(GRACE).await;
    tracing::info!(drained = report.drained, cancelled = report.cancelled.len(), "database closed");
    Ok(())
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
        .with_state(db)
}

// Who asks, and until when ----------------------------------------------------------------------------------------------

/// Who asks, as the authentication in front of us tells. `x-user-id` stands in for Clerk's verified token.
struct ClerkId(String);

impl<S: Sync> FromRequestParts<S> for ClerkId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let id = parts.headers.get("x-user-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
        id.map(|id| Self(id.to_owned())).ok_or(Problem::new(StatusCode::UNAUTHORIZED, "x-user-id is missing"))
    }
}

/// The user who asks. Every function of the domain wants one, so that nobody sees what is not theirs.
struct Owner(UserId);

impl FromRequestParts<Database> for Owner {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, db: &Database) -> Result<Self, Problem> {
        let ClerkId(clerk_id) = ClerkId::from_request_parts(parts, db).await?;
        let deadline = Deadline::from_request_parts(parts, db).await?;
        let user =
            deadline.bound(db.with_connection(async |conn| users::find_by_clerk_id(conn, &clerk_id).await)).await?;
        user.map(|user| Self(user.id)).ok_or(Problem::new(StatusCode::UNAUTHORIZED, "sign in first: POST /session"))
    }
}

/// Until when the caller waits for the answer. Working on after that would be for nobody.
#[derive(Clone, Copy)]
struct Deadline(Instant);

impl Deadline {
    const DEFAULT: Duration = Duration::from_secs(5);
    const MOST: Duration = Duration::from_secs(60);

    /// What is left, for the deadline of a transaction. It counts waiting for a connection, and it holds on the server too.
    fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Bounds a scope that has no deadline of its own. A scope may be dropped at any point.
    async fn bound<T>(self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Problem> {
        match timeout_at(self.0, work).await {
            Ok(result) => result.map_err(Problem::from),
            Err(_) => Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "it took too long")),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Deadline {
    type Rejection = Problem;

    /// From the header `x-timeout-ms`. Counted once per request: the first extractor that asks sets it.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        if let Some(deadline) = parts.extensions.get::<Self>() {
            return Ok(*deadline);
        }
        let timeout = match parts.headers.get("x-timeout-ms") {
            None => Self::DEFAULT,
            Some(text) => match text.to_str().ok().and_then(|text| text.parse().ok()).map(Duration::from_millis) {
                Some(timeout) => timeout.min(Self::MOST),
                None => return Err(Problem::new(StatusCode::BAD_REQUEST, "x-timeout-ms is no number")),
            },
        };
        let deadline = Self(Instant::now() + timeout);
        parts.extensions.insert(deadline);
        Ok(deadline)
    }
}

// What went wrong -------------------------------------------------------------------------------------------------------

/// An answer that is not what was asked for.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    message: String,
    /// Whether the same request may succeed a little later.
    try_again: bool,
}

impl Problem {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), try_again: false }
    }

    fn later(status: StatusCode, message: impl Into<String>) -> Self {
        Self { try_again: true, ..Self::new(status, message) }
    }
}

impl From<Error> for Problem {
    /// The one place where errors of the database become statuses. What is the caller's fault is told as it is; of the rest
    /// the log has the details, names and holders included, and the caller what to do.
    fn from(error: Error) -> Self {
        let problem = match &error {
            Error::NotFound { .. } => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            Error::Invalid { .. } => Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
            Error::Transition { .. } | Error::LeaseLost { .. } => Self::new(StatusCode::CONFLICT, error.to_string()),
            error if error.is_unique_violation() => Self::new(StatusCode::CONFLICT, "it is there already"),
            Error::CheckoutTimeout(_) | Error::Overloaded { .. } => {
                Self::later(StatusCode::SERVICE_UNAVAILABLE, "too much to do")
            }
            Error::Connect(_) | Error::Closed { .. } => {
                Self::later(StatusCode::SERVICE_UNAVAILABLE, "the database cannot be reached")
            }
            Error::Deadline { outcome: CommitOutcome::NotCommitted, .. } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "it took too long, and nothing was stored")
            }
            // A connection lost before COMMIT, a deadlock, a serialization failure: nothing is stored.
            // `run_retrying` has tried already; `run` leaves that to the caller.
            Error::SerializationRetriesExhausted(_) => {
                Self::later(StatusCode::SERVICE_UNAVAILABLE, "it did not work this time")
            }
            error if error.is_retryable() => Self::later(StatusCode::SERVICE_UNAVAILABLE, "it did not work this time"),
            // Only this is open: trying again blindly could do it twice.
            error if error.commit_outcome() == CommitOutcome::Unknown => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "it may be stored or not: look before you try again")
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "it went wrong here"),
        };
        if problem.status.is_server_error() {
            tracing::error!(status = problem.status.as_u16(), %error, "request failed");
        }
        problem
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, message, try_again } = self;
        let mut response = (status, Json(json!({ "error": message }))).into_response();
        if try_again {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
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
    Json(order): Json<Order>,
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
    Json(wanted): Json<Wanted>,
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
