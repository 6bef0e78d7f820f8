//! What an `ErrorResponse` said: the SQLSTATE that diesel hides, and whether the connection ends with it.

use std::collections::VecDeque;

/// How many errors of one scope are remembered. Pipelined statements fail together; more than this at once is rare.
const KEPT: usize = 16;

/// One error as the server worded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) sqlstate: [u8; 5],
    pub(crate) message: String,
    pub(crate) fatal: bool,
    /// The schema changed under a prepared statement. It has no SQLSTATE of its own and its message is translated, so it is
    /// told by the server's routine that says it.
    pub(crate) stale_plan: bool,
}

impl Report {
    /// Reads the fields of an `ErrorResponse` body (manual, "Error and Notice Message Fields").
    pub(super) fn parse(body: &[u8]) -> Self {
        let mut report = Self { sqlstate: *b"XX000", message: String::new(), fatal: false, stale_plan: false };
        for field in body.split(|byte| *byte == 0) {
            match field {
                [b'C', code @ ..] if code.len() == 5 => report.sqlstate.copy_from_slice(code),
                [b'M', text @ ..] => report.message = String::from_utf8_lossy(text).into_owned(),
                // `V` is the severity that is never translated (PostgreSQL 9.6 and newer).
                [b'V', severity @ ..] => report.fatal = matches!(severity, b"FATAL" | b"PANIC"),
                b"RRevalidateCachedQuery" => report.stale_plan = true,
                _ => {}
            }
        }
        report
    }

    pub(crate) fn sqlstate(&self) -> &str {
        std::str::from_utf8(&self.sqlstate).unwrap_or("XX000")
    }
}

/// The errors of one scope, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    first: Option<Report>,
    latest: VecDeque<Report>,
    fatal: Option<Report>,
}

impl Reports {
    pub(super) fn push(&mut self, report: Report) {
        if report.fatal {
            self.fatal = Some(report.clone());
        }
        self.first.get_or_insert_with(|| report.clone());
        if self.latest.len() == KEPT {
            self.latest.pop_front();
        }
        self.latest.push_back(report);
    }

    /// Drops all but the fatal one: a session that was told to end stays ended.
    pub(super) fn clear(&mut self) {
        self.first = None;
        self.latest.clear();
    }

    pub(super) fn first(&self) -> Option<&Report> {
        self.first.as_ref()
    }

    pub(super) fn latest(&self, fits: impl Fn([u8; 5]) -> bool) -> Option<&Report> {
        self.latest.iter().rev().find(|report| fits(report.sqlstate))
    }

    pub(super) fn fatal(&self) -> Option<&Report> {
        self.fatal.as_ref()
    }

    pub(super) fn with_message(&self, message: &str) -> Option<&Report> {
        self.latest.iter().rev().find(|report| report.message == message)
    }
}
