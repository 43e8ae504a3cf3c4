//! One loop, several instruction sets: kernels are written once over [`Simd`] and compiled for each level, chosen at
//! run time. Every level performs the same IEEE operations in the same order, so results agree in every bit; products of
//! BF16 matrices, [`Simd::block`], have an order of their own, on the levels that have them.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod level;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
mod shuffle;

pub use level::Level;
pub use portable::Portable;

/// Columns of a panel of weights, on every level: 2 AVX-512 registers, 4 AVX ones.
pub const WIDTH: usize = 32;
/// Values of [`Simd::Floats`] and [`Simd::Words`], on every level.
pub const LANES: usize = 16;

/// One row of a weight panel.
pub type Lane = [f32; WIDTH];
/// A lane's storage in a 16-bit type.
pub type HalfLane = [u16; WIDTH];
/// Rows of a block of [`Simd::block`].
pub const TALL: usize = 32;
/// Words of a step of [`Simd::block`].
pub const DEEP: usize = 16;

/// Rows of words, each two BF16 values, for [`Simd::block`]: stretches of `together` words a row.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// From the first row's first word on.
    pub words: &'a [f32],
    /// Rows that count, at most [`TALL`]. Those behind them up to a multiple of 16 are read too, whatever they hold.
    pub count: usize,
    /// Distance of a row's words from the next row's.
    pub stride: usize,
    /// Words of a stretch; a multiple of [`DEEP`].
    pub together: usize,
    /// Distance of a stretch from the next.
    pub apart: usize,
}

impl<'a> Rows<'a> {
    /// Rows whose words stand side by side.
    #[inline(always)]
    pub fn side_by_side(words: &'a [f32], count: usize, stride: usize) -> Rows<'a> {
        Rows { words, count, stride, together: usize::MAX / DEEP * DEEP, apart: 0 }
    }

    /// Word `k` of a row.
    #[inline(always)]
    fn word(&self, row: usize, k: usize) -> f32 {
        self.words[k / self.together * self.apart + row * self.stride + k % self.together]
    }
}

/// Place of a column in a lane of [`Simd::dot_apart`]: of every eight places four are of the first half of the columns
/// and four of the second, so that interleaving two lanes as registers do gives the pairs of either half.
pub const fn apart(column: usize) -> usize {
    let (half, column) = (column / (WIDTH / 2), column % (WIDTH / 2));
    column / 4 * 8 + half * 4 + column % 4
}

/// [`Simd::nonzero_bf16`] of a lane that is rounded already, one value after the other.
#[inline(always)]
fn pack_rounded(
    from: &Lane,
    rounded: &HalfLane,
    first: u16,
    places: &mut [u16; WIDTH],
    values: &mut HalfLane,
) -> usize {
    let mut count = 0;
    for (i, (value, &rounded)) in from.iter().zip(rounded).enumerate() {
        (places[count], values[count]) = (first + i as u16, rounded);
        count += usize::from(*value != 0.0);
    }
    count
}

/// Vector arithmetic. An implementation is a token that proves its instructions are there.
///
/// Products work on [`Simd::Row`]: a part of a [`Lane`], of as many columns as leave registers for [`Simd::ROWS`]
/// accumulators beside it. Noise works on [`LANES`] elements at once.
pub trait Simd: Copy + Send + Sync {
    /// Rows that share one pass over a panel: as many accumulators as the register file holds.
    const ROWS: usize;
    /// Parts of a lane; part i holds the columns from `i * WIDTH / PARTS` on.
    const PARTS: usize;
    /// Whether the machine multiplies matrices of BF16 values: [`Simd::block`] takes the place of [`Simd::dot`].
    const MATRIX: bool = false;
    /// One part of a lane in registers.
    type Row: Copy;
    /// [`LANES`] integers.
    type Words: Copy;
    /// [`LANES`] values.
    type Floats: Copy;

    /// Runs a piece of a computation as a function of its own, so that its loops have the registers to themselves.
    #[inline(always)]
    fn outline<P: Piece<Self>>(self, piece: P) -> P::Output {
        piece.run(self)
    }

