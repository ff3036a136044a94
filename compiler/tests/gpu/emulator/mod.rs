//! An emulated H100 in the place of a CUDA driver: it runs the PTX that the compiler makes, slowly and strictly, on a machine without a
//! GPU. What it cannot tell is what the hardware and its assembler make of the same PTX; that is for a machine that has one.

mod alu;
mod barrier;
mod copies;
mod copying;
mod gemm;
mod hopper;
mod layouts;
mod machine;
mod order;
mod product;
mod ptx;
mod tensor_map;
mod together;

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use machine::Launch;
use ptx::Program;
use tessera_device::cuda::Cubins;
use tessera_device::cuda::driver::{
    CallError, Function, Gpu, GpuFacts, MAP_WORDS, Mark, Recording, TiledTensor,
};
use tessera_device::{CudaError, CudaOptions, Device};

const ALIGN: usize = 256;

/// An emulated GPU of its own.
pub fn device() -> Device {
    device_with(None)
}

/// One with so many bytes of memory.
pub fn device_with(memory: Option<usize>) -> Device {
    let state = State {
        memory,
        ..State::default()
    };
    let made = made(state, CudaOptions::default(), |_| {});
    made.unwrap_or_else(|why| panic!("{why}"))
}

/// One of another generation.
pub fn device_of(compute_capability: (u32, u32)) -> Result<Device, CudaError> {
    made(State::default(), CudaOptions::default(), |gpu| {
        gpu.facts.compute_capability = compute_capability;
    })
}

/// One that keeps translated code.
pub fn device_keeping(cubins: Cubins) -> Device {
    let options = CudaOptions {
        cubins: Some(cubins),
        ..CudaOptions::default()
    };
    made(State::default(), options, |_| {}).unwrap_or_else(|why| panic!("{why}"))
}

/// One on which the launch behind so many others never ends.
pub fn device_stuck(launches: usize) -> Device {
    let state = State {
        stuck_behind: Some(launches),
        ..State::default()
    };
    let options = CudaOptions {
        watchdog: Duration::from_millis(50),
        ..CudaOptions::default()
    };
    made(state, options, |_| {}).unwrap_or_else(|why| panic!("{why}"))
}

fn made(
    state: State,
    options: CudaOptions,
    change: impl FnOnce(&mut Emulator),
) -> Result<Device, CudaError> {
    let mut gpu = Emulator {
        facts: GpuFacts {
            name: "emulated H100".to_owned(),
            compute_capability: (9, 0),
            multiprocessors: 4,
            shared_bytes: 227 * 1024,
            cache_bytes: 1 << 20,
            cuda: (12, 8),
        },
        state: Mutex::new(state),
    };
    change(&mut gpu);
    Device::cuda_on(Arc::new(gpu), options)
}

/// Translated code, of which the emulator can only run what is PTX behind this.
pub const CUBIN: &[u8] = b"cubin";

struct Emulator {
    facts: GpuFacts,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Start and length.
    allocations: BTreeMap<u64, usize>,
    /// A [`Function`] is a place in it.
    programs: Vec<(Program, u32)>,
    /// How many there were: each has an order of its own.
    launches: u64,
    /// Of the last launch, which runs at once.
    failure: Option<String>,
    marks: Vec<Instant>,
    /// What was asked for since the recording began.
    recorder: Option<Vec<Recorded>>,
    recordings: Vec<Vec<Recorded>>,
    /// What the next work of a recording was said to follow.
    follows: Option<Vec<usize>>,
    /// Bytes that can still be allocated; `None`: as many as there are.
    memory: Option<usize>,
    /// What is asked for behind so many marks is never done.
    stuck_behind: Option<usize>,
}

/// A work of a recording, and the works that it comes behind.
#[derive(Clone)]
struct Recorded {
    work: Work,
    behind: Vec<usize>,
}

/// What a queue holds.
#[derive(Clone)]
enum Work {
    Launch {
        function: Function,
        blocks: u32,
        threads: u32,
        shared_bytes: u32,
        words: Vec<u64>,
        waits: bool,
    },
    Fill(u64, u8, usize),
    Copy(u64, u64, usize),
}

