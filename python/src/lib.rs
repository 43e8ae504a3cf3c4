//! `lensmith._lensmith`: the engine for Python.
//!
//! What users see is Python, in ../lensmith; here are the classes that it is made of. Settings and figures cross as JSON,
//! embeddings as memory that both sides share.
//!
//! 1. [`array`]: rows of embeddings, in from any library and out to any;
//! 2. [`device`]: the same in the memory of a GPU;
//! 3. [`engine`]: an opened device, and how its work is waited for;
//! 4. [`pairs`]: preference pairs, in memory or in files;
//! 5. [`models`]: the VAE and the reward model;
//! 6. [`synthesis`]: synthetic pairs, one by one, in batches, or as a folder;
//! 7. [`compare`]: one split of an experiment;
//! 8. [`select`]: rejection sampling;
//! 9. [`files`]: files by path or URL.

mod array;
mod compare;
mod device;
mod engine;
mod error;
mod files;
mod models;
mod pairs;
mod select;
mod synthesis;

use std::ffi::OsString;

use pyo3::prelude::*;
use pyo3::types::PyByteArray;

/// Items `start` to `stop` of a pseudo-random order of the numbers below `n`, a numpy array of uint64.
#[pyfunction]
fn permutation<'py>(
    py: Python<'py>,
    n: u64,
    seed: u64,
    epoch: u64,
    start: u64,
    stop: u64,
) -> PyResult<Bound<'py, PyAny>> {
    if start > stop || stop > n {
        return Err(error::value(format!(
            "start and stop: expected 0 <= start <= stop <= {n}, found {start} and {stop}"
        )));
    }
    let order = lensmith::Permutation::new(n, seed, epoch);
    let items: Vec<u64> = py.detach(|| (start..stop).map(|place| order.at(place)).collect());
    let bytes = PyByteArray::new(py, bytemuck::cast_slice(&items));
    py.import("numpy")?.call_method1("frombuffer", (bytes, "uint64"))
}

/// Which rows are seed, validation and test pairs: three int64 arrays as bytes.
#[pyfunction]
fn split_rows<'py>(
    py: Python<'py>,
    n: usize,
    group: Option<Vec<i64>>,
    seeds: usize,
    validation: usize,
    seed: u64,
) -> PyResult<[Bound<'py, PyByteArray>; 3]> {
    let options = lensmith::SplitOptions { seeds, validation, seed };
    let split = lensmith::split(n, group.as_deref(), &options).map_err(error::raise)?;
    Ok([split.seeds, split.validation, split.test].map(|rows| {
        let rows: Vec<i64> = rows.into_iter().map(|row| row as i64).collect();
        PyByteArray::new(py, bytemuck::cast_slice(&rows))
    }))
}

/// The paired difference a - b of figures over splits, as JSON, and its p value.
#[pyfunction]
fn paired(a: Vec<f64>, b: Vec<f64>) -> PyResult<(String, Option<f64>)> {
    if a.len() != b.len() || a.is_empty() {
        return Err(error::value(format!(
            "expected as many figures of either, found {} and {}",
            a.len(),
            b.len()
        )));
    }
    let paired = lensmith::paired(&a, &b);
    Ok((error::json(&paired), paired.p()))
}

/// Runs the program `lensmith` with a command line and gives its exit code.
#[pyfunction]
fn program(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| lensmith::cli::main(arguments))
}

#[pymodule(gil_used = false)]
fn _lensmith(module: &Bound<'_, PyModule>) -> PyResult<()> {
    // Levels are asked of `logging` each time: they may change at any moment.
    // Ours alone: libraries below say much, on threads of their own, which would wait for the interpreter.
    let logger = pyo3_log::Logger::new(module.py(), pyo3_log::Caching::Nothing)?
        .filter(log::LevelFilter::Off)
        .filter_target("lensmith".into(), log::LevelFilter::Trace);
    // Another module of this process may have set one.
    let _ = logger.install();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("LensmithError", module.py().get_type::<error::LensmithError>())?;
    module.add_class::<array::Embeddings>()?;
    module.add_class::<device::DeviceArray>()?;
    module.add_class::<engine::Engine>()?;
    module.add_class::<pairs::Pairs>()?;
    module.add_class::<models::Vae>()?;
    module.add_class::<models::RewardModel>()?;
    module.add_class::<synthesis::Synthesis>()?;
    module.add_function(wrap_pyfunction!(permutation, module)?)?;
    module.add_function(wrap_pyfunction!(split_rows, module)?)?;
    module.add_function(wrap_pyfunction!(paired, module)?)?;
    module.add_function(wrap_pyfunction!(program, module)?)?;
    module.add_function(wrap_pyfunction!(synthesis::open_recipe, module)?)?;
    module.add_function(wrap_pyfunction!(synthesis::write_recipe, module)?)?;
    module.add_function(wrap_pyfunction!(files::file_exists, module)?)?;
    module.add_function(wrap_pyfunction!(files::keep_file, module)?)?;
    module.add_function(wrap_pyfunction!(files::read_file, module)?)?;
    module.add_function(wrap_pyfunction!(synthesis::merge_manifests, module)?)?;
    module.add_function(wrap_pyfunction!(compare::compare_split, module)?)?;
    module.add_function(wrap_pyfunction!(select::select, module)?)?;
    Ok(())
}
