//! `Config` from a file, by serde: a map from setting to scalar.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

use super::{Config, settings};

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut entries = deserializer.deserialize_map(Entries)?;
        let Scalar(url) = entries.remove("url").ok_or_else(|| D::Error::missing_field("url"))?;
        let mut config = Self::from_url(&url).map_err(D::Error::custom)?;
        for (name, Scalar(text)) in entries {
            settings::set(&mut config, &name, &text, str::to_owned).map_err(D::Error::custom)?;
        }
        Ok(config)
    }
}

/// The whole map. A key that comes twice is an error: formats differ in which one they would keep.
struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = BTreeMap<String, Scalar>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map with the key `url` and settings of t2m_db::Config")
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, Scalar>()? {
            if entries.contains_key(&name) {
                return Err(A::Error::custom(format_args!("duplicate setting `{name}`")));
            }
            entries.insert(name, value);
        }
        Ok(entries)
    }
}

/// Text, or what stands for the same text in a format that has numbers and booleans.
struct Scalar(String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl Visitor<'_> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a whole number, a boolean, or null for off")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar(text.to_owned()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Scalar, E> {
        Ok(Scalar(number.to_string()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Scalar, E> {
        Ok(Scalar(number.to_string()))
    }

    fn visit_bool<E: Error>(self, on: bool) -> Result<Scalar, E> {
        Ok(Scalar(if on { "on" } else { "off" }.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Scalar, E> {
        Ok(Scalar("off".to_owned()))
    }

    fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<Scalar, E> {
        // The default would print them.
        Err(E::invalid_type(Unexpected::Other("bytes"), &self))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn from(value: serde_json::Value) -> Result<Config, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn text_numbers_booleans_and_null_are_understood() {
        let config = from(json!({
            "url": "postgres://u:secret@h/d", "max_size": 20, "checkout_timeout": "1m 30s", "idle_timeout": null,
            "max_lifetime": "off", "commit_resolution": false, "retry_on_lock_timeout": true, "session_reset": "always",
        }));
        let config = config.unwrap();
        assert_eq!(config.max_size, 20);
        assert_eq!(config.checkout_timeout, Duration::from_secs(90));
        assert_eq!((config.idle_timeout, config.max_lifetime), (None, None));
        assert_eq!(config.commit_resolution, crate::CommitResolution::Off);
        assert!(config.retry.on_lock_timeout);
        assert_eq!(config.session_reset, crate::SessionReset::Always);
    }

    #[test]
    fn what_is_wrong_is_told() {
        let url = "postgres://u:secret@h/d";
        let text = |value| from(value).unwrap_err();
        assert_eq!(text(json!({ "max_size": 1 })), "missing field `url`");
        assert_eq!(
            text(json!({ "url": url, "maxsize": 1 })),
            "setting `maxsize` is not a setting, allowed is the name of one; the closest is `max_size`"
        );
        assert_eq!(
            text(json!({ "url": url, "max_size": -1 })),
            "setting `max_size` is `-1`, allowed is a whole number"
        );
        assert_eq!(
            text(json!({ "url": url, "idle_timeout": 30 })),
            "setting `idle_timeout` is `30`, allowed is a number with a unit, as 30s, 250ms or 1h 30m, or off"
        );
        assert!(text(json!([url])).contains("expected a map with the key `url`"));
        let twice = format!(r#"{{"url": "{url}", "url": "{url}"}}"#);
        assert!(serde_json::from_str::<Config>(&twice).unwrap_err().to_string().contains("duplicate setting `url`"));
    }
}
