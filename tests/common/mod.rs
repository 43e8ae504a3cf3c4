//! What the numeric tests share: the only comparator, golden files, poisoned buffers, and data from the crate's noise.
#![allow(dead_code, reason = "every test program uses its own part")]

pub mod cli;
#[cfg(target_os = "linux")]
pub mod device;

use std::path::Path;

use lensmith::backend::Precision;
use lensmith::dtype::Dtype;
use lensmith::matrix::RowsBuf;
use lensmith::model::{Linear, Standardizer};
use lensmith::noise::{NoiseCounter, Purpose, Side, fill_normals};
use safetensors::{Dtype as TensorType, SafeTensors};
use serde_json::Value;

/// Unit roundoff of F32.
pub const U: f64 = 1.0 / (1u64 << 24) as f64;

/// How far a value may be from its reference.
#[derive(Clone, Copy, Debug)]
pub enum Bound<'a> {
    /// Every element within `rtol` times the largest magnitude of the reference, or times `floor` if that is larger.
    Largest {
        /// Relative error.
        rtol: f64,
        /// Least magnitude that errors are measured against.
        floor: f64,
    },
    /// The Euclidean norm of the error within `rtol` times that of the reference.
    Norm {
        /// Relative error.
        rtol: f64,
    },
    /// Every element within `atol + rtol |reference|`.
    Each {
        /// Absolute error.
        atol: f64,
        /// Relative error.
        rtol: f64,
    },
    /// Every element within its own budget.
    Given(&'a [f64]),
}

/// The largest share of the budget that any element used, and that element's index. Passes only if every value is
/// finite and within its budget: NaN, infinities, empty input and wrong lengths are failures, and so is a NaN budget.
pub fn compare(got: &[f32], want: &[f64], bound: Bound<'_>) -> Result<(f64, usize), String> {
    if got.is_empty() || got.len() != want.len() {
        return Err(format!("{} values against {} expected", got.len(), want.len()));
    }
    if let Some(i) = got.iter().position(|v| !v.is_finite()) {
        return Err(format!("value {i} of {} is {}", got.len(), got[i]));
    }
    if let Some(i) = want.iter().position(|v| !v.is_finite()) {
        return Err(format!("reference value {i} is {}", want[i]));
    }
    let error = |i: usize| (f64::from(got[i]) - want[i]).abs();
    let share = |error: f64, allowed: f64| if error == 0.0 { 0.0 } else { error / allowed };
    let worst_of = |allowed: &dyn Fn(usize) -> f64| {
        let mut worst = (0.0, 0);
        for i in 0..got.len() {
            let share = share(error(i), allowed(i));
            // A NaN budget gives a NaN share, which stays to the end and fails.
            if share > worst.0 || share.is_nan() {
                worst = (share, i);
            }
            if share.is_nan() {
                break;
            }
        }
        worst
    };
    let (used, index) = match bound {
        Bound::Largest { rtol, floor } => {
            let scale = want.iter().fold(floor, |a, v| a.max(v.abs()));
            worst_of(&|_| rtol * scale)
        }
        Bound::Each { atol, rtol } => worst_of(&|i| atol + rtol * want[i].abs()),
        Bound::Given(budget) => {
            if budget.len() != got.len() {
                return Err(format!("{} budgets for {} values", budget.len(), got.len()));
            }
            worst_of(&|i| budget[i])
        }
        Bound::Norm { rtol } => {
            let norm = |f: &dyn Fn(usize) -> f64| (0..got.len()).map(|i| f(i) * f(i)).sum::<f64>().sqrt();
            (share(norm(&error), rtol * norm(&|i| want[i])), worst_of(&|_| 1.0).1)
        }
    };
    if used <= 1.0 {
        return Ok((used, index));
    }
    Err(format!(
        "value {index} of {}: {:e}, expected {:e}, off by {:.2e}: {used:.3} of the budget {bound:?}",
        got.len(),
        got[index],
        want[index],
        error(index),
        bound = bound_name(bound),
    ))
}

fn bound_name(bound: Bound<'_>) -> String {
    match bound {
        Bound::Given(_) => "of that value".into(),
        other => format!("{other:?}"),
    }
}

/// Panics unless [`compare`] passes; gives, and prints, the share of the budget used.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], want: &[f64], bound: Bound<'_>) -> f64 {
    match compare(got, want, bound) {
        Ok((share, index)) => {
            println!("{what}: {share:.4} of the budget, at {index}");
            share
        }
        Err(why) => panic!("{what}: {why}"),
    }
}

