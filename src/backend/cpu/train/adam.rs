//! Adam on packed weights: Kingma and Ba's Algorithm 1 in the arrangement of `torch.optim.Adam`, with weight decay
//! `torch.optim.AdamW`.

use crate::backend::Adam;
use crate::backend::cpu::gemm::{AlignedRows, Epilogue, Tile};
use crate::simd::{Isa, NR, NrRow, Simd, Task};

/// Inputs of a slice: training works on one slice of a layer's inputs at a time.
pub const SLICE: usize = 128;

/// The factors of one step.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    beta1: f32,
    keep1: f32,
    beta2: f32,
    keep2: f32,
    rate: f32,
    inverse_root: f32,
    eps: f32,
    /// What parameters are multiplied with first: weight decay.
    decay: f32,
}

impl Rates {
    /// Those of step `step`, counted from 1.
    pub fn new(adam: &Adam, step: i32) -> Rates {
        Rates {
            beta1: adam.beta1 as f32,
            keep1: (1.0 - adam.beta1) as f32,
            beta2: adam.beta2 as f32,
            keep2: (1.0 - adam.beta2) as f32,
            rate: (adam.lr / (1.0 - adam.beta1.powi(step))) as f32,
            inverse_root: (1.0 / (1.0 - adam.beta2.powi(step)).sqrt()) as f32,
            eps: adam.eps as f32,
            decay: adam.decay(),
        }
    }

    /// One step of parameters w with moments m and v along the gradient g.
    #[inline(always)]
    pub fn step(&self, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
            *m = self.beta1 * *m + self.keep1 * g;
            *v = self.beta2 * *v + self.keep2 * (g * g);
            *w = self.decay * *w - self.rate * *m / (v.sqrt() * self.inverse_root + self.eps);
        }
    }
}

/// What is done with a gradient.
#[derive(Clone, Copy, Debug)]
pub enum Update {
    /// A step of Adam.
    Adam(Rates),
    /// It is kept to be looked at.
    Keep,
}

/// Parameters with their moments, and the gradient where it is kept; equally long.
pub struct Weights<'a> {
    /// Parameters.
    pub w: &'a mut [NrRow],
    /// First moments.
    pub m: &'a mut [NrRow],
    /// Second moments.
    pub v: &'a mut [NrRow],
    /// Gradients of [`Update::Keep`].
    pub g: &'a mut [NrRow],
}

impl Weights<'_> {
    /// A part of them.
    #[inline(always)]
    pub fn part(&mut self, from: usize, count: usize) -> Weights<'_> {
        let to = from + count;
        let g = if self.g.is_empty() { &mut [] } else { &mut self.g[from..to] };
        Weights { w: &mut self.w[from..to], m: &mut self.m[from..to], v: &mut self.v[from..to], g }
    }

    /// The first `count` and the rest.
    pub fn split(self, count: usize) -> (Self, Self) {
        let Weights { w, m, v, g } = self;
        let at = count.min(g.len());
        let ((w, w2), (m, m2)) = (w.split_at_mut(count), m.split_at_mut(count));
        let ((v, v2), (g, g2)) = (v.split_at_mut(count), g.split_at_mut(at));
        (Weights { w, m, v, g }, Weights { w: w2, m: m2, v: v2, g: g2 })
    }

    /// The weights of panel `p` of a slice, where slices have `panels` panels.
    #[inline(always)]
    pub fn panel(&self, panels: usize, slice: usize, p: usize) -> &[NrRow] {
        &self.w[(slice * panels + p) * SLICE..][..SLICE]
    }

    /// The epilogue that takes gradients.
    #[inline(always)]
    pub fn learn(&mut self, update: Update) -> Learn<'_> {
        Learn { weights: self.part(0, self.w.len()), update }
    }
}

/// The epilogue of a gradient: a step of Adam, or keeping it.
pub struct Learn<'a> {
    weights: Weights<'a>,
    update: Update,
}

impl Learn<'_> {
    /// Takes the gradient of rows `at..`.
    #[inline(always)]
    pub fn take(&mut self, at: usize, gradient: &[NrRow]) {
        let Weights { w, m, v, g } = &mut self.weights;
        match self.update {
            Update::Adam(rates) => {
                let range = at..at + gradient.len();
                let [w, m, v] = [w, m, v].map(|rows| rows[range.clone()].as_flattened_mut());
                rates.step(w, m, v, gradient.as_flattened());
            }
            Update::Keep => g[at..at + gradient.len()].copy_from_slice(gradient),
        }
    }
}

impl Epilogue for Learn<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, _: S, tile: Tile, sums: &mut [NrRow]) {
        self.take(tile.row, sums);
    }
}

/// A vector of parameters in rows of [`NR`], the last padded with zeros, which stay zero.
#[derive(Debug)]
pub struct ParamVector {
    /// Parameters.
    pub w: AlignedRows,
    m: AlignedRows,
    v: AlignedRows,
    g: AlignedRows,
    len: usize,
}

impl ParamVector {
    /// Starts from `values` with zero moments; at least `rows` rows.
    pub fn new(values: &[f32], rows: usize) -> ParamVector {
        let mut w = AlignedRows::zeros(values.len().div_ceil(NR).max(rows));
        w.as_flattened_mut()[..values.len()].copy_from_slice(values);
        let zeros = AlignedRows::zeros(w.len());
        ParamVector { m: zeros.clone(), v: zeros.clone(), g: zeros, w, len: values.len() }
    }

    /// The parameters.
    pub fn values(&self) -> Vec<f32> {
        self.w.as_flattened()[..self.len].to_vec()
    }

    /// The gradients kept last.
    pub fn gradients(&self) -> Vec<f32> {
        self.g.as_flattened()[..self.len].to_vec()
    }

    /// All of it.
    pub fn weights(&mut self) -> Weights<'_> {
        Weights { w: &mut self.w, m: &mut self.m, v: &mut self.v, g: &mut self.g }
    }

    /// Takes a gradient in F64, whole rows.
    pub fn learn(&mut self, isa: Isa, gradient: &[f64], update: Update) {
        struct Whole<'a>(Weights<'a>, &'a [f64], Update);
        impl Task for Whole<'_> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(mut self, _: S) {
                let mut learn = self.0.learn(self.2);
                for (at, gradient) in self.1.chunks_exact(NR).enumerate() {
                    learn.take(at, &[std::array::from_fn(|i| gradient[i] as f32)]);
                }
            }
        }
        isa.run(Whole(self.weights(), gradient, update));
    }
}
