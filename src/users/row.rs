//! A user as stored, as given, and what may change.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::schema::users;
use crate::types::{Document, Extra, UserId, UserRole, UserStatus, document, text, text_opt};

/// A user who is not deleted.
#[derive(Debug, Clone, PartialEq, Serialize, Queryable, Selectable)]
#[diesel(table_name = users, check_for_backend(diesel::pg::Pg))]
#[expect(missing_docs, reason = "the columns are documented in `schema`, and there only")]
pub struct User {
    pub id: UserId,
    pub clerk_user_id: String,
    pub username: Option<String>,
    pub first_name: Option<String>,
    pub last_name: Option<String>,
    pub image_url: Option<String>,
    pub email_addresses: Document<Vec<Value>>,
    pub phone_numbers: Document<Vec<Value>>,
    pub primary_email: Option<String>,
    pub primary_phone: Option<String>,
    pub email_verified: bool,
    pub phone_verified: bool,
    pub two_factor_enabled: bool,
    pub role: UserRole,
    pub status: UserStatus,
    pub last_sign_in_at: Option<DateTime<Utc>>,
    pub last_active_at: Option<DateTime<Utc>>,
    pub user_metadata: Document<Extra>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// What Clerk tells of a user. What is `None` keeps its default, and at a later sign-in what was known before.
#[derive(Debug, Clone, Default, Insertable, AsChangeset)]
#[diesel(table_name = users)]
#[expect(missing_docs, reason = "the columns are documented in `schema`, and there only")]
pub struct NewUser {
    // In a SET it would lock the key, and so wait for every transaction that stores a job or a file of this user.
    #[diesel(skip_update)]
    pub clerk_user_id: String,
    pub username: Option<String>,
    pub first_name: Option<String>,
    pub last_name: Option<String>,
    pub image_url: Option<String>,
    pub email_addresses: Option<Document<Vec<Value>>>,
    pub phone_numbers: Option<Document<Vec<Value>>>,
    pub primary_email: Option<String>,
    pub primary_phone: Option<String>,
    pub email_verified: Option<bool>,
    pub phone_verified: Option<bool>,
    pub two_factor_enabled: Option<bool>,
}

impl NewUser {
    /// A user of whom only the Clerk id is known.
    pub fn new(clerk_user_id: impl Into<String>) -> Self {
        Self { clerk_user_id: clerk_user_id.into(), ..Self::default() }
    }

    pub(super) fn check(&self) -> Result<()> {
        let Self { clerk_user_id, username, first_name, last_name, image_url, primary_email, primary_phone, .. } = self;
        document("user.email_addresses", &self.email_addresses)?;
        document("user.phone_numbers", &self.phone_numbers)?;
        text("user.clerk_user_id", clerk_user_id, 255)?;
        if clerk_user_id.is_empty() {
            // It would be one account for everybody whose id was lost on the way.
            let field = "user.clerk_user_id";
            return Err(Error::Invalid { field, value: "empty".into(), allowed: "1 to 255 characters".into() });
        }
        check_texts(
            username.as_deref(),
            first_name.as_deref(),
            last_name.as_deref(),
            image_url.as_deref(),
            primary_email.as_deref(),
            primary_phone.as_deref(),
        )
    }
}

/// What to change of a user. `None` leaves a column as it is, `Some(None)` empties it.
#[derive(Debug, Clone, Default, AsChangeset)]
#[diesel(table_name = users)]
#[expect(missing_docs, reason = "the columns are documented in `schema`, and there only")]
pub struct UserChanges {
    pub username: Option<Option<String>>,
    pub first_name: Option<Option<String>>,
    pub last_name: Option<Option<String>>,
    pub image_url: Option<Option<String>>,
    pub email_addresses: Option<Document<Vec<Value>>>,
    pub phone_numbers: Option<Document<Vec<Value>>>,
    pub primary_email: Option<Option<String>>,
    pub primary_phone: Option<Option<String>>,
    pub email_verified: Option<bool>,
    pub phone_verified: Option<bool>,
    pub two_factor_enabled: Option<bool>,
    pub role: Option<UserRole>,
    pub status: Option<UserStatus>,
    pub last_active_at: Option<DateTime<Utc>>,
    /// Merged into what is stored, key by key: one that is not named stays, so that what Python adds meanwhile is not lost.
    #[diesel(skip_update)] // `update` merges it
    pub user_metadata: Option<Document<Extra>>,
}

impl UserChanges {
    pub(super) fn check(&self) -> Result<()> {
        let Self { username, first_name, last_name, image_url, primary_email, primary_phone, role, status, .. } = self;
        document("user.email_addresses", &self.email_addresses)?;
        document("user.phone_numbers", &self.phone_numbers)?;
        document("user.user_metadata", &self.user_metadata)?;
        if let Some(broken) = self.user_metadata.as_ref().and_then(Document::broken) {
            let value = broken.raw.to_string().chars().take(40).collect();
            return Err(Error::Invalid { field: "user.user_metadata", value, allowed: "a JSON object".into() });
        }
        text_opt("user.role", role.as_ref().map(UserRole::as_str), 50)?;
        text_opt("user.status", status.as_ref().map(UserStatus::as_str), 50)?;
        check_texts(
            username.as_ref().and_then(Option::as_deref),
            first_name.as_ref().and_then(Option::as_deref),
            last_name.as_ref().and_then(Option::as_deref),
            image_url.as_ref().and_then(Option::as_deref),
            primary_email.as_ref().and_then(Option::as_deref),
            primary_phone.as_ref().and_then(Option::as_deref),
        )
    }
}

fn check_texts(
    username: Option<&str>,
    first_name: Option<&str>,
    last_name: Option<&str>,
    image_url: Option<&str>,
    primary_email: Option<&str>,
    primary_phone: Option<&str>,
) -> Result<()> {
    text_opt("user.username", username, 255)?;
    text_opt("user.first_name", first_name, 255)?;
    text_opt("user.last_name", last_name, 255)?;
    text_opt("user.image_url", image_url, usize::MAX)?;
    text_opt("user.primary_email", primary_email, 255)?;
    text_opt("user.primary_phone", primary_phone, 50)
}

/// What went with a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserRemoved {
    /// Jobs that were deleted with the user.
    pub jobs: usize,
    /// Files that were deleted with the user.
    pub files: usize,
}