/// [`assert_close`] for one F64 value, such as a loss. Compared in F64: an infinite or NaN value fails.
#[track_caller]
pub fn assert_close_scalar(what: &str, got: f64, want: f64, bound: Bound<'_>) -> f64 {
    assert!(got.is_finite(), "{what}: {got}");
    // The difference goes through the comparator as a value whose reference is known exactly.
    let difference = (got - want) as f32;
    let allowed = match bound {
        Bound::Largest { rtol, floor } => rtol * want.abs().max(floor),
        Bound::Norm { rtol } => rtol * want.abs(),
        Bound::Each { atol, rtol } => atol + rtol * want.abs(),
        Bound::Given(budget) => budget[0],
    };
    match compare(&[difference], &[0.0], Bound::Each { atol: allowed, rtol: 0.0 }) {
        Ok((share, _)) => {
            println!("{what}: {share:.4} of the budget");
            share
        }
        Err(_) => panic!("{what}: {got:e}, expected {want:e}, off by {difference:e}, allowed {allowed:e}"),
    }
}

/// Panics unless both hold the same bits, are not empty, and are finite.
#[track_caller]
pub fn assert_same_bits(what: &str, got: &[f32], want: &[f32]) {
    assert!(!got.is_empty() && got.len() == want.len(), "{what}: {} values, {}", got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g.is_finite() && g.to_bits() == w.to_bits(), "{what}: value {i} is {g:e}, expected {w:e}");
    }
}

/// The worst share of budget over many comparisons; prints itself when a sweep ends.
#[derive(Debug, Default)]
pub struct Worst {
    share: f64,
    at: String,
    count: usize,
}

impl Worst {
    /// Compares as [`assert_close`] does, quietly.
    #[track_caller]
    pub fn check(&mut self, what: &str, got: &[f32], want: &[f64], bound: Bound<'_>) {
        match compare(got, want, bound) {
            Ok((share, index)) if share >= self.share => {
                (self.share, self.at) = (share, format!("{what} [{index}]"))
            }
            Ok(_) => {}
            Err(why) => panic!("{what}: {why}"),
        }
        self.count += 1;
    }

    /// Prints the worst share; fails if nothing was compared.
    #[track_caller]
    pub fn report(&self, what: &str) {
        assert!(self.count > 0, "{what}: nothing was compared");
        println!("{what}: {} comparisons, worst {:.4} of the budget at {}", self.count, self.share, self.at);
    }
}

/// A matrix filled with NaN, so that what an operation fails to write is found.
pub fn poisoned(dtype: Dtype, rows: usize, cols: usize) -> RowsBuf {
    let mut buf = RowsBuf::zeros(dtype, rows, cols);
    buf.bytes_mut().fill(0xff);
    buf
}

/// All values of a matrix as F32.
pub fn widened(buf: &RowsBuf) -> Vec<f32> {
    let mut out = vec![f32::NAN; buf.rows() * buf.cols()];
    buf.view().values().widen(&mut out);
    out
}

/// The F64 values of F32 ones.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Standard normals, keyed by `seed` and `stream`.
pub fn normals(seed: u64, stream: u64, n: usize) -> Vec<f32> {
    let mut out = vec![0f32; n];
    let address =
        NoiseCounter { purpose: Purpose::Simulation, side: Side::Rejected, row: stream, candidate: 99 };
    fill_normals(seed, address, &mut out);
    out
}

/// Embeddings `[rows, cols]` that are neither centred nor symmetric: skewed values, and a mean and a spread that
/// differ between columns. All within a few units, so that F16 holds them.
pub fn data(seed: u64, rows: usize, cols: usize) -> Vec<f32> {
    let mut out = normals(seed, 0, rows * cols);
    for row in out.chunks_exact_mut(cols) {
        for (j, v) in row.iter_mut().enumerate() {
            let (mean, spread) = (0.4 * (j % 5) as f32 - 0.5, 0.3 + 0.1 * (j % 7) as f32);
            *v = mean + spread * (*v + 0.2 * *v * *v);
        }
    }
    out
}

/// A matrix of [`data`] in a storage type.
pub fn data_buf(dtype: Dtype, seed: u64, rows: usize, cols: usize) -> RowsBuf {
    RowsBuf::from_f32(dtype, &data(seed, rows, cols), cols).expect("whole rows")
}

/// A standardizer near that of [`data`], with all values different.
pub fn standardizer(dim: usize) -> Standardizer {
    let jitter = normals(5, 1, dim);
    let mean = (0..dim).map(|j| 0.4 * (j % 5) as f32 - 0.45 + 0.01 * jitter[j]).collect();
    let std = (0..dim).map(|j| 0.35 + 0.1 * (j % 7) as f32 + 0.01 * jitter[j].abs()).collect();
    Standardizer { mean, std }
}

