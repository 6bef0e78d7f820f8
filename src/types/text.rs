//! Text columns with a list of values, as enums that can still read a value from outside of the list.
//!
//! Text stays text in the tables: the Python layer reads and writes it. A text that is not listed here arrives as `Other`,
//! so that one new value in Python does not make a whole list unreadable in Rust.

use std::convert::Infallible;
use std::fmt;
use std::io::Write;
use std::str::FromStr;

use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types::Text;
use serde::{Deserialize, Serialize};

/// A text that this crate has no name for. Only reading one makes one, so it never equals a listed value.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Unlisted(Box<str>);

impl Unlisted {
    /// The text as the table holds it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Unlisted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! text_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, AsExpression, FromSqlRow)]
        #[diesel(sql_type = Text)]
        #[serde(from = "String", into = "String")]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
            /// A value that this crate does not know; kept as it is.
            Other(Unlisted),
        }

        impl $name {
            /// Every value that this crate has a name for.
            pub const LISTED: &'static [Self] = &[$(Self::$variant),+];

            /// The text that the table holds.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $text,)+
                    Self::Other(text) => text.as_str(),
                }
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                match text {
                    $($text => Self::$variant,)+
                    other => Self::Other(Unlisted(other.into())),
                }
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self::from(text.as_str())
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.as_str().to_owned()
            }
        }

        impl FromStr for $name {
            type Err = Infallible;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Ok(Self::from(text))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl ToSql<Text, Pg> for $name {
            fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
                out.write_all(self.as_str().as_bytes())?;
                Ok(IsNull::No)
            }
        }

        impl FromSql<Text, Pg> for $name {
            fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
                Ok(Self::from(std::str::from_utf8(value.as_bytes())?))
            }
        }
    };
}

text_enum! {
    /// What a job is for. The table allows the listed values only.
    JobType {
        /// One video.
        VideoGeneration = "video_generation",
        /// Many videos at once.
        BatchVideoGeneration = "batch_video_generation",
        /// Work on an uploaded file.
        FileProcessing = "file_processing",
        /// Looking into content.
        ContentAnalysis = "content_analysis",
    }
}

text_enum! {
    /// How pressing a job is. The order is `t2m_priority_rank`'s, not the alphabet's. The table allows the listed values only.
    Priority {
        /// When there is nothing else to do.
        Low = "low",
        /// The default.
        Normal = "normal",
        /// Before the normal ones.
        High = "high",
        /// Before all others.
        Urgent = "urgent",
    }
}

text_enum! {
    /// How far a job is. The table allows the listed values only; see [`jobs`](crate::jobs) for which may follow which.
    JobStatus {
        /// Stored, but not yet in the queue.
        Created = "created",
        /// Waits for a worker.
        Queued = "queued",
        /// A worker is at it.
        Processing = "processing",
        /// Done.
        Completed = "completed",
        /// Given up.
        Failed = "failed",
        /// Called off.
        Cancelled = "cancelled",
        /// Put away by clean-up.
        Archived = "archived",
    }
}

text_enum! {
    /// Where a job is in the queue.
    QueueStatus {
        /// Waits, perhaps until its next retry.
        Queued = "queued",
        /// Held by a worker.
        Processing = "processing",
        /// Done.
        Completed = "completed",
        /// Given up after its last retry.
        Failed = "failed",
        /// Called off.
        Cancelled = "cancelled",
    }
}

text_enum! {
    /// What a file is.
    FileType {
        /// A rendered scene or film.
        Video = "video",
        /// A still of a video.
        Thumbnail = "thumbnail",
    }
}

text_enum! {
    /// What a user may do.
    UserRole {
        /// The default.
        User = "user",
        /// Runs the place.
        Admin = "admin",
    }
}

text_enum! {
    /// State of a user's account.
    UserStatus {
        /// The default.
        Active = "active",
        /// Not in use.
        Inactive = "inactive",
        /// Shut out.
        Suspended = "suspended",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_text_is_never_other() {
        for status in JobStatus::LISTED {
            assert_eq!(&JobStatus::from(status.as_str()), status);
            assert!(!matches!(JobStatus::from(status.as_str()), JobStatus::Other(_)));
        }
    }

    #[test]
    fn an_unlisted_text_comes_back_unchanged() {
        let value: JobStatus = serde_json::from_str("\"half-done\"").unwrap();
        assert!(matches!(value, JobStatus::Other(_)));
        assert_eq!(serde_json::to_string(&value).unwrap(), "\"half-done\"");
    }
}
