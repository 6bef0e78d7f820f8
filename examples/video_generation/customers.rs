//! Customers sign in and order videos.

use futures_util::future::try_join_all;
use t2m_db::jobs::{self, NewJob};
use t2m_db::types::Priority;
use t2m_db::users::{self, NewUser};
use t2m_db::{Database, Result};
use uuid::Uuid;

use crate::film::{self, Fate};
use crate::options::Options;

/// How many people order. Few, so that they sign in again and again, and at the same time.
const CUSTOMERS: usize = 4;

/// Orders everything, all customers at once.
pub(crate) async fn order_all(db: &Database, options: &Options, run: Uuid) -> Result<()> {
    let fates = fates(options);
    let customers = (0..CUSTOMERS).map(async |customer| {
        for fate in fates.iter().skip(customer).step_by(CUSTOMERS) {
            order(db, customer, &options.topic, *fate, run).await?;
        }
        Ok(())
    });
    try_join_all(customers).await.map(drop)
}

/// One order: both the user and the job are stored, or neither.
async fn order(db: &Database, customer: usize, topic: &str, fate: Fate, run: Uuid) -> Result<()> {
    let user = NewUser {
        username: Some(format!("customer {customer}")),
        primary_email: Some(format!("customer-{customer}@example.com")),
        email_verified: Some(true),
        ..NewUser::new(format!("example_{customer}"))
    };
    let job = NewJob {
        priority: [Priority::Normal, Priority::High, Priority::Urgent, Priority::Low][customer % 4].clone(),
        batch_id: Some(run),
        // A worker that is killed counts as a failure; one that fails for good is to do so soon.
        max_retries: if matches!(fate, Fate::Fails | Fate::Unreadable) { 2 } else { 50 },
        ..NewJob::video(film::configuration(topic, fate))
    };
    // The job's id is ours, so it is safe to try again whatever happened.
    db.transaction("order video")
        .run_retrying(async |tx| {
            let owner = users::upsert(tx, &user).await?.id;
            jobs::create_and_enqueue(tx, owner, &job).await
        })
        .await
        .map(drop)
}

/// What is to happen to each video, in any order but in exactly the shares that were asked for.
fn fates(options: &Options) -> Vec<Fate> {
    let videos = options.videos as usize;
    let mut fates = Vec::with_capacity(videos);
    let failures = [Fate::Fails, Fate::FailsOnce, Fate::Unreadable];
    fates.extend(failures.into_iter().cycle().take(part(videos, options.fail_rate)));
    fates.extend(std::iter::repeat_n(Fate::Cancelled, part(videos, options.cancel_rate)));
    fates.extend(std::iter::repeat_n(Fate::Panics, part(videos, options.panic_rate)));
    fates.resize(videos, Fate::Completes);
    fastrand::shuffle(&mut fates);
    fates
}

/// That share of a number, rounded.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "0 to 100,000"
)]
pub(crate) fn part(number: usize, share: f64) -> usize {
    (number as f64 * share).round() as usize
}
