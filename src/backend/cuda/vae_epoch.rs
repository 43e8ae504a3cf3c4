//! VAE training with all steps of an epoch in one cooperative launch, where the moments of the model fit the shared
//! memory of the blocks that the device holds at once: `kernels/include/vae_epoch.cuh`. The bits of the launches of
//! `train_vae.rs`, which run where it does not fit.

use super::context::Cuda;
use super::driver::DriverResult;
use super::launch::{Launch, Params, Start, u32_of};
use super::layout;
use super::memory::Buffer;
use super::params;
use super::step_graph::{Sizes, deep_of, slices_of, tiles_of};
use crate::backend::Precision;
use crate::model::VaeSize;

/// Threads of a block.
const THREADS: u32 = 128;

/// The launch that a model and a batch size need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    kernel: &'static str,
    grid: u32,
    shared: usize,
    /// Bytes of shared memory between operands and moments.
    scratch: usize,
    /// Slices of the sums over dimensions, the columns of each, and slices of the gradients' sums over rows.
    slices: usize,
    deep: usize,
    row_slices: [usize; 4],
}

/// A plan with the memory that its launch needs beside that of a step.
#[derive(Debug)]
pub struct Together {
    pub plan: Plan,
    partial: Buffer<f32>,
    errors: Buffer<f64>,
    /// Blocks that have reached barriers of the grid.
    arrived: Buffer<u32>,
}

/// Outputs, inputs and rows of the gradients, in the order of layers.
pub fn gradients(VaeSize { dim, hidden, latent }: VaeSize, rows: usize) -> [Sizes; 4] {
    [(hidden, dim, rows), (2 * latent, hidden, rows), (hidden, latent, rows), (dim, hidden, rows)]
}

impl Plan {
    /// None where the device or the model does not suit.
    pub fn of(cuda: &Cuda, size: VaeSize, batch: usize) -> DriverResult<Option<Plan>> {
        let VaeSize { dim, hidden, latent } = size;
        let (limits, rows, precision) = (cuda.driver.limits(), 2 * batch, cuda.precision);
        // Sums that a pair's block makes in one chain.
        let narrow =
            [(rows, 2 * latent, hidden), (rows, hidden, latent), (rows, latent, hidden), (rows, dim, hidden)];
        let whole = narrow.iter().chain([&(rows, hidden, 2 * latent)]).all(|&sizes| slices_of(sizes) == 1);
        if !limits.cooperative || !whole {
            return Ok(None);
        }
        let kernel = match precision {
            Precision::F32 => "vae_epoch_f32",
            Precision::Bf16 => "vae_epoch_bf16",
        };
        let over_dim = (rows, hidden, dim);
        let (slices, deep) = (slices_of(over_dim), deep_of(over_dim, precision));
        let tiles: usize = gradients(size, rows).into_iter().map(tiles_of).sum();
        // More blocks than the parts of a phase would wait for nothing.
        let useful = tiles.max(tiles_of(over_dim) * slices).max(batch);
        // As many own tiles a block as the device needs, the fewest first.
        for own in 1..=tiles {
            let (scratch, shared) = layout::vae_epoch(precision, size, deep, own);
            if shared > limits.shared {
                break;
            }
            let most = (cuda.driver.occupancy(kernel, THREADS, shared)? * limits.processors) as usize;
            let grid = most.min(useful);
            if own * grid >= tiles {
                let row_slices = gradients(size, rows).map(slices_of);
                let grid = u32_of(grid);
                return Ok(Some(Plan { kernel, grid, shared, scratch, slices, deep, row_slices }));
            }
        }
        Ok(None)
    }
}

impl Together {
    /// Memory for the plan's launches.
    pub fn new(
        cuda: &Cuda,
        plan: Plan,
        VaeSize { hidden, .. }: VaeSize,
        batch: usize,
    ) -> DriverResult<Together> {
        let rows = 2 * batch;
        Ok(Together {
            plan,
            partial: Buffer::empty(
                &cuda.driver,
                plan.slices * rows * hidden,
                "slices of sums over dimensions",
            )?,
            errors: Buffer::empty(&cuda.driver, plan.slices * rows, "errors of slices")?,
            arrived: Buffer::empty(&cuda.driver, 1, "barrier of the grid")?,
        })
    }

    /// Runs an epoch. `params` has everything but what this file knows.
    pub fn run(&self, cuda: &Cuda, params: params::VaeEpoch) -> DriverResult<()> {
        let Plan { kernel, grid, shared, scratch, slices, deep, row_slices } = self.plan;
        cuda.driver.clear(self.arrived.address(), size_of::<u32>())?;
        let params = params::VaeEpoch {
            partial: self.partial.address(),
            errors: self.errors.address(),
            arrived: self.arrived.address(),
            slices: u32_of(slices),
            deep: u32_of(deep),
            row_slices: row_slices.map(u32_of),
            scratch: u32_of(scratch),
            ..params
        };
        cuda.driver.launch(&Launch {
            kernel,
            grid: [grid, 1, 1],
            threads: THREADS,
            shared,
            params: Params::of(params),
            start: Start::Together,
        })
    }
}
