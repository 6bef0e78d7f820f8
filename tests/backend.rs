//! The service of `examples/backend.rs`, called without a socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::IntoResponse;
use diesel_async::SimpleAsyncConnection;
use serde_json::{Value, json};
use t2m_db::files::{self, NewThumbnail, NewVideo, Stored, ThumbnailDetails, VideoDetails};
use t2m_db::testing::TestDatabase;
use t2m_db::{Config, Database, Error, HealthStatus, users};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tower::ServiceExt;

use crate::support::LONG;

#[path = "../examples/backend.rs"]
#[allow(dead_code, reason = "`main` and what it needs is for the example")]
mod service;

/// A service on a database of its own.
struct Backend {
    service: Router,
    db: Database,
    _database: TestDatabase,
}

/// What came back.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Backend {
    async fn start(settings: impl FnOnce(Config) -> Config) -> Self {
        let database = t2m_db::testing::database().await;
        let db = Database::connect(settings(Config::from_url(&database.url()).unwrap())).await.unwrap();
        Self { service: service::router(db.clone()), db, _database: database }
    }

    /// One request of `user`.
    async fn call(&self, user: &str, request: &str, body: Option<Value>) -> Answer {
        self.call_within(user, "5000", request, body).await
    }

    async fn call_within(&self, user: &str, millis: &str, request: &str, body: Option<Value>) -> Answer {
        let (method, path) = request.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(path).header("x-timeout-ms", millis);
        if !user.is_empty() {
            request = request.header("x-user-id", user);
        }
        let request = match body {
            Some(body) => request.header("content-type", "application/json").body(Body::from(body.to_string())),
            None => request.body(Body::empty()),
        };
        let response = self.service.clone().oneshot(request.unwrap()).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let body = to_bytes(response.into_body(), 1_000_000).await.unwrap();
        Answer { status, headers, body: serde_json::from_slice(&body).unwrap_or_default() }
    }

    /// A video with a thumbnail, as a worker stores it.
    async fn stored(&self, user: &str) -> String {
        let stored = |name: &str| Stored {
            original_filename: name.into(),
            stored_filename: name.into(),
            s3_bucket: "bucket".into(),
            s3_key: name.into(),
            file_size: 1,
            content_type: "video/mp4".into(),
            ..Stored::default()
        };
        let video = NewVideo {
            stored: stored("scene.mp4"),
            details: VideoDetails { duration_seconds: Some(7.5), ..VideoDetails::default() },
            ..NewVideo::default()
        };
        let stored = self.db.with_transaction(async |tx| {
            let owner = users::find_by_clerk_id(tx, user).await?.unwrap().id;
            let video = files::video_store(tx, owner, &video).await?.id;
            let details = ThumbnailDetails::default();
            files::thumbnail_store(tx, owner, &NewThumbnail { video, stored: stored("a.jpg"), details }).await?;
            Ok::<_, Error>(video)
        });
        stored.await.unwrap().to_string()
    }
}

#[tokio::test]
async fn a_job_is_ordered_seen_and_called_off() {
    let backend = Backend::start(|config| config).await;
    assert_eq!(backend.call("ada", "GET /jobs", None).await.status, StatusCode::UNAUTHORIZED, "not signed in");
    assert_eq!(backend.call("", "POST /session", None).await.status, StatusCode::UNAUTHORIZED, "nobody");
    let user = backend.call("ada", "POST /session", None).await;
    assert_eq!((user.status, &user.body["clerk_user_id"]), (StatusCode::OK, &json!("ada")));
    backend.call("bob", "POST /session", None).await;

    let id = "6c1f5b0e-6e0b-4f6e-9d0d-5d8f4b0d9a11";
    let job = backend.call("ada", "POST /videos", Some(json!({"topic": "Bees", "id": id}))).await;
    assert_eq!(
        (job.status, &job.body["status"], &job.body["id"]),
        (StatusCode::ACCEPTED, &json!("queued"), &json!(id))
    );
    let again = backend.call("ada", "POST /videos", Some(json!({"topic": "Bees", "id": id}))).await;
    assert_eq!((again.status, &again.body["id"]), (StatusCode::ACCEPTED, &json!(id)), "asking twice stores one job");
    let list = backend.call("ada", "GET /jobs", None).await;
    assert_eq!(list.body["items"].as_array().unwrap().len(), 1);

    let path = format!("/jobs/{id}");
    assert_eq!(backend.call("bob", &format!("GET {path}"), None).await.status, StatusCode::NOT_FOUND);
    assert_eq!(backend.call("bob", &format!("POST {path}/cancel"), None).await.status, StatusCode::NOT_FOUND);
    let cancelled = backend.call("ada", &format!("POST {path}/cancel"), None).await;
    assert_eq!((cancelled.status, &cancelled.body["status"]), (StatusCode::OK, &json!("cancelled")));
    let again = backend.call("ada", &format!("POST {path}/cancel"), None).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    assert_eq!(again.body["error"], "job is cancelled: from there it cannot become cancelled");
}

