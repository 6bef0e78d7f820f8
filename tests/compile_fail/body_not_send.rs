//! A scope may run in a task of its own, so what its body holds across an await must be able to move.

use std::rc::Rc;

use diesel_async::SimpleAsyncConnection;
use t2m_db::{Database, Error};

fn spawn(db: Database) {
    tokio::spawn(async move {
        db.with_transaction(async |tx| {
            let here = Rc::new(1);
            tx.batch_execute("SELECT 1").await?;
            drop(here);
            Ok::<_, Error>(())
        })
        .await
    });
}

fn main() {}
