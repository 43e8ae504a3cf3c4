//! A training step as a CUDA graph: the same launches with the same parameters, recorded once and replayed for
//! every batch.
//!
//! 1. A trainer builds the launches of a step with [`StepGraph`]. They name addresses and sizes only; what
//!    changes from step to step (which pairs, how many, Adam's bias corrections) is a row of a table on the
//!    device, [`Progress`].
//! 2. [`Recording`] records them, unless it holds equal launches already from an epoch before.
//! 3. Each replay reads its row of the table; its last launch, `end_step`, adds up the losses and moves to
//!    the next row. So the host launches a graph per step and waits once an epoch.

use std::fmt;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::context::Cuda;
use super::driver::{Driver, DriverResult, Graph};
use super::launch::{Launch, Params, u32_of};
use super::layout;
use super::memory::Buffer;
use super::params::{self, Product, Step};
use super::weights::{LayerAt, Parameters};
use crate::backend::{Adam, Precision};

/// Products are split over k (split-K) until they have this many blocks. Fixed, so that every GPU adds in the
/// same order.
const BLOCKS: usize = 128;
/// Least length of a slice of k.
const MIN_SLICE: usize = 128;
/// Rows and columns of the result that a block of a product computes.
const TILE: usize = 64;

/// Device memory whose values change with every epoch. It stays where it is as long as they fit, so that
/// recorded launches still hold.
#[derive(Debug)]
pub struct Refilled<T> {
    driver: Arc<dyn Driver>,
    label: &'static str,
    buffer: Option<Buffer<T>>,
}

impl<T: Pod> Refilled<T> {
    /// No memory yet.
    pub fn new(cuda: &Cuda, label: &'static str) -> Refilled<T> {
        Refilled { driver: cuda.driver.clone(), label, buffer: None }
    }

    /// Uninitialised room for `len` values.
    pub fn room(&mut self, len: usize) -> DriverResult<&Buffer<T>> {
        if self.buffer.as_ref().is_some_and(|b| b.len() < len) {
            // Freed before there is a larger one: the two need not fit side by side.
            self.buffer = None;
        }
        if self.buffer.is_none() {
            self.buffer = Some(Buffer::empty(&self.driver, len, self.label)?);
        }
        Ok(self.buffer.as_ref().expect("just made"))
    }

    /// Overwrites the first values.
    pub fn fill(&mut self, values: &[T]) -> DriverResult<()> {
        self.room(values.len())?.write(0, values)
    }

    /// Device address of the values.
    pub fn address(&self) -> u64 {
        self.buffer.as_ref().map_or(0, Buffer::address)
    }
}

/// Which step of an epoch it is, and the losses of those before.
#[derive(Debug)]
pub struct Progress {
    /// All steps of the epoch.
    steps: Refilled<Step>,
    /// Index in `steps` of the step after the one that runs.
    step_index: Buffer<u32>,
    /// The step that runs.
    pub step: Buffer<Step>,
    /// Sums of the losses, one per term.
    pub totals: Buffer<f64>,
}

impl Progress {
    /// For `terms` losses.
    pub fn new(cuda: &Cuda, terms: usize) -> DriverResult<Progress> {
        let driver = &cuda.driver;
        Ok(Progress {
            steps: Refilled::new(cuda, "steps"),
            step_index: Buffer::empty(driver, 1, "step index")?,
            step: Buffer::empty(driver, 1, "step")?,
            totals: Buffer::empty(driver, terms, "totals")?,
        })
    }

    /// Starts an epoch of these steps, at least one.
    pub fn start(&mut self, steps: &[Step]) -> DriverResult<()> {
        // One more row: the last step moves on to it, and nothing uses it.
        self.steps.fill(&[steps, &[Step::zeroed()]].concat())?;
        self.step_index.write(0, &[1])?;
        self.step.write(0, &steps[..1])?;
        self.totals.write(0, &vec![0.0; self.totals.len()])
    }
}

/// The recorded launches of a step.
pub struct Recording {
    launches: Vec<Launch>,
    graph: Box<dyn Graph>,
}

impl Recording {
    /// `previous` if it holds these launches, else a new one. Launches name addresses, sizes and types alone,
    /// so equal launches do the same work on whatever lies there.
    pub fn of(cuda: &Cuda, previous: Option<Recording>, launches: Vec<Launch>) -> DriverResult<Recording> {
        match previous {
            Some(recording) if recording.launches == launches => Ok(recording),
            _ => Ok(Recording { graph: cuda.driver.record(launches.clone())?, launches }),
        }
    }

