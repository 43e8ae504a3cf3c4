//! Reward training, in which synthetic samples are never decoded:
//!
//! ```text
//! pre = W x + (W D) h + b        dW = dpre^T x + (dpre^T h) D^T
//! ```
//!
//! - D is the decoder's last layer for standardised embeddings, with its bias as one more column.
//! - x is a row's standardised embedding: an original, a residual sample's seed, or 0 for plain samples; with input
//!   noise, that noise more.
//! - h is the decoder's hidden layer for a sample's latent, with a 1 for the bias; for residual samples minus
//!   that of the seed's mean, where the bias cancels; 0 for originals.
//!
//! So only originals and seeds pass through d dimensions. A step, recorded once and replayed for every batch
//! (`step_graph.rs`): gather x, rows with embeddings first -> h -> W D -> hidden layer -> rewards -> loss ->
//! gradients -> Adam.

use super::context::Cuda;
use super::data::{DeviceVae, LatentValues, RowsAt};
use super::driver::DriverResult;
use super::launch::{Launch, u32_of};
use super::memory::Buffer;
use super::params::{self, Samples, Sources, Step};
use super::step_graph::{Epilogue, Form, Gradient, Progress, Recording, Refilled, Slices, StepGraph};
use super::weights::{LayerAt, Parameters};
use crate::backend::{PairRows, RewardData, RewardObjective, RewardSide};
use crate::model::{Head, Linear, RewardModel, RewardSize, Standardizer};

/// In [`Plan::rows`]: no source row, or no latent.
const NONE: u32 = u32::MAX;

/// Parameters, moments and scratch of reward training.
#[derive(Debug)]
pub struct RewardTrainer {
    size: RewardSize,
    objective: RewardObjective,
    parameters: Parameters,
    standardizer: Standardizer,
    mean: Buffer<f32>,
    std: Buffer<f32>,
    /// Of the last run; None after one that failed, which may have left anything in it.
    state: Option<State>,
}

/// What is kept from one epoch to the next.
#[derive(Debug)]
struct State {
    plan: DevicePlan,
    /// Latents that are not stored, and the row of each, by side.
    drawn: [(Refilled<f32>, Refilled<u32>); 2],
    decoder: Option<Decoder>,
    scratch: Option<Scratch>,
    recording: Option<Recording>,
}

/// A [`Plan`] on the device.
#[derive(Debug)]
struct DevicePlan {
    rows: Refilled<[u32; 4]>,
    slots: Refilled<[u32; 2]>,
    progress: Progress,
}

/// The decoder of the samples as training uses it.
#[derive(Debug)]
struct Decoder {
    /// What it was made from.
    layers: [Linear; 2],
    /// Weight of the first layer in F32, whatever the precision of products.
    weight: Buffer<f32>,
    bias: Buffer<f32>,
    /// The second layer, standardised: see [`RewardTrainer::standardized`].
    second: Buffer<f32>,
}

/// One side's synthetic samples on the device: addresses of the latents and of the row of each.
struct SideSamples<'a> {
    vae: &'a DeviceVae,
    z: u64,
    owners: u64,
    /// Address of the seeds' means for residual samples, else 0.
    mu: u64,
    /// The seed of each.
    rows: &'a [u32],
    /// The part of [`Sources`] that the seeds of residual samples are gathered from.
    part: Option<u32>,
}

/// An epoch as kernels read it: which rows a step gathers, and where in its batch the two rows of a pair are.
#[derive(Default)]
struct Plan {
    /// (part, source row, latent, pair of the step) of every row of every step, `2 batch` a step; rows with something
    /// in d dimensions come first.
    rows: Vec<[u32; 4]>,
    /// The rows of a pair's two sides, within its step.
    slots: Vec<[u32; 2]>,
    steps: Vec<Step>,
}

impl RewardTrainer {
    /// Starts from a model for standardised embeddings.
    pub(super) fn new(
        cuda: &Cuda,
        initial: &RewardModel,
        standardizer: &Standardizer,
        objective: &RewardObjective,
    ) -> DriverResult<RewardTrainer> {
        let layers: Vec<_> = initial.layers.iter().collect();
        Ok(RewardTrainer {
            size: initial.size(),
            objective: *objective,
            parameters: Parameters::new(cuda, &layers, objective.adam)?,
            mean: Buffer::upload(&cuda.driver, &standardizer.mean, "mean")?,
            std: Buffer::upload(&cuda.driver, &standardizer.std, "standard deviation")?,
            standardizer: standardizer.clone(),
            state: None,
        })
    }

