//! Preference pairs, in memory or in files.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lensmith::{Block, Interrupt, PairOptions, PairSet, PairSource, Result, RowSet, RowsBuf, Side};
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use crate::array::{Embeddings, Memory, name};
use crate::engine::Engine;
use crate::error::{raise, value, with_kind};

/// Where pairs are.
#[derive(Clone)]
enum Place {
    Memory([Arc<Memory>; 2]),
    /// All rows of files, and what they were opened as.
    Files(Arc<PairSet>, Arc<(Vec<String>, PairOptions)>),
}

/// Preference pairs `[n, d]` a side, and the prompt of each where it is known.
#[pyclass(frozen, module = "lensmith._lensmith")]
pub struct Pairs {
    place: Place,
    group: Option<Vec<i64>>,
}

#[pymethods]
impl Pairs {
    /// Two arrays [n, d], without a copy. Their values must be finite.
    #[staticmethod]
    #[pyo3(signature = (engine, chosen, rejected, group = None))]
    fn of_arrays(
        py: Python<'_>,
        engine: &Bound<'_, Engine>,
        chosen: &Bound<'_, PyAny>,
        rejected: &Bound<'_, PyAny>,
        group: Option<Vec<i64>>,
    ) -> PyResult<Pairs> {
        let sides = [Memory::import(chosen, "chosen")?, Memory::import(rejected, "rejected")?];
        let [a, b] = sides.each_ref().map(|side| (side.rows(), side.cols()));
        if a != b {
            return Err(value(format!(
                "rejected: expected shape [{}, {}], that of chosen, found [{}, {}]",
                a.0, a.1, b.0, b.1
            )));
        }
        if sides[0].dtype() != sides[1].dtype() {
            let [a, b] = sides.each_ref().map(|side| name(side.dtype()));
            return Err(value(format!("rejected: expected {a}, the dtype of chosen, found {b}")));
        }
        if a.0 == 0 {
            return Err(value("chosen: expected one or more rows, found none"));
        }
        if let Some(found) = group.as_ref().map(Vec::len).filter(|found| *found != a.0) {
            return Err(value(format!("group: expected {} numbers, one a pair, found {found}", a.0)));
        }
        let opened = engine.get().get()?;
        let bytes = sides.iter().map(|side| side.view().values().bytes().len() as u64).sum();
        let wrong = opened.sized(py, bytes, |engine| {
            let [chosen, rejected] = sides.each_ref().map(|side| first_non_finite(side, &engine.interrupt()));
            Ok([chosen?, rejected?])
        })?;
        for (what, wrong) in ["chosen", "rejected"].into_iter().zip(wrong) {
            if let Some((at, found)) = wrong {
                let (row, column) = (at / a.1, at % a.1);
                let message =
                    format!("{what}, row {row}, column {column}: expected a finite value, found {found}");
                return Err(with_kind("NonFinite", message));
            }
        }
        Ok(Pairs { place: Place::Memory(sides), group })
    }

    /// Files, folders and patterns of safetensors files, memory-mapped.
    #[staticmethod]
    #[pyo3(signature = (engine, paths, chosen, rejected, group = None, check = true))]
    fn open(
        py: Python<'_>,
        engine: &Bound<'_, Engine>,
        paths: Vec<String>,
        chosen: String,
        rejected: String,
        group: Option<String>,
        check: bool,
    ) -> PyResult<Pairs> {
        let options = PairOptions { chosen, rejected, group, ..PairOptions::default() };
        let set = engine.get().get()?.run(py, |engine| {
            let set = PairSet::open(&paths, &options)?;
            if check {
                // Looks at every value.
                set.scan_until(&engine.interrupt())?;
            }
            Ok(set)
        })?;
        Ok(Pairs::of_files(set, paths, options))
    }

    fn __len__(&self) -> usize {
        self.pairs()
    }

    #[getter]
    fn dim(&self) -> usize {
        PairSource::dim(self)
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        match &self.place {
            Place::Memory([chosen, _]) => name(chosen.dtype()),
            Place::Files(set, _) => name(set.files()[0].dtype),
        }
    }

    /// The prompt of each pair, as int64 bytes.
    #[getter]
    fn group<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyByteArray>> {
        self.group.as_ref().map(|group| PyByteArray::new(py, bytemuck::cast_slice(group)))
    }

    /// The files, where they are whole files: paths, and the tensors' names.
    #[getter]
    fn files(&self) -> Option<(Vec<String>, String, String)> {
        match &self.place {
            Place::Memory(_) => None,
            Place::Files(_, opened) => {
                let (paths, options) = &**opened;
                Some((paths.clone(), options.chosen.clone(), options.rejected.clone()))
            }
        }
    }

    /// One side as a matrix. Rows of one file are shared, those of several are copied into one.
    fn side(&self, py: Python<'_>, engine: &Bound<'_, Engine>, chosen: bool) -> PyResult<Embeddings> {
        let side = if chosen { Side::Chosen } else { Side::Rejected };
        match &self.place {
            Place::Memory(sides) => Ok(Embeddings(sides[side as usize].clone())),
            Place::Files(set, _) => {
                let block = set.rows(side, 0..set.len()).map_err(raise)?;
                let view = block.view();
                match view.span(0..set.len()).filter(|_| block.is_borrowed()) {
                    // SAFETY: borrowed rows lie in the maps of the set.
                    Some(rows) => Ok(Embeddings(unsafe { Memory::of_files(rows, set.clone()) })),
                    None => copy(py, engine, &view, &(0..set.len()).collect::<Vec<_>>()),
                }
            }
        }
    }