    /// Reads a part of a lane.
    fn load(self, from: &Lane, part: usize) -> Self::Row;
    /// Writes a part of a lane.
    fn store(self, row: Self::Row, to: &mut Lane, part: usize);
    /// Writes a part of a lane past the caches where its place is aligned to a cache line and the level can, else as
    /// [`Simd::store`] does. [`Simd::fence`] must follow before another thread reads it.
    fn stream(self, row: Self::Row, to: &mut Lane, part: usize);
    /// Orders what [`Simd::stream`] wrote before all later writes.
    fn fence(self);
    /// Asks for a cache line to be brought near, where the level can.
    fn prefetch<T>(self, from: &T);
    /// The same for all lines of some bytes.
    #[inline(always)]
    fn prefetch_all(self, bytes: &[u8]) {
        bytes.iter().step_by(64).for_each(|line| self.prefetch(line));
    }
    /// Widens a part of a lane of BF16 values; exact.
    fn load_bf16(self, from: &HalfLane, part: usize) -> Self::Row;
    /// Widens a part of a lane of F16 values; exact.
    fn load_f16(self, from: &HalfLane, part: usize) -> Self::Row;
    /// Rounds a part of a lane to BF16, as [`crate::dtype::Element::narrow`] does.
    fn store_bf16(self, row: Self::Row, to: &mut HalfLane, part: usize);
    /// Rounds a part of a lane to F16, as [`crate::dtype::Element::narrow`] does.
    fn store_f16(self, row: Self::Row, to: &mut HalfLane, part: usize);
    /// [`Simd::store_bf16`] past the caches, as [`Simd::stream`].
    #[inline(always)]
    fn stream_bf16(self, row: Self::Row, to: &mut HalfLane, part: usize) {
        self.store_bf16(row, to, part);
    }
    /// Whether a value is not zero but below the normal range: those that [`Simd::store_bf16_normal`] may take as zero.
    #[inline(always)]
    fn any_subnormal(self, _row: Self::Row) -> bool {
        false
    }
    /// [`Simd::store_bf16`] of values of which none is subnormal, past the caches if so asked.
    #[inline(always)]
    fn store_bf16_normal(self, row: Self::Row, to: &mut HalfLane, part: usize, stream: bool) {
        if stream { self.stream_bf16(row, to, part) } else { self.store_bf16(row, to, part) }
    }
    /// [`Simd::store_f16`] past the caches, as [`Simd::stream`].
    #[inline(always)]
    fn stream_f16(self, row: Self::Row, to: &mut HalfLane, part: usize) {
        self.store_f16(row, to, part);
    }
    /// a * b + acc, rounded once.
    fn fma(self, a: f32, b: Self::Row, acc: Self::Row) -> Self::Row;
    /// Products of BF16 values, two a word (the first in the low half): acc + a1 b1, then + a0 b0, each rounded once
    /// to F32. What is below the normal range of F32 may count as zero.
    fn dot(self, a: f32, b: Self::Row, acc: Self::Row) -> Self::Row;
    /// [`Simd::dot`] with the values b0 and b1 in lanes of their own, column c at [`apart`].
    fn dot_apart(self, a: f32, even: &HalfLane, odd: &HalfLane, part: usize, acc: Self::Row) -> Self::Row;
    /// Products of BF16 matrices: to row r of `acc`, or to zeros if not `add`, comes the sum over k of words k of row r
    /// times lane k of `b`. For every [`DEEP`] words in turn (what is missing of the last is zeros) the products of the
    /// words' first values make one chain of fused multiply-adds from zero on, those of the second values another; the
    /// sum of both goes to `acc`. This is the order of Intel's TDPBF16PS, and as there what is below the normal range
    /// of F32 counts as zero (which this definition leaves out). Rows past those that count are of no meaning.
    #[inline(always)]
    fn block(self, a: Rows<'_>, b: &[Lane], acc: &mut [Lane; TALL], add: bool) {
        let halves = |word: f32| [word.to_bits() << 16, word.to_bits() & 0xffff_0000].map(f32::from_bits);
        for (row, acc) in acc.iter_mut().enumerate().take(a.count) {
            for (column, acc) in acc.iter_mut().enumerate() {
                *acc = if add { *acc } else { 0.0 };
                for (i, b) in b.chunks(DEEP).enumerate() {
                    let (mut even, mut odd) = (0f32, 0f32);
                    for (k, b) in b.iter().enumerate() {
                        let [a_even, a_odd] = halves(a.word(row, i * DEEP + k));
                        let [b_even, b_odd] = halves(b[column]);
                        even = a_even.mul_add(b_even, even);
                        odd = a_odd.mul_add(b_odd, odd);
                    }
                    *acc += even + odd;
                }
            }
        }
    }
    /// Packs the values that are not zero (NaN is not) to the front of `values`, and their places, counted from `first`,
    /// of `places`; gives their number. What stands behind them is of no meaning.
    #[inline(always)]
    fn nonzero(
        self,
        from: &[f32; LANES],
        first: u32,
        places: &mut [u32; LANES],
        values: &mut [f32; LANES],
    ) -> usize {
        let mut count = 0;
        for (i, &value) in from.iter().enumerate() {
            (places[count], values[count]) = (first + i as u32, value);
            count += usize::from(value != 0.0);
        }
        count
    }
    /// [`Simd::nonzero`] of a lane, its values rounded to BF16. One that rounds to zero may be among them.
    #[inline(always)]
    fn nonzero_bf16(
        self,
        from: &Lane,
        first: u16,
        places: &mut [u16; WIDTH],
        values: &mut HalfLane,
    ) -> usize {
        let mut rounded: HalfLane = [0; WIDTH];
        for part in 0..Self::PARTS {
            self.store_bf16(self.load(from, part), &mut rounded, part);
        }
        pack_rounded(from, &rounded, first, places, values)
    }
    /// Words of two lanes of values rounded to BF16, the first in the low halves. What is below the normal range may count
    /// as zero.
    #[inline(always)]
    fn pair(self, even: &Lane, odd: &Lane, out: &mut Lane) {
        let (mut low, mut high): (HalfLane, HalfLane) = ([0; WIDTH], [0; WIDTH]);
        for part in 0..Self::PARTS {
            self.store_bf16_normal(self.load(even, part), &mut low, part, false);
            self.store_bf16_normal(self.load(odd, part), &mut high, part, false);
        }
        for ((out, &low), &high) in out.iter_mut().zip(&low).zip(&high) {
            *out = f32::from_bits(u32::from(low) | u32::from(high) << 16);
        }
    }
    /// Turns a square of words: row i becomes column i.
    #[inline(always)]
    fn turn(self, rows: &[[f32; LANES]; LANES]) -> [[f32; LANES]; LANES] {
        std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
    }
    /// The sum of a lane by halves: value i and value i + 16, then i + 8, and so on.
    #[inline(always)]
    fn sum(self, lane: &Lane) -> f32 {
        let mut lane = *lane;
        let mut width = WIDTH / 2;
        while width > 0 {
            for i in 0..width {
                lane[i] += lane[i + width];
            }
            width /= 2;
        }
        lane[0]
    }
    /// a * b + acc, rounded once.
    fn fma_rows(self, a: Self::Row, b: Self::Row, acc: Self::Row) -> Self::Row;
    /// a + b.
    fn add_rows(self, a: Self::Row, b: Self::Row) -> Self::Row;
    /// 0 where the value is less than 0, else the value: -0 and NaN stay.
    fn relu(self, row: Self::Row) -> Self::Row;

