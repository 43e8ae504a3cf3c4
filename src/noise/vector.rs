//! Normals of many counters at once: the scalar definition ([`normal_lanes`]) over 64 blocks, in loops that the compiler
//! vectorises for each instruction set. Every bit is the same on all of them.

use super::counter::{NoiseCounter, key_words};
use super::normal::normal_lanes;
use crate::simd::{Callee, Isa, Simd, Task};

/// Blocks of four normals that are made together: of one vector alone most operations would wait for the one before.
pub const BLOCKS: usize = 64;
/// The same where fewer are left.
const FEW: usize = 16;

/// The normals of `N` counters, of which word w of block i is `[w][i]`; value w of block i at `[w][i]`.
#[inline(always)]
pub fn normals<S: Simd, const N: usize>(simd: S, counters: &[[u32; N]; 4], key: [u32; 2]) -> [[f32; N]; 4] {
    /// A function of its own, once for each instruction set: it is large, and many tasks draw.
    struct Normals<'a, const N: usize>(&'a [[u32; N]; 4], [u32; 2], &'a mut [[f32; N]; 4]);
    impl<const N: usize> Callee for Normals<'_, N> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            *self.2 = normal_lanes(*self.0, self.1);
        }
    }
    let mut out = [[0f32; N]; 4];
    simd.call(Normals(counters, key, &mut out));
    out
}

/// Writes normals in the order of their elements, as many as `out` has room for.
#[inline(always)]
pub fn store<const N: usize>(normals: &[[f32; N]; 4], out: &mut [f32]) {
    for (i, out) in out.chunks_mut(4).enumerate() {
        for (w, out) in out.iter_mut().enumerate() {
            *out = normals[w][i];
        }
    }
}

/// The standard normals that belong to `counter`: element j of `out` is element j of that vector.
pub fn fill_normals(seed: u64, counter: NoiseCounter, out: &mut [f32]) {
    // Below a vector of blocks the scalar definition is as fast.
    if out.len() <= 4 {
        let four = normal_lanes::<1>(counter.block(0).map(|c| [c]), key_words(seed));
        out.iter_mut().zip(four).for_each(|(value, normal)| *value = normal[0]);
        return;
    }
    fill_normals_at(Isa::current(), seed, counter, out);
}

/// [`fill_normals`] with a given instruction set; all give the same bits.
pub fn fill_normals_at(isa: Isa, seed: u64, counter: NoiseCounter, out: &mut [f32]) {
    struct Fill<'a>(u64, NoiseCounter, &'a mut [f32]);
    impl Task for Fill<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            fill_normals_in(simd, self.0, self.1, self.2);
        }
    }
    isa.run(Fill(seed, counter, out));
}

/// [`fill_normals`] within a task.
#[inline(always)]
pub fn fill_normals_in<S: Simd>(simd: S, seed: u64, counter: NoiseCounter, out: &mut [f32]) {
    fill_normals_from(simd, seed, counter, 0, out);
}

/// A part of a vector of noise: element j of `out` is element `4 * first_block + j`.
#[inline(always)]
pub fn fill_normals_from<S: Simd>(
    simd: S,
    seed: u64,
    counter: NoiseCounter,
    first_block: u32,
    out: &mut [f32],
) {
    let (whole, rest) = out.as_chunks_mut::<{ 4 * BLOCKS }>();
    let mut block = first_block;
    for out in whole {
        store(&normals(simd, &from_block::<BLOCKS>(counter, block), key_words(seed)), out);
        block += BLOCKS as u32;
    }
    for out in rest.chunks_mut(4 * FEW) {
        store(&normals(simd, &from_block::<FEW>(counter, block), key_words(seed)), out);
        block += FEW as u32;
    }
}

/// The counters of a vector of noise from block `first` on.
#[inline(always)]
fn from_block<const N: usize>(counter: NoiseCounter, first: u32) -> [[u32; N]; 4] {
    let mut counters = counter.block(first).map(|word| [word; N]);
    for (i, block) in counters[0].iter_mut().enumerate() {
        *block = block.wrapping_add(i as u32);
    }
    counters
}

#[cfg(test)]
mod tests {
    use rand::RngCore;

