//! VAE training. Where it fits, an epoch is one launch (`vae_epoch.rs`); else a step of 13 launches, recorded once and
//! replayed for every batch (`step_graph.rs`):
//! gather and standardise the batch's rows -> encoder -> posterior, sample, KL and divergence -> decoder ->
//! reconstruction error and its gradient -> back through decoder, sample and encoder -> gradients of all
//! layers -> Adam and losses.

use super::context::Cuda;
use super::data::RowsAt;
use super::driver::DriverResult;
use super::launch::{Launch, u32_of};
use super::memory::Buffer;
use super::params::{self, Sources, Step};
use super::step_graph::{
    Epilogue, Form, Gradient, Progress, Recording, Refilled, Slices, StepGraph, deep_of,
};
use super::vae_epoch::{self, Plan, Together};
use super::weights::{LayerAt, Parameters};
use crate::backend::{Divergence, PairData, Reduction, VaeLoss, VaeObjective, W2_EPS};
use crate::model::{Standardizer, Vae, VaeSize};

/// Parameters, moments and scratch of VAE training.
#[derive(Debug)]
pub struct VaeTrainer {
    size: VaeSize,
    objective: VaeObjective,
    parameters: Parameters,
    mean: Buffer<f32>,
    std: Buffer<f32>,
    /// Of the last run; None after one that failed, which may have left anything in it.
    scratch: Option<Scratch>,
}

/// Activations and gradients of one batch, the epoch's order, and the recorded step. The first half of the
/// rows is the chosen side.
#[derive(Debug)]
struct Scratch {
    batch: usize,
    /// One batch, or two where an epoch is one launch.
    x: Buffer<f32>,
    encoder_hidden: Buffer<f32>,
    /// mu and logvar of each row.
    posterior: Buffer<f32>,
    eps: Buffer<f32>,
    z: Buffer<f32>,
    decoder_hidden: Buffer<f32>,
    /// The reconstruction, then its gradient.
    out: Buffer<f32>,
    /// Gradients of the hidden layers of encoder and decoder.
    encoder_dhidden: Buffer<f32>,
    decoder_dhidden: Buffer<f32>,
    dz: Buffer<f32>,
    dposterior: Buffer<f32>,
    /// KL and divergence of each pair, then the reconstruction error of each row: `[4, batch]`.
    losses: Buffer<f64>,
    order: Refilled<u32>,
    progress: Progress,
    slices: Slices,
    recording: Option<Recording>,
    /// Where an epoch is one launch.
    together: Option<Together>,
}

impl VaeTrainer {
    /// Starts from a model for standardised embeddings.
    pub(super) fn new(
        cuda: &Cuda,
        initial: &Vae,
        standardizer: &Standardizer,
        objective: &VaeObjective,
    ) -> DriverResult<VaeTrainer> {
        let layers: Vec<_> = initial.encoder.iter().chain(&initial.decoder).collect();
        Ok(VaeTrainer {
            size: initial.size(),
            objective: *objective,
            parameters: Parameters::new(cuda, &layers, objective.adam)?,
            mean: Buffer::upload(&cuda.driver, &standardizer.mean, "mean")?,
            std: Buffer::upload(&cuda.driver, &standardizer.std, "standard deviation")?,
            scratch: None,
        })
    }

    pub(super) fn dim(&self) -> usize {
        self.size.dim
    }

    pub(super) fn parameters(&self) -> DriverResult<Vae> {
        Ok(vae_of(self.parameters.download()?))
    }

    /// One pass over `order`, in batches.
    pub(super) fn epoch(
        &mut self,
        cuda: &Cuda,
        data: &PairData<'_, '_, Cuda>,
        order: &[u32],
        epoch: u32,
    ) -> DriverResult<VaeLoss> {
        let batch = self.objective.batch.min(order.len());
        let loss = self.run(cuda, data, order, (batch, epoch), true)?;
        self.parameters.steps += i32::try_from(order.len().div_ceil(batch)).unwrap_or(i32::MAX);
        Ok(loss)
    }

