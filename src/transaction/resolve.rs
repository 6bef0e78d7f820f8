//! What became of a COMMIT whose reply was lost: asked of the server, never guessed.
//!
//! Transaction ids mean the same thing only within one life of one server. After a crash an id that was not yet
//! durable can be handed out again, so `committed` is believed only if the server has not restarted since BEGIN: its
//! identity is read when a session opens, and a session does not survive a restart. `aborted` is believed on the same
//! timeline in any case: had our commit been durable, the id would say `committed`.
//!
//! Source: PostgreSQL manual, "Transaction ID and Snapshot Information Functions".

use std::time::Duration;

use diesel::QueryableByName;
use diesel::result::Error as Diesel;
use diesel::sql_types::{Bool, Nullable, Text};
use diesel_async::RunQueryDsl;
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::connection_lost;
use crate::pool::{Identity, Lease, Session};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// The transaction that was to be committed.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) xid: Option<u64>,
    pub(super) identity: Option<Identity>,
}

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resolution {
    Committed,
    NotCommitted,
    Unknown(String),
}

#[derive(Debug, QueryableByName)]
struct Answer {
    #[diesel(sql_type = Nullable<Text>)]
    status: Option<String>,
    #[diesel(sql_type = Bool)]
    standby: bool,
    #[diesel(sql_type = Text)]
    system: String,
    #[diesel(sql_type = Text)]
    timeline: String,
    #[diesel(sql_type = Text)]
    started: String,
    #[diesel(sql_type = Nullable<Text>)]
    stats_reset: Option<String>,
}

/// Asks until there is an answer, by `until` or as long as a checkout may take. The lease goes on with the connection
/// that was asked.
pub(super) async fn resolve(lease: &Lease, sent: &Sent, until: Option<Instant>) -> Resolution {
    let (Some(xid), Some(identity)) = (sent.xid, &sent.identity) else {
        return Resolution::Unknown("the connection was lost before the transaction's id was known".to_owned());
    };
    let patience = Instant::now() + lease.pool.config.checkout_timeout;
    let until = until.map_or(patience, |until| until.max(Instant::now() + Duration::from_millis(100)).min(patience));
    let resolved = timeout_at(until, ask_until_known(lease, xid, identity, until)).await;
    let why = "the server could not be asked, was a standby, or still worked on it, until the deadline";
    resolved.unwrap_or_else(|_| Resolution::Unknown(why.to_owned()))
}

