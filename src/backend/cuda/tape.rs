//! A training step as a list of launches, and what both trainers keep on the device.

use super::Cuda;
use super::driver::DriverResult;
use super::launch::{Args, Launch, u32_of};
use super::layout;
use super::memory::Buffer;
use super::params::{Product, Step};
use super::replay::Progress;
use crate::backend::{Adam, Precision};
use crate::model::Linear;

/// Values that every tensor starts on a multiple of, so that 16-byte accesses are possible everywhere.
const GRANULE: usize = 64;
/// Blocks that a product is cut into at least, where it is deep enough. Fixed, so that every GPU adds in the same order.
const BLOCKS: usize = 128;
/// Depth below which a product is not cut.
const SHALLOW: usize = 128;
/// Rows and columns of a product's block.
const TILE: usize = 64;

/// All parameters of a model in one stretch, with their gradients and moments beside them.
#[derive(Debug)]
pub struct Parameters {
    layers: Vec<Shape>,
    len: usize,
    values: Buffer<f32>,
    gradients: Buffer<f32>,
    first: Buffer<f32>,
    second: Buffer<f32>,
    adam: Adam,
    /// Steps taken.
    pub steps: i32,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    inputs: usize,
    outputs: usize,
    weight: usize,
    bias: usize,
}

/// Where the tensors of a layer lie.
#[derive(Clone, Copy, Debug)]
pub struct LayerAt {
    /// Weight `[outputs, inputs]`.
    pub weight: u64,
    /// Bias `[outputs]`.
    pub bias: u64,
    /// Gradient of the weight.
    pub dweight: u64,
    /// Gradient of the bias.
    pub dbias: u64,
    /// Number of inputs.
    pub inputs: usize,
    /// Number of outputs.
    pub outputs: usize,
}

impl Parameters {
    /// Copies layers to the device, with zero moments.
    pub fn new(cuda: &Cuda, layers: &[&Linear], adam: Adam) -> DriverResult<Parameters> {
        let mut len = 0;
        let mut place = |count: usize| {
            let at = len;
            len += count.next_multiple_of(GRANULE);
            at
        };
        let shapes: Vec<Shape> = layers
            .iter()
            .map(|l| Shape {
                inputs: l.inputs,
                outputs: l.outputs,
                weight: place(l.weight.len()),
                bias: place(l.bias.len()),
            })
            .collect();
        let mut values = vec![0f32; len];
        for (layer, at) in layers.iter().zip(&shapes) {
            values[at.weight..][..layer.weight.len()].copy_from_slice(&layer.weight);
            values[at.bias..][..layer.bias.len()].copy_from_slice(&layer.bias);
        }
        let driver = &cuda.driver;
        Ok(Parameters {
            layers: shapes,
            len,
            values: Buffer::upload(driver, &values, "parameters")?,
            // Zeros between the tensors, so that Adam may pass over all in one go.
            gradients: Buffer::zeros(driver, len, "gradients")?,
            first: Buffer::zeros(driver, len, "first moments")?,
            second: Buffer::zeros(driver, len, "second moments")?,
            adam,
            steps: 0,
        })
    }

    /// Where layer `i` lies.
    pub fn layer(&self, i: usize) -> LayerAt {
        let Shape { inputs, outputs, weight, bias } = self.layers[i];
        LayerAt {
            weight: self.values.at(weight),
            bias: self.values.at(bias),
            dweight: self.gradients.at(weight),
            dbias: self.gradients.at(bias),
            inputs,
            outputs,
        }
    }

    fn layers_of(&self, values: &Buffer<f32>) -> DriverResult<Vec<Linear>> {
        let all = values.download()?;
        let layer = |s: &Shape| Linear {
            weight: all[s.weight..][..s.inputs * s.outputs].to_vec(),
            bias: all[s.bias..][..s.outputs].to_vec(),
            inputs: s.inputs,
            outputs: s.outputs,
        };
        Ok(self.layers.iter().map(layer).collect())
    }

    /// The layers.
    pub fn download(&self) -> DriverResult<Vec<Linear>> {
        self.layers_of(&self.values)
    }

    /// The gradients of the last batch.
    pub fn download_gradients(&self) -> DriverResult<Vec<Linear>> {
        self.layers_of(&self.gradients)
    }

    /// Adam's scalars of the step after `steps + ahead` others.
    pub fn rates(&self, ahead: usize) -> (f32, f32) {
        let step = self.steps + 1 + i32::try_from(ahead).unwrap_or(i32::MAX);
        let Adam { lr, beta1, beta2, .. } = self.adam;
        let rate = (lr / (1.0 - beta1.powi(step))) as f32;
        (rate, (1.0 / (1.0 - beta2.powi(step)).sqrt()) as f32)
    }
}

/// Sizes of a product: out `[m, n]`, sums over k.
pub type Sizes = (usize, usize, usize);

/// How operands lie; names as in `kernels/product_f32.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// a `[m, k]`, b `[n, k]`: x W^T.
    Nt,
    /// a `[k, m]`, b `[k, n]`: dy^T x.
    Tn,
    /// a `[m, k]`, b `[k, n]`: dy W.
    Nn,
}

/// What follows a product.
#[derive(Clone, Copy, Debug, Default)]
pub struct After {
    /// Bias `[n]`, or 0.
    pub bias: u64,
    /// Whether a ReLU follows.
    pub relu: bool,
    /// Activation whose ReLU is gone back through, or 0.
    pub mask: u64,
    /// Whether the result is added to what is there.
    pub add: bool,
    /// Address of the number of rows of the batch that count, or 0.
    pub limit: u64,
}

