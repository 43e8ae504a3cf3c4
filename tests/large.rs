//! Many rows at the paper's d = 4096, where every block of a grid takes several tiles and offsets pass 4 GiB.
//! On a GPU (LENSMITH_TEST_GPU) 70,000 rows are encoded and scored and 300,000 decoded; in the machine for PTX,
//! and where LENSMITH_TEST_SMALL is set, some hundred.
//!
//! Rows repeat after a prime number of rows, so that the same row comes to every place of a tile. All copies
//! of a row must have the same bits, and the first is compared with the CPU's bits (F32) or the F64 reference
//! (BF16).

#![cfg(target_os = "linux")]

mod common;

use common::device::{cuda, tested_gpu};
use common::{Bound, Budgeted, Worst, assert_same_bits, data_buf, normals, poisoned, wide, widened};
use lensmith::backend::cpu::Cpu;
use lensmith::backend::reference::Reference;
use lensmith::backend::{Backend, Precision};
use lensmith::dtype::Dtype;
use lensmith::matrix::{Matrix, RowSet, RowsBuf};
use lensmith::model::{RewardModel, RewardSize, Vae, VaeSize};

const DIM: usize = 4096;
const HIDDEN: usize = 64;
const LATENT: usize = 16;
const WIDTH: usize = 256;

/// Number of rows, and after how many they repeat.
fn rows(many: usize) -> (usize, usize) {
    let small = std::env::var_os("LENSMITH_TEST_SMALL").is_some();
    if tested_gpu().is_some() && !small { (many, 997) } else { (150, 67) }
}

fn models() -> (Vae, RewardModel) {
    let vae = Vae::init(VaeSize::new(DIM, HIDDEN, LATENT).expect("sizes"), 31);
    (vae, RewardModel::init(RewardSize::new(DIM, WIDTH).expect("sizes"), 32))
}

/// `count` rows that repeat those of `block`; no copy is made.
fn repeated(block: &RowsBuf, count: usize) -> RowSet<'_> {
    let all = block.view();
    let parts = (0..count).step_by(all.rows()).map(|first| all.slice(0..(count - first).min(all.rows())));
    RowSet::new(parts.collect()).expect("equal widths")
}

/// The first rows: as many as the F64 reference computes in about a second.
fn few(rows: usize) -> usize {
    rows.min(48)
}

fn exact() -> Cpu {
    Cpu::new(2, Precision::F32).expect("the CPU backend")
}

/// Every row has the bits of the first row that it repeats.
fn assert_repeats(what: &str, values: &[f32], width: usize, period: usize) {
    assert!(values.iter().all(|v| v.is_finite()), "{what}: a value that is no number");
    for (row, got) in values.chunks_exact(width).enumerate() {
        let want = &values[row % period * width..][..width];
        assert!(
            got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits()),
            "{what}: row {row} is another"
        );
    }
}

/// The first rows of `values` against those of the F64 reference, each value within its `budget`.
fn assert_near(what: &str, values: &[f32], want: &[f32], width: usize, budget: impl Fn(usize) -> Vec<f64>) {
    let mut worst = Worst::default();
    for (row, want) in want.chunks_exact(width).enumerate() {
        let got = &values[row * width..][..width];
        let want: Vec<f64> = wide(want);
        worst.check(&format!("{what}, row {row}"), got, &want, Bound::Given(&budget(row)));
    }
    worst.report(what);
}

fn encodes(precision: Precision, stored: Dtype) {
    let (count, period) = rows(70_000);
    let (vae, _) = models();
    let block = data_buf(stored, 33, period, DIM);
    fn encoded<B: Backend>(b: &B, vae: &Vae, rows: RowSet<'_>) -> [Vec<f32>; 2] {
        let (vae, rows) = (b.load_vae(vae).expect("loads"), b.embeddings(rows).expect("uploads"));
        let codes = b.posteriors(&b.encode(&vae, &rows).expect("encodes")).expect("downloads");
        [codes.mu.values, codes.logvar.values]
    }
    let [mu, logvar] = encoded(&cuda(precision), &vae, repeated(&block, count));
    for (what, values) in [("mu", &mu), ("logvar", &logvar)] {
        assert_eq!(values.len(), count * LATENT);
        assert_repeats(&format!("{what} of {count} rows, {precision}"), values, LATENT, period);
    }
    if precision == Precision::F32 {
        let want = encoded(&exact(), &vae, block.view().into());
        assert_same_bits("mu", &mu[..period * LATENT], &want[0]);
        assert_same_bits("logvar", &logvar[..period * LATENT], &want[1]);
        return;
    }
    let want = encoded(&Reference::new(), &vae, block.view().slice(0..few(period)).into());
    let values = widened(&block);
    let budget = |row: usize| {
        Budgeted::entering(&values[row * DIM..][..DIM], precision).mlp(&vae.encoder).rounded(Dtype::F32)
    };
    assert_near("mu", &mu, &want[0], LATENT, |row| budget(row)[..LATENT].to_vec());
    assert_near("logvar", &logvar, &want[1], LATENT, |row| budget(row)[LATENT..].to_vec());
}

