//! What went wrong, as a status and a body that is always `{"error": ".."}`.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use t2m_db::{CommitOutcome, Error};

/// An answer that is not what was asked for.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    message: String,
    /// Whether the same request may succeed a little later.
    try_again: bool,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), try_again: false }
    }

    fn later(status: StatusCode, message: impl Into<String>) -> Self {
        Self { try_again: true, ..Self::new(status, message) }
    }

    /// The one place where errors of the database become statuses. What is the caller's fault is told as it is; of the rest
    /// the log has the details, names and holders included, and the caller what to do.
    fn of(error: &Error) -> Self {
        match error {
            // One of many rows: what is wrong with it is what is wrong with the request.
            Error::Row { index, source } => {
                let problem = Self::of(source);
                Self { message: format!("row {index}: {}", problem.message), ..problem }
            }
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
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let problem = Self::of(&error);
        if problem.status.is_server_error() {
            tracing::error!(status = problem.status.as_u16(), %error, "request failed");
        }
        problem
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
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
