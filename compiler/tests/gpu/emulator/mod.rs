//! A CUDA driver with an emulated H100 behind it: it runs the PTX that the compiler makes, slowly and strictly, on a machine without a
//! GPU. What it cannot tell is what the hardware and its assembler make of the same PTX; that is for a machine that has one.

mod alu;
mod machine;
mod ptx;

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, PoisonError};

use machine::Launch;
use ptx::Program;
use tessera_device::Device;

const OUT_OF_MEMORY: c_uint = 2;
const INVALID_PTX: c_uint = 218;
const LAUNCH_FAILED: c_uint = 719;
const ALIGN: usize = 256;

/// The one emulated GPU of this process.
pub fn device() -> Device {
    // SAFETY: they do, as far as this program's devices call them.
    unsafe { tessera_device::cuda::driver::use_functions(look_up) };
    Device::cuda().unwrap_or_else(|why| panic!("{why}"))
}

struct State {
    allocations: BTreeMap<u64, usize>,
    shared_limit: usize,
    /// What `cuGetErrorName` says of a failed launch.
    failure: Option<CString>,
}

static STATE: Mutex<State> = Mutex::new(State {
    allocations: BTreeMap::new(),
    shared_limit: 0,
    failure: None,
});

fn state() -> std::sync::MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn look_up(name: &str) -> Option<*const c_void> {
    Some(match name {
        "cuInit" => init as *const c_void,
        "cuGetErrorName" => error_name as *const c_void,
        "cuDeviceGet" => device_get as *const c_void,
        "cuDeviceGetName" => device_name as *const c_void,
        "cuDeviceGetAttribute" => attribute as *const c_void,
        "cuDevicePrimaryCtxRetain" => retain as *const c_void,
        "cuCtxSetCurrent" => one_handle as *const c_void,
        "cuStreamCreate" | "cuEventCreate" => create as *const c_void,
        "cuEventRecord" => two_handles as *const c_void,
        "cuEventQuery" => one_handle as *const c_void,
        "cuMemAlloc_v2" => allocate as *const c_void,
        "cuMemFree_v2" => free as *const c_void,
        "cuMemcpyHtoD_v2" => to_device as *const c_void,
        "cuMemcpyDtoH_v2" => to_host as *const c_void,
        "cuMemcpyDtoD_v2" => to_device_from_device as *const c_void,
        "cuMemsetD8_v2" => fill as *const c_void,
        "cuMemsetD8Async" => fill_queued as *const c_void,
        "cuCtxSynchronize" => nothing as *const c_void,
        "cuModuleLoadDataEx" => load_module as *const c_void,
        "cuModuleGetFunction" => function as *const c_void,
        "cuFuncSetAttribute" => function_attribute as *const c_void,
        "cuOccupancyMaxActiveBlocksPerMultiprocessor" => occupancy as *const c_void,
        "cuLaunchKernel" => launch as *const c_void,
        _ => return None,
    })
}

// The functions have the signatures of `cuda.h`; callers keep its rules.

extern "C" fn init(_flags: c_uint) -> c_uint {
    0
}

extern "C" fn nothing() -> c_uint {
    0
}

extern "C" fn one_handle(_handle: *mut c_void) -> c_uint {
    0
}

extern "C" fn two_handles(_a: *mut c_void, _b: *mut c_void) -> c_uint {
    0
}

unsafe extern "C" fn error_name(status: c_uint, name: *mut *const c_char) -> c_uint {
    let mut state = state();
    let text = match (status, &state.failure) {
        (LAUNCH_FAILED, Some(failure)) => failure.clone(),
        _ => CString::new(format!("EMULATED_ERROR_{status}")).expect("no zero inside"),
    };
    state.failure = None;
    // The caller keeps it for ever, as a name of the driver's.
    unsafe { *name = text.into_raw() };
    0
}

unsafe extern "C" fn device_get(device: *mut c_int, ordinal: c_int) -> c_uint {
    if ordinal != 0 {
        return 101;
    }
    unsafe { *device = 0 };
    0
}

unsafe extern "C" fn device_name(name: *mut c_char, len: c_int, _device: c_int) -> c_uint {
    let text = c"emulated H100";
    assert!(text.count_bytes() < len as usize);
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), name, text.count_bytes() + 1) };
    0
}

unsafe extern "C" fn attribute(value: *mut c_int, which: c_int, _device: c_int) -> c_uint {
    let number = match which {
        16 => 4,
        75 => 9,
        76 => 0,
        97 => 227 * 1024,
        _ => return 1,
    };
    unsafe { *value = number };
    0
}

