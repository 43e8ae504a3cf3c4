//! Reward training. The first layer takes one pass over its weights a step (`linear.rs`); the narrow rest runs by panels
//! of 32 hidden units.
//!
//! An ensemble's heads lie side by side in the first layer: with MLPs a panel belongs to one head, with linear heads each
//! column of a panel is one. So a batch is read once for all heads.

use std::ops::Range;

use super::adam::{ParamVector, Rates, SLICE, Update, Weights};
use super::linear::{Back, Fill, FusedLinear, Operand, STRIDE, Sums};
use super::samples::{NONE, Samples, Side, Step};
use super::share;
use crate::backend::cpu::gemm::{self, Add, AlignedRows, Keep, ZERO, pack_pairs};
use crate::backend::{PairRows, Precision, RewardObjective};
use crate::interrupt::Interrupt;
use crate::model::{Linear, RewardModel, RewardSize, Standardizer};
use crate::noise::{NoiseCounter, Purpose, Side as NoiseSide, fill_normals_from};
use crate::simd::{Isa, NR, NrRow, RowsRef, Simd, Task};

/// Parameters, moments and scratch.
#[derive(Debug)]
pub struct RewardTrainer {
    size: RewardSize,
    first: FusedLinear,
    first_bias: ParamVector,
    /// Weight and bias; None for linear heads.
    second: Option<[ParamVector; 2]>,
    objective: RewardObjective,
    standardizer: Standardizer,
    steps: i32,
    scratch: Scratch,
}

/// Activations and gradients of one batch.
#[derive(Debug, Default)]
struct Scratch {
    /// The first layer's outputs of what passes through d dimensions, then the gradient by them.
    wide: Operand,
    /// The hidden layer of every sample, then the gradient by it: `[panel][samples]`.
    hidden: AlignedRows,
    /// Each panel's share of its head's rewards, `[panel][samples]`.
    shares: Vec<f32>,
    /// `[head][samples]`.
    rewards: Vec<f32>,
    slopes: Vec<f32>,
}

/// What passes through d dimensions in a step, standardised.
struct Batch<'a> {
    samples: &'a Samples<'a>,
    step: &'a Step,
    /// Whether the decoder's rows are not in the blocks yet.
    fresh: bool,
    standardizer: &'a Standardizer,
    /// Standard deviation and seed of the noise, and the steps before this one.
    noise: (f32, u64, u32),
}

impl Fill for Batch<'_> {
    fn rows(&self) -> usize {
        self.step.wide_rows()
    }

    #[inline(always)]
    fn fill<S: Simd>(&self, simd: S, columns: Range<usize>, block: &mut [f32], kept: bool) {
        let (folded, rest) = block.split_at_mut(self.step.depth * STRIDE);
        if self.fresh || !kept {
            for (row, to) in folded.chunks_exact_mut(STRIDE).enumerate() {
                to[..columns.len()].copy_from_slice(self.samples.decoder_row(row, columns.clone()));
            }
        }
        let mut normals = [0f32; SLICE];
        let normals = &mut normals[..columns.len()];
        for (row, to) in rest.chunks_exact_mut(STRIDE).enumerate() {
            let to = &mut to[..columns.len()];
            self.samples.standardized(self.step, row, columns.clone(), self.standardizer, to);
            if let Some(&[side, pair]) = self.step.owners.get(row) {
                let (std, seed, candidate) = self.noise;
                let (purpose, side) = (Purpose::InputNoise, NoiseSide::BOTH[side as usize]);
                let counter = NoiseCounter { purpose, side, row: pair.into(), candidate };
                // Slices start with a block of noise.
                fill_normals_from(simd, seed, counter, (columns.start / 4) as u32, normals);
                to.iter_mut().zip(&*normals).for_each(|(x, n)| *x += std * n);
            }
        }
    }
}