#[tokio::test]
async fn a_video_is_listed_counted_and_deleted_by_its_owner_only() {
    let backend = Backend::start(|config| config).await;
    for user in ["ada", "bob"] {
        backend.call(user, "POST /session", None).await;
    }
    let (first, second) = (backend.stored("ada").await, backend.stored("ada").await);

    let page = backend.call("ada", "GET /videos?size=1", None).await;
    assert_eq!(page.body["items"][0]["id"], json!(second), "the newest first");
    let next = page.body["next"].as_str().unwrap();
    let page = backend.call("ada", &format!("GET /videos?size=1&after={next}"), None).await;
    assert_eq!((&page.body["items"][0]["id"], &page.body["next"]), (&json!(first), &Value::Null));

    assert_eq!(backend.call("ada", &format!("POST /videos/{first}/views"), None).await.status, StatusCode::OK);
    assert_eq!(backend.call("ada", &format!("POST /videos/{first}/downloads"), None).await.status, StatusCode::OK);
    let told = backend.call("ada", &format!("GET /videos/{first}/analytics"), None).await;
    assert_eq!((&told.body["view_count"], &told.body["download_count"]), (&json!(1), &json!(1)));
    let thumbnails = backend.call("ada", &format!("GET /videos/{first}/thumbnails"), None).await;
    assert_eq!(thumbnails.body.as_array().unwrap().len(), 1);
    let playlist = backend.call("ada", "POST /videos/playlist", Some(json!({"ids": [first, second]}))).await;
    assert_eq!(playlist.body["duration_seconds"], json!(15.0));

    for request in ["GET /videos/", "DELETE /videos/", "POST /videos/"] {
        let action = if request.starts_with("POST") { "/views" } else { "" };
        let answer = backend.call("bob", &format!("{request}{first}{action}"), None).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{request} of somebody else's");
    }
    assert_eq!(backend.call("ada", &format!("DELETE /videos/{first}"), None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(backend.call("ada", &format!("GET /videos/{first}"), None).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_told() {
    let backend = Backend::start(|config| config).await;
    backend.call("ada", "POST /session", None).await;
    for (request, part) in [("GET /videos?size=0", "1 to 100"), ("GET /videos?after=forged", "`cursor`")] {
        let answer = backend.call("ada", request, None).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert!(answer.body["error"].as_str().unwrap().contains(part), "{}", answer.body);
    }
    let long = "x".repeat(256);
    let answer = backend.call(&long, "POST /session", None).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(backend.call_within("ada", "soon", "GET /jobs", None).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn every_refusal_has_the_same_shape() {
    let backend = Backend::start(|config| config).await;
    backend.call("ada", "POST /session", None).await;
    for (request, body, status, part) in [
        ("GET /jobs/17", None, StatusCode::BAD_REQUEST, "UUID"),
        ("GET /videos?size=many", None, StatusCode::BAD_REQUEST, "size"),
        ("POST /videos", Some(json!({"id": null})), StatusCode::UNPROCESSABLE_ENTITY, "topic"),
        ("POST /videos", None, StatusCode::UNSUPPORTED_MEDIA_TYPE, "application/json"),
        ("GET /films", None, StatusCode::NOT_FOUND, "nothing here"),
        ("DELETE /jobs", None, StatusCode::METHOD_NOT_ALLOWED, "method"),
    ] {
        let answer = backend.call("ada", request, body).await;
        assert_eq!(answer.status, status, "{request}");
        assert!(answer.body["error"].as_str().is_some_and(|error| error.contains(part)), "{request}: {}", answer.body);
    }
    // One row among many is refused as it would be alone.
    let invalid = Error::Invalid { field: "video.file_size", value: "-1".into(), allowed: "0 or more".into() };
    let answer = service::Problem::from(Error::Row { index: 3, source: Box::new(invalid) }).into_response();
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let body: Value = serde_json::from_slice(&to_bytes(answer.into_body(), 1_000).await.unwrap()).unwrap();
    assert_eq!(body["error"], "row 3: `video.file_size` is -1, allowed is 0 or more");
}

#[tokio::test]
async fn a_body_is_waited_for_until_the_deadline() {
    let backend = Backend::start(|config| config).await;
    backend.call("ada", "POST /session", None).await;
    // On a busy machine a deadline may pass before the body is asked for: then a longer one is tried.
    for millis in (0..).map(|doubled| 100 << doubled) {
        let asked = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&asked);
        let never = futures_util::stream::poll_fn(move |_| {
            seen.store(true, SeqCst);
            Poll::<Option<std::io::Result<Bytes>>>::Pending
        });
        let request = Request::post("/videos").header("x-user-id", "ada").header("x-timeout-ms", millis.to_string());
        let request = request.header("content-type", "application/json").body(Body::from_stream(never)).unwrap();
        let answer = timeout(LONG, backend.service.clone().oneshot(request)).await.expect("it waits for ever").unwrap();
        if asked.load(SeqCst) {
            assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
            return;
        }
    }
}

#[tokio::test]
async fn a_client_that_dawdles_does_not_hold_up_the_end() {
    let backend = Backend::start(|config| config).await;
    backend.call("ada", "POST /session", None).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = oneshot::channel::<()>();
    let told = async move { told.await.unwrap() };
    let served = tokio::spawn(service::serve(listener, backend.db.clone(), told, Duration::from_millis(100)));

    let mut client = TcpStream::connect(address).await.unwrap();
    let request = "POST /videos HTTP/1.1\r\nhost: t2m\r\nx-user-id: ada\r\nx-timeout-ms: 60000\r\n\
                   content-type: application/json\r\ncontent-length: 100\r\nexpect: 100-continue\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100", "said when the body is asked for: the request is under way");

    tell.send(()).unwrap();
    let report = timeout(LONG, served).await.expect("it waits for its client").unwrap().unwrap();
    assert!(report.cancelled.is_empty() && report.leaked.is_empty(), "{report:?}");
    assert_eq!(backend.db.health().await.status, HealthStatus::Unhealthy, "closed");
}

#[tokio::test]
async fn no_connection_is_503_and_says_when_to_come_back() {
    let timeout = Duration::from_millis(50);
    let backend = Backend::start(|config| config.max_size(1).checkout_timeout(timeout)).await;
    backend.call("ada", "POST /session", None).await;
    let held = backend.db.with_transaction(async |tx| {
        tx.batch_execute("SELECT").await?;
        // In a task of its own, as requests are: in this one it would be told at once that it waits for itself.
        let request = Request::post("/session").header("x-user-id", "ada").body(Body::empty()).unwrap();
        Ok::<_, Error>(tokio::spawn(backend.service.clone().oneshot(request)).await.unwrap().unwrap())
    });
    let answer = held.await.unwrap();
    assert_eq!(
        (answer.status(), answer.headers()["retry-after"].as_bytes()),
        (StatusCode::SERVICE_UNAVAILABLE, &b"1"[..])
    );
    assert_eq!(backend.call("ada", "GET /jobs", None).await.status, StatusCode::OK, "afterwards all is well");

    backend.db.close(Duration::from_secs(1)).await;
    let answer = backend.call("ada", "GET /jobs", None).await;
    assert_eq!((answer.status, answer.headers["retry-after"].as_bytes()), (StatusCode::SERVICE_UNAVAILABLE, &b"1"[..]));
    assert_eq!(backend.call("", "GET /health", None).await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_deadline_ends_the_scope_and_leaves_nothing() {
    let backend = Backend::start(|config| config.max_size(2)).await;
    backend.call("ada", "POST /session", None).await;
    let locked = backend.db.with_transaction(async |tx| {
        tx.batch_execute("LOCK TABLE job_queue IN ACCESS EXCLUSIVE MODE").await?;
        let request = Request::post("/videos").header("x-user-id", "ada").header("x-timeout-ms", "100");
        let request =
            request.header("content-type", "application/json").body(Body::from(r#"{"topic":"Bees"}"#)).unwrap();
        Ok::<_, Error>(tokio::spawn(backend.service.clone().oneshot(request)).await.unwrap().unwrap())
    });
    assert_eq!(locked.await.unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
    let jobs = backend.call("ada", "GET /jobs", None).await;
    assert_eq!(jobs.body["items"], json!([]), "nothing was stored");
    let health = backend.call("", "GET /health", None).await;
    assert_eq!((health.status, &health.body["status"]), (StatusCode::OK, &json!("Healthy")));
}
