//! The samples of reward training. A decoded sample is D h + c behind the decoder's hidden layer h, D and c the last
//! layer, standardised. So with W the reward model's first layer W (D h + c) = (W D) h + W c: only the hidden + 1
//! columns of D and c, and the originals, pass through d dimensions.

use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;

use crate::backend::cpu::gemm::{self, Keep, ZERO, pad_rows, transpose};
use crate::backend::cpu::infer::{Base, PackedVae, decode};
use crate::backend::cpu::latents::{LatentRows, Posteriors};
use crate::backend::{PairRows, Precision, RewardObjective, SyntheticPath};
use crate::interrupt::Interrupt;
use crate::matrix::{RowSet, ValuesMut};
use crate::model::{Linear, Standardizer};
use crate::simd::{Isa, NR, NrRow, RowsRef, Simd, Task, VLEN};

/// No row.
pub const NONE: u32 = u32::MAX;

/// One side of the training rows.
pub struct Side<'a> {
    /// Rows below this set's length are its rows.
    pub originals: &'a RowSet<'a>,
    /// The rest are latents.
    pub synthetic: Option<SyntheticSide<'a>>,
}

/// Synthetic samples as latents.
pub struct SyntheticSide<'a> {
    /// The decoder.
    pub vae: &'a PackedVae,
    /// Latents, `[samples, latent]`.
    pub z: &'a [f32],
    /// Seed row of each latent.
    pub rows: &'a [u32],
    /// Seeds' embeddings and posteriors, for residual decoding.
    pub residual: Option<(&'a RowSet<'a>, &'a Posteriors)>,
}

/// The samples of both sides, ready to be gathered.
pub struct Samples<'a> {
    sides: [&'a Side<'a>; 2],
    isa: Isa,
    folded: Option<Folded<'a>>,
    dim: usize,
    /// Whether every sample has a row of its own in d dimensions, which noise is added to.
    noisy: bool,
}

/// A decoder, folded.
struct Folded<'a> {
    first: &'a Linear,
    /// The first layer, `[panel][latent][NR]`, and its bias.
    panels: Vec<NrRow>,
    bias: Vec<NrRow>,
    /// D and c, transposed: `[hidden + 1, d]`.
    rows: Vec<f32>,
}

/// The samples of one step: those with embeddings of their own first, then the folded ones.
#[derive(Debug, Default)]
pub struct Step {
    /// Samples of each pair.
    pub slots: Vec<[u32; 2]>,
    /// The row of each sample among those that pass through d dimensions, or [`NONE`].
    pub base: Vec<u32>,
    /// Number of samples with embeddings of their own.
    pub whole: usize,
    /// Rows of the decoder: hidden + 1, or 0 where nothing is folded.
    pub depth: usize,
    /// Of folded samples: the hidden layer (residual: less that of the seed's mean), then what c counts:
    /// `[folded, depth]`.
    pub hidden: Vec<f32>,
    /// The same transposed, `[depth][transposed_stride]`.
    pub transposed: Vec<f32>,
    /// What passes through d dimensions behind the decoder: a set and its row.
    wide: Vec<(Set, u32)>,
    /// Side and pair of each of those rows, where noise is added.
    pub owners: Vec<[u32; 2]>,
    /// Samples of [`Set::Decoded`], `[samples, d]`.
    decoded: Vec<f32>,
}

/// A set of rows in d dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Set {
    /// Originals of a side.
    Originals(usize),
    /// Seeds of a side's residual samples, where those are not the originals.
    Seeds(usize),
    /// The step's own decoded samples.
    Decoded,
    /// Zeros: folded samples that have nothing in d dimensions but noise.
    Zeros,
}

impl Step {
    /// Rows that pass through d dimensions.
    pub fn wide_rows(&self) -> usize {
        self.depth + self.wide.len()
    }

    /// Number of folded samples.
    pub fn folded(&self) -> usize {
        self.samples() - self.whole
    }

    /// Distance of rows of [`Step::transposed`].
    pub fn transposed_stride(&self) -> usize {
        self.folded().next_multiple_of(VLEN)
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.base.len()
    }
}

