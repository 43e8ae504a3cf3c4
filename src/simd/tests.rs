//! The instructions of every level of this machine against their definitions.

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
        for level in Isa::available() {
            let got = level.run(Products(word, even, odd, acc));
            for (got, how) in got.iter().zip(["together", "apart"]) {
                assert_eq!(got.map(f32::to_bits), want.map(f32::to_bits), "{} {how}", level.name());
            }
        }
    }
}

/// Products of a word's values with lanes of their own: `(word, lanes, acc)` to the sums of a lane.
struct PairProducts(u32, [Lane; 2], Lane);

impl Task for PairProducts {
    type Output = Lane;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Lane {
        let PairProducts(word, b, acc) = self;
        let mut out = [0f32; WIDTH];
        for part in 0..S::PARTS {
            let b = [simd.load(&b[0], part), simd.load(&b[1], part)];
            let sums = simd.fma_pair(f32::from_bits(word), b, simd.load(&acc, part));
            simd.store(sums, &mut out, part);
        }
        out
    }
}

#[test]
fn products_of_a_word_with_f32_add_its_first_value_first() {
    for trial in 0..500 {
        let (b, acc) = ([random(4 * trial), random(4 * trial + 1)], random(4 * trial + 2));
        let [low, high, ..] = halves(&random(4 * trial + 3));
        let wide = |half: u16| bf16::from_bits(half).to_f32();
        let want: Lane = std::array::from_fn(|i| {
            let sum = wide(low).mul_add(b[0][i], acc[i]);
            wide(high).mul_add(b[1][i], sum)
        });
        for level in Isa::available() {
            let got = level.run(PairProducts(u32::from(low) | u32::from(high) << 16, b, acc));
            assert_eq!(got.map(f32::to_bits), want.map(f32::to_bits), "{}", level.name());
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
    let matrices: Vec<Isa> = Isa::available().into_iter().filter(|l| l.is_matrix()).collect();
    let shapes: [(usize, usize); 9] =
        [(1, 16), (16, 16), (17, 32), (32, 64), (32, 200), (5, 7), (31, 129), (32, 8), (20, 128)];
    for (trial, (count, words)) in shapes.into_iter().enumerate() {
        for (together, apart, stride) in [(64, 64 * TALL, 64), (512, 0, words.next_multiple_of(16) + 16)] {
            let seed = 1000 * trial as u64;
            let room = words.div_ceil(together) * apart.max(1) + TALL * stride;
            let a: Vec<Lane> = (0..room.div_ceil(WIDTH)).map(|i| word_lane(seed + 2 * i as u64)).collect();
            let b: Vec<Lane> = (0..words).map(|i| word_lane(seed + 7 + 2 * i as u64)).collect();
            let mut acc = [[0f32; WIDTH]; TALL];
            acc.iter_mut().enumerate().for_each(|(i, acc)| *acc = random(seed + i as u64));
            let rows = Rows { words: a.as_flattened(), count, stride, together, apart };
            for add in [false, true] {
                let bits = |level: &Isa| {
                    let made = level.run(Blocks(rows, &b, acc, add));
                    made[..count].iter().map(|lane| lane.map(f32::to_bits)).collect::<Vec<_>>()
                };
                let want = bits(&Isa::PortableAmx(Portable));
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
        odd[trial as usize % 31] = [f32::NEG_INFINITY, f32::MIN_POSITIVE, 0.0, -f32::NAN][trial as usize % 4];
        let (low, high) = (halves(&even), halves(&odd));
        for level in Isa::available() {
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
    for level in Isa::available() {
        let turned = level.run(Turned(square));
        for (i, row) in turned.iter().enumerate() {
            for (j, &word) in row.iter().enumerate() {
                assert_eq!(word, (LANES * j + i) as f32, "{}: row {i}, column {j}", level.name());
            }
        }
    }
}

/// What is packed of a lane, as F32 and as BF16: columns and bits.
struct Packed(Lane);

impl Task for Packed {
    type Output = (Vec<(usize, u32)>, Vec<(usize, u16)>);

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let (mut singles, mut pairs) = ([0f32; WIDTH], [0u16; WIDTH]);
        let masks = [simd.nonzero(&self.0, &mut singles), simd.nonzero_bf16(&self.0, &mut pairs)];
        let [of_singles, of_pairs] = masks.map(|mask| (0..WIDTH).filter(move |i| mask >> i & 1 == 1));
        (of_singles.zip(singles.map(f32::to_bits)).collect(), of_pairs.zip(pairs).collect())
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
        let singles: Vec<(usize, u32)> = kept.clone().map(|i| (i, lane[i].to_bits())).collect();
        let pairs: Vec<(usize, u16)> = kept.map(|i| (i, rounded[i])).collect();
        for level in Isa::available() {
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
        let (_, sum) = Isa::Portable(Portable).run(Stored(lane));
        for level in Isa::available() {
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
