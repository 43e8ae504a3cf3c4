//! The one definition of randomness, equal in every bit on every device.
//!
//! All noise is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), keyed by a
//! 64-bit seed. The counter names the logical element a value belongs to, never a batch, thread or machine:
//!
//! | counter word | holds |
//! |---|---|
//! | 0 | block of four elements: element j is lane j mod 4 of block j / 4 |
//! | 1 | candidate (or epoch, for training noise) |
//! | 2 | row, low 32 bits |
//! | 3 | row, high 16 bits; side in bit 16; purpose in bits 24 to 31 |
//!
//! Uniforms become normals by a fixed sequence of IEEE operations ([`math`]), so that a kernel which repeats the
//! sequence gets the same bits.

pub mod math;
mod normal;
mod philox;
pub mod vector;

pub use normal::normal_lanes;
pub use philox::{Stream, philox_lanes, philox4x32_10};
pub use vector::{fill_normals, fill_normals_at, fill_normals_in};

pub use crate::matrix::Side;

/// Rows are counted in 48 bits: one more than the largest row that noise can be addressed to.
pub const MAX_ROWS: u64 = 1 << 48;

/// What a random value is for. Values for different purposes never share a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// The posterior sample z_i of a seed (candidate 0).
    Posterior = 0,
    /// The perturbation eta of a candidate.
    Perturb = 1,
    /// Reparameterisation noise of VAE training (candidate = epoch).
    TrainVae = 2,
    /// Orders of rows in training and splits (row = which shuffle).
    Shuffle = 3,
    /// Initial parameters (row = which tensor).
    Init = 4,
    /// Which pairs are drawn from a seed's combinations.
    Pairing = 5,
    /// Baseline: noise on the embedding itself.
    DirectPerturbation = 6,
    /// Baseline: samples of a Gaussian fitted to the embeddings.
    GaussianSampling = 7,
    /// The simulated preference set of the demo.
    Simulation = 8,
    /// Which responses of a prompt meet, and which is preferred (row = which prompt).
    Annotation = 9,
}

/// The logical element that a vector of noise belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoiseCounter {
    /// What the noise is for.
    pub purpose: Purpose,
    /// Which side of the pair.
    pub side: Side,
    /// Row in the whole data set, below [`MAX_ROWS`].
    pub row: u64,
    /// Candidate (or epoch).
    pub candidate: u32,
}

impl NoiseCounter {
    /// The Philox counter of block `block` of this address.
    #[inline(always)]
    pub fn counter(self, block: u32) -> [u32; 4] {
        debug_assert!(self.row < MAX_ROWS);
        let high = (self.row >> 32) as u32 & 0xffff;
        let last = high | (self.side as u32) << 16 | (self.purpose as u32) << 24;
        [block, self.candidate, self.row as u32, last]
    }
}

/// A 64-bit seed as the two key words of Philox, low word first.
#[inline(always)]
pub fn key_words(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}
