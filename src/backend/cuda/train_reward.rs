//! Reward training. Synthetic samples are never decoded: the decoder's last layer is folded into the reward model's first,
//! exactly (W x' = W x + (W D) h, with D the standardised decoder), so that only originals pass through d dimensions.

use super::data::Source;
use super::driver::DriverResult;
use super::launch::{Args, Launch, u32_of};
use super::memory::Buffer;
use super::ops::RowsAt;
use super::params::{Samples, Sources, Step};
use super::replay::{Progress, Recording, Refilled};
use super::tape::{After, Form, Parameters, Slices, Tape};
use super::{Cuda, DeviceVae};
use crate::backend::{PairRows, RewardData, RewardObjective, RewardSide};
use crate::model::{Linear, RewardModel, RewardSize, Standardizer};

/// No source, or no latent.
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
    /// Of the last run, if it went well: after a fault it may hold anything.
    held: Option<Held>,
}

/// What is kept from one epoch to the next.
#[derive(Debug)]
struct Held {
    plan: PlanAt,
    /// Latents that are drawn, and the seed of each, by side.
    drawn: [(Refilled<f32>, Refilled<u32>); 2],
    decoder: Option<Decoder>,
    scratch: Option<Scratch>,
    recording: Option<Recording>,
}

/// A plan on the device.
#[derive(Debug)]
struct PlanAt {
    rows: Refilled<[u32; 3]>,
    slots: Refilled<[u32; 2]>,
    progress: Progress,
}

/// The decoder of the samples as training uses it.
#[derive(Debug)]
struct Decoder {
    layers: [Linear; 2],
    /// Weight of the first layer in F32, whatever the precision of products.
    weight: Buffer<f32>,
    bias: Buffer<f32>,
    /// The second layer, standardised: see [`RewardTrainer::standardized`].
    second: Buffer<f32>,
}

/// One side's synthetic samples on the device.
struct Folded<'a> {
    vae: &'a DeviceVae,
    z: u64,
    owners: u64,
    /// Means of the seeds, where residual; else 0.
    mu: u64,
    rows: &'a [u32],
    /// The part that a sample's seed is gathered from, where residual.
    part: Option<u32>,
}

/// An epoch as kernels read it.
#[derive(Default)]
struct Plan {
    /// (part, source, latent) of every row of every step, `2 batch` a step.
    rows: Vec<[u32; 3]>,
    /// The rows of a pair's two sides, within its step.
    slots: Vec<[u32; 2]>,
    steps: Vec<Step>,
}

