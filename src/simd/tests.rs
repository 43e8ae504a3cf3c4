//! The instructions of every instruction set of this machine against their definitions.

use half::bf16;

use super::*;
use crate::dtype::Element;

/// Values from -2 to 2, by splitmix64.
fn random(seed: u64) -> NrRow {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    std::array::from_fn(|_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 40) as f32 / (1u64 << 22) as f32 - 2.0
    })
}

fn halves(row: &NrRow) -> NrRow16 {
    let mut out = [bf16::ZERO; NR];
    bf16::narrow(row, &mut out);
    out.map(bf16::to_bits)
}

/// bf16x2 words of two rows.
fn words(even: &NrRow16, odd: &NrRow16) -> NrRow {
    std::array::from_fn(|i| f32::from_bits(u32::from(even[i]) | u32::from(odd[i]) << 16))
}

/// Products of one word with a row of words.
struct Products(f32, NrRow, NrRow);

impl Task for Products {
    type Output = NrRow;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> NrRow {
        let Products(a, b, mut acc) = self;
        for (b, acc) in b.as_chunks::<VLEN>().0.iter().zip(acc.as_chunks_mut::<VLEN>().0) {
            simd.store(simd.dot_bf16(a, simd.load(b), simd.load(acc)), acc);
        }
        acc
    }
}

#[test]
fn products_of_bf16_add_the_odd_term_first_and_round_after_each() {
    for trial in 0..500 {
        let [even, odd] = [halves(&random(4 * trial)), halves(&random(4 * trial + 1))];
        let (acc, ab) = (random(4 * trial + 2), halves(&random(4 * trial + 3)));
        let word = f32::from_bits(u32::from(ab[0]) | u32::from(ab[1]) << 16);
        let wide = |half: u16| bf16::from_bits(half).to_f32();
        let want: NrRow = std::array::from_fn(|i| {
            let sum = wide(ab[1]).mul_add(wide(odd[i]), acc[i]);
            wide(ab[0]).mul_add(wide(even[i]), sum)
        });
        for isa in Isa::available() {
            let got = isa.run(Products(word, words(&even, &odd), acc));
            assert_eq!(got.map(f32::to_bits), want.map(f32::to_bits), "{}", isa.name());
        }
    }
}

/// A block of products: rows, packed B, sums before.
struct Blocks<'a>(RowsRef<'a>, &'a [NrRow], [NrRow; AMX_M]);

impl Task for Blocks<'_> {
    type Output = [NrRow; AMX_M];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [NrRow; AMX_M] {
        let Blocks(rows, b, mut acc) = self;
        simd.amx_block(rows, b, &mut acc);
        acc
    }
}

#[test]
fn products_of_matrices_are_as_defined() {
    let word_row = |seed: u64| words(&halves(&random(seed)), &halves(&random(seed + 1)));
    let all: Vec<Isa> = Isa::available().into_iter().filter(|isa| isa.has_amx()).collect();
    let definition = all.last().expect("portable-amx");
    let shapes: [(usize, usize); 9] =
        [(1, 16), (16, 16), (17, 32), (32, 64), (32, 200), (5, 7), (31, 129), (32, 8), (20, 128)];
    for (trial, (count, words)) in shapes.into_iter().enumerate() {
        for stride in [words.next_multiple_of(16) + 16, words, 512] {
            let seed = 1000 * trial as u64;
            let room = AMX_M * stride;
            let a: Vec<NrRow> = (0..room.div_ceil(NR)).map(|i| word_row(seed + 2 * i as u64)).collect();
            let b: Vec<NrRow> = (0..words).map(|i| word_row(seed + 7 + 2 * i as u64)).collect();
            let mut acc = [[0f32; NR]; AMX_M];
            acc.iter_mut().enumerate().for_each(|(i, acc)| *acc = random(seed + i as u64));
            let rows = RowsRef { words: a.as_flattened(), count, stride };
            for acc in [[[0.0; NR]; AMX_M], acc] {
                let bits = |isa: &Isa| {
                    let made = isa.run(Blocks(rows, &b, acc));
                    made[..count].iter().map(|row| row.map(f32::to_bits)).collect::<Vec<_>>()
                };
                let want = bits(definition);
                assert!(want.iter().all(|row| row.iter().all(|&b| f32::from_bits(b).is_finite())));
                for isa in &all {
                    assert!(bits(isa) == want, "{}: {count} rows, {words} words", isa.name());
                }
            }
        }
    }
}

/// Words of two rows.
struct Paired(NrRow, NrRow);

impl Task for Paired {
    type Output = NrRow;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> NrRow {
        let mut out = [0f32; NR];
        simd.pack_bf16x2(&self.0, &self.1, &mut out);
        out
    }
}

