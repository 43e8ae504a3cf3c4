//! Matrix products for inference, with results that do not depend on how rows are cut into blocks.
//!
//! A library GEMM chooses its blocking from all three sizes, and with it the order of additions; here every output
//! element is one chain of fused multiply-adds over k in rising order, from where its caller starts it. So the same
//! row gives the same bits in a block of any size, on any thread, at any SIMD level.

use std::ops::Range;

use super::halves::word;
use super::lanes::Lanes;
use super::latent;
use crate::backend::Precision;
use crate::simd::{HalfLane, LANES as VECTOR, Lane, Piece, Rows, Simd, TALL, WIDTH};

/// Words of a row that stand side by side in [`Inputs`].
pub const DEPTH: usize = 64;
/// Lanes of a [`Stretch`].
const LANES: usize = DEPTH / WIDTH;

/// [`DEPTH`] words of one row.
type Stretch = [f32; DEPTH];

/// How terms are multiplied. Operands come in words of 32 bits.
pub trait Arithmetic {
    /// Inputs of a word.
    const INPUTS: usize;
    /// Whether sums below the normal range may count as zero.
    const NORMAL: bool;
    /// `acc` and the products of a word of inputs with words of weights.
    fn add<S: Simd>(simd: S, a: f32, b: S::Row, acc: S::Row) -> S::Row;
}

/// F32: a word is an input.
pub struct Single;

impl Arithmetic for Single {
    const INPUTS: usize = 1;
    const NORMAL: bool = false;

    #[inline(always)]
    fn add<S: Simd>(simd: S, a: f32, b: S::Row, acc: S::Row) -> S::Row {
        simd.fma(a, b, acc)
    }
}

/// BF16: a word is two inputs, see [`Simd::dot`].
pub struct Pairs;

impl Arithmetic for Pairs {
    const INPUTS: usize = 2;
    const NORMAL: bool = true;

    #[inline(always)]
    fn add<S: Simd>(simd: S, a: f32, b: S::Row, acc: S::Row) -> S::Row {
        simd.dot(a, b, acc)
    }
}

/// Inputs of a word in products of a precision.
pub fn inputs_of_word(precision: Precision) -> usize {
    match precision {
        Precision::F32 => Single::INPUTS,
        Precision::Bf16 => Pairs::INPUTS,
    }
}

/// Panels whose sums a row takes side by side.
pub const ACROSS: usize = 4;

/// A weight matrix `[outputs, inputs]` packed for [`products`]: panels of 32 outputs, each `[words][32]`, the last
/// one padded with zeros.
#[derive(Clone, Debug)]
pub struct Panels {
    lanes: Lanes,
    words: usize,
    outputs: usize,
    precision: Precision,
}

impl Panels {
    /// Packs a row-major `[outputs, inputs]` weight.
    pub fn pack(weight: &[f32], inputs: usize, outputs: usize, precision: Precision) -> Panels {
        let together = inputs_of_word(precision);
        let words = inputs.div_ceil(together);
        let mut lanes = Lanes::zeros(outputs.div_ceil(WIDTH) * words);
        for (o, row) in weight.chunks_exact(inputs).enumerate() {
            let panel = &mut lanes[o / WIDTH * words..][..words];
            for (lane, w) in panel.iter_mut().zip(row.chunks(together)) {
                lane[o % WIDTH] = match precision {
                    Precision::F32 => w[0],
                    Precision::Bf16 => word(w[0], w.get(1).copied().unwrap_or(0.0)),
                };
            }
        }
        Panels { lanes, words, outputs, precision }
    }

    /// Number of words of an output's inputs.
    pub fn words(&self) -> usize {
        self.words
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.lanes)
    }

    /// What the words are.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Number of panels.
    pub fn count(&self) -> usize {
        self.outputs.div_ceil(WIDTH)
    }

    /// Words `k` of panel `p`, `[k][32]`.
    #[inline(always)]
    pub fn panel(&self, p: usize, k: &Range<usize>) -> &[Lane] {
        &self.lanes[p * self.words..(p + 1) * self.words][k.clone()]
    }
}

/// A vector padded with zeros to whole lanes: a bias beside [`Panels`].
pub fn pad_lanes(values: &[f32]) -> Vec<Lane> {
    let mut lanes = vec![[0f32; WIDTH]; values.len().div_ceil(WIDTH)];
    lanes.as_flattened_mut()[..values.len()].copy_from_slice(values);
    lanes
}

/// The inputs of a block of rows in words, a stretch of every row after the other: one pointer and constant distances reach
/// all rows of a tile. The block is padded to whole tiles; what the padding holds reaches no other row.
#[derive(Debug, Default)]
pub struct Inputs {
    stretches: Vec<Stretch>,
    rows: usize,
}

