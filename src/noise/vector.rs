//! The normals of many counters at once: the sequence of [`normal_lanes`](super::normal_lanes) and of
//! [`math`] in vector registers, operation for operation, so that every bit is the same.

use super::philox::{MULTIPLIER, ROUNDS, WEYL};
use super::{NoiseCounter, key_words, math};
use crate::simd::{LANES, Simd, Task};

/// Normals that one vector of counters makes.
pub const NORMALS: usize = 4 * LANES;
/// Vectors of counters that are best taken together: of one alone most operations wait for the one before.
pub const TOGETHER: usize = 4;

/// Counters of [`LANES`] blocks: word w of lane l is `[w][l]`.
pub type Counters<S> = [<S as Simd>::Words; 4];

/// The standard normals of `N` vectors of counters, value w of lane l of each at `4 l + w`.
#[inline(always)]
pub fn normals<S: Simd, const N: usize>(
    simd: S,
    counters: [Counters<S>; N],
    key: [u32; 2],
) -> [[S::Floats; 4]; N] {
    let mut made = normals_by_word(simd, counters, key);
    for made in &mut made {
        *made = simd.interleave(*made);
    }
    made
}

/// The same, value w of lane l at `[w][l]`.
#[inline(always)]
pub fn normals_by_word<S: Simd, const N: usize>(
    simd: S,
    counters: [Counters<S>; N],
    key: [u32; 2],
) -> [[S::Floats; 4]; N] {
    let words = philox(simd, counters, key);
    let mut made = [[simd.floats(0.0); 4]; N];
    for pair in 0..2 {
        let (a, b) = box_muller(simd, words, 2 * pair);
        for i in 0..N {
            (made[i][2 * pair], made[i][2 * pair + 1]) = (a[i], b[i]);
        }
    }
    made
}

#[inline(always)]
fn philox<S: Simd, const N: usize>(simd: S, mut c: [Counters<S>; N], key: [u32; 2]) -> [Counters<S>; N] {
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        for c in &mut c {
            let (high0, low0) = simd.mul_wide(c[0], MULTIPLIER[0]);
            let (high1, low1) = simd.mul_wide(c[2], MULTIPLIER[1]);
            let c0 = simd.xor(simd.xor(high1, c[1]), simd.words(k0));
            let c2 = simd.xor(simd.xor(high0, c[3]), simd.words(k1));
            *c = [c0, low1, c2, low0];
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    c
}

/// Two normals of words `first` and `first + 1` of each.
#[inline(always)]
fn box_muller<S: Simd, const N: usize>(
    simd: S,
    words: [Counters<S>; N],
    first: usize,
) -> ([S::Floats; N], [S::Floats; N]) {
    const SCALE: f32 = 1.0 / 4_294_967_296.0;
    let (scale, half) = (simd.floats(SCALE), simd.floats(0.5 * SCALE));
    let mut r = [half; N];
    for i in 0..N {
        r[i] = simd.mul_add(simd.unsigned_to_floats(words[i][first]), scale, half);
    }
    r = ln(simd, r);
    let mut turns = [words[0][first + 1]; N];
    for i in 0..N {
        r[i] = simd.sqrt(simd.mul(simd.floats(-2.0), r[i]));
        turns[i] = words[i][first + 1];
    }
    let (mut sin, mut cos) = sin_cos_turn(simd, turns);
    for i in 0..N {
        (cos[i], sin[i]) = (simd.mul(r[i], cos[i]), simd.mul(r[i], sin[i]));
    }
    (cos, sin)
}

#[inline(always)]
fn ln<S: Simd, const N: usize>(simd: S, x: [S::Floats; N]) -> [S::Floats; N] {
    let mut p = [simd.floats(math::LN[0]); N];
    let (mut exponent, mut f) = (x, x);
    for i in 0..N {
        let shifted = simd.add_words(simd.bits(x[i]), simd.words(0x3f80_0000 - math::SQRT_HALF));
        exponent[i] = simd.signed_to_floats(simd.sub_words(simd.shr::<23>(shifted), simd.words(127)));
        let mantissa = simd.and(shifted, simd.words(0x007f_ffff));
        let value = simd.with_bits(simd.add_words(mantissa, simd.words(math::SQRT_HALF)));
        f[i] = simd.sub(value, simd.floats(1.0));
    }
    for c in &math::LN[1..] {
        for i in 0..N {
            p[i] = simd.mul_add(p[i], f[i], simd.floats(*c));
        }
    }
    for i in 0..N {
        let square = simd.mul(f[i], f[i]);
        let tail = simd.mul(simd.mul(p[i], f[i]), square);
        let tail = simd.mul_add(exponent[i], simd.floats(math::LN2_LOW), tail);
        let head = simd.add(f[i], simd.mul_add(square, simd.floats(-0.5), tail));
        p[i] = simd.mul_add(exponent[i], simd.floats(math::LN2_HIGH), head);
    }
    p
}

#[inline(always)]
fn sin_cos_turn<S: Simd, const N: usize>(simd: S, turns: [S::Words; N]) -> ([S::Floats; N], [S::Floats; N]) {
    let (mut sines, mut cosines) = ([simd.floats(0.0); N], [simd.floats(0.0); N]);
    for i in 0..N {
        let quarter = simd.shr::<30>(simd.add_words(turns[i], simd.words(1 << 29)));
        let rest = simd.sub_words(turns[i], simd.shl::<30>(quarter));
        let a = simd.mul(simd.signed_to_floats(rest), simd.floats(math::TURN));
        let s = simd.mul(a, a);
        let sin = quadratic(simd, s, math::SIN);
        let sin = simd.mul_add(simd.mul(sin, s), a, a);
        let cos = quadratic(simd, s, math::COS);
        let one = simd.mul_add(s, simd.floats(-0.5), simd.floats(1.0));
        let cos = simd.mul_add(simd.mul(cos, s), s, one);
        let (x, y) = (simd.choose(quarter, sin, cos), simd.choose(quarter, cos, sin));
        sines[i] = flip(simd, x, quarter);
        cosines[i] = flip(simd, y, simd.add_words(quarter, simd.words(1)));
    }
    (sines, cosines)
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
    pub address: NoiseCounter,
    /// The values, from element 0 of the address on.
    pub out: &'a mut [f32],
}

impl Task for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Fill { seed, address, out } = self;
        let (key, zero) = (key_words(seed), address.counter(0).map(|word| simd.words(word)));
        let mut block = 0;
        let (whole, rest) = out.as_chunks_mut::<{ TOGETHER * NORMALS }>();
        for chunk in whole {
            let mut counters = [zero; TOGETHER];
            for (i, counters) in counters.iter_mut().enumerate() {
                *counters = from_block(simd, zero, block + i * LANES);
            }
            store_all(simd, normals(simd, counters, key), chunk);
            block += TOGETHER * LANES;
        }
        for chunk in rest.chunks_mut(NORMALS) {
            store_first(simd, normals(simd, [from_block(simd, zero, block)], key)[0], chunk);
            block += LANES;
        }
    }
}

