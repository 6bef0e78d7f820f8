//! The queries in diesel's language, for every peer that speaks it.

use diesel::dsl::auto_type;
use diesel::prelude::*;

use crate::peer::Batch;

diesel::table! { items (id) { id -> BigInt, name -> Text, size -> BigInt } }
diesel::table! { entries (id) { id -> BigInt, name -> Text, size -> BigInt, seen -> Integer } }

#[derive(Insertable)]
#[diesel(table_name = entries)]
pub struct NewEntry<'a> {
    name: &'a str,
    size: i64,
}

pub fn new_entries(rows: &Batch) -> Vec<NewEntry<'_>> {
    rows.names.iter().zip(&rows.sizes).map(|(name, size)| NewEntry { name, size: *size }).collect()
}

#[auto_type]
pub fn item(id: i64) -> _ {
    items::table.find(id).select((items::id, items::name, items::size))
}

#[auto_type]
pub fn page(after: i64) -> _ {
    let columns = (items::id, items::name, items::size);
    items::table.filter(items::id.gt(after)).order(items::id).limit(20_i64).select(columns)
}

/// As a row with optional fields is written: without a size it has the table's default.
#[derive(Insertable)]
#[diesel(table_name = entries)]
pub struct Draft<'a> {
    name: &'a str,
    size: Option<i64>,
}

pub fn draft(name: &str) -> Draft<'_> {
    Draft { name, size: None }
}

#[auto_type]
pub fn insert<'a>(draft: Draft<'a>) -> _ {
    diesel::dsl::insert_into(entries::table).values(draft).returning(entries::id)
}

#[auto_type]
pub fn touch(id: i64) -> _ {
    let seen: diesel::dsl::Eq<entries::seen, diesel::helper_types::Add<entries::seen, i32>> =
        entries::seen.eq(entries::seen + 1);
    diesel::dsl::update(entries::table.find(id)).set(seen)
}