impl Inputs {
    /// Makes room for `rows` rows, which must be whole tiles of every height that will be taken, of `words` words. What was
    /// there stays there.
    pub fn resize(&mut self, rows: usize, words: usize) {
        self.rows = rows;
        self.stretches.resize(rows * words.div_ceil(DEPTH), [0.0; DEPTH]);
    }

    /// Words `32 p` to `32 p + 31` of a row, `p` below `words / 32`.
    #[inline(always)]
    pub fn lane(&self, row: usize, p: usize) -> &Lane {
        let stretch = &self.stretches[p / LANES * self.rows + row];
        (&stretch[p % LANES * WIDTH..][..WIDTH]).try_into().expect("a lane")
    }

    /// Words `32 p` to `32 p + 31` of a row.
    #[inline(always)]
    pub fn lane_mut(&mut self, row: usize, p: usize) -> &mut Lane {
        let stretch = &mut self.stretches[p / LANES * self.rows + row];
        (&mut stretch[p % LANES * WIDTH..][..WIDTH]).try_into().expect("a lane")
    }

    /// Sets the words of a row from halves of them, zeros behind the last.
    #[inline(always)]
    pub fn set_halves(&mut self, row: usize, values: &[u16]) {
        const HALVES: usize = 2 * DEPTH;
        let (whole, rest) = values.as_chunks::<HALVES>();
        for (i, values) in whole.iter().enumerate() {
            self.stretches[i * self.rows + row] = bytemuck::cast(*values);
        }
        if !rest.is_empty() {
            let mut last = [0u16; HALVES];
            last[..rest.len()].copy_from_slice(rest);
            self.stretches[whole.len() * self.rows + row] = bytemuck::cast(last);
        }
    }

    /// BF16 values `32 p` to `32 p + 31` of a row.
    #[inline(always)]
    pub fn halves_mut(&mut self, row: usize, p: usize) -> &mut HalfLane {
        let lane: &mut [HalfLane; 2] = bytemuck::cast_mut(self.lane_mut(row, p / 2));
        &mut lane[p % 2]
    }

    /// Sets `count` rows from values, two a word. What is below the normal range may count as zero.
    #[inline(always)]
    pub fn set_pairs<S: Simd>(&mut self, simd: S, values: &Inputs, count: usize, words: usize) {
        for row in 0..count {
            for p in 0..words.div_ceil(WIDTH / 2) {
                for part in 0..S::PARTS {
                    let values = simd.load(values.lane(row, p), part);
                    simd.store_bf16_normal(values, self.halves_mut(row, p), part, false);
                }
            }
        }
    }

    /// Rows `first` to `first + count - 1`, for [`Simd::block`].
    #[inline(always)]
    pub fn block(&self, first: usize, count: usize) -> Rows<'_> {
        let words = self.stretches[first..].as_flattened();
        Rows { words, count, stride: DEPTH, together: DEPTH, apart: self.rows * DEPTH }
    }

    /// Takes row `from` of `other`, a block of as many inputs, from row `row`.
    #[inline(always)]
    pub fn subtract(&mut self, row: usize, other: &Inputs, from: usize) {
        let own = self.stretches.iter_mut().skip(row).step_by(self.rows);
        for (own, other) in own.zip(other.stretches.iter().skip(from).step_by(other.rows)) {
            for (a, b) in own.iter_mut().zip(other) {
                *a -= b;
            }
        }
    }
}

impl latent::Target for Inputs {
    #[inline(always)]
    fn columns(&mut self, latent: usize, group: usize) -> &mut [f32; VECTOR] {
        const GROUPS: usize = DEPTH / VECTOR;
        let stretch = &mut self.stretches[group / GROUPS * self.rows + latent];
        &mut stretch.as_chunks_mut().0[group % GROUPS]
    }
}

/// A part of a lane of the outputs: of which panel, and in which row of the block.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The panel.
    pub panel: usize,
    /// The row.
    pub row: usize,
    /// The part, as in [`Simd::load`].
    pub part: usize,
}

/// Where sums start from. (Traits rather than closures: what [`products`] calls must be inlined into the code of a
/// level, which only `#[inline(always)]` ensures.)
pub trait Start<S: Simd> {
    /// What the sums of a place start from.
    fn start(&self, simd: S, at: Place) -> S::Row;

    /// The same of a row's panels from the place on.
    #[inline(always)]
    fn start_all<const N: usize>(&self, simd: S, at: Place) -> [S::Row; N] {
        let mut all = [self.start(simd, at); N];
        for (i, row) in all.iter_mut().enumerate().skip(1) {
            *row = self.start(simd, Place { panel: at.panel + i, ..at });
        }
        all
    }
}