    /// Rows `start` to `stop`: shared where the pairs are in memory, else copied.
    fn slice(
        &self,
        py: Python<'_>,
        engine: &Bound<'_, Engine>,
        start: usize,
        stop: usize,
    ) -> PyResult<Pairs> {
        match &self.place {
            Place::Memory(sides) if start < stop && stop <= self.pairs() => Ok(Pairs {
                place: Place::Memory(sides.each_ref().map(|side| side.part(start, stop))),
                group: self.group.as_ref().map(|group| group[start..stop].to_vec()),
            }),
            _ => self.take(py, engine, (start..stop).collect()),
        }
    }

    /// A copy of the rows with these numbers.
    fn take(&self, py: Python<'_>, engine: &Bound<'_, Engine>, rows: Vec<usize>) -> PyResult<Pairs> {
        let n = self.pairs();
        if let Some(wrong) = rows.iter().find(|row| **row >= n) {
            return Err(value(format!("row: expected 0 to {}, found {wrong}", n - 1)));
        }
        if rows.is_empty() {
            return Err(value("rows: expected one or more, found none"));
        }
        let sides = [Side::Chosen, Side::Rejected].map(|side| {
            let block = self.block(side, 0..n).map_err(raise)?;
            copy(py, engine, &block.view(), &rows).map(|side| side.0)
        });
        let [chosen, rejected] = sides;
        let group = self.group.as_ref().map(|group| rows.iter().map(|&row| group[row]).collect());
        Ok(Pairs { place: Place::Memory([chosen?, rejected?]), group })
    }

    /// Writes them as one safetensors file.
    fn save(&self, py: Python<'_>, engine: &Bound<'_, Engine>, path: PathBuf) -> PyResult<()> {
        engine.get().get()?.run(py, |engine| {
            let all = 0..self.pairs();
            let (chosen, rejected) =
                (self.block(Side::Chosen, all.clone())?, self.block(Side::Rejected, all)?);
            let (sides, group) = ([&chosen.view(), &rejected.view()], self.group.as_deref());
            lensmith::write_pairs_until(&path, sides, group, &engine.interrupt())?;
            self.require_unchanged()
        })
    }
}

/// Rows with these numbers in memory of their own.
fn copy(
    py: Python<'_>,
    engine: &Bound<'_, Engine>,
    from: &RowSet<'_>,
    rows: &[usize],
) -> PyResult<Embeddings> {
    let dtype = from.parts().first().map_or(lensmith::Dtype::F32, |part| part.dtype());
    let out = engine.get().get()?.run(py, |_| {
        let mut out = RowsBuf::zeros(dtype, rows.len(), from.cols());
        from.copy_rows(&|i| rows[i], &mut out);
        Ok(out)
    })?;
    Ok(Embeddings(Memory::new(out)))
}

/// Place and value of the first value that is not finite, looked for in blocks until `interrupt` is raised.
fn first_non_finite(side: &Memory, interrupt: &Interrupt) -> Result<Option<(usize, f32)>> {
    const BLOCK: usize = 16 << 20;
    let rows = side.view();
    let step = (BLOCK / (rows.cols() * rows.dtype().size()).max(1)).max(1);
    for start in (0..rows.rows()).step_by(step) {
        if interrupt.is_raised() {
            return Err(lensmith::Error::Interrupted);
        }
        let block = rows.slice(start..rows.rows().min(start + step));
        if let Some((at, found)) = block.values().first_non_finite() {
            return Ok(Some((start * rows.cols() + at, found)));
        }
    }
    Ok(None)
}

impl Pairs {
    pub fn of_files(set: PairSet, paths: Vec<String>, options: PairOptions) -> Pairs {
        let group = set.group();
        Pairs { place: Place::Files(Arc::new(set), Arc::new((paths, options))), group }
    }

    /// How many leading pairs are original ones, if they are one folder of synthetic pairs as a whole.
    pub fn originals(&self) -> PyResult<Option<usize>> {
        match &self.place {
            Place::Memory(_) => Ok(None),
            Place::Files(set, opened) => lensmith::leading_originals(&opened.0, set).map_err(raise),
        }
    }

    pub fn prompts(&self) -> Option<&[i64]> {
        self.group.as_deref()
    }
}

impl PairSource for Pairs {
    fn pairs(&self) -> usize {
        match &self.place {
            Place::Memory([chosen, _]) => chosen.rows(),
            Place::Files(set, _) => set.len(),
        }
    }

    fn dim(&self) -> usize {
        match &self.place {
            Place::Memory([chosen, _]) => chosen.cols(),
            Place::Files(set, _) => PairSet::dim(set),
        }
    }

    fn block(&self, side: Side, range: Range<usize>) -> Result<Block<'_>> {
        match &self.place {
            Place::Memory(sides) => Ok(Block::Memory(RowSet::from(sides[side as usize].view().slice(range)))),
            Place::Files(set, _) => PairSource::block(&**set, side, range),
        }
    }

    fn require_unchanged(&self) -> Result<()> {
        match &self.place {
            Place::Memory(_) => Ok(()),
            Place::Files(set, _) => PairSet::require_unchanged(set),
        }
    }

    fn paths(&self) -> Vec<&Path> {
        match &self.place {
            Place::Memory(_) => Vec::new(),
            Place::Files(set, _) => PairSource::paths(&**set),
        }
    }
}
