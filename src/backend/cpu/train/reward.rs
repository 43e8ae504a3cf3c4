//! Reward training. The first layer takes one pass over its weights a step (`wide.rs`); the narrow rest runs by panels
//! of 32 hidden units.

use std::ops::Range;

use super::adam::{ParamVector, Rates, Update, Weights};
use super::linear::{Back, Fill, FusedLinear, Operand, STRIDE, Sums};
use super::samples::{NONE, Samples, Side, Step};
use super::share;
use crate::backend::cpu::gemm::{self, Add, AlignedRows, Keep, ZERO, pack_pairs};
use crate::backend::{PairRows, Precision, RewardObjective};
use crate::model::{Linear, RewardModel, Standardizer};
use crate::simd::{Isa, NR, NrRow, RowsRef, Simd, Task};

/// Parameters, moments and scratch.
#[derive(Debug)]
pub struct RewardTrainer {
    first: FusedLinear,
    first_bias: ParamVector,
    second: ParamVector,
    second_bias: ParamVector,
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
    /// Each panel's share of the rewards, `[panel][samples]`.
    shares: Vec<f32>,
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
}

impl Fill for Batch<'_> {
    fn rows(&self) -> usize {
        self.step.wide_rows()
    }

    #[inline(always)]
    fn fill(&self, columns: Range<usize>, block: &mut [f32], kept: bool) {
        let (folded, rest) = block.split_at_mut(self.step.depth * STRIDE);
        if self.fresh || !kept {
            for (row, to) in folded.chunks_exact_mut(STRIDE).enumerate() {
                to[..columns.len()].copy_from_slice(self.samples.decoder_row(row, columns.clone()));
            }
        }
        for (row, to) in rest.chunks_exact_mut(STRIDE).enumerate() {
            let to = &mut to[..columns.len()];
            self.samples.widen(self.step, row, columns.clone(), to);
            self.standardizer.apply_to(columns.clone(), to);
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
        let [first, second] = &initial.layers;
        RewardTrainer {
            first: FusedLinear::new(first.inputs, first.outputs, precision, |o, i| {
                first.weight[o * first.inputs + i]
            }),
            first_bias: ParamVector::new(&first.bias, 0),
            second: ParamVector::new(&second.weight, 0),
            second_bias: ParamVector::new(&second.bias, 0),
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
        let (inputs, outputs) = (self.first.inputs(), self.first.outputs());
        let mut weight = vec![0f32; inputs * outputs];
        self.first.each_weight(|o, i, w| weight[o * inputs + i] = w);
        let second = Linear {
            weight: self.second.values(),
            bias: self.second_bias.values(),
            inputs: outputs,
            outputs: 1,
        };
        RewardModel { layers: [Linear { weight, bias: self.first_bias.values(), inputs, outputs }, second] }
    }

    /// The gradients of the last batch.
    pub fn gradients(&self) -> RewardModel {
        let (inputs, outputs) = (self.first.inputs(), self.first.outputs());
        let mut weight = vec![0f32; inputs * outputs];
        self.first.each_gradient(|o, i, g| weight[o * inputs + i] = g);
        let second = Linear {
            weight: self.second.gradients(),
            bias: self.second_bias.gradients(),
            inputs: outputs,
            outputs: 1,
        };
        RewardModel {
            layers: [Linear { weight, bias: self.first_bias.gradients(), inputs, outputs }, second],
        }
    }

    /// One pass over `pairs`.
    pub fn epoch(&mut self, isa: Isa, sides: [&Side<'_>; 2], pairs: &[PairRows]) -> f64 {
        let batch = self.objective.batch;
        self.run(isa, sides, pairs, batch, true)
    }

    /// Loss and gradients of one batch.
    pub fn batch(&mut self, isa: Isa, sides: [&Side<'_>; 2], batch: &[PairRows]) -> f64 {
        self.run(isa, sides, batch, batch.len(), false)
    }

    /// Steps over `pairs`; gives the mean loss before each.
    fn run(&mut self, isa: Isa, sides: [&Side<'_>; 2], pairs: &[PairRows], batch: usize, learn: bool) -> f64 {
        let samples = Samples::new(isa, sides, self.objective.synthetic, &self.standardizer);
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
            });
            let back_now =
                back.map(|update| Back { dy: self.scratch.wide.get(), rows: now.wide_rows(), update });
            self.first.pass(isa, back_now, fill.as_ref());
            let Some(batch) = next else { break };
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
        s.shares.resize(panels * samples, 0.0);
        s.rewards.resize(samples, 0.0);
        s.slopes.resize(samples, 0.0);

        let sums = self.first.sums();
        let tasks = s
            .wide
            .panels()
            .zip(s.hidden.chunks_exact_mut(samples).zip(s.shares.chunks_exact_mut(samples)))
            .zip(self.first_bias.w.iter().zip(&*self.second.w))
            .enumerate()
            .map(|(panel, (((wide, _), (hidden, shares)), (bias, head)))| Forward {
                panel,
                step,
                sums,
                wide,
                hidden,
                shares,
                bias,
                head,
            });
        share(isa, tasks);

        s.rewards.fill(self.second_bias.w[0][0]);
        for shares in s.shares.chunks_exact(samples) {
            s.rewards.iter_mut().zip(shares).for_each(|(reward, share)| *reward += share);
        }
        let pairs = step.slots.len() as f64;
        let (mut loss, mut sum) = (0f64, 0f64);
        for &[a, b] in &step.slots {
            let margin = f64::from(s.rewards[a as usize]) - f64::from(s.rewards[b as usize]);
            // -log sigmoid(margin), without overflow for either sign.
            loss += (-margin).max(0.0) + (-margin.abs()).exp().ln_1p();
            let slope = (-1.0 / (1.0 + margin.exp()) / pairs) as f32;
            s.slopes[a as usize] = slope;
            s.slopes[b as usize] = -slope;
            sum += f64::from(s.slopes[a as usize]) + f64::from(s.slopes[b as usize]);
        }
        let mut bias = [0f64; NR];
        bias[0] = sum;
        self.second_bias.learn(isa, &bias, update);

        let mut first = self.first_bias.weights();
        let mut second = self.second.weights();
        let mut tasks = Vec::with_capacity(panels);
        for ((wide, words), hidden) in s.wide.panels().zip(s.hidden.chunks_exact_mut(samples)) {
            let ((bias, rest), (head, others)) = (first.split(1), second.split(1));
            (first, second) = (rest, others);
            tasks.push(Backward { step, wide, words, hidden, slopes: &s.slopes, bias, head, update });
        }
        share(isa, tasks);
        loss / pairs
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
    head: &'a NrRow,
}

impl Task for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Forward { panel, step, sums, wide, hidden, shares, bias, head } = self;
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
        simd.relu(hidden.as_flattened_mut());
        for (row, share) in hidden.iter().zip(shares) {
            let products: NrRow = std::array::from_fn(|i| row[i] * head[i]);
            *share = simd.sum(&products);
        }
    }
}

/// A panel of hidden units, backward.
struct Backward<'a> {
    step: &'a Step,
    wide: &'a mut [NrRow],
    /// Takes what `wide` is in words.
    words: &'a mut [NrRow],
    hidden: &'a mut [NrRow],
    slopes: &'a [f32],
    bias: Weights<'a>,
    head: Weights<'a>,
    update: Update,
}

impl Task for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Backward { step, wide, words, hidden, slopes, mut bias, mut head, update } = self;
        wide.fill(ZERO);
        // In F64, where a pair's opposite terms cancel exactly: Adam would make whole steps of what F32 leaves.
        let (mut head_sums, mut bias_sums) = ([0f64; NR], [0f64; NR]);
        let weight = head.w[0];
        for (row, &slope) in hidden.iter_mut().zip(slopes) {
            let slope_wide = f64::from(slope);
            for i in 0..NR {
                head_sums[i] += slope_wide * f64::from(row[i]);
            }
            let made: NrRow = std::array::from_fn(|i| if row[i] > 0.0 { slope * weight[i] } else { 0.0 });
            for i in 0..NR {
                bias_sums[i] += f64::from(made[i]);
            }
            *row = made;
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
        head.learn(update).take(0, &[head_sums.map(|v| v as f32)]);
    }
}
