//! The emulator of the kernels (`kernels/emulation`) as a [`Driver`]: the whole backend on a machine without a GPU, for
//! tests. The kernels' sources are compiled for the CPU into a library, which runs one launch at a time to its end and
//! checks every access. Thousands of times slower than a GPU: users without one want the CPU backend.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use libloading::{Library, Symbol};

use super::driver::{Driver, DriverError, DriverResult, Event, Graph, Limits};
use super::launch::Launch;
use crate::error::{Error, Result};

type Malloc = unsafe extern "C" fn(usize, *const c_char) -> *mut c_void;
type Free = unsafe extern "C" fn(*mut c_void) -> c_int;
type Copy = unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> c_int;
type Unwritten = unsafe extern "C" fn(*const c_void) -> u64;
type LaunchFn = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    *const c_uint,
    usize,
    *const *mut c_void,
    c_uint,
    *const c_int,
    u64,
    *mut c_char,
    usize,
) -> c_int;
type SharedBytes = unsafe extern "C" fn(*const c_char, *const u32, c_uint) -> usize;
type Kernels = unsafe extern "C" fn(*mut c_char, usize) -> c_int;

/// Held during a launch of any library: it sets signal handlers of the process and restores those before, which two
/// launches at a time would mix up.
static SIGNALS: Mutex<()> = Mutex::new(());

/// In which order threads and blocks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By rising number.
    Forward,
    /// By falling number.
    Reverse,
    /// Random, by [`Schedule::seed`].
    Random,
}

/// What CUDA leaves undefined, and the emulator decides: tests run a kernel under several schedules.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Order of threads and blocks.
    pub order: Order,
    /// When asynchronous copies arrive: 0 as late as allowed, 1 at once, 2 at random.
    pub landing: i32,
    /// How tensor cores add: 0 in F64, 1 in F32 one by one, 2 truncated to the exponent of the largest term.
    pub sums: i32,
    /// Seed of all that is random.
    pub seed: u64,
}

impl Schedule {
    /// Threads by rising number, copies late, sums in F64.
    pub const PLAIN: Schedule = Schedule { order: Order::Forward, landing: 0, sums: 0, seed: 0 };

    /// Five schedules that differ in order and copies but not in sums: a correct kernel gives equal results.
    pub const ALL: [Schedule; 5] = [
        Schedule::PLAIN,
        Schedule { order: Order::Reverse, landing: 1, sums: 0, seed: 1 },
        Schedule { order: Order::Random, landing: 2, sums: 0, seed: 2 },
        Schedule { order: Order::Random, landing: 0, sums: 0, seed: 3 },
        Schedule { order: Order::Random, landing: 1, sums: 0, seed: 4 },
    ];
}

/// A loaded library of emulated kernels.
pub struct Emulator {
    malloc: Malloc,
    free: Free,
    copy_in: Copy,
    copy_out: Copy,
    unwritten: Unwritten,
    launch: LaunchFn,
    shared_bytes: SharedBytes,
    kernels: Kernels,
    _library: Library,
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Emulator")
    }
}

/// A function of the library.
///
/// # Safety
/// The function must have the type T.
unsafe fn symbol<'l, T>(library: &'l Library, name: &str) -> std::result::Result<Symbol<'l, T>, String> {
    // SAFETY: the caller answers for the type.
    unsafe { library.get(name.as_bytes()) }.map_err(|e| e.to_string())
}

impl Emulator {
    /// Loads a library that was built from `kernels/` for emulation.
    ///
    /// # Safety
    /// The file must be such a library of this version: its functions are called as they are declared here.
    pub unsafe fn open(path: &Path) -> std::result::Result<Emulator, String> {
        // SAFETY: our own library; its constructors only fill the table of kernels.
        let library = unsafe { Library::new(path) }.map_err(|e| e.to_string())?;
        // SAFETY: each name has the type declared above in launch.cpp; the pointers live as long as the library,
        // which is kept beside them.
        unsafe {
            Ok(Emulator {
                malloc: *symbol(&library, "emulation_malloc")?,
                free: *symbol(&library, "emulation_free")?,
                copy_in: *symbol(&library, "emulation_copy_in")?,
                copy_out: *symbol(&library, "emulation_copy_out")?,
                unwritten: *symbol(&library, "emulation_unwritten")?,
                launch: *symbol(&library, "emulation_launch")?,
                shared_bytes: *symbol(&library, "emulation_shared_bytes")?,
                kernels: *symbol(&library, "emulation_kernels")?,
                _library: library,
            })
        }
    }

    /// Uninitialised device memory; `label` names it in reports.
    pub fn allocate(&self, bytes: usize, label: &str) -> u64 {
        let label = CString::new(label).expect("a label without NUL");
        // SAFETY: the label is a C string for the call.
        unsafe { (self.malloc)(bytes, label.as_ptr()) as u64 }
    }

