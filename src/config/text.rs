//! Values written as text: reading them, and showing them again without showing a secret.

use std::borrow::Cow;
use std::time::Duration;

use crate::Error;

/// What a value may be, for the error when it is something else.
pub(super) type Allowed = Cow<'static, str>;

pub(super) fn invalid(
    setting: impl Into<Cow<'static, str>>,
    value: impl Into<String>,
    allowed: impl Into<Allowed>,
) -> Error {
    Error::Config { setting: setting.into(), value: value.into(), allowed: allowed.into() }
}

/// `value`, if it can be nothing but a slip: a number, with a unit or without, or a word for on and off. Anything else may be
/// a secret that was put in the wrong place, however short and plain it is.
pub(super) fn shown(value: &str) -> String {
    const WORDS: [&str; 16] =
        ["", "on", "off", "true", "false", "yes", "no", "none", "never", "ms", "s", "sec", "m", "min", "h", "d"];
    let bare = value.trim().trim_start_matches('-');
    let word = bare.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let slip = bare.len() - word.len() <= 9 && WORDS.contains(&word.trim_start());
    if slip { format!("`{value}`") } else { "`***`".into() }
}

pub(super) fn number<T: std::str::FromStr>(text: &str) -> Result<T, Allowed> {
    text.trim().parse().map_err(|_| "a whole number".into())
}

pub(super) fn duration(text: &str) -> Result<Duration, Allowed> {
    humantime::parse_duration(text.trim()).map_err(|_| "a number with a unit, as 30s, 250ms or 1h 30m".into())
}

/// `off` or what `read` reads.
pub(super) fn or_off<T>(text: &str, read: fn(&str) -> Result<T, Allowed>) -> Result<Option<T>, Allowed> {
    if text.trim() == "off" {
        return Ok(None);
    }
    read(text).map(Some).map_err(|allowed| format!("{allowed}, or off").into())
}

/// The value of the first of `names` that `text` is.
pub(super) fn one_of<T: Copy>(text: &str, names: &[(&'static str, T)]) -> Result<T, Allowed> {
    let found = names.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = names.iter().map(|(name, _)| *name).collect();
        format!("one of {}", names.join(", ")).into()
    })
}

pub(super) fn switch(text: &str) -> Result<bool, Allowed> {
    one_of(text, &[("on", true), ("off", false)])
}

/// The one of `known` that takes the fewest edits to become `name`.
pub(super) fn closest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.min_by_key(|candidate| edits(name, candidate))
}

/// Levenshtein's distance, in bytes: the names are ASCII.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("abc", "abc"), 0);
    }

    #[test]
    fn a_value_that_may_be_a_secret_is_not_shown() {
        for slip in ["30", "-1", "2.5", "10 sec", "30s", "true", "off"] {
            assert_eq!(shown(slip), format!("`{slip}`"));
        }
        for secret in ["postgres://u:hunter2@h/d", "hunter2", "swordfish", "9lives", "1234567890"] {
            assert_eq!(shown(secret), "`***`");
        }
    }
}