/// Room that the products of a step take turns to use.
#[derive(Debug)]
pub struct Slices {
    partial: Buffer<f32>,
    /// Zeros, which every product leaves as they were.
    tickets: Buffer<u32>,
}

/// How many slices a product is cut into.
fn slices_of((m, n, k): Sizes) -> usize {
    let tiles = m.div_ceil(TILE) * n.div_ceil(TILE);
    (BLOCKS / tiles.max(1)).clamp(1, (k / SHALLOW).max(1))
}

impl Slices {
    /// Room for any of `products`, each with the number of products that are summed in one.
    pub fn new(cuda: &Cuda, products: &[(Sizes, usize)]) -> DriverResult<Slices> {
        let most = |of: &dyn Fn(usize, usize, usize) -> usize| {
            let each = products.iter().map(|&(p, more)| of(slices_of(p) + more - 1, p.0, p.1));
            each.max().unwrap_or(1)
        };
        // Behind the last column of tiles a product may have a column of blocks with other work.
        let tiles = most(&|_, m, n| m.div_ceil(TILE) * (n.div_ceil(TILE) + 1));
        Ok(Slices {
            partial: Buffer::empty(&cuda.driver, most(&|s, m, n| s * m * n), "slices of products")?,
            tickets: Buffer::zeros(&cuda.driver, tiles, "tickets of products")?,
        })
    }
}

/// The launches of a step in the making.
#[derive(Debug)]
pub struct Tape<'a> {
    precision: Precision,
    /// What was put on it.
    pub launches: Vec<Launch>,
    slices: &'a Slices,
}

impl<'a> Tape<'a> {
    /// An empty tape.
    pub fn new(cuda: &Cuda, slices: &'a Slices) -> Tape<'a> {
        Tape { precision: cuda.precision, launches: Vec::new(), slices }
    }

    /// Puts any launch on the tape: `items` over blocks that take `tile` each.
    pub fn put(&mut self, kernel: &'static str, (items, tile, threads): (usize, usize, u32), args: Args) {
        self.put_shared(kernel, (items, tile, threads), 0, args);
    }

    /// The same with shared memory.
    pub fn put_shared(
        &mut self,
        kernel: &'static str,
        (items, tile, threads): (usize, usize, u32),
        shared: usize,
        args: Args,
    ) {
        let grid = [u32_of(items.div_ceil(tile)).clamp(1, 1 << 16), 1, 1];
        self.launches.push(Launch { kernel, grid, threads, shared, args });
    }

    /// out = a b, and what follows; rows of the operands and of out lie as close as they can.
    pub fn product(&mut self, form: Form, (a, b, out): (u64, u64, u64), sizes: Sizes, after: After) {
        self.launch_product(form, Product { a, b, out, ..with(after, form, sizes) }, slices_of(sizes));
    }

    /// out = a b^T + c d^T in one sum, both of the same m and n; `after.limit` holds for the first.
    pub fn product_of_two(
        &mut self,
        [(a, b, k), (c, d, l)]: [(u64, u64, usize); 2],
        out: u64,
        (m, n): (usize, usize),
        after: After,
    ) {
        let sizes = (m, n, k);
        let p = Product { a, b, out, c, d, l: u32_of(l), ..with(after, Form::Nt, sizes) };
        self.launch_product(Form::Nt, p, slices_of(sizes) + 1);
    }

    /// The gradients of a layer from its input and the gradient `dy` of its output, over `rows` rows.
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
        self.launches.push(Launch { kernel, grid, threads: 128, shared, args: Args::new().value(p) });
    }

    /// One step of Adam on all parameters.
    pub fn adam(&mut self, p: &Parameters, now: &Buffer<Step>) {
        let Adam { beta1, beta2, eps, .. } = p.adam;
        let args = Args::new()
            .buffer(&p.values)
            .buffer(&p.gradients)
            .buffer(&p.first)
            .buffer(&p.second)
            .value(p.len as u64)
            .value(beta1 as f32)
            .value((1.0 - beta1) as f32)
            .value(beta2 as f32)
            .value((1.0 - beta2) as f32)
            .value(eps as f32)
            .buffer(now);
        self.put("adam_f32", (p.len, 4 * 256, 256), args);
    }

    /// Adds losses `[terms, count]` to the totals, and passes the turn on.
    pub fn end_step(&mut self, losses: &Buffer<f64>, progress: &Progress, count: usize) {
        let args = Args::new()
            .buffer(losses)
            .buffer(&progress.totals)
            .value(u32_of(count))
            .address(progress.table.address())
            .buffer(&progress.turn)
            .buffer(&progress.now);
        self.put_shared("end_step", (progress.totals.len(), 1, 256), 8 * 8, args);
    }
}

/// Sizes and leading dimensions of dense operands.
fn leading(form: Form, (m, n, k): Sizes) -> Product {
    let (lda, ldb) = match form {
        Form::Nt => (k, k),
        Form::Tn => (m, n),
        Form::Nn => (k, n),
    };
    let mut p: Product = bytemuck::Zeroable::zeroed();
    (p.m, p.n, p.k) = (u32_of(m), u32_of(n), u32_of(k));
    (p.lda, p.ldb, p.ldo) = (u32_of(lda), u32_of(ldb), u32_of(n));
    p
}

/// The same with what follows.
fn with(after: After, form: Form, sizes: Sizes) -> Product {
    Product {
        bias: after.bias,
        mask: after.mask,
        limit: after.limit,
        relu: u32::from(after.relu),
        add: u32::from(after.add),
        ..leading(form, sizes)
    }
}