    /// The same integer everywhere.
    fn words(self, value: u32) -> Self::Words;
    /// Reads integers.
    fn load_words(self, from: &[u32; LANES]) -> Self::Words;
    /// Each of four integers for four lanes.
    #[inline(always)]
    fn each_of_four(self, values: [u32; LANES / 4]) -> Self::Words {
        self.load_words(&std::array::from_fn(|l| values[l / 4]))
    }
    /// a + b, wrapping.
    fn add_words(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// a - b, wrapping.
    fn sub_words(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// a & b.
    fn and(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// a ^ b.
    fn xor(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// a << N.
    fn shl<const N: u32>(self, a: Self::Words) -> Self::Words;
    /// a >> N, zeros coming in.
    fn shr<const N: u32>(self, a: Self::Words) -> Self::Words;
    /// The high and the low words of the 64-bit products a * b.
    fn mul_wide(self, a: Self::Words, b: u32) -> (Self::Words, Self::Words);
    /// Signed integers as F32, to nearest even.
    fn signed_to_floats(self, a: Self::Words) -> Self::Floats;
    /// Unsigned integers as F32, to nearest even.
    fn unsigned_to_floats(self, a: Self::Words) -> Self::Floats;
    /// The bit patterns of values.
    fn bits(self, a: Self::Floats) -> Self::Words;
    /// Values of bit patterns.
    fn with_bits(self, a: Self::Words) -> Self::Floats;
    /// `b` where bit 0 of the word is set, else `a`.
    fn choose(self, words: Self::Words, a: Self::Floats, b: Self::Floats) -> Self::Floats;

    /// The same value everywhere.
    fn floats(self, value: f32) -> Self::Floats;
    /// Reads values.
    fn load_floats(self, from: &[f32; LANES]) -> Self::Floats;
    /// Writes values.
    fn store_floats(self, a: Self::Floats, to: &mut [f32; LANES]);
    /// a + b.
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a - b.
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a * b.
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a * b + c, rounded once.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The square root, correctly rounded.
    fn sqrt(self, a: Self::Floats) -> Self::Floats;
    /// Four vectors element by element: value w of lane l becomes value `4 l + w`.
    fn interleave(self, values: [Self::Floats; 4]) -> [Self::Floats; 4];
}

/// A computation that [`Level::run`] compiles for every instruction set. `run` must be `#[inline(always)]`.
pub trait Task {
    /// What it gives.
    type Output;
    /// The computation.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// A piece of a computation, for [`Simd::outline`]. `run` must be `#[inline(always)]`.
pub trait Piece<S> {
    /// What it gives.
    type Output;
    /// The computation.
    fn run(self, simd: S) -> Self::Output;
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::dtype::Element;

    /// Values from -2 to 2, by splitmix64.
    fn random(seed: u64) -> Lane {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ z >> 31) >> 40) as f32 / (1u64 << 22) as f32 - 2.0
        })
    }

    fn halves(lane: &Lane) -> HalfLane {
        let mut out = [bf16::ZERO; WIDTH];
        bf16::narrow(lane, &mut out);
        out.map(bf16::to_bits)
    }

    /// Products of BF16 values in both arrangements: `(word, even, odd, acc)` to the sums of a lane.
    struct Products(u32, HalfLane, HalfLane, Lane);

    impl Task for Products {
        type Output = [Lane; 2];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [Lane; 2] {
            let Products(word, even, odd, acc) = self;
            let (a, mut out) = (f32::from_bits(word), [[0f32; WIDTH]; 2]);
            let words: Lane =
                std::array::from_fn(|i| f32::from_bits(u32::from(even[i]) | u32::from(odd[i]) << 16));
            let apart_of = |values: HalfLane| {
                let mut lane: HalfLane = [0; WIDTH];
                (0..WIDTH).for_each(|c| lane[apart(c)] = values[c]);
                lane
            };
            let [even, odd] = [even, odd].map(apart_of);
            for part in 0..S::PARTS {
                let acc = simd.load(&acc, part);
                simd.store(simd.dot(a, simd.load(&words, part), acc), &mut out[0], part);
                simd.store(simd.dot_apart(a, &even, &odd, part, acc), &mut out[1], part);
            }
            out
        }
    }

    #[test]
    fn products_of_bf16_add_the_odd_term_first_and_round_after_each() {
        for trial in 0..500 {
            let [even, odd] = [halves(&random(4 * trial)), halves(&random(4 * trial + 1))];
            let (acc, ab) = (random(4 * trial + 2), halves(&random(4 * trial + 3)));
            let word = u32::from(ab[0]) | u32::from(ab[1]) << 16;
            let wide = |half: u16| bf16::from_bits(half).to_f32();
            let want: Lane = std::array::from_fn(|i| {
                let sum = wide(ab[1]).mul_add(wide(odd[i]), acc[i]);
                wide(ab[0]).mul_add(wide(even[i]), sum)
            });
            for level in Level::available() {
                let got = level.run(Products(word, even, odd, acc));
                for (got, how) in got.iter().zip(["together", "apart"]) {
                    assert_eq!(got.map(f32::to_bits), want.map(f32::to_bits), "{} {how}", level.name());
                }
            }
        }
    }

    /// A block of products: row words, how they lie, lanes, sums before, and whether they count.
    struct Blocks<'a>(Rows<'a>, &'a [Lane], [Lane; TALL], bool);

    impl Task for Blocks<'_> {
        type Output = [Lane; TALL];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [Lane; TALL] {
            let Blocks(rows, b, mut acc, add) = self;
            simd.block(rows, b, &mut acc, add);
            acc
        }
    }

