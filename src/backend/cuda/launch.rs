//! A launch as plain data: a kernel's name, its geometry and its arguments, laid out as the kernel declares its
//! parameters. Two launches that are equal do the same work, which is how a trainer knows that a recorded step still
//! holds.

use bytemuck::Pod;

use crate::backend::NoiseKey;

/// The arguments of a launch, in the order of the kernel's parameters. A buffer that is named here must not be freed
/// before the launch is made; after that, the order of the stream protects it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// The bytes of each argument, padded to 8: drivers take a pointer to each.
    values: Vec<Vec<u64>>,
}

impl Args {
    /// No arguments yet.
    pub fn new() -> Args {
        Args::default()
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

    /// The three last parameters of every kernel that draws: seed, side and the data-set row of the first row.
    pub(super) fn noise(self, key: NoiseKey) -> Args {
        self.value(key.seed).value(key.side as u32).value(key.first_row)
    }

    /// The arguments' bytes.
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
