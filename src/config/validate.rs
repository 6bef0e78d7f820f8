//! The one place where a configuration is found impossible.

#[cfg(test)]
mod tests;

use std::time::Duration;

use super::target::{Host, RootCert, SslMode, Target};
use super::text::invalid;
use super::{ChannelBinding, Config};
use crate::Result;

/// PostgreSQL's own bound of backends (`MAX_BACKENDS`).
const MAX_SIZE: u32 = 262_143;
/// At some 40 kB of plan each, this is what a session of the server can bear.
const MAX_STATEMENTS: usize = 10_000;
/// Bytes of a name in PostgreSQL (`NAMEDATALEN` without its zero).
const MAX_NAME: usize = 63;
/// The server counts milliseconds in an `int`, and so do Linux's sockets.
const MAX_MILLIS: Duration = Duration::from_millis(i32::MAX as u64);
/// Ten years. Longer is a typing error, and would overflow a deadline somewhere.
const MAX_SPAN: Duration = Duration::from_secs(315_576_000);
/// Linux: `MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL`, `MAX_TCP_KEEPCNT`.
const MAX_KEEPALIVE: Duration = Duration::from_secs(32_767);
const MAX_PROBES: u32 = 127;
/// Parameters of the session that are ours: name and what to use instead.
const OUR_PARAMETERS: [(&str, &str); 4] = [
    ("default_transaction_read_only", "the scope decides: with_transaction writes, with_connection reads"),
    ("timezone", "always UTC"),
    ("client_connection_check_interval", "the setting of that name"),
    ("idle_in_transaction_session_timeout", "the setting idle_in_transaction_timeout"),
];

impl Config {
    /// Finds the first value that cannot work.
    pub(crate) fn validate(&self) -> Result<()> {
        self.sizes()?;
        self.spans()?;
        self.names()?;
        self.target.validate()
    }

    fn sizes(&self) -> Result<()> {
        within("max_size", self.max_size, 1, MAX_SIZE)?;
        if self.min_idle > self.max_size {
            let allowed = format!("0 to max_size, which is {}", self.max_size);
            return Err(invalid("min_idle", self.min_idle.to_string(), allowed));
        }
        if self.statement_cache_size > MAX_STATEMENTS {
            let value = self.statement_cache_size.to_string();
            return Err(invalid("statement_cache_size", value, format!("0 to {MAX_STATEMENTS}")));
        }
        within("retry_attempts", self.retry.attempts, 1, 1_000)
    }

    fn spans(&self) -> Result<()> {
        let Self { retry, .. } = self;
        let always = [
            ("checkout_timeout", self.checkout_timeout),
            ("queue_interval", self.queue_interval),
            ("connect_timeout", self.connect_timeout),
            ("cleanup_timeout", self.cleanup_timeout),
        ];
        let if_on = [
            ("queue_target", self.queue_target),
            ("max_lifetime", self.max_lifetime),
            ("idle_timeout", self.idle_timeout),
            ("keepalive", self.keepalive),
            ("health_interval", self.health_interval),
            ("leak_threshold", self.leak_threshold),
            ("slow_threshold", self.slow_threshold),
        ];
        let for_others = [
            ("tcp_user_timeout", self.tcp_user_timeout),
            ("client_connection_check_interval", self.client_connection_check_interval),
            ("idle_in_transaction_timeout", self.idle_in_transaction_timeout),
        ];
        for (setting, span) in always {
            bounded(setting, span, MAX_SPAN, "")?;
        }
        for (setting, span) in if_on.into_iter().filter_map(|(setting, span)| Some((setting, span?))) {
            bounded(setting, span, MAX_SPAN, ", or off")?;
        }
        for (setting, span) in for_others.into_iter().filter_map(|(setting, span)| Some((setting, span?))) {
            bounded(setting, span, MAX_MILLIS, ", or off")?;
        }
        if let Some(target) = self.queue_target.filter(|target| *target >= self.checkout_timeout) {
            let allowed = format!(
                "less than checkout_timeout, which is {}, or off",
                humantime::format_duration(self.checkout_timeout)
            );
            return Err(invalid("queue_target", humantime::format_duration(target).to_string(), allowed));
        }
        bounded("retry_cap", retry.cap, MAX_SPAN, "")?;
        if retry.base > retry.cap {
            let allowed = format!("at most retry_cap, which is {}", humantime::format_duration(retry.cap));
            return Err(invalid("retry_base", humantime::format_duration(retry.base).to_string(), allowed));
        }
        self.keepalive_fits()
    }

