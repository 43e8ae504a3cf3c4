//! Launches: a kernel's name, its geometry and its arguments, laid out as the kernel declares its parameters.

use bytemuck::Pod;

use super::memory::Buffer;

/// The arguments of a launch, in the order of the kernel's parameters. A buffer that is named here must outlive the
/// launch; the order of the stream sees to that where it is freed later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    // Each at the start of 8-byte words of its own.
    values: Vec<Vec<u64>>,
}

impl Args {
    /// No arguments yet.
    pub fn new() -> Args {
        Args::default()
    }

    /// A pointer to the start of device memory.
    pub(super) fn buffer<T: Pod>(self, buffer: &Buffer<T>) -> Args {
        self.address(buffer.address())
    }

    /// A pointer into device memory; 0 is null.
    pub fn address(mut self, address: u64) -> Args {
        self.values.push(vec![address]);
        self
    }

    /// A number or a structure, laid out as the parameter is.
    pub fn value<V: Pod>(mut self, value: V) -> Args {
        let mut words = vec![0u64; size_of::<V>().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..size_of::<V>()].copy_from_slice(bytemuck::bytes_of(&value));
        self.values.push(words);
        self
    }

    /// The arguments' words.
    pub fn words(&self) -> &[Vec<u64>] {
        &self.values
    }
}

/// A size as kernels take it.
pub(super) fn u32_of(size: usize) -> u32 {
    u32::try_from(size).expect("sizes of models, batches and products fit 32 bits")
}

/// A kernel to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Its name.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// Its arguments.
    pub args: Args,
}