    #[test]
    fn products_of_matrices_are_as_defined() {
        let word_lane = |seed: u64| {
            let (even, odd) = (halves(&random(seed)), halves(&random(seed + 1)));
            std::array::from_fn(|i| f32::from_bits(u32::from(even[i]) | u32::from(odd[i]) << 16))
        };
        let matrices: Vec<Level> = Level::available().into_iter().filter(|l| l.is_matrix()).collect();
        let shapes: [(usize, usize); 9] =
            [(1, 16), (16, 16), (17, 32), (32, 64), (32, 200), (5, 7), (31, 129), (32, 8), (20, 128)];
        for (trial, (count, words)) in shapes.into_iter().enumerate() {
            for (together, apart, stride) in [(64, 64 * TALL, 64), (512, 0, words.next_multiple_of(16) + 16)]
            {
                let seed = 1000 * trial as u64;
                let room = words.div_ceil(together) * apart.max(1) + TALL * stride;
                let a: Vec<Lane> =
                    (0..room.div_ceil(WIDTH)).map(|i| word_lane(seed + 2 * i as u64)).collect();
                let b: Vec<Lane> = (0..words).map(|i| word_lane(seed + 7 + 2 * i as u64)).collect();
                let mut acc = [[0f32; WIDTH]; TALL];
                acc.iter_mut().enumerate().for_each(|(i, acc)| *acc = random(seed + i as u64));
                let rows = Rows { words: a.as_flattened(), count, stride, together, apart };
                for add in [false, true] {
                    let bits = |level: &Level| {
                        let made = level.run(Blocks(rows, &b, acc, add));
                        made[..count].iter().map(|lane| lane.map(f32::to_bits)).collect::<Vec<_>>()
                    };
                    let want = bits(&Level::PortableAmx(Portable));
                    assert!(want.iter().all(|lane| lane.iter().all(|&b| f32::from_bits(b).is_finite())));
                    for level in &matrices {
                        let name = level.name();
                        assert!(bits(level) == want, "{name}: {count} rows, {words} words, add {add}");
                    }
                }
            }
        }
    }

