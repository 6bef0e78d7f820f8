//! One method per setting, with its default and the reason for it.

use std::sync::Arc;
use std::time::Duration;

use super::{CommitResolution, Config, PasswordProvider, Retry, SessionReset};

/// The pool's size and its queue.
impl Config {
    /// At most this many server sessions, work in clean-up included. **Default: 10.**
    ///
    /// Ten busy sessions keep a server of four cores at work (HikariCP's rule is two per core and one per disk), and nine such
    /// processes fit into PostgreSQL's own `max_connections = 100` with room for an administrator. More sessions than the
    /// server can run at once make every one of them slower.
    pub fn max_size(mut self, connections: u32) -> Self {
        self.max_size = connections;
        self
    }

    /// Keeps at least this many connections open, also when nobody needs one. **Default: 1.**
    ///
    /// One, so that the first request after a quiet night does not pay for a login and an outage is noticed by the background
    /// check before a user notices it. Raise it towards `max_size` when load comes in bursts.
    pub fn min_idle(mut self, connections: u32) -> Self {
        self.min_idle = connections;
        self
    }

    /// Refuses a checkout at once when so many others wait in line already; `None` lets any number wait. **Default: `None`.**
    ///
    /// Who has a place and waits for its login is not in line. A place that no scope holds, because a connection is being
    /// closed, or spoken to in the background, may be waited for beside that: with 0 nobody is refused on an idle pool.
    ///
    /// A waiter costs a few hundred bytes and `checkout_timeout` bounds how long it waits, so a bound is for those who would
    /// rather answer "busy" at once than later.
    pub fn max_waiting(mut self, waiters: impl Into<Option<usize>>) -> Self {
        self.max_waiting = waiters.into();
        self
    }

    /// How long a checkout may wait for a connection. **Default: 10 s.**
    ///
    /// Half of it is how long the first flight on a connection may go without a word from the server, before the connection is
    /// closed and the flight sent again on another one: a statement may take longer, what goes before it is answered at once.
    ///
    /// Whoever waits ten seconds for a mere connection has mostly been given up by his own caller; the 30 s of HikariCP, sqlx
    /// and bb8 only make a longer queue of such. It is twice `connect_timeout`: an attempt that hangs leaves time for a second.
    pub fn checkout_timeout(mut self, timeout: Duration) -> Self {
        self.checkout_timeout = timeout;
        self
    }

    /// Sheds load when every checkout waits longer than this for a whole [`queue_interval`](Self::queue_interval). **Default:
    /// `None`, off.**
    ///
    /// This is CoDel on queue time, as Ecto's `queue_target` (50 ms there, a good value for a web backend): under sustained
    /// overload nobody waits longer than this; who would have to is refused, so that the others are served in time instead of
    /// all timing out. Set to what a scope takes at most, it bounds what is served under overload to twice that. A burst that
    /// drains within the interval is not touched. Off by default because a batch of tasks that outnumber the connections and
    /// are content to wait looks just like an overload.
    pub fn queue_target(mut self, wait: impl Into<Option<Duration>>) -> Self {
        self.queue_target = wait.into();
        self
    }

    /// How long queue times must stay above [`queue_target`](Self::queue_target) before load is shed. **Default: 1 s**, as Ecto.
    ///
    /// Long against a transaction, short against the patience of a user.
    pub fn queue_interval(mut self, interval: Duration) -> Self {
        self.queue_interval = interval;
        self
    }
}

/// Opening a session.
impl Config {
    /// Bounds the opening of a connection: name look-up, all hosts and addresses, TLS, login. **Default: 5 s.**
    ///
    /// With several hosts or addresses each attempt gets an equal share of the time that is left, so that one that swallows
    /// packets does not keep us from the next. Five seconds: a SYN that was lost is sent again after one and after three.
    /// URL parameter `connect_timeout`, in seconds.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The name under which the server lists these sessions. **Default: `t2m-db`.**
    ///
    /// 1 to 63 printable ASCII characters; the server would cut off or replace others. URL parameter `application_name`.
    pub fn application_name(mut self, name: impl Into<String>) -> Self {
        self.application_name = name.into();
        self
    }

    /// Asks `provider` for the password of each new connection, instead of the one in the URL. **Default: none.**
    ///
    /// For credentials that expire (RDS IAM tokens) or rotate. Its time counts towards `connect_timeout`. What it returns is
    /// neither kept nor logged. An async closure will do; see [`PasswordProvider`].
    pub fn password_provider(mut self, provider: impl PasswordProvider) -> Self {
        self.password_provider = Some(Arc::new(provider));
        self
    }

