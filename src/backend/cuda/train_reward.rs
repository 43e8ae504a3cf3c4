//! Reward training. Synthetic samples are never decoded: the decoder's last layer is folded into the reward model's first,
//! exactly (W x' = W x + (W D) h, with D the standardised decoder), so that only originals pass through d dimensions.

use super::data::{Latents, Source};
use super::driver::Outcome;
use super::launch::{Args, u32_of};
use super::memory::Buffer;
use super::ops::RowsAt;
use super::params::Step;
use super::tape::{After, Form, Parameters, Tape};
use super::{Cuda, DeviceVae};
use crate::backend::{PairRows, RewardData, RewardObjective, RewardSide};
use crate::dtype::Dtype;
use crate::model::{Linear, RewardModel, RewardSize, Standardizer, VaeSize};

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
}

/// The rows that a batch is gathered from, by number: originals of the two sides, then the seeds of residual samples,
/// where those are not the originals themselves.
struct Parts {
    rows: [Option<RowsAt>; 4],
}

/// One side's synthetic samples on the device.
struct Folded<'a> {
    vae: &'a DeviceVae,
    z: u64,
    owners: u64,
    /// Means of the seeds, where residual; else 0.
    mu: u64,
    /// Keeps latents alive that were drawn for this.
    _drawn: Option<Buffer<f32>>,
    _owners: Option<Buffer<u32>>,
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
    ) -> Outcome<RewardTrainer> {
        let layers: Vec<_> = initial.layers.iter().collect();
        Ok(RewardTrainer {
            size: initial.size(),
            objective: *objective,
            parameters: Parameters::new(cuda, &layers, objective.adam)?,
            mean: Buffer::upload(&cuda.driver, &standardizer.mean, "mean")?,
            std: Buffer::upload(&cuda.driver, &standardizer.std, "standard deviation")?,
            standardizer: standardizer.clone(),
        })
    }

    /// Dimension of the embeddings.
    pub fn dim(&self) -> usize {
        self.size.dim
    }

    /// The parameters.
    pub fn parameters(&self) -> Outcome<RewardModel> {
        Ok(model_of(self.parameters.download()?))
    }

    /// One pass over `pairs`, in batches.
    pub fn epoch(
        &mut self,
        cuda: &Cuda,
        data: &RewardData<'_, '_, Cuda>,
        pairs: &[PairRows],
    ) -> Outcome<f64> {
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
    ) -> Outcome<(f64, RewardModel)> {
        let loss = self.run(cuda, data, batch, batch.len(), false)?;
        Ok((loss, model_of(self.parameters.download_gradients()?)))
    }

    /// Replays the step over `pairs`; gives the mean loss.
    fn run(
        &self,
        cuda: &Cuda,
        data: &RewardData<'_, '_, Cuda>,
        pairs: &[PairRows],
        batch: usize,
        learn: bool,
    ) -> Outcome<f64> {
        let mut parts = Parts { rows: [None; 4] };
        let sides = [&data.chosen, &data.rejected];
        for (i, side) in sides.into_iter().enumerate() {
            parts.rows[i] = Some(cuda.resident(side.originals, "training")?);
        }
        let folded = [folded_of(cuda, sides[0], 0, &mut parts)?, folded_of(cuda, sides[1], 1, &mut parts)?];
        let originals = sides.map(|s| s.originals.rows.rows());
        let plan = self.plan(originals, &folded, pairs, batch);
        let driver = &cuda.driver;
        let rows = Buffer::upload(driver, &plan.rows, "rows of batches")?;
        let slots = Buffer::upload(driver, &plan.slots, "rows of pairs")?;
        let table = Buffer::upload(driver, &plan.steps, "steps")?;
        let decoder = match folded.iter().flatten().next() {
            Some(f) => Some(Buffer::upload(driver, &self.standardized(&f.vae.host.decoder[1]), "decoder")?),
            None => None,
        };
        let scratch = Scratch::new(cuda, self.size, &folded, batch)?;
        let mut tape =
            self.tape(cuda, &scratch, (&rows, &slots, &table), (&parts, &folded), decoder.as_ref(), learn)?;
        let graph = driver.record(std::mem::take(&mut tape.launches))?;
        for _ in &plan.steps {
            graph.replay()?;
        }
        Ok(scratch.totals.download()?[0] / pairs.len() as f64)
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
    fn tape(
        &self,
        cuda: &Cuda,
        s: &Scratch,
        (rows, slots, table): (&Buffer<[u32; 3]>, &Buffer<[u32; 2]>, &Buffer<Step>),
        (parts, folded): (&Parts, &[Option<Folded<'_>>; 2]),
        decoder: Option<&Buffer<f32>>,
        learn: bool,
    ) -> Outcome<Tape> {
        let RewardSize { dim, hidden: width } = self.size;
        let (batch, n, depth) = (s.batch, 2 * s.batch, s.depth);
        let [first, second] = std::array::from_fn(|i| self.parameters.layer(i));
        let wide = s.now.address() + Step::WIDE;
        let two = 1 + usize::from(decoder.is_some());
        let mut tape = Tape::new(
            cuda,
            &[
                ((n, width, dim), two),
                ((width, dim, n), 1),
                ((width, depth, dim), 1),
                ((width, depth, n), 1),
                ((width, dim, depth), 1),
            ],
        )?;
        let t = &mut tape;
        t.begin(table, &s.turn, &s.now);
        for (part, from) in parts.rows.iter().enumerate() {
            let Some(from) = from else { continue };
            let args = Args::new()
                .address(from.address)
                .buffer(rows)
                .buffer(&s.now)
                .value(u32_of(dim))
                .value(u32_of(batch))
                .value(u32_of(part))
                .buffer(&self.mean)
                .buffer(&self.std)
                .buffer(&s.x);
            let kernel = match from.dtype {
                Dtype::F32 => "gather_rows_f32",
                Dtype::F16 => "gather_rows_f16",
                Dtype::Bf16 => "gather_rows_bf16",
            };
            t.put(kernel, (n, 1, 256), args);
        }
        if let Some((vae, (w1, b1))) = s.decoder_first.as_ref().map(|(size, w, b)| (size, (w, b))) {
            for (side, f) in folded.iter().enumerate() {
                // Of a side without samples no row has a latent: its rows become zeros.
                let (z, owners, mu) = f.as_ref().map_or((0, 0, 0), |f| (f.z, f.owners, f.mu));
                let args = Args::new()
                    .buffer(rows)
                    .buffer(&s.now)
                    .value(u32_of(batch))
                    .value(u32_of(side))
                    .address(z)
                    .address(owners)
                    .address(mu)
                    .buffer(w1)
                    .buffer(b1)
                    .value(u32_of(vae.hidden))
                    .value(u32_of(vae.latent))
                    .buffer(&s.hidden);
                t.put("reward_hidden", (n, 4, 128), args);
            }
        }

        let (x, h, act, dpre) = (s.x.address(), s.hidden.address(), s.act.address(), s.dpre.address());
        let relu = After { bias: first.bias, relu: true, limit: wide, ..After::default() };
        match decoder {
            None => t.product(Form::Nt, (x, first.weight, act), (n, width, dim), relu),
            Some(decoder) => {
                let fold = (first.weight, decoder.address(), s.fold.address());
                t.product(Form::Nn, fold, (width, depth, dim), After::default());
                let products = [(x, first.weight, dim), (h, s.fold.address(), depth)];
                t.product_of_two(Form::Nt, products, act, (n, width), relu);
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
            .buffer(slots)
            .buffer(&s.now)
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
            t.product(Form::Nt, (back, decoder.address(), first.dweight), (width, dim, depth), added);
        }
        t.add_losses(s.losses.address(), s.totals.address(), 1, batch);
        if learn {
            t.adam(&self.parameters, &s.now);
        }
        Ok(tape)
    }
}

/// Activations and gradients of one batch.
struct Scratch {
    batch: usize,
    /// Width of the folded rows: the decoder's hidden layer, and 16 columns of which the first is the bias's.
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
    totals: Buffer<f64>,
    turn: Buffer<u32>,
    now: Buffer<Step>,
    /// The decoder's first layer in F32, whatever the precision of products: weight and bias.
    decoder_first: Option<(VaeSize, Buffer<f32>, Buffer<f32>)>,
}

impl Scratch {
    fn new(
        cuda: &Cuda,
        RewardSize { dim, hidden: width }: RewardSize,
        folded: &[Option<Folded<'_>>; 2],
        batch: usize,
    ) -> Outcome<Scratch> {
        let driver = &cuda.driver;
        let vae = folded.iter().flatten().next().map(|f| &f.vae.host);
        let depth = vae.map_or(0, |v| v.size().hidden + 16);
        let rows = |width, label| Buffer::<f32>::empty(driver, 2 * batch * width, label);
        let decoder_first = match vae {
            Some(vae) => Some((
                vae.size(),
                Buffer::upload(driver, &vae.decoder[0].weight, "decoder's first weight")?,
                Buffer::upload(driver, &vae.decoder[0].bias, "decoder's first bias")?,
            )),
            None => None,
        };
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
            totals: Buffer::zeros(driver, 1, "totals")?,
            turn: Buffer::zeros(driver, 1, "turn")?,
            now: Buffer::empty(driver, 1, "step")?,
            decoder_first,
        })
    }
}

/// A side's samples, if it has any; seeds of residual ones become a part of their own unless they are the originals.
fn folded_of<'a>(
    cuda: &Cuda,
    side: &'a RewardSide<'_, '_, Cuda>,
    number: u32,
    parts: &mut Parts,
) -> Outcome<Option<Folded<'a>>> {
    let Some(synthetic) = &side.synthetic else { return Ok(None) };
    let latents: &Latents = synthetic.latents;
    let drawn = cuda.stored(latents)?;
    let (z, owners, made) = match (&latents.source, &drawn) {
        (Source::Stored { z, owners }, _) => (z.address(), owners.address(), None),
        (Source::Drawn { .. }, drawn) => {
            let owners = Buffer::upload(&cuda.driver, &latents.rows, "rows of latents")?;
            let z = drawn.as_ref().map_or(0, Buffer::address);
            (z, owners.address(), Some(owners))
        }
    };
    let (mut part, mut mu) = (None, 0);
    if let Some(residual) = synthetic.residual {
        let seeds = cuda.resident(residual.embeddings, "training")?;
        let originals = parts.rows[number as usize].expect("originals come first");
        part = Some(if seeds.address == originals.address { number } else { 2 + number });
        if part == Some(2 + number) {
            parts.rows[2 + number as usize] = Some(seeds);
        }
        mu = residual.posteriors.mu.address();
    }
    Ok(Some(Folded {
        vae: synthetic.vae,
        z,
        owners,
        mu,
        _drawn: drawn,
        _owners: made,
        rows: &latents.rows,
        part,
    }))
}

fn model_of(layers: Vec<Linear>) -> RewardModel {
    let layers: [_; 2] = layers.try_into().expect("two layers");
    RewardModel { layers }
}
