//! What a body does to its surroundings would be done once per attempt.

use t2m_db::{Database, Error};

async fn count(db: &Database) {
    let mut attempts = 0;
    let _ = db
        .transaction("count")
        .run_retrying(async |_tx| {
            attempts += 1;
            Ok::<_, Error>(())
        })
        .await;
    println!("{attempts}");
}

fn main() {}