    /// A keepalive that comes after the connection was closed is a mistake, unless nobody asked for it.
    fn keepalive_fits(&self) -> Result<()> {
        let Some(keepalive) = self.keepalive.filter(|keepalive| *keepalive != Self::DEFAULT_KEEPALIVE) else {
            return Ok(());
        };
        for (limit, span) in [("idle_timeout", self.idle_timeout), ("max_lifetime", self.max_lifetime)] {
            if let Some(span) = span.filter(|span| *span <= keepalive) {
                let allowed = format!("less than {limit}, which is {}, or off", humantime::format_duration(span));
                return Err(invalid("keepalive", humantime::format_duration(keepalive).to_string(), allowed));
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<()> {
        let name = &self.application_name;
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            let value = format!("{} bytes long", name.len());
            return Err(invalid("application_name", value, format!("1 to {MAX_NAME} printable ASCII characters")));
        }
        let options = self.target.options.as_deref().unwrap_or_default();
        for name in parameters(options) {
            if let Some((parameter, instead)) = OUR_PARAMETERS.iter().find(|(parameter, _)| *parameter == name) {
                return Err(invalid(
                    "options",
                    format!("setting {parameter}"),
                    format!("any other parameter ({instead})"),
                ));
            }
        }
        Ok(())
    }
}

impl Target {
    fn validate(&self) -> Result<()> {
        let mode = self.trust.mode();
        let encrypts = mode >= SslMode::Require;
        match &self.trust.roots {
            Some(RootCert::System) if mode != SslMode::VerifyFull => {
                let allowed = "verify-full with sslrootcert=system: those roots vouch for anybody's names";
                return Err(invalid("sslmode", mode.to_string(), allowed));
            }
            None if mode >= SslMode::VerifyCa => {
                let allowed = format!("a PEM file or `system` with sslmode={mode}");
                return Err(invalid("sslrootcert", "not set", allowed));
            }
            _ => {}
        }
        if self.trust.cert.is_some() != self.trust.key.is_some() {
            let missing = if self.trust.cert.is_some() { "sslkey" } else { "sslcert" };
            return Err(invalid(missing, "not set", "a PEM file: sslcert and sslkey need each other"));
        }
        if self.direct_tls && !encrypts {
            return Err(invalid("sslnegotiation", "direct", format!("postgres with sslmode={mode}")));
        }
        let unix = self.places.iter().any(|place| matches!(place.host, Host::Unix(_)));
        if self.channel_binding == ChannelBinding::Require && (unix || mode == SslMode::Disable) {
            let without = if unix { "a unix socket" } else { "sslmode=disable" };
            return Err(invalid(
                "channel_binding",
                "require",
                format!("prefer or disable with {without}: it needs TLS"),
            ));
        }
        if let Some(keepalive) = self.keepalive {
            bounded("keepalives_idle", keepalive.idle, MAX_KEEPALIVE, "; or keepalives=0")?;
            bounded("keepalives_interval", keepalive.interval, MAX_KEEPALIVE, "; or keepalives=0")?;
            within("keepalives_count", keepalive.count, 1, MAX_PROBES)?;
        }
        Ok(())
    }
}

/// The parameters that `options` sets, as `-c name=value`, `-cname=value` or `--name=value`.
fn parameters(options: &str) -> impl Iterator<Item = String> {
    options.split_whitespace().map(|word| {
        let word = ["--", "-c"].iter().find_map(|prefix| word.strip_prefix(prefix)).unwrap_or(word);
        word.split('=').next().unwrap_or_default().to_ascii_lowercase().replace('-', "_")
    })
}

fn within(setting: &'static str, value: u32, least: u32, most: u32) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(invalid(setting, value.to_string(), format!("{least} to {most}")))
}

/// At least a millisecond: the server and the kernel read less as zero, which is "off" to them.
fn bounded(setting: &'static str, span: Duration, most: Duration, or: &str) -> Result<()> {
    if (Duration::from_millis(1)..=most).contains(&span) {
        return Ok(());
    }
    let most = humantime::format_duration(Duration::from_secs(most.as_secs()));
    Err(invalid(setting, humantime::format_duration(span).to_string(), format!("1ms to {most}{or}")))
}
