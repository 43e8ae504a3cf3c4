//! Synthesis and reconstruction in one pass over the rows: the bits of the operations that they stand for, over shapes,
//! storage types, options, pieces and schedules; and errors of reconstruction against plain sums.

mod common;

#[cfg(target_os = "linux")]
use common::device::{Races, Schedule, Simulated, precisions, simulated};
use common::{data_buf, standardizer};
use lensmith::backend::cpu::Cpu;
use lensmith::backend::reference::Reference;
use lensmith::backend::{
    Backend, DecodeMode, LatentSource, Likelihood, NoiseKey, Perturbation, Precision, Reconstruction,
    Residual, Synthetic,
};
use lensmith::dtype::Dtype;
use lensmith::matrix::{RowSet, RowsBuf, Side};
use lensmith::model::{Vae, VaeSize};

/// Rows, sizes and storage types of one call, and how samples are drawn.
#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    /// d, hidden, latent.
    size: (usize, usize, usize),
    stored: Dtype,
    out: Dtype,
    how: Perturbation,
}

const PAPER: Perturbation = Perturbation {
    sigma2: 0.01,
    top_k: 2,
    oversample: 4,
    likelihood: Likelihood::Posterior,
    source: LatentSource::Sample,
};

fn cases() -> Vec<Case> {
    use Dtype::{Bf16, F16, F32};
    let case = |rows, size, stored, out, how| Case { rows, size, stored, out, how };
    vec![
        // Two tiles, of which the second is short, and several turns of all stages.
        case(100, (512, 64, 16), Bf16, Bf16, PAPER),
        case(65, (256, 64, 16), F32, F16, Perturbation { top_k: 3, ..PAPER }),
        case(64, (64, 48, 32), F16, F32, Perturbation { likelihood: Likelihood::Prior, ..PAPER }),
        case(7, (128, 80, 16), Bf16, F32, Perturbation { top_k: 1, source: LatentSource::Mean, ..PAPER }),
        case(70, (192, 64, 16), F16, Bf16, Perturbation { top_k: 5, likelihood: Likelihood::None, ..PAPER }),
        case(3, (64, 16, 48), F32, F32, Perturbation { top_k: 40, oversample: 2, ..PAPER }),
        // Widths that no pass takes.
        case(9, (72, 64, 16), Bf16, Bf16, PAPER),
        case(9, (33, 32, 16), F32, F32, PAPER),
    ]
}

const KEY: NoiseKey = NoiseKey { seed: 0x1234_5678_9abc, side: Side::Rejected, first_row: 1 << 33 };

fn set(buf: &RowsBuf) -> RowSet<'_> {
    buf.view().into()
}

/// All rows of pairs, and the candidates behind the samples.
type Made = (RowsBuf, Vec<u32>);

fn picked<B: Backend>(b: &B, rows: &B::Rows, count: usize, like: Case) -> RowsBuf {
    let mut out = RowsBuf::zeros(like.out, count, like.size.0);
    let index: Vec<u32> = (0..count as u32).collect();
    b.pick_rows(rows, &index, &mut out).expect("picks");
    out
}

fn in_one_pass<B: Backend>(b: &B, vae: &Vae, rows: RowSet<'_>, case: Case, mode: DecodeMode) -> Made {
    let (vae, mut to) = (b.load_vae(vae).expect("loads"), b.rows(case.out, case.size.0));
    let count = rows.rows() * (1 + case.how.top_k as usize);
    let embeddings = b.embeddings(rows).expect("uploads");
    let selection = b.synthesize(&vae, &embeddings, (KEY, &case.how, mode), &mut to).expect("synthesizes");
    assert_eq!(selection.top_k, case.how.top_k as usize);
    (picked(b, &to, count, case), selection.candidates)
}

