//! Whether this machine has a CUDA driver, and which GPUs it drives.
//!
//! Needs: nothing. Keeps: makes no context on any GPU.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt;

use libloading::Library;

/// A working driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// The newest CUDA it supports, as (major, minor).
    pub cuda: (u32, u32),
    pub gpus: Vec<Gpu>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    pub name: String,
    /// (9, 0) for Hopper.
    pub compute_capability: (u32, u32),
}

/// Why there is no driver to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverError {
    /// The library is not installed; the system's words.
    NotInstalled(String),
    /// The library is there, but a call failed with this `CUresult`.
    Failed { call: &'static str, code: u32 },
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled(why) => write!(f, "no CUDA driver: {why}"),
            Self::Failed { call, code: 100 } => write!(f, "the CUDA driver finds no GPU ({call})"),
            Self::Failed { call, code } => {
                write!(f, "the CUDA driver does not work: {call} gave error {code}")
            }
        }
    }
}

impl std::error::Error for DriverError {}

/// Finds a function of the driver by its name in `cuda.h`.
pub type LookUp = fn(&str) -> Option<*const std::ffi::c_void>;

static OTHER_FUNCTIONS: std::sync::OnceLock<LookUp> = std::sync::OnceLock::new();

/// From now on devices take the driver's functions from `look_up` instead of the installed library: an emulator. The first call counts,
/// and only before the first GPU is asked for.
///
/// # Safety
/// The functions have the signatures and do the work that `cuda.h` says.
pub unsafe fn use_functions(look_up: LookUp) {
    let _ = OTHER_FUNCTIONS.set(look_up);
}

pub(super) fn other_functions() -> Option<LookUp> {
    OTHER_FUNCTIONS.get().copied()
}

pub(super) const LIBRARY: &str = "libcuda.so.1";
const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const COMPUTE_CAPABILITY_MINOR: c_int = 76;

/// Asks the driver what there is.
///
/// # Errors
/// [`DriverError`]: none installed, or it does not work.
pub fn find() -> Result<Driver, DriverError> {
    // SAFETY: the driver's library has no requirements on who loads it.
    let library = unsafe { Library::new(LIBRARY) }.map_err(|e| not_installed(&e))?;
    let calls = Calls { library: &library };
    calls.init()?;
    let version = calls.number("cuDriverGetVersion")?;
    let count = calls.number("cuDeviceGetCount")?;
    let gpus = (0..count)
        .map(|ordinal| calls.gpu(ordinal))
        .collect::<Result<_, _>>()?;
    Ok(Driver {
        cuda: (
            version.unsigned_abs() / 1000,
            version.unsigned_abs() % 1000 / 10,
        ),
        gpus,
    })
}

/// The driver's functions used here, with the signatures of `cuda.h`.
struct Calls<'l> {
    library: &'l Library,
}

impl Calls<'_> {
    fn symbol<T>(&self, name: &'static str) -> Result<libloading::Symbol<'_, T>, DriverError> {
        // SAFETY: each caller below names the signature of `cuda.h`.
        unsafe { self.library.get(name) }.map_err(|e| not_installed(&e))
    }

    fn init(&self) -> Result<(), DriverError> {
        let init = self.symbol::<unsafe extern "C" fn(c_uint) -> c_uint>("cuInit")?;
        // SAFETY: takes no pointer; the flags must be 0.
        check("cuInit", unsafe { init(0) })
    }

    /// A function with one result, an int.
    fn number(&self, name: &'static str) -> Result<c_int, DriverError> {
        let function = self.symbol::<unsafe extern "C" fn(*mut c_int) -> c_uint>(name)?;
        let mut number = 0;
        // SAFETY: writes one int.
        check(name, unsafe { function(&raw mut number) })?;
        Ok(number)
    }

    fn gpu(&self, ordinal: c_int) -> Result<Gpu, DriverError> {
        let get =
            self.symbol::<unsafe extern "C" fn(*mut c_int, c_int) -> c_uint>("cuDeviceGet")?;
        let mut device = 0;
        // SAFETY: writes one handle, an int.
        check("cuDeviceGet", unsafe { get(&raw mut device, ordinal) })?;

        let name_of = self.symbol::<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_uint>(
            "cuDeviceGetName",
        )?;
        let mut name = [0u8; 256];
        // SAFETY: writes at most the given length, the closing zero included.
        check("cuDeviceGetName", unsafe {
            name_of(name.as_mut_ptr().cast(), name.len() as c_int, device)
        })?;
        let name = CStr::from_bytes_until_nul(&name)
            .map_or("?".into(), CStr::to_string_lossy)
            .into_owned();

        let attribute = self.symbol::<unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_uint>(
            "cuDeviceGetAttribute",
        )?;
        let capability = |which| {
            let mut number = 0;
            // SAFETY: writes one int.
            check("cuDeviceGetAttribute", unsafe {
                attribute(&raw mut number, which, device)
            })?;
            Ok(number.unsigned_abs())
        };
        let compute_capability = (
            capability(COMPUTE_CAPABILITY_MAJOR)?,
            capability(COMPUTE_CAPABILITY_MINOR)?,
        );
        Ok(Gpu {
            name,
            compute_capability,
        })
    }
}

/// The loader's words are in the source, if anywhere.
pub(super) fn not_installed(error: &libloading::Error) -> DriverError {
    let source = std::error::Error::source(error);
    DriverError::NotInstalled(source.map_or_else(|| error.to_string(), ToString::to_string))
}

fn check(call: &'static str, code: c_uint) -> Result<(), DriverError> {
    if code == 0 {
        Ok(())
    } else {
        Err(DriverError::Failed { call, code })
    }
}
