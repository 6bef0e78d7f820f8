//! A transaction cannot leave its scope.

use t2m_db::{Database, Error, Transaction};

async fn keep(db: &Database) {
    let mut kept: Option<&mut Transaction> = None;
    let _ = db
        .with_transaction(async |tx| {
            kept = Some(tx);
            Ok::<_, Error>(())
        })
        .await;
    drop(kept);
}

fn main() {}
