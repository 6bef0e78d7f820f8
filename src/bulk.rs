//! Many rows in one statement: `WITH rows (..) AS (SELECT * FROM unnest($1::uuid[], $2::text[], ..))` before a typed query.
//!
//! diesel's batch has a text for each number of rows, so none stays prepared, and takes 65,535 values at most. Here each
//! column travels as one array: one text however many rows. [`incoming!`] ties the arrays to the columns of a `table!` that
//! exists for the length of the statement, so the query behind it is diesel's own, checked by type as any other.
//!
//! **Architecture invariant**: nothing here knows a table of the database, and no chunk is larger than [`CHUNK`] and one row.

use std::collections::HashSet;
use std::hash::Hash;
use std::io::Write;

use diesel::QueryResult;
use diesel::expression::AsExpression;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types::{BigInt, Bool, Integer, Jsonb, Nullable, SqlType, Text, Uuid};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::types::{write_json, write_json_lossy};

/// Bytes of values in one statement: some thousand rows. More are no faster, and client and server hold a few copies.
pub(crate) const CHUNK: usize = 4 << 20;

/// A query behind the rows that it reads.
#[derive(Debug)]
pub(crate) struct With<R, Q> {
    pub(crate) rows: R,
    pub(crate) query: Q,
}

impl<R: QueryFragment<Pg>, Q: QueryFragment<Pg>> QueryFragment<Pg> for With<R, Q> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("WITH ");
        self.rows.walk_ast(out.reborrow())?;
        out.push_sql(" ");
        self.query.walk_ast(out.reborrow())
    }

    /// The text is the same for any number of rows.
    fn is_safe_to_cache_prepared(&self, _: &Pg) -> QueryResult<bool> {
        Ok(true)
    }
}

impl<R, Q> QueryId for With<R, Q> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<R, Q: Query> Query for With<R, Q> {
    type SqlType = Q::SqlType;
}

/// Another query that the one behind it reads by name, under the names of its columns.
#[derive(Debug)]
pub(crate) struct Named<Q>(pub(crate) &'static str, pub(crate) Q);

impl<Q: QueryFragment<Pg>> QueryFragment<Pg> for Named<Q> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_identifier(self.0)?;
        out.push_sql(" AS (");
        self.1.walk_ast(out.reborrow())?;
        out.push_sql(")");
        Ok(())
    }
}

/// What PostgreSQL calls a type.
pub(crate) trait TypeName {
    const NAME: &'static str;
}

macro_rules! type_names {
    ($($type:ty = $name:literal,)+) => { $(impl TypeName for $type { const NAME: &'static str = $name; })+ };
}

type_names! { BigInt = "bigint", Bool = "boolean", Integer = "integer", Jsonb = "jsonb", Text = "text", Uuid = "uuid", }

impl<T: TypeName + SqlType> TypeName for Nullable<T> {
    const NAME: &'static str = T::NAME;
}

/// Arrays for the columns of a table that exists for one statement: `struct Rows<'a> for table { column: value, .. }`.
macro_rules! incoming {
    ($(#[$doc:meta])* struct $rows:ident<$life:lifetime> for $table:ident { $($column:ident: $value:ty,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        struct $rows<$life> { $($column: Vec<$value>,)+ }

        impl $rows<'_> {
            fn columns() -> &'static [(&'static str, &'static str)] {
                use $crate::bulk::TypeName;
                &[$((stringify!($column), <diesel::dsl::SqlTypeOf<$table::$column> as TypeName>::NAME),)+]
            }
        }

        impl diesel::query_builder::QueryFragment<diesel::pg::Pg> for $rows<'_> {
            fn walk_ast<'b>(
                &'b self,
                mut out: diesel::query_builder::AstPass<'_, 'b, diesel::pg::Pg>,
            ) -> diesel::QueryResult<()> {
                out.push_identifier(stringify!($table))?;
                for (n, (name, _)) in Self::columns().iter().enumerate() {
                    out.push_sql(if n == 0 { " (" } else { ", " });
                    out.push_identifier(name)?;
                }
                out.push_sql(") AS (SELECT * FROM unnest");
                let mut types = Self::columns().iter().enumerate();
                $(
                    let Some((n, (_, name))) = types.next() else { unreachable!("one for each") };
                    out.push_sql(if n == 0 { "(" } else { ", " });
                    out.push_bind_param::<diesel::sql_types::Array<diesel::dsl::SqlTypeOf<$table::$column>>, _>(
                        &self.$column,
                    )?;
                    out.push_sql("::");
                    out.push_sql(name);
                    out.push_sql("[]");
                )+
                out.push_sql("))");
                Ok(())
            }
        }
    };
}
pub(crate) use incoming;

/// A document on its way into a column: written once, so that its length is known.
#[derive(Debug, AsExpression)]
#[diesel(sql_type = Jsonb)]
pub(crate) struct Json(Vec<u8>);

impl Json {
    pub(crate) fn of(value: &impl Serialize) -> Result<Self> {
        let mut bytes = vec![1]; // jsonb's version
        write_json("document", &mut bytes, value)?;
        Ok(Self(bytes))
    }

    /// For what must be recorded whatever it says: NUL becomes U+FFFD.
    pub(crate) fn lossy(value: &impl Serialize) -> Result<Self> {
        let mut bytes = vec![1];
        write_json_lossy(&mut bytes, value)?;
        Ok(Self(bytes))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl ToSql<Jsonb, Pg> for Json {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        out.write_all(&self.0)?;
        Ok(IsNull::No)
    }
}

/// Takes rows off the front of `rest` until there are [`CHUNK`] bytes of them; `push` adds one and says how many it has.
pub(crate) fn chunk<'a, T, R: Default>(
    rest: &mut &'a [T],
    mut push: impl FnMut(&mut R, &'a T) -> Result<usize>,
) -> Result<R> {
    let (mut rows, mut bytes) = (R::default(), 0);
    while let Some((row, others)) = rest.split_first().filter(|_| bytes < CHUNK) {
        bytes += push(&mut rows, row)?;
        *rest = others;
    }
    Ok(rows)
}

/// Bytes that texts take in a chunk.
pub(crate) fn length<const N: usize>(texts: [Option<&str>; N]) -> usize {
    texts.iter().flatten().map(|text| text.len()).sum()
}

/// Checks every row before anything is sent; an error names the row.
pub(crate) fn check_each<T>(rows: &[T], check: impl Fn(&T) -> Result<()>) -> Result<()> {
    rows.iter().enumerate().try_for_each(|(index, row)| check(row).map_err(|source| source.of_row(index)))
}

/// The first row whose key an earlier one has, or that `taken` holds.
pub(crate) fn first_taken<K: Eq + Hash>(keys: impl Iterator<Item = K>, taken: &HashSet<K>) -> Option<usize> {
    let mut seen = HashSet::new();
    keys.enumerate().find_map(|(index, key)| (taken.contains(&key) || !seen.insert(key)).then_some(index))
}

/// Names the row of a unique violation that came in between: the server quotes the key. `first`: the place of the first key.
pub(crate) fn name_row<K: std::fmt::Display>(
    error: diesel::result::Error,
    first: usize,
    mut keys: impl Iterator<Item = K>,
) -> Error {
    let quoted = match &error {
        diesel::result::Error::DatabaseError(_, information) => information.details().unwrap_or_default(),
        _ => "",
    };
    match keys.position(|key| quoted.contains(&format!("=({key})"))) {
        Some(index) => Error::from(error).of_row(first + index),
        None => error.into(),
    }
}
