//! `DATABASE_URL` and `T2M_DB_*`.

use std::ffi::OsString;

use super::text::invalid;
use super::{Config, settings};
use crate::Result;

const URL: &str = "DATABASE_URL";
const PREFIX: &str = "T2M_DB_";
/// Variables of `t2m_db::testing`, which are no settings.
const TESTING: &str = "T2M_DB_TEST_";

/// The environment is a parameter, so that tests need not change the process's own.
pub(super) fn from_vars(vars: impl Iterator<Item = (OsString, OsString)>) -> Result<Config> {
    let mut url = None;
    let mut rest = Vec::new();
    for (name, value) in vars {
        // Variables of others may be anything; ours are ASCII.
        let Some(name) = name.to_str() else { continue };
        let ours = name == URL || (name.starts_with(PREFIX) && !name.starts_with(TESTING));
        if !ours || value.is_empty() {
            continue;
        }
        let value = value.into_string().map_err(|_| invalid(name.to_owned(), "not UTF-8", "text"))?;
        match name.strip_prefix(PREFIX) {
            Some(setting) => rest.push((setting.to_ascii_lowercase(), value)),
            None => url = Some(value),
        }
    }
    let url = url.ok_or_else(|| invalid(URL, "not set", "a postgres:// URL"))?;
    let mut config = Config::from_url(&url)?;
    rest.sort_unstable(); // the same error each time
    for (setting, value) in rest {
        settings::set(&mut config, &setting, &value, |setting| format!("{PREFIX}{}", setting.to_ascii_uppercase()))?;
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn from(vars: &[(&str, &str)]) -> Result<Config> {
        from_vars(vars.iter().map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn the_url_comes_first_and_single_settings_override_it() {
        let config = from(&[
            ("T2M_DB_CONNECT_TIMEOUT", "2s"),
            ("T2M_DB_IDLE_TIMEOUT", "off"),
            ("T2M_DB_RETRY_ATTEMPTS", "9"),
            ("T2M_DB_MIN_IDLE", ""),
            ("DATABASE_URL", "postgres://u@h/d?connect_timeout=30&application_name=shop"),
            ("PATH", "/bin"),
            ("T2M_DB_TEST_CACHE", "/tmp/cache"),
        ]);
        let config = config.unwrap();
        assert_eq!(config.connect_timeout, Duration::from_secs(2));
        assert_eq!(config.idle_timeout, None);
        assert_eq!(config.retry.attempts, 9);
        assert_eq!(config.min_idle, 1);
        assert_eq!(config.application_name, "shop");
    }

    #[test]
    fn errors_name_the_variable() {
        let url = ("DATABASE_URL", "postgres://u@h/d");
        let text = |vars: &[(&str, &str)]| from(vars).unwrap_err().to_string();
        assert_eq!(text(&[]), "setting `DATABASE_URL` is not set, allowed is a postgres:// URL");
        assert_eq!(
            text(&[url, ("T2M_DB_MAX_SIZ", "20")]),
            "setting `T2M_DB_MAX_SIZ` is not a setting, allowed is the name of one; the closest is `T2M_DB_MAX_SIZE`"
        );
        assert_eq!(
            text(&[url, ("T2M_DB_MAX_SIZE", "many")]),
            "setting `T2M_DB_MAX_SIZE` is `***`, allowed is a whole number"
        );
        assert_eq!(
            text(&[url, ("T2M_DB_MAX_LIFETIME", "postgres://u:hunter2@h")]),
            "setting `T2M_DB_MAX_LIFETIME` is `***`, allowed is a number with a unit, as 30s, 250ms or 1h 30m, or off"
        );
    }

    #[cfg(unix)]
    #[test]
    fn variables_that_are_not_text_matter_only_when_they_are_ours() {
        use std::os::unix::ffi::OsStringExt;
        let url = || ("DATABASE_URL".into(), "postgres://u@h/d".into());
        let raw = || OsString::from_vec(vec![0xff]);
        assert!(from_vars([url(), (raw(), raw()), ("OTHER".into(), raw())].into_iter()).is_ok());
        assert!(from_vars([url(), ("T2M_DB_MAX_SIZE".into(), raw())].into_iter()).is_err());
    }
}
