//! `postgres://` URLs, as libpq reads them, with errors that quote nothing.
//!
//! A password that was not percent-encoded shifts the parts of a URL: what looks like a port, a database or a parameter may
//! be a piece of it. So no error here repeats a word of the URL, and a stray `@`, the sure sign, is refused before anything
//! else is read.

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::Config;
use super::target::{
    ChannelBinding, Host, Keepalive, Place, RootCert, Secret, SslMode, Target, TargetSessionAttrs, Trust,
};
use super::text::{Allowed, closest, invalid, number, one_of};
use crate::{Error, Result};

const FORM: &str = "postgres://user:password@host:port/database?parameter=value, with @ : / ? # % in names and passwords \
                    percent-encoded";

fn malformed(what: impl Into<String>) -> Error {
    invalid("url", format!("malformed ({})", what.into()), FORM)
}

pub(super) fn parse(url: &str) -> Result<Config> {
    let url = url.trim();
    let rest = ["postgres://", "postgresql://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    let rest = rest.ok_or_else(|| malformed("it does not begin with postgres:// or postgresql://"))?;

    let authority_ends = rest.find(['/', '?']).unwrap_or(rest.len());
    if rest.matches('@').count() > 1 || rest.find('@').is_some_and(|at| at > authority_ends) {
        return Err(malformed("there is an `@` that is not the one before the host; write it as %40"));
    }

    let (authority, rest) = rest.split_at(authority_ends);
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut parts = Parts::default();
    parts.authority(authority)?;
    parts.database = some(&decode(path.strip_prefix('/').unwrap_or(path), "database")?);
    for (index, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
        let nth = index + 1;
        let (key, value) = pair.split_once('=').ok_or_else(|| malformed(format!("parameter {nth} has no `=`")))?;
        let key = decode(key, "parameter name")?;
        match PARAMETERS.iter().find(|(name, _)| *name == key) {
            Some((name, set)) => {
                let value = decode(value, name)?;
                set(&mut parts, &value).map_err(|allowed| invalid(*name, "something else in the URL", allowed))?;
            }
            None if key == "password" => parts.password = secret(value)?,
            None => {
                let name = closest(&key, PARAMETERS.iter().map(|(name, _)| *name)).unwrap_or_default();
                return Err(malformed(format!("parameter {nth} is unknown, the closest known one is `{name}`")));
            }
        }
    }
    parts.finish()
}

/// What was read so far.
#[derive(Default)]
struct Parts {
    hosts: Vec<String>,
    ports: Vec<u16>,
    addrs: Vec<IpAddr>,
    user: Option<String>,
    password: Option<Secret>,
    database: Option<String>,
    options: Option<String>,
    application_name: Option<String>,
    trust: Trust,
    direct_tls: bool,
    channel_binding: Option<ChannelBinding>,
    session_attrs: Option<TargetSessionAttrs>,
    shuffle: bool,
    connect_timeout: Option<Duration>,
    /// Zero is off, as for libpq.
    tcp_user_timeout: Option<Duration>,
    no_keepalive: bool,
    keepalive: Keepalive,
}

type Set = fn(&mut Parts, &str) -> Result<(), Allowed>;

/// Every parameter but `password`, which is not text.
const PARAMETERS: &[(&str, Set)] = &[
    ("user", |to, text| put(&mut to.user, Ok(some(text)))),
    ("dbname", |to, text| put(&mut to.database, Ok(some(text)))),
    ("host", |to, text| put(&mut to.hosts, Ok(text.split(',').map(Into::into).collect()))),
    ("hostaddr", |to, text| put(&mut to.addrs, list(text, "numeric addresses", |addr| addr.parse().ok()))),
    ("port", |to, text| put(&mut to.ports, list(text, "port numbers", port))),
    ("options", |to, text| put(&mut to.options, Ok(some(text)))),
    ("application_name", |to, text| put(&mut to.application_name, Ok(some(text)))),
    ("sslmode", |to, text| put(&mut to.trust.mode, one_of(text, SslMode::NAMES).map(Some))),
    ("sslrootcert", |to, text| put(&mut to.trust.roots, Ok(root(text)))),
    ("sslcert", |to, text| put(&mut to.trust.cert, Ok(some(text).map(Into::into)))),
    ("sslkey", |to, text| put(&mut to.trust.key, Ok(some(text).map(Into::into)))),
    ("sslnegotiation", |to, text| put(&mut to.direct_tls, one_of(text, &[("postgres", false), ("direct", true)]))),
    ("channel_binding", |to, text| put(&mut to.channel_binding, one_of(text, ChannelBinding::NAMES).map(Some))),
    ("target_session_attrs", |to, text| put(&mut to.session_attrs, one_of(text, TargetSessionAttrs::NAMES).map(Some))),
    ("load_balance_hosts", |to, text| put(&mut to.shuffle, one_of(text, &[("disable", false), ("random", true)]))),
    ("connect_timeout", |to, text| put(&mut to.connect_timeout, seconds(text).map(Some))),
    ("tcp_user_timeout", |to, text| {
        put(&mut to.tcp_user_timeout, number(text).map(|ms| Some(Duration::from_millis(ms))))
    }),
    ("keepalives", |to, text| put(&mut to.no_keepalive, one_of(text, &[("0", true), ("1", false)]))),
    ("keepalives_idle", |to, text| put(&mut to.keepalive.idle, seconds(text))),
    ("keepalives_interval", |to, text| put(&mut to.keepalive.interval, seconds(text))),
    ("keepalives_count", |to, text| put(&mut to.keepalive.count, number(text))),
];

fn put<T>(slot: &mut T, value: Result<T, Allowed>) -> Result<(), Allowed> {
    value.map(|value| *slot = value)
}

impl Parts {
    fn authority(&mut self, authority: &str) -> Result<()> {
        let (credentials, hosts) = authority.split_once('@').unwrap_or(("", authority));
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        self.user = some(&decode(user, "user")?);
        self.password = secret(password)?;
        if hosts.is_empty() {
            return Ok(());
        }
        for (index, chunk) in hosts.split(',').enumerate() {
            let nth = index + 1;
            let (host, after) = match chunk.strip_prefix('[') {
                Some(v6) => {
                    v6.split_once(']').ok_or_else(|| malformed(format!("host {nth} has a `[` without its `]`")))?
                }
                None => chunk.split_at(chunk.find(':').unwrap_or(chunk.len())),
            };
            let number = match after.strip_prefix(':') {
                Some(number) => port(&decode(number, "port")?),
                None if after.is_empty() => Some(DEFAULT_PORT),
                None => None,
            };
            self.hosts.push(decode(host, "host")?);
            self.ports.push(number.ok_or_else(|| malformed(format!("what follows host {nth} is not a port number")))?);
        }
        Ok(())
    }

    fn finish(self) -> Result<Config> {
        let places = self.places()?;
        let target = Target {
            places,
            user: self.user,
            password: self.password,
            database: self.database,
            options: self.options,
            trust: self.trust,
            direct_tls: self.direct_tls,
            channel_binding: self.channel_binding.unwrap_or(ChannelBinding::Prefer),
            session_attrs: self.session_attrs.unwrap_or(TargetSessionAttrs::Any),
            shuffle: self.shuffle,
            keepalive: (!self.no_keepalive).then_some(self.keepalive),
        };
        let mut config = Config::for_target(target);
        if let Some(name) = self.application_name {
            config.application_name = name;
        }
        if let Some(timeout) = self.connect_timeout {
            config.connect_timeout = timeout;
        }
        if let Some(timeout) = self.tcp_user_timeout {
            config.tcp_user_timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
        }
        Ok(config)
    }

    fn places(&self) -> Result<Vec<Place>> {
        let count = self.hosts.len().max(self.addrs.len());
        if count == 0 {
            return Err(malformed("it names no host; a unix socket is the directory, as %2Frun%2Fpostgresql"));
        }
        if !self.addrs.is_empty() && !self.hosts.is_empty() && self.addrs.len() != self.hosts.len() {
            return Err(malformed("`hostaddr` has not as many addresses as there are hosts"));
        }
        if self.ports.len() > 1 && self.ports.len() != count {
            return Err(malformed("`port` has not as many ports as there are hosts, nor a single one"));
        }
        (0..count)
            .map(|index| {
                let port = self.ports.get(index).or(self.ports.first()).copied().unwrap_or(DEFAULT_PORT);
                let addr = self.addrs.get(index).copied();
                let name = self.hosts.get(index).filter(|name| !name.is_empty());
                let host = match (name, addr) {
                    (Some(name), _) if name.starts_with('/') => Host::Unix(PathBuf::from(name)),
                    (Some(name), addr) => Host::Tcp { name: name.clone(), addr },
                    (None, Some(addr)) => Host::Tcp { name: addr.to_string(), addr: Some(addr) },
                    (None, None) => return Err(malformed(format!("host {} is empty", index + 1))),
                };
                Ok(Place { host, port })
            })
            .collect()
    }
}

const DEFAULT_PORT: u16 = 5432;

/// Empty is the default, as for libpq.
fn port(text: &str) -> Option<u16> {
    if text.is_empty() { Some(DEFAULT_PORT) } else { text.parse().ok().filter(|port| *port != 0) }
}

fn root(text: &str) -> Option<RootCert> {
    match text {
        "" => None,
        "system" => Some(RootCert::System),
        file => Some(RootCert::File(file.into())),
    }
}

fn seconds(text: &str) -> Result<Duration, Allowed> {
    number(text).ok().filter(|n| *n > 0).map(Duration::from_secs).ok_or_else(|| "a number of seconds above 0".into())
}

fn list<T>(text: &str, what: &'static str, read: fn(&str) -> Option<T>) -> Result<Vec<T>, Allowed> {
    text.split(',').map(read).collect::<Option<_>>().ok_or_else(|| format!("{what}, separated by commas").into())
}

fn secret(text: &str) -> Result<Option<Secret>> {
    Ok(Some(decode_bytes(text, "password")?).filter(|bytes| !bytes.is_empty()).map(Secret::new))
}

/// Empty means not given.
fn some(text: &str) -> Option<String> {
    if text.is_empty() { None } else { Some(text.to_owned()) }
}

fn decode(text: &str, what: &'static str) -> Result<String> {
    String::from_utf8(decode_bytes(text, what)?).map_err(|_| malformed(format!("the {what} is not UTF-8")))
}

/// `percent_decode_str` lets a `%` that encodes nothing pass, as it often stands in a password that was never encoded.
fn decode_bytes(text: &str, what: &'static str) -> Result<Vec<u8>> {
    let encodes = |after: &str| after.len() >= 2 && after.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit);
    if !text.split('%').skip(1).all(encodes) {
        return Err(malformed(format!("the {what} has a `%` without two hexadecimal digits; write it as %25")));
    }
    let bytes: Vec<u8> = percent_decode_str(text).collect();
    if bytes.contains(&0) {
        return Err(malformed(format!("the {what} has a zero byte")));
    }
    Ok(bytes)
}