impl RewardTrainer {
    /// Starts from a model for standardised embeddings.
    pub fn new(
        initial: &RewardModel,
        standardizer: &Standardizer,
        objective: &RewardObjective,
        precision: Precision,
    ) -> RewardTrainer {
        let first = &initial.layers[0];
        let vectors = |second: &Linear| [&second.weight, &second.bias].map(|v| ParamVector::new(v, 0));
        RewardTrainer {
            size: initial.size(),
            first: FusedLinear::new(first.inputs, first.outputs, precision, |o, i| {
                first.weight[o * first.inputs + i]
            }),
            first_bias: ParamVector::new(&first.bias, 0),
            second: initial.layers.get(1).map(vectors),
            objective: *objective,
            standardizer: standardizer.clone(),
            steps: 0,
            scratch: Scratch::default(),
        }
    }

    /// Dimension of the embeddings.
    pub fn dim(&self) -> usize {
        self.first.inputs()
    }

    /// The parameters.
    pub fn parameters(&self) -> RewardModel {
        self.model(ParamVector::values, |weight, inputs| {
            self.first.each_weight(|o, i, w| weight[o * inputs + i] = w);
        })
    }

    /// The gradients of the last batch.
    pub fn gradients(&self) -> RewardModel {
        self.model(ParamVector::gradients, |weight, inputs| {
            self.first.each_gradient(|o, i, g| weight[o * inputs + i] = g);
        })
    }

    /// A model of the vectors that `vector` gives and the first weight that `fill` writes.
    fn model(
        &self,
        vector: fn(&ParamVector) -> Vec<f32>,
        fill: impl FnOnce(&mut [f32], usize),
    ) -> RewardModel {
        let (inputs, outputs) = (self.first.inputs(), self.first.outputs());
        let mut weight = vec![0f32; inputs * outputs];
        fill(&mut weight, inputs);
        let mut layers = vec![Linear { weight, bias: vector(&self.first_bias), inputs, outputs }];
        let RewardSize { hidden, heads, .. } = self.size;
        layers.extend(self.second.as_ref().map(|[weight, bias]| Linear {
            weight: vector(weight),
            bias: vector(bias),
            inputs: hidden,
            outputs: heads,
        }));
        RewardModel { layers }
    }

