//! Philox4x32-10, and a sequential stream over it.
//!
//! One round multiplies two of the four counter words by constants and mixes the halves of the products with
//! the other two words and the key; the key then grows by the Weyl constants. Ten rounds make a block of four
//! random words.

use rand::RngCore;

use super::counter::{NoiseCounter, Purpose, key_words};
use crate::side::Side;

pub(super) const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
pub(super) const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
pub(super) const ROUNDS: usize = 10;

/// `LANES` independent blocks: word w of lane l is `[w][l]`.
#[inline(always)]
pub fn philox_lanes<const LANES: usize>(counter: [[u32; LANES]; 4], key: [u32; 2]) -> [[u32; LANES]; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        for l in 0..LANES {
            let p0 = u64::from(MULTIPLIER[0]) * u64::from(c0[l]);
            let p1 = u64::from(MULTIPLIER[1]) * u64::from(c2[l]);
            c0[l] = (p1 >> 32) as u32 ^ c1[l] ^ k0;
            c1[l] = p1 as u32;
            c2[l] = (p0 >> 32) as u32 ^ c3[l] ^ k1;
            c3[l] = p0 as u32;
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// One block: four random words for a counter and a key.
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox_lanes::<1>(counter.map(|c| [c]), key).map(|w| w[0])
}

/// The words of one counter in order, block after block, for shuffles and draws; a [`rand::RngCore`].
#[derive(Clone, Debug)]
pub struct Stream {
    key: [u32; 2],
    counter: NoiseCounter,
    /// The next block.
    block: u32,
    /// The words of the block before it, of which `used` are used up.
    words: [u32; 4],
    used: usize,
}

impl Stream {
    /// The stream number `index` for `purpose` under `seed`.
    pub fn new(seed: u64, purpose: Purpose, index: u64) -> Stream {
        let counter = NoiseCounter { purpose, side: Side::Chosen, row: index, candidate: 0 };
        Stream { key: key_words(seed), counter, block: 0, words: [0; 4], used: 4 }
    }

    /// A uniform integer in `0..n`, without bias (Lemire's multiply-and-reject); `n` must not be 0.
    pub fn below(&mut self, n: u32) -> u32 {
        assert!(n > 0, "an empty range has no elements");
        let threshold = n.wrapping_neg() % n;
        loop {
            let product = u64::from(self.next_u32()) * u64::from(n);
            if product as u32 >= threshold {
                return (product >> 32) as u32;
            }
        }
    }

    /// A uniform value in [0, 1) with 24 random bits.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// Shuffles in place (Fisher-Yates); at most 2^32 items. Not `rand`'s shuffle, which may change between
    /// releases of `rand`: results must not.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let n = u32::try_from(last + 1).expect("at most 2^32 items");
            items.swap(last, self.below(n) as usize);
        }
    }
}

impl RngCore for Stream {
    fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.words = philox4x32_10(self.counter.block(self.block), self.key);
            // After 2^34 words the blocks of this candidate are used up; the stream goes on with the next
            // candidate's.
            self.block = self.block.wrapping_add(1);
            if self.block == 0 {
                self.counter.candidate += 1;
            }
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | u64::from(self.next_u32()) << 32
    }

    fn fill_bytes(&mut self, dst: &mut [u8]) {
        for chunk in dst.chunks_mut(4) {
            chunk.copy_from_slice(&self.next_u32().to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors of Random123 1.14 (`kat_vectors`, philox4x32 10).
    #[test]
    fn published_vectors() {
        let ones = u32::MAX;
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox4x32_10([ones; 4], [ones; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox4x32_10([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn lanes_are_independent_blocks() {
        let counter: [[u32; 5]; 4] =
            std::array::from_fn(|w| std::array::from_fn(|l| (w * 1000 + l * 7) as u32));
        let lanes = philox_lanes(counter, [3, 4]);
        for l in 0..5 {
            assert_eq!(philox4x32_10(counter.map(|c| c[l]), [3, 4]), lanes.map(|w| w[l]));
        }
    }

    #[test]
    fn below_is_in_range_and_even() {
        let mut stream = Stream::new(1, Purpose::Shuffle, 0);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[stream.below(7) as usize] += 1;
        }
        // Binomial(70000, 1/7): standard deviation 93.
        assert!(counts.iter().all(|&c| c.abs_diff(10_000) < 5 * 93), "{counts:?}");
    }

    #[test]
    fn shuffle_is_a_permutation_that_depends_on_the_seed() {
        let shuffled = |seed| {
            let mut items: Vec<u32> = (0..100).collect();
            Stream::new(seed, Purpose::Shuffle, 5).shuffle(&mut items);
            items
        };
        let mut sorted = shuffled(1);
        assert_ne!(sorted, shuffled(2));
        assert_eq!(sorted, shuffled(1));
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }
}
