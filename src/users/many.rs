//! Storing users by the thousand.

use std::collections::HashSet;

use diesel::dsl::{exists, not};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde_json::Value;

use super::NewUser;
use crate::bulk::{Json, With, check_each, chunk, first_taken, incoming, length, name_row};
use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::schema::users;
use crate::types::{Document, UserId};

diesel::table! {
    new_users (id) {
        id -> Uuid,
        clerk_user_id -> Text,
        username -> Nullable<Text>,
        first_name -> Nullable<Text>,
        last_name -> Nullable<Text>,
        image_url -> Nullable<Text>,
        email_addresses -> Jsonb,
        phone_numbers -> Jsonb,
        primary_email -> Nullable<Text>,
        primary_phone -> Nullable<Text>,
        email_verified -> Bool,
        phone_verified -> Bool,
        two_factor_enabled -> Bool,
    }
}

diesel::allow_tables_to_appear_in_same_query!(new_users, users);

incoming! {
    struct Rows<'a> for new_users {
        id: UserId,
        clerk_user_id: &'a str,
        username: Option<&'a str>,
        first_name: Option<&'a str>,
        last_name: Option<&'a str>,
        image_url: Option<&'a str>,
        email_addresses: Json,
        phone_numbers: Json,
        primary_email: Option<&'a str>,
        primary_phone: Option<&'a str>,
        email_verified: bool,
        phone_verified: bool,
        two_factor_enabled: bool,
    }
}

impl<'a> Rows<'a> {
    fn push(&mut self, user: &'a NewUser) -> Result<usize> {
        let NewUser {
            clerk_user_id,
            username,
            first_name,
            last_name,
            image_url,
            email_addresses,
            phone_numbers,
            primary_email,
            primary_phone,
            email_verified,
            phone_verified,
            two_factor_enabled,
        } = user;
        // What is not known is what the table would put in.
        let list = |list: &Option<Document<Vec<Value>>>| match list {
            Some(list) => Json::of(list),
            None => Json::of(&[(); 0]),
        };
        let (emails, phones) = (list(email_addresses)?, list(phone_numbers)?);
        let texts = [username, first_name, last_name, image_url, primary_email, primary_phone].map(Option::as_deref);
        let bytes = 75 + clerk_user_id.len() + length(texts) + emails.len() + phones.len();
        self.id.push(UserId::random());
        self.clerk_user_id.push(clerk_user_id);
        self.username.push(texts[0]);
        self.first_name.push(texts[1]);
        self.last_name.push(texts[2]);
        self.image_url.push(texts[3]);
        self.email_addresses.push(emails);
        self.phone_numbers.push(phones);
        self.primary_email.push(texts[4]);
        self.primary_phone.push(texts[5]);
        self.email_verified.push(email_verified.unwrap_or(false));
        self.phone_verified.push(phone_verified.unwrap_or(false));
        self.two_factor_enabled.push(two_factor_enabled.unwrap_or(false));
        Ok(bytes)
    }
}

/// Stores new users and returns their ids in the order given.
///
/// Each 4 MiB of them, some 10,000, take one round trip: run it in a transaction. By the unique index on the Clerk id.
///
/// # Errors
///
/// [`Error::Row`] names the first user that does not fit or comes twice, before anything is sent, or whose Clerk id is
/// taken, by a deleted one too. Its chunk is not stored then, and nothing is if the transaction ends with that error.
pub async fn create_many(conn: &mut impl Executor, new: &[NewUser]) -> Result<Vec<UserId>> {
    check_each(new, NewUser::check)?;
    let clerk_id = |user: &'_ NewUser| user.clerk_user_id.clone();
    if let Some(index) = first_taken(new.iter().map(clerk_id), &HashSet::new()) {
        return Err(taken(&new[index].clerk_user_id).of_row(index));
    }
    let (mut ids, mut rest) = (Vec::with_capacity(new.len()), new);
    while !rest.is_empty() {
        let rows = chunk(&mut rest, Rows::push)?;
        insert(conn, &rows, ids.len()).await?;
        ids.extend(rows.id);
    }
    Ok(ids)
}

async fn insert(conn: &mut impl Executor, rows: &Rows<'_>, first: usize) -> Result<()> {
    let before = || users::table.filter(users::clerk_user_id.eq_any(&rows.clerk_user_id));
    let query =
        diesel::insert_into(users::table).values(new_users::table.filter(not(exists(before())))).into_columns((
            users::id,
            users::clerk_user_id,
            users::username,
            users::first_name,
            users::last_name,
            users::image_url,
            users::email_addresses,
            users::phone_numbers,
            users::primary_email,
            users::primary_phone,
            users::email_verified,
            users::phone_verified,
            users::two_factor_enabled,
        ));
    let stored = With { rows, query }.execute(conn).await;
    if stored.map_err(|error| name_row(error, first, rows.clerk_user_id.iter()))? == rows.id.len() {
        return Ok(());
    }
    let before: HashSet<String> = before().select(users::clerk_user_id).load(conn).await?.into_iter().collect();
    let index = rows.clerk_user_id.iter().position(|id| before.contains(*id)).unwrap_or(0);
    Err(taken(rows.clerk_user_id[index]).of_row(first + index))
}

fn taken(clerk_user_id: &str) -> Error {
    let allowed = "a Clerk id that no user has".into();
    Error::Invalid { field: "user.clerk_user_id", value: format!("{clerk_user_id:?}"), allowed }
}
