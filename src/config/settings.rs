//! Every setting by name, for the sources that hold text: the environment and files.

use super::text::{Allowed, closest, duration, invalid, number, one_of, or_off, shown, switch};
use super::{CommitResolution, Config, SessionReset};
use crate::Result;

type Set = fn(&mut Config, &str) -> Result<(), Allowed>;

/// The builder's methods, and how each reads its value. `password_provider` is code and has no text.
pub(super) const SETTINGS: &[(&str, Set)] = &[
    ("max_size", |to, text| put(&mut to.max_size, number(text))),
    ("min_idle", |to, text| put(&mut to.min_idle, number(text))),
    ("max_waiting", |to, text| put(&mut to.max_waiting, or_off(text, number))),
    ("checkout_timeout", |to, text| put(&mut to.checkout_timeout, duration(text))),
    ("queue_target", |to, text| put(&mut to.queue_target, or_off(text, duration))),
    ("queue_interval", |to, text| put(&mut to.queue_interval, duration(text))),
    ("connect_timeout", |to, text| put(&mut to.connect_timeout, duration(text))),
    ("application_name", |to, text| put(&mut to.application_name, Ok(text.into()))),
    ("tcp_user_timeout", |to, text| put(&mut to.tcp_user_timeout, or_off(text, duration))),
    ("client_connection_check_interval", |to, text| {
        put(&mut to.client_connection_check_interval, or_off(text, duration))
    }),
    ("idle_in_transaction_timeout", |to, text| put(&mut to.idle_in_transaction_timeout, or_off(text, duration))),
    ("max_lifetime", |to, text| put(&mut to.max_lifetime, or_off(text, duration))),
    ("idle_timeout", |to, text| put(&mut to.idle_timeout, or_off(text, duration))),
    ("keepalive", |to, text| put(&mut to.keepalive, or_off(text, duration))),
    ("health_interval", |to, text| put(&mut to.health_interval, or_off(text, duration))),
    ("cleanup_timeout", |to, text| put(&mut to.cleanup_timeout, duration(text))),
    ("session_reset", |to, text| {
        let names = [("when-dirty", SessionReset::WhenDirty), ("always", SessionReset::Always)];
        put(&mut to.session_reset, one_of(text, &names))
    }),
    ("commit_resolution", |to, text| {
        let on = switch(text).map(|on| if on { CommitResolution::On } else { CommitResolution::Off });
        put(&mut to.commit_resolution, on)
    }),
    ("statement_cache_size", |to, text| put(&mut to.statement_cache_size, number(text))),
    ("retry_attempts", |to, text| put(&mut to.retry.attempts, number(text))),
    ("retry_base", |to, text| put(&mut to.retry.base, duration(text))),
    ("retry_cap", |to, text| put(&mut to.retry.cap, duration(text))),
    ("retry_budget", |to, text| put(&mut to.retry.budget, number(text))),
    ("retry_on_lock_timeout", |to, text| put(&mut to.retry.on_lock_timeout, switch(text))),
    ("leak_threshold", |to, text| put(&mut to.leak_threshold, or_off(text, duration))),
    ("slow_threshold", |to, text| put(&mut to.slow_threshold, or_off(text, duration))),
];

fn put<T>(slot: &mut T, value: Result<T, Allowed>) -> Result<(), Allowed> {
    value.map(|value| *slot = value)
}

/// Sets `name` to what `text` says. `label` is how the source of the text spells a setting.
pub(super) fn set(config: &mut Config, name: &str, text: &str, label: fn(&str) -> String) -> Result<()> {
    let Some((_, set)) = SETTINGS.iter().find(|(known, _)| *known == name) else {
        let nearest = closest(name, SETTINGS.iter().map(|(known, _)| *known)).unwrap_or_default();
        let allowed = format!("the name of one; the closest is `{}`", label(nearest));
        return Err(invalid(label(name), "not a setting", allowed));
    };
    set(config, text).map_err(|allowed| invalid(label(name), shown(text), allowed))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_setting_can_be_set_by_its_name() {
        for (name, _) in SETTINGS {
            let mut config = Config::from_url("postgres://u@h/d").unwrap();
            let before = format!("{config:?}");
            // The first that the setting takes and that is not its default.
            let set = ["17", "17ms", "seventeen", "always", "on", "off"]
                .into_iter()
                .any(|text| set(&mut config, name, text, str::to_owned).is_ok() && format!("{config:?}") != before);
            assert!(set, "{name} cannot be set");
        }
    }

    proptest! {
        #[test]
        fn a_password_in_place_of_a_setting_is_not_shown(secret in "[a-z]{0,3}[A-Z][a-zA-Z0-9 ._+-]{2,20}|[a-z0-9]{4}[!-~]{0,8}[a-z]{3}") {
            // A text by nature: it is taken.
            for (name, _) in SETTINGS.iter().filter(|(name, _)| *name != "application_name") {
                let mut config = Config::from_url("postgres://u@h/d").unwrap();
                if let Err(error) = super::set(&mut config, name, &secret, str::to_owned) {
                    prop_assert!(!format!("{error} {error:?}").contains(&secret), "{error}");
                }
            }
        }
    }

    #[test]
    fn what_may_be_off_can_be_switched_off() {
        let mut config = Config::from_url("postgres://u@h/d").unwrap();
        for name in ["idle_timeout", "max_lifetime", "keepalive", "leak_threshold"] {
            set(&mut config, name, "off", str::to_owned).unwrap();
        }
        assert_eq!(
            (config.idle_timeout, config.max_lifetime, config.keepalive, config.leak_threshold),
            (None, None, None, None)
        );
        let error = set(&mut config, "checkout_timeout", "off", str::to_owned).unwrap_err();
        assert_eq!(
            error.to_string(),
            "setting `checkout_timeout` is `off`, allowed is a number with a unit, as 30s, 250ms or 1h 30m"
        );
    }
}
