//! What is taken from a request: who asks, until when the answer is of use, and what was sent.
//!
//! Whatever refuses a request answers with a [`Problem`], so that all refusals have one shape: axum's own extractors answer
//! with plain text.

use std::future::Future;
use std::time::Duration;

use axum::extract::{self, FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use t2m_db::types::UserId;
use t2m_db::{Database, Error, users};
use tokio::time::{Instant, timeout_at};

use super::problem::Problem;

/// Who asks, as the authentication in front of us tells. `x-user-id` stands in for Clerk's verified token.
pub(crate) struct ClerkId(pub(crate) String);

impl<S: Sync> FromRequestParts<S> for ClerkId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let id = parts.headers.get("x-user-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
        id.map(|id| Self(id.to_owned())).ok_or(Problem::new(StatusCode::UNAUTHORIZED, "x-user-id is missing"))
    }
}

/// The user who asks. Every function of the domain wants one, so that nobody sees what is not theirs.
pub(crate) struct Owner(pub(crate) UserId);

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
pub(crate) struct Deadline(Instant);

impl Deadline {
    const DEFAULT: Duration = Duration::from_secs(5);
    const MOST: Duration = Duration::from_secs(60);

    /// What is left, for the deadline of a transaction. It counts waiting for a connection, and it holds on the server too.
    pub(crate) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Bounds a scope that has no deadline of its own. A scope may be dropped at any point.
    pub(crate) async fn bound<T>(self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Problem> {
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

/// A part of the path, as [`axum::extract::Path`].
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let extract::Path(part) = extract::Path::from_request_parts(parts, state).await?;
        Ok(Self(part))
    }
}

/// What stands behind the question mark, as [`axum::extract::Query`].
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let extract::Query(query) = extract::Query::from_request_parts(parts, state).await?;
        Ok(Self(query))
    }
}

/// A body of JSON, as [`axum::Json`], and in time: one that trickles in is not waited for longer than its sender waits for us.
pub(crate) struct Sent<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Sent<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (mut parts, body) = request.into_parts();
        let Deadline(deadline) = Deadline::from_request_parts(&mut parts, state).await?;
        match timeout_at(deadline, axum::Json::from_request(Request::from_parts(parts, body), state)).await {
            Ok(sent) => Ok(Self(sent?.0)),
            Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
        }
    }
}