    /// One pass over `pairs`.
    pub fn epoch(
        &mut self,
        isa: Isa,
        sides: [&Side<'_>; 2],
        pairs: &[PairRows],
        interrupt: &Interrupt,
    ) -> f64 {
        let batch = self.objective.batch;
        self.run(isa, sides, pairs, (batch, true), interrupt)
    }

    /// Loss and gradients of one batch.
    pub fn batch(&mut self, isa: Isa, sides: [&Side<'_>; 2], batch: &[PairRows]) -> f64 {
        self.run(isa, sides, batch, (batch.len(), false), &Interrupt::default())
    }

    /// Steps over `pairs`; gives the mean loss before each.
    fn run(
        &mut self,
        isa: Isa,
        sides: [&Side<'_>; 2],
        pairs: &[PairRows],
        (batch, learn): (usize, bool),
        interrupt: &Interrupt,
    ) -> f64 {
        let samples = Samples::new(isa, sides, &self.objective, &self.standardizer);
        self.first.reserve(samples.most_rows(batch.min(pairs.len())), false);
        let mut batches = pairs.chunks(batch);
        let (mut now, mut later) = (Step::default(), Step::default());
        let mut next = batches.next();
        let mut back = None;
        let mut mean = 0.0;
        if let Some(pairs) = next {
            samples.gather(pairs, &mut later);
        }
        loop {
            let fill = next.map(|_| Batch {
                samples: &samples,
                step: &later,
                fresh: back.is_none(),
                standardizer: &self.standardizer,
                noise: (self.objective.input_noise as f32, self.objective.seed, self.steps as u32),
            });
            let back_now =
                back.map(|update| Back { dy: self.scratch.wide.get(), rows: now.wide_rows(), update });
            self.first.pass(isa, back_now, fill.as_ref());
            let Some(batch) = next.filter(|_| !interrupt.is_raised()) else { break };
            std::mem::swap(&mut now, &mut later);
            self.steps += i32::from(learn);
            let update = match learn {
                true => Update::Adam(Rates::new(&self.objective.adam, self.steps)),
                false => Update::Keep,
            };
            next = batches.next();
            // What a step does on one thread leaves the others time to put the next batch in order.
            let (loss, ()) = rayon::join(
                || self.step(isa, &now, update),
                || {
                    if let Some(pairs) = next {
                        samples.gather(pairs, &mut later);
                    }
                },
            );
            mean += loss * batch.len() as f64 / pairs.len() as f64;
            back = Some(update);
        }
        mean
    }

    /// From the first layer's sums to the gradient by them, which stays in `scratch.wide`; everything but the first
    /// layer's weights takes its update.
    fn step(&mut self, isa: Isa, step: &Step, update: Update) -> f64 {
        let (panels, wide_rows, samples) = (self.first.panels(), step.wide_rows(), step.samples());
        let s = &mut self.scratch;
        s.wide.resize(self.first.precision(), panels, wide_rows);
        s.hidden.resize(panels * samples);
        let RewardSize { heads, hidden: units, .. } = self.size;
        s.shares.resize(panels * samples, 0.0);
        s.rewards.resize(heads * samples, 0.0);
        s.slopes.resize(heads * samples, 0.0);

        let sums = self.first.sums();
        let second = self.second.as_ref().map(|[weight, _]| &weight.w[..]);
        let tasks = s
            .wide
            .panels()
            .zip(s.hidden.chunks_exact_mut(samples).zip(s.shares.chunks_exact_mut(samples)))
            .zip(self.first_bias.w.iter())
            .enumerate()
            .map(|(panel, (((wide, _), (hidden, shares)), bias))| Forward {
                panel,
                step,
                sums,
                wide,
                hidden,
                shares,
                bias,
                second: second.map(|second| &second[panel]),
            });
        share(isa, tasks);

        match &self.second {
            Some([_, bias]) => {
                let bias = bias.w.as_flattened();
                for (head, rewards) in s.rewards.chunks_exact_mut(samples).enumerate() {
                    rewards.fill(bias[head]);
                    // An ensemble's heads are whole panels.
                    let (from, count) = (head * units / NR, units.div_ceil(NR));
                    for shares in s.shares[from * samples..][..count * samples].chunks_exact(samples) {
                        rewards.iter_mut().zip(shares).for_each(|(reward, share)| *reward += share);
                    }
                }
            }
            None => {
                for (head, rewards) in s.rewards.chunks_exact_mut(samples).enumerate() {
                    let rows = &s.hidden[head / NR * samples..][..samples];
                    rewards.iter_mut().zip(rows).for_each(|(reward, row)| *reward = row[head % NR]);
                }
            }
        }
        let pairs = step.slots.len() as f64;
        let mut loss = 0f64;
        let mut bias = vec![0f64; heads.next_multiple_of(NR)];
        for ((rewards, slopes), sum) in
            s.rewards.chunks_exact(samples).zip(s.slopes.chunks_exact_mut(samples)).zip(&mut bias)
        {
            for &[a, b] in &step.slots {
                let margin = f64::from(rewards[a as usize]) - f64::from(rewards[b as usize]);
                // -log sigmoid(margin), without overflow for either sign.
                loss += (-margin).max(0.0) + (-margin.abs()).exp().ln_1p();
                let slope = (-1.0 / (1.0 + margin.exp()) / pairs) as f32;
                slopes[a as usize] = slope;
                slopes[b as usize] = -slope;
                *sum += f64::from(slopes[a as usize]) + f64::from(slopes[b as usize]);
            }
        }
        let mut first = self.first_bias.weights();
        let mut second = None;
        if let Some([weight, second_bias]) = &mut self.second {
            second_bias.learn(isa, &bias, update);
            second = Some(weight.weights());
        }
        let mut tasks = Vec::with_capacity(panels);
        for (panel, ((wide, words), hidden)) in
            s.wide.panels().zip(s.hidden.chunks_exact_mut(samples)).enumerate()
        {
            let (bias, rest) = first.split(1);
            first = rest;
            let layer = match second.take() {
                Some(weights) => {
                    let (second_weight, rest) = weights.split(1);
                    second = Some(rest);
                    let slopes = &s.slopes[panel * NR / units * samples..][..samples];
                    HeadPanel::Mlp { second: second_weight, slopes }
                }
                None => HeadPanel::Linear(&s.slopes[panel * NR * samples..]),
            };
            tasks.push(Backward { step, wide, words, hidden, layer, bias, update });
        }
        share(isa, tasks);
        loss / pairs / heads as f64
    }
}

/// A panel of hidden units, forward.
struct Forward<'a> {
    panel: usize,
    step: &'a Step,
    sums: &'a Sums,
    wide: &'a mut [NrRow],
    hidden: &'a mut [NrRow],
    shares: &'a mut [f32],
    bias: &'a NrRow,
    /// None for linear heads, whose outputs are the rewards.
    second: Option<&'a NrRow>,
}

impl Task for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Forward { panel, step, sums, wide, hidden, shares, bias, second } = self;
        wide.fill(ZERO);
        sums.add_to(panel * wide.len(), wide);
        for (to, &base) in hidden.iter_mut().zip(&step.base) {
            *to = *bias;
            if base != NONE {
                to.iter_mut().zip(&wide[base as usize]).for_each(|(to, w)| *to += w);
            }
        }
        let folded = &mut hidden[step.whole..];
        let h = RowsRef { words: &step.hidden, count: folded.len(), stride: step.depth };
        gemm::product(simd, Precision::F32, h, &wide[..step.depth], panel, &mut Add(folded));
        let Some(second) = second else { return };
        simd.relu(hidden.as_flattened_mut());
        for (row, share) in hidden.iter().zip(shares) {
            let products: NrRow = std::array::from_fn(|i| row[i] * second[i]);
            *share = simd.sum(&products);
        }
    }
}

