//! Launches that were recorded instead of queued, to be queued together as often as asked for: what CUDA calls a graph.
//!
//! A recording holds addresses. Scratch memory and records are its own to keep; the arguments' memory is the caller's.

use std::sync::{Arc, PoisonError};

use super::context::{Context, CudaBuffer, CudaError};
use super::device::CudaDevice;
use super::driver::Recording;
use super::queue::{MOST, RECORD_BYTES, Records};

pub struct CudaRecording {
    context: Arc<Context>,
    recording: Recording,
    name: Arc<str>,
    records: Arc<Records>,
    /// What the launches use besides their arguments.
    _memory: [Arc<CudaBuffer>; 3],
}

impl CudaDevice {
    /// Records the launches that `work` makes instead of queueing them.
    ///
    /// # Errors
    /// That of `work`, or the driver's: something that cannot be recorded, such as a first launch that needs scratch memory.
    pub fn record<E: From<CudaError>>(
        &self,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<CudaRecording, E> {
        let bytes = MOST * RECORD_BYTES;
        let records = Arc::new(self.context.allocate(bytes)?);
        records.fill(0)?;
        let gpu = self.context.finish()?;
        let thread = std::thread::current().id();
        (self.context.queue()).start_recording(thread, Records::new(records.address()));
        let started = gpu.start_recording();
        let worked = match started {
            Ok(()) => work(),
            Err(_) => Ok(()),
        };
        let recording = started.and_then(|()| gpu.end_recording());
        let launched = self.context.queue().end_recording();
        let forget = |recording| gpu.forget_recording(recording);
        if let Err(why) = worked {
            recording.map(forget).unwrap_or_default();
            return Err(why);
        }
        let recording = recording.map_err(CudaError::Call)?;
        let launched = launched.expect("started above, and ended nowhere else");
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(CudaRecording {
            context: Arc::clone(&self.context),
            recording,
            name: Arc::from(launched.name()),
            records: Arc::new(launched),
            _memory: [
                records,
                Arc::clone(&memory.arena),
                Arc::clone(&memory.scratch),
            ],
        })
    }
}

impl CudaRecording {
    /// Queues all its launches.
    ///
    /// # Errors
    /// The GPU does not work.
    ///
    /// # Safety
    /// The memory of the launches' arguments is where it was, and stays until the queue is waited for; nothing else is borrowed of it
    /// that the launches write.
    pub unsafe fn replay(&self) -> Result<(), CudaError> {
        let gpu = self.context.gpu()?;
        // SAFETY: the caller's word for the arguments; the rest is kept here.
        unsafe { gpu.replay(self.recording) }?;
        let (name, records) = (Arc::clone(&self.name), Arc::clone(&self.records));
        Ok(self.context.queue().replayed(name, records, gpu)?)
    }
}

impl Drop for CudaRecording {
    fn drop(&mut self) {
        if let Ok(gpu) = self.context.see_out() {
            gpu.forget_recording(self.recording);
        }
    }
}
