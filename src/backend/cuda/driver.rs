//! What the launch layer needs of a device: memory, copies, launches and recorded graphs, in the order of one
//! stream.
//!
//! A GPU's is [`super::Gpu`]; tests put others around it, which count what is asked of it.

use std::ffi::c_void;
use std::{fmt, ptr};

use super::architecture::Architecture;
use super::launch::Launch;
use crate::dtype::Dtype;
use crate::matrix::RowsBuf;

/// What a device allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of shared memory that a block may ask for.
    pub shared: usize,
    /// Multiprocessors.
    pub processors: u32,
    /// Which kernels it runs.
    pub architecture: Architecture,
    /// Whether it takes launches whose blocks are all there at once ([`super::launch::Start::Together`]).
    pub cooperative: bool,
}

/// A matrix in device memory whose boxes, of `box_rows` rows of 128 bytes each, kernels have the copy engine bring in.
#[derive(Clone, Copy, Debug)]
pub struct BoxedMatrix {
    /// Where it starts, a multiple of 16.
    pub address: u64,
    /// Type of its values.
    pub dtype: Dtype,
    /// Its rows.
    pub rows: usize,
    /// Values of a row, which takes a multiple of 16 bytes.
    pub columns: usize,
    /// Rows of a box, at most 256.
    pub box_rows: u32,
}

/// Why a driver's call failed.
#[derive(Debug)]
pub enum DriverError {
    /// Device memory is used up.
    OutOfMemory {
        /// What it was for.
        what: &'static str,
        /// Bytes asked for.
        wanted: usize,
        /// Bytes that were free.
        free: usize,
    },
    /// Anything else, in the driver's words.
    Other(String),
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        match self {
            DriverError::OutOfMemory { what, wanted, free } => {
                write!(
                    f,
                    "out of memory: {:.1} MiB wanted for {what}, {:.1} MiB free",
                    mib(*wanted),
                    mib(*free)
                )
            }
            DriverError::Other(words) => f.write_str(words),
        }
    }
}

/// The result of a driver's call.
pub type DriverResult<T> = std::result::Result<T, DriverError>;

/// A place in the stream, to wait for.
pub trait Event: Send + Sync {
    /// The driver's handle for it; null where work is done when its call returns.
    fn raw(&self) -> *mut c_void {
        ptr::null_mut()
    }
}

/// Memory of the host that kernels read over the bus; given back when it is dropped.
pub trait HostMemory: Send + Sync + fmt::Debug {
    /// Where the device finds it.
    fn address(&self) -> u64;
}

/// Launches that were recorded once and run many times.
pub trait Graph: Send + Sync {
    /// Runs them in their order, after everything that was launched before.
    fn replay(&self) -> DriverResult<()>;
}

/// Device memory, copies and launches. Everything runs in the order in which it was asked for, on one stream;
/// only [`Driver::download`] may overlap what was launched after its event.
pub trait Driver: Send + Sync + fmt::Debug {
    /// The device's name for `--device`, as in `cuda:0`.
    fn name(&self) -> &str;
    /// Hardware in words.
    fn detail(&self) -> String;
    /// What it allows.
    fn limits(&self) -> Limits;
    /// How many blocks of a kernel a multiprocessor runs at the same time, of `threads` threads and `shared`
    /// bytes each; at least one.
    fn occupancy(&self, kernel: &'static str, threads: u32, shared: usize) -> DriverResult<u32>;
    /// What kernels hand to the copy engine for a matrix: a `params::tensor_map`, swizzled by 128 bytes.
    fn tensor_map(&self, matrix: BoxedMatrix) -> DriverResult<[u64; 16]>;
    /// Uninitialised device memory, aligned to 256 bytes. `bytes` is not 0. `what` it is for stands in errors.
    fn allocate(&self, bytes: usize, what: &'static str) -> DriverResult<u64>;
    /// Gives memory back. What was launched before may still use it: the next owner's work comes later in the
    /// stream.
    fn free(&self, address: u64, bytes: usize);
    /// Copies to the device; `from` may change as soon as the call returns.
    fn upload(&self, to: u64, from: &[u8]) -> DriverResult<()>;
    /// An event behind everything that was launched so far.
    fn event(&self) -> DriverResult<Box<dyn Event>>;
    /// Copies to the host what was there at the event, and waits for it. What was launched after the event
    /// runs at the same time and must not write these bytes.
    fn download(&self, event: &dyn Event, to: &mut [u8], from: u64) -> DriverResult<()>;
    /// Pinned memory of the host at an address of the device, for what the device has no room for. Uploads and kernels
    /// use it as they use the device's own.
    fn allocate_host(&self, bytes: usize) -> DriverResult<Box<dyn HostMemory>>;
    /// Registers host memory with the device, if that gains anything: downloads into it then need no copy by
    /// the host. If it cannot be done, they take that copy.
    fn register(&self, _memory: &mut RowsBuf) {}
    /// Copies within the device.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> DriverResult<()>;
    /// Sets bytes to zero.
    fn clear(&self, at: u64, bytes: usize) -> DriverResult<()>;
    /// Waits for all work of the device, whoever asked for it; faults of launches are errors here.
    fn synchronize(&self) -> DriverResult<()>;
    /// The device's number in the order of the driver.
    fn index(&self) -> usize;
    /// Runs a kernel.
    fn launch(&self, launch: &Launch) -> DriverResult<()>;
    /// Records launches without running them.
    fn record(&self, launches: Vec<Launch>) -> DriverResult<Box<dyn Graph>>;
}
