//! Adam on lanes: Kingma and Ba's Algorithm 1 in the arrangement of `torch.optim.Adam`.

use super::lanes::Lanes;
use super::tile::Sink;
use crate::backend::Adam;
use crate::simd::{Isa, Lane, Simd, Task, WIDTH};

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
}

impl Rates {
    /// Those of step `step`, counted from 1.
    pub fn new(how: &Adam, step: i32) -> Rates {
        Rates {
            beta1: how.beta1 as f32,
            keep1: (1.0 - how.beta1) as f32,
            beta2: how.beta2 as f32,
            keep2: (1.0 - how.beta2) as f32,
            rate: (how.lr / (1.0 - how.beta1.powi(step))) as f32,
            inverse_root: (1.0 / (1.0 - how.beta2.powi(step)).sqrt()) as f32,
            eps: how.eps as f32,
        }
    }

    /// One step of parameters w with moments m and v along the gradient g.
    #[inline(always)]
    pub fn step(&self, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
            *m = self.beta1 * *m + self.keep1 * g;
            *v = self.beta2 * *v + self.keep2 * (g * g);
            *w -= self.rate * *m / (v.sqrt() * self.inverse_root + self.eps);
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
    pub w: &'a mut [Lane],
    /// First moments.
    pub m: &'a mut [Lane],
    /// Second moments.
    pub v: &'a mut [Lane],
    /// Gradients of [`Update::Keep`].
    pub g: &'a mut [Lane],
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

    /// A sink that takes gradients.
    #[inline(always)]
    pub fn learn(&mut self, update: Update) -> Learn<'_> {
        Learn { weights: self.part(0, self.w.len()), update }
    }
}

/// A sink for gradients.
pub struct Learn<'a> {
    weights: Weights<'a>,
    update: Update,
}

impl Sink for Learn<'_> {
    #[inline(always)]
    fn ask<S: Simd>(&self, simd: S, at: usize, count: usize) {
        let Weights { w, m, v, .. } = &self.weights;
        for lanes in [w, m, v] {
            simd.prefetch_all(bytemuck::cast_slice(&lanes[at..at + count]));
        }
    }

    #[inline(always)]
    fn take(&mut self, at: usize, made: &[Lane]) {
        let Weights { w, m, v, g } = &mut self.weights;
        match self.update {
            Update::Adam(rates) => {
                let range = at..at + made.len();
                let [w, m, v] = [w, m, v].map(|lanes| lanes[range.clone()].as_flattened_mut());
                rates.step(w, m, v, made.as_flattened());
            }
            Update::Keep => g[at..at + made.len()].copy_from_slice(made),
        }
    }
}

/// A vector of parameters in lanes, the last padded with zeros, which stay zero.
#[derive(Debug)]
pub struct Vector {
    /// Parameters.
    pub w: Lanes,
    m: Lanes,
    v: Lanes,
    g: Lanes,
    len: usize,
}

impl Vector {
    /// Starts from `values` with zero moments; at least `lanes` lanes.
    pub fn new(values: &[f32], lanes: usize) -> Vector {
        let mut w = Lanes::zeros(values.len().div_ceil(WIDTH).max(lanes));
        w.as_flattened_mut()[..values.len()].copy_from_slice(values);
        let zeros = Lanes::zeros(w.len());
        Vector { m: zeros.clone(), v: zeros.clone(), g: zeros, w, len: values.len() }
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

    /// Takes a gradient in F64, `[lanes][32]`.
    pub fn learn(&mut self, level: Isa, gradient: &[f64], update: Update) {
        struct Whole<'a>(Weights<'a>, &'a [f64], Update);
        impl Task for Whole<'_> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(mut self, _: S) {
                let mut learn = self.0.learn(self.2);
                for (at, gradient) in self.1.chunks_exact(WIDTH).enumerate() {
                    learn.take(at, &[std::array::from_fn(|i| gradient[i] as f32)]);
                }
            }
        }
        level.run(Whole(self.weights(), gradient, update));
    }
}
