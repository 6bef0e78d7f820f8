//! Who gets a connection: first come, first served, in bounded time or a quick no, and the numbers add up.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::join_all;
use proptest::prelude::*;
use t2m_db::{Database, Error};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::pool_support::{MS, hold, ping, quiet, timed, until};
use crate::support::{Setup, batch, setup_with};

async fn setup(max_size: u32) -> Setup {
    setup_with(|config| config.max_size(max_size).keepalive(None).health_interval(None).leak_threshold(None)).await
}

/// Waits are counted in turns: how many others were served meanwhile. In time, the longest of thousands is the machine's.
/// On one thread nothing comes between asking and standing in the queue, so that they are exact.
#[tokio::test]
async fn nobody_starves_among_256_tasks_on_10_connections() {
    let setup = setup(10).await;
    let (served, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(tokio::sync::Barrier::new(256)));
    let mut tasks = JoinSet::new();
    for _ in 0..256 {
        let (db, served, gate) = (setup.db.clone(), Arc::clone(&served), Arc::clone(&gate));
        tasks.spawn(async move {
            let mut waits = Vec::new();
            gate.wait().await;
            for _ in 0..12 {
                let asked = served.load(SeqCst);
                let scope = db.transaction("one of many").run(async |tx| {
                    waits.push(served.fetch_add(1, SeqCst) - asked);
                    batch(tx, "SELECT pg_sleep(0.001)").await
                });
                scope.await.unwrap();
            }
            waits
        });
    }
    let mut waits = tasks.join_all().await.concat();
    waits.sort_unstable();
    let (median, longest) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    println!("256 tasks on 10: median wait {median} turns, longest {longest}");
    assert!(longest < 256 && longest <= median * 3, "first come, first served: {median}, {longest}");
    let stats = setup.db.stats();
    assert_eq!((stats.waiting, stats.checked_out, stats.opened), (0, 0, 10));
}

#[tokio::test]
async fn a_newcomer_does_not_overtake_who_waits() {
    let setup = setup(1).await;
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    for round in 0..20 {
        order.lock().unwrap().clear();
        let held = hold(&setup.db, "first").await;
        let waits = |name: &'static str| {
            let (db, order) = (setup.db.clone(), Arc::clone(&order));
            tokio::spawn(async move {
                let scope = db.transaction(name).run(async move |tx| {
                    order.lock().unwrap().push(name);
                    batch(tx, "SELECT 1").await
                });
                scope.await.unwrap();
            })
        };
        let early = waits("early");
        until("it waits", || setup.db.stats().waiting == 1).await;
        held.end().await.unwrap();
        // In the moment that the connection is free, before `early` was polled again.
        let late = waits("late");
        join_all([early, late]).await;
        assert_eq!(*order.lock().unwrap(), ["early", "late"], "round {round}");
    }
}

#[tokio::test]
async fn cancelled_waiters_leave_no_trace() {
    let setup = setup(1).await;
    let held = hold(&setup.db, "holder").await;
    let before = setup.db.stats();
    for _ in 0..10 {
        let waiters: Vec<_> = (0..20)
            .map(|_| {
                let db = setup.db.clone();
                tokio::spawn(async move { ping(&db).await })
            })
            .collect();
        until("all wait", || setup.db.stats().waiting == 20).await;
        for waiter in &waiters {
            waiter.abort();
        }
        for waiter in waiters {
            assert!(waiter.await.unwrap_err().is_cancelled());
        }
    }
    let after = setup.db.stats();
    assert_eq!((after.waiting, after.checkouts, after.timeouts, after.shed), (0, before.checkouts, 0, 0));
    assert_eq!(after.cancelled, 0, "no scope had begun");
    held.end().await.unwrap();
    ping(&setup.db).await.unwrap();
    assert_eq!(setup.db.stats().opened, 1);
}

#[tokio::test]
async fn a_waiter_cancelled_as_its_turn_comes_gives_it_to_the_next() {
    let setup = setup(1).await;
    for _ in 0..20 {
        let held = hold(&setup.db, "holder").await;
        let waits = || {
            let db = setup.db.clone();
            tokio::spawn(async move { ping(&db).await })
        };
        let (first, second) = (waits(), waits());
        until("both wait", || setup.db.stats().waiting == 2).await;
        held.end().await.unwrap();
        // It has the permit and was not polled since.
        first.abort();
        timed(second).await.0.unwrap().unwrap();
        let _ = first.await;
        assert_eq!((setup.db.stats().waiting, setup.db.stats().checked_out), (0, 0));
    }
}