unsafe extern "C" fn retain(context: *mut *mut c_void, _device: c_int) -> c_uint {
    unsafe { *context = std::ptr::dangling_mut() };
    0
}

unsafe extern "C" fn create(handle: *mut *mut c_void, _flags: c_uint) -> c_uint {
    unsafe { *handle = std::ptr::dangling_mut() };
    0
}

unsafe extern "C" fn allocate(address: *mut u64, bytes: usize) -> c_uint {
    let Ok(layout) = Layout::from_size_align(bytes, ALIGN) else {
        return OUT_OF_MEMORY;
    };
    let start = unsafe { alloc(layout) };
    if start.is_null() {
        return OUT_OF_MEMORY;
    }
    // Fresh memory holds anything.
    unsafe { std::ptr::write_bytes(start, 0xa5, bytes) };
    state().allocations.insert(start as u64, bytes);
    unsafe { *address = start as u64 };
    0
}

unsafe extern "C" fn free(address: u64) -> c_uint {
    let Some(bytes) = state().allocations.remove(&address) else {
        return 1;
    };
    let layout = Layout::from_size_align(bytes, ALIGN).expect("it was allocated with this layout");
    unsafe { dealloc(address as *mut u8, layout) };
    0
}

unsafe extern "C" fn to_device(to: u64, from: *const c_void, bytes: usize) -> c_uint {
    unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), to as *mut u8, bytes) };
    0
}

unsafe extern "C" fn to_host(to: *mut c_void, from: u64, bytes: usize) -> c_uint {
    unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.cast::<u8>(), bytes) };
    0
}

unsafe extern "C" fn to_device_from_device(to: u64, from: u64, bytes: usize) -> c_uint {
    unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
    0
}

unsafe extern "C" fn fill(to: u64, value: u8, bytes: usize) -> c_uint {
    unsafe { std::ptr::write_bytes(to as *mut u8, value, bytes) };
    0
}

unsafe extern "C" fn fill_queued(to: u64, value: u8, bytes: usize, _: *mut c_void) -> c_uint {
    unsafe { fill(to, value, bytes) }
}

unsafe extern "C" fn load_module(
    module: *mut *mut c_void,
    image: *const c_void,
    _count: c_uint,
    _options: *mut c_int,
    values: *mut *mut c_void,
) -> c_uint {
    let text = unsafe { CStr::from_ptr(image.cast()) }.to_string_lossy();
    match ptx::parse(&text) {
        Ok(program) => {
            unsafe { *module = Box::into_raw(Box::new(program)).cast() };
            0
        }
        Err(why) => {
            let log = CString::new(why).unwrap_or_default();
            let bytes = log.as_bytes_with_nul();
            let (to, len) = unsafe { (*values, *values.add(1) as usize) };
            let len = bytes.len().min(len);
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast::<u8>(), len) };
            INVALID_PTX
        }
    }
}

unsafe extern "C" fn function(
    function: *mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> c_uint {
    let program = unsafe { &*module.cast::<Program>() };
    if unsafe { CStr::from_ptr(name) }.to_bytes() != program.name.as_bytes() {
        return 500;
    }
    unsafe { *function = module };
    0
}

extern "C" fn function_attribute(_function: *mut c_void, which: c_int, value: c_int) -> c_uint {
    assert_eq!(which, 8, "the bytes of dynamic shared memory");
    state().shared_limit = value as usize;
    0
}

unsafe extern "C" fn occupancy(
    blocks: *mut c_int,
    _function: *mut c_void,
    _threads: c_int,
    _shared: usize,
) -> c_uint {
    unsafe { *blocks = 1 };
    0
}

unsafe extern "C" fn launch(
    function: *mut c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    _stream: *mut c_void,
    params: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> c_uint {
    let program = unsafe { &*function.cast::<Program>() };
    let params = unsafe { std::slice::from_raw_parts((*params).cast::<u8>(), program.param_bytes) };
    let allocations = state().allocations.clone();
    let run = || {
        if [grid_y, grid_z, block_y, block_z] != [1; 4] || block_x != program.threads {
            return Err(format!(
                "{block_x} threads in a CTA for {}",
                program.threads
            ));
        }
        Launch {
            program,
            ctas: grid_x,
            shared_bytes: shared_bytes as usize,
            params,
            allocations: &allocations,
        }
        .run()
    };
    match run() {
        Ok(_) => 0,
        Err(why) => {
            state().failure = CString::new(format!("{}: {why}", program.name)).ok();
            LAUNCH_FAILED
        }
    }
}