impl<'a> Samples<'a> {
    /// Folds the decoder, if that is the path and the sides share it.
    pub fn new(
        isa: Isa,
        sides: [&'a Side<'a>; 2],
        objective: &RewardObjective,
        standardizer: &Standardizer,
    ) -> Samples<'a> {
        let mut vaes = sides.iter().filter_map(|s| s.synthetic.as_ref()).map(|s| s.vae);
        let first = vaes.next();
        let shared = vaes.all(|vae| first.is_some_and(|first| std::ptr::eq(first, vae)));
        let folded = first
            .filter(|_| shared && objective.synthetic == SyntheticPath::Folded)
            .map(|vae| Folded::new(vae, standardizer));
        Samples { sides, isa, folded, dim: standardizer.mean.len(), noisy: objective.input_noise > 0.0 }
    }

    /// Most rows in d dimensions that a step of so many pairs has.
    pub fn most_rows(&self, pairs: usize) -> usize {
        2 * pairs + self.folded.as_ref().map_or(0, |f| f.first.outputs + 1)
    }

    /// Columns of row `row` of the decoder, standardised.
    #[inline(always)]
    pub fn decoder_row(&self, row: usize, columns: Range<usize>) -> &[f32] {
        let rows = self.folded.as_ref().map_or(&[][..], |f| &f.rows);
        &rows[row * self.dim..][columns]
    }

    /// Columns of a row that passes through d dimensions behind the decoder, standardised.
    #[inline(always)]
    pub fn standardized(
        &self,
        step: &Step,
        row: usize,
        columns: Range<usize>,
        standardizer: &Standardizer,
        out: &mut [f32],
    ) {
        let (set, row) = step.wide[row];
        let stored = match set {
            Set::Originals(side) => Some(self.sides[side].originals),
            Set::Seeds(side) => self.sides[side].synthetic.as_ref().and_then(|s| s.residual).map(|r| r.0),
            Set::Decoded | Set::Zeros => None,
        };
        match stored {
            Some(rows) => rows.row(row as usize).slice(columns.clone()).widen(out),
            None if set == Set::Zeros => return out.fill(0.0),
            None => out.copy_from_slice(&step.decoded[row as usize * self.dim..][columns.clone()]),
        }
        standardizer.apply_to(columns, out);
    }

    /// Puts the samples of a batch in order.
    pub fn gather(&self, pairs: &[PairRows], step: &mut Step) {
        step.depth = self.folded.as_ref().map_or(0, |f| f.first.outputs + 1);
        step.wide.clear();
        step.owners.clear();
        step.slots.clear();
        step.slots.resize(pairs.len(), [NONE; 2]);
        step.base.clear();
        step.base.resize(2 * pairs.len(), NONE);
        let mut known = HashMap::with_capacity(2 * pairs.len());
        let mut latents: [Vec<u32>; 2] = Default::default();
        let (mut whole, mut folded) = (0, 2 * pairs.len());
        for (number, (pair, slots)) in pairs.iter().zip(&mut step.slots).enumerate() {
            for side in 0..2 {
                let (row, originals) = (pair[side], self.sides[side].originals.rows() as u32);
                let made = (row >= originals).then(|| row - originals);
                // From both ends: whole samples forward, folded ones backward.
                let at = match made {
                    Some(_) if self.folded.is_some() => {
                        folded -= 1;
                        folded
                    }
                    _ => {
                        whole += 1;
                        whole - 1
                    }
                };
                slots[side] = at as u32;
                let wide = match made {
                    None => Some((Set::Originals(side), row)),
                    Some(latent) if self.folded.is_some() => match self.seed(side, latent) {
                        None if self.noisy => Some((Set::Zeros, 0)),
                        seed => seed,
                    },
                    Some(latent) => {
                        latents[side].push(latent);
                        None
                    }
                };
                let next = (step.depth + step.wide.len()) as u32;
                if let Some(key) = wide.filter(|_| self.noisy) {
                    step.wide.push(key);
                    step.owners.push([side as u32, number as u32]);
                    step.base[at] = next;
                } else if let Some(key) = wide {
                    step.base[at] = *known.entry(key).or_insert_with(|| {
                        step.wide.push(key);
                        next
                    });
                }
            }
        }
        step.whole = whole;
        match &self.folded {
            Some(f) => self.hide(f, pairs, step),
            None => self.decode(pairs, &latents, step),
        }
    }

    /// The seed that a residual sample is added to.
    fn seed(&self, side: usize, latent: u32) -> Option<(Set, u32)> {
        let s = self.sides[side].synthetic.as_ref()?;
        let (seeds, _) = s.residual?;
        let set = match std::ptr::eq(seeds, self.sides[side].originals) {
            true => Set::Originals(side),
            false => Set::Seeds(side),
        };
        Some((set, s.rows[latent as usize]))
    }

    /// Fills in the hidden layers of folded samples.
    fn hide(&self, f: &Folded<'_>, pairs: &[PairRows], step: &mut Step) {
        let (depth, latent) = (step.depth, f.first.inputs);
        let folded = step.base.len() - step.whole;
        // Latents of the samples, and behind them, where residual, the means of their seeds.
        let mut z = vec![0f32; 2 * folded * latent];
        let mut residual = vec![false; folded];
        for (pair, slots) in pairs.iter().zip(&step.slots) {
            for side in 0..2 {
                let Some(j) = self.latent(side, pair[side]) else { continue };
                let s = self.sides[side].synthetic.as_ref().expect("rows past the originals are samples");
                let at = slots[side] as usize - step.whole;
                z[at * latent..][..latent].copy_from_slice(&s.z[j * latent..][..latent]);
                if let Some((_, posteriors)) = s.residual {
                    let mean = &posteriors.mu[s.rows[j] as usize * latent..][..latent];
                    z[(folded + at) * latent..][..latent].copy_from_slice(mean);
                    residual[at] = true;
                }
            }
        }
        step.hidden.resize(folded * depth, 0.0);
        let stride = step.transposed_stride();
        step.transposed.resize(depth * stride, 0.0);
        let (out, transposed) = (&mut step.hidden, (&mut step.transposed[..], stride));
        self.isa.run(Hide { f, z: &z, residual: &residual, depth, out, transposed });
    }

    /// The latent that a row is, if it is one.
    fn latent(&self, side: usize, row: u32) -> Option<usize> {
        (row as usize).checked_sub(self.sides[side].originals.rows())
    }

    /// Decodes samples in d dimensions.
    fn decode(&self, pairs: &[PairRows], latents: &[Vec<u32>; 2], step: &mut Step) {
        step.hidden.clear();
        let counts = latents.each_ref().map(Vec::len);
        step.decoded.resize((counts[0] + counts[1]) * self.dim, 0.0);
        let (chosen, rejected) = step.decoded.split_at_mut(counts[0] * self.dim);
        for (side, out) in [chosen, rejected].into_iter().enumerate() {
            let Some(s) = self.sides[side].synthetic.as_ref().filter(|_| counts[side] > 0) else { continue };
            let latent = s.vae.size().latent;
            let z: Vec<f32> = latents[side]
                .iter()
                .flat_map(|&j| &s.z[j as usize * latent..(j as usize + 1) * latent])
                .copied()
                .collect();
            let rows: Vec<u32> = latents[side].iter().map(|&j| s.rows[j as usize]).collect();
            let base = s.residual.map(|(embeddings, p)| Base { embeddings, mu: &p.mu, rows: &rows });
            let z = LatentRows::Values(&z, latent);
            decode(self.isa, s.vae, z, base, ValuesMut::F32(out), &Interrupt::default());
        }
        // The decoded rows of a side stand in the order of its pairs.
        let mut made = [0, counts[0]];
        for (number, (pair, slots)) in pairs.iter().zip(&step.slots).enumerate() {
            for side in 0..2 {
                if self.latent(side, pair[side]).is_some() {
                    if self.noisy {
                        step.owners.push([side as u32, number as u32]);
                    }
                    step.base[slots[side] as usize] = (step.depth + step.wide.len()) as u32;
                    step.wide.push((Set::Decoded, made[side] as u32));
                    made[side] += 1;
                }
            }
        }
    }
}

