//! The pool: every CTA exactly once, whatever the shape of the launch, and nothing left behind by one that failed.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use tessera_device::cpu::pool::{Pool, PoolError};

fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).expect("tests ask for some")).expect("a few threads start")
}

/// Runs a launch and checks that it covered `0..n_ctas` once, in ranges of at most `chunk`, on thread numbers of the pool.
fn check_coverage(pool: &Pool, n_ctas: i64, chunk: i64) {
    let runs: Vec<AtomicU32> = (0..n_ctas.max(0)).map(|_| AtomicU32::new(0)).collect();
    let work = |begin: i64, end: i64, thread: usize| {
        assert!(begin < end && thread < pool.threads());
        assert!(end - begin <= chunk.max(1) || pool.threads() == 1);
        for cta in begin..end {
            runs[cta as usize].fetch_add(1, Ordering::Relaxed);
        }
    };
    pool.run(n_ctas, chunk, &work)
        .expect("the work does not panic");
    for (cta, runs) in runs.iter().enumerate() {
        assert_eq!(
            runs.load(Ordering::Relaxed),
            1,
            "CTA {cta} of {n_ctas}, chunks of {chunk}"
        );
    }
}

#[test]
fn every_cta_runs_exactly_once() {
    for threads in [1, 2, 3, 7] {
        let pool = pool(threads);
        assert_eq!(pool.threads(), threads);
        for n_ctas in [-3, 0, 1, 2, 3, 64, 1000] {
            for chunk in [i64::MIN, 0, 1, 2, 63, 64, 65, i64::MAX] {
                check_coverage(&pool, n_ctas, chunk);
            }
        }
    }
}

/// Back to back, so that helpers meet launches that are just opening, closing or closed.
#[test]
fn many_short_launches_in_a_row() {
    let pool = pool(4);
    for launch in 0..5_000 {
        check_coverage(&pool, launch % 9, 1);
    }
}

/// Far enough apart that helpers park in between.
#[test]
fn parked_helpers_come_back() {
    let pool = pool(3);
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(3));
        let seen = Mutex::new(std::collections::BTreeSet::new());
        // Each CTA waits until all three threads hold one: ends only if both helpers were woken.
        let holding = AtomicUsize::new(0);
        let work = |_: i64, _: i64, thread: usize| {
            seen.lock().expect("nobody panics").insert(thread);
            holding.fetch_add(1, Ordering::SeqCst);
            while holding.load(Ordering::SeqCst) < 3 {
                std::thread::yield_now();
            }
        };
        pool.run(3, 1, &work).expect("the work does not panic");
        assert_eq!(seen.into_inner().expect("nobody panics").len(), 3);
    }
}

#[test]
fn a_launch_of_one_chunk_stays_on_the_calling_thread() {
    let pool = pool(4);
    let caller = std::thread::current().id();
    for n_ctas in [1, 8] {
        let calls = Mutex::new(vec![]);
        let work = |begin: i64, end: i64, thread: usize| {
            assert_eq!(std::thread::current().id(), caller);
            calls
                .lock()
                .expect("nobody panics")
                .push((begin, end, thread));
        };
        pool.run(n_ctas, 8, &work).expect("the work does not panic");
        assert_eq!(calls.into_inner().expect("nobody panics"), [(0, n_ctas, 0)]);
    }
}

#[test]
fn a_panic_is_an_error_and_the_pool_goes_on() {
    let pool = pool(3);
    for (n_ctas, bad) in [(1, 0), (100, 0), (100, 99), (100, 50)] {
        let work = |begin: i64, end: i64, _: usize| {
            assert!(!(begin..end).contains(&bad), "CTA {bad} is bad");
        };
        assert_eq!(
            pool.run(n_ctas, 1, &work),
            Err(PoolError::Panicked(format!("CTA {bad} is bad")))
        );
        check_coverage(&pool, 100, 1);
    }
}

#[test]
fn work_cannot_launch() {
    let pool = pool(2);
    for n_ctas in [1, 10] {
        let nested = Mutex::new(vec![]);
        let work = |_: i64, _: i64, _: usize| {
            nested
                .lock()
                .expect("nobody panics")
                .push(pool.run(1, 1, &|_, _, _| {}));
        };
        pool.run(n_ctas, 1, &work).expect("the work does not panic");
        let nested = nested.into_inner().expect("nobody panics");
        assert_eq!(nested, vec![Err(PoolError::Nested); n_ctas as usize]);
    }
    check_coverage(&pool, 10, 1);
}

#[test]
fn launches_from_several_threads_take_turns() {
    let pool = pool(3);
    let busy: Vec<AtomicU32> = (0..3).map(|_| AtomicU32::new(0)).collect();
    let work = |_: i64, _: i64, thread: usize| {
        assert_eq!(
            busy[thread].fetch_add(1, Ordering::SeqCst),
            0,
            "number {thread} is taken"
        );
        std::hint::spin_loop();
        busy[thread].fetch_sub(1, Ordering::SeqCst);
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n_ctas in 0..500 {
                    pool.run(n_ctas % 5, 1, &work)
                        .expect("numbers are exclusive");
                }
            });
        }
    });
}
