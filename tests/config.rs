//! Where settings come from, and what is said when they cannot be.

use std::env;
use std::process::Command;
use std::time::Duration;

use proptest::prelude::*;
use serde::Deserialize;
use t2m_db::{Config, Database, Error, Retry};

#[tokio::test]
async fn an_impossible_setting_is_told_before_anything_is_connected() {
    let config = || Config::from_url("postgres://app:hunter2@127.0.0.1:1/t2m").unwrap();
    let minute = Duration::from_secs(60);
    for (config, said) in [
        (config().max_size(0), "setting `max_size` is 0, allowed is 1 to 262143"),
        (config().max_size(2).min_idle(3), "setting `min_idle` is 3, allowed is 0 to max_size, which is 2"),
        (config().checkout_timeout(Duration::ZERO), "setting `checkout_timeout` is 0s, allowed is 1ms to 10years"),
        (
            config().keepalive(minute).idle_timeout(minute),
            "setting `keepalive` is 1m, allowed is less than idle_timeout, which is 1m, or off",
        ),
        (config().retry(Retry::serialization(0)), "setting `retry_attempts` is 0, allowed is 1 to 1000"),
        (
            config().statement_cache_size(usize::MAX),
            "setting `statement_cache_size` is 18446744073709551615, allowed is 0 to 10000",
        ),
    ] {
        let lazily = Database::connect_lazy(config.clone()).unwrap_err();
        let at_once = Database::connect(config).await.unwrap_err();
        for error in [lazily, at_once] {
            assert!(matches!(error, Error::Config { .. }), "{error:?}");
            assert_eq!(error.to_string(), said);
        }
    }
}

#[test]
fn a_part_of_a_larger_file_can_be_the_configuration() {
    #[derive(Deserialize)]
    struct Backend {
        port: u16,
        database: Config,
    }
    let file = r#"{ "port": 80, "database": { "url": "postgres://app:hunter2@db/t2m", "max_size": 20, "idle_timeout": "off" } }"#;
    let backend: Backend = serde_json::from_str(file).unwrap();
    assert_eq!(backend.port, 80);
    let shown = format!("{:?}", backend.database);
    assert!(shown.contains("max_size: 20") && shown.contains("idle_timeout: None"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

/// The child of the test below: its environment is its own.
#[test]
#[ignore = "run by the_environment_is_read"]
fn child_that_reads_its_environment() {
    match Config::from_env() {
        Ok(config) => println!("{config:?}"),
        Err(error) => println!("{error}"),
    }
}

#[test]
fn the_environment_is_read() {
    let told = |vars: &[(&str, &str)]| {
        let mut child = Command::new(env::current_exe().unwrap());
        child.args(["config::child_that_reads_its_environment", "--exact", "--ignored", "--nocapture"]);
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("T2M_DB_")) {
            child.env_remove(name);
        }
        let output = child.env_remove("DATABASE_URL").envs(vars.iter().copied()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let url = ("DATABASE_URL", "postgres://app:hunter2@db.internal/t2m");
    let shown =
        told(&[url, ("T2M_DB_MAX_SIZE", "17"), ("T2M_DB_LEAK_THRESHOLD", "1m 30s"), ("T2M_DB_TEST_CACHE", "/x")]);
    assert!(shown.contains("max_size: 17") && shown.contains("leak_threshold: Some(90s)"), "{shown}");
    assert!(shown.contains("db.internal") && !shown.contains("hunter2"), "{shown}");
    assert!(told(&[]).contains("setting `DATABASE_URL` is not set"));
    assert!(told(&[url, ("T2M_DB_POOL_SIZE", "3")]).contains("the closest is `T2M_DB_MAX_SIZE`"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_password_is_in_what_is_shown(secret in "[A-Z]{4}[@:/?#%&=,\\[\\]a-z]{0,6}[0-9]{8}") {
        let url = format!("postgres://app:{secret}@db.internal/t2m");
        let file = serde_json::json!({ "url": url }).to_string();
        let misplaced = serde_json::json!({ "url": "postgres://h", "max_size": url, "idle_timeout": url }).to_string();
        for shown in [
            format!("{:?}", Config::from_url(&url)),
            Config::from_url(&url).map_or_else(|error| error.to_string(), |_| String::new()),
            format!("{:?}", serde_json::from_str::<Config>(&file)),
            format!("{:?}", serde_json::from_str::<Config>(&misplaced)),
        ] {
            prop_assert!(!shown.contains(&secret[..4]) && !shown.contains(&secret[secret.len() - 8..]), "{shown}");
        }
    }
}