fn in_steps<B: Backend>(b: &B, vae: &Vae, rows: RowSet<'_>, case: Case, mode: DecodeMode) -> Made {
    let (vae, mut to) = (b.load_vae(vae).expect("loads"), b.rows(case.out, case.size.0));
    let count = rows.rows() * (1 + case.how.top_k as usize);
    let embeddings = b.embeddings(rows).expect("uploads");
    let posteriors = b.encode(&vae, &embeddings).expect("encodes");
    let selection = b.select(&posteriors, KEY, &case.how).expect("selects");
    let latents = b.perturb(&posteriors, KEY, &case.how, &selection.samples()).expect("perturbs");
    let seeds = Residual { embeddings: &embeddings, posteriors: &posteriors };
    let residual = (mode == DecodeMode::Residual).then_some(seeds);
    b.store_rows(&embeddings, &Synthetic { vae: &vae, latents: &latents, residual }, &mut to)
        .expect("decodes");
    (picked(b, &to, count, case), selection.candidates)
}

fn model(case: Case) -> Vae {
    let (dim, hidden, latent) = case.size;
    Vae::init(VaeSize::new(dim, hidden, latent).expect("sizes"), 5)
}

fn assert_same(what: &str, got: &Made, want: &Made) {
    assert_eq!(got.1, want.1, "{what}: candidates");
    assert_eq!(got.0.rows(), want.0.rows(), "{what}");
    let row = got.0.bytes().len() / got.0.rows();
    for (r, (a, b)) in got.0.bytes().chunks(row).zip(want.0.bytes().chunks(row)).enumerate() {
        assert!(a == b, "{what}: row {r} of {}", got.0.rows());
    }
}

#[test]
fn the_cpu_makes_the_bits_of_its_steps() {
    for precision in [Precision::F32, Precision::Bf16] {
        let b = Cpu::new(2, precision).expect("the CPU backend");
        for case in cases() {
            let (buf, vae) = (data_buf(case.stored, 3, case.rows, case.size.0), model(case));
            for mode in [DecodeMode::Plain, DecodeMode::Residual] {
                let got = in_one_pass(&b, &vae, set(&buf), case, mode);
                let want = in_steps(&b, &vae, set(&buf), case, mode);
                assert_same(&format!("{case:?}, {mode:?}"), &got, &want);
            }
        }
    }
}

/// One launch makes what five make, under every schedule, without a race.
#[cfg(target_os = "linux")]
#[test]
fn cuda_makes_the_bits_of_its_steps() {
    for &precision in precisions() {
        for (i, case) in cases().into_iter().enumerate() {
            let (buf, vae) = (data_buf(case.stored, 3, case.rows, case.size.0), model(case));
            for mode in [DecodeMode::Plain, DecodeMode::Residual] {
                let on = |races, schedule| {
                    simulated(races, Simulated { schedule, ..Simulated::default() }, precision)
                };
                let want = in_steps(&on(Races::Ignored, Schedule::PLAIN), &vae, set(&buf), case, mode);
                let what = format!("{precision}, {case:?}, {mode:?}");
                let found = on(Races::Found, Schedule::PLAIN);
                assert_same(&what, &in_one_pass(&found, &vae, set(&buf), case, mode), &want);
                let schedule = Schedule::ALL[i % Schedule::ALL.len()];
                let other = on(Races::Ignored, schedule);
                let got = in_one_pass(&other, &vae, set(&buf), case, mode);
                assert_same(&format!("{what}, {schedule:?}"), &got, &want);
            }
        }
    }
}

/// Rows that do not fit go through the device in pieces; memory that is too short even for the results leaves them on
/// the host. The same bytes.
#[cfg(target_os = "linux")]
#[test]
fn cuda_makes_them_in_pieces() {
    let case = Case { rows: 600, size: (64, 32, 16), stored: Dtype::F32, out: Dtype::F32, how: PAPER };
    let (buf, vae) = (data_buf(case.stored, 3, case.rows, 64), model(case));
    for &precision in precisions() {
        for mode in [DecodeMode::Plain, DecodeMode::Residual] {
            let on =
                |memory| simulated(Races::Ignored, Simulated { memory, ..Simulated::default() }, precision);
            let want = in_steps(&on(Simulated::default().memory), &vae, set(&buf), case, mode);
            for memory in [700 << 10, 400 << 10] {
                let got = in_one_pass(&on(memory), &vae, set(&buf), case, mode);
                assert_same(&format!("{precision}, {mode:?}, {memory} bytes"), &got, &want);
            }
        }
    }
}

