//! VAE training: the wide layers at either end in one pass each over their weights, the narrow ones latent_block them.

use std::ops::Range;

use super::adam::{ParamVector, Rates, Update};
use super::latent_block::{Batch, LatentBlock, ToPanel};
use super::linear::{Back, Fill, FusedLinear, Operand, STRIDE};
use super::narrow::NarrowLinear;
use super::output_layer::{OutputLayer, Target};
use super::share;
use crate::backend::{Precision, Reduction, VaeLoss, VaeObjective};
use crate::interrupt::Interrupt;
use crate::matrix::RowSet;
use crate::model::{Linear, Standardizer, Vae};
use crate::noise::Side;
use crate::simd::{Isa, NR, Simd};

/// Parameters, moments and scratch.
#[derive(Debug)]
pub struct VaeTrainer {
    /// d -> hidden.
    first: FusedLinear,
    first_bias: ParamVector,
    /// hidden -> 2 latent, latent -> hidden.
    middle: [NarrowLinear; 2],
    /// hidden -> d.
    last: OutputLayer,
    objective: VaeObjective,
    standardizer: Standardizer,
    steps: i32,
    scratch: Scratch,
}

/// What a batch needs latent_block the wide layers.
#[derive(Debug, Default)]
struct Scratch {
    latent_block: LatentBlock,
    /// Gradient by the first layer's outputs.
    back: Operand,
    /// The decoder's hidden layer times the slope of the loss.
    hidden: Operand,
    /// Rows of `back`.
    rows: usize,
    /// Sums of `back` over rows.
    bias: Vec<f64>,
}

/// The seed pairs that a batch names, standardised.
struct Inputs<'a> {
    sides: [&'a RowSet<'a>; 2],
    rows: &'a [u32],
    standardizer: &'a Standardizer,
}

impl Inputs<'_> {
    /// Side and seed row of row r of the batch.
    fn place(&self, r: usize) -> (Side, u32) {
        (Side::BOTH[r / self.rows.len()], self.rows[r % self.rows.len()])
    }
}

impl Fill for Inputs<'_> {
    fn rows(&self) -> usize {
        2 * self.rows.len()
    }

    #[inline(always)]
    fn fill<S: Simd>(&self, _: S, columns: Range<usize>, block: &mut [f32], _: bool) {
        for (r, to) in block.chunks_exact_mut(STRIDE).enumerate() {
            let (side, row) = self.place(r);
            let to = &mut to[..columns.len()];
            self.sides[side as usize].row(row as usize).slice(columns.clone()).widen(to);
            self.standardizer.apply_to(columns.clone(), to);
        }
    }
}

