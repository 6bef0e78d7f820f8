//! Nor can it be what the scope returns.

use t2m_db::{Database, Error};

async fn give(db: &Database) {
    let _ = db.with_transaction(async |tx| Ok::<_, Error>(tx)).await;
}

fn main() {}