    /// Loss and gradients of one batch.
    pub(super) fn gradients(
        &mut self,
        cuda: &Cuda,
        data: &PairData<'_, '_, Cuda>,
        batch: &[u32],
        epoch: u32,
    ) -> DriverResult<(VaeLoss, Vae)> {
        let loss = self.run(cuda, data, batch, (batch.len(), epoch), false)?;
        Ok((loss, vae_of(self.parameters.download_gradients()?)))
    }

    /// Replays the step over `order`; gives the mean loss.
    fn run(
        &mut self,
        cuda: &Cuda,
        data: &PairData<'_, '_, Cuda>,
        order: &[u32],
        (batch, epoch): (usize, u32),
        learn: bool,
    ) -> DriverResult<VaeLoss> {
        let sides = [cuda.reachable(data.chosen, "training")?, cuda.reachable(data.rejected, "training")?];
        let steps: Vec<Step> = order
            .chunks(batch)
            .enumerate()
            .map(|(i, pairs)| {
                let (rate, inverse_root) = self.parameters.rates(i);
                let first = u32::try_from(i * batch).expect("row numbers have 32 bits");
                Step { first, pairs: pairs.len() as u32, wide: 0, candidate: epoch, rate, inverse_root }
            })
            .collect();
        // Scratch of another size is freed before the new one is allocated.
        let plan = Plan::of(cuda, self.size, batch)?;
        let mut scratch = match self.scratch.take().filter(|s| s.batch == batch) {
            Some(scratch) => scratch,
            None => Scratch::new(cuda, self.size, batch, plan)?,
        };
        scratch.order.fill(order)?;
        scratch.progress.start(&steps)?;
        if let Some(together) = scratch.together.as_ref().filter(|_| learn) {
            together.run(cuda, self.epoch_params(&scratch, sides, steps.len()))?;
        } else {
            let launches = self.launches(cuda, &scratch, sides, learn);
            let recording = Recording::of(cuda, scratch.recording.take(), launches)?;
            recording.replay(steps.len())?;
            scratch.recording = Some(recording);
        }
        let totals = scratch.progress.totals.download()?;
        self.scratch = Some(scratch);
        let n = order.len() as f64;
        let VaeObjective { beta, gamma, .. } = self.objective;
        let (kl, divergence) = (totals[0] / n, totals[1] / n);
        let reconstruction = (totals[2] + totals[3]) / n;
        let total = reconstruction + beta * kl + gamma * divergence;
        Ok(VaeLoss { total, reconstruction, kl, divergence })
    }

    /// The factor of a pair's squared errors.
    fn scale(&self) -> f64 {
        match self.objective.reconstruction {
            Reduction::Mean => 1.0 / self.size.dim as f64,
            Reduction::Sum => 1.0,
        }
    }

    /// What a launch of all steps needs to know of the trainer.
    fn epoch_params(&self, s: &Scratch, sides: [RowsAt; 2], count: usize) -> params::VaeEpoch {
        let VaeSize { dim, hidden, latent } = self.size;
        let VaeObjective { beta, gamma, divergence, seed, adam, .. } = self.objective;
        let p = &self.parameters;
        let starts = |of: fn(&LayerAt) -> u64| {
            let place = |i| (of(&p.layer(i)) - p.values.address()) as usize / size_of::<f32>();
            std::array::from_fn(|i| u32_of(place(i)))
        };
        params::VaeEpoch {
            from: sources(sides),
            order: s.order.address(),
            steps: s.progress.table(),
            mean: self.mean.address(),
            std: self.std.address(),
            w: p.values.address(),
            m: p.first_moments.address(),
            v: p.second_moments.address(),
            x: s.x.address(),
            encoder_hidden: s.encoder_hidden.address(),
            decoder_hidden: s.decoder_hidden.address(),
            encoder_dhidden: s.encoder_dhidden.address(),
            decoder_dhidden: s.decoder_dhidden.address(),
            code: s.posterior.address(),
            dcode: s.dposterior.address(),
            eps: s.eps.address(),
            z: s.z.address(),
            out: s.out.address(),
            losses: s.losses.address(),
            totals: s.progress.totals.address(),
            seed,
            beta,
            gamma,
            w2_eps: W2_EPS,
            scale: self.scale(),
            weight: starts(|l| l.weight),
            bias: starts(|l| l.bias),
            count: u32_of(count),
            batch: u32_of(s.batch),
            dim: u32_of(dim),
            hidden: u32_of(hidden),
            latent: u32_of(latent),
            squared: u32::from(divergence == Divergence::W2Squared),
            beta1: adam.beta1 as f32,
            keep1: (1.0 - adam.beta1) as f32,
            beta2: adam.beta2 as f32,
            keep2: (1.0 - adam.beta2) as f32,
            adam_eps: adam.eps as f32,
            decay: adam.decay(),
            ..Default::default()
        }
    }

