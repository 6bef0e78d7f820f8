//! What the tests of the pool share: scopes that stay open until they are told, conditions to wait for, a log to read.

use std::cell::RefCell;
use std::io::Write;
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use t2m_db::testing::Proxy;
use t2m_db::{Config, Database, Error, Transaction};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::support::{LONG, Setup, batch, table};

pub(crate) const MS: Duration = Duration::from_millis(1);

/// Looks again and again until `holds`, or fails.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let look = async {
        while !holds() {
            tokio::time::sleep(MS).await;
        }
    };
    timeout(LONG, look).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// What `work` gives and how long it took; fails if it hangs.
pub(crate) async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    let result = timeout(LONG, work).await.expect("hangs");
    (result, began.elapsed())
}

/// Returns when a scope was served: where limits are so short that a busy machine exceeds them.
pub(crate) async fn served(db: &Database) {
    timed(async { while ping(db).await.is_err() {} }).await;
}

/// A proxy in front of a database, and a pool behind it.
pub(crate) async fn through_a_proxy(settings: impl FnOnce(Config) -> Config) -> (Setup, Proxy) {
    let (database, client) = table().await;
    let proxy = Proxy::start(&database.url()).await.unwrap();
    let db = Database::connect(settings(quiet(&format!("{}?sslmode=disable", proxy.url())))).await.unwrap();
    (Setup { db, client, database }, proxy)
}

/// A scope in a task of its own that has sent a statement and holds its connection.
pub(crate) struct Held {
    release: oneshot::Sender<()>,
    pub(crate) task: JoinHandle<Result<(), Error>>,
}

impl Held {
    pub(crate) async fn end(self) -> Result<(), Error> {
        let _ = self.release.send(());
        timeout(LONG, self.task).await.expect("hangs").unwrap()
    }
}

pub(crate) async fn hold(db: &Database, name: &'static str) -> Held {
    let (release, released) = oneshot::channel();
    let (holds, held) = oneshot::channel();
    let db = db.clone();
    let task = tokio::spawn(async move {
        let scope = db.transaction(name).run(async move |tx| {
            batch(tx, "SELECT 1").await?;
            let _ = holds.send(());
            let _ = released.await;
            Ok(())
        });
        scope.await
    });
    timeout(LONG, held).await.expect("hangs").expect("it failed before it held a connection");
    Held { release, task }
}

/// A transaction of one statement.
pub(crate) async fn ping(db: &Database) -> Result<(), Error> {
    db.transaction("ping").run(async |tx| batch(tx, "SELECT 1").await).await
}

#[diesel::declare_sql_function]
extern "SQL" {
    fn pg_backend_pid() -> diesel::sql_types::Integer;
}

/// A scope for reads: the server process that it met.
pub(crate) async fn read(db: &Database) -> Result<i32, Error> {
    use diesel_async::RunQueryDsl;
    db.with_connection(async |conn| Ok::<_, Error>(diesel::select(pg_backend_pid()).get_result(conn).await?)).await
}

/// Two statements in one flight: the server process, twice.
pub(crate) async fn pipelined(tx: &Transaction) -> Result<(i32, i32), Error> {
    use diesel_async::RunQueryDsl;
    let pid = || diesel::select(pg_backend_pid());
    Ok(futures_util::try_join!(pid().get_result(&mut &*tx), pid().get_result(&mut &*tx))?)
}

/// A configuration with nothing going on in the background.
pub(crate) fn quiet(url: &str) -> Config {
    Config::from_url(url).unwrap().min_idle(0).keepalive(None).health_interval(None).leak_threshold(None)
}

/// What was logged on one thread.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

thread_local! {
    static LISTENS: RefCell<Option<Log>> = const { RefCell::new(None) };
}

/// Ends the listening.
pub(crate) struct Listening;

impl Log {
    /// Listens until the guard is dropped, to the tasks of a runtime of one thread.
    ///
    /// One subscriber for the process: those of single threads lose events, because whether a place in the code is of
    /// interest is remembered for all threads, as the one sees it that comes by first.
    pub(crate) fn listen() -> (Self, Listening) {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let listens = dynamic_filter_fn(|_, _| LISTENS.with_borrow(Option::is_some));
            let written = || LISTENS.with_borrow(|log| log.clone().unwrap_or_default());
            let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(written).with_filter(listens);
            tracing_subscriber::registry().with(layer).init();
        });
        let log = Self::default();
        LISTENS.set(Some(log.clone()));
        (log, Listening)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The lines that hold `words`.
    pub(crate) fn lines(&self, words: &str) -> Vec<String> {
        self.text().lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        LISTENS.set(None);
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A text without what differs from run to run: durations, server processes, lines of this file, addresses.
pub(crate) fn still(text: &str) -> String {
    let word = |word: &str| {
        let bare = word.trim_matches(|c: char| "(),:;".contains(c));
        let number = bare.trim_end_matches("ms").trim_end_matches("µs").trim_end_matches('s');
        let shown = if number.parse::<f64>().is_ok() && number != bare {
            "[time]".to_owned()
        } else if let Some((file, _)) = bare.split_once(".rs:") {
            format!("{file}.rs:[line]")
        } else if bare.starts_with("127.0.0.1:") {
            "[address]".to_owned()
        } else if bare.starts_with("t2m_test_") {
            "[database]".to_owned()
        } else {
            return word.to_owned();
        };
        word.replace(bare, &shown)
    };
    let line = |line: &str| {
        let words: Vec<_> = line.split(' ').map(word).collect();
        let line = words.join(" ");
        match line.split_once("backend ") {
            Some((before, pid)) => {
                format!("{before}backend [pid]{}", pid.trim_start_matches(|c: char| c.is_ascii_digit()))
            }
            None => line,
        }
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}