    /// Runs the step `times` times.
    pub fn replay(&self, times: usize) -> DriverResult<()> {
        (0..times).try_for_each(|_| self.graph.replay())
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recording({} launches)", self.launches.len())
    }
}

/// Sizes (m, n, k) of a product: out `[m, n]`, sums over k.
pub type Sizes = (usize, usize, usize);

/// Layout of the operands: n as it is, t transposed; names as in `kernels/product_f32.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// a `[m, k]`, b `[n, k]`: x W^T.
    Nt,
    /// a `[k, m]`, b `[k, n]`: dy^T x.
    Tn,
    /// a `[m, k]`, b `[k, n]`: dy W.
    Nn,
}

/// What a product does with a sum before it is stored.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue {
    /// Address of a bias `[n]` to add, or 0.
    pub bias: u64,
    pub relu: bool,
    /// Address of a ReLU's output `[m, n]`: the result is 0 where it is, the gradient through that ReLU. Or
    /// 0.
    pub mask: u64,
    /// Whether the result is added to what is stored.
    pub add: bool,
    /// Address of the number of rows of the batch that take part, or 0 for all.
    pub limit: u64,
}

/// Memory for split-K, which the products of a step use one after the other: each slice writes its sums, and
/// the last block of a tile to finish adds them up in the order of the slices.
#[derive(Debug)]
pub struct Slices {
    partial: Buffer<f32>,
    /// Blocks that have finished, one counter a tile; every product leaves them 0.
    tickets: Buffer<u32>,
}

/// Number of slices of k. A function of sizes alone, so that results do not depend on the GPU.
fn slices_of((m, n, k): Sizes) -> usize {
    let tiles = m.div_ceil(TILE) * n.div_ceil(TILE);
    (BLOCKS / tiles.max(1)).clamp(1, (k / MIN_SLICE).max(1))
}

impl Slices {
    /// Room for any of `products`, each with the number of products that are added up in one launch.
    pub fn new(cuda: &Cuda, products: &[(Sizes, usize)]) -> DriverResult<Slices> {
        let most = |of: &dyn Fn(usize, usize, usize) -> usize| {
            let each = products.iter().map(|&(p, more)| of(slices_of(p) + more - 1, p.0, p.1));
            each.max().unwrap_or(1)
        };
        // A product that sums columns too (`Product::sums`) has one more column of blocks for it.
        let tiles = most(&|_, m, n| m.div_ceil(TILE) * (n.div_ceil(TILE) + 1));
        Ok(Slices {
            partial: Buffer::empty(&cuda.driver, most(&|s, m, n| s * m * n), "slices of products")?,
            tickets: Buffer::zeros(&cuda.driver, tiles, "tickets of products")?,
        })
    }
}

/// Builds the launches of a step.
#[derive(Debug)]
pub struct StepGraph<'a> {
    precision: Precision,
    launches: Vec<Launch>,
    slices: &'a Slices,
}

