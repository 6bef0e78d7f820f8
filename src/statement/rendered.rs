//! Text and binds of one query, and the fragment that replays them.

use std::marker::PhantomData;
use std::sync::Arc;

use diesel::QueryResult;
use diesel::pg::{Pg, PgMetadataLookup, PgQueryBuilder, PgTypeMetadata};
use diesel::query_builder::bind_collector::RawBytesBindCollector;
use diesel::query_builder::{AstPass, Query, QueryBuilder, QueryFragment, QueryId};
use diesel::sql_types::Untyped;
use diesel_async::{AsyncConnectionCore, AsyncPgConnection};
use futures_util::future::BoxFuture;

use super::kept::Key;
use super::text::{self, Kind, Text};

/// A query as the server will get it. Cheap to send twice.
#[derive(Debug)]
pub(crate) struct Rendered {
    pub(crate) text: Arc<Text>,
    pub(crate) key: Key,
    binds: Vec<Option<Vec<u8>>>,
    metadata: Vec<PgTypeMetadata>,
    load: Send<RowStream>,
    execute: Send<usize>,
}

/// The rows of a statement, as the inner connection hands them on.
pub(crate) type RowStream = <AsyncPgConnection as AsyncConnectionCore>::Stream<'static, 'static>;

/// Has the inner connection send a query; knows how it finds the prepared statement.
type Send<R> = for<'s> fn(&'s Rendered, &'s AsyncPgConnection, bool) -> BoxFuture<'s, QueryResult<R>>;

impl Rendered {
    /// Sends it on `conn`, for its rows. `keep`: whether the statement stays prepared.
    pub(crate) fn load<'s>(&'s self, conn: &'s AsyncPgConnection, keep: bool) -> BoxFuture<'s, QueryResult<RowStream>> {
        (self.load)(self, conn, keep)
    }

    /// As [`load`](Self::load), for the number of rows.
    pub(crate) fn execute<'s>(&'s self, conn: &'s AsyncPgConnection, keep: bool) -> BoxFuture<'s, QueryResult<usize>> {
        (self.execute)(self, conn, keep)
    }
}

/// Renders `query`, or answers `None` when it needs a type looked up by name.
///
/// The text comes from memory where diesel itself promises that the type of the query fixes it: a static [`QueryId`]
/// on a query that diesel would keep prepared under that id. INSERT is left out: an array batch has a static id too.
pub(crate) fn render<Q: QueryFragment<Pg> + QueryId>(query: &Q) -> QueryResult<Option<Rendered>> {
    let mut binds = RawBytesBindCollector::<Pg>::new();
    let mut lookup = NoLookup { asked: false };
    query.collect_binds(&mut binds, &mut lookup, &Pg)?;
    if lookup.asked {
        return Ok(None);
    }
    let RawBytesBindCollector { binds, metadata, .. } = binds;
    let (by_type, text) = match Q::query_id() {
        None => (None, Arc::new(Text::new(sql(query)?))),
        Some(id) => {
            if let Some(text) = text::known(id) {
                (Some(id), text)
            } else {
                let text = Text::new(sql(query)?);
                let fixed = text.kind != Kind::Insert && query.is_safe_to_cache_prepared(&Pg)?;
                if fixed { (Some(id), text::keep(id, text)) } else { (None, Arc::new(text)) }
            }
        }
    };
    Ok(Some(if let Some(id) = by_type {
        Rendered { key: Key::of_type(id), text, binds, metadata, load: load::<Q>, execute: execute::<Q> }
    } else {
        let key = Key::of_text(&text.sql, metadata.iter().filter_map(|bind| bind.oid().ok()));
        Rendered { key, text, binds, metadata, load: load::<ByText>, execute: execute::<ByText> }
    }))
}

fn load<'s, Q: QueryId>(
    rendered: &'s Rendered,
    conn: &'s AsyncPgConnection,
    keep: bool,
) -> BoxFuture<'s, QueryResult<RowStream>> {
    AsyncConnectionCore::load(&mut &*conn, Fragment::<Q> { rendered, keep, query: PhantomData })
}

fn execute<'s, Q: QueryId>(
    rendered: &'s Rendered,
    conn: &'s AsyncPgConnection,
    keep: bool,
) -> BoxFuture<'s, QueryResult<usize>> {
    AsyncConnectionCore::execute_returning_count(&mut &*conn, Fragment::<Q> { rendered, keep, query: PhantomData })
}

fn sql(query: &impl QueryFragment<Pg>) -> QueryResult<String> {
    let mut builder = PgQueryBuilder::default();
    query.to_sql(&mut builder, &Pg)?;
    Ok(builder.finish())
}

/// Notices that a type would have to be looked up by name.
struct NoLookup {
    asked: bool,
}

impl PgMetadataLookup for NoLookup {
    fn lookup_type(&mut self, _name: &str, _schema: Option<&str>) -> PgTypeMetadata {
        self.asked = true;
        PgTypeMetadata::new(0, 0)
    }
}

/// Replays a [`Rendered`] query to the inner connection, which finds the prepared statement by the id of `Q`.
struct Fragment<'r, Q> {
    rendered: &'r Rendered,
    keep: bool,
    query: PhantomData<fn() -> Q>,
}

impl<Q> QueryFragment<Pg> for Fragment<'_, Q> {
    fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        pass.push_sql(&self.rendered.text.sql);
        Ok(())
    }

    fn to_sql(&self, out: &mut PgQueryBuilder, _: &Pg) -> QueryResult<()> {
        out.push_sql(&self.rendered.text.sql);
        Ok(())
    }

    fn collect_binds<'b>(
        &'b self,
        out: &mut RawBytesBindCollector<Pg>,
        _: &mut (dyn PgMetadataLookup + 'static),
        _: &'b Pg,
    ) -> QueryResult<()> {
        out.binds.extend(self.rendered.binds.iter().cloned());
        out.metadata.extend(self.rendered.metadata.iter().cloned());
        Ok(())
    }

    fn is_safe_to_cache_prepared(&self, _: &Pg) -> QueryResult<bool> {
        Ok(self.keep)
    }

    fn is_noop(&self, _: &Pg) -> QueryResult<bool> {
        Ok(false)
    }
}

impl<Q: QueryId> QueryId for Fragment<'_, Q> {
    type QueryId = Q::QueryId;
    const HAS_STATIC_QUERY_ID: bool = Q::HAS_STATIC_QUERY_ID;
}

impl<Q> Query for Fragment<'_, Q> {
    type SqlType = Untyped;
}

/// Has no id of its own: its statement is found by its text and the types of its binds.
struct ByText;

impl QueryId for ByText {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}
