//! A training step as a CUDA graph: the same launches with the same parameters, recorded once and replayed for
//! every batch.
//!
//! 1. A trainer builds the launches of a step with [`StepGraph`]. They name addresses and sizes only; what
//!    changes from step to step (which pairs, how many, Adam's bias corrections) is a row of a table on the
//!    device, [`Progress`].
//! 2. [`Recording`] records them, unless it holds equal launches already from an epoch before.
//! 3. Each replay reads its row of the table; its last launch, Adam or where nothing is learnt `end_step`,
//!    adds up the losses and moves to the next row. So the host launches a graph per step and waits once an
//!    epoch.

use std::fmt;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::context::Cuda;
use super::driver::{Driver, DriverResult, Graph};
use super::launch::{Launch, Params, Start, u32_of};
use super::layout;
use super::memory::Buffer;
use super::params::{self, EndStep, Product, Products, Step};
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
    /// Blocks of Adam that have finished; it leaves a 0.
    ticket: Buffer<u32>,
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
            ticket: Buffer::zeros(driver, 1, "ticket of Adam")?,
        })
    }

    /// Device address of the steps of the epoch.
    pub fn table(&self) -> u64 {
        self.steps.address()
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

/// Layout of the operands: n as it is, t transposed; names as in `kernels/product_f32.cu`. There are also
/// products dy^T x, [`Gradient`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// a `[m, k]`, b `[n, k]`: x W^T.
    Nt,
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

/// The gradient of a weight, dy^T input over the rows of a batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gradient {
    /// Address of the gradient of a layer's outputs.
    pub dy: u64,
    /// Address of the layer's inputs.
    pub input: u64,
    /// Address of the result `[outputs, inputs]`.
    pub out: u64,
    /// Address of the sums of dy's columns, the bias's gradient, or 0.
    pub sums: u64,
    /// Address of the number of rows that take part, or 0 for all.
    pub limit: u64,
    /// Outputs, inputs and rows.
    pub sizes: Sizes,
}

impl Gradient {
    /// Of a layer's weight and bias over `rows` rows.
    pub fn of(layer: LayerAt, dy: u64, input: u64, rows: usize) -> Gradient {
        let sizes = (layer.outputs, layer.inputs, rows);
        Gradient { dy, input, out: layer.dweight, sums: layer.dbias, limit: 0, sizes }
    }
}

/// Memory for split-K, which the products of a step use one launch after the other: each slice writes its
/// sums, and the last block of a tile to finish adds them up in the order of the slices.
#[derive(Debug)]
pub struct Slices {
    partial: Buffer<f32>,
    /// Blocks that have finished, one counter a tile; every product leaves them 0.
    tickets: Buffer<u32>,
}

/// Length of a slice of k but for the last, as `gpu::share` in `kernels/include/train.cuh` has it.
pub fn deep_of(sizes: Sizes, precision: Precision) -> usize {
    let granule = match precision {
        Precision::F32 => 16,
        Precision::Bf16 => 32,
    };
    sizes.2.div_ceil(slices_of(sizes)).next_multiple_of(granule)
}

/// Tiles of the result of a product.
pub fn tiles_of((m, n, _): Sizes) -> usize {
    m.div_ceil(TILE) * n.div_ceil(TILE)
}

/// Number of slices of k. A function of sizes alone, so that results do not depend on the GPU.
pub fn slices_of(sizes: Sizes) -> usize {
    (BLOCKS / tiles_of(sizes).max(1)).clamp(1, (sizes.2 / MIN_SLICE).max(1))
}

/// Sizes of a product, and the number of products that are added up in it.
pub type Summed = (Sizes, usize);

/// Values that all slices of a product have; what follows them starts on a multiple of 256 bytes.
fn values_of((sizes, summed): Summed) -> usize {
    ((slices_of(sizes) + summed - 1) * sizes.0 * sizes.1).next_multiple_of(64)
}

impl Slices {
    /// Room for any of `launches`, each of one product or several.
    pub fn new(cuda: &Cuda, launches: &[&[Summed]]) -> DriverResult<Slices> {
        let most = |of: &dyn Fn(&Summed) -> usize| {
            launches.iter().map(|products| products.iter().map(of).sum()).max().unwrap_or(1)
        };
        Ok(Slices {
            partial: Buffer::empty(&cuda.driver, most(&|p| values_of(*p)), "slices of products")?,
            tickets: Buffer::zeros(&cuda.driver, most(&|p| tiles_of(p.0)), "tickets of products")?,
        })
    }
}

/// What the products of a launch have of [`Slices`] so far.
#[derive(Default)]
struct Taken {
    values: usize,
    tickets: usize,
}