    /// The launches of a step.
    fn launches(&self, cuda: &Cuda, s: &Scratch, sides: [RowsAt; 2], learn: bool) -> Vec<Launch> {
        let VaeSize { dim, hidden, latent } = self.size;
        let (batch, rows) = (s.batch, 2 * s.batch);
        let [e1, e2, d1, d2]: [LayerAt; 4] = std::array::from_fn(|i| self.parameters.layer(i));
        let step = &s.progress.step;
        let mut graph = StepGraph::new(cuda, &s.slices);
        let params = params::GatherPairs {
            from: sources(sides),
            order: s.order.address(),
            now: step.address(),
            mean: self.mean.address(),
            std: self.std.address(),
            x: s.x.address(),
            dim: u32_of(dim),
            batch: u32_of(batch),
        };
        graph.kernel("gather_pairs", (rows, 1, 256), params);

        let (x, eh, posterior) = (s.x.address(), s.encoder_hidden.address(), s.posterior.address());
        let (z, dh, out) = (s.z.address(), s.decoder_hidden.address(), s.out.address());
        let (deh, ddh) = (s.encoder_dhidden.address(), s.decoder_dhidden.address());
        let (dz, dposterior) = (s.dz.address(), s.dposterior.address());
        let relu = |layer: LayerAt| Epilogue { bias: layer.bias, relu: true, ..Epilogue::default() };
        let bias = |layer: LayerAt| Epilogue { bias: layer.bias, ..Epilogue::default() };
        graph.product(Form::Nt, (x, e1.weight, eh), (rows, hidden, dim), relu(e1));
        graph.product(Form::Nt, (eh, e2.weight, posterior), (rows, 2 * latent, hidden), bias(e2));
        let VaeObjective { beta, gamma, divergence, .. } = self.objective;
        let params = params::VaeCodes {
            code: posterior,
            order: s.order.address(),
            now: step.address(),
            eps: s.eps.address(),
            z,
            dcode: dposterior,
            losses: s.losses.address(),
            seed: self.objective.seed,
            beta,
            gamma,
            w2_eps: W2_EPS,
            batch: u32_of(batch),
            latent: u32_of(latent),
            squared: u32::from(divergence == Divergence::W2Squared),
            ..Default::default()
        };
        // Blocks of four pairs for the losses, then blocks of 512 values for z.
        graph.kernel("vae_codes", (batch.div_ceil(4) + (rows * latent).div_ceil(512), 1, 128), params);
        graph.product(Form::Nt, (z, d1.weight, dh), (rows, hidden, latent), relu(d1));
        graph.product(Form::Nt, (dh, d2.weight, out), (rows, dim, hidden), Epilogue::default());
        let stretch = deep_of((rows, hidden, dim), cuda.precision);
        let params = params::VaeReconstruct {
            out,
            bias: d2.bias,
            x,
            now: step.address(),
            losses: s.losses.at(2 * batch),
            scale: self.scale(),
            batch: u32_of(batch),
            dim: u32_of(dim),
            stretch: u32_of(stretch),
            ..Default::default()
        };
        let shared = (8 * dim.div_ceil(stretch)).next_multiple_of(16);
        graph.kernel_with_shared("vae_reconstruct", (rows, 1, 256), shared, params);

        let masked = |by: u64| Epilogue { mask: by, ..Epilogue::default() };
        graph.product(Form::Nn, (out, d2.weight, ddh), (rows, hidden, dim), masked(dh));
        graph.product(Form::Nn, (ddh, d1.weight, dz), (rows, latent, hidden), Epilogue::default());
        let params = params::VaeThroughSample {
            code: posterior,
            eps: s.eps.address(),
            dz,
            dcode: dposterior,
            rows: u32_of(rows),
            latent: u32_of(latent),
        };
        graph.kernel("vae_through_sample", (rows * latent, 128, 128), params);
        graph.product(Form::Nn, (dposterior, e2.weight, deh), (rows, hidden, 2 * latent), masked(eh));
        let through = [(d2, out, dh), (d1, ddh, z), (e2, dposterior, eh), (e1, deh, x)];
        graph.gradients(&through.map(|(layer, dy, input)| Gradient::of(layer, dy, input, rows)));
        graph.end(learn.then_some(&self.parameters), &s.losses, &s.progress, batch);
        graph.into_launches()
    }
}

