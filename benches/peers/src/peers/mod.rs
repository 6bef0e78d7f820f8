//! Each peer in a file of its own.

mod by_hand;
mod diesel_stock;
mod pgbench;
#[cfg(feature = "orms")]
mod sea_orm_peer;
#[cfg(feature = "orms")]
mod sqlx_peer;
mod t2m;
mod typed;

pub use by_hand::{Bare, TokioPostgres};
pub use diesel_stock::{Alone, Bb8, Deadpool};
pub use pgbench::serve as pgbench;
#[cfg(feature = "orms")]
pub use sea_orm_peer::SeaOrm;
#[cfg(feature = "orms")]
pub use sqlx_peer::Sqlx;
pub use t2m::T2m;
