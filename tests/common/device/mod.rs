//! The CUDA backend on a machine without a GPU, for tests: the kernels as nvcc compiled them run in the machine for PTX
//! (`ptx`), behind a stand-in for the driver library (`ptx/driver`) that the backend opens as it opens a GPU's.
//!
//! Accesses outside of buffers, reads of what nobody wrote, divergence, misuse of barriers and of the driver are always
//! found, races where [`Races::Found`] asks for it. A missing nvcc is a failure, never a skip.
#![allow(dead_code, unused_imports, reason = "every test program uses its own part")]
#![allow(unsafe_code, reason = "a C interface; each block says why it is sound")]

mod kernels;
mod single;

use std::ffi::{CString, c_char, c_int};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use lensmith::backend::Precision;
use lensmith::backend::cuda::{Cuda, Device, Gpu};
use libloading::Library;

pub use kernels::ptx;
pub use single::{Launch, Machine};

/// The GPU that takes the machine's place where one is tested: LENSMITH_TEST_GPU, its number.
pub fn tested_gpu() -> Option<usize> {
    let index = std::env::var("LENSMITH_TEST_GPU").ok()?;
    Some(index.parse().unwrap_or_else(|_| panic!("LENSMITH_TEST_GPU: `{index}` is no number of a GPU")))
}

/// The compute capability of devices that no test asks for: 8.0, or LENSMITH_TEST_CAPABILITY.
pub fn usual_capability() -> (u32, u32) {
    let text = std::env::var("LENSMITH_TEST_CAPABILITY").unwrap_or_else(|_| "8.0".into());
    let numbers = text.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    numbers
        .unwrap_or_else(|| panic!("LENSMITH_TEST_CAPABILITY: `{text}` is no compute capability, as 8.0 is"))
}

/// The precisions of usual devices: products in BF16 need compute capability 8.0.
pub fn precisions() -> &'static [Precision] {
    let all = &[Precision::F32, Precision::Bf16];
    if usual_capability() >= (8, 0) { all } else { &all[..1] }
}

/// The schedule of devices that no test asks for: [`Schedule::PLAIN`], or one of LENSMITH_TEST_SCHEDULE, `backward` or
/// `random:SEED`.
pub fn usual_schedule() -> Schedule {
    let text = std::env::var("LENSMITH_TEST_SCHEDULE").unwrap_or_else(|_| "plain".into());
    let seed = text.strip_prefix("random:").and_then(|seed| seed.parse().ok());
    match (&*text, seed) {
        ("plain", _) => Schedule::PLAIN,
        ("backward", _) => Schedule::ALL[1],
        (_, Some(seed)) => Schedule::random(seed),
        _ => panic!("LENSMITH_TEST_SCHEDULE: expected plain, backward or random:SEED, found `{text}`"),
    }
}

/// In which order threads and blocks run, and when copies land: what CUDA leaves undefined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Turns of warps and blocks.
    pub order: Order,
    /// When `cp.async` writes shared memory: late or early.
    pub copies: &'static str,
    /// When the work of streams is done.
    pub queue: Order,
    /// Draws the errors of approximate instructions.
    pub seed: u64,
}

/// An order: of warps and blocks by rising or falling number; of a stream's work late or early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// In the words of the driver's settings.
    Named(&'static str),
    /// Drawn from a seed.
    Random(u64),
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Order::Named(name) => f.write_str(name),
            Order::Random(seed) => write!(f, "random:{seed}"),
        }
    }
}

impl Schedule {
    /// By rising number, as late as can be.
    pub const PLAIN: Schedule =
        Schedule { order: Order::Named("any"), copies: "late", queue: Order::Named("late"), seed: 0 };

    /// Five schedules: a correct kernel gives the same bits under all.
    pub const ALL: [Schedule; 5] = [
        Schedule::PLAIN,
        Schedule { order: Order::Named("backward"), copies: "early", queue: Order::Named("early"), seed: 1 },
        Schedule::random(2),
        Schedule { queue: Order::Named("late"), ..Schedule::random(3) },
        Schedule { order: Order::Named("forward"), copies: "early", queue: Order::Random(4), seed: 4 },
    ];

    /// Everything drawn from a seed.
    pub const fn random(seed: u64) -> Schedule {
        let copies = if seed.is_multiple_of(2) { "late" } else { "early" };
        Schedule { order: Order::Random(seed), copies, queue: Order::Random(seed), seed }
    }
}

/// Whether races are looked for, which takes twice the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Races {
    /// They are a fault.
    Found,
    /// They pass.
    Ignored,
}

/// What a device is like.
#[derive(Clone, Copy, Debug)]
pub struct Simulated {
    /// Bytes of device memory.
    pub memory: usize,
    /// Bytes of shared memory that a block may ask for.
    pub shared: u32,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Multiprocessors, of which each runs a block at a time.
    pub processors: u32,
    /// What CUDA leaves undefined.
    pub schedule: Schedule,
    /// Whether buffers are allocated at their exact sizes; otherwise the backend's arena hands them out.
    pub exact: bool,
    /// Calls of the driver that fail, in the words of its setting `fail`; empty: none.
    pub fail: &'static str,
}

impl Default for Simulated {
    fn default() -> Simulated {
        let capability = usual_capability();
        let schedule = usual_schedule();
        let processors = 2;
        Simulated {
            memory: 1 << 30,
            shared: 227 << 10,
            capability,
            processors,
            schedule,
            exact: true,
            fail: "",
        }
    }
}