impl Scratch {
    fn new(cuda: &Cuda, size: VaeSize, batch: usize, plan: Option<Plan>) -> DriverResult<Scratch> {
        let VaeSize { dim, hidden, latent } = size;
        let rows = 2 * batch;
        let wide = |width, label| Buffer::<f32>::empty(&cuda.driver, rows * width, label);
        let products = [
            (rows, hidden, dim),
            (rows, 2 * latent, hidden),
            (rows, hidden, latent),
            (rows, latent, hidden),
            (rows, hidden, 2 * latent),
            (rows, dim, hidden),
        ]
        .map(|sizes| [(sizes, 1)]);
        let gradients = vae_epoch::gradients(size, rows).map(|sizes| (sizes, 1));
        let launches: Vec<_> = products.iter().map(|p| &p[..]).chain([&gradients[..]]).collect();
        Ok(Scratch {
            batch,
            x: wide(if plan.is_some() { 2 * dim } else { dim }, "x")?,
            encoder_hidden: wide(hidden, "encoder's hidden layer")?,
            posterior: wide(2 * latent, "posterior")?,
            eps: wide(latent, "eps")?,
            z: wide(latent, "z")?,
            decoder_hidden: wide(hidden, "decoder's hidden layer")?,
            out: wide(dim, "out")?,
            encoder_dhidden: wide(hidden, "gradient of the encoder's hidden layer")?,
            decoder_dhidden: wide(hidden, "gradient of the decoder's hidden layer")?,
            dz: wide(latent, "gradient of z")?,
            dposterior: wide(2 * latent, "gradient of the posterior")?,
            losses: Buffer::empty(&cuda.driver, 4 * batch, "losses")?,
            order: Refilled::new(cuda, "order"),
            progress: Progress::new(cuda, 4)?,
            slices: Slices::new(cuda, &launches)?,
            recording: None,
            together: plan.map(|plan| Together::new(cuda, plan, size, batch)).transpose()?,
        })
    }
}

/// The rows of both sides as kernels take them.
fn sources(sides: [RowsAt; 2]) -> Sources {
    let mut from = Sources::default();
    for (side, rows) in sides.into_iter().enumerate() {
        (from.rows[side], from.dtype[side]) = (rows.address, rows.dtype as u32);
    }
    from
}

fn vae_of(layers: Vec<crate::model::Linear>) -> Vae {
    let [e1, e2, d1, d2]: [_; 4] = layers.try_into().expect("four layers");
    Vae { encoder: [e1, e2], decoder: [d1, d2] }
}
