//! Timelines: the launches of a library's kernels as a program makes them, in order, with what each is for.
//!
//! Needs: somebody who says what launches are for ([`Library::section`]). Keeps: launches run as they would without it, one after another.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::cuda::{CudaError, Mark};
use crate::{Device, Library};

/// One launch of a timeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub kernel: Arc<str>,
    /// What the program said that it is for.
    pub section: Arc<str>,
    /// Since the timeline's start.
    pub start: f64,
    pub seconds: f64,
}

/// Where a timeline begins.
#[derive(Debug)]
pub struct TimelineStart(Option<Mark>);

/// Off but for one load per launch.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    on: AtomicBool,
    noted: Mutex<Noted>,
}

/// What was launched so far, and what the next launches are for.
#[derive(Debug, Default)]
struct Noted {
    section: Option<Arc<str>>,
    launches: Vec<Launch>,
}

#[derive(Debug)]
struct Launch {
    kernel: Arc<str>,
    section: Arc<str>,
    end: End,
}

/// How the time of a launch's end is known.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Took(Duration),
    Passes(Mark),
}

impl Timeline {
    fn start(&self) {
        *self.lock() = Noted::default();
        self.on.store(true, Ordering::Relaxed);
    }

    fn stop(&self) -> Vec<Launch> {
        self.on.store(false, Ordering::Relaxed);
        std::mem::take(&mut self.lock().launches)
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    pub fn note(&self, kernel: &Arc<str>, end: End) {
        let mut noted = self.lock();
        let section = noted.section.get_or_insert_with(|| "".into()).clone();
        let kernel = kernel.clone();
        noted.launches.push(Launch {
            kernel,
            section,
            end,
        });
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Library {
    /// Starts a timeline of the launches of this library's kernels, which run as they would without it.
    ///
    /// # Errors
    /// The device does not work.
    pub fn start_timeline(&self) -> Result<TimelineStart, CudaError> {
        let first = match &self.device {
            Device::Cpu(_) => None,
            Device::Cuda(gpu) => Some(gpu.start_timeline()?),
        };
        self.profiler.timeline.start();
        Ok(TimelineStart(first))
    }

    /// Says on a timeline what the next launches are for; costs nothing without one.
    pub fn section(&self, name: impl FnOnce() -> String) {
        let timeline = &self.profiler.timeline;
        if timeline.is_on() {
            timeline.lock().section = Some(name().into());
        }
    }

    /// Ends the timeline: all launches in order. On a GPU a launch's time goes from the end of the one before it to its own.
    ///
    /// # Errors
    /// A launch failed, or the device does not work.
    pub fn stop_timeline(&self, start: TimelineStart) -> Result<Vec<Span>, CudaError> {
        let launches = self.profiler.timeline.stop();
        let ends = match (&self.device, start.0) {
            (Device::Cuda(gpu), Some(first)) => {
                let marks = launches.iter().filter_map(|noted| match noted.end {
                    End::Passes(mark) => Some(mark),
                    End::Took(_) => None,
                });
                gpu.end_timeline(first, &marks.collect::<Vec<_>>())?
            }
            _ => {
                let ends = launches.iter().scan(0.0, |end, noted| {
                    if let End::Took(time) = noted.end {
                        *end += time.as_secs_f64();
                    }
                    Some(*end)
                });
                ends.collect()
            }
        };
        let starts = std::iter::once(0.0).chain(ends.iter().copied());
        let spans = launches.into_iter().zip(starts.zip(&ends));
        Ok(spans
            .map(|(noted, (start, &end))| Span {
                kernel: noted.kernel,
                section: noted.section,
                start,
                seconds: end - start,
            })
            .collect())
    }
}