    /// Gives memory back.
    pub fn free(&self, address: u64) {
        // SAFETY: the emulator looks the address up and refuses what is not its own.
        let status = unsafe { (self.free)(address as *mut c_void) };
        assert_eq!(status, 0, "free of device memory");
    }

    /// Copies to device memory.
    pub fn copy_in(&self, to: u64, from: &[u8]) {
        // SAFETY: the source has this many bytes; the emulator checks the destination.
        let status = unsafe { (self.copy_in)(to as *mut c_void, from.as_ptr().cast(), from.len()) };
        assert_eq!(status, 0, "copy to device memory");
    }

    /// Copies from device memory.
    pub fn copy_out(&self, to: &mut [u8], from: u64) {
        // SAFETY: the destination has this many bytes; the emulator checks the source.
        let status = unsafe { (self.copy_out)(to.as_mut_ptr().cast(), from as *const c_void, to.len()) };
        assert_eq!(status, 0, "copy from device memory");
    }

    /// Bytes of a buffer that nobody has written; 0 in the fast build.
    pub fn unwritten(&self, address: u64) -> u64 {
        // SAFETY: the emulator looks the address up.
        unsafe { (self.unwritten)(address as *const c_void) }
    }

    /// Runs a kernel to its end, or gives the report that stopped it.
    ///
    /// # Safety
    /// The arguments must have the sizes of the kernel's parameters.
    pub unsafe fn launch(
        &self,
        kernel: &str,
        (grid, block, shared): ([u32; 3], [u32; 3], usize),
        args: &[Vec<u64>],
        schedule: Schedule,
    ) -> std::result::Result<(), String> {
        let kernel = CString::new(kernel).expect("a name without NUL");
        let pointers: Vec<*mut c_void> = args.iter().map(|words| words.as_ptr().cast_mut().cast()).collect();
        let Schedule { order, landing, sums, seed } = schedule;
        let schedule = [order as c_int, landing, sums];
        let mut message = [0 as c_char; 2048];
        let signals = SIGNALS.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: every pointer holds for the call, with the lengths the interface asks for; argument counts are
        // checked there, and each argument has the size of its parameter, which the caller answers for.
        let status = unsafe {
            (self.launch)(
                kernel.as_ptr(),
                grid.as_ptr(),
                block.as_ptr(),
                shared,
                pointers.as_ptr(),
                pointers.len() as c_uint,
                schedule.as_ptr(),
                seed,
                message.as_mut_ptr(),
                message.len(),
            )
        };
        drop(signals);
        // SAFETY: the interface ends its message with NUL within the capacity.
        let text = unsafe { CStr::from_ptr(message.as_ptr()) };
        if status == 0 { Ok(()) } else { Err(text.to_string_lossy().into_owned()) }
    }

    /// Bytes of shared memory that a kernel's layout takes for these sizes; None if it has no such layout.
    pub fn shared_bytes(&self, kernel: &str, sizes: &[u32]) -> Option<usize> {
        let name = CString::new(kernel).expect("a name without NUL");
        // SAFETY: name and sizes hold for the call.
        let bytes = unsafe { (self.shared_bytes)(name.as_ptr(), sizes.as_ptr(), sizes.len() as c_uint) };
        (bytes != usize::MAX).then_some(bytes)
    }

    /// The names of all kernels, in rising order.
    pub fn kernels(&self) -> Vec<String> {
        let mut names = vec![0 as c_char; 1 << 16];
        // SAFETY: the buffer has the length given.
        let status = unsafe { (self.kernels)(names.as_mut_ptr(), names.len()) };
        assert_eq!(status, 0, "too many kernels for the buffer");
        // SAFETY: the interface ends the list with NUL.
        let text = unsafe { CStr::from_ptr(names.as_ptr()) };
        text.to_string_lossy().lines().map(str::to_string).collect()
    }
}

/// What an emulated device is like.
#[derive(Clone, Copy, Debug)]
pub struct Emulated {
    /// What the emulator decides at every launch.
    pub schedule: Schedule,
    /// Bytes of device memory.
    pub memory: usize,
    /// Bytes of shared memory that a block may ask for.
    pub shared: usize,
    /// Whether it has tensor cores.
    pub tensor_cores: bool,
}

impl Default for Emulated {
    /// The shared memory of an H100, no limit on memory, [`Schedule::PLAIN`].
    fn default() -> Emulated {
        Emulated { schedule: Schedule::PLAIN, memory: usize::MAX, shared: 232_448, tensor_cores: true }
    }
}

/// Allocations by address: bytes, and the number of the device that owns them.
type Owners = Mutex<BTreeMap<u64, (usize, usize)>>;

/// The emulator as a driver of one device.
#[derive(Clone, Debug)]
pub struct EmulatedDriver {
    emulator: Arc<Emulator>,
    options: Emulated,
    index: usize,
    name: String,
    used: Arc<AtomicUsize>,
    /// Shared by all devices over the same library.
    owners: Arc<Owners>,
}

