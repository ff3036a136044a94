//! Launches that were queued and that nobody has seen to their end yet.
//!
//! Every launch has a record of its own in the GPU's memory, in which its kernel notes a failed check, and a mark behind it. Whoever reads
//! memory of the GPU, frees it or asks for it waits for the queue first, and learns which kernel failed a check or hangs.
//!
//! Keeps: of several failures the first is reported, once, to whoever asks next.

use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use tessera_artifact::PtxCode;

use super::driver::{CallError, Gpu, Mark};
use super::order::{Access, Order};
use crate::launch::{LaunchError, coordinates};

/// Launches that may be under way at the same time, or in one recording.
pub(super) const MOST: usize = 4096;
/// Two u64.
pub(super) const RECORD_BYTES: usize = 16;
/// How long a queue is waited for without sleeping: most are done by then.
const SPIN: Duration = Duration::from_millis(2);

/// One launch, as far as its failure is concerned.
pub(super) struct Launched {
    pub kernel: Arc<str>,
    pub code: Arc<PtxCode>,
    pub grid: [i64; 3],
}

/// Launches and their records, one behind the other from an address of the GPU on.
pub(super) struct Records {
    address: u64,
    launches: Vec<Launched>,
}

/// Of the launches of one thread.
struct Recorder {
    thread: ThreadId,
    records: Records,
    order: Order,
}

pub(super) struct Queue {
    records: Records,
    /// Recordings that were replayed.
    replays: Vec<Arc<Records>>,
    /// What is under way in order: a kernel's name or that of a recording, and the mark behind it where there is one.
    under_way: Vec<(Arc<str>, Option<Mark>)>,
    /// Launches of this thread are recorded.
    recorder: Option<Recorder>,
    /// The first that nobody was told of.
    failure: Option<LaunchError>,
    /// Somebody reads marks later than the queue does.
    pub keeps_marks: bool,
}

impl Records {
    /// `address`: of [`MOST`] records, all zero.
    pub fn new(address: u64) -> Self {
        Records {
            address,
            launches: Vec::new(),
        }
    }

    /// `embed … linear`
    pub fn name(&self) -> String {
        match &self.launches[..] {
            [] => "nothing".to_owned(),
            [one] => one.kernel.to_string(),
            [first, .., last] => format!("{} … {}", first.kernel, last.kernel),
        }
    }

    /// The first failed check that is noted; the records are zero again then.
    fn verdict(&self, gpu: &dyn Gpu) -> Result<Option<LaunchError>, CallError> {
        let mut bytes = vec![0u8; self.launches.len() * RECORD_BYTES];
        if bytes.is_empty() {
            return Ok(None);
        }
        // SAFETY: there are at least as many records as launches.
        unsafe { gpu.copy_to_host(&mut bytes, self.address) }?;
        let word = |at: usize| {
            u64::from_le_bytes(bytes[8 * at..8 * at + 8].try_into().expect("eight bytes"))
        };
        let Some(at) = (0..self.launches.len()).find(|&at| word(2 * at) != 0) else {
            return Ok(None);
        };
        // SAFETY: as above.
        unsafe { gpu.fill(self.address, 0, bytes.len()) }?;
        gpu.wait()?;
        let Launched { kernel, code, grid } = &self.launches[at];
        let number = word(2 * at);
        Ok(Some(LaunchError::Check {
            kernel: kernel.to_string(),
            what: (code.traps.get(number as usize - 1).cloned())
                .unwrap_or_else(|| format!("check {number}")),
            block: coordinates(word(2 * at + 1), grid),
        }))
    }
}

impl Queue {
    /// `address`: of [`MOST`] records, all zero.
    pub fn new(address: u64) -> Self {
        Queue {
            records: Records::new(address),
            replays: Vec::new(),
            under_way: Vec::new(),
            recorder: None,
            failure: None,
            keeps_marks: false,
        }
    }

    /// The address of the record of the next launch; `None` if there is room for no more.
    pub fn next_record(&self) -> Option<u64> {
        let records = match &self.recorder {
            Some(recorder) => &recorder.records,
            None => &self.records,
        };
        let used = records.launches.len();
        (used < MOST).then(|| records.address + (used * RECORD_BYTES) as u64)
    }

    /// Notes a launch that was queued, or recorded if there is a recorder; the mark behind it.
    pub fn launched(
        &mut self,
        launched: Launched,
        gpu: &dyn Gpu,
    ) -> Result<Option<Mark>, CallError> {
        if let Some(recorder) = &mut self.recorder {
            recorder.records.launches.push(launched);
            return Ok(None);
        }
        let name = launched.kernel.clone();
        self.records.launches.push(launched);
        self.mark(name, gpu).map(Some)
    }

