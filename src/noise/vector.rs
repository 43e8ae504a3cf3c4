//! The normals of many counters at once: the sequence of [`normal_lanes`](super::normal_lanes) and of
//! [`math`] in vector registers, operation for operation, so that every bit is the same.

use super::philox::{MULTIPLIER, ROUNDS, WEYL};
use super::{Address, key_words, math};
use crate::simd::{LANES, Simd, Task};

/// Normals that one call of [`normals`] makes.
pub const NORMALS: usize = 4 * LANES;

/// The standard normals of [`LANES`] counters (word w of lane l is `[w][l]`), value w of lane l at `4 l + w`.
#[inline(always)]
pub fn normals<S: Simd>(simd: S, counter: &[[u32; LANES]; 4], key: [u32; 2]) -> [S::Floats; 4] {
    simd.interleave(normals_by_word(simd, counter, key))
}

/// The same, value w of lane l at `[w][l]`.
#[inline(always)]
pub fn normals_by_word<S: Simd>(simd: S, counter: &[[u32; LANES]; 4], key: [u32; 2]) -> [S::Floats; 4] {
    let [c0, c1, c2, c3] = counter;
    let counter = [simd.load_words(c0), simd.load_words(c1), simd.load_words(c2), simd.load_words(c3)];
    let words = philox(simd, counter, key);
    let (a, b) = box_muller(simd, words[0], words[1]);
    let (c, d) = box_muller(simd, words[2], words[3]);
    [a, b, c, d]
}

#[inline(always)]
fn philox<S: Simd>(simd: S, counter: [S::Words; 4], key: [u32; 2]) -> [S::Words; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let (high0, low0) = simd.mul_wide(c0, MULTIPLIER[0]);
        let (high1, low1) = simd.mul_wide(c2, MULTIPLIER[1]);
        c0 = simd.xor(simd.xor(high1, c1), simd.words(k0));
        c1 = low1;
        c2 = simd.xor(simd.xor(high0, c3), simd.words(k1));
        c3 = low0;
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

#[inline(always)]
fn box_muller<S: Simd>(simd: S, word: S::Words, turn: S::Words) -> (S::Floats, S::Floats) {
    const SCALE: f32 = 1.0 / 4_294_967_296.0;
    let u = simd.mul_add(simd.unsigned_to_floats(word), simd.floats(SCALE), simd.floats(0.5 * SCALE));
    let r = simd.sqrt(simd.mul(simd.floats(-2.0), ln(simd, u)));
    let (sin, cos) = sin_cos_turn(simd, turn);
    (simd.mul(r, cos), simd.mul(r, sin))
}

#[inline(always)]
fn ln<S: Simd>(simd: S, x: S::Floats) -> S::Floats {
    let shifted = simd.add_words(simd.bits(x), simd.words(0x3f80_0000 - math::SQRT_HALF));
    let exponent = simd.signed_to_floats(simd.sub_words(simd.shr::<23>(shifted), simd.words(127)));
    let mantissa = simd.and(shifted, simd.words(0x007f_ffff));
    let f = simd.with_bits(simd.add_words(mantissa, simd.words(math::SQRT_HALF)));
    let f = simd.sub(f, simd.floats(1.0));
    let mut p = simd.floats(math::LN[0]);
    for c in &math::LN[1..] {
        p = simd.mul_add(p, f, simd.floats(*c));
    }
    let square = simd.mul(f, f);
    let tail = simd.mul_add(exponent, simd.floats(math::LN2_LOW), simd.mul(simd.mul(p, f), square));
    let head = simd.add(f, simd.mul_add(square, simd.floats(-0.5), tail));
    simd.mul_add(exponent, simd.floats(math::LN2_HIGH), head)
}

#[inline(always)]
fn sin_cos_turn<S: Simd>(simd: S, turn: S::Words) -> (S::Floats, S::Floats) {
    let quarter = simd.shr::<30>(simd.add_words(turn, simd.words(1 << 29)));
    let rest = simd.sub_words(turn, simd.shl::<30>(quarter));
    let a = simd.mul(simd.signed_to_floats(rest), simd.floats(math::TURN));
    let s = simd.mul(a, a);
    let sin = quadratic(simd, s, math::SIN);
    let sin = simd.mul_add(simd.mul(sin, s), a, a);
    let cos = quadratic(simd, s, math::COS);
    let one = simd.mul_add(s, simd.floats(-0.5), simd.floats(1.0));
    let cos = simd.mul_add(simd.mul(cos, s), s, one);
    let (x, y) = (simd.choose(quarter, sin, cos), simd.choose(quarter, cos, sin));
    (flip(simd, x, quarter), flip(simd, y, simd.add_words(quarter, simd.words(1))))
}

#[inline(always)]
fn quadratic<S: Simd>(simd: S, s: S::Floats, [a, b, c]: [f32; 3]) -> S::Floats {
    simd.mul_add(simd.mul_add(s, simd.floats(a), simd.floats(b)), s, simd.floats(c))
}

/// Turns the sign where bit 1 of `quarter` is set.
#[inline(always)]
fn flip<S: Simd>(simd: S, x: S::Floats, quarter: S::Words) -> S::Floats {
    simd.with_bits(simd.xor(simd.bits(x), simd.shl::<30>(simd.and(quarter, simd.words(2)))))
}

/// Fills `out` with the elements from block `first` on of one address.
pub(super) struct Fill<'a> {
    /// The seed.
    pub seed: u64,
    /// The address.
    pub address: Address,
    /// The values, from element 0 of the address on.
    pub out: &'a mut [f32],
}