impl Emulator {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Emulator {
    /// Does it at once, or writes it down.
    fn work(&self, work: Work) {
        let mut state = self.state();
        let follows = state.follows.take();
        if let Some(recorder) = &mut state.recorder {
            let behind =
                follows.unwrap_or_else(|| recorder.len().checked_sub(1).into_iter().collect());
            return recorder.push(Recorded { work, behind });
        }
        match work {
            // SAFETY: the caller of the function that asked for it says so.
            Work::Fill(address, value, bytes) => unsafe {
                std::ptr::write_bytes(address as *mut u8, value, bytes)
            },
            // SAFETY: as above.
            Work::Copy(to, from, bytes) => unsafe {
                std::ptr::copy(from as *const u8, to as *mut u8, bytes)
            },
            Work::Launch {
                function,
                blocks,
                threads,
                shared_bytes,
                words,
                waits,
            } => {
                let seed = state.launches;
                state.launches += 1;
                let (program, shared_limit) = &state.programs[function.0];
                let params: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
                let ran = if threads != program.threads {
                    Err(format!("{threads} threads for {}", program.threads))
                } else if shared_bytes > *shared_limit {
                    Err(format!("{shared_bytes} shared bytes of {shared_limit}"))
                } else {
                    Launch {
                        program,
                        ctas: blocks,
                        shared_bytes: shared_bytes as usize,
                        params: &params,
                        allocations: &state.allocations,
                        at_once: self.facts.multiprocessors,
                        waits,
                        seed,
                    }
                    .run()
                    .map_err(|why| format!("{}: {why}", program.name))
                };
                // The first failure counts.
                state.failure = state.failure.take().or(ran.err());
            }
        }
    }
}

// Addresses are this program's own, so that a copy is a copy.
impl Gpu for Emulator {
    fn facts(&self) -> &GpuFacts {
        &self.facts
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CallError> {
        let layout = Layout::from_size_align(bytes, ALIGN).map_err(|_| CallError::OutOfMemory)?;
        if let Some(left) = &mut self.state().memory {
            *left = left.checked_sub(bytes).ok_or(CallError::OutOfMemory)?;
        }
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return Err(CallError::OutOfMemory);
        }
        // Fresh memory holds anything.
        unsafe { std::ptr::write_bytes(start, 0xa5, bytes) };
        self.state().allocations.insert(start as u64, bytes);
        Ok(start as u64)
    }

    unsafe fn free(&self, address: u64) -> Result<(), CallError> {
        let bytes = self.state().allocations.remove(&address);
        let bytes = bytes.expect("it was allocated here");
        if let Some(left) = &mut self.state().memory {
            *left += bytes;
        }
        let layout = Layout::from_size_align(bytes, ALIGN).expect("as it was allocated");
        unsafe { dealloc(address as *mut u8, layout) };
        Ok(())
    }

    unsafe fn fill(&self, address: u64, value: u8, bytes: usize) -> Result<(), CallError> {
        self.work(Work::Fill(address, value, bytes));
        Ok(())
    }

