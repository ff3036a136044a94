//! A pool of threads for ranges of CTAs.
//!
//! Decoding launches hundreds of tiny kernels a token, so a launch costs as little as it can: one that a single thread finishes at
//! once runs on the calling thread with no wake-up; otherwise helpers that still spin after the last launch join within a
//! microsecond, parked ones are woken, and the caller never waits for a helper that has not yet joined.
//!
//! Needs: work that is right whichever thread does it. Keeps: every CTA runs exactly once; no helper touches the work after
//! [`Pool::run`] has returned; a panic in the work comes back as an error and the pool goes on.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::fmt;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Runs `cta_begin..cta_end` as thread number `thread` (0 is the caller's).
pub type Work<'a> = dyn Fn(i64, i64, usize) + Sync + 'a;

/// Threads that wait for launches; dropped, they end.
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Held during a launch: one at a time.
    launch: Mutex<()>,
}

/// Why a launch did not finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolError {
    /// The work panicked; some of its CTAs may not have run.
    Panicked(String),
    /// Work cannot launch: its thread's number, and what belongs to that number, are in use.
    Nested,
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(why) => write!(f, "a kernel launch failed inside the runtime: {why}"),
            Self::Nested => write!(f, "a kernel was launched from inside another launch's work"),
        }
    }
}

impl std::error::Error for PoolError {}

