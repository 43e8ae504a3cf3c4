//! A launch as plain data: a kernel's name, its geometry and the structure of its parameters. Two launches that are
//! equal do the same work, which is how a trainer knows that a recorded step still holds.

use bytemuck::Pod;

/// The parameters of a launch: the bytes of one structure, of which a kernel has a copy. A buffer that is named there
/// must not be freed before the launch is made; after that, the order of the stream protects it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params {
    words: Vec<u64>,
}

impl Params {
    /// A structure as the kernel declares it, with pointers as addresses in device memory.
    pub fn of<P: Pod>(structure: P) -> Params {
        const { assert!(size_of::<P>().is_multiple_of(8), "padded to the alignment of pointers") };
        let mut words = vec![0u64; size_of::<P>() / 8];
        bytemuck::cast_slice_mut(&mut words).copy_from_slice(bytemuck::bytes_of(&structure));
        Params { words }
    }

    /// Its bytes, at the alignment that kernels expect.
    pub fn words(&self) -> &[u64] {
        &self.words
    }
}

/// A size as kernels take it.
pub(super) fn u32_of(size: usize) -> u32 {
    u32::try_from(size).expect("sizes of models, batches and products fit 32 bits")
}

/// When the blocks of a launch start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// When the launch ahead has ended.
    Behind,
    /// Before it has ended, where the device can do that: the kernel waits before it uses device memory
    /// (`kernels/include/dependent.cuh`).
    Early,
    /// All at once, so that they may wait for each other (a cooperative launch); the grid is no larger than what
    /// the device holds.
    Together,
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
    /// Its parameters.
    pub params: Params,
    /// When its blocks start.
    pub start: Start,
}