    /// Words of two lanes.
    struct Paired(Lane, Lane);

    impl Task for Paired {
        type Output = Lane;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Lane {
            let mut out = [0f32; WIDTH];
            simd.pair(&self.0, &self.1, &mut out);
            out
        }
    }

    #[test]
    fn words_are_of_two_rounded_values() {
        for trial in 0..200 {
            let (mut even, mut odd) = (random(2 * trial), random(2 * trial + 1));
            even[trial as usize % WIDTH] = [f32::NAN, f32::INFINITY, -0.0, 3.4e38][trial as usize % 4];
            odd[trial as usize % 31] =
                [f32::NEG_INFINITY, f32::MIN_POSITIVE, 0.0, -f32::NAN][trial as usize % 4];
            let (low, high) = (halves(&even), halves(&odd));
            for level in Level::available() {
                let got = level.run(Paired(even, odd));
                for i in 0..WIDTH {
                    let want = u32::from(low[i]) | u32::from(high[i]) << 16;
                    assert_eq!(got[i].to_bits(), want, "{}: {} and {}", level.name(), even[i], odd[i]);
                }
            }
        }
    }

    struct Turned([[f32; LANES]; LANES]);

    impl Task for Turned {
        type Output = [[f32; LANES]; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            simd.turn(&self.0)
        }
    }

    #[test]
    fn squares_are_turned() {
        let square = std::array::from_fn(|i| std::array::from_fn(|j| (LANES * i + j) as f32));
        for level in Level::available() {
            let turned = level.run(Turned(square));
            for (i, row) in turned.iter().enumerate() {
                for (j, &word) in row.iter().enumerate() {
                    assert_eq!(word, (LANES * j + i) as f32, "{}: row {i}, column {j}", level.name());
                }
            }
        }
    }