#[tokio::test]
async fn max_waiting_refuses_at_once() {
    let setup = setup_with(|config| config.max_size(1).max_waiting(2).health_interval(None)).await;
    let held = hold(&setup.db, "holder").await;
    let waiters: Vec<_> = (0..2)
        .map(|_| {
            let db = setup.db.clone();
            tokio::spawn(async move { ping(&db).await })
        })
        .collect();
    until("two wait", || setup.db.stats().waiting == 2).await;
    for _ in 0..3 {
        // At its first poll.
        let error = ping(&setup.db).now_or_never().expect("it waits").unwrap_err();
        assert!(matches!(error, Error::Overloaded { .. }) && error.to_string().contains("`max_waiting`"), "{error}");
        assert_eq!(setup.db.stats().waiting, 2);
    }
    held.end().await.unwrap();
    for waiter in waiters {
        waiter.await.unwrap().unwrap();
    }
    assert_eq!((setup.db.stats().shed, setup.db.stats().waiting), (3, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sustained_overload_is_shed_and_who_is_admitted_waits_boundedly() {
    let (target, interval, work) = (50 * MS, 200 * MS, 100 * MS);
    let settings =
        |config: t2m_db::Config| config.max_size(4).queue_target(target).queue_interval(interval).health_interval(None);
    let setup = setup_with(settings).await;
    let db = setup.db.clone();
    // Unloaded, what such a scope takes.
    let mut alone = Duration::ZERO;
    for _ in 0..10 {
        let (told, took) = timed(scope(&db, work)).await;
        told.unwrap();
        alone = alone.max(took);
    }
    // Four connections bear 4 / `alone` scopes a second; ten times as many come, one after the other.
    let (admitted, refused) =
        (Arc::new(std::sync::Mutex::new(Vec::new())), Arc::new(std::sync::Mutex::new(Vec::new())));
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < Duration::from_secs(3) {
        if f64::from(sent) > began.elapsed().as_secs_f64() / alone.as_secs_f64() * 40.0 {
            sleep(MS).await;
            continue;
        }
        sent += 1;
        let (db, admitted, refused) = (db.clone(), Arc::clone(&admitted), Arc::clone(&refused));
        tasks.spawn(async move {
            let asked = Instant::now();
            match scope(&db, work).await {
                Ok(()) => admitted.lock().unwrap().push((asked, asked.elapsed())),
                Err(Error::Overloaded { .. }) => refused.lock().unwrap().push((asked, asked.elapsed())),
                Err(error) => panic!("{error:?}"),
            }
        });
    }
    while tasks.join_next().await.is_some_and(|ended| ended.is_ok()) {}
    // After two intervals it is known to be an overload.
    let steady = |all: &[(Instant, Duration)]| {
        let mut all: Vec<_> =
            all.iter().filter(|(asked, _)| asked.duration_since(began) > interval * 4).map(|(_, took)| *took).collect();
        all.sort_unstable();
        all
    };
    let (admitted, refused) = (steady(&admitted.lock().unwrap()), steady(&refused.lock().unwrap()));
    let p99 = |all: &[Duration]| all[all.len() * 99 / 100];
    let median = |all: &[Duration]| all[all.len() / 2];
    println!(
        "overload: alone {alone:.1?}; {} admitted, median {:.1?}, p99 {:.1?}; {} refused, median {:.1?}, p99 {:.1?}",
        admitted.len(),
        median(&admitted),
        p99(&admitted),
        refused.len(),
        median(&refused),
        p99(&refused)
    );
    assert!(refused.len() > admitted.len(), "{} refused, {} admitted", refused.len(), admitted.len());
    // The exact bars are a test of the admission's own, on a clock that is not the machine's.
    assert!(p99(&admitted) < alone * 4, "who is admitted waits too long: {:?}", p99(&admitted));
    assert!(p99(&refused) < alone * 4, "refused too late: {:?}", p99(&refused));
    let stats = setup.db.stats();
    assert_eq!((stats.waiting, stats.checked_out, stats.timeouts), (0, 0, 0), "{stats:#?}");
    // The spike over, nobody is refused any more.
    for _ in 0..20 {
        scope(&db, work).await.unwrap();
    }
}

async fn scope(db: &Database, work: Duration) -> Result<(), Error> {
    let scope = db.transaction("loaded").run(async |tx| {
        batch(tx, "SELECT 1").await?;
        sleep(work).await;
        Ok(())
    });
    scope.await
}

/// What a client does next.
#[derive(Clone, Debug)]
enum Step {
    /// Opens a scope; with `true` it sends a statement.
    Open(bool),
    /// The oldest scope that is open ends: with Ok, Err, or a panic.
    End(u8),
    /// The future of one of the open or waiting scopes is dropped.
    Cancel(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => any::<bool>().prop_map(Step::Open),
        3 => (0_u8..3).prop_map(Step::End),
        2 => any::<prop::sample::Index>().prop_map(Step::Cancel),
    ];
    prop::collection::vec(step, 1..40)
}

type Scope = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An open or waiting scope of the model.
struct Client {
    end: Option<oneshot::Sender<u8>>,
    scope: Scope,
    holds: bool,
}

const SIZE: usize = 3;

/// Polls every scope until the pool says what the model does.
async fn agree(db: &Database, clients: &mut [Client], checkouts: u64) {
    let out = clients.iter().filter(|client| client.holds).count();
    let look = async {
        loop {
            for client in clients.iter_mut() {
                assert!((&mut client.scope).now_or_never().is_none(), "a scope ended by itself");
            }
            let stats = db.stats();
            let told = (stats.checked_out, stats.waiting, stats.checkouts, stats.reclaiming);
            if told == (out, clients.len() - out, checkouts, 0) && stats.idle + out == stats.size {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let agreed = tokio::time::timeout(Duration::from_secs(5), look).await;
    assert!(agreed.is_ok(), "{out} out, {} clients, {checkouts} checkouts, but {:#?}", clients.len(), db.stats());
}

/// Whoever waits longest gets what is free.
fn serve(clients: &mut [Client], checkouts: &mut u64) {
    let out = clients.iter().filter(|client| client.holds).count();
    for client in clients.iter_mut().filter(|client| !client.holds).take(SIZE - out) {
        client.holds = true;
        *checkouts += 1;
    }
}

async fn drive(db: &Database, steps: Vec<Step>) {
    let mut checkouts = db.stats().checkouts;
    let cancelled = (db.stats().cancelled, AtomicU64::new(0));
    let mut clients: Vec<Client> = Vec::new();
    for step in steps {
        match step {
            Step::Open(sends) => {
                let (end, ends) = oneshot::channel();
                let db = db.clone();
                let scope = async move {
                    let scope = db.transaction("random").run(async move |tx| {
                        if sends {
                            batch(tx, "SELECT 1").await?;
                        }
                        match ends.await.unwrap_or(0) {
                            0 => Ok(()),
                            1 => Err(Error::NotFound { entity: "luck" }),
                            _ => std::panic::resume_unwind(Box::new("on purpose")),
                        }
                    });
                    let _ = std::panic::AssertUnwindSafe(scope).catch_unwind().await;
                };
                clients.push(Client { end: Some(end), scope: scope.boxed(), holds: false });
            }
            Step::End(how) => {
                let Some(at) = clients.iter().position(|client| client.holds) else { continue };
                let mut client = clients.remove(at);
                let _ = client.end.take().unwrap().send(how);
                timed(client.scope).await;
            }
            Step::Cancel(which) => {
                if clients.is_empty() {
                    continue;
                }
                let client = clients.remove(which.index(clients.len()));
                cancelled.1.fetch_add(u64::from(client.holds), SeqCst);
            }
        }
        serve(&mut clients, &mut checkouts);
        agree(db, &mut clients, checkouts).await;
    }
    cancelled.1.fetch_add(clients.iter().filter(|client| client.holds).count() as u64, SeqCst);
    // Waiters first: else they would be served.
    clients.retain(|client| client.holds);
    clients.clear();
    agree(db, &mut [], checkouts).await;
    let stats = db.stats();
    assert_eq!(stats.cancelled, cancelled.0 + cancelled.1.load(SeqCst), "{stats:#?}");
    assert!(stats.opened <= SIZE as u64, "a clean-up cost a connection: {stats:#?}");
    assert_eq!((stats.discarded, stats.timeouts, stats.closed.total()), (0, 0, 0), "{stats:#?}");
}

#[test]
fn the_numbers_are_those_of_a_model() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let setup = runtime.block_on(setup(SIZE as u32));
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in steps())| {
        // A failed case leaves scopes behind: the next one starts with a pool of its own.
        runtime.block_on(async {
            let db = Database::connect(quiet(&setup.database.url()).max_size(SIZE as u32)).await.unwrap();
            drive(&db, steps).await;
            db.close(Duration::ZERO).await;
        });
    });
    drop(setup);
}
