use std::time::Duration;

use crate::Config;
use crate::config::Retry;

fn url(url: &str) -> Config {
    Config::from_url(url).unwrap()
}

fn config() -> Config {
    url("postgres://u:secret@h/d")
}

#[track_caller]
fn refused(config: &Config, said: &str) {
    assert_eq!(config.validate().unwrap_err().to_string(), said);
}

#[test]
fn the_defaults_are_possible() {
    config().validate().unwrap();
}

#[test]
fn what_contradicts_no_one_is_possible() {
    let possible = [
        config().max_size(1),
        config().max_size(4).min_idle(4),
        config().min_idle(0).statement_cache_size(0),
        config().max_lifetime(None).idle_timeout(None).keepalive(None).health_interval(None),
        config().leak_threshold(None).slow_threshold(None).tcp_user_timeout(None).idle_in_transaction_timeout(None),
        // The keepalive that nobody asked for gives way.
        config().idle_timeout(Duration::from_secs(60)),
        config().idle_timeout(Duration::from_secs(60)).keepalive(Duration::from_secs(59)),
        config().queue_target(Duration::from_millis(50)),
        config().application_name("x".repeat(63)),
        config().retry(Retry::serialization(1)),
        url("postgres://h?options=-c%20log_timezone%3DUTC%20-c%20app.timezone%3DUTC%20-c%20work_mem%3D8MB"),
    ];
    for config in possible {
        config.validate().unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn impossible_sizes() {
    refused(&config().max_size(0), "setting `max_size` is 0, allowed is 1 to 262143");
    refused(&config().max_size(300_000), "setting `max_size` is 300000, allowed is 1 to 262143");
    refused(&config().max_size(4).min_idle(5), "setting `min_idle` is 5, allowed is 0 to max_size, which is 4");
    refused(&config().retry(Retry::serialization(0)), "setting `retry_attempts` is 0, allowed is 1 to 1000");
    config().statement_cache_size(10_000).validate().unwrap();
    refused(&config().statement_cache_size(10_001), "setting `statement_cache_size` is 10001, allowed is 0 to 10000");
}

#[test]
fn impossible_durations() {
    let zero = Duration::ZERO;
    for (setting, config) in [
        ("checkout_timeout", config().checkout_timeout(zero)),
        ("queue_interval", config().queue_interval(zero)),
        ("connect_timeout", config().connect_timeout(zero)),
        ("cleanup_timeout", config().cleanup_timeout(zero)),
    ] {
        refused(&config, &format!("setting `{setting}` is 0s, allowed is 1ms to 10years"));
    }
    for (setting, config) in [
        ("queue_target", config().queue_target(zero)),
        ("max_lifetime", config().max_lifetime(zero)),
        ("idle_timeout", config().idle_timeout(zero)),
        ("keepalive", config().keepalive(zero)),
        ("health_interval", config().health_interval(zero)),
        ("leak_threshold", config().leak_threshold(zero)),
        ("slow_threshold", config().slow_threshold(zero)),
        ("tcp_user_timeout", config().tcp_user_timeout(zero)),
        ("client_connection_check_interval", config().client_connection_check_interval(zero)),
        ("idle_in_transaction_timeout", config().idle_in_transaction_timeout(zero)),
    ] {
        let error = config.validate().unwrap_err().to_string();
        assert!(error.starts_with(&format!("setting `{setting}` is 0s, ")) && error.ends_with(", or off"), "{error}");
    }
    refused(
        &config().tcp_user_timeout(Duration::MAX),
        &format!(
            "setting `tcp_user_timeout` is {}, allowed is 1ms to 24days 20h 31m 23s, or off",
            humantime::format_duration(Duration::MAX)
        ),
    );
}

#[test]
fn durations_that_contradict_each_other() {
    let minute = Duration::from_secs(60);
    refused(
        &config().keepalive(minute).idle_timeout(minute),
        "setting `keepalive` is 1m, allowed is less than idle_timeout, which is 1m, or off",
    );
    refused(
        &config().keepalive(minute * 40).idle_timeout(None),
        "setting `keepalive` is 40m, allowed is less than max_lifetime, which is 30m, or off",
    );
    refused(
        &config().queue_target(minute),
        "setting `queue_target` is 1m, allowed is less than checkout_timeout, which is 10s, or off",
    );
    refused(
        &config().retry(Retry::default().backoff_between(minute, minute / 2)),
        "setting `retry_base` is 1m, allowed is at most retry_cap, which is 30s",
    );
}

#[test]
fn impossible_names() {
    for (name, bytes) in [("", 0), ("x".repeat(64).as_str(), 64), ("caf\u{e9}", 5), ("a\nb", 3)] {
        refused(
            &config().application_name(name),
            &format!("setting `application_name` is {bytes} bytes long, allowed is 1 to 63 printable ASCII characters"),
        );
    }
}

#[test]
fn parameters_of_the_session_that_are_ours() {
    for options in ["-c TimeZone=Europe/Rome", "--timezone=UTC", "-ctimezone=UTC", "-c work_mem=8MB -c TIMEZONE=UTC"] {
        let options = percent_encoding::utf8_percent_encode(options, percent_encoding::NON_ALPHANUMERIC);
        refused(
            &url(&format!("postgres://h?options={options}")),
            "setting `options` is setting timezone, allowed is any other parameter (always UTC)",
        );
    }
    refused(
        &url("postgres://h?options=--idle-in-transaction-session-timeout%3D5s"),
        "setting `options` is setting idle_in_transaction_session_timeout, allowed is any other parameter (the setting \
         idle_in_transaction_timeout)",
    );
}

#[test]
fn impossible_tls() {
    refused(
        &url("postgres://h?sslmode=require&sslrootcert=system"),
        "setting `sslmode` is require, allowed is verify-full with sslrootcert=system: those roots vouch for anybody's names",
    );
    refused(
        &url("postgres://h?sslmode=verify-full"),
        "setting `sslrootcert` is not set, allowed is a PEM file or `system` with sslmode=verify-full",
    );
    refused(
        &url("postgres://h?sslcert=c.pem"),
        "setting `sslkey` is not set, allowed is a PEM file: sslcert and sslkey need each other",
    );
    refused(
        &url("postgres://h?sslnegotiation=direct"),
        "setting `sslnegotiation` is direct, allowed is postgres with sslmode=prefer",
    );
    refused(
        &url("postgres://h?channel_binding=require&sslmode=disable"),
        "setting `channel_binding` is require, allowed is prefer or disable with sslmode=disable: it needs TLS",
    );
    refused(
        &url("postgres://%2Frun?channel_binding=require&sslmode=require"),
        "setting `channel_binding` is require, allowed is prefer or disable with a unix socket: it needs TLS",
    );
    refused(&url("postgres://h?keepalives_count=200"), "setting `keepalives_count` is 200, allowed is 1 to 127");
}
