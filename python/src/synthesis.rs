//! Synthetic pairs: by number, in batches, or as a folder.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use lensmith::{
    Dtype, OutputKind, PairBatch, PairIndex, PairOptions, PairSource, Part, Recipe, SynthJob,
    SynthesisOptions,
};
use pyo3::prelude::*;
use self_cell::self_cell;
use serde_json::json;

use crate::array::{Embeddings, Memory, dtype_of, name};
use crate::engine::{Engine, Opened};
use crate::error::{json, raise, settings, value, with_kind};
use crate::models;
use crate::pairs::Pairs;

/// Bytes of a batch from which on Ctrl-C is listened for while it is made.
const LARGE: u64 = 64 << 20;

/// What an index borrows from.
struct Sources {
    opened: Arc<Opened>,
    seeds: Py<Pairs>,
}

self_cell!(
    struct Index {
        owner: Sources,
        #[not_covariant]
        dependent: PairIndex,
    }
);

/// Synthetic pairs of a plan.
#[pyclass(frozen, module = "lensmith._lensmith")]
pub struct Synthesis {
    engine: Py<Engine>,
    pub seeds: Py<Pairs>,
    pub vae: Arc<lensmith::Vae>,
    pub options: SynthesisOptions,
    dtype: Dtype,
    pairs: u64,
    /// Posteriors and candidates of all seeds, made at the first batch out of order, and the process that made them.
    index: Mutex<Option<(u32, Arc<Index>)>>,
}

#[pymethods]
impl Synthesis {
    #[new]
    fn new(
        engine: Py<Engine>,
        vae: &Bound<'_, models::Vae>,
        seeds: Py<Pairs>,
        options: &str,
        dtype: &str,
    ) -> PyResult<Synthesis> {
        let options: SynthesisOptions = settings(options)?;
        let vae = vae.get().model.clone();
        let n = seeds.get().pairs();
        let (dim, found) = (vae.size().dim, PairSource::dim(seeds.get()));
        if dim != found {
            return Err(value(format!(
                "seeds: expected embeddings of {dim} values, those of the VAE, found {found}"
            )));
        }
        let pairs = options.plan(n).map_err(raise)?.0.pairs();
        let dtype = dtype_of(dtype)?;
        Ok(Synthesis { engine, seeds, vae, options, dtype, pairs, index: Mutex::new(None) })
    }

    /// Pairs that there are.
    #[getter]
    fn pairs(&self) -> u64 {
        self.pairs
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        name(self.dtype)
    }

    #[getter]
    fn options(&self) -> String {
        json(&self.options)
    }

    /// Pairs `start` to `stop`, in order.
    fn range(&self, py: Python<'_>, start: u64, stop: u64) -> PyResult<(Embeddings, Embeddings)> {
        if start >= stop || stop > self.pairs {
            let all = self.pairs;
            return Err(value(format!(
                "pairs: expected 0 <= start < stop <= {all}, found {start} and {stop}"
            )));
        }
        let (opened, seeds) = (self.engine.get().get()?, self.seeds.get());
        let batch = usize::try_from(stop - start).map_err(|_| value("pairs: more than memory holds"))?;
        let make = |engine: &lensmith::Engine| {
            let mut stream = engine.stream(&self.options, seeds, &self.vae, batch, self.dtype)?;
            stream.seek(start);
            stream.next().expect("the range is within the pairs")
        };
        let made = match self.is_large(stop - start) {
            true => opened.run(py, make)?,
            false => opened.soon(py, make)?,
        };
        Ok(sides(made))
    }

    /// The pairs with these numbers, in this order.
    fn take(&self, py: Python<'_>, numbers: Vec<u64>) -> PyResult<(Embeddings, Embeddings)> {
        if numbers.is_empty() {
            return Err(value("pairs: expected one or more numbers, found none"));
        }
        if let Some(wrong) = numbers.iter().find(|number| **number >= self.pairs) {
            return Err(value(format!(
                "pairs: expected numbers from 0 to {}, found {wrong}",
                self.pairs - 1
            )));
        }
        let (opened, index) = self.index(py)?;
        let make = |_: &lensmith::Engine| index.with_dependent(|_, index| index.take(&numbers, self.dtype));
        let made = match self.is_large(numbers.len() as u64) {
            true => opened.run(py, make)?,
            false => opened.soon(py, make)?,
        };
        Ok(sides(made))
    }

