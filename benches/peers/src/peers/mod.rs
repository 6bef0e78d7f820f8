//! Each peer in a file of its own.

mod by_hand;
mod diesel_stock;
mod t2m;
mod typed;

pub use by_hand::{Bare, TokioPostgres};
pub use diesel_stock::{Bb8, Deadpool};
pub use t2m::T2m;
