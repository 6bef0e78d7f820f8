//! The rows of a statement, with what the wire knows added to an error among them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use diesel::QueryResult;
use diesel_async::{AsyncConnectionCore, AsyncPgConnection};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};

use crate::error::{Annotation, annotate};
use crate::wire::Wire;

/// One row, as diesel-async reads it.
pub(crate) type Row = <AsyncPgConnection as AsyncConnectionCore>::Row<'static, 'static>;

/// The rows of one statement. Dropped early, the rest is still on its way; the scope waits for it or cancels it.
#[must_use = "streams do nothing unless polled"]
pub struct Rows {
    rows: BoxStream<'static, QueryResult<Row>>,
    wire: Arc<Wire>,
}

impl Rows {
    pub(super) fn new(rows: BoxStream<'static, QueryResult<Row>>, wire: Arc<Wire>) -> Self {
        Self { rows, wire }
    }
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rows")
    }
}

impl Stream for Rows {
    type Item = QueryResult<Row>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.rows.poll_next_unpin(cx).map_err(|error| {
            let diesel::result::Error::DatabaseError(_, information) = &error else { return error };
            let sqlstate = self.wire.error_with(information.message()).map(|report| report.sqlstate);
            annotate(error, &Annotation { sqlstate, ..Annotation::default() })
        })
    }
}