    /// Writes a folder as the program does and gives what was done as JSON. `seeds` and `vae` are the files of its seeds and
    /// its VAE; `relative` names them in the recipe instead, relative to it. `on_progress` gets pairs written and to write.
    #[allow(clippy::too_many_arguments)]
    fn write(
        &self,
        py: Python<'_>,
        files: (Vec<String>, String, String),
        vae: PathBuf,
        relative: Option<(String, PathBuf)>,
        out: PathBuf,
        stored: (String, String),
        shard_rows: Option<u64>,
        part: (u64, u64),
        overwrite: bool,
        on_progress: Option<Py<PyAny>>,
    ) -> PyResult<String> {
        let (output, dtype) = stored;
        let (seeds, chosen, rejected) = files;
        let kind: OutputKind = serde_json::from_value(json!(output)).map_err(|_| {
            value(format!("output: expected \"embeddings\", \"latents\" or \"recipe\", found \"{output}\""))
        })?;
        let (index, count) = part;
        if index >= count {
            return Err(value(format!(
                "part: expected (index, count) with index below count, found ({index}, {count})"
            )));
        }
        let (opened, failed) = (self.engine.get().get()?, Mutex::new(None));
        let dtype = dtype_of(&dtype)?;
        let summary = opened.work(py, &failed, |engine| {
            let options = PairOptions { chosen, rejected, ..PairOptions::default() };
            let (recipe, seeds, model) = Recipe::new(&seeds, &options, &vae, &self.options)?;
            let mut recipe = recipe.with_absolute_paths()?;
            if let Some((seeds, vae)) = relative {
                recipe.seeds.sources = vec![seeds];
                recipe.vae.path = vae;
            }
            let part = Part { index, count };
            let job = SynthJob { kind, dtype, shard_rows, part, overwrite, ..SynthJob::new(&recipe, &out) };
            engine.synthesize(&job, &seeds, &model, &mut |progress| {
                if let Some(on_progress) = &on_progress {
                    let (done, total) = (progress.resumed + progress.done, progress.resumed + progress.total);
                    opened.call(&failed, |py| on_progress.call1(py, (done, total)).map(drop));
                }
            })
        })?;
        Ok(json(&summary))
    }

    /// How often a reward model orders synthetic pairs as their seeds, as JSON.
    fn order_preservation(&self, py: Python<'_>, model: &Bound<'_, models::RewardModel>) -> PyResult<String> {
        let (seeds, model) = (self.seeds.get(), &model.get().model);
        let found = self
            .engine
            .get()
            .get()?
            .run(py, |engine| engine.order_preservation(&self.options, seeds, &self.vae, model))?;
        Ok(json(&found))
    }
}

fn sides(batch: PairBatch) -> (Embeddings, Embeddings) {
    (Embeddings(Memory::new(batch.chosen)), Embeddings(Memory::new(batch.rejected)))
}

impl Synthesis {
    fn is_large(&self, pairs: u64) -> bool {
        let row = self.vae.size().dim as u64 * self.dtype.size() as u64;
        pairs.saturating_mul(2 * row) > LARGE
    }

    /// The index of this process, made when it is first asked for.
    fn index(&self, py: Python<'_>) -> PyResult<(Arc<Opened>, Arc<Index>)> {
        let (opened, process) = (self.engine.get().get()?, std::process::id());
        let held = || {
            let mut state = self.index.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            match &*state {
                Some((made_by, index)) if *made_by == process => Some(index.clone()),
                Some(_) => {
                    // Its engine's threads are in the parent: nothing here can end them.
                    std::mem::forget(state.take());
                    None
                }
                None => None,
            }
        };
        if let Some(index) = held() {
            return Ok((opened, index));
        }
        let sources = Sources { opened: opened.clone(), seeds: self.seeds.clone_ref(py) };
        let made = opened.run(py, move |_| {
            Index::try_new(sources, |Sources { opened, seeds }| {
                opened.engine.index(&self.options, seeds.get(), &self.vae)
            })
        })?;
        let index = Arc::new(made);
        let mut state = self.index.lock().map_err(|_| with_kind("Panic", "an index was not made".into()))?;
        *state = Some((process, index.clone()));
        Ok((opened, index))
    }
}