impl Taken {
    /// The product with its number of slices, and memory for them.
    fn sliced(&mut self, of: &Slices, p: Product, (sizes, summed): Summed) -> Product {
        let slices = slices_of(sizes) + summed - 1;
        let sliced = Product { slices: u32_of(slices), ..p };
        if slices == 1 {
            return sliced;
        }
        let (partial, tickets) = (of.partial.at(self.values), of.tickets.at(self.tickets));
        self.values += values_of((sizes, summed));
        self.tickets += tiles_of(sizes);
        assert!(self.values <= of.partial.len(), "room for all slices");
        assert!(self.tickets <= of.tickets.len(), "a ticket for every tile");
        Product { partial, tickets, ..sliced }
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

    /// All launches but the first may start early: the first waits for the step before, and for what the host
    /// put on the stream.
    fn push(&mut self, kernel: &'static str, grid: [u32; 3], threads: u32, shared: usize, params: impl Pod) {
        let start = if self.launches.is_empty() { Start::Behind } else { Start::Early };
        self.launches.push(Launch { kernel, grid, threads, shared, params: Params::of(params), start });
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
        self.push(kernel, grid, threads, shared, params);
    }

    /// out = epilogue(a b); the rows of all three lie directly behind each other.
    pub fn product(&mut self, form: Form, (a, b, out): (u64, u64, u64), sizes: Sizes, epilogue: Epilogue) {
        let kernel = match (form, self.precision) {
            (Form::Nt, Precision::F32) => "product_nt_f32",
            (Form::Nn, Precision::F32) => "product_nn_f32",
            (Form::Nt, Precision::Bf16) => "product_nt_bf16",
            (Form::Nn, Precision::Bf16) => "product_nn_bf16",
        };
        let (lda, ldb) = match form {
            Form::Nt => (sizes.2, sizes.2),
            Form::Nn => (sizes.2, sizes.1),
        };
        let p = Product { a, b, out, ..with_epilogue(epilogue, sizes, (lda, ldb)) };
        self.launch_product(kernel, p, (sizes, 1));
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
        let kernel = match self.precision {
            Precision::F32 => "product_nt_f32",
            Precision::Bf16 => "product_nt_bf16",
        };
        let p = Product { a, b, out, c, d, l: u32_of(l), ..with_epilogue(epilogue, sizes, (k, k)) };
        self.launch_product(kernel, p, (sizes, 2));
    }

    fn launch_product(&mut self, kernel: &'static str, p: Product, summed: Summed) {
        let (m, n, _) = summed.0;
        let p = Taken::default().sliced(self.slices, p, summed);
        let grid = [u32_of(n.div_ceil(TILE)), u32_of(m.div_ceil(TILE)), p.slices];
        let shared = layout::product(self.precision);
        self.push(kernel, grid, 128, shared, p);
    }

    /// Up to four gradients in one launch.
    pub fn gradients(&mut self, all: &[Gradient]) {
        let kernel = match self.precision {
            Precision::F32 => "product_tn_f32",
            Precision::Bf16 => "product_tn_bf16",
        };
        let (mut group, mut taken) = (Products::default(), Taken::default());
        for (i, &Gradient { dy, input, out, sums, limit, sizes }) in all.iter().enumerate() {
            let (m, n, _) = sizes;
            let p = Product { a: dy, b: input, out, sums, limit, ..of_sizes(sizes, (m, n)) };
            let p = taken.sliced(self.slices, p, (sizes, 1));
            let summing = if sums == 0 { 0 } else { m.div_ceil(TILE) };
            group.blocks[i] = u32_of(summing + tiles_of(sizes) * p.slices as usize);
            group.of[i] = p;
        }
        let grid = [group.blocks.iter().sum(), 1, 1];
        let shared = layout::product(self.precision);
        self.push(kernel, grid, 128, shared, group);
    }

    /// Ends the step: a step of Adam on all parameters that are to learn; losses `[terms, count]` are added to
    /// the totals, and the next step put in place.
    pub fn end(
        &mut self,
        learning: Option<&Parameters>,
        losses: &Buffer<f64>,
        progress: &Progress,
        count: usize,
    ) {
        let terms = progress.totals.len();
        let end = EndStep {
            losses: losses.address(),
            totals: progress.totals.address(),
            table: progress.steps.address(),
            turn: progress.step_index.address(),
            now: progress.step.address(),
            count: u32_of(count),
            terms: u32_of(terms),
        };
        let Some(p) = learning else {
            return self.kernel_with_shared("end_step", (terms, 1, 256), 8 * 8, end);
        };
        let Adam { beta1, beta2, eps, .. } = p.adam;
        let params = params::Adam {
            w: p.values.address(),
            g: p.gradients.address(),
            m: p.first_moments.address(),
            v: p.second_moments.address(),
            end,
            ticket: progress.ticket.address(),
            n: p.len as u64,
            beta1: beta1 as f32,
            keep1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            keep2: (1.0 - beta2) as f32,
            eps: eps as f32,
            decay: p.adam.decay(),
        };
        self.kernel_with_shared("adam_f32", (p.len, 4 * 256, 256), 8 * 8, params);
    }
}

/// Sizes and leading dimensions of dense operands.
fn of_sizes((m, n, k): Sizes, (lda, ldb): (usize, usize)) -> Product {
    let [m, n, k, lda, ldb] = [m, n, k, lda, ldb].map(u32_of);
    Product { m, n, k, lda, ldb, ldo: n, ..Product::default() }
}

fn with_epilogue(epilogue: Epilogue, sizes: Sizes, leading: (usize, usize)) -> Product {
    Product {
        bias: epilogue.bias,
        mask: epilogue.mask,
        limit: epilogue.limit,
        relu: u32::from(epilogue.relu),
        add: u32::from(epilogue.add),
        ..of_sizes(sizes, leading)
    }
}
