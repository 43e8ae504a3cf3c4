//! VAE training: a step of some twenty-five launches, recorded once an epoch and replayed for every batch.

use super::Cuda;
use super::driver::Outcome;
use super::launch::{Args, u32_of};
use super::memory::Buffer;
use super::ops::RowsAt;
use super::params::Step;
use super::tape::{After, Form, LayerAt, Parameters, Tape};
use crate::backend::{Divergence, PairData, Reduction, VaeLoss, VaeObjective, W2_EPS};
use crate::dtype::Dtype;
use crate::model::{Standardizer, Vae, VaeSize};

/// Parameters, moments and scratch of VAE training.
#[derive(Debug)]
pub struct VaeTrainer {
    size: VaeSize,
    objective: VaeObjective,
    parameters: Parameters,
    mean: Buffer<f32>,
    std: Buffer<f32>,
}

/// Activations and gradients of one batch, and what tells a step which one it is. The first half of the rows is the
/// chosen side.
struct Scratch {
    batch: usize,
    x: Buffer<f32>,
    encoder_hidden: Buffer<f32>,
    code: Buffer<f32>,
    eps: Buffer<f32>,
    z: Buffer<f32>,
    decoder_hidden: Buffer<f32>,
    /// The reconstruction, then its gradient.
    out: Buffer<f32>,
    dhidden: Buffer<f32>,
    dz: Buffer<f32>,
    dcode: Buffer<f32>,
    /// KL and divergence of each pair, then the reconstruction error of each row: `[4, batch]`.
    losses: Buffer<f64>,
    totals: Buffer<f64>,
    order: Buffer<u32>,
    table: Buffer<Step>,
    turn: Buffer<u32>,
    now: Buffer<Step>,
}

impl VaeTrainer {
    /// Starts from a model for standardised embeddings.
    pub fn new(
        cuda: &Cuda,
        initial: &Vae,
        standardizer: &Standardizer,
        objective: &VaeObjective,
    ) -> Outcome<VaeTrainer> {
        let layers: Vec<_> = initial.encoder.iter().chain(&initial.decoder).collect();
        Ok(VaeTrainer {
            size: initial.size(),
            objective: *objective,
            parameters: Parameters::new(cuda, &layers, objective.adam)?,
            mean: Buffer::upload(&cuda.driver, &standardizer.mean, "mean")?,
            std: Buffer::upload(&cuda.driver, &standardizer.std, "standard deviation")?,
        })
    }

    /// Dimension of the embeddings.
    pub fn dim(&self) -> usize {
        self.size.dim
    }

    /// The parameters.
    pub fn parameters(&self) -> Outcome<Vae> {
        Ok(vae_of(self.parameters.download()?))
    }

    /// One pass over `order`, in batches.
    pub fn epoch(
        &mut self,
        cuda: &Cuda,
        data: &PairData<'_, '_, Cuda>,
        order: &[u32],
        epoch: u32,
    ) -> Outcome<VaeLoss> {
        let batch = self.objective.batch.min(order.len());
        let loss = self.run(cuda, data, order, (batch, epoch), true)?;
        self.parameters.steps += i32::try_from(order.len().div_ceil(batch)).unwrap_or(i32::MAX);
        Ok(loss)
    }

    /// Loss and gradients of one batch.
    pub fn gradients(
        &mut self,
        cuda: &Cuda,
        data: &PairData<'_, '_, Cuda>,
        batch: &[u32],
        epoch: u32,
    ) -> Outcome<(VaeLoss, Vae)> {
        let loss = self.run(cuda, data, batch, (batch.len(), epoch), false)?;
        Ok((loss, vae_of(self.parameters.download_gradients()?)))
    }

