//! The C interface of `kernels/emulation/launch.cpp`, and its owned, checked face.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::sync::{Mutex, OnceLock, PoisonError};

use bytemuck::Pod;
use libloading::{Library, Symbol};

use super::{Build, build};

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

/// Held by every launch, of whichever build: each build is a library that puts handlers of its own over the process's
/// signals and takes them off again, which two may only do one inside the other.
static SIGNALS: Mutex<()> = Mutex::new(());

/// A loaded build of the kernels.
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

/// In which order threads and blocks take their turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Rising.
    Forward,
    /// Falling.
    Reverse,
    /// Drawn.
    Random,
}

/// What a device leaves open, and the emulator decides.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Turns of threads and blocks.
    pub order: Order,
    /// When asynchronous copies arrive: 0 late, 1 early, 2 drawn.
    pub landing: i32,
    /// How tensor cores add: 0 in F64, 1 in F32 one by one, 2 cut to the largest term.
    pub sums: i32,
    /// Of what is drawn.
    pub seed: u64,
}

impl Schedule {
    /// Threads in turn, copies late, sums exact.
    pub const PLAIN: Schedule = Schedule { order: Order::Forward, landing: 0, sums: 0, seed: 0 };

    /// Five schedules that differ in turns and copies, but not in sums: equal results are owed.
    pub const ALL: [Schedule; 5] = [
        Schedule::PLAIN,
        Schedule { order: Order::Reverse, landing: 1, sums: 0, seed: 1 },
        Schedule { order: Order::Random, landing: 2, sums: 0, seed: 2 },
        Schedule { order: Order::Random, landing: 0, sums: 0, seed: 3 },
        Schedule { order: Order::Random, landing: 1, sums: 0, seed: 4 },
    ];
}

/// What a launch is made of, beside its arguments.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// What the emulator decides.
    pub schedule: Schedule,
}

/// Device memory of `len` values of T.
pub struct Buffer<'e, T> {
    at: *mut c_void,
    len: usize,
    emulator: &'e Emulator,
    values: PhantomData<T>,
}

/// The arguments of a launch, in the order of the kernel's parameters.
#[derive(Default)]
pub struct Args<'b> {
    // Each at the start of 8-byte words of its own.
    values: Vec<Vec<u64>>,
    buffers: PhantomData<&'b ()>,
}

impl<'b> Args<'b> {
    /// No arguments yet.
    pub fn new() -> Args<'b> {
        Args::default()
    }

    /// A pointer to device memory.
    pub fn buffer<T>(mut self, buffer: &'b Buffer<'_, T>) -> Args<'b> {
        self.values.push(vec![buffer.at as u64]);
        self
    }

    /// A number or a structure, laid out as the parameter is.
    pub fn value<V: Pod>(mut self, value: V) -> Args<'b> {
        let mut words = vec![0u64; size_of::<V>().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..size_of::<V>()].copy_from_slice(bytemuck::bytes_of(&value));
        self.values.push(words);
        self
    }
}

/// A function of the library.
///
/// # Safety
/// The function must have the type T.
unsafe fn symbol<'l, T>(library: &'l Library, name: &str) -> Symbol<'l, T> {
    // SAFETY: the caller answers for the type.
    unsafe { library.get(name.as_bytes()) }.unwrap_or_else(|e| panic!("{name}: {e}"))
}

