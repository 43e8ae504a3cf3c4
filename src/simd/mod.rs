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
#[cfg(test)]
mod tests;

pub use level::Isa;
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

/// [`Simd::nonzero`] and [`Simd::nonzero_bf16`], one value after the other: of a lane, and of what it is rounded to.
#[inline(always)]
fn pack<T: Copy>(from: &Lane, rounded: &[T; WIDTH], values: &mut [T; WIDTH]) -> u32 {
    let (mut mask, mut count) = (0, 0);
    for (i, (value, &rounded)) in from.iter().zip(rounded).enumerate() {
        let kept = *value != 0.0;
        values[count] = rounded;
        count += usize::from(kept);
        mask |= u32::from(kept) << i;
    }
    mask
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
    /// acc + a0 b0, then + a1 b1, each rounded once, where `a` is a word of the BF16 values a0 and a1, the first in the low
    /// half.
    #[inline(always)]
    fn fma_pair(self, a: f32, [b0, b1]: [Self::Row; 2], acc: Self::Row) -> Self::Row {
        let bits = a.to_bits();
        let acc = self.fma(f32::from_bits(bits << 16), b0, acc);
        self.fma(f32::from_bits(bits & 0xffff_0000), b1, acc)
    }
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
    /// Packs the values of a lane that are not zero (NaN is not) to the front of `values`; gives which they are, column i
    /// as bit i. What stands behind them is of no meaning.
    #[inline(always)]
    fn nonzero(self, from: &Lane, values: &mut Lane) -> u32 {
        pack(from, from, values)
    }
    /// [`Simd::nonzero`] of values rounded to BF16. One that rounds to zero may be among them.
    #[inline(always)]
    fn nonzero_bf16(self, from: &Lane, values: &mut HalfLane) -> u32 {
        let mut rounded: HalfLane = [0; WIDTH];
        for part in 0..Self::PARTS {
            self.store_bf16(self.load(from, part), &mut rounded, part);
        }
        pack(from, &rounded, values)
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

/// A computation that [`Isa::run`] compiles for every instruction set. `run` must be `#[inline(always)]`.
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