    /// Replays the step over `order`; gives the mean loss.
    fn run(
        &self,
        cuda: &Cuda,
        data: &PairData<'_, '_, Cuda>,
        order: &[u32],
        (batch, epoch): (usize, u32),
        learn: bool,
    ) -> Outcome<VaeLoss> {
        let sides = [cuda.resident(data.chosen, "training")?, cuda.resident(data.rejected, "training")?];
        let steps: Vec<Step> = order
            .chunks(batch)
            .enumerate()
            .map(|(i, pairs)| {
                let (rate, inverse_root) = self.parameters.rates(i);
                let first = u32::try_from(i * batch).expect("row numbers have 32 bits");
                Step { first, pairs: pairs.len() as u32, wide: 0, epoch, rate, inverse_root }
            })
            .collect();
        let scratch = self.scratch(cuda, batch, order, &steps)?;
        let mut tape = self.tape(cuda, &scratch, sides, learn)?;
        let graph = cuda.driver.record(std::mem::take(&mut tape.launches))?;
        for _ in &steps {
            graph.replay()?;
        }
        let totals = scratch.totals.download()?;
        let n = order.len() as f64;
        let VaeObjective { beta, gamma, .. } = self.objective;
        let (kl, divergence) = (totals[0] / n, totals[1] / n);
        let reconstruction = (totals[2] + totals[3]) / n;
        let total = reconstruction + beta * kl + gamma * divergence;
        Ok(VaeLoss { total, reconstruction, kl, divergence })
    }

    fn scratch(&self, cuda: &Cuda, batch: usize, order: &[u32], steps: &[Step]) -> Outcome<Scratch> {
        let VaeSize { dim, hidden, latent } = self.size;
        let rows = 2 * batch;
        let driver = &cuda.driver;
        let wide = |width, label| Buffer::<f32>::empty(driver, rows * width, label);
        Ok(Scratch {
            batch,
            x: wide(dim, "x")?,
            encoder_hidden: wide(hidden, "encoder's hidden layer")?,
            code: wide(2 * latent, "code")?,
            eps: wide(latent, "eps")?,
            z: wide(latent, "z")?,
            decoder_hidden: wide(hidden, "decoder's hidden layer")?,
            out: wide(dim, "out")?,
            dhidden: wide(hidden, "gradient of a hidden layer")?,
            dz: wide(latent, "gradient of z")?,
            dcode: wide(2 * latent, "gradient of the code")?,
            losses: Buffer::empty(driver, 4 * batch, "losses")?,
            totals: Buffer::zeros(driver, 4, "totals")?,
            order: Buffer::upload(driver, order, "order")?,
            table: Buffer::upload(driver, steps, "steps")?,
            turn: Buffer::zeros(driver, 1, "turn")?,
            now: Buffer::empty(driver, 1, "step")?,
        })
    }

