//! The emulator with typed buffers, for tests of single kernels.

use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use bytemuck::Pod;
use lensmith::backend::cuda::driver::Driver;
use lensmith::backend::cuda::{
    Args as RawArgs, Device, Emulator as Library, Gpu, Launch as RawLaunch, layout,
};
pub use lensmith::backend::cuda::{Order, Schedule};

use super::{Build, build};

/// A loaded build of the kernels; or, in its place, a GPU (see [`super::tested_gpu`]).
pub struct Emulator(Raw);

enum Raw {
    Library(Arc<Library>),
    Gpu(Gpu),
}

/// A launch but for kernel and arguments.
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
    raw: RawArgs,
    buffers: PhantomData<&'b ()>,
}

impl<'b> Args<'b> {
    /// No arguments yet.
    pub fn new() -> Args<'b> {
        Args::default()
    }

    /// A pointer to device memory.
    pub fn buffer<T>(mut self, buffer: &'b Buffer<'_, T>) -> Args<'b> {
        self.raw = self.raw.address(buffer.at);
        self
    }

    /// A number or a structure, laid out as the parameter is.
    pub fn value<V: Pod>(mut self, value: V) -> Args<'b> {
        self.raw = self.raw.value(value);
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
            if let Some(index) = super::tested_gpu() {
                let device = Device::open(index).unwrap_or_else(|e| panic!("{e}"));
                return Emulator(Raw::Gpu(Gpu::new(device).unwrap_or_else(|e| panic!("{e}"))));
            }
            let path = build::library(build);
            // SAFETY: just built from this version's sources.
            let library = unsafe { Library::open(&path) };
            let library = library.unwrap_or_else(|e| panic!("loading {}: {e}", path.display()));
            Emulator(Raw::Library(Arc::new(library)))
        })
    }

    /// The library itself.
    pub fn library(&self) -> Arc<Library> {
        match &self.0 {
            Raw::Library(library) => library.clone(),
            Raw::Gpu(_) => panic!("this test is about the emulator"),
        }
    }

    /// Uninitialised device memory; `label` names it in reports.
    pub fn empty<T: Pod>(&self, len: usize, label: &str) -> Buffer<'_, T> {
        let at = match &self.0 {
            Raw::Library(library) => library.allocate(len * size_of::<T>(), label),
            Raw::Gpu(gpu) => gpu.allocate(len * size_of::<T>(), "a test's buffer").expect("device memory"),
        };
        Buffer { at, len, emulator: self, values: PhantomData }
    }

    /// Device memory that holds `values`.
    pub fn upload<T: Pod>(&self, values: &[T], label: &str) -> Buffer<'_, T> {
        let buffer = self.empty(values.len(), label);
        match &self.0 {
            Raw::Library(library) => library.copy_in(buffer.at, bytemuck::cast_slice(values)),
            Raw::Gpu(gpu) => gpu.upload(buffer.at, bytemuck::cast_slice(values)).expect("a copy"),
        }
        buffer
    }

    /// Runs a kernel to its end, or gives the report that stopped it.
    pub fn launch(&self, kernel: &str, launch: Launch, args: &Args<'_>) -> Result<(), String> {
        let Launch { grid, block, shared, schedule } = launch;
        match &self.0 {
            // SAFETY: each test gives a kernel arguments of its parameters' sizes.
            Raw::Library(library) => unsafe {
                library.launch(kernel, (grid, block, shared), args.raw.words(), schedule)
            },
            Raw::Gpu(gpu) => {
                // The few names that tests use live as long as the process.
                let kernel: &'static str = Box::leak(kernel.to_string().into_boxed_str());
                let launch = RawLaunch { kernel, grid, threads: block[0], shared, args: args.raw.clone() };
                gpu.launch(&launch).map_err(|fault| fault.to_string())
            }
        }
    }

    /// Bytes of shared memory that a kernel's layout takes for these sizes.
    pub fn shared_bytes(&self, kernel: &str, sizes: &[u32]) -> usize {
        let bytes = match &self.0 {
            Raw::Library(library) => library.shared_bytes(kernel, sizes),
            // A GPU does not tell; the launch layer's count is compared with the kernels' own under emulation.
            Raw::Gpu(_) if kernel == "select_f32" => {
                let [latent, keep, drawn] = [0, 1, 2].map(|i| sizes[i] as usize);
                Some(layout::select(latent, keep, drawn).shared)
            }
            // More than any other kernel needs.
            Raw::Gpu(_) => Some(48 << 10),
        };
        bytes.unwrap_or_else(|| panic!("{kernel} has no layout of {} sizes", sizes.len()))
    }

    /// The names of all kernels, in rising order.
    pub fn kernels(&self) -> Vec<String> {
        self.library().kernels()
    }
}

impl<T: Pod> Buffer<'_, T> {
    /// Device address, for structures that hold pointers.
    pub fn address(&self) -> u64 {
        self.at
    }

    /// A copy of the values on the host.
    pub fn download(&self) -> Vec<T> {
        let mut out = vec![T::zeroed(); self.len];
        match &self.emulator.0 {
            Raw::Library(library) => library.copy_out(bytemuck::cast_slice_mut(&mut out), self.at),
            Raw::Gpu(gpu) => {
                let event = gpu.event().expect("an event");
                gpu.download(&*event, bytemuck::cast_slice_mut(&mut out), self.at).expect("a copy");
            }
        }
        out
    }

    /// Bytes that were never written; always 0 in the fast build.
    pub fn unwritten(&self) -> u64 {
        match &self.emulator.0 {
            Raw::Library(library) => library.unwritten(self.at),
            Raw::Gpu(_) => 0,
        }
    }
}

impl<T> Drop for Buffer<'_, T> {
    fn drop(&mut self) {
        match &self.emulator.0 {
            Raw::Library(library) => library.free(self.at),
            Raw::Gpu(gpu) => gpu.free(self.at, self.len * size_of::<T>()),
        }
    }
}
