//! Orders of many items that are never listed.

use super::counter::{Purpose, key_words};
use super::philox::philox4x32_10;

/// Rounds of the network: four are indistinguishable from a random permutation to whoever sees fewer than 2^(bits / 4)
/// items (Luby and Rackoff, 1988); more make small numbers of items even.
const ROUNDS: u32 = 8;

/// A pseudo-random order of the numbers below n, one for each seed and epoch, in constant memory.
///
/// A Feistel network whose round function is Philox permutes the numbers of an even count of bits; numbers of n or more
/// are permuted again until they fall below it (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
///
/// ```
/// let order = lensmith::Permutation::new(10, 7, 0);
/// let mut items: Vec<u64> = (0..10).map(|i| order.at(i)).collect();
/// items.sort_unstable();
/// assert_eq!(items, (0..10).collect::<Vec<u64>>());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permutation {
    items: u64,
    /// Bits of a half of the network.
    half: u32,
    key: [u32; 2],
    epoch: u64,
}

impl Permutation {
    /// The order of `items` items that belongs to a seed and an epoch.
    pub fn new(items: u64, seed: u64, epoch: u64) -> Permutation {
        let bits = 64 - items.saturating_sub(1).leading_zeros();
        Permutation { items, half: bits.div_ceil(2).max(1), key: key_words(seed), epoch }
    }

    /// The item at place `place`, which must be below the number of items.
    pub fn at(&self, place: u64) -> u64 {
        assert!(place < self.items, "place {place} of {} items", self.items);
        let mut item = place;
        loop {
            item = self.network(item);
            if item < self.items {
                return item;
            }
        }
    }

    fn network(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let (mut left, mut right) = (value >> self.half, value & mask);
        for round in 0..ROUNDS {
            let epoch = [self.epoch as u32, (self.epoch >> 32) as u32];
            let last = round | (Purpose::Order as u32) << 24;
            let word = philox4x32_10([right as u32, epoch[0], epoch[1], last], self.key)[0];
            (left, right) = (right, left ^ (u64::from(word) & mask));
        }
        left << self.half | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_has_one_place() {
        for items in [1, 2, 3, 5, 16, 17, 1000, 65_537] {
            for (seed, epoch) in [(0, 0), (9, 3), (u64::MAX, u64::MAX)] {
                let order = Permutation::new(items, seed, epoch);
                let mut seen = vec![false; items as usize];
                for place in 0..items {
                    assert!(!std::mem::replace(&mut seen[order.at(place) as usize], true));
                }
            }
        }
    }

    #[test]
    fn orders_differ_by_seed_and_epoch() {
        let first =
            |seed, epoch| (0..50).map(|i| Permutation::new(1000, seed, epoch).at(i)).collect::<Vec<_>>();
        assert_ne!(first(0, 0), first(1, 0));
        assert_ne!(first(0, 0), first(0, 1));
        assert_eq!(first(3, 4), first(3, 4));
    }

    #[test]
    fn places_are_even() {
        // Where item 0 of 10 stands, over 20,000 epochs: binomial(20000, 1/10), standard deviation 42.
        let mut counts = [0u32; 10];
        for epoch in 0..20_000 {
            let order = Permutation::new(10, 1, epoch);
            counts[(0..10).find(|&place| order.at(place) == 0).unwrap() as usize] += 1;
        }
        assert!(counts.iter().all(|count| count.abs_diff(2000) < 5 * 42), "{counts:?}");
        // Neighbours do not stay neighbours.
        let order = Permutation::new(1 << 20, 5, 0);
        let near = (0..10_000).filter(|&i| order.at(i).abs_diff(order.at(i + 1)) < 1000).count();
        assert!(near < 60, "{near} of 10000 neighbours within 1000, about 19 expected");
    }

    #[test]
    fn the_largest_numbers_of_items() {
        let order = Permutation::new(u64::MAX, 1, 1);
        assert_ne!(order.at(u64::MAX - 1), order.at(0));
    }
}