/// The counters from block `block` on, of those of block 0.
#[inline(always)]
fn from_block<S: Simd>(simd: S, [zero, candidate, row, last]: Counters<S>, block: usize) -> Counters<S> {
    let lanes = simd.add_words(simd.load_words(&COUNT), simd.words(block as u32));
    [simd.add_words(zero, lanes), candidate, row, last]
}

/// The numbers of lanes.
const COUNT: [u32; LANES] = {
    let mut count = [0; LANES];
    let mut l = 0;
    while l < LANES {
        count[l] = l as u32;
        l += 1;
    }
    count
};

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

/// Writes the normals of some counters one after the other.
#[inline(always)]
pub fn store_all<S: Simd>(simd: S, values: [[S::Floats; 4]; TOGETHER], to: &mut [f32; TOGETHER * NORMALS]) {
    for (values, to) in values.into_iter().zip(to.as_chunks_mut::<NORMALS>().0) {
        store(simd, values, to);
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
    use crate::simd::Isa;
    use rand::RngCore;

    struct Of([[u32; LANES]; 4], [u32; 2]);

    impl Task for Of {
        type Output = [[f32; NORMALS]; 2];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let mut out = [[0f32; NORMALS]; 2];
            let [c0, c1, c2, c3] = &self.0;
            let counters =
                [simd.load_words(c0), simd.load_words(c1), simd.load_words(c2), simd.load_words(c3)];
            let [_, made] = normals(simd, [[simd.words(9); 4], counters], self.1);
            store(simd, made, &mut out[0]);
            store(simd, normals_by_word(simd, [counters], self.1)[0], &mut out[1]);
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
            for level in Isa::available() {
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
            let ([sin], [cos]) = sin_cos_turn(simd, [words]);
            simd.store_floats(u, &mut out[0]);
            simd.store_floats(ln(simd, [u])[0], &mut out[1]);
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
            for level in Isa::available() {
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
        let address = NoiseCounter {
            purpose: Purpose::Perturb,
            side: Side::Rejected,
            row: (1 << 33) + 5,
            candidate: 9,
        };
        for n in (0..140).chain([NORMALS * 5 - 1, NORMALS * 5, 1000]) {
            let want: Vec<u32> = (0..n)
                .map(|j| {
                    let counter = address.counter(j as u32 / 4).map(|c| [c]);
                    normal_lanes::<1>(counter, key_words(3))[j % 4][0].to_bits()
                })
                .collect();
            for level in Isa::available() {
                let mut got = vec![f32::NAN; n];
                fill_normals_at(level, 3, address, &mut got);
                let got: Vec<u32> = got.into_iter().map(f32::to_bits).collect();
                assert_eq!(got, want, "{}: {n} normals", level.name());
            }
        }
    }
}
