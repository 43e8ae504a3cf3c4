//! Which random value belongs to which logical element: seed and counter of Philox.
//!
//! | counter word | holds |
//! |---|---|
//! | 0 | block: element j of a vector of noise is word j mod 4 of block j / 4 |
//! | 1 | candidate (or epoch, for training noise) |
//! | 2 | row, low 32 bits |
//! | 3 | row, high 16 bits; side in bit 16; purpose in bits 24 to 31 |

use crate::side::Side;

/// One more than the largest row number, which has 48 bits in the counter.
const MAX_ROWS: u64 = 1 << 48;

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
    /// Noise on the inputs of reward training (row = place of the pair in its batch, candidate = step).
    InputNoise = 10,
    /// Bootstrap resamples (row = which resample).
    Bootstrap = 11,
    /// Augmentation baselines: partners and weights of mixup, pairs across prompts.
    Mixing = 12,
    /// Orders of many items: the round function of [`Permutation`](super::Permutation), which fills the counter itself.
    Order = 13,
}

/// The logical element that a vector of noise belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoiseCounter {
    pub purpose: Purpose,
    pub side: Side,
    /// Row in the whole data set, below 2^48.
    pub row: u64,
    /// Candidate (or epoch).
    pub candidate: u32,
}

impl NoiseCounter {
    /// The four words of Philox's counter for block `block` of this vector.
    #[inline(always)]
    pub fn block(self, block: u32) -> [u32; 4] {
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
