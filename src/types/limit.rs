//! What a column may hold, checked before anything is sent, so that the error can name the field and the limit.

use std::time::Duration;

use bigdecimal::{BigDecimal, FromPrimitive, ToPrimitive};
use serde::Serializer;

use crate::error::{Error, Result};

/// Longest piece of a refused value that an error message shows.
const SHOWN: usize = 40;

/// A text for a column of `max` characters. NUL is refused as well: PostgreSQL cannot store it.
pub(crate) fn text(field: &'static str, value: &str, max: usize) -> Result<()> {
    // Bytes are never fewer than characters: a short text needs no counting.
    if value.len() > max {
        let length = value.chars().count();
        if length > max {
            let value = format!("{:?}... of {length} characters", value.chars().take(SHOWN).collect::<String>());
            return Err(Error::Invalid { field, value, allowed: format!("at most {max} characters").into() });
        }
    }
    if value.contains('\0') {
        let value = format!("{:?}", value.chars().take(SHOWN).collect::<String>());
        return Err(Error::Invalid { field, value, allowed: "text without NUL".into() });
    }
    Ok(())
}

/// [`text`] for a column that may be NULL.
pub(crate) fn text_opt(field: &'static str, value: Option<&str>, max: usize) -> Result<()> {
    value.map_or(Ok(()), |value| text(field, value, max))
}

/// A size in bytes: zero or more.
pub(crate) fn bytes(field: &'static str, value: i64) -> Result<()> {
    if value < 0 {
        return Err(Error::Invalid { field, value: value.to_string(), allowed: "0 or more".into() });
    }
    Ok(())
}

/// A measure: finite, zero or more.
pub(crate) fn finite(field: &'static str, value: Option<f64>) -> Result<()> {
    match value {
        Some(value) if !value.is_finite() || value < 0.0 => {
            Err(Error::Invalid { field, value: value.to_string(), allowed: "a finite number, 0 or more".into() })
        }
        _ => Ok(()),
    }
}

/// A wait or an age, as seconds: with more than a century a time could leave what the server holds.
pub(crate) fn seconds(field: &'static str, value: Duration) -> Result<f64> {
    const CENTURY: Duration = Duration::from_secs(36_525 * 86_400);
    if value <= CENTURY {
        return Ok(value.as_secs_f64());
    }
    let value = format!("{} s", value.as_secs());
    Err(Error::Invalid { field, value, allowed: "at most 36525 days".into() })
}

/// A share of the whole, 0 to 100, kept to two digits after the point.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percentage(BigDecimal);

impl Percentage {
    /// # Errors
    ///
    /// [`Error::Invalid`] unless `0 <= percent <= 100`.
    pub fn new(percent: f64) -> Result<Self> {
        match BigDecimal::from_f64(percent) {
            Some(decimal) if (0.0..=100.0).contains(&percent) => Ok(Self(decimal.round(2))),
            _ => Err(Error::Invalid {
                field: "job.progress_percentage",
                value: percent.to_string(),
                allowed: "0 to 100".into(),
            }),
        }
    }

    /// The value for `decimal(5,2)`.
    pub fn as_decimal(&self) -> &BigDecimal {
        &self.0
    }
}

/// How long a job took, kept to hundredths of a second; fits `decimal(10,2)`, about three years.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(BigDecimal);

impl Seconds {
    /// # Errors
    ///
    /// [`Error::Invalid`] for more than 99,999,999 seconds.
    pub fn new(duration: Duration) -> Result<Self> {
        const MAX: u64 = 99_999_999;
        match BigDecimal::from_f64(duration.as_secs_f64()) {
            Some(decimal) if duration.as_secs() < MAX => Ok(Self(decimal.round(2))),
            _ => Err(Error::Invalid {
                field: "job.processing_time_seconds",
                value: duration.as_secs().to_string(),
                allowed: "less than 99999999 seconds".into(),
            }),
        }
    }

    /// The value for `decimal(10,2)`.
    pub fn as_decimal(&self) -> &BigDecimal {
        &self.0
    }
}

/// `decimal(10,2)` as a JSON number, as the seconds in JSON columns are; it comes out with the digits that it has.
pub(crate) fn number<'d, S: Serializer>(decimal: impl Into<Option<&'d BigDecimal>>, to: S) -> Result<S::Ok, S::Error> {
    match decimal.into().and_then(BigDecimal::to_f64) {
        Some(number) => to.serialize_f64(number),
        None => to.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_in_characters_not_bytes() {
        assert!(text("f", &"é".repeat(255), 255).is_ok());
        let error = text("file.original_filename", &"é".repeat(256), 255).unwrap_err().to_string();
        assert!(error.contains("file.original_filename") && error.contains("at most 255 characters"), "{error}");
        assert!(text("f", "a\0b", 255).is_err());
    }

    #[test]
    fn numbers_outside_of_their_range_are_refused() {
        assert!(bytes("f", -1).is_err());
        assert!(bytes("f", 0).is_ok());
        for bad in [-0.5, f64::NAN, f64::INFINITY] {
            assert!(finite("f", Some(bad)).is_err());
        }
        for bad in [-0.01, 100.01, f64::NAN] {
            assert!(Percentage::new(bad).is_err());
        }
        assert_eq!(Percentage::new(33.333).unwrap().as_decimal().to_string(), "33.33");
        assert!(Seconds::new(Duration::from_secs(100_000_000)).is_err());
        assert!(seconds("f", Duration::MAX).is_err());
    }
}