/// Numbers below `n`, in no order.
pub fn indices(seed: u64, count: usize, n: usize) -> Vec<u32> {
    let mut stream = lensmith::noise::Stream::new(seed, Purpose::Simulation, 77);
    (0..count).map(|_| stream.below(u32::try_from(n).expect("small"))).collect()
}

/// A vector in F64, and how far an F32 evaluation of it may be off.
///
/// The error of a sum of n products in F32 is at most lambda sqrt(n) u times the sum of their magnitudes, but for a
/// probability of about 2 exp(-lambda^2 / 2) (Higham and Mary, 2019), in any order of summation; here lambda is
/// [`LAMBDA`] and one more product stands for the bias.
#[derive(Clone, Debug)]
pub struct Budgeted {
    /// The values.
    pub value: Vec<f64>,
    /// The allowed errors.
    pub error: Vec<f64>,
    /// Unit roundoff of the operands of products: 0 where they are taken as they are.
    pub operand: f64,
}

/// Unit roundoff of what products take in.
pub fn operand_roundoff(precision: Precision) -> f64 {
    if precision == Precision::Bf16 { Dtype::Bf16.unit_roundoff() } else { 0.0 }
}

/// Standard deviations of a rounding error that a sum may be off.
pub const LAMBDA: f64 = 4.0;

impl Budgeted {
    /// Values that are known exactly.
    pub fn exact(values: &[f32]) -> Budgeted {
        Budgeted::entering(values, Precision::F32)
    }

    /// Values that are known exactly, on their way into products of a precision.
    pub fn entering(values: &[f32], precision: Precision) -> Budgeted {
        let operand = operand_roundoff(precision);
        Budgeted { value: wide(values), error: vec![0.0; values.len()], operand }
    }

    /// The first `n` values.
    pub fn first(&self, n: usize) -> Budgeted {
        Budgeted { value: self.value[..n].to_vec(), error: self.error[..n].to_vec(), operand: self.operand }
    }

    /// W x + b.
    pub fn linear(&self, layer: &Linear) -> Budgeted {
        let per_product = LAMBDA * U * ((layer.inputs + 1) as f64).sqrt();
        // Both operands of a product may be rounded.
        let rounding = 2.0 * self.operand + self.operand * self.operand;
        let mut out = Budgeted { value: Vec::new(), error: Vec::new(), operand: self.operand };
        for (row, &bias) in layer.weight.chunks_exact(layer.inputs).zip(&layer.bias) {
            let (mut sum, mut size, mut error) = (f64::from(bias), f64::from(bias).abs(), 0.0);
            for ((&w, x), e) in row.iter().zip(&self.value).zip(&self.error) {
                let product = f64::from(w) * x;
                sum += product;
                size += product.abs();
                error += f64::from(w).abs() * e * (1.0 + rounding) + rounding * product.abs();
            }
            out.value.push(sum);
            out.error.push(error + per_product * size);
        }
        out
    }

    /// The larger of each value and 0.
    pub fn relu(mut self) -> Budgeted {
        self.value.iter_mut().for_each(|v| *v = v.max(0.0));
        self
    }

    /// Linear, ReLU, Linear.
    pub fn mlp(&self, layers: &[Linear]) -> Budgeted {
        self.linear(&layers[0]).relu().linear(&layers[1])
    }

    /// The errors once the values are rounded to `dtype`, against a reference that is itself rounded to F32.
    pub fn rounded(&self, dtype: Dtype) -> Vec<f64> {
        // Half the distance between the smallest values of F16; those of the others are far smaller.
        let underflow = if dtype == Dtype::F16 { 2f64.powi(-25) } else { 0.0 };
        let u = dtype.unit_roundoff();
        self.value
            .iter()
            .zip(&self.error)
            .map(|(v, e)| e + u * (v.abs() + e) + U * v.abs() + underflow)
            .collect()
    }
}

/// A golden file (`tools/make_golden.py` makes them).
#[derive(Debug)]
pub struct Golden {
    bytes: Vec<u8>,
    /// The settings that it was made with.
    pub settings: Value,
}

impl Golden {
    /// Reads `tests/golden/{name}.safetensors`.
    pub fn read(name: &str) -> Golden {
        // At run time, as the program may have been carried to another machine.
        let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into());
        let path = Path::new(&root).join(format!("tests/golden/{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors header");
        let text =
            header.metadata().as_ref().and_then(|m| m.get("settings")).expect("settings in the metadata");
        let settings = serde_json::from_str(text).expect("settings as JSON");
        Golden { bytes, settings }
    }

    fn tensor(&self, name: &str) -> (TensorType, Vec<u8>) {
        let file = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        let view = file.tensor(name).unwrap_or_else(|e| panic!("golden tensor `{name}`: {e}"));
        (view.dtype(), view.data().to_vec())
    }

