//! Reward training on originals and on synthetic samples, which are decoded as they are needed.

use rayon::prelude::*;

use super::infer::{Base, PackedVae, decode};
use super::latent::Posteriors;
use super::layers::{Dense, relu_backward};
use super::simd::Level;
use crate::backend::{PairRows, RewardObjective};
use crate::matrix::{RowSet, ValuesMut};
use crate::model::{RewardModel, Standardizer};

/// Parameters, moments and scratch.
#[derive(Debug)]
pub struct RewardTrainer {
    layers: [Dense; 2],
    objective: RewardObjective,
    standardizer: Standardizer,
    steps: i32,
    scratch: Scratch,
}

/// Activations and gradients of one batch; the first half of the rows is the chosen side.
#[derive(Debug, Default)]
struct Scratch {
    x: Vec<f32>,
    hidden: Vec<f32>,
    reward: Vec<f32>,
    dreward: Vec<f32>,
    dhidden: Vec<f32>,
    decoded: Vec<f32>,
}

/// One side of the training rows.
pub struct Rows<'a> {
    /// Rows below this set's length are its rows.
    pub originals: &'a RowSet<'a>,
    /// The rest are decoded latents.
    pub synthetic: Option<SyntheticRows<'a>>,
}

/// Latents to decode.
pub struct SyntheticRows<'a> {
    /// The decoder.
    pub vae: &'a PackedVae,
    /// Latents, `[samples, latent]`.
    pub z: &'a [f32],
    /// Seed row of each latent.
    pub rows: &'a [u32],
    /// Seeds' embeddings and posteriors, for residual decoding.
    pub residual: Option<(&'a RowSet<'a>, &'a Posteriors)>,
}

impl Rows<'_> {
    /// Widens the wanted rows into `x`, `[wanted, d]`.
    fn gather(&self, level: Level, wanted: &[u32], x: &mut [f32], decoded: &mut Vec<f32>) {
        let (dim, originals) = (self.originals.cols(), self.originals.rows());
        if let Some(s) = &self.synthetic {
            let latent = s.vae.size().latent;
            let ids: Vec<usize> = wanted
                .iter()
                .filter(|&&r| r as usize >= originals)
                .map(|&r| r as usize - originals)
                .collect();
            let z: Vec<f32> = ids.iter().flat_map(|&j| &s.z[j * latent..(j + 1) * latent]).copied().collect();
            let rows: Vec<u32> = ids.iter().map(|&j| s.rows[j]).collect();
            decoded.resize(ids.len() * dim, 0.0);
            let base = s.residual.map(|(embeddings, p)| Base { embeddings, mu: &p.mu, rows: &rows });
            decode(level, s.vae, &z, base, ValuesMut::F32(decoded));
        }
        // The decoded rows stand in the order in which they are wanted.
        let mut made = 0;
        let source: Vec<Result<usize, usize>> = wanted
            .iter()
            .map(|&r| {
                let synthetic = r as usize >= originals;
                made += usize::from(synthetic);
                if synthetic { Err(made - 1) } else { Ok(r as usize) }
            })
            .collect();
        let decoded = &*decoded;
        x.par_chunks_mut(dim).zip(source).for_each(|(x, source)| match source {
            Ok(row) => self.originals.row(row).widen(x),
            Err(j) => x.copy_from_slice(&decoded[j * dim..(j + 1) * dim]),
        });
    }
}

impl RewardTrainer {
    /// Starts from a model for standardised embeddings.
    pub fn new(
        initial: &RewardModel,
        standardizer: &Standardizer,
        objective: &RewardObjective,
    ) -> RewardTrainer {
        RewardTrainer {
            layers: initial.layers.each_ref().map(Dense::new),
            objective: *objective,
            standardizer: standardizer.clone(),
            steps: 0,
            scratch: Scratch::default(),
        }
    }

    /// Dimension of the embeddings.
    pub fn dim(&self) -> usize {
        self.layers[0].linear.inputs
    }

    /// The parameters.
    pub fn parameters(&self) -> RewardModel {
        RewardModel { layers: self.layers.each_ref().map(|d| d.linear.clone()) }
    }

    /// The gradients of the last batch.
    pub fn gradients(&self) -> RewardModel {
        RewardModel { layers: self.layers.each_ref().map(|d| d.gradient.clone()) }
    }

    /// One pass over `pairs`.
    pub fn epoch(&mut self, level: Level, sides: [&Rows<'_>; 2], pairs: &[PairRows], threads: usize) -> f64 {
        let mut mean = 0.0;
        for batch in pairs.chunks(self.objective.batch) {
            mean += self.batch(level, sides, batch, threads) * batch.len() as f64 / pairs.len() as f64;
            self.steps += 1;
            for layer in &mut self.layers {
                layer.step(&self.objective.adam, self.steps);
            }
        }
        mean
    }

    /// Loss and gradients of one batch.
    pub fn batch(&mut self, level: Level, sides: [&Rows<'_>; 2], batch: &[PairRows], threads: usize) -> f64 {
        let pairs = batch.len();
        let (dim, hidden) = (self.dim(), self.layers[0].linear.outputs);
        let s = &mut self.scratch;
        s.x.resize(2 * pairs * dim, 0.0);
        s.hidden.resize(2 * pairs * hidden, 0.0);
        s.dhidden.resize(2 * pairs * hidden, 0.0);
        s.reward.resize(2 * pairs, 0.0);
        s.dreward.resize(2 * pairs, 0.0);
        for (side, x) in s.x.chunks_exact_mut(pairs * dim).enumerate() {
            let wanted: Vec<u32> = batch.iter().map(|p| p[side]).collect();
            sides[side].gather(level, &wanted, x, &mut s.decoded);
        }
        let standardizer = &self.standardizer;
        s.x.par_chunks_mut(dim).for_each(|x| standardizer.apply(x));

        self.layers[0].forward(&s.x, &mut s.hidden, true, threads);
        self.layers[1].forward(&s.hidden, &mut s.reward, false, threads);
        let mut loss = 0f64;
        for i in 0..pairs {
            let margin = f64::from(s.reward[i]) - f64::from(s.reward[pairs + i]);
            // -log sigmoid(margin), without overflow for either sign.
            loss += (-margin).max(0.0) + (-margin.abs()).exp().ln_1p();
            let slope = -1.0 / (1.0 + margin.exp()) / pairs as f64;
            s.dreward[i] = slope as f32;
            s.dreward[pairs + i] = -slope as f32;
        }
        self.layers[1].gradients(&s.hidden, &s.dreward, threads);
        self.layers[1].backward(&s.dreward, &mut s.dhidden, threads);
        relu_backward(&s.hidden, &mut s.dhidden);
        self.layers[0].gradients(&s.x, &s.dhidden, threads);
        loss / pairs as f64
    }
}