impl VaeTrainer {
    /// Starts from a model for standardised embeddings.
    pub fn new(
        initial: &Vae,
        standardizer: &Standardizer,
        objective: &VaeObjective,
        precision: Precision,
    ) -> VaeTrainer {
        let [first, second] = &initial.encoder;
        let [third, last] = &initial.decoder;
        VaeTrainer {
            first: FusedLinear::new(first.inputs, first.outputs, precision, |o, i| {
                first.weight[o * first.inputs + i]
            }),
            first_bias: ParamVector::new(&first.bias, 0),
            middle: [NarrowLinear::new(second), NarrowLinear::new(third)],
            last: OutputLayer::new(last, precision),
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

    fn latent(&self) -> usize {
        self.middle[1].linear.inputs
    }

    /// The parameters.
    pub fn parameters(&self) -> Vae {
        let [second, third] = self.middle.each_ref().map(|d| d.linear.clone());
        let bias = self.first_bias.values();
        let first = self.first_layer(bias, |weight, inputs| {
            self.first.each_weight(|o, i, w| weight[o * inputs + i] = w);
        });
        Vae { encoder: [first, second], decoder: [third, self.last.parameters()] }
    }

    /// The gradients of the last batch.
    pub fn gradients(&self) -> Vae {
        let [second, third] = self.middle.each_ref().map(|d| d.gradient.clone());
        let bias = self.first_bias.gradients();
        let first = self.first_layer(bias, |weight, inputs| {
            self.first.each_gradient(|o, i, w| weight[o * inputs + i] = w);
        });
        Vae { encoder: [first, second], decoder: [third, self.last.gradients()] }
    }

    fn first_layer(&self, bias: Vec<f32>, fill: impl FnOnce(&mut [f32], usize)) -> Linear {
        let (inputs, outputs) = (self.first.inputs(), self.first.outputs());
        let mut weight = vec![0f32; inputs * outputs];
        fill(&mut weight, inputs);
        Linear { weight, bias, inputs, outputs }
    }

    /// One pass over `order`.
    pub fn epoch(
        &mut self,
        isa: Isa,
        sides: [&RowSet<'_>; 2],
        order: &[u32],
        epoch: u32,
        interrupt: &Interrupt,
    ) -> VaeLoss {
        let mut mean = VaeLoss::default();
        let batches: Vec<&[u32]> = order.chunks(self.objective.batch).collect();
        self.first.reserve(2 * batches[0].len(), true);
        self.first_pass(isa, None, sides, Some(batches[0]));
        for (i, batch) in batches.iter().enumerate() {
            if interrupt.is_raised() {
                break;
            }
            self.steps += 1;
            let update = Update::Adam(Rates::new(&self.objective.adam, self.steps));
            let loss = self.step(isa, batch, epoch, update);
            mean.add_scaled(&loss, batch.len() as f64 / order.len() as f64);
            for layer in &mut self.middle {
                layer.step(&self.objective.adam, self.steps);
            }
            self.first_pass(isa, Some(update), sides, batches.get(i + 1).copied());
        }
        mean
    }

    /// Loss and gradients of one batch.
    pub fn batch(&mut self, isa: Isa, sides: [&RowSet<'_>; 2], batch: &[u32], epoch: u32) -> VaeLoss {
        self.first.reserve(2 * batch.len(), true);
        self.first_pass(isa, None, sides, Some(batch));
        let loss = self.step(isa, batch, epoch, Update::Keep);
        self.first_pass(isa, Some(Update::Keep), sides, None);
        loss
    }

    fn first_pass(&mut self, isa: Isa, back: Option<Update>, sides: [&RowSet<'_>; 2], next: Option<&[u32]>) {
        let back = back.map(|update| Back { dy: self.scratch.back.get(), rows: self.scratch.rows, update });
        let next = next.map(|rows| Inputs { sides, rows, standardizer: &self.standardizer });
        self.first.pass(isa, back, next.as_ref());
    }

    /// From the first layer's sums to the gradient by them, which stays in `scratch.back`. The last layer and the
    /// first one's bias take their updates, the middle ones keep their gradients.
    fn step(&mut self, isa: Isa, batch: &[u32], epoch: u32, update: Update) -> VaeLoss {
        let (pairs, rows) = (batch.len(), 2 * batch.len());
        let (dim, latent, hidden) = (self.dim(), self.latent(), self.first.outputs());
        let (panels, precision) = (self.first.panels(), self.first.precision());
        let (objective, middle) = (self.objective, &self.middle);
        let batch = Batch { isa, middle, pairs: batch, seed: objective.seed, epoch };
        let Scratch { latent_block, back, rows: back_rows, hidden: operand, bias } = &mut self.scratch;
        *back_rows = rows;
        latent_block.resize(batch, precision == Precision::Bf16);
        back.resize(precision, panels, rows);
        operand.resize(precision, panels, rows);
        bias.resize(panels * NR, 0.0);
        let scale = match objective.reconstruction {
            Reduction::Mean => 1.0 / dim as f64,
            Reduction::Sum => 1.0,
        };
        let slope = 2.0 * scale / pairs as f64;

        latent_block.forward(batch, self.first.sums(), &self.first_bias);
        let (values, factor) = (&latent_block.decoder_hidden[..], slope as f32);
        share(
            isa,
            operand.panels().enumerate().map(|(panel, (packed, words))| ToPanel {
                panel,
                rows: values,
                width: hidden,
                slope: factor,
                packed,
                words,
                sums: None,
            }),
        );
        let (blocks, size) = self.first.blocks();
        let target = Target { blocks, size, slope };
        let (inputs, divergences) = latent_block.divergences(batch, precision);
        let (squares, mut loss) = rayon::join(
            || self.last.pass(isa, inputs, operand.get(), target, update),
            || divergences.take(pairs, latent, &objective),
        );
        loss.reconstruction = scale * squares / pairs as f64;
        loss.total = loss.reconstruction + objective.beta * loss.kl + objective.gamma * loss.divergence;

        latent_block.backward(batch, self.last.sums(), factor);
        let values = &latent_block.dencoder[..];
        let panels = back.panels().zip(bias.chunks_exact_mut(NR)).enumerate();
        let panels = panels.map(|(panel, ((packed, words), sums))| ToPanel {
            panel,
            rows: values,
            width: hidden,
            slope: 1.0,
            packed,
            words,
            sums: Some(sums),
        });
        rayon::join(|| latent_block.gradients(isa, &mut self.middle), || share(isa, panels));
        self.first_bias.learn(isa, bias, update);
        loss
    }
}
