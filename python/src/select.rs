//! Rejection sampling: texts cross as lines of JSON.

use lensmith::{CandidateSet, Io, ResponseColumns, ResponseSet, RowSet, RowSource, SelectOptions};
use pyo3::prelude::*;

use crate::array::Memory;
use crate::engine::Engine;
use crate::error::{json, settings};
use crate::models::RewardModel;

/// Of `rows`, a line of JSON for each prompt with its responses, the responses that `model` ranks first: a line for each,
/// and what was selected, as JSON. `candidates` are their embeddings [prompts * per_prompt, d], or the names of files with
/// them. `columns` says whether rows have a prompt and lengths.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn select(
    py: Python<'_>,
    engine: &Bound<'_, Engine>,
    model: &Bound<'_, RewardModel>,
    candidates: &Bound<'_, PyAny>,
    per_prompt: usize,
    rows: Vec<u8>,
    columns: (bool, bool),
    options: &str,
) -> PyResult<(String, String)> {
    let options: SelectOptions = settings(options)?;
    let columns = ResponseColumns {
        prompt: columns.0.then(|| "prompt".into()),
        lengths: columns.1.then(|| "lengths".into()),
        ..ResponseColumns::default()
    };
    let model = &model.get().model;
    let opened = engine.get().get()?;
    let work =
        |engine: &lensmith::Engine, source: &dyn RowSource, per_prompt: usize, made_of: Option<&[u64]>| {
            let mut responses = ResponseSet::from_memory("dataset", rows, &columns)?;
            responses.pair_with(source.rows() / per_prompt, per_prompt, made_of)?;
            let mut lines = String::new();
            let summary = engine.select(model, source, &responses, &options, &mut |taken| {
                lines.push_str(&json(taken));
                lines.push('\n');
                Ok(())
            })?;
            Ok((lines, json(&summary)))
        };
    if let Ok(files) = candidates.extract::<Vec<String>>() {
        return opened.run(py, |engine| {
            let set = CandidateSet::without_gold(&files, "candidates", Io::default())?;
            work(engine, &set, set.per_prompt(), set.made_of())
        });
    }
    let memory = Memory::import(candidates, "candidates")?;
    opened.run(py, |engine| work(engine, &RowSet::from(memory.view()), per_prompt.max(1), None))
}
