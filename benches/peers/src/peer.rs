//! What is measured, and what a peer has to be able to do for that.

use std::error::Error;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;

pub type Fault = Box<dyn Error + Send + Sync>;
pub type Result<T, E = Fault> = std::result::Result<T, E>;

/// Rows in `items`, which is read; `entries` is written.
pub const ITEMS: i64 = 10_000;
/// The tables, and what is in them.
pub const SEED: &str = "
    CREATE TABLE items (id bigint PRIMARY KEY, name text NOT NULL, size bigint NOT NULL);
    INSERT INTO items SELECT n, 'item ' || n || repeat(' of a length', 5), n * 1000 FROM generate_series(1, 10000) n;
    CREATE TABLE entries (id bigserial PRIMARY KEY, name text NOT NULL, size bigint NOT NULL DEFAULT 0,
                          seen int NOT NULL DEFAULT 0, created_at timestamptz NOT NULL DEFAULT now());
    ANALYZE items;";
/// `entries` as every measurement finds it. Not empty: a plan made for an empty table reads all of it, and is kept while it grows.
pub const AFRESH: &str = "
    TRUNCATE entries;
    INSERT INTO entries (name) SELECT 'an entry' FROM generate_series(1, 1000);
    ANALYZE entries;";

pub type Item = (i64, String, i64);

/// The rows of W5.
#[derive(Debug)]
pub struct Batch {
    pub names: Vec<String>,
    pub sizes: Vec<i64>,
}

impl Batch {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { names: (0..1000).map(|n| format!("entry {n} of many")).collect(), sizes: (0..1000).collect() })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A connection taken and given back, held for one turn of the scheduler.
    Checkout,
    /// A transaction with one SELECT.
    W1,
    /// A transaction with INSERT .. RETURNING, then UPDATE.
    W2,
    /// One SELECT, no transaction.
    W3,
    /// A page of 20 rows, no transaction.
    W4,
    /// 1,000 rows inserted in a transaction.
    W5,
}

impl Work {
    pub const UNITS: [Self; 5] = [Self::W1, Self::W2, Self::W3, Self::W4, Self::W5];

    pub fn writes(self) -> bool {
        matches!(self, Self::W2 | Self::W5)
    }
}

impl FromStr for Work {
    type Err = Fault;

    fn from_str(name: &str) -> Result<Self> {
        let all = Self::UNITS.into_iter().chain([Self::Checkout]);
        all.into_iter().find(|work| format!("{work:?}") == name).ok_or_else(|| format!("no workload {name}").into())
    }
}

/// A stack to reach PostgreSQL with: set up as its documentation says, with its own defaults, `size` connections.
pub trait Peer: Clone + Send + Sync + 'static {
    fn connect(url: &str, size: u32) -> impl Future<Output = Result<Self>> + Send;
    fn checkout(&self) -> impl Future<Output = Result<()>> + Send;
    fn read_in_transaction(&self, id: i64) -> impl Future<Output = Result<Item>> + Send;
    fn insert_and_update(&self, name: &str) -> impl Future<Output = Result<()>> + Send;
    fn read(&self, id: i64) -> impl Future<Output = Result<Item>> + Send;
    fn page(&self, after: i64) -> impl Future<Output = Result<Vec<Item>>> + Send;
    fn insert_many(&self, rows: &Batch) -> impl Future<Output = Result<()>> + Send;
}

/// How long a checkout is held: one turn of the scheduler.
pub async fn turn() -> Result<()> {
    tokio::task::yield_now().await;
    Ok(())
}

/// The `n`-th unit of work.
pub async fn unit<P: Peer>(peer: &P, work: Work, n: u64, batch: &Batch) -> Result<()> {
    let id = (n.wrapping_mul(7919) % (ITEMS as u64 - 20)) as i64 + 1;
    let right = |ok: bool| if ok { Ok(()) } else { Err(format!("{work:?}: a wrong answer").into()) };
    match work {
        Work::Checkout => peer.checkout().await,
        Work::W1 => right(peer.read_in_transaction(id).await?.0 == id),
        Work::W2 => peer.insert_and_update("an entry").await,
        Work::W3 => right(peer.read(id).await?.0 == id),
        Work::W4 => right(peer.page(id).await?.len() == 20),
        Work::W5 => peer.insert_many(batch).await,
    }
}