impl<'a> StepGraph<'a> {
    /// No launches yet.
    pub fn new(cuda: &Cuda, slices: &'a Slices) -> StepGraph<'a> {
        StepGraph { precision: cuda.precision, launches: Vec::new(), slices }
    }

    /// The launches in their order.
    pub fn into_launches(self) -> Vec<Launch> {
        self.launches
    }

    /// Any kernel: `items` over blocks of `threads` that take `tile` items each.
    pub fn kernel(
        &mut self,
        kernel: &'static str,
        (items, tile, threads): (usize, usize, u32),
        params: impl Pod,
    ) {
        self.kernel_with_shared(kernel, (items, tile, threads), 0, params);
    }

    /// The same with `shared` bytes of shared memory.
    pub fn kernel_with_shared(
        &mut self,
        kernel: &'static str,
        (items, tile, threads): (usize, usize, u32),
        shared: usize,
        params: impl Pod,
    ) {
        let grid = [u32_of(items.div_ceil(tile)).clamp(1, 1 << 16), 1, 1];
        self.launches.push(Launch { kernel, grid, threads, shared, params: Params::of(params) });
    }

    /// out = epilogue(a b); the rows of all three lie directly behind each other.
    pub fn product(&mut self, form: Form, (a, b, out): (u64, u64, u64), sizes: Sizes, epilogue: Epilogue) {
        self.launch_product(
            form,
            Product { a, b, out, ..with_epilogue(epilogue, form, sizes) },
            slices_of(sizes),
        );
    }

    /// out = epilogue(a b^T + c d^T), both `[m, n]`; `epilogue.limit` holds for the first product.
    pub fn product_of_two(
        &mut self,
        [(a, b, k), (c, d, l)]: [(u64, u64, usize); 2],
        out: u64,
        (m, n): (usize, usize),
        epilogue: Epilogue,
    ) {
        let sizes = (m, n, k);
        let p = Product { a, b, out, c, d, l: u32_of(l), ..with_epilogue(epilogue, Form::Nt, sizes) };
        self.launch_product(Form::Nt, p, slices_of(sizes) + 1);
    }

    /// Gradients of a layer: dW = dy^T input and db = column sums of dy, over `rows` rows.
    pub fn gradients(&mut self, layer: LayerAt, dy: u64, input: u64, rows: usize) {
        let sizes = (layer.outputs, layer.inputs, rows);
        let p =
            Product { a: dy, b: input, out: layer.dweight, sums: layer.dbias, ..leading(Form::Tn, sizes) };
        self.launch_product(Form::Tn, p, slices_of(sizes));
    }

    fn launch_product(&mut self, form: Form, mut p: Product, slices: usize) {
        let kernel = match (form, self.precision) {
            (Form::Nt, Precision::F32) => "product_nt_f32",
            (Form::Tn, Precision::F32) => "product_tn_f32",
            (Form::Nn, Precision::F32) => "product_nn_f32",
            (Form::Nt, Precision::Bf16) => "product_nt_bf16",
            (Form::Tn, Precision::Bf16) => "product_tn_bf16",
            (Form::Nn, Precision::Bf16) => "product_nn_bf16",
        };
        let tiles = p.n.div_ceil(TILE as u32) + u32::from(p.sums != 0);
        let grid = [tiles, p.m.div_ceil(TILE as u32), u32_of(slices)];
        if slices > 1 {
            let Slices { partial, tickets } = self.slices;
            assert!(slices * p.m as usize * p.n as usize <= partial.len(), "room for all slices");
            assert!((grid[0] * grid[1]) as usize <= tickets.len(), "a ticket for every tile");
            (p.partial, p.tickets) = (partial.address(), tickets.address());
        }
        let shared = layout::product(self.precision);
        self.launches.push(Launch { kernel, grid, threads: 128, shared, params: Params::of(p) });
    }

    /// One step of Adam on all parameters.
    pub fn adam(&mut self, p: &Parameters, step: &Buffer<Step>) {
        let Adam { beta1, beta2, eps, .. } = p.adam;
        let params = params::Adam {
            w: p.values.address(),
            g: p.gradients.address(),
            m: p.first_moments.address(),
            v: p.second_moments.address(),
            now: step.address(),
            n: p.len as u64,
            beta1: beta1 as f32,
            keep1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            keep2: (1.0 - beta2) as f32,
            eps: eps as f32,
            decay: p.adam.decay(),
        };
        self.kernel("adam_f32", (p.len, 4 * 256, 256), params);
    }

    /// Adds losses `[terms, count]` to the totals, and moves to the next step.
    pub fn end_step(&mut self, losses: &Buffer<f64>, progress: &Progress, count: usize) {
        let params = params::EndStep {
            losses: losses.address(),
            totals: progress.totals.address(),
            table: progress.steps.address(),
            turn: progress.step_index.address(),
            now: progress.step.address(),
            count: u32_of(count),
            ..Default::default()
        };
        self.kernel_with_shared("end_step", (progress.totals.len(), 1, 256), 8 * 8, params);
    }
}

/// Sizes and leading dimensions of dense operands.
fn leading(form: Form, (m, n, k): Sizes) -> Product {
    let (lda, ldb) = match form {
        Form::Nt => (k, k),
        Form::Tn => (m, n),
        Form::Nn => (k, n),
    };
    Product {
        m: u32_of(m),
        n: u32_of(n),
        k: u32_of(k),
        lda: u32_of(lda),
        ldb: u32_of(ldb),
        ldo: u32_of(n),
        ..Product::default()
    }
}

fn with_epilogue(epilogue: Epilogue, form: Form, sizes: Sizes) -> Product {
    Product {
        bias: epilogue.bias,
        mask: epilogue.mask,
        limit: epilogue.limit,
        relu: u32::from(epilogue.relu),
        add: u32::from(epilogue.add),
        ..leading(form, sizes)
    }
}