impl Emulator {
    /// The one instance of a build in this process; compiles it if need be.
    pub fn get(build: Build) -> &'static Emulator {
        static FAST: OnceLock<Emulator> = OnceLock::new();
        static CHECK: OnceLock<Emulator> = OnceLock::new();
        let cell = if build == Build::Fast { &FAST } else { &CHECK };
        cell.get_or_init(|| Emulator::load(build))
    }

    fn load(build: Build) -> Emulator {
        let path = build::library(build);
        // SAFETY: our own library; its constructors only fill the table of kernels.
        let library =
            unsafe { Library::new(&path) }.unwrap_or_else(|e| panic!("loading {}: {e}", path.display()));
        // SAFETY: each name has the type declared above in launch.cpp; the pointers live as long as the library,
        // which is kept beside them and never closed, as instances are static.
        unsafe {
            Emulator {
                malloc: *symbol(&library, "emulation_malloc"),
                free: *symbol(&library, "emulation_free"),
                copy_in: *symbol(&library, "emulation_copy_in"),
                copy_out: *symbol(&library, "emulation_copy_out"),
                unwritten: *symbol(&library, "emulation_unwritten"),
                launch: *symbol(&library, "emulation_launch"),
                shared_bytes: *symbol(&library, "emulation_shared_bytes"),
                kernels: *symbol(&library, "emulation_kernels"),
                _library: library,
            }
        }
    }

    /// Uninitialised device memory; `label` names it in reports.
    pub fn empty<T: Pod>(&self, len: usize, label: &str) -> Buffer<'_, T> {
        let label = CString::new(label).expect("a label without NUL");
        // SAFETY: the label is a C string for the call.
        let at = unsafe { (self.malloc)(len * size_of::<T>(), label.as_ptr()) };
        Buffer { at, len, emulator: self, values: PhantomData }
    }

    /// Device memory that holds `values`.
    pub fn upload<T: Pod>(&self, values: &[T], label: &str) -> Buffer<'_, T> {
        let buffer = self.empty(values.len(), label);
        // SAFETY: source and destination have this many bytes.
        let status =
            unsafe { (self.copy_in)(buffer.at, values.as_ptr().cast(), std::mem::size_of_val(values)) };
        assert_eq!(status, 0, "copy to device memory");
        buffer
    }

    /// Runs a kernel to its end, or gives the report that stopped it.
    pub fn launch(&self, kernel: &str, launch: Launch, args: &Args<'_>) -> Result<(), String> {
        let kernel = CString::new(kernel).expect("a name without NUL");
        let pointers: Vec<*mut c_void> =
            args.values.iter().map(|words| words.as_ptr().cast_mut().cast()).collect();
        let Schedule { order, landing, sums, seed } = launch.schedule;
        let schedule = [order as c_int, landing, sums];
        let mut message = [0 as c_char; 2048];
        let signals = SIGNALS.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: every pointer holds for the call, with the lengths the interface asks for; argument counts are
        // checked there, and each argument has the size of its parameter, which the caller answers for.
        let status = unsafe {
            (self.launch)(
                kernel.as_ptr(),
                launch.grid.as_ptr(),
                launch.block.as_ptr(),
                launch.shared,
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

    /// Bytes of shared memory that a kernel's layout takes for these sizes.
    pub fn shared_bytes(&self, kernel: &str, sizes: &[u32]) -> usize {
        let name = CString::new(kernel).expect("a name without NUL");
        // SAFETY: name and sizes hold for the call.
        let bytes = unsafe { (self.shared_bytes)(name.as_ptr(), sizes.as_ptr(), sizes.len() as c_uint) };
        assert_ne!(bytes, usize::MAX, "{kernel} has no layout of {} sizes", sizes.len());
        bytes
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

impl<T: Pod> Buffer<'_, T> {
    /// Where it lies, for structures that hold pointers.
    pub fn address(&self) -> u64 {
        self.at as u64
    }

    /// A copy of the values on the host.
    pub fn download(&self) -> Vec<T> {
        let mut out = vec![T::zeroed(); self.len];
        let bytes = std::mem::size_of_val(out.as_slice());
        // SAFETY: source and destination have this many bytes; any bytes are a T.
        let status = unsafe { (self.emulator.copy_out)(out.as_mut_ptr().cast(), self.at, bytes) };
        assert_eq!(status, 0, "copy from device memory");
        out
    }

    /// Bytes that nobody has written yet; 0 in the fast build.
    pub fn unwritten(&self) -> u64 {
        // SAFETY: the buffer is live.
        unsafe { (self.emulator.unwritten)(self.at) }
    }
}

impl<T> Drop for Buffer<'_, T> {
    fn drop(&mut self) {
        // SAFETY: allocated by the same emulator, freed once.
        let status = unsafe { (self.emulator.free)(self.at) };
        assert_eq!(status, 0, "free of device memory");
    }
}
