//! The transaction's id, by which the outcome of a COMMIT can be asked for when its reply was lost. It costs no round trip:
//! the question rides with what is sent anyway, and the wire reads the answer as it passes.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::Ordering::SeqCst;

use futures_util::FutureExt;
use tokio::task::coop::unconstrained;

use super::scope::{Mode, Scope};
use crate::config::CommitResolution;
use crate::pool::{Lease, Session};
use crate::statement::{Kind, Text};
use crate::wire::{Status, XID_COLUMN};

impl Scope {
    /// Whether the transaction id is to be asked for behind the statement that is being sent: until one is told, since a
    /// write that changed no row has none.
    pub(super) fn asks_for_xid(&self, lease: &Lease, text: &Text) -> bool {
        let asks = matches!(self.mode, Mode::Transaction { read_only: false, .. })
            && text.kind != Kind::Select
            && !text.sql.is_empty()
            && lease.pool.config.commit_resolution == CommitResolution::On
            && lease.session().wire.xid().is_none();
        if asks {
            self.asked_for_xid.fetch_add(1, SeqCst);
        }
        asks
    }

    /// The id was asked for, so it is worth waiting for.
    pub(super) fn expects_xid(&self) -> bool {
        self.asked_for_xid.load(SeqCst) > 0
    }

    /// Sees to it that what was asked for is known before COMMIT: a lost reply could not be resolved otherwise. Its
    /// answer comes right behind that of the statement.
    pub(super) async fn await_xid(&self, session: &Session) {
        let lost = session.ending.over();
        let told = async {
            session.wire.quiet().await;
            // A question that the wire has not seen yet, because it is still queued in the client: asked once more, in
            // line behind it. In a failed transaction none is answered, and none is needed.
            let unseen = session.wire.xid_answers() < self.asked_for_xid.load(SeqCst);
            if session.wire.xid().is_none() && unseen && session.wire.status() == Status::Open {
                let _ = session.batch(Ask::Assigned.text()).await;
            }
        };
        tokio::select! {
            () = told => {}
            () = lost => {}
        }
    }
}

/// How the transaction's id is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ask {
    /// Behind a write: it has one if it changed a row.
    Assigned,
    /// It is given one. Together with BEGIN; or behind what is only being prepared, and executed later: asked later, the
    /// answer would come after COMMIT was sent.
    Assign,
}

impl Ask {
    /// `executed`: the first poll of the statement before it puts the whole of that on the way.
    pub(super) fn behind(executed: bool) -> Self {
        if executed { Self::Assigned } else { Self::Assign }
    }

    pub(super) fn text(self) -> &'static str {
        const { assert!(matches!(XID_COLUMN.as_bytes(), b"t2m_xid")) };
        match self {
            Self::Assigned => "SELECT pg_current_xact_id_if_assigned() AS t2m_xid",
            Self::Assign => "SELECT pg_current_xact_id() AS t2m_xid",
        }
    }
}

/// Polls `statement`, and right after its first poll puts the question for the transaction id behind it. The answer is
/// not waited for: the wire reads it as it passes.
pub(super) async fn followed_by<R>(statement: impl Future<Output = R>, mut ask: Option<Ask>, session: &Session) -> R {
    if ask.is_none() {
        return statement.await;
    }
    // Unconstrained: its first poll must put it on the way before the question, whatever the task has used up.
    let mut statement = pin!(unconstrained(statement));
    poll_fn(|cx| {
        let polled = statement.as_mut().poll(cx);
        if let Some(ask) = ask.take() {
            let _ = session.batch(ask.text()).now_or_never();
        }
        polled
    })
    .await
}