impl RewardTrainer {
    /// Starts from a model for standardised embeddings.
    pub fn new(
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
            held: None,
        })
    }

    /// Dimension of the embeddings.
    pub fn dim(&self) -> usize {
        self.size.dim
    }

    /// The parameters.
    pub fn parameters(&self) -> DriverResult<RewardModel> {
        Ok(model_of(self.parameters.download()?))
    }

    /// One pass over `pairs`, in batches.
    pub fn epoch(
        &mut self,
        cuda: &Cuda,
        data: &RewardData<'_, '_, Cuda>,
        pairs: &[PairRows],
    ) -> DriverResult<f64> {
        let batch = self.objective.batch.min(pairs.len());
        let loss = self.run(cuda, data, pairs, batch, true)?;
        self.parameters.steps += i32::try_from(pairs.len().div_ceil(batch)).unwrap_or(i32::MAX);
        Ok(loss)
    }

    /// Loss and gradients of one batch.
    pub fn gradients(
        &mut self,
        cuda: &Cuda,
        data: &RewardData<'_, '_, Cuda>,
        batch: &[PairRows],
    ) -> DriverResult<(f64, RewardModel)> {
        let loss = self.run(cuda, data, batch, batch.len(), false)?;
        Ok((loss, model_of(self.parameters.download_gradients()?)))
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
        let mut held = match self.held.take() {
            Some(held) => held,
            None => Held::new(cuda)?,
        };
        let sides = [&data.chosen, &data.rejected];
        let mut from = Sources::default();
        for (i, side) in sides.into_iter().enumerate() {
            put_part(&mut from, i, cuda.resident(side.originals, "training")?);
        }
        let [first, second] = &mut held.drawn;
        let folded = [
            folded_of(cuda, sides[0], 0, first, &mut from)?,
            folded_of(cuda, sides[1], 1, second, &mut from)?,
        ];
        let originals = sides.map(|s| s.originals.rows.rows());
        let plan = self.plan(originals, &folded, pairs, batch);
        held.plan.rows.fill(&plan.rows)?;
        held.plan.slots.fill(&plan.slots)?;
        held.plan.progress.start(&plan.steps)?;
        let vae = folded.iter().flatten().next().map(|f| f.vae);
        if let Some(vae) = vae.filter(|v| !held.decoder.as_ref().is_some_and(|d| d.is_of(&v.host.decoder))) {
            held.decoder = None;
            held.decoder = Some(self.decoder(cuda, &vae.host.decoder)?);
        }
        let decoder = held.decoder.as_ref().filter(|_| vae.is_some());
        // Width of the folded rows: the decoder's hidden layer, and 16 columns of which the first is the bias's.
        let depth = decoder.map_or(0, |d| d.layers[0].outputs + 16);
        let scratch = match held.scratch.take().filter(|s| (s.batch, s.depth) == (batch, depth)) {
            Some(scratch) => scratch,
            None => Scratch::new(cuda, self.size, depth, batch)?,
        };
        let launches = self.launches(cuda, &scratch, &held.plan, (from, &folded), decoder, learn);
        let recording = Recording::of(cuda, held.recording.take(), launches)?;
        recording.replay(plan.steps.len())?;
        let loss = held.plan.progress.totals.download()?[0] / pairs.len() as f64;
        (held.scratch, held.recording) = (Some(scratch), Some(recording));
        self.held = Some(held);
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

    /// D = W_d / std and, behind it, c = (b_d - mean) / std and zeros: `[d, hidden + 16]`, in F64, rounded once.
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

    /// Puts the rows of every step in order: those with embeddings first, the folded ones last.
    fn plan(
        &self,
        originals: [usize; 2],
        folded: &[Option<Folded<'_>>; 2],
        pairs: &[PairRows],
        batch: usize,
    ) -> Plan {
        let mut plan = Plan::default();
        for (i, pairs) in pairs.chunks(batch).enumerate() {
            let mut rows: Vec<([u32; 3], usize, usize)> = Vec::with_capacity(2 * batch);
            for (p, pair) in pairs.iter().enumerate() {
                for side in 0..2 {
                    let row = pair[side];
                    let entry = match row as usize >= originals[side] {
                        false => [side as u32, row, NONE],
                        true => {
                            let latent = row - originals[side] as u32;
                            let f = folded[side].as_ref().expect("rows past the originals are samples");
                            match f.part {
                                Some(part) => [part, f.rows[latent as usize], latent],
                                None => [side as u32, NONE, latent],
                            }
                        }
                    };
                    rows.push((entry, p, side));
                }
            }
            rows.sort_by_key(|(entry, ..)| entry[1] == NONE);
            let wide = rows.iter().filter(|(entry, ..)| entry[1] != NONE).count();
            let mut slots = vec![[0u32; 2]; pairs.len()];
            for (at, (entry, p, side)) in rows.into_iter().enumerate() {
                slots[p][side] = at as u32;
                plan.rows.push(entry);
            }
            plan.rows.resize((i + 1) * 2 * batch, [0, NONE, NONE]);
            plan.slots.extend(slots);
            let (rate, inverse_root) = self.parameters.rates(i);
            plan.steps.push(Step {
                first: u32::try_from(i * batch).expect("pair numbers have 32 bits"),
                pairs: pairs.len() as u32,
                wide: wide as u32,
                epoch: 0,
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
        PlanAt { rows, slots, progress }: &PlanAt,
        (from, folded): (Sources, &[Option<Folded<'_>>; 2]),
        decoder: Option<&Decoder>,
        learn: bool,
    ) -> Vec<Launch> {
        let RewardSize { dim, hidden: width } = self.size;
        let (batch, n, depth) = (s.batch, 2 * s.batch, s.depth);
        let [first, second] = std::array::from_fn(|i| self.parameters.layer(i));
        let now = &progress.now;
        let wide = now.address() + Step::WIDE;
        let mut tape = Tape::new(cuda, &s.slices);
        let t = &mut tape;
        let args = Args::new()
            .value(from)
            .address(rows.address())
            .buffer(now)
            .value(u32_of(dim))
            .value(u32_of(batch))
            .buffer(&self.mean)
            .buffer(&self.std)
            .buffer(&s.x);
        t.put("gather_rows", (n, 1, 256), args);
        if let Some(decoder) = decoder {
            // Of a side without samples no row has a latent.
            let mut samples = Samples::default();
            for (side, f) in folded.iter().enumerate() {
                let Some(f) = f else { continue };
                (samples.z[side], samples.owners[side], samples.mu[side]) = (f.z, f.owners, f.mu);
            }
            let args = Args::new()
                .address(rows.address())
                .buffer(now)
                .value(u32_of(batch))
                .value(samples)
                .buffer(&decoder.weight)
                .buffer(&decoder.bias)
                .value(u32_of(decoder.layers[0].outputs))
                .value(u32_of(decoder.layers[0].inputs))
                .buffer(&s.hidden);
            t.put("reward_hidden", (n, 4, 128), args);
        }

        let (x, h, act, dpre) = (s.x.address(), s.hidden.address(), s.act.address(), s.dpre.address());
        let relu = After { bias: first.bias, relu: true, limit: wide, ..After::default() };
        match decoder {
            None => t.product(Form::Nt, (x, first.weight, act), (n, width, dim), relu),
            Some(decoder) => {
                let fold = (first.weight, decoder.second.address(), s.fold.address());
                t.product(Form::Nn, fold, (width, depth, dim), After::default());
                let products = [(x, first.weight, dim), (h, s.fold.address(), depth)];
                t.product_of_two(products, act, (n, width), relu);
            }
        }
        let args = Args::new()
            .buffer(&s.act)
            .address(second.weight)
            .address(second.bias)
            .value(u32_of(n))
            .value(u32_of(width))
            .buffer(&s.reward);
        t.put("reward_head", (n, 4, 128), args);
        let args = Args::new()
            .buffer(&s.reward)
            .address(slots.address())
            .buffer(now)
            .value(u32_of(batch))
            .buffer(&s.slope)
            .address(second.dbias)
            .buffer(&s.losses);
        t.put("reward_loss", (1, 1, 256), args);
        let args = Args::new()
            .buffer(&s.act)
            .buffer(&s.slope)
            .address(second.weight)
            .value(u32_of(n))
            .value(u32_of(width))
            .buffer(&s.dpre)
            .address(first.dbias)
            .address(second.dweight);
        t.put_shared("reward_backward", (width, 32, 256), 2 * 256 * 8, args);
        let limited = After { limit: wide, ..After::default() };
        t.product(Form::Tn, (dpre, x, first.dweight), (width, dim, n), limited);
        if let Some(decoder) = decoder {
            let back = s.fold.address();
            t.product(Form::Tn, (dpre, h, back), (width, depth, n), After::default());
            let added = After { add: true, ..After::default() };
            t.product(Form::Nt, (back, decoder.second.address(), first.dweight), (width, dim, depth), added);
        }
        if learn {
            t.adam(&self.parameters, now);
        }
        t.end_step(&s.losses, progress, batch);
        tape.launches
    }
}

impl Held {
    fn new(cuda: &Cuda) -> DriverResult<Held> {
        let drawn = || (Refilled::new(cuda, "latents"), Refilled::new(cuda, "rows of latents"));
        let plan = PlanAt {
            rows: Refilled::new(cuda, "rows of batches"),
            slots: Refilled::new(cuda, "rows of pairs"),
            progress: Progress::new(cuda, 1)?,
        };
        Ok(Held { plan, drawn: [drawn(), drawn()], decoder: None, scratch: None, recording: None })
    }
}

impl Decoder {
    /// Whether it was made from these layers. By values: another model may lie where one was freed.
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
    /// Width of the folded rows, or 0.
    depth: usize,
    x: Buffer<f32>,
    hidden: Buffer<f32>,
    act: Buffer<f32>,
    dpre: Buffer<f32>,
    /// W D, then the gradient by it.
    fold: Buffer<f32>,
    reward: Buffer<f32>,
    slope: Buffer<f32>,
    losses: Buffer<f64>,
    slices: Slices,
}

impl Scratch {
    fn new(
        cuda: &Cuda,
        RewardSize { dim, hidden: width }: RewardSize,
        depth: usize,
        batch: usize,
    ) -> DriverResult<Scratch> {
        let (driver, n) = (&cuda.driver, 2 * batch);
        let rows = |width, label| Buffer::<f32>::empty(driver, n * width, label);
        let products = [
            ((n, width, dim), 1 + usize::from(depth > 0)),
            ((width, dim, n), 1),
            ((width, depth, dim), 1),
            ((width, depth, n), 1),
            ((width, dim, depth), 1),
        ];
        Ok(Scratch {
            batch,
            depth,
            x: rows(dim, "x")?,
            hidden: rows(depth, "decoder's hidden layer")?,
            act: rows(width, "hidden layer")?,
            dpre: rows(width, "gradient of the hidden layer")?,
            fold: Buffer::empty(driver, width * depth, "folded weight")?,
            reward: rows(1, "rewards")?,
            slope: rows(1, "slopes")?,
            losses: Buffer::empty(driver, batch, "losses")?,
            slices: Slices::new(cuda, &products)?,
        })
    }
}

/// Rows of the batch may come from part `part`: originals of the two sides, then the seeds of residual samples, where
/// those are not the originals themselves.
fn put_part(from: &mut Sources, part: usize, rows: RowsAt) {
    (from.rows[part], from.dtypes[part]) = (rows.address, rows.dtype as u32);
}

/// A side's samples, if it has any; seeds of residual ones become a part of their own unless they are the originals.
fn folded_of<'a>(
    cuda: &Cuda,
    side: &'a RewardSide<'_, '_, Cuda>,
    number: u32,
    (drawn, seeds): &mut (Refilled<f32>, Refilled<u32>),
    from: &mut Sources,
) -> DriverResult<Option<Folded<'a>>> {
    let Some(synthetic) = &side.synthetic else { return Ok(None) };
    let latents = synthetic.latents;
    let (z, owners) = match &latents.source {
        Source::Stored { z, owners } => (z.address(), owners.address()),
        Source::Drawn { .. } => {
            let (count, latent) = (latents.count(), latents.latent);
            let z = drawn.room(count * latent)?.address();
            if count > 0 {
                cuda.launch_perturb(&latents.params(0), count, latent, z)?;
            }
            seeds.fill(&latents.rows)?;
            (z, seeds.address())
        }
    };
    let (mut part, mut mu) = (None, 0);
    if let Some(residual) = synthetic.residual {
        let seeds = cuda.resident(residual.embeddings, "training")?;
        let own = if seeds.address == from.rows[number as usize] { number } else { 2 + number };
        put_part(from, own as usize, seeds);
        part = Some(own);
        mu = residual.posteriors.mu.address();
    }
    Ok(Some(Folded { vae: synthetic.vae, z, owners, mu, rows: &latents.rows, part }))
}

fn model_of(layers: Vec<Linear>) -> RewardModel {
    let layers: [_; 2] = layers.try_into().expect("two layers");
    RewardModel { layers }
}
