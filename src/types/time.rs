//! Times in JSON columns, as Python's `isoformat` writes them and `fromisoformat` reads them; for `#[serde(with = ..)]`.

use chrono::{DateTime, NaiveDateTime, SecondsFormat, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// With microseconds and an offset in digits: Python before 3.11 reads neither nanoseconds nor `Z`.
#[expect(clippy::ref_option, reason = "serde's signature")]
pub(crate) fn serialize<S: Serializer>(time: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.to_rfc3339_opts(SecondsFormat::Micros, false)).serialize(serializer)
}

/// With an offset, or without one and then in UTC.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let parsed = DateTime::parse_from_rfc3339(&text)
        .map(|time| time.to_utc())
        .or_else(|_| NaiveDateTime::parse_from_str(&text, "%Y-%m-%dT%H:%M:%S%.f").map(|time| time.and_utc()))
        .or_else(|_| NaiveDateTime::parse_from_str(&text, "%Y-%m-%d %H:%M:%S%.f").map(|time| time.and_utc()));
    parsed.map(Some).map_err(|_| serde::de::Error::custom(format!("{text:?} is no time")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Serialize, Deserialize)]
    struct Log(#[serde(with = "super")] Option<DateTime<Utc>>);

    #[test]
    fn a_time_of_either_side_is_read() {
        for text in [
            "2024-05-01T12:00:00.5",
            "2024-05-01T12:00:00.500000+00:00",
            "2024-05-01T12:00:00.500000000Z",
            "2024-05-01 12:00:00.5",
            "2024-05-01T14:00:00.5+02:00",
        ] {
            let Log(time) = serde_json::from_value(json!(text)).unwrap();
            assert_eq!(time.unwrap().timestamp_millis(), 1_714_564_800_500, "{text}");
        }
        assert!(serde_json::from_value::<Log>(json!("yesterday")).is_err());
    }

    #[test]
    fn a_time_is_written_as_any_python_reads_it() {
        let time = DateTime::from_timestamp_nanos(1_714_564_800_500_000_700);
        assert_eq!(serde_json::to_value(Log(Some(time))).unwrap(), json!("2024-05-01T12:00:00.500000+00:00"));
    }
}
