//! Lanes whose vectors never lie across two cache lines, in huge pages where there are many: a step of training walks
//! through all weights and moments, and finding 4 KiB pages took as long as reading them.

use std::ops::{Deref, DerefMut};

use crate::matrix::Pages;
use crate::simd::Lane;

/// A vector of lanes, aligned to cache lines.
#[derive(Clone, Debug, Default)]
pub struct Lanes(Pages);

impl Lanes {
    /// Zeros.
    pub fn zeros(len: usize) -> Lanes {
        Lanes(Pages::zeros(len * size_of::<Lane>()))
    }

    /// Makes it so long; what is new is zero.
    pub fn resize(&mut self, len: usize) {
        let before = self.len();
        self.0.resize(len * size_of::<Lane>());
        if let Some(new) = self.0.bytes_mut().get_mut(before * size_of::<Lane>()..) {
            new.fill(0);
        }
    }
}

impl Deref for Lanes {
    type Target = [Lane];

    fn deref(&self) -> &[Lane] {
        bytemuck::cast_slice(self.0.bytes())
    }
}

impl DerefMut for Lanes {
    fn deref_mut(&mut self) -> &mut [Lane] {
        bytemuck::cast_slice_mut(self.0.bytes_mut())
    }
}
