use super::*;

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn a_burst_is_served_and_a_standing_queue_is_shed() {
    let mut shedding = Shedding::new(50 * MS, 1000 * MS);
    let start = Instant::now();
    for n in 0..100 {
        assert!(shedding.admits(n * 5 * MS, start + n * MS), "a burst within one interval");
    }
    let later = start + 1001 * MS;
    assert!(shedding.admits(80 * MS, later), "the first interval had a short wait");
    let later = later + 1001 * MS;
    assert!(!shedding.admits(60 * MS, later), "a whole interval without one: longer than the target");
    assert!(shedding.admits(40 * MS, later + MS), "shorter");
    assert!(shedding.admits(Duration::ZERO, later + 2 * MS), "the queue is empty for a moment");
    assert!(!shedding.admits(60 * MS, later + 3 * MS), "that is not the end of it");
    let later = later + 1001 * MS;
    for n in 0..20 {
        assert!(shedding.admits(20 * MS, later + n * MS), "one interval with few refusals");
    }
    assert!(shedding.admits(60 * MS, later + 1001 * MS), "is");
}

#[tokio::test(start_paused = true)]
async fn a_burst_after_a_quiet_time_is_served() {
    let mut shedding = Shedding::new(50 * MS, 1000 * MS);
    let start = Instant::now();
    for n in 0..3 {
        shedding.admits(90 * MS, start + n * 1001 * MS);
    }
    assert!(shedding.overloaded);
    assert!(shedding.admits(60 * MS, start + 5 * 1001 * MS), "nothing is known of the last two intervals");
}

/// The latencies of those who were served and of those who were not, once it is known to be an overload.
async fn tenfold(service: Duration, target: Duration) -> (Vec<Duration>, Vec<Duration>) {
    const PERMITS: u32 = 4;
    let interval = 100 * MS;
    let admission = Arc::new(Admission::new(PERMITS as usize, None, Some((target, interval))));
    let (start, every) = (Instant::now(), service / PERMITS / 10);
    let scopes = (0..20_000_u32).map(|n| {
        let admission = Arc::clone(&admission);
        tokio::spawn(async move {
            let asked = start + every * n;
            tokio::time::sleep_until(asked).await;
            let permit = match admission.try_admit() {
                Ok(Some(permit)) => Ok(permit),
                _ => admission.admit(asked + Duration::from_secs(3600), 0).await,
            };
            if permit.is_ok() {
                tokio::time::sleep(service).await;
            }
            (asked, permit.is_ok(), asked.elapsed())
        })
    });
    let all = futures_util::future::join_all(scopes.collect::<Vec<_>>()).await;
    let known = all.into_iter().map(Result::unwrap).filter(|(asked, ..)| *asked > start + 4 * interval);
    let (served, refused): (Vec<_>, Vec<_>) = known.partition(|(_, served, _)| *served);
    let latencies = |of: Vec<(_, _, Duration)>| {
        let mut all: Vec<_> = of.into_iter().map(|(.., latency)| latency).collect();
        all.sort_unstable();
        all
    };
    (latencies(served), latencies(refused))
}

#[tokio::test(start_paused = true)]
async fn under_a_tenfold_overload_the_p99_of_those_served_is_at_most_twice_the_unloaded_one() {
    let service = 40 * MS;
    for target in [service / 4, service / 2, service] {
        let (served, refused) = tenfold(service, target).await;
        assert!((served.len() * 8..served.len() * 11).contains(&refused.len()), "{} {}", served.len(), refused.len());
        let p99 = served[served.len() * 99 / 100];
        assert!(p99 <= service + target + 2 * MS, "{target:?}: {p99:?}");
        assert!(p99 <= service * 2 + 2 * MS, "{target:?}: {p99:?}"); // the timer counts milliseconds
        assert!(refused[refused.len() - 1] <= target + 2 * MS, "a quick no: {:?}", refused[refused.len() - 1]);
    }
}

#[tokio::test(start_paused = true)]
async fn when_nothing_comes_back_at_all_those_who_wait_are_refused_after_two_intervals() {
    let (target, interval) = (50 * MS, 1000 * MS);
    let admission = Admission::new(1, None, Some((target, interval)));
    let held = admission.try_admit().unwrap();
    let asked = Instant::now();
    let far = asked + Duration::from_secs(3600);
    assert_eq!(admission.admit(far, 0).await.unwrap_err(), Refused::Shed);
    assert!(asked.elapsed() <= 2 * interval + 2 * target, "{:?}", asked.elapsed());
    let asked = Instant::now();
    assert_eq!(admission.admit(far, 0).await.unwrap_err(), Refused::Shed);
    assert!(asked.elapsed() <= target + MS, "{:?}", asked.elapsed());
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn first_come_first_served_and_a_cancelled_waiter_leaves_no_trace() {
    let admission = Arc::new(Admission::new(1, None, None));
    let held = admission.try_admit().unwrap().unwrap();
    let far = Instant::now() + Duration::from_secs(3600);
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for n in 0..8 {
        let (mine, order) = (Arc::clone(&admission), Arc::clone(&order));
        tasks.push(tokio::spawn(async move {
            let permit = mine.admit(far, 0).await.unwrap();
            order.lock().push(n);
            drop(permit);
        }));
        // The current-thread runtime runs the new task up to its wait.
        tokio::task::yield_now().await;
        assert_eq!(admission.waiting(), tasks.len());
    }
    tasks[3].abort();
    tokio::task::yield_now().await;
    assert_eq!(admission.waiting(), 7);
    drop(held);
    for task in tasks {
        let _ = task.await;
    }
    assert_eq!(*order.lock(), [0, 1, 2, 4, 5, 6, 7]);
    assert_eq!(admission.waiting(), 0);
    assert!(admission.try_admit().unwrap().is_some(), "nobody overtakes, and nothing is lost");
}

#[tokio::test(start_paused = true)]
async fn under_overload_a_waiter_leaves_after_the_target_whoever_holds_the_permits() {
    let admission = Arc::new(Admission::new(1, None, Some((10 * MS, 100 * MS))));
    let mut held = admission.try_admit().unwrap();
    let far = Instant::now() + Duration::from_secs(3600);
    // Every wait of two intervals is 15 ms long, and nobody is refused.
    for _ in 0..13 {
        let next = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move { admission.admit(far, 0).await }
        });
        tokio::time::sleep(15 * MS).await;
        drop(held.take());
        held = Some(next.await.unwrap().unwrap());
    }
    let asked = Instant::now();
    assert_eq!(admission.admit(far, 0).await.unwrap_err(), Refused::Shed);
    assert_eq!(asked.elapsed(), 10 * MS);
    assert_eq!(admission.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn refusals_say_which() {
    let admission = Admission::new(1, Some(0), None);
    let _held = admission.try_admit().unwrap().unwrap();
    let soon = Instant::now() + MS;
    assert_eq!(admission.admit(soon, 0).await.unwrap_err(), Refused::QueueFull);
    let admission = Admission::new(0, None, None);
    assert_eq!(admission.admit(soon, 0).await.unwrap_err(), Refused::TimedOut);
    admission.close();
    assert_eq!(admission.admit(soon, 0).await.unwrap_err(), Refused::Closed);
}
