//! Pages by key: a page costs the same however deep it lies, and a row that is added or removed meanwhile moves none of the
//! others.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::error::{Error, Result};

/// How many rows a page holds: 1 to 100, 20 by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSize(u8);

impl PageSize {
    /// The most that one page may hold.
    pub const MAX: i64 = 100;

    /// # Errors
    ///
    /// [`Error::Invalid`] naming `page_size` and its limits.
    pub fn new(rows: i64) -> Result<Self> {
        match u8::try_from(rows) {
            Ok(size @ 1..=100) => Ok(Self(size)),
            _ => Err(Error::Invalid { field: "page_size", value: rows.to_string(), allowed: "1 to 100".into() }),
        }
    }

    /// The number of rows.
    pub fn get(self) -> i64 {
        self.0.into()
    }
}

impl Default for PageSize {
    fn default() -> Self {
        Self(20)
    }
}

/// Which list a cursor goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum List {
    Users = b'u',
    Jobs = b'j',
    Files = b'f',
}

/// Where a page ended. Opaque: hand it back to the list that it came from.
///
/// It holds a time and an id, no right: every query still names the owner, so a forged one shows nothing of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    list: List,
    at: DateTime<Utc>,
    id: Uuid,
}

impl Cursor {
    pub(crate) fn new(list: List, at: DateTime<Utc>, id: Uuid) -> Self {
        Self { list, at, id }
    }

    /// The key to read below of; without a cursor the one above all rows, so that every page is the same statement.
    pub(crate) fn key(cursor: Option<Self>, list: List) -> Result<(DateTime<Utc>, Uuid)> {
        match cursor {
            None => Ok((LAST, Uuid::max())),
            Some(cursor) if cursor.list == list => Ok((cursor.at, cursor.id)),
            Some(cursor) => Err(invalid(&cursor.to_string())),
        }
    }

    fn encoded(&self) -> [u8; 29] {
        let mut bytes = [0; 29];
        bytes[0] = self.list as u8;
        bytes[1..9].copy_from_slice(&self.at.timestamp_micros().to_be_bytes());
        bytes[9..25].copy_from_slice(self.id.as_bytes());
        let check = checksum(&bytes[..25]);
        bytes[25..].copy_from_slice(&check.to_be_bytes());
        bytes
    }

    fn decoded(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; 29] = bytes.try_into().ok()?;
        let (body, check) = bytes.split_at(25);
        if checksum(body).to_be_bytes() != check {
            return None;
        }
        let list = [List::Users, List::Jobs, List::Files].into_iter().find(|list| *list as u8 == body[0])?;
        let at = DateTime::from_timestamp_micros(i64::from_be_bytes(body[1..9].try_into().ok()?))?;
        let id = Uuid::from_slice(&body[9..]).ok()?;
        (FIRST..=LAST).contains(&at).then_some(Self { list, at, id })
    }
}

/// Times that PostgreSQL and chrono both can say.
const FIRST: DateTime<Utc> = DateTime::from_timestamp_secs(-62_135_596_800).expect("year 1");
const LAST: DateTime<Utc> = DateTime::from_timestamp_secs(253_402_300_799).expect("end of year 9999");

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.encoded()))
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // The length first: what came from outside is not decoded at any size.
        let bytes = (text.len() == 39).then(|| URL_SAFE_NO_PAD.decode(text).ok()).flatten();
        bytes.and_then(|bytes| Self::decoded(&bytes)).ok_or_else(|| invalid(text))
    }
}

impl serde::Serialize for Cursor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Cursor {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn invalid(text: &str) -> Error {
    let value = format!("{:?}", text.chars().take(48).collect::<String>());
    Error::Invalid { field: "cursor", value, allowed: "a cursor that an earlier page of this list returned".into() }
}

/// FNV-1a: finds a slip of the pen, and is not meant to find more.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Some rows of a list, and where the next begin.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Page<T> {
    /// The rows, in the list's order.
    pub items: Vec<T>,
    /// What to ask the next page with; `None` at the end of the list.
    pub next: Option<Cursor>,
}

/// Cuts `size + 1` rows, asked for to see whether more follow, to a page.
pub(crate) fn page_of<T>(mut items: Vec<T>, size: PageSize, cursor: impl Fn(&T) -> Cursor) -> Page<T> {
    let size = usize::from(size.0);
    let next = (items.len() > size).then(|| cursor(&items[size - 1]));
    items.truncate(size);
    Page { items, next }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_the_journey_and_no_other_text_is_one() {
        let cursor =
            Cursor::new(List::Files, DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap(), Uuid::new_v4());
        let text = cursor.to_string();
        assert_eq!(text.parse::<Cursor>().unwrap(), cursor);
        for position in 0..text.len() {
            let mut forged = text.clone().into_bytes();
            forged[position] = if forged[position] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            let error = forged.parse::<Cursor>().unwrap_err().to_string();
            assert!(error.contains("cursor"), "{error}");
        }
        for bad in ["", "x", &"A".repeat(39), &"A".repeat(1_000_000), "é".repeat(20).as_str()] {
            assert!(bad.parse::<Cursor>().is_err());
        }
    }

    #[test]
    fn a_cursor_is_for_its_own_list() {
        let cursor = Cursor::new(List::Jobs, Utc::now(), Uuid::new_v4());
        assert!(Cursor::key(Some(cursor), List::Jobs).is_ok());
        assert!(Cursor::key(Some(cursor), List::Files).is_err());
    }

    #[test]
    fn a_page_size_is_1_to_100() {
        for bad in [-1, 0, 101, 256, i64::MAX, i64::MIN] {
            let error = PageSize::new(bad).unwrap_err().to_string();
            assert!(error.contains("page_size") && error.contains("1 to 100"), "{error}");
        }
        assert_eq!(PageSize::new(100).unwrap().get(), 100);
    }
}
