//! Files and objects of stores, by path or URL.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::raise;

/// Whether something is at a path.
#[pyfunction]
pub fn file_exists(py: Python<'_>, path: PathBuf) -> PyResult<bool> {
    py.detach(|| lensmith::file_exists(&path)).map_err(raise)
}

/// All bytes of what is at a path, at most `most`.
#[pyfunction]
pub fn read_file(py: Python<'_>, path: PathBuf, most: u64) -> PyResult<Bound<'_, PyBytes>> {
    py.detach(|| lensmith::read_file(&path, most)).map_err(raise).map(|bytes| PyBytes::new(py, &bytes))
}

/// Copies a file to a path unless the same bytes are there; other bytes that were `used` are an error.
#[pyfunction]
pub fn keep_file(py: Python<'_>, source: PathBuf, path: PathBuf, used: bool) -> PyResult<()> {
    py.detach(|| lensmith::keep_file(&source, &path, used)).map_err(raise)
}