impl<'a> Folded<'a> {
    /// D = W_d / std and c = (b_d - mean) / std, in F64, rounded once.
    fn new(vae: &'a PackedVae, standardizer: &Standardizer) -> Folded<'a> {
        let [first, last] = &vae.model().decoder;
        let (dim, hidden, Standardizer { mean, std }) = (last.outputs, last.inputs, standardizer);
        let mut rows = vec![0f32; (hidden + 1) * dim];
        rows.par_chunks_mut(dim).enumerate().for_each(|(h, row)| {
            for (i, to) in row.iter_mut().enumerate() {
                let value = match h == hidden {
                    true => f64::from(last.bias[i]) - f64::from(mean[i]),
                    false => f64::from(last.weight[i * hidden + h]),
                };
                *to = (value / f64::from(std[i])) as f32;
            }
        });
        let latent = first.inputs;
        let mut panels = vec![ZERO; first.outputs.div_ceil(NR) * latent];
        for (h, weights) in first.weight.chunks_exact(latent).enumerate() {
            for (row, &w) in panels[h / NR * latent..].iter_mut().zip(weights) {
                row[h % NR] = w;
            }
        }
        Folded { first, panels, bias: pad_rows(&first.bias), rows }
    }
}

/// Hidden layers of latents.
struct Hide<'a> {
    f: &'a Folded<'a>,
    z: &'a [f32],
    residual: &'a [bool],
    depth: usize,
    out: &'a mut [f32],
    transposed: (&'a mut [f32], usize),
}

impl Task for Hide<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Hide { f, z, residual, depth, out, transposed: (transposed, stride) } = self;
        let (latent, folded) = (f.first.inputs, residual.len());
        // Without residual samples there are no means.
        let count = if residual.contains(&true) { 2 * folded } else { folded };
        let mut made = vec![ZERO; 2 * folded];
        for (p, (panel, bias)) in f.panels.chunks_exact(latent).zip(&f.bias).enumerate() {
            let z = RowsRef { words: z, count, stride: latent };
            gemm::product(simd, Precision::F32, z, panel, p, &mut Keep(&mut made));
            for row in &mut made[..count] {
                row.iter_mut().zip(bias).for_each(|(v, bias)| *v += bias);
                simd.relu(row);
            }
            let columns = p * NR..((p + 1) * NR).min(depth - 1);
            let (samples, means) = made.split_at(folded);
            for (i, out) in out.chunks_exact_mut(depth).enumerate() {
                let out = &mut out[columns.clone()];
                match residual[i] {
                    true => {
                        for ((out, h), m) in out.iter_mut().zip(&samples[i]).zip(&means[i]) {
                            *out = h - m;
                        }
                    }
                    false => out.copy_from_slice(&samples[i][..columns.len()]),
                }
            }
        }
        for (out, &residual) in out.chunks_exact_mut(depth).zip(residual) {
            out[depth - 1] = if residual { 0.0 } else { 1.0 };
        }
        let rows = RowsRef { words: out, count: folded, stride: depth };
        transpose(simd, rows, depth, transposed, stride);
    }
}
