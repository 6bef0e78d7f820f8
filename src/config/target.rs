//! Whom to connect to, as whom, and how protected: what a URL says.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The readable content of a connection URL.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// In the order of the URL; never empty.
    pub(crate) places: Vec<Place>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) database: Option<String>,
    pub(crate) options: Option<String>,
    pub(crate) trust: Trust,
    pub(crate) direct_tls: bool,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) session_attrs: TargetSessionAttrs,
    pub(crate) shuffle: bool,
    pub(crate) keepalive: Option<Keepalive>,
}

/// One server of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) host: Host,
    pub(crate) port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// `name` is what certificates are checked against; it is looked up unless `addr` is known.
    Tcp { name: String, addr: Option<IpAddr> },
    /// The directory of the socket.
    Unix(PathBuf),
}

impl Place {
    pub(crate) fn socket_path(directory: &std::path::Path, port: u16) -> PathBuf {
        directory.join(format!(".s.PGSQL.{port}"))
    }
}

/// `host:port`, or the path of the socket.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match &self.host {
            Host::Tcp { name, .. } if name.contains(':') => write!(f, "[{name}]:{port}"),
            Host::Tcp { name, .. } => write!(f, "{name}:{port}"),
            Host::Unix(directory) => write!(f, "{}", Self::socket_path(directory, port).display()),
        }
    }
}

/// Bytes that no output shows.
#[derive(Clone)]
pub(crate) struct Secret(Vec<u8>);

impl Secret {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Whether the session is encrypted, and how the server proves who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    /// `None`: not said in the URL.
    pub(crate) mode: Option<SslMode>,
    pub(crate) roots: Option<RootCert>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

impl Trust {
    /// libpq's default is `prefer`, and `verify-full` with the system's roots.
    pub(crate) fn mode(&self) -> SslMode {
        self.mode.unwrap_or(match self.roots {
            Some(RootCert::System) => SslMode::VerifyFull,
            _ => SslMode::Prefer,
        })
    }
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    pub(super) const NAMES: &[(&str, Self)] = &[
        ("disable", Self::Disable),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, mode)| mode == self).map_or("", |(name, _)| *name);
        f.write_str(name)
    }
}

/// libpq's `sslrootcert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RootCert {
    File(PathBuf),
    System,
}

/// libpq's `channel_binding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

impl ChannelBinding {
    pub(super) const NAMES: &[(&str, Self)] =
        &[("disable", Self::Disable), ("prefer", Self::Prefer), ("require", Self::Require)];
}

/// libpq's `target_session_attrs`, where `read-write` is `Primary` and `read-only` is `Standby`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TargetSessionAttrs {
    Any,
    Primary,
    Standby,
    PreferStandby,
}

impl TargetSessionAttrs {
    pub(super) const NAMES: &[(&str, Self)] = &[
        ("any", Self::Any),
        ("read-write", Self::Primary),
        ("read-only", Self::Standby),
        ("primary", Self::Primary),
        ("standby", Self::Standby),
        ("prefer-standby", Self::PreferStandby),
    ];
}

/// TCP keepalive: when the kernel asks a silent peer whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keepalive {
    pub(crate) idle: Duration,
    pub(crate) interval: Duration,
    pub(crate) count: u32,
}

impl Default for Keepalive {
    /// A peer that is gone is noticed after 30 + 3 * 10 s; the system's own answer is over two hours.
    fn default() -> Self {
        Self { idle: Duration::from_secs(30), interval: Duration::from_secs(10), count: 3 }
    }
}