#[test]
fn words_are_of_two_rounded_values() {
    for trial in 0..200 {
        let (mut even, mut odd) = (random(2 * trial), random(2 * trial + 1));
        even[trial as usize % NR] = [f32::NAN, f32::INFINITY, -0.0, 3.4e38][trial as usize % 4];
        odd[trial as usize % 31] = [f32::NEG_INFINITY, f32::MIN_POSITIVE, 0.0, -f32::NAN][trial as usize % 4];
        let (low, high) = (halves(&even), halves(&odd));
        for isa in Isa::available() {
            let got = isa.run(Paired(even, odd));
            for i in 0..NR {
                let want = u32::from(low[i]) | u32::from(high[i]) << 16;
                assert_eq!(got[i].to_bits(), want, "{}: {} and {}", isa.name(), even[i], odd[i]);
            }
        }
    }
}

struct Turned([[f32; VLEN]; VLEN]);

impl Task for Turned {
    type Output = [[f32; VLEN]; VLEN];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        simd.transpose(&self.0)
    }
}

#[test]
fn squares_are_turned() {
    let square = std::array::from_fn(|i| std::array::from_fn(|j| (VLEN * i + j) as f32));
    for isa in Isa::available() {
        let turned = isa.run(Turned(square));
        for (i, row) in turned.iter().enumerate() {
            for (j, &word) in row.iter().enumerate() {
                assert_eq!(word, (VLEN * j + i) as f32, "{}: row {i}, column {j}", isa.name());
            }
        }
    }
}

/// A row rounded to BF16 and to F16, stored and streamed; its sum.
struct Stored(NrRow);

#[repr(align(64))]
struct Aligned([NrRow16; 3]);

impl Task for Stored {
    type Output = ([NrRow16; 3], u32);

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let (mut out, mut rounded) = (Aligned([[0; NR]; 3]), [0; NR]);
        simd.narrow_bf16(&self.0, &mut out.0[0]);
        simd.narrow_bf16(&self.0, &mut rounded);
        simd.stream(bytemuck::cast_ref(&rounded), bytemuck::cast_mut(&mut out.0[1]));
        simd.narrow_f16(&self.0, &mut out.0[2]);
        (out.0, simd.sum(&self.0).to_bits())
    }
}

struct Relu(Vec<f32>);

impl Task for Relu {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> Self::Output {
        simd.relu(&mut self.0);
        self.0.into_iter().map(f32::to_bits).collect()
    }
}

#[test]
fn relu_keeps_zeros_and_nan() {
    let special =
        [-0.0, 0.0, f32::NAN, -f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -f32::MIN_POSITIVE / 8.0];
    let values: Vec<f32> =
        (0..).flat_map(random).zip(0..).map(|(v, i)| *special.get(i % 11).unwrap_or(&v)).take(77).collect();
    for len in 0..values.len() {
        let want: Vec<u32> = values[..len].iter().map(|&v| if v < 0.0 { 0 } else { v.to_bits() }).collect();
        for isa in Isa::available() {
            assert_eq!(isa.run(Relu(values[..len].to_vec())), want, "{}", isa.name());
        }
    }
}

fn portable() -> Isa {
    Isa::available().into_iter().find(|isa| isa.name() == "portable").expect("on every machine")
}

#[test]
fn rounding_and_sums_are_the_same_on_every_instruction_set() {
    for trial in 0..300 {
        // Magnitudes of every kind, subnormal ones among them.
        let scale = 2f32.powi((trial as i32 % 60 - 30) * 5);
        let mut row = random(trial).map(|v| v * scale);
        if trial % 7 == 0 {
            row[trial as usize % NR] = [f32::NAN, -f32::NAN, f32::INFINITY, -0.0][trial as usize % 4];
        }
        let bf16 = halves(&row);
        let mut f16 = [half::f16::ZERO; NR];
        half::f16::narrow(&row, &mut f16);
        let f16 = f16.map(half::f16::to_bits);
        let (_, sum) = portable().run(Stored(row));
        for isa in Isa::available() {
            let (got, got_sum) = isa.run(Stored(row));
            assert_eq!(got[..2], [bf16; 2], "{} {row:?}", isa.name());
            for (got, want) in got[2].iter().zip(f16) {
                let nan = |bits| half::f16::from_bits(bits).is_nan();
                assert!(*got == want || nan(*got) && nan(want), "{} {row:?}", isa.name());
            }
            let nan = |bits| f32::from_bits(bits).is_nan();
            assert!(got_sum == sum || nan(got_sum) && nan(sum), "{}", isa.name());
        }
    }
}