    /// The launches of a step.
    fn tape(&self, cuda: &Cuda, s: &Scratch, sides: [RowsAt; 2], learn: bool) -> Outcome<Tape> {
        let VaeSize { dim, hidden, latent } = self.size;
        let (batch, rows) = (s.batch, 2 * s.batch);
        let layers: [LayerAt; 4] = std::array::from_fn(|i| self.parameters.layer(i));
        let [e1, e2, d1, d2] = layers;
        let mut tape = Tape::new(
            cuda,
            &[
                ((rows, hidden, dim), 1),
                ((rows, 2 * latent, hidden), 1),
                ((rows, hidden, latent), 1),
                ((rows, latent, hidden), 1),
                ((rows, hidden, 2 * latent), 1),
                ((rows, dim, hidden), 1),
                ((hidden, dim, rows), 1),
                ((dim, hidden, rows), 1),
                ((hidden, latent, rows), 1),
                ((2 * latent, hidden, rows), 1),
            ],
        )?;
        let t = &mut tape;
        t.begin(&s.table, &s.turn, &s.now);
        for (side, from) in sides.into_iter().enumerate() {
            let args = Args::new()
                .address(from.address)
                .buffer(&s.order)
                .buffer(&s.now)
                .value(u32_of(dim))
                .value(u32_of(batch))
                .value(u32_of(side))
                .buffer(&self.mean)
                .buffer(&self.std)
                .buffer(&s.x);
            let kernel = match from.dtype {
                Dtype::F32 => "gather_pairs_f32",
                Dtype::F16 => "gather_pairs_f16",
                Dtype::Bf16 => "gather_pairs_bf16",
            };
            t.put(kernel, (batch, 1, 256), args);
        }

        let (x, eh, code) = (s.x.address(), s.encoder_hidden.address(), s.code.address());
        let (z, dh, out) = (s.z.address(), s.decoder_hidden.address(), s.out.address());
        let (dhidden, dz, dcode) = (s.dhidden.address(), s.dz.address(), s.dcode.address());
        let relu = |layer: LayerAt| After { bias: layer.bias, relu: true, ..After::default() };
        let bias = |layer: LayerAt| After { bias: layer.bias, ..After::default() };
        t.product(Form::Nt, (x, e1.weight, eh), (rows, hidden, dim), relu(e1));
        t.product(Form::Nt, (eh, e2.weight, code), (rows, 2 * latent, hidden), bias(e2));
        let args = Args::new()
            .buffer(&s.code)
            .buffer(&s.order)
            .buffer(&s.now)
            .value(u32_of(batch))
            .value(u32_of(latent))
            .value(self.objective.seed)
            .buffer(&s.eps)
            .buffer(&s.z);
        t.put("vae_sample", (rows * latent / 4, 128, 128), args);
        let VaeObjective { beta, gamma, divergence, .. } = self.objective;
        let args = Args::new()
            .buffer(&s.code)
            .buffer(&s.now)
            .value(u32_of(batch))
            .value(u32_of(latent))
            .value(beta)
            .value(gamma)
            .value(W2_EPS)
            .value(u32::from(divergence == Divergence::W2Squared))
            .buffer(&s.dcode)
            .buffer(&s.losses);
        t.put("vae_divergences", (batch, 4, 128), args);
        t.product(Form::Nt, (z, d1.weight, dh), (rows, hidden, latent), relu(d1));
        t.product(Form::Nt, (dh, d2.weight, out), (rows, dim, hidden), After::default());
        let scale = match self.objective.reconstruction {
            Reduction::Mean => 1.0 / dim as f64,
            Reduction::Sum => 1.0,
        };
        let args = Args::new()
            .buffer(&s.out)
            .address(d2.bias)
            .buffer(&s.x)
            .buffer(&s.now)
            .value(u32_of(batch))
            .value(u32_of(dim))
            .value(scale)
            .address(s.losses.at(2 * batch));
        t.put_shared("vae_reconstruct", (rows, 1, 256), 8 * 8, args);

        let none = After::default();
        let masked = |by: u64| After { mask: by, ..After::default() };
        // A layer's gradients come from its input and the gradient of its output.
        let gradients = |t: &mut Tape, layer: LayerAt, dy: u64, input: u64| {
            t.product(Form::Tn, (dy, input, layer.dweight), (layer.outputs, layer.inputs, rows), none);
            t.column_sums(dy, layer.dbias, (rows, layer.outputs));
        };
        gradients(t, d2, out, dh);
        t.product(Form::Nn, (out, d2.weight, dhidden), (rows, hidden, dim), masked(dh));
        gradients(t, d1, dhidden, z);
        t.product(Form::Nn, (dhidden, d1.weight, dz), (rows, latent, hidden), none);
        let args = Args::new()
            .buffer(&s.code)
            .buffer(&s.eps)
            .buffer(&s.dz)
            .buffer(&s.dcode)
            .value(u32_of(rows))
            .value(u32_of(latent));
        t.put("vae_through_sample", (rows * latent, 128, 128), args);
        gradients(t, e2, dcode, eh);
        t.product(Form::Nn, (dcode, e2.weight, dhidden), (rows, hidden, 2 * latent), masked(eh));
        gradients(t, e1, dhidden, x);
        t.add_losses(s.losses.address(), s.totals.address(), 4, batch);
        if learn {
            t.adam(&self.parameters, &s.now);
        }
        Ok(tape)
    }
}

fn vae_of(layers: Vec<crate::model::Linear>) -> Vae {
    let [e1, e2, d1, d2]: [_; 4] = layers.try_into().expect("four layers");
    Vae { encoder: [e1, e2], decoder: [d1, d2] }
}
