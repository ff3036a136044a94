//! The time that work takes on a GPU, as the GPU itself measures it.
//!
//! Before each launch a kernel reads memory five times as large as the second-level cache, which leaves nothing else in that, and keeps the GPU
//! busy while the host asks for what follows, so that the time between the two marks has none of the host's in it. It reads and does not write:
//! a cache full of what still has to go to memory would cost the measured work up to 10 µs on an H100.
//!
//! Keeps: the measured work is queued alone between its marks. A timeline is the other way to measure: launches as a program makes them, one
//! behind the other, with a mark between each two; for it the GPU is only kept busy until many are queued.

use std::ffi::CStr;
use std::sync::Arc;

use super::context::{CudaBuffer, CudaError};
use super::device::{CudaDevice, device_error, launch_error};
use super::driver::{CallError, Function, Gpu, Mark};
use crate::launch::LaunchError;

/// What is asked for, before and between the marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Before,
    Timed,
}

/// Kept from one measurement to the next.
pub(super) struct Timing {
    /// Read before each launch.
    flush: CudaBuffer,
    read: Function,
    empty: Function,
}

/// A kernel that does nothing.
const EMPTY: &CStr = c".version 8.0
.target sm_90
.address_size 64
.visible .entry empty(
.param .align 8 .b8 words[8]
)
.reqntid 32, 1, 1
{
ret;
}
";

/// Reads from the first address to the second, 16 bytes for each thread at a time. The store, which never happens, keeps the loads.
const READ: &CStr = c".version 8.0
.target sm_90
.address_size 64
.visible .entry read(
.param .align 8 .b8 words[16]
)
.reqntid 256, 1, 1
{
.reg .pred %p<3>;
.reg .b32 %r<10>;
.reg .b64 %d<6>;
ld.param.u64 %d1, [words];
ld.param.u64 %d2, [words+8];
mov.u32 %r1, %ctaid.x;
mov.u32 %r2, %tid.x;
mov.u32 %r3, %nctaid.x;
mad.lo.u32 %r1, %r1, 256, %r2;
mul.wide.u32 %d3, %r1, 16;
add.u64 %d3, %d1, %d3;
mul.wide.u32 %d4, %r3, 4096;
mov.u32 %r9, 0;
next:
setp.ge.u64 %p1, %d3, %d2;
@%p1 bra done;
ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%d3];
xor.b32 %r4, %r4, %r5;
xor.b32 %r6, %r6, %r7;
xor.b32 %r9, %r9, %r4;
xor.b32 %r9, %r9, %r6;
add.u64 %d3, %d3, %d4;
bra next;
done:
setp.eq.u32 %p2, %r9, 1;
@%p2 st.global.u32 [%d1], %r9;
ret;
}
";
/// CTAs of it.
const READERS: u32 = 1024;
/// How often it runs ahead of a timeline: some 15 ms on an H100, in which a host asks for a thousand launches.
const AHEAD: usize = 160;

impl CudaDevice {
    fn timing(&self, gpu: &dyn Gpu) -> Result<&Timing, CudaError> {
        if let Some(timing) = self.timing.get() {
            return Ok(timing);
        }
        let refused = |error| CallError::Failed {
            call: "cuModuleLoadDataEx",
            error,
        };
        // 256 MiB on an H100.
        let flush =
            (self.context).allocate((5 * gpu.facts().cache_bytes as usize).next_power_of_two())?;
        flush.fill(0)?;
        let made = Timing {
            flush,
            read: gpu
                .load(READ.to_bytes_with_nul(), c"read", 0)
                .map_err(refused)?,
            empty: gpu
                .load(EMPTY.to_bytes_with_nul(), c"empty", 0)
                .map_err(refused)?,
        };
        Ok(self.timing.get_or_init(|| made))
    }

