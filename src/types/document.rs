//! JSON columns as typed documents that keep what they do not know.
//!
//! A document that does not fit its type is not an error of the row: the row is read, its other columns are there, and
//! [`Document::get`] tells which part does not fit. So one broken row does not take a whole list with it.

use std::io::Write;

use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types::Jsonb;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::write_json;

/// Keys of a document that its type does not name. They survive a read-modify-write.
pub type Extra = Map<String, Value>;

/// A JSON column: a `T`, or what stands there instead and why it is no `T`.
///
/// JSON's `null` reads as `T::default()`: SQLAlchemy stores it for `None`.
#[derive(Debug, Clone, PartialEq, AsExpression, FromSqlRow)]
#[diesel(sql_type = Jsonb)]
pub struct Document<T>(Result<T, Box<Broken>>);

/// A document that does not fit its type.
#[derive(Debug, Clone, PartialEq)]
pub struct Broken {
    /// Where: keys and positions joined by dots, such as `scenes.3.duration_seconds`; empty for the document as a whole.
    pub path: String,
    /// What is wrong there.
    pub reason: String,
    /// The document as it is stored.
    pub raw: Value,
}

impl<T> Document<T> {
    /// A document that fits.
    pub fn new(value: T) -> Self {
        Self(Ok(value))
    }

    /// The value.
    ///
    /// # Errors
    ///
    /// [`Broken`] if what is stored does not fit `T`.
    pub fn get(&self) -> Result<&T, &Broken> {
        self.0.as_ref().map_err(|broken| &**broken)
    }

    /// The value, to keep.
    ///
    /// # Errors
    ///
    /// [`Broken`] if what is stored does not fit `T`.
    pub fn into_inner(self) -> Result<T, Broken> {
        self.0.map_err(|broken| *broken)
    }

    /// Why it does not fit, if it does not.
    pub fn broken(&self) -> Option<&Broken> {
        self.get().err()
    }
}

impl<T: DeserializeOwned + Default> Document<T> {
    /// Reads a JSON value, fitting or not.
    pub fn from_value(raw: Value) -> Self {
        Self(fit(&raw).map_err(|error| {
            let path = locate(&raw, &|part| fit::<T>(&part).is_err()).join(".");
            Box::new(Broken { path, reason: error.to_string(), raw })
        }))
    }
}

impl<T: Default> Default for Document<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> From<T> for Document<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

fn fit<T: DeserializeOwned + Default>(raw: &Value) -> serde_json::Result<T> {
    if raw.is_null() { Ok(T::default()) } else { T::deserialize(raw) }
}

/// Walks down to the smallest part that does not fit even with everything beside it taken away.
///
/// serde tells what is wrong but not where. Every key of our documents is optional, so a part can be tried alone.
fn locate(raw: &Value, breaks: &dyn Fn(Value) -> bool) -> Vec<String> {
    let culprit = match raw {
        // Not even an empty one fits here: none of its parts is to blame.
        Value::Object(_) if breaks(Value::Object(Map::new())) => None,
        Value::Array(_) if breaks(Value::Array(Vec::new())) => None,
        Value::Object(map) => map.iter().find_map(|(key, part)| {
            let alone = |part| Value::Object(Map::from_iter([(key.clone(), part)]));
            let inner = |part| breaks(alone(part));
            inner(part.clone()).then(|| (key.clone(), locate(part, &inner)))
        }),
        Value::Array(parts) => parts.iter().enumerate().find_map(|(position, part)| {
            let inner = |part| breaks(Value::Array(vec![part]));
            inner(part.clone()).then(|| (position.to_string(), locate(part, &inner)))
        }),
        _ => None,
    };
    match culprit {
        Some((step, rest)) => [step].into_iter().chain(rest).collect(),
        None => Vec::new(),
    }
}

impl<T: Serialize> Serialize for Document<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Ok(value) => value.serialize(serializer),
            Err(broken) => broken.raw.serialize(serializer),
        }
    }
}

impl<'de, T: DeserializeOwned + Default> Deserialize<'de> for Document<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::from_value)
    }
}

impl<T: Serialize + std::fmt::Debug> ToSql<Jsonb, Pg> for Document<T> {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        out.write_all(&[1])?; // jsonb's version
        write_json("document", out, self)?;
        Ok(IsNull::No)
    }
}

impl<T: DeserializeOwned + Default> FromSql<Jsonb, Pg> for Document<T> {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        let [1, text @ ..] = value.as_bytes() else {
            return Err("this is not version 1 of jsonb".into());
        };
        // Straight into the type; only what does not fit is read a second time, to say where.
        match serde_json::from_slice(text) {
            Ok(value) => Ok(Self::new(value)),
            Err(_) => Ok(Self::from_value(serde_json::from_slice(text)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default)]
    struct Film {
        title: Option<String>,
        scenes: Vec<Scene>,
        #[serde(flatten)]
        extra: Extra,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default)]
    struct Scene {
        seconds: Option<f64>,
        width: Option<i32>,
    }

    #[test]
    fn the_path_leads_to_the_part_that_does_not_fit() {
        let path = |raw| Document::<Film>::from_value(raw).broken().map(|broken| broken.path.clone());
        assert_eq!(path(json!({"title": "a", "x": 1})), None);
        assert_eq!(path(json!({"title": 7})), Some("title".into()));
        assert_eq!(
            path(json!({"scenes": [{"seconds": 1.5}, {"width": "wide", "seconds": 2}]})),
            Some("scenes.1.width".into())
        );
        assert_eq!(path(json!({"scenes": {"0": {}}})), Some("scenes".into()));
        assert_eq!(path(json!([1])), Some(String::new()));
        assert_eq!(path(json!("text")), Some(String::new()));
    }

    #[test]
    fn unknown_keys_and_broken_documents_are_written_back_unchanged() {
        for raw in [json!({"scenes": [], "title": null, "x": {"y": [1]}}), json!({"title": 7})] {
            assert_eq!(serde_json::to_value(Document::<Film>::from_value(raw.clone())).unwrap(), raw);
        }
    }

    #[test]
    fn null_is_an_empty_document() {
        assert_eq!(Document::<Film>::from_value(Value::Null).into_inner(), Ok(Film::default()));
    }
}