struct Shared {
    /// Number of the launch, whether helpers may still join it, and how many are in it: see [`State`].
    state: AtomicU64,
    /// Written by the caller while the launch is closed and nobody is in it; read by those who joined.
    job: UnsafeCell<Option<Job>>,
    next_chunk: AtomicU64,
    panic: Mutex<Option<String>>,
    /// How many helpers are parked or about to be.
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` alone is not `Sync`. Its writer is the caller, who holds `launch`, between a moment when the state shows a closed
// launch with nobody in it and the release that opens the next one; a reader first joins with an acquire, which only an open
// launch allows, and the caller waits for it to leave before the next write.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to `Sync` work, so it may be used from any thread while it is valid, see `Pool::run`.
unsafe impl Send for Shared {}

#[derive(Clone, Copy)]
struct Job {
    work: *const Work<'static>,
    n_ctas: u64,
    chunk: u64,
}

/// `launch number << 32 | open << 31 | number of helpers inside`.
#[derive(Clone, Copy)]
struct State(u64);

impl State {
    const OPEN: u64 = 1 << 31;
    /// Tells helpers to end.
    const SHUTDOWN: u64 = u64::MAX;

    fn launch(self) -> u64 {
        self.0 >> 32
    }
    fn is_open(self) -> bool {
        self.0 & Self::OPEN != 0
    }
    fn inside(self) -> u64 {
        self.0 & (Self::OPEN - 1)
    }
    /// Also where the number wraps: the launch before had another one, which is all that helpers compare.
    fn next_opened(self) -> Self {
        Self(((self.launch() + 1) % (1 << 31)) << 32 | Self::OPEN)
    }
}

thread_local! {
    /// Whether this thread is inside some pool's work.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Polls before a helper parks, and before a waiting caller gives way to other threads.
const SPINS: u32 = 4_000;
const YIELDS: u32 = 16;

impl Pool {
    /// A pool of `threads` threads, the caller's included.
    ///
    /// # Errors
    /// The operating system's, if it refuses a thread.
    pub fn new(threads: NonZeroUsize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next_chunk: AtomicU64::new(0),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        // Grows thread by thread, so that a refusal ends those that were started.
        let mut pool = Self {
            shared,
            helpers: Vec::new(),
            launch: Mutex::new(()),
        };
        for thread in 1..threads.get() {
            let shared = Arc::clone(&pool.shared);
            let helper = std::thread::Builder::new()
                .name(format!("kernel-{thread}"))
                .spawn(move || shared.help(thread))?;
            pool.helpers.push(helper);
        }
        Ok(pool)
    }

    /// How many threads share a launch, the caller's included; the thread numbers are `0..threads()`.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `work` on disjoint ranges that cover `0..n_ctas` (none if that is negative), each of `chunk` CTAs (at least 1) but for
    /// the last, and returns when all are done. A launch of one chunk, or on a pool of one thread, is one call on the caller's
    /// thread. Launches from several threads take turns, so at any time a thread number is in one thread's hands.
    ///
    /// # Errors
    /// [`PoolError`]; after a panic, ranges not begun by then are left out.
    pub fn run(&self, n_ctas: i64, chunk: i64, work: &Work<'_>) -> Result<(), PoolError> {
        if INSIDE.get() {
            return Err(PoolError::Nested);
        }
        let n_ctas = n_ctas.max(0) as u64;
        let chunk = chunk.max(1) as u64;
        if n_ctas == 0 {
            return Ok(());
        }
        let _launch = lock(&self.launch);
        if n_ctas <= chunk || self.helpers.is_empty() {
            return run_inline(n_ctas, work);
        }
        // SAFETY: only the lifetime changes. Helpers reach the work through `job` alone, between joining and leaving; before this
        // function returns or unwinds it has closed the launch and seen every helper leave (`finish`).
        let work = unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work) };
        let job = Job {
            work,
            n_ctas,
            chunk,
        };
        self.shared.open(job);
        self.shared.wake_helpers(n_ctas.div_ceil(chunk) - 1);
        self.shared.do_chunks(job, 0);
        self.shared.finish();
        match lock(&self.shared.panic).take() {
            Some(message) => Err(PoolError::Panicked(message)),
            None => Ok(()),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.store(State::SHUTDOWN, Ordering::SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.wake.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper catches what work throws; should it have died all the same, there is nothing left to end.
            let _ = helper.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("threads", &self.threads())
            .finish()
    }
}

impl Shared {
    fn open(&self, job: Job) {
        let closed = State(self.state.load(Ordering::Acquire));
        debug_assert!(!closed.is_open() && closed.inside() == 0);
        // SAFETY: the launch is closed, nobody is inside, and the caller holds `launch`; see the `Sync` of `Shared`.
        unsafe { *self.job.get() = Some(job) };
        self.next_chunk.store(0, Ordering::Relaxed);
        // Sequentially consistent, as is `sleepers`: either the caller sees a helper about to park, or that helper sees the launch.
        self.state.store(closed.next_opened().0, Ordering::SeqCst);
    }

    fn wake_helpers(&self, wanted: u64) {
        let sleepers = self.sleepers.load(Ordering::SeqCst) as u64;
        if sleepers == 0 {
            return;
        }
        // A helper between its last look and its wait holds this lock; after it the wait has begun and hears the call.
        drop(lock(&self.sleep));
        if wanted >= sleepers {
            self.wake.notify_all();
        } else {
            (0..wanted).for_each(|_| self.wake.notify_one());
        }
    }

    /// Takes chunks until none is left.
    fn do_chunks(&self, job: Job, thread: usize) {
        let chunks = job.n_ctas.div_ceil(job.chunk);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let _inside = Inside::enter();
            loop {
                let chunk = self.next_chunk.fetch_add(1, Ordering::Relaxed);
                if chunk >= chunks {
                    return;
                }
                let begin = chunk * job.chunk;
                let end = job.n_ctas.min(begin.saturating_add(job.chunk));
                // SAFETY: valid until the launch is finished, and this thread is part of it.
                unsafe { (*job.work)(begin as i64, end as i64, thread) };
            }
        }));
        if let Err(payload) = outcome {
            self.next_chunk.store(chunks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(message(payload.as_ref()));
        }
    }

    /// Closes the launch and waits for those inside.
    fn finish(&self) {
        let mut state = State(self.state.fetch_and(!State::OPEN, Ordering::AcqRel));
        let mut polls = 0;
        while state.inside() != 0 {
            relax(&mut polls);
            state = State(self.state.load(Ordering::Acquire));
        }
    }

    /// A helper's life.
    fn help(&self, thread: usize) {
        let mut last = 0;
        while let Some(launch) = self.join_launch(last) {
            last = launch;
            // SAFETY: joined, so the caller wrote the job before and does not write again until this thread leaves.
            if let Some(job) = unsafe { *self.job.get() } {
                self.do_chunks(job, thread);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an open launch other than `last` and joins it; `None` at shutdown.
    fn join_launch(&self, last: u64) -> Option<u64> {
        let mut polls = 0;
        loop {
            let state = State(self.state.load(Ordering::Acquire));
            if state.0 == State::SHUTDOWN {
                return None;
            }
            if state.is_open() && state.launch() != last {
                let joined = self.state.compare_exchange_weak(
                    state.0,
                    state.0 + 1,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                if joined.is_ok() {
                    return Some(state.launch());
                }
            } else if polls < SPINS + YIELDS {
                relax(&mut polls);
            } else {
                self.park(last);
                polls = 0;
            }
        }
    }

    /// Sleeps until a call to wake, unless there already is something to do.
    fn park(&self, last: u64) {
        let guard = lock(&self.sleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let state = State(self.state.load(Ordering::SeqCst));
        let idle = state.0 != State::SHUTDOWN && !(state.is_open() && state.launch() != last);
        if idle {
            // Woken for nothing is harmless: the helper looks again.
            drop(
                self.wake
                    .wait(guard)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Spins at first; later lets another thread have the core.
fn relax(polls: &mut u32) {
    *polls = polls.saturating_add(1);
    if *polls < SPINS {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

fn run_inline(n_ctas: u64, work: &Work<'_>) -> Result<(), PoolError> {
    let _inside = Inside::enter();
    catch_unwind(AssertUnwindSafe(|| work(0, n_ctas as i64, 0)))
        .map_err(|payload| PoolError::Panicked(message(payload.as_ref())))
}

/// Marks the thread as inside work for as long as it lives.
struct Inside;

impl Inside {
    fn enter() -> Self {
        INSIDE.set(true);
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

/// None of the locks guards data that a panic could leave half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
