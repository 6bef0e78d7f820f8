//! The two settings that are a choice and not a number.

/// When a session is reset at check-in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionReset {
    /// Only when something was seen to change it beyond its transaction (`SET`, `LISTEN`, an advisory lock, ...). A clean
    /// session pays nothing. The default: what can be seen on the wire covers what SQL can do openly.
    #[default]
    WhenDirty,
    /// After every scope, at one round trip each. For statements that change a session behind our back, as functions that
    /// call `set_config` or take advisory locks.
    Always,
}

/// Whether the outcome of a COMMIT whose reply was lost is looked up with `pg_xact_status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommitResolution {
    /// Each read-write transaction asks for its id in the message that opens it, which costs no round trip; with the id a
    /// lost COMMIT is told to the caller as committed or not. The default.
    #[default]
    On,
    /// No id is asked for, and a lost COMMIT is always unknown. For read-write transactions that mostly write nothing: an id
    /// that is asked for is used up.
    Off,
}