    /// The kernel closes a TCP connection when data that was sent stays unacknowledged so long; `None` leaves it to the
    /// system. **Default: 30 s**, and never more than half of [`checkout_timeout`](Self::checkout_timeout).
    ///
    /// The system's own answer is about 15 minutes. This is what ends a scope without a deadline whose connection goes silent
    /// later than with its first flight. Linux only. URL parameter `tcp_user_timeout`, in milliseconds.
    pub fn tcp_user_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.tcp_user_timeout = timeout.into();
        self
    }

    /// How often the server looks whether the client of a running statement is still there; `None` leaves it to the server.
    /// **Default: 1 s.**
    ///
    /// Without it, the statements of a process that was killed run to their end, holding their locks. The look is one `poll`
    /// a second. Set `None` for a server whose platform cannot do it (Windows refuses the session then).
    pub fn client_connection_check_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.client_connection_check_interval = interval.into();
        self
    }

    /// The server ends a session that is silent inside a transaction for so long; `None` leaves it to the server.
    /// **Default: 60 s.**
    ///
    /// A scope that waits for something other than the database holds its locks and keeps vacuum from cleaning up. A minute
    /// is far more than the pause between two statements needs.
    pub fn idle_in_transaction_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.idle_in_transaction_timeout = timeout.into();
        self
    }
}

/// Keeping sessions.
impl Config {
    /// Replaces a connection that is older than this, when it is idle; `None` keeps it for ever. **Default: 30 min**, as
    /// HikariCP and sqlx.
    ///
    /// A session's memory on the server grows with the tables it has seen, and only new connections notice that a name now
    /// points elsewhere or a firewall forgets old ones. Each lives up to a tenth less, at random, so that not all go at once.
    pub fn max_lifetime(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.max_lifetime = age.into();
        self
    }

    /// Closes a connection that nobody needed for so long, down to [`min_idle`](Self::min_idle); `None` never does.
    /// **Default: 10 min**, as HikariCP and sqlx.
    ///
    /// Long enough to survive the pauses in an hour of work, short enough that last night's peak is gone in the morning.
    pub fn idle_timeout(mut self, idle: impl Into<Option<Duration>>) -> Self {
        self.idle_timeout = idle.into();
        self
    }

    /// Speaks to a connection that was idle for so long, in the background; `None` never does. **Default: 2 min**, as
    /// HikariCP.
    ///
    /// NAT gateways and load balancers forget a silent connection, the quicker ones after 4 to 6 minutes (Azure, AWS), without
    /// telling. TCP keepalive (URL parameters `keepalives_*`) finds that out; this keeps it from happening. One that does not
    /// answer within [`cleanup_timeout`](Self::cleanup_timeout) is closed. Half of the idle ones are spoken to at a time, those
    /// that were silent longest first, so that a borrower finds the others; none waits for the answer of another. When set, it
    /// must be less than `idle_timeout` and `max_lifetime`.
    pub fn keepalive(mut self, idle: impl Into<Option<Duration>>) -> Self {
        self.keepalive = idle.into();
        self
    }

    /// How often the background check looks at the server's health; `None` never does. **Default: 15 s.**
    ///
    /// Between two probes of a usual orchestrator (10 s to 30 s); one round trip each time.
    pub fn health_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.health_interval = interval.into();
        self
    }
}

/// Ending a scope.
impl Config {
    /// How long a connection may take to become clean again before it is closed. **Default: 5 s.**
    ///
    /// Clean-up is a ROLLBACK, and a cancel request when the server is still busy: milliseconds, unless the server or the way
    /// to it is in trouble. Until it ends the connection counts towards `max_size`.
    pub fn cleanup_timeout(mut self, timeout: Duration) -> Self {
        self.cleanup_timeout = timeout;
        self
    }

    /// When a session is reset at check-in. **Default: [`SessionReset::WhenDirty`].**
    pub fn session_reset(mut self, reset: SessionReset) -> Self {
        self.session_reset = reset;
        self
    }

    /// Whether the outcome of a COMMIT whose reply was lost is looked up. **Default: [`CommitResolution::On`].**
    pub fn commit_resolution(mut self, resolution: CommitResolution) -> Self {
        self.commit_resolution = resolution;
        self
    }

    /// How many statements each connection keeps prepared; 0 keeps none. **Default: 256**, as the JDBC driver.
    ///
    /// More than the distinct statements of a backend of this size, few enough that plans stay below some 10 MB a session. At
    /// most 10,000.
    ///
    /// With 0 each statement is prepared anew, used and forgotten, which costs it a round trip. That does not make a pooler
    /// usable which cannot follow prepared statements (PgBouncer before 1.21 in transaction mode): outside of a transaction a
    /// statement and its preparation may still reach different servers. Such a one has to be used in session mode.
    pub fn statement_cache_size(mut self, statements: usize) -> Self {
        self.statement_cache_size = statements;
        self
    }

    /// How `run_retrying` retries when its scope does not say. **Default: [`Retry::default`].**
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }
}

/// Being told.
impl Config {
    /// Reports a scope that holds its connection for longer than this; `None` never does. **Default: 30 s.**
    ///
    /// Half of `idle_in_transaction_timeout`: the log has the holder's name before the server ends its session. It costs no
    /// timer per checkout.
    pub fn leak_threshold(mut self, held: impl Into<Option<Duration>>) -> Self {
        self.leak_threshold = held.into();
        self
    }

    /// Logs a transaction that took longer than this, with its statements; `None` never does. **Default: 1 s**, as sqlx.
    ///
    /// What a user notices as slow.
    pub fn slow_threshold(mut self, took: impl Into<Option<Duration>>) -> Self {
        self.slow_threshold = took.into();
        self
    }
}