    /// Seconds of each of so many runs of `work`, from the cache's being empty on. The queue is empty but for records.
    pub(super) fn timed(
        &self,
        name: &Arc<str>,
        runs: usize,
        work: &mut dyn FnMut(&dyn Gpu, Part) -> Result<(), CallError>,
    ) -> Result<Vec<f64>, LaunchError> {
        let failed = device_error(name);
        let gpu = self.context.gpu().map_err(failed)?;
        let timing = self.timing(gpu).map_err(failed)?;
        let start = timing.flush.address();
        let mut range = [start, start + timing.flush.bytes() as u64];
        gpu.forget_marks();
        let mut run = || {
            work(gpu, Part::Before)?;
            // SAFETY: the buffer lies there.
            unsafe { gpu.launch(timing.read, READERS, 256, 0, &mut range, false) }?;
            let start = gpu.mark()?;
            work(gpu, Part::Timed)?;
            let end = gpu.mark()?;
            self.context.queue().watch(Arc::clone(name), end);
            Ok((start, end))
        };
        let marks: Result<Vec<_>, CallError> = (0..runs).map(|_| run()).collect();
        self.finish().map_err(launch_error(name))?;
        let seconds = marks.and_then(|marks| {
            let seconds = marks.into_iter();
            seconds
                .map(|(from, to)| gpu.seconds_between(from, to))
                .collect()
        });
        seconds.map_err(|why| failed(why.into()))
    }

    /// Seconds that each of so many launches of a kernel takes that does nothing: what any launch costs.
    ///
    /// # Errors
    /// The device does not work.
    pub fn time_empty(&self, launches: usize) -> Result<Vec<f64>, LaunchError> {
        let name = Arc::from("empty");
        let failed = device_error(&name);
        self.finish().map_err(launch_error(&name))?;
        let gpu = self.context.gpu().map_err(failed)?;
        let empty = self.timing(gpu).map_err(failed)?.empty;
        self.timed(&name, launches, &mut |gpu, part| match part {
            Part::Before => Ok(()),
            // SAFETY: it takes one word and touches nothing.
            Part::Timed => unsafe { gpu.launch(empty, 1, 32, 0, &mut [0], false) },
        })
    }

    /// Seconds that each of so many copies takes, and the bytes that one reads and writes together: four times as much as is filled before.
    ///
    /// # Errors
    /// No memory, or the device does not work.
    pub fn time_copy(&self, copies: usize) -> Result<(Vec<f64>, u64), LaunchError> {
        let name = Arc::from("copy");
        let failed = device_error(&name);
        self.finish().map_err(launch_error(&name))?;
        let gpu = self.context.gpu().map_err(failed)?;
        let bytes = 2 * self.timing(gpu).map_err(failed)?.flush.bytes();
        let from = self.context.allocate(bytes).map_err(failed)?;
        let to = self.context.allocate(bytes).map_err(failed)?;
        from.fill(1).map_err(failed)?;
        let seconds = self.timed(&name, copies, &mut |gpu, part| match part {
            Part::Before => Ok(()),
            // SAFETY: both have that many bytes, and the work is over when `timed` returns.
            Part::Timed => unsafe { gpu.copy_within(to.address(), from.address(), bytes) },
        })?;
        Ok((seconds, 2 * bytes as u64))
    }

    /// From here on marks are kept; the first is returned. The GPU has work to do before it, so that it never waits for the host after it.
    ///
    /// # Errors
    /// The device does not work.
    pub(crate) fn start_timeline(&self) -> Result<Mark, CudaError> {
        let gpu = self.context.finish()?;
        let flush = &self.timing(gpu)?.flush;
        let start = flush.address();
        let mut range = [start, start + flush.bytes() as u64];
        let read = self.timing(gpu)?.read;
        gpu.forget_marks();
        self.context.queue().keeps_marks = true;
        for _ in 0..AHEAD {
            // SAFETY: the buffer lies there.
            unsafe { gpu.launch(read, READERS, 256, 0, &mut range, false) }?;
        }
        Ok(gpu.mark()?)
    }

    /// Seconds from `first` to each of `marks`, when all of them have passed; marks are kept no longer.
    ///
    /// # Errors
    /// A launch failed, or the device does not work.
    pub(crate) fn end_timeline(&self, first: Mark, marks: &[Mark]) -> Result<Vec<f64>, CudaError> {
        let finished = self.context.finish();
        self.context.queue().keeps_marks = false;
        let gpu = finished?;
        let seconds = marks.iter().map(|&mark| gpu.seconds_between(first, mark));
        Ok(seconds.collect::<Result<_, _>>()?)
    }
}