    pub(super) fn dim(&self) -> usize {
        self.size.dim
    }

    pub(super) fn parameters(&self) -> DriverResult<RewardModel> {
        Ok(RewardModel { layers: self.parameters.download()? })
    }

    /// One pass over `pairs`, in batches.
    pub(super) fn epoch(
        &mut self,
        cuda: &Cuda,
        data: &RewardData<'_, '_, Cuda>,
        pairs: &[PairRows],
    ) -> DriverResult<f64> {
        // What is recorded for a batch holds for shorter ones.
        let recorded = self.state.as_ref().and_then(|s| s.scratch.as_ref()).map_or(0, |s| s.batch);
        let batch = self.objective.batch.min(pairs.len().max(recorded));
        let loss = self.run(cuda, data, pairs, batch, true)?;
        self.parameters.steps += i32::try_from(pairs.len().div_ceil(batch)).unwrap_or(i32::MAX);
        Ok(loss)
    }

    /// Loss and gradients of one batch.
    pub(super) fn gradients(
        &mut self,
        cuda: &Cuda,
        data: &RewardData<'_, '_, Cuda>,
        batch: &[PairRows],
    ) -> DriverResult<(f64, RewardModel)> {
        let loss = self.run(cuda, data, batch, batch.len(), false)?;
        Ok((loss, RewardModel { layers: self.parameters.download_gradients()? }))
    }

    /// Replays the step over `pairs`; gives the mean loss.
    fn run(
        &mut self,
        cuda: &Cuda,
        data: &RewardData<'_, '_, Cuda>,
        pairs: &[PairRows],
        batch: usize,
        learn: bool,
    ) -> DriverResult<f64> {
        let mut state = match self.state.take() {
            Some(state) => state,
            None => State::new(cuda)?,
        };
        let sides = [&data.chosen, &data.rejected];
        let mut from = Sources::default();
        for (i, side) in sides.into_iter().enumerate() {
            set_part(&mut from, i, cuda.reachable(side.originals, "training")?);
        }
        let [first, second] = &mut state.drawn;
        let samples = [
            side_samples(cuda, sides[0], 0, first, &mut from)?,
            side_samples(cuda, sides[1], 1, second, &mut from)?,
        ];
        let originals = sides.map(|s| s.originals.rows.rows());
        let plan = self.plan(originals, &samples, pairs, batch);
        state.plan.rows.fill(&plan.rows)?;
        state.plan.slots.fill(&plan.slots)?;
        state.plan.progress.start(&plan.steps)?;
        let vae = samples.iter().flatten().next().map(|s| s.vae);
        if let Some(vae) = vae.filter(|v| !state.decoder.as_ref().is_some_and(|d| d.is_of(&v.host.decoder))) {
            state.decoder = None;
            state.decoder = Some(self.decoder(cuda, &vae.host.decoder)?);
        }
        let decoder = state.decoder.as_ref().filter(|_| vae.is_some());
        // Width of h: the decoder's hidden layer, and 16 columns of which the first is the bias's 1.
        let depth = decoder.map_or(0, |d| d.layers[0].outputs + 16);
        let scratch = match state.scratch.take().filter(|s| (s.batch, s.depth) == (batch, depth)) {
            Some(scratch) => scratch,
            None => Scratch::new(cuda, self.size, depth, batch)?,
        };
        let launches = self.launches(cuda, &scratch, &state.plan, (from, &samples), decoder, learn);
        let recording = Recording::of(cuda, state.recording.take(), launches)?;
        recording.replay(plan.steps.len())?;
        let loss = state.plan.progress.totals.download()?[0] / (pairs.len() * self.size.heads) as f64;
        (state.scratch, state.recording) = (Some(scratch), Some(recording));
        self.state = Some(state);
        Ok(loss)
    }

    fn decoder(&self, cuda: &Cuda, layers: &[Linear; 2]) -> DriverResult<Decoder> {
        let upload = |values: &[f32], label| Buffer::upload(&cuda.driver, values, label);
        Ok(Decoder {
            weight: upload(&layers[0].weight, "decoder's first weight")?,
            bias: upload(&layers[0].bias, "decoder's first bias")?,
            second: upload(&self.standardized(&layers[1]), "decoder")?,
            layers: layers.clone(),
        })
    }