    /// Notes a launch whose end [`watch`](Self::watch) shows.
    pub fn launched_unmarked(&mut self, launched: Launched) {
        self.records.launches.push(launched);
    }

    /// Notes work that ends where the mark is.
    pub fn watch(&mut self, name: Arc<str>, mark: Mark) {
        self.under_way.push((name, Some(mark)));
    }

    fn mark(&mut self, name: Arc<str>, gpu: &dyn Gpu) -> Result<Mark, CallError> {
        if self.under_way.is_empty() && !self.keeps_marks {
            gpu.forget_marks();
        }
        let mark = gpu.mark();
        self.under_way.push((name, mark.clone().ok()));
        mark
    }

    pub fn replayed(
        &mut self,
        name: Arc<str>,
        records: Arc<Records>,
        gpu: &dyn Gpu,
    ) -> Result<(), CallError> {
        if !self
            .replays
            .iter()
            .any(|other| Arc::ptr_eq(other, &records))
        {
            self.replays.push(records);
        }
        self.mark(name, gpu).map(drop)
    }

    /// From here on launches of this thread are noted in `records`.
    pub fn start_recording(&mut self, thread: ThreadId, records: Records) {
        self.recorder = Some(Recorder {
            thread,
            records,
            order: Order::default(),
        });
    }

    pub fn end_recording(&mut self) -> Option<Records> {
        self.recorder.take().map(|recorder| recorder.records)
    }

    pub fn recording_thread(&self) -> Option<ThreadId> {
        self.recorder.as_ref().map(|recorder| recorder.thread)
    }

    /// The recorded works that the next one has to wait for, by number, if anything is recorded.
    pub fn recorded_before(&mut self, touches: impl FnOnce() -> Vec<Access>) -> Option<Vec<usize>> {
        let recorder = self.recorder.as_mut()?;
        Some(recorder.order.next(touches()))
    }

    /// The failure that nobody was told of.
    pub fn take_failure(&mut self) -> Option<LaunchError> {
        self.failure.take()
    }

    /// Waits for all of it and keeps what failed. While something is recorded there is nothing to wait for.
    ///
    /// # Errors
    /// Why the GPU is of no more use: something hangs, or broke its context.
    pub fn see_out(&mut self, gpu: &dyn Gpu, watchdog: Duration) -> Result<(), String> {
        if self.under_way.is_empty() || self.recorder.is_some() {
            return Ok(());
        }
        let waited = self.wait(gpu, watchdog);
        self.under_way.clear();
        let replays = std::mem::take(&mut self.replays);
        let result = match waited {
            Err((kernel, what)) => {
                let why = format!("kernel `{kernel}`: {what}");
                self.failure
                    .get_or_insert(LaunchError::Device { kernel, what });
                Err(why)
            }
            Ok(()) => {
                // All are asked, since asking clears them.
                for records in std::iter::once(&self.records).chain(replays.iter().map(|r| &**r)) {
                    let failed = records.verdict(gpu).unwrap_or_else(|why| {
                        Some(LaunchError::Device {
                            kernel: records.name(),
                            what: why.to_string(),
                        })
                    });
                    self.failure = self.failure.take().or(failed);
                }
                Ok(())
            }
        };
        self.records.launches.clear();
        result
    }

    /// # Errors
    /// Which kernel, and what.
    fn wait(&self, gpu: &dyn Gpu, watchdog: Duration) -> Result<(), (String, String)> {
        let start = Instant::now();
        let (mut first, mut since) = (0, start);
        loop {
            match gpu.is_done() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // What a kernel breaks stays broken for the whole context, and marks say no more then.
                Err(why) => return Err((self.suspects(first), why.to_string())),
            }
            let now = Instant::now();
            if now - start < SPIN {
                std::hint::spin_loop();
                continue;
            }
            let passed = |at: usize| match self.under_way[at].1 {
                Some(mark) => gpu.has_passed(mark).unwrap_or(false),
                None => false,
            };
            let before = first;
            while first < self.under_way.len() && passed(first) {
                first += 1;
            }
            if first != before {
                since = now;
            } else if now - since > watchdog {
                let name = match self.under_way.get(first) {
                    Some((name, Some(_))) => name.to_string(),
                    _ => self.suspects(first),
                };
                let what = format!("it has not ended after {} s", watchdog.as_secs_f64());
                return Err((name, what));
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// The kernel that is under way, or the first and the last of several of which nobody knows which it is.
    fn suspects(&self, first: usize) -> String {
        let (first, last) = (self.under_way.get(first), self.under_way.last());
        match (first, last) {
            (Some((first, _)), Some((last, _))) if first != last => format!("{first} … {last}"),
            (_, Some((last, _))) => last.to_string(),
            _ => "nothing".to_owned(),
        }
    }
}
