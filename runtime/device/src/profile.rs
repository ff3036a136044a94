//! Time by kernel, while somebody measures.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::timeline::Timeline;

/// What the launches of one kernel took together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelTime {
    pub launches: u64,
    pub time: Duration,
}

/// Off but for a load or two per launch.
#[derive(Debug, Default)]
pub(crate) struct Profiler {
    on: AtomicBool,
    times: Mutex<BTreeMap<String, KernelTime>>,
    pub timeline: Timeline,
}

impl Profiler {
    pub fn start(&self) {
        self.times
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.on.store(true, Ordering::Relaxed);
    }

    pub fn stop(&self) -> BTreeMap<String, KernelTime> {
        self.on.store(false, Ordering::Relaxed);
        std::mem::take(&mut self.times.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a launch of `kernel`, with the clock if it is on.
    pub fn time<T>(&self, kernel: &str, launch: impl FnOnce() -> T) -> T {
        if !self.is_on() {
            return launch();
        }
        let start = Instant::now();
        let result = launch();
        self.add(kernel, start.elapsed());
        result
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Counts a launch of `kernel` that took so long.
    pub fn add(&self, kernel: &str, taken: Duration) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = times.entry(kernel.to_owned()).or_default();
        entry.launches += 1;
        entry.time += taken;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_count_only_while_it_is_on() {
        let profiler = Profiler::default();
        profiler.time("a", || ());
        profiler.start();
        assert_eq!(profiler.time("a", || 7), 7);
        profiler.time("a", || ());
        profiler.time("b", || ());
        let times = profiler.stop();
        profiler.time("b", || ());
        assert_eq!((times["a"].launches, times["b"].launches), (2, 1));
        profiler.start();
        assert!(profiler.stop().is_empty());
    }
}