    /// What is packed of a lane, as F32 and as BF16: places and bits.
    struct Packed(Lane);

    impl Task for Packed {
        type Output = (Vec<(u32, u32)>, Vec<(u16, u16)>);

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let (mut places, mut values) = ([0u32; LANES], [0f32; LANES]);
            let mut singles = Vec::new();
            for (i, from) in self.0.as_chunks().0.iter().enumerate() {
                let count = simd.nonzero(from, 100 + (i * LANES) as u32, &mut places, &mut values);
                singles.extend((0..count).map(|j| (places[j], values[j].to_bits())));
            }
            let (mut places, mut values) = ([0u16; WIDTH], [0u16; WIDTH]);
            let count = simd.nonzero_bf16(&self.0, 100, &mut places, &mut values);
            (singles, places.into_iter().zip(values).take(count).collect())
        }
    }

    #[test]
    fn what_is_not_zero_is_packed() {
        for trial in 0..200 {
            let mut lane = random(trial).map(|v| if v < 0.3 { 0.0 } else { v });
            let odd = [-0.0, f32::NAN, f32::INFINITY, 1e-40, -3e-39, f32::MIN_POSITIVE, 3.4e38, -0.0];
            lane[trial as usize % 24..][..8].copy_from_slice(&odd);
            let rounded = halves(&lane);
            let kept = (0..WIDTH).filter(|&i| lane[i] != 0.0);
            let singles: Vec<(u32, u32)> =
                kept.clone().map(|i| (100 + i as u32, lane[i].to_bits())).collect();
            let pairs: Vec<(u16, u16)> = kept.map(|i| (100 + i as u16, rounded[i])).collect();
            for level in Level::available() {
                let got = level.run(Packed(lane));
                assert_eq!(got, (singles.clone(), pairs.clone()), "{}", level.name());
            }
        }
    }

    /// A lane rounded to BF16 and to F16, stored and streamed, and its sum.
    struct Stored(Lane);

    #[repr(align(64))]
    struct Aligned([HalfLane; 4]);

    impl Task for Stored {
        type Output = ([HalfLane; 4], u32);

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let mut out = Aligned([[0; WIDTH]; 4]);
            for part in 0..S::PARTS {
                let row = simd.load(&self.0, part);
                simd.store_bf16(row, &mut out.0[0], part);
                simd.stream_bf16(row, &mut out.0[1], part);
                simd.store_f16(row, &mut out.0[2], part);
                simd.stream_f16(row, &mut out.0[3], part);
            }
            simd.fence();
            (out.0, simd.sum(&self.0).to_bits())
        }
    }

    #[test]
    fn rounding_and_sums_are_the_same_on_every_level() {
        for trial in 0..300 {
            // Magnitudes of every kind, subnormal ones among them.
            let scale = 2f32.powi((trial as i32 % 60 - 30) * 5);
            let mut lane = random(trial).map(|v| v * scale);
            if trial % 7 == 0 {
                lane[trial as usize % WIDTH] = [f32::NAN, -f32::NAN, f32::INFINITY, -0.0][trial as usize % 4];
            }
            let bf16 = halves(&lane);
            let mut f16 = [half::f16::ZERO; WIDTH];
            half::f16::narrow(&lane, &mut f16);
            let f16 = f16.map(half::f16::to_bits);
            let (_, sum) = Level::Portable(Portable).run(Stored(lane));
            for level in Level::available() {
                let (got, got_sum) = level.run(Stored(lane));
                assert_eq!(got[..2], [bf16; 2], "{} {lane:?}", level.name());
                assert_eq!(got[2], got[3], "{} {lane:?}", level.name());
                for (got, want) in got[2].iter().zip(f16) {
                    let nan = |bits| half::f16::from_bits(bits).is_nan();
                    assert!(*got == want || nan(*got) && nan(want), "{} {lane:?}", level.name());
                }
                let nan = |bits| f32::from_bits(bits).is_nan();
                assert!(got_sum == sum || nan(got_sum) && nan(sum), "{}", level.name());
            }
        }
    }
}