impl Task for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Fill { seed, address, out } = self;
        let key = key_words(seed);
        for (i, chunk) in out.chunks_mut(NORMALS).enumerate() {
            let first = address.counter((i * LANES) as u32);
            let mut counter = first.map(|word| [word; LANES]);
            for (l, block) in counter[0].iter_mut().enumerate() {
                *block += l as u32;
            }
            let made = normals(simd, &counter, key);
            store_first(simd, made, chunk);
        }
    }
}

/// Writes as many values of four vectors as `chunk` has room for, at most all.
#[inline(always)]
pub fn store_first<S: Simd>(simd: S, values: [S::Floats; 4], chunk: &mut [f32]) {
    match <&mut [f32; NORMALS]>::try_from(&mut *chunk) {
        Ok(to) => store(simd, values, to),
        Err(_) => {
            let mut to = [0f32; NORMALS];
            store(simd, values, &mut to);
            chunk.copy_from_slice(&to[..chunk.len()]);
        }
    }
}

/// Writes four vectors one after the other.
#[inline(always)]
pub fn store<S: Simd>(simd: S, values: [S::Floats; 4], to: &mut [f32; NORMALS]) {
    let (quarters, _) = to.as_chunks_mut::<LANES>();
    for (value, to) in values.into_iter().zip(quarters) {
        simd.store_floats(value, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{Purpose, Side, philox::Stream};
    use crate::noise::{fill_normals_at, normal_lanes};
    use crate::simd::Level;
    use rand::RngCore;

    struct Of([[u32; LANES]; 4], [u32; 2]);

    impl Task for Of {
        type Output = [[f32; NORMALS]; 2];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let mut out = [[0f32; NORMALS]; 2];
            store(simd, normals(simd, &self.0, self.1), &mut out[0]);
            store(simd, normals_by_word(simd, &self.0, self.1), &mut out[1]);
            out
        }
    }

    /// Random counters, and those whose words are all ones or zeros.
    #[test]
    fn every_level_gives_the_bits_of_the_scalar_definition() {
        let mut words = Stream::new(7, Purpose::Simulation, 0);
        for trial in 0..20_000 {
            let mut counter = [[0u32; LANES]; 4];
            for word in counter.as_flattened_mut() {
                *word = match (trial, words.next_u32()) {
                    (0..100, w) if w % 3 == 0 => 0u32.wrapping_sub(w >> 31),
                    (_, w) => w,
                };
            }
            let key = [words.next_u32(), words.next_u32()];
            let want = normal_lanes(counter, key);
            for level in Level::available() {
                let [by_lane, by_word] = level.run(Of(counter, key));
                for l in 0..LANES {
                    for w in 0..4 {
                        let want = want[w][l].to_bits();
                        let place = format!("{}: word {w} of lane {l}", level.name());
                        assert_eq!(by_lane[4 * l + w].to_bits(), want, "{place}");
                        assert_eq!(by_word[w * LANES + l].to_bits(), want, "{place}, by word");
                    }
                }
            }
        }
    }

    struct Parts([u32; LANES]);

    impl Task for Parts {
        type Output = [[f32; LANES]; 4];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let mut out = [[0f32; LANES]; 4];
            let words = simd.load_words(&self.0);
            let u = simd.mul_add(
                simd.unsigned_to_floats(words),
                simd.floats(1.0 / 4_294_967_296.0),
                simd.floats(0.5 / 4_294_967_296.0),
            );
            let (sin, cos) = sin_cos_turn(simd, words);
            simd.store_floats(u, &mut out[0]);
            simd.store_floats(ln(simd, u), &mut out[1]);
            simd.store_floats(sin, &mut out[2]);
            simd.store_floats(cos, &mut out[3]);
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
        words.resize(words.len().next_multiple_of(LANES), 3);
        for words in words.as_chunks::<LANES>().0 {
            for level in Level::available() {
                let got = level.run(Parts(*words));
                for l in 0..LANES {
                    let u = (words[l] as f32).mul_add(1.0 / 4_294_967_296.0, 0.5 / 4_294_967_296.0);
                    let (sin, cos) = math::sin_cos_turn(words[l]);
                    let want = [u, math::ln(u), sin, cos].map(f32::to_bits);
                    assert_eq!(got.map(|g| g[l].to_bits()), want, "{}: {:#x}", level.name(), words[l]);
                }
            }
        }
    }

    #[test]
    fn runs_of_any_length_are_those_of_the_scalar_definition() {
        let address =
            Address { purpose: Purpose::Perturb, side: Side::Rejected, row: (1 << 33) + 5, candidate: 9 };
        for n in (0..140).chain([NORMALS * 5 - 1, NORMALS * 5, 1000]) {
            let want: Vec<u32> = (0..n)
                .map(|j| {
                    let counter = address.counter(j as u32 / 4).map(|c| [c]);
                    normal_lanes::<1>(counter, key_words(3))[j % 4][0].to_bits()
                })
                .collect();
            for level in Level::available() {
                let mut got = vec![f32::NAN; n];
                fill_normals_at(level, 3, address, &mut got);
                let got: Vec<u32> = got.into_iter().map(f32::to_bits).collect();
                assert_eq!(got, want, "{}: {n} normals", level.name());
            }
        }
    }
}