    unsafe fn copy_to_gpu(&self, to: u64, from: &[u8]) -> Result<(), CallError> {
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn copy_to_host(&self, to: &mut [u8], from: u64) -> Result<(), CallError> {
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy_within(&self, to: u64, from: u64, bytes: usize) -> Result<(), CallError> {
        self.work(Work::Copy(to, from, bytes));
        Ok(())
    }

    fn wait(&self) -> Result<(), CallError> {
        Ok(())
    }

    fn load(&self, code: &[u8], symbol: &CStr, shared_bytes: u32) -> Result<Function, String> {
        let text = match code.strip_prefix(CUBIN) {
            Some(text) => [text, &[0]].concat(),
            None => code.to_vec(),
        };
        let ptx = CStr::from_bytes_with_nul(&text).map_err(|why| why.to_string())?;
        let program = ptx::parse(&ptx.to_string_lossy())?;
        if symbol.to_bytes() != program.name.as_bytes() {
            return Err(format!("it has `{}` and no {symbol:?}", program.name));
        }
        let programs = &mut self.state().programs;
        programs.push((program, shared_bytes));
        Ok(Function(programs.len() - 1))
    }

    fn blocks_per_multiprocessor(
        &self,
        _function: Function,
        _threads: u32,
        _shared_bytes: u32,
    ) -> Result<u32, CallError> {
        Ok(1)
    }

    fn clusters_at_once(
        &self,
        _function: Function,
        _threads: u32,
        _shared_bytes: u32,
        cluster: u32,
    ) -> Result<u32, CallError> {
        Ok(self.facts.multiprocessors / cluster)
    }

    fn tensor_map(&self, tensor: &TiledTensor) -> Result<[u64; MAP_WORDS], CallError> {
        tensor_map::encode(tensor)
    }

    unsafe fn launch(
        &self,
        function: Function,
        blocks: u32,
        threads: u32,
        shared_bytes: u32,
        words: &mut [u64],
        waits: bool,
    ) -> Result<(), CallError> {
        self.work(Work::Launch {
            function,
            blocks,
            threads,
            shared_bytes,
            words: words.to_vec(),
            waits,
        });
        Ok(())
    }

    fn is_done(&self) -> Result<bool, CallError> {
        let mut state = self.state();
        if state.stuck_behind.is_some_and(|n| state.marks.len() > n) {
            return Ok(false);
        }
        match state.failure.take() {
            Some(error) => Err(CallError::Failed {
                call: "while it ran",
                error,
            }),
            None => Ok(true),
        }
    }

    fn mark(&self) -> Result<Mark, CallError> {
        let marks = &mut self.state().marks;
        marks.push(Instant::now());
        Ok(Mark(marks.len() - 1))
    }

    fn seconds_between(&self, from: Mark, to: Mark) -> Result<f64, CallError> {
        let marks = &self.state().marks;
        Ok((marks[to.0] - marks[from.0]).as_secs_f64())
    }

    fn forget_marks(&self) {
        self.state().marks.clear();
    }

    fn has_passed(&self, mark: Mark) -> Result<bool, CallError> {
        let state = self.state();
        assert!(mark.0 < state.marks.len(), "it was forgotten");
        Ok(state.stuck_behind.is_none_or(|n| mark.0 < n))
    }

    fn free_memory(&self) -> Result<(u64, u64), CallError> {
        let state = self.state();
        let used: usize = state.allocations.values().sum();
        let free = state.memory.unwrap_or(usize::MAX / 2);
        Ok((free as u64, (free + used) as u64))
    }

    fn start_recording(&self) -> Result<(), CallError> {
        self.state().recorder = Some(vec![]);
        Ok(())
    }

    fn follow(&self, works: &[usize]) -> Result<(), CallError> {
        let mut state = self.state();
        let recorded = state.recorder.as_ref().expect("it was started").len();
        assert!(
            works.iter().all(|&work| work < recorded),
            "of this recording"
        );
        state.follows = Some(works.to_vec());
        Ok(())
    }

    fn end_recording(&self) -> Result<Recording, CallError> {
        let mut state = self.state();
        let recorded = state.recorder.take().expect("it was started");
        state.recordings.push(recorded);
        Ok(Recording(state.recordings.len() - 1))
    }

    unsafe fn replay(&self, recording: Recording) -> Result<(), CallError> {
        // Of the works that may be next the one that was asked for last: whatever was not said to come before it, comes behind.
        let left = self.state().recordings[recording.0].clone();
        let mut done = vec![false; left.len()];
        while let Some(next) = (0..left.len())
            .rev()
            .find(|&n| !done[n] && left[n].behind.iter().all(|&before| done[before]))
        {
            done[next] = true;
            self.work(left[next].work.clone());
        }
        assert!(
            done.iter().all(|&done| done),
            "works follow each other in a circle"
        );
        Ok(())
    }

    fn forget_recording(&self, recording: Recording) {
        self.state().recordings[recording.0].clear();
    }
}

/// What the machine is there to find, in programs that breach one rule each.
#[test]
fn breaches_are_found() {
    let run = |body: &str| {
        let text = format!(
            ".extern .shared .align 128 .b8 tile[];\n.visible .entry k(\n.param .align 8 .b8 k_param_0[8]\n)\n.reqntid 32, 1, 1\n{{\n{body}\nret;\n}}\n"
        );
        let program = ptx::parse(&text).unwrap_or_else(|why| panic!("{why}"));
        #[repr(align(32))]
        struct Aligned([u64; 4]);
        let memory = Aligned([0; 4]);
        let start = memory.0.as_ptr() as u64;
        let launch = Launch {
            program: &program,
            ctas: 1,
            shared_bytes: 256,
            params: &start.to_le_bytes(),
            allocations: &BTreeMap::from([(start, 32)]),
            at_once: 1,
            waits: false,
            seed: 0,
        };
        launch.run()
    };
    let own = "mov.u32 %r1, %tid.x;\nmul.lo.u32 %r2, %r1, 4;\nmov.u64 %rd1, tile;\ncvt.u64.u32 %rd2, %r2;\nadd.u64 %rd3, %rd1, %rd2;\nst.shared.b32 [%rd3], %r1;\n";
    let global = "ld.param.b64 %rd9, [k_param_0];\n";
    let read = "ld.shared.b32 %r3, [tile];\n";
    assert_eq!(run(own), Ok(()));
    assert_eq!(run(&format!("{own}bar.sync 0;\n{read}")), Ok(()));
    let add = "atom.relaxed.gpu.shared.add.u32 %r4, [tile], 1;\n";
    let meet = "bar.sync 0;\n";
    assert_eq!(
        run(&format!("{own}{meet}{add}{add}{meet}{read}{meet}{own}")),
        Ok(())
    );
    assert_eq!(
        run(&format!("{global}ld.global.v2.b64 {{%rd4, _}}, [%rd9+16];")),
        Ok(())
    );
    for (breach, said) in [
        (format!("{own}{read}"), "without a barrier"),
        (format!("{own}{add}"), "wrote it"),
        (format!("{add}{read}"), "did an atomic at it"),
        (format!("{add}{own}"), "did an atomic at it"),
        (format!("{read}{add}"), "read it"),
        (
            "st.shared.b32 [tile+256], 1;".to_owned(),
            "of 256 shared ones",
        ),
        (
            "ld.shared.b32 %r3, [tile+2];".to_owned(),
            "no multiple of 4",
        ),
        (
            format!("{global}ld.global.b32 %r3, [%rd9+32];"),
            "in no allocation",
        ),
        (
            format!("{global}ld.global.v2.b64 {{%rd4, %rd5}}, [%rd9+24];"),
            "no multiple of 16",
        ),
        (
            "mov.u32 %r1, %tid.x;\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 bra $end;\nbar.sync 0;\n$end:"
                .to_owned(),
            "1 threads ended, and 31 wait",
        ),
    ] {
        let why = run(&breach).expect_err(&breach);
        assert!(why.contains(said), "{breach}\n{why}");
    }
}