/// Where sums go to.
pub trait Finish<S: Simd> {
    /// Takes the sums of a place.
    fn finish(&mut self, simd: S, at: Place, sums: S::Row);

    /// Takes the sums of a row's panels from the place on, of which a subnormal one may count as zero if `normal`.
    #[inline(always)]
    fn finish_all<const N: usize>(&mut self, simd: S, at: Place, sums: [S::Row; N], _normal: bool) {
        for (i, sums) in sums.into_iter().enumerate() {
            self.finish(simd, Place { panel: at.panel + i, ..at }, sums);
        }
    }

    /// Called now and then while sums are being made.
    #[inline(always)]
    fn meanwhile(&mut self, _: S) {}
}

/// Both ends of sums.
pub trait Sums<S: Simd>: Start<S> + Finish<S> {}

impl<S: Simd, T: Start<S> + Finish<S>> Sums<S> for T {}

/// Two ends of sums that know nothing of each other.
#[derive(Default)]
pub struct Ends<A, Z>(pub A, pub Z);

impl<S: Simd, A: Start<S>, Z> Start<S> for Ends<A, Z> {
    #[inline(always)]
    fn start(&self, simd: S, at: Place) -> S::Row {
        self.0.start(simd, at)
    }

    #[inline(always)]
    fn start_all<const N: usize>(&self, simd: S, at: Place) -> [S::Row; N] {
        self.0.start_all(simd, at)
    }
}

impl<S: Simd, A, Z: Finish<S>> Finish<S> for Ends<A, Z> {
    #[inline(always)]
    fn finish(&mut self, simd: S, at: Place, sums: S::Row) {
        self.1.finish(simd, at, sums);
    }

    #[inline(always)]
    fn finish_all<const N: usize>(&mut self, simd: S, at: Place, sums: [S::Row; N], normal: bool) {
        self.1.finish_all(simd, at, sums, normal);
    }

    #[inline(always)]
    fn meanwhile(&mut self, simd: S) {
        self.1.meanwhile(simd);
    }
}

impl<S: Simd, Z: Finish<S>> Finish<S> for &mut Z {
    #[inline(always)]
    fn finish(&mut self, simd: S, at: Place, sums: S::Row) {
        Z::finish(self, simd, at, sums);
    }

    #[inline(always)]
    fn finish_all<const N: usize>(&mut self, simd: S, at: Place, sums: [S::Row; N], normal: bool) {
        Z::finish_all(self, simd, at, sums, normal);
    }

    #[inline(always)]
    fn meanwhile(&mut self, simd: S) {
        Z::meanwhile(self, simd);
    }
}

/// The products of the first `rows` rows of a block with words `k` of the weights, for the panels asked for; `a`
/// holds words `k` of every row.
#[inline(always)]
pub fn products<S: Simd>(
    simd: S,
    a: (&Inputs, usize),
    weights: &Panels,
    k: Range<usize>,
    panels: Range<usize>,
    sums: &mut impl Sums<S>,
) {
    match weights.precision {
        Precision::F32 => tiles::<S, Single>(simd, a, weights, k, panels, sums),
        Precision::Bf16 if S::MATRIX => blocks(simd, a, weights, k, panels, sums),
        Precision::Bf16 => tiles::<S, Pairs>(simd, a, weights, k, panels, sums),
    }
}

#[inline(always)]
fn blocks<S: Simd>(
    simd: S,
    (a, rows): (&Inputs, usize),
    weights: &Panels,
    k: Range<usize>,
    panels: Range<usize>,
    sums: &mut impl Sums<S>,
) {
    #[repr(align(64))]
    struct Made([[Lane; TALL]; ACROSS]);
    let mut made = Made([[[0.0; WIDTH]; TALL]; ACROSS]);
    for panel in panels.clone().step_by(ACROSS) {
        let across = (panels.end - panel).min(ACROSS);
        for first in (0..rows).step_by(TALL) {
            let block = a.block(first, (rows - first).min(TALL));
            for (i, made) in made.0.iter_mut().enumerate().take(across) {
                simd.block(block, weights.panel(panel + i, &k), made, false);
            }
            take(simd, &made.0[..across], first, panel, block.count, sums);
        }
    }
}

