//! How documents are written.
//!
//! serde writes NUL as `\u0000`, which `jsonb` cannot hold: the server would refuse the statement and abort the transaction.
//! It is found while the document is written, at no cost of its own.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter, Serializer};

use crate::error::{Error, Result};

/// Longest piece of a refused text that an error message shows.
const SHOWN: usize = 40;

/// What becomes of NUL.
#[derive(Debug, Clone, Copy)]
enum Nul {
    Refused,
    Replaced,
}

impl Formatter for Nul {
    fn write_char_escape<W: ?Sized + Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        match (self, escape) {
            (Self::Refused, CharEscape::AsciiControl(0)) => Err(io::ErrorKind::InvalidData.into()),
            (Self::Replaced, CharEscape::AsciiControl(0)) => writer.write_all("\u{FFFD}".as_bytes()),
            (_, escape) => CompactFormatter.write_char_escape(writer, escape),
        }
    }
}

/// Writes a document, or refuses it by its name.
pub(crate) fn write_json<T: Serialize + ?Sized>(field: &'static str, out: impl Write, value: &T) -> Result<()> {
    value.serialize(&mut Serializer::with_formatter(out, Nul::Refused)).map_err(|error| {
        // Memory takes everything, so it was us.
        if error.is_io() { holds_nul(field, value) } else { unwritable(error) }
    })
}

/// Writes what must be recorded whatever it says: NUL becomes U+FFFD.
pub(crate) fn write_json_lossy(out: impl Write, value: &impl Serialize) -> Result<()> {
    value.serialize(&mut Serializer::with_formatter(out, Nul::Replaced)).map_err(unwritable)
}

/// A document for a column, checked before anything is sent.
pub(crate) fn document<T: Serialize + ?Sized>(field: &'static str, value: &T) -> Result<()> {
    write_json(field, io::sink(), value)
}

fn unwritable(error: serde_json::Error) -> Error {
    Error::Query(diesel::result::Error::SerializationError(error.into()))
}

fn holds_nul<T: Serialize + ?Sized>(field: &'static str, value: &T) -> Error {
    let value = serde_json::to_value(value).unwrap_or_default();
    let (path, text) = find_nul(&value).unwrap_or_default();
    let at = if path.is_empty() { String::new() } else { format!(" at `{}`", path.join(".")) };
    let value = format!("{:?}{at}", text.chars().take(SHOWN).collect::<String>());
    Error::Invalid { field, value, allowed: "text without NUL".into() }
}

/// The way to the first text with NUL, and that text. One in a key is of the object that has the key.
fn find_nul(value: &Value) -> Option<(Vec<String>, &str)> {
    let under = |step: &str, part| {
        let (mut path, text) = find_nul(part)?;
        path.insert(0, step.to_owned());
        Some((path, text))
    };
    let of = |text: &'_ str| text.contains('\0');
    match value {
        Value::String(text) if of(text) => Some((Vec::new(), text)),
        Value::Array(parts) => parts.iter().enumerate().find_map(|(n, part)| under(&n.to_string(), part)),
        Value::Object(map) => {
            map.iter().find_map(|(key, part)| if of(key) { Some((Vec::new(), key.as_str())) } else { under(key, part) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nul_is_found_wherever_it_is_and_what_only_looks_like_it_is_not() {
        let refused = |value: Value| document("f", &value).unwrap_err().to_string();
        let told = |text: &str| format!("`f` is {text}, allowed is text without NUL");
        assert_eq!(refused(json!("a\0b")), told(r#""a\0b""#));
        assert_eq!(refused(json!({"x": [1, {"y": "\0"}]})), told(r#""\0" at `x.1.y`"#));
        assert_eq!(refused(json!({"x": {"k\0": 1}})), told(r#""k\0" at `x`"#));
        document("f", &json!({"x": "\\u0000", "y": "\u{1}\u{FFFD}\"\\"})).unwrap();
    }

    #[test]
    fn what_must_be_recorded_is_written_with_a_mark_in_place_of_nul() {
        let mut out = Vec::new();
        write_json_lossy(&mut out, &json!({"message": "a\0b\n"})).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), json!({"message": "a\u{FFFD}b\n"}));
    }
}