    /// D = W_d / std and, as a column behind it, c = (b_d - mean) / std, then zeros: `[d, hidden + 16]`,
    /// computed in F64 and rounded once.
    fn standardized(&self, decoder: &Linear) -> Vec<f32> {
        let (hidden, Standardizer { mean, std }) = (decoder.inputs, &self.standardizer);
        let mut out = vec![0f32; decoder.outputs * (hidden + 16)];
        for (i, row) in out.chunks_exact_mut(hidden + 16).enumerate() {
            let s = f64::from(std[i]);
            for (to, &w) in row.iter_mut().zip(&decoder.weight[i * hidden..][..hidden]) {
                *to = (f64::from(w) / s) as f32;
            }
            row[hidden] = ((f64::from(decoder.bias[i]) - f64::from(mean[i])) / s) as f32;
        }
        out
    }

    /// Puts the rows of every step in order: rows with embeddings first, so that d-wide products can stop
    /// behind them.
    fn plan(
        &self,
        originals: [usize; 2],
        samples: &[Option<SideSamples<'_>>; 2],
        pairs: &[PairRows],
        batch: usize,
    ) -> Plan {
        let mut plan = Plan::default();
        for (i, pairs) in pairs.chunks(batch).enumerate() {
            let mut rows: Vec<([u32; 4], usize)> = Vec::with_capacity(2 * batch);
            for (p, pair) in pairs.iter().enumerate() {
                for side in 0..2 {
                    let row = pair[side];
                    let entry = match row as usize >= originals[side] {
                        false => [side as u32, row, NONE, p as u32],
                        true => {
                            let latent = row - originals[side] as u32;
                            let s = samples[side].as_ref().expect("rows past the originals are samples");
                            match s.part {
                                Some(part) => [part, s.rows[latent as usize], latent, p as u32],
                                None => [side as u32, NONE, latent, p as u32],
                            }
                        }
                    };
                    rows.push((entry, side));
                }
            }
            // With noise every row has something in d dimensions.
            let is_wide = |entry: &[u32; 4]| entry[1] != NONE || self.objective.input_noise > 0.0;
            rows.sort_by_key(|(entry, _)| !is_wide(entry));
            let wide = rows.iter().filter(|(entry, _)| is_wide(entry)).count();
            let mut slots = vec![[0u32; 2]; pairs.len()];
            for (at, (entry, side)) in rows.into_iter().enumerate() {
                slots[entry[3] as usize][side] = at as u32;
                plan.rows.push(entry);
            }
            plan.rows.resize((i + 1) * 2 * batch, [0, NONE, NONE, NONE]);
            plan.slots.extend(slots);
            let (rate, inverse_root) = self.parameters.rates(i);
            plan.steps.push(Step {
                first: u32::try_from(i * batch).expect("pair numbers have 32 bits"),
                pairs: pairs.len() as u32,
                wide: wide as u32,
                candidate: (self.parameters.steps as u32).wrapping_add(i as u32),
                rate,
                inverse_root,
            });
        }
        plan
    }

    /// The launches of a step.
    fn launches(
        &self,
        cuda: &Cuda,
        s: &Scratch,
        DevicePlan { rows, slots, progress }: &DevicePlan,
        (from, sides): (Sources, &[Option<SideSamples<'_>>; 2]),
        decoder: Option<&Decoder>,
        learn: bool,
    ) -> Vec<Launch> {
        let (RewardSize { dim, hidden: units, heads, .. }, width) = (self.size, self.size.units());
        let (batch, n, depth) = (s.batch, 2 * s.batch, s.depth);
        let first = self.parameters.layer(0);
        // Linear heads have no second layer: null addresses.
        let second = (self.size.head == Head::Mlp).then(|| self.parameters.layer(1));
        let second_at = |address: fn(&LayerAt) -> u64| second.as_ref().map_or(0, address);
        let step = &progress.step;
        // Rows of the batch that have embeddings: a field of the step, on the device.
        let wide = step.address() + Step::WIDE;
        let mut graph = StepGraph::new(cuda, &s.slices);
        let params = params::GatherRows {
            from,
            rows: rows.address(),
            now: step.address(),
            mean: self.mean.address(),
            std: self.std.address(),
            x: s.x.address(),
            seed: self.objective.seed,
            dim: u32_of(dim),
            batch: u32_of(batch),
            noise: self.objective.input_noise as f32,
            ..Default::default()
        };
        graph.kernel("gather_rows", (n, 1, 256), params);
        if let Some(decoder) = decoder {
            // A side without samples keeps null addresses: none of its rows has a latent.
            let mut samples = Samples::default();
            for (side, s) in sides.iter().enumerate() {
                let Some(s) = s else { continue };
                (samples.z[side], samples.owners[side], samples.mu[side]) = (s.z, s.owners, s.mu);
            }
            let params = params::RewardHidden {
                of: samples,
                rows: rows.address(),
                now: step.address(),
                w1: decoder.weight.address(),
                b1: decoder.bias.address(),
                out: s.hidden.address(),
                batch: u32_of(batch),
                hidden: u32_of(decoder.layers[0].outputs),
                latent: u32_of(decoder.layers[0].inputs),
                ..Default::default()
            };
            graph.kernel("reward_hidden", (n, 4, 128), params);
        }

        let (x, h, act, dpre) = (s.x.address(), s.hidden.address(), s.act.address(), s.dpre.address());
        let relu = second.is_some();
        let hidden = Epilogue { bias: first.bias, relu, limit: wide, ..Epilogue::default() };
        match decoder {
            None => graph.product(Form::Nt, (x, first.weight, act), (n, width, dim), hidden),
            Some(decoder) => {
                let fold = (first.weight, decoder.second.address(), s.fold.address());
                graph.product(Form::Nn, fold, (width, depth, dim), Epilogue::default());
                let products = [(x, first.weight, dim), (h, s.fold.address(), depth)];
                graph.product_of_two(products, act, (n, width), hidden);
            }
        }
        let params = params::RewardHead {
            act,
            w2: second_at(|l| l.weight),
            b2: second_at(|l| l.bias),
            reward: s.reward.address(),
            slots: slots.address(),
            now: step.address(),
            slope: s.slope.address(),
            db2: second_at(|l| l.dbias),
            losses: s.losses.address(),
            tickets: s.tickets.address(),
            batch: u32_of(batch),
            heads: u32_of(heads),
            units: u32_of(units),
            ..Default::default()
        };
        // Of a head's rows four a block.
        graph.kernel("reward_head", (n.div_ceil(4) * heads, 1, 128), params);
        let params = params::RewardBackward {
            act,
            slope: s.slope.address(),
            w2: second_at(|l| l.weight),
            dpre,
            db1: first.dbias,
            dw2: second_at(|l| l.dweight),
            rows: u32_of(n),
            width: u32_of(width),
            units: u32_of(units),
            ..Default::default()
        };
        graph.kernel_with_shared("reward_backward", (width, 32, 256), 2 * 256 * 8, params);
        let of_rows = Gradient {
            dy: dpre,
            input: x,
            out: first.dweight,
            limit: wide,
            sizes: (width, dim, n),
            ..Gradient::default()
        };
        let back = s.fold.address();
        let of_fold =
            Gradient { dy: dpre, input: h, out: back, sizes: (width, depth, n), ..Gradient::default() };
        graph.gradients(&[of_rows, of_fold][..1 + usize::from(decoder.is_some())]);
        if let Some(decoder) = decoder {
            let added = Epilogue { add: true, ..Epilogue::default() };
            graph.product(
                Form::Nt,
                (back, decoder.second.address(), first.dweight),
                (width, dim, depth),
                added,
            );
        }
        graph.end(learn.then_some(&self.parameters), &s.losses, progress, heads * batch);
        graph.into_launches()
    }
}

impl State {
    fn new(cuda: &Cuda) -> DriverResult<State> {
        let drawn = || (Refilled::new(cuda, "latents"), Refilled::new(cuda, "rows of latents"));
        let plan = DevicePlan {
            rows: Refilled::new(cuda, "rows of batches"),
            slots: Refilled::new(cuda, "rows of pairs"),
            progress: Progress::new(cuda, 1)?,
        };
        Ok(State { plan, drawn: [drawn(), drawn()], decoder: None, scratch: None, recording: None })
    }
}

impl Decoder {
    /// Whether it was made from these layers. Values are compared, as another model may lie at the same
    /// address.
    fn is_of(&self, layers: &[Linear; 2]) -> bool {
        let bits =
            |a: &[f32], b: &[f32]| bytemuck::cast_slice::<_, u8>(a) == bytemuck::cast_slice::<_, u8>(b);
        let same = |a: &Linear, b: &Linear| {
            (a.inputs, a.outputs) == (b.inputs, b.outputs)
                && bits(&a.weight, &b.weight)
                && bits(&a.bias, &b.bias)
        };
        self.layers.iter().zip(layers).all(|(a, b)| same(a, b))
    }
}

/// Activations and gradients of one batch.
#[derive(Debug)]
struct Scratch {
    batch: usize,
    /// Width of `hidden`, or 0 without samples.
    depth: usize,
    x: Buffer<f32>,
    hidden: Buffer<f32>,
    act: Buffer<f32>,
    dpre: Buffer<f32>,
    /// W D, then its gradient.
    fold: Buffer<f32>,
    reward: Buffer<f32>,
    slope: Buffer<f32>,
    losses: Buffer<f64>,
    /// Blocks of each head that have finished, left 0.
    tickets: Buffer<u32>,
    slices: Slices,
}

impl Scratch {
    fn new(cuda: &Cuda, size: RewardSize, depth: usize, batch: usize) -> DriverResult<Scratch> {
        let (driver, n) = (&cuda.driver, 2 * batch);
        let (RewardSize { dim, heads, .. }, width) = (size, size.units());
        let rows = |width, label| Buffer::<f32>::empty(driver, n * width, label);
        let launches: [&[_]; 4] = [
            &[((n, width, dim), 1 + usize::from(depth > 0))],
            &[((width, depth, dim), 1)],
            &[((width, dim, n), 1), ((width, depth, n), 1)],
            &[((width, dim, depth), 1)],
        ];
        Ok(Scratch {
            batch,
            depth,
            x: rows(dim, "x")?,
            hidden: rows(depth, "decoder's hidden layer")?,
            act: rows(width, "hidden layer")?,
            dpre: rows(width, "gradient of the hidden layer")?,
            fold: Buffer::empty(driver, width * depth, "folded weight")?,
            reward: rows(heads, "rewards")?,
            slope: rows(heads, "slopes")?,
            losses: Buffer::empty(driver, heads * batch, "losses")?,
            tickets: Buffer::zeros(driver, heads, "tickets of heads")?,
            slices: Slices::new(cuda, &launches)?,
        })
    }
}

/// Makes `rows` part `part` of what batches are gathered from. Parts 0 and 1 are the originals of the two
/// sides, 2 and 3 the seeds of their residual samples where those are other rows.
fn set_part(from: &mut Sources, part: usize, rows: RowsAt) {
    (from.rows[part], from.dtype[part]) = (rows.address, rows.dtype as u32);
}

/// A side's samples, if it has any. Seeds of residual samples become a part of their own unless they are the
/// originals.
fn side_samples<'a>(
    cuda: &Cuda,
    side: &'a RewardSide<'_, '_, Cuda>,
    number: u32,
    (drawn, seeds): &mut (Refilled<f32>, Refilled<u32>),
    from: &mut Sources,
) -> DriverResult<Option<SideSamples<'a>>> {
    let Some(synthetic) = &side.synthetic else { return Ok(None) };
    let latents = synthetic.latents;
    let (z, owners) = match &latents.values {
        LatentValues::Stored { z, owners } => (z.address(), owners.address()),
        LatentValues::Drawn(values) => {
            let (count, latent) = (latents.count(), latents.latent);
            let z = drawn.room(count * latent)?.address();
            cuda.launch_perturb(values, (0, count), latent, z)?;
            seeds.fill(&latents.rows)?;
            (z, seeds.address())
        }
    };
    let (mut part, mut mu) = (None, 0);
    if let Some(residual) = synthetic.residual {
        let seeds = cuda.reachable(residual.embeddings, "training")?;
        let own = if seeds.address == from.rows[number as usize] { number } else { 2 + number };
        set_part(from, own as usize, seeds);
        part = Some(own);
        mu = residual.posteriors.mu.address();
    }
    Ok(Some(SideSamples { vae: synthetic.vae, z, owners, mu, rows: &latents.rows, part }))
}