    /// An input, stored as F32.
    pub fn f32s(&self, name: &str) -> Vec<f32> {
        let (dtype, bytes) = self.tensor(name);
        assert_eq!(dtype, TensorType::F32, "dtype of `{name}`");
        bytemuck::pod_collect_to_vec(&bytes)
    }

    /// Expected values, stored as F64 or, where there are many, F32.
    pub fn f64s(&self, name: &str) -> Vec<f64> {
        match self.tensor(name) {
            (TensorType::F64, bytes) => bytemuck::pod_collect_to_vec(&bytes),
            _ => wide(&self.f32s(name)),
        }
    }

    /// Counts, rows or words.
    pub fn u32s(&self, name: &str) -> Vec<u32> {
        let (dtype, bytes) = self.tensor(name);
        assert_eq!(dtype, TensorType::U32, "dtype of `{name}`");
        bytemuck::pod_collect_to_vec(&bytes)
    }

    /// A whole number from the settings, by JSON pointer.
    pub fn count(&self, pointer: &str) -> usize {
        let value = self.settings.pointer(pointer).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no whole number {pointer} in the settings")) as usize
    }

    /// A number from the settings, by JSON pointer.
    pub fn number(&self, pointer: &str) -> f64 {
        let value = self.settings.pointer(pointer).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("no number {pointer} in the settings"))
    }

    /// The layers `{prefix}.0` and `{prefix}.2` of a PyTorch state dict, from `inputs` to `outputs`.
    pub fn layers(&self, prefix: &str, inputs: usize, hidden: usize, outputs: usize) -> [Linear; 2] {
        let layer = |index, inputs, outputs| {
            let part = |part| self.f32s(&format!("{prefix}{index}.{part}"));
            Linear::new(part("weight"), part("bias"), inputs, outputs).expect("a layer of the golden file")
        };
        [layer(0, inputs, hidden), layer(2, hidden, outputs)]
    }
}

mod tests {
    use super::*;

    const ALL: [Bound<'static>; 4] = [
        Bound::Largest { rtol: 0.1, floor: 0.0 },
        Bound::Norm { rtol: 0.1 },
        Bound::Each { atol: 0.0, rtol: 0.1 },
        Bound::Given(&[0.1, 0.1]),
    ];

    #[test]
    fn comparator_passes_only_what_is_within() {
        for bound in ALL {
            assert_eq!(compare(&[1.0, 2.0], &[1.0, 2.0], bound), Ok((0.0, 0)), "{bound:?}");
            assert!(compare(&[1.05, 2.0], &[1.0, 2.0], bound).is_ok(), "{bound:?}");
            assert!(compare(&[1.0, 2.5], &[1.0, 2.0], bound).is_err(), "{bound:?}");
        }
        let half = compare(&[1.0, 2.1], &[1.0, 2.0], Bound::Each { atol: 0.0, rtol: 0.1 }).expect("within");
        assert!((half.0 - 0.5).abs() < 1e-3 && half.1 == 1, "{half:?}");
    }

    #[test]
    fn comparator_fails_on_what_is_not_a_number_or_not_there() {
        for bound in ALL {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(compare(&[1.0, bad], &[1.0, 2.0], bound).is_err(), "{bound:?} {bad}");
                assert!(compare(&[bad, 2.0], &[1.0, 2.0], bound).is_err(), "{bound:?} {bad}");
                assert!(compare(&[1.0, 2.0], &[1.0, f64::from(bad)], bound).is_err(), "{bound:?} {bad}");
            }
            assert!(compare(&[], &[], bound).is_err(), "{bound:?}");
            assert!(compare(&[1.0], &[1.0, 2.0], bound).is_err(), "{bound:?}");
            assert!(compare(&[1.0, 2.0, 3.0], &[1.0, 2.0], bound).is_err(), "{bound:?}");
        }
        let nan = Bound::Each { atol: f64::NAN, rtol: 0.0 };
        assert!(compare(&[1.0, 2.1], &[1.0, 2.0], nan).is_err());
        assert!(compare(&[1.0, 2.1], &[1.0, 2.0], Bound::Norm { rtol: f64::NAN }).is_err());
        assert!(compare(&[1.0, 2.0], &[1.0, 2.0], Bound::Given(&[0.1])).is_err());
        // No budget, no error: nothing to divide by.
        assert_eq!(compare(&[0.0], &[0.0], Bound::Norm { rtol: 0.1 }), Ok((0.0, 0)));
        assert!(compare(&[1e-30], &[0.0], Bound::Norm { rtol: 0.1 }).is_err());
    }

    #[test]
    fn poison_is_not_a_number_in_every_dtype() {
        for dtype in Dtype::ALL {
            assert!(widened(&poisoned(dtype, 3, 5)).iter().all(|v| v.is_nan()));
        }
    }
}
