//! A device with typed buffers, for tests of single kernels.

use std::marker::PhantomData;
use std::sync::OnceLock;

use bytemuck::Pod;
use lensmith::backend::cuda::driver::Driver;
use lensmith::backend::cuda::{Gpu, Launch as RawLaunch, Params, Start};

use super::{Races, Schedule, Simulated};

/// A device: the machine for PTX, or a GPU in its place (see [`super::tested_gpu`]).
pub struct Machine {
    gpu: Gpu,
    /// Its number; None of a GPU.
    number: Option<usize>,
}

/// A launch but for kernel and parameters.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: usize,
}

/// Device memory of `len` values of T.
pub struct Buffer<'m, T> {
    at: u64,
    len: usize,
    machine: &'m Machine,
    values: PhantomData<T>,
}

impl Machine {
    /// A device of its own.
    pub fn new(races: Races, schedule: Schedule) -> Machine {
        Machine::of(races, Simulated { schedule, ..Simulated::default() })
    }

    /// A device as told.
    pub fn of(races: Races, options: Simulated) -> Machine {
        let gpu = super::gpu(races, options);
        let number = super::tested_gpu().is_none().then(|| gpu.index());
        Machine { gpu, number }
    }

    /// One for all tests of the process, without the search for races.
    pub fn usual() -> &'static Machine {
        static USUAL: OnceLock<Machine> = OnceLock::new();
        USUAL.get_or_init(|| Machine::new(Races::Ignored, Schedule::PLAIN))
    }

    /// Uninitialised device memory.
    pub fn empty<T: Pod>(&self, len: usize) -> Buffer<'_, T> {
        let at = self.gpu.allocate(len * size_of::<T>(), "a test's buffer").expect("device memory");
        Buffer { at, len, machine: self, values: PhantomData }
    }

    /// Device memory that holds `values`.
    pub fn upload<T: Pod>(&self, values: &[T]) -> Buffer<'_, T> {
        let buffer = self.empty(values.len());
        self.gpu.upload(buffer.at, bytemuck::cast_slice(values)).expect("a copy");
        buffer
    }

    /// Runs a kernel to its end, or gives the report that stopped it. `params` is laid out as the kernel's structure.
    pub fn launch<P: Pod>(&self, kernel: &str, launch: Launch, params: P) -> Result<(), String> {
        let Launch { grid, block, shared } = launch;
        // The few names that tests use live as long as the process.
        let kernel: &'static str = Box::leak(kernel.to_string().into_boxed_str());
        let params = Params::of(params);
        let launch = RawLaunch { kernel, grid, threads: block[0], shared, params, start: Start::Behind };
        // A device says what was wrong when it is waited for.
        let said = self.gpu.launch(&launch).and_then(|()| self.gpu.synchronize());
        said.map_err(|error| match self.number {
            Some(number) => format!("{error}\n{}", super::fault(number)),
            None => error.to_string(),
        })
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
        let gpu = &self.machine.gpu;
        let event = gpu.event().expect("an event");
        gpu.download(&*event, bytemuck::cast_slice_mut(&mut out), self.at).expect("a copy");
        out
    }

    /// Bytes that nothing wrote; a GPU does not tell.
    pub fn unwritten(&self) -> usize {
        let bytes = self.len * size_of::<T>();
        self.machine.number.map_or(0, |number| super::unwritten(number, self.at, bytes))
    }
}

impl<T> Drop for Buffer<'_, T> {
    fn drop(&mut self) {
        self.machine.gpu.free(self.at, self.len * size_of::<T>());
    }
}