/// What follows a panel of the first layer.
enum HeadPanel<'a> {
    /// A part of one head's hidden units: their weights in the second layer, and the slopes of the loss by the head's
    /// rewards, `[samples]`.
    Mlp { second: Weights<'a>, slopes: &'a [f32] },
    /// A head for each column: slopes `[head][samples]` of this panel's heads and those behind it. Columns past the last
    /// head have none.
    Linear(&'a [f32]),
}

/// A panel of hidden units, backward.
struct Backward<'a> {
    step: &'a Step,
    wide: &'a mut [NrRow],
    /// Takes what `wide` is in words.
    words: &'a mut [NrRow],
    hidden: &'a mut [NrRow],
    layer: HeadPanel<'a>,
    bias: Weights<'a>,
    update: Update,
}

impl Task for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Backward { step, wide, words, hidden, layer, mut bias, update } = self;
        wide.fill(ZERO);
        // In F64, where a pair's opposite terms cancel exactly: Adam would make whole steps of what F32 leaves.
        let mut bias_sums = [0f64; NR];
        match layer {
            HeadPanel::Mlp { mut second, slopes } => {
                let (mut second_sums, weight) = ([0f64; NR], second.w[0]);
                for (row, &slope) in hidden.iter_mut().zip(slopes) {
                    let slope_wide = f64::from(slope);
                    for i in 0..NR {
                        second_sums[i] += slope_wide * f64::from(row[i]);
                    }
                    let made: NrRow =
                        std::array::from_fn(|i| if row[i] > 0.0 { slope * weight[i] } else { 0.0 });
                    for i in 0..NR {
                        bias_sums[i] += f64::from(made[i]);
                    }
                    *row = made;
                }
                second.learn(update).take(0, &[second_sums.map(|v| v as f32)]);
            }
            HeadPanel::Linear(slopes) => {
                hidden.fill(ZERO);
                for (i, slopes) in slopes.chunks_exact(hidden.len()).take(NR).enumerate() {
                    for (row, &slope) in hidden.iter_mut().zip(slopes) {
                        row[i] = slope;
                        bias_sums[i] += f64::from(slope);
                    }
                }
            }
        }
        for (row, &base) in hidden.iter().zip(&step.base) {
            if base != NONE {
                wide[base as usize].iter_mut().zip(row).for_each(|(to, g)| *to += g);
            }
        }
        let folded = &hidden[step.whole..];
        let h = RowsRef { words: &step.transposed, count: step.depth, stride: step.transposed_stride() };
        gemm::product(simd, Precision::F32, h, folded, 0, &mut Keep(&mut wide[..step.depth]));
        pack_pairs(simd, wide, words);
        bias.learn(update).take(0, &[bias_sums.map(|v| v as f32)]);
    }
}
