//! A query on its way to the server: rendered once into text and binds, so that it can be kept prepared by its text,
//! looked at before it is sent, and sent again on another connection.
//!
//! diesel prepares an UPDATE, an upsert or an INSERT with a defaulted column anew each time, one round trip more, and
//! renders the text of a SELECT anew although it is fixed by its type. A [`Rendered`] query hands the inner connection
//! a fragment that replays what was rendered and answers "safe to keep prepared" as [`Kept`] decides.
//!
//! **Never**: change what a query means. A query that needs a type looked up by name is not rendered here at all; the
//! inner connection knows how to do that.

mod effects;
mod kept;
mod rendered;
mod text;

pub(crate) use effects::Effects;
pub(crate) use kept::{Admitted, Doorkeeper, Kept, Key};
pub(crate) use rendered::{Rendered, RowStream, render};
pub(crate) use text::{Kind, Text};