async fn ask_until_known(lease: &Lease, xid: u64, identity: &Identity, until: Instant) -> Resolution {
    let mut pause = FIRST_PAUSE;
    loop {
        if lease.session().is_dead() {
            if !lease.may_replace() {
                return Resolution::Unknown("connections to the server kept breaking".to_owned());
            }
            if let Err(error) = lease.pool.replace_in(lease, until).await {
                return Resolution::Unknown(format!("the server could not be asked: {error}"));
            }
        }
        match ask(lease.session(), xid).await {
            Ok(answer) => match answer.judge(identity) {
                Some(resolution) => return resolution,
                None => sleep(pause).await,
            },
            Err(error) if connection_lost(&error) => sleep(pause).await,
            // 22023, "transaction ID is in the future": lost with a crash. The answer to the identity is still due.
            Err(Diesel::DatabaseError(_, information)) if is_in_the_future(lease.session(), information.message()) => {
                match in_the_future(lease, identity).await {
                    Some(resolution) => return resolution,
                    None => sleep(pause).await,
                }
            }
            Err(error) => return Resolution::Unknown(format!("the server could not be asked: {error}")),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

const IDENTITY: &str = "pg_is_in_recovery() AS standby, system_identifier::text AS system, timeline_id::text AS timeline, \
    pg_postmaster_start_time()::text AS started, (SELECT stats_reset::text FROM pg_stat_bgwriter) AS stats_reset \
    FROM pg_control_system(), pg_control_checkpoint()";

async fn ask(session: &Session, xid: u64) -> diesel::QueryResult<Answer> {
    let query = format!("SELECT pg_xact_status('{xid}'::xid8) AS status, {IDENTITY}");
    diesel::sql_query(query).get_result(&mut &session.conn).await
}

fn is_in_the_future(session: &Session, message: &str) -> bool {
    session.wire.error_with(message).is_some_and(|report| &report.sqlstate == b"22023")
}

async fn in_the_future(lease: &Lease, identity: &Identity) -> Option<Resolution> {
    let query = format!("SELECT NULL::text AS status, {IDENTITY}");
    match diesel::sql_query(query).get_result::<Answer>(&mut &lease.session().conn).await {
        Ok(answer) if !answer.is_same_history(identity) => Some(Resolution::Unknown(OTHER_SERVER.to_owned())),
        // It may not have heard of it yet.
        Ok(answer) if answer.standby => None,
        Ok(_) => Some(Resolution::NotCommitted),
        Err(error) => Some(Resolution::Unknown(format!("the server could not be asked: {error}"))),
    }
}

const OTHER_SERVER: &str = "the server that answers now is another one, or a standby that was promoted";

impl Answer {
    fn is_same_history(&self, identity: &Identity) -> bool {
        (&self.system, &self.timeline) == (&identity.system, &identity.timeline)
    }

    /// `None`: ask again later.
    fn judge(&self, identity: &Identity) -> Option<Resolution> {
        if !self.is_same_history(identity) {
            return Some(Resolution::Unknown(OTHER_SERVER.to_owned()));
        }
        if self.standby {
            // It lags behind, and has no transactions of its own: only another server can tell, or this one once it is promoted.
            return None;
        }
        let same_life = self.stats_reset.as_ref() == Some(&identity.life.1) && self.started == identity.life.0;
        match (self.status.as_deref(), same_life) {
            (Some("committed"), true) => Some(Resolution::Committed),
            (Some("aborted"), _) => Some(Resolution::NotCommitted),
            // Somebody else has the id now: ours was not durable.
            (Some("in progress"), false) if self.started != identity.life.0 => Some(Resolution::NotCommitted),
            // Ours, or after a crash somebody else's: an administrator who resets the statistics looks the same.
            (Some("in progress"), _) => None,
            (Some("committed"), false) => Some(Resolution::Unknown(
                "the server has restarted, so its id may have been given to another".to_owned(),
            )),
            (None, _) => Some(Resolution::Unknown("its id is too old for the server to know".to_owned())),
            (Some(other), _) => Some(Resolution::Unknown(format!("the server said {other:?} of it"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { system: "7".into(), timeline: "1".into(), life: ("noon".into(), "noon".into()) }
    }

    fn answer(status: Option<&str>) -> Answer {
        Answer {
            status: status.map(Into::into),
            standby: false,
            system: "7".into(),
            timeline: "1".into(),
            started: "noon".into(),
            stats_reset: Some("noon".into()),
        }
    }

    fn unknown(answer: &Answer) -> bool {
        matches!(answer.judge(&identity()), Some(Resolution::Unknown(_)))
    }

    #[test]
    fn the_same_life_of_the_same_server_is_believed() {
        assert_eq!(answer(Some("committed")).judge(&identity()), Some(Resolution::Committed));
        assert_eq!(answer(Some("aborted")).judge(&identity()), Some(Resolution::NotCommitted));
        assert_eq!(answer(Some("in progress")).judge(&identity()), None, "asked again");
        assert!(unknown(&answer(None)), "too old");
    }

    #[test]
    fn after_a_restart_only_what_was_not_committed_is_known() {
        let restarted =
            |status| Answer { started: "later".into(), stats_reset: Some("later".into()), ..answer(status) };
        assert!(unknown(&restarted(Some("committed"))));
        assert_eq!(restarted(Some("aborted")).judge(&identity()), Some(Resolution::NotCommitted));
        assert_eq!(restarted(Some("in progress")).judge(&identity()), Some(Resolution::NotCommitted));
    }

    #[test]
    fn another_server_is_not_believed_and_a_standby_asked_again() {
        for status in [Some("committed"), Some("aborted"), Some("in progress"), None] {
            assert!(unknown(&Answer { system: "8".into(), ..answer(status) }));
            assert!(unknown(&Answer { timeline: "2".into(), ..answer(status) }));
            assert_eq!(Answer { standby: true, ..answer(status) }.judge(&identity()), None, "{status:?}");
        }
    }
}