/// Hands the sums of a block's rows on, with what they start from: `made` are those of panels from `panel` on.
#[inline(always)]
pub fn take<S: Simd>(
    simd: S,
    made: &[[Lane; TALL]],
    first: usize,
    panel: usize,
    count: usize,
    sums: &mut impl Sums<S>,
) {
    let (whole, rest) = made.as_chunks::<ACROSS>();
    for (i, made) in whole.iter().enumerate() {
        simd.outline(Take { made, first, panel: panel + i * ACROSS, count, sums });
    }
    for (i, made) in rest.iter().enumerate() {
        for (row, made) in made.iter().enumerate().take(count) {
            for part in 0..S::PARTS {
                let at = Place { panel: panel + whole.len() * ACROSS + i, row: first + row, part };
                let sum = sum(simd, sums, at, made);
                sums.finish(simd, at, sum);
            }
        }
    }
}

/// The sums of [`ACROSS`] panels.
struct Take<'a, Z> {
    made: &'a [[Lane; TALL]; ACROSS],
    first: usize,
    panel: usize,
    count: usize,
    sums: &'a mut Z,
}

impl<S: Simd, Z: Sums<S>> Piece<S> for Take<'_, Z> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        let Take { made: [a, b, c, d], first, panel, count, sums } = self;
        for (row, (((a, b), c), d)) in a.iter().zip(b).zip(c).zip(d).enumerate().take(count) {
            for part in 0..S::PARTS {
                let at = Place { panel, row: first + row, part };
                // Written out, so that the sums stay in registers.
                let all = [
                    sum(simd, sums, at, a),
                    sum(simd, sums, Place { panel: panel + 1, ..at }, b),
                    sum(simd, sums, Place { panel: panel + 2, ..at }, c),
                    sum(simd, sums, Place { panel: panel + 3, ..at }, d),
                ];
                sums.finish_all(simd, at, all, Pairs::NORMAL);
            }
        }
    }
}

/// What sums of a place start from and what was made for it.
#[inline(always)]
fn sum<S: Simd>(simd: S, sums: &mut impl Sums<S>, at: Place, made: &Lane) -> S::Row {
    simd.add_rows(sums.start(simd, at), simd.load(made, at.part))
}

#[inline(always)]
fn tiles<S: Simd, A: Arithmetic>(
    simd: S,
    (a, rows): (&Inputs, usize),
    weights: &Panels,
    k: Range<usize>,
    panels: Range<usize>,
    sums: &mut impl Sums<S>,
) {
    match S::ROWS {
        12 => sweep::<S, A, 12>(simd, (a, rows), weights, k, panels, sums),
        6 => sweep::<S, A, 6>(simd, (a, rows), weights, k, panels, sums),
        _ => sweep::<S, A, 4>(simd, (a, rows), weights, k, panels, sums),
    }
}

#[inline(always)]
fn sweep<S: Simd, A: Arithmetic, const R: usize>(
    simd: S,
    (a, rows): (&Inputs, usize),
    weights: &Panels,
    k: Range<usize>,
    panels: Range<usize>,
    sums: &mut impl Sums<S>,
) {
    for panel in panels {
        let weights = weights.panel(panel, &k);
        for first in (0..rows).step_by(R) {
            for part in 0..S::PARTS {
                let at = Place { panel, row: first, part };
                let mut acc: [S::Row; R] = start_tile(simd, sums, at, rows);
                for (stretch, b) in a.stretches.chunks_exact(a.rows).zip(weights.chunks(DEPTH)) {
                    let a: &[Stretch; R] = stretch[first..][..R].try_into().expect("whole tiles");
                    sums.meanwhile(simd);
                    for k in 0..b.len().min(DEPTH) {
                        let b = simd.load(&b[k], part);
                        for r in 0..R {
                            acc[r] = A::add(simd, a[r][k], b, acc[r]);
                        }
                    }
                }
                finish_tile(simd, sums, at, rows, acc);
            }
        }
    }
}

/// What the sums of `R` rows from the place on start from. Past the last of `rows` it repeats that one's.
#[inline(always)]
pub fn start_tile<S: Simd, const R: usize>(
    simd: S,
    sums: &impl Sums<S>,
    at: Place,
    rows: usize,
) -> [S::Row; R] {
    let mut acc = [sums.start(simd, at); R];
    for (r, acc) in acc.iter_mut().enumerate().skip(1) {
        *acc = sums.start(simd, Place { row: (at.row + r).min(rows - 1), ..at });
    }
    acc
}

/// Hands on the sums of the rows from the place on that are below `rows`.
#[inline(always)]
pub fn finish_tile<S: Simd, const R: usize>(
    simd: S,
    sums: &mut impl Sums<S>,
    at: Place,
    rows: usize,
    acc: [S::Row; R],
) {
    // Counted to R, so that the sums stay in registers.
    for (r, acc) in acc.into_iter().enumerate() {
        if at.row + r < rows {
            sums.finish(simd, Place { row: at.row + r, ..at }, acc);
        }
    }
}