impl EmulatedDriver {
    /// A device of its own over a loaded library.
    pub fn new(emulator: Arc<Emulator>, options: Emulated) -> EmulatedDriver {
        let (used, owners) = (Arc::default(), Arc::default());
        EmulatedDriver { emulator, options, index: 0, name: "cuda:0".into(), used, owners }
    }

    /// Another device over the same library. Neither may touch the other's memory.
    pub fn beside(&self, index: usize) -> EmulatedDriver {
        EmulatedDriver { index, name: format!("cuda:{index}"), used: Arc::default(), ..self.clone() }
    }

    /// Fails if `address` lies in memory of another device.
    fn check_owner(&self, address: u64, user: &str) -> DriverResult<()> {
        let owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        match owners.range(..=address).next_back() {
            Some((&at, &(bytes, owner))) if address < at + bytes as u64 && owner != self.index => {
                Err(DriverError::Other(format!("{user} uses memory of cuda:{owner}")))
            }
            _ => Ok(()),
        }
    }

    /// Loads the library at `path`, which the user named.
    pub fn open(path: &Path) -> Result<EmulatedDriver> {
        // SAFETY: the user names it as a library of emulated kernels.
        let emulator = unsafe { Emulator::open(path) }.map_err(|reason| Error::Device {
            device: "cuda".into(),
            reason: format!("{} (LENSMITH_CUDA_EMULATOR): {reason}", path.display()),
        })?;
        Ok(EmulatedDriver::new(Arc::new(emulator), Emulated::default()))
    }
}

/// All work is done when its call returns, so there is nothing to wait for.
struct NoEvent;
impl Event for NoEvent {}

/// A graph is the list of its launches.
struct LaunchList(EmulatedDriver, Vec<Launch>);

impl Graph for LaunchList {
    fn replay(&self) -> DriverResult<()> {
        self.1.iter().try_for_each(|launch| self.0.launch(launch))
    }
}

impl Driver for EmulatedDriver {
    fn name(&self) -> &str {
        &self.name
    }

    fn detail(&self) -> String {
        "the kernels under emulation, for tests".into()
    }

    fn limits(&self) -> Limits {
        Limits { shared: self.options.shared, processors: 2, tensor_cores: self.options.tensor_cores }
    }

    fn occupancy(&self, _: &'static str, _: u32, _: usize) -> DriverResult<u32> {
        // As few as possible, so that a block takes several tiles even in tests of few rows.
        Ok(1)
    }

    fn allocate(&self, bytes: usize, label: &'static str) -> DriverResult<u64> {
        let used = self.used.load(Ordering::Relaxed);
        if bytes > self.options.memory.saturating_sub(used) {
            return Err(DriverError::OutOfMemory { wanted: bytes, free: self.options.memory - used });
        }
        self.used.fetch_add(bytes, Ordering::Relaxed);
        let address = self.emulator.allocate(bytes, label);
        self.owners.lock().unwrap_or_else(PoisonError::into_inner).insert(address, (bytes, self.index));
        Ok(address)
    }

    fn free(&self, address: u64, bytes: usize) {
        // Before the memory is free, when another thread may be given the same address.
        self.owners.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
        self.emulator.free(address);
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn upload(&self, to: u64, from: &[u8]) -> DriverResult<()> {
        self.check_owner(to, "a copy to the device")?;
        self.emulator.copy_in(to, from);
        Ok(())
    }

    fn event(&self) -> DriverResult<Box<dyn Event>> {
        Ok(Box::new(NoEvent))
    }

    fn download(&self, _: &dyn Event, to: &mut [u8], from: u64) -> DriverResult<()> {
        self.check_owner(from, "a copy from the device")?;
        self.emulator.copy_out(to, from);
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> DriverResult<()> {
        self.check_owner(to, "a copy on the device")
            .and_then(|()| self.check_owner(from, "a copy on the device"))?;
        let mut held = vec![0; bytes];
        self.emulator.copy_out(&mut held, from);
        self.emulator.copy_in(to, &held);
        Ok(())
    }

    fn clear(&self, at: u64, bytes: usize) -> DriverResult<()> {
        self.check_owner(at, "a clearing of memory")?;
        self.emulator.copy_in(at, &vec![0; bytes]);
        Ok(())
    }

    fn launch(&self, launch: &Launch) -> DriverResult<()> {
        // Arguments that are numbers are looked up too; one that is an address of another device by chance is unlikely.
        launch.args.words().iter().flatten().try_for_each(|&word| self.check_owner(word, launch.kernel))?;
        let geometry = (launch.grid, [launch.threads, 1, 1], launch.shared);
        // SAFETY: the typed launch functions give each kernel arguments of its parameters' sizes.
        unsafe { self.emulator.launch(launch.kernel, geometry, launch.args.words(), self.options.schedule) }
            .map_err(DriverError::Other)
    }

    fn record(&self, launches: Vec<Launch>) -> DriverResult<Box<dyn Graph>> {
        Ok(Box::new(LaunchList(self.clone(), launches)))
    }
}
