//! Host memory for tensors and scratch: 64-byte aligned, zeroed by the operating system where it is large.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Cache lines, and the widest vector loads.
pub const ALIGN: usize = 64;

/// An aligned block of bytes; never empty, so that even an empty tensor has an address.
pub struct HostBuffer {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the buffer owns its bytes.
unsafe impl Send for HostBuffer {}
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// At least `bytes` zero bytes; `None` when there is no memory.
    pub fn zeroed(bytes: usize) -> Option<Self> {
        let bytes = bytes.max(1).checked_next_multiple_of(ALIGN)?;
        let layout = Layout::from_size_align(bytes, ALIGN).ok()?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(HostBuffer { start, bytes })
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: owned and initialised.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: owned and initialised; the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// The address of the bytes; whoever writes through it sees to it that nobody else uses them meanwhile.
    pub(crate) fn as_mut_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Grows to at least `bytes`; the contents are lost when it does.
    pub fn grow(&mut self, bytes: usize) -> bool {
        if bytes <= self.bytes {
            return true;
        }
        match HostBuffer::zeroed(bytes) {
            Some(larger) => {
                *self = larger;
                true
            }
            None => false,
        }
    }
}

impl Clone for HostBuffer {
    fn clone(&self) -> Self {
        let Some(mut copy) = HostBuffer::zeroed(self.bytes) else {
            std::alloc::handle_alloc_error(Layout::new::<u8>());
        };
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        let layout =
            Layout::from_size_align(self.bytes, ALIGN).expect("it was allocated with this layout");
        // SAFETY: allocated by `zeroed` with this layout.
        unsafe { dealloc(self.start.as_ptr(), layout) }
    }
}