    use super::*;
    use crate::noise::math;
    use crate::noise::philox::Stream;
    use crate::noise::{Purpose, Side};

    struct Of([[u32; BLOCKS]; 4], [u32; 2]);

    impl Task for Of {
        type Output = [[f32; BLOCKS]; 4];
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            normals(simd, &self.0, self.1)
        }
    }

    /// Random counters, and those whose words are all ones or zeros, against one block at a time.
    #[test]
    fn every_instruction_set_gives_the_bits_of_the_scalar_definition() {
        let mut words = Stream::new(7, Purpose::Simulation, 0);
        for trial in 0..5_000 {
            let mut counters = [[0u32; BLOCKS]; 4];
            for word in counters.as_flattened_mut() {
                *word = match (trial, words.next_u32()) {
                    (0..100, w) if w % 3 == 0 => 0u32.wrapping_sub(w >> 31),
                    (_, w) => w,
                };
            }
            let key = [words.next_u32(), words.next_u32()];
            let want: Vec<_> = (0..BLOCKS)
                .map(|i| normal_lanes::<1>(counters.map(|w| [w[i]]), key).map(|v| v[0].to_bits()))
                .collect();
            for isa in Isa::available() {
                let got = isa.run(Of(counters, key));
                for (i, want) in want.iter().enumerate() {
                    assert_eq!(got.map(|v| v[i].to_bits()), *want, "{}: block {i}", isa.name());
                }
            }
        }
    }

    struct Parts([u32; FEW]);

    impl Task for Parts {
        type Output = [[f32; FEW]; 4];
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> Self::Output {
            let mut out = [[0f32; FEW]; 4];
            for (i, &word) in self.0.iter().enumerate() {
                let u = (word as f32).mul_add(1.0 / 4_294_967_296.0, 0.5 / 4_294_967_296.0);
                let (sin, cos) = math::sin_cos_turn(word);
                (out[0][i], out[1][i], out[2][i], out[3][i]) = (u, math::ln(u), sin, cos);
            }
            out
        }
    }

    /// What Philox will hardly ever give: words at the ends of their range and where angles change quarters.
    #[test]
    fn functions_agree_at_the_ends() {
        let mut words: Vec<u32> = (0..512).flat_map(|i| [i, u32::MAX - i]).collect();
        for quarter in 1..8u32 {
            words.extend(
                (0..64).flat_map(|i| [(quarter << 29).wrapping_add(i), (quarter << 29).wrapping_sub(i)]),
            );
        }
        for bit in 0..32 {
            words.extend([1 << bit, (1u32 << bit) - 1, (1 << bit) | 0x55]);
        }
        words.resize(words.len().next_multiple_of(FEW), 3);
        for words in words.as_chunks::<FEW>().0 {
            for isa in Isa::available() {
                let got = isa.run(Parts(*words));
                for l in 0..FEW {
                    let u = (words[l] as f32).mul_add(1.0 / 4_294_967_296.0, 0.5 / 4_294_967_296.0);
                    let (sin, cos) = math::sin_cos_turn(words[l]);
                    let want = [u, math::ln(u), sin, cos].map(f32::to_bits);
                    assert_eq!(got.map(|g| g[l].to_bits()), want, "{}: {:#x}", isa.name(), words[l]);
                }
            }
        }
    }

    #[test]
    fn runs_of_any_length_are_those_of_the_scalar_definition() {
        let counter = NoiseCounter {
            purpose: Purpose::Perturb,
            side: Side::Rejected,
            row: (1 << 33) + 5,
            candidate: 9,
        };
        for n in (0..140).chain([64 * 5 - 1, 64 * 5, 1000]) {
            let want: Vec<u32> = (0..n)
                .map(|j| {
                    let counter = counter.block(j as u32 / 4).map(|c| [c]);
                    normal_lanes::<1>(counter, key_words(3))[j % 4][0].to_bits()
                })
                .collect();
            for isa in Isa::available() {
                let mut got = vec![f32::NAN; n];
                fill_normals_at(isa, 3, counter, &mut got);
                let got: Vec<u32> = got.into_iter().map(f32::to_bits).collect();
                assert_eq!(got, want, "{}: {n} normals", isa.name());
            }
        }
    }
}