fn reconstructed<B: Backend>(b: &B, vae: &Vae, buf: &RowsBuf, key: Option<NoiseKey>) -> Vec<Reconstruction> {
    let loaded = b.load_vae(vae).expect("loads");
    let embeddings = b.embeddings(set(buf)).expect("uploads");
    let scale = standardizer(buf.cols());
    let (posteriors, sums) = b.reconstruct(&loaded, &embeddings, &scale, key).expect("reconstructs");
    let (got, want) =
        (b.posteriors(&posteriors), b.posteriors(&b.encode(&loaded, &embeddings).expect("encodes")));
    let bits = |host: lensmith::backend::PosteriorsHost| -> Vec<u32> {
        host.mu.values.iter().chain(&host.logvar.values).map(|v| v.to_bits()).collect()
    };
    assert_eq!(bits(got.expect("downloads")), bits(want.expect("downloads")), "posteriors");
    sums
}

fn errors_are_those_of_the_reference<B: Backend>(b: &B, rtol: f64) {
    for case in cases() {
        let (buf, vae) = (data_buf(case.stored, 3, case.rows, case.size.0), model(case));
        for key in [None, Some(KEY)] {
            let want = reconstructed(&Reference::new(), &vae, &buf, key);
            let got = reconstructed(b, &vae, &buf, key);
            assert_eq!(got.len(), want.len());
            for (r, (got, want)) in got.iter().zip(&want).enumerate() {
                let what = format!("{case:?}, row {r}, {key:?}: {got:?}, expected {want:?}");
                assert!((got.total - want.total).abs() <= 1e-5 * want.total, "{what}");
                assert!((got.error - want.error).abs() <= rtol * want.error, "{what}");
            }
        }
    }
}

#[test]
fn cpu_errors_of_reconstruction() {
    errors_are_those_of_the_reference(&Cpu::new(2, Precision::F32).expect("the CPU backend"), 1e-5);
    errors_are_those_of_the_reference(&Cpu::new(2, Precision::Bf16).expect("the CPU backend"), 2e-2);
}

#[cfg(target_os = "linux")]
#[test]
fn cuda_errors_of_reconstruction() {
    for &precision in precisions() {
        let rtol = if precision == Precision::F32 { 1e-5 } else { 2e-2 };
        errors_are_those_of_the_reference(&simulated(Races::Found, Simulated::default(), precision), rtol);
    }
}

/// A NaN makes the error of its own row NaN, and no other's.
#[cfg(target_os = "linux")]
#[test]
fn cuda_errors_keep_nan_in_its_row() {
    for &precision in precisions() {
        let b = simulated(Races::Ignored, Simulated::default(), precision);
        let case = cases()[1];
        let (dim, vae) = (case.size.0, model(case));
        let clean = data_buf(Dtype::F32, 3, 70, dim);
        let mut values: Vec<f32> = common::widened(&clean);
        values[66 * dim + 130] = f32::NAN;
        let spoiled = RowsBuf::from_f32(Dtype::F32, &values, dim).expect("whole rows");
        let scale = standardizer(dim);
        let loaded = b.load_vae(&vae).expect("loads");
        let embeddings = b.embeddings(set(&spoiled)).expect("uploads");
        let (_, sums) = b.reconstruct(&loaded, &embeddings, &scale, None).expect("reconstructs");
        for (r, sums) in sums.iter().enumerate() {
            assert_eq!(
                (sums.error.is_nan(), sums.total.is_nan()),
                (r == 66, r == 66),
                "{precision}, row {r}"
            );
        }
    }
}

/// What does not fit is refused in words before anything runs.
#[test]
fn sizes_that_do_not_fit_are_refused() {
    let b = Cpu::new(1, Precision::F32).expect("the CPU backend");
    let case = cases()[6];
    let (buf, vae) = (data_buf(case.stored, 3, 9, 72), model(case));
    let loaded = b.load_vae(&vae).expect("loads");
    let rows = b.embeddings(set(&buf)).expect("uploads");
    let narrow = lensmith::model::Standardizer::identity(71);
    let error = b.reconstruct(&loaded, &rows, &narrow, None).expect_err("a standardisation of 71 dimensions");
    assert!(error.to_string().contains("71"), "{error}");
}
