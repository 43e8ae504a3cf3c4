//! Lanes whose vectors never lie across two cache lines.

use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};

use crate::simd::{Lane, WIDTH};

/// A lane that starts a cache line.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Aligned([f32; WIDTH]);

/// A vector of lanes, aligned to cache lines.
#[derive(Clone, Debug, Default)]
pub struct Lanes(Vec<Aligned>);

impl Lanes {
    /// Zeros.
    pub fn zeros(len: usize) -> Lanes {
        Lanes(vec![Aligned::zeroed(); len])
    }

    /// Makes it so long; what is new is zero.
    pub fn resize(&mut self, len: usize) {
        self.0.resize(len, Aligned::zeroed());
    }
}

impl Deref for Lanes {
    type Target = [Lane];

    fn deref(&self) -> &[Lane] {
        bytemuck::cast_slice(&self.0)
    }
}

impl DerefMut for Lanes {
    fn deref_mut(&mut self) -> &mut [Lane] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}
