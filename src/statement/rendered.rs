//! Text and binds of one query, and the fragment that replays them.

use std::sync::Arc;

use diesel::QueryResult;
use diesel::pg::{Pg, PgMetadataLookup, PgQueryBuilder, PgTypeMetadata};
use diesel::query_builder::bind_collector::RawBytesBindCollector;
use diesel::query_builder::{AstPass, Query, QueryBuilder, QueryFragment, QueryId};
use diesel::sql_types::Untyped;

use super::text::{self, Kind, Text};

/// A query as the server will get it. Cheap to send twice.
#[derive(Debug)]
pub(crate) struct Rendered {
    pub(crate) text: Arc<Text>,
    binds: Vec<Option<Vec<u8>>>,
    metadata: Vec<PgTypeMetadata>,
}

impl Rendered {
    /// What the inner connection executes. `keep`: whether the statement stays prepared.
    pub(crate) fn fragment(&self, keep: bool) -> Fragment<'_> {
        Fragment { rendered: self, keep }
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
    let text = match Q::query_id() {
        None => Arc::new(Text::new(sql(query)?)),
        Some(id) => {
            if let Some(text) = text::known(id) {
                text
            } else {
                let text = Text::new(sql(query)?);
                let fixed = text.kind != Kind::Insert && query.is_safe_to_cache_prepared(&Pg)?;
                if fixed { text::keep(id, text) } else { Arc::new(text) }
            }
        }
    };
    let RawBytesBindCollector { binds, metadata, .. } = binds;
    Ok(Some(Rendered { text, binds, metadata }))
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

/// Replays a [`Rendered`] query to the inner connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment<'r> {
    rendered: &'r Rendered,
    keep: bool,
}

impl QueryFragment<Pg> for Fragment<'_> {
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

impl QueryId for Fragment<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Fragment<'_> {
    type SqlType = Untyped;
}