impl Simulated {
    /// In the words of the driver's settings.
    fn settings(&self, races: Races) -> String {
        let Schedule { order, copies, queue, seed } = self.schedule;
        let (major, minor) = self.capability;
        // LENSMITH_TEST_RACES=1 looks for races everywhere.
        let races = u32::from(races == Races::Found || std::env::var_os("LENSMITH_TEST_RACES").is_some());
        let fail = if self.fail.is_empty() { String::new() } else { format!(",fail={}", self.fail) };
        // As few blocks as possible, so that a block takes several tiles even in tests of few rows.
        format!(
            "memory={},shared={},capability={major}.{minor},order={order},copies={copies},queue={queue},seed={seed},\
             races={races},processors={},occupancy=1,steps={STEPS},kernels={}{fail}",
            self.memory,
            self.shared,
            self.processors,
            ptx(self.capability).display()
        )
    }
}

/// Instructions that a warp may execute in a launch, many times what any test takes: what runs for ever ends in seconds.
const STEPS: u64 = 1 << 24;

/// The stand-in for the driver library, as Cargo builds it beside the test programs.
fn library() -> PathBuf {
    let program = std::env::current_exe().expect("this program");
    let path = program.parent().expect("its folder").join("libptx_driver.so");
    assert!(path.is_file(), "{} is missing: cargo test builds it", path.display());
    path
}

/// The newest executable of a target that stands beside this one.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a path");
    let newest =
        |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let entries = fs::read_dir(own.parent().expect("a folder")).expect("a folder");
    let of_name = entries.map(|e| e.expect("an entry").path()).filter(|path| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let hash = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
        hash.is_some_and(|h| h.len() == 16 && h.bytes().all(|b| b.is_ascii_hexdigit()))
    });
    let found = of_name.max_by_key(newest);
    found.unwrap_or_else(|| {
        panic!("{name} is not built: tools/test builds all, `cargo test --workspace --no-run` too")
    })
}

/// The stand-in, loaded: what opens libcuda in this process from now on gets it.
fn driver() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = library();
        // SAFETY: our own library, which does nothing when it is loaded.
        unsafe { Library::new(&path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    })
}

/// Adds a device; its number.
fn add(settings: &str) -> usize {
    type Add = unsafe extern "C" fn(*const c_char) -> c_int;
    let settings = CString::new(settings).expect("no zero byte");
    // SAFETY: the library's function of this type, and a text.
    let number =
        unsafe { (driver().get::<Add>(b"ptx_driver_add").expect("our function"))(settings.as_ptr()) };
    usize::try_from(number).expect("settings that the driver takes")
}

/// The report of a device's last fault.
pub fn fault(device: usize) -> String {
    type Fault = unsafe extern "C" fn(c_int, *mut u8, usize) -> usize;
    let mut text = vec![0; 1 << 16];
    // SAFETY: the library's function of this type, and room for as many bytes.
    let bytes = unsafe {
        (driver().get::<Fault>(b"ptx_driver_fault").expect("our function"))(
            device as c_int,
            text.as_mut_ptr(),
            text.len(),
        )
    };
    text.truncate(bytes);
    String::from_utf8_lossy(&text).into_owned()
}

/// Bytes of device memory that nothing wrote.
pub fn unwritten(device: usize, address: u64, bytes: usize) -> usize {
    type Unwritten = unsafe extern "C" fn(c_int, u64, usize) -> usize;
    // SAFETY: the library's function of this type.
    unsafe {
        (driver().get::<Unwritten>(b"ptx_driver_unwritten").expect("our function"))(
            device as c_int,
            address,
            bytes,
        )
    }
}

/// A folder whose libcuda is the stand-in, for LD_LIBRARY_PATH of another process.
pub fn stand_in(folder: &Path) -> PathBuf {
    std::os::unix::fs::symlink(library(), folder.join("libcuda.so")).expect("a new link");
    folder.to_path_buf()
}

/// PTX_DRIVER for another process: usual devices, and `more` settings, which win.
pub fn settings(more: &str) -> String {
    let usual = Simulated::default().settings(Races::Ignored);
    // These processes see a device of the usual size, whose multiprocessors take more than a block.
    let kept = usual.split(',').filter(|s| !s.starts_with("memory=") && !s.starts_with("occupancy="));
    format!("{},{more}", kept.collect::<Vec<_>>().join(","))
}

/// Opens a device as told, or the tested GPU.
pub fn gpu(races: Races, options: Simulated) -> Gpu {
    let index = tested_gpu().unwrap_or_else(|| add(&options.settings(races)));
    let device = Device::open(index).unwrap_or_else(|e| panic!("{e}"));
    if options.exact { Gpu::exact(device) } else { Gpu::new(device) }.unwrap_or_else(|e| panic!("{e}"))
}

/// The CUDA backend on a usual device, or on the tested GPU.
pub fn cuda(precision: Precision) -> Cuda {
    simulated(Races::Ignored, Simulated::default(), precision)
}

/// The CUDA backend on a device that behaves as told, or on the tested GPU.
pub fn simulated(races: Races, options: Simulated, precision: Precision) -> Cuda {
    Cuda::over(Arc::new(gpu(races, options)), precision).unwrap_or_else(|e| panic!("{e}"))
}