fn scores(precision: Precision, stored: Dtype) {
    let (count, period) = rows(70_000);
    let (_, model) = models();
    let block = data_buf(stored, 34, period, DIM);
    fn scored<B: Backend>(b: &B, model: &RewardModel, rows: RowSet<'_>) -> Vec<f32> {
        let mut out = vec![f32::NAN; rows.rows()];
        let (model, rows) = (b.load_reward(model).expect("loads"), b.embeddings(rows).expect("uploads"));
        b.score(&model, &rows, &mut out).expect("scores");
        out
    }
    let got = scored(&cuda(precision), &model, repeated(&block, count));
    assert_repeats(&format!("scores of {count} rows, {precision}"), &got, 1, period);
    if precision == Precision::F32 {
        assert_same_bits("scores", &got[..period], &scored(&exact(), &model, block.view().into()));
        return;
    }
    let want = scored(&Reference::new(), &model, block.view().slice(0..few(period)).into());
    let values = widened(&block);
    assert_near("scores", &got, &want, 1, |row| {
        Budgeted::entering(&values[row * DIM..][..DIM], precision).mlp(&model.layers).rounded(Dtype::F32)
    });
}

/// By one launch, which writes 4.9 GB of F32 or 2.5 GB of BF16 on a GPU.
fn decodes(precision: Precision, out: Dtype) {
    let (count, period) = rows(300_000);
    let (vae, _) = models();
    let block = normals(35, 7, period * LATENT);
    let z: Vec<f32> = block.iter().copied().cycle().take(count * LATENT).collect();
    let b = cuda(precision);
    let device_vae = b.load_vae(&vae).expect("loads");
    let latents = b.load_latents(&Matrix::new(z, count, LATENT).expect("a matrix"), &vec![0; count]);
    let decoded = b.decode_resident(&device_vae, &latents.expect("uploads"), out).expect("decodes");
    let part = |first: usize| {
        let mut rows = poisoned(out, period.min(count - first), DIM);
        b.copy_rows(&decoded, first, rows.values_mut()).expect("downloads");
        widened(&rows)
    };
    let first = part(0);
    assert!(first.iter().all(|v| v.is_finite()), "a value that is no number");
    for from in (period..count).step_by(period) {
        let got = part(from);
        let same = got.iter().zip(&first).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(
            same, None,
            "{count} rows, {precision} to {out}: of those from {from} on, this value is another"
        );
    }

    let some = if precision == Precision::F32 { period } else { few(period) };
    let z = Matrix::new(block[..some * LATENT].to_vec(), some, LATENT).expect("a matrix");
    fn host<B: Backend>(b: &B, vae: &Vae, z: &Matrix, out: Dtype) -> Vec<f32> {
        let latents = b.load_latents(z, &vec![0; z.rows]).expect("there");
        let mut rows = poisoned(out, z.rows, DIM);
        b.decode(&b.load_vae(vae).expect("loads"), &latents, None, rows.values_mut()).expect("decodes");
        widened(&rows)
    }
    if precision == Precision::F32 {
        assert_same_bits("decoded", &first, &host(&exact(), &vae, &z, out));
        return;
    }
    let want = host(&Reference::new(), &vae, &z, Dtype::F32);
    assert_near("decoded", &first, &want, DIM, |row| {
        Budgeted::entering(z.row(row), precision).mlp(&vae.decoder).rounded(out)
    });
}

#[test]
fn cuda_encodes_many_rows_in_f32() {
    encodes(Precision::F32, Dtype::F32);
}

#[test]
fn cuda_encodes_many_rows_in_bf16() {
    encodes(Precision::Bf16, Dtype::Bf16);
}

#[test]
fn cuda_scores_many_rows_in_f32() {
    scores(Precision::F32, Dtype::Bf16);
}

#[test]
fn cuda_scores_many_rows_in_bf16() {
    scores(Precision::Bf16, Dtype::Bf16);
}

#[test]
fn cuda_decodes_many_rows_in_f32() {
    decodes(Precision::F32, Dtype::F32);
}

#[test]
fn cuda_decodes_many_rows_in_bf16() {
    decodes(Precision::Bf16, Dtype::Bf16);
}

#[test]
fn cuda_decodes_many_rows_in_bf16_to_f32() {
    decodes(Precision::Bf16, Dtype::F32);
}

/// Rows out of range, half a row and another dtype are errors.
#[test]
fn cuda_copies_only_rows_that_are_there() {
    let (vae, _) = models();
    let b = cuda(Precision::F32);
    let latents =
        b.load_latents(&Matrix::new(normals(1, 7, 3 * LATENT), 3, LATENT).expect("a matrix"), &[0; 3]);
    let device_vae = b.load_vae(&vae).expect("loads");
    let decoded = b.decode_resident(&device_vae, &latents.expect("uploads"), Dtype::Bf16).expect("decodes");
    for (dtype, rows, width) in [(Dtype::F32, 1, DIM), (Dtype::Bf16, 2, DIM), (Dtype::Bf16, 1, DIM / 2)] {
        let mut out = poisoned(dtype, rows, width);
        let said = b.copy_rows(&decoded, 2, out.values_mut()).expect_err("not there").to_string();
        assert!(said.contains("expected whole rows of BF16 below 3"), "{said}");
    }
}
