//! The text of a statement and what can be told from it, computed once for each query type where the type fixes it.

use std::any::TypeId;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::{Arc, LazyLock};

use parking_lot::RwLock;

use super::Effects;
use super::kept::AsItIs;

/// What a statement does, as far as its first word tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `SELECT`: writes nothing itself, though a function that it calls may.
    Select,
    /// `INSERT`: its text may vary with the number of rows although its type does not.
    Insert,
    /// Anything else.
    Other,
}

/// A statement's text, with what follows from it.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) sql: String,
    pub(crate) kind: Kind,
    pub(crate) effects: Effects,
}

impl Text {
    pub(crate) fn new(sql: String) -> Self {
        let kind = match sql.as_bytes() {
            [b'S' | b's', b'E' | b'e', b'L' | b'l', ..] => Kind::Select,
            [b'I' | b'i', b'N' | b'n', b'S' | b's', ..] => Kind::Insert,
            _ => Kind::Other,
        };
        Self { kind, effects: Effects::of(&sql), sql }
    }
}

/// Texts by the type of their query. Bounded by the number of query types in the program.
static BY_TYPE: LazyLock<RwLock<ByType>> = LazyLock::new(RwLock::default);

type ByType = HashMap<TypeId, Arc<Text>, BuildHasherDefault<AsItIs>>;

/// The text of the query type `id`, if it was rendered before.
pub(super) fn known(id: TypeId) -> Option<Arc<Text>> {
    BY_TYPE.read().get(&id).cloned()
}

/// Keeps `text` for the query type `id`.
pub(super) fn keep(id: TypeId, text: Text) -> Arc<Text> {
    Arc::clone(BY_TYPE.write().entry(id).or_insert_with(|| Arc::new(text)))
}
