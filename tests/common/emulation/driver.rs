//! The emulator with typed buffers, for tests of single kernels.

use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use bytemuck::Pod;
use lensmith::backend::cuda::Emulator as Library;
pub use lensmith::backend::cuda::{Order, Schedule};

use super::{Build, build};

/// A loaded build of the kernels.
pub struct Emulator(Arc<Library>);

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
    at: u64,
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
        self.values.push(vec![buffer.at]);
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

impl Emulator {
    /// The one instance of a build in this process; compiles it if need be.
    pub fn get(build: Build) -> &'static Emulator {
        static FAST: OnceLock<Emulator> = OnceLock::new();
        static CHECK: OnceLock<Emulator> = OnceLock::new();
        let cell = if build == Build::Fast { &FAST } else { &CHECK };
        cell.get_or_init(|| {
            let path = build::library(build);
            // SAFETY: just built from this version's sources.
            let library = unsafe { Library::open(&path) };
            Emulator(Arc::new(library.unwrap_or_else(|e| panic!("loading {}: {e}", path.display()))))
        })
    }

    /// The library itself.
    pub fn library(&self) -> Arc<Library> {
        self.0.clone()
    }

    /// Uninitialised device memory; `label` names it in reports.
    pub fn empty<T: Pod>(&self, len: usize, label: &str) -> Buffer<'_, T> {
        let at = self.0.allocate(len * size_of::<T>(), label);
        Buffer { at, len, emulator: self, values: PhantomData }
    }

    /// Device memory that holds `values`.
    pub fn upload<T: Pod>(&self, values: &[T], label: &str) -> Buffer<'_, T> {
        let buffer = self.empty(values.len(), label);
        self.0.copy_in(buffer.at, bytemuck::cast_slice(values));
        buffer
    }

    /// Runs a kernel to its end, or gives the report that stopped it.
    pub fn launch(&self, kernel: &str, launch: Launch, args: &Args<'_>) -> Result<(), String> {
        let geometry = (launch.grid, launch.block, launch.shared);
        // SAFETY: each test gives a kernel arguments of its parameters' sizes.
        unsafe { self.0.launch(kernel, geometry, &args.values, launch.schedule) }
    }

    /// Bytes of shared memory that a kernel's layout takes for these sizes.
    pub fn shared_bytes(&self, kernel: &str, sizes: &[u32]) -> usize {
        let bytes = self.0.shared_bytes(kernel, sizes);
        bytes.unwrap_or_else(|| panic!("{kernel} has no layout of {} sizes", sizes.len()))
    }

    /// The names of all kernels, in rising order.
    pub fn kernels(&self) -> Vec<String> {
        self.0.kernels()
    }
}

impl<T: Pod> Buffer<'_, T> {
    /// Where it lies, for structures that hold pointers.
    pub fn address(&self) -> u64 {
        self.at
    }

    /// A copy of the values on the host.
    pub fn download(&self) -> Vec<T> {
        let mut out = vec![T::zeroed(); self.len];
        self.emulator.0.copy_out(bytemuck::cast_slice_mut(&mut out), self.at);
        out
    }

    /// Bytes that nobody has written yet; 0 in the fast build.
    pub fn unwritten(&self) -> u64 {
        self.emulator.0.unwritten(self.at)
    }
}

impl<T> Drop for Buffer<'_, T> {
    fn drop(&mut self) {
        self.emulator.0.free(self.at);
    }
}
